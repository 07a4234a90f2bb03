# SPDX-License-Identifier: Apache-2.0
"""The way to each node through the mesh: how many hops, and which link on it is the weakest.

IEEE 802.11s takes the way with the least sum of airtime metrics (14.9), and no node knows more of
it than the next hop and their number. So the way is found anew, of the links that the nodes tell.
The number of hops is that of the radio, where it knows a path.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import NamedTuple

from thicket.metrics.summary import Link

#: The metric of a link whose ends tell none: that of a bad one.
UNKNOWN = 8192


class Weakest(NamedTuple):
    """A link between two radios, seen by both ends where both tell.

    :ivar signal: the lower one in dBm, and ``metric``: the higher one, in units of 10.24 us.
    """

    one: str
    other: str
    signal: int | None
    metric: int | None


class Way(NamedTuple):
    """The way to a node.

    :ivar hops: 1 for a peer.
    :ivar weakest: None where the links on the way are not told.
    """

    hops: int
    weakest: Weakest | None


def ways(
    own: str, links: Mapping[str, tuple[Link, ...]], paths: Mapping[str, int]
) -> dict[str, Way]:
    """Return the ways from one radio to all others.

    :param own: its MAC address, and all others: 12 digits.
    :param links: what radios tell of theirs.
    :param paths: the hops of the paths that our radio knows.
    """
    graph = _graph(links)
    found: dict[str, Way] = {}
    #: Length, hops, radio, and the weakest link before it; the shortest first.
    queue: list[tuple[int, int, str, Weakest | None]] = [(0, 0, own, None)]
    seen: set[str] = set()
    while queue:
        length, hops, radio, weakest = heappop(queue)
        if radio in seen:
            continue
        seen.add(radio)
        if radio != own:
            found[radio] = Way(paths.get(radio, hops), weakest)
        for other, link in graph.get(radio, {}).items():
            if other not in seen:
                cost = UNKNOWN if link.metric is None else link.metric
                entry = (length + cost, hops + 1, other, _weaker(weakest, link))
                heappush(queue, entry)
    for radio, hops in paths.items():
        if radio != own:
            found.setdefault(radio, Way(hops, None))
    return found


def _graph(links: Mapping[str, tuple[Link, ...]]) -> dict[str, dict[str, Weakest]]:
    """Return all links, from either end."""
    graph: dict[str, dict[str, Weakest]] = {}
    for radio, told in links.items():
        for link in told:
            if link.mac == radio:
                continue
            known = graph.get(radio, {}).get(link.mac)
            signals = [s for s in (link.signal, known and known.signal) if s is not None]
            metrics = [m for m in (link.metric, known and known.metric) if m is not None]
            made = Weakest(
                radio,
                link.mac,
                min(signals, default=None),
                max(metrics, default=None),
            )
            graph.setdefault(radio, {})[link.mac] = made
            graph.setdefault(link.mac, {})[radio] = made
    return graph


def _weaker(one: Weakest | None, other: Weakest) -> Weakest:
    return other if one is None or _weakness(other) > _weakness(one) else one


def _weakness(link: Weakest) -> tuple[int, int]:
    return (
        UNKNOWN if link.metric is None else link.metric,
        0 if link.signal is None else -link.signal,
    )
