# SPDX-License-Identifier: Apache-2.0
"""Virtual time: the event loop of ``meshlab.scenario.clock`` for tests, whose clock jumps.

A test asks for it by ``pytest.mark.virtual_time``; conftest.py lets ``time.monotonic`` and what the
product's modules imported of it tell the same time.

Where others take part, whose clocks do not jump, :class:`Ahead` moves the clock of a running loop.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshlab.scenario.clock import JumpingLoop

OURS = Path(__file__).resolve().parents[1]
_real = time.monotonic
_newest: list[JumpingLoop] = []


class VirtualTimeLoop(JumpingLoop):
    """An event loop with a clock of its own, in seconds from 1000.0, which the tests tell."""

    def __init__(self) -> None:
        super().__init__(1000.0)
        _newest[:] = [self]


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


class Ahead:
    """Lets the running event loop's clock be ahead of the real one, by as much as a test says."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        real, self._by = loop.time, 0.0
        loop.time = lambda: real() + self._by  # type: ignore[method-assign]

    async def pass_by(self, seconds: float) -> None:
        """Let time pass at once, and whatever was due in it happen."""
        self._by += seconds
        for _ in range(2):  # timers come behind what is ready already
            await asyncio.sleep(0)
