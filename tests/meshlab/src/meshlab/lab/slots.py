# SPDX-License-Identifier: Apache-2.0
"""How many nodes boot, and how many run, at the same time on this host, whichever lab has them.

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


def lock(path: Path, owner: str) -> Slot | None:
    """Return the slot that is the file ``path``, or None while somebody holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{owner}\n".encode(), 0)
    return Slot(fd)


class Places:
    """Places for running nodes, which labs take for all of their nodes at once.

    Who comes first gets places first: a large lab waits until there are enough for it, and a small
    one that comes later does not take them away.
    """

    def __init__(self, directory: Path, count: int, owner: str) -> None:
        self._door = directory / "door"
        self._paths = [directory / str(number) for number in range(count)]
        self._owner = owner

    async def take(self, count: int) -> list[Slot]:
        """Wait for ``count`` places, or for all there are, if these are fewer."""
        held: list[Slot] = []
        door = None
        try:
            while door is None:
                door = lock(self._door, self._owner)
                await asyncio.sleep(0 if door else PAUSE)
            while True:
                for path in self._paths:
                    if len(held) < count and (slot := lock(path, self._owner)):
                        held.append(slot)
                if len(held) >= min(count, len(self._paths)):
                    return held
                await asyncio.sleep(PAUSE)
        except BaseException:
            for slot in held:
                slot.free()
            raise
        finally:
            if door is not None:
                door.free()


class BootSlots:
    """The boot slots of this host, as one lab sees them.

    :param count: How many this lab may see taken before it waits; labs of different counts share
        the first ones.
    :param owner: Written into the files, for those who wait.
    """

    def __init__(self, directory: Path, count: int, owner: str) -> None:
        self._paths = [directory / str(number) for number in range(max(1, count))]
        self._owner = owner

    def try_take(self) -> Slot | None:
        """Return a slot, or None while all are held."""
        return next((slot for path in self._paths if (slot := lock(path, self._owner))), None)

    def others(self) -> set[str]:
        """Return who else holds slots, as far as they are all held."""
        words = {path.read_text(errors="replace").strip() for path in self._paths}
        return words - {self._owner, ""}

    async def take(self, waiting: Callable[[set[str]], None]) -> Slot | None:
        """Wait for a slot; None after ``PATIENCE`` seconds, for a boot without one.

        :param waiting: Called once with the others that hold slots, when it has to wait for them.
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
