# SPDX-License-Identifier: Apache-2.0
"""The table of the nodes that were heard: bounded, and with an age."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address

from thicket.base.pace import Bucket
from thicket.discovery.beacon import MalformedError


class Heard:
    """One node that was heard. Times are in seconds of the table's clock."""

    __slots__ = ("address", "answered", "beacons", "gap", "last", "seen", "source", "spelling")

    def __init__(self, address: IPv6Address, now: float) -> None:
        self.address = address
        #: Its last beacon that was judged, and its last beacon.
        self.last = now
        self.seen = now
        self.beacons = 0
        #: Time between its last two beacons; 0 after the first.
        self.gap = 0.0
        self.answered = -1e9
        #: Where its last beacon came from, without zone; mostly its link-local address.
        self.source = ""
        #: The address as its last plain beacon spelt it, which is the spelling in its node name.
        self.spelling = str(address)


class Table:
    """The nodes that were heard.

    :param limit: how many are kept.
    :param expire: seconds of silence after which one is dropped.
    :param pinned: whether a silent address must stay (connected nodes).
    """

    #: Two beacons within this many seconds are one, sent in both forms.
    SAME = 0.2

    def __init__(
        self, limit: int, expire: float, pinned: Callable[[IPv6Address], bool] | None = None
    ) -> None:
        self.limit = limit
        self.lifetime = expire
        self.pinned = pinned or (lambda _address: False)
        self.entries: dict[IPv6Address, Heard] = {}
        #: When a flood was noticed last; it drowns the beacons of some nodes.
        self.flooded = float("-inf")
        # A sender that invents addresses fills the table slowly enough for old ones to expire, and
        # a mesh that comes up at once is learnt at once.
        self._new = Bucket(rate=8.0, burst=float(limit))

    def hear(self, address: IPv6Address, now: float) -> tuple[Heard, bool]:
        """Note a beacon, and return the sender's entry and whether it is new.

        :raises MalformedError: ``full``, there is no place for it.
        """
        entry = self.entries.get(address)
        new = entry is None
        if entry is None:
            if len(self.entries) >= self.limit:
                self.expire(now)
            if len(self.entries) >= self.limit or not self._new.take(now):
                raise MalformedError("full")
            entry = self.entries[address] = Heard(address, now)
        self.see(entry, now)
        entry.last = now
        return entry, new

    def see(self, entry: Heard, now: float) -> None:
        """Note that a beacon of a node came, which may not have been judged."""
        entry.gap = self.gap(entry, now)
        entry.seen = now
        entry.beacons += 1

    def gap(self, entry: Heard, now: float) -> float:
        """Return the seconds between a node's last two beacons, if the last one came now."""
        return now - entry.seen if now - entry.seen >= self.SAME else entry.gap

    def forget_silent(self, now: float) -> list[IPv6Address]:
        """Do as :meth:`expire`, unless a flood may have drowned the beacons."""
        return [] if now - self.flooded < self.lifetime / 2 else self.expire(now)

    def expire(self, now: float) -> list[IPv6Address]:
        """Drop nodes that were silent for too long, and return their addresses."""
        old = now - self.lifetime
        gone = [
            entry.address
            for entry in self.entries.values()
            if entry.last < old and not self.pinned(entry.address)
        ]
        for address in gone:
            del self.entries[address]
        return gone

    def resize(self, limit: int, expire: float) -> None:
        """Change the limits; entries beyond a smaller limit stay until they expire."""
        self.limit = limit
        self.lifetime = expire
        self._new.burst = float(limit)


class SharedSources:
    """Finds radios with the same MAC address. Times are in seconds.

    Such radios have the same link-local address, which is made of it (RFC 4291, appendix A), so the
    signed beacons of two nodes come from that address in turns. A node that came back with another
    identity does not count, as its former identity stays silent. The size is bounded by the nodes
    that prove who they are, and by ``LIMIT``.
    """

    #: Seconds for which a beacon counts. The slowest beacons come every 30 s, and most links to
    #: such radios fail.
    WINDOW = 900.0
    LIMIT = 256

    def __init__(self) -> None:
        #: By source: when each node was heard from it last, latest last; and the time and the two
        #: nodes of the last return to a node that was heard before another one.
        self._heard: dict[str, dict[IPv6Address, float]] = {}
        self._turned: dict[str, tuple[float, IPv6Address, IPv6Address]] = {}

    def hear(self, source: str, address: IPv6Address, now: float) -> None:
        """Note a proven beacon of ``address`` from ``source``."""
        nodes = self._heard.pop(source, {})
        if len(self._heard) >= self.LIMIT:
            oldest = next(iter(self._heard))
            del self._heard[oldest]
            self._turned.pop(oldest, None)
        nodes = {node: when for node, when in nodes.items() if now - when <= self.WINDOW}
        if address in nodes and (other := next(reversed(nodes))) != address:
            self._turned[source] = (now, address, other)
        nodes.pop(address, None)
        nodes[address] = now
        while len(nodes) > 4:
            del nodes[next(iter(nodes))]
        self._heard[source] = nodes

    def last(self, source: str) -> IPv6Address | None:
        """Return whose beacon came from ``source`` last."""
        nodes = self._heard.get(source)
        return next(reversed(nodes)) if nodes else None

    def found(self, now: float) -> dict[str, tuple[IPv6Address, IPv6Address]]:
        """Return the sources that two nodes share at the time ``now``, with the two nodes."""
        self._turned = {s: turn for s, turn in self._turned.items() if now - turn[0] <= self.WINDOW}
        return {s: (min(a, b), max(a, b)) for s, (_, a, b) in self._turned.items()}


def mac_of(link_local: str) -> str | None:
    """Return the MAC address in a link-local address (RFC 4291, appendix A), or None."""
    try:
        low = (int(IPv6Address(link_local)) & (2**64 - 1)).to_bytes(8, "big")
    except ValueError:
        return None
    if low[3:5] != b"\xff\xfe":
        return None
    return bytes((low[0] ^ 2, *low[1:3], *low[5:])).hex(":")
