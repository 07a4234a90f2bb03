# SPDX-License-Identifier: Apache-2.0
"""What a USB device is: its description, and the requests that every device answers.

Tables and sections are those of the USB specification 2.0. QEMU answers some standard requests
itself (the address) and hands on others as messages of their own (configuration and alternate
setting, see ``server``); what is left is here.
"""

from __future__ import annotations

import struct
from collections import Counter
from typing import NamedTuple, Protocol

from meshlab.wire.usbredir import Control, Endpoint, Interface, Speed, Status

CONFIGURATION = 1
"""The number of a device's only configuration."""

# bRequest (table 9-4) and kinds of descriptors (table 9-5)
GET_STATUS, CLEAR_FEATURE, SET_FEATURE, GET_DESCRIPTOR = 0, 1, 3, 6
DEVICE, CONFIGURATIONS, STRING, INTERFACE, ENDPOINT = 1, 2, 3, 4, 5

_STANDARD = 0x60
"""The bits of bmRequestType that say whose request it is; none are set in a standard one."""
_ENGLISH = 0x0409
_BULK = 2
_MILLIAMPERES = 100


class Answer(NamedTuple):
    """What a device says to a transfer, and how long it takes to say it."""

    status: Status = Status.SUCCESS
    data: bytes = b""
    seconds: float = 0.0


STALL = Answer(Status.STALL)
"""How a device refuses a request (section 8.5.3.4)."""


class Description(NamedTuple):
    """What a device says about itself."""

    vendor: int
    product: int
    version: int
    """In binary-coded decimal: 0x0102 is 1.02."""
    strings: tuple[str, ...]
    """Its maker, its name, its serial number."""
    speed: Speed = Speed.FULL
    control_size: int = 64
    interfaces: tuple[Interface, ...] = (Interface(0, 0xFF),)
    endpoints: tuple[Endpoint, ...] = ()
    """Bulk endpoints, each below one of ``interfaces``."""

    def device(self) -> bytes:
        """Return the device's descriptor (table 9-8)."""
        places = [place if place <= len(self.strings) else 0 for place in (1, 2, 3)]
        numbers = (self.vendor, self.product, self.version)
        head = struct.pack("<BBHBBBB", 18, DEVICE, 0x0200, 0, 0, 0, self.control_size)
        return head + struct.pack("<HHH", *numbers) + bytes((*places, 1))

    def configuration(self) -> bytes:
        """Return the configuration's descriptor and those below it (tables 9-10, 9-12, 9-13)."""
        below = b""
        for one in self.interfaces:
            own = [endpoint for endpoint in self.endpoints if endpoint.interface == one.number]
            below += bytes((9, INTERFACE, one.number, 0, len(own), *one[1:], 0))
            for endpoint in own:
                below += struct.pack(
                    "<BBBBHB", 7, ENDPOINT, endpoint.address, _BULK, endpoint.size, 0
                )
        length = 9 + len(below)
        counts = (len(self.interfaces), CONFIGURATION, 0, 0x80, _MILLIAMPERES // 2)
        return struct.pack("<BBHBBBBB", 9, CONFIGURATIONS, length, *counts) + below

    def string(self, place: int) -> bytes | None:
        """Return the descriptor of a string (section 9.6.7), or None where there is none."""
        if place > len(self.strings):
            return None
        text = struct.pack("<H", _ENGLISH)
        if place:
            text = self.strings[place - 1].encode("utf-16-le")
        return bytes((2 + len(text), STRING)) + text


class UsbDevice(Protocol):
    """A device behind a machine's USB port. No method waits, or raises for what it is asked."""

    description: Description
    counters: Counter[str]

    def control(self, asked: Control) -> Answer:
        """Answer a control transfer that is not the standard's; what is too long is cut off."""

    def take(self, endpoint: int, data: bytes) -> Answer:
        """Take what a bulk transfer brings to the device."""

    def power_cycle(self) -> None:
        """Forget everything volatile: the device was just plugged in."""


def standard(description: Description, asked: Control) -> Answer | None:
    """Answer a request of the standard; None when it is none.

    :param asked: The request.
    """
    if asked.request_type & _STANDARD:
        return None
    if asked.request == GET_DESCRIPTOR and asked.reads:
        found = _descriptor(description, asked.value >> 8, asked.value & 0xFF)
        return STALL if found is None else Answer(data=found[: asked.length])
    if asked.request == GET_STATUS and asked.reads:
        return Answer(data=bytes(2)[: asked.length])
    if asked.request in (CLEAR_FEATURE, SET_FEATURE) and not asked.reads:
        return Answer()
    return STALL


def _descriptor(description: Description, kind: int, place: int) -> bytes | None:
    if kind == DEVICE and place == 0:
        return description.device()
    if kind == CONFIGURATIONS and place == 0:
        return description.configuration()
    if kind == STRING:
        return description.string(place)
    return None
