# SPDX-License-Identifier: Apache-2.0
"""Ways that nodes go: along paths, or by trace files of ns-2 and BonnMotion.

ns-2 (``setdest``; The ns Manual, "Node movement")::

    $node_(0) set X_ 150.0
    $node_(0) set Y_ 93.9
    $ns_ at 2.5 "$node_(0) setdest 250.0 99.0 5.0"

A node begins where ``set`` puts it and goes in a straight line to each destination with the speed
behind it, in metres a second; a new destination replaces one that was not reached.

BonnMotion (its native format): a line for each node, with waypoints of three numbers each, time, x
and y. A node goes from one to the next steadily, and stays at the last. Comments begin with ``#``;
the 3D format begins with ``#3D``, and is refused.
"""

from __future__ import annotations

import bisect
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

MOST_BYTES = 4 << 20
MOST_NODES = 250
MOST_POINTS = 200_000
"""Waypoints of a trace: what a day of one node in every second has, twice."""
FARTHEST = 1e6
LONGEST = 1e6


class TraceError(ValueError):
    """A trace that cannot be followed; the text says in which line and why."""


class Waypoint(NamedTuple):
    """Where a node is at a time, in seconds from the beginning."""

    at: float
    x: float
    y: float


Way = Sequence[Waypoint]
"""In the order of time; never empty."""


def walk(places: Sequence[tuple[float, float]], speed: float) -> Way:
    """Return the way along places with a speed in metres a second."""
    at = 0.0
    way = [Waypoint(at, *places[0])]
    for before, place in itertools.pairwise(places):
        at += math.dist(before, place) / speed
        way.append(Waypoint(at, *place))
    return way


def place_at(way: Way, at: float) -> tuple[float, float]:
    """Return where a node is: at the first place before the way begins, at the last behind it."""
    index = bisect.bisect_right(way, at, key=lambda point: point.at)
    if index == 0:
        return way[0].x, way[0].y
    before = way[index - 1]
    if index == len(way):
        return before.x, before.y
    after = way[index]
    share = (at - before.at) / (after.at - before.at)
    return before.x + share * (after.x - before.x), before.y + share * (after.y - before.y)


def load(path: Path, format: str) -> dict[int, Way]:
    """Return the ways in a trace file, by the numbers of its nodes.

    :param format: ``ns2`` or ``bonnmotion``.
    :raises TraceError: it cannot be read or followed.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise TraceError(error.strerror or str(error)) from None
    return parse(data, format)


def parse(data: bytes, format: str) -> dict[int, Way]:
    """Return the ways in the bytes of a trace.

    :raises TraceError: it cannot be followed.
    """
    if len(data) > MOST_BYTES:
        raise TraceError(f"is larger than {MOST_BYTES >> 20} MiB")
    try:
        lines = data.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise TraceError(f"line {line}: a trace is ASCII") from None
    found = (ns2 if format == "ns2" else bonnmotion)(lines)
    if not found:
        raise TraceError("there is no way of a node in it")
    return found


_NODE = r"\$node_\((\d{1,6})\)"
_SET = re.compile(rf"{_NODE} +set +([XYZ])_ +(\S+)")
_GO = re.compile(rf'\$ns_ +at +(\S+) +"{_NODE} +setdest +(\S+) +(\S+) +(\S+)"')
_IGNORED = re.compile(r'(?:#|\$god_ |\$ns_ +at +\S+ +"\$god_ |set )')


def _value(word: str, line: int, low: float, high: float, what: str) -> float:
    try:
        value = float(word[:40])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise TraceError(f"line {line}: {what} {word[:40]!r} is no number from {low:g} to {high:g}")
    return value


def ns2(lines: Iterable[str]) -> dict[int, Way]:
    """Return the ways in the lines of a trace of ns-2.

    :raises TraceError: a line is not understood, or a node goes before it is anywhere.
    """
    start: dict[int, dict[str, float]] = {}
    goals: dict[int, list[tuple[float, float, float, float]]] = {}
    points = 0
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line or _IGNORED.match(line):
            continue
        if placed := _SET.fullmatch(line):
            value = _value(placed[3], number, -FARTHEST, FARTHEST, "the place")
            start.setdefault(int(placed[1]), {})[placed[2]] = value
        elif going := _GO.fullmatch(line):
            at = _value(going[1], number, 0, LONGEST, "the time")
            x = _value(going[3], number, -FARTHEST, FARTHEST, "the place")
            y = _value(going[4], number, -FARTHEST, FARTHEST, "the place")
            speed = _value(going[5], number, 0, 1e4, "the speed")
            goals.setdefault(int(going[2]), []).append((at, x, y, speed))
            points += 2
        else:
            raise TraceError(f"line {number}: {line[:60]!r} is no statement of setdest's")
        _bound(len(start), points, number)
    for node in goals:
        if not {"X", "Y"} <= start.get(node, {}).keys():
            raise TraceError(f"node {node} goes somewhere, and no `set X_` and `set Y_` places it")
    return {
        node: _straight(place["X"], place["Y"], sorted(goals.get(node, []), key=lambda g: g[0]))
        for node, place in sorted(start.items())
        if {"X", "Y"} <= place.keys()
    }


def _straight(x: float, y: float, goals: Iterable[tuple[float, float, float, float]]) -> Way:
    way = [Waypoint(0.0, x, y)]
    for at, to_x, to_y, speed in goals:
        # One that it has not reached yet is given up where it is now.
        here = place_at(way, at)
        while way[-1].at >= at:
            way.pop()
            if not way:
                break
        way.append(Waypoint(at, *here))
        distance = math.dist(here, (to_x, to_y))
        if speed > 0 and distance > 0:
            arrival = at + distance / speed
            if arrival > at:  # a float may be too coarse for a very short way
                way.append(Waypoint(arrival, to_x, to_y))
    return way


def bonnmotion(lines: Iterable[str]) -> dict[int, Way]:
    """Return the ways in the lines of BonnMotion's native format.

    :raises TraceError: a line is not understood, or its times do not grow.
    """
    found: dict[int, Way] = {}
    points = 0
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if line.startswith("#3D"):
            raise TraceError(
                f"line {number}: this is a trace in three dimensions, write one in two"
            )
        if not line or line.startswith("#"):
            continue
        words = line.split()
        if len(words) % 3:
            raise TraceError(f"line {number}: {len(words)} numbers; a waypoint has three: time x y")
        points += len(words) // 3
        _bound(len(found) + 1, points, number)
        way: list[Waypoint] = []
        for at in range(0, len(words), 3):
            when = _value(words[at], number, 0, LONGEST, "the time")
            x = _value(words[at + 1], number, -FARTHEST, FARTHEST, "the place")
            y = _value(words[at + 2], number, -FARTHEST, FARTHEST, "the place")
            if way and when < way[-1].at:
                raise TraceError(f"line {number}: the time {when:g} is before {way[-1].at:g}")
            if way and when == way[-1].at:
                way.pop()
            way.append(Waypoint(when, x, y))
        found[len(found)] = way
    return found


def _bound(nodes: int, points: int, line: int) -> None:
    if nodes > MOST_NODES:
        raise TraceError(f"line {line}: there are more than {MOST_NODES} nodes")
    if points > MOST_POINTS:
        raise TraceError(f"line {line}: there are more than {MOST_POINTS} waypoints")
