# SPDX-License-Identifier: Apache-2.0
"""A paused machine as a file: its memory, its processor and its devices, as QEMU's ``migrate`` has
them, and what the chip's bus was like, which QEMU cannot save.

The disks are files of their own, to be copied while the machine is paused.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from meshlab.machine import bootrom
from meshlab.machine.bay import Bay, Plugged
from meshlab.machine.qemu import MachineError
from meshlab.machine.registers import registers_of
from meshlab.machine.spec import saved_hardware

if TYPE_CHECKING:
    from meshlab.machine.machine import Machine

PATIENCE = 300.0
"""Seconds, as QEMU is given them, within which a machine is written or read, by a slow disk."""

_PAUSE = 0.02
_UNBOUNDED = 1 << 40
"""Bytes a second: QEMU's own bound is for networks."""


@dataclass(frozen=True)
class SavedMachine:
    """What one must know of a saved machine, besides its file."""

    qemu: str
    """The version of QEMU, whose devices the file describes."""
    hardware: list[str]
    """What it consists of: ``spec.saved_hardware``."""
    tsc_khz: int | None
    """How fast its clock runs, where the guest was told."""
    chip: Plugged | None
    """The chip's bus, in a machine that has one."""
    booted: bootrom.Boot | bool = True
    """What the boot ROM had found, of a machine with a card."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; ``from_json`` is the way back."""
        booted = self.booted
        return {
            "qemu": self.qemu,
            "hardware": self.hardware,
            "tsc_khz": self.tsc_khz,
            "chip": None if self.chip is None else self.chip.to_json(),
            "booted": asdict(booted) if isinstance(booted, bootrom.Boot) else booted,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` described.

        :raises TypeError: or KeyError, when it describes something else.
        """
        chip, booted = value["chip"], value["booted"]
        plain = {**value, "chip": None if chip is None else Plugged.from_json(chip)}
        if isinstance(booted, dict):
            lists = {name: tuple(booted[name]) for name in ("overlays", "notes")}
            plain["booted"] = bootrom.Boot(**{**booted, **lists})
        return cls(**plain)


def why_not(machine: Machine) -> str | None:
    """Return why machines like this one cannot be saved; ``None``: they can."""
    spec = machine.spec
    if spec.hardware.ecam is None:
        return f"a machine {spec.board or spec.arch} cannot be saved: only q35 can"
    return None


async def version_of(machine: Machine) -> str:
    """Return the version of a running QEMU."""
    answer = await machine.qmp("query-version")
    number = ".".join(str(answer["qemu"][part]) for part in ("major", "minor", "micro"))
    return f"{number} {answer['package']}".strip()


async def store(machine: Machine, memory: Path) -> SavedMachine:
    """Write a paused machine to a file, and leave it as it was.

    :param machine: The machine.
    :param memory: The file.
    :raises MachineError: when it cannot be.
    """
    reason = why_not(machine)
    if reason is not None:
        raise MachineError(reason)
    spec = machine.spec
    chip = None
    async with registers_of(machine) as registers:
        bay = await Bay.of(machine, registers) if spec.chip else None
        if bay is not None:
            chip = await bay.unplug()
        try:
            await _write(machine, memory)
        finally:
            if bay is not None and chip is not None:
                await bay.plug(chip)
    return SavedMachine(
        await version_of(machine),
        saved_hardware(spec),
        spec.accel.tsc_khz,
        chip,
        machine.booted or True,
    )


async def load(machine: Machine, memory: Path, saved: SavedMachine) -> None:
    """Read a file that ``store`` wrote into a machine that waits for it; it is paused then.

    :param machine: The machine.
    :param memory: The file.
    :param saved: What ``store`` returned.
    :raises MachineError: when it cannot be.
    """
    name = machine.spec.name
    version = await version_of(machine)
    if version != saved.qemu:
        raise MachineError(f"{name} was saved by QEMU {saved.qemu}; this is QEMU {version}")
    if saved_hardware(machine.spec) != saved.hardware:
        raise MachineError(f"{name} was saved by a simulator that builds other machines")
    await machine.qmp("migrate-incoming", {"uri": f"exec:exec cat {shlex.quote(str(memory))}"})
    await _done(machine, "read")
    if saved.chip is not None:
        async with registers_of(machine) as registers:
            await (await Bay.of(machine, registers)).plug(saved.chip)


async def _write(machine: Machine, memory: Path) -> None:
    # Made here: nobody else may read what a guest has in its memory.
    os.close(os.open(memory, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    await machine.qmp("migrate-set-parameters", {"max-bandwidth": _UNBOUNDED})
    await machine.qmp("migrate", {"uri": f"exec:exec cat >{shlex.quote(str(memory))}"})
    await _done(machine, "written")


async def _done(machine: Machine, what: str) -> None:
    async with machine.within(PATIENCE):
        while True:
            answer = await machine.qmp("query-migrate")
            match answer.get("status"):
                case "completed":
                    return
                case "failed" | "cancelled":
                    why = answer.get("error-desc") or machine.errors_since_start() or "no reason"
                    raise MachineError(f"{machine.spec.name} could not be {what}: {why}")
            await asyncio.sleep(_PAUSE)
