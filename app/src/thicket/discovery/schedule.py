# SPDX-License-Identifier: Apache-2.0
"""When the next beacon is due."""

from __future__ import annotations

from collections.abc import Callable


class Schedule:
    """When the next beacon is due. All times are in seconds of the caller's clock.

    After :meth:`hurry` a beacon is due at once and then every 1 to 2 s for a while; later every
    half to one and a half ``interval``.
    """

    FAST = 4
    #: Peers often come in groups; one beacon serves all that came within this time.
    GATHER = 0.1

    def __init__(self, interval: float, uniform: Callable[[float, float], float]) -> None:
        self.interval = interval
        self.uniform = uniform
        self.fast = self.FAST
        self.due = 0.0

    def hurry(self, now: float, beacons: int = FAST) -> None:
        """Something changed: send soon, and more often for the next ``beacons``."""
        self.fast = max(self.fast, beacons)
        self.due = min(self.due, now + self.uniform(0.0, self.GATHER))

    def sent(self, now: float) -> None:
        """A beacon was sent, or failed: plan the next."""
        if self.fast > 0:
            self.fast -= 1
            self.due = now + self.uniform(1.0, 2.0)
        else:
            self.due = now + self.uniform(0.5 * self.interval, 1.5 * self.interval)
