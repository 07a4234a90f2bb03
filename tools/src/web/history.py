# SPDX-License-Identifier: Apache-2.0
"""What was measured in the last day, in a bounded room: every value for a while, then means.

A series has two rings, as RRDtool's archives: an hour in steps of 10 seconds, and a day in steps
of 5 minutes. A step keeps the mean of its values, the least and the greatest, so that a short drop
is seen a day later.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import Final, NamedTuple

#: Most series. One takes 22 KB when it is full; a node has 4, and a link 4.
MOST_SERIES: Final = 8192


class Step(NamedTuple):
    """The values of one step.

    :ivar at: when it begins, seconds since 1970.
    """

    at: float
    mean: float
    least: float
    most: float


class Ring:
    """The newest steps of a series.

    :param seconds: of a step.
    :param steps: that are kept.
    """

    __slots__ = ("_at", "_count", "_least", "_mean", "_most", "seconds", "steps")

    def __init__(self, seconds: float, steps: int) -> None:
        self.seconds = seconds
        self.steps = steps
        self._at = array("d")
        self._mean = array("d")
        self._least = array("f")
        self._most = array("f")
        self._count = 0  # values of the newest step

    def put(self, at: float, value: float) -> None:
        """Note a value. One that is older than the newest step counts for that."""
        begin = at - at % self.seconds
        if self._at and begin <= self._at[-1]:
            self._count += 1
            self._mean[-1] += (value - self._mean[-1]) / self._count
            self._least[-1] = min(self._least[-1], value)
            self._most[-1] = max(self._most[-1], value)
            return
        self._count = 1
        for column, item in (
            (self._at, begin), (self._mean, value), (self._least, value), (self._most, value)
        ):  # fmt: skip
            column.append(item)
            if len(column) > self.steps:
                del column[0]

    def found(self, since: float) -> list[Step]:
        """Return the steps that begin at ``since`` or later, the oldest first."""
        return [
            Step(*one)
            for one in zip(self._at, self._mean, self._least, self._most, strict=True)
            if one[0] >= since
        ]


class Series:
    """One quantity, over the last day."""

    __slots__ = ("_coarse", "_fine")

    def __init__(self) -> None:
        self._fine = Ring(10.0, 360)
        self._coarse = Ring(300.0, 288)

    def put(self, at: float, value: float) -> None:
        """Note a value; ``at`` is seconds since 1970."""
        self._fine.put(at, value)
        self._coarse.put(at, value)

    def found(self, now: float, seconds: float) -> list[Step]:
        """Return what was measured in the last ``seconds``."""
        ring = self._fine if seconds <= self._fine.seconds * self._fine.steps else self._coarse
        return ring.found(now - seconds)


class History:
    """All series, by what they are of. When there are too many, the one that ended first goes."""

    def __init__(self, most: int = MOST_SERIES) -> None:
        self._most = most
        self._series: OrderedDict[tuple[str, ...], Series] = OrderedDict()

    def __len__(self) -> int:
        return len(self._series)

    def put(self, key: tuple[str, ...], at: float, value: float | None) -> None:
        """Note a value; None for none."""
        if value is None:
            return
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series()
            if len(self._series) > self._most:
                self._series.popitem(last=False)
        else:
            self._series.move_to_end(key)
        series.put(at, value)

    def found(self, key: tuple[str, ...], now: float, seconds: float) -> list[Step]:
        """Return what was measured in the last ``seconds``; nothing for an unknown series."""
        series = self._series.get(key)
        return [] if series is None else series.found(now, seconds)
