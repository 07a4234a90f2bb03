# SPDX-License-Identifier: Apache-2.0
"""Frames that overlap at a receiver: which one it follows, what survives, who waits.

Figures of ns-3: a frame that is 5 dB stronger takes the receiver within 16 us (``Margin`` and
``CaptureWindow`` of its frame capture models); survival is the product over pieces of equal
interference. Later than that: 9 dB, the SIR of 8 of Fuxjaeger and Ruehrup (WMNC 2015).
"""

from __future__ import annotations

import math
import random

import pytest
from bianchi import in_a_slot

from meshlab.medium import reception
from meshlab.medium.airtime import Standard
from meshlab.medium.config import MediumConfig, Receiver
from meshlab.medium.error import Textbook
from meshlab.medium.objects import OnAir, parts
from meshlab.medium.stats import Loss
from meshlab.medium.virtual import BROADCAST, VirtualAir, mac
from meshlab.wire import ieee80211
from meshlab.wire.hwsim import Rate

US = 1e-6
F24 = 2412
SIX = ieee80211.LEGACY_5GHZ[0]


def ratio(db: float) -> float:
    return 10 ** (db / 10)


def group_frames(air: VirtualAir, sender: int, at: int) -> int:
    return sum(1 for i in air.injected if i.node == f"n{at}" and i.frame[10:16] == mac(sender))


# Interference as a function of time.

LENGTH = 300
END = Standard().timing(SIX, False).duration(LENGTH)
FRAME = parts(Standard().timing(SIX, False), Textbook().curve(SIX), LENGTH, END)
SIGNAL, OTHER = ratio(5), ratio(1)
ALONE, BOTH = 5.0, 10 * math.log10(SIGNAL / (1 + OTHER))
CURVE = Textbook().curve(SIX)


def test_undisturbed_and_wholly_disturbed_frames_follow_the_curve() -> None:
    alone = reception.loss(SIGNAL, FRAME, [])
    assert alone == pytest.approx(CURVE.loss(ALONE, LENGTH))
    disturbed = reception.loss(SIGNAL, FRAME, [(OTHER, -1.0, 1.0)])
    assert disturbed == pytest.approx(CURVE.loss(BOTH, LENGTH))
    assert alone < 0.5 < disturbed


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_disturbed_part_counts_for_its_bits(share: float) -> None:
    begin = 20 * US  # SIGNAL ends (17.4.3)
    lost = reception.loss(SIGNAL, FRAME, [(OTHER, begin, begin + share * (END - begin))])
    bits = (1 - share) * LENGTH * CURVE.byte(ALONE) + share * LENGTH * CURVE.byte(BOTH)
    assert lost == pytest.approx(1 - math.exp(CURVE.header(ALONE) + bits))


def test_disturbers_one_after_the_other_are_not_added_up() -> None:
    third = END / 3
    after_each_other = [(OTHER, i * third, (i + 1) * third) for i in range(3)]
    at_once = [(OTHER, 0.0, END)] * 3
    one = reception.loss(SIGNAL, FRAME, [(OTHER, 0.0, END)])
    assert reception.loss(SIGNAL, FRAME, after_each_other) == pytest.approx(one)
    three = 10 * math.log10(SIGNAL / (1 + 3 * OTHER))
    assert reception.loss(SIGNAL, FRAME, at_once) == pytest.approx(CURVE.loss(three, LENGTH))


def test_the_header_has_pieces_of_its_own() -> None:
    drowned = ratio(30)
    header = [(drowned, 16 * US, 20 * US)]
    assert reception.loss(ratio(30), FRAME, header) == pytest.approx(
        1 - math.exp(CURVE.header(10 * math.log10(ratio(30) / (1 + drowned)))), rel=1e-3
    )
    assert reception.loss(ratio(30), FRAME, [(drowned, 0.0, 16 * US)]) < 1e-6, "before it"


def test_an_interferer_that_comes_and_goes_costs_what_its_share_of_time_costs() -> None:
    """A signal of 10 dB at 1 Mbit/s survives an interferer of 5 dB. So it is lost only when the
    receiver already follows the interferer as it begins: the part of time that this one sends."""
    air = VirtualAir(4, [(1, 2, 10.0), (3, 4, 40.0)])
    air.links.set("n3", "n2", 5.0)
    own: set[int] = set()

    def more() -> None:
        own.add(air.send(3, 4, size=200, rates=[Rate(11, 7, 0)], frequency=F24))

    def reported(_node: str, cookie: int, _report: object) -> None:
        if cookie in own:
            own.discard(cookie)
            more()

    air.on_report = reported
    more()
    more()
    air.run(0.1)
    count = 600
    for _ in range(count):
        air.send(1, BROADCAST, size=300, rates=[Rate(0, 1, 0)], frequency=F24)
        air.run(0.004)
        air.trace.clear()
    frame, cycle = 26 + 4 * 8, 10 + (3 + 7.5) * 9 + 26 + 4 * 8 + 10 + 26 + 4 * 2
    lost = 1 - group_frames(air, 1, 2) / count
    assert lost == pytest.approx(frame / cycle, abs=0.06)


# Locking and capture.


def overlap(first_db: float, second_db: float, gap: float, config: Receiver) -> list[Loss | None]:
    """Return why n2 misses a first and a second frame that begins ``gap`` seconds later."""
    air = VirtualAir(3, [(1, 2, first_db), (3, 2, second_db)], config=MediumConfig(receiver=config))
    receiver = air.node(2).radios[0]
    frames = []
    for node, start in ((1, 0.0), (3, gap)):
        frame = OnAir()
        frame.radio = air.node(node).radios[0]
        frame.reach = air.engine.reaches.of(frame.radio, F24)
        frame.start, frame.end, frame.missed = start, 1.0, None
        frames.append(frame)
    first, second = frames
    reception.Locks(config).decide(second, [first])
    return [(frame.missed or {}).get(receiver) for frame in (first, second)]


KEPT, TAKEN = [None, Loss.LOCKED], [Loss.LOCKED, None]


@pytest.mark.parametrize(
    ("stronger", "gap", "expected"),
    [
        (0, 0.0, KEPT),
        (0, 1e-3, KEPT),
        (-10, 10 * US, KEPT),
        (4.9, 15 * US, KEPT),
        (5.2, 15 * US, TAKEN),
        (5.2, 17 * US, KEPT),
        (8.9, 1e-3, KEPT),
        (9.2, 1e-3, TAKEN),
    ],
)
def test_a_receiver_keeps_the_first_frame_unless_a_stronger_one_takes_it(
    stronger: float, gap: float, expected: list[Loss | None]
) -> None:
    # At 40 dB the noise changes no comparison by more than 0.1 dB.
    assert overlap(40, 40 + stronger, gap, Receiver()) == expected


def test_a_receiver_without_message_in_message_keeps_the_first_frame() -> None:
    plain = Receiver(capture_db=100)
    assert overlap(20, 50, 17 * US, plain) == KEPT
    assert overlap(20, 50, 10 * US, plain) == TAKEN


def test_a_preamble_below_the_interference_is_not_noticed() -> None:
    """The receiver cannot follow a frame of -2 dB; it still drowns one of -0.5 dB."""
    assert overlap(-2, -0.5, 1e-3, Receiver()) == [None, Loss.COLLISION]
    assert overlap(-2, 5, 1e-3, Receiver())[1] is None


def test_of_two_hidden_senders_of_equal_power_one_is_received() -> None:
    """1 Mbit/s survives an equal power (Barker's 11 chips); the receiver still follows only one."""
    air = VirtualAir(3, [(1, 2, 20.0), (3, 2, 20.0)])
    count = 300
    for _ in range(count):
        for sender in (1, 3):
            air.send(sender, BROADCAST, size=300, rates=[Rate(0, 1, 0)], frequency=F24)
        air.run(0.03)
    got = [group_frames(air, sender, 2) for sender in (1, 3)]
    assert sum(got) == count
    assert min(got) > count / 3
    assert air.engine.stats.losses[Loss.LOCKED] == count


@pytest.mark.parametrize(("leaves", "rate"), [(7, 10), (7, 40), (19, 10)])
def test_a_hub_among_hidden_leaves_receives_what_a_single_server_would(
    leaves: int, rate: int
) -> None:
    """Frames at 1 Mbit/s that find the hub busy are lost, and nothing else is: 1 / (1 + G) of them
    arrive (Erlang's loss formula for one server), but for those that several others together
    destroy; those that overlap with none that began before are e^-G."""
    chance = random.Random(1)
    air = VirtualAir(leaves + 1, [(1, i, 25 + chance.uniform(-2, 2)) for i in range(2, leaves + 2)])
    sent = 0
    while air.now < 20:
        air.run(chance.expovariate(leaves * rate))
        sender = chance.randrange(2, leaves + 2)
        air.send(sender, BROADCAST, size=200, rates=[Rate(0, 1, 0)], frequency=F24)
        sent += 1
        air.trace.clear()
    air.run(1)
    got = sum(1 for i in air.injected if i.node == "n1") / sent
    load = rate * (leaves - 1) * Standard().timing(ieee80211.LEGACY_2GHZ[0], True).duration(204)
    assert math.exp(-load) - 0.02 < got < 1 / (1 + load) + 0.02


def test_whoever_sends_follows_nothing_that_began_meanwhile() -> None:
    air = VirtualAir(3, [(1, 2, 30.0), (3, 2, 30.0)])
    air.links.set("n2", "n1", None)  # n1 does not wait for n2
    air.send(2, BROADCAST, size=1000, rates=[Rate(0, 1, 0)])  # 1.4 ms
    air.run(0.0012)
    air.send(1, BROADCAST, size=2000, rates=[Rate(0, 1, 0)])  # 2.7 ms
    air.run(0.02)
    assert group_frames(air, 1, 2) == 0
    assert air.engine.stats.losses[Loss.HALF_DUPLEX] == 1


# Carrier sense (17.3.10.6).


@pytest.mark.parametrize(("snr", "waits"), [(20.0, False), (28.0, False), (30.0, True)])
def test_who_missed_the_beginning_of_a_frame_senses_only_its_energy(
    snr: float, waits: bool
) -> None:
    """n1 begins while n2 sends. Then n2 senses n1 from -62 dBm on, 29 dB over the noise."""
    air = VirtualAir(3, [(1, 2, snr), (2, 3, 40.0)])
    air.links.set("n2", "n1", None)
    air.send(2, BROADCAST, size=1000, rates=[Rate(0, 1, 0)])  # 1.4 ms
    air.run(0.0012)
    air.send(1, BROADCAST, size=2200, rates=[Rate(0, 1, 0)])  # 3 ms
    air.run(0.0013)
    air.send(2, BROADCAST, size=100, rates=[Rate(0, 1, 0)])
    air.run(0.02)
    times = [i.at for i in air.injected if i.node == "n3"]
    assert len(times) == 2
    assert (times[1] > 0.004) is waits


def test_who_heard_the_beginning_of_a_weak_frame_waits_to_its_end() -> None:
    air = VirtualAir(3, [(1, 2, 10.0), (2, 3, 40.0)])
    air.send(2, BROADCAST)  # from now on it is on this channel
    air.run(0.01)
    start = air.now
    air.send(1, BROADCAST, size=2200, rates=[Rate(0, 1, 0)])  # 3 ms
    air.run(0.0012)
    air.send(2, BROADCAST, size=100, rates=[Rate(0, 1, 0)])
    air.run(0.02)
    times = [i.at for i in air.injected if i.node == "n3"]
    assert len(times) == 2
    assert times[1] > start + 0.003


# All together.


def bianchi(stations: int, busy: float, slot: float) -> float:
    """Return frames a second of saturated stations (Bianchi, JSAC 18 (2000) 535, eq. 13).

    :param busy: Seconds of an exchange with the gap after it, whether it succeeds or collides.
    """
    some, one = in_a_slot(stations, 16, 6)
    return one / ((1 - some) * slot + some * busy)


@pytest.mark.parametrize("stations", [2, 5, 10])
def test_saturated_stations_get_what_bianchi_says(stations: int) -> None:
    everyone = range(1, stations + 1)
    air = VirtualAir(stations, [(a, b, 30.0) for a in everyone for b in everyone if a < b])
    owner: dict[int, int] = {}

    def more(sender: int) -> None:
        cookie = air.send(sender, sender % stations + 1, size=1000, rates=[Rate(4, 7, 0)])
        owner[cookie] = sender

    air.on_report = lambda _node, cookie, _report: more(owner.pop(cookie))
    for sender in everyone:
        more(sender)
        more(sender)
    air.run(0.5)
    before = len(air.injected)
    air.run(3)
    frame = 20 + 4 * -(-(8 * 1004 + 22) // 96)
    busy = (frame + 16 + 28 + 43) * US
    expected = bianchi(stations, busy, 9 * US)
    assert (len(air.injected) - before) / 3 == pytest.approx(expected, rel=0.05)
