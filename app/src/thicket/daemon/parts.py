# SPDX-License-Identifier: Apache-2.0
"""Makes the parts of the daemon; tests replace some of them.

The imports are late, as their order matters: see :mod:`thicket.daemon.daemon`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from logging import getLogger
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipaddress import IPv6Address, IPv6Interface

    from thicket.applications.mounts import Mounter
    from thicket.base.events import Listener
    from thicket.base.paths import Paths
    from thicket.config.schema import Settings
    from thicket.distribution.events import ClusterEvent
    from thicket.distribution.node import Node
    from thicket.distribution.secure import Tls
    from thicket.identity.aio import AsyncAtecc
    from thicket.identity.source import Identity
    from thicket.radio.events import RadioEvent
    from thicket.radio.radio import Radio
    from thicket.radio.section import MeshSection
    from thicket.timekeeping.chrony import Chrony

log = getLogger(__name__)

#: A message of another node takes at most this fraction (1/8) of the device's memory.
MESSAGE_SHARE = 8


def mesh_settings(settings: Settings) -> MeshSection:
    """Return what the radio is told: a gateway is a gate of the mesh as well."""
    if settings.gateway.uplink and not settings.mesh.gate:
        return settings.mesh.replace(gate=True)
    return settings.mesh


class Parts:
    """Makes the parts of a node of this machine."""

    interface = "mesh0"

    def owns_network(self, paths: Paths) -> bool:
        """Whether this daemon is the machine's own, and may change its network.

        A daemon in another directory, as on a developer's machine, leaves it alone.
        """
        return not paths.root

    async def identity(self, settings: Settings) -> Identity:
        """Return the node's identity; a missing chip is no failure."""
        from thicket.identity.source import read_identity

        return await read_identity(settings.identity)

    def prepare_radio(self) -> None:
        """Import what the radio needs."""
        import thicket.radio.mesh  # noqa: F401

    def radio(
        self, settings: Settings, address: IPv6Interface, listener: Listener[RadioEvent]
    ) -> Radio:
        """Return the radio.

        :raises ValueError: no radio can have these settings.
        """
        from thicket.radio.mesh import Mesh

        return Mesh(mesh_settings(settings), address, listener, interface=self.interface)

    def open_chip(self, identity: Identity) -> AsyncAtecc:
        """Open the chip that the identity was read from, for signing.

        :raises BusError: its bus cannot be used.
        """
        from thicket.trust.service import open_chip

        return open_chip(identity)

    def node(
        self,
        settings: Settings,
        address: IPv6Address,
        listener: Listener[ClusterEvent],
        tls: Tls | None,
    ) -> Node:
        """Return the node of the cluster.

        :param tls: None when only the cookie protects the cluster.
        """
        from thicket.distribution import Node
        from thicket.distribution.handshake import SETUP_TIME

        cluster = settings.cluster
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        wanted, most = cluster.max_message << 20, memory // MESSAGE_SHARE
        if wanted > most:
            log.info(
                "messages of up to %d MiB are accepted, not %d: an eighth of this device's memory",
                most >> 20,
                cluster.max_message,
            )
        return Node(
            name=cluster.name,
            cookie=cluster.cookie,
            address=address,
            port=cluster.port,
            tick_time=cluster.tick_time,
            # a long tick time means slow nodes, which also have slow handshakes
            setup_time=max(SETUP_TIME, cluster.tick_time / 2),
            listener=listener,
            max_message=min(wanted, most),
            # for all incomplete messages together
            max_held=2 * most,
            tls=tls,
        )

    def applications(self) -> dict[str, Callable[[], Any]]:
        """Return the installed applications by name, each as a function that imports it."""
        from thicket.applications.entrypoints import find

        return find("thicket.applications")

    def chrony(self, paths: Paths, on_exit: Callable[[], None]) -> Chrony | None:
        """Return what turns the machine's clock; None where that is not this daemon's business.

        A daemon in another directory leaves it alone.
        """
        if paths.root:
            return None
        from thicket.timekeeping.chrony import Chrony

        return Chrony(f"{paths.run}/time", f"{paths.data}/thicket/time", on_exit)

    def own_cables(self, paths: Paths) -> bool:
        """Return whether this machine's wired interfaces are this daemon's business.

        A daemon in another directory leaves them alone.
        """
        return not paths.root

    def mounter(self) -> Mounter:
        """Return what mounts the files of applications that are installed."""
        from thicket.applications.mounts import LoopMounter

        return LoopMounter()
