# SPDX-License-Identifier: Apache-2.0
"""Paces: a token bucket, growing pauses, jitter, rare reports."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Hashable


async def wait(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait for an event, at most for ``seconds``; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


class Seldom:
    """Limits reports: each key once in ``interval`` seconds, all together ``most`` times."""

    __slots__ = ("_interval", "_most", "_omitted", "_told")

    def __init__(self, interval: float, most: int) -> None:
        self._interval = interval
        self._most = most
        self._told: dict[Hashable, float] = {}
        self._omitted = 0

    def take(self, key: Hashable, now: float) -> int | None:
        """Ask whether to report ``key`` at the time ``now``.

        :returns: how many were omitted since the last report; None to omit this one as well.
        """
        for known, when in list(self._told.items()):  # the oldest first
            if now - when < self._interval:
                break
            del self._told[known]
        if key in self._told or len(self._told) >= self._most:
            self._omitted += 1
            return None
        self._told[key] = now
        omitted, self._omitted = self._omitted, 0
        return omitted


class Bucket:
    """A token bucket: ``rate`` tokens per second on average, up to ``burst`` at once."""

    __slots__ = ("burst", "rate", "then", "tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        self.then = 0.0

    def ready(self, now: float) -> bool:
        """Whether there is a token at the time ``now``, in seconds."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.then) * self.rate)
        self.then = now
        return self.tokens >= 1.0

    def take(self, now: float) -> bool:
        """Take one token at the time ``now``; False when there is none."""
        if not self.ready(now):
            return False
        self.tokens -= 1.0
        return True

    def give(self) -> None:
        """Put one token in, besides those that come with time."""
        self.tokens = min(self.burst, self.tokens + 1.0)


def uniform(low: float, high: float) -> float:
    """Return a random number for jitter. It is the kernel's, as ``import random`` costs more."""
    return low + (high - low) * (int.from_bytes(os.urandom(4), "little") / 2**32)


class Backoff:
    """Growing pauses between attempts.

    :param pauses: seconds to wait after the first failure in a row, the second ...; the last one
        repeats.
    :param settled: an attempt that lasted this many seconds resets the count of failures.
    :ivar failures: how many attempts have failed in a row.
    """

    __slots__ = ("failures", "pauses", "settled")

    def __init__(self, *pauses: float, settled: float = float("inf")) -> None:
        self.pauses = pauses
        self.settled = settled
        self.failures = 0

    def failed(self, lasted: float = 0.0) -> float:
        """Note a failure, and return the pause.

        :param lasted: seconds for which the attempt was good before it failed.
        """
        if lasted >= self.settled:
            self.failures = 0
        self.failures += 1
        return self.pause

    @property
    def pause(self) -> float:
        """The pause after the last failure, 0 after none."""
        return self.pauses[min(self.failures, len(self.pauses)) - 1] if self.failures else 0.0

    @property
    def exhausted(self) -> bool:
        """Whether the longest pause is reached."""
        return self.failures >= len(self.pauses)

    def reset(self) -> None:
        """Start again with the shortest pause: an attempt succeeded, or is likely to succeed."""
        self.failures = 0
