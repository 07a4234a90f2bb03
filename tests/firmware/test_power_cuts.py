# SPDX-License-Identifier: Apache-2.0
"""The reader of a log of writes, and that the judge of power cuts finds what is wrong."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from meshlab.machine import write_log
from meshlab.machine.write_log import FLUSH, SECTOR, Entry, WriteLog, WriteLogError
from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Slot

sys.path.insert(0, str(Path(__file__).parent))
from power_cuts import Card, Expected, Judge, Range, Watched

ONE, TWO = b"1" * SECTOR, b"2" * SECTOR


def log_of(path: Path, *requests: tuple[int, bytes, int]) -> Path:
    head = struct.pack("<QQQI", write_log.MAGIC, 1, len(requests), SECTOR)
    data = head.ljust(SECTOR, b"\0")
    for sector, content, flags in requests:
        entry = struct.pack("<QQQQ", sector, len(content) // SECTOR, flags, 0)
        data += entry.ljust(SECTOR, b"\0") + content
    path.write_bytes(data)
    return path


def test_entries_are_read_and_replayed(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log", (1, ONE + TWO, 0), (0, b"", FLUSH), (2, ONE, 0))
    with WriteLog(path) as log:
        entries = list(log)
        assert [(e.sector, e.sectors, e.flushes) for e in entries] == [
            (1, 2, False),
            (0, 0, True),
            (2, 1, False),
        ]
        card = tmp_path / "card"
        card.write_bytes(bytes(4 * SECTOR))
        write_log.replay(log, card, last=2)
        assert card.read_bytes() == bytes(SECTOR) + ONE + TWO + bytes(SECTOR)
        write_log.replay(log, card, first=2)
        assert card.read_bytes() == bytes(SECTOR) + ONE + ONE + bytes(SECTOR)


def test_a_new_log_is_empty(tmp_path: Path) -> None:
    write_log.create(tmp_path / "log")
    with WriteLog(tmp_path / "log") as log:
        assert list(log) == []


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (0, b"\0", "no log of writes"),
        (8, b"\2", "version 2"),
        (16, b"\xff" * 4, "entries"),
        (24, b"\0\x10", "sectors of 4096"),
        (SECTOR + 8, b"\xff" * 4, "sectors and a text"),
        (SECTOR + 16, b"\x40", "flags that nobody knows"),
    ],
)
def test_a_damaged_log_is_refused(tmp_path: Path, place: int, value: bytes, words: str) -> None:
    path = log_of(tmp_path / "log", (1, ONE, 0))
    data = bytearray(path.read_bytes())
    data[place : place + len(value)] = value
    path.write_bytes(data)
    with pytest.raises(WriteLogError, match=words), WriteLog(path) as log:
        list(log)


def test_a_log_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = log_of(tmp_path / "log", (1, ONE, 0))
    path.write_bytes(path.read_bytes()[:-1])
    with WriteLog(path) as log, pytest.raises(WriteLogError, match="cut off"):
        list(log)


def test_a_slot_is_whole_only_behind_the_flush() -> None:
    now, right = memoryview(TWO + TWO), memoryview(ONE + TWO)
    slot = Expected([Range(0, 2)], now, right)
    assert not slot.whole
    slot.write(Entry(0, 0, 1, 0, 0), ONE)
    assert not slot.whole
    slot.flush()
    assert slot.whole
    slot.write(Entry(1, 1, 1, 0, 0), ONE)
    slot.write(Entry(2, 1, 1, 0, 0), TWO)
    assert not slot.whole
    slot.flush()
    assert slot.whole


def test_a_sector_may_hold_all_that_was_not_flushed() -> None:
    watched = Watched(memoryview(bytes(2 * SECTOR)), [Range(0, 2)])
    watched.write(Entry(0, 0, 2, 0, 0), ONE + ONE)
    watched.write(Entry(1, 1, 1, 0, 0), TWO)
    assert len(watched.possible()) == 6
    watched.flush()
    assert watched.possible() == [{0: ONE, 1: TWO}]


ARMED = boot_record.arm(BootRecord(named=Slot.A), Slot.B, Slot.A)
BOTH = frozenset({Slot.A, Slot.B})


def test_whole_slots_are_no_fault() -> None:
    judge = Judge()
    judge.after_cut(Card(ARMED, Slot.A, Slot.B, BOTH))
    assert judge.faults == []


def test_an_armed_slot_that_may_not_be_whole_is_a_fault() -> None:
    judge = Judge()
    judge.after_cut(Card(ARMED, Slot.A, Slot.B, frozenset({Slot.A})))
    assert "slot B is started and is not whole" in judge.faults[0]


def test_a_slot_that_is_being_written_is_never_started() -> None:
    record = boot_record.write_over(ARMED, Slot.B)
    judge = Judge()
    judge.after_cut(Card(record, Slot.A, Slot.B, frozenset({Slot.A})))
    assert judge.faults == []
