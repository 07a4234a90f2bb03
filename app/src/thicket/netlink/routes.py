# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: routes of this product, and whether a neighbour is there.

Routes that the daemon makes carry a protocol number of their own, :data:`PROTOCOL`, so that it
knows them again after it was killed, and leaves those of everybody else alone.

Numbers: ``include/uapi/linux/rtnetlink.h``, ``neighbour.h``.
"""

from __future__ import annotations

import errno
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from thicket.netlink.messages import (
    HEADER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NetlinkError,
    Requests,
    facts_of,
    integer,
    number,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
_RTM_GETNEIGH = 30
_NLM_F_REPLACE = 0x100

#: Of the numbers that are free for programs (above RTPROT_STATIC).
PROTOCOL = 169

_RTMSG = struct.Struct("=BBBBBBBBI")  # family, lengths, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BBHiHBB")
_ATTRIBUTE = struct.Struct("=HH")
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_NDA_DST = 1
_TABLE_MAIN = 254
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_UNICAST, _UNREACHABLE = 1, 7
_AF_INET, _AF_INET6 = 2, 10
#: A neighbour that is being asked for, does not answer, or has no entry.
_NUD_INCOMPLETE, _NUD_FAILED = 0x01, 0x20


class Route(NamedTuple):
    """A route of the main table.

    :ivar interface: the index of an interface; 0 for one that says "unreachable".
    :ivar via: the next hop; None where the network is on the link.
    :ivar source: the address that packets of this node have.
    :ivar metric: of two routes to a network the lower one is taken; of IPv6 it is never 0.
    """

    network: Network
    interface: int
    via: Address | None = None
    source: Address | None = None
    metric: int = 512


def _packed(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(payload), kind) + payload  # all of 4 bytes' size


def _request(kind: int, flags: int, route: Route) -> bytes:
    family = _AF_INET6 if route.network.version == 6 else _AF_INET
    nowhere = route.interface == 0
    on_link = family == _AF_INET and route.via is None and not nowhere
    body = _RTMSG.pack(
        family, route.network.prefixlen, 0, 0, _TABLE_MAIN, PROTOCOL,
        _SCOPE_LINK if on_link else _SCOPE_UNIVERSE, _UNREACHABLE if nowhere else _UNICAST, 0,
    )  # fmt: skip
    body += _packed(_RTA_DST, route.network.network_address.packed)
    if not nowhere:
        body += number(_RTA_OIF, route.interface)
    if route.via is not None:
        body += _packed(_RTA_GATEWAY, route.via.packed)
    if route.source is not None:
        body += _packed(_RTA_PREFSRC, route.source.packed)
    body += number(_RTA_PRIORITY, route.metric)
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def route(message: bytes) -> Route | None:
    """Return the route in an RTM_NEWROUTE message, if it is one of ours; None otherwise."""
    if len(message) < HEADER.size + _RTMSG.size:
        return None
    family, length, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(message, HEADER.size)
    if table != _TABLE_MAIN or protocol != PROTOCOL or family not in (_AF_INET, _AF_INET6):
        return None
    facts = facts_of(message, HEADER.size + _RTMSG.size)
    network = IPv6Network if family == _AF_INET6 else IPv4Network
    empty = bytes(16 if family == _AF_INET6 else 4)
    interface = integer(facts.get(_RTA_OIF), 4) or 0
    try:
        return Route(
            network((facts.get(_RTA_DST, empty), length)),
            interface if kind == _UNICAST else 0,
            _address(facts.get(_RTA_GATEWAY)),
            _address(facts.get(_RTA_PREFSRC)),
            integer(facts.get(_RTA_PRIORITY), 4) or 0,
        )
    except ValueError:
        return None


def _address(packed: bytes | None) -> Address | None:
    return None if packed is None else ip_address(packed)


class Routes:
    """Requests about routes and neighbours.

    :raises NetlinkError: any method, when the kernel refuses.
    """

    def __init__(self, requests: Requests) -> None:
        self._requests = requests

    def ours(self) -> list[Route]:
        """Return the routes that carry our protocol number."""
        found: list[Route] = []
        for family in (_AF_INET, _AF_INET6):
            body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            flags = NLM_F_REQUEST | NLM_F_DUMP
            request = HEADER.pack(HEADER.size + len(body), RTM_GETROUTE, flags, 0, 0) + body
            found += self._requests.ask(request, route)
        return found

    def add(self, wanted: Route) -> None:
        """Make a route, in place of one to the same network with the same metric."""
        flags = NLM_F_ACK | NLM_F_CREATE | _NLM_F_REPLACE
        self._requests.ask(_request(RTM_NEWROUTE, flags, wanted), None)

    def remove(self, unwanted: Route) -> None:
        """Remove a route; it may have gone already."""
        try:
            self._requests.ask(_request(RTM_DELROUTE, NLM_F_ACK, unwanted), None)
        except NetlinkError as error:
            if error.errno != errno.ESRCH:
                raise

    def is_there(self, interface: int, address: Address) -> bool:
        """Return whether the kernel knows a neighbour's link-layer address, as far as it has
        asked."""
        family = _AF_INET6 if address.version == 6 else _AF_INET
        body = _NDMSG.pack(family, 0, 0, interface, 0, 0, 0) + _packed(_NDA_DST, address.packed)
        request = HEADER.pack(HEADER.size + len(body), _RTM_GETNEIGH, NLM_F_REQUEST, 0, 0) + body
        try:
            answer = self._requests.ask_one(bytearray(request))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        if len(answer) < HEADER.size + _NDMSG.size:
            return False
        state = _NDMSG.unpack_from(answer, HEADER.size)[4]
        return bool(state & ~_NUD_INCOMPLETE & ~_NUD_FAILED)
