# SPDX-License-Identifier: Apache-2.0
"""Whom a node stays connected with: everybody in a small fleet, some neighbours in a large one.

Every connection sends ticks both ways, over as many hops as the way has. Among all nodes there are
as many connections as pairs, so beyond some size the ticks alone fill the air
(:func:`thicket.cluster.overlay.tick_share`). From there on a node chooses a few of the nodes that
its radio is linked with, and the roster (:mod:`thicket.distribution.roster`) tells of all others.

A fleet that is switched on passes every size on its way. Connections with all that are made on the
way would be dropped when it is too large for them, after a handshake over many hops each. So beyond
:data:`AT_ONCE` nodes they wait until the fleet has settled (:class:`Growth`), and nodes know each
other by their neighbours as in a large one.

A few that are chosen without a plan hold a mesh together where each node has many neighbours. Where
two parts of a mesh are joined by few radio links, all of these may be left out. So a neighbour that
no way leads to is chosen as well, after some seconds. A choice stays while the radio link stays.

:class:`Overlay` decides from facts and times; it has no clock and does nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

#: With the topology ``auto`` a node is connected with all others as long as it knows of this many
#: nodes at most, itself among them ...
MOST_FULL = 16
#: ... and again when it knows of this many at most, so that a fleet of about that size is calm.
LEAST_SPARSE = 12
#: Up to so many nodes are connected with each other as soon as they hear of each other. In a larger
#: fleet only chosen neighbours are, until it has settled.
AT_ONCE = 8
#: A fleet has settled when it has not grown for as long as it grew before, but for so many seconds
#: at least and at most.
SETTLED = (5.0, 60.0)
#: Neighbours that a node chooses by itself. It is chosen by others as well: by as many on average.
FEW = 4
#: A node that has chosen more than this many gives one up from time to time, if it can.
MANY = 8
#: Seconds for which a neighbour that no way leads to may be chosen by itself, or come into reach.
PATIENCE = (5.0, 10.0)
#: Seconds for which a neighbour without a radio link stays chosen: links flap.
ABSENT = 30.0
#: Seconds between two neighbours that are given up.
RELAX = (40.0, 80.0)


def tick_share(nodes: int, hops: float, rate: float, tick_time: float = 15.0) -> float:
    """Return the share of the air that the ticks of connections among all nodes take.

    :param hops: of a way, on average; all of them share one channel.
    :param rate: of frames, in bit/s.
    """
    pairs = nodes * (nodes - 1) / 2
    each_way = 4 / tick_time  # ticks per second
    return pairs * 2 * each_way * hops * 2 * airtime(TICK_BYTES, rate)


#: A tick inside TLS 1.3 on the air, and about as much for the segment that acknowledges it: 4 bytes
#: of the tick, 22 of TLS, 72 of TCP and IPv6, 8 of LLC, 52 of 802.11s with CCMP and FCS.
TICK_BYTES = 4 + 22 + 72 + 8 + 52
#: Preamble, DIFS, a mean back-off of 7.5 slots, SIFS and acknowledgement of 802.11a, in seconds.
AROUND = 20e-6 + 34e-6 + 7.5 * 9e-6 + 16e-6 + 44e-6


def airtime(size: int, rate: float) -> float:
    """Return the seconds of air of a frame of ``size`` bytes with what is around it."""
    return AROUND + size * 8 / rate


class Facts(NamedTuple):
    """What a choice depends on.

    :ivar nodes: how many nodes are known, this one among them.
    :ivar neighbours: those that the radio is linked with and whose beacons were heard; by names.
    :ivar failing: those that cannot be connected.
    """

    nodes: int
    neighbours: frozenset[str]
    failing: Collection[str] = ()


class Choice(NamedTuple):
    """Whom to stay connected with.

    :ivar sparse: the chosen ones only; otherwise with all.
    :ivar chosen: the neighbours in the overlay.
    :ivar growing: with all others, but not yet.
    """

    sparse: bool
    chosen: frozenset[str]
    growing: bool = False


class Growth:
    """Whether a fleet is growing. To lose nodes meanwhile, and find them again, is no growth."""

    def __init__(self) -> None:
        self._most = 0
        self._began = self._grew = float("-inf")

    def goes_on(self, nodes: int, now: float) -> bool:
        """Return whether it grows, as it has so many nodes now."""
        least, most = SETTLED
        if nodes > self._most:
            self._most = nodes
            if now - self._grew >= most:
                self._began = now
            self._grew = now
        if now - self._grew < min(most, max(least, self._grew - self._began)):
            return True
        self._most = nodes
        return False


class Overlay:
    """The choice of one node.

    :param topology: ``[cluster] topology``.
    :param reaches: whether a way in the roster leads to a node.
    :param reaches_without: whether one leads there besides the link with it.
    :param uniform: draws a number from a range.
    """

    def __init__(
        self,
        topology: str,
        reaches: Callable[[str], bool],
        reaches_without: Callable[[str], bool],
        uniform: Callable[[float, float], float],
    ) -> None:
        self._topology = topology
        self._reaches = reaches
        self._reaches_without = reaches_without
        self._uniform = uniform
        self._sparse = topology == "neighbours"
        self._growth = Growth()
        self._chosen: dict[str, float] = {}  # and when the radio was linked with it last
        self._unreached: dict[str, float] = {}  # and when it is chosen for that
        self._relax = float("-inf")

    def choose(self, facts: Facts, now: float) -> Choice:
        """Choose by the facts of now."""
        growing = False
        if self._topology == "auto":
            most = LEAST_SPARSE if self._sparse else MOST_FULL
            self._sparse = facts.nodes > most
            growing = self._growth.goes_on(facts.nodes, now)
            growing = growing and not self._sparse and facts.nodes > AT_ONCE
        for name in facts.neighbours & self._chosen.keys():
            self._chosen[name] = now
        for name, seen in list(self._chosen.items()):
            if now - seen >= ABSENT:
                del self._chosen[name]
        self._add(facts, now, alone=self._sparse or growing)
        self._give_up(facts, now)
        return Choice(self._sparse, frozenset(self._chosen), growing)

    def _add(self, facts: Facts, now: float, *, alone: bool) -> None:
        """Choose more neighbours.

        :param alone: only chosen ones are connected, and the ways lead over them.
        """
        others = facts.neighbours - self._chosen.keys()
        good = [name for name in others if name not in facts.failing]
        healthy = sum(
            name in facts.neighbours and name not in facts.failing for name in self._chosen
        )
        for name in self._shuffled(good)[: max(0, FEW - healthy)]:
            self._chosen[name] = now
            others -= {name}
        unreached = [name for name in others if alone and not self._reaches(name)]
        self._unreached = {
            name: self._unreached.get(name, now + self._uniform(*PATIENCE)) for name in unreached
        }
        for name, at in self._unreached.items():
            if at <= now:
                self._chosen[name] = now

    def _give_up(self, facts: Facts, now: float) -> None:
        """Give up one of many, if there is another way to it: one at a time, so that two ends of a
        mesh do not give up the last two links between them at once."""
        if len(self._chosen) <= MANY or not self._sparse:
            self._relax = now + self._uniform(*RELAX)
        elif now >= self._relax:
            self._relax = now + self._uniform(*RELAX)
            for name in self._shuffled(self._chosen):
                if self._reaches_without(name):
                    del self._chosen[name]
                    return

    def _shuffled(self, names: Iterable[str]) -> list[str]:
        return sorted(sorted(names), key=lambda _name: self._uniform(0.0, 1.0))
