# SPDX-License-Identifier: Apache-2.0
"""Channels that overlap, against the standard's masks and its demands on receivers."""

from __future__ import annotations

import math

import pytest

from meshlab.medium import spectrum
from meshlab.medium.config import LinkConfig, MediumConfig, NodeConfig, RadioConfig
from meshlab.medium.soft import SoftDecision
from meshlab.medium.spectrum import Shape, coupling
from meshlab.medium.stats import Loss
from meshlab.medium.virtual import BROADCAST, VirtualAir, mac
from meshlab.wire.hwsim import Rate, RateFlag
from meshlab.wire.ieee80211 import LEGACY_5GHZ

WIDE = RateFlag.MCS | RateFlag.WIDTH_40


def db(ratio: float) -> float:
    return 10 * math.log10(ratio)


# Masks.


@pytest.mark.parametrize(
    ("shape", "width", "offset", "level"),
    [
        (Shape.OFDM, 20, 9, 0),
        (Shape.OFDM, 20, 11, -20),
        (Shape.OFDM, 20, 20, -28),
        (Shape.OFDM, 20, 30, -40),
        (Shape.OFDM, 20, 50, -40),
        (Shape.HT, 20, 30, -45),
        (Shape.HT, 40, 19, 0),
        (Shape.HT, 40, 21, -20),
        (Shape.HT, 40, 40, -28),
        (Shape.HT, 40, 60, -45),
        (Shape.DSSS, 20, 11, -30),
        (Shape.DSSS, 20, 22, -30),
        (Shape.DSSS, 20, 23, -50),
    ],
)
def test_masks_of_the_standard(shape: Shape, width: int, offset: float, level: float) -> None:
    """Figures 17-13, 19-17, 19-18 and 16-10."""
    inside = spectrum._power(spectrum.mask(shape, width), offset - 0.001, offset + 0.001) / 0.002
    assert db(inside) == pytest.approx(level, abs=0.1)


def test_half_of_a_channel_is_half_of_its_power() -> None:
    assert db(coupling(Shape.OFDM, 20, 0, 20)) == pytest.approx(0, abs=0.1)
    assert db(coupling(Shape.OFDM, 20, 10, 20)) == pytest.approx(-3, abs=0.1)
    assert db(coupling(Shape.HT, 40, 10, 20)) == pytest.approx(-3, abs=0.1)
    assert coupling(Shape.OFDM, 20, -15, 20) == pytest.approx(coupling(Shape.OFDM, 20, 15, 20))


def test_a_narrow_disturber_costs_a_wide_channel_half() -> None:
    assert db(coupling(Shape.OFDM, 20, 10, 40)) == pytest.approx(-3, abs=0.1)


def test_channels_1_6_and_11_hardly_disturb_each_other() -> None:
    assert db(coupling(Shape.OFDM, 20, 25, 20)) == pytest.approx(-30, abs=1)
    assert db(coupling(Shape.DSSS, 20, 25, 20)) < -30


ADJACENT = {6: (16, 32), 9: (15, 31), 12: (13, 29), 18: (11, 27), 24: (8, 24), 36: (4, 20)}
ADJACENT |= {48: (0, 16), 54: (-1, 15)}
"""Table 17-18: dB by which a disturber one and two channels away may be stronger than a signal that
is 3 dB above the sensitivity, so that at most 10 % of 1000-byte frames are lost."""


@pytest.mark.parametrize("mbps", ADJACENT)
def test_receivers_reject_other_channels_as_the_standard_demands(mbps: int) -> None:
    curve = SoftDecision().curve(next(r for r in LEGACY_5GHZ if r.kbps == mbps * 1000))
    limit = next(s / 10 for s in range(-100, 400) if curve.loss(s / 10, 1000) <= 0.1) + 3
    for offset, stronger in zip((20, 40), ADJACENT[mbps], strict=True):
        disturber = limit + stronger + db(coupling(Shape.OFDM, 20, offset, 20))
        noise = 1 + 10 ** (disturber / 10)
        assert curve.loss(limit - db(noise), 1000) <= 0.1


@pytest.mark.parametrize(
    ("primary", "width", "secondary", "middle"),
    [
        (2412, 20, 1, 2412),
        (2412, 40, 1, 2422),
        (2462, 40, -1, 2452),
        (5180, 40, 0, 5190),
        (5200, 40, 0, 5190),
        (5180, 80, 0, 5210),
        (5240, 80, 0, 5210),
        (5500, 160, 0, 5570),
        (5745, 80, 0, 5775),
        (5785, 40, 0, 5795),
    ],
)
def test_centres_of_wide_channels(primary: int, width: int, secondary: int, middle: int) -> None:
    """Annex E: channels 38, 42, 114, 155 and so on."""
    assert spectrum.centre(primary, width, secondary) == middle


# Beacons.


def beacon(sender: bytes, operation: bytes) -> bytes:
    head = b"\x80\0\0\0" + BROADCAST + sender + sender + b"\0\0" + bytes(12)
    return head + b"\x00\x00" + b"\x01\x01\x8c" + operation


@pytest.mark.parametrize(
    ("operation", "found"),
    [
        (b"", None),
        (b"\x3d\x16\x01\x00" + bytes(20), 0),
        (b"\x3d\x16\x01\x05" + bytes(20), 1),
        (b"\x3d\x16\x05\x07" + bytes(20), -1),
        (b"\x3d\x16\x05", None),
    ],
)
def test_beacons_tell_the_secondary_channel(operation: bytes, found: int | None) -> None:
    assert spectrum.secondary_channel(beacon(mac(1), operation)) == found


# On the air.


def two_pairs(signal: float, disturber: float) -> VirtualAir:
    """Make n1 -> n2 and n3 -> n4, of which only n2 hears the other pair: n3 as ``disturber``."""
    config = MediumConfig(
        nodes=tuple(NodeConfig(f"n{i}", f"n{i}", (RadioConfig(mac(i)),)) for i in range(1, 5)),
        links=(
            LinkConfig("n1", "n2", signal, False),
            LinkConfig("n3", "n4", 40, False),
            LinkConfig("n3", "n2", disturber, False),
        ),
        decoding="soft",
    )
    return VirtualAir(4, config=config)


def lost(air: VirtualAir, frequency: int, beside: int, count: int = 200) -> float:
    """Return which part of n1's frames n2 loses while n3 sends at another frequency."""
    for _ in range(count):
        air.send(3, BROADCAST, size=2000, frequency=beside)
        air.send(1, BROADCAST, size=500, frequency=frequency)
        air.run(0.05)
    got = sum(one.node == "n2" and one.frequency == frequency for one in air.injected)
    return 1 - got / count


@pytest.mark.parametrize(
    ("disturber", "beside", "low", "high"),
    [
        (45, 2432, 0.0, 0.02),  # 21.5 dB of 45 are left: as strong as the signal less 3 dB
        (60, 2432, 0.6, 1.0),
        (50, 2437, 0.0, 0.02),
        (50, 2482, 0.0, 0.0),
    ],
)
def test_a_channel_beside_disturbs_by_what_its_mask_lets_through(
    disturber: float, beside: int, low: float, high: float
) -> None:
    assert low <= lost(two_pairs(25, disturber), 2412, beside) <= high


def test_only_what_overlaps_in_time_disturbs() -> None:
    air = two_pairs(15, 60)
    for _ in range(50):
        air.send(3, BROADCAST, size=2000, frequency=2432)
        air.run(0.05)
        air.send(1, BROADCAST, size=500, frequency=2412)
        air.run(0.05)
    assert sum(one.frequency == 2412 for one in air.injected) == 50


def test_nobody_receives_what_is_sent_on_a_channel_beside() -> None:
    """n2 is on channel 1; what it hears of channel 2 is strong, and still only interference."""
    air = two_pairs(10, 40)
    assert lost(air, 2412, 2417) > 0.5
    assert air.engine.stats.losses[Loss.COLLISION] > 0
    assert air.engine.stats.losses[Loss.LOCKED] == 0


@pytest.mark.parametrize(("snr", "waits"), [(40, True), (25, False)])
def test_loud_neighbours_on_an_overlapping_channel_are_waited_for(snr: float, waits: bool) -> None:
    """-62 dBm of energy are 29 dB over the noise; 5 MHz beside 1.2 dB are lost."""
    air = VirtualAir(2, [(1, 2, snr)])
    air.send(2, BROADCAST, frequency=2417)
    air.run(1)
    for _ in range(50):
        air.send(1, BROADCAST, size=2000, frequency=2412)
        air.send(2, BROADCAST, size=2000, frequency=2417)
        air.run(0.1)
    # 2,000 bytes at 6 Mbit/s take 2.7 ms; two after each other twice that.
    at = [report.at for report in air.reports.values()][1:]
    gaps = [abs(a - b) for a, b in zip(at[::2], at[1::2], strict=True)]
    assert (sum(gap > 0.0025 for gap in gaps) > 45) is waits


def test_forty_mhz_reach_into_the_secondary_channel() -> None:
    """A pair on channel 5 is disturbed by 40 MHz of channel 1 when its other half is above."""
    found = {}
    for name, direction in (("above", b"\x05"), ("none", b"\x00")):
        air = two_pairs(20, 40)
        told = beacon(mac(3), b"\x3d\x16\x01" + direction + bytes(20))
        air.send(3, BROADCAST, frame=told, frequency=2412)
        air.run(0.1)
        missed = 0
        width = WIDE if name == "above" else RateFlag.MCS
        for _ in range(100):
            before = len(air.injected)
            air.send(3, BROADCAST, size=2000, frequency=2412, rates=(Rate(0, 1, width),))
            air.send(1, BROADCAST, size=200, frequency=2432)
            air.run(0.05)
            missed += not any(one.frequency == 2432 for one in air.injected[before:])
        found[name] = missed
    assert found["none"] < 5
    assert found["above"] > 30


def test_radios_on_one_channel_cost_nothing_more() -> None:
    air = VirtualAir(3, [(1, 2, 30), (2, 3, 30)])
    air.send(1, 2)
    air.send(2, 3)
    air.run(1)
    assert air.engine.channels._near == {5180: ()}
