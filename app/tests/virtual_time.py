# SPDX-License-Identifier: Apache-2.0
"""An event loop whose clock moves only when there is nothing left to do.

When every task waits for a timer, the clock jumps to the next one: an hour takes no time, and no
machine is too slow for a deadline. A test asks for it by ``pytest.mark.virtual_time``; conftest.py
lets ``time.monotonic`` and what the product's modules imported of it tell the same time.

Only for code that waits for timers, for other tasks and for threads that asyncio started. What
comes from another process or from the kernel takes real time, of which this clock knows nothing.
"""

from __future__ import annotations

import asyncio
import selectors
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OURS = Path(__file__).resolve().parents[1]
_real = time.monotonic
_newest: list[VirtualTimeLoop] = []

THREAD_LOOK = 0.001
"""Real seconds between two looks at whether a thread has ended."""


class _Selector(selectors.DefaultSelector):
    """Waits for what is ready now; otherwise lets the loop's clock jump."""

    loop: VirtualTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if self.loop.threads or timeout is None:
            # Somebody else has to act first, which takes real time and none of ours.
            return list(super().select(THREAD_LOOK))
        self.loop.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, in seconds from 1000.0."""

    def __init__(self) -> None:
        selector = _Selector()
        selector.loop = self
        self.now = 1000.0
        self.threads = 0
        super().__init__(selector)
        _newest[:] = [self]
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


def _now() -> float:
    return _newest[0].now if _newest else _real()


@contextmanager
def one_clock() -> Iterator[None]:
    """Let ``time.monotonic`` be the clock of the loop, also where a module imported it by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", _now)
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None) or ""
            if file.startswith(str(OURS)) and file != __file__:
                for attribute, value in list(vars(module).items()):
                    if value is _real:
                        patch.setattr(module, attribute, _now)
        yield
    _newest.clear()
