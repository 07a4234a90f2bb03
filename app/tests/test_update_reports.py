# SPDX-License-Identifier: Apache-2.0
"""Reports between nodes: who is believed, what rubbish costs, and how what got lost comes."""

from __future__ import annotations

import random
from collections.abc import Coroutine
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from bundles_for_tests import UpdateKey, update_key
from fleet_for_tests import CLOCK, NOW, TestFleet, one_fleet
from hypothesis import given
from hypothesis import strategies as st

from thicket.trust.cms import read
from thicket.trust.credentials import Credentials, make_credentials
from thicket.trust.signed_beacon import CHAIN_SIZE
from thicket.trust.verify import Clock, Rules
from thicket.update import member, progress, reports
from thicket.update.member import Authors, Kind, MemberError
from thicket.update.offer import OfferError, Order
from thicket.update.progress import KEEP, Progress, Stage, Stand, State, node_name
from thicket.update.reports import MAX_ITEM, Item, Reports, Taken

FLEET = one_fleet()
OFFER = b"o" * 32


def finished(making: Coroutine[Any, Any, Credentials]) -> Credentials:
    try:
        making.send(None)
    except StopIteration as end:
        made: Credentials = end.value
        return made
    raise AssertionError("it waits")


@cache
def device(index: int, fleet: TestFleet = FLEET) -> Any:
    return fleet.software()[0] if index == 0 else fleet.device(index)[0]


@cache
def credentials(index: int, clock: Clock = CLOCK, fleet: TestFleet = FLEET) -> Credentials:
    return finished(make_credentials(device(index, fleet), fleet.fleet, clock))


def name(index: int) -> str:
    peer = credentials(index).peer
    return node_name(peer.source, peer.address.packed[-6:])


class Side:
    """What one node knows, and its own records."""

    def __init__(self, index: int, start: int = 1) -> None:
        self.index = index
        self.rules = Rules(CLOCK)
        self.control: tuple[str, ...] = ()
        self.own = progress.Own(name(index), start)
        self.reports = Reports(FLEET.fleet, lambda: self.rules, lambda: self.control)

    def tell(
        self, state: State, why: str = "", now: float = 0.0, stage: Stage = Stage.NONE
    ) -> list[bytes]:
        record = self.own.tell(now, Stand(OFFER, state, 0, why, stage=stage))
        assert record is not None
        return self.reports.publish(record, credentials(self.index), now)

    def take(self, items: list[bytes], peer: str = "peer", now: float = 0.0) -> Taken:
        return self.reports.take(items, peer, now)

    def states(self) -> dict[str, State]:
        return {n: entry.record.state for n, entry in self.reports.records().items()}


def compare(here: Side, there: Side, now: float) -> None:
    """Let ``here`` greet ``there`` until nobody has anything to say."""
    items, at, other = here.reports.greeting(), there, here
    for _ in range(20):
        items = at.take(items, f"node {other.index}", now).answer
        at, other = other, at
        if not items:
            return


def order(what: str, number: int, offer: bytes = b"") -> Order:
    return Order(FLEET.fleet.identifier, number, offer, what)


def signed(text: bytes) -> bytes:
    return update_key(FLEET).message(text)


# -- who is believed


def test_a_record_is_believed_and_handed_on() -> None:
    here, there, third = Side(1), Side(2), Side(0)
    items = here.tell(State.FETCHING, "w" * 200)
    assert [len(item) for item in items] == [CHAIN_SIZE + 5, 336]
    taken = there.take(items)
    assert taken.onward == items
    assert taken.changed
    assert there.states() == {name(1): State.FETCHING}
    assert there.take(items) == Taken([], [])
    assert third.take(taken.onward).changed
    assert third.states() == there.states()
    assert third.reports.authors.checked == 4


def test_what_a_newer_node_adds_is_kept_and_handed_on() -> None:
    newer, here, third = Side(1), Side(2), Side(0)
    for state, stage, called in (
        (State.INSTALLING, Stage.CHECKING, "checking"),
        (State.INSTALLING, Stage(9), "installing-9"),
        (State(13), Stage.NONE, "state-13"),
    ):
        taken = here.take(newer.tell(state, "so", stage=stage))
        assert third.take(taken.onward).changed
        record = third.reports.records()[name(1)].record
        assert (record.called, record.why) == (called, "so")
        assert record.begun == (state is State.INSTALLING)
    assert here.reports._digest() == third.reports._digest()


def test_certificates_are_asked_for_when_they_are_not_there() -> None:
    here, there = Side(1), Side(2)
    items = here.tell(State.OFFERED)
    taken = there.take(items[1:])
    assert not taken.changed
    answer = here.take(taken.answer)
    assert there.take(answer.answer).changed
    more = here.tell(State.READY)
    assert there.take(more[1:], now=10.0).changed
    assert there.states() == {name(1): State.READY}


def test_nobody_signs_for_another_node() -> None:
    liar, there = Side(1), Side(2)
    about = progress.pack(Progress(name(3), OFFER, 5, State.DONE))
    sealed, chain = member.seal(Kind.PROGRESS, about, credentials(1), FLEET.fleet)
    taken = there.take([reports._item(Item.CERTIFICATES, chain), sealed.packed()])
    assert taken == Taken([], [])
    assert there.states() == {}
    assert there.reports.counters == {"forged": 1}
    assert liar.states() == {}


@pytest.mark.parametrize("at", [0, 5, 60, -140, -70, -1])
def test_a_changed_record_is_refused(at: int) -> None:
    here, there = Side(1), Side(2)
    items = here.tell(State.DONE, "well")
    changed = bytearray(items[1])
    changed[at] ^= 1
    assert not there.take([items[0], bytes(changed)]).changed
    assert there.states() == {}


def test_another_fleet_is_refused() -> None:
    other = TestFleet("other")
    record = progress.pack(Progress(name(1), OFFER, 5, State.DONE))
    sealed, chain = member.seal(Kind.PROGRESS, record, credentials(1, CLOCK, other), other.fleet)
    there = Side(2)
    there.take([reports._item(Item.CERTIFICATES, chain), sealed.packed()])
    assert there.states() == {}
    assert sum(there.reports.counters.values()) == 1


def test_a_revoked_node_does_not_count() -> None:
    here, there = Side(1), Side(2)
    items = here.tell(State.FAILED)
    there.take(items)
    revoked = credentials(1).peer.device
    there.rules = Rules(CLOCK, {revoked})
    assert there.states() == {}
    checked = there.reports.authors.checked
    there.take(here.tell(State.DONE, now=5.0))
    assert there.reports.counters["revoked"] >= 1
    assert there.reports.authors.checked == checked
    fresh = Side(3)
    fresh.rules = there.rules
    fresh.take(items)
    assert fresh.states() == {}
    assert fresh.reports.authors.checked == 0


def test_what_a_node_told_last_counts_for_some_days_after_its_certificate() -> None:
    here, there = Side(1), Side(2)
    items = here.tell(State.DONE)
    ends = credentials(1).peer.until
    there.rules = Rules(CLOCK._replace(now=ends + timedelta(seconds=KEEP - 60)))
    assert there.take(items).changed
    there.rules = Rules(CLOCK._replace(now=ends + timedelta(seconds=KEEP + 1000)))
    assert there.states() == {}
    fresh = Side(3)
    fresh.rules = there.rules
    fresh.take(items)
    assert fresh.states() == {}
    assert fresh.reports.counters == {"expired": 1}


# -- what rubbish costs


def test_a_peer_that_hands_on_rubbish_pays_for_it() -> None:
    here, there = Side(1), Side(2)
    items = here.tell(State.OFFERED)
    noise = random.Random(1)
    for number in range(200):
        record = progress.pack(Progress(name(1), OFFER, (1 << 60) + number, State.DONE))
        sealed = member.read(items[1])._replace(content=record, signature=noise.randbytes(64))
        there.take([items[0], sealed.packed()], "liar", number / 100)
    assert there.reports.authors.checked < 30
    assert there.reports.counters["too-often"] > 190
    assert there.take(items, "honest", 2.0).changed
    assert there.take(here.tell(State.READY), "liar", 30.0).changed


def test_a_member_that_signs_without_end_costs_little() -> None:
    """Each record is signed well and newer than the one before, and none is taken so soon."""
    there = Side(2)
    own = progress.Own(name(1), 1)
    for number in range(200):
        record = own.tell(number / 100, Stand(OFFER, State.DONE, 0, f"{number}"))
        assert record is not None
        sealed, chain = member.seal(
            Kind.PROGRESS, progress.pack(record), credentials(1), FLEET.fleet
        )
        there.take([reports._item(Item.CERTIFICATES, chain), sealed.packed()], now=number / 100)
    assert there.reports.authors.checked < 3 + progress.BURST + 3
    assert there.reports.table.dropped > 150
    assert there.take(Side(3).tell(State.DONE), now=2.0).changed


def test_a_member_that_signs_for_others_pays_for_it() -> None:
    there = Side(2)
    for number in range(1, 200):
        about = progress.pack(Progress(name(3), OFFER, number, State.DONE))
        sealed, chain = member.seal(Kind.PROGRESS, about, credentials(1), FLEET.fleet)
        there.take([reports._item(Item.CERTIFICATES, chain), sealed.packed()], "liar", number / 100)
    assert there.reports.authors.checked < 30
    assert there.reports.counters["too-often"] > 190
    assert there.take(Side(3, 2).tell(State.DONE), "honest", 2.0).changed


def test_orders_of_a_member_without_rights_cost_little() -> None:
    there = Side(2)
    for number in range(1, 200):
        sealed, chain = member.seal(
            Kind.ORDER, order("abort", number).text(), credentials(1), FLEET.fleet
        )
        there.take([reports._item(Item.CERTIFICATES, chain), sealed.packed()], "liar", number / 100)
    assert there.reports.authors.checked < 30
    assert there.reports.counters["too-often"] > 180
    assert there.reports.orders == {}


def test_digests_are_looked_at_as_seldom_as_they_are_answered() -> None:
    here = Side(1)
    here.tell(State.OFFERED)
    looks: list[bytes] = []
    digest = here.reports.table.digest

    def counted() -> bytes:
        looks.append(b"")
        return digest()

    here.reports.table.digest = counted  # type: ignore[method-assign]
    for _ in range(50):
        here.take([reports._item(Item.DIGEST, bytes(32))] * reports.MAX_ITEMS)
    assert len(looks) <= reports.COMPARISONS[1]


def test_made_up_certificates_cost_one_check() -> None:
    there = Side(2)
    items = Side(1).tell(State.OFFERED)
    chain = bytearray(items[0][5:])
    chain[-20] ^= 1  # in the signer's own signature
    sealed = member.read(items[1])._replace(key=member.key_of(bytes(chain)))
    there.take([reports._item(Item.CERTIFICATES, bytes(chain)), sealed.packed()])
    assert there.reports.authors.checked <= 1
    assert there.states() == {}


def test_old_records_cost_no_check() -> None:
    here, there = Side(1), Side(2)
    old = here.tell(State.OFFERED)
    there.take(here.tell(State.READY))
    checked = there.reports.authors.checked
    for _ in range(50):
        there.take(old)
    assert there.reports.authors.checked == checked


@given(st.lists(st.binary(max_size=60).map(lambda data: b"THU1" + data), max_size=5))
def test_any_items(items: list[bytes]) -> None:
    there = Side(2)
    taken = there.take(items)
    assert taken.onward == []
    assert all(len(item) <= MAX_ITEM for item in taken.answer)


def test_items_are_small_enough_for_one_message() -> None:
    here = Side(1)
    here.tell(State.OFFERED, "x" * 200)
    here.reports.take_order(signed(order("pause", 5).text()), 0.0)
    for item in here.take([reports._item(Item.DIGEST, bytes(32))]).answer:
        assert len(item) <= 600
    (kept,) = here.reports.orders.values()
    assert len(kept.items[0]) <= MAX_ITEM


# -- comparing


def test_what_got_lost_comes_when_digests_are_compared() -> None:
    here, there = Side(1), Side(2)
    here.tell(State.FAILED, "the radio is not in the mesh")
    there.tell(State.DONE)
    here.reports.take_order(signed(order("pause", 5).text()), 0.0)
    compare(here, there, 10.0)
    compare(there, here, 20.0)
    assert here.states() == there.states() == {name(1): State.FAILED, name(2): State.DONE}
    assert there.reports.order(OFFER, 1) == order("pause", 5)
    assert there.take(here.reports.greeting(), now=30.0).answer == []


def test_comparisons_are_limited() -> None:
    here = Side(1)
    here.tell(State.OFFERED)
    asked = [reports._item(Item.DIGEST, bytes(32))]
    answers = sum(bool(here.take(asked, now=0.0).answer) for _ in range(50))
    assert answers == reports.COMPARISONS[1]
    here.reports.disconnected("peer")


def test_a_large_fleet_is_learnt_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "MOST_ANSWERED", 3)
    monkeypatch.setattr(member, "NEW", (1.0, 5.0))
    here = Side(1)
    for index in range(1, 9):
        here.take(Side(index).tell(State.READY), f"node {index}", 100.0 * index)
    there = Side(9)
    for now in range(5):
        compare(here, there, 1000.0 + now)
        if now == 0:
            assert len(there.states()) == 5
    assert there.states() == here.states()
    assert there.reports.counters.keys() == {"later"}
    again = Side(9)
    assert len(list(again.reports.recall(there.reports.pack(), 0.0))) == 8
    assert again.states() == there.states()


def test_what_is_known_lasts_over_a_restart() -> None:
    here, there = Side(1), Side(2)
    here.take(there.tell(State.FAILED))
    here.tell(State.READY)
    here.control = there.control = (name(2),)
    here.take(there.reports.give(order("pause", 7), credentials(2), 0.0))
    here.reports.take_order(signed(order("abort", 9, OFFER).text()), 0.0)
    again = Side(1)
    again.control = here.control
    for _ in again.reports.recall(here.reports.pack(), 0.0):
        before = again.reports.authors.checked
        assert before <= 4 * (len(again.states()) + len(again.reports.orders)), "one in each step"
    assert again.states() == here.states()
    assert again.reports.greeting() == here.reports.greeting()
    assert again.reports.order(OFFER, 1) == order("abort", 9, OFFER)


@given(st.integers(0, 900), st.binary(min_size=1, max_size=3))
def test_a_damaged_file_is_read_as_far_as_it_goes(at: int, noise: bytes) -> None:
    here = damaged()
    data = here.reports.pack()
    again = Side(1)
    list(again.reports.recall(data[:at] + noise + data[at + len(noise) :], 0.0))
    assert set(again.states()) <= set(here.states())


@cache
def damaged() -> Side:
    here = Side(1)
    here.tell(State.READY)
    here.take(Side(2).tell(State.FAILED))
    return here


# -- orders


def test_the_newest_order_wins() -> None:
    here = Side(1)
    for what, number in (("pause", 5), ("resume", 6)):
        assert here.reports.take_order(signed(order(what, number).text()), 0.0).onward
    with pytest.raises(OfferError, match="newer order already"):
        here.reports.take_order(signed(order("pause", 5).text()), 0.0)
    assert here.reports.order(OFFER, 1) == order("resume", 6)
    assert here.reports.order(OFFER, 7) is None, "about an offer that was made later"
    here.reports.take_order(signed(order("abort", 4, OFFER).text()), 0.0)
    assert here.reports.order(OFFER, 1) == order("resume", 6)
    assert here.reports.order(OFFER, 7) == order("abort", 4, OFFER)


@pytest.mark.parametrize("offers", [[b""], [bytes((n,)) * 32 for n in range(8)]])
def test_orders_of_a_revoked_signer_stand_in_no_others_way(offers: list[bytes]) -> None:
    """A thief of a key numbers orders as high as can be; a node without a clock takes them."""
    here, there = Side(1), Side(2)
    there.rules = Rules(Clock(CLOCK.floor))
    thief = update_key(FLEET)
    for offer in offers:
        one = order("abort", (1 << 32) - 1, offer)
        assert there.reports.take_order(thief.message(one.text()), 0.0).onward
    there.rules = there.rules._replace(revoked={read(thief.message(b"")).certificate.common_name})
    new = UpdateKey(FLEET, "other").message(order("pause", 5).text())
    assert there.reports.take_order(new, 0.0).onward
    assert there.reports.order(OFFER, 1) == order("pause", 5)
    compare(there, here, 10.0)
    assert list(here.reports.orders) == [b""]


def test_an_order_by_a_member_that_the_configuration_names() -> None:
    here, there, third = Side(1), Side(2), Side(3)
    with pytest.raises(MemberError, match="control does not name it"):
        here.reports.give(order("pause", 5), credentials(1), 0.0)
    here.control = there.control = (name(1),)
    items = here.reports.give(order("pause", 5), credentials(1), 0.0)
    taken = there.take(items)
    assert taken.onward == items
    assert there.reports.order(OFFER, 1) == order("pause", 5)
    assert not third.take(items).changed
    assert third.reports.counters == {"not-allowed": 1}
    there.control = ()
    assert there.reports.order(OFFER, 1) is None
    there.control = (name(1),)
    there.rules = Rules(CLOCK, {credentials(1).peer.device})
    assert there.reports.order(OFFER, 1) is None


def test_orders_from_the_future_of_others_and_of_other_fleets_are_refused() -> None:
    here, there = Side(1), Side(2)
    far = int(NOW.timestamp()) + 2 * reports.AHEAD
    for bad in (order("pause", far), order("pause", 5)._replace(fleet=bytes(20))):
        there.take([b"THU1" + bytes((Item.SIGNED,)) + signed(bad.text())])
    forged = update_key(TestFleet("other")).message(order("abort", 5).text())
    there.take([b"THU1" + bytes((Item.SIGNED,)) + forged])
    assert there.reports.orders == {}
    assert sum(there.reports.counters.values()) == 3
    assert here.reports.orders == {}


def test_orders_are_bounded() -> None:
    here = Side(1)
    for number in range(1, 30):
        one = order("pause", number, number.to_bytes(32, "big"))
        here.take([b"THU1" + bytes((Item.SIGNED,)) + signed(one.text())], f"p{number}")
    assert len(here.reports.orders) == reports.MOST_ORDERS
    assert min(kept.order.number for kept in here.reports.orders.values()) > 20


def test_a_node_without_a_clock_reads_records() -> None:
    here, there = Side(1), Side(2)
    there.rules = Rules(Clock(CLOCK.floor))
    assert there.take(here.tell(State.DONE)).changed


def test_authors_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "MOST_CHAINS", 2)
    authors = Authors(FLEET.fleet, lambda: Rules(CLOCK))
    for index in (1, 2, 3):
        content = progress.pack(Progress(name(index), OFFER, 1, State.DONE))
        sealed, chain = member.seal(Kind.PROGRESS, content, credentials(index), FLEET.fleet)
        assert authors.check(sealed, "peer", 0.0, chain).node == name(index)
    assert len(authors.known) == 2
