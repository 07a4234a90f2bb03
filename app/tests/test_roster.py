# SPDX-License-Identifier: Apache-2.0
"""thicket.distribution.roster and .ledger: who is in the cluster, without sockets, in no time."""

from __future__ import annotations

import itertools
import random

import pytest

from thicket.distribution import members, roster
from thicket.distribution.etf import decode_bare, encode_bare
from thicket.distribution.ledger import MAX_BODY, MAX_TOPICS, MAX_VERSION, Found, Ledger, Record
from thicket.distribution.roster import (
    AFTERWARDS,
    COMPARE,
    GRACE,
    KEEP,
    LINKS,
    Action,
    Came,
    Doubted,
    Message,
    Records,
    Roster,
    Says,
    Send,
    Stated,
    Sum,
    Sums,
    Versions,
    Want,
    Went,
    Wish,
    Wished,
    body_of,
    says,
)


class Fleet:
    """Rosters that hear each other at once; messages pass through their form on the wire."""

    def __init__(self, *names: str) -> None:
        self.now = 0.0
        self.rosters: dict[str, Roster] = {}
        self.events: dict[str, list[Action]] = {}
        self.connected: set[frozenset[str]] = set()
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        self.rosters[name] = Roster(name, random.Random(name).uniform)
        self.events[name] = []

    def connect(self, one: str, other: str) -> None:
        self.connected.add(frozenset((one, other)))
        for name, peer in ((one, other), (other, one)):
            self.rosters[name].peer_up(peer, self.now, speaks=True)

    def cut(self, one: str, other: str) -> None:
        self.connected.discard(frozenset((one, other)))
        for name, peer in ((one, other), (other, one)):
            if name in self.rosters:
                self.rosters[name].peer_down(peer, self.now)

    def remove(self, name: str) -> None:
        del self.rosters[name]
        for other in list(self.rosters):
            if frozenset((name, other)) in self.connected:
                self.cut(name, other)

    def choose(self, name: str, *chosen: str) -> None:
        self.rosters[name].choose(chosen, keeps_all=False, now=self.now)

    def line(self, *names: str) -> None:
        for one, other in itertools.pairwise(names):
            self.connect(one, other)
            self.choose(one, other)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        self.step()
        while True:
            self.now = max(self.now, min(r.due() for r in self.rosters.values()))
            if self.now > end:
                self.now = end
                return
            self.step()

    def step(self) -> None:
        for name, one in self.rosters.items():
            for action in one.step(self.now):
                if isinstance(action, Send):
                    self.deliver(name, action)
                else:
                    self.events[name].append(action)

    def deliver(self, name: str, action: Send) -> None:
        if frozenset((name, action.peer)) in self.connected:
            packed = encode_bare(members.pack(action.message), text=True)
            message = members.unpack(decode_bare(packed)[0])
            assert message == action.message
            self.rosters[action.peer].receive(name, message, self.now)

    def members(self, name: str) -> set[str]:
        return self.rosters[name].members


def test_all_know_of_all_by_their_neighbours() -> None:
    fleet = Fleet(*"abcdef")
    fleet.line(*"abcdef")
    fleet.run(5)
    for name in "abcdef":
        assert fleet.members(name) == set("abcdef") - {name}
    totals = {one.ledger.total for one in fleet.rosters.values()}
    assert len(totals) == 1
    assert fleet.rosters["a"].reaches("f")
    assert not fleet.rosters["a"].reaches_without("b")


def test_nothing_is_said_while_all_are_connected() -> None:
    fleet = Fleet(*"abc")
    fleet.connect("a", "b")
    fleet.rosters["a"].choose("b", keeps_all=True, now=0.0)
    assert fleet.rosters["a"].due() == float("inf")
    assert fleet.rosters["a"].step(0.0) == [Came("b")]
    fleet.cut("a", "b")
    assert fleet.rosters["a"].step(0.0) == [Went("b", direct=True)]


def test_who_has_lost_a_node_knows_at_once_and_the_others_a_moment_later() -> None:
    fleet = Fleet(*"abcd")
    fleet.line(*"abcd")
    fleet.run(5)
    began = fleet.now
    fleet.remove("d")
    fleet.run(0.0)
    assert fleet.events["c"][-1] == Went("d", direct=True)
    fleet.run(GRACE / 2)
    assert "d" in fleet.members("a")
    fleet.run(GRACE)
    assert fleet.events["a"][-1] == Went("d", direct=False)
    assert fleet.members("a") == {"b", "c"}
    assert fleet.now - began < 2 * GRACE


def test_a_node_that_others_reach_is_not_gone_and_a_link_that_moves_does_no_harm() -> None:
    fleet = Fleet(*"abc")
    fleet.line(*"abc", "a")
    fleet.run(5)
    fleet.cut("a", "b")
    fleet.run(60)
    assert not any(isinstance(e, Went) for name in "abc" for e in fleet.events[name])
    assert all(len(fleet.members(name)) == 2 for name in "abc")


def test_one_end_that_states_a_link_is_not_enough() -> None:
    fleet = Fleet("a", "b")
    fleet.line("a", "b")
    fleet.run(5)
    lie = Record("b", LINKS, 99, body_of(Says(frozenset(("a", "x")), frozenset())))
    invented = Record("x", LINKS, 1, body_of(Says(frozenset(("y",)), frozenset())))
    fleet.rosters["a"].receive("b", Records([lie, invented]), fleet.now)
    fleet.run(5)
    assert fleet.members("a") == {"b"}


def test_a_statement_in_ones_own_name_is_taken_back() -> None:
    fleet = Fleet(*"abc")
    fleet.line(*"abc")
    fleet.run(5)
    lie = Record("c", LINKS, 99, b"")
    fleet.rosters["a"].receive("b", Records([lie]), fleet.now)
    fleet.run(0.2)
    assert "c" not in fleet.rosters["a"].members or not fleet.rosters["a"].reaches("c")
    fleet.run(60)  # until the ledgers are compared
    assert fleet.members("a") == {"b", "c"}
    assert fleet.rosters["a"].ledger.records["c", LINKS].version > 99


def test_a_node_that_begins_anew_goes_on_where_it_was() -> None:
    fleet = Fleet(*"abc")
    fleet.line(*"abc")
    fleet.rosters["c"].state("pg:pg", b"old", fleet.now)
    fleet.run(5)
    assert fleet.rosters["a"].bodies("pg:pg") == {"c": b"old"}
    fleet.remove("c")
    fleet.run(5)
    assert fleet.rosters["a"].bodies("pg:pg") == {}
    fleet.add("c")
    fleet.connect("b", "c")
    fleet.choose("c", "b")
    fleet.run(60)
    assert fleet.members("a") == {"b", "c"}
    assert fleet.rosters["a"].bodies("pg:pg") == {"c": b""}, "what it said before is over"


def test_what_was_lost_comes_with_the_next_comparison() -> None:
    fleet = Fleet(*"abc")
    fleet.line(*"abc")
    fleet.run(5)
    made = fleet.rosters["c"]
    made.state("pg:pg", b"news", fleet.now)
    made.step(fleet.now + 1.0)
    for peer in made._peers.values():
        peer.owed.clear()
    fleet.run(5)
    assert fleet.rosters["a"].bodies("pg:pg") == {}
    fleet.run(100)
    assert fleet.rosters["a"].bodies("pg:pg") == {"c": b"news"}
    assert Stated(made.ledger.records["c", "pg:pg"]) in fleet.events["a"]


def test_nodes_without_a_roster_are_members_by_those_that_know_them() -> None:
    fleet = Fleet(*"abc")
    fleet.line(*"abc")
    fleet.rosters["c"].peer_up("stock", 0.0, speaks=False)
    fleet.rosters["c"].peer_up("secret", 0.0, speaks=False, hidden=True)
    fleet.run(5)
    assert fleet.members("a") == {"b", "c", "stock"}
    assert fleet.rosters["a"].leaves_of("c") == {"stock"}
    assert fleet.rosters["c"].wants("stock"), "such a connection is not ended"
    fleet.rosters["c"].peer_down("stock", fleet.now)
    fleet.run(5)
    assert fleet.members("a") == {"b", "c"}


def test_a_connection_beside_the_links_is_wanted_by_nobody_and_doubted_with_the_node() -> None:
    fleet = Fleet(*"abcd")
    fleet.line(*"abcd")
    fleet.run(5)
    fleet.connect("a", "d")
    fleet.choose("d")
    fleet.run(5)
    assert not fleet.rosters["a"].wants("d")
    assert fleet.rosters["a"].wants("b")
    assert fleet.rosters["a"].links == ["b"]
    fleet.cut("c", "d")
    fleet.run(1)
    assert Doubted("d", "c") in fleet.events["a"]
    assert "d" in fleet.members("a"), "it is connected here"


def test_gone_nodes_are_forgotten_everywhere() -> None:
    fleet = Fleet(*"abc")
    fleet.line(*"abc")
    fleet.run(5)
    fleet.remove("c")
    fleet.run(KEEP + 100)
    for name in "ab":
        assert set(fleet.rosters[name].ledger.topics) == {"a", "b"}


def test_strangers_get_a_quarter_of_the_places_and_those_that_are_gone_give_way() -> None:
    made = Roster("a", random.Random(1).uniform, limit=16, expected=lambda n: n.startswith("e"))
    made.peer_up("b", 0.0, speaks=True)
    for number in range(20):
        made.receive("b", Records([Record(f"x{number}", LINKS, 1, b"")]), 0.0)
    assert len(made.ledger.topics) == 1 + 16 // roster.STRANGERS
    assert made.dropped["full"] == 16
    for number in range(30):
        made.receive("b", Records([Record(f"e{number}", LINKS, 1, b"")]), 0.0)
    assert len(made.ledger.topics) <= 17
    assert ("e29", LINKS) in made.ledger.records


def test_too_many_statements_are_dropped() -> None:
    made = Roster("a", random.Random(1).uniform)
    made.peer_up("b", 0.0, speaks=True)
    burst = int(roster.BURST)
    for version in range(1, burst + 101):
        made.receive("b", Records([Record("b", LINKS, version, b"")]), 0.0)
    assert made.dropped["rate"] == 100
    for _ in range(40):
        made.receive("b", Sum(1), 0.0)
    assert made.dropped["comparisons"] > 0
    made.receive("c", Sum(1), 0.0)
    assert made.dropped["stranger"] == 1


def test_the_ledger_is_bounded() -> None:
    ledger = Ledger("a", limit=2, most_bytes=2 * MAX_BODY)
    assert ledger.take(Record("b", "", 1, b"x" * (MAX_BODY + 1))) is Found.REFUSED
    assert ledger.take(Record("b", "", MAX_VERSION, b"")) is Found.REFUSED
    assert ledger.take(Record("b", "", 0, b"")) is Found.REFUSED
    assert ledger.take(Record("b", "", 1, b"")) is Found.NEWS
    assert ledger.take(Record("b", "t" * 256, 1, b"")) is Found.REFUSED
    for number in range(2 * MAX_TOPICS):
        ledger.take(Record("c", f"t{number}", 1, b""))
    assert len(ledger.topics["c"]) == MAX_TOPICS
    assert ledger.take(Record("d", "", 1, b"")) is Found.REFUSED
    assert ledger.take(Record("b", "", 5, b"x" * MAX_BODY)) is Found.NEWS
    assert ledger.take(Record("c", "t1", 5, b"x" * MAX_BODY)) is Found.NEWS
    assert ledger.take(Record("c", "t2", 5, b"x")) is Found.REFUSED
    assert ledger.take(Record("b", "", 6, b"")) is Found.NEWS
    assert ledger.size == MAX_BODY
    with pytest.raises(ValueError, match="more than other nodes keep"):
        ledger.state("t", b"x" * (MAX_BODY + 1))


@pytest.mark.parametrize(
    "message",
    [
        Wished(Wish(True, False)),
        Sum(2**64 - 1),
        Sums(list(range(64))),
        Versions([1, 2], {("a", ""): 3}),
        Want([("a", "pg:pg")]),
        Records([Record("ä", "t", 2**40, b"\0\xff")]),
    ],
)
def test_messages_come_through_the_wire(message: Message) -> None:
    packed = encode_bare(members.pack(message), text=True)
    assert members.unpack(decode_bare(packed)[0]) == message


@pytest.mark.parametrize(
    "term",
    [
        "sum",
        ("sum", "1"),
        ("sums", [1]),
        ("wish", 1, 0),
        ("records", [(b"a", b"", 1, "text")]),
        ("records", [(b"\xff", b"", 1, b"")]),
        ("records", [(b"a", b"", 1, b"")] * 1000),
        ("versions", [1] * 65, []),
        ("want", [b"a"]),
    ],
)
def test_what_is_no_message_is_none(term: object) -> None:
    assert members.unpack(term) is None


def test_links_have_a_form() -> None:
    some = Says(frozenset("ab"), frozenset(("c",)))
    assert says(body_of(some)) == some
    assert says(b"") == Says(frozenset(), frozenset(), relays=False)
    assert says(b"\xff") is None
    assert says(b"a\n\nb") is None
    assert says(b"x" * 300) is None
    assert says("\n".join(map(str, range(1000))).encode()) is None


def test_who_comes_while_some_are_out_of_reach_knows_them_soon_afterwards() -> None:
    fleet = Fleet(*"abcdef")
    fleet.line(*"abcdef")
    fleet.run(60)
    fleet.cut("c", "d")
    fleet.run(60)
    # It is beside nodes that know those behind the gap, but neither count nor tell them.
    fleet.add("z")
    fleet.connect("z", "a")
    fleet.choose("z", "a")
    fleet.run(60)
    assert fleet.members("z") == set("abc")
    fleet.connect("c", "d")
    fleet.choose("c", "d")
    fleet.run(AFTERWARDS[1] + 1)
    assert fleet.members("z") == set("abcdef")
    assert all(len(fleet.members(name)) == 6 for name in "abcdef")


def test_of_two_that_have_the_same_one_says_so() -> None:
    fleet = Fleet("a", "b")
    fleet.line("a", "b")
    fleet.run(10)
    sums = []
    deliver = fleet.deliver
    fleet.deliver = lambda name, action: (sums.append(name), deliver(name, action))  # type: ignore[assignment, func-returns-value]
    fleet.run(400)
    assert 400 / COMPARE[1] <= len(sums) <= 400 / COMPARE[0] + 1
