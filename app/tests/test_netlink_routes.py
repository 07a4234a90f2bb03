# SPDX-License-Identifier: Apache-2.0
"""Routes and borrowed addresses on real interfaces."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Address, IPv6Interface, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from network_namespace import ip, namespace, veth

from thicket.netlink.messages import NETLINK_ROUTE, NetlinkError, Requests
from thicket.netlink.routes import Route, Routes, route
from thicket.netlink.rtnl import Links

OWN = IPv6Interface("fd12:3456:789a:1::1/64")
NEXT = IPv6Address("fd12:3456:789a:1::2")


@pytest.fixture
def kernel() -> Iterator[tuple[Links, Routes, int]]:
    with namespace():
        veth("mesh0", "other")
        links, requests = Links(), Requests(NETLINK_ROUTE)
        index = links.index("mesh0")
        assert index is not None
        ip(f"address add {OWN} dev mesh0 nodad")
        yield links, Routes(requests), index
        links.close()
        requests.close()


def test_routes_come_and_go_and_those_of_others_stay(kernel: tuple[Links, Routes, int]) -> None:
    _, routes, index = kernel
    ip("-6 route add 2001:db8:1::/64 dev mesh0")
    wanted = {
        Route(IPv6Network("::/0"), index, NEXT, OWN.ip, 512),
        Route(IPv6Network("2001:db8:2::/64"), index, metric=512),
        Route(IPv6Network("2001:db8::/32"), 0, metric=4096),
        Route(IPv4Network("198.18.0.0/23"), index),
    }
    for one in wanted:
        routes.add(one)
        routes.add(one)  # it may be there already
    assert set(routes.ours()) == wanted
    assert f"default via {NEXT} dev mesh0 proto 169 src {OWN.ip} metric 512" in ip("-6 route")
    assert "unreachable 2001:db8::/32" in ip("-6 route")
    for one in wanted:
        routes.remove(one)
        routes.remove(one)
    assert routes.ours() == []
    assert "2001:db8:1::/64" in ip("-6 route")


def test_what_the_kernel_refuses_is_an_error(kernel: tuple[Links, Routes, int]) -> None:
    _, routes, index = kernel
    with pytest.raises(NetlinkError):
        routes.add(Route(IPv6Network("::/0"), index, IPv6Address("2001:db8:9::1")))


def test_a_borrowed_address_stays_when_the_own_one_is_kept(
    kernel: tuple[Links, Routes, int],
) -> None:
    links, _, index = kernel
    borrowed = IPv6Interface("2001:db8:100::1/64")
    links.add_borrowed(index, borrowed)
    assert links.borrowed(index) == {borrowed}
    assert "2001:db8:100::/64" not in ip("-6 route")  # the route is its gateway's matter
    assert links.keep_only(index, OWN) is not None
    links.remove_all(index)
    assert links.borrowed(index) == {borrowed}
    assert str(OWN.ip) not in ip("-6 address")


def test_whether_a_neighbour_is_there(kernel: tuple[Links, Routes, int]) -> None:
    _, routes, index = kernel
    assert not routes.is_there(index, NEXT)
    ip(f"-6 neighbour add {NEXT} dev mesh0 lladdr 02:00:00:00:00:01 nud reachable")
    assert routes.is_there(index, NEXT)
    ip(f"-6 neighbour change {NEXT} dev mesh0 nud failed")
    assert not routes.is_there(index, NEXT)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_route_or_none(data: bytes) -> None:
    route(data)
