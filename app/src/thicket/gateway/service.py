# SPDX-License-Identifier: Apache-2.0
"""Follows the offers of gateways on one node, and offers its own uplink where it has one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.base.files import make_folder
from thicket.base.pace import wait
from thicket.gateway.apply import Kernel
from thicket.gateway.choose import Chosen, choose
from thicket.gateway.health import EVERY
from thicket.gateway.offers import Heard, Offer, Offers, Way
from thicket.gateway.plan import Network, Own, network
from thicket.gateway.uplink import Uplink

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.gateway.section import GatewaySection

log = getLogger(__name__)

#: Seconds between two decisions while there are gateways.
LOOK = 1.0
#: Seconds between two questions to the radio for the ways to several gateways.
COSTS = 5.0


class Host(NamedTuple):
    """What this part asks of the rest of the node.

    :ivar me: returns the node's address in the mesh.
    :ivar offers: returns the offers of others; None while there is no cluster.
    :ivar say: says an own offer to all.
    :ivar costs: returns the costs of the ways through the mesh, by addresses.
    :ivar passes: has the firewall let these prefixes out of the mesh as well.
    :ivar may_forward: set once the firewall's rules are in force.
    :ivar changed: call it when the status has changed.
    """

    me: Callable[[], IPv6Interface]
    offers: Callable[[], Offers | None]
    say: Callable[[Offer], None]
    costs: Callable[[], Awaitable[Mapping[IPv6Address, float]]]
    passes: Callable[[tuple[IPv6Network, ...]], None]
    may_forward: asyncio.Event
    changed: Callable[[], None]


class Gateways:
    """The gateways of one node, from when the first one is known.

    :param folder: in RAM; that it exists tells the next daemon that there were gateways.
    :param root, mesh: see :class:`.apply.Kernel`.
    :param news: set when there is something to decide.
    """

    def __init__(
        self,
        folder: str,
        root: str,
        mesh: str,
        *,
        settings: GatewaySection,
        problems: Problems,
        host: Host,
        news: asyncio.Event,
    ) -> None:
        make_folder(folder, 0o755)
        self._kernel = Kernel(root, mesh)
        self._host = host
        self._news = news
        self._problems = problems
        self._run = int.from_bytes(os.urandom(4), "big")
        self._number = 0
        self._chosen = (Chosen(), Chosen())
        self._costs: Mapping[IPv6Address, float] = {}
        self._asked = float("-inf")
        self._applied: Network | None = None
        self.uplink: Uplink | None = None
        if settings.uplink:
            self.uplink = Uplink(folder, settings, problems, self._kernel, host.me, root=root)

    @property
    def own(self) -> Own:
        return self.uplink.own if self.uplink is not None else Own()

    async def run(self) -> None:
        """Follow and offer until cancelled; without an uplink only as long as others offer."""
        beside = [asyncio.create_task(self._offer())] if self.uplink is not None else []
        try:
            while True:
                self._news.clear()
                await self._decide()
                if self.uplink is None and not self._known():
                    return
                if any(task.done() for task in beside):
                    await beside[0]
                await wait(self._news, LOOK)
        finally:
            for task in beside:
                task.cancel()
            if self.uplink is not None:
                self._say(Own())
                await self.uplink.close()
            self._kernel.close()

    async def _offer(self) -> None:
        """Look at the uplink and offer it, again and again."""
        assert self.uplink is not None
        await self._host.may_forward.wait()
        while True:
            before, began = self.own, time.monotonic()
            own = await self.uplink.look()
            if own.prefix != before.prefix:
                self._host.passes(() if own.prefix is None else (own.prefix,))
            self._say(own)
            if own != before:
                self._news.set()
                self._host.changed()
            await asyncio.sleep(max(0.1, EVERY - (time.monotonic() - began)))

    def _say(self, own: Own) -> None:
        self._number += 1
        me = self._host.me().ip
        self._host.say(Offer(self._run, self._number, me, 0, own.ways, own.prefix))

    # -- deciding

    def _known(self) -> list[Heard]:
        offers = self._host.offers()
        if offers is None:
            return []
        offers.end(time.monotonic())
        return list(offers)

    async def _decide(self) -> None:
        known, now = self._known(), time.monotonic()
        if len(known) > 1 and now - self._asked >= COSTS:
            self._asked = now
            self._costs = await self._host.costs()
        before = self._chosen
        six, four = (
            choose(one, known, self._costs, way, now)
            for one, way in zip(before, (Way.IPV6, Way.IPV4), strict=True)
        )
        self._chosen = six, four
        for kind, old, new in (("IPv6", before[0], six), ("IPv4", before[1], four)):
            if old.gateway != new.gateway:
                log.info("the gateway for %s is %s, and was %s", kind, new.gateway, old.gateway)
                self._host.changed()
        by = {one.offer.origin: one.offer for one in known}
        chosen = tuple(by.get(one.gateway) if one.gateway else None for one in (six, four))
        others = sorted(by.values(), key=lambda offer: (offer.hops, offer.origin))
        index = self._kernel.mesh()
        wanted = network(self._host.me(), index, self.own, (chosen[0], chosen[1]), others)
        if not index:
            wanted = Network(names=wanted.names)
        try:
            self._kernel.apply(wanted, index)
        except OSError as error:
            self._problems.report(
                "gateway", "not-set-up", f"routes cannot be set up: {error.strerror or error}"
            )
        else:
            self._problems.clear("gateway", "not-set-up")
            self._applied = wanted

    def status(self) -> dict[str, Any]:
        """Return the part ``gateway`` of the status document; docs/node.md has its members."""
        applied = self._applied or Network()
        six, four = (one.gateway for one in self._chosen)
        return {
            "uplink": self.uplink.status() if self.uplink is not None else None,
            "uses": {"ipv6": _text(six), "ipv4": _text(four)},
            "addresses": sorted(str(one.ip) for one in applied.addresses),
            "names": [str(one) for one in applied.names],
            "known": [
                {
                    "node": str(one.offer.origin),
                    "ways": [str(way.name).lower() for way in one.offer.ways],
                    "prefix": _text(one.offer.prefix),
                    "hops": one.offer.hops,
                    "metric": self._costs.get(one.offer.origin),
                }
                for one in self._known()
                if one.offer.ways
            ],
        }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
