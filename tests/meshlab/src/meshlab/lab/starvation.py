# SPDX-License-Identifier: Apache-2.0
"""Whether the host had processors for the nodes of a lab: a node that gets none is lost for the
others, as if its power were cut, and what a test sees then says nothing about the node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping

from meshlab.lab.lab import Lab
from meshlab.machine.given import waits

WINDOW = 5.0
TOO_LONG = 2.5
"""Seconds for which a program may wait for a processor within WINDOW. Others miss a node that was
silent for less than four seconds only when frames of it get lost besides."""
LOOK = 1.0


class Starvation:
    """Tells by what programs have waited so far whether one of them had too little."""

    def __init__(self) -> None:
        self.found = ""
        """Who waited too long last; empty when nobody did."""
        self._looks: deque[tuple[float, Mapping[str, float]]] = deque()

    def look(self, now: float, waited: Mapping[str, float]) -> None:
        """Take the seconds for which each program has waited since it began."""
        while len(self._looks) > 1 and self._looks[1][0] <= now - WINDOW:
            self._looks.popleft()
        self._looks.append((now, waited))
        for name, seconds in waited.items():
            # What is looked at late was late itself: it waits as well, in a window that is longer.
            since = [(at, past[name]) for at, past in self._looks if name in past]
            at, before = since[0]
            if seconds - before > TOO_LONG:
                self.found = f"{name} waited {seconds - before:.1f} s of {now - at:.1f} s"


def waited(pid: int) -> float:
    """Return the seconds for which the threads of a process have waited for a processor."""
    return sum(waits(pid).values())


@contextlib.asynccontextmanager
async def watched(lab: Lab) -> AsyncIterator[Starvation]:
    """Look at the programs of a lab, for as long as the context lasts."""
    starvation = Starvation()

    async def look() -> None:
        while True:
            found = {name: waited(pid) for name, pid in lab.programs().items()}
            starvation.look(time.monotonic(), found)
            await asyncio.sleep(LOOK)

    looking = asyncio.create_task(look())
    try:
        yield starvation
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
