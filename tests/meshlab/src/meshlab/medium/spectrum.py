# SPDX-License-Identifier: Apache-2.0
"""How much of a transmission falls into another channel.

A transmitter radiates as much beside its channel as the standard's spectral mask allows: 17.3.9.3
(OFDM), 19.3.18.1 (HT), 21.3.17.1 (VHT), 16.3.7.4 (DSSS and CCK) of IEEE Std 802.11-2020. A receiver
takes in its own channel and nothing else. So the part of the power that disturbs is the integral of
the mask over the receiver's channel.
"""

from __future__ import annotations

import functools
import math
from enum import Enum

FARTHEST = 60
"""MHz between centres beyond which a transmission disturbs nobody."""
_STEP = 0.05

Mask = tuple[tuple[float, float], ...]
"""Offsets from the centre in MHz, rising, with the density there in dB; linear in between."""


class Shape(Enum):
    """Kinds of spectra."""

    DSSS = "dsss"
    OFDM = "ofdm"
    HT = "ht"


def mask(shape: Shape, width: int) -> Mask:
    """Return the mask of a channel of ``width`` MHz."""
    if shape is Shape.DSSS:
        # The main lobe of 11 Mchip/s to its zeros, then what is allowed beside it.
        return (0, 0.0), (5.5, -3.9), (8, -9.6), (11, -30.0), (22, -30.0), (22.01, -50.0)
    half = width / 2
    far = -40.0 if shape is Shape.OFDM else -45.0
    return (0, 0.0), (half - 1, 0.0), (half + 1, -20.0), (width, -28.0), (1.5 * width, far)


def _density(points: Mask, offset: float) -> float:
    previous, level = points[0]
    for at, db in points:
        if offset <= at:
            share = (offset - previous) / (at - previous) if at > previous else 0.0
            return 10 ** ((level + share * (db - level)) / 10)
        previous, level = at, db
    return 10 ** (level / 10)


def _power(points: Mask, begin: float, end: float) -> float:
    steps = max(1, round((end - begin) / _STEP))
    width = (end - begin) / steps
    return sum(_density(points, abs(begin + (i + 0.5) * width)) for i in range(steps)) * width


@functools.cache
def coupling(shape: Shape, width: int, offset: float, into: int) -> float:
    """Return the part of a transmission's power that disturbs a channel.

    The power of noise refers to 20 MHz: what is spread over a wider channel counts for less in each
    of its subcarriers.

    :param offset: Of the channel's centre from that of the transmission, in MHz.
    :param into: Width of the channel in MHz.
    """
    points = mask(shape, width)
    whole = _power(points, -2.5 * width, 2.5 * width)
    inside = _power(points, offset - into / 2, offset + into / 2)
    return inside / whole * 20 / into


def centre(primary: int, width: int, secondary: int) -> float:
    """Return the centre in MHz of what is sent with a bandwidth.

    Above 5 GHz channels of 40 MHz and more are fixed (annex E). On 2.4 GHz the secondary channel is
    where the HT Operation element of the beacons says.

    :param primary: Of the primary channel of 20 MHz.
    :param secondary: 1: above it, -1: below it, 0: unknown; it is taken to be above.
    """
    if width <= 20:
        return primary
    if primary < 3000:
        return primary + 10 * (secondary or 1)
    first = 5735 if primary >= 5735 else 5490 if primary >= 5490 else 5170
    return first + width * math.floor((primary - first) / width) + width / 2


_HT_OPERATION = 61
_FIXED = 36
"""Bytes of a beacon before its elements (9.3.3.2): header, timestamp, interval, capabilities."""


def secondary_channel(beacon: bytes) -> int | None:
    """Return where a beacon says that the secondary channel is: 1 above, -1 below, 0 nowhere.

    None without an HT Operation element (9.4.2.56).
    """
    at = _FIXED
    while at + 2 <= len(beacon):
        kind, length = beacon[at], beacon[at + 1]
        if kind == _HT_OPERATION and length >= 2 and at + 4 <= len(beacon):
            return {1: 1, 3: -1}.get(beacon[at + 3] & 3, 0)
        at += 2 + length
    return None
