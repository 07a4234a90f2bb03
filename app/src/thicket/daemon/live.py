# SPDX-License-Identifier: Apache-2.0
"""The parts of a node that knows who it is, wired together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from thicket.daemon.cluster_part import ClusterPart
from thicket.daemon.core import OwnIdentity
from thicket.daemon.discovery_part import DiscoveryPart, DnsSdPart
from thicket.daemon.radio_part import RadioPart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.config.schema import Settings
    from thicket.daemon.core import Core
    from thicket.identity.source import Identity
    from thicket.radio.radio import Radio


class Live:
    """What there is once the node's identity is known. It tells each part what others need to know.

    :param may_join: set once the firewall is in force.
    :param reload: reads the configuration again and follows it.
    :param begin: starts a part under its name, supervised.
    """

    def __init__(
        self,
        core: Core,
        identity: Identity,
        may_join: asyncio.Event,
        reload: Callable[[], Awaitable[Any]],
        begin: Callable[[str, Callable[[], Awaitable[None]]], None],
    ) -> None:
        self.me = OwnIdentity(identity, core.settings)
        self.reload = reload
        self._core = core
        self.radio = RadioPart(core, self.me, may_join, self)
        begin("radio", self.radio.run)
        from thicket.trust.service import Trust  # the radio is on its way first

        self.trust = Trust(
            core.paths,
            lambda: core.settings,
            identity,
            core.problems,
            core.changed,
            open_chip=core.make.open_chip,
        )
        self.cluster = ClusterPart(core, self.me, self.trust, self.radio, self)
        self.discovery = DiscoveryPart(core, self.me, self.trust, self.radio, self.cluster)
        self.dns_sd = DnsSdPart(core, self.me, self.discovery)
        self.trust.on_beacons = self.discovery.use_codecs
        begin("trust", self.trust.run)
        begin("discovery", self.discovery.run)
        begin("dns-sd", self.dns_sd.run)
        begin("cluster", lambda: self.cluster.run(self.discovery))

    # -- what happens on the radio, for discovery and the cluster

    def joined(self) -> None:
        """The node is in the mesh with its address."""
        if self.discovery.discovery is not None:
            self.discovery.discovery.interface_changed()

    def peer_up(self) -> None:
        """There is one more peer."""
        if self.discovery.discovery is not None:
            self.discovery.discovery.peer_up()

    def peer_down(self) -> None:
        """There is one peer less."""
        self.cluster.peer_down()

    def announced(self, link_local: str) -> str | None:
        """Return the address in the mesh of the node with a link-local address, by its beacons."""
        found = self.discovery.discovery
        address = None if found is None else found.announced_from(link_local)
        return None if address is None else str(address)

    # -- what a change of the passphrase needs (cluster.passphrase.Host)

    @property
    def paths(self) -> Paths:
        """Where the node keeps its files."""
        return self._core.paths

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._core.settings

    @property
    def problems(self) -> Problems:
        """The node's problems."""
        return self._core.problems

    @property
    def mesh(self) -> Radio | None:
        """The radio of now."""
        return self.radio.mesh

    def nodes(self) -> list[dict[str, Any]]:
        """Return the other nodes of the cluster."""
        return self.cluster.nodes()
