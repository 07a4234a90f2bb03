# SPDX-License-Identifier: Apache-2.0
"""What a card is written to and read back from: a block device, or a plain file in its place."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

_BLKRRPART = 0x125F
_BLKFLSBUF = 0x1261
"""``linux/fs.h``: read the partition table again; drop what is cached of a device."""

_FLUSH = 16 << 20
"""Bytes that may be on their way to a plain file before it is waited for."""


class Buffer:
    """Memory at a page's start, as direct transfers want it."""

    def __init__(self, size: int) -> None:
        self._memory = mmap.mmap(-1, size)
        self._view = memoryview(self._memory)

    def __getitem__(self, count: int) -> memoryview:
        """Return the first ``count`` bytes, to be read from and written to."""
        return self._view[:count]


class Target:
    """An open card.

    :raises OSError: by every method, when the card does not do what it is told.
    """

    def __init__(self, path: Path, fd: int, size: int, *, is_device: bool, direct: bool) -> None:
        self.path = path
        self.size = size
        self.is_device = is_device
        self._fd = fd
        self._direct = direct
        self._pending = 0

    @classmethod
    def device(cls, path: Path) -> Target:
        """Open a whole disk for this program alone.

        :raises OSError: EBUSY when anything has it mounted or built on, wherever that is.
        """
        # O_EXCL on a block device: fail when it or a partition is claimed, and claim it.
        flags = os.O_RDWR | os.O_EXCL | os.O_CLOEXEC
        direct = True
        try:
            fd = os.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fd, direct = os.open(path, flags), False
        try:
            if not stat.S_ISBLK(os.fstat(fd).st_mode):
                raise OSError(errno.ENOTBLK, "not a block device any more", str(path))
            # Keeps systemd-udevd from looking at a half-written card (its "block device locking").
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(path, fd, os.lseek(fd, 0, os.SEEK_END), is_device=True, direct=direct)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def file(cls, path: Path, least: int) -> Target:
        """Open a plain file, made when there is none, and as large as ``least`` at least."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a plain file any more", str(path))
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if status.st_size < least:
                os.ftruncate(fd, least)
            return cls(path, fd, max(status.st_size, least), is_device=False, direct=False)
        except BaseException:
            os.close(fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of ``data``; what is reported as written is (nearly) on the card."""
        while data:
            count = os.pwrite(self._fd, data, offset)
            data, offset = data[count:], offset + count
            self._pending += count
        if not self._direct and self._pending >= _FLUSH:
            os.fdatasync(self._fd)
            self._pending = 0

    def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into``. Call ``forget`` before, to see what is on the card."""
        while into:
            count = os.preadv(self._fd, [into], offset)
            if count == 0:
                raise OSError(errno.EIO, f"no data at byte {offset}", str(self.path))
            into, offset = into[count:], offset + count

    def sync(self) -> None:
        """Wait until everything that was written is on the card, through its own cache too."""
        os.fsync(self._fd)
        self._pending = 0

    def forget(self) -> None:
        """Drop what this machine remembers of the card, so that reading really reads it."""
        os.fsync(self._fd)
        if self.is_device:
            # Only root may. Direct reads do not use the cache anyway.
            with contextlib.suppress(PermissionError):
                fcntl.ioctl(self._fd, _BLKFLSBUF)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def reread_partitions(self) -> bool:
        """Have the kernel look at the new partition table; False when it could not."""
        if not self.is_device:
            return True
        try:
            fcntl.ioctl(self._fd, _BLKRRPART)
        except OSError:
            return False
        return True
