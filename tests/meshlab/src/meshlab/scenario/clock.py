# SPDX-License-Identifier: Apache-2.0
"""An event loop whose clock moves only when there is nothing left to do.

When every task waits for a timer, the clock jumps to the next one: an hour takes no time, and no
machine is too slow for a deadline. Only for code that waits for timers, for other tasks and for
threads that asyncio started: what comes from another process or from the kernel takes real time, of
which this clock knows nothing.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

THREAD_LOOK = 0.001
"""Real seconds between two looks at whether a thread has ended."""


class _Selector(selectors.DefaultSelector):
    """Waits for what is ready now; otherwise lets the loop's clock jump."""

    loop: JumpingLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.loop.threads or timeout is None:
            # Somebody else has to act first, which takes real time and none of ours.
            return list(super().select(THREAD_LOOK))
        self.loop.now += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own.

    :param begin: What it shows at first, in seconds.
    """

    def __init__(self, begin: float = 0.0) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = begin
        self.threads = 0
        super().__init__(selector)
        # Timers within the clock's resolution are due together; asyncio's own is the system's.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self.threads += 1
        future.add_done_callback(self._thread_ended)
        return future

    def _thread_ended(self, _: object) -> None:
        self.threads -= 1
