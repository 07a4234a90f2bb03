# SPDX-License-Identifier: Apache-2.0
"""Time as processes were given it: limits that a busy host does not use up.

A limit on what a guest does says when it is taken to hang. By the clock on the wall such a limit
says how busy the host is instead: a guest that gets a thirtieth of a processor needs an hour for
what otherwise takes two minutes, and works all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

Pids = Callable[[], Iterable[int | None]]
"""Returns the processes that something waits for; None stands for one that does not run."""

LOOK = 0.5
"""Seconds between two looks at what processes wait for."""
SHORTEST = 0.01
"""Seconds between two looks at least, near the end."""


def waits(pid: int) -> dict[int, float]:
    """Return for how many seconds each thread of a process has waited for a processor.

    The second figure of ``/proc/PID/task/TID/schedstat`` (Documentation/scheduler/sched-stats.rst).
    A kernel without it has none, which counts as no wait.
    """
    found = {}
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has ended meanwhile
                found[int(task.name)] = int((task / "schedstat").read_text().split()[1]) / 1e9
    return found


class Given:
    """A clock that stands while one of some processes, or this one, waits for a processor.

    Where several threads wait, the one counts that waited longest between two looks: some wait for
    each other, and others at the same time. It may go back a little, as the kernel counts a wait
    when it is over.

    :param pids: The processes. Who is started anew meanwhile is looked at as well.
    """

    def __init__(self, pids: Pids = tuple, now: Callable[[], float] = time.monotonic) -> None:
        self._pids = pids
        self._now = now
        self._seconds = 0.0
        self._looked = now()
        self._waits = self._look()

    def _look(self) -> dict[int, float]:
        found: dict[int, float] = {}
        for pid in {os.getpid(), *self._pids()} - {None}:
            assert pid is not None
            found.update(waits(pid))
        return found

    def seconds(self) -> float:
        """Return the seconds that the processes were given since this clock was made."""
        now = self._now()
        if now - self._looked < LOOK:
            return self._seconds + now - self._looked
        past, self._waits = self._waits, self._look()
        # All that a new thread has waited for, it has since the latest look.
        lost = max((s - past.get(t, 0.0) for t, s in self._waits.items()), default=0.0)
        self._seconds += now - self._looked - lost
        self._looked = now
        return self._seconds

    @contextlib.asynccontextmanager
    async def within(self, seconds: float | None) -> AsyncIterator[None]:
        """As ``asyncio.timeout_at``, by this clock.

        :param seconds: What it tells when the limit is over; None: it never is.
        :raises TimeoutError: when it is.
        """
        if seconds is None:
            yield
            return
        async with asyncio.timeout(None) as limit:
            looking = asyncio.create_task(self._expire(limit, seconds))
            try:
                yield
            finally:
                looking.cancel()

    async def _expire(self, limit: asyncio.Timeout, seconds: float) -> None:
        while (left := seconds - self.seconds()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(max(left, SHORTEST), LOOK))
        limit.reschedule(asyncio.get_running_loop().time())


def within(seconds: float, pids: Pids = tuple) -> contextlib.AbstractAsyncContextManager[None]:
    """As ``asyncio.timeout``, by a clock of processes that begins now.

    :param seconds: What they have to be given before it is over.
    :raises TimeoutError: in the context, when it is.
    """
    return Given(pids, asyncio.get_running_loop().time).within(seconds)
