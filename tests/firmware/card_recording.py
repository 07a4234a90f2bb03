# SPDX-License-Identifier: Apache-2.0
"""A recorded life of a card: all that QEMU wrote to it, and the card of any moment made anew.

The life is the first start of a new card, an installation, the trial, the commit, another
installation whose trial fails, and the going back.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from card_device import Device
from card_images import loaded
from card_updates import INSTALL, PANICS, SLOTS, WELL, Publisher, Stick, version

from firmware import card as cards
from meshlab.machine import write_log
from meshlab.machine.write_log import SECTOR, WriteLog
from thicket.device.boot_record import Slot

LOG = "writes.log"
START, END = "start.img", "end.img"
STAGES = "stages.json"
TARGETS = {"installing": Slot.B, "installing again": Slot.A}
"""Stages in which a slot is written to; in all others, none is."""
PARTS = {
    Slot.A: (cards.BOOT_A, cards.ROOT_A),
    Slot.B: (cards.BOOT_B, cards.ROOT_B),
}


@dataclass(frozen=True)
class Recording:
    """A log, the card before and after it, and where its stages begin."""

    directory: Path
    stages: Mapping[str, int]

    @classmethod
    def of(cls, directory: Path) -> Recording:
        """Return a recording that is there."""
        return cls(directory, json.loads((directory / STAGES).read_text()))

    def stage(self, number: int) -> str:
        """Return the stage that an entry belongs to."""
        return [name for name, first in self.stages.items() if first <= number][-1]

    @contextlib.contextmanager
    def log(self) -> Iterator[WriteLog]:
        with WriteLog(self.directory / LOG) as log:
            yield log

    def table(self) -> cards.Card:
        with (self.directory / START).open("rb") as file:
            return cards.read(file)


def copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", source, target], check=True)
    return target


async def record(directory: Path) -> None:
    """Live through everything, and keep the log."""
    publisher = Publisher()
    good = publisher.sign(version("2.0.0"), directory / "2.raucb")
    bad = publisher.sign(version("3.0.0", PANICS), directory / "3.raucb")
    stick = Stick.of(directory / "stick", good, bad)
    log = directory / LOG
    write_log.create(log)
    more = {"write_log": LOG}
    image = loaded("standin")
    device = Device(directory, image, publisher.configuration(), stick.path, more)
    copy(device.card, directory / START)
    stages: dict[str, int] = {}

    def stage(name: str) -> None:
        with WriteLog(log) as found:
            stages[name] = len(found)

    await device.chip.start()
    try:
        stage("first start")
        await device.on()
        assert await device.data_state() == "created"
        await device.run(WELL)
        await device.run(stick.copy(0))
        stage("installing")
        await device.run(INSTALL)
        stage("start of the trial")
        await device.restart("reboot", times=2)
        assert "B: untried, runs, on trial" in await device.run(f"{SLOTS} show")
        stage("commit")
        await device.run(WELL)
        assert "B: good, runs" in await device.run(f"{SLOTS} show")
        await device.run(stick.copy(1))
        stage("installing again")
        await device.run(INSTALL)
        stage("going back")
        await device.restart("reboot", times=3)
        await device.data_state()
        assert "A: bad" in await device.run(f"{SLOTS} show")
        await device.off()
    finally:
        await device.cut()
        await device.chip.stop()
    shutil.move(device.card, directory / END)
    (directory / STAGES).write_text(json.dumps(stages))


@contextlib.contextmanager
def mapped(path: Path) -> Iterator[memoryview]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as area:
        view = memoryview(area)
        try:
            yield view
        finally:
            view.release()


class Made:
    """A card image that is brought from moment to moment.

    :ivar card: has everything that was flushed before the moment, and what is chosen of the rest.
    """

    def __init__(self, recording: Recording, directory: Path) -> None:
        self.card = copy(recording.directory / START, directory / "made.img")
        self._recording = recording
        self._done = 0

    @contextlib.contextmanager
    def cut(self, moment: int, chance: random.Random | None) -> Iterator[None]:
        """Have the card as it may be when the power was cut in front of entry ``moment``.

        Moments are asked for in order.

        :param chance: chooses which of the writes since the last flush are there, and how many
            sectors of each; without it, everything is there.
        """
        with self._recording.log() as log, self.card.open("r+b") as file:
            entries = [entry for entry in log if self._done <= entry.number < moment]
            flushes = [entry.number for entry in entries if entry.flushes]
            flushed = flushes[-1] + 1 if flushes else self._done
            for entry in entries:
                if entry.writes and entry.number < flushed:
                    _put(file, entry.sector, log.data(entry))
            self._done = flushed
            before: list[tuple[int, bytes]] = []
            for entry in entries:
                if entry.writes and entry.number >= flushed:
                    count = entry.sectors if chance is None else chance.randint(0, entry.sectors)
                    file.seek(entry.sector * SECTOR)
                    before.append((entry.sector, file.read(count * SECTOR)))
                    _put(file, entry.sector, log.data(entry)[: count * SECTOR])
            file.flush()
            try:
                yield
            finally:
                for sector, content in reversed(before):
                    _put(file, sector, content)


def _put(file: BinaryIO, sector: int, content: bytes) -> None:
    file.seek(sector * SECTOR)
    file.write(content)
