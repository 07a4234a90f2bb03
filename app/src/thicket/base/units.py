# SPDX-License-Identifier: Apache-2.0
"""Sizes and times as people read them."""

from __future__ import annotations


def size_text(size: float) -> str:
    """Return a size: ``812 bytes``, ``8.7 KiB``, ``69.5 MiB``, ``22.6 GiB``.

    :param size: bytes.
    """
    if size < 1024:
        return f"{int(size)} byte{'' if int(size) == 1 else 's'}"
    if size < 1023.95 * 1024:
        return f"{size / 1024:.1f} KiB"
    if size < 1023.95 * (1 << 20):
        return f"{size / (1 << 20):.1f} MiB"
    return f"{size / (1 << 30):.1f} GiB"


def time_text(seconds: float) -> str:
    """Return how long something takes or took: ``90 s``, ``4 min``, ``3 h``, ``2 d``."""
    whole = int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


class Meter:
    """How fast something grows: the mean of the last ``window`` seconds, so that what stands still
    has no rate.

    :param window: seconds.
    """

    #: Seconds that have to be seen before anything is said.
    LEAST = 3.0

    __slots__ = ("_seen", "_what", "_window")

    def __init__(self, window: float = 30.0) -> None:
        self._window = window
        self._what: object = None
        self._seen: list[tuple[float, int]] = []

    def add(self, now: float, done: int, what: object = None) -> None:
        """So much is done at a time; less than before is a new beginning.

        :param now: seconds of a clock that only goes forward.
        :param what: is done; another thing begins anew.
        """
        if self._seen and (what != self._what or done < self._seen[-1][1]):
            self._seen = []
        self._what = what
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] <= now - self._window:
            del self._seen[0]

    def rate(self, now: float) -> float | None:
        """Return how much is done per second; None while that cannot be said."""
        if not self._seen or now - self._seen[0][0] < self.LEAST:
            return None
        (began, first), (_, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - began)

    def left(self, now: float, total: int) -> float | None:
        """Return the seconds until all is done; None while that cannot be said."""
        rate = self.rate(now)
        return (total - self._seen[-1][1]) / rate if rate else None
