# SPDX-License-Identifier: Apache-2.0
"""What is plugged into a machine that runs, and pulled again: a cable, and channels to programs.

A channel is a virtio port. Nothing in the guest waits for one, so that a machine that has none
costs nothing. The kernel makes ``/dev/vport0pN`` for each; who wants a program at it has to start
one there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from meshlab.machine.qemu import MachineError
from meshlab.machine.spec import CABLE, MOST_PORTS, SERIAL_BUS, MachineSpec

Qmp = Callable[[str, Mapping[str, object] | None], Awaitable[Any]]

MOST_ADDED = MOST_PORTS - 3
"""So many at a time: two shells and the relay have theirs."""


class Ports:
    """What is plugged into a machine.

    :param spec: The machine.
    :param qmp: Runs a command of QMP.
    """

    def __init__(self, spec: MachineSpec, qmp: Qmp) -> None:
        self._spec = spec
        self._name = spec.name
        self._qmp = qmp
        self._plugged = False
        self._numbers = itertools.count(1)
        #: Set when the guest's program has closed the port; by its name.
        self._closed: dict[str, asyncio.Event] = {}

    def __len__(self) -> int:
        return len(self._closed) + self._plugged

    async def begin(self) -> None:
        """Have begun with a QEMU, in which every cable is plugged in at first.

        :raises MachineError: when it does not answer.
        """
        if self._spec.cable:
            await self.plug(on=self._plugged)

    async def plug(self, *, on: bool) -> None:
        """Plug a cable into the wired port, or pull it: the guest's carrier comes or goes.

        :raises MachineError: when there is no such port, or the machine is off.
        """
        if not self._spec.cable:
            raise MachineError(f"{self._name} has no wired port")
        self._plugged = on
        await self._qmp("set_link", {"name": CABLE, "up": on})

    async def add(self, peer: Path) -> str:
        """Add a port, and connect it.

        :param peer: The unix socket that QEMU connects to: somebody listens there.
        :returns: Its name, as the guest reads it in ``/sys/class/virtio-ports/*/name``.
        :raises MachineError: when there is no room for another one, or nobody listens.
        """
        if not self._spec.hardware.virtio:
            raise MachineError(f"{self._name} has no way in from outside: its board has no virtio")
        if len(self._closed) >= MOST_ADDED:
            raise MachineError(
                f"{self._name} has {MOST_ADDED} connections from outside, and no more at a time"
            )
        name = f"thicket.pipe.{next(self._numbers)}"
        self._closed[name] = asyncio.Event()
        try:
            address = {"type": "unix", "data": {"path": str(peer)}}
            backend = {"type": "socket", "data": {"addr": address, "server": False}}
            await self._qmp("chardev-add", {"id": name, "backend": backend})
            port = {"driver": "virtserialport", "bus": SERIAL_BUS, "chardev": name}
            await self._qmp("device_add", {**port, "id": name, "name": name})
        except BaseException:
            await self.remove(name)
            raise
        return name

    async def remove(self, name: str) -> None:
        """Take a port away, whatever is at its ends. Nothing happens when it is gone already."""
        if self._closed.pop(name, None) is None:
            return
        for command in ("device_del", "chardev-remove"):
            # One of them was not made, or the machine has ended.
            with contextlib.suppress(MachineError):
                await self._qmp(command, {"id": name})

    async def closed(self, name: str) -> None:
        """Wait until the guest's program has closed a port, or the machine has ended."""
        event = self._closed.get(name)
        if event is not None:
            await event.wait()

    def changed(self, name: str, *, is_open: bool) -> None:
        """Take QEMU's word that the guest has opened or closed a port."""
        if not is_open and name in self._closed:
            self._closed[name].set()

    def end(self) -> None:
        """Have ended with the machine, or with what the guest ran."""
        for event in self._closed.values():
            event.set()
