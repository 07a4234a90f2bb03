# SPDX-License-Identifier: Apache-2.0
"""Supervision: a coroutine that should run for ever is restarted when it ends."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from logging import getLogger

from thicket.base.errors import ThicketError
from thicket.base.pace import wait
from thicket.base.problems import Problems

log = getLogger(__name__)

#: A part that fails FAILURES times in FAILURE_WINDOW seconds takes the process down with it.
FAILURES = 6
FAILURE_WINDOW = 300.0
#: Pauses before a part is restarted, in seconds; the last one repeats.
PAUSES = (0.5, 2.0, 5.0, 15.0, 30.0)
#: Seconds that a part gets for a clean end.
GRACE = 3.0


class FailingError(ThicketError):
    """A part failed too often."""


class Supervisor:
    """Runs a coroutine again and again. The subclass decides what its end means.

    :ivar task: ends when the supervisor is stopped, or with what :meth:`ended` raises.
    """

    #: A run of this many seconds makes up for earlier failures.
    SETTLED = 20.0

    def __init__(self, name: str) -> None:
        self.name = name
        self._inner: asyncio.Task[None] | None = None
        self._again = asyncio.Event()
        self.task = asyncio.create_task(self._supervise(), name=name)

    async def run(self) -> None:
        """The coroutine that is supervised."""
        raise NotImplementedError

    def settled(self) -> None:
        """Called when it has run for SETTLED seconds."""

    def ended(self, error: BaseException | None, lasted: float) -> float | None:
        """Called when it has ended, by itself or with an exception, after ``lasted`` seconds.

        :returns: seconds until it is restarted; None waits for :meth:`restart`.
        """
        raise NotImplementedError

    def restart(self) -> None:
        """Start it again at once, in place of what runs or of the pause."""
        self._again.set()
        if self._inner is not None:
            self._inner.cancel()

    async def stop(self) -> None:
        """End it for good; it has GRACE seconds to finish."""
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=GRACE + 0.5)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._again.clear()
            began = time.monotonic()
            inner = self._inner = loop.create_task(self.run(), name=self.name)
            settled = loop.call_later(self.SETTLED, self.settled)
            try:
                await asyncio.wait({inner})
            except asyncio.CancelledError:
                inner.cancel()
                await asyncio.wait({inner}, timeout=GRACE)
                if inner.done() and not inner.cancelled() and inner.exception() is not None:
                    log.error("ending %s: %s", self.name, inner.exception())
                raise
            finally:
                settled.cancel()
            if self._again.is_set() and inner.cancelled():
                continue
            error = None if inner.cancelled() else inner.exception()
            pause = self.ended(error, time.monotonic() - began)
            await wait(self._again, pause)


class Part(Supervisor):
    """One part of the daemon. It ends the process when it keeps failing; init starts a new one."""

    def __init__(self, name: str, run: Callable[[], Awaitable[None]], problems: Problems) -> None:
        self._run = run
        self._problems = problems
        self._failures: deque[float] = deque(maxlen=FAILURES)
        super().__init__(name)

    async def run(self) -> None:
        await self._run()

    def settled(self) -> None:
        self._problems.clear(self.name, "part-failed")

    def ended(self, error: BaseException | None, lasted: float) -> float:
        reason = "it ended by itself" if error is None else f"{type(error).__name__}: {error}"
        log.error("the part %s failed", self.name, exc_info=error)
        now = time.monotonic()
        self._failures.append(now)
        recent = sum(1 for then in self._failures if now - then < FAILURE_WINDOW)
        if recent >= FAILURES:
            raise FailingError(f"the part {self.name} failed {recent} times, at last: {reason}")
        message = f"failed ({reason}) and is started again, {FAILURES - recent} tries are left"
        self._problems.report(self.name, "part-failed", message)
        return PAUSES[min(recent, len(PAUSES)) - 1]
