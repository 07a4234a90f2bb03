# SPDX-License-Identifier: Apache-2.0
"""The I2C bus as the chip driver needs it: write, read, and a lock against other programs.

``LinuxBus`` is ``/dev/i2c-N``. Tests derive a bus of their own from ``Bus`` and need no kernel.
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
    """A transfer on the bus did not succeed."""


class NotAcknowledgedError(BusError):
    """Nobody answered at this address: absent, asleep or busy."""


class BusFaultError(BusError):
    """The bus itself fails: stuck, timed out, lost arbitration, taken away, not permitted."""


class BusLockedError(BusError):
    """Another program kept the bus locked until the deadline."""


class Bus:
    """One I2C bus. All methods may raise ``BusError`` and return within about a second."""

    name: str = "bus"
    """What to call the bus towards people."""

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` to the device at the 7-bit ``address`` in one transaction."""
        raise NotImplementedError

    def read(self, address: int, length: int) -> bytes:
        """Read ``length`` bytes from the device at the 7-bit ``address`` in one transaction."""
        raise NotImplementedError

    def lock(self, deadline: float) -> None:
        """Keep other programs off the bus; wait for them until ``deadline`` (monotonic seconds)."""

    def unlock(self) -> None:
        """Let other programs use the bus again."""

    def close(self) -> None:
        """Give the bus back. The object is of no use afterwards."""


NO_ANSWER = frozenset((errno.ENXIO, errno.EREMOTEIO, errno.EIO))
"""How kernel drivers report a missing acknowledge (Documentation/i2c/fault-codes.rst of Linux says
ENXIO; i2c-bcm2835 says EREMOTEIO, some others EIO)."""


STUCK_AFTER = 0.8
"""Seconds after which a transfer that did not succeed is a stuck bus, whatever the kernel calls it.
A missing acknowledge shows within a millisecond; controllers give a stuck bus up after a second."""


class LinuxBus(Bus):
    """``/dev/i2c-N`` by way of smbus2, locked with ``flock`` while a conversation is under way."""

    def __init__(self, path: str) -> None:
        """Open ``path``. Raises ``BusFaultError`` with the reason when that is not possible."""
        from smbus2 import smbus2  # ctypes is only worth loading on a node

        self.name = path
        self._lib = smbus2
        try:
            self._bus = smbus2.SMBus(path)
        except OSError as error:
            raise BusFaultError(f"{path}: {error.strerror or error}") from error
        self._fd: int = self._bus.fd or -1  # set by the constructor that has just opened it

    def write(self, address: int, data: bytes) -> None:
        """Write ``data`` to ``address``; see ``Bus.write``."""
        self._transfer(self._lib.i2c_msg.write(address, data))

    def read(self, address: int, length: int) -> bytes:
        """Read ``length`` bytes from ``address``; see ``Bus.read``."""
        message = self._lib.i2c_msg.read(address, length)
        self._transfer(message)
        return bytes(message)

    def _transfer(self, message: i2c_msg) -> None:
        # Not SMBus.i2c_rdwr: it drops the ioctl's result, the number of messages that went through.
        # The kernel's i2c-virtio reports a missing acknowledge only by that number being 0, and a
        # lost command would then look like a success and the previous answer like its answer.
        request = self._lib.i2c_rdwr_ioctl_data.create(message)
        begin = time.monotonic()
        try:
            if fcntl.ioctl(self._fd, self._lib.I2C_RDWR, request) == 1:
                return
        except OSError as error:
            if error.errno not in NO_ANSWER:
                raise BusFaultError(f"{self.name}: {os.strerror(error.errno or 0)}") from error
        if time.monotonic() - begin > STUCK_AFTER:
            raise BusFaultError(f"{self.name}: a transfer timed out")
        raise NotAcknowledgedError(self.name)

    def lock(self, deadline: float) -> None:
        """Take the ``flock`` of the bus device; see ``Bus.lock``."""
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
        """Release the ``flock`` of the bus device."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the bus device (which also releases its lock)."""
        self._bus.close()
