# SPDX-License-Identifier: Apache-2.0
"""The I2C bus as the chip driver needs it: write, read, and a lock against other programs.

``LinuxBus`` is ``/dev/i2c-N``. Tests derive their own bus from ``Bus`` and need no kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from typing import TYPE_CHECKING

from thicket.base.errors import ThicketError

if TYPE_CHECKING:
    from smbus2 import i2c_msg


class BusError(ThicketError):
    """A transfer on the bus failed."""


class NotAcknowledgedError(BusError):
    """No device answered at this address: it is absent, asleep or busy."""


class BusFaultError(BusError):
    """The bus itself fails: stuck, timed out, lost arbitration, removed, not permitted."""


class BusLockedError(BusError):
    """Another program kept the bus locked until the deadline."""


class Bus:
    """One I2C bus. All methods return within about a second.

    :raises BusError: any method, when the bus or the device does not do it.
    """

    name: str = "bus"
    """The name of the bus in messages."""

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` to the device at the 7-bit ``address`` in one transaction."""
        raise NotImplementedError

    def read(self, address: int, length: int) -> bytes:
        """Read ``length`` bytes from the device at the 7-bit ``address`` in one transaction."""
        raise NotImplementedError

    def lock(self, deadline: float) -> None:
        """Keep other programs off the bus, waiting for them until ``deadline`` (monotonic)."""

    def unlock(self) -> None:
        """Let other programs use the bus again."""

    def close(self) -> None:
        """Close the bus for good."""


NO_ANSWER = frozenset((errno.ENXIO, errno.EREMOTEIO, errno.EIO))
"""Errors by which kernel drivers report a missing acknowledge (Linux's
Documentation/i2c/fault-codes.rst says ENXIO; i2c-bcm2835 uses EREMOTEIO, some others EIO)."""


STUCK_AFTER = 0.8
"""Seconds after which a failed transfer means a stuck bus, whatever the kernel's error says. A
missing acknowledge shows within a millisecond; controllers give up a stuck bus after a second. Who
gets no processor sees the same, so it has to happen twice, one after the other."""


class LinuxBus(Bus):
    """``/dev/i2c-N`` through smbus2, locked with ``flock`` during a conversation.

    :raises BusFaultError: the constructor, when the device cannot be opened.
    """

    def __init__(self, path: str) -> None:
        from smbus2 import smbus2  # ctypes is only worth loading on a node

        self.name = path
        self._lib = smbus2
        try:
            self._bus = smbus2.SMBus(path)
        except OSError as error:
            raise BusFaultError(f"{path}: {error.strerror or error}") from error
        self._slow = False
        self._fd: int = self._bus.fd or -1  # set by the constructor that has just opened it

    def write(self, address: int, data: bytes) -> None:
        self._transfer(self._lib.i2c_msg.write(address, data))

    def read(self, address: int, length: int) -> bytes:
        message = self._lib.i2c_msg.read(address, length)
        self._transfer(message)
        return bytes(message)

    def _transfer(self, message: i2c_msg) -> None:
        # SMBus.i2c_rdwr drops the ioctl's result, the number of messages that went through. The
        # kernel's i2c-virtio reports a missing acknowledge only by the result 0; a lost command
        # would look like a success, and the previous answer like its answer.
        request = self._lib.i2c_rdwr_ioctl_data.create(message)
        begin = time.monotonic()
        try:
            if fcntl.ioctl(self._fd, self._lib.I2C_RDWR, request) == 1:
                self._slow = False
                return
        except OSError as error:
            if error.errno not in NO_ANSWER:
                raise BusFaultError(f"{self.name}: {os.strerror(error.errno or 0)}") from error
        slow, self._slow = self._slow, time.monotonic() - begin > STUCK_AFTER
        if slow and self._slow:
            raise BusFaultError(f"{self.name}: a transfer timed out")
        raise NotAcknowledgedError(self.name)

    def lock(self, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise BusLockedError(
                        f"{self.name} is locked by another program (flock)"
                    ) from None
                time.sleep(0.01)
            except OSError as error:
                raise BusFaultError(f"{self.name}: flock: {error.strerror or error}") from error
            else:
                return

    def unlock(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        self._bus.close()
