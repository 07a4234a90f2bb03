# SPDX-License-Identifier: Apache-2.0
"""``boot-slots``: what RAUC, init and the daemon ask of it, on a card that is a file.

``autoboot.txt`` on a FAT file system that is mounted: tests/firmware/test_boot_card.py.
"""

from __future__ import annotations

import fcntl
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from thicket.base.paths import Paths
from thicket.device import autoboot, boot_partition, boot_record, boot_slots, in_place
from thicket.device.boot_record import PLACES, SECTOR, Phase, Run, Slot, State, Why
from thicket.device.boot_slots import SlotError, Slots
from thicket.device.disk import CardError, Disk

A, B = Slot.A, Slot.B


class Node:
    """A node's folders, with a card."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.monkeypatch = monkeypatch
        for folder in ("proc/self", "dev/slots", "run/thicket", "sys/fs/pstore", "boot"):
            (path / folder).mkdir(parents=True)
        self.card = path / "dev/slots/card"
        self.card.write_bytes(bytes(SECTOR * 64))
        self.boot(A)
        monkeypatch.setenv("THICKET_ROOT", str(path))
        self.restarts: list[bool] = []
        monkeypatch.setattr(boot_slots, "restart", self.restart)
        self.named: list[Slot] = []
        self.fault: Exception | None = None
        monkeypatch.setattr(in_place, "write", self.name)
        monkeypatch.setattr(boot_partition, "mount_boot", lambda paths, device: None)

    def restart(self, tryboot: bool) -> None:
        self.restarts.append(tryboot)

    def boot(self, slot: Slot) -> None:
        (self.path / "proc/cmdline").write_text(f"quiet thicket.slot={slot.name} x=y\n")
        (self.path / "run/thicket/well").unlink(missing_ok=True)

    def name(self, paths: Paths, device: str, target: str, data: bytes) -> None:
        assert (device, target) == ("/dev/slots/config", f"{self.path}/boot/autoboot.txt")
        if self.fault is not None:
            raise self.fault
        self.named.append(next(slot for slot in (A, B) if autoboot.make(slot) == data))

    @property
    def slots(self) -> Slots:
        return Slots(Paths())

    def run(self, *words: str) -> int:
        self.monkeypatch.setattr(sys, "argv", ["boot-slots", *words])
        return boot_slots.main()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


@pytest.fixture
def ask(node: Node, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def asked(*words: str) -> str:
        assert node.run(*words) == 0
        return capsys.readouterr().out.strip()

    return asked


def test_an_install_as_rauc_does_it(node: Node, ask: Callable[..., str]) -> None:
    assert ask("begin") == ""
    assert [ask("get-current"), ask("get-primary")] == ["A", "A"]
    assert [ask("get-state", "A"), ask("get-state", "B")] == ["good", "good"]
    assert ask("set-state", "B", "bad") == ""
    assert ask("get-state", "B") == "bad"
    assert "B: incomplete" in ask("show")
    assert ask("set-primary", "B") == ""
    assert [ask("get-primary"), ask("get-state", "B")] == ["B", "good"]
    assert "B: untried, to be tried" in ask("show")
    # The firmware is not told by a usual restart: the next start sees to that.
    assert ask("begin") == "restarting for the trial of slot B"
    assert node.restarts == [True]
    node.boot(B)
    assert "slot B is on trial" in ask("begin")
    assert [ask("get-current"), ask("get-primary")] == ["B", "A"]
    assert node.named == []
    assert ask("set-state", "B", "good") == ""
    assert node.named == [B]
    assert [ask("get-primary"), ask("get-state", "A")] == ["B", "good"]
    assert ask("show") == "A: untried\nB: good, runs"
    assert node.restarts == [True]


def test_the_two_sectors_are_written_in_turns_and_nothing_else(node: Node) -> None:
    for number in range(1, 6):
        node.slots.change(lambda record, n=number: record._replace(failed=n))  # type: ignore[misc]
        card = node.card.read_bytes()
        sequences = []
        for place in PLACES:
            record = boot_record.unpack(card[place * SECTOR :][:SECTOR])
            sequences.append(record.sequence if record else None)
        assert number in sequences
        assert number == 1 or number - 1 in sequences
        rest = bytearray(card)
        for place in PLACES:
            rest[place * SECTOR : (place + 1) * SECTOR] = bytes(SECTOR)
        assert not any(rest)


def test_what_stays_the_same_is_not_written(node: Node) -> None:
    node.slots.begin()
    begun = node.card.read_bytes()
    node.slots.change(lambda record: record)
    assert node.card.read_bytes() == begun
    node.slots.well()
    well = node.card.read_bytes()
    assert well != begun
    node.slots.well()
    assert node.card.read_bytes() == well


def test_a_kernel_that_failed_is_noticed(node: Node) -> None:
    node.slots.begin()
    (node.path / "sys/fs/pstore/dmesg-ramoops-0").touch()
    node.slots.begin()
    assert node.slots.read().failed == boot_record.DIED


def test_the_last_words_of_the_kernel_of_a_trial_are_kept_for_the_daemon(
    node: Node, ask: Callable[..., str]
) -> None:
    record = node.path / "sys/fs/pstore/dmesg-ramoops-0"
    record.write_text("<0>[    1.5] Kernel panic - not syncing: VFS: no root\n")
    node.slots.begin()
    kept = node.path / "run/thicket/panic"
    assert not kept.exists(), "that was no trial"
    node.slots.set_primary(B)
    record.unlink()
    ask("begin")
    node.boot(B)
    ask("begin")
    record.write_text("<0>[    9.5] Kernel panic - not syncing: sysrq triggered crash\n")
    node.boot(A)
    ask("begin")
    assert kept.read_text() == "sysrq triggered crash"
    assert "B: bad, its kernel failed: sysrq triggered crash" in ask("show")
    # The next trial is another matter.
    (note := node.path / "data/update/trial.json").parent.mkdir(parents=True)
    note.write_text("there is no peer")
    ask("set-primary", "A")
    assert kept.exists()
    assert note.exists()
    ask("set-primary", "B")
    assert not kept.exists()
    assert not note.exists()


def test_a_watchdog_is_noticed(node: Node) -> None:
    node.slots.begin()
    folder = node.path / "proc/device-tree/chosen/bootloader"
    folder.mkdir(parents=True)
    (folder / "rsts").write_bytes(bytes.fromhex("00001020"))
    node.slots.begin()
    assert node.slots.read().failed == boot_record.DIED
    node.slots.stopped()
    node.slots.begin()
    assert node.slots.read().failed == boot_record.DIED


def test_well_leaves_a_mark_for_init(node: Node) -> None:
    node.slots.begin()
    mark = node.path / "run/thicket/well"
    assert not mark.exists()
    node.slots.well()
    assert mark.exists()
    assert node.slots.read().run is Run.WELL
    assert node.slots.read().state_a is State.GOOD


def test_a_slot_whose_trial_was_called_off_is_not_kept(node: Node, ask: Callable[..., str]) -> None:
    """It may run for long; its epoch would leave the other slot, which is started next, as bad."""
    ask("begin")
    assert node.slots.well(2)
    node.slots.set_primary(B)
    node.boot(B)
    ask("begin")
    node.slots.set_primary(A)
    assert ask("show").splitlines() == [
        "A: untried, to be tried",
        "B: untried, runs, its trial was called off: the next start is one of the other slot",
    ]
    assert not node.slots.well(3)
    record = node.slots.read()
    assert (record.trial, record.epoch, record.state_b) == (A, 2, State.UNTRIED)
    assert not (node.path / "run/thicket/well").exists()
    assert node.slots.late(), "init ends it in the end"
    node.boot(A)
    ask("begin")
    assert node.slots.well(2)
    record = node.slots.read()
    assert (record.named, record.state_a, record.trial) == (A, State.GOOD, Slot.NONE)


def test_a_commit_that_fails_commits_nothing(node: Node) -> None:
    node.slots.set_primary(B)
    node.boot(B)
    node.slots.begin()
    node.fault = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        node.slots.well()
    record = node.slots.read()
    assert (record.trial, record.phase, record.run) == (B, Phase.RUNS, Run.BEGUN)
    assert not (node.path / "run/thicket/well").exists()


def test_a_start_that_is_late(node: Node, ask: Callable[..., str]) -> None:
    ask("begin")
    ask("late")
    assert node.restarts == [False]
    ask("begin")
    assert node.slots.read().failed == boot_record.DIED
    node.slots.well()
    ask("late")
    assert node.restarts == [False]


def test_a_trial_that_is_late_is_left(node: Node, ask: Callable[..., str]) -> None:
    node.slots.set_primary(B)
    node.boot(B)
    ask("begin")
    mark = Path(node.slots.paths.data) / "thicket" / "run"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text("running\n")
    ask("late")
    assert mark.read_text() == "overdue\n"  # why it restarted
    node.boot(A)
    assert ask("begin") == ""
    record = node.slots.read()
    assert (record.state_b, record.why_b, record.trial) == (State.BAD, Why.OVERDUE, Slot.NONE)
    assert "B: bad, it was not well in time" in ask("show")


def test_the_running_slot_marked_bad_is_left_by_a_trial(
    node: Node, ask: Callable[..., str]
) -> None:
    ask("begin")
    ask("set-state", "A", "bad")
    assert [ask("get-state", "A"), ask("get-primary")] == ["bad", "B"]
    # What is started instead has to be whole.
    ask("set-state", "B", "bad")
    assert ask("get-primary") == "A"


class TestErrors:
    def test_no_slot(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        (node.path / "proc/cmdline").write_text("quiet\n")
        assert node.run("get-primary") == 1
        assert "not started from a slot" in capsys.readouterr().err

    def test_no_card(self, node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        node.card.unlink()
        assert node.run("get-primary") == 1
        assert "is not there" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [[], ["get-state"], ["get-state", "C"], ["set-state", "A", "ugly"], ["begin", "x"], ["-h"]],
    )
    def test_usage(self, words: list[str], node: Node, capsys: pytest.CaptureFixture[str]) -> None:
        assert node.run(*words) == 2
        assert "usage: boot-slots" in capsys.readouterr().err

    def test_a_sector_that_cannot_be_read_costs_that_copy(
        self, node: Node, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        node.slots.change(lambda record: record._replace(epoch=5))
        node.slots.change(lambda record: record._replace(epoch=6))
        read = Disk.read

        def failing(disk: Disk, sector: int) -> bytes:
            if sector == PLACES[0]:
                raise CardError("sector 16 cannot be read: Input/output error")
            return read(disk, sector)

        monkeypatch.setattr(Disk, "read", failing)
        assert node.slots.read().epoch == 6
        # The next one goes to the sector that is lost, and the one that is whole stays.
        with pytest.raises(CardError):
            node.slots.change(lambda record: record._replace(epoch=7))
        assert node.slots.read().epoch == 6

    def test_somebody_holds_the_record(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(boot_slots, "PATIENCE", 0.2)
        with (node.path / "run/thicket/boot-record.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(SlotError, match="in use"):
                node.slots.change(lambda record: record._replace(epoch=7))
        node.slots.change(lambda record: record._replace(epoch=7))


class TestAutoboot:
    def test_the_file(self) -> None:
        text = autoboot.make(B)
        assert len(text) == SECTOR
        assert text.strip() == (
            b"[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=2"
        )

    def test_the_card_image_has_the_same(self) -> None:
        script = (Path(__file__).parents[2] / "board/common/post-image.sh").read_text()
        assert f"<<EOF\n{autoboot.make(A).decode().strip()}\nEOF" in script
