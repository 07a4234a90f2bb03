# SPDX-License-Identifier: Apache-2.0
"""Where the simulator keeps its files, and how a unix socket with a long path is reached."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

MAX_SOCKET_PATH = 107
"""Longest usable unix socket path in bytes: ``sun_path`` (``<linux/un.h>``) is 108 with its NUL."""

_LAB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_directory_fds: dict[Path, int] = {}
_directory_lock = threading.Lock()


def cache_root() -> Path:
    """Return the one folder outside the checkout that the product writes to.

    ``$THICKET_CACHE``, else ``$XDG_CACHE_HOME/thicket``, else ``~/.cache/thicket``.
    """
    own = os.environ.get("THICKET_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "thicket"
    return Path.home() / ".cache" / "thicket"


def labs_root(cache: Path | None = None) -> Path:
    """Return the folder that holds one directory per lab."""
    return (cache or cache_root()) / "labs"


def slots_directory(cache: Path | None = None) -> Path:
    """Return the folder of the boot slots, which all labs of this cache share."""
    return (cache or cache_root()) / "boot-slots"


def lab_directory(name: str, cache: Path | None = None) -> Path:
    """Return the directory of the lab ``name``.

    Raises ``ValueError`` when the name could not be a directory of its own.
    """
    if not _LAB_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a lab name: use letters, digits, '-', '_' and '.', "
            "at most 64, starting with a letter or digit"
        )
    return labs_root(cache) / name


def own_call(lab: str, words: str) -> str:
    """Return how a person calls ``meshlab`` for a lab, in messages."""
    return f"meshlab {words}" if lab == "default" else f"meshlab --lab {lab} {words}"


def socket_address(path: Path | str) -> str:
    """Return an address that reaches the unix socket ``path``, however long the path is.

    The address is valid in this process only: a path that does not fit ``sun_path`` becomes
    ``/proc/self/fd/N/NAME``, where N is an open descriptor of the directory, kept until the process
    ends or the directory is replaced. Works for bind and for connect.

    Raises ``FileNotFoundError`` when a long path's directory does not exist, ``ValueError`` when
    even the file name alone is too long.
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
