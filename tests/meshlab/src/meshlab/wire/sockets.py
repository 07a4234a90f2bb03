# SPDX-License-Identifier: Apache-2.0
"""How a unix socket with a long path is reached."""

from __future__ import annotations

import os
import threading
from pathlib import Path

MAX_SOCKET_PATH = 107
"""Longest usable unix socket path in bytes: ``sun_path`` (``<linux/un.h>``) is 108 with its NUL."""

_directory_fds: dict[Path, int] = {}
_directory_lock = threading.Lock()


def socket_address(path: Path | str) -> str:
    """Return an address that reaches the unix socket ``path``, however long the path is.

    The address is valid in this process only: a path that does not fit ``sun_path`` becomes
    ``/proc/self/fd/N/NAME``, where N is an open descriptor of the directory, kept until the process
    ends or the directory is replaced. Works for bind and for connect.

    :raises FileNotFoundError: when a long path's directory does not exist.
    :raises ValueError: when even the file name alone is too long.
    """
    absolute = Path(path).absolute()
    if len(os.fsencode(absolute)) <= MAX_SOCKET_PATH:
        return str(absolute)
    with _directory_lock:
        directory = absolute.parent
        fd = _directory_fds.get(directory)
        if fd is not None and not _same_directory(fd, directory):
            os.close(_directory_fds.pop(directory))
            fd = None
        if fd is None:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            _directory_fds[directory] = fd
    address = f"/proc/self/fd/{fd}/{absolute.name}"
    if len(os.fsencode(address)) > MAX_SOCKET_PATH:
        raise ValueError(f"socket name too long: {absolute.name}")
    return address


def _same_directory(fd: int, directory: Path) -> bool:
    """Tell whether ``fd`` still is what ``directory`` names (it may have been made anew)."""
    try:
        return os.path.samestat(os.fstat(fd), directory.stat())
    except OSError:
        return False
