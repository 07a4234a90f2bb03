# SPDX-License-Identifier: Apache-2.0
"""``thicket_gateways``: how the offers of gateways reach all nodes of a cluster.

A gateway says its offer to the nodes that it is connected with. Where that are all nodes of the
cluster, nobody passes it on. Where nodes are connected with some neighbours only, each passes on
what is news to it. A node of Erlang has no process of this name: what is sent to it vanishes there.

Only members say something, and a gateway that is connected is believed for itself alone: an offer
in its name that comes by way of others is dropped. What is passed on is worth as much as those who
do it; one of them that lies could offer a way out itself, and gains nothing by lying about others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any

from thicket.base.pace import Bucket
from thicket.distribution.handshake import address_of
from thicket.distribution.processes import Process
from thicket.gateway.offers import MOST, MOST_HOPS, Offer, Offers, pack, unpack

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.node import Node

NAME = "thicket_gateways"
#: Messages of one peer that are looked at, per second on average, and at once: it may pass on the
#: offers of all gateways.
RATE, BURST = 1.0 * MOST, 4.0 * MOST


class Exchange(Process):
    """``thicket_gateways`` on one node.

    :param mesh: returns this node's address, and the prefix of the mesh.
    :param near: returns the names of the nodes that messages to all go through; none where all are
        connected.
    :param news: called when an offer is heard that changes something.
    :ivar offers: what is known.
    """

    answers = False

    def __init__(
        self,
        node: Node,
        mesh: Callable[[], tuple[IPv6Address, IPv6Network]],
        near: Callable[[], Collection[str]],
        news: Callable[[], None],
    ) -> None:
        super().__init__(node)
        self.offers = Offers()
        self._cluster = node
        self._mesh = mesh
        self._near = near
        self._news = news
        self._buckets: dict[str, Bucket] = {}
        node.register(NAME, self)

    def close(self) -> None:
        """Say and hear no more."""
        self.on_stop()
        self._cluster.end(self)

    def say(self, offer: Offer, but: str = "") -> None:
        """Say an offer to all connected nodes, except the one with the key ``but``."""
        message = pack(offer)
        for key, connection in list(self._cluster.connections.items()):
            if key != but:
                self.node.send_to_name(connection, self.pid, NAME, message)

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None:
            return
        now = time.monotonic()
        bucket = self._buckets.setdefault(connection.name, Bucket(RATE, BURST))
        if not bucket.take(now):
            return
        me, network = self._mesh()
        offer = unpack(message, network)
        if offer is None or offer.origin == me or not self._may_say(connection, offer):
            return
        if self.offers.hear(offer, now):
            self._news()
            if offer.hops < MOST_HOPS and self._near():
                self.say(offer._replace(hops=offer.hops + 1), connection.key)

    def _may_say(self, connection: Connection, offer: Offer) -> bool:
        """Return whether an offer may come by way of this connection."""
        if offer.hops == 0:
            return offer.origin == address_of(connection.name)
        if not self._near():
            return False
        names = {address_of(info.name): info for info in self._cluster.nodes()}
        info = names.get(offer.origin)
        return info is not None and info.state == "up" and not info.direct

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._buckets.pop(connection.name, None)
