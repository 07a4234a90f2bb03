# SPDX-License-Identifier: Apache-2.0
"""Fleets that are switched on: which connections are made, which of them in vain, and how soon all
nodes see each other. The product decides; time is virtual (growing_fleet.py)."""

from __future__ import annotations

from math import comb

import pytest
from growing_fleet import Figures, crowd, grow

from meshlab.bench.membership import Graph, grid
from thicket.cluster import membership, overlay

# Nothing here waits for the kernel or another process.
pytestmark = pytest.mark.virtual_time

GRAPHS = {"grid": grid, "crowd": crowd}
kinds = pytest.mark.parametrize("kind", GRAPHS)
losses = pytest.mark.parametrize("loss", [0.0, 0.1])


async def figures(graph: Graph, seed: int = 1, **how: float) -> Figures:
    found, fleet = await grow(graph, seed, **how)
    for node in fleet.nodes.values():  # also those that were connected while it was smaller
        assert node.roster.members == {other.name for other in fleet.nodes.values()} - {node.name}
    return found


@kinds
@losses
@pytest.mark.parametrize("count", [2, 4, overlay.AT_ONCE])
async def test_a_small_fleet_is_whole_at_once(kind: str, count: int, loss: float) -> None:
    found = await figures(GRAPHS[kind](count), loss=loss, seconds=60)
    assert (found.made, found.dropped) == (comb(count, 2), 0)
    assert found.whole is not None
    assert found.whole < (12 if loss else 3)
    assert found.seen == found.whole


@kinds
@losses
@pytest.mark.parametrize("count", [overlay.AT_ONCE + 1, overlay.MOST_FULL])
async def test_a_fleet_of_medium_size_sees_itself_at_once_and_is_whole_when_it_has_settled(
    kind: str, count: int, loss: float
) -> None:
    found = await figures(GRAPHS[kind](count), loss=loss, seconds=80)
    assert (found.made, found.dropped) == (comb(count, 2), 0)
    assert found.seen is not None
    assert found.whole is not None
    assert found.seen < (12 if loss else 5)
    assert overlay.SETTLED[0] < found.whole < 60


@kinds
@losses
@pytest.mark.parametrize("count", [overlay.MOST_FULL + 1, 20])
async def test_a_fleet_that_becomes_too_large_never_made_all_connections(
    kind: str, count: int, loss: float
) -> None:
    found = await figures(GRAPHS[kind](count), loss=loss, seconds=80)
    assert found.made < comb(count, 2) * 0.7
    assert found.dropped < 3 * count
    assert found.seen is not None
    assert found.seen < (12 if loss else 5)


async def test_fifty_nodes() -> None:
    found = await figures(grid(50), loss=0.05, seconds=60)
    assert found.made < 5 * 50
    assert found.seen is not None
    assert found.seen < 15


async def test_where_everything_takes_ten_times_as_long() -> None:
    """As on a simulated mesh that the machine is too small for."""
    found = await figures(grid(20), loss=0.1, slow=10.0, within=120.0, seconds=60)
    assert found.made < 6 * 20
    assert found.seen is not None
    assert found.seen < 30


async def test_a_fleet_whose_topology_is_full_makes_all_whatever_its_size() -> None:
    _, fleet = await grow(grid(20), 1, setting="full", seconds=60)
    assert fleet.whole()
    assert (fleet.made, fleet.dropped) == (comb(20, 2), 0)


async def test_without_a_radio_that_tells_links_all_are_connected_at_a_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("growing_fleet.LINKED", 1e6)
    found, _ = await grow(grid(12), 1, within=1.0, seconds=90)
    assert found.whole is not None
    assert membership.PACE_FIRST - 1.0 < found.whole < 60
    assert (found.made, found.dropped) == (comb(12, 2), 0)
