# SPDX-License-Identifier: Apache-2.0
"""The boot record: what a node remembers from start to start about its two slots, and what follows.

The firmware of a Raspberry Pi starts the slot that ``autoboot.txt`` names, or the other one, once,
after a restart that says ``tryboot``. It counts nothing and remembers nothing. What is missing is
here: a slot is tried before it is named, a slot that does not get well is left, and both say why.

The record is kept twice, in two sectors in front of the card's first partition, and written to the
older place, so that a write that is cut leaves the other one. A sector holds a mark of 8 bytes, the
record's length, the record, its CRC-32 and zeros. All numbers are little endian. Later versions
append fields, and an older one writes back what it does not know.

Everything here is a function of the record: the card is :mod:`thicket.device.boot_slots`.
"""

from __future__ import annotations

import struct
import zlib
from enum import IntEnum
from typing import NamedTuple

#: Sectors where the two copies are, counted from the start of the card.
PLACES = (16, 24)
SECTOR = 512

#: A start that ended in a panic or by the watchdog counts three, one of which nothing is known (a
#: power cut) one. From this sum on, without one start that got well, the other slot is tried.
LIMIT = 9
DIED, ENDED = 3, 1

_MARK = b"THCKBOOT"
_FIELDS = struct.Struct("<IIBBBBBBBBB")
_HEAD = struct.Struct("<8sH")
_CRC = struct.Struct("<I")
_MOST = SECTOR - _HEAD.size - _CRC.size


class Slot(IntEnum):
    """One of the two slots, or none."""

    NONE = 0
    A = 1
    B = 2

    @property
    def other(self) -> Slot:
        """The other slot; there is none of none."""
        return Slot((0, 2, 1)[self])


class State(IntEnum):
    """What is known of a slot."""

    #: Its content is whole and has not been started, as after flashing.
    UNTRIED = 0
    #: It was well.
    GOOD = 1
    #: It was started and left, or a person said so; its content is whole.
    BAD = 2
    #: Its content is being written, or that was never completed: it is not started.
    INCOMPLETE = 3


class Phase(IntEnum):
    """How far the trial of a slot has come."""

    NONE = 0
    #: The slot is to be tried; the firmware was not told yet.
    READY = 1
    #: The firmware was told, once.
    TOLD = 2
    #: The firmware was told again: the first time could have been lost in a power cut.
    TOLD_AGAIN = 3
    #: The slot runs for a trial.
    RUNS = 4


class Run(IntEnum):
    """How the running start, or the last one, went."""

    #: It has begun; nothing else is known.
    BEGUN = 0
    #: It got well.
    WELL = 1
    #: It was ended in order before it could get well.
    STOPPED = 2
    #: It was restarted by us, as it did not get well in time.
    LATE = 3


class Why(IntEnum):
    """Why a slot is bad."""

    NONE = 0
    PANIC = 1
    WATCHDOG = 2
    NEVER_STARTED = 3
    SILENT = 4
    OVERDUE = 5
    UNWELL = 6
    FAILED_STARTS = 7
    BY_HAND = 8
    EPOCH = 9


WORDS = {
    Why.NONE: "",
    Why.PANIC: "its kernel failed",
    Why.WATCHDOG: "the hardware watchdog restarted it, it had stood still",
    Why.NEVER_STARTED: "the firmware was told twice to start it, and it never came up",
    Why.SILENT: "it was restarted or lost its power before it was well",
    Why.OVERDUE: "it was not well in time",
    Why.UNWELL: "it started and was not well",
    Why.FAILED_STARTS: "it started again and again and was never well",
    Why.BY_HAND: "somebody marked it as bad",
    Why.EPOCH: "its security epoch is lower than the one in force",
}


WORDS_CALLED_OFF = "its trial was called off: the next start is one of the other slot"

TRIED = frozenset((Why.PANIC, Why.WATCHDOG, Why.NEVER_STARTED, Why.SILENT, Why.OVERDUE, Why.UNWELL))
"""Why a slot is bad that was tried."""


class BootRecord(NamedTuple):
    """What is remembered.

    :ivar sequence: grows by one with every write; the copy with the larger one counts.
    :ivar epoch: the epoch in force: a bundle with a lower one is refused.
    :ivar named: the slot that ``autoboot.txt`` was found or made to name; NONE is unknown.
    :ivar trial: the slot that is to be tried or is being tried, or NONE.
    :ivar phase: how far that has come.
    :ivar failed: the sum of the starts that did not get well, see LIMIT.
    :ivar run: how the running start goes; before it begins, how the last one went.
    :ivar rest: fields of a later version.
    """

    sequence: int = 0
    epoch: int = 0
    named: Slot = Slot.NONE
    trial: Slot = Slot.NONE
    phase: Phase = Phase.NONE
    failed: int = 0
    run: Run = Run.WELL
    state_a: State = State.UNTRIED
    state_b: State = State.UNTRIED
    why_a: Why = Why.NONE
    why_b: Why = Why.NONE
    rest: bytes = b""

    def state(self, slot: Slot) -> State:
        """Return what is known of ``slot``, A or B."""
        return self.state_a if slot is Slot.A else self.state_b

    def why(self, slot: Slot) -> Why:
        """Return why ``slot``, A or B, is bad; NONE when it is not."""
        return self.why_a if slot is Slot.A else self.why_b

    def marked(self, slot: Slot, state: State, why: Why = Why.NONE) -> BootRecord:
        """Return the record with another state of ``slot``, A or B."""
        if slot is Slot.A:
            return self._replace(state_a=state, why_a=why)
        return self._replace(state_b=state, why_b=why)

    def _without_trial(self, slot: Slot) -> BootRecord:
        if self.trial is not slot:
            return self
        return self._replace(trial=Slot.NONE, phase=Phase.NONE)


# -- the sector


def pack(record: BootRecord) -> bytes:
    """Return the sector that holds the record."""
    body = _FIELDS.pack(*record[:-1]) + record.rest
    data = _HEAD.pack(_MARK, len(body)) + body
    return (data + _CRC.pack(zlib.crc32(data))).ljust(SECTOR, b"\0")


def unpack(sector: bytes) -> BootRecord | None:
    """Return the record of a sector, or None when it holds none that is whole."""
    mark, length = _HEAD.unpack_from(sector)
    if mark != _MARK or not _FIELDS.size <= length <= _MOST:
        return None
    end = _HEAD.size + length
    if zlib.crc32(sector[:end]) != _CRC.unpack_from(sector, end)[0]:
        return None
    values = _FIELDS.unpack_from(sector, _HEAD.size)
    sequence, epoch, named, trial, phase, failed, run, state_a, state_b, why_a, why_b = values
    try:
        record = BootRecord(
            sequence, epoch, Slot(named), Slot(trial), Phase(phase), failed, Run(run),
            State(state_a), State(state_b), Why(why_a), Why(why_b),
            bytes(sector[_HEAD.size + _FIELDS.size : end]),
        )  # fmt: skip
    except ValueError:
        return None
    return record if bool(record.trial) == bool(record.phase) else None


def newest(sectors: tuple[bytes, bytes]) -> tuple[BootRecord, int]:
    """Return the record that counts, and which of PLACES the next one is written to.

    Without any, it is that of a card which was just flashed.
    """
    records = [unpack(sector) for sector in sectors]
    first, second = records
    if first is None and second is None:
        return BootRecord(), 0
    if second is None or (first is not None and first.sequence > second.sequence):
        assert first is not None
        return first, 1
    return second, 0


# -- what follows


class Start(NamedTuple):
    """What a start has to do.

    :ivar record: to be written.
    :ivar tryboot: whether the node is to be restarted at once, with the firmware told to try the
        other slot.
    :ivar words: what a person should know of it; may be empty.
    """

    record: BootRecord
    tryboot: bool = False
    words: str = ""


def begin(record: BootRecord, running: Slot, died: Why) -> Start:
    """Judge the start of ``running``, A or B, before anything else is done.

    :param died: PANIC or WATCHDOG when the run before ended so, else NONE. A Pi's ROM tells no
        orderly restart from one by the watchdog; the record does.
    """
    if record.run is Run.STOPPED and died is Why.WATCHDOG:
        died = Why.NONE
    if record.trial is running:
        if record.phase is not Phase.RUNS:
            record = record._replace(phase=Phase.RUNS, run=Run.BEGUN)
            return Start(record, words=f"slot {running.name} is on trial")
        # A trial is one start. This is the second: autoboot.txt names the slot already, and the
        # power was cut before the record said so.
        record = commit(record, running)._replace(run=Run.BEGUN)
        return Start(record, words=f"slot {running.name} is the one that is started from now on")
    if record.trial:
        return _back_from_trial(record, running, died)
    words = ""
    if record.named not in (running, Slot.NONE):
        # autoboot.txt was edited or lost, or the firmware walked on to another partition.
        words = f"the firmware started slot {running.name}, not slot {record.named.name}"
        record = record._replace(failed=0, run=Run.WELL)
    failed = _failed(record, died)
    record = record._replace(named=running, failed=failed, run=Run.BEGUN)
    other = running.other
    if failed < LIMIT or record.state(other) is State.INCOMPLETE:
        return Start(record, words=words)
    # By a trial, not by naming it: where the other slot is worse, this one is started again.
    record = record.marked(running, State.BAD, Why.FAILED_STARTS)
    record = record._replace(trial=other, phase=Phase.TOLD, failed=0)
    words = f"slot {running.name}: {WORDS[Why.FAILED_STARTS]}; slot {other.name} is tried"
    return Start(record, tryboot=True, words=words)


def _failed(record: BootRecord, died: Why) -> int:
    """Return the sum of failed starts, with the run that came before this one."""
    if record.run is Run.WELL:
        return 0
    if record.run is Run.STOPPED and not died:
        return record.failed
    added = DIED if died or record.run is Run.LATE else ENDED
    return min(record.failed + added, 255)


def _back_from_trial(record: BootRecord, running: Slot, died: Why) -> Start:
    """``running`` is started though the other slot should have been, or was before."""
    trial, phase = record.trial, record.phase
    # A Pi's ROM says of any restart that it was the watchdog's: while nothing of the slot has run,
    # only a panic tells that it was started.
    if phase is not Phase.RUNS and died is Why.WATCHDOG:
        died = Why.NONE
    if phase is Phase.READY or (phase is Phase.TOLD and not died):
        record = record._replace(phase=Phase(phase + 1), named=running)
        return Start(record, tryboot=True, words=f"restarting for the trial of slot {trial.name}")
    why = died or (Why.SILENT if phase is Phase.RUNS else Why.NEVER_STARTED)
    record = reject(record, trial, why)._replace(named=running, failed=0, run=Run.BEGUN)
    return Start(record, words=f"slot {trial.name} was tried and left: {WORDS[why]}")


def arm(record: BootRecord, slot: Slot, running: Slot) -> BootRecord:
    """``slot`` has whole content and shall be the one that is started: it is tried first.

    Where ``slot`` runs already and is no trial, a trial of the other one is called off.
    """
    if slot is running and record.trial is not slot:
        return record._without_trial(slot.other)
    if record.trial is slot and record.phase is Phase.RUNS:
        return record
    return record.marked(slot, State.UNTRIED)._replace(trial=slot, phase=Phase.READY)


def told(record: BootRecord) -> BootRecord:
    """The firmware is told, by the restart that follows, to try the slot that is on trial."""
    return record._replace(phase=Phase.TOLD) if record.phase is Phase.READY else record


def commit(record: BootRecord, slot: Slot) -> BootRecord:
    """``slot`` was well and ``autoboot.txt`` names it."""
    record = record.marked(slot, State.GOOD)._without_trial(slot)
    return record._replace(named=slot, failed=0, run=Run.WELL)


def called_off(record: BootRecord, running: Slot) -> bool:
    """Return whether ``running`` was started for a trial that was called off meanwhile.

    The firmware starts the other slot next, whatever becomes of this start.
    """
    return record.trial is not running and record.named is running.other


def well(record: BootRecord, running: Slot) -> BootRecord:
    """``running`` is well. A slot on trial has to be committed instead."""
    if record.trial is running or called_off(record, running):
        return record
    return record.marked(running, State.GOOD)._replace(failed=0, run=Run.WELL)


def raised(record: BootRecord, epoch: int, running: Slot) -> BootRecord:
    """``running``, an image of ``epoch``, is well and kept.

    Where an epoch was in force before and was lower, the other slot is of that one: going back to
    it would open holes again that are closed, so it is not started any more.
    """
    if epoch <= record.epoch:
        return record
    before, record = record.epoch, record._replace(epoch=epoch)
    if not before or record.state(running.other) is State.INCOMPLETE:
        return record
    return record.marked(running.other, State.BAD, Why.EPOCH)._without_trial(running.other)


def stopped(record: BootRecord) -> BootRecord:
    """The node is being switched off or restarted in order."""
    return record if record.run is Run.WELL else record._replace(run=Run.STOPPED)


def reject(record: BootRecord, slot: Slot, why: Why) -> BootRecord:
    """``slot`` is left, or never taken, for this reason."""
    state = State.INCOMPLETE if record.state(slot) is State.INCOMPLETE else State.BAD
    return record.marked(slot, state, why)._without_trial(slot)


def why_left(record: BootRecord, slot: Slot, words: str) -> str:
    """Return why a slot is bad.

    :param words: what is known of its last trial besides.
    """
    why = record.why(slot)
    return f"{WORDS[why]}: {words}" if words and why in TRIED else WORDS[why]


def late(record: BootRecord, running: Slot) -> BootRecord:
    """``running`` was not well in time, and is restarted: one on trial is left."""
    if record.run is Run.WELL:
        return record
    if record.trial is running:
        record = reject(record, running, Why.OVERDUE)
    return record._replace(run=Run.LATE)


def leave(record: BootRecord, running: Slot, why: Why) -> BootRecord:
    """``running`` is bad, for this reason: the next start is one of the other slot.

    From a trial the firmware returns by itself. Else the other slot is tried, unless its content is
    not whole.
    """
    on_trial = record.trial is running
    record = reject(record, running, why)
    if on_trial or record.state(running.other) is State.INCOMPLETE:
        return record
    return record._replace(trial=running.other, phase=Phase.READY)


def write_over(record: BootRecord, slot: Slot) -> BootRecord:
    """The content of ``slot`` is about to be written."""
    return record.marked(slot, State.INCOMPLETE)._without_trial(slot)
