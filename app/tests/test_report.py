# SPDX-License-Identifier: Apache-2.0
"""thicket.report: what the card says about the node, and how little of the card that touches."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thicket.base.paths import Paths
from thicket.device import boot_partition, in_place
from thicket.device.boot_partition import StoreError, boot_lock
from thicket.upkeep import report
from thicket.upkeep.report import BYTES, ReportError, compose, pack, unpack

DOCUMENT: dict[str, Any] = {
    "hostname": "n-6f44e3c6b802",
    "address": "fd12:3456:789a:1:0:6f44:e3c6:b802",
    "prefix_length": 64,
    "identity": {"source": "chip", "serial": "01236f44e3c6b802ee", "id": "6f44e3c6b802"},
    "state": "joined",
    "version": "0.1.0",
    "slot": "A",
    "data": {"state": "clean", "message": ""},
    "last_restart": {"reason": "panic", "message": "Attempted to kill init!"},
    "factory_reset": None,
    "configuration": {"source": "/etc/thicket/thicket.toml", "last_good_used": False},
    "problems": [],
}


class TestText:
    def test_tells_who_the_node_is(self) -> None:
        text = compose(DOCUMENT)
        for words in (
            "n-6f44e3c6b802", "fd12:3456:789a:1:0:6f44:e3c6:b802/64", "01236f44e3c6b802ee",
            "0.1.0, slot A", "sound", "the kernel failed: Attempted to kill init!",
            "Nothing is wrong with them", "None.",
        ):  # fmt: skip
            assert words in text

    def test_tells_what_is_wrong(self) -> None:
        problems = [
            {"part": "configuration", "code": "invalid", "severity": "warning",
             "message": 'thicket.toml: mesh.channel = 14: must be a Wi-Fi channel'},
            {"part": "radio", "code": "no-radio", "severity": "error", "message": "no radio"},
        ]  # fmt: skip
        text = compose({**DOCUMENT, "problems": problems})
        assert "  - thicket.toml: mesh.channel = 14: must be a Wi-Fi channel\n" in text
        assert text.index("mesh.channel") < text.index("Problems") < text.index("radio (error)")

    def test_before_anything_is_known(self) -> None:
        nothing = {
            "hostname": "", "address": None, "identity": None, "slot": None, "last_restart": None,
        }  # fmt: skip
        assert "not known yet" in compose({**DOCUMENT, **nothing})

    def test_a_node_without_chip(self) -> None:
        identity = {"source": "random", "serial": None, "id": "acde91202aba"}
        assert "acde91202aba, from a random number; no security chip" in compose(
            {**DOCUMENT, "identity": identity}
        )

    def test_what_a_factory_reset_erased(self) -> None:
        assert "Last reset" not in compose(DOCUMENT)
        reset = {"at": "2026-11-30T16:39:37Z", "words": "by a file on the card: 3 files, 1.2 MiB"}
        line = "Last reset:    2026-11-30 16:39 UTC (the device's clock), by a file on the card: 3"
        assert line in compose({**DOCUMENT, "factory_reset": reset})

    def test_lines_stay_lines(self) -> None:
        problem = {"part": "radio", "severity": "error", "message": "a\r\nb\x1b[2J", "code": "x"}
        assert "a\\u000d\\u000ab\\u001b[2J" in compose({**DOCUMENT, "problems": [problem]})


class TestFile:
    @settings(deadline=None)
    @given(st.lists(st.text(st.characters(blacklist_categories=("Cc", "Cs"))), max_size=40))
    def test_any_text(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        data = pack(text, "today")
        assert len(data) == BYTES
        assert data.count(b"\n") == data.count(b"\r\n")
        assert unpack(data) == unpack(pack(text, "another day"))
        assert [line.rstrip() for line in text.rstrip().split("\n")] == unpack(data).split("\n")

    def test_too_much_is_cut(self) -> None:
        data = pack("\n".join(f"line {n} of many" for n in range(5000)), "today")
        assert len(data) == BYTES
        assert b"line 0 of" in data
        assert b"... and more" in data

    def test_one_endless_line(self) -> None:
        assert len(pack("x" * 100_000, "today")) == BYTES

    @settings(deadline=None)
    @given(st.binary(max_size=200))
    def test_something_else_is_not_taken_for_a_report(self, data: bytes) -> None:
        if not data.startswith(b"Written:"):
            assert unpack(data) == ""


class Card:
    """A boot partition: a device with the file somewhere in it, and the commands that were run.

    While it is "unmounted" the file is not there.
    """

    def __init__(self, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths = paths
        self.device = Path(paths.root + "/dev/vdc")
        self.device.parent.mkdir()
        self.rest = os.urandom(3 * BYTES)
        self.device.write_bytes(self.rest)
        self.file = Path(paths.boot + "/report.txt")
        # 32 sectors, not in a row
        self.blocks = [3 + 2 * n for n in range(BYTES // 512)]
        self.commands: list[str] = []
        monkeypatch.setattr(boot_partition, "run", self.run)
        monkeypatch.setattr(in_place, "blocks_of", lambda path, length: self.blocks)
        self.mounts = Path(paths.mounts)

    def run(self, command: list[str]) -> None:
        self.commands.append(" ".join(command))
        if command[0] == "umount":
            self.mounts.write_text("")
            self.file.unlink()
        elif "remount" not in command[2]:
            self.mounts.write_text(f"/dev/vdc {self.paths.boot} vfat ro 0 0\n")
            self.file.write_bytes(self.content())

    def content(self) -> bytes:
        data = self.device.read_bytes()
        return b"".join(data[n * 512 : (n + 1) * 512] for n in self.blocks)

    def put(self, content: bytes) -> None:
        """The file as the device has it."""
        with self.device.open("r+b") as device:
            for number, block in enumerate(self.blocks):
                device.seek(block * 512)
                device.write(content[number * 512 : (number + 1) * 512])
        self.file.write_bytes(content)

    def others(self) -> list[bytes]:
        """The sectors of others."""
        data = self.device.read_bytes()
        return [data[n * 512 : (n + 1) * 512] for n in range(96) if n not in self.blocks]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(str(tmp_path))
    for folder in ("proc/self", "boot"):
        (tmp_path / folder).mkdir(parents=True)
    Path(made.cmdline).write_text("quiet thicket.boot=/dev/vdc\n")
    Path(made.mounts).write_text(f"/dev/vdc {made.boot} vfat ro 0 0\n")
    return made


@pytest.fixture
def card(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(paths, monkeypatch)


class TestWriting:
    def test_in_place(self, paths: Paths, card: Card) -> None:
        card.put(pack("old", "then"))
        others = card.others()
        assert report.write(paths, "new")
        assert unpack(card.content()) == "new"
        assert card.others() == others
        assert card.commands == [
            f"umount {paths.boot}",
            f"mount -t vfat -o ro,nosuid,nodev,noexec,noatime /dev/vdc {paths.boot}",
        ]

    def test_only_sectors_that_differ(
        self, paths: Paths, card: Card, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card.put(pack("old", "then"))
        written = []
        pwritev = os.pwritev

        def note(fd: int, parts: list[memoryview], at: int) -> int:
            written.append(at // 512)
            return pwritev(fd, parts, at)

        monkeypatch.setattr(os, "pwritev", note)
        report.write(paths, "new")
        assert written == card.blocks[:1]

    def test_the_same_is_not_written(self, paths: Paths, card: Card) -> None:
        card.put(pack("same", "then"))
        before = card.content()
        assert not report.write(paths, "same")
        assert card.content() == before
        assert card.commands == []

    @pytest.mark.parametrize("there", [None, b"", b"edited by somebody"])
    def test_a_file_of_another_length_is_made(
        self, there: bytes | None, paths: Paths, card: Card
    ) -> None:
        if there is not None:
            card.file.write_bytes(there)
        assert report.write(paths, "text")
        assert len(card.file.read_bytes()) == BYTES
        assert unpack(card.file.read_bytes()) == "text"
        assert card.commands == [
            f"mount -o remount,rw {paths.boot}",
            f"mount -o remount,ro {paths.boot}",
        ]

    def test_somebody_uses_the_partition(
        self, paths: Paths, card: Card, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        card.put(pack("old", "then"))
        before = card.content()

        def busy(command: list[str]) -> None:
            raise StoreError("umount: Device or resource busy")

        monkeypatch.setattr(boot_partition, "run", busy)
        with pytest.raises(ReportError, match="busy"):
            report.write(paths, "new")
        assert card.content() == before

    def test_a_device_that_fails_is_mounted_again(self, paths: Paths, card: Card) -> None:
        card.put(pack("old", "then"))
        card.device.chmod(0o600)
        card.blocks = [10**9 + n for n in range(32)]
        os.truncate(card.device, 0)
        card.device.unlink()
        card.device.mkdir()  # a directory cannot be written
        with pytest.raises(ReportError):
            report.write(paths, "new")

    def test_without_a_boot_partition_there_is_no_report(self, paths: Paths) -> None:
        Path(paths.cmdline).write_text("quiet\n")
        assert not report.write(paths, "text")

    def test_two_at_once_wait_for_each_other(
        self, paths: Paths, card: Card, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(boot_partition, "LOCK_PATIENCE", 0.1)
        with boot_lock(paths), pytest.raises(ReportError, match="was in use"):
            report.write(paths, "text")
        assert report.write(paths, "text")


SHELL = [
    ("configuration", "defaults are in force; correct the file, then run `thicket reload`"),
    ("configuration", "/etc/thicket/thicket.toml: line 2: mesh.chanel: unknown key"),
    ("configuration", "/boot/thicket.toml: is gone: there was one before"),
    ("configuration", "/data/thicket/last-good.toml: is damaged: its checksum differs"),
    ("radio", "put the present one into thicket.toml, or use `thicket config set mesh.passphrase`"),
    ("firewall", "until it can be, or until `thicket config set firewall.enabled=false`"),
]  # fmt: skip


class TestHolderOfTheCard:
    def text(self, *problems: tuple[str, str]) -> str:
        listed = [
            {"part": part, "code": "x", "severity": "warning", "message": message}
            for part, message in problems
        ]
        return compose({**DOCUMENT, "problems": listed})

    def test_no_command_and_no_path_of_the_node_is_named(self) -> None:
        text = self.text(*SHELL)
        for words in ("`thicket", "/etc/", "/boot/", "/data/", "reload"):
            assert words not in text
        assert "correct thicket.toml on this card" in text
        assert "  - thicket.toml: line 2: mesh.chanel: unknown key" in text
        assert "firewall.enabled = false stands in thicket.toml" in text

    def test_the_line_of_a_fault_and_its_mark_stand_below_each_other(self) -> None:
        message = (
            '/etc/thicket/thicket.toml: line 3, column 6: write id = "a"\n    id = a\n         ^'
        )
        text = self.text(("configuration", message))
        assert '  - thicket.toml: line 3, column 6: write id = "a"\n        id = a\n' in text
        assert "\n             ^\n" in text

    def test_other_commands_are_explained(self) -> None:
        assert "logged in to a node" in self.text(("radio", "`thicket passphrase finish` does it"))
        desk = self.text(("trust", "`thicket ca enroll` does it"))
        assert "fleet's authority" in desk
        assert "logged in" not in desk

    def test_it_says_how_to_change_the_settings_and_which_ones_are_in_force(self) -> None:
        assert "edit the file thicket.toml beside this one" in self.text()
        assert "Settings from: thicket.toml\n" in self.text()
        kept = {"source": "/data/thicket/last-good.toml", "last_good_used": True}
        assert "not from this thicket.toml" in compose({**DOCUMENT, "configuration": kept})
        none = {"source": "defaults", "last_good_used": False}
        assert "Settings from: the image's defaults" in compose({**DOCUMENT, "configuration": none})
