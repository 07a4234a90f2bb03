# SPDX-License-Identifier: Apache-2.0
"""What may be in the contents of an application: what ``thicket app build`` makes, nothing else.

A node mounts the contents and unpacks nothing, so they cost no room. But it reads them with the
daemon's memory, and as root: a pipe in place of a module never answers, a link leads to files that
nobody has signed, and what compresses well can be larger than the node.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO, Final, NamedTuple

from thicket.applications.app_file import SITE, AppError

MAX_ENTRIES: Final = 20_000
"""Files and folders."""
MAX_DEPTH: Final = 32
"""Folders in each other."""
MAX_UNPACKED: Final = 512 << 20
"""Bytes of all files together."""

# The beginning of a squashfs 4.0, all numbers with the lowest byte first.
_SUPERBLOCK: Final = 96
_VERSION: Final = (4, 0)
_GZIP: Final = 1
_NONE: Final = (1 << 64) - 1
_COMPRESSIONS: Final = {2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}

_SPECIAL: Final = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_SHOWN: Final = 60


def check_form(file: BinaryIO, size: int) -> None:
    """Make sure that nodes can mount what a file begins with, before the kernel is asked to.

    :param size: of the contents, in bytes.
    :raises AppError: they cannot, or it holds more than is allowed.
    """
    file.seek(0)
    head = file.read(_SUPERBLOCK)

    def number(at: int, width: int) -> int:
        return int.from_bytes(head[at : at + width], "little")

    if len(head) < _SUPERBLOCK or (number(28, 2), number(30, 2)) != _VERSION:
        raise _bad("they are no squashfs 4.0")
    if (compression := number(20, 2)) != _GZIP:
        name = _COMPRESSIONS.get(compression, f"method {compression}")
        raise _bad(f"they are compressed by {name}, and nodes read gzip alone")
    if not _SUPERBLOCK < number(40, 8) <= size:
        raise _bad("they are cut off")
    if number(4, 4) > MAX_ENTRIES:
        raise _bad(f"they have {number(4, 4)} files and folders, and {MAX_ENTRIES} are the most")
    if number(56, 8) != _NONE:
        raise _bad("they have a table of extended attributes")


class _Folder(NamedTuple):
    path: str
    depth: int


def check(folder: str) -> None:
    """Make sure that contents are of regular files and folders with plain names, within bounds.

    It reads names and sizes only, and no more of them than the bounds allow.

    :param folder: what is mounted, or is to be packed.
    :raises AppError: they are not, or cannot be read.
    """
    entries = unpacked = 0
    waiting = [_Folder(folder, 0)]
    try:
        if not stat.S_ISDIR(os.lstat(f"{folder}/{SITE}").st_mode):
            raise _bad(f"{SITE} is no folder")
        while waiting:
            path, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise _bad(f"more than {MAX_DEPTH} folders are in each other")
            with os.scandir(path) as found:
                for one in found:
                    entries += 1
                    if entries > MAX_ENTRIES:
                        raise _bad(f"they have more than {MAX_ENTRIES} files and folders")
                    about = one.stat(follow_symlinks=False)
                    _check_one(one.path[len(folder) + 1 :], one.name, about)
                    if stat.S_ISDIR(about.st_mode):
                        waiting.append(_Folder(one.path, depth + 1))
                    else:
                        unpacked += about.st_size
                    if unpacked > MAX_UNPACKED:
                        raise _bad(f"they unpack to more than {MAX_UNPACKED >> 20} MiB")
    except OSError as error:
        raise _bad(f"they cannot be read: {error.strerror}") from None


def _check_one(path: str, name: str, about: os.stat_result) -> None:
    if not name.isprintable():  # control characters, and bytes that are no UTF-8
        raise _bad(f"{_shown(path)} is a name that cannot be shown")
    for is_one, words in _SPECIAL:
        if is_one(about.st_mode):
            raise _bad(f"{_shown(path)} is {words}, and only files and folders are taken")
    if about.st_mode & _SET_ID:
        raise _bad(f"{_shown(path)} is to run with the rights of its owner (setuid, setgid)")


def _shown(path: str) -> str:
    """Return the end of a path, in printable characters."""
    text = ascii(path[-_SHOWN:])
    return f"...{text}" if len(path) > _SHOWN else text


def _bad(words: str) -> AppError:
    return AppError("bad-contents", f"its contents: {words}; `thicket app build` makes none such")
