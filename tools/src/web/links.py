# SPDX-License-Identifier: Apache-2.0
"""Judges the links of a fleet: which are there, and which were there and are cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from web.model import MOST_LINKS, Link, LinkState, Side

#: Seconds for which a link that is gone is shown as cut.
SHOWN_CUT: Final = 1800.0

Told = Mapping[str, Mapping[str, Side]]
"""What nodes tell of their links, by their names and those of the other ends."""


class Links:
    """Remembers the links of a fleet."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Link] = {}

    def judged(self, told: Told, now: float) -> tuple[Link, ...]:
        """Return all links.

        :param told: by the nodes that have told; one that has no link is there with none.
        :param now: seconds since 1970.
        """
        found: dict[tuple[str, str], Link] = {}
        for pair in _pairs(told, self._known):
            if len(found) == MOST_LINKS:
                break
            before = self._known.get(pair)
            one, other = pair
            there, back = told.get(one, {}).get(other), told.get(other, {}).get(one)
            if there is None and back is None:
                if before is None or (before.state is LinkState.CUT and _old(before, now)):
                    continue
                state = LinkState.CUT
            elif (there is None and one in told) or (back is None and other in told):
                state = LinkState.ONE_WAY
            else:
                state = LinkState.UP
            since = before.since if before is not None and before.state is state else now
            found[pair] = Link(one, other, there, back, state, since)
        self._known = found
        return tuple(found.values())


def _old(link: Link, now: float) -> bool:
    return not 0 <= now - link.since < SHOWN_CUT


def _pairs(told: Told, known: Mapping[tuple[str, str], Link]) -> Iterator[tuple[str, str]]:
    """Yield all pairs once; those that are told first, so that liars push nobody out for long."""
    seen = set()
    for one, others in told.items():
        for other in others:
            pair = (min(one, other), max(one, other))
            if one != other and pair not in seen:
                seen.add(pair)
                yield pair
    for pair in known:
        if pair not in seen:
            yield pair
