# SPDX-License-Identifier: Apache-2.0
"""How many nodes boot at the same time on this host, whichever lab they belong to.

A slot is a file in the cache folder; who holds its lock (``flock``) has the slot. The kernel lets
go of a lock when its holder ends, however it ends. All labs with the same cache share the slots.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

PAUSE = 0.2
"""Seconds between two tries for a slot."""

PATIENCE = 180.0
"""Seconds after which a boot no longer waits: a lab that was stopped must not stop the others."""


class Slot:
    """A slot that is held. ``free`` may be called again."""

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    def free(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class BootSlots:
    """The boot slots of this host, as one lab sees them.

    ``count`` is how many this lab may see taken before it waits; labs of different counts share the
    first ones. ``owner`` is written into the files, for those who wait.
    """

    def __init__(self, directory: Path, count: int, owner: str) -> None:
        self._paths = [directory / str(number) for number in range(max(1, count))]
        self._owner = owner

    def try_take(self) -> Slot | None:
        """Return a slot, or None while all are held."""
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{self._owner}\n".encode(), 0)
            return Slot(fd)
        return None

    def others(self) -> set[str]:
        """Return who else holds slots, as far as they are all held."""
        words = {path.read_text(errors="replace").strip() for path in self._paths}
        return words - {self._owner, ""}

    async def take(self, waiting: Callable[[set[str]], None]) -> Slot | None:
        """Wait for a slot; None after ``PATIENCE`` seconds, for a boot without one.

        ``waiting`` is called once with the others that hold slots, when it has to wait for them.
        """
        deadline = time.monotonic() + PATIENCE
        told = False
        while (slot := self.try_take()) is None:
            if not told and (others := self.others()):
                told = True
                waiting(others)
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(PAUSE)
        return slot
