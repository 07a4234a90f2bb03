# SPDX-License-Identifier: Apache-2.0
"""How likely a frame is lost, from its signal-to-noise ratio, rate and length.

OFDM, HT and VHT: bit error rate of Gray-coded PSK and square QAM with coherent detection in white
Gaussian noise (Proakis, Digital Communications, chapter 4), then the union bound for the
convolutional code of generators 133 and 171 (octal; IEEE Std 802.11-2020, 17.3.5.6) and its
punctured versions with hard decisions (``soft`` has the other kind). DSSS: differential PSK; CCK:
union bound over the code words. Errors are independent, so a frame of L bytes survives with
(1 - Pb) ^ 8L.

The result is tabled by SNR once for each rate; looking a frame up costs one table access and one
exponential.
"""

from __future__ import annotations

import cmath
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable
from math import expm1
from typing import Protocol

from meshlab.wire.ieee80211 import LEGACY_2GHZ, Phy, Rate

MIN_SNR_DB = -20.0
MAX_SNR_DB = 60.0
STEPS_PER_DB = 10
"""Resolution of the tables: 0.1 dB."""

CODE_SPECTRUM: dict[tuple[int, int], tuple[int, int, tuple[int, ...]]] = {
    (1, 2): (10, 2, (36, 211, 1404, 11633, 77433, 502690, 3322763, 21292910)),
    (2, 3): (6, 1, (3, 70, 285, 1276, 6160, 27128, 117019, 498860)),
    (3, 4): (5, 1, (42, 201, 1492, 10469, 62935, 379644, 2253373, 13073811)),
    (5, 6): (4, 1, (92, 528, 8694, 79453, 792114, 7375573, 67884974, 610875423)),
}
"""By coding rate: free distance, step from one distance to the next, and the summed information
weight of all error paths at each distance, over one puncturing period (Haccoun and Begin, IEEE
Trans. Commun. 37 (1989) 1113; Frenger et al., IEEE Commun. Lett. 3 (1999) 317). A test counts the
paths."""


class Curve(Protocol):
    """Frame error rate of one rate."""

    def loss(self, snr_db: float, length: int) -> float:
        """Return the probability that a frame of ``length`` bytes with FCS is lost."""
        ...

    def header(self, snr_db: float) -> float:
        """Return the log of the probability that the PHY header survives."""
        ...

    def byte(self, snr_db: float) -> float:
        """Return the log of the probability that one byte of the payload survives."""
        ...


Decoder = Callable[[tuple[int, int], int, float], float]
"""Gives the chance that a data bit is lost, at a coding rate, coded bits per symbol and Es/N0."""


class ErrorModel(Protocol):
    """Makes the curve of a rate."""

    def curve(self, rate: Rate) -> Curve: ...


def q(x: float) -> float:
    """Return the tail of the normal distribution."""
    return 0.5 * math.erfc(x / math.sqrt(2))


def bit_error_rate(bits: int, snr: float) -> float:
    """Return the uncoded bit error rate of 2**bits-QAM (1: BPSK) at Es/N0 = ``snr`` (a ratio)."""
    if bits == 1:
        return q(math.sqrt(2 * snr))
    m = 1 << bits
    # Square QAM, Gray-coded: nearest neighbours only (Proakis, 4.3-30).
    return 4 / bits * (1 - 1 / math.sqrt(m)) * q(math.sqrt(3 * snr / (m - 1)))


def decoded_error_rate(coding: tuple[int, int], ber: float) -> float:
    """Return the bit error rate after the Viterbi decoder, at most 0.5.

    The union bound over all error paths, each with the Bhattacharyya bound for hard decisions.
    """
    distance, step, weights = CODE_SPECTRUM[coding]
    d = math.sqrt(4 * ber * (1 - ber))
    total = sum(w * d ** (distance + step * i) for i, w in enumerate(weights))
    return min(0.5, total / (2 * coding[0]))


@functools.cache
def cck_distances(kbps: int) -> tuple[tuple[float, int], ...]:
    """Return the squared distances (in chip energies) between CCK code words and their number.

    Code words and phases of 16.3.6.6; the code is linear in the phases, so that the distances from
    one word are those from any other.
    """
    quadrature = [cmath.exp(0.5j * math.pi * k) for k in range(4)]
    words = []
    if kbps == 11000:
        phases = list(itertools.product(range(4), repeat=4))
    else:  # 5.5 Mbit/s: phase 2 is pi/2 or 3 pi/2, phase 3 is 0, phase 4 is 0 or pi (16.3.6.6.3)
        phases = [(p1, p2, 0, p4) for p1 in range(4) for p2 in (1, 3) for p4 in (0, 2)]
    for p1, p2, p3, p4 in phases:
        exponents = (
            p1 + p2 + p3 + p4,
            p1 + p3 + p4,
            p1 + p2 + p4,
            p1 + p4 + 2,
            p1 + p2 + p3,
            p1 + p3,
            p1 + p2 + 2,
            p1,
        )
        words.append([quadrature[e % 4] for e in exponents])
    first = words[0]
    found = Counter(
        round(sum(abs(a - b) ** 2 for a, b in zip(first, word, strict=True)), 6)
        for word in words[1:]
    )
    return tuple(sorted(found.items()))


CHIPS_PER_SECOND = 11e6
DSSS_NOISE_BANDWIDTH = 20e6
"""The bandwidth in Hz to which signal-to-noise ratios of the medium refer."""


def _dsss_log_survival(kbps: int, snr: float) -> float:
    """Return the log of the probability that one bit survives at 1, 2, 5.5 or 11 Mbit/s."""
    per_chip = snr * DSSS_NOISE_BANDWIDTH / CHIPS_PER_SECOND  # Ec/N0
    if kbps == 1000:  # DBPSK on Barker's 11 chips (15.3.4.4): Eb = 11 Ec
        return math.log1p(-0.5 * math.exp(-11 * per_chip))
    if kbps == 2000:  # DQPSK: Eb = 5.5 Ec; BER approximation for large Eb/N0 (Proakis, 4.5-3)
        error = q(2 * math.sqrt(5.5 * per_chip * 2) * math.sin(math.pi / (4 * math.sqrt(2))))
        return math.log1p(-min(0.5, error))
    bits = 8 if kbps == 11000 else 4
    symbol = sum(n * q(math.sqrt(d2 * per_chip / 2)) for d2, n in cck_distances(kbps))
    return math.log1p(-min(1 - 2.0**-bits, symbol)) / bits


def hard(coding: tuple[int, int], bits: int, snr: float) -> float:
    """Return the bit error rate of a receiver with hard decisions."""
    return decoded_error_rate(coding, bit_error_rate(bits, snr))


def _log_survival(rate: Rate, decoder: Decoder) -> Callable[[float], float]:
    """Return a function of Es/N0 that gives the log of one data bit's chance to survive."""
    if rate.phy in (Phy.DSSS, Phy.CCK):
        return functools.partial(_dsss_log_survival, rate.kbps)
    # A wider channel takes in more noise; streams share the power. A short guard interval wastes
    # less of it, which is below the resolution of everything else here.
    scale = 20 / rate.width / rate.streams

    def ofdm(snr: float) -> float:
        return math.log1p(-decoder(rate.coding, rate.bits_per_symbol, snr * scale))

    return ofdm


_STEPS = int((MAX_SNR_DB - MIN_SNR_DB) * STEPS_PER_DB) + 1


def _table(survival: Callable[[float], float]) -> tuple[float, ...]:
    return tuple(survival(10 ** ((MIN_SNR_DB + i / STEPS_PER_DB) / 10)) for i in range(_STEPS))


@functools.cache
def _header_table(phy: Phy, decoder: Decoder) -> tuple[float, ...]:
    """Return the log of the chance that the PHY header survives, by SNR step.

    DSSS, CCK: 48 bits at 1 Mbit/s (16.2.2.2, long preamble). Otherwise SIGNAL, 24 bits at 6 Mbit/s,
    (17.3.4), for HT and VHT followed by 48 bits of HT-SIG or VHT-SIG-A likewise.
    """
    if phy in (Phy.DSSS, Phy.CCK):
        rate, bits = LEGACY_2GHZ[0], 48
    else:
        rate, bits = LEGACY_2GHZ[4], 24 if phy is Phy.OFDM else 72
    survival = _log_survival(rate, decoder)
    return _table(lambda snr: bits * survival(snr))


class _TabledCurve:
    __slots__ = ("_byte", "_header")

    def __init__(self, rate: Rate, decoder: Decoder) -> None:
        self._byte = tuple(8 * v for v in _table(_log_survival(rate, decoder)))
        self._header = _header_table(rate.phy, decoder)

    def loss(self, snr_db: float, length: int) -> float:
        step = int((snr_db - MIN_SNR_DB) * STEPS_PER_DB)
        if step < 0:
            return 1.0
        if step >= _STEPS:
            step = -1
        return -expm1(length * self._byte[step] + self._header[step])

    def header(self, snr_db: float) -> float:
        return self._header[_step(snr_db)]

    def byte(self, snr_db: float) -> float:
        return self._byte[_step(snr_db)]


def _step(snr_db: float) -> int:
    return int((min(max(snr_db, MIN_SNR_DB), MAX_SNR_DB) - MIN_SNR_DB) * STEPS_PER_DB)


class Textbook:
    """The error model of this module."""

    def curve(self, rate: Rate) -> Curve:
        """Return the curve of ``rate``, made once."""
        return tabled(rate, hard)


@functools.lru_cache(maxsize=1024)
def tabled(rate: Rate, decoder: Decoder) -> Curve:
    """Return the curve of a rate with a decoder, made once."""
    return _TabledCurve(rate, decoder)
