# SPDX-License-Identifier: Apache-2.0
"""Virtual time: the event loop of ``meshlab.scenario.clock`` for tests, whose clock jumps.

A test asks for it by ``pytest.mark.virtual_time``; conftest.py lets ``time.monotonic`` and what the
product's modules imported of it tell the same time.
"""

from __future__ import annotations

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
