# SPDX-License-Identifier: Apache-2.0
"""Which interfaces are cables, and what is known of one: by sysfs and procfs."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from thicket.base.files import entries, read

#: ARPHRD_ETHER of include/uapi/linux/if_arp.h: also USB gadgets and adapters; no modem without
#: Ethernet's frames, no tunnel.
_ETHER = "1"
#: What only a wireless interface has, and one that is part of another (bridge, bond).
_NOT = ("phy80211", "wireless", "master")
_SIOCGIFADDR = 0x8915  # include/uapi/linux/sockios.h
_IFREQ = struct.Struct("16s2xH4x")  # struct ifreq with a struct sockaddr_in: name; family
_IFA_F_UNUSABLE = 0x40 | 0x08  # tentative, or it failed duplicate address detection
#: Cables that are served; a device has one or two.
MOST = 8

IPV6_LINK_LOCAL = IPv6Network("fe80::/10")
IPV4_LINK_LOCAL = IPv4Network("169.254.0.0/16")


class Link(NamedTuple):
    """A cable that somebody is at the other end of, with addresses of that link alone.

    :ivar number: its index; another one when an adapter was pulled and put back.
    :ivar ipv4: None where there is none (yet).
    """

    name: str
    number: int
    ipv6: IPv6Address
    ipv4: IPv4Address | None

    @property
    def addresses(self) -> list[IPv6Address | IPv4Address]:
        """Both of them."""
        return [self.ipv6] if self.ipv4 is None else [self.ipv6, self.ipv4]


def cables(sysfs: str, reserved: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Return the names of the interfaces that are cables: real wired Ethernet.

    :param sysfs: where sysfs is mounted.
    :param reserved: interfaces that are for something else, as an uplink is.
    """
    folder = f"{sysfs}/class/net"
    return tuple(
        name
        for name in sorted(set(entries(folder)) - reserved)
        if read(f"{folder}/{name}/type") == _ETHER
        and os.path.exists(f"{folder}/{name}/device")  # no bridge, no tunnel, no dummy
        and not any(os.path.exists(f"{folder}/{name}/{sign}") for sign in _NOT)
    )[:MOST]


def plugged(sysfs: str, name: str) -> bool:
    """Return whether there is a signal at the other end of a cable."""
    return read(f"{sysfs}/class/net/{name}/carrier") == "1"


def link(name: str) -> Link | None:
    """Return what is known of an interface; None while it has no usable link-local address."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return None
    address = _ipv6(read("/proc/thread-self/net/if_inet6") or "", index)
    return None if address is None else Link(name, index, address, _ipv4(name))


def _ipv6(table: str, index: int) -> IPv6Address | None:
    """Return the link-local address of an interface from the kernel's table of all addresses:
    lines of address, index, prefix, scope, flags (in hexadecimal) and name."""
    for line in table.splitlines():
        words = line.split()
        if (
            len(words) == 6
            and int(words[1], 16) == index
            and not int(words[4], 16) & _IFA_F_UNUSABLE
        ):
            address = IPv6Address(bytes.fromhex(words[0]))
            if address in IPV6_LINK_LOCAL:
                return address
    return None


def _ipv4(name: str) -> IPv4Address | None:
    """Return an interface's own IPv4 address where that is link-local (RFC 3927)."""
    request = bytearray(_IFREQ.size + 16)
    request[: len(name)] = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            fcntl.ioctl(asked.fileno(), _SIOCGIFADDR, request)
        except OSError:
            return None
    address = IPv4Address(bytes(request[20:24]))  # sin_addr, behind the family and a port
    return address if address in IPV4_LINK_LOCAL else None
