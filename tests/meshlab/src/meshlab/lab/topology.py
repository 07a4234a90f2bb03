# SPDX-License-Identifier: Apache-2.0
"""The shapes of a simulated mesh: where its nodes are and who hears whom.

A topology gives every node a position in metres and names the pairs of nodes that hear each other
with their signal-to-noise ratio in dB. Pairs it does not name hear nothing of each other. The same
kind, count and seed give the same topology on every machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass

import networkx as nx

KINDS = ("line", "ring", "grid", "full", "star", "random")

SPACING = 60.0
"""Distance in metres between nodes that are neighbours in a regular shape."""

LINK_SNR = 30.0
"""Signal-to-noise ratio in dB of a link of a regular shape: the fastest legacy rates are clean."""

RANDOM_EDGE_SNR = 18.0
"""SNR in dB of the longest possible link of a random topology; shorter ones are better."""

MAX_NODES = 250
"""More nodes than one machine will simulate: beyond it a count is a typing mistake."""

Pair = tuple[str, str]
Position = tuple[float, float]


@dataclass(frozen=True)
class Topology:
    """Nodes at positions (metres) and the links between them (dB), each link named once."""

    kind: str
    seed: int
    positions: dict[str, Position]
    links: dict[Pair, float]

    @property
    def names(self) -> list[str]:
        return list(self.positions)

    def peers(self, name: str) -> set[str]:
        """Return the nodes that hear ``name`` and are heard by it."""
        return {b if a == name else a for a, b in self.links if name in (a, b)}

    def graph(self) -> nx.Graph[str]:
        """Return the links as a graph; edges carry ``snr``."""
        graph: nx.Graph[str] = nx.Graph()
        graph.add_nodes_from(self.positions)
        for (a, b), snr in self.links.items():
            graph.add_edge(a, b, snr=snr)
        return graph

    def hops(self, a: str, b: str) -> int | None:
        """Return the number of links on the shortest way from a to b, None when there is no way."""
        try:
            return int(nx.shortest_path_length(self.graph(), a, b))
        except nx.NetworkXNoPath:
            return None


def node_name(index: int) -> str:
    """Return the name of node ``index``; nodes are counted from 1."""
    return f"n{index}"


def node_index(name: str) -> int:
    """Return the index in a node's name.

    :raises ValueError: when it is no node's name.
    """
    if name[:1] == "n" and name[1:].isdecimal():
        return int(name[1:])
    raise ValueError(f"{name!r} is not a node name: n1, n2, ...")


def make(kind: str, count: int, seed: int = 1) -> Topology:
    """Return the topology ``kind`` (one of ``KINDS``) of ``count`` nodes n1, n2, ...

    :raises ValueError: when the kind is unknown, or the count impossible.
    """
    if not 1 <= count <= MAX_NODES:
        raise ValueError(f"a mesh has 1 to {MAX_NODES} nodes, not {count}")
    if kind == "random":
        return _random(count, seed)
    if kind in ("line", "ring", "grid", "full", "star"):
        positions, edges = _regular(kind, count)
        links = {(node_name(a + 1), node_name(b + 1)): LINK_SNR for a, b in sorted(edges)}
        return Topology(kind, seed, _named(positions), links)
    raise ValueError(f"there is no topology {kind!r}: use one of {', '.join(KINDS)}")


def _regular(kind: str, count: int) -> tuple[list[Position], set[tuple[int, int]]]:
    graph: nx.Graph[int]
    if kind == "line":
        graph = nx.path_graph(count)
        return [(SPACING * i, 0.0) for i in range(count)], _edges(graph.edges)
    if kind == "grid":
        columns = grid_columns(count)
        positions = [(SPACING * (i % columns), SPACING * (i // columns)) for i in range(count)]
        right = {(i, i + 1) for i in range(count - 1) if (i + 1) % columns}
        down = {(i, i + columns) for i in range(count - columns)}
        return positions, right | down
    if kind == "star":
        graph = nx.star_graph(count - 1)
        return [(0.0, 0.0), *_circle(count - 1, SPACING)], _edges(graph.edges)
    if kind == "full":
        graph = nx.complete_graph(count)
        # All within one spacing of each other: everybody is in everybody's range.
        return _circle(count, SPACING / 2), _edges(graph.edges)
    graph = nx.cycle_graph(count) if count > 2 else nx.path_graph(count)
    return _circle(count, SPACING / (2 * math.sin(math.pi / max(count, 3)))), _edges(graph.edges)


def grid_columns(count: int) -> int:
    """Return the columns of a grid of ``count`` nodes: nearly square, rather wide than high."""
    rows = max(1, math.isqrt(count))
    return math.ceil(count / rows)


def _edges(pairs: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    return {(min(a, b), max(a, b)) for a, b in pairs}


def _circle(count: int, radius: float) -> list[Position]:
    """Return points on a circle, the first at the top, clockwise (y grows downward)."""
    turns = [2 * math.pi * i / max(count, 1) for i in range(count)]
    return [(radius * math.sin(turn), -radius * math.cos(turn)) for turn in turns]


def _named(positions: list[Position]) -> dict[str, Position]:
    """Name the positions n1, n2, ... and move them so that the smallest coordinates are 0."""
    left = min(x for x, _ in positions)
    top = min(y for _, y in positions)
    return {
        node_name(i): (round(x - left, 1), round(y - top, 1))
        for i, (x, y) in enumerate(positions, start=1)
    }


def _random(count: int, seed: int) -> Topology:
    """Scatter the nodes over a field twice as wide as high and link those in range.

    The range starts at a value that gives about five peers a node and grows until the mesh is
    connected. Nodes keep a distance to each other, as people who place devices do.
    """
    chance = random.Random(f"meshlab topology {seed} {count}")
    width, height = 2.0, 1.0
    # Each node has an area of its own; two nodes are not closer than half its width.
    room = math.sqrt(width * height / count)
    points: list[Position] = []
    while len(points) < count:
        best, best_distance = (0.0, 0.0), -1.0
        for _ in range(8):
            point = (chance.uniform(0, width), chance.uniform(0, height))
            distance = min((math.dist(point, other) for other in points), default=math.inf)
            if distance > best_distance:
                best, best_distance = point, distance
            if distance >= room / 2:
                break
        points.append(best)
    reach = room * math.sqrt(5 / math.pi)
    while True:
        near: nx.Graph[int] = nx.Graph()
        near.add_nodes_from(range(count))
        near.add_edges_from(
            (a, b)
            for a in range(count)
            for b in range(a + 1, count)
            if math.dist(points[a], points[b]) <= reach
        )
        if nx.is_connected(near):
            break
        reach *= 1.05
    scale = SPACING / room
    links = {}
    for a, b in sorted(_edges(near.edges)):
        share = math.dist(points[a], points[b]) / reach
        # Log-distance with exponent 3: 30 dB a decade on top of what the longest link has left.
        snr = min(45.0, RANDOM_EDGE_SNR - 30 * math.log10(max(share, 0.05)))
        links[(node_name(a + 1), node_name(b + 1))] = round(snr, 1)
    return Topology("random", seed, _named([(x * scale, y * scale) for x, y in points]), links)
