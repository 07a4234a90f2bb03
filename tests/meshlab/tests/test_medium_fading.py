# SPDX-License-Identifier: Apache-2.0
"""Links whose signal changes: distributions, correlations and losses against closed forms."""

from __future__ import annotations

import itertools
import math
from statistics import fmean, pstdev

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshlab.medium import fading
from meshlab.medium.config import MediumConfig, parse_config
from meshlab.medium.error import Textbook
from meshlab.medium.fading import STEADY, Fading, Fadings
from meshlab.medium.virtual import BROADCAST, VirtualAir, mac
from meshlab.wire.ieee80211 import LEGACY_5GHZ

RAYLEIGH = Fading("rayleigh", doppler=5)
LINKS = 4000
"""Of an ensemble: deviations of a probability p are some sqrt(p / 4000)."""


def powers(how: Fading, *times: float, links: int = LINKS) -> list[tuple[float, ...]]:
    """Return the gains, as ratios, of many links at some times."""
    found = []
    for number in range(links):
        gain = fading.fast(how, "seed", str(number))
        found.append(tuple(10 ** (gain(time) / 10) for time in times))
    return found


def j0(x: float) -> float:
    """Return Bessel's function of order 0, by its integral."""
    steps = 400
    return fmean(math.cos(x * math.sin(math.pi * (i + 0.5) / steps)) for i in range(steps))


def i0(x: float) -> float:
    """Return the modified one."""
    steps = 400
    return fmean(math.exp(x * math.cos(math.pi * (i + 0.5) / steps)) for i in range(steps))


def rice(k: float, below: float) -> float:
    """Return the chance that the power of Rician fading is below a ratio to its mean."""
    steps = 2000
    total = 0.0
    for i in range(steps):
        x = below * (i + 0.5) / steps
        total += (
            (1 + k)
            * math.exp(-k - (1 + k) * x)
            * i0(2 * math.sqrt(k * (1 + k) * x))
            * below
            / steps
        )
    return total


# Fast fading.


@pytest.mark.parametrize("margin", [10.0, 5.0, 0.0, -3.0])
def test_outages_of_rayleigh_fading(margin: float) -> None:
    """P(signal < mean - margin) = 1 - exp(-10 ^ (-margin / 10)) (Rappaport, 5.7)."""
    limit = 10 ** (-margin / 10)
    seen = fmean(power < limit for (power,) in powers(RAYLEIGH, 7.0))
    assert seen == pytest.approx(1 - math.exp(-limit), abs=0.02)


def test_deep_fades_are_as_rare_as_rayleighs() -> None:
    """1 % of the time 20 dB below the mean, seen on one link for 2,000 s of independent fades."""
    gain = fading.fast(Fading("rayleigh", doppler=50), "seed", "one link")
    seen = fmean(gain(0.013 * i) < -20 for i in range(60_000))
    assert seen == pytest.approx(1 - math.exp(-0.01), rel=0.25)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.3, 0.38, 0.6])
def test_rayleigh_fading_is_correlated_as_clarke_says(share: float) -> None:
    """The correlation of powers is J0(2 pi f t) squared; 0.38 / f is where it is 0 first."""
    pairs = powers(RAYLEIGH, 3.0, 3.0 + share / RAYLEIGH.doppler)
    means = [fmean(each) for each in zip(*pairs, strict=True)]
    together = fmean((a - means[0]) * (b - means[1]) for a, b in pairs)
    spread = math.prod(pstdev(each) for each in zip(*pairs, strict=True))
    assert together / spread == pytest.approx(j0(2 * math.pi * share) ** 2, abs=0.06)


@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
def test_rayleigh_fading_crosses_levels_as_often_as_rice_says(level: float) -> None:
    """Sqrt(2 pi) f r exp(-r^2) times a second, r the level over the rms (Rappaport, 5.80)."""
    seconds, step = 40.0, 0.002
    crossings = 0
    for link in range(4):
        gain = fading.fast(RAYLEIGH, "seed", "crossing", str(link))
        below = [gain(i * step) < 20 * math.log10(level) for i in range(int(seconds / step))]
        crossings += sum(a and not b for a, b in itertools.pairwise(below))
    expected = math.sqrt(2 * math.pi) * RAYLEIGH.doppler * level * math.exp(-(level**2))
    assert crossings / seconds / 4 == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("k_db", [0.0, 6.0, 10.0])
def test_rician_fading_is_distributed_as_rice_says(k_db: float) -> None:
    how = Fading("rician", k=k_db, doppler=5)
    k = 10 ** (k_db / 10)
    seen = [power for (power,) in powers(how, 7.0)]
    assert fmean(seen) == pytest.approx(1, abs=0.05)
    for limit in (0.25, 0.5, 1.0, 1.5):
        assert fmean(p < limit for p in seen) == pytest.approx(rice(k, limit), abs=0.025)
    # The estimator of Greenstein, Michelson and Erceg, IEEE Commun. Lett. 3 (1999) 175.
    variance = (pstdev(seen) / fmean(seen)) ** 2
    root = math.sqrt(max(0.0, 1 - variance))
    assert 10 * math.log10(root / (1 - root)) == pytest.approx(k_db, abs=1.0)


def test_rician_fading_of_no_direct_path_is_rayleighs() -> None:
    weak = powers(Fading("rician", k=-20, doppler=5), 7.0, links=500)
    assert fmean(power < 0.5 for (power,) in weak) == pytest.approx(1 - math.exp(-0.5), abs=0.07)


# Shadowing.

SHADOWS = Fading(shadowing=6, decorrelation=10)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 5.0, 10.0, 30.0])
def test_shadowing_is_gaussian_and_forgets_as_gudmundson_says(seconds: float) -> None:
    pairs = []
    for number in range(LINKS):
        gain = fading.slow(SHADOWS, "seed", str(number))
        pairs.append((gain(100.0), gain(100.0 + seconds)))
    first = [a for a, _ in pairs]
    assert fmean(first) == pytest.approx(0, abs=0.3)
    assert pstdev(first) == pytest.approx(6, rel=0.04)
    for sigmas, share in ((-1.0, 0.1587), (0.0, 0.5), (1.0, 0.8413), (2.0, 0.9772)):
        assert fmean(a < 6 * sigmas for a in first) == pytest.approx(share, abs=0.025)
    correlation = fmean(a * b for a, b in pairs) / fmean(a * a for a in first)
    assert correlation == pytest.approx(math.exp(-seconds / 10), abs=0.05)


def test_each_link_has_the_whole_spread_over_time() -> None:
    """Ergodic: what the ensemble shows at one time, one link shows over hours."""
    gain = fading.slow(SHADOWS, "seed", "one")
    seen = [gain(7.0 * i) for i in range(3000)]
    assert pstdev(seen) == pytest.approx(6, rel=0.1)
    assert fmean(seen) == pytest.approx(0, abs=1.0)


# Which link changes how.


def gain(found: Fadings, a: str, b: str, now: float, frequency: int = 2412) -> float:
    """Return a gain in dB some seconds after fading began at 100 s."""
    found.gain("n8", "n9", 2412, 100.0)
    return found.gain(a, b, frequency, 100.0 + now)[0]


def test_gains_depend_on_seed_pair_and_time_only() -> None:
    one, same, other = Fadings("1", RAYLEIGH), Fadings("1", RAYLEIGH), Fadings("2", RAYLEIGH)
    gain(one, "n1", "n3", 0.05)
    assert gain(one, "n1", "n2", 0.9) == gain(same, "n2", "n1", 0.9)
    assert gain(one, "n1", "n2", 0.9) != gain(other, "n1", "n2", 0.9)
    assert gain(one, "n1", "n2", 0.9) != gain(one, "n1", "n2", 0.9, 2437)
    assert gain(one, "n1", "n1", 0.9) == 0


def test_shadows_are_the_same_on_all_channels() -> None:
    found = Fadings("1", SHADOWS)
    assert gain(found, "n1", "n2", 9) == gain(found, "n1", "n2", 9, 5180) != 0


def test_a_link_of_its_own_changes_as_it_says_and_others_as_before() -> None:
    found = Fadings("1", RAYLEIGH, {("n2", "n1"): STEADY})
    assert gain(found, "n1", "n2", 3) == 0
    before = gain(found, "n1", "n3", 3)
    found.change({("n1", "n2"): Fading(shadowing=3)})
    assert gain(found, "n2", "n1", 3) != 0
    assert gain(found, "n1", "n3", 3) == before
    assert found.own() == {("n1", "n2"): Fading(shadowing=3)}
    found.change({})
    assert gain(found, "n1", "n2", 3) == 0


def test_blocks_are_short_against_what_changes() -> None:
    assert RAYLEIGH.block == pytest.approx(0.01)
    assert SHADOWS.block == pytest.approx(0.2)
    assert Fading("rayleigh", doppler=5, shadowing=6).block == pytest.approx(0.01)
    assert Fadings("1", SHADOWS).active
    assert not Fadings("1", STEADY).active
    assert Fadings("1", STEADY).gain("n1", "n2", 2412, 7.0) == (0.0, math.inf)


fadings = st.builds(
    Fading,
    st.sampled_from(fading.MODELS),
    doppler=st.floats(0.1, 100),
    shadowing=st.sampled_from([0.0, 4.0]),
    decorrelation=st.floats(0.1, 100),
)


@settings(deadline=None)
@given(fadings, fadings, st.floats(0, 1000))
@example(Fading("rayleigh", doppler=1.9999999999999858), STEADY, 1.0)  # where a block ends, rounded
def test_every_link_has_blocks_of_its_own(one: Fading, other: Fading, now: float) -> None:
    """A gain holds from the asking to the time that is told, whatever other links do."""
    alone = Fadings("1", STEADY, {("n1", "n2"): one})
    beside = Fadings("1", other, {("n2", "n1"): one})
    for found in (alone, beside):
        found.gain("n1", "n2", 2412, 0.0)
    got, until = alone.gain("n1", "n2", 2412, now)
    assert beside.gain("n2", "n1", 2412, now) == (got, until)
    if not one.changes:
        assert (got, until) == (0.0, math.inf)
        return
    assert now < until <= now + one.block * 1.001
    assert alone.gain("n1", "n2", 2412, math.nextafter(until, now)) == (got, until)
    assert alone.gain("n1", "n2", 2412, until)[1] > until


# How it is written.


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("none", STEADY),
        ("rayleigh", Fading("rayleigh")),
        ("rician k=9 doppler=0.5", Fading("rician", k=9, doppler=0.5)),
        ("shadowing=4 decorrelation=30", Fading(shadowing=4, decorrelation=30)),
        (
            "rayleigh doppler=5 shadowing=4 decorrelation=10",
            Fading("rayleigh", doppler=5, shadowing=4, decorrelation=10),
        ),
    ],
)
def test_fading_is_read_as_it_is_written(text: str, how: Fading) -> None:
    assert fading.parse(text) == how
    assert fading.parse(str(how)) == how


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("", "such as"),
        (3, "such as"),
        ("rice", "one of none, rayleigh, rician"),
        ("rayleigh speed=3", "k=, doppler="),
        ("rayleigh doppler=fast", "from 0.01 to 1000"),
        ("rayleigh doppler=nan", "from 0.01 to 1000"),
        ("shadowing=31", "from 0 to 30"),
    ],
)
def test_other_texts_are_refused_with_what_is_allowed(wrong: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fading.parse(wrong)


# On the air.


def outage(how: str, margin: float) -> float:
    """Return how often a link's signal is that much below its mean."""
    limit = 10 ** (-margin / 10)
    return rice(10**0.6, limit) if how.startswith("rician") else 1 - math.exp(-limit)


@pytest.mark.parametrize("how", ["rayleigh doppler=20", "rician k=6 doppler=20"])
def test_one_link_of_three_fades_as_it_says(how: str) -> None:
    """Its frames come as weak as often as the closed form says; the others' signal stays."""
    nodes = [{"name": f"n{i}", "radios": [{"mac": mac(i).hex(":")}]} for i in range(1, 4)]
    links = [{"a": "n2", "b": "n1", "snr": 50, "fading": how}, {"a": "n1", "b": "n3", "snr": 50}]
    air = VirtualAir(3, config=parse_config({"nodes": nodes, "links": links}))
    frames = 4000
    for _ in range(frames):
        air.send(1, BROADCAST)
        air.run(0.05)
    signals = {
        name: [one.signal for one in air.injected if one.node == name] for name in ("n2", "n3")
    }
    assert set(signals["n3"]) == {-41}
    assert len(signals["n2"]) > 0.99 * frames
    for margin in (0.5, 5.5, 9.5):  # signals are whole dBm
        seen = sum(signal < -41 - margin for signal in signals["n2"])
        seen += frames - len(signals["n2"])
        assert seen / frames == pytest.approx(outage(how, margin), abs=0.03)


def test_only_radios_with_a_link_that_fades_are_looked_up_again() -> None:
    air = VirtualAir(4, [(1, 2, 30), (2, 3, 30), (3, 4, 30)])
    air.links.fade("n1", "n2", RAYLEIGH)
    radios = [air.node(i).radios[0] for i in range(1, 5)]
    seen = []
    for _ in range(3):
        seen.append([air.engine.reaches.of(radio, 5180) for radio in radios])
        air.engine.now += 1.0
    for index, fades in enumerate((True, True, False, False)):
        found = {id(each[index]) for each in seen}
        assert len(found) == (3 if fades else 1)


def test_a_link_fades_as_it_was_told_after_a_cut_a_restoration_and_a_move() -> None:
    nodes = [
        {"name": f"n{i}", "position": [10.0 * i, 0], "radios": [{"mac": mac(i).hex(":")}]}
        for i in (1, 2)
    ]
    links = [{"a": "n1", "b": "n2", "snr": 40, "fading": "rayleigh doppler=5"}]
    air = VirtualAir(2, config=parse_config({"nodes": nodes, "links": links}))

    def spread() -> int:
        air.injected.clear()
        for _ in range(50):
            air.send(1, BROADCAST)
            air.run(0.2)
        return len({one.signal for one in air.injected})

    assert spread() > 5
    air.links.set("n1", "n2", None)
    assert spread() == 0
    air.links.restore("n1", "n2")
    assert spread() > 5
    air.links.fade("n1", "n2", STEADY)
    assert spread() == 1
    air.links.restore("n1", "n2")
    assert spread() > 5
    air.links.move("n2", 30.0, 0.0)
    assert spread() > 5


def test_a_link_without_signal_of_its_own_has_that_of_the_places() -> None:
    nodes = [
        {"name": f"n{i}", "position": [20.0 * i, 0], "radios": [{"mac": mac(i).hex(":")}]}
        for i in (1, 2, 3)
    ]
    links = [{"a": "n1", "b": "n2", "fading": "rayleigh"}]
    told = {"nodes": nodes, "links": links, "unlinked": "model"}
    air = VirtualAir(3, config=parse_config(told))
    near, far = (air.links.hearing("n1", name, 20.0, 2412) for name in ("n2", "n3"))
    assert near.state == far.state == "model"
    assert near.snr is not None
    assert far.snr is not None
    assert near.snr - far.snr == pytest.approx(30 * math.log10(2))
    assert air.links.fadings.of("n2", "n1") == Fading("rayleigh")
    assert not air.links.fadings.of("n1", "n3").changes


def test_a_rayleigh_link_loses_what_its_outages_cost() -> None:
    """The mean of the frame error rate over the exponential distribution of the signal."""
    mean, size = 12.0, 500
    config = MediumConfig(fading=Fading("rayleigh", doppler=50))
    air = VirtualAir(2, [(1, 2, mean)], config=config)
    frames = 4000
    for _ in range(frames):
        air.send(1, BROADCAST, size=size)
        air.run(0.02)
    curve = Textbook().curve(LEGACY_5GHZ[0])
    steps = 4000
    expected = 0.0
    for i in range(steps):
        share = -math.log(1 - (i + 0.5) / steps)
        expected += curve.loss(mean + 10 * math.log10(share), size + 4) / steps
    assert 0.05 < expected < 0.5
    assert 1 - len(air.injected) / frames == pytest.approx(expected, abs=0.03)
    assert len({one.signal for one in air.injected}) > 10


def test_a_frame_and_its_acknowledgement_see_the_same_fade() -> None:
    """Reciprocity: where 500 bytes came through, 14 bytes at the same rate do."""
    air = VirtualAir(2, [(1, 2, 12)], config=MediumConfig(fading=RAYLEIGH))
    for _ in range(500):
        air.send(1, 2, size=500)
        air.run(0.05)
    stats = air.engine.stats
    assert stats.losses[0] > 100
    assert stats.ack_lost < stats.losses[0] / 20


def test_fading_begins_and_ends_while_the_air_runs() -> None:
    air = VirtualAir(2, [(1, 2, 40)])
    signals = []
    for how in (None, Fading(shadowing=6, decorrelation=1), STEADY):
        if how is not None:
            air.links.fade("n2", "n1", how)
        air.injected.clear()
        for _ in range(50):
            air.send(1, BROADCAST)
            air.run(1.0)
        signals.append({one.signal for one in air.injected})
    assert signals[0] == signals[2] == {-51}
    assert len(signals[1]) > 10
    air.links.fade("n1", "n2", RAYLEIGH)
    air.links.restore("n2", "n1")
    assert air.links.fadings.active is False


def test_the_same_seed_fades_the_same_way() -> None:
    def trace(seed: str) -> list[bytes]:
        air = VirtualAir(3, [(1, 2, 15), (2, 3, 15)], seed=seed, config=MediumConfig(fading=how))
        for _ in range(200):
            air.send(1, BROADCAST)
            air.send(3, 2)
            air.run(0.03)
        return air.trace

    how = Fading("rician", k=3, doppler=5, shadowing=4)
    assert trace("1") == trace("1") != trace("2")


def test_links_that_are_cut_stay_cut() -> None:
    air = VirtualAir(2, [(1, 2, 40)], config=MediumConfig(fading=RAYLEIGH))
    air.links.set("n1", "n2", None)
    for _ in range(20):
        air.send(1, BROADCAST)
        air.run(0.2)
    assert air.injected == []
