# SPDX-License-Identifier: Apache-2.0
"""GPIOs of the Raspberry Pi's header, by the kernel's character device (version 2)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct

from thicket.base.errors import ThicketError
from thicket.base.files import entries
from thicket.base.paths import Paths

#: What the kernel's drivers call the chip whose lines are the header's GPIOs, by their numbers: of
#: a Pi 3 and Zero 2 W, a Pi 4, a Pi 5.
HEADER = ("pinctrl-bcm2835", "pinctrl-bcm2711", "pinctrl-rp1")

# linux/gpio.h
#: struct gpiochip_info: name, label, number of lines
CHIP_INFO = struct.Struct("=32s32sI")
#: struct gpio_v2_line_request: 64 offsets, consumer; config (flags, number of attributes, padding,
#: 10 attributes of 24 bytes); number of lines, size of the event buffer, padding, file descriptor
LINE_REQUEST = struct.Struct("=64I32sQI20x240sII20xi")
#: struct gpio_v2_line_values: bits, mask
LINE_VALUES = struct.Struct("=QQ")
ACTIVE_LOW, INPUT, OUTPUT = 1 << 1, 1 << 2, 1 << 3
PULL_UP, PULL_DOWN = 1 << 8, 1 << 9


def _ioctl(direction: int, number: int, size: int) -> int:
    """Return _IOC(direction, 0xB4, number, size) of asm-generic/ioctl.h: 1 writes, 2 reads."""
    return direction << 30 | size << 16 | 0xB4 << 8 | number


GET_CHIP_INFO = _ioctl(2, 0x01, CHIP_INFO.size)
GET_LINE = _ioctl(3, 0x07, LINE_REQUEST.size)
GET_VALUES = _ioctl(3, 0x0E, LINE_VALUES.size)
SET_VALUES = _ioctl(3, 0x0F, LINE_VALUES.size)


class GpioError(ThicketError):
    """A GPIO cannot be used; the text says why."""


def header(paths: Paths) -> str:
    """Return the device whose lines are the GPIOs of the header.

    :raises GpioError: there is none.
    """
    folder = paths.root + "/dev"
    for name in entries(folder):
        if name.startswith("gpiochip"):
            with contextlib.suppress(OSError):
                fd = os.open(f"{folder}/{name}", os.O_RDONLY | os.O_CLOEXEC)
                try:
                    told = fcntl.ioctl(fd, GET_CHIP_INFO, bytes(CHIP_INFO.size))
                finally:
                    os.close(fd)
                label = CHIP_INFO.unpack(told)[1].rstrip(b"\0").decode("ascii", "replace")
                if label in HEADER:
                    return f"{folder}/{name}"
    raise GpioError("this machine has no GPIOs of a Raspberry Pi")


class Line:
    """One GPIO, which nobody else has meanwhile. Closed, it is an input again.

    :param number: as Raspberry Pi numbers them (BCM).
    :param low: it is active (1, pressed, lit) where its voltage is low.
    :param lit: an output, and active at once or not; None: an input with a resistor that makes
        it inactive.
    :raises GpioError: the constructor, where it cannot be had.
    """

    def __init__(self, paths: Paths, number: int, *, low: bool, lit: bool | None = None) -> None:
        flags = ACTIVE_LOW if low else 0
        if lit is None:
            flags |= INPUT | (PULL_UP if low else PULL_DOWN)
        else:
            flags |= OUTPUT
        path = header(paths)
        asked = LINE_REQUEST.pack(number, *[0] * 63, b"thicket", flags, 0, b"", 1, 0, 0)
        try:
            chip = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._fd: int = LINE_REQUEST.unpack(fcntl.ioctl(chip, GET_LINE, asked))[-1]
            finally:
                os.close(chip)
        except OSError as error:
            raise GpioError(f"GPIO {number} cannot be used: {error.strerror}") from None
        self._number = number
        if lit:
            try:
                self.set(True)
            except GpioError:
                self.close()
                raise

    def get(self) -> bool:
        """Return whether it is active.

        :raises GpioError: it cannot be read.
        """
        try:
            told = fcntl.ioctl(self._fd, GET_VALUES, LINE_VALUES.pack(0, 1))
        except OSError as error:
            raise GpioError(f"GPIO {self._number} cannot be read: {error.strerror}") from None
        return bool(LINE_VALUES.unpack(told)[0] & 1)

    def set(self, active: bool) -> None:
        """Make it active or not.

        :raises GpioError: it cannot be set.
        """
        try:
            fcntl.ioctl(self._fd, SET_VALUES, LINE_VALUES.pack(int(active), 1))
        except OSError as error:
            raise GpioError(f"GPIO {self._number} cannot be set: {error.strerror}") from None

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
