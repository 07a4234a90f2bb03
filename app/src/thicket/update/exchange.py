# SPDX-License-Identifier: Apache-2.0
"""What the nodes of a fleet say to each other about updates, over the cluster's connections.

Each node has a process ``thicket_update``. It talks over connections that are encrypted and whose
other end has proven that it is of the fleet, and bounds what each peer can make it do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from logging import getLogger
from typing import TYPE_CHECKING, Any, Protocol

from thicket.base.errors import ThicketError
from thicket.base.pace import Bucket, uniform
from thicket.distribution.handshake import key_of
from thicket.distribution.processes import Process
from thicket.update.carrier import Carrier, Host
from thicket.update.messages import (
    MAX_RECORDS,
    Data,
    Get,
    Has,
    Have,
    Message,
    No,
    Offered,
    Records,
    read,
    term,
)
from thicket.update.spread import NEAR
from thicket.update.store import Store

if TYPE_CHECKING:
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.node import Node

log = getLogger(__name__)

#: The name under which each node answers.
NAME = "thicket_update"
#: Seconds between two rounds in which all nodes hear of the newest offer.
TELL = (50.0, 70.0)
#: Seconds for which an offer that was not taken is a problem.
SHOWN = 3600.0
#: Messages per second of one peer that are looked at, on average and at once: about offers, about
#: chunks, and about the progress of nodes.
RATES = {"offer": (0.2, 6.0), "chunk": (100.0, 400.0), "record": (2.0, 40.0)}


class Recorder(Protocol):
    """What understands records, see :class:`thicket.update.reports.Reports`."""

    def greeting(self) -> list[bytes]:
        """Return what a peer gets at the beginning, and again and again."""

    def take_records(self, records: Sequence[bytes], peer: str) -> tuple[list[bytes], list[bytes]]:
        """Take records of a peer; return those that go to all others, and those for the peer."""

    def gone(self, peer: str) -> None:
        """A peer is not connected any more."""


class Exchange(Process):
    """``thicket_update`` on one node.

    :param node: this node.
    :ivar carrier: keeps and carries the newest offer.
    :ivar recorder: understands records; None while none are of use.
    :ivar ignored: messages that were no such messages, or too many.
    """

    answers = False

    def __init__(self, node: Node, host: Host, store: Store) -> None:
        super().__init__(node)
        self.cluster = node
        self.carrier = Carrier(host, store, self)
        self.recorder: Recorder | None = None
        self.ignored = 0
        self._host = host
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._taking: asyncio.Task[None] | None = None
        self._refused_at = 0.0

    async def run(self) -> None:
        """Serve the other nodes until cancelled."""
        if not self.cluster.encrypted:
            log.warning("updates do not travel between nodes whose connections are not encrypted")
            await asyncio.Event().wait()
        self.cluster.register(NAME, self)
        telling = asyncio.create_task(self._keep_telling())
        try:
            await self.carrier.run()
        finally:
            telling.cancel()
            self.on_stop()
            self.cluster.end(self)

    async def _keep_telling(self) -> None:
        while True:
            self.tell_all()
            self.greet_all()
            if time.monotonic() - self._refused_at > SHOWN:
                self._host.problems.clear("update", "offer-refused")
            await asyncio.sleep(uniform(*TELL))

    def on_stop(self) -> None:
        if self._taking is not None:
            self._taking.cancel()

    # -- to other nodes, see carrier.Wire

    def send(self, peer: str, message: Message) -> None:
        connection = self.cluster.connections.get(key_of(peer))
        if connection is not None and self.cluster.encrypted:
            self.node.send_to_name(connection, self.pid, NAME, term(message))

    def unsent(self, peer: str) -> int:
        connection = self.cluster.connections.get(key_of(peer))
        return connection.unsent if connection is not None else 0

    def tell_all(self, but: str = "") -> None:
        for info in self.cluster.nodes():
            if info.state == "up" and info.name != but:
                self.send(info.name, self.carrier.have())

    def node_up(self, peer: str) -> None:
        """A node is connected: tell it what is here."""
        self.send(peer, self.carrier.have())
        if self.recorder is not None and self._is_near(peer):
            self._send_records(peer, self.recorder.greeting())

    def greet_all(self) -> None:
        """Have all neighbours compare what they know with what is known here."""
        if self.recorder is not None:
            self.publish(self.recorder.greeting())

    def publish(self, records: list[bytes], but: str = "") -> None:
        """Give records to the neighbours; they do the same with what is news to them."""
        for peer, way in self._host.ways().items():
            if peer != but and way.hops <= NEAR:
                self._send_records(peer, records)

    def _send_records(self, peer: str, records: list[bytes]) -> None:
        for at in range(0, len(records), MAX_RECORDS):
            self.send(peer, Records(tuple(records[at : at + MAX_RECORDS])))

    def _is_near(self, peer: str) -> bool:
        way = self._host.ways().get(peer)
        return way is None or way.hops <= NEAR

    # -- from other nodes

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None or not self.cluster.encrypted:
            return
        found = read(message)
        if found is None or not self._due(connection.name, found):
            self.ignored += 1
            return
        peer = connection.name
        match found:
            case Have():
                self._on_have(peer, found)
            case Offered(packed):
                self._on_offer(peer, packed)
            case Records(records):
                self._on_records(peer, records)
            case Has() | Get() | Data() | No():
                self.carrier.on(peer, found)

    def _due(self, peer: str, message: Message) -> bool:
        match message:
            case Have() | Offered():
                kind = "offer"
            case Records():
                kind = "record"
            case _:
                kind = "chunk"
        bucket = self._buckets.setdefault((peer, kind), Bucket(*RATES[kind]))
        return bucket.take(time.monotonic())

    def _on_have(self, peer: str, message: Have) -> None:
        news = self.carrier.news(*message)
        newest = self.carrier.newest
        if news > 0:
            self.send(peer, self.carrier.have())  # it answers with its offer
        elif news < 0 and newest is not None:
            self.send(peer, Offered(newest.packed))
        else:
            self.carrier.tell(peer)

    def _on_offer(self, peer: str, packed: bytes) -> None:
        """Check an offer, one at a time; whoever is turned away tells of it again."""
        if self._taking is not None and not self._taking.done():
            return
        self._taking = asyncio.create_task(self._take(peer, packed))

    async def _take(self, peer: str, packed: bytes) -> None:
        try:
            if await self.carrier.take_offer(packed, peer):
                self.send(peer, self.carrier.have())  # it tells which chunks it has
        except ThicketError as error:
            self._refused_at = time.monotonic()
            log.warning("an update that %s offers is not taken: %s", peer, error)
            self._host.problems.report(
                "update", "offer-refused", f"{peer} offers what is not taken: {error}", "warning"
            )

    def _on_records(self, peer: str, records: Sequence[bytes]) -> None:
        if self.recorder is not None:
            onward, answer = self.recorder.take_records(records, peer)
            self.publish(onward, peer)
            self._send_records(peer, answer)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        for kind in RATES:
            self._buckets.pop((connection.name, kind), None)
        if self.recorder is not None:
            self.recorder.gone(connection.name)
        self.carrier.gone(connection.name)
