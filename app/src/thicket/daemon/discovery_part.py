# SPDX-License-Identifier: Apache-2.0
"""The daemon's parts ``discovery`` and ``dns-sd``: finding nodes, and conflicts of addresses."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

import thicket
from thicket.discovery.beacon import PlainBeacons, in_use
from thicket.discovery.service import Discovery
from thicket.discovery.table import mac_of

if TYPE_CHECKING:
    from ipaddress import IPv6Address

    from thicket.daemon.core import Core, OwnIdentity
    from thicket.daemon.radio_part import RadioPart
    from thicket.discovery.beacon import Codec
    from thicket.discovery.dnssd import DnsSd
    from thicket.trust.service import Trust

#: Seconds for which a beacon with our own address counts as a problem.
DUPLICATE = 90.0
#: Seconds for which it counts as a problem that there was no place for a node.
FULL = 600.0


class Members(Protocol):
    """The members of the cluster, as discovery sees them."""

    def heard(self, address: IPv6Address, new: bool, spelling: str) -> None:
        """A node was heard, for the first time if ``new``, with a spelling of its address."""

    def gone(self, address: IPv6Address) -> None:
        """A node was not heard for long."""

    def is_up(self, address: IPv6Address) -> bool:
        """Return whether the node at ``address`` is connected."""


class DiscoveryPart:
    """Beacons.

    :ivar discovery: None before the node has joined.
    """

    def __init__(
        self, core: Core, me: OwnIdentity, trust: Trust, radio: RadioPart, members: Members
    ) -> None:
        self.discovery: Discovery | None = None
        self._core = core
        self._me = me
        self._trust = trust
        self._radio = radio
        self._members = members
        self._shared_radios: set[str] = set()
        self._full = (0, float("-inf"))  # nodes that found no place, and when it was the last one

    async def run(self) -> None:
        """Send and receive beacons until cancelled."""
        core, me = self._core, self._me
        # The address must not be announced before duplicate address detection is over.
        await core.joined.wait()
        self.discovery = Discovery(
            core.settings.discovery,
            me.ip,
            me.network,
            core.make.interface,
            self.heard,
            pinned=self._members.is_up,
            on_gone=self._gone,
            codecs=self._codecs(),
        )
        await self.discovery.run()

    def follow(self) -> None:
        """Follow the settings in force."""
        if self.discovery is not None:
            self.discovery.apply(self._core.settings.discovery)
            self.use_codecs()

    def use_codecs(self) -> None:
        """Use the forms of beacons that fit the present settings and credentials."""
        if self.discovery is not None:
            self.discovery.use(self._codecs())

    def _codecs(self) -> tuple[Codec, ...]:
        plain = PlainBeacons(self._me.ip, self._me.network)
        return in_use(self._core.settings.discovery.beacon, plain, self._trust.beacons)

    def knows(self, address: IPv6Address) -> bool:
        """Return whether a node was heard, or is connected."""
        heard = self.discovery is not None and address in self.discovery.table.entries
        return heard or self._members.is_up(address)

    def others(self) -> int:
        """Return how many other nodes were heard."""
        return len(self.discovery.table.entries) if self.discovery is not None else 0

    def growth(self) -> tuple[int, int]:
        """Return how many other nodes were heard, and how many of them are connected."""
        heard = list(self.discovery.table.entries) if self.discovery is not None else []
        return len(heard), sum(map(self._members.is_up, heard))

    def heard(self, address: IPv6Address, new: bool) -> None:
        """A node was heard by its beacon, or found by DNS-SD."""
        spelling = self.discovery.spelling(address) if self.discovery is not None else ""
        self._members.heard(address, new, spelling)
        if new:
            self._core.changed()

    def _gone(self, address: IPv6Address) -> None:
        self._members.gone(address)
        self._core.changed()

    def look(self) -> None:
        """Report addresses, of nodes and of radios, that two nodes use, and a mesh that is too
        large."""
        problems, found = self._core.problems, self.discovery
        if found is not None:
            self._look_for_room(found)
        heard = found.duplicate_heard if found is not None else None
        if heard is not None and time.monotonic() - heard < DUPLICATE:
            message = f"another station announces our address {self._me.address}"
            problems.report("discovery", "duplicate-address", message)
        else:
            problems.clear("discovery", "duplicate-address")
        shared = found.shared.found(time.monotonic()) if found is not None else {}
        if set(shared) != self._shared_radios:
            problems.clear("radio", "duplicate-mac")
            self._shared_radios = set(shared)
        macs = set()
        for source, (one, other) in shared.items():
            mac = mac_of(source)
            if mac is not None:
                macs.add(mac)
            message = (
                f"two nodes have radios with one and the same address, {mac or source}: {one} and "
                f"{other}. Links to them come and go until one of the radios is exchanged (cheap "
                "adapters are sold with copied addresses)"
            )
            problems.report("radio", "duplicate-mac", message, "warning", source)
        if self._radio.mesh is not None:
            self._radio.mesh.set_doubled(macs)

    def _look_for_room(self, found: Discovery) -> None:
        now, count = time.monotonic(), found.counters.dropped["full"]
        # a flood that is let in slowly is dropped for the same reason
        if count > self._full[0] and len(found.table.entries) >= found.table.limit:
            self._full = (count, now)
            message = (
                f"the mesh has more than {found.table.limit} nodes, or somebody invents some: "
                "others are not found here (discovery.max_nodes)"
            )
            self._core.problems.report("discovery", "too-many-nodes", message, "warning")
        elif now - self._full[1] > FULL:
            self._core.problems.clear("discovery", "too-many-nodes")


class DnsSdPart:
    """The node by name.

    :ivar dns_sd: None while it is off, or has not started.
    """

    def __init__(self, core: Core, me: OwnIdentity, discovery: DiscoveryPart) -> None:
        self.dns_sd: DnsSd | None = None
        self._core = core
        self._me = me
        self._discovery = discovery

    async def run(self) -> None:
        """Publish the node, and look for others, until cancelled."""
        core, me = self._core, self._me
        await core.joined.wait()
        if not core.settings.discovery.dns_sd:
            await asyncio.Event().wait()
        from thicket.discovery.dnssd import DnsSd, Told

        identity, cluster = me.identity, core.settings.cluster
        told = Told(
            me.hostname,
            me.ip,
            cluster.port,
            {
                "node": f"{cluster.name}@{me.ip}",
                "device": (identity.serial or identity.id).hex(),
                "version": thicket.__version__,
            },
        )
        self.dns_sd = DnsSd(
            told,
            me.network,
            core.make.interface,
            core.problems,
            name_of=lambda address: f"{cluster.name}@{address}",
            known=self._discovery.knows,
            others=self._discovery.others,
            growth=self._discovery.growth,
            on_hint=lambda address: self._discovery.heard(address, True),
        )
        try:
            await self.dns_sd.run()
        finally:
            self.dns_sd = None
            core.problems.clear("dns-sd", "not-served")
