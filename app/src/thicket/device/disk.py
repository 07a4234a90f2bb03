# SPDX-License-Identifier: Apache-2.0
"""Single sectors of the node's own card."""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import sys

from thicket.base.errors import ThicketError

SECTOR = 512

# linux/fs.h
_BLKSSZGET = 0x1268


class CardError(ThicketError):
    """The partition cannot be made or grown; the text says what was found."""


class Disk:
    """Sectors of a card or an image file; every write is on the disk when it returns.

    A device is read and written past the kernel's cache, one sector at a time, so that a read
    returns what the card holds.

    :raises CardError: the constructor, when the disk cannot be opened or its sectors are larger.
    """

    def __init__(self, path: str) -> None:
        try:
            self.is_device = stat.S_ISBLK(os.stat(path).st_mode)
            direct = os.O_DIRECT if self.is_device else 0
            self.fd = os.open(path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC | direct)
        except OSError as e:
            raise CardError(f"{path} cannot be opened for writing: {e.strerror}") from e
        if self.is_device:
            size = int.from_bytes(fcntl.ioctl(self.fd, _BLKSSZGET, bytes(4)), sys.byteorder)
            if size != SECTOR:
                raise CardError(f"{path} has sectors of {size} bytes, not of {SECTOR}")
        self.sectors = os.lseek(self.fd, 0, os.SEEK_END) // SECTOR
        # O_DIRECT needs memory that is aligned to a page
        self._page = memoryview(mmap.mmap(-1, mmap.PAGESIZE))[:SECTOR]

    def close(self) -> None:
        os.close(self.fd)

    def read(self, sector: int) -> bytes:
        """Return one sector.

        :raises CardError: it cannot be read.
        """
        try:
            count = os.preadv(self.fd, [self._page], sector * SECTOR)
        except OSError as e:
            raise CardError(f"sector {sector} cannot be read: {e.strerror}") from e
        if count != SECTOR:
            raise CardError(f"sector {sector} lies behind the end of the card")
        return bytes(self._page)

    def write(self, sector: int, data: bytes) -> None:
        """Write one sector, and read it back.

        :raises CardError: it cannot be written, or reads differently.
        """
        self._page[:] = data
        try:
            if os.pwritev(self.fd, [self._page], sector * SECTOR) != SECTOR:
                raise CardError(f"sector {sector} was not written as a whole")
        except OSError as e:
            raise CardError(f"sector {sector} cannot be written: {e.strerror}") from e
        if self.read(sector) != data:
            raise CardError(f"sector {sector} was written and reads differently: the card is worn")
