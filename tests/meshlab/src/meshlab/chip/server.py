# SPDX-License-Identifier: Apache-2.0
"""The chip of one node, where QEMU can reach it.

By ``-device vhost-user-i2c-pci`` or ``-device``, or, on a machine without virtio, by ``usb-redir``.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.bus import I2cBus
from meshlab.chip.i2c import VirtioI2c
from meshlab.chip.usb import UsbI2c
from meshlab.chip.vhost_user import VhostUserServer
from meshlab.usb.server import UsbServer

_writer = ThreadPoolExecutor(1, thread_name_prefix="chip")
"""Writes the files of all chips; its thread starts with the first write."""


class ChipServer:
    """Serves one chip as the only device on an I2C bus, on a unix socket.

    QEMU connects, and may go and come again: that is the node's power, so the chip then loses what
    it keeps in SRAM, and nothing else. Many servers share one event loop.
    """

    def __init__(self, path: Path, chip: Atecc608, *, usb: bool = False, name: str = "") -> None:
        """Put ``chip`` on a bus of its own that QEMU reaches at ``path``.

        From then on the chip's file is written in the background: the event loop has no time to
        wait for a disk.

        :param usb: The bus is behind a USB adapter; otherwise it is a virtio device.
        """
        if chip.executor is None:
            chip.executor = _writer
        self.chip = chip
        self.device: UsbI2c | VirtioI2c
        self.server: UsbServer | VhostUserServer
        name = name or path.parent.name
        self._protocol = "usbredir" if usb else "vhost_user"
        if usb:
            self.device = UsbI2c(I2cBus([chip]))
            self.server = UsbServer(path, self.device, name=name)
        else:
            self.device = VirtioI2c(I2cBus([chip]))
            self.server = VhostUserServer(path, self.device, name=name)

    async def start(self) -> None:
        """Listen for QEMU.

        :raises OSError: when it cannot listen.
        """
        await self.server.start()

    async def stop(self) -> None:
        """Hang up, remove the socket, and wait until the chip's file is written."""
        await self.server.stop()
        if self.chip.saving is not None:
            # a failure is the chip's to report: in ``problem``, and in the answer to its command
            with contextlib.suppress(OSError):
                await asyncio.wrap_future(self.chip.saving)

    @property
    def connected(self) -> bool:
        """Whether a virtual machine is connected."""
        return self.server.connection is not None

    def status(self) -> dict[str, Any]:
        """Return what there is to know, for JSON."""
        return {
            "model": self.chip.model,
            "serial": self.chip.serial.hex(),
            "connected": self.connected,
            "fault": self.chip.fault,
            "problem": self.chip.problem,
            "commands": dict(self.chip.counters),
            "bus": dict(self.device.counters),
            self._protocol: dict(self.server.counters),
        }
