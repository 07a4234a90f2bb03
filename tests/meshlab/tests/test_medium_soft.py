# SPDX-License-Identifier: Apache-2.0
"""Soft decisions against the code, published link simulations and the hard decisions."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest

from meshlab.medium import soft
from meshlab.medium.config import ConfigError, MediumConfig, parse_config
from meshlab.medium.error import Curve, Textbook
from meshlab.medium.propagation import NOISE_FLOOR_DBM
from meshlab.medium.soft import EVENTS, MODULATIONS, SoftDecision, bhattacharyya, equivalent
from meshlab.medium.virtual import BROADCAST, VirtualAir
from meshlab.wire.hwsim import RateFlag
from meshlab.wire.ieee80211 import LEGACY_2GHZ, LEGACY_5GHZ, Rate, rate

MODEL = SoftDecision()
PUNCTURING = {(1, 2): (3,), (2, 3): (3, 1), (3, 4): (3, 1, 2), (5, 6): (3, 1, 2, 1, 2)}
"""By coding rate: which of the two coder outputs of each step are sent (bit 0: A, bit 1: B;
17.3.5.7, 19.3.11.6)."""
SENSITIVITY = {6: -82, 9: -81, 12: -79, 18: -77, 24: -74, 36: -70, 48: -66, 54: -65}
"""Table 17-18, 20 MHz: dBm at which at most 10 % of 1000-byte frames may be lost."""


def threshold(curve: Curve, length: int, loss: float) -> float:
    """Return the SNR in dB at which ``loss`` of the frames are lost."""
    low, high = -20.0, 60.0
    while high - low > 0.05:
        middle = (low + high) / 2
        low, high = (middle, high) if curve.loss(middle, length) > loss else (low, middle)
    return high


def error_paths(coding: tuple[int, int], terms: int) -> list[int]:
    """Count the paths that leave state 0 of the trellis and return to it, by their distance."""
    free, step, _ = EVENTS[coding]
    pattern = PUNCTURING[coding]
    found = dict.fromkeys(range(free + step * terms), 0)
    for phase in range(len(pattern)):
        # Paths that are under way, step by step: (state, distance) -> how many.
        under_way = {(-1, 0): 1}
        position = phase
        while under_way:
            following: dict[tuple[int, int], int] = {}
            sent = pattern[position]
            for (state, distance), count in under_way.items():
                for bit in (1,) if state < 0 else (0, 1):
                    register = bit << 6 | max(state, 0)
                    first = (register & 0o133).bit_count() & sent & 1
                    second = (register & 0o171).bit_count() & sent >> 1 & 1
                    reached = distance + first + second
                    if reached not in found:
                        continue
                    if register >> 1 == 0:
                        found[reached] += count
                    else:
                        key = register >> 1, reached
                        following[key] = following.get(key, 0) + count
            under_way = following
            position = (position + 1) % len(pattern)
    return [found[free + step * i] for i in range(terms)]


@pytest.mark.parametrize("coding", list(EVENTS))
def test_the_error_paths_are_those_of_the_code(coding: tuple[int, int]) -> None:
    assert error_paths(coding, 8) == list(EVENTS[coding][2])


NS3 = (
    ((0.5, 0.29080), (1.0, 0.06630)),
    ((3.5, 0.30080), (4.0, 0.07280)),
    ((6.0, 0.30100), (6.5, 0.06760)),
    ((9.5, 0.14190), (10.0, 0.03740)),
    ((12.5, 0.18260), (13.0, 0.04650)),
    ((17.0, 0.10580), (17.5, 0.03340)),
    ((18.0, 0.20910), (18.5, 0.06390)),
    ((19.5, 0.12340), (20.0, 0.03550)),
    ((23.5, 0.13760), (24.0, 0.04750)),
    ((25.0, 0.12480), (25.5, 0.04090)),
)
"""By VHT MCS: (dB, loss) on both sides of 10 %, frames of 1458 bytes with the convolutional code
in white noise. Results of the link simulations of Patidar et al. (WNS3 2017), as in ns-3."""


@pytest.mark.parametrize("mcs", range(len(NS3)))
def test_frames_are_lost_where_link_simulations_lose_them(mcs: int) -> None:
    (low, more), (high, less) = NS3[mcs]
    published = low + (high - low) * math.log(more / 0.1) / math.log(more / less)
    curve = MODEL.curve(rate(mcs, RateFlag.VHT_MCS, False))
    assert threshold(curve, 1458, 0.1) == pytest.approx(published, abs=0.2)


@pytest.mark.parametrize("mcs", range(len(NS3)))
def test_hard_decisions_cost_three_to_five_db(mcs: int) -> None:
    r = rate(mcs, RateFlag.VHT_MCS, False)
    saved = threshold(Textbook().curve(r), 1458, 0.1) - threshold(MODEL.curve(r), 1458, 0.1)
    assert 3.0 < saved < 5.0


def test_the_gain_of_the_code_is_the_one_that_heller_and_jacobs_measured() -> None:
    """1e-5 with K = 7, rate 1/2, needs Eb/N0 of 4.2 dB unquantised (4.5 with three bits; 1971).

    An event at the free distance has some three wrong bits.
    """
    eb_n0 = 10 ** (4.2 / 10)
    assert 3 * soft.first_error_rate((1, 2), 1, eb_n0 / 2) == pytest.approx(1e-5, rel=0.5)


@pytest.mark.parametrize(("mbps", "dbm"), SENSITIVITY.items())
def test_receivers_keep_what_the_standard_allows_them(mbps: int, dbm: int) -> None:
    """Table 17-18 leaves 5 dB for the implementation and assumes 10 dB of noise."""
    r = next(r for r in LEGACY_5GHZ if r.kbps == mbps * 1000)
    assert 5 < dbm - NOISE_FLOOR_DBM - threshold(MODEL.curve(r), 1000, 0.1) < 10.5


@pytest.mark.parametrize("bits", MODULATIONS)
def test_bits_of_qam_are_never_safer_than_those_of_bpsk(bits: int) -> None:
    for db in range(-10, 26, 3):
        snr = 10 ** (db / 10)
        assert equivalent(bits, snr) <= snr * 1.0001
        assert 0 < bhattacharyya(bits, snr) < 1


def test_qpsk_is_two_bpsk() -> None:
    for snr in (0.5, 2.0, 8.0):
        assert equivalent(2, snr) == pytest.approx(snr / 2, rel=0.01)


def test_16_qam_approaches_its_nearest_neighbours() -> None:
    """Half of the distance 2 / sqrt(10), squared: 10 log 10 = 10 dB below BPSK, and not better."""
    gap = 10 * math.log10(1000 / equivalent(4, 1000))
    assert gap == pytest.approx(10.0, abs=0.1)
    # The pairwise chance at that distance is the uncoded one of the books.
    assert NormalDist().cdf(-math.sqrt(2 * equivalent(4, 24.0))) < 2e-2


@pytest.mark.parametrize("r", LEGACY_2GHZ[:4])
def test_dsss_and_cck_have_no_decoder(r: Rate) -> None:
    assert MODEL.curve(r).loss(2.0, 100) == Textbook().curve(r).loss(2.0, 100)


def test_the_air_decodes_as_its_configuration_says() -> None:
    """At 2 dB soft decisions get 100 bytes at 6 Mbit/s through, and hard ones do not."""
    arrived = {}
    for decoding in ("hard", "soft"):
        air = VirtualAir(2, [(1, 2, 2.0)], config=MediumConfig(decoding=decoding))
        for _ in range(200):
            air.send(1, BROADCAST, size=100)
            air.run(0.05)
        arrived[decoding] = len(air.injected)
    assert arrived["hard"] < 60
    assert arrived["soft"] > 190


def test_other_decoders_are_refused() -> None:
    assert parse_config({"decoding": "soft"}).decoding == "soft"
    with pytest.raises(ConfigError, match="hard"):
        parse_config({"decoding": "turbo"})
