# SPDX-License-Identifier: Apache-2.0
"""A Raspberry Pi in QEMU, as its tests have it: a card, and what is plugged in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from firmware import card as cards
from meshlab.lab import real_parts
from meshlab.machine.given import Given
from meshlab.machine.machine import Machine
from meshlab.machine.spec import CARD, MachineSpec

MIB = 1 << 20
SIZE = 1024 * MIB
"""QEMU takes powers of two only for an SD card."""
PATIENCE = 600.0
"""Seconds, as QEMU is given them, within which a report must be on the card."""
CONFIG = "thicket.toml"
REPORT = "report.txt"
TOML = '[mesh]\nid = "pi-test"\n'


class Pi:
    """A card, and the Raspberry Pi that it is put into.

    :param directory: Where its files are.
    :param image: What is on the card.
    :param toml: Its settings.
    :param changes: To the ``MachineSpec``.
    """

    def __init__(
        self, directory: Path, image: real_parts.RealParts, *, toml: str = TOML, **changes: object
    ) -> None:
        self.card = directory / CARD
        image.disks(directory, toml)
        os.truncate(self.card, SIZE)
        made = image.machine("pi", directory, lambda event: None)
        assert isinstance(made, Machine)
        # With its USB in use a start takes a third more.
        usual = {"board": "raspi3b", "chip": False, "relay": False, "shells": False}
        self.machine = Machine(MachineSpec(**{**vars(made.spec), **usual, **changes}))

    async def on(self) -> None:
        await self.machine.start()

    async def cut(self) -> None:
        """Cut the power."""
        self.machine.kill()
        await self.machine.wait()

    def layout(self) -> cards.Card:
        with self.card.open("rb") as file:
            return cards.read(file)

    def configure(self, name: str, text: bytes) -> None:
        """Write a file on the first partition, as a person does with the card in a reader."""
        real_parts.partition(self.card, cards.CONFIG).write(name, text)

    def has(self, name: str) -> bool:
        """Tell whether a file is on the first boot partition."""
        return real_parts.partition(self.card, cards.BOOT_A).has(name)

    def forget_report(self) -> None:
        """Blank the report, so that the next one is new."""
        self.configure(REPORT, (b" " * 62 + b"\r\n") * 256)

    def report(self) -> str:
        text = real_parts.partition(self.card, cards.CONFIG).read(REPORT, 1 << 16)
        return (text or b"").decode().rstrip()

    async def until(self, what: Callable[[], bool], words: str) -> None:
        had = Given(lambda: [self.machine.pid])
        while not what():
            console = self.machine.console_since_start()[-4000:]
            assert self.machine.running, f"ended\n{console}"
            assert had.seconds() < PATIENCE, (
                f"not within {PATIENCE:g} s: {words}\n{self.report()}\n{console}"
            )
            await asyncio.sleep(0.5)

    async def reported(self, *words: str) -> str:
        """Return the report as soon as it has all these words, and is the same twice.

        It is written sector by sector, so that its beginning may be new and its end still old.
        """
        looks = ["", ""]

        def written() -> bool:
            looks[:] = looks[1], self.report()
            return looks[0] == looks[1] and all(word in looks[1] for word in words)

        await self.until(written, f"{words} in the report")
        return looks[1]
