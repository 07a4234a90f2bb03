# SPDX-License-Identifier: Apache-2.0
"""thicket.cluster.overlay: whom a node stays connected with."""

from __future__ import annotations

import random

import pytest

from thicket.cluster import overlay
from thicket.cluster.overlay import (
    AT_ONCE,
    FEW,
    LEAST_SPARSE,
    MANY,
    MOST_FULL,
    SETTLED,
    Facts,
    Growth,
    Overlay,
    tick_share,
)


class World:
    """What the roster of a node says: everybody is reached, in two ways."""

    def __init__(self, topology: str = "auto") -> None:
        self.unreached: set[str] = set()
        self.needed: set[str] = set()
        self.overlay = Overlay(
            topology,
            lambda name: name not in self.unreached,
            lambda name: name not in self.needed,
            random.Random(1).uniform,
        )


def near(count: int) -> frozenset[str]:
    return frozenset(f"n{number}" for number in range(count))


def test_a_fleet_that_grows_and_shrinks_changes_at_two_different_sizes() -> None:
    choose = World().overlay.choose
    sparse = {
        count: choose(Facts(count, near(3)), 0.0).sparse
        for count in (1, MOST_FULL, MOST_FULL + 1, MOST_FULL, LEAST_SPARSE + 1)
    }
    assert sparse == {1: False, MOST_FULL: True, MOST_FULL + 1: True, LEAST_SPARSE + 1: True}
    assert not choose(Facts(LEAST_SPARSE, near(3)), 0.0).sparse
    assert not choose(Facts(MOST_FULL, near(3)), 0.0).sparse


@pytest.mark.parametrize(("topology", "sparse"), [("full", False), ("neighbours", True)])
def test_a_fixed_topology_holds_at_any_size(topology: str, sparse: bool) -> None:
    choose = World(topology).overlay.choose
    assert [choose(Facts(count, near(3)), 0.0).sparse for count in (1, 1000)] == [sparse, sparse]


def test_a_fleet_has_settled_when_it_has_not_grown_for_as_long_as_it_grew() -> None:
    least, most = SETTLED
    growth = Growth()
    assert growth.goes_on(1, 0.0)
    assert growth.goes_on(1, least - 0.1)
    assert not growth.goes_on(1, least)
    for at in range(20):  # it grows for 20 s
        assert growth.goes_on(2 + at, float(at + 1))
    assert growth.goes_on(21, 20 + 19.9)
    assert growth.goes_on(15, 20 + 19.9)
    assert not growth.goes_on(21, 20 + 20.1)
    # One more, much later, is a short growth.
    assert not growth.goes_on(20, 100.0)
    assert growth.goes_on(21, 100.0)
    assert growth.goes_on(21, 100.0 + least - 0.1)
    assert not growth.goes_on(21, 100.0 + least)
    # A fleet that was switched off for the most part grows anew, one that grows on and on settles.
    assert not growth.goes_on(3, 200.0)
    assert growth.goes_on(4, 1000.0)
    for at in range(100):
        assert growth.goes_on(5 + at, 1000.0 + 3 * at)
    assert growth.goes_on(104, 1297.0 + most - 0.1)
    assert not growth.goes_on(104, 1297.0 + most)


def test_only_a_fleet_of_medium_size_waits_until_it_has_settled() -> None:
    world = World()
    for count, growing in (
        (1, False),
        (AT_ONCE, False),
        (AT_ONCE + 1, True),
        (MOST_FULL, True),
        (MOST_FULL + 1, False),
    ):
        choice = world.overlay.choose(Facts(count, near(3)), 0.0)
        assert (choice.growing, choice.sparse) == (growing, count > MOST_FULL)
    for topology in ("full", "neighbours"):
        assert not World(topology).overlay.choose(Facts(AT_ONCE + 1, near(3)), 0.0).growing


def test_in_a_whole_fleet_nobody_is_chosen_because_no_way_of_links_leads_there() -> None:
    world = World()
    world.unreached |= near(8)
    for now in (0.0, 20.0, 40.0):
        chosen = world.overlay.choose(Facts(AT_ONCE, near(7)), now).chosen
        assert len(chosen) == FEW
    world.overlay.choose(Facts(50, near(7)), 40.0)
    assert world.overlay.choose(Facts(50, near(7)), 60.0).chosen == near(7)


def test_few_are_chosen_and_stay_while_others_come() -> None:
    choose = World().overlay.choose
    assert choose(Facts(50, near(2)), 0.0).chosen == near(2)
    chosen = choose(Facts(50, near(20)), 1.0).chosen
    assert near(2) < chosen
    assert len(chosen) == FEW
    assert choose(Facts(50, near(40)), 1000.0).chosen == chosen


def test_those_that_cannot_be_connected_take_nobodys_place() -> None:
    choose = World().overlay.choose
    chosen = choose(Facts(50, near(4)), 0.0).chosen
    assert chosen == near(4)
    more = choose(Facts(50, near(8), failing=near(3)), 1.0).chosen
    assert len(more - near(3)) == FEW


def test_a_link_that_flaps_is_no_other_choice_and_one_that_stays_away_is() -> None:
    choose = World().overlay.choose
    choose(Facts(50, near(3)), 0.0)
    assert choose(Facts(50, near(2)), overlay.ABSENT - 1).chosen == near(3)
    choose(Facts(50, near(3)), overlay.ABSENT)
    assert choose(Facts(50, near(2)), 2 * overlay.ABSENT - 1).chosen == near(3)
    assert choose(Facts(50, near(2)), 2 * overlay.ABSENT).chosen == near(2)


def test_others_take_the_place_of_neighbours_that_went() -> None:
    choose = World().overlay.choose
    chosen = choose(Facts(50, near(20)), 0.0).chosen
    rest = near(20) - chosen
    later = choose(Facts(50, rest), 1.0).chosen
    assert len(later & rest) == FEW, "at once, and not when the others are given up"
    assert choose(Facts(50, rest), overlay.ABSENT).chosen == later & rest


def test_a_neighbour_that_no_way_leads_to_is_chosen_after_a_while() -> None:
    world = World()
    chosen = world.overlay.choose(Facts(50, near(20)), 0.0).chosen
    far = min(near(20) - chosen)
    world.unreached = {far}
    assert world.overlay.choose(Facts(50, near(20)), 1.0).chosen == chosen
    assert world.overlay.choose(Facts(50, near(20)), 1.0 + overlay.PATIENCE[1]).chosen == {
        *chosen,
        far,
    }
    # One that came into reach meanwhile is not.
    world.unreached = {min(near(20) - chosen - {far})}
    world.overlay.choose(Facts(50, near(20)), 20.0)
    world.unreached = set()
    world.overlay.choose(Facts(50, near(20)), 21.0)
    assert world.overlay.choose(Facts(50, near(20)), 100.0).chosen == {*chosen, far}


def test_of_many_one_is_given_up_at_a_time_and_none_that_is_needed() -> None:
    world = World()
    world.unreached = set(near(20))
    world.overlay.choose(Facts(50, near(20)), 0.0)
    assert world.overlay.choose(Facts(50, near(20)), 10.0).chosen == near(20)
    world.unreached, world.needed = set(), set(near(12))
    now, before = 20.0, 20
    while now < 2000.0:
        chosen = world.overlay.choose(Facts(50, near(20)), now).chosen
        assert before - len(chosen) in (0, 1)
        before = len(chosen)
        now += 1.0
    assert chosen == near(12), f"{MANY} would do"


def test_ticks_among_all_nodes_fill_the_air_beyond_some_size() -> None:
    assert tick_share(MOST_FULL, 3, 6e6) < 1 / 6
    assert tick_share(50, 3, 6e6) > 1
