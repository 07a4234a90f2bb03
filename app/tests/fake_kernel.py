# SPDX-License-Identifier: Apache-2.0
"""A kernel for tests of the radio, which does what the test says.

That it answers as a real one does is held by ``kernel_contract``.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import Callable
from ipaddress import IPv6Interface

from radio_facts import PEER

from thicket.netlink import rtnl
from thicket.netlink.messages import NETLINK_GENERIC, NETLINK_ROUTE, Events, NetlinkError
from thicket.radio import nl80211
from thicket.radio.nl80211 import (
    CMD_DEL_INTERFACE,
    CMD_NEW_SCAN_RESULTS,
    CMD_NEW_WIPHY,
    IFTYPE_MESH_POINT,
    PLINK_STATES,
    Channel,
    Interface,
    MeshPath,
    Nl80211,
    Station,
    Wiphy,
)
from thicket.radio.scan import Heard
from thicket.radio.sign import Sign

DAD_SECONDS = 1.0
"""How long the kernel asks whether somebody else has an address (RFC 4862, 5.1)."""


def radio(index: int = 0, driver: str = "mt76x2u", *, mesh_point: bool = True) -> Wiphy:
    wiphy = Wiphy(index)
    wiphy.driver = driver
    wiphy.mac = f"02:74:68:00:01:{index:02x}"
    wiphy.iftypes = {2, 3, 7} if mesh_point else {2, 3}
    wiphy.mesh_auth = True
    wiphy.port = f"1-{index + 1}"
    wiphy.widths = {0: 40, 1: 80}
    wiphy.channels = {2412: Channel(disabled=False, listen_only=False)}
    return wiphy


def refused(code: int) -> NetlinkError:
    return NetlinkError(code, os.strerror(code))


class FakeKernel:
    """What the kernel would be like; the tests change it.

    :ivar meshes: the frequency of each interface that is in a mesh, by index.
    :ivar stations: those that an interface in a mesh hears.
    :ivar next_hops: the mesh paths, by destination.
    :ivar assigned: the addresses of each interface, with their flags.
    :ivar new_address_flags: what has become of a new address once the kernel has asked for it.
    :ivar looks_outside: how often it was asked for a frequency while no interface was in a mesh.
    :ivar heard: who was heard in scans; ``scans``: the frequencies of each request for one.
    :ivar width: of the channel of a mesh, in MHz.
    :ivar country: what it follows; ``takes_country``: whether it takes what it is asked for;
        ``asked``: what that was.
    """

    def __init__(self) -> None:
        self.radios = [radio()]
        self.interfaces: dict[str, Interface] = {}
        self.up: set[int] = set()
        self.next_index = 10
        self.meshes: dict[int, int] = {}
        self.parameters: list[dict[str, int]] = []
        self.stations: list[Station] = []
        self.next_hops = {PEER: PEER}
        self.fixed_paths: list[tuple[str, str]] = []
        self.removed_paths: list[str] = []
        self.assigned: dict[int, dict[str, int]] = {}
        self.new_address_flags = 0
        self.neighbours: list[tuple[str, str]] = []
        self.refuse_up: OSError | None = None
        self.refuse_addresses: OSError | None = None
        self.refuse_second_interface = False
        self.refuse_signs: OSError | None = None
        self.no_nl80211 = False
        self.looks: list[str] = []
        self.looks_outside = 0
        self.events: list[FakeEvents] = []
        self.width = 20
        self.heard: list[Heard] = []
        self.scans: list[list[int]] = []
        self.scans_end = True
        self.refuse_scans: NetlinkError | None = None
        self.country: str | None = "00"
        self.takes_country = True
        self.asked: list[str] = []
        self._known: tuple[str, ...] = ()
        self._generation = 0

    def generation(self) -> int:
        """What the kernel counts up when a station comes or goes."""
        known = tuple(sorted(one["mac"] for one in self.stations))
        if known != self._known:
            self._known = known
            self._generation += 1
        return self._generation

    def named(self, index: int) -> str:
        """Return the name of an interface.

        :raises NetlinkError: ENODEV, there is none.
        """
        for name, one in self.interfaces.items():
            if one["index"] == index:
                return name
        raise refused(errno.ENODEV)

    def must_be_up(self, index: int) -> None:
        """Refuse what nl80211 takes only of interfaces that are up (NEED_NETDEV_UP)."""
        self.named(index)
        if index not in self.up:
            raise refused(errno.ENETDOWN)

    def flags(self, index: int) -> int:
        up = rtnl.IFF_UP if index in self.up else 0
        return up | (rtnl.IFF_RUNNING if index in self.meshes else 0)

    # what happens

    def add_interface(self, name: str, wiphy: int, kind: int, mac: str | None = None) -> int:
        self.next_index += 1
        self.interfaces[name] = {
            "index": self.next_index,
            "name": name,
            "wiphy": wiphy,
            "type": kind,
            "mac": mac or f"02:74:68:00:02:{self.next_index:02x}",
            "frequency": None,
        }
        self.assigned[self.next_index] = {}
        return self.next_index

    def remove_interface(self, index: int) -> None:
        del self.interfaces[self.named(index)]
        del self.assigned[index]
        self.up.discard(index)
        self.meshes.pop(index, None)
        self.link(index, rtnl.RTM_DELLINK)
        self._multicast(NETLINK_GENERIC, 30, bytes((CMD_DEL_INTERFACE, 1, 0, 0)))

    def set_up(self, index: int, up: bool) -> None:
        self.named(index)
        if up != (index in self.up):
            (self.up.add if up else self.up.discard)(index)
            self.meshes.pop(index, None)
            self.link(index)

    def join(self, ifindex: int, mhz: int) -> None:
        self.must_be_up(ifindex)
        self.meshes[ifindex] = mhz
        self.link(ifindex)

    def leave(self, ifindex: int) -> None:
        self.must_be_up(ifindex)
        del self.meshes[ifindex]
        self.link(ifindex)

    def pull_out(self) -> None:
        self.radios = []
        for one in list(self.interfaces.values()):
            self.remove_interface(one["index"])
        self._radios_changed()

    def plug_in(self, wiphy: Wiphy) -> None:
        self.radios = [wiphy]
        self._radios_changed()

    def remove_address(self, index: int, address: str) -> None:
        self.named(index)
        if self.assigned[index].pop(address, None) is None:
            raise refused(errno.EADDRNOTAVAIL)
        self.address_changed(index, rtnl.RTM_DELADDR)

    def add_address(self, index: int, address: str) -> None:
        self.named(index)
        mine = self.assigned[index]
        if address in mine:
            raise refused(errno.EEXIST)
        mine[address] = rtnl.IFA_F_TENTATIVE

        def asked() -> None:
            if address in mine:
                mine[address] = self.new_address_flags
                self.address_changed(index)

        self.address_changed(index)
        asyncio.get_running_loop().call_later(DAD_SECONDS, asked)

    # what it tells by itself

    def link(self, index: int, kind: int = rtnl.RTM_NEWLINK) -> None:
        """Tell of a link."""
        body = struct.pack("=BxHiII", 0, 1, index, self.flags(index), 0)
        self._multicast(NETLINK_ROUTE, kind, body)

    def address_changed(self, index: int, kind: int = rtnl.RTM_NEWADDR) -> None:
        """Tell of an address."""
        self._multicast(NETLINK_ROUTE, kind, struct.pack("=BBBBI", 10, 64, 0x80, 0, index))

    def tell_scanned(self) -> None:
        """Tell that a scan has ended."""
        self._multicast(NETLINK_GENERIC, 30, bytes((CMD_NEW_SCAN_RESULTS, 1, 0, 0)))

    def _radios_changed(self) -> None:
        self._multicast(NETLINK_GENERIC, 30, bytes((CMD_NEW_WIPHY, 1, 0, 0)))

    def _multicast(self, protocol: int, kind: int, body: bytes) -> None:
        message = struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body
        for one in self.events:
            if one.protocol == protocol:
                asyncio.get_running_loop().call_soon(one.tell, kind, message)


class FakeEvents(Events):
    def __init__(
        self, kernel: FakeKernel, protocol: int, heard: Callable[[int, bytes], None]
    ) -> None:
        self.kernel = kernel
        self.protocol = protocol
        self.heard = heard
        kernel.events.append(self)

    def tell(self, kind: int, message: bytes) -> None:
        if self in self.kernel.events:
            self.heard(kind, message)

    def close(self) -> None:
        self.kernel.events.remove(self)


class FakeNl80211(Nl80211):
    def __init__(self, kernel: FakeKernel) -> None:
        if kernel.no_nl80211:
            raise NetlinkError(errno.ENOENT, "no nl80211")
        self.kernel = kernel
        self.groups = {nl80211.CONFIG_GROUP: 7, nl80211.SCAN_GROUP: 8}

    def close(self) -> None: ...

    def wiphys(self) -> list[Wiphy]:
        return self.kernel.radios

    def interfaces(self) -> list[Interface]:
        return [self._described(one) for one in self.kernel.interfaces.values()]

    def _described(self, one: Interface) -> Interface:
        return {**one, "frequency": self.kernel.meshes.get(one["index"])}

    def frequency(self, ifindex: int) -> int | None:
        self.kernel.looks_outside += not self.kernel.meshes
        return self.kernel.meshes.get(ifindex)

    def start_scan(self, ifindex: int, frequencies: list[int]) -> None:
        self.kernel.must_be_up(ifindex)
        if self.kernel.refuse_scans is not None:
            raise self.kernel.refuse_scans
        self.kernel.scans.append(frequencies)
        if self.kernel.scans_end:
            self.kernel.tell_scanned()

    def heard(self, ifindex: int) -> list[Heard]:
        self.kernel.named(ifindex)
        return self.kernel.heard

    def width(self, ifindex: int) -> int | None:
        return self.kernel.width if ifindex in self.kernel.meshes else None

    def country(self) -> str | None:
        return self.kernel.country

    def ask_for_country(self, code: str) -> None:
        self.kernel.asked.append(code)
        if self.kernel.takes_country:
            self.kernel.country = code

    def add_mesh_interface(self, wiphy: Wiphy, name: str) -> Interface:
        if self.kernel.refuse_second_interface:
            raise refused(errno.EOPNOTSUPP)
        if name in self.kernel.interfaces:
            raise refused(errno.ENFILE)
        self.kernel.add_interface(name, wiphy.index, IFTYPE_MESH_POINT, wiphy.mac)
        return self._described(self.kernel.interfaces[name])

    def make_mesh_point(self, ifindex: int) -> None:
        self.kernel.interfaces[self.kernel.named(ifindex)]["type"] = IFTYPE_MESH_POINT

    def remove_interface(self, ifindex: int) -> None:
        self.kernel.remove_interface(ifindex)

    def set_mesh_parameters(self, ifindex: int, parameters: dict[str, int]) -> None:
        self.kernel.must_be_up(ifindex)
        if ifindex not in self.kernel.meshes:
            raise refused(errno.ENOLINK)
        self.kernel.parameters.append(parameters)

    def stations(self, ifindex: int) -> list[Station]:
        self.kernel.looks.append("stations")
        self.kernel.named(ifindex)
        return [one.copy() for one in self._heard(ifindex)]

    def sign(self, ifindex: int, mac: str) -> Sign:
        self.kernel.looks.append(f"sign of {mac}")
        self.kernel.named(ifindex)
        if self.kernel.refuse_signs is not None:
            raise self.kernel.refuse_signs
        for one in self._heard(ifindex):
            if one["mac"] == mac:
                return Sign(
                    self.kernel.generation(),
                    PLINK_STATES.index(one["state"]),
                    one["llid"] or 0,
                    one["plid"] or 0,
                    one["inactive_ms"] or 0,
                    one["connected_s"] or 0,
                )
        raise refused(errno.ENOENT)

    def _heard(self, ifindex: int) -> list[Station]:
        return self.kernel.stations if ifindex in self.kernel.meshes else []

    def paths(self, ifindex: int) -> list[MeshPath]:
        self.kernel.looks.append("paths")
        self.kernel.named(ifindex)
        if ifindex not in self.kernel.meshes:
            return []
        return [
            {"destination": destination, "next_hop": next_hop, "metric": 8193, "hops": 1,
             "expires_ms": 5000, "flags": 1}
            for destination, next_hop in self.kernel.next_hops.items()
        ]  # fmt: skip

    def remove_path(self, ifindex: int, destination: str) -> None:
        self.kernel.must_be_up(ifindex)
        if self.kernel.next_hops.pop(destination, None) is None:
            raise refused(errno.ENXIO)
        self.kernel.removed_paths.append(destination)

    def fix_path(self, ifindex: int, destination: str, next_hop: str) -> None:
        self.kernel.must_be_up(ifindex)
        if next_hop not in {one["mac"] for one in self._heard(ifindex)}:
            raise refused(errno.ENOENT)
        self.kernel.next_hops[destination] = next_hop
        self.kernel.fixed_paths.append((destination, next_hop))


class FakeLinks(rtnl.Links):
    """What is one request to the kernel; what is made of several is the product's."""

    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel

    def close(self) -> None: ...

    def index(self, name: str) -> int | None:
        one = self.kernel.interfaces.get(name)
        return None if one is None else one["index"]

    def flags(self, index: int) -> int | None:
        if index not in {one["index"] for one in self.kernel.interfaces.values()}:
            return None
        return self.kernel.flags(index)

    def set_up(self, index: int, up: bool) -> None:
        if up and self.kernel.refuse_up is not None:
            error, self.kernel.refuse_up = self.kernel.refuse_up, None
            raise error
        self.kernel.set_up(index, up)

    def rename(self, index: int, name: str) -> None:
        old = self.kernel.named(index)
        if name in self.kernel.interfaces:
            raise refused(errno.EEXIST)
        one = self.kernel.interfaces.pop(old)
        one["name"] = name
        self.kernel.interfaces[name] = one

    def addresses(self, index: int) -> list[rtnl.Address]:
        if self.kernel.refuse_addresses is not None:
            error, self.kernel.refuse_addresses = self.kernel.refuse_addresses, None
            raise error
        self.kernel.named(index)
        return [
            {"address": address, "prefix_length": 64, "flags": flags, "scope": 0}
            for address, flags in self.kernel.assigned[index].items()
        ]

    def add_address(self, index: int, address: IPv6Interface) -> None:
        self.kernel.add_address(index, str(address.ip))

    def remove_address(self, index: int, address: str, prefix_length: int) -> None:
        self.kernel.remove_address(index, address)

    def neighbours(self, index: int) -> list[tuple[str, str]]:
        self.kernel.looks.append("neighbours")
        return self.kernel.neighbours
