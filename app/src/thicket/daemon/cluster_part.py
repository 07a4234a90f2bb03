# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``cluster``: the node of the cluster, and what begins and ends with it."""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import IPv6Address
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.paths import parameter
from thicket.base.supervise import GRACE
from thicket.cluster import radio_watch
from thicket.cluster.lost import Lost
from thicket.cluster.membership import Membership
from thicket.cluster.names import LOWER, device_of, resolve
from thicket.cluster.topology import Topology
from thicket.metrics.teller import Teller

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.applications.service import Applications
    from thicket.cluster.passphrase import Passphrase
    from thicket.cluster.requests import Requests
    from thicket.daemon.core import Core, OwnIdentity
    from thicket.daemon.discovery_part import DiscoveryPart
    from thicket.daemon.fleet_part import FleetPart
    from thicket.daemon.installed_part import InstalledPart
    from thicket.daemon.live import Live
    from thicket.daemon.radio_part import RadioPart
    from thicket.daemon.update_part import UpdateHost
    from thicket.distribution.events import ClusterEvent
    from thicket.distribution.node import Node
    from thicket.fleet.label_store import LabelStore
    from thicket.trust.service import Trust
    from thicket.update.fleet import FleetUpdate

log = getLogger(__name__)

#: Deferred work starts this many seconds after the cluster.
LATER = 2.0
#: Seconds until a part that failed is started again, and until it is tried again to judge what was
#: installed.
AGAIN = 60.0


class ClusterSession:
    """One node of the cluster, from its start to its end.

    :ivar applications, passphrase, updates: None before they are started, and after they failed.
    :ivar labels: what devices are called; None likewise, and on a node of no fleet.
    """

    def __init__(
        self, core: Core, node: Node, membership: Membership, installed: InstalledPart
    ) -> None:
        self.node = node
        self.membership = membership
        self.applications: Applications | None = None
        self.passphrase: Passphrase | None = None
        self.updates: FleetUpdate | None = None
        self.labels: LabelStore | None = None
        self._core = core
        self._installed = installed
        self._requests: Requests | None = None
        self._fleet: FleetPart | None = None
        self._topology = Topology(core.settings.cluster.topology, node, membership)

    @property
    def topology(self) -> Topology:
        """Whom the node stays connected with."""
        return self._topology

    @property
    def requests(self) -> Requests:
        """Requests of people to the cluster."""
        if self._requests is None:
            from thicket.cluster.requests import Requests  # rare

            self._requests = Requests(self.node)
        return self._requests

    def fleet(self, live: Live) -> FleetPart:
        """What is known of all nodes."""
        if self._fleet is None:
            from thicket.daemon.fleet_part import FleetPart  # most nodes are never asked

            self._fleet = FleetPart(self._core, live, self)
        return self._fleet

    def close(self) -> None:
        """End the requests of people."""
        if self._requests is not None:
            self._requests.close()
        if self._fleet is not None:
            self._fleet.view.close()

    async def run_applications(self) -> None:
        """Run the applications, those that are installed later, too; a failure never ends the
        cluster."""
        await asyncio.sleep(LATER)
        core = self._core
        watch: asyncio.Task[None] | None = None
        try:
            self.applications = await self._installed.runner(self._make)
            watch = asyncio.create_task(self._watch(self.applications))
            await self.applications.run()
        except Exception as e:
            log.exception("applications cannot be run")
            message = f"applications cannot be run: {type(e).__name__}: {e}"
            core.problems.report("applications", "part-failed", message, "warning")
        finally:
            self.applications = None
            if watch is not None:
                watch.cancel()

    def _make(self, found: dict[str, Callable[[], Any]]) -> Applications:
        from thicket.applications.service import Applications  # most nodes have none

        core = self._core
        return Applications(self.node, core.settings.application, core.problems, found)

    async def _watch(self, applications: Applications) -> None:
        """Judge what is installed, for as long as the applications run."""
        core = self._core
        while True:
            try:
                await self._installed.watch(applications)
            except Exception as e:
                log.exception("applications that were installed are not judged")
                message = f"those installed are not judged: {type(e).__name__}: {e}"
                core.problems.report("applications", "not-judged", message, "warning")
                await asyncio.sleep(AGAIN)

    async def run_passphrase(self, host: Live) -> None:
        """Take part in changes of the mesh's passphrase."""
        await asyncio.sleep(LATER)
        from thicket.cluster.passphrase import Passphrase

        self.passphrase = Passphrase(host)
        try:
            await self.passphrase.run(self.node)
        except Exception:
            log.exception("this node takes part in no more changes of the passphrase")
        finally:
            self.passphrase = None

    async def run_labels(self, trust: Trust) -> None:
        """Keep what the devices of the fleet are called, and pass it on."""
        await asyncio.sleep(LATER)
        if trust.standing is None:
            return  # a node of no fleet; in another one the cluster begins anew
        from thicket.fleet.label_store import LabelStore

        core = self._core
        self.labels = LabelStore(
            self.node, lambda: trust.standing, trust.folder, core.problems, core.changed
        )
        try:
            await self.labels.run()
        except Exception:
            log.exception("this node follows no more changes of labels")

    async def run_updates(self, host: UpdateHost, trust: Trust, me: str) -> None:
        """Take part in the updates of the fleet.

        :param me: this node's name in records.
        """
        await trust.ready.wait()
        await asyncio.sleep(LATER)
        from thicket.update import fleet  # only nodes that run from a card of a fleet

        while True:
            try:
                self.updates = await fleet.make(host, self.node, me)
                await self.updates.run()
            except Exception:
                log.exception("this node takes no part in updates of the fleet for a while")
            finally:
                self.updates = None
            await asyncio.sleep(AGAIN)

    def nodes(self) -> list[dict[str, Any]]:
        """Return the other nodes, those of the cluster first.

        One that other nodes are connected with, and this one is not, is not ``direct``. A node that
        was heard and is not in the cluster has the state "connecting", or "heard" where this node
        leaves it to others to connect, and after a failure ``error`` (code), ``message`` and
        ``attempts``.
        """
        from thicket.distribution.handshake import key_of  # loaded with the node

        found: dict[str, dict[str, Any]] = {
            key_of(info.name): {
                "name": str(info.name),
                "state": info.state,
                "since": info.since,
                "direct": info.direct,
            }
            for info in self.node.nodes()
        }
        for candidate in self.membership.candidates.values():
            if candidate.up:
                continue
            entry = found.setdefault(
                key_of(candidate.name),
                {
                    "name": candidate.name,
                    "state": "connecting" if self.membership.wants(candidate.address) else "heard",
                    "since": None,
                    "direct": False,
                },
            )
            if entry["state"] != "up" and candidate.error is not None:
                entry["error"], entry["message"] = candidate.error
                entry["attempts"] = candidate.backoff.failures
        return sorted(found.values(), key=lambda n: (n["state"] != "up", n["name"]))

    def counters(self) -> dict[str, int]:
        """Return the counters of connections since the node started."""
        found = self.node.statistics()
        names = ("connected", "accepted", "simultaneous", "abandoned")
        roster = self.node.membership.roster
        return {
            "attempts": self.membership.attempts,
            **{name: found[name] for name in names},
            "ended": self.node.membership.ended,
            "links": len(roster.links),
            "roster_dropped": sum(roster.dropped.values()),
            **{f"casts_{name}": count for name, count in self.node.casts.counters().items()},
        }


class ClusterPart:
    """Keeps the node in the cluster.

    :ivar session: None while the node is not in the cluster.
    :ivar lost: nodes that were in it, or heard, and are not any more.
    """

    def __init__(
        self,
        core: Core,
        me: OwnIdentity,
        trust: Trust,
        radio: RadioPart,
        host: Live,
        *,
        installed: InstalledPart,
    ) -> None:
        self.session: ClusterSession | None = None
        self.lost = Lost()
        self._installed = installed
        self._core = core
        self._me = me
        self._trust = trust
        self._radio = radio
        self._host = host

    async def run(self, discovery: DiscoveryPart) -> None:
        """Run a node of the cluster until cancelled."""
        core = self._core
        await core.joined.wait()
        # The first beacon goes out before the slow imports of the next lines.
        await asyncio.sleep(0.01)
        tls = None
        if core.settings.cluster.security == "tls":
            await self._trust.ready.wait()
            tls = self._trust.tls
        cluster = core.settings.cluster
        node = core.make.node(core.settings, self._me.ip, self, tls)
        membership = Membership(
            cluster.name, node, lambda _candidate: core.changed(), self._radio.silence
        )
        core.problems.sources["cluster"] = (node.problems, "warning")
        session = ClusterSession(core, node, membership, self._installed)
        teller = Teller(
            node, lambda: core.settings.metrics.share, self._host.document, core.paths.root
        )
        try:
            node.expect(lambda source: discovery.knows(IPv6Address(source)))
            await node.start()
            self.session = session
            self._trust.attach(node)
            self._host.time.attach(node)
            self._host.gateway.attach(node, session.topology.chosen)
            if discovery.discovery is not None:  # nodes that were heard before
                for address, entry in discovery.discovery.table.entries.items():
                    membership.heard(address, True, entry.spelling)
            await self._serve(session)
        finally:
            session.close()
            teller.close()
            self._host.time.detach()
            self._host.gateway.detach()
            self._trust.detach()
            self.session = None
            del core.problems.sources["cluster"]
            await node.stop()

    async def _serve(self, session: ClusterSession) -> None:
        loop = asyncio.get_running_loop()
        beacon_interval = self._core.settings.mesh.beacon_interval
        beside = {
            loop.create_task(session.run_applications()),
            loop.create_task(session.run_passphrase(self._host)),
            loop.create_task(session.run_labels(self._trust)),
            loop.create_task(
                radio_watch.watch(
                    session.membership,
                    lambda: self._radio.mesh,
                    beacon_interval,
                    session.topology.follow,
                )
            ),
            loop.create_task(self._trust.keep_telling()),
        }
        if parameter(self._core.paths, "slot") is not None:
            beside.add(loop.create_task(self._run_updates(session)))
        try:
            await session.membership.run()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.wait(beside, timeout=GRACE)

    async def _run_updates(self, session: ClusterSession) -> None:
        from thicket.daemon.update_part import UpdateHost
        from thicket.update.progress import node_name

        identity = self._me.identity
        host = UpdateHost(
            self._core,
            self._radio,
            self._trust,
            self._host.update,
            self.nodes,
            installed=self._installed,
            near=session.topology.chosen,
        )
        me = node_name(identity.source, identity.id)
        await session.run_updates(host, self._trust, me)

    def on(self, event: ClusterEvent, /) -> None:
        """Follow an event of the cluster, see :class:`thicket.base.events.Listener`."""
        from thicket.distribution.events import (  # loaded with the node
            MemberDown,
            MemberUp,
            NodeDown,
            NodeUp,
            Suspected,
        )

        session = self.session
        membership = session.membership if session is not None else None
        if isinstance(event, Suspected):
            if membership is not None:
                membership.suspect(name=event.name)
            return
        if isinstance(event, NodeUp):
            self._core.times.reached("first_node")
            if membership is not None:
                membership.node_up(event.name)
            self._trust.node_up(event.name)
            self._host.time.node_up(event.name)
            if session is not None and session.passphrase is not None:
                session.passphrase.node_up(event.name)
            if session is not None and session.labels is not None:
                session.labels.node_up(event.name)
            if session is not None and session.updates is not None:
                session.updates.exchange.node_up(event.name)
        elif isinstance(event, NodeDown) and membership is not None:
            membership.node_down(event.name)
        elif isinstance(event, MemberUp):
            self.lost.back(event.name)
        elif isinstance(event, MemberDown) and self._is_missed(event.name):
            self.lost.note(event.name)
        self._core.changed()

    def _is_missed(self, name: str) -> bool:
        """Return whether a node that goes is missed: not one of Erlang, as a person's shell is."""
        return name.partition("@")[0] == self._core.settings.cluster.name

    # -- for other parts

    def heard(self, address: IPv6Address, new: bool, spelling: str) -> None:
        """Note that a node was heard, see :class:`.discovery_part.Members`."""
        if self.session is not None:
            self.session.membership.heard(address, new, spelling)

    def gone(self, address: IPv6Address) -> None:
        """Note that a node was not heard for long."""
        settings = self._core.settings
        if settings.discovery.beacon == "signed":  # anybody can send others for nodes that are none
            self.lost.note(f"{settings.cluster.name}@{address}", settings.discovery.expire)
        if self.session is not None:
            self.session.membership.gone(address)

    def is_up(self, address: IPv6Address) -> bool:
        """Return whether the node at ``address`` is connected."""
        return self.session is not None and self.session.membership.is_up(address)

    def peer_down(self) -> None:
        """The radio has lost a peer: ask all nodes for a sign of life."""
        if self.session is not None:
            self.session.membership.suspect()

    def nodes(self) -> list[dict[str, Any]]:
        """Return the other nodes, see :meth:`ClusterSession.nodes`."""
        return self.session.nodes() if self.session is not None else []

    def resolve(self, text: str) -> str:
        """Return the full name of the node that a person means by ``text``.

        ``text`` is a full name, an address in any form, a host name (``n-`` and the 12 digits of
        the identity), its last digits, or a label, see :func:`.names.resolve`.

        :raises RequestError: no node, or more than one, matches.
        """
        node = self.session.node if self.session is not None else None
        cluster, _, host = text.rpartition("@")
        with contextlib.suppress(ValueError):
            name = f"{cluster or self._core.settings.cluster.name}@{IPv6Address(host)}"
            return name if node is None else str(node.spelling(name))
        if cluster:
            return text
        known: set[str] = {node.name} if node is not None else set()
        known |= {entry["name"] for entry in self.nodes()}
        return resolve(text, known, self._labels(known))

    def label(self) -> str | None:
        """Return what people call this node."""
        labels = self.session.labels if self.session is not None else None
        entry = labels.entries().get(int(self._me.ip) & LOWER) if labels is not None else None
        return (entry.label or None) if entry is not None else None

    def _labels(self, known: set[str]) -> dict[str, str]:
        """Return what devices are called, by the names of their nodes; some have no label.

        :param known: names of nodes, which may be spelt otherwise.
        """
        session = self.session
        if session is None or session.labels is None or not (found := session.labels.entries()):
            return {}
        names = {device_of(name): name for name in known}
        network = int(self._me.network.network_address) & ~LOWER
        own = self._core.settings.cluster.name
        return {
            names.get(device) or f"{own}@{IPv6Address(network | device)}": entry.label
            for device, entry in found.items()
            if not entry.empty
        }
