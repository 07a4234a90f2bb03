# SPDX-License-Identifier: Apache-2.0
"""The last day in a bounded room."""

from __future__ import annotations

from math import isclose

from hypothesis import given
from hypothesis import strategies as st

from web.history import History, Ring, Series

START = 1_800_000_000.0
VALUES = st.floats(-1e4, 1e4, width=32)
PAUSES = st.floats(0.0, 400.0)


@given(
    st.lists(st.tuples(PAUSES, VALUES), min_size=1, max_size=120),
    st.integers(1, 30),
    st.floats(1.0, 300.0),
)
def test_a_ring_keeps_the_newest_steps_with_their_true_bounds(
    measured: list[tuple[float, float]], steps: int, seconds: float
) -> None:
    ring, at = Ring(seconds, steps), START
    truth: dict[float, list[float]] = {}
    for pause, value in measured:
        at += pause
        ring.put(at, value)
        begin = at - at % seconds
        newest = max(truth, default=begin)
        truth.setdefault(max(begin, newest), []).append(value)
    kept = sorted(truth)[-steps:]
    found = ring.found(0.0)
    assert [one.at for one in found] == kept
    for one in found:
        values = truth[one.at]
        assert one.least == min(values)
        assert one.most == max(values)
        assert isclose(one.mean, sum(values) / len(values), rel_tol=1e-6, abs_tol=1e-3)


def test_a_day_has_no_more_steps_than_a_page_can_draw() -> None:
    series = Series()
    for second in range(0, 2 * 86400, 7):
        series.put(START + second, float(second))
    now = START + 2 * 86400
    hour, day = series.found(now, 3600), series.found(now, 86400)
    assert 350 <= len(hour) <= 360
    assert 280 <= len(day) <= 288
    assert hour[0].at >= now - 3600
    assert day[0].at >= now - 86400


def test_a_drop_of_a_moment_is_seen_a_day_later() -> None:
    series = Series()
    for second in range(0, 80_000, 10):
        series.put(START + second, -90.0 if second == 5000 else -60.0)
    assert min(one.least for one in series.found(START + 80_000, 86400)) == -90.0


def test_a_clock_that_is_set_back_spoils_nothing() -> None:
    series = Series()
    for at in (START, START + 100, START - 5000, START + 50):
        series.put(at, 1.0)
    times = [one.at for one in series.found(START + 100, 3600)]
    assert times == sorted(times)


@given(st.lists(st.integers(0, 40), max_size=200))
def test_liars_cannot_make_it_keep_more(names: list[int]) -> None:
    history = History(most=10)
    for name in names:
        history.put((str(name), "load"), START, 1.0)
        assert len(history) <= 10
    if names:
        assert history.found((str(names[-1]), "load"), START, 3600), "the newest one is there"


def test_what_is_not_known_is_no_value() -> None:
    history = History()
    history.put(("n1", "load"), START, None)
    assert len(history) == 0
    assert history.found(("n1", "load"), START, 3600) == []
