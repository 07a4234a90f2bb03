# SPDX-License-Identifier: Apache-2.0
"""Runs the engine in the event loop: when its next event is due, and whenever something came in."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from meshlab.medium.engine import Engine

SLACK = 0.001
"""Seconds by which events may happen early: the resolution of the event loop's timer."""


class Sender(Protocol):
    """Has something for a node's kernel."""

    def flush(self) -> None:
        """Send it."""
        ...


class Drive:
    """Lets the engine run, and has sent what it made.

    :ivar engine: The engine.
    :ivar loop: The event loop.
    :ivar clock: The engine's clock. It is the loop's, at which uvloop looks once a round only.
    :ivar dirty: Those that have something to send after the next run.
    :ivar kicked: The engine runs before the loop sleeps.
    :ivar late: The longest delay of an event since somebody last set this to 0, in seconds.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.clock = time.monotonic
        self.dirty: list[Sender] = []
        self.kicked = False
        self.late = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def stop(self) -> None:
        """Let nothing happen any more by time alone."""
        if self._timer is not None:
            self._timer.cancel()

    def kick(self) -> None:
        """Let the engine run before the loop sleeps; many causes, one run."""
        if not self.kicked:
            self.kicked = True
            self.loop.call_soon(self._run)

    def lag(self, late: float) -> None:
        """Count something that happened late.

        :param late: By how many seconds.
        """
        self.engine.stats.lag.add(late)
        self.late = max(self.late, late)

    def _run(self) -> None:
        engine = self.engine
        now = self.clock()
        due = engine.next_event()
        if due is not None and due <= now + SLACK:
            late = now - due
            if late > 0.0:
                self.lag(late)
            engine.advance(now + SLACK)
            due = engine.next_event()
        dirty, self.dirty = self.dirty, []
        for sender in dirty:
            sender.flush()
        self.kicked = False
        if due is not None and (self._timer is None or due < self._timer_at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due
            self._timer = self.loop.call_at(due - SLACK / 2, self._timed)

    def _timed(self) -> None:
        self._timer = None
        if not self.kicked:
            self.kicked = True
            self._run()
