# SPDX-License-Identifier: Apache-2.0
"""Paces: a token bucket, growing pauses, jitter."""

from __future__ import annotations

import os


class Bucket:
    """A token bucket: ``rate`` per second on average, up to ``burst`` at once."""

    __slots__ = ("burst", "rate", "then", "tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        self.then = 0.0

    def ready(self, now: float) -> bool:
        """Whether there is a token at the time ``now`` (seconds)."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.then) * self.rate)
        self.then = now
        return self.tokens >= 1.0

    def take(self, now: float) -> bool:
        """Take one token at the time ``now``; False when there is none."""
        if not self.ready(now):
            return False
        self.tokens -= 1.0
        return True


def uniform(low: float, high: float) -> float:
    """A random number for jitter; the kernel's, because ``import random`` costs more than this."""
    return low + (high - low) * (int.from_bytes(os.urandom(4), "little") / 2**32)


class Backoff:
    """Growing pauses between attempts.

    :param pauses: seconds to wait after the first failure in a row, after the second ...; the last
        one repeats.
    :param settled: an attempt that was good for so many seconds has got over earlier failures.
    :ivar failures: how many attempts have failed in a row.
    """

    __slots__ = ("failures", "pauses", "settled")

    def __init__(self, *pauses: float, settled: float = float("inf")) -> None:
        self.pauses = pauses
        self.settled = settled
        self.failures = 0

    def failed(self, lasted: float = 0.0) -> float:
        """Return the pause after an attempt that was good for ``lasted`` seconds, then failed."""
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
        """Whether the pauses grow no more."""
        return self.failures >= len(self.pauses)

    def reset(self) -> None:
        """Begin anew: an attempt succeeded, or there is reason to hope."""
        self.failures = 0
