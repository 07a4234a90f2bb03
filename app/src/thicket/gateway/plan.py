# SPDX-License-Identifier: Apache-2.0
"""What a node has of its gateways: addresses, routes and name servers, as functions of facts."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network
from typing import NamedTuple

from thicket.gateway.lease import Lease
from thicket.gateway.offers import Offer, Way, usable
from thicket.gateway.section import NAT64, NAT64_POOL
from thicket.netlink.routes import Route

_ANYWHERE = IPv6Network("::/0")
#: Lower than those of dhcpcd (:data:`thicket.gateway.uplink.METRIC`): a gateway that has lost its
#: own way takes that of another.
METRIC = 512
#: Of the route that keeps what a delegated prefix has beside the mesh from going back.
_LAST = 4096
#: Name servers that the C library asks (MAXNS of resolv.h).
_MOST_NAMES = 3


class Network(NamedTuple):
    """What there should be.

    :ivar addresses: on the mesh interface, in prefixes of gateways.
    :ivar names: name servers, the first one first.
    """

    addresses: frozenset[IPv6Interface] = frozenset()
    routes: frozenset[Route] = frozenset()
    names: tuple[IPv4Address | IPv6Address, ...] = ()


class Own(NamedTuple):
    """The ways out of a gateway itself.

    :ivar ways: those that are good now.
    :ivar prefix: the one that the mesh gets, and ``whole``: what it is a part of; None without one.
    :ivar translator: the index of NAT64's interface; 0 without it.
    :ivar names: name servers of its uplink.
    """

    ways: Way = Way.NONE
    prefix: IPv6Network | None = None
    whole: IPv6Network | None = None
    translator: int = 0
    names: tuple[IPv4Address | IPv6Address, ...] = ()


def delegated(lease: Lease, mesh: IPv6Network) -> tuple[IPv6Network, IPv6Network] | None:
    """Return the prefix of 64 bits for the mesh, and the delegated one that it is the first of;
    None where there is none, or only longer ones."""
    for whole in lease.prefixes:
        if whole.prefixlen <= 64:
            first = IPv6Network((whole.network_address, 64))
            if usable(first, mesh):
                return first, whole
    return None


def in_prefix(prefix: IPv6Network, me: IPv6Interface) -> IPv6Interface:
    """Return the address of a node in a prefix: the lower half is as in the mesh."""
    lower = int(me.ip) & (1 << 64) - 1
    return IPv6Interface((int(prefix.network_address) | lower, 64))


def network(
    me: IPv6Interface,
    mesh: int,
    own: Own,
    chosen: tuple[Offer | None, Offer | None],
    others: Iterable[Offer],
) -> Network:
    """Return what a node should have.

    :param mesh: the index of the mesh interface.
    :param own: of a gateway; ``Own()`` of a node that is none, or whose uplink has failed.
    :param chosen: the gateways for IPv6, and for IPv4 by NAT64.
    :param others: all offers, for their name servers.
    """
    addresses: set[IPv6Interface] = set()
    routes: set[Route] = set()
    six, four = chosen
    if own.prefix is not None:
        addresses.add(in_prefix(own.prefix, me))
        routes.add(Route(own.prefix, mesh, metric=METRIC))
        if own.whole is not None and own.whole != own.prefix:
            routes.add(Route(own.whole, 0, metric=_LAST))
    if own.translator:
        routes |= {Route(NAT64, own.translator, metric=METRIC), Route(NAT64_POOL, own.translator)}
    if six is not None and not own.ways & Way.IPV6:
        source = me.ip
        if six.prefix is not None:
            address = in_prefix(six.prefix, me)
            source = address.ip
            addresses.add(address)
            routes.add(Route(six.prefix, mesh, metric=METRIC))
        routes.add(Route(_ANYWHERE, mesh, six.origin, source, METRIC))
    if four is not None and not own.translator:
        routes.add(Route(NAT64, mesh, four.origin, me.ip, METRIC))
    if own.ways & Way.NAMES:
        return Network(frozenset(addresses), frozenset(routes), (IPv6Address("::1"),))
    asked = [one for one in (four, six, *others) if one is not None and one.ways & Way.NAMES]
    names = [*own.names, *dict.fromkeys(one.origin for one in asked)]
    return Network(frozenset(addresses), frozenset(routes), tuple(names)[:_MOST_NAMES])


def resolver_file(names: Iterable[IPv4Address | IPv6Address]) -> str:
    """Return the text of resolv.conf(5)."""
    return "".join(f"nameserver {one}\n" for one in names)
