# SPDX-License-Identifier: Apache-2.0
"""What a lab is made of: the contracts of a machine, a chip, a fleet and their maker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Protocol

from meshlab.machine.events import OnMachineEvent
from meshlab.machine.suspend import SavedMachine


class ShellLike(Protocol):
    """A shell in the guest that the host drives."""

    async def run(
        self,
        command: str,
        timeout: float = ...,
        on_output: Callable[[bytes], None] | None = ...,
    ) -> tuple[int, str]: ...

    async def stream(
        self,
        command: str,
        on_output: Callable[[bytes], None],
        timeout: float | None = ...,
        source: AsyncIterator[bytes] | None = ...,
    ) -> int: ...

    async def read_if_changed(self, path: str, timeout: float = ...) -> str | None: ...

    async def push(self, path: str, content: bytes, timeout: float = ...) -> None: ...


class PortsLike(Protocol):
    """What is plugged into a machine while it runs; ``meshlab.machine.ports.Ports``."""

    def __len__(self) -> int: ...
    async def plug(self, *, on: bool) -> None: ...
    async def add(self, peer: Path) -> str: ...
    async def remove(self, name: str) -> None: ...
    async def closed(self, name: str) -> None: ...


class MachineLike(Protocol):
    """A virtual machine; ``meshlab.machine.machine.Machine`` is the real one."""

    @property
    def shell(self) -> ShellLike: ...
    @property
    def exec_shell(self) -> ShellLike: ...
    @property
    def running(self) -> bool: ...
    @property
    def pid(self) -> int | None:
        """The process that it is while it runs; None where it is none of this host."""
        ...

    async def start(self) -> None: ...
    async def wake(self, memory: Path, saved: SavedMachine) -> None: ...
    async def save(self, memory: Path) -> SavedMachine: ...
    async def pause(self) -> None: ...
    async def go_on(self) -> None: ...
    async def stop(self, grace: float) -> None: ...
    def kill(self) -> None: ...
    async def wait(self) -> int | None: ...
    @property
    def ports(self) -> PortsLike: ...
    def cpu_seconds(self) -> float: ...
    def own_kib(self) -> int: ...


class ChipLike(Protocol):
    """A virtual chip that is being served to a machine."""

    fault: str | None

    @property
    def asleep(self) -> bool:
        """Whether it has nothing to lose if it is saved now."""
        ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...


class FleetLike(Protocol):
    """The authority of a lab's fleet; ``meshlab.lab.fleet.LabFleet`` is the real one."""

    root: str
    """The fleet's root certificate (PEM)."""

    def enroll(self, chip: Path, serial: bytes, seed: int) -> None:
        """Give the chip with this memory certificates of the fleet."""

    def enroll_software(self, console: Path) -> str:
        """Give a node without chip certificates of the fleet, over its console; it may take long.

        :returns: the name of its device.
        :raises LabError: when it cannot be enrolled.
        """


class Doubts:
    """Why the figures of a run cannot be trusted, as far as the medium itself cannot know."""

    def reasons(self) -> list[str]:
        """Return the reasons, none when there is nothing to doubt."""
        return []

    def reset(self) -> None:
        """Begin a new measurement, as the medium's ``reset_stats``."""


class Parts(Protocol):
    """Makes the parts of a lab; ``real_parts`` makes the real ones, tests make others."""

    image: str
    """What is booted, in a word."""
    description: str
    """The same in a line: versions and sizes."""
    accel: str
    accel_reason: str
    has_chip: bool
    """Whether a machine has its virtual chip. One without has a software identity."""
    cables: bool = False
    """Whether a machine has a wired port."""
    boot_slots: int
    """How many nodes of all labs on this host may be between power-on and joined at a time."""
    place: str = ""
    """The host that machines run on; "": that of the lab itself."""

    def serial(self, seed: int, index: int) -> bytes: ...
    def fleet(self, directory: Path, name: str, prefix: str, keep: bool) -> FleetLike:
        """Make the authority of a lab.

        :raises LabError: when it cannot be made.
        """

    def chip(self, directory: Path, serial: bytes) -> ChipLike: ...
    def disks(self, directory: Path, config: str) -> None:
        """Make a node's disks, as far as there are none, with ``config`` as ``thicket.toml``."""

    def configure(self, directory: Path, config: str) -> None:
        """Replace ``thicket.toml`` on the disk or card of a node that is off."""

    def report(self, directory: Path) -> str | None:
        """Return the report on a node's card, if it has a card and there is one on it."""

    def keep_image(self, folder: Path) -> dict[str, Any]:
        """Put what nodes boot into a folder, and return what has to be known of it.

        :raises LabError: when it cannot be kept, or nodes of this kind cannot be saved.
        """

    def machine(self, name: str, directory: Path, on_event: OnMachineEvent) -> MachineLike: ...
    def medium(self, directory: Path) -> list[str]: ...
