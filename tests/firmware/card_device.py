# SPDX-License-Identifier: Apache-2.0
"""A node that starts from a card: the card, the machine, and what a person at it would do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from firmware import card as cards
from meshlab.lab import real_parts
from meshlab.lab.parts import ChipLike
from meshlab.machine.events import MachineEvent, Shutdown
from meshlab.machine.machine import Machine
from meshlab.machine.shell import ShellError
from meshlab.machine.spec import CARD, MachineSpec

E = TypeVar("E", bound=MachineEvent)

BOOT = 900.0
"""Seconds, as QEMU is given them, within which a node must answer that is emulated."""
TOML = '[mesh]\nid = "boot-test"\n[update]\nhealth_time = 600\n'
"""No slot is well by itself while a test looks at it, however slow the host."""
PANIC_SOON = "echo 1 >/proc/sys/kernel/panic"
"""Has a panic restart after a second; the overlay's sysctl.conf has devices wait for ten."""


class Device:
    """A card, and the machine that it is put into.

    :param toml: The configuration that a person has put onto it.
    :param stick: A file to be a second disk, ``/dev/vdb``, which cannot be written to.
    :param more: What is different about the machine.
    """

    def __init__(
        self,
        directory: Path,
        image: real_parts.RealParts,
        toml: str = TOML,
        stick: Path | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        self.directory = directory
        self.parts = image
        self.events: list[MachineEvent] = []
        image.disks(directory, toml)
        self.card = directory / CARD
        self.chip: ChipLike = image.chip(directory, image.serial(1, 1))
        made = image.machine("card", directory, self.happened)
        assert isinstance(made, Machine)
        # A panic restarts after a second instead of ten until the node's scripts have run: the last
        # word on the command line counts.
        facts = {**vars(made.spec), "cmdline": "panic=1", **(more or {})}
        if stick is not None:
            drive = f"if=none,id=stick,format=raw,readonly=on,file={stick}"
            bus = made.spec.hardware.transport
            facts["extra"] = ("-drive", drive, "-device", f"virtio-blk-{bus},drive=stick")
        self.machine = Machine(MachineSpec(**facts), self.happened)

    def happened(self, event: MachineEvent) -> None:
        self.events.append(event)

    def seen(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def on(self) -> None:
        self.events.clear()
        await self.machine.start()

    async def cut(self) -> None:
        """Cut the power."""
        self.machine.kill()
        await self.machine.wait()

    async def off(self) -> None:
        """Switch off in order."""
        await self.machine.stop(BOOT)
        assert any(detail.guest for detail in self.seen(Shutdown)), (
            f"not switched off in order within {BOOT:g} s\n{self.report()}"
        )

    async def run(self, command: str, timeout: float = BOOT) -> str:
        """Run a command that must succeed, as soon as the node takes one; return its output."""
        try:
            async with self.machine.within(timeout):
                while True:
                    try:
                        status, output = await self.machine.exec_shell.run(command, timeout)
                        break
                    except ShellError:
                        assert self.machine.running, self.report()
                        await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(
                f"{command!r} has not ended within {timeout:g} s\n{self.report()}"
            ) from None
        assert status == 0, f"{command!r} ended with {status}: {output}\n{self.report()}"
        return output

    async def restart(self, how: str, times: int = 1) -> None:
        """Have the node restart itself by a command; return when it has, so many times."""
        await self.run("true")
        before = self.machine.resets
        # Once, whether or not the shell still tells how it ended: a second one would be a restart
        # more.
        with contextlib.suppress(ShellError):
            await self.machine.exec_shell.run(how, BOOT)
        await self.until(lambda: self.machine.resets == before + times, how)

    async def until(self, what: Callable[[], bool], words: str, seconds: float = BOOT) -> None:
        try:
            async with self.machine.within(seconds):
                while not what():  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {words}\n{self.report()}") from None

    async def data_state(self) -> str:
        """Return what became of /data: clean, created, rebuilt ..., once everything is up."""
        command = "until [ -s /run/thicket/data ]; do sleep 0.2; done; cat /run/thicket/data"
        return (await self.run(command)).split()[0]

    def report(self) -> str:
        return f"{self.events}\n{self.machine.console_since_start()[-4000:]}"

    def layout(self) -> cards.Card:
        with self.card.open("rb") as file:
            return cards.read(file)

    def sectors(self) -> list[bytes]:
        """Return the sectors up to the end of the partition that people edit."""
        with self.card.open("rb") as file:
            data = file.read(self.layout()[cards.CONFIG].end)
        return [data[at : at + cards.SECTOR] for at in range(0, len(data), cards.SECTOR)]

    def flip(self, offset: int, bit: int) -> None:
        """Change one bit of the card."""
        with self.card.open("r+b") as file:
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))
