# SPDX-License-Identifier: Apache-2.0
"""thicket.cluster.overlay: whom a node stays connected with."""

from __future__ import annotations

import random

import pytest

from thicket.cluster import overlay
from thicket.cluster.overlay import FEW, LEAST_SPARSE, MANY, MOST_FULL, Facts, Overlay, tick_share


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
