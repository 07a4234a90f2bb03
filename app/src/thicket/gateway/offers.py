# SPDX-License-Identifier: Apache-2.0
"""What a gateway offers, as it is said to others, and the offers that a node knows of.

    {offer, Run, Number, Origin, Hops, Ways, Prefix}

``Run`` is drawn at each start of the gateway's part, ``Number`` grows with each offer, ``Hops``
counts the nodes that have passed it on. ``Ways`` is a sum of :class:`Way`; 0 takes everything back.
``Prefix`` holds the first 8 bytes of a prefix of 64 bits that was delegated to the gateway, in
which nodes take addresses; it is empty where nodes go out with their addresses of the mesh.

An offer says nothing of the way into the mesh: the gateway is reached at ``Origin``, its address
there. What is kept is bounded, and ends by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntFlag
from ipaddress import IPv6Address, IPv6Network
from typing import Any, NamedTuple

from thicket.distribution.etf import Atom
from thicket.gateway.section import NAT64

#: Seconds between two offers of a gateway.
EVERY = 2.0
#: Seconds after which an offer that is not repeated has ended: three may be lost or late.
ENDS = 7.0
#: Gateways that a node keeps.
MOST = 8
#: Nodes that pass an offer on, one after the other, at most.
MOST_HOPS = 15

OFFER = Atom("offer")
_RUN, _NUMBER = 1 << 32, 1 << 53


class Way(IntFlag):
    """What a gateway leads to."""

    NONE = 0
    IPV6 = 1
    IPV4 = 2
    """Addresses of IPv4 in the prefix of NAT64."""
    NAMES = 4
    """It answers questions for names (DNS), with addresses of NAT64 where there is IPV4."""


class Offer(NamedTuple):
    """An offer, see above.

    :ivar origin: the gateway's address in the mesh.
    :ivar prefix: None without one.
    """

    run: int
    number: int
    origin: IPv6Address
    hops: int
    ways: Way
    prefix: IPv6Network | None


def pack(offer: Offer) -> tuple[Any, ...]:
    """Return the message with an offer."""
    prefix = offer.prefix.network_address.packed[:8] if offer.prefix is not None else b""
    return (
        OFFER, offer.run, offer.number, offer.origin.packed, offer.hops, int(offer.ways), prefix,
    )  # fmt: skip


def unpack(message: Any, mesh: IPv6Network) -> Offer | None:
    """Return the offer in a message; None where there is no sound one.

    :param mesh: the prefix of the mesh: a gateway's address is in it, and a delegated one is not.
    """
    match message:
        case (
            "offer", int() as run, int() as number, bytes() as origin, int() as hops,
            int() as ways, bytes() as top,
        ):  # fmt: skip
            pass
        case _:
            return None
    if any(isinstance(one, bool) for one in (run, number, hops, ways)) or len(origin) != 16:
        return None
    if not (0 <= run < _RUN and 0 <= number < _NUMBER and 0 <= hops <= MOST_HOPS):
        return None
    address = IPv6Address(origin)
    if ways < 0 or address not in mesh or int(address) == int(mesh.network_address):
        return None
    prefix = None
    if top:
        if len(top) != 8:
            return None
        prefix = IPv6Network((top + bytes(8), 64))
        if not usable(prefix, mesh):
            return None
    # A way that a later version knows is none that this node can take.
    known = Way(ways & (Way.IPV6 | Way.IPV4 | Way.NAMES))
    return Offer(run, number, address, hops, known, prefix)


def usable(prefix: IPv6Network, mesh: IPv6Network) -> bool:
    """Return whether nodes may take addresses in a prefix: a global or a local one that is neither
    the mesh's nor that of NAT64."""
    top = int(prefix.network_address) >> 121
    # 2000::/3 of RFC 4291 2.4, fc00::/7 of RFC 4193
    unicast = top >> 4 == 0b001 or top == 0b1111110
    return unicast and not prefix.overlaps(mesh) and not prefix.overlaps(NAT64)


class Heard(NamedTuple):
    """The offer of a gateway.

    :ivar at: when it came, on the monotonic clock.
    :ivar since: from when on it leads to all that it leads to now, without an end.
    """

    offer: Offer
    at: float
    since: float


class Offers:
    """The offers of other nodes that have not ended."""

    def __init__(self) -> None:
        self._known: dict[IPv6Address, Heard] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Heard]:
        return iter(self._known.values())

    def hear(self, offer: Offer, now: float) -> bool:
        """Take an offer; return whether it is news, and others may have use of it."""
        self.end(now)
        before = self._known.get(offer.origin)
        if before is not None and not _newer(offer, before, now):
            return False
        if before is None and not offer.ways:
            return False  # nothing to take back
        if before is None and len(self._known) >= MOST and not self._make_room(offer):
            return False
        if not offer.ways:
            # It stays until it has ended, so that what was said before does not come back.
            self._known[offer.origin] = Heard(offer, now, now)
            return True
        same = (
            before is not None
            and offer.ways & before.offer.ways == offer.ways
            and offer.prefix == before.offer.prefix
        )
        since = before.since if before is not None and same else now
        self._known[offer.origin] = Heard(offer, now, since)
        return True

    def _make_room(self, offer: Offer) -> bool:
        """Forget the farthest gateway, if it is farther than the one of an offer."""
        far = max(self._known.values(), key=lambda one: (one.offer.hops, one.since))
        if far.offer.hops <= offer.hops:
            return False
        del self._known[far.offer.origin]
        return True

    def end(self, now: float) -> None:
        """Forget the offers that have ended."""
        self._known = {a: one for a, one in self._known.items() if now - one.at < ENDS}

    def clear(self) -> None:
        """Forget all."""
        self._known = {}


def _newer(offer: Offer, before: Heard, now: float) -> bool:
    if offer.run == before.offer.run:
        return offer.number > before.offer.number
    # The gateway has begun anew. By way of others, what it said before may come later.
    return offer.hops == 0 or now - before.at >= EVERY * 1.5
