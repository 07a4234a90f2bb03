# SPDX-License-Identifier: Apache-2.0
"""The air: who receives, who waits, who collides, what is acknowledged, in simulated time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.medium.config import MediumConfig, NodeConfig, RadioConfig
from meshlab.medium.engine import ANSWER_DEADLINE
from meshlab.medium.error import Textbook
from meshlab.medium.objects import RECENT, REPORT, SEQ_MASK
from meshlab.medium.stats import Bounds, Loss, Stats, verdict
from meshlab.medium.virtual import (
    BROADCAST,
    FAMILY,
    FREQUENCY,
    Injected,
    Report,
    VirtualAir,
    data_frame,
    mac,
)
from meshlab.wire import hwsim, ieee80211
from meshlab.wire.hwsim import Attribute, Command, Rate, RateFlag, TxFlag

GOOD = 30.0
"""dB: nothing is lost at any rate used here but by collisions."""


def saturate(
    air: VirtualAir, sender: int, receiver: int, *, size: int = 1000, rate: int = 4
) -> None:
    """Keep four frames of a flow with the radio, whatever happens to them."""
    own: set[int] = set()

    def more() -> None:
        own.add(air.send(sender, receiver, size=size, rates=[Rate(rate, 7, 0)]))

    previous = air.on_report

    def reported(node: str, cookie: int, report: Report) -> None:
        if previous is not None:
            previous(node, cookie, report)
        if node == f"n{sender}" and cookie in own:
            own.discard(cookie)
            more()

    air.on_report = reported
    for _ in range(4):
        more()


def received(air: VirtualAir, node: int) -> int:
    return sum(1 for i in air.injected if i.node == f"n{node}")


# Delivery.


def test_a_group_frame_reaches_everyone_in_range_with_their_signal() -> None:
    air = VirtualAir(4, [(1, 2, 20.0), (1, 3, 30.0)])
    cookie = air.send(1, BROADCAST, rates=[Rate(0, 1, 0)])
    air.run(0.1)
    assert {(i.node, i.signal) for i in air.injected} == {("n2", -71), ("n3", -61)}
    assert {i.radio for i in air.injected} == {mac(2), mac(3)}
    assert all(i.frame == data_frame(mac(1), BROADCAST, 100, 1) for i in air.injected)
    report = air.reports["n1", cookie]
    assert not report.acked
    assert report.flags == TxFlag.REQ_TX_STATUS | TxFlag.NO_ACK
    assert report.rates == (Rate(0, 1, 0),)


def test_a_beacon_without_rates_is_reported_like_every_frame() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    cookie = air.send(1, BROADCAST, rates=[])
    air.run(0.1)
    assert air.reports["n1", cookie].rates == ()
    assert received(air, 2) == 1


def test_a_unicast_frame_goes_to_its_receiver_only_and_is_acknowledged() -> None:
    air = VirtualAir(3, [(1, 2, GOOD), (1, 3, GOOD)])
    cookie = air.send(1, 2)
    air.run(0.1)
    assert [i.node for i in air.injected] == ["n2"]
    report = air.reports["n1", cookie]
    assert report.acked
    assert report.signal == -61
    assert report.rates == (Rate(0, 1, 0),)
    assert air.engine.stats.acked == 1


def test_a_promiscuous_radio_gets_what_is_for_others() -> None:
    nodes = tuple(
        NodeConfig(f"n{i}", f"n{i}", (RadioConfig(mac(i), promiscuous=i == 3),)) for i in (1, 2, 3)
    )
    config = MediumConfig(nodes=nodes)
    air = VirtualAir(3, [(1, 2, GOOD), (1, 3, GOOD)], config=config)
    cookie = air.send(1, 2)
    air.run(0.1)
    assert sorted(i.node for i in air.injected) == ["n2", "n3"]
    assert air.reports["n1", cookie].acked


def test_nobody_is_there_to_acknowledge() -> None:
    air = VirtualAir(3, [(1, 3, GOOD)])
    cookie = air.send(1, 2, rates=[Rate(2, 3, 0), Rate(0, 2, 0)])
    air.run(0.1)
    report = air.reports["n1", cookie]
    assert not report.acked
    assert report.rates == (Rate(2, 3, 0), Rate(0, 2, 0))
    assert air.injected == []
    assert air.engine.stats.no_receiver == 5


def test_cut_links_carry_nothing_and_can_be_restored() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    for cut in (True, False):
        for a, b in (("n1", "n2"), ("n2", "n1")):
            if cut:
                air.links.set(a, b, None)
            else:
                air.links.restore(a, b)
        cookie = air.send(1, 2)
        air.send(2, BROADCAST)
        air.run(0.1)
        assert air.reports["n1", cookie].acked is not cut
        assert len(air.injected) == (0 if cut else 2)


def test_a_link_that_loses_frames_loses_that_part_of_all_kinds() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    for a, b in (("n1", "n2"), ("n2", "n1")):
        air.links.lose(a, b, 0.2)
    count = 2000
    for _ in range(count):
        air.send(1, 2, rates=[Rate(7, 1, 0)])  # one try, at the highest rate
        air.send(1, BROADCAST, rates=[Rate(0, 1, 0)])
        air.run(0.1)
    there, back = (air.engine.reaches.traffic[pair] for pair in (("n1", "n2"), ("n2", "n1")))
    assert (there.unicast, there.group) == (count, count)
    assert back.acks == count - there.unicast_lost
    for lost, of in (
        (there.unicast_lost, there.unicast),
        (there.group_lost, there.group),
        (back.acks_lost, back.acks),
    ):
        assert 0.16 < lost / of < 0.24
    assert received(air, 2) == 2 * count - there.unicast_lost - there.group_lost


def test_an_acknowledgement_needs_the_way_back() -> None:
    """The frame arrives at every try, but n1 does not hear n2."""
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.links.set("n2", "n1", None)
    cookie = air.send(1, 2, rates=[Rate(0, 3, 0)])
    air.run(0.1)
    assert not air.reports["n1", cookie].acked
    assert air.reports["n1", cookie].rates == (Rate(0, 3, 0),)
    assert received(air, 2) == 3
    assert air.engine.stats.ack_lost == 3
    # The kernel of the receiver tells repetitions by the Retry bit.
    assert [i.frame[1] & 0x08 for i in air.injected] == [0, 8, 8]
    assert all(i.frame[2:] == air.injected[0].frame[2:] for i in air.injected)


def test_a_weak_link_loses_at_a_fast_rate_and_not_at_a_slow_one() -> None:
    air = VirtualAir(2, [(1, 2, 12.0)])
    cookies = [
        air.send(1, 2, size=1000, rates=[Rate(7, 2, 0), Rate(4, 1, 0), Rate(0, 2, 0)])
        for _ in range(50)
    ]
    air.run(5)
    assert all(air.reports["n1", c].acked for c in cookies)
    # 54 Mbit/s needs 22 dB, 24 Mbit/s 13 dB; 6 Mbit/s is sure.
    assert {r.rates[0] for r in air.reports.values()} == {Rate(7, 2, 0)}
    assert all(len(r.rates) >= 2 for r in air.reports.values())
    assert any(len(r.rates) == 3 for r in air.reports.values())
    assert all(r.rates[2].tries == 1 for r in air.reports.values() if len(r.rates) == 3)


def test_loss_of_group_frames_follows_the_error_rate() -> None:
    """Each receiver draws for itself."""
    air = VirtualAir(3, [(1, 2, 3.0), (1, 3, 3.0)])
    rate = ieee80211.rate(0, 0, ieee80211.is_2ghz(FREQUENCY))
    curve = Textbook().curve(rate)
    expected = 1 - curve.loss(3.0, 304)
    count = 2000
    for _ in range(count):
        air.send(1, BROADCAST, size=300, rates=[Rate(0, 1, 0)])
        air.run(0.01)
    got = [received(air, 2) / count, received(air, 3) / count]
    assert 0.2 < expected < 0.95
    # Five standard deviations of a binomial distribution.
    assert all(abs(g - expected) < 5 * (expected * (1 - expected) / count) ** 0.5 for g in got)
    times = [{i.frame[22:24] for i in air.injected if i.node == n} for n in ("n2", "n3")]
    assert times[0] != times[1]


@pytest.mark.parametrize("size", [10, 16, 20])
def test_short_control_frames_are_not_injected(size: int) -> None:
    """The kernel refuses frames below 24 bytes, so the air alone decides on a block ack request."""
    air = VirtualAir(2, [(1, 2, GOOD)])
    frame = (b"\x84\0\0\0" + mac(2) + mac(1) + bytes(4))[:size]
    cookie = air.send(1, 2, frame=frame)
    air.run(0.1)
    assert air.injected == []
    assert air.reports["n1", cookie].acked
    assert air.engine.stats.short_frames == 1


def test_longer_than_the_kernel_takes() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    fits = air.send(1, 2, size=hwsim.MAX_FRAME)
    too_long = air.send(1, 2, size=hwsim.MAX_FRAME + 1)
    group = air.send(1, BROADCAST, size=hwsim.MAX_FRAME + 1)
    air.run(1)
    assert air.reports["n1", fits].acked
    assert not air.reports["n1", too_long].acked
    assert ("n1", group) in air.reports
    assert received(air, 2) == 1
    assert air.engine.stats.losses[Loss.TOO_LONG] == 5


@pytest.mark.parametrize(
    ("rate", "frequency", "index"),
    [
        (Rate(11, 1, 0), 2412, 11),
        (Rate(3, 1, 0), 2412, 3),
        (Rate(7, 1, 0), 5180, 7),
        (Rate(7, 1, RateFlag.MCS), 2412, 11),
        (Rate(0, 1, RateFlag.MCS), 5180, 0),
        (Rate(0x19, 1, RateFlag.VHT_MCS | RateFlag.WIDTH_80), 5180, 7),
        (Rate(40, 1, 0), 5180, 0),
        (Rate(13, 1, RateFlag.VHT_MCS), 5180, 0),
    ],
)
def test_the_reported_receive_rate_is_one_the_kernel_has(
    rate: Rate, frequency: int, index: int
) -> None:
    air = VirtualAir(2, [(1, 2, 60.0)])
    air.send(1, 2, rates=[rate], frequency=frequency)
    air.run(0.1)
    assert [i.rx_rate for i in air.injected] == [index]


def test_frames_of_a_radio_nobody_made_are_reported_and_dropped() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.send(1, BROADCAST, radio=5)
    air.run(0.1)
    assert len(air.reports) == 1
    assert air.injected == []
    assert air.engine.stats.unknown_radio == 1


# Acknowledgements and the receiving kernel.


def test_a_refused_frame_is_not_acknowledged() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.refuses = lambda _: True
    cookie = air.send(1, 2, rates=[Rate(4, 2, 0), Rate(0, 3, 0)])
    air.run(0.5)
    report = air.reports["n1", cookie]
    assert not report.acked
    assert report.rates == (Rate(4, 2, 0), Rate(0, 3, 0))
    assert air.engine.stats.losses[Loss.OFF_CHANNEL] >= 1
    assert air.engine.stats.deliveries == 0


def test_the_report_waits_for_the_kernel_and_the_channel_does_not() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)], latency=0.050)
    cookies = [air.send(1, 2) for _ in range(10)]
    air.run(0.5)
    reports = [air.reports["n1", c] for c in cookies]
    assert all(r.acked for r in reports)
    assert all(0.050 <= r.at < 0.060 for r in reports)


@pytest.mark.parametrize("before", [0, SEQ_MASK - 5, SEQ_MASK - 1, SEQ_MASK])
def test_a_delivery_is_known_by_its_number_until_many_more_numbers_are_taken(before: int) -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    node = air.node(2)
    node.seq = before
    air.send(1, BROADCAST)
    air.run(0.1)
    seq = node.seq
    delivery = (node.radios[0], FREQUENCY)
    assert node.delivery(seq) == delivery
    for unknown in (0, REPORT, REPORT | seq, seq + 1, seq - 1):
        assert node.delivery(unknown) is None, unknown
    air.send(1, 2)
    air.run(0.1)
    assert node.delivery(node.seq) is None, "its answer is awaited"
    for _ in range(RECENT - 3):
        node.next_seq()
    assert node.delivery(seq) == delivery
    node.next_seq()
    node.next_seq()
    assert node.delivery(seq) is None
    assert node.delivery(node.seq) is None


def test_a_refusal_without_an_awaited_answer_takes_a_delivery_back() -> None:
    air = VirtualAir(3, [(1, 2, GOOD), (1, 3, GOOD)])
    air.refuses = lambda injected: injected.node == "n2"
    air.send(1, BROADCAST)
    air.run(0.1)
    assert air.engine.stats.losses[Loss.OFF_CHANNEL] == 1
    assert air.engine.stats.deliveries == 1
    assert air.node(2).radios[0].received == 0
    assert air.node(2).radios[0].deaf.keys() == {FREQUENCY}
    assert air.engine.stats.late_answers == 0


def test_a_refused_frame_keeps_the_channel_for_its_other_tries() -> None:
    busy = {}
    for refused in (False, True):
        air = VirtualAir(2, [(1, 2, GOOD)], latency=0.001)
        air.refuses = lambda _, refused=refused: refused  # type: ignore[misc]
        air.send(1, 2, size=1500, rates=[Rate(0, 7, 0)])
        air.run(0.01)
        busy[refused] = air.node(1).radios[0].busy_until
    # Seven tries of 2 ms instead of one.
    assert busy[True] - busy[False] > 6 * 0.002


def test_a_kernel_that_never_answers_costs_the_acknowledgement_and_is_counted() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)], latency=None)
    cookie = air.send(1, 2)
    air.run(ANSWER_DEADLINE / 2)
    assert ("n1", cookie) not in air.reports
    air.run(ANSWER_DEADLINE)
    assert not air.reports["n1", cookie].acked
    assert air.engine.stats.losses[Loss.HOST_TOO_SLOW] == 1
    assert not air.node(2).pending


def test_a_receiver_that_goes_away_fails_what_waits_for_it() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)], latency=None)
    cookie = air.send(1, 2)
    air.run(0.1)
    air.engine.node_down(air.node(2))
    air.run(0.1)
    assert not air.reports["n1", cookie].acked
    assert air.engine.stats.losses[Loss.DOWN] == 1


def test_a_sender_that_goes_away_is_forgotten() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    for _ in range(5):
        air.send(1, 2, size=1500)
    air.engine.node_down(air.node(1))
    air.run(0.5)
    assert air.injected == []
    assert air.reports == {}
    assert air.engine.next_event() is None
    assert air.engine.channels.idle


def test_a_radio_that_is_off_the_channel_is_asked_seldom_until_it_speaks() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    asked = 0

    def refuse(_: Injected) -> bool:
        nonlocal asked
        asked += 1
        return deaf

    air.refuses = refuse
    deaf = True
    for _ in range(100):
        air.send(1, BROADCAST)
        air.run(0.01)
    assert 5 <= asked <= 15  # once in 100 ms
    assert air.engine.stats.losses[Loss.OFF_CHANNEL] == 100
    assert air.engine.stats.deliveries == 0
    deaf = False
    air.send(2, BROADCAST)  # it is back, and says so
    air.run(0.001)
    air.send(1, BROADCAST)
    air.run(0.01)
    assert received(air, 2) == 1


def test_a_node_that_has_not_sent_yet_receives() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.send(1, BROADCAST, frequency=2462)
    air.run(0.1)
    assert received(air, 2) == 1


def test_back_pressure_drops_frames_and_says_so() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.node(2).paused = True
    cookie = air.send(1, 2, rates=[Rate(0, 2, 0)])
    air.send(1, BROADCAST)
    air.run(0.1)
    assert not air.reports["n1", cookie].acked
    assert air.engine.stats.losses[Loss.BACK_PRESSURE] == 3
    assert air.injected == []


def test_the_air_that_a_radio_took_is_counted_with_every_try() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    (radio,) = air.node(1).radios
    # IEEE 802.11-2020, 17.3.2.4: 20 us, and 4 us for each 24 bits of 22 and of 8 for each byte
    small, large = 20 + 4 * 35, 20 + 4 * 336
    air.send(1, BROADCAST, size=96)
    air.run(0.1)
    assert radio.air * 1e6 == pytest.approx(small)
    assert radio.air_large == 0
    air.send(1, BROADCAST, size=1000)
    air.run(0.1)
    assert radio.air * 1e6 == pytest.approx(small + large)
    assert radio.air_large * 1e6 == pytest.approx(large)
    air.send(1, 3, size=1000, rates=[Rate(0, 3, 0)])
    air.run(0.1)
    with_ack = radio.air_large * 1e6 - large
    assert with_ack == pytest.approx(3 * (large + 16 + 44)), "SIFS and an acknowledgement's time"
    assert air.node(2).radios[0].air == 0


# Whether the kernels saw what the air did.


def interface(air: VirtualAir, node: int, command: Command) -> None:
    """Let an interface of a node go up or down, as its kernel tells it."""
    addresses = [(Attribute.ADDR_TRANSMITTER, mac(node)), (Attribute.ADDR_RECEIVER, mac(node))]
    air.receive(node, hwsim.encode(FAMILY, command, addresses))


def reasons(air: VirtualAir) -> list[str]:
    return verdict(air.engine.stats, Bounds(), {})


def test_a_refused_report_spoils_the_run() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.refuses_report = lambda _: True
    air.send(1, 2)
    air.send(1, BROADCAST)
    air.run(0.1)
    assert air.engine.stats.tx_info_refused == 2
    assert reasons(air) == ["2 reports on frames were refused by the kernel that had sent them"]


def test_reports_on_what_an_interface_gave_up_when_it_went_down_spoil_nothing() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)], latency=0.001)
    air.send(1, 2)
    air.run(0.0)
    interface(air, 1, Command.DEL_MAC_ADDR)
    air.refuses_report = lambda _: True
    air.run(0.1)
    assert (air.engine.stats.tx_info_withdrawn, air.engine.stats.tx_info_refused) == (1, 0)
    assert reasons(air) == []
    interface(air, 1, Command.ADD_MAC_ADDR)
    air.send(1, 2)
    air.run(0.1)
    assert air.engine.stats.tx_info_refused == 1, "it is up again and should know its frame"


def test_what_still_comes_of_an_interface_that_goes_down_spoils_nothing() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.refuses_report = lambda _: True
    interface(air, 1, Command.ADD_MAC_ADDR)
    interface(air, 1, Command.DEL_MAC_ADDR)
    air.send(1, BROADCAST)
    air.run(0.1)
    assert air.engine.stats.tx_info_withdrawn == 1
    assert reasons(air) == []


def test_another_interface_of_the_radio_that_stays_up_is_asked_for_its_frames() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.refuses_report = lambda _: True
    other = b"\x02\xaa\0\0\0\x01"
    addresses = [(Attribute.ADDR_TRANSMITTER, mac(1)), (Attribute.ADDR_RECEIVER, other)]
    air.receive(1, hwsim.encode(FAMILY, Command.ADD_MAC_ADDR, addresses))
    interface(air, 1, Command.ADD_MAC_ADDR)
    interface(air, 1, Command.DEL_MAC_ADDR)
    air.send(1, BROADCAST)
    air.run(0.1)
    assert air.engine.stats.tx_info_refused == 1


def test_a_report_that_crosses_the_removal_of_its_radio_spoils_nothing() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])

    def removed(_: Report) -> bool:
        air.engine.radio_down(air.node(1).radios[0])
        return True

    air.refuses_report = removed
    air.send(1, BROADCAST)
    air.run(0.1)
    assert air.engine.stats.tx_info_withdrawn == 1
    assert reasons(air) == []


def test_frames_that_an_unplugged_radio_still_sent_spoil_nothing() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    radio = air.node(1).radios[0]
    radio.plugged = False
    air.engine.radio_down(radio)
    air.send(1, BROADCAST)
    air.run(0.1)
    assert len(air.reports) == 1
    assert reasons(air) == []


@pytest.mark.parametrize(
    "counter",
    [
        "kernel_overflow",
        "late_answers",
        "malformed",
        "tx_info_refused",
        "unknown_radio",
        "bad_rates",
    ],
)
def test_what_a_kernel_did_not_see_as_it_was_spoils_the_run(counter: str) -> None:
    stats = Stats()
    assert verdict(stats, Bounds(), {}) == []
    setattr(stats, counter, 3)
    assert [reason.split()[0] for reason in verdict(stats, Bounds(), {})] == ["3"]


def test_a_rate_that_does_not_exist_spoils_each_measurement_anew() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    for _ in range(2):
        air.send(1, 2, rates=[Rate(77, 1, RateFlag.MCS)])
        air.run(0.1)
        assert air.engine.stats.bad_rates == 1
        air.engine.reset_stats()


def test_an_answer_to_what_the_medium_has_forgotten_spoils_the_run() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)], latency=ANSWER_DEADLINE + 1)
    air.send(1, 2)
    air.run(ANSWER_DEADLINE + 0.5)
    air.run(2)
    assert air.engine.stats.late_answers == 1


# Addresses.


def test_addresses_of_interfaces_are_told_or_learned() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    told, learned = b"\x02\xaa\0\0\0\x01", b"\x02\xaa\0\0\0\x02"
    message = hwsim.encode(
        FAMILY,
        Command.ADD_MAC_ADDR,
        [(Attribute.ADDR_TRANSMITTER, mac(2)), (Attribute.ADDR_RECEIVER, told)],
    )
    air.receive(2, message)
    air.send(2, BROADCAST, frame=data_frame(learned, BROADCAST))
    air.run(0.1)
    for address in (told, learned, mac(2)):
        assert air.reports["n1", _sent(air, address)].acked
    message = hwsim.encode(
        FAMILY,
        Command.DEL_MAC_ADDR,
        [(Attribute.ADDR_TRANSMITTER, mac(2)), (Attribute.ADDR_RECEIVER, told)],
    )
    air.receive(2, message)
    assert not air.reports["n1", _sent(air, told)].acked


def _sent(air: VirtualAir, receiver: bytes) -> int:
    cookie = air.send(1, receiver)
    air.run(0.1)
    return cookie


def test_a_radio_remembers_few_addresses_and_always_its_own() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    for i in range(100):
        air.send(2, BROADCAST, frame=data_frame(b"\x02\xbb\0\0\0" + bytes((i,)), BROADCAST))
    air.run(1)
    radio = air.node(2).radios[0]
    assert len(radio.addresses) <= 16
    assert mac(2) in radio.addresses
    assert len(air.engine.addresses.owners) <= 17


def test_two_nodes_with_the_same_address_both_receive() -> None:
    nodes = tuple(NodeConfig(f"n{i}", f"n{i}", (RadioConfig(mac(min(i, 2))),)) for i in (1, 2, 3))
    air = VirtualAir(3, [(1, 2, GOOD), (1, 3, GOOD)], config=MediumConfig(nodes=nodes))
    cookie = air.send(1, 2)
    air.run(0.1)
    assert sorted(i.node for i in air.injected) == ["n2", "n3"]
    assert air.reports["n1", cookie].acked


# Several radios and channels.


def test_two_radios_of_one_node_are_two_radios() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)], radios=2)
    air.send(1, BROADCAST, frequency=2412)
    air.run(0.1)
    # Both radios of n2 and the other one of n1; which channel they are on only the kernels know.
    assert {(i.node, i.radio) for i in air.injected} == {
        ("n1", mac(1, 1)),
        ("n2", mac(2, 0)),
        ("n2", mac(2, 1)),
    }


def test_channels_do_not_wait_for_each_other() -> None:
    alone = VirtualAir(4, [(a, b, GOOD) for a in range(1, 5) for b in range(a + 1, 5)])
    saturate(alone, 1, 2)
    alone.run(1)
    both = VirtualAir(4, [(a, b, GOOD) for a in range(1, 5) for b in range(a + 1, 5)])
    for _ in range(400):
        both.send(3, 4, size=1000, rates=[Rate(0, 1, 0)], frequency=5200)
        both.run(0.0)
        if both.node(3).radios[0].queued > 150:
            break
    saturate(both, 1, 2)
    both.run(0.2)
    assert received(both, 2) >= received(alone, 2) * 0.2 * 0.95


def test_a_radio_that_changes_the_channel_senses_it_first() -> None:
    air = VirtualAir(3, [(1, 2, GOOD), (1, 3, GOOD), (2, 3, GOOD)])
    air.send(1, BROADCAST, size=2000, frequency=5200)  # 2.7 ms
    air.run(0.0015)
    air.send(2, BROADCAST, frequency=5200)
    air.run(0.1)
    assert air.engine.stats.losses[Loss.COLLISION] == 0
    assert [i.node for i in air.injected].count("n3") == 2


def test_an_unplugged_radio_neither_sends_nor_receives() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    radio = air.node(2).radios[0]
    radio.plugged = False
    air.engine.radio_down(radio)
    cookie = air.send(1, 2)
    air.send(2, BROADCAST)
    air.run(0.1)
    assert not air.reports["n1", cookie].acked
    assert air.injected == []


# The shared channel.


def throughput(air: VirtualAir, node: int, seconds: float) -> float:
    before = received(air, node)
    air.run(seconds)
    return (received(air, node) - before) / seconds


def test_one_saturated_link_gets_what_the_standard_allows() -> None:
    """1000 bytes at 24 Mbit/s on 5 GHz: airtimes and gaps of clause 17 and 10.3."""
    air = VirtualAir(2, [(1, 2, GOOD)])
    saturate(air, 1, 2)
    data = 20 + 4 * -(-(8 * 1004 + 22) // 96)
    cycle = 43 + 7.5 * 9 + data + 16 + 28  # AIFS, mean backoff, frame, SIFS, Ack at 24 Mbit/s
    assert throughput(air, 2, 2) == pytest.approx(1e6 / cycle, rel=0.02)


def test_pairs_in_range_share_the_channel_and_far_pairs_do_not() -> None:
    """The complaint about one global channel: a second pair far away must cost nothing."""
    alone = VirtualAir(4, [(1, 2, GOOD), (3, 4, GOOD)])
    saturate(alone, 1, 2)
    single = throughput(alone, 2, 1)
    far = VirtualAir(4, [(1, 2, GOOD), (3, 4, GOOD)])
    saturate(far, 1, 2)
    saturate(far, 3, 4)
    far.run(1)
    assert received(far, 2) == pytest.approx(single, rel=0.03)
    assert received(far, 4) == pytest.approx(single, rel=0.03)
    near = VirtualAir(4, [(a, b, GOOD) for a in range(1, 5) for b in range(a + 1, 5)])
    saturate(near, 1, 2)
    saturate(near, 3, 4)
    near.run(1)
    assert received(near, 2) + received(near, 4) == pytest.approx(single, rel=0.10)
    assert received(near, 2) == pytest.approx(received(near, 4), rel=0.15)


def chain(hops: int, air: VirtualAir, seconds: float) -> float:
    """Frames a second that arrive at the end of a saturated chain of relays."""

    def forward(injected: Injected) -> None:
        here = int(injected.node[1:])
        if here <= hops and injected.frame[0] == 8:
            air.send(here, here + 1, size=1000, rates=[Rate(4, 7, 0)])

    air.on_injected = forward
    own: set[int] = set()

    def more() -> None:
        own.add(air.send(1, 2, size=1000, rates=[Rate(4, 7, 0)]))

    def reported(node: str, cookie: int, _report: Report) -> None:
        # The source waits for the relays' queues, as TCP would.
        if node == "n1" and cookie in own:
            own.discard(cookie)

    air.on_report = reported
    end = air.now + seconds
    while air.now < end:
        waiting = sum(r.queued for n in air.engine.nodes.values() for r in n.radios)
        if len(own) < 2 and waiting < 2 * hops:
            more()
        air.run(0.0002)
    return received(air, hops + 1) / seconds


def test_a_chain_in_one_hearing_range_gives_one_nth() -> None:
    """Every hop needs the same channel: throughput 1/n (Li et al., MobiCom 2001)."""
    results = []
    for hops in (1, 2, 3, 4):
        nodes = hops + 1
        air = VirtualAir(
            nodes, [(a, b, GOOD) for a in range(1, nodes + 1) for b in range(a + 1, nodes + 1)]
        )
        results.append(chain(hops, air, 1.0))
    for n, got in enumerate(results, start=1):
        assert got * n == pytest.approx(results[0], rel=0.15), results


def test_a_long_line_reuses_the_channel() -> None:
    """In a line whose far nodes do not hear each other, 6 hops get more than a sixth."""
    one = chain(1, VirtualAir(2, [(1, 2, GOOD)]), 1.0)
    line = chain(6, VirtualAir(7, [(i, i + 1, GOOD) for i in range(1, 7)]), 2.0)
    assert one / 6 < line < one / 2


def overlapped(air: VirtualAir) -> float:
    """Return the part of tries that another frame cost."""
    stats = air.engine.stats
    return (stats.losses[Loss.COLLISION] + stats.losses[Loss.LOCKED]) / stats.attempts


def test_hidden_nodes_collide_and_rts_protects_them() -> None:
    """n1 and n3 do not hear each other and both send to n2."""
    hidden = VirtualAir(3, [(1, 2, GOOD), (3, 2, GOOD)])
    saturate(hidden, 1, 2)
    saturate(hidden, 3, 2)
    hidden.run(1)
    collided = overlapped(hidden)
    assert collided > 0.25

    heard = VirtualAir(3, [(1, 2, GOOD), (3, 2, GOOD), (1, 3, GOOD)])
    saturate(heard, 1, 2)
    saturate(heard, 3, 2)
    heard.run(1)
    # Only those who choose the same slot: 0.03 to 0.12 for two stations (Bianchi, JSAC 2000).
    assert 0.02 < overlapped(heard) < 0.14
    assert received(heard, 2) > 1.4 * received(hidden, 2)

    protected = VirtualAir(3, [(1, 2, GOOD), (3, 2, GOOD)])
    for sender in (1, 3):
        for _ in range(100):
            protected.send(sender, 2, size=1000, rates=[Rate(4, 7, RateFlag.RTS_CTS)])
    protected.run(0.2)
    assert overlapped(protected) < collided / 2


RTS = RateFlag.RTS_CTS


def test_a_lost_rts_costs_less_than_a_lost_frame() -> None:
    """n2 is down: ten times 20 bytes and a timeout, instead of 2,000 bytes (2.7 ms)."""
    took = {}
    for flags in (0, RTS):
        air = VirtualAir(3, [(1, 2, GOOD), (1, 3, GOOD)])
        air.engine.radio_down(air.node(2).radios[0])
        cookie = air.send(1, 2, size=2000, rates=[Rate(0, 10, int(flags))])
        air.run(1.0)
        assert not air.reports["n1", cookie].acked
        assert air.reports["n1", cookie].rates[0].tries == 10
        took[flags] = air.reports["n1", cookie].at
    assert took[0] > 0.027
    assert took[RTS] < took[0] - 0.02


def test_who_hears_an_rts_that_nobody_answers_goes_on() -> None:
    """The NAV of an RTS ends when its frame should have begun and did not (10.3.2.4)."""
    air = VirtualAir(3, [(1, 3, GOOD)])
    air.send(1, 2, size=2000, rates=[Rate(0, 1, int(RTS))])
    air.run(0.0005)
    busy = air.node(3).radios[0]
    busy.frequency = 5180
    air.run(0.01)
    cookie = air.send(3, 1, size=100)
    began = air.now
    air.run(1.0)
    assert air.reports["n3", cookie].acked
    assert air.reports["n3", cookie].at - began < 0.002


def test_who_hears_the_cts_only_is_quiet_for_the_whole_exchange() -> None:
    """n3 hears n2 and not n1; its frame begins after the acknowledgement of n1's."""
    air = VirtualAir(3, [(1, 2, GOOD), (2, 3, GOOD)])
    air.send(3, 2, size=50)
    air.run(0.1)
    for _ in range(20):
        first = air.send(1, 2, size=2000, rates=[Rate(0, 1, int(RTS))])
        air.run(0.0013)  # the RTS is over in any case
        second = air.send(3, 2, size=50, rates=[Rate(0, 1, 0)])
        air.run(0.1)
        assert air.reports["n1", first].acked
        assert air.reports["n3", second].acked
        assert air.reports["n3", second].at > air.reports["n1", first].at
    assert air.engine.stats.losses[Loss.COLLISION] == air.engine.stats.losses[Loss.LOCKED] == 0


def test_the_stronger_of_two_colliding_frames_can_survive() -> None:
    """Capture: 35 dB against 5 dB leaves 29 dB of signal to interference."""
    air = VirtualAir(3, [(1, 2, 35.0), (3, 2, 5.0)])
    for _ in range(50):
        air.send(1, BROADCAST, size=1000, rates=[Rate(0, 1, 0)])
        air.send(3, BROADCAST, size=1000, rates=[Rate(0, 1, 0)])
        air.run(0.02)
    from_strong = sum(1 for i in air.injected if i.node == "n2" and i.frame[10:16] == mac(1))
    from_weak = sum(1 for i in air.injected if i.node == "n2" and i.frame[10:16] == mac(3))
    assert from_strong == 50
    assert from_weak < 5
    assert overlapped(air) >= 0.45


def test_nobody_receives_while_sending() -> None:
    """n1 hears n2, which does not hear n1 and therefore does not wait."""
    air = VirtualAir(2, [(1, 2, GOOD)])
    air.links.set("n1", "n2", None)
    air.send(1, BROADCAST, size=2000)  # 2.7 ms
    air.run(0.0015)
    air.send(2, BROADCAST, size=500)
    air.run(0.1)
    assert air.injected == []
    assert air.engine.stats.losses[Loss.HALF_DUPLEX] == 1


def test_urgent_frames_overtake_the_others() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    for _ in range(20):
        air.send(1, 2, size=1500)
    beacon = b"\x80\0\0\0" + BROADCAST + mac(1) + mac(1) + bytes(14)
    air.send(1, BROADCAST, frame=beacon)
    air.run(1)
    assert [i.frame[0] for i in air.injected].index(0x80) <= 1


def test_more_than_the_kernel_keeps_is_given_up_as_the_kernel_does() -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    for _ in range(250):
        air.send(1, 2, size=1500)
    assert air.node(1).radios[0].queued <= hwsim.MAX_PENDING
    air.run(5)
    assert air.engine.stats.kernel_overflow > 0
    assert air.engine.stats.kernel_overflow + air.engine.stats.acked == 250


# Positions.


def test_moving_a_node_makes_its_links_follow_the_distance() -> None:
    nodes = tuple(
        NodeConfig(f"n{i}", f"n{i}", (RadioConfig(mac(i)),), position=(100.0 * i, 0.0))
        for i in (1, 2)
    )
    air = VirtualAir(2, [(1, 2, 40.0)], config=MediumConfig(nodes=nodes))
    signals = []
    for x in (None, 110.0, 150.0, 200.0, 100_000.0):
        if x is not None:
            air.links.move("n2", x, 0.0)
        before = len(air.injected)
        air.send(1, BROADCAST)
        air.run(0.1)
        signals.append(air.injected[-1].signal if len(air.injected) > before else None)
    assert signals[0] == -51  # the explicit link
    assert signals[4] is None
    heard = [s for s in signals[1:4] if s is not None]
    assert heard == sorted(heard, reverse=True)
    assert len(heard) == 3


# Determinism.


def scenario(seed: str) -> VirtualAir:
    air = VirtualAir(4, [(1, 2, 6.0), (2, 3, 5.0), (3, 4, 7.0), (1, 3, 4.5)], seed=seed)
    for i in range(300):
        air.send(1 + i % 4, BROADCAST if i % 3 else 1 + (i + 1) % 4, size=100 + i)
        air.run(0.0007)
    air.run(1)
    return air


def test_the_same_seed_gives_the_same_bytes_at_the_same_times() -> None:
    first, second, other = scenario("a"), scenario("a"), scenario("b")
    assert first.trace == second.trace
    assert first.injected == second.injected
    assert first.engine.stats.to_json() == second.engine.stats.to_json()
    assert first.trace != other.trace


def test_a_link_draws_the_same_whatever_other_links_do() -> None:
    """Seeds belong to links: another link more does not change the luck of this one."""
    few = VirtualAir(2, [(1, 2, 3.0)])
    more = VirtualAir(3, [(1, 2, 3.0), (1, 3, 3.0)])
    for air in (few, more):
        for _ in range(200):
            air.send(1, BROADCAST, size=300)
            air.run(0.01)
    got = [[i.frame for i in air.injected if i.node == "n2"] for air in (few, more)]
    assert got[0] == got[1]
    assert 0 < len(got[0]) < 200


# Bad input.


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_message_is_taken_or_called_malformed(message: bytes) -> None:
    air = VirtualAir(1)
    try:
        air.receive(1, message)
    except hwsim.HwsimError:
        return
    air.run(0.1)


@settings(deadline=None)
@given(st.data())
def test_a_damaged_frame_message_does_no_harm(data: st.DataObject) -> None:
    air = VirtualAir(2, [(1, 2, GOOD)])
    tx_info, tx_info_flags = hwsim.encode_series([Rate(0, 1, 0)])
    message = bytearray(
        hwsim.encode_frame(
            FAMILY,
            hwsim.TxFrame(
                mac(1), data_frame(mac(1), mac(2)), 1, FREQUENCY, tx_info, tx_info_flags, 1
            ),
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        air.receive(1, bytes(message))
    except hwsim.HwsimError:
        return
    air.run(1)
    assert air.engine.next_event() is None


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-128, 127), st.integers(0, 255), st.integers(0, 65535)),
        min_size=4,
        max_size=4,
    ),
    st.sampled_from([2412, 5180, 5955]),
)
def test_any_rate_series_is_sent_and_reported(
    entries: list[tuple[int, int, int]], frequency: int
) -> None:
    air = VirtualAir(2, [(1, 2, 60.0)])
    cookie = air.send(1, 2, rates=[Rate(*e) for e in entries], frequency=frequency)
    air.run(1)
    report = air.reports["n1", cookie]
    usable = 0
    while usable < 4 and entries[usable][0] >= 0:
        usable += 1
    assert len(report.rates) <= max(usable, 0)
    if report.rates:
        assert report.rates[0].idx == entries[0][0]


def test_nothing_is_left_behind() -> None:
    """After traffic of every kind no event, no waiting frame and no transmission remains."""
    air = scenario("x")
    air.run(3)
    assert air.engine.next_event() is None
    assert air.engine.channels.idle
    for node in air.engine.nodes.values():
        assert not node.pending
        assert all(r.current is None and r.queued == 0 for r in node.radios)
    assert air.engine.stats.frames == len(air.reports)


def test_removing_a_node_leaves_the_others() -> None:
    air = VirtualAir(3, [(1, 2, GOOD), (1, 3, GOOD)])
    air.engine.remove_node("n2")
    cookie = air.send(1, 3)
    gone = air.send(1, 2)
    air.run(0.1)
    assert air.reports["n1", cookie].acked
    assert not air.reports["n1", gone].acked
    assert mac(2) not in air.engine.addresses.owners
    with pytest.raises(ValueError, match="already"):
        air.engine.add_node(replace(air.config.nodes[0]))
