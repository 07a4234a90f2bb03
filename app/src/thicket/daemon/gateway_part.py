# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``gateway``: listens for the offers of gateways, and begins when there is one,
or when the node is one itself."""

from __future__ import annotations

import asyncio
import os
from logging import getLogger
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from ipaddress import IPv6Address, IPv6Network

    from thicket.daemon.core import Core, OwnIdentity
    from thicket.daemon.radio_part import RadioPart
    from thicket.distribution.node import Node
    from thicket.gateway.exchange import Exchange
    from thicket.gateway.offers import Offer, Offers
    from thicket.gateway.service import Gateways

log = getLogger(__name__)

#: Seconds until a part that failed begins anew.
AGAIN = 10.0


class GatewayPart:
    """Follows gateways over all sessions of the cluster.

    :param radio: the way through the mesh to each gateway is asked of it.
    :param may_forward: set once the firewall's rules are in force.
    :param passes: has the firewall let these prefixes out of the mesh as well.
    """

    def __init__(
        self,
        core: Core,
        me: OwnIdentity,
        radio: RadioPart,
        may_forward: asyncio.Event,
        passes: Callable[[tuple[IPv6Network, ...]], None],
    ) -> None:
        self._core = core
        self._me = me
        self._radio = radio
        self._may_forward = may_forward
        self._passes = passes
        self._exchange: Exchange | None = None
        self._gateways: Gateways | None = None
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follow gateways until cancelled."""
        core = self._core
        if not core.make.owns_network(core.paths):
            await asyncio.Event().wait()
        folder = core.paths.run + "/gateway"
        await core.joined.wait()
        if not core.settings.gateway.uplink and not os.path.exists(folder):
            await self._news.wait()  # as a rule for ever
        while True:
            try:
                await self._follow(folder)
            except Exception as error:
                log.exception("gateways are not followed")
                message = f"gateways are not followed: {type(error).__name__}: {error}"
                core.problems.report("gateway", "part-failed", message, "warning")
                await asyncio.sleep(AGAIN)
            else:
                core.problems.clear("gateway", "part-failed")
            if not core.settings.gateway.uplink:
                self._news.clear()
                await self._news.wait()

    async def _follow(self, folder: str) -> None:
        from thicket.gateway.service import Gateways, Host

        core = self._core
        host = Host(
            me=lambda: self._me.address,
            offers=self._offers,
            say=self._say,
            costs=self._costs,
            passes=self._passes,
            may_forward=self._may_forward,
            changed=core.changed,
        )
        self._gateways = Gateways(
            folder,
            core.paths.root,
            core.make.interface,
            settings=core.settings.gateway,
            problems=core.problems,
            host=host,
            news=self._news,
        )
        try:
            await self._gateways.run()
        finally:
            self._gateways = None
            self._passes(())
            core.changed()

    def _offers(self) -> Offers | None:
        return self._exchange.offers if self._exchange is not None else None

    def _say(self, offer: Offer) -> None:
        if self._exchange is not None:
            self._exchange.say(offer)

    async def _costs(self) -> Mapping[IPv6Address, float]:
        """Return the airtime metrics of the ways through the mesh."""
        from ipaddress import IPv6Address

        mesh = self._radio.mesh
        if mesh is None:
            return {}
        await self._radio.refresh()
        seen = mesh.snapshot()
        found: dict[IPv6Address, float] = {}
        ways = [*(one for one in seen["peers"]), *(one for one in seen["paths"] if one["active"])]
        for one in ways:
            if one["address"] is not None and one["metric"]:
                address = IPv6Address(one["address"])
                found[address] = min(found.get(address, float("inf")), float(one["metric"]))
        return found

    def status(self) -> dict[str, Any] | None:
        """Return the part ``gateway`` of the status document; None where no gateway is known."""
        return self._gateways.status() if self._gateways is not None else None

    # -- the cluster, see daemon.cluster_part

    def attach(self, node: Node, near: Callable[[], Collection[str]]) -> None:
        """Hear and say offers over the connections of ``node``.

        :param near: returns the neighbours that messages to all go through; none where all nodes
            are connected.
        """
        from thicket.gateway.exchange import Exchange

        self._exchange = Exchange(
            node, lambda: (self._me.ip, self._me.network), near, self._news.set
        )

    def detach(self) -> None:
        """The node object has ended."""
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
