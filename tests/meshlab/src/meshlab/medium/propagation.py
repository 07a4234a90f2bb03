# SPDX-License-Identifier: Apache-2.0
"""Who hears whom and how well: from explicit links or from positions."""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass
from typing import Protocol

SPEED_OF_LIGHT = 299_792_458.0

NOISE_FLOOR_DBM = -91.0
"""Noise a receiver sees in 20 MHz: thermal noise (-101 dBm at 290 K) and a noise figure of 10 dB,
which is what the sensitivities of table 17-18 (IEEE Std 802.11-2020, 17.3.10.2) assume."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a radio is and how loud it is."""

    name: str
    """Of its node: shadowing belongs to a pair of places."""
    x: float
    y: float
    """Metres."""
    tx_power_dbm: float


class Propagation(Protocol):
    """How much of a signal arrives."""

    def path_loss_db(self, a: Place, b: Place, frequency: int) -> float:
        """Return the loss between two places at ``frequency`` (MHz), the same both ways."""
        ...


def free_space_loss_db(distance: float, frequency: int) -> float:
    """Return the loss (Friis) over ``distance`` in metres at ``frequency`` in MHz."""
    return 20 * math.log10(4 * math.pi * distance * frequency * 1e6 / SPEED_OF_LIGHT)


@dataclass(frozen=True, slots=True)
class LogDistance:
    """Log-distance path loss with log-normal shadowing (Rappaport, Wireless Communications, 4.9).

    Free space up to the reference distance, then ``10 x exponent`` dB per decade. The exponent is 2
    in free space, 2.7 to 3.5 in a town, 4 to 6 inside of buildings.
    """

    exponent: float = 3.0
    reference_m: float = 1.0
    shadowing_db: float = 0.0
    """Standard deviation of the shadowing, one draw for each pair of places."""
    seed: str = ""

    def path_loss_db(self, a: Place, b: Place, frequency: int) -> float:
        distance = max(math.hypot(a.x - b.x, a.y - b.y), self.reference_m)
        loss = free_space_loss_db(self.reference_m, frequency)
        loss += 10 * self.exponent * math.log10(distance / self.reference_m)
        if self.shadowing_db:
            first, second = sorted((a.name, b.name))
            loss += self.shadowing_db * draw(self.seed, "shadowing", first, second).gauss()
        return loss


@dataclass(frozen=True, slots=True)
class FreeSpace:
    """Free-space path loss (Friis): nothing between the nodes, not even the ground."""

    def path_loss_db(self, a: Place, b: Place, frequency: int) -> float:
        distance = math.hypot(a.x - b.x, a.y - b.y)
        return free_space_loss_db(max(distance, 1.0), frequency)


def draw(seed: str, *what: str) -> random.Random:
    """Return a random generator of its own for ``what``, the same for the same seed everywhere."""
    text = "\0".join((seed, *what)).encode()
    return random.Random(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))
