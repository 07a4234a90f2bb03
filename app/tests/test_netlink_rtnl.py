# SPDX-License-Identifier: Apache-2.0
"""rtnetlink on real interfaces: addresses, duplicate address detection, neighbours, sysctls."""

import errno
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Interface
from pathlib import Path

import pytest
from network_namespace import ip, namespace
from patience import PATIENCE

from thicket.netlink import rtnl
from thicket.netlink.messages import NetlinkError
from thicket.netlink.rtnl import Links

ADDRESS = IPv6Interface("fd12:3456:789a:1:0:6f44:e3c6:b802/64")


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} has not happened within {seconds} s"
        time.sleep(0.05)


@contextmanager
def wire() -> Iterator[tuple[Links, int, int]]:
    """Two connected interfaces in a network namespace of their own."""
    with namespace():
        try:
            ip("link add mesh0 type veth peer name other")
        except RuntimeError as error:
            pytest.skip(f"needs veth interfaces: {error}")
        links = Links()
        try:
            one, two = links.index("mesh0"), links.index("other")
            assert one and two
            links.set_up(one, True)
            links.set_up(two, True)
            wait_for(lambda: (links.flags(one) or 0) & rtnl.IFF_RUNNING, "the carrier")
            yield links, one, two
        finally:
            links.close()


def flags_of(links: Links, index: int) -> int | None:
    return next(
        (one["flags"] for one in links.addresses(index) if one["address"] == str(ADDRESS.ip)), None
    )


def test_link_event() -> None:
    body = struct.pack("=BxHiII", 0, 1, 42, rtnl.IFF_UP | rtnl.IFF_RUNNING, 0)
    data = struct.pack("=IHHII", 16 + len(body), rtnl.RTM_NEWLINK, 0, 0, 0) + body
    assert rtnl.link_event(data) == (42, 0x41)
    assert rtnl.link_event(data[:-1]) is None


def test_address_event() -> None:
    body = struct.pack("=BBBBI", 10, 64, 0x80, 0, 7)
    data = struct.pack("=IHHII", 16 + len(body), rtnl.RTM_NEWADDR, 0, 0, 0) + body
    assert rtnl.address_event(data) == 7
    assert rtnl.address_event(data[:-1]) is None


def test_up_and_down_and_rename() -> None:
    with wire() as (links, one, _):
        assert (links.flags(one) or 0) & rtnl.IFF_UP
        links.set_up(one, False)
        assert not (links.flags(one) or 0) & rtnl.IFF_UP
        links.rename(one, "other-name")
        assert links.index("other-name") == one
        assert links.index("mesh0") is None


def test_an_address_is_tentative_first() -> None:
    with wire() as (links, one, _):
        links.add_address(one, ADDRESS)
        assert (flags_of(links, one) or 0) & rtnl.IFA_F_TENTATIVE
        wait_for(
            lambda: not (flags_of(links, one) or 0) & rtnl.IFA_F_TENTATIVE, "the end of detection"
        )
        assert "/64" in ip("-6 addr show dev mesh0 scope global")


def test_an_address_that_is_there_twice_fails() -> None:
    with wire() as (links, one, two):
        links.add_address(two, ADDRESS)
        wait_for(lambda: not (flags_of(links, two) or 0) & rtnl.IFA_F_TENTATIVE, "first detection")
        links.add_address(one, ADDRESS)
        wait_for(lambda: (flags_of(links, one) or 0) & rtnl.IFA_F_DADFAILED, "second detection")
        assert links.keep_only(one, ADDRESS) is None
        assert flags_of(links, one) is None, "a failed address is taken away to be tried again"


def test_other_addresses_go() -> None:
    with wire() as (links, one, _):
        ip("-6 addr add fd00::9/64 dev mesh0 nodad")
        assert links.keep_only(one, ADDRESS) is None
        links.add_address(one, ADDRESS)
        assert links.keep_only(one, ADDRESS) is not None
        known = [item["address"] for item in links.addresses(one) if item["scope"] == 0]
        assert known == [str(ADDRESS.ip)]
        wider = IPv6Interface(f"{ADDRESS.ip}/48")
        assert links.keep_only(one, wider) is None, "another prefix length is another address"
        links.add_address(one, wider)
        links.remove_all(one)
        assert not [item for item in links.addresses(one) if item["scope"] == 0]
        assert [item for item in links.addresses(one) if item["scope"] != 0], "link-local stays"


def test_neighbours() -> None:
    with wire() as (links, one, _):
        ip("-6 neigh add fd12:3456:789a:1::9 lladdr 02:74:68:00:00:09 dev mesh0 nud stale")
        ip("-6 neigh add fd12:3456:789a:1::8 dev mesh0 lladdr 02:74:68:00:00:08 nud permanent")
        assert links.neighbours(one) == [("02:74:68:00:00:09", "fd12:3456:789a:1::9")]


def test_what_the_kernel_refuses_is_an_error() -> None:
    with wire() as (links, one, _):
        links.add_address(one, ADDRESS)
        with pytest.raises(NetlinkError) as caught:
            links.add_address(one, ADDRESS)
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(NetlinkError):
            links.set_up(0x7FFFFFFF, True)


def test_sysctl() -> None:
    with namespace():
        path = Path("/proc/thread-self/net")
        assert path.exists()
        if subprocess.run(["ip", "link", "show", "lo"], check=False).returncode:
            pytest.skip("no loopback interface")
        # /proc/sys shows the network of whoever opens it
        rtnl.set_sysctl("lo", "accept_ra", 0)
        text = Path("/proc/sys/net/ipv6/conf/lo/accept_ra").read_text()
        assert text.strip() == "0"
        with pytest.raises(OSError):
            rtnl.set_sysctl("no-such-interface", "accept_ra", 0)


def test_the_index_of_the_loopback_interface_is_that_of_libc() -> None:
    links = Links()
    try:
        assert links.index("lo") == socket.if_nametoindex("lo")
    finally:
        links.close()
