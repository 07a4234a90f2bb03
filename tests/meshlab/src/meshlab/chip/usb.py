# SPDX-License-Identifier: Apache-2.0
"""An I2C controller as a USB adapter, in front of an ``I2cBus``.

It is an i2c-tiny-usb, whose protocol is that of Linux's ``drivers/i2c/busses/i2c-tiny-usb.c``: each
I2C message is a vendor's control transfer, and another one asks how it went. A machine without
virtio, an emulated Raspberry Pi 3, reaches its chip by it.
"""

from __future__ import annotations

import enum
import struct
from collections import Counter

from meshlab.chip.bus import I2cBus, Nak, Stuck
from meshlab.usb.device import STALL, Answer, Description
from meshlab.wire.usbredir import Control, Status


class Request(enum.IntEnum):
    """The adapter's requests.

    A transfer says in its two lowest bits whether it begins and ends a
    sequence; here each message stands for itself.
    """

    ECHO = 0
    GET_FUNCTIONS = 1
    SET_DELAY = 2
    GET_STATUS = 3
    TRANSFER = 4


IDLE, ACKNOWLEDGED, NOT_ACKNOWLEDGED = 0, 1, 2
"""Answers to ``Request.GET_STATUS``."""

FLAG_READ = 1
"""In a transfer's value: data come from the device on the bus (I2C_M_RD)."""
FUNCTIONS = 0x0EFF0009
"""What the adapter can do, in Linux's terms: I2C messages, and SMBus made of them."""

MAX_LENGTH = 8192
"""Longest message in bytes (the limit of Linux's i2c-dev)."""

_VENDOR = 0x40
_KIND = 0x60


class UsbI2c:
    """The adapter: a ``usb.device.UsbDevice``.

    ``counters`` has the words of ``i2c.VirtioI2c``.

    :param bus: What is behind it.
    """

    description = Description(
        vendor=0x0403,
        product=0xC631,
        version=0x0100,
        strings=("Thicket meshlab", "i2c-tiny-usb"),
        control_size=8,
    )

    def __init__(self, bus: I2cBus) -> None:
        self.bus = bus
        self.counters: Counter[str] = Counter()
        self._status = IDLE

    def power_cycle(self) -> None:
        """See ``UsbDevice``: the devices on the bus are supplied by the adapter."""
        self._status = IDLE
        self.bus.power_cycle()

    def take(self, endpoint: int, data: bytes) -> Answer:
        """See ``UsbDevice``: it has no endpoint of its own."""
        return STALL

    def control(self, asked: Control) -> Answer:
        """See ``UsbDevice``."""
        if asked.request_type & _KIND != _VENDOR:
            return STALL
        if asked.request & ~3 == Request.TRANSFER:
            return self._transfer(asked)
        match asked.request:
            case Request.ECHO if asked.reads:
                return Answer(data=struct.pack("<H", asked.value))
            case Request.GET_FUNCTIONS if asked.reads:
                return Answer(data=struct.pack("<I", FUNCTIONS))
            case Request.SET_DELAY if not asked.reads:
                return Answer()
            case Request.GET_STATUS if asked.reads:
                return Answer(data=bytes((self._status,)))
            case _:
                return STALL

    def _transfer(self, asked: Control) -> Answer:
        address = asked.target
        read = bool(asked.value & FLAG_READ)
        # 7-bit addresses only, and one direction on both buses
        if address > 0x7F or read != asked.reads or asked.length > MAX_LENGTH:
            self.counters["bad requests"] += 1
            return STALL
        self.counters["reads" if read else "writes"] += 1
        self._status = ACKNOWLEDGED
        try:
            if read:
                return Answer(data=self.bus.read(address, asked.length))
            self.bus.write(address, asked.data)
        except Nak:
            self.counters["naks"] += 1
            self._status = NOT_ACKNOWLEDGED
            # The data mean nothing: the driver asks for the status before it uses them.
            return Answer(data=bytes(asked.length if read else 0))
        except Stuck as stuck:
            self.counters["stuck"] += 1
            self._status = NOT_ACKNOWLEDGED
            return Answer(Status.STALL, seconds=stuck.seconds)
        return Answer()
