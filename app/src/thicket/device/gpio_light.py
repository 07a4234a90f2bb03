# SPDX-License-Identifier: Apache-2.0
"""A light at a GPIO, of which the kernel knows nothing: the daemon switches it."""

from __future__ import annotations

import asyncio
from logging import getLogger

from thicket.base.paths import Paths
from thicket.device.gpio import GpioError, Line
from thicket.device.led import PATTERNS, Pattern

log = getLogger(__name__)


class GpioLight:
    """A light at a GPIO, switched by the event loop."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._timer: asyncio.TimerHandle | None = None

    def show(self, name: str) -> None:
        """See :class:`thicket.device.led.Light`."""
        if self._timer is not None:
            self._timer.cancel()
        self._step(PATTERNS[name], 0)

    def close(self, *, dark: bool = False) -> None:
        """See :class:`thicket.device.led.Light`; without a program it is dark."""
        if self._timer is not None:
            self._timer.cancel()
        self._line.close()

    def _step(self, pattern: Pattern, at: int) -> None:
        step = pattern[at]
        try:
            self._line.set(step.lit)
        except GpioError as error:
            log.warning("the light shows nothing more: %s", error)
            return
        self._timer = asyncio.get_running_loop().call_later(
            step.ms / 1000, self._step, pattern, (at + 1) % len(pattern)
        )


def gpio_light(paths: Paths, number: int, *, low: bool) -> GpioLight:
    """Return a light at a GPIO.

    :raises GpioError: it cannot be had.
    """
    return GpioLight(Line(paths, number, low=low, lit=False))
