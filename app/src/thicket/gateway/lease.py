# SPDX-License-Identifier: Apache-2.0
"""What the network at the uplink has given: the files that dhcpcd's script leaves, read strictly.

dhcpcd calls ``/usr/lib/thicket/uplink-event`` with what a server or a router has said as variables
of its environment (dhcpcd-run-hooks(8)). The script keeps them in a file for each protocol, and
removes the file when they have ended. Whoever is at the other end of the cable decides what stands
there: what is no address is left out, and what is kept is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

#: Protocols, each with its file.
DHCP, ROUTERS, DHCP6 = "dhcp", "ra", "dhcp6"
PROTOCOLS = (DHCP, ROUTERS, DHCP6)
#: Bytes of a file, and numbers of things in it, that are looked at.
MOST_BYTES = 64 * 1024
_MOST = 8
#: Name servers that are used.
MOST_NAMES = 4


class Lease(NamedTuple):
    """What an uplink has of a network.

    :ivar routers4, routers6: its routers; those of IPv6 by their link-local addresses.
    :ivar names: its name servers.
    :ivar prefixes: what was delegated to this node, of any length.
    :ivar global6: whether there is an address of IPv6 that is more than link-local.
    """

    address4: IPv4Address | None = None
    routers4: tuple[IPv4Address, ...] = ()
    routers6: tuple[IPv6Address, ...] = ()
    names: tuple[IPv4Address | IPv6Address, ...] = ()
    prefixes: tuple[IPv6Network, ...] = ()
    global6: bool = False


def variables(text: str) -> dict[str, str]:
    """Return the variables in a file of ``NAME=VALUE``; a line that is none is left out."""
    found: dict[str, str] = {}
    for line in text.split("\n")[:4096]:
        name, equals, value = line.partition("=")
        if equals and name.isidentifier():
            found.setdefault(name, value)
    return found


def lease(files: Mapping[str, str]) -> Lease:
    """Return what the files of the protocols say together.

    :param files: the texts by protocol; one that is missing has ended, or never was.
    """
    four = variables(files.get(DHCP, ""))
    address4 = next(iter(_four(four.get("new_ip_address", ""))), None)
    routers4 = _four(four.get("new_routers", "")) if address4 is not None else ()
    names: list[IPv4Address | IPv6Address] = []
    if address4 is not None:
        names += _four(four.get("new_domain_name_servers", ""))
    said = variables(files.get(ROUTERS, ""))
    routers6: list[IPv6Address] = []
    global6 = False
    for number in range(1, _MOST + 1):
        sender = next(iter(_six(said.get(f"nd{number}_from", ""))), None)
        if sender is None or not sender.is_link_local:
            continue
        if said.get(f"nd{number}_lifetime", "1") != "0":
            routers6.append(sender)
        for at in range(1, _MOST + 1):
            address = said.get(f"nd{number}_addr{at}", "").partition("/")[0]
            global6 |= any(map(_is_wide, _six(address)))
        for key in [f"nd{number}_rdnss{at}_servers" for at in range(1, _MOST + 1)]:
            names += _six(said.get(key, ""))
    six = variables(files.get(DHCP6, ""))
    names += _six(six.get("new_dhcp6_name_servers", ""))
    prefixes: list[IPv6Network] = []
    for one in range(1, _MOST + 1):
        for at in range(1, _MOST + 1):
            key = f"new_dhcp6_ia_na{one}_ia_addr{at}"
            global6 |= any(map(_is_wide, _six(six.get(key, ""))))
            key = f"new_dhcp6_ia_pd{one}_prefix{at}"
            prefix = _network(six.get(key, ""), six.get(f"{key}_length", ""))
            if prefix is not None and six.get(f"{key}_vltime", "1") != "0":
                prefixes.append(prefix)
    usable = [one for one in names if not (one.is_multicast or one.is_unspecified)]
    # A link-local name server is reached by the uplink alone, which a resolver is not told.
    usable = [one for one in usable if not (one.is_link_local or one.is_loopback)]
    return Lease(
        address4,
        routers4,
        tuple(dict.fromkeys(routers6)),
        tuple(dict.fromkeys(usable))[:MOST_NAMES],
        tuple(dict.fromkeys(prefixes))[:_MOST],
        global6,
    )


def read(folder: str, opened: Callable[[str], str | None]) -> Lease:
    """Return what the files in a folder say.

    :param opened: returns the beginning of a file; None without one.
    """
    texts = {one: opened(f"{folder}/lease.{one}") for one in PROTOCOLS}
    return lease({one: text for one, text in texts.items() if text is not None})


def _four(text: str) -> tuple[IPv4Address, ...]:
    return tuple(one for one in _addresses(text) if isinstance(one, IPv4Address))


def _six(text: str) -> tuple[IPv6Address, ...]:
    found = (one for one in _addresses(text) if isinstance(one, IPv6Address))
    return tuple(one for one in found if one.scope_id is None)


def _addresses(text: str) -> list[IPv4Address | IPv6Address]:
    found: list[IPv4Address | IPv6Address] = []
    for word in text.split()[:_MOST]:
        try:
            found.append(ip_address(word.partition("%")[0]))
        except ValueError:
            continue
    return found


def _network(text: str, length: str) -> IPv6Network | None:
    try:
        return IPv6Network(f"{text}/{int(length)}", strict=False) if "%" not in text else None
    except ValueError:
        return None


def _is_wide(address: IPv6Address) -> bool:
    return not (address.is_link_local or address.is_loopback or address.is_multicast)
