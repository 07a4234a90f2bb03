# SPDX-License-Identifier: Apache-2.0
"""Guards the event loop against applications that block it, by an alarm that the loop resets."""

from __future__ import annotations

import asyncio
import signal
from logging import getLogger
from typing import TYPE_CHECKING

from thicket.applications import api
from thicket.applications.api import CURRENT, BlockedError
from thicket.applications.running import place_of

if TYPE_CHECKING:
    import types

log = getLogger(__name__)


class LoopGuard:
    """Interrupts an application that blocks the event loop by an exception in its code."""

    def __init__(self) -> None:
        self._strikes = 0
        signal.signal(signal.SIGALRM, self._alarm)
        self._put_off()

    def close(self) -> None:
        """Stop guarding."""
        self._beat.cancel()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def _put_off(self) -> None:
        self._strikes = 0
        signal.setitimer(signal.ITIMER_REAL, api.BLOCKED / 2)
        self._beat = asyncio.get_running_loop().call_later(api.BLOCKED / 4, self._put_off)

    def _alarm(self, number: int, frame: types.FrameType | None) -> None:
        """Handle the alarm, in the middle of the blocking code.

        The first alarm may come because the whole machine stood still; the loop then runs before
        the second one.
        """
        signal.setitimer(signal.ITIMER_REAL, api.BLOCKED / 2)
        self._strikes += 1
        if self._strikes % 2:
            return
        current = CURRENT.get()
        place = place_of(frame)
        if current is None:
            log.warning("the event loop stood still for %g s, at %s", api.BLOCKED, place)
            return
        current.block(place)
        raise BlockedError(place)
