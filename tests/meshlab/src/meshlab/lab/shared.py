# SPDX-License-Identifier: Apache-2.0
"""What the workers of one test run make once and share, such as a card that took a boot to prepare.

Workers (pytest-xdist) are processes. A thing is a path below the run's temporary directory, which
appears by a rename when it is complete; while one worker makes it, the others wait for a lock.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import IO, Protocol


class TempPaths(Protocol):
    """What is used of ``pytest.TempPathFactory``."""

    def getbasetemp(self) -> Path: ...


def run_directory(temp: TempPaths) -> Path:
    """Return the temporary directory that all workers of this run see."""
    base = temp.getbasetemp()
    # Each worker has a directory of its own in that of the run.
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(directory: Path, name: str, make: Callable[[Path], None]) -> Path:
    """Return ``directory/name``, made by ``make(path)`` by the first worker that asks for it.

    ``make`` makes a file or a directory at ``path``, where nothing is. What it raises is raised
    here, and the next one that asks tries again.
    """
    with _lock_file(directory, name) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fresh = _fresh(directory, name)
        if fresh is not None:
            make(fresh)
            fresh.rename(directory / name)
    return directory / name


async def once_async(directory: Path, name: str, make: Callable[[Path], Awaitable[None]]) -> Path:
    """Do what ``once`` does, with a ``make`` that is a coroutine."""
    with _lock_file(directory, name) as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        fresh = _fresh(directory, name)
        if fresh is not None:
            await make(fresh)
            fresh.rename(directory / name)
    return directory / name


def _lock_file(directory: Path, name: str) -> IO[bytes]:
    """Open what is locked; the kernel drops the lock with the file or the process."""
    return (directory / f".{name}.lock").open("ab")


def _fresh(directory: Path, name: str) -> Path | None:
    """Return where to make the thing, ``None`` when it is there. Called with the lock held."""
    if (directory / name).exists():
        return None
    fresh = directory / f".{name}.new"
    # What a worker that was killed left.
    if fresh.is_dir():
        shutil.rmtree(fresh)
    fresh.unlink(missing_ok=True)
    return fresh
