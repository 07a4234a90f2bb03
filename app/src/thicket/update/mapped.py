# SPDX-License-Identifier: Apache-2.0
"""Memory whose pages are those of files: it takes none that the kernel could not use otherwise.

What cannot be read, because the card fails or a file has become shorter, is no exception here but
the signal SIGBUS: whoever maps files works in a process of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache

from thicket.update.zstd import Memory

# sys/mman.h, the same on every architecture that images are built for
_READ, _WRITE = 1, 2
_PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 0x02, 0x10, 0x20, 0x4000
_FAILED = ctypes.c_void_p(-1).value


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = pointer
    libc.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_long)
    libc.munmap.argtypes = (pointer, size)
    libc.mprotect.argtypes = (pointer, size, number)
    return libc


def _down(at: int) -> int:
    return at - at % mmap.PAGESIZE


def _up(at: int) -> int:
    return at + -at % mmap.PAGESIZE


class Mapped:
    """So many bytes of memory, all zeros until files are placed in them.

    :raises OSError: the constructor, when the kernel gives no memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._length = max(_up(size), mmap.PAGESIZE)
        self._address = self._map(None, self._length, _PRIVATE | _ANONYMOUS | _NORESERVE, -1)

    @property
    def memory(self) -> Memory:
        """Where it is."""
        return Memory(self._address, self.size)

    def view(self) -> memoryview:
        """Return the bytes, to be read only; let go of it before :meth:`close`."""
        array = ctypes.c_ubyte * self.size
        return memoryview(array.from_address(self._address)).cast("B").toreadonly()

    def place(self, at: int, fd: int, size: int, offset: int = 0) -> None:
        """Put the beginning of a file or device to ``at``, which is at the start of a page.

        :param size: how much of it; it must be as long.
        :param offset: where to begin, at the start of a page.
        :raises OSError: it cannot be read.
        """
        if at % mmap.PAGESIZE or not 0 <= at <= at + size <= self.size:
            raise ValueError(f"{size} bytes at {at} of {self.size}")
        pages = _down(size)
        if pages:
            self._map(self._address + at, pages, _PRIVATE | _FIXED, fd, offset)
        if rest := os.pread(fd, size - pages, offset + pages):
            self._fill(at + pages, rest)

    def mask(self, start: int, end: int) -> None:
        """Put zeros from ``start`` to ``end``."""
        if not 0 <= start < end <= self.size:
            raise ValueError(f"{start} to {end} of {self.size}")
        first, last = _up(start), _down(end)
        if first < last:
            self._map(
                self._address + first, last - first, _PRIVATE | _FIXED | _ANONYMOUS | _NORESERVE, -1
            )
        if start < (until := min(first, end)):
            self._fill(start, bytes(until - start))
        if (since := max(last, first, start)) < end:
            self._fill(since, bytes(end - since))

    def close(self) -> None:
        """Give it back."""
        if self._length:
            _libc().munmap(self._address, self._length)
            self._length = self.size = 0

    def _fill(self, at: int, data: bytes) -> None:
        """Write bytes: the kernel copies the pages that they are in, once."""
        first = _down(at)
        length = _up(at + len(data)) - first
        if _libc().mprotect(self._address + first, length, _READ | _WRITE):
            raise _error()
        ctypes.memmove(self._address + at, data, len(data))

    def _map(self, address: int | None, length: int, flags: int, fd: int, offset: int = 0) -> int:
        found = _libc().mmap(address, length, _READ, flags, fd, offset)
        if found is None or found == _FAILED:
            raise _error()
        return int(found)


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
