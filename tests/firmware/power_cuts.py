# SPDX-License-Identifier: Apache-2.0
"""What a card may hold after a power cut, by the log of its writes, and what a node makes of it.

A card has what was written before the last flush. Of what was written since, any part may be there
or missing, in any order, and each write may have stopped at any sector. So every sector has the
content that it had at the flush, or any that was written to it since. All of that is judged at
once: a slot is called whole only if each of its sectors is right in every one of these cards.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from meshlab.machine.write_log import SECTOR, Entry
from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Slot, Why

Sectors = Mapping[int, bytes]
"""Contents of single sectors of a card, by their numbers."""


class Range(NamedTuple):
    """Sectors of a card.

    :ivar end: the first one behind them.
    """

    first: int
    end: int

    def cut(self, entry: Entry) -> range:
        """Return the sectors of it that an entry is about."""
        return range(max(self.first, entry.sector), min(self.end, entry.end))


class Expected:
    """How much of some sectors is as it should be, whatever became of writes that were not flushed.

    :param ranges: where they are.
    :param now: the card as it is, by sectors.
    :param right: the card as it should be.
    """

    def __init__(self, ranges: Iterable[Range], now: memoryview, right: memoryview) -> None:
        self._ranges = tuple(ranges)
        self._right = right
        self._wrong = {n for r in self._ranges for n in _different(r, now, right)}
        self._latest: dict[int, bool] = {}
        self._ever_wrong: set[int] = set()

    @property
    def whole(self) -> bool:
        """Whether all are right on every card that there may be."""
        return not self._wrong and not self._ever_wrong

    def write(self, entry: Entry, data: bytes) -> None:
        """Follow a write."""
        for part in self._ranges:
            for sector in part.cut(entry):
                at = (sector - entry.sector) * SECTOR
                wanted = self._right[sector * SECTOR : (sector + 1) * SECTOR]
                right = data[at : at + SECTOR] == wanted
                self._latest[sector] = right
                if not right:
                    self._ever_wrong.add(sector)

    def flush(self) -> None:
        """Follow a flush: of each sector the latest content counts."""
        for sector, right in self._latest.items():
            (self._wrong.discard if right else self._wrong.add)(sector)
        self._latest.clear()
        self._ever_wrong.clear()


def _different(part: Range, one: memoryview, other: memoryview) -> Iterator[int]:
    step = 2048
    for first in range(part.first, part.end, step):
        end = min(first + step, part.end)
        if one[first * SECTOR : end * SECTOR] != other[first * SECTOR : end * SECTOR]:
            for n in range(first, end):
                if one[n * SECTOR : (n + 1) * SECTOR] != other[n * SECTOR : (n + 1) * SECTOR]:
                    yield n


class Watched:
    """Single sectors of which every possible content is kept.

    :ivar flushed: their contents at the last flush, of those that were ever written.
    """

    def __init__(self, start: memoryview, ranges: Iterable[Range]) -> None:
        self.flushed: dict[int, bytes] = {}
        self._start = start
        self._ranges = tuple(ranges)
        self._since: dict[int, list[bytes]] = {}

    def write(self, entry: Entry, data: bytes) -> int:
        """Follow a write; return how many sectors of it are watched."""
        count = 0
        for part in self._ranges:
            for sector in part.cut(entry):
                at = (sector - entry.sector) * SECTOR
                self._since.setdefault(sector, []).append(data[at : at + SECTOR])
                count += 1
        return count

    def flush(self) -> None:
        """Follow a flush."""
        self.flushed.update((sector, found[-1]) for sector, found in self._since.items())
        self._since.clear()

    def at_flush(self, sector: int) -> bytes:
        """Return a sector's content at the last flush."""
        here = self._start[sector * SECTOR : (sector + 1) * SECTOR]
        return self.flushed.get(sector, bytes(here))

    def possible(self, most: int = 4096) -> list[Sectors]:
        """Return what the sectors that were ever written may hold, each combination of them.

        :raises AssertionError: there are more combinations than ``most``.
        """
        since = {
            sector: list(dict.fromkeys((self.at_flush(sector), *found)))
            for sector, found in self._since.items()
        }
        count = 1
        for contents in since.values():
            count *= len(contents)
        assert count <= most, f"{count} combinations of {len(since)} sectors"
        return [
            {**self.flushed, **dict(zip(since, choice, strict=True))}
            for choice in itertools.product(*since.values())
        ]


# -- what a node makes of it


class Card(NamedTuple):
    """What decides which slot is started.

    :ivar record: with sequence 0, which decides nothing once the newest copy is chosen.
    :ivar usual: the slot that the firmware starts.
    :ivar tried: the one that it starts when it was told to try.
    :ivar whole: the slots whose content is whole on every possible card.
    """

    record: BootRecord
    usual: Slot
    tried: Slot
    whole: frozenset[Slot]


class Start(NamedTuple):
    """A start: whether the firmware has been told to try, and how the run before ended."""

    card: Card
    told: bool
    died: Why


#: A node restarts itself for a trial: never more often in a row.
MOST_RESTARTS = 3


class Judge:
    """Follows all that may happen after a cut, further cuts and failures included.

    :ivar faults: starts of a slot that is not whole, and restarts without end.
    :ivar starts: how many different ones were judged.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self._seen: set[Start] = set()

    @property
    def starts(self) -> int:
        """How many different starts were judged."""
        return len(self._seen)

    def after_cut(self, card: Card) -> None:
        """Judge all that may follow when the power comes back.

        What a Pi's ROM or a kernel's records say of the run before may be anything.
        """
        waiting = [Start(card, told=False, died=died) for died in _DIED]
        while waiting:
            start = waiting.pop()
            if start not in self._seen:
                self._seen.add(start)
                self._settles(start)
                waiting += self._next(start)

    def _next(self, start: Start) -> Iterator[Start]:
        card = start.card
        slot = card.tried if start.told else card.usual
        if slot not in card.whole:
            self.faults.append(f"slot {slot.name} is started and is not whole: {start}")
            return
        begun = boot_record.begin(card.record, slot, start.died)
        then = card._replace(record=begun.record)
        if begun.tryboot:
            # The power may be cut before the firmware reads that it was told.
            for died in _DIED:
                yield Start(then, told=True, died=died)
                yield Start(then, told=False, died=died)
            return
        for died in _DIED:
            yield Start(then, told=False, died=died)
        if begun.record.trial is slot:
            # It is well: autoboot.txt first, with a cut behind it, then the record.
            then = then._replace(usual=slot, tried=slot.other)
            yield Start(then, told=False, died=Why.NONE)
            record = boot_record.commit(begun.record, slot)
        else:
            record = boot_record.well(begun.record, slot)
        yield Start(then._replace(record=record), told=False, died=Why.NONE)

    def _settles(self, start: Start) -> None:
        """Without another cut some slot runs, after a few restarts."""
        for _ in range(MOST_RESTARTS + 1):
            card = start.card
            slot = card.tried if start.told else card.usual
            begun = boot_record.begin(card.record, slot, start.died)
            if not begun.tryboot:
                return
            start = Start(card._replace(record=begun.record), told=True, died=Why.NONE)
        self.faults.append(f"it restarts again and again: {start}")


_DIED = (Why.NONE, Why.PANIC, Why.WATCHDOG)


def records(one: Iterable[bytes], other: Iterable[bytes]) -> set[BootRecord]:
    """Return the records that may count, of what each of the two sectors may hold."""
    pairs = itertools.product(set(one), set(other))
    return {boot_record.newest(pair)[0]._replace(sequence=0) for pair in pairs}
