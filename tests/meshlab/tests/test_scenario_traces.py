# SPDX-License-Identifier: Apache-2.0
"""Traces of ns-2 and BonnMotion, and ways along paths."""

from __future__ import annotations

import math
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlab.scenario.traces import MOST_BYTES, TraceError, Waypoint, load, parse, place_at, walk

NS2 = b"""\
#
# nodes: 2, pause: 0.00, max speed: 20.00
#
$node_(0) set X_ 10.0
$node_(0) set Y_ 20.0
$node_(0) set Z_ 0.000000000000
$node_(1) set X_ 0
$node_(1) set Y_ 0
$god_ set-dist 0 1 1
$ns_ at 10.0 "$node_(0) setdest 10.0 40.0 2.0"
$ns_ at 15.0 "$node_(0) setdest 110.0 30.0 10.0"
$ns_ at 5.0 "$god_ set-dist 0 1 2"
"""


def test_ns2_nodes_go_straight_and_turn_before_they_arrive() -> None:
    ways = parse(NS2, "ns2")
    assert sorted(ways) == [0, 1]
    assert place_at(ways[0], 0) == (10, 20)
    assert place_at(ways[0], 10) == (10, 20)
    assert place_at(ways[0], 12) == (10, 24)
    assert place_at(ways[0], 15) == (10, 30), "here it gets another goal"
    assert place_at(ways[0], 20) == (60, 30)
    assert place_at(ways[0], 1000) == (110, 30)
    assert place_at(ways[1], 1000) == (0, 0)


def test_bonnmotion_nodes_go_from_waypoint_to_waypoint() -> None:
    ways = parse(b"0.0 0.0 0.0 10.0 100.0 0.0\n# a remark\n5 7 8 5 9 8 6 9 10\n", "bonnmotion")
    assert place_at(ways[0], 2.5) == (25, 0)
    assert place_at(ways[1], 0) == (7, 8) or place_at(ways[1], 0) == (9, 8)
    assert place_at(ways[1], 5.5) == (9, 9)


def test_a_walk_has_its_speed() -> None:
    way = walk(((0, 0), (30, 40), (30, 40), (30, 0)), 10.0)
    assert way[-1].at == 9.0
    assert place_at(way, 2.5) == (15, 20)
    assert place_at(way, 7.0) == (30, 20)


@pytest.mark.parametrize(
    ("format", "data", "words"),
    [
        ("ns2", b"", "no way of a node"),
        ("ns2", b"$node_(0) set X_ 1\n$node_(0) put Y_ 1\n", "line 2: '$node_(0) put Y_ 1'"),
        ("ns2", b'$ns_ at 1.0 "$node_(0) setdest 1 1 1"\n', "node 0 goes somewhere"),
        ("ns2", b"$node_(0) set X_ nan\n", "line 1: the place 'nan' is no number"),
        ("ns2", b"$node_(0) set X_ 1e99\n", "is no number from"),
        ("ns2", b"\xff", "line 1: a trace is ASCII"),
        ("bonnmotion", b"0 1\n", "line 1: 2 numbers; a waypoint has three"),
        ("bonnmotion", b"0 1 1 2 1 1 1 1 1\n", "line 1: the time 1 is before 2"),
        ("bonnmotion", b"#3D\n0 0 0 0\n", "three dimensions"),
    ],
)
def test_what_cannot_be_followed_is_refused(format: str, data: bytes, words: str) -> None:
    with pytest.raises(TraceError) as caught:
        parse(data, format)
    assert words in str(caught.value)


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file"):
        load(tmp_path / "trace", "ns2")


numbers = st.one_of(
    st.integers(-5, 5).map(str), st.floats().map(repr), st.sampled_from(["x", "1e5", "-", "9" * 50])
)
lines = st.one_of(
    st.builds("$node_({}) set {}_ {}".format, st.integers(0, 3), st.sampled_from("XYZ"), numbers),
    st.builds(
        '$ns_ at {} "$node_({}) setdest {} {} {}"'.format,
        numbers, st.integers(0, 3), numbers, numbers, numbers,
    ),
    st.lists(numbers, max_size=9).map(" ".join),
    st.text(max_size=20),
)  # fmt: skip


@given(st.lists(lines, max_size=12), st.sampled_from(["ns2", "bonnmotion"]), st.floats(0, 1e7))
def test_any_trace_is_followed_or_refused(found: list[str], format: str, at: float) -> None:
    data = "\n".join(found).encode("utf-8", "surrogatepass")
    with suppress(TraceError):
        for way in parse(data, format).values():
            times = [point.at for point in way]
            assert times == sorted(set(times)), "the times grow"
            assert all(math.isfinite(value) for value in place_at(way, at))


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), min_size=1),
    st.floats(-1, 2e6),
)
def test_a_node_stays_within_its_waypoints(
    found: list[tuple[float, float, float]], at: float
) -> None:
    way = [Waypoint(*one) for one in sorted({one[0]: one for one in found}.values())]
    x, y = place_at(way, at)
    assert min(p.x for p in way) - 1e-3 <= x <= max(p.x for p in way) + 1e-3
    assert min(p.y for p in way) - 1e-3 <= y <= max(p.y for p in way) + 1e-3


@pytest.mark.parametrize(
    ("format", "data"),
    [
        ("ns2", b"$node_(0) set X_ 1\n" * 250_000),
        ("ns2", b"$node_(0) set X_ 1\n$node_(0) set Y_ 1\n"
         + b'$ns_ at 1 "$node_(0) setdest 9 9 1"\n' * 110_000),
        ("ns2", b"".join(b"$node_(%d) set X_ 1\n" % n for n in range(1000))),
        ("bonnmotion", b"1 1 1 " * 650_000),
        ("bonnmotion", b"1 1 1\n" * 500),
        ("bonnmotion", b" " * MOST_BYTES),
        ("ns2", b"x" * (MOST_BYTES + 1)),
    ],
    ids=["set", "go", "nodes", "points", "lines", "blanks", "large"],
)  # fmt: skip
def test_time_and_memory_are_bounded(format: str, data: bytes) -> None:
    tracemalloc.start()
    begun = time.process_time()
    with suppress(TraceError):
        parse(data, format)
    took, (_, peak) = time.process_time() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 60  # traced, on a busy machine
    assert peak < 256 << 20
