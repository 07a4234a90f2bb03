# SPDX-License-Identifier: Apache-2.0
"""Unix sockets: how one with a long path is reached, and how one is listened at."""

from __future__ import annotations

import os
import socket
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


def listen(path: Path) -> socket.socket:
    """Return a stream socket that listens at ``path`` and does not block.

    A socket file that nobody listens at any more is replaced.

    :raises OSError: when it cannot, or somebody else does.
    """
    address = socket_address(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path, address)
        listener.bind(address)
        listener.listen(4)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path, address: str) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except OSError:
            return


def _same_directory(fd: int, directory: Path) -> bool:
    """Tell whether ``fd`` still is what ``directory`` names (it may have been made anew)."""
    try:
        return os.path.samestat(os.fstat(fd), directory.stat())
    except OSError:
        return False
