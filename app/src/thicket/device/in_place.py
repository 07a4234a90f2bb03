# SPDX-License-Identifier: Apache-2.0
"""Files of fixed length on the card's first partition, overwritten where they are.

The partition holds the files that the board starts with, so a power cut must never leave it half
written, and FAT has no journal. A file keeps its length and is overwritten sector by sector on the
block device. The file system, mounted read-only, only tells where the sectors are (FIBMAP). It is
unmounted while they are written, because kernels refuse to write below a mounted file system. No
directory, allocation table or boot sector changes, not even the mark that a file system is in use.
Only a file that is missing, or has another length because somebody edited it, is written through
the file system, which is writable meanwhile.
"""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import stat
from logging import getLogger

from thicket.base.paths import Paths
from thicket.device.boot_partition import mount_boot, unmount_boot, write_to_boot

log = getLogger(__name__)

# linux/fs.h: block of the device that holds a block of a file; size of these blocks
_FIBMAP = 1
_FIGETBSZ = 2


def read(path: str, length: int) -> bytes | None:
    """Return the file's bytes, at most one more than ``length``; None without a file."""
    try:
        with open(path, "rb") as f:
            return f.read(length + 1)
    except FileNotFoundError:
        return None


def write(paths: Paths, device: str, target: str, data: bytes) -> None:
    """Make ``target`` hold ``data``; only sectors that differ are written.

    The caller has the partition for itself (``boot_lock``), and it is mounted.

    :raises OSError: the card fails; the file is as before, or partly overwritten.
    :raises StoreError: the partition cannot be mounted or unmounted.
    """
    old = read(target, len(data))
    if old == data:
        return
    if old is None or len(old) != len(data):
        log.info("making %s", target)
        write_to_boot(paths, device, target, data)
        return
    blocks = blocks_of(target, len(data))
    unmount_boot(paths)
    try:
        _overwrite(paths.root + device, blocks, data, old)
    finally:
        mount_boot(paths, device)
    if read(target, len(data)) != data:
        raise OSError(errno.EIO, "it reads differently from what was written")


def _overwrite(device: str, blocks: list[int], data: bytes, old: bytes) -> None:
    """Write the blocks that differ, and nothing else (O_DIRECT)."""
    size = len(data) // len(blocks)
    page = memoryview(mmap.mmap(-1, max(size, mmap.PAGESIZE)))[:size]  # aligned, for O_DIRECT
    direct = os.O_DIRECT if stat.S_ISBLK(os.stat(device).st_mode) else 0
    disk = os.open(device, os.O_WRONLY | os.O_SYNC | os.O_CLOEXEC | direct)
    try:
        for number, block in enumerate(blocks):
            part = slice(number * size, (number + 1) * size)
            if data[part] != old[part]:
                page[:] = data[part]
                if os.pwritev(disk, [page], block * size) != size:
                    raise OSError(errno.EIO, "a sector was not written as a whole")
    finally:
        os.close(disk)


def blocks_of(path: str, length: int) -> list[int]:
    """Return the numbers of the blocks of a file of ``length`` bytes, in order."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        number = array.array("i", [0])
        fcntl.ioctl(fd, _FIGETBSZ, number)
        size = number[0]
        if size <= 0 or length % size:
            raise OSError(errno.EIO, f"blocks of {size} bytes do not fit")
        blocks = []
        for index in range(length // size):
            number[0] = index
            fcntl.ioctl(fd, _FIBMAP, number)
            if number[0] <= 0:
                raise OSError(errno.EIO, "the file has no place on the device")
            blocks.append(number[0])
        return blocks
    finally:
        os.close(fd)
