# SPDX-License-Identifier: Apache-2.0
"""What the radio takes for granted of the kernel: questions, and the answers that it relies on.

The fake kernel of app/tests is asked, and that of a running node of tests/mesh, which gets this
file as a program. All questions go through the product's own sockets to the kernel.

Compared are errors, flags, what the kernel tells by itself, and the types of what is in an answer;
not values, which are a node's own.
"""

from __future__ import annotations

import asyncio
import errno
import json
import sys
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv6Interface
from typing import Any, Final, Protocol

from thicket.netlink import rtnl
from thicket.netlink.messages import (
    HEADER,
    NETLINK_GENERIC,
    NLM_F_ACK,
    NLM_F_REQUEST,
    NetlinkError,
    Requests,
    number,
)
from thicket.radio.inbox import Inbox, Signal
from thicket.radio.kernel import Kernel
from thicket.radio.nl80211 import ESTABLISHED, Wiphy
from thicket.radio.stations import unchanged

NAME: Final = "contract0"
ADDRESS: Final = IPv6Interface("fd0c:7261:6374::1/64")
NOBODY: Final = "02:00:00:00:00:99"
NOTHING: Final = 0x7FFFFFFF
"""The index of no interface."""

PATIENCE: Final = 60.0
"""Seconds after which something is taken to never happen; an emulated node may need some."""

ANSWERS: Final = {
    "a radio": {
        "name": "str", "driver": "str", "mac": "str", "channel of the mesh": "Channel",
        "mesh point": True, "country": 2,
    },
    "an interface in a mesh": {
        "index": "int", "name": "str", "wiphy": "int", "type": "int", "mac": "str",
        "frequency": "int", "width": "int", "flags": ["up", "running"],
    },
    "a peer": {
        "mac": "str", "state": "str", "llid": "int", "plid": "int", "signal_dbm": "int",
        "metric": "int", "inactive_ms": "int", "connected_s": "int", "tx_kbps": "int",
        "rx_kbps": "int", "rx_bytes": "int", "tx_bytes": "int",
        "tx_failed": "int", "authorized": "bool", "mfp": "bool",
    },
    "a sign of its life": {
        "generation": "int", "state": "int", "llid": "int", "plid": "int", "inactive_ms": "int",
        "connected_s": "int", "of the same link": True, "of nobody": "ENOENT",
    },
    "a path to it": {
        "destination": "str", "next_hop": "str", "metric": "int", "hops": "int",
        "expires_ms": "int", "flags": "int",
    },
    "a neighbour": ["str", "str"],
    "of no interface": {
        "stations": "ENODEV", "sign": "ENODEV", "frequency": "NoneType", "paths": "ENODEV",
        "remove_path": "ENODEV", "fix_path": "ENODEV", "set_mesh_parameters": "ENODEV",
        "make_mesh_point": "ENODEV", "remove_interface": "ENODEV", "flags": None, "index": None,
        "set_up": "ENODEV", "rename": "ENODEV", "addresses": "ENODEV", "add_address": "ENODEV",
        "remove_address": "ENODEV", "keep_only": "ENODEV", "remove_all": "ENODEV",
    },
    "a new interface": {
        "index": "int", "name": "str", "wiphy": "int", "type": "int", "mac": "str",
        "frequency": "NoneType", "flags": [], "with the address asked for": True,
        "once more": "ENFILE", "named as another": "EEXIST",
    },
    "while it is down": {
        "stations": [], "paths": [], "remove_path": "ENETDOWN", "fix_path": "ENETDOWN",
        "set_mesh_parameters": "ENETDOWN",
    },
    "taken up": {
        "told": ["LOOK"], "flags": ["up"], "frequency": "NoneType", "stations": [], "paths": [],
        "remove_path": "ENXIO", "fix_path": "ENOENT", "set_mesh_parameters": "ENOLINK",
    },
    "joined": {
        "flags": ["up", "running"], "frequency": "int", "remove_path": "ENXIO",
        "fix_path": "ENOENT", "set_mesh_parameters": "taken",
    },
    "an address": {
        "told": ["ADDRESS"], "at first": ["tentative"], "then": [], "once more": "EEXIST",
        "told then": ["ADDRESS"],
    },
    "the address removed": {"told": ["ADDRESS"], "once more": "EADDRNOTAVAIL"},
    "left": {
        "told": ["LOOK"], "flags": ["up"], "frequency": "NoneType",
        "set_mesh_parameters": "ENOLINK",
    },
    "taken down": {"told": ["DOWN"], "flags": []},
    "removed": {"told": ["GONE", "RADIO"], "flags": None},
}  # fmt: skip
"""The answers of Linux 6.12 with mac80211_hwsim, by question."""


class Hand(Protocol):
    """Somebody who joins a mesh and leaves it: wpa_supplicant does, where the product is used."""

    def join(self, ifindex: int, mhz: int) -> None:
        """Join a mesh in which there is nobody else."""

    def leave(self, ifindex: int) -> None:
        """Leave it."""


def types(facts: Any) -> dict[str, object]:
    return {name: type(value).__name__ for name, value in facts.items()}


def refusal(ask: Callable[..., object], *about: object) -> str:
    """Ask; return the name of the kernel's error."""
    try:
        ask(*about)
    except NetlinkError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "taken"


async def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


class Questions:
    """The questions, in the order in which they have to be asked.

    :param running: the interface of a node that has peers.
    """

    def __init__(self, kernel: Kernel, inbox: Inbox, hand: Hand, running: str) -> None:
        self.kernel = kernel
        self.nl80211 = kernel.nl80211
        self.links = kernel.links
        self.inbox = inbox
        self.hand = hand
        self.running = running
        self.index = NOTHING

    async def tells(self) -> None:
        """Wait for what the kernel tells after it has answered: a worker of its own does."""
        await until(lambda: not self.inbox.empty(), "the kernel tells of it")

    async def told(self, *of: Signal) -> list[str]:
        """Return what the kernel has told since the last time, as far as it is one of these."""
        for _ in range(100):  # the loop reads a message of each socket at a time
            await asyncio.sleep(0)
        found = set()
        while not self.inbox.empty():
            found.add(self.inbox.get_nowait())
        return [one.name for one in of if one in found]

    def flags(self, index: int | None = None) -> list[str] | None:
        flags = self.links.flags(self.index if index is None else index)
        if flags is None:
            return None
        names = {"up": rtnl.IFF_UP, "running": rtnl.IFF_RUNNING}
        return [name for name, bit in names.items() if flags & bit]

    def frequency(self) -> str:
        """Return the type of the frequency of our own interface, of both questions for it."""
        (mine,) = [one for one in self.nl80211.interfaces() if one["index"] == self.index]
        alone = self.nl80211.frequency(self.index)
        return type(alone).__name__ if alone == mine["frequency"] else f"{alone} and {mine}"

    def address_flags(self) -> list[str] | None:
        """Return the flags of our own address, None where there is none."""
        for one in self.links.addresses(self.index):
            if one["address"] == str(ADDRESS.ip):
                names = {"tentative": rtnl.IFA_F_TENTATIVE, "failed": rtnl.IFA_F_DADFAILED}
                return [name for name, bit in names.items() if one["flags"] & bit]
        return None

    def of_paths(self, index: int) -> dict[str, object]:
        """Ask for changes that only an interface in a mesh takes."""
        return {
            "remove_path": refusal(self.nl80211.remove_path, index, NOBODY),
            "fix_path": refusal(self.nl80211.fix_path, index, NOBODY, NOBODY),
            "set_mesh_parameters": refusal(self.nl80211.set_mesh_parameters, index, {"ttl": 31}),
        }

    async def ask(self) -> dict[str, object]:
        """Ask everything.

        :returns: the answers, as in ``ANSWERS``.
        """
        nl80211, links = self.nl80211, self.links
        (home,) = [one for one in nl80211.interfaces() if one["name"] == self.running]
        assert home["frequency"] is not None
        (wiphy,) = [one for one in nl80211.wiphys() if one.index == home["wiphy"]]
        found: dict[str, object] = {}
        found["a radio"] = {
            "name": type(wiphy.name).__name__,
            "driver": type(wiphy.driver).__name__,
            "mac": type(wiphy.mac).__name__,
            "channel of the mesh": type(wiphy.channels.get(home["frequency"])).__name__,
            "mesh point": wiphy.mesh_point,
            "country": len(nl80211.country() or ""),
        }
        found["an interface in a mesh"] = {
            **types(home),
            "width": type(nl80211.width(home["index"])).__name__,
            "flags": self.flags(home["index"]),
        }
        found.update(await self._of_others(home["index"]))
        found["of no interface"] = self._of_nothing()
        try:
            found.update(await self._of_our_own(wiphy, home["frequency"]))
        finally:
            if links.flags(self.index) is not None:
                nl80211.remove_interface(self.index)
        return found

    async def _of_others(self, index: int) -> dict[str, object]:
        """Ask about the node's peers. What there is for a peer may be about to be found again."""

        def peers() -> dict[str, Any]:
            stations = self.nl80211.stations(index)
            return {one["mac"]: one for one in stations if one["state"] == ESTABLISHED}

        def paths() -> list[Any]:
            return [one for one in self.nl80211.paths(index) if one["destination"] in peers()]

        await until(peers, "there is a peer")
        await until(paths, "there is a path to it")
        await until(lambda: self.links.neighbours(index), "there is a neighbour")
        peer = next(iter(peers().values()))
        sign = self.nl80211.sign(index, peer["mac"])
        return {
            "a peer": types(peer),
            "a sign of its life": {
                **types(sign._asdict()),
                "of the same link": unchanged(peer, sign),
                "of nobody": refusal(self.nl80211.sign, index, NOBODY),
            },
            "a path to it": types(paths()[0]),
            "a neighbour": [type(one).__name__ for one in self.links.neighbours(index)[0]],
        }

    def _of_nothing(self) -> dict[str, object]:
        nl80211, links = self.nl80211, self.links
        return {
            "stations": refusal(nl80211.stations, NOTHING),
            "sign": refusal(nl80211.sign, NOTHING, NOBODY),
            "frequency": type(nl80211.frequency(NOTHING)).__name__,
            "paths": refusal(nl80211.paths, NOTHING),
            **self.of_paths(NOTHING),
            "make_mesh_point": refusal(nl80211.make_mesh_point, NOTHING),
            "remove_interface": refusal(nl80211.remove_interface, NOTHING),
            "flags": self.flags(NOTHING),
            "index": links.index("no-such-thing"),
            "set_up": refusal(links.set_up, NOTHING, True),
            "rename": refusal(links.rename, NOTHING, "another"),
            "addresses": refusal(links.addresses, NOTHING),
            "add_address": refusal(links.add_address, NOTHING, ADDRESS),
            "remove_address": refusal(links.remove_address, NOTHING, str(ADDRESS.ip), 64),
            "keep_only": refusal(links.keep_only, NOTHING, ADDRESS),
            "remove_all": refusal(links.remove_all, NOTHING),
        }

    async def _of_our_own(self, wiphy: Wiphy, mhz: int) -> dict[str, object]:
        """Make an interface beside that of the node; ask about its whole life."""
        nl80211, links = self.nl80211, self.links
        found: dict[str, object] = {}
        # two interfaces that are up cannot have one address
        wiphy.mac = f"06{(wiphy.mac or NOBODY)[2:]}"
        made = nl80211.add_mesh_interface(wiphy, NAME)
        self.kernel.ifindex = self.index = made["index"]
        found["a new interface"] = {
            **types(made),
            "flags": self.flags(),
            "with the address asked for": made["mac"] == wiphy.mac,
            "once more": refusal(nl80211.add_mesh_interface, wiphy, NAME),
            "named as another": refusal(links.rename, self.index, self.running),
        }
        found["while it is down"] = {
            "stations": nl80211.stations(self.index),
            "paths": nl80211.paths(self.index),
            **self.of_paths(self.index),
        }
        await self.told()
        links.set_up(self.index, True)
        await until(lambda: self.flags() == ["up"], "it is up, and in no mesh")
        found["taken up"] = {
            "told": await self.told(Signal.LOOK, Signal.DOWN, Signal.GONE, Signal.RADIO),
            "flags": self.flags(),
            "frequency": self.frequency(),
            "stations": nl80211.stations(self.index),
            "paths": nl80211.paths(self.index),
            **self.of_paths(self.index),
        }
        self.hand.join(self.index, mhz)
        await until(lambda: self.flags() == ["up", "running"], "it is in a mesh")
        found["joined"] = {
            "flags": self.flags(),
            "frequency": self.frequency(),
            **self.of_paths(self.index),
        }
        found.update(await self._of_an_address())
        self.hand.leave(self.index)
        await until(lambda: self.flags() == ["up"], "it has left")
        await self.tells()
        found["left"] = {
            "told": await self.told(Signal.LOOK, Signal.DOWN, Signal.GONE, Signal.RADIO),
            "flags": self.flags(),
            "frequency": self.frequency(),
            "set_mesh_parameters": refusal(nl80211.set_mesh_parameters, self.index, {"ttl": 31}),
        }
        links.set_up(self.index, False)
        found["taken down"] = {
            "told": await self.told(Signal.DOWN, Signal.GONE, Signal.RADIO),
            "flags": self.flags(),
        }
        nl80211.remove_interface(self.index)
        found["removed"] = {
            "told": await self.told(Signal.GONE, Signal.RADIO),
            "flags": self.flags(),
        }
        return found

    async def _of_an_address(self) -> Mapping[str, object]:
        links, found = self.links, {}
        await self.told()
        links.add_address(self.index, ADDRESS)
        found["an address"] = {
            "at first": self.address_flags(),
            "once more": refusal(links.add_address, self.index, ADDRESS),
            "told": await self.told(Signal.ADDRESS),
        }
        await until(lambda: self.address_flags() == [], "nobody else has it")
        await self.tells()
        found["an address"]["then"] = self.address_flags()
        found["an address"]["told then"] = await self.told(Signal.ADDRESS)
        links.remove_address(self.index, str(ADDRESS.ip), ADDRESS.network.prefixlen)
        found["the address removed"] = {
            "told": await self.told(Signal.ADDRESS),
            "once more": refusal(links.remove_address, self.index, str(ADDRESS.ip), 64),
        }
        return found


# --- on a node ----------------------------------------------------------------------------------


class OurHand:
    """Joins by the kernel's own means, which the product leaves to wpa_supplicant."""

    # include/uapi/linux/nl80211.h
    JOIN_MESH: Final = 68
    LEAVE_MESH: Final = 69
    ATTR_IFINDEX: Final = 3
    ATTR_MESH_ID: Final = 24
    ATTR_WIPHY_FREQ: Final = 38

    def __init__(self, family: int) -> None:
        self.family = family
        self.requests = Requests(NETLINK_GENERIC)

    def join(self, ifindex: int, mhz: int) -> None:
        mesh_id = b"contract"  # a whole number of words, so nothing is added to fill up
        attribute = (4 + len(mesh_id)).to_bytes(2, sys.byteorder)
        attribute += self.ATTR_MESH_ID.to_bytes(2, sys.byteorder) + mesh_id
        self._ask(self.JOIN_MESH, ifindex, attribute + number(self.ATTR_WIPHY_FREQ, mhz))

    def leave(self, ifindex: int) -> None:
        self._ask(self.LEAVE_MESH, ifindex)

    def _ask(self, command: int, ifindex: int, attributes: bytes = b"") -> None:
        body = bytes((command, 0, 0, 0)) + number(self.ATTR_IFINDEX, ifindex) + attributes
        flags = NLM_F_REQUEST | NLM_F_ACK
        header = HEADER.pack(HEADER.size + len(body), self.family, flags, 0, 0)
        self.requests.ask(header + body, None)


async def main() -> None:
    inbox: Inbox = asyncio.Queue()
    kernel = Kernel(inbox)
    hand = OurHand(kernel.nl80211.id)
    print(json.dumps(await Questions(kernel, inbox, hand, "mesh0").ask()))


if __name__ == "__main__":
    asyncio.run(main())
