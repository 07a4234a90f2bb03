# SPDX-License-Identifier: Apache-2.0
"""thicket.timekeeping.claims, .judge, .keys: whom nodes follow, and what they may be told."""

from collections.abc import Iterable
from ipaddress import IPv6Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.distribution.etf import decode, encode
from thicket.timekeeping import judge as judges
from thicket.timekeeping import keys
from thicket.timekeeping.claims import (
    LATEST,
    MOST_AGE,
    MOST_DEPTH,
    MOST_SOURCES,
    Choice,
    Claim,
    Grade,
    Heard,
    elect,
    pack,
    passed_on,
    unpack,
)
from thicket.timekeeping.judge import Bounds, Knowledge, Offered, confirmed, judge, learned

NOW = 1_800_000_000.0


def at(number: int) -> IPv6Address:
    return IPv6Address(f"fd00::{number:x}")


def claim(
    number: int, grade: Grade, stamp: int = 0, *, depth: int = 0, clock: float = NOW
) -> Claim:
    return Claim(grade, stamp, at(number), depth, 0.0, clock)


def heard(*claims: tuple[int, Claim]) -> dict[IPv6Address, Heard]:
    return {at(number): Heard(one, 100.0) for number, one in claims}


def choose(own: Claim, *claims: tuple[int, Claim]) -> list[int]:
    choice = elect(own, heard(*claims), 100.0)
    return [int(address) & 0xFFFF for address in choice.sources]


G, H, N = Grade.GUESS, Grade.HELD, Grade.NETWORK


# -- the order


def test_a_node_alone_follows_nobody() -> None:
    assert choose(claim(1, G)) == []


def test_the_latest_of_guesses_is_followed_and_of_the_same_the_lowest_origin() -> None:
    assert choose(claim(1, G), (2, claim(2, G, clock=NOW + 60))) == [2]
    assert choose(claim(2, G, clock=NOW + 60), (1, claim(1, G))) == []
    assert choose(claim(2, G), (1, claim(1, G, clock=NOW + 1)), (3, claim(3, G))) == [1]
    assert choose(claim(1, G), (2, claim(2, G, clock=NOW + 1))) == []


def test_who_has_known_the_time_is_better_than_any_guess_and_the_last_one_best() -> None:
    guess = (2, claim(2, G, clock=NOW + 9999))
    assert choose(claim(1, G), guess, (3, claim(3, H, 50))) == [3]
    assert choose(claim(1, H, 50), guess) == []
    assert choose(claim(1, H, 50), (3, claim(3, H, 60))) == [3]
    assert choose(claim(1, H, 70), (3, claim(3, H, 60))) == []
    assert choose(claim(4, H, 60), (3, claim(3, H, 60))) == [3]
    assert choose(claim(2, H, 60), (3, claim(3, H, 60))) == []


def test_the_network_is_best_and_the_nearest_gateway_first() -> None:
    held = (5, claim(5, H, 2_000_000_000))
    near, far = (7, claim(7, N)), (3, claim(8, N, depth=2))
    assert choose(claim(1, H, 9), held, far, near) == [7], "the others may follow this node"
    assert choose(claim(1, G), held, far, near) == [7, 3], "a node that knows nothing asks all"
    assert choose(claim(1, N), near) == []


def test_nodes_as_near_as_this_one_are_asked_where_their_addresses_are_lower() -> None:
    gateway = (9, claim(9, N))
    equals = [(n, claim(9, N, depth=1)) for n in (1, 2, 4, 5)]
    assert choose(claim(3, H, 5), gateway, *equals) == [9, 1, 2]
    assert choose(claim(8, H, 5), gateway, *equals) == [9, 1, 2, 4], f"{MOST_SOURCES} at most"


def test_what_is_old_deep_or_from_this_node_does_not_count() -> None:
    own = claim(1, G)
    old = {at(2): Heard(claim(2, N), 100.0 - MOST_AGE - 1)}
    assert elect(own, old, 100.0).leads
    passed = {at(2): Heard(claim(2, N)._replace(age=MOST_AGE - 5), 90.0)}
    assert elect(own, passed, 100.0).leads, "its age goes on from its origin"
    assert choose(own, (2, claim(3, N, depth=MOST_DEPTH))) == []
    assert choose(own, (2, claim(1, H, 7, depth=1))) == [], "that is its own time"


class Fleet:
    """Nodes that hear some of the others, and say what they make of it, round after round."""

    def __init__(self, own: dict[int, Claim], links: Iterable[tuple[int, int]]) -> None:
        self.own = own
        self.links = [*links]
        self.said = dict(own)
        self.follows: dict[int, Choice] = {}

    def round(self, now: float) -> None:
        said = {}
        for number, own in self.own.items():
            others = {b for a, b in self.links if a == number}
            others |= {a for a, b in self.links if b == number}
            ears = {at(n): Heard(self.said[n], now) for n in others if n in self.said}
            choice = self.follows[number] = elect(own, ears, now)
            said[number] = own
            if choice.sources:
                said[number] = passed_on(choice, ears[choice.sources[0]], own.clock, now)
        self.said = said

    def settle(self) -> None:
        for _ in range(40):
            self.round(0.0)


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    numbers = draw(st.lists(st.integers(1, 30), min_size=2, max_size=9, unique=True))
    own = {}
    for number in numbers:
        grade = draw(st.sampled_from(Grade))
        stamp = draw(st.integers(1, 4)) if grade == H else 0
        clock = NOW + draw(st.sampled_from((0.0, 0.5, 30.0, 3600.0)))
        own[number] = claim(number, grade, stamp, clock=clock)
    tree = [(numbers[draw(st.integers(0, i - 1))], numbers[i]) for i in range(1, len(numbers))]
    more = draw(st.lists(st.tuples(st.sampled_from(numbers), st.sampled_from(numbers))))
    return Fleet(own, {*tree, *((a, b) for a, b in more if a != b)})


@given(fleets())
def test_nobody_follows_a_node_that_follows_him(fleet: Fleet) -> None:
    """Among those whose claims are better than guesses: guesses are settled by clocks that move."""
    fleet.settle()
    known = {n for n, said in fleet.said.items() if said.grade != G}
    ways = {
        n: {int(a) & 0xFFFF for a in fleet.follows[n].sources} for n in known
        if fleet.own[n].grade != G
    }  # fmt: skip
    left = dict(ways)
    while left:
        ends = {n for n, to in left.items() if not to & left.keys()}
        assert ends, f"a ring: {left}"
        for n in ends:
            del left[n]


@given(fleets())
def test_all_come_to_the_best_that_there_is(fleet: Fleet) -> None:
    fleet.settle()
    best = max(one.grade for one in fleet.own.values())
    assert {said.grade for said in fleet.said.values()} == {best}
    if best == H:
        stamps = max(one.stamp for one in fleet.own.values())
        assert {said.stamp for said in fleet.said.values()} == {stamps}
        assert len({said.origin for said in fleet.said.values()}) == 1


# -- as others get it

CLAIMS = st.builds(
    Claim,
    st.sampled_from(Grade),
    st.integers(0, LATEST - 1),
    st.integers(0, 2**128 - 1).map(IPv6Address),
    st.integers(0, MOST_DEPTH),
    st.integers(0, int(MOST_AGE)).map(float),
    st.integers(0, LATEST * 1000 - 1).map(lambda n: n / 1000),
)


@given(CLAIMS, st.integers(0, LATEST - 1))
def test_a_claim_comes_as_it_was_sent(sent: Claim, statement: int) -> None:
    message = decode(encode(pack(sent, statement)))
    got = unpack(message)
    assert got is not None
    assert got[0][:5] == sent[:5]
    assert got[0].clock == pytest.approx(sent.clock, abs=0.002)
    assert got[1] == statement


GOOD = pack(claim(1, H, 7), 0)


@pytest.mark.parametrize(
    ("place", "value"),
    [(1, 3), (1, -1), (1, True), (1, 2.0), (2, -1), (2, LATEST), (3, b"x"), (3, 5), (4, -1),
     (4, MOST_DEPTH + 1), (5, int(MOST_AGE) + 1), (6, LATEST * 1000), (7, LATEST), (7, None)],
)  # fmt: skip
def test_what_is_no_claim_is_none(place: int, value: Any) -> None:
    assert unpack(GOOD) is not None
    wrong = (*GOOD[:place], value, *GOOD[place + 1 :])
    assert unpack(wrong) is None
    assert unpack(GOOD[:-1]) is None


# -- may the clock be set

BOUNDS = Bounds(NOW - 1000, NOW + 1e6)


@pytest.mark.parametrize(
    ("offered", "known", "what"),
    [
        (Offered(0.05, N), False, judges.KEEP),
        (Offered(0.5, N), False, judges.SET),
        (Offered(0.5, N), True, judges.KEEP),
        (Offered(-5.0, H), True, judges.SET),
        (Offered(-999.0, N), False, judges.SET),
        (Offered(-1001.0, N), False, judges.BEFORE_FLOOR),
        (Offered(-1001.0, N, servers=3), True, judges.BEFORE_FLOOR),
        (Offered(2e6, N), False, judges.BEHIND_END),
        (Offered(2e6, N, theirs=50), True, judges.BEHIND_END),
        (Offered(9e5, N), False, judges.SET),
        # guesses
        (Offered(9e5, G), False, judges.SET),
        (Offered(-1.5, G), False, judges.KEEP),
        (Offered(-60.0, G), False, judges.BACKWARDS),
        (Offered(60.0, G), True, judges.BACKWARDS),
        # more than certificates allow, where the time is known
        (Offered(601.0, H, theirs=1, ours=1), True, judges.DISPUTED),
        (Offered(601.0, H, theirs=1, ours=1, since=899.0), True, judges.DISPUTED),
        (Offered(601.0, H, theirs=1, ours=1, since=901.0), True, judges.SET),
        (Offered(601.0, H, theirs=1, ours=2, since=9e9), True, judges.OUTVOTED),
        (Offered(601.0, N, theirs=1, ours=2, since=901.0), True, judges.OUTVOTED),
        (Offered(601.0, N, theirs=1, ours=2, since=86401.0), True, judges.SET),
        (Offered(601.0, H, theirs=3, ours=2), True, judges.SET),
        (Offered(601.0, N, theirs=1, ours=9, servers=2), True, judges.SET),
        (Offered(-601.0, H, theirs=1, ours=9, same=True), True, judges.SET),
    ],
)
def test_what_is_done_about_a_time(offered: Offered, known: bool, what: str) -> None:
    assert judge(offered, NOW, BOUNDS, known=known) == what


@given(
    st.builds(
        Offered,
        st.floats(-1e9, 1e9),
        st.sampled_from(Grade),
        servers=st.integers(0, 9),
        theirs=st.integers(0, 99),
        ours=st.integers(1, 99),
        same=st.booleans(),
        since=st.floats(0, 1e9),
    ),
    st.booleans(),
)
def test_a_clock_is_never_set_beyond_its_bounds(offered: Offered, known: bool) -> None:
    if judge(offered, NOW, BOUNDS, known=known) == judges.SET:
        assert BOUNDS.floor <= NOW + offered.offset <= BOUNDS.end
        assert not known or offered.grade != G


def test_what_is_learned_is_worth_less_than_what_its_origin_knows() -> None:
    origin = claim(1, H, 5000)
    near = learned(origin, NOW, 10.0)
    far = learned(origin._replace(depth=1), NOW, 10.0)
    assert 5000 > near.stamp > far.stamp
    assert near.origin == at(1)
    assert learned(claim(1, G), NOW, 10.0) == Knowledge()
    network = learned(claim(1, N), NOW, 10.0)
    assert confirmed("network", NOW, 10.0).stamp > network.stamp > NOW - 1000
    assert confirmed("operator", NOW, 10.0).stamp == NOW, "newer than the network's, if it is later"


def test_what_nobody_has_told_for_a_month_is_a_guess_again() -> None:
    known = confirmed("operator", NOW, 100.0)
    assert known.now(100.0 + judges.HOLD) == known
    assert known.now(101.0 + judges.HOLD) == Knowledge()


# -- keys


def test_a_client_has_one_key_and_no_other_has_it() -> None:
    made = {keys.of_client(b"s", at(n)) for n in range(200) for _ in range(2)}
    assert len(made) == 200
    assert len({one.number for one in made}) == 200
    assert keys.of_client(b"other", at(1)) != keys.of_client(b"s", at(1))


@pytest.mark.parametrize(
    "answer",
    [None, (keys.OK, 0, bytes(16)), (keys.OK, 1, bytes(15)), (keys.OK, True, bytes(16)),
     (keys.OK, 2**32, bytes(16)), (keys.ERROR, b"no"), (keys.OK, 1)],
)  # fmt: skip
def test_what_is_no_key_is_none(answer: Any) -> None:
    assert keys.unpack(answer) is None
    assert keys.unpack((keys.OK, 7, bytes(16))) == keys.PairKey(7, bytes(16))
