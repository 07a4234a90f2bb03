# SPDX-License-Identifier: Apache-2.0
"""The folder of an offer as a stream: how ``thicket update send`` brings it to a node, over ssh.

line ``thicket offer 1``
for each file: line ``NAME SIZE``, and its bytes
line ``end``
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import BinaryIO

from thicket.base.errors import CodedError
from thicket.update.bundle import MAX_BYTES
from thicket.update.offer import MAX_PATCHES

FOLDER = "/update/incoming"
"""Where a node puts it, below ``/data``."""
MAX_FILES = MAX_PATCHES + 1

_HEAD, _END = b"thicket offer 1\n", b"end\n"
_LINE = re.compile(rb"([A-Za-z0-9][A-Za-z0-9._-]{0,99}) ([1-9][0-9]{0,9})\n")
_LONGEST = 128
_PIECE = 1 << 16


class StreamError(CodedError):
    """What comes is no such stream, or ends too early."""


def send(
    files: Sequence[str], out: BinaryIO, progress: Callable[[int], object] = lambda _: None
) -> None:
    """Write files as a stream.

    :param files: their paths.
    :param progress: called with the bytes of files that were written.
    :raises OSError: a file cannot be read, or the other end is gone.
    """
    out.write(_HEAD)
    done = 0
    for path in files:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            out.write(f"{os.path.basename(path)} {left}\n".encode("ascii"))
            while left and (data := file.read(min(_PIECE, left))):
                out.write(data)
                left -= len(data)
                done += len(data)
                progress(done)
        if left:
            raise StreamError("changed", f"{path} has become shorter meanwhile")
    out.write(_END)
    out.flush()


def receive(stream: BinaryIO, folder: str) -> None:
    """Put what comes into a new folder; what is there after a failure is the caller's to remove.

    :raises StreamError: it is no such stream, or ends too early.
    :raises OSError: it cannot be written.
    """
    if stream.read(len(_HEAD)) != _HEAD:
        raise StreamError("bad-stream", "what comes is not from `thicket update send`")
    os.makedirs(folder, mode=0o700)
    for _ in range(MAX_FILES + 1):
        line = stream.readline(_LONGEST)
        if line == _END:
            return
        match = _LINE.fullmatch(line)
        if match is None or int(match[2]) > MAX_BYTES:
            break
        with open(f"{folder}/{match[1].decode()}", "xb") as file:
            left = int(match[2])
            while left and (data := stream.read(min(_PIECE, left))):
                file.write(data)
                left -= len(data)
        if left:
            raise StreamError("cut-off", "the connection has ended before all was here: once more")
    raise StreamError("bad-stream", "what comes is not from `thicket update send`, or was cut off")
