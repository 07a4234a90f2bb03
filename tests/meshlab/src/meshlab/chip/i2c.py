# SPDX-License-Identifier: Apache-2.0
"""An I2C controller as a virtio device (VIRTIO 1.2, section 5.18), in front of an ``I2cBus``.

A request is a descriptor chain: a header of 8 bytes (address, padding, flags), the bytes to write
if it is a write, room for the bytes to read if it is a read, and room for one byte of status.
"""

from __future__ import annotations

import struct
from collections import Counter

from meshlab.chip.bus import I2cBus, Nak, Stuck
from meshlab.chip.vhost_user import GuestError, Reply

F_ZERO_LENGTH_REQUEST = 0
"""Feature bit: requests without data are allowed. Linux's driver needs it."""

FLAG_FAIL_NEXT = 1 << 0
"""The next request belongs to the same transfer and fails with this one."""
FLAG_READ = 1 << 1

STATUS_OK, STATUS_ERROR = b"\x00", b"\x01"

HEADER = struct.Struct("<HHI")

MAX_LENGTH = 8192
"""Longest message in bytes (the limit of Linux's i2c-dev)."""


class VirtioI2c:
    """The device: a ``vhost_user.Device``."""

    features = 1 << F_ZERO_LENGTH_REQUEST
    queues = 1

    def __init__(self, bus: I2cBus) -> None:
        """Connect the controller to ``bus``."""
        self.bus = bus
        self.counters: Counter[str] = Counter()
        self._failing = False

    def reset(self) -> None:
        """The virtual machine has gone or is coming: the devices on the bus lose their supply."""
        self._failing = False
        self.bus.power_cycle()

    def process(self, queue: int, readable: bytes, writable: int) -> Reply:
        """See ``vhost_user.Device.process``."""
        if len(readable) < HEADER.size or writable < 1:
            raise GuestError("an I2C request without header or status")
        address, _, flags = HEADER.unpack_from(readable)
        data, room = readable[HEADER.size :], writable - 1
        seconds = 0.0
        read = bool(flags & FLAG_READ)
        good = self._well_formed(address, read, len(data), room) and not self._failing
        result = bytes(room)
        if good:
            self.counters["reads" if read else "writes"] += 1
            try:
                if read:
                    result = self.bus.read(address >> 1, room)
                else:
                    self.bus.write(address >> 1, data)
            except Nak:
                self.counters["naks"] += 1
                good = False
            except Stuck as stuck:
                self.counters["stuck"] += 1
                good, seconds = False, stuck.seconds
        self._failing = not good and bool(flags & FLAG_FAIL_NEXT)
        return Reply(result + (STATUS_OK if good else STATUS_ERROR), seconds)

    def _well_formed(self, address: int, read: bool, written: int, room: int) -> bool:
        # 7-bit addresses only, which are sent shifted left by one (5.18.6.1)
        good = address <= 0xFE and not address & 1
        good &= (written == 0) if read else (room == 0)
        good &= max(written, room) <= MAX_LENGTH
        if not good:
            self.counters["bad requests"] += 1
        return good
