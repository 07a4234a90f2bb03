# SPDX-License-Identifier: Apache-2.0
"""How often saturated stations send and collide, by G. Bianchi, JSAC 18 (2000) 535."""

from __future__ import annotations


def in_a_slot(stations: int, window: int, stages: int) -> tuple[float, float]:
    """Return the chances that some station sends in a slot, and that exactly one does.

    Equations 7 and 9, solved by halving: the chance of a collision at which both agree.

    :param window: the smallest window.
    :param stages: how many times it doubles.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        p = (low + high) / 2
        doubled = sum((2 * p) ** i for i in range(stages))
        tau = 2 / (1 + window + p * window * doubled)
        if 1 - (1 - tau) ** (stations - 1) > p:
            low = p
        else:
            high = p
    return 1 - (1 - tau) ** stations, stations * tau * (1 - tau) ** (stations - 1)
