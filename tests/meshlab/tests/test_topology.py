# SPDX-License-Identifier: Apache-2.0
"""Shapes of a mesh."""

from __future__ import annotations

import math

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.lab import topology


@given(st.sampled_from(topology.KINDS), st.integers(1, 40), st.integers(0, 1 << 32))
def test_every_topology_is_connected_and_repeatable(kind: str, count: int, seed: int) -> None:
    made = topology.make(kind, count, seed)
    assert made == topology.make(kind, count, seed)
    assert made.names == [f"n{i}" for i in range(1, count + 1)]
    assert nx.is_connected(made.graph())
    for (a, b), snr in made.links.items():
        assert topology.node_index(a) < topology.node_index(b)
        assert topology.RANDOM_EDGE_SNR <= snr <= 45
    assert min(x for x, _ in made.positions.values()) == 0
    assert min(y for _, y in made.positions.values()) == 0
    places = list(made.positions.values())
    assert len(set(places)) == count


@pytest.mark.parametrize(
    ("kind", "count", "links"),
    [
        ("line", 1, 0),
        ("line", 5, 4),
        ("ring", 2, 1),
        ("ring", 5, 5),
        ("full", 8, 28),
        ("star", 6, 5),
        ("grid", 3, 2),
        ("grid", 4, 4),
        ("grid", 5, 5),
        ("grid", 20, 31),
    ],
)
def test_the_number_of_links(kind: str, count: int, links: int) -> None:
    assert len(topology.make(kind, count).links) == links


def test_the_ends_of_a_line_do_not_hear_each_other() -> None:
    line = topology.make("line", 3)
    assert line.peers("n1") == {"n2"}
    assert line.peers("n2") == {"n1", "n3"}
    assert line.hops("n1", "n3") == 2


def test_a_grid_is_wider_than_high() -> None:
    grid = topology.make("grid", 20)
    assert topology.grid_columns(20) == 5
    assert grid.positions["n20"] == (4 * topology.SPACING, 3 * topology.SPACING)
    assert grid.peers("n7") == {"n2", "n6", "n8", "n12"}
    assert grid.peers("n5") == {"n4", "n10"}, "the end of a row does not reach the next row's start"


@pytest.mark.parametrize("kind", ["line", "ring", "grid", "star"])
def test_neighbours_of_a_regular_shape_are_one_spacing_apart(kind: str) -> None:
    made = topology.make(kind, 7)
    for a, b in made.links:
        distance = math.dist(made.positions[a], made.positions[b])
        assert distance == pytest.approx(topology.SPACING, abs=0.2)


def test_seeds_differ() -> None:
    assert topology.make("random", 12, 1).positions != topology.make("random", 12, 2).positions


def test_random_links_are_better_the_shorter_they_are() -> None:
    made = topology.make("random", 15, 3)
    lengths = {
        pair: math.dist(made.positions[pair[0]], made.positions[pair[1]]) for pair in made.links
    }
    by_length = sorted(made.links, key=lambda pair: lengths[pair])
    values = [made.links[pair] for pair in by_length]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@pytest.mark.parametrize("count", [0, -1, 251])
def test_impossible_counts(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 250 nodes"):
        topology.make("line", count)


def test_unknown_kinds_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match="line, ring, grid, full, star, random"):
        topology.make("torus", 3)


def test_node_names() -> None:
    assert topology.node_index(topology.node_name(12)) == 12
    for name in ("", "n", "12", "nx", "m1"):
        with pytest.raises(ValueError, match="not a node name"):
            topology.node_index(name)
