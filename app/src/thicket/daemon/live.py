# SPDX-License-Identifier: Apache-2.0
"""The parts of a node that knows who it is, wired together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thicket.daemon.cable_part import CablePart
from thicket.daemon.cluster_part import ClusterPart
from thicket.daemon.core import OwnIdentity
from thicket.daemon.discovery_part import DiscoveryPart, DnsSdPart
from thicket.daemon.gateway_part import GatewayPart
from thicket.daemon.installed_part import InstalledPart
from thicket.daemon.operators_part import OperatorsPart
from thicket.daemon.radio_part import RadioPart
from thicket.daemon.time_part import TimePart

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.config.schema import Settings
    from thicket.control.server import Handler
    from thicket.daemon.core import Core
    from thicket.firewall.service import Firewall
    from thicket.identity.source import Identity
    from thicket.radio.radio import Radio
    from thicket.trust.operator import Operator
    from thicket.update.service import Update


class Live:
    """The parts that need the identity. It passes on what one part has to tell another.

    :param firewall: nothing is joined or forwarded before it is in force.
    :param reload: reads the configuration again and follows it.
    :param begin: starts a supervised part under its name.
    :param update: returns the part that knows the slots; None until it has begun.
    :param document: returns the status document with figures of this moment.
    :param methods: returns what an operator can ask for.
    :param use_cables: lets people in at interfaces of these names.
    """

    def __init__(
        self,
        core: Core,
        identity: Identity,
        firewall: Firewall,
        reload: Callable[[], Awaitable[Any]],
        begin: Callable[[str, Callable[[], Awaitable[None]]], None],
        *,
        update: Callable[[], Update | None],
        document: Callable[[], Awaitable[dict[str, Any]]],
        methods: Callable[[Operator], Mapping[str, Handler]],
        use_cables: Callable[[frozenset[str]], None],
    ) -> None:
        self.me = OwnIdentity(identity, core.settings)
        self.reload = reload
        self.update = update
        self.document = document
        self._core = core
        self.radio = RadioPart(core, self.me, firewall.in_force, self)
        begin("radio", self.radio.run)
        from thicket.trust.service import Trust  # late, as the radio starts first

        self.trust = Trust(
            core.paths,
            lambda: core.settings,
            identity,
            core.problems,
            core.changed,
            open_chip=core.make.open_chip,
        )
        self.installed = InstalledPart(core)
        self.time = TimePart(core, self.me, self.trust)
        self.gateway = GatewayPart(core, self.me, self.radio, firewall.in_force, firewall.let_out)
        self.cluster = ClusterPart(
            core, self.me, self.trust, self.radio, self, installed=self.installed
        )
        self.discovery = DiscoveryPart(core, self.me, self.trust, self.radio, self.cluster)
        self.dns_sd = DnsSdPart(core, self.me, self.discovery)
        self.trust.on_beacons = self.discovery.use_codecs
        begin("trust", self.trust.run)
        begin("discovery", self.discovery.run)
        begin("dns-sd", self.dns_sd.run)
        begin("cluster", lambda: self.cluster.run(self.discovery))
        self.operators = OperatorsPart(core, self, methods)
        begin("operators", self.operators.run)
        begin("time", self.time.run)
        self.cable = CablePart(core, self.me, use_cables)
        begin("cable", self.cable.run)
        begin("gateway", self.gateway.run)

    # -- events of the radio, see radio_part.RadioListener

    def joined(self) -> None:
        if self.discovery.discovery is not None:
            self.discovery.discovery.interface_changed()

    def peer_up(self) -> None:
        if self.discovery.discovery is not None:
            self.discovery.discovery.peer_up()

    def peer_down(self) -> None:
        self.cluster.peer_down()

    def announced(self, link_local: str) -> str | None:
        found = self.discovery.discovery
        address = None if found is None else found.announced_from(link_local)
        return None if address is None else str(address)

    # -- for changes of the passphrase, see cluster.passphrase.Host

    @property
    def paths(self) -> Paths:
        return self._core.paths

    @property
    def settings(self) -> Settings:
        return self._core.settings

    @property
    def problems(self) -> Problems:
        return self._core.problems

    @property
    def mesh(self) -> Radio | None:
        return self.radio.mesh

    def nodes(self) -> list[dict[str, Any]]:
        return self.cluster.nodes()
