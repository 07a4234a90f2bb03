# SPDX-License-Identifier: Apache-2.0
"""Opportunities to send: bursts of voice and video within their limits, against closed forms.

Frames of 1000 bytes on 5 GHz, unless a test says otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from bianchi import in_a_slot
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.medium.airtime import EDCA, Standard
from meshlab.medium.config import MediumConfig
from meshlab.medium.objects import Radio, Transmission
from meshlab.medium.virtual import BROADCAST, Report, VirtualAir, data_frame, mac
from meshlab.wire.hwsim import Rate, RateFlag
from meshlab.wire.ieee80211 import ACK_LENGTH, AccessCategory, legacy_rates

US = 1e-6
SIFS, SLOT = 16 * US, 9 * US
GOOD = 30.0
SIZE = 1000
VIDEO, VOICE = 5, 6
"""User priorities (table 10-1)."""
RATES = {6: 0, 12: 2, 24: 4, 54: 7}
"""Legacy rates in Mbit/s by their index on 5 GHz."""


def qos(sender: int, receiver: int | bytes, number: int, size: int, priority: int) -> bytes:
    """Return a QoS data frame of a user priority."""
    to = mac(receiver) if isinstance(receiver, int) else receiver
    plain = data_frame(mac(sender), to, 24, number)
    return b"\x88" + plain[1:24] + bytes((priority, 0)) + bytes(size - 26)


def exchange(mbps: int, size: int = SIZE) -> float:
    """Return the seconds of a frame, a SIFS and its acknowledgement (17.4.3, 10.3.2.11)."""
    bits = {6: 24, 12: 48, 24: 96, 54: 216}
    control = min(mbps, 24)

    def frame(length: int, rate: int) -> float:
        return (20 + 4 * -(-(8 * length + 22) // bits[rate])) * US

    return frame(size + 4, mbps) + SIFS + frame(ACK_LENGTH, control)


def burst(mbps: int, limit: float, size: int = SIZE) -> int:
    """Return how many exchanges, a SIFS apart, fit in an opportunity; at least one."""
    return max(1, int((limit + SIFS) / (exchange(mbps, size) + SIFS) + 1e-6))


class Watch:
    """Sees when exchanges begin and end, by sender."""

    def __init__(self, air: VirtualAir) -> None:
        self.tries: dict[str, list[tuple[float, float]]] = {}
        """The end is that of the acknowledgement, where there is one."""
        self.order: list[str] = []
        self.sent: dict[str, int] = {}
        air.engine.observer = self

    def transmission(self, sent: Transmission, outcomes: list[tuple[Radio, int]]) -> None:
        if sent.aggregate is not None and sent is not sent.aggregate.going[0]:
            return
        name = sent.radio.node.name
        self.order.append(name)
        self.tries.setdefault(name, []).append((sent.start, sent.end))

    def acknowledgement(self, sent: Transmission, receiver: Radio, at: float, lost: bool) -> None:
        name = sent.radio.node.name
        self.sent[name] = self.sent.get(name, 0) + (not lost)
        self.tries[name][-1] = self.tries[name][-1][0], at

    def bursts(self, name: str) -> list[list[tuple[float, float]]]:
        """Return the exchanges of a node; those in one that follow each other by a SIFS."""
        found: list[list[tuple[float, float]]] = []
        for start, end in self.tries[name]:
            if found and start - found[-1][-1][1] < SIFS + US:
                found[-1].append((start, end))
            else:
                found.append([(start, end)])
        return found


def saturate(
    air: VirtualAir, flows: dict[int, tuple[int, int]], priority: int, flags: int = 0
) -> None:
    """Keep forty frames of every sender waiting: by sender, its receiver and rate in Mbit/s."""
    numbers = itertools.count(1)
    owner: dict[int, int] = {}

    def more(sender: int) -> None:
        receiver, mbps = flows[sender]
        frame = qos(sender, receiver, next(numbers), SIZE, priority)
        rates = [Rate(RATES[mbps], 7, flags)]
        owner[air.send(sender, receiver, frame=frame, rates=rates)] = sender

    def reported(_node: str, cookie: int, _report: Report) -> None:
        more(owner.pop(cookie))

    air.on_report = reported
    for sender in flows:
        for _ in range(40):
            more(sender)


def everyone(count: int) -> VirtualAir:
    near = range(1, count + 1)
    return VirtualAir(count, [(a, b, GOOD) for a in near for b in near if a < b])


# What one sender gets.


@pytest.mark.parametrize("mbps", sorted(RATES))
@pytest.mark.parametrize("priority", [VIDEO, VOICE, 0])
def test_one_sender_gets_what_its_opportunities_allow(mbps: int, priority: int) -> None:
    """AIFS, half the smallest window, then as many exchanges as fit into the limit."""
    category = {VIDEO: AccessCategory.VIDEO, VOICE: AccessCategory.VOICE}.get(
        priority, AccessCategory.BEST_EFFORT
    )
    own = EDCA[category]
    air = everyone(2)
    watch = Watch(air)
    saturate(air, {1: (2, mbps)}, priority)
    air.run(0.7)
    frames = burst(mbps, own.txop)
    gap = SIFS + own.aifsn * SLOT + own.cw_min / 2 * SLOT
    cycle = gap + frames * exchange(mbps) + (frames - 1) * SIFS
    assert watch.sent["n1"] / 0.7 == pytest.approx(frames / cycle, rel=0.03)
    assert {len(each) for each in watch.bursts("n1")[1:-1]} == {frames}


def test_a_frame_that_is_longer_than_the_limit_is_sent_alone() -> None:
    """1000 bytes at 6 Mbit/s need 1.4 ms of the 1.504 of voice; 2000 need more than all of it."""
    air = everyone(2)
    watch = Watch(air)
    for number in range(10):
        air.send(1, 2, frame=qos(1, 2, number, 2000, VOICE))
    air.run(1)
    assert watch.sent["n1"] == 10
    assert [len(each) for each in watch.bursts("n1")] == [1] * 10


# What several get of each other.


def protected(mbps: int) -> float:
    """Return the seconds of an exchange with RTS and CTS before it (10.3.2.9)."""
    return exchange(mbps) + Standard().timing(legacy_rates(5180)[RATES[mbps]], False).rts_cts


def shares(priority: int) -> tuple[float, float]:
    """Return frames a second of a slow sender (12 Mbit/s) and of a fast one (54).

    With RTS, so that a collision costs both the same: else who sends the longer frame waits for its
    acknowledgement while the other one contends.
    """
    air = everyone(3)
    watch = Watch(air)
    saturate(air, {1: (3, 12), 2: (3, 54)}, priority, int(RateFlag.RTS_CTS))
    air.run(2)
    return watch.sent["n1"] / 2, watch.sent["n2"] / 2


def test_without_opportunities_a_slow_sender_slows_down_a_fast_one() -> None:
    """The performance anomaly (Heusse et al., INFOCOM 2003): both get the same frames."""
    slow, fast = shares(0)
    assert fast == pytest.approx(slow, rel=0.1)
    alone = 1 / (protected(54) + SIFS + 3 * SLOT + 7.5 * SLOT)
    assert fast < alone / 2.5


def test_with_opportunities_they_share_time() -> None:
    """Temporal fairness (Tinnirello and Choi, ICC 2005): as many opportunities, of equal time."""
    slow, fast = shares(VIDEO)
    limit = EDCA[AccessCategory.VIDEO].txop
    few, many = (int((limit + SIFS) / (protected(mbps) + SIFS)) for mbps in (12, 54))
    assert (few, many) == (3, 9)
    assert fast / slow == pytest.approx(many / few, rel=0.1)


@pytest.mark.parametrize("stations", [2, 5])
def test_saturated_senders_of_video_get_what_bianchi_says_of_bursts(stations: int) -> None:
    """A success takes a whole opportunity, a collision one exchange."""
    some, one = in_a_slot(stations, 8, 1)
    limit = EDCA[AccessCategory.VIDEO].txop
    frames = burst(24, limit)
    gap = SIFS + 2 * SLOT
    success = frames * exchange(24) + (frames - 1) * SIFS + gap
    collision = exchange(24) + gap
    expected = frames * one / ((1 - some) * SLOT + one * success + (some - one) * collision)
    air = everyone(stations)
    watch = Watch(air)
    saturate(air, {n: (n % stations + 1, 24) for n in range(1, stations + 1)}, VIDEO)
    air.run(1.5)
    assert sum(watch.sent.values()) / 1.5 == pytest.approx(expected, rel=0.05)


# What goes into an opportunity.


def test_frames_to_several_receivers_and_groups_share_one() -> None:
    air = everyone(3)
    watch = Watch(air)
    for number in range(4):
        to: int | bytes = (2, 3, BROADCAST, 2)[number]
        air.send(1, to, frame=qos(1, to, number, 100, VIDEO))
    air.run(0.1)
    (first, *rest) = watch.bursts("n1")
    assert len(first) + sum(map(len, rest)) == 4
    assert len(first) == 4


def test_other_categories_and_beacons_wait_for_an_opportunity_of_their_own() -> None:
    air = everyone(2)
    watch = Watch(air)
    air.send(1, 2, frame=qos(1, 2, 1, 100, VIDEO))
    air.send(1, 2, frame=qos(1, 2, 2, 100, 0))
    air.run(0.1)
    assert [len(each) for each in watch.bursts("n1")] == [1, 1]
    beacon = b"\x80\0\0\0" + BROADCAST + mac(1) + mac(1) + bytes(14)
    for _ in range(2):
        air.send(1, BROADCAST, frame=beacon)
        air.send(1, 2, frame=qos(1, 2, 3, 100, VOICE))
    watch.tries.clear()
    air.run(0.1)
    assert [len(each) for each in watch.bursts("n1")] == [1, 1, 1, 1]


def test_a_frame_that_is_not_acknowledged_ends_the_opportunity() -> None:
    """The next try contends anew, with a larger window (10.23.2.2)."""
    air = VirtualAir(2, [(1, 2, GOOD)])
    watch = Watch(air)
    air.engine.radio_down(air.node(2).radios[0])
    for number in range(3):
        air.send(1, 2, frame=qos(1, 2, number, 100, VIDEO), rates=[Rate(0, 3, 0)])
    air.run(0.1)
    assert [len(each) for each in watch.bursts("n1")] == [1] * 9


def test_nobody_who_hears_an_opportunity_breaks_into_it() -> None:
    air = everyone(3)
    watch = Watch(air)
    saturate(air, {1: (3, 54), 2: (3, 54)}, VIDEO)
    air.run(1)
    collided = sum(len(each) == 1 for name in ("n1", "n2") for each in watch.bursts(name))
    changes = sum(a != b for a, b in itertools.pairwise(watch.order))
    assert changes < len(watch.order) / 8
    assert collided < len(watch.order) / 20


def test_aggregates_stay_within_the_opportunity() -> None:
    """Of 3.008 ms at MCS 7 an aggregate of video takes some 17 frames of 1000 bytes, not 23."""
    air = VirtualAir(2, [(1, 2, 40)], config=MediumConfig(aggregation=True))
    watch = Watch(air)
    for number in range(60):
        frame = qos(1, 2, number, SIZE, VIDEO)
        air.send(1, 2, frame=frame, rates=[Rate(7, 4, RateFlag.MCS)])
    air.run(0.1)
    spans = [end - start for start, end in watch.tries["n1"]]
    assert 2.5e-3 < max(spans) <= 3.008e-3
    assert len(air.injected) == 60


def lengths() -> st.SearchStrategy[list[tuple[int, int]]]:
    return st.lists(
        st.tuples(st.integers(30, 2200), st.sampled_from([VIDEO, VOICE])), min_size=1, max_size=60
    )


@settings(deadline=None)
@given(lengths(), st.sampled_from(sorted(RATES)), st.floats(3, 30), st.booleans())
def test_no_burst_is_longer_than_its_limit(
    frames: list[tuple[int, int]], mbps: int, snr: float, protect: bool
) -> None:
    """But for a frame that is alone; and every frame is reported."""
    air = VirtualAir(2, [(1, 2, snr)])
    watch = Watch(air)
    flags = int(RateFlag.RTS_CTS) if protect else 0
    for number, (size, priority) in enumerate(frames):
        frame = qos(1, 2, number, size, priority)
        air.send(1, 2, frame=frame, rates=[Rate(RATES[mbps], 3, flags), Rate(0, 2, 0)])
    air.run(5)
    assert len(air.reports) == len(frames)
    assert air.engine.next_event() is None
    most = max(EDCA[category].txop for category in EDCA)
    for each in _continued(watch):
        assert each[-1][1] - each[0][0] <= most


def _continued(watch: Watch) -> Iterator[list[tuple[float, float]]]:
    return (each for each in watch.bursts("n1") if len(each) > 1)
