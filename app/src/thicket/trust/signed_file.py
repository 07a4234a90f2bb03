# SPDX-License-Identifier: Apache-2.0
"""The end of a signed file: behind the contents a message (``trust.cms``), and its size.

    contents
    end           what says whose the contents are
    size          of the end, 8 bytes, the highest first

RAUC's bundles end like this, and so do the files of applications: signing rewrites no contents.
"""

from __future__ import annotations

import os
from typing import BinaryIO

from thicket.base.errors import ThicketError

SIZE = 8
"""Bytes of the size."""


class EndError(ThicketError):
    """The file has no end of this kind."""

    code = "no-end"


def read(file: BinaryIO, most: int) -> tuple[int, bytes]:
    """Return the number of bytes in front of the end, and the end.

    :param file: a seekable file.
    :param most: bytes of the largest end that is read.
    :raises EndError: there is none, or the file became shorter while it was read.
    """
    whole = file.seek(0, os.SEEK_END)
    if whole <= SIZE:
        raise EndError("it is too short")
    file.seek(whole - SIZE)
    size = int.from_bytes(file.read(SIZE), "big")
    contents = whole - SIZE - size
    if not 0 < size <= most or contents <= 0:
        raise EndError("its last 8 bytes are not the size of a signature")
    file.seek(contents)
    end = file.read(size)
    if len(end) != size:
        raise EndError("it became shorter while it was read")
    return contents, end


def pack(end: bytes) -> bytes:
    """Return what goes behind the contents."""
    return end + len(end).to_bytes(SIZE, "big")
