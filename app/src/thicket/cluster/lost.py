# SPDX-License-Identifier: Apache-2.0
"""Nodes that were here and are not any more: when there was the last sign of each."""

from __future__ import annotations

from thicket.base.process import boottime

#: Most nodes that are remembered, and for how many seconds: a week.
MOST = 256
LONGEST = 7 * 86400.0


def _key(name: str) -> str:
    from thicket.distribution.handshake import key_of  # loaded with the node

    return key_of(name)


class Lost:
    """Remembers them, in memory."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        #: Names and times by keys, the latest last.
        self._last: dict[str, tuple[str, float]] = {}

    def note(self, name: str, ago: float = 0.0) -> None:
        """A node is gone, whose last sign was some seconds ago."""
        key, last = _key(name), boottime() - ago
        _, before = self._last.pop(key, (name, float("-inf")))
        self._last[key] = name, max(last, before)
        while len(self._last) > MOST:
            del self._last[next(iter(self._last))]

    def back(self, name: str) -> None:
        """A node is here again."""
        self._last.pop(_key(name), None)

    def age(self, name: str) -> float | None:
        """Return the seconds since the last sign of a node; None for one that is not missed."""
        known = self._last.get(_key(name))
        return None if known is None else max(0.0, boottime() - known[1])

    def all(self) -> dict[str, float]:
        """Return them by their names, with the seconds since their last signs."""
        now = boottime()
        return {
            name: max(0.0, now - last)
            for name, last in self._last.values()
            if now - last <= LONGEST
        }
