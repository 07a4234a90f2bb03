# SPDX-License-Identifier: Apache-2.0
"""How far work is that takes long: counted, measured, and told to people and programs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from thicket.base.units import Meter, size_text, time_text

Tell = Callable[[int, int], object]
"""Called with the bytes of work that are done, and those of all."""


class Tally:
    """How much of the work is done.

    :param total: bytes of all.
    :param tell: called for every percent.
    :ivar done: bytes that are done.
    """

    def __init__(self, total: int, tell: Tell) -> None:
        self.total = total
        self._tell = tell
        self.done = 0
        self._told = -1

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        self.done += count
        if (percent := 100 * self.done // self.total) > self._told:
            self._told = percent
            self._tell(self.done, self.total)


class Headway(NamedTuple):
    """How an installation goes, for the status document.

    :ivar state: ``none``, ``checking``, ``writing``, ``installed`` or ``failed``.
    :ivar percent: of the checking, and then of the writing.
    :ivar version: of what is installed; empty while it is unread.
    :ivar words: what is being done, or why it failed.
    :ivar done: bytes that are done of ``size``; None where they are not known, as are the others.
    :ivar rate: bytes a second.
    :ivar left: seconds.
    """

    state: str = "none"
    percent: int = 0
    version: str = ""
    words: str = ""
    done: int | None = None
    size: int | None = None
    rate: int | None = None
    left: int | None = None


class Gauge:
    """Measures one piece of work in bytes that take about the same time each."""

    def __init__(self) -> None:
        self._meter = Meter()

    def measured(self, headway: Headway, done: int, size: int) -> Headway:
        """Return how far it is when so much of it is done; ``headway`` says what it is."""
        now, done = time.monotonic(), min(done, size)  # a file may grow while it is read
        self._meter.add(now, done)
        rate, left = self._meter.rate(now), self._meter.left(now, size)
        return headway._replace(
            percent=100 * done // size,
            done=done,
            size=size,
            rate=None if rate is None else int(rate),
            left=None if left is None else int(left),
        )


def measure_text(done: int | None, size: int | None, rate: int | None, left: int | None) -> str:
    """Return sizes, rate and time left in words, to stand behind what is done: ``: 10.0 MiB of 40.0
    MiB, 1.0 MiB/s, 30 s left``; empty where they are not known."""
    words = ""
    if size is not None and done is not None:
        words = f": {size_text(done)} of {size_text(size)}"
        if rate is not None:
            words += f", {size_text(rate)}/s"
    if left is not None:
        words += f", {time_text(left)} left"
    return words
