# SPDX-License-Identifier: Apache-2.0
"""`thicket ca label`: what devices are called, in the authority's folder and for the nodes."""

from __future__ import annotations

import base64
import json
import shutil
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from fleet_for_tests import PREFIX

from authority import label as command
from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from authority.labels import FILE, Said, place_text, read_table
from authority.remote_node import RemoteNode
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.driver import open_chip
from meshlab.chip.state import serial_for
from thicket.trust import openssl
from thicket.trust.labels import MAX_NUMBER, Entry, SignedLabels, device_of, merged

NOW = datetime(2026, 11, 24, 12, 30, tzinfo=UTC)
KEY = openssl.public_key(openssl.generate_key())


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


def authority(folder: Path, clock: Clock | None = None) -> Authority:
    return Authority(folder, lambda _: "", clock=clock or Clock())


@pytest.fixture
def ca(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = authority(tmp_path / "fleet")
    made.init("acme", PREFIX, lab=True)
    for number in range(1, 4):
        made.enroll_software("board", bytes(5) + bytes([number]), KEY)
    monkeypatch.setenv("THICKET_CA", str(tmp_path / "fleet"))
    return made


def device(number: int) -> str:
    return f"software-board-{number:012x}"


def at(number: int) -> int:
    return 1 << 48 | number


def read(ca: Authority, packed: bytes | None) -> SignedLabels:
    assert packed is not None
    return SignedLabels.read(packed, ca.fleet)


# -- names of devices, and what may be said


@pytest.mark.parametrize(
    "name",
    [device(2), "n-000000000002", "N-000000000002", "0002", "fd12:3456:789a:1:1::2", "North Mast"],
)
def test_every_name_of_a_device_is_understood(ca: Authority, name: str) -> None:
    ca.labels.change([(device(2), Said("north mast"))])
    assert ca.labels.change([(name, Said(note="x"))]) == [device(2)]
    assert ca.labels.entries()[at(2)][1:] == ("north mast", "", "x")


@pytest.mark.parametrize("name", ["", "nobody", "n-000000000009", "fd12:3456:789a:1:1::9", "n-"])
def test_a_name_of_no_device(ca: Authority, name: str) -> None:
    with pytest.raises(AuthorityError, match="is no device of this fleet"):
        ca.labels.change([(name, Said("x"))])


def test_a_name_of_two_devices(ca: Authority) -> None:
    ca.enroll_software("board", bytes(4) + b"\7\2", KEY)
    with pytest.raises(AuthorityError, match=f"02 may be {device(2)} or {device(0x702)}"):
        ca.labels.change([("02", Said("x"))])


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        (Said("n-6f44e3c6b802"), "taken for the name or address"),
        (Said("N-6F44E3C6B802"), "taken for the name or address"),
        (Said("fd12::1"), "taken for the name or address"),
        (Said("192.0.2.1"), "taken for the name or address"),
        (Said("thicket@x"), "taken for the name or address"),
        (Said("x" * 33), "at most 32 characters, not 33"),
        (Said("a\x1b[2J"), "characters that do not print"),
        (Said("a\u202eb"), "characters that do not print"),
        (Said(place="x" * 65), "at most 64"),
        (Said(place="91, 0"), "no place on the earth"),
        (Said(place="0,-180.5"), "no place on the earth"),
        (Said(note="x" * 161), "at most 160"),
        (Said(note="a\nb"), "characters that do not print"),
    ],
)
def test_what_must_not_be_said(ca: Authority, said: Said, fault: str) -> None:
    with pytest.raises(AuthorityError, match=fault):
        ca.labels.change([(device(1), Said("good")), (device(2), said)])
    assert ca.labels.entries() == {}, "all of it, or nothing"


def test_labels_are_unique_whatever_their_case_and_form(ca: Authority) -> None:
    ca.labels.change([(device(1), Said("Caf\xe9"))])
    for twin in ("caf\xe9", "CAF\xc9", "cafe\u0301", "  Caf\xe9 "):
        with pytest.raises(AuthorityError, match="would both have the label"):
            ca.labels.change([(device(2), Said(twin))])
    ca.labels.change([(device(2), Said("cafe"))])
    # They may change places at once.
    ca.labels.change([(device(1), Said("cafe")), (device(2), Said("Caf\xe9"))])
    assert ca.labels.entries()[at(1)].label == "cafe"


def test_what_is_empty_is_taken_away(ca: Authority) -> None:
    ca.labels.change([(device(1), Said("a", "b", "c"))])
    assert ca.labels.change([(device(1), Said("a", "b", "c"))]) == []
    assert ca.labels.change([(device(1), Said("", "", ""))]) == [device(1)]
    assert ca.labels.entries()[at(1)].empty


def test_a_revoked_device_has_no_label_any_more(ca: Authority) -> None:
    ca.labels.change([(device(1), Said("gate"))])
    ca.labels.merge(())
    ca.revocations.revoke([device(1)])
    ca.labels.change([(device(2), Said("gate"))])
    found = read(ca, ca.labels.merge(())[1]).labels.entries
    assert (found[at(1)].empty, found[at(2)].label) == (True, "gate")


def test_folders_of_an_older_version_and_damaged_ones(ca: Authority) -> None:
    path = ca.folder / "fleet.json"
    kept = json.loads(path.read_text())
    assert "labels" not in kept
    assert ca.labels.merge(()) == (0, None)
    assert not (ca.folder / FILE).exists()
    damaged: Any
    for damaged in ({"x": {}}, {"1": {"changed": "x"}}, {"1": {"changed": 1, "label": 5}}, 5):
        path.write_text(json.dumps({**kept, "labels": damaged}))
        with pytest.raises(AuthorityError, match="damaged"):
            ca.labels.entries()


# -- signing, and copies of the folder


def test_nothing_is_signed_again_that_says_the_same(ca: Authority) -> None:
    ca.labels.change([(device(1), Said("gate", "52.5,13.25"))])
    assert not (ca.folder / FILE).exists(), "changing needs no key"
    _, packed = ca.labels.merge(())
    first = read(ca, packed)
    assert (first.labels.number, first.signer) == (1, "Signer 0001")
    assert first.labels.entries[at(1)].place == (52.5, 13.25)
    assert ca.labels.merge([packed or b""]) == (0, packed)
    (ca.folder / "signer-0001.key").unlink()
    again = authority(ca.folder)
    assert again.labels.merge(()) == (0, packed)
    ca.labels.change([(device(1), Said("gate 2"))])
    with pytest.raises(AuthorityError, match="is needed and not in"):
        again.labels.merge(())


def test_two_copies_end_with_what_was_said_last(ca: Authority, tmp_path: Path) -> None:
    ca.labels.change([(device(1), Said("gate")), (device(2), Said("mast"))])
    ca.labels.merge(())
    shutil.copytree(ca.folder, tmp_path / "copy")
    later = Clock()
    later.now += timedelta(hours=1)
    copy = authority(tmp_path / "copy", later)
    copy.enroll_software("board", bytes(5) + b"\x09", KEY)
    copy.labels.change([(device(1), Said("main gate")), (device(9), Said("barn"))])
    _, theirs = copy.labels.merge(())
    ca.labels.change([(device(2), Said(note="rusty"))])
    _, ours = ca.labels.merge(())
    assert read(ca, ours).labels.number == read(ca, theirs).labels.number == 2
    assert theirs is not None
    taken, both = ca.labels.merge([theirs])
    assert taken == 2
    found = read(ca, both)
    assert found.labels.number == 3
    assert {d: e.label for d, e in found.labels.entries.items()} == {
        at(1): "main gate", at(2): "mast", at(9): "barn"
    }  # fmt: skip
    assert found.labels.entries[at(2)].note == "rusty"
    # The other copy takes it as it is, without a key.
    (copy.folder / "signer-0001.key").unlink()
    assert both is not None
    taken, same = authority(copy.folder).labels.merge([both])
    assert (taken, same) == (1, both)
    # A device that only the other copy has enrolled has a name here, too.
    assert ca.labels.change([("barn", Said(place="north"))]) == ["n-000000000009"]


def test_copies_that_gave_one_label_twice_are_told(ca: Authority, tmp_path: Path) -> None:
    shutil.copytree(ca.folder, tmp_path / "copy")
    copy = authority(tmp_path / "copy")
    copy.labels.change([(device(2), Said("Gate"))])
    _, theirs = copy.labels.merge(())
    ca.labels.change([(device(1), Said("gate"))])
    assert theirs is not None
    with pytest.raises(AuthorityError, match=f"{device(1)} and {device(2)} would both have"):
        ca.labels.merge([theirs])
    ca.labels.change([(device(1), Said("gate 1"))])
    ca.labels.merge([theirs])


def test_documents_that_no_node_takes_count_for_nothing(ca: Authority, tmp_path: Path) -> None:
    other = authority(tmp_path / "other")
    other.init("other", PREFIX, lab=True)
    other.enroll_software("board", bytes(5) + b"\x01", KEY)
    other.labels.change([(device(1), Said("theirs"))])
    ca.labels.change([(device(1), Said("ours"))])
    _, foreign = other.labels.merge(())
    assert foreign is not None
    _, packed = ca.labels.merge([foreign, b"junk"])
    assert read(ca, packed).labels.entries[at(1)].label == "ours"
    # What a revoked signer has signed is signed anew by the next one.
    ca.signer()
    ca.revocations.revoke(["Signer 0001"])
    _, anew = ca.labels.merge([packed or b""])
    assert read(ca, anew).signer == "Signer 0002"


def test_the_highest_number_is_the_last(ca: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    ca.labels.change([(device(1), Said("a"))])
    ca.labels._sign({}, MAX_NUMBER - 1)
    with pytest.raises(AuthorityError, match="revoke the signer"):
        ca.labels._sign({}, MAX_NUMBER)


def test_more_than_a_node_takes_is_not_signed(ca: Authority) -> None:
    entries = {n: Entry(1, f"{n}", "p" * 64, "n" * 100) for n in range(1000)}
    with pytest.raises(AuthorityError, match="make notes and places shorter"):
        ca.labels._sign(entries, 0)


def test_entries_of_chips_are_those_of_their_addresses(ca: Authority, tmp_path: Path) -> None:
    serial = serial_for(1, 1)
    Atecc608(serial, tmp_path / "chip.json")
    ca.enroll_chip(open_chip(tmp_path / "chip.json"), write=True, show=lambda _: None)
    assert ca.labels.change([(serial.hex(), Said("x"))]) == [serial.hex()]
    address = ca.list()["devices"][serial.hex()]["address"]
    assert ca.labels.entries()[device_of(IPv6Address(address))].label == "x"


# -- the command


def test_the_command(ca: Authority, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert ca_main(["label", "0002", "--label", "north mast", "--place=-12.5,130.25"]) == 0
    assert f"Changed: {device(2)}. `thicket ca publish`" in capsys.readouterr().out
    assert ca_main(["label", "north mast", "--note", "rusty"]) == 0
    assert ca_main(["label", "north mast", "--note", "rusty"]) == 0
    assert capsys.readouterr().out.endswith("Nothing is new.\n")
    assert ca_main(["list"]) == 0
    assert "north mast, -12.500000, 130.250000: rusty\n" in capsys.readouterr().out
    assert ca_main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"][device(2)]["place"] == [-12.5, 130.25]
    assert found["devices"][device(2)]["label"] == "north mast"
    assert "label" not in found["devices"][device(1)]
    table = tmp_path / "labels.csv"
    assert ca_main(["label", "--export", str(table)]) == 0
    text = table.read_text()
    assert text == (
        f"device,label,place,note\n{device(1)},,,\n"
        f'{device(2)},north mast,"-12.500000, 130.250000",rusty\n{device(3)},,,\n'
    )
    capsys.readouterr()
    assert ca_main(["label", "--import", str(table)]) == 0
    assert capsys.readouterr().out == "Nothing is new.\n"
    table.write_text(text.replace(f"{device(3)},,,", f'{device(3)},"gate, main",roof,'))
    assert ca_main(["label", "--import", str(table)]) == 0
    assert capsys.readouterr().out.startswith(f"Changed: {device(3)}.")
    table.write_text("\ufeffDevice,Note\r\n0001,\xe4\r\n", encoding="utf-8")
    assert ca_main(["label", "--import", str(table)]) == 0
    assert ca.labels.entries()[at(1)].note == "\xe4"


@pytest.mark.parametrize(
    "words",
    [
        ["label"], ["label", "x"], ["label", "x", "y", "--label", "z"], ["label", "--label", "x"],
        ["label", "--import", "f", "--export", "f"], ["label", "x", "--import", "f"],
        ["label", "--import", "f", "--note", "x"], ["label", "x", "--colour", "red"],
    ],
)  # fmt: skip
def test_it_is_used_wrongly(
    ca: Authority, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ca_main(words) == 2
    assert "thicket ca: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "its first line names the columns"), ("label\nx\n", "its first line names"),
        ("device\nx\n", "its first line names"), ("device,colour\n", "its first line names"),
        ("device,label\nx\n", "line 2 has not the columns"),
        ("device,label\n0001,x,y\n", "line 2 has not the columns"),
        ('device,label\n0001,"x', "no comma-separated values"),
        ("device,label\n0009,x\n", "is no device of this fleet"),
        ("device,label\n0001,x\n0002,x\n", "would both have the label"),
        ("device,label\n" + "x" * (1 << 20), "longer than"),
    ],
    ids=lambda value: value[:20].replace("\n", "|"),
)  # fmt: skip
def test_tables_that_are_none(
    ca: Authority, text: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert ca_main(["label", "--import", str(tmp_path / "t.csv")]) == 1
    assert fault in capsys.readouterr().err
    assert ca.labels.entries() == {}


def test_a_table_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"device,label\n\xff\xfe,x\n")
    with pytest.raises(AuthorityError, match="UTF-8"):
        read_table(tmp_path / "t.csv")


def test_places_are_written_as_they_are_read() -> None:
    assert place_text((1.5, -2.25)) == "1.500000, -2.250000"
    assert place_text("roof") == "roof"
    assert merged([]) == {}


# -- to nodes


class Channel:
    """A node's agent, as a console reaches it."""

    name = "console"

    def __init__(self, held: bytes = b"", *, old: bool = False) -> None:
        self.held = held
        self.old = old

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self.old:
            return {"error": "unknown"}
        if request["do"] == "labels":
            self.held = base64.b64decode(request["labels"])
            return {"number": 7, "labels": 2}
        text = base64.b64encode(self.held).decode()
        return {"part": text[request["at"] : request["at"] + 100]}

    def close(self) -> None: ...


def test_publishing_reaches_all_and_takes_up_the_newest(
    ca: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts: dict[str, bytes] = {"a": b"", "b": b""}

    def over_ssh(host: str, failed: str, *words: str, data: bytes = b"") -> bytes:
        if host not in hosts:
            raise AuthorityError(f"{host} {failed}")
        if words == ("export",):
            return hosts[host]
        assert words == ("import", "-")
        hosts[host] = data
        return b""

    def publish(channel: Channel | None, *names: str) -> int:
        node = RemoteNode(channel) if channel is not None else None  # type: ignore[arg-type]
        return command.publish(ca, node, names, over_ssh)

    assert publish(Channel(old=True), "away") == 0, "nothing is asked for where nothing is said"
    shutil.copytree(ca.folder, tmp_path / "copy")
    copy = authority(tmp_path / "copy")
    copy.labels.change([(device(2), Said("mast"))])
    hosts["b"] = copy.labels.merge(())[1] or b""
    ca.labels.change([(device(1), Said("gate"))])
    channel = Channel()
    assert publish(channel, "a", "b") == 0
    said = capsys.readouterr().out
    assert "has named 1 of the devices: taken up" in said
    assert "The node has labels 7 now, for 2 devices." in said
    assert hosts["a"] == hosts["b"] == channel.held == (ca.folder / FILE).read_bytes()
    found = read(ca, channel.held).labels.entries
    assert [found[at(n)].label for n in (1, 2)] == ["gate", "mast"]
    # One that is away, or too old, keeps the others from nothing.
    ca.labels.change([(device(1), Said("gate 2"))])
    assert publish(Channel(old=True), "away", "a") == 1
    assert read(ca, hosts["a"]).labels.entries[at(1)].label == "gate 2"
    said = capsys.readouterr().err
    assert "away does not tell its labels; it gets none" in said
    assert "console: unknown" in said
