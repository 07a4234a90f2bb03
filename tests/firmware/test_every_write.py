# SPDX-License-Identifier: Apache-2.0
"""The power cut at every write of an update's life, by the log of what QEMU wrote to the card.

The card of every moment of ``card_recording`` is judged as ``power_cuts`` says; some are really
started. THICKET_RECORDING names a folder where the recording stays, and is taken from if it is
there.
"""

from __future__ import annotations

import configparser
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from firmware import card as cards
from meshlab.lab import real_parts
from meshlab.lab.testing import HANGS
from meshlab.machine import bootrom, write_log
from meshlab.machine.write_log import SECTOR, Entry
from thicket.device import boot_record
from thicket.device.autoboot import PARTITIONS
from thicket.device.boot_record import WORDS, BootRecord, Phase, Slot, State, Why

sys.path.insert(0, str(Path(__file__).parent))
from card_device import Device
from card_images import loaded
from card_recording import END, PARTS, STAGES, START, TARGETS, Made, Recording, copy, mapped, record
from card_updates import SLOTS, WELL
from power_cuts import Card, Expected, Judge, Range, Sectors, Watched, records

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(HANGS, func_only=True),
    pytest.mark.skipif(
        not os.environ.get("THICKET_SOAK"), reason="records a whole life, with THICKET_SOAK=1"
    ),
]

GARBAGE = b"\xa5" * SECTOR


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    kept = os.environ.get("THICKET_RECORDING")
    directory = Path(kept) if kept else tmp_path_factory.mktemp("recording")
    if not (directory / STAGES).exists():
        directory.mkdir(exist_ok=True)
        await record(directory)
    return Recording.of(directory)


def test_the_log_makes_the_card_of_the_end_from_that_of_the_start(
    recording: Recording, tmp_path: Path
) -> None:
    made = copy(recording.directory / START, tmp_path / "made.img")
    with recording.log() as log:
        write_log.replay(log, made)
    assert subprocess.run(["cmp", made, recording.directory / END], check=False).returncode == 0
    made.unlink()


def fixed(table: cards.Card) -> list[cards.Partition]:
    """Return the partitions that stay where they are; /data grows, and what holds it."""
    return [part for n, part in table.partitions.items() if n not in (cards.EXTENDED, cards.DATA)]


# -- which slot the firmware of each model starts


class Rom:
    """Asks the boot ROM's rules which slots are started, once for each state of what they read.

    The table and the first partition are those of the recording's card, and so are the boot
    partitions, with a line of text for each file that a model looks for and x86-64 has not.
    """

    def __init__(self, recording: Recording, directory: Path) -> None:
        self.card = copy(recording.directory / START, directory / "rom.img")
        self.asked = 0
        self._fixed = fixed(recording.table())
        self._known: dict[frozenset[tuple[int, bytes]], tuple[Slot, Slot]] = {}
        names = {name for model in bootrom.MODELS.values() for name in model.starts}
        for number in PARTITIONS.values():
            fat = real_parts.partition(self.card, number)
            for name in sorted(names):
                if not fat.has(name):
                    fat.write(name, b"a file of the firmware\n")
        with self.card.open("rb") as file:
            self._before = file.read(recording.table()[cards.CONFIG].end)

    @property
    def states(self) -> int:
        """How many states of table and first partition were judged."""
        return len(self._known)

    def slots(self, sectors: Sectors) -> tuple[Slot, Slot]:
        """Return what every model starts: usually, and when it was told to try the other one."""
        key = frozenset(sectors.items())
        if key not in self._known:
            self._write(sectors)
            self._known[key] = self._ask(told=False), self._ask(told=True)
            self._look_over()
            self._write({n: self._original(n) for n in sectors})
        return self._known[key]

    def _original(self, sector: int) -> bytes:
        found = self._before[sector * SECTOR : (sector + 1) * SECTOR]
        return found or bytes(SECTOR)

    def _write(self, sectors: Sectors) -> None:
        with self.card.open("r+b") as file:
            for number, content in sectors.items():
                file.seek(number * SECTOR)
                file.write(content)

    def _ask(self, *, told: bool) -> Slot:
        found: set[int] = set()
        for model in bootrom.MODELS.values():
            boot = bootrom.boot(self.card, bootrom.Request(tryboot=told), model)
            # Nothing was passed over: of the slots only that one was looked at.
            assert boot.notes == (), (model.name, boot.notes)
            found.add(boot.partition)
            self.asked += 1
        assert len(found) == 1, f"the models do not agree: {found}"
        (slot,) = (slot for slot, number in PARTITIONS.items() if {number} == found)
        return slot

    def _look_over(self) -> None:
        with self.card.open("rb") as file:
            table = cards.read(file)
            assert fixed(table) == self._fixed
            file.seek(table[cards.CONFIG].offset)
            part = self.card.with_suffix(".part")
            part.write_bytes(file.read(table[cards.CONFIG].size))
        command = ["/usr/sbin/fsck.fat", "-n", str(part)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


# -- every moment


@dataclass
class Figures:
    """What was judged, for people."""

    writes: int = 0
    flushes: int = 0
    moments: int = 0
    torn: int = 0
    missing: int = 0
    cards: set[Card] = field(default_factory=set)
    by_region: Counter[str] = field(default_factory=Counter)

    def say(self, name: str) -> None:
        regions = ", ".join(f"{region} {count}" for region, count in self.by_region.items())
        print(
            f"{name}: {self.writes} writes ({regions}), {self.flushes} flushes; {self.moments} "
            f"moments, {self.torn} torn writes, {self.missing} with writes missing; "
            f"{len(self.cards)} different states"
        )


class Moments:
    """Goes through a log and knows what the card may hold at each moment."""

    def __init__(self, recording: Recording, start: memoryview, end: memoryview) -> None:
        self.table = recording.table()
        state = [Range(place, place + 1) for place in boot_record.PLACES]
        self.state = Watched(start, state)
        # The table: MBR and the records in front of logical partitions, which lie in no partition.
        config = self.table[cards.CONFIG]
        logical = [self.table[n] for n in (cards.ROOT_A, cards.ROOT_B, cards.DATA)]
        self.places = {
            "table": [Range(0, 1), *(self._before(part) for part in logical)],
            "first partition": [Range(config.offset // SECTOR, config.end // SECTOR)],
        }
        self.firmware = Watched(start, [r for ranges in self.places.values() for r in ranges])
        self.contents = {
            slot: [Expected(self.ranges(slot), start, right) for right in (start, end)]
            for slot in PARTS
        }
        self.unflushed = 0

    def _before(self, part: cards.Partition) -> Range:
        """Return the megabyte in front of a logical partition, where its record is."""
        return Range(part.offset // SECTOR - 2048, part.offset // SECTOR)

    def ranges(self, slot: Slot) -> list[Range]:
        """Return where a slot is."""
        parts = (self.table[number] for number in PARTS[slot])
        return [Range(part.offset // SECTOR, part.end // SECTOR) for part in parts]

    def region(self, entry: Entry) -> str:
        """Return what an entry writes to."""
        named = {f"slot {slot.name}": self.ranges(slot) for slot in PARTS}
        named["boot record"] = [Range(place, place + 1) for place in boot_record.PLACES]
        data = self.table[cards.DATA].offset // SECTOR
        named |= self.places | {"/data": [Range(data, 1 << 40)]}
        (name,) = (
            name for name, ranges in named.items() if any(len(part.cut(entry)) for part in ranges)
        )
        return name

    def follow(self, entry: Entry, data: bytes) -> None:
        """Take an entry into account."""
        for expected in (one for found in self.contents.values() for one in found):
            expected.write(entry, data)
            if entry.flushes:
                expected.flush()
        for watched in (self.state, self.firmware):
            watched.write(entry, data)
            if entry.flushes:
                watched.flush()
        self.unflushed = 0 if entry.flushes else self.unflushed + 1

    def whole(self) -> frozenset[Slot]:
        """Return the slots that are whole whatever is missing."""
        return frozenset(s for s, found in self.contents.items() if any(e.whole for e in found))

    def records(self) -> set[BootRecord]:
        """Return the boot records that may count, also where the sector being written is lost."""
        first, second = boot_record.PLACES
        found: set[BootRecord] = set()
        for state in self.state.possible():
            one = state.get(first, self.state.at_flush(first))
            other = state.get(second, self.state.at_flush(second))
            found |= records([one], [other])
            if one != self.state.at_flush(first):
                found |= records([GARBAGE], [other])
            if other != self.state.at_flush(second):
                found |= records([one], [GARBAGE])
        return found


def test_every_write_leaves_a_slot_that_is_started(recording: Recording, tmp_path: Path) -> None:
    begun = time.monotonic()
    judge, rom = Judge(), Rom(recording, tmp_path)
    figures = {name: Figures() for name in recording.stages}
    directory = recording.directory
    with (
        recording.log() as log,
        mapped(directory / START) as start,
        mapped(directory / END) as end,
    ):
        moments = Moments(recording, start, end)
        for entry in log:
            stage = recording.stage(entry.number)
            found = figures[stage]
            if entry.writes:
                region = moments.region(entry)
                target = TARGETS.get(stage)
                assert not region.startswith("slot") or target, f"{region} is written, {stage}"
                if target:
                    assert region != f"slot {target.other.name}", "the slot that runs is written"
                found.writes += 1
                found.by_region[region] += 1
                found.torn += entry.sectors - 1
            found.flushes += entry.flushes
            moments.follow(entry, log.data(entry))
            found.moments += 1
            found.missing += moments.unflushed + (moments.unflushed > 1)
            whole = moments.whole()
            for sectors in moments.firmware.possible():
                usual, tried = rom.slots(sectors)
                for one in moments.records():
                    card = Card(one, usual, tried, whole)
                    found.cards.add(card)
                    judge.after_cut(card)
            assert not judge.faults, f"entry {entry.number}, {stage}: {judge.faults[0]}"
    for name, figure in figures.items():
        figure.say(name)
    total = sum(figure.moments for figure in figures.values())
    variants = sum(figure.torn + figure.missing for figure in figures.values())
    print(
        f"together {total} moments and {variants} cards with torn or missing writes: "
        f"{rom.states} states of table and first partition, {rom.asked} starts by the rules of "
        f"{len(bootrom.MODELS)} models, {judge.starts} different starts followed to their ends; "
        f"{time.monotonic() - begun:.1f} s"
    )
    rom.card.unlink()


# -- cards of some moments, made


def newest(card: memoryview) -> BootRecord:
    first, second = (bytes(card[n * SECTOR : (n + 1) * SECTOR]) for n in boot_record.PLACES)
    return boot_record.newest((first, second))[0]


def _same(one: memoryview, other: memoryview, part: Range) -> bool:
    place = slice(part.first * SECTOR, part.end * SECTOR)
    return one[place] == other[place]


def _slot(partition: int) -> Slot:
    (slot,) = (slot for slot, number in PARTITIONS.items() if number == partition)
    return slot


def _data(card: Path, directory: Path) -> tuple[str, Mapping[str, str]]:
    """Check /data as a start does; return how it was, and what RAUC says of each slot."""
    part = directory / "data.img"
    with card.open("rb") as file:
        place = cards.read(file)[cards.DATA].offset
    subprocess.run(
        ["dd", f"if={card}", f"of={part}", f"skip={place >> 20}", "bs=1M", "conv=sparse"],
        check=True,
        capture_output=True,
    )
    with part.open("rb") as file:
        blank = not any(file.read(65536))
    if blank:
        return "blank", {}
    done = subprocess.run(["/usr/sbin/e2fsck", "-p", part], capture_output=True, check=False)
    how = "accepted" if done.returncode < 4 else "made again"
    shown = subprocess.run(
        ["/usr/sbin/debugfs", "-R", "cat /rauc/central.raucs", part],
        capture_output=True,
        text=True,
        check=False,
    )
    part.unlink()
    if "\0" in shown.stdout:
        # A file without its content says nothing of any slot: RAUC begins it anew.
        return f"{how}, RAUC's file empty", {}
    found = configparser.ConfigParser(interpolation=None)
    found.read_string(shown.stdout)
    return how, {
        name: found[name]["status"] for name in found.sections() if "status" in found[name]
    }


SAMPLE = 24


def test_cards_that_are_made_are_judged_the_same(recording: Recording, tmp_path: Path) -> None:
    """Nothing followed, everything read: boot ROM, record, slots, /data by e2fsck, RAUC's file."""
    begun = time.monotonic()
    chance = random.Random(5)
    made, judge = Made(recording, tmp_path), Judge()
    with recording.log() as log:
        count = len(log)
        slots = [e.number for e in log if recording.stage(e.number) in TARGETS]
    moments = sorted({*chance.sample(range(1, count + 1), SAMPLE // 2), *slots[:: SAMPLE // 3]})
    checked: Counter[str] = Counter()
    rauc: Counter[str] = Counter()
    directory = recording.directory
    with mapped(directory / START) as start, mapped(directory / END) as end:
        parts = {slot: Moments(recording, start, end).ranges(slot) for slot in PARTS}
        for moment in moments:
            with made.cut(moment, chance), mapped(made.card) as card:
                whole = {
                    slot: [[_same(card, right, one) for one in found] for right in (start, end)]
                    for slot, found in parts.items()
                }
                usual = _slot(bootrom.boot(made.card).partition)
                good = frozenset(slot for slot in PARTS if any(map(all, whole[slot])))
                record_now = newest(card)._replace(sequence=0)
                judge.after_cut(Card(record_now, usual, usual.other, good))
                assert not judge.faults, (moment, recording.stage(moment - 1), judge.faults)
                how, said = _data(made.card, tmp_path)
                # Only a file system that was being made may be beyond repair: nothing is lost.
                assert "made" not in how or recording.stage(moment - 1) == "first start", moment
                checked[how] += 1
                if "empty" in how:
                    print(f"moment {moment} ({recording.stage(moment - 1)}): /data {how}")
                for section, state in said.items():
                    # boot.1 is the first part of slot B, rootfs.0 the second one of slot A.
                    slot = Slot.A if section.endswith("0") else Slot.B
                    part = 0 if section.startswith("slot.boot") else 1
                    if state == "ok":
                        assert any(found[part] for found in whole[slot]), (moment, section)
                    rauc[state] += 1
    print(
        f"{len(moments)} cards made, each with a chance of every unflushed write; /data: "
        f"{', '.join(f'{how} {n}' for how, n in sorted(checked.items()))}; "
        f"RAUC says of slots: {dict(rauc)}; {time.monotonic() - begun:.1f} s"
    )
    made.card.unlink()


# -- cards of some moments, started


class Cut(NamedTuple):
    """A power cut, and what is started after it.

    :ivar stage: of the recording.
    :ivar where: tells a write near the cut by its region and, for the boot record, its content.
    :ivar behind: whether the cut is behind that write; else it is in front of it.
    :ivar runs: the slot that is well in the end.
    :ivar slots: what ``boot-slots`` says then of A and B.
    """

    stage: str
    where: Callable[[str, BootRecord | None], bool]
    runs: Slot
    slots: tuple[str, str]
    behind: bool = False


def part(number: int) -> Callable[[str, BootRecord | None], bool]:
    return lambda region, _: region == str(number)


def record_where(what: Callable[[BootRecord], bool]) -> Callable[[str, BootRecord | None], bool]:
    return lambda _, found: found is not None and what(found)


A_RUNS = "A: good, runs", "B: incomplete"
B_RUNS = "A: good", "B: good, runs"
ARMED = record_where(lambda found: found.phase is Phase.READY)
CUTS = {
    "in the boot file system": Cut("installing", part(cards.BOOT_B), Slot.A, A_RUNS),
    "in the root": Cut("installing", part(cards.ROOT_B), Slot.A, A_RUNS),
    "before it is to be tried": Cut("installing", ARMED, Slot.A, A_RUNS),
    "when it is to be tried": Cut("installing", ARMED, Slot.B, B_RUNS, behind=True),
    "between autoboot.txt and the record": Cut(
        "commit", record_where(lambda found: found.state_b is State.GOOD), Slot.B, B_RUNS
    ),
    "before the record says that the trial failed": Cut(
        "going back",
        record_where(lambda found: found.state_a is State.BAD),
        Slot.B,
        (f"A: bad, {WORDS[Why.SILENT]}", "B: good, runs"),
    ),
}


def moment_of(cut: Cut, recording: Recording) -> int:
    """Return the number of the first entry that the card has nothing of.

    Of several writes that ``cut`` may mean, it is the middle one.
    """
    ranges = {
        str(number): Range(place.offset // SECTOR, place.end // SECTOR)
        for number, place in recording.table().partitions.items()
        if number != cards.EXTENDED
    }
    found: list[int] = []
    with recording.log() as log:
        for entry in log:
            if not entry.writes or recording.stage(entry.number) != cut.stage:
                continue
            region = "".join(name for name, place in ranges.items() if len(place.cut(entry)))
            content = None
            if entry.sector in boot_record.PLACES:
                content = boot_record.unpack(log.data(entry)[:SECTOR])
            if cut.where(region, content):
                found.append(entry.number)
    assert found, cut.stage
    return found[len(found) // 2] + cut.behind


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", CUTS)
async def test_a_card_that_was_cut_starts(name: str, recording: Recording, tmp_path: Path) -> None:
    cut = CUTS[name]
    moment = moment_of(cut, recording)
    device = Device(tmp_path, loaded("standin"))
    made = Made(recording, tmp_path)
    with made.cut(moment, None):
        copy(made.card, device.card)
    made.card.unlink()
    begun = time.monotonic()
    await device.chip.start()
    try:
        await device.on()
        data = await device.data_state()
        await device.run(WELL)
        assert f"thicket.slot={cut.runs.name}" in await device.run("cat /proc/cmdline")
        assert await device.run(f"{SLOTS} show") == "\n".join(cut.slots) + "\n"
        is_new = "VERSION_ID=2.0.0\n" in await device.run("cat /usr/lib/os-release")
        assert is_new == (cut.runs is Slot.B)
        # Without a mesh it is degraded.
        document = json.loads(await device.run("thicket status --json || true"))
        assert document["slot"] == cut.runs.name
        said = [f"{slot['name']}: {slot['state']}" for slot in document["slots"]]
        assert [line.partition(",")[0] for line in cut.slots] == said
        left = [one["message"] for one in document["problems"] if one["code"] == "left"]
        assert left == ([f"slot A was left: {WORDS[Why.SILENT]}"] if "A: bad" in said else [])
        # A power cut costs nothing that the last flush had.
        assert data in ("clean", "repaired")
    finally:
        await device.cut()
        await device.chip.stop()
        device.card.unlink()
    print(
        f"cut {name} (entry {moment}, {cut.stage}): slot {cut.runs.name} runs, /data {data}; "
        f"{time.monotonic() - begun:.0f} s"
    )
