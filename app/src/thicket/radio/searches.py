# SPDX-License-Identifier: Apache-2.0
"""Judges which mesh paths over bad links are worth another search, as a detour may be better."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from thicket.base.pace import Backoff
from thicket.radio.nl80211 import ESTABLISHED, MeshPath, Station

#: A detour of two links as good as our best other one must be better than the link by this factor.
#: The kernel changes to another next hop for a tenth (mac80211, is_metric_better).
_BETTER = 1.1
#: Seconds after which the metric of a link is learned, and how much weaker a signal must be, in dB,
#: to believe it earlier.
LEARNED_SECONDS = 10
_WEAKER_DB = 6
#: Seconds from one search for a way around a bad link to the next. After a change the other links
#: of a detour may still be under way, so the first searches follow each other quickly; where they
#: found nothing for half a minute, there is probably nothing to find.
SEARCH_PAUSES = (2.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 30.0, 60.0, 120.0, 240.0)
#: Most searches of one look, as each floods the mesh.
MOST_AT_ONCE = 8


class Search(NamedTuple):
    """Remove a path whose first link has this metric, so that the next frame looks for another."""

    destination: str
    next_hop: str
    metric: int


class _Link:
    """A bad link: when a way around it is looked for next, and what it was judged with."""

    __slots__ = ("best", "due", "metric", "moved", "pauses")

    def __init__(self, metric: int, best: int, now: float) -> None:
        self.pauses = Backoff(*SEARCH_PAUSES)
        self.metric = metric
        self.best = best
        self.due = now
        #: Destinations whose paths were taken off the link since there is a way around it.
        self.moved: set[str] = set()

    def changed(self, metric: int, best: int) -> bool:
        """Whether the link is twice as bad, or the best other one twice as good."""
        return metric > 2 * self.metric or 2 * best < self.best


def _metric(station: Station) -> int:
    return station["metric"] or 0


def _believed(station: Station, best: Station) -> bool:
    """Whether the metric of a link is so much worse than the best one's for a reason."""
    if (station["connected_s"] or 0) >= LEARNED_SECONDS:
        return True
    signals = station["signal_dbm"], best["signal_dbm"]
    return None not in signals and (signals[0] or 0) <= (signals[1] or 0) - _WEAKER_DB


class Searches:
    """The bad links and the searches for ways around them. Times in seconds, monotonic.

    The kernel chooses a path when it searches for one, and keeps it for ``PATH_TIMEOUT``. What has
    changed since then, it does not see: a link that became bad, a relay that joined later, and a
    request that the relay lost. So a bad link to a peer is a reason to search for that peer, and a
    way around the link one to search for what is behind it.
    """

    __slots__ = ("_links",)

    def __init__(self) -> None:
        self._links: dict[str, _Link] = {}

    def peers_changed(self, now: float) -> None:
        """There is one more peer or one less: what was searched for in vain may be there."""
        for link in self._links.values():
            link.pauses.reset()
            link.due = now

    def look(self, stations: Iterable[Station], now: float) -> None:
        """Note which links are bad.

        The metric of a new link is bad until rate control has learned. It is believed after
        ``LEARNED_SECONDS``, and at once where the signal says the same.
        """
        links = [one for one in stations if one["state"] == ESTABLISHED and one["metric"]]
        best = min(links, key=_metric, default=None)
        bad = {
            one["mac"]: (_metric(one), _metric(best))
            for one in links
            if best is not None
            and _metric(one) > 2 * _metric(best) * _BETTER
            and _believed(one, best)
        }
        for mac in self._links.keys() - bad.keys():
            del self._links[mac]
        for mac, judged in bad.items():
            known = self._links.get(mac)
            if known is None or known.changed(*judged):
                self._links[mac] = _Link(*judged, now)

    def due(self, now: float) -> bool:
        """Whether it is time for a search."""
        return any(now >= link.due for link in self._links.values())

    def judge(
        self, table: list[MeshPath], left_alone: Collection[str], now: float
    ) -> Iterator[Search]:
        """What to search for.

        :param left_alone: destinations whose paths are decided elsewhere.
        """
        left = MOST_AT_ONCE
        ways = {path["destination"]: path["next_hop"] for path in table}
        for mac, link in self._links.items():
            if now < link.due:
                continue
            link.due = now + link.pauses.failed()
            around = ways.get(mac, mac) != mac
            if not around:
                link.moved.clear()
            for destination, next_hop in ways.items():
                behind = destination != mac
                if (
                    next_hop != mac
                    or destination in left_alone
                    or (behind and (not around or destination in link.moved))
                ):
                    continue
                if left == 0:
                    link.due = now  # the rest at the next look
                    return
                left -= 1
                if behind:
                    link.moved.add(destination)
                yield Search(destination, mac, link.metric)
