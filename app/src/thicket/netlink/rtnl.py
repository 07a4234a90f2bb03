# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: an interface up and down, its addresses and its neighbours; its sysctls.

Numbers: ``include/uapi/linux/rtnetlink.h``, ``if_link.h``, ``if_addr.h``, ``neighbour.h``.
"""

import errno
import struct
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Interface
from typing import Any, TypedDict

from thicket.base.files import read
from thicket.netlink.messages import (
    HEADER,
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NetlinkError,
    Requests,
    facts_of,
    hardware_address,
    number,
)
from thicket.netlink.pyroute import nla, nlmsg

RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTM_SETLINK = 19
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_GETNEIGH = 30

# enum rtnetlink_groups
GROUP_LINK = 1
GROUP_IPV6_ADDRESS = 9

IFF_UP = 1 << 0  # include/uapi/linux/if.h
IFF_RUNNING = 1 << 6

IFA_F_NODAD = 0x02
IFA_F_DADFAILED = 0x08
IFA_F_TENTATIVE = 0x40
#: The kernel makes no route of the address's prefix. Those of gateways' prefixes have it
#: (:meth:`Links.add_borrowed`), and so can be told from a node's own.
IFA_F_NOPREFIXROUTE = 0x200
_RT_SCOPE_UNIVERSE = 0

# neighbour states of a link-layer address that was confirmed at least once
_NUD_KNOWN = 0x02 | 0x04 | 0x08 | 0x10  # REACHABLE, STALE, DELAY, PROBE

_AF_INET6 = 10
_NDMSG = struct.Struct("=BBHiHBB")  # family, padding twice, index, state, flags, type
_NDA_DST = 1
_NDA_LLADDR = 2
_NDA_IFINDEX = 8
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change


class LinkMessage(nlmsg):  # type: ignore[misc]
    """struct ifinfomsg. (pyroute2's own class for it imports some thirty modules.)"""

    fields = (
        ("family", "B"),
        ("__align", "x"),
        ("ifi_type", "H"),
        ("index", "i"),
        ("flags", "I"),
        ("change", "I"),
    )
    nla_map = (
        (1, "IFLA_ADDRESS", "l2addr"),
        (3, "IFLA_IFNAME", "asciiz"),
    )


class AddressMessage(nlmsg):  # type: ignore[misc]
    """struct ifaddrmsg."""

    class cacheinfo(nla):  # type: ignore[misc]  # noqa: N801 - pyroute2 finds it by this name
        """struct ifa_cacheinfo, lifetimes in seconds."""

        fields = (("preferred", "I"), ("valid", "I"), ("created", "I"), ("updated", "I"))

    fields = (
        ("family", "B"),
        ("prefixlen", "B"),
        ("flags", "B"),
        ("scope", "B"),
        ("index", "I"),
    )
    nla_map = (
        (1, "IFA_ADDRESS", "ip6addr"),
        (2, "IFA_LOCAL", "ip6addr"),
        (8, "IFA_FLAGS", "uint32"),
    )


class Address(TypedDict):
    """An IPv6 address of an interface, canonical text; ``flags`` are IFA_F_*."""

    address: str
    prefix_length: int
    flags: int
    scope: int


def link_event(message: bytes) -> tuple[int, int] | None:
    """Return interface index and IFF_* flags of an RTM_NEWLINK or RTM_DELLINK message.

    Every radio event causes one of these, so only the fixed part is decoded.
    """
    if len(message) < HEADER.size + _IFINFOMSG.size:
        return None
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(message, HEADER.size)
    return index, flags


def address_event(message: bytes) -> int | None:
    """Return the interface index of an RTM_NEWADDR or RTM_DELADDR message."""
    if len(message) < HEADER.size + 8:
        return None
    (index,) = struct.unpack_from("=I", message, HEADER.size + 4)
    return int(index)


@lru_cache(maxsize=256)
def _text(packed: bytes) -> str:
    """An IPv6 address in canonical form. Making it costs more than all else of a neighbour."""
    return str(IPv6Address(packed))


def neighbour(message: bytes) -> tuple[int, str, str] | None:
    """Return interface index, link-layer address and IPv6 address of an RTM_NEWNEIGH message.

    None when it is malformed, or the kernel has never confirmed that the two belong together.
    """
    if len(message) < HEADER.size + _NDMSG.size:
        return None
    _, _, _, index, state, _, _ = _NDMSG.unpack_from(message, HEADER.size)
    if not state & _NUD_KNOWN:
        return None
    facts = facts_of(message, HEADER.size + _NDMSG.size)
    hardware = hardware_address(facts.get(_NDA_LLADDR))
    address = facts.get(_NDA_DST)
    if hardware is None or address is None or len(address) != 16:
        return None
    return index, hardware, _text(address)


class Links:
    """Requests to rtnetlink.

    :raises NetlinkError: any method, when the kernel refuses.
    """

    def __init__(self) -> None:
        self._requests = Requests(NETLINK_ROUTE)

    def close(self) -> None:
        self._requests.close()

    def index(self, name: str) -> int | None:
        """Return the index of the interface ``name``, None when there is none."""
        message = LinkMessage()
        message["family"] = 0
        message["attrs"] = [("IFLA_IFNAME", name)]
        return self._field(message, "index")

    def flags(self, index: int) -> int | None:
        """Return the IFF_* flags of an interface, None when it is gone."""
        message = LinkMessage()
        message["index"] = index
        return self._field(message, "flags")

    def _field(self, message: LinkMessage, name: str) -> int | None:
        """Ask for one interface, and return a field of the answer; None without such a one."""
        try:
            answers = self._requests.request(RTM_GETLINK, message, NLM_F_ACK, LinkMessage)
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
        return int(answers[0][name]) if answers else None

    def set_up(self, index: int, up: bool) -> None:
        """Take an interface up or down; ERFKILL while the radio is switched off."""
        message = LinkMessage()
        message["index"] = index
        message["flags"] = IFF_UP if up else 0
        message["change"] = IFF_UP
        self._requests.request(RTM_SETLINK, message)

    def rename(self, index: int, name: str) -> None:
        """Rename an interface that is down."""
        message = LinkMessage()
        message["index"] = index
        message["attrs"] = [("IFLA_IFNAME", name)]
        self._requests.request(RTM_SETLINK, message)

    def addresses(self, index: int) -> list[Address]:
        """Return the IPv6 addresses of an interface."""
        message = AddressMessage()
        message["family"] = _AF_INET6
        message["index"] = index
        found: list[Address] = []
        for answer in self._requests.request(RTM_GETADDR, message, NLM_F_DUMP, AddressMessage):
            address = answer.get_attr("IFA_ADDRESS")
            if answer["index"] != index or not isinstance(address, str):
                continue
            flags = answer.get_attr("IFA_FLAGS")
            found.append(
                {
                    "address": address,
                    "prefix_length": answer["prefixlen"],
                    "flags": flags if isinstance(flags, int) else answer["flags"],
                    "scope": answer["scope"],
                }
            )
        return found

    def _address(self, index: int, address: str, prefix_length: int) -> Any:
        message = AddressMessage()
        message["family"] = _AF_INET6
        message["prefixlen"] = prefix_length
        message["index"] = index
        message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
        return message

    def add_address(self, index: int, address: IPv6Interface) -> None:
        """Add an address; the kernel then checks whether another node has it (RFC 4862, 5.4)."""
        self._requests.request(
            RTM_NEWADDR,
            self._address(index, str(address.ip), address.network.prefixlen),
            NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
        )

    def remove_address(self, index: int, address: str, prefix_length: int) -> None:
        self._requests.request(RTM_DELADDR, self._address(index, address, prefix_length))

    def add_borrowed(self, index: int, address: IPv6Interface) -> None:
        """Add an address in a prefix that a gateway has.

        Nobody is asked whether it is in use: its lower half is that of the node's own address,
        which the others were asked about.
        """
        message = self._address(index, str(address.ip), address.network.prefixlen)
        flags = IFA_F_NODAD | IFA_F_NOPREFIXROUTE
        message["attrs"] = [*message["attrs"], ("IFA_FLAGS", flags)]
        self._requests.request(RTM_NEWADDR, message, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)

    def borrowed(self, index: int) -> set[IPv6Interface]:
        """Return the addresses in prefixes of gateways."""
        return {
            IPv6Interface((known["address"], known["prefix_length"]))
            for known in self.addresses(index)
            if known["scope"] == _RT_SCOPE_UNIVERSE and known["flags"] & IFA_F_NOPREFIXROUTE
        }

    def _own(self, index: int) -> list[Address]:
        """Return the addresses of global scope that are no borrowed ones."""
        return [
            known
            for known in self.addresses(index)
            if known["scope"] == _RT_SCOPE_UNIVERSE and not known["flags"] & IFA_F_NOPREFIXROUTE
        ]

    def remove_all(self, index: int) -> None:
        """Remove every address of global scope, except those of gateways' prefixes."""
        for known in self._own(index):
            self.remove_address(index, known["address"], known["prefix_length"])

    def keep_only(self, index: int, address: IPv6Interface) -> int | None:
        """Make ``address`` the only address of global scope that is left, besides those of
        gateways' prefixes.

        An address that failed duplicate address detection is removed, to be tried again.

        :returns: its IFA_F_* flags, None when it is not there.
        """
        flags = None
        for known in self._own(index):
            ours = known["address"] == str(address.ip)
            if (
                ours
                and known["prefix_length"] == address.network.prefixlen
                and not known["flags"] & IFA_F_DADFAILED
            ):
                flags = known["flags"]
            else:
                self.remove_address(index, known["address"], known["prefix_length"])
        return flags

    def neighbours(self, index: int) -> list[tuple[str, str]]:
        """Return (link-layer address, IPv6 address) of the neighbours that an interface knows."""
        wanted = number(_NDA_IFINDEX, index)
        size = HEADER.size + _NDMSG.size + len(wanted)
        header = HEADER.pack(size, RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, 0, 0)
        request = header + _NDMSG.pack(_AF_INET6, 0, 0, 0, 0, 0, 0) + wanted
        answers = self._requests.ask(request, neighbour)
        return [(hardware, address) for of, hardware, address in answers if of == index]


def set_sysctl(interface: str, name: str, value: int) -> None:
    """Set ``net.ipv6.conf.<interface>.<name>`` unless it has the value already.

    :raises OSError: it cannot be set.
    """
    path = f"/proc/sys/net/ipv6/conf/{interface}/{name}"
    if read(path) != str(value):
        with open(path, "w", encoding="ascii") as file:
            file.write(str(value))
