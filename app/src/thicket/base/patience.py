# SPDX-License-Identifier: Apache-2.0
"""Patience with others that our own lateness does not use up.

A node whose processors are busy, or whose host gives it none, is late at everything, also at
reading an answer that came long ago. Who waits for a process, for the chip or for a peer must not
take that for a fault of the other: to begin anew costs the node what it has too little of. So
seconds in which we did not get to run do not count, up to a bound, behind which the other is given
up whatever the reason.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable
from types import TracebackType

#: Seconds between two looks of the event loop. However late it is, one of them counts.
STEP = 0.5
#: How many times the patience may take, if we are late.
BOUND = 8.0
#: Seconds that are nothing: a sum of steps is never quite what they should be together.
_RESOLUTION = 0.001


class Countdown:
    """Calls back when the event loop has run for ``seconds``, or after ``bound`` times as many."""

    def __init__(self, seconds: float, callback: Callable[[], None], bound: float = BOUND) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = seconds
        self._end = self._loop.time() + seconds * bound
        self._callback = callback
        self._wait()

    def cancel(self) -> None:
        """Do not call back."""
        self._timer.cancel()

    def _wait(self) -> None:
        self._step = min(STEP, self._left)
        self._timer = self._loop.call_later(self._step, self._look)

    def _look(self) -> None:
        self._left -= self._step
        if self._left < _RESOLUTION:
            self._callback()
            return
        if self._loop.time() >= self._end:
            self._left = 0.0  # what has come meanwhile is taken before the next look
        self._wait()


class Patience:
    """As ``asyncio.timeout(seconds)``, for an ``async with``, but in seconds of the event loop.

    The body is cancelled, and TimeoutError raised, when a :class:`Countdown` ends.
    """

    def __init__(self, seconds: float, bound: float = BOUND) -> None:
        self._seconds = seconds
        self._bound = bound
        self._timeout = asyncio.timeout(None)
        self._countdown: Countdown | None = None

    async def __aenter__(self) -> Patience:
        await self._timeout.__aenter__()
        self._countdown = Countdown(self._seconds, self._over, self._bound)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._countdown is not None:
            self._countdown.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _over(self) -> None:
        self._timeout.reschedule(asyncio.get_running_loop().time())


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event, at most for ``seconds`` of the event loop; return whether it is set."""
    try:
        async with Patience(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class Allowance:
    """The seconds of the event loop that are left for something, for who looks at it in turns."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._then = time.monotonic()
        self._end = self._then + BOUND * seconds

    def look(self) -> float:
        """Return when to look again at the latest, by the clock."""
        self._count()
        return self._then + min(STEP, max(0.0, self._left))

    @property
    def over(self) -> bool:
        """Whether nothing is left."""
        self._count()
        return self._left <= 0

    def _count(self) -> None:
        now = time.monotonic()
        self._left -= min(STEP, now - self._then)
        self._then = now
        if now >= self._end or self._left < _RESOLUTION:
            self._left = 0.0


def run(command: list[str], seconds: float) -> tuple[int, str]:
    """Run a command in this thread; return its status and what it said.

    :param seconds: after which it is killed, as far as we get to run.
    :raises TimeoutError: it was.
    :raises OSError: it cannot be started.
    """
    allowance = Allowance(seconds)
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as child:
        while True:
            try:
                said, _ = child.communicate(timeout=STEP)
            except subprocess.TimeoutExpired:
                if allowance.over:
                    child.kill()
                    raise TimeoutError(f"{command[0]} did not end within {seconds:g} s") from None
            else:
                return child.returncode, said.decode("utf-8", "replace").strip()


class Stopwatch:
    """The seconds that a thread has had, for work that sleeps and asks for the time often.

    What a sleep took longer than it should have does not count, and of the time between two
    readings no more than ``STRIDE``.

    :param clock: the real time in seconds.
    :param sleep: sleeps for seconds.
    :ivar readings: how often it was asked; a thread that hangs asks no more.
    """

    #: Longest time between two readings that a thread needs which gets to run: the kernel gives up
    #: a transfer on a stuck bus after about a second.
    STRIDE = 1.5
    #: Seconds that do not count from a beginning on, together.
    MOST = 30.0

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.readings = 0
        self.clock = clock
        self._sleep = sleep
        self._late = 0.0
        self._last = clock()

    def begin(self) -> None:
        """Begin something new, for which the time is ``clock`` again."""
        self._count(0.0)
        self._late = 0.0

    def __call__(self) -> float:
        """Return the time in seconds: ``clock``, less what did not count."""
        self._count(self.clock() - self._last - self.STRIDE)
        return self._last - self._late

    def sleep(self, seconds: float) -> None:
        """Sleep, and count no more than ``seconds`` for it."""
        self()
        self._sleep(seconds)
        self._count(self.clock() - self._last - seconds)

    def _count(self, late: float) -> None:
        self.readings += 1
        self._late = min(self.MOST, self._late + max(0.0, late))
        self._last = self.clock()
