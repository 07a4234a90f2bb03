# SPDX-License-Identifier: Apache-2.0
"""When the next beacon is due."""

from __future__ import annotations

from collections.abc import Callable

#: Nodes up to which beacons come as often as configured.
CALM = 50


def stretch(nodes: int) -> float:
    """Return by how much the pauses between beacons, and what follows from them, are longer in a
    mesh of so many nodes.

    Every node hands on every beacon, so the beacons on the air grow with the square of the nodes;
    with this, from :data:`CALM` nodes on, with their number.
    """
    return max(1.0, nodes / CALM)


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
