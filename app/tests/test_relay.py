# SPDX-License-Identifier: Apache-2.0
"""thicket.distribution.relay: messages that go from node to node, without sockets, in no time."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thicket.distribution import relay
from thicket.distribution.etf import Atom, decode_bare, encode_bare
from thicket.distribution.ledger import Record
from thicket.distribution.relay import (
    BURST,
    DROPS,
    HOLD,
    KEPT_BYTES,
    MAX_BODY,
    MAX_HOPS,
    MAX_NUMBER,
    PATIENCE,
    RATE,
    SPARE,
    WINDOW,
    WINDOW_BYTES,
    Cast,
    Deliver,
    Pass,
    Relay,
    Taken,
    Way,
    mark_of,
    pack,
    unpack,
)
from thicket.distribution.roster import LINKS, Records, Roster, Says, Send, body_of

words = st.text(max_size=40)
casts = st.builds(
    Cast,
    st.text(min_size=1, max_size=60),
    st.integers(0, 2**32 - 1),
    st.integers(0, MAX_HOPS),
    words,
    st.binary(max_size=60),
    st.dictionaries(
        st.binary(min_size=8, max_size=8), st.integers(0, MAX_NUMBER), min_size=1, max_size=20
    ),
    st.binary(max_size=200),
)
terms = st.recursive(
    st.integers() | st.binary(max_size=30) | st.booleans() | st.sampled_from([Atom("cast")]),
    lambda inner: st.lists(inner, max_size=9) | st.lists(inner, max_size=9).map(tuple),
)


@given(casts | st.builds(Taken, st.integers(1, 2 * WINDOW)))
def test_messages_have_a_form(message: Cast | Taken) -> None:
    packed = encode_bare(pack(message), text=True)
    assert unpack(decode_bare(packed)[0]) == message
    if isinstance(message, Cast):
        assert abs(message.size - len(packed)) < 64


@given(terms | st.lists(terms, min_size=7, max_size=7).map(lambda rest: (Atom("cast"), *rest)))
def test_what_has_another_form_is_no_message(term: object) -> None:
    found = unpack(term)
    assert found is None or pack(found) == term


@given(casts, st.integers(0, 7), st.binary(max_size=3000))
def test_a_changed_field_is_read_as_it_is_or_not_at_all(
    message: Cast, at: int, field: bytes
) -> None:
    packed = list(pack(message))
    packed[at] = field
    found = unpack(tuple(packed))
    if found is not None:
        assert isinstance(found, Cast)
        assert max(map(len, (found.origin, found.group))) <= relay.MAX_WORD
        assert 0 < len(found.targets) <= relay.MAX_TARGETS
        assert found.hops <= MAX_HOPS


# --- fleets -------------------------------------------------------------------------------------


class Fleet:
    """Rosters and relays whose messages take a while; those on a link that is cut are lost.

    :ivar got: what each node delivered: sender and number.
    :ivar sent: messages by link and kind.
    """

    def __init__(self, links: Iterable[tuple[int, int]], seed: int = 1) -> None:
        self.luck = random.Random(seed)
        self.now = 0.0
        self.rosters: dict[str, Roster] = {}
        self.relays: dict[str, Relay] = {}
        self.got: dict[str, list[tuple[str, int]]] = {}
        self.bytes: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()
        self.count: Counter[str] = Counter()
        self.asked: dict[tuple[str, str], list[int]] = {}
        self.reads: Callable[[str], bool] = lambda _name: True
        self._up: dict[frozenset[str], int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = itertools.count()
        self._last: dict[tuple[str, str], float] = {}
        for one, other in links:
            for number in (one, other):
                if name_of(number) not in self.rosters:
                    self.add(name_of(number))
            self.connect(name_of(one), name_of(other))
        self.run(5)

    def add(self, name: str) -> None:
        made = Roster(name, self.luck.uniform)
        self.rosters[name] = made
        self.relays[name] = Relay(name, made.ways, lambda: self.luck.getrandbits(32))
        self.got[name] = []

    def connect(self, one: str, other: str) -> None:
        link = frozenset((one, other))
        self._up[link] = self._up.get(link, 0) + 1
        for name, peer in ((one, other), (other, one)):
            self._last.pop((name, peer), None)
            self.rosters[name].peer_up(peer, self.now, speaks=True)
            chosen = {p for p in self.rosters if frozenset((name, p)) in self._up}
            self.rosters[name].choose(chosen, keeps_all=False, now=self.now)
            self._step(name)

    def cut(self, one: str, other: str) -> None:
        """The link is silent; its ends find out one after the other."""
        del self._up[frozenset((one, other))]
        for name, peer in ((one, other), (other, one)):
            self.after(self.luck.uniform(0.0, 1.0), lambda n=name, p=peer: self._lose(n, p))  # type: ignore[misc]

    def _lose(self, name: str, peer: str) -> None:
        if name in self.rosters:
            self.rosters[name].peer_down(peer, self.now)
            self.relays[name].peer_down(peer, self.now)
            self._step(name)

    def remove(self, name: str) -> None:
        del self.rosters[name], self.relays[name]
        for link in [link for link in self._up if name in link]:
            self.cut(*link)

    def publish(self, name: str, size: int = 20) -> None:
        """Send the next message of a node to all others that it knows."""
        self.count[name] += 1
        body = self.count[name].to_bytes(8, "big") + bytes(size - 8)
        targets = sorted(self.rosters[name].members)
        for target in targets:
            self.asked.setdefault((name, target), []).append(self.count[name])
        self.relays[name].send(self.relays[name].make("pg", b"g", targets, body), self.now)
        self._step(name)

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + seconds, next(self._turn), then))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due, name = min(
                (min(self.rosters[n].due(), self.relays[n].due()), n) for n in self.rosters
            )
            at = self._heap[0][0] if self._heap else float("inf")
            if min(due, at) > end:
                self.now = end
                return
            self.now = max(self.now, min(due, at))
            if at <= due:
                heapq.heappop(self._heap)[2]()
            else:
                self._step(name)

    def _step(self, name: str) -> None:
        made, casting = self.rosters[name], self.relays[name]
        epoch = made.epoch
        for action in made.step(self.now):
            if isinstance(action, Send):
                self._carry(name, action.peer, action.message)
        if made.epoch != epoch:
            casting.changed(self.now)
        for found in casting.step(self.now):
            if isinstance(found, Pass):
                self.passed[type(found.message).__name__] += 1
                size = len(encode_bare(pack(found.message), text=True))
                self.bytes[name] += size
                self._carry(name, found.peer, found.message)
            else:
                self.got[name].append((found.cast.origin, int.from_bytes(found.cast.body[:8])))

    def _carry(self, name: str, peer: str, message: object) -> None:
        link = frozenset((name, peer))
        stands = self._up.get(link)
        if isinstance(message, Cast | Taken):
            message = unpack(decode_bare(encode_bare(pack(message), text=True))[0])
        at = max(self.now + self.luck.uniform(0.002, 0.02), self._last.get((name, peer), 0.0))
        self._last[name, peer] = at

        def arrive() -> None:
            if stands is None or self._up.get(link) != stands or peer not in self.rosters:
                return
            if isinstance(message, Cast | Taken):
                if self.reads(peer):
                    self.relays[peer].receive(name, message, self.now)
            else:
                self.rosters[peer].receive(name, message, self.now)  # type: ignore[arg-type]
            self._step(peer)

        self.after(at - self.now, arrive)

    def drops(self) -> Counter[str]:
        total: Counter[str] = Counter()
        for one in self.relays.values():
            total.update({k: v for k, v in one.counters.items() if k in (*DROPS, "lost")})
        return +total

    def check(self, *, all_of: bool = True) -> None:
        """Everything came once, in the order of its sender; and all of it."""
        for name, got in self.got.items():
            for origin in self.rosters:
                numbers = [number for sender, number in got if sender == origin]
                assert numbers == sorted(set(numbers)), (name, origin)
                if all_of and name in self.rosters:
                    assert numbers == self.asked.get((origin, name), []), (name, origin)


def name_of(number: int) -> str:
    return f"n@fd12::{number:x}"


def line(count: int) -> list[tuple[int, int]]:
    return [(at, at + 1) for at in range(count - 1)]


def ring(count: int) -> list[tuple[int, int]]:
    return [*line(count), (count - 1, 0)]


def anyhow(count: int, seed: int) -> list[tuple[int, int]]:
    """A random graph: a tree, and half as many links again."""
    luck = random.Random(seed)
    found = {(luck.randrange(at), at) for at in range(1, count)}
    while len(found) < count + count // 2:
        found.add(tuple(sorted(luck.sample(range(count), 2))))  # type: ignore[arg-type]
    return sorted(found)


GRAPHS = {"line": line(8), "ring": ring(9), "anyhow": anyhow(14, 4), "other": anyhow(20, 5)}


@pytest.mark.parametrize("graph", GRAPHS)
def test_all_get_all_once_and_a_message_crosses_a_link_once(graph: str) -> None:
    fleet = Fleet(GRAPHS[graph])
    for _ in range(3):
        for name in fleet.rosters:
            fleet.publish(name)
    fleet.run(10)
    fleet.check()
    nodes = len(fleet.rosters)
    assert fleet.passed["Cast"] == 3 * nodes * (nodes - 1)
    assert not fleet.drops()
    assert all(one.due() == float("inf") for one in fleet.relays.values()), "all is done"


@pytest.mark.parametrize("seed", range(12))
def test_cuts_that_leave_a_way_cost_nothing(seed: int) -> None:
    luck = random.Random(seed)
    links = ring(8) if seed % 3 == 0 else anyhow(12, seed)
    fleet = Fleet(links, seed)
    for _ in range(30):
        fleet.publish(luck.choice(sorted(fleet.rosters)))
        fleet.run(luck.uniform(0.0, 0.4))
        if luck.random() < 0.3:
            for link in luck.sample(sorted(map(sorted, fleet._up)), len(fleet._up)):
                if len(connected(set(fleet._up) - {frozenset(link)})) == len(fleet.rosters):
                    fleet.cut(*link)
                    again = luck.uniform(2.5, 6.0)
                    fleet.after(again, lambda link=link: fleet.connect(*link))  # type: ignore[misc]
                    break
    fleet.run(30)
    fleet.check()
    assert not fleet.drops()


def connected(links: set[frozenset[str]]) -> set[str]:
    found = set(next(iter(links)))
    while more := {name for link in links if link & found for name in link} - found:
        found |= more
    return found


@pytest.mark.parametrize("graph", ["line", "anyhow"])
def test_what_is_lost_is_counted_and_the_rest_keeps_its_order(graph: str) -> None:
    fleet = Fleet(GRAPHS[graph], 3)
    middle = name_of(3)
    senders = [name for name in fleet.rosters if name != middle]
    for turn in range(40):
        for name in senders:
            fleet.publish(name)
        fleet.run(0.05)
        if turn == 10:
            fleet.remove(middle)
    fleet.run(PATIENCE + HOLD)
    before = {name: list(got) for name, got in fleet.got.items()}
    fleet.check(all_of=False)
    # What comes later tells what did not come: it is counted where it is missing.
    if graph == "line":
        for one, other in ((2, 4),):
            fleet.connect(name_of(one), name_of(other))
        fleet.run(5)
    for name in senders:
        fleet.publish(name)
    fleet.run(PATIENCE)
    fleet.check(all_of=False)
    for name in senders:
        for origin in senders:
            got = [number for sender, number in fleet.got[name] if sender == origin]
            assert name == origin or fleet.count[origin] in got, "the last one has come"
    came = sum(origin != middle for name in senders for origin, _ in fleet.got[name])
    assert all(fleet.got[name][: len(got)] == got for name, got in before.items())
    # In the line nobody sent to the nodes behind the gap once these were gone.
    asked = sum(len(numbers) for (_, to), numbers in fleet.asked.items() if to != middle)
    assert asked - came == sum(one.counters["lost"] for one in fleet.relays.values())


def test_a_sender_waits_for_its_neighbour_and_nothing_is_lost_of_much() -> None:
    fleet = Fleet(ring(6))
    sent: Counter[str] = Counter()
    for _ in range(20000):
        idle = True
        for name, casting in fleet.relays.items():
            hops = {way.hop for way in fleet.rosters[name].ways().values() if way.hops}
            if sent[name] < 100 and all(map(casting.has_room, hops)):
                fleet.publish(name, 600)
                sent[name] += 1
                idle = False
        held = max(
            len(link.waiting) for one in fleet.relays.values() for link in one._links.values()
        )
        assert held <= 3 * WINDOW
        if idle:
            fleet.run(0.02)
        if min(sent.values()) == 100:
            break
    fleet.run(60)
    assert not fleet.drops(), fleet.drops()
    fleet.check()


def test_a_neighbour_that_takes_nothing_holds_a_bounded_number() -> None:
    fleet = Fleet(line(3))
    fleet.reads = lambda name: name != name_of(1)
    for _ in range(2 * WINDOW):
        fleet.publish(name_of(0))
    assert not fleet.relays[name_of(0)].has_room(name_of(1))
    fleet.run(1)
    assert fleet.passed["Cast"] == WINDOW
    fleet.run(PATIENCE)
    assert fleet.relays[name_of(0)].counters["stuck"] == 2 * WINDOW, "for two targets each"


def test_what_no_way_leads_to_waits_for_one() -> None:
    fleet = Fleet(line(4))
    fleet.cut(name_of(2), name_of(3))
    fleet.publish(name_of(0))
    fleet.run(4)
    assert fleet.got[name_of(3)] == []
    fleet.connect(name_of(2), name_of(3))
    fleet.run(2)
    fleet.check()
    fleet.cut(name_of(2), name_of(3))
    fleet.publish(name_of(0))
    fleet.run(2 * PATIENCE)
    assert fleet.drops() == {"no-way": 1}


def test_nodes_that_hand_on_nothing_are_no_ways() -> None:
    fleet = Fleet(line(4))
    old = Record(name_of(1), LINKS, 99, body_of(Says(frozenset((name_of(0), name_of(2))),
                                                     frozenset(), relays=False)))  # fmt: skip
    for name in (name_of(0), name_of(2)):
        fleet.rosters[name].receive(name_of(1), Records([old]), fleet.now)
        fleet._step(name)
    fleet.run(0.3)
    assert {way.node for way in fleet.rosters[name_of(0)].ways().values()} == {name_of(0)}
    assert fleet.rosters[name_of(0)].reaches(name_of(3))


# --- what one that lies can do ------------------------------------------------------------------


def alone(*ways: Way) -> Relay:
    """A relay that knows these ways, with itself as ``me``."""
    known = {mark_of(way.node): way for way in (Way("me", "me", 0), *ways)}
    return Relay("me", lambda: known, lambda: 7)


def cast(*names: str, number: int = 1, **fields: Any) -> Cast:
    made = Cast("liar", 1, 100, "pg", b"g", {mark_of(name): number for name in names}, b"x")
    return made._replace(**fields)


def delivered(actions: list[Pass | Deliver]) -> list[int]:
    return [next(iter(a.cast.targets.values())) for a in actions if isinstance(a, Deliver)]


def test_a_liar_makes_others_send_at_a_bounded_rate() -> None:
    one = alone(*(Way("near", f"far{n}", 3) for n in range(20)))
    names = [f"far{n}" for n in range(20)]
    spent, number, now = 0, 0, 0.0
    for _ in range(60 * 20):
        now += 0.05
        for _ in range(10):  # whatever it is told
            number += 1
            one.receive("liar", cast(*names, number=number, body=bytes(4000)), now)
        for action in one.step(now):
            if isinstance(action, Pass) and action.peer == "near":
                assert isinstance(action.message, Cast)
                spent += action.message.size
                one.receive("near", Taken(1), now)
    assert spent <= RATE * 60 + BURST + 2 * WINDOW * 5000
    assert spent > RATE * 50
    assert one.counters["window"] > 0


def test_a_liar_fills_a_bounded_memory() -> None:
    one = alone(Way("near", "far", 3))
    for number in range(1, 5000):
        one.receive("liar", cast("nowhere", number=number, body=bytes(MAX_BODY)), 0.0)
        one.receive("liar", cast("far", number=number, body=bytes(MAX_BODY)), 0.0)
        one.receive("liar", cast("me", number=2 * number, body=bytes(MAX_BODY)), 0.0)
        one.step(0.0)
    assert one._parked_size <= KEPT_BYTES
    assert one._streams._size <= KEPT_BYTES
    assert len(one._links["near"].waiting) <= 2 * WINDOW
    for number in range(1, 20000):
        one.receive("other", cast("me", number=2, origin=f"invented{number}"), 100.0 + number)
        one.step(100.0 + number)
    assert len(one._streams._streams) <= relay.MAX_STREAMS
    for number in range(10000):
        one.make("pg", b"g", [f"n{number}"], b"")
    assert len(one._numbers) <= relay.MAX_TARGETS + 1


def test_a_neighbour_that_takes_nothing_makes_a_liar_fill_a_bounded_memory() -> None:
    one = alone(Way("near", "far", 3))
    number, most, now = 0, 0, 0.0
    for _ in range(400):
        now += 0.05
        for _ in range(4):
            number += 1
            one.receive("liar", cast("far", number=number, body=bytes(MAX_BODY // 2)), now)
        one.step(now)
        most = max(most, sum(copy.cast.size for copy in one._links["near"].waiting))
    assert most <= KEPT_BYTES + 2 * WINDOW * MAX_BODY
    assert one.counters["stuck"] > 0
    one.peer_down("liar", now)
    one.peer_down("near", now)
    assert not one._links


def test_a_cast_takes_about_as_many_hops_as_its_way_has() -> None:
    one = alone(Way("near", "far", 3))
    one.receive("liar", cast("far", hops=MAX_HOPS), 0.0)
    (sent,) = (a.message for a in one.step(0.0) if isinstance(a, Pass) and a.peer == "near")
    assert isinstance(sent, Cast)
    assert sent.hops == 2 * 3 + SPARE
    one.receive("liar", cast("far", number=2, hops=0), 0.0)
    one.receive("liar", cast("far", number=3, body=bytes(MAX_BODY + 1)), 0.0)
    one.receive("near", cast("far", number=4), 0.0)
    assert not [a for a in one.step(0.0) if isinstance(a, Pass) and a.peer == "near"]
    assert (one.counters["hops"], one.counters["long"]) == (1, 1)
    assert len(one._parked) == 1, "what would go back waits"


def test_a_long_message_goes_to_a_connected_node_only() -> None:
    one = alone(Way("near", "far", 3))
    made = one.make("pg", b"g", ["far"], bytes(MAX_BODY + 1))
    one.send(made, 0.0, to="far")
    (sent,) = one.step(0.0)
    assert isinstance(sent, Pass)
    assert (sent.peer, sent.message) == ("far", made._replace(hops=0))
    one.peer_down("far", 1.0)
    assert one.counters["long"] == 1
    other = alone()
    other.receive("one", cast("me", body=bytes(MAX_BODY + 1), hops=0), 0.0)
    assert delivered(other.step(0.0)) == [1]


# --- order --------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.permutations(range(1, 9)), st.lists(st.integers(1, 8), max_size=6))
def test_any_order_is_put_right(order: list[int], again: list[int]) -> None:
    one = alone()
    got: list[int] = []
    for number in (*order, *again):
        one.receive("near", cast("me", number=number), 0.0)
        got += delivered(one.step(0.0))
    assert got == list(range(1, 9))
    assert one.counters["again"] == len(again)


def test_what_does_not_come_is_counted_after_a_while() -> None:
    one = alone()
    for number in (1, 2, 5, 7):
        one.receive("near", cast("me", number=number), 0.0)
    assert delivered(one.step(0.0)) == [1, 2]
    assert delivered(one.step(HOLD - 0.1)) == []
    assert delivered(one.step(HOLD)) == [5]
    assert delivered(one.step(2 * HOLD)) == [7]
    assert one.counters["lost"] == 3
    one.receive("near", cast("me", number=3), 2 * HOLD)
    assert delivered(one.step(2 * HOLD)) == [], "it comes too late"


def test_a_node_that_begins_anew_does_not_count_what_it_cannot_know() -> None:
    one = alone()
    one.receive("near", cast("me", number=50), 0.0)
    one.receive("near", cast("me", number=51), 0.0)
    assert delivered(one.step(0.0)) == []
    assert delivered(one.step(HOLD)) == [50, 51]
    assert one.counters["lost"] == 0
    # Another run of its sender begins with 1.
    one.receive("near", cast("me", number=1, run=9), HOLD)
    assert delivered(one.step(HOLD)) == [1]


def test_numbers_that_are_used_up_begin_a_new_run() -> None:
    runs = iter(range(9))
    one = Relay("me", dict, lambda: next(runs))
    one._numbers[mark_of("a")] = MAX_NUMBER
    made = one.make("pg", b"g", ["b", "a"], b"")
    assert made.run == 1
    assert set(made.targets.values()) == {1}


def test_a_window_is_small_beside_what_tcp_holds() -> None:
    one = alone(Way("near", "far", 2))
    for _ in range(10):
        one.send(one.make("pg", b"g", ["far"], bytes(MAX_BODY)), 0.0)
    assert sum(isinstance(action, Pass) for action in one.step(0.0)) == 1
    assert one._links["near"].size <= WINDOW_BYTES + MAX_BODY
