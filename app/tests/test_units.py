# SPDX-License-Identifier: Apache-2.0
"""Sizes, times and rates as people read them."""

from __future__ import annotations

import pytest

from thicket.base.units import Meter, size_text, time_text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (8908, "8.7 KiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (72_876_032, "69.5 MiB"),
        ((1 << 30) - 1, "1.0 GiB"),
        (24_249_249_792, "22.6 GiB"),
    ],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_times() -> None:
    told = [time_text(seconds) for seconds in (0, 119.9, 120, 7199, 7200, 172800)]
    assert told == ["0 s", "119 s", "2 min", "119 min", "2 h", "2 d"]


def test_a_rate_is_said_when_it_can_be_known() -> None:
    meter = Meter(30.0)
    assert meter.rate(0.0) is None
    meter.add(0.0, 100)
    meter.add(2.0, 300)
    assert meter.rate(2.0) is None, "too early"
    meter.add(4.0, 500)
    assert (meter.rate(4.0), meter.left(4.0, 900)) == (100.0, 4.0)
    # What stands still gets slower, and then has no end that can be said.
    assert meter.rate(8.0) == 50.0
    for now in range(8, 60, 4):
        meter.add(float(now), 500)
    assert (meter.rate(60.0), meter.left(60.0, 900)) == (0.0, None)
    # Something else begins anew, and so does what has less than before.
    meter.add(61.0, 5000, "another")
    assert meter.rate(61.0) is None
    meter.add(66.0, 6000, "another")
    assert meter.rate(66.0) == 200.0
    meter.add(67.0, 10, "another")
    assert meter.rate(67.0) is None
