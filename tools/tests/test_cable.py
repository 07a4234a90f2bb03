# SPDX-License-Identifier: Apache-2.0
"""Devices at a cable: what answers may say, which one a person means, and the words for it.

app/tests/test_cable.py has devices that answer, and real ssh.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authority import bench
from authority.authority import Authority
from authority.cli import main as ca_main
from authority.errors import AuthorityError
from cable import find, reach
from cable.answers import MOST_BYTES, SERVICE, Device, read
from cable.errors import CableError
from remote import cli
from remote.cli import main
from thicket.discovery.questions import browse

NEAR = IPv6Address("fe80::7")
ONE = Device("n-6f44e3c6b801", IPv6Address("fe80::1"), "eth0", "1.2.3")
TWO = Device("n-6f44e3c6b802", IPv6Address("fe80::2"), "eth0", "1.2.3")
OTHER = Device("n-6f44e3c6b801", IPv6Address("fe80::bad"), "eth1")


def packet(
    host: str = ONE.name,
    addresses: tuple[bytes, ...] = (ONE.address.packed,),
    version: str = "1.2.3",
    service: str = SERVICE,
) -> bytes:
    """An answer as a device gives it, by the library that it has."""
    from zeroconf import DNSOutgoing, ServiceInfo  # type: ignore[attr-defined]

    info = ServiceInfo(
        service,
        f"{host}.{service}",
        addresses=list(addresses),
        port=22,
        properties={"version": version},
        server=f"{host}.local.",
    )
    made = DNSOutgoing(0x8400)
    for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
        made.add_answer_at_time(record, 0)
    (packed,) = made.packets()
    return packed


def test_an_answer() -> None:
    assert read(packet(), NEAR, "eth0") == [ONE]
    assert read(packet(addresses=()), NEAR, "eth0") == [ONE._replace(address=NEAR)]
    both = (socket.inet_aton("169.254.1.2"), ONE.address.packed)
    assert read(packet(addresses=both), NEAR, "eth0") == [ONE]
    assert ONE.host == "fe80::1%eth0"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        browse(SERVICE, []),
        packet("printer"),
        packet("n-6F44E3C6B80"),
        packet(service="_ipp._tcp.local."),
        packet() + bytes(MOST_BYTES),
        packet()[:12],
    ],
)
def test_what_is_no_answer_of_a_device(data: bytes) -> None:
    assert read(data, NEAR, "eth0") == []


def test_who_is_not_of_the_link_is_nobody() -> None:
    assert read(packet(), IPv6Address("2001:db8::1"), "eth0") == []
    elsewhere = packet(addresses=(IPv6Address("2001:db8::1").packed,))
    assert read(elsewhere, NEAR, "eth0") == [ONE._replace(address=NEAR)]


def test_what_would_do_harm_on_a_terminal_is_not_shown() -> None:
    assert read(packet(version="1\x1b[2J"), NEAR, "eth0") == [ONE._replace(version="")]
    assert read(packet(version="9" * 41), NEAR, "eth0") == [ONE._replace(version="")]


@given(st.binary(max_size=200), st.integers(0, 200), st.integers(0, 40))
def test_whatever_comes_is_bounded(data: bytes, at: int, cut: int) -> None:
    good = packet()
    for one in (data, good[:at] + data + good[at + cut :], b"\0\0\x84\0" + data):
        for device in read(one, NEAR, "eth0"):
            assert reach.is_device(device.name)
            assert device.address.is_link_local
            assert device.version.isprintable()
            assert len(device.version) <= 40


class TestWhichIsMeant:
    def test_the_only_one(self) -> None:
        assert reach.chosen([ONE], None) == ONE
        with pytest.raises(CableError, match="no device answers on a cable"):
            reach.chosen([], None)

    def test_one_of_several_by_its_name(self) -> None:
        for node in ("n-6f44e3c6b802", "n-802", "N-6F44E3C6B802.local", "fe80::2%eth0"):
            assert reach.chosen([ONE, TWO], node) == TWO
        with pytest.raises(CableError, match=r"2 devices answer; name one.*\n.*n-6f44e3c6b801"):
            reach.chosen([ONE, TWO], None)
        with pytest.raises(CableError, match="n-777 does not answer; there are:"):
            reach.chosen([ONE, TWO], "n-777")

    def test_two_that_say_that_they_are_the_same(self) -> None:
        with pytest.raises(CableError, match="answers from several places") as caught:
            reach.chosen([ONE, OTHER], "n-801")
        assert "fe80::bad%eth1" in str(caught.value)
        assert reach.chosen([ONE, OTHER], "fe80::bad%eth1") == OTHER

    @pytest.mark.parametrize("word", ["n-1", "n-6f44e3c6b801", "n-801.local", "fe80::1%eth0"])
    def test_words_for_a_device(self, word: str) -> None:
        assert reach.is_device(word)

    @pytest.mark.parametrize("word", ["status", "nodes", "n-", "n-xyz", "fe80::1", "a%b", "-n-1"])
    def test_words_for_something_else(self, word: str) -> None:
        assert not reach.is_device(word)


def test_host_keys_are_kept_by_the_name_of_the_device(tmp_path: Path) -> None:
    folder = tmp_path / '50% of "all"'
    folder.mkdir()
    options = reach.options(ONE, folder)
    assert f"HostKeyAlias={ONE.name}" in options
    assert "StrictHostKeyChecking=accept-new" in options
    (file,) = [one for one in options if one.startswith("UserKnownHostsFile=")]
    assert "50%% of" in file
    assert "ForwardAgent=no" in options
    assert "names an SSH key" not in reach.advice(ONE, folder)
    assert "has to name an SSH key" in reach.advice(ONE, folder)
    (folder / reach.KNOWN_HOSTS).write_text(f"{ONE.name} ssh-ed25519 AAAA\n")
    assert f"ssh-keygen -R {ONE.name}" in reach.advice(ONE, folder)
    assert not reach.known(TWO, folder)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Device]:
    """What a search finds, in place of one."""
    there: list[Device] = []

    def search(known: object = (), **_: object) -> list[Device]:
        left = [one for one in there if one not in set(known)]  # type: ignore[call-overload]
        return sorted(left)

    monkeypatch.setattr(find, "search", search)
    return there


class TestWords:
    def test_devices_are_listed(
        self, found: list[Device], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--cable"]) == 1
        assert "no device answers on a cable" in capsys.readouterr().err
        found += [ONE, TWO]
        assert main(["--cable"]) == 0
        assert capsys.readouterr().out == (
            "n-6f44e3c6b801  fe80::1%eth0  1.2.3\nn-6f44e3c6b802  fe80::2%eth0  1.2.3\n"
        )

    @pytest.mark.parametrize(
        ("words", "node", "command"),
        [
            (["--cable", "status"], "", ["status"]),
            (["--cable", "n-801", "status"], "n-801", ["status"]),
            (["--cable=n-801", "run", "--", "ls"], "n-801", ["run", "--", "ls"]),
            (["--cable", "fe80::1%eth0", "shell"], "fe80::1%eth0", ["shell"]),
            (["--folder", "x", "--cable", "--node", "n-1", "logs"], "", ["logs"]),
        ],
    )
    def test_the_device_is_a_word_of_its_own_or_missing(
        self, words: list[str], node: str, command: list[str]
    ) -> None:
        at = cli._command_at(words)
        assert words[at:] == command
        assert (node in words[:at] or f"--cable={node}" in words[:at]) if node else True

    def test_a_command_needs_to_know_which(
        self, found: list[Device], capsys: pytest.CaptureFixture[str]
    ) -> None:
        found += [ONE, TWO]
        assert main(["--cable", "status"]) == 1
        assert "thicket --cable: 2 devices answer; name one" in capsys.readouterr().err
        assert main(["--cable", "--via", "x", "status"]) == 2


class TestBench:
    @pytest.fixture
    def ca(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
        from fleet_for_tests import PREFIX

        made = Authority(tmp_path / "fleet", lambda _: "")
        made.init("acme", PREFIX, lab=True)
        monkeypatch.setenv("THICKET_CA", str(made.folder))
        monkeypatch.delenv("THICKET_CA_PASSPHRASE", raising=False)
        return made

    @pytest.fixture
    def enrolled(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of devices that were to be enrolled, one of which fails."""
        seen: list[str] = []

        def agent(device: Device, options: object, bus: str | None) -> None:
            seen.append(device.name)

        def enroll(_: Authority, start: Callable[[str | None], object], *, replace: bool) -> str:
            start(None)
            if seen[-1] == TWO.name:
                raise AuthorityError("its chip is broken")
            return "enrolled"

        monkeypatch.setattr(bench, "_agent", agent)
        monkeypatch.setattr(bench, "enroll", enroll)
        return seen

    def test_a_failure_of_one_does_not_stop_the_others(
        self,
        ca: Authority,
        found: list[Device],
        enrolled: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        three = ONE._replace(name="n-6f44e3c6b803")
        found += [ONE, TWO, three]
        assert ca_main(["enroll", "--cable", "--yes"]) == 1
        assert enrolled == [ONE.name, TWO.name, three.name]
        said = capsys.readouterr().out
        assert f"BAD  {TWO.name}  not enrolled: its chip is broken" in said
        assert f"ok   {three.name}  enrolled" in said
        assert "2 of 3 devices are enrolled." in said

    def test_one_name_at_two_places_is_nobody(
        self,
        ca: Authority,
        found: list[Device],
        enrolled: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        found += [ONE, OTHER]
        assert ca_main(["enroll", "--cable", "--yes"]) == 1
        assert enrolled == []
        assert "Leave one cable, or name the place" in capsys.readouterr().out
        assert ca_main(["enroll", "--cable", "fe80::1%eth0", "--yes"]) == 0
        assert enrolled == [ONE.name]

    def test_nothing_is_done_without_a_word(
        self,
        ca: Authority,
        found: list[Device],
        enrolled: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        found.append(ONE)
        assert ca_main(["enroll", "--cable"]) == 2
        assert "needs --yes" in capsys.readouterr().err
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", lambda question: "")
        assert ca_main(["enroll", "--cable"]) == 1
        assert enrolled == []
        monkeypatch.setattr("builtins.input", lambda question: "y")
        assert ca_main(["enroll", "--cable"]) == 0
        assert enrolled == [ONE.name]

    def test_devices_that_are_plugged_in_one_after_the_other(
        self,
        ca: Authority,
        found: list[Device],
        enrolled: list[str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        waits = iter([ONE, TWO._replace(name="n-6f44e3c6b803")])

        def sleep(_: float) -> None:
            try:
                found[:] = [next(waits)]
            except StopIteration:
                raise KeyboardInterrupt from None

        monkeypatch.setattr("authority.bench.time.sleep", sleep)
        assert ca_main(["enroll", "--cable", "--yes", "--watch"]) == 0
        assert enrolled == [ONE.name, "n-6f44e3c6b803"]
        assert "2 of 2 devices are enrolled." in capsys.readouterr().out

    def test_words(self, ca: Authority, capsys: pytest.CaptureFixture[str]) -> None:
        assert ca_main(["enroll", "--cable", "status", "--yes"]) == 2
        assert "status is no device" in capsys.readouterr().err
