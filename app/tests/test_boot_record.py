# SPDX-License-Identifier: Apache-2.0
"""The boot record: its sectors, and a machine that loses its power at every write."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.device import boot_record as br
from thicket.device.boot_record import BootRecord, Phase, Run, Slot, State, Why

A, B = Slot.A, Slot.B
GARBAGE = bytes(range(256)) * 2


@st.composite
def records(draw: st.DrawFn) -> BootRecord:
    trial = draw(st.sampled_from(Slot))
    phases = [phase for phase in Phase if bool(phase) == bool(trial)]
    return BootRecord(
        sequence=draw(st.integers(0, 2**32 - 1)),
        epoch=draw(st.integers(0, 2**32 - 1)),
        named=draw(st.sampled_from(Slot)),
        trial=trial,
        phase=draw(st.sampled_from(phases)),
        failed=draw(st.integers(0, 255)),
        run=draw(st.sampled_from(Run)),
        state_a=draw(st.sampled_from(State)),
        state_b=draw(st.sampled_from(State)),
        why_a=draw(st.sampled_from(Why)),
        why_b=draw(st.sampled_from(Why)),
        rest=draw(st.binary(max_size=100)),
    )


class TestSector:
    @given(records())
    def test_there_and_back(self, record: BootRecord) -> None:
        sector = br.pack(record)
        assert len(sector) == br.SECTOR
        assert br.unpack(sector) == record

    @given(records(), st.integers(0, br.SECTOR * 8 - 1))
    def test_a_flipped_bit_is_noticed_or_is_none_of_it(self, record: BootRecord, bit: int) -> None:
        sector = bytearray(br.pack(record))
        sector[bit // 8] ^= 1 << bit % 8
        assert br.unpack(bytes(sector)) in (None, record)

    @given(st.binary(min_size=br.SECTOR, max_size=br.SECTOR))
    def test_anything_else_is_no_record(self, sector: bytes) -> None:
        assert br.unpack(sector) is None

    @given(records(), st.binary(min_size=480, max_size=480))
    def test_what_only_looks_right_is_no_record(self, record: BootRecord, rest: bytes) -> None:
        """The sum is right and a value is not."""
        body = br.pack(record)[10:29] + rest
        for place, value in ((8, 3), (9, 3), (10, 5), (12, 4), (13, 4), (15, 9)):
            changed = body[:place] + bytes([value]) + body[place + 1 :]
            assert br.unpack(with_sum(changed)) is None

    def test_the_form_is_this(self) -> None:
        """Cards in the field have it; written down byte by byte."""
        record = BootRecord(
            0x01020304, 7, A, B, Phase.TOLD, 3, Run.STOPPED, State.GOOD, State.INCOMPLETE,
            Why.NONE, Why.SILENT, b"xyz",
        )  # fmt: skip
        body = bytes.fromhex("04030201 07000000 01 02 02 03 02 01 03 00 04 78797a")
        expected = b"THCKBOOT" + bytes([len(body), 0]) + body
        assert br.pack(record).startswith(expected)
        assert br.pack(record) == with_sum(body)

    @pytest.mark.parametrize("length", [0, 16, 499, 65535])
    def test_a_length_out_of_bounds(self, length: int) -> None:
        sector = bytearray(br.pack(BootRecord()))
        sector[8:10] = length.to_bytes(2, "little")
        assert br.unpack(bytes(sector)) is None


def with_sum(body: bytes) -> bytes:
    """Return a sector with the sum of zlib's documentation, by hand."""
    data = b"THCKBOOT" + len(body).to_bytes(2, "little") + body
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return (data + (crc ^ 0xFFFFFFFF).to_bytes(4, "little")).ljust(512, b"\0")


class TestTwoPlaces:
    def test_a_blank_card(self) -> None:
        assert br.newest((bytes(512), GARBAGE)) == (BootRecord(), 0)

    @given(st.integers(0, 2**32 - 2))
    def test_the_newer_one_counts_and_the_older_is_written(self, sequence: int) -> None:
        old, new = (br.pack(BootRecord(sequence=s)) for s in (sequence, sequence + 1))
        assert br.newest((old, new)) == (BootRecord(sequence=sequence + 1), 0)
        assert br.newest((new, old)) == (BootRecord(sequence=sequence + 1), 1)

    def test_the_whole_one_counts(self) -> None:
        whole = br.pack(BootRecord(sequence=5))
        assert br.newest((whole, GARBAGE)) == (BootRecord(sequence=5), 1)
        assert br.newest((GARBAGE, whole)) == (BootRecord(sequence=5), 0)


# -- a machine


class CutError(Exception):
    """The power is gone."""


class Machine:
    """Firmware by its documentation, a card, and what each slot does when it is started.

    :ivar does: for each slot: well, panic, hang (until the watchdog), dark (until the power is
        cut), none (no kernel comes up).
    :ivar cut_at: the number of the write that is the last one before the power is cut, and what it
        leaves: old, new or garbage.
    """

    def __init__(self, cut_at: int = -1, leaves: str = "new", **does: str) -> None:
        self.does = {A: does.get("a", "well"), B: does.get("b", "well")}
        self.named = A
        self.sectors = [bytes(512), bytes(512)]
        self.whole = {A: True, B: True}
        self.tryboot = False
        self.died = Why.NONE
        self.cut_at, self.leaves = cut_at, leaves
        self.writes = 0
        self.starts: list[Slot] = []
        self.running = A

    # -- the card

    @property
    def record(self) -> BootRecord:
        return br.newest((self.sectors[0], self.sectors[1]))[0]

    def change(self, change: Callable[[BootRecord], BootRecord]) -> None:
        before, place = br.newest((self.sectors[0], self.sectors[1]))
        after = change(before)
        if after != before:
            sector = br.pack(after._replace(sequence=before.sequence + 1))
            self.write(
                sector, lambda data: self.sectors.__setitem__(place, data), self.sectors[place]
            )

    def name(self, slot: Slot) -> None:
        """One sector; cards are believed to write one as a whole or not at all."""

        def put(data: bytes) -> None:
            if data != GARBAGE:
                self.named = Slot(data[0])

        self.write(bytes([slot]), put, bytes([self.named]))

    def write(self, data: bytes, put: Callable[[bytes], None], before: bytes) -> None:
        self.writes += 1
        if self.writes - 1 != self.cut_at:
            put(data)
            return
        put({"old": before, "new": data, "garbage": GARBAGE}[self.leaves])
        self.tryboot = False
        self.died = Why.NONE
        raise CutError

    # -- what happens

    def install(self, slot: Slot) -> None:
        """As RAUC does it, on the running system."""
        self.change(lambda record: br.write_over(record, slot))
        self.whole[slot] = False
        self.write(b"", lambda data: None, b"")
        self.whole[slot] = True
        self.change(lambda record: br.arm(record, slot, self.running))
        self.change(br.told)
        self.tryboot = self.record.trial is slot

    def start(self) -> None:
        """One start, up to the next restart or until it is well."""
        slot = self.named.other if self.tryboot else self.named
        self.tryboot = False
        died, self.died = self.died, Why.NONE
        self.starts.append(slot)
        assert self.whole[slot], "a slot was started that is not whole"
        self.running = slot
        if self.does[slot] == "none":
            self.died = Why.PANIC
            return
        start = br.begin(self.record, slot, died)
        self.change(lambda _: start.record)
        if start.tryboot:
            assert self.record.trial is slot.other
            self.tryboot = True
            return
        match self.does[slot]:
            case "well":
                if self.record.trial is slot:
                    self.name(slot)
                    self.change(lambda record: br.commit(record, slot))
                else:
                    self.change(lambda record: br.well(record, slot))
            case "panic":
                self.died = Why.PANIC
            case "hang":
                self.died = Why.WATCHDOG
            case "late":
                self.change(lambda record: br.late(record, slot))

    @property
    def settled(self) -> bool:
        record = self.record
        return record.run is Run.WELL and not record.trial and record.named is self.named

    def live(self, starts: int = 30) -> None:
        """Start again and again until a slot is well."""
        for _ in range(starts):
            try:
                self.start()
            except CutError:
                continue
            if self.settled:
                return

    def update(self) -> None:
        with contextlib.suppress(CutError):
            self.install(B)
        self.live()


DEEDS = ("well", "panic", "hang", "dark", "late", "none")
LEAVES = ("old", "new", "garbage")


def cuts(make: Callable[[int, str], Machine]) -> Iterator[Machine]:
    """Every place where the power can be cut, until there is no further write."""
    for number in itertools.count():
        for leaves in LEAVES:
            machine = make(number, leaves)
            machine.live()
            machine.update()
            yield machine
        if machine.writes <= number:
            return


@pytest.mark.parametrize("deed", DEEDS)
def test_an_update_with_a_cut_at_every_write(deed: str) -> None:
    """The new slot is taken if it is well, else the old one runs on, whatever is cut."""
    count = 0
    for machine in cuts(lambda number, leaves: Machine(number, leaves, b=deed)):
        count += 1
        assert machine.settled, (machine.starts, machine.record)
        assert machine.does[machine.named] == "well"
        record = machine.record
        if machine.named is A and record.state_b is State.BAD:
            # A well slot is never blamed, but where the record of its start was cut.
            assert deed != "well" or machine.cut_at >= 0
            assert record.why_b is not Why.NONE
    assert count > 15


def test_a_well_slot_is_taken_whatever_is_cut_before_it_starts() -> None:
    for machine in cuts(Machine):
        if machine.named is A:
            record = machine.record
            assert (record.state_b, record.why_b) in (
                (State.INCOMPLETE, Why.NONE),  # cut while it was written
                (State.UNTRIED, Why.NONE),  # before that
                (State.BAD, Why.SILENT),  # while it was on trial, which is one start
            ), record


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        ("panic", Why.PANIC),
        ("hang", Why.WATCHDOG),
        ("dark", Why.SILENT),
        ("late", Why.OVERDUE),
        ("none", Why.PANIC),
    ],
)
def test_a_trial_that_fails_says_why(deed: str, why: Why) -> None:
    machine = Machine(b=deed)
    machine.live()
    machine.update()
    assert machine.starts == [A, B, A]
    assert machine.record.state_b is State.BAD
    assert machine.record.why_b is why
    assert machine.record.state_a is State.GOOD


def test_a_trial_is_told_again_once_where_the_firmware_forgot() -> None:
    machine = Machine()
    machine.live()
    machine.install(B)
    machine.tryboot = False
    machine.live()
    assert machine.starts == [A, A, B]
    assert machine.named is B
    machine = Machine()
    machine.live()
    machine.install(B)
    for _ in range(2):
        machine.tryboot = False
        machine.start()
    machine.tryboot = False
    machine.live()
    assert machine.starts == [A, A, A, A]
    assert (machine.record.state_b, machine.record.why_b) == (State.BAD, Why.NEVER_STARTED)


def test_a_firmware_that_never_tries_is_told_twice_though_a_pi_speaks_of_its_watchdog() -> None:
    record = br.begin(BootRecord(), A, Why.NONE).record
    record = br.told(br.arm(br.well(record, A), B, A))
    start = br.begin(record, A, Why.WATCHDOG)
    assert start.tryboot
    start = br.begin(start.record, A, Why.WATCHDOG)
    assert not start.tryboot
    assert start.record.why_b is Why.NEVER_STARTED
    # A panic is of the slot itself, and there is no need to ask again.
    start = br.begin(record, A, Why.PANIC)
    assert not start.tryboot
    assert start.record.why_b is Why.PANIC


@pytest.mark.parametrize(("deed", "starts"), [("panic", 3), ("hang", 3), ("late", 3), ("dark", 9)])
def test_a_slot_that_was_well_once_is_left_when_it_is_never_well_again(
    deed: str, starts: int
) -> None:
    machine = Machine()
    machine.live()
    machine.does[A] = deed
    machine.live()
    # The last of these is the one that finds the sum and restarts for the trial.
    assert machine.starts == [A] * (1 + starts + 1) + [B]
    assert machine.named is B
    assert (machine.record.state_a, machine.record.why_a) == (State.BAD, Why.FAILED_STARTS)


def test_where_the_other_slot_is_no_better_this_one_is_kept() -> None:
    machine = Machine(b="none")
    machine.live()
    machine.does[A] = "panic"
    machine.live(12)
    assert machine.named is A
    assert machine.starts.count(B) >= 1
    machine.does[A] = "well"
    machine.live()
    assert machine.settled
    assert machine.record.state_a is State.GOOD


def test_a_slot_that_is_not_whole_is_never_tried() -> None:
    machine = Machine()
    machine.live()
    machine.change(lambda record: br.write_over(record, B))
    machine.whole[B] = False
    machine.does[A] = "panic"
    machine.live(20)
    assert set(machine.starts) == {A}


def test_orderly_ends_are_no_failures() -> None:
    record = BootRecord()
    for _ in range(50):
        start = br.begin(record, A, Why.WATCHDOG)  # as a Pi's ROM says of any restart
        assert not start.tryboot
        record = br.stopped(start.record)
    assert record.failed == 0
    # But a panic is one, whatever the record says.
    assert br.begin(record, A, Why.PANIC).record.failed == br.DIED


def test_the_slot_that_runs_cannot_be_put_on_trial() -> None:
    record = br.begin(BootRecord(), A, Why.NONE).record
    assert br.arm(record, A, A) == record
    assert br.arm(br.arm(record, B, A), A, A).trial is Slot.NONE


def test_leaving_by_hand() -> None:
    machine = Machine()
    machine.live()
    machine.change(lambda record: br.leave(record, A, Why.BY_HAND))
    machine.live()
    assert machine.starts == [A, A, B]
    assert machine.named is B
    assert machine.record.why_a is Why.BY_HAND


def test_the_firmware_has_the_last_word() -> None:
    """autoboot.txt was edited, or lost and the firmware walked on."""
    record = br.well(br.begin(BootRecord(), A, Why.NONE).record, A)
    start = br.begin(record, B, Why.NONE)
    assert "slot B, not slot A" in start.words
    assert start.record.named is B
    assert not start.tryboot


@given(records(), st.sampled_from([A, B]), st.sampled_from([Why.NONE, Why.PANIC, Why.WATCHDOG]))
def test_any_record_has_a_way_on(record: BootRecord, running: Slot, died: Why) -> None:
    """Whatever is on the card: at most three restarts in a row, and what is not ours stays."""
    tries = 0
    while (start := br.begin(record, running, died)).tryboot:
        assert start.record.trial is running.other
        assert start.record.state(running.other) is not State.INCOMPLETE or record.trial
        record = start.record
        tries += 1
        assert tries <= 3
    after = start.record
    assert (after.epoch, after.rest) == (record.epoch, record.rest)
    assert br.unpack(br.pack(after)) == after


# -- the epoch


@pytest.mark.parametrize(
    ("before", "epoch", "state", "why"),
    [
        (0, 0, State.UNTRIED, Why.NONE),
        (0, 3, State.UNTRIED, Why.NONE),  # nothing is known of the other slot's
        (3, 3, State.UNTRIED, Why.NONE),
        (4, 3, State.UNTRIED, Why.NONE),
        (2, 3, State.BAD, Why.EPOCH),
    ],
)
def test_the_other_slot_is_out_when_its_epoch_was_lower(
    before: int, epoch: int, state: State, why: Why
) -> None:
    record = br.raised(BootRecord(epoch=before), epoch, Slot.B)
    assert record.epoch == max(before, epoch)
    assert (record.state_a, record.why_a) == (state, why)
    assert record.state_b is State.UNTRIED


def test_a_slot_that_is_being_written_gets_its_new_content_nevertheless() -> None:
    record = br.write_over(BootRecord(epoch=2), Slot.A)
    record = br.raised(record, 3, Slot.B)
    assert (record.state_a, record.why_a) == (State.INCOMPLETE, Why.NONE)


def test_a_trial_of_a_slot_that_is_out_is_called_off() -> None:
    record = br.arm(BootRecord(epoch=2), Slot.A, Slot.B)
    record = br.raised(record, 3, Slot.B)
    assert (record.trial, record.phase) == (Slot.NONE, Phase.NONE)
