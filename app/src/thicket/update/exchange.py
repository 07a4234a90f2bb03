# SPDX-License-Identifier: Apache-2.0
"""What the nodes of a fleet say to each other about updates, over the cluster's connections.

Each node has a process ``thicket_update``. It talks over connections that are encrypted and whose
other end has proven that it is of the fleet, and bounds what each peer can make it do. What it
hears about a subject goes to whoever follows that; nobody follows a subject before there is a
signed offer about it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from thicket.base.errors import ThicketError
from thicket.base.pace import Bucket, uniform, wait
from thicket.distribution.handshake import key_of
from thicket.distribution.processes import Process
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
    unwrap,
    wrap,
)
from thicket.update.spread import NEAR

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.distribution.connection import Connection
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.node import Node
    from thicket.update.carrier import Carrier
    from thicket.update.spread import Way

log = getLogger(__name__)

#: The name under which each node answers.
NAME = "thicket_update"
#: Seconds between two rounds in which all nodes hear of the newest offer.
TELL = (50.0, 70.0)
#: Seconds until those hear of an offer who have not got it from their neighbours.
SOON = (4.0, 6.0)
#: Seconds for which an offer that was not taken is a problem.
SHOWN = 3600.0
#: Messages per second of one peer that are looked at, on average and at once: about offers, about
#: chunks, and about the progress of nodes, for each subject; and about subjects that nobody follows
#: here yet, for all of them. Of those about offers that were too many, the peer is asked when its
#: next one would be looked at. Chunks that it sends or is sent are not among them.
RATES = {"offer": (0.5, 12.0), "chunk": (100.0, 400.0), "record": (2.0, 40.0), "new": (0.5, 24.0)}
#: Offers that wait to be checked.
WAITING = 48


class Recorder(Protocol):
    """What understands records, see :class:`thicket.update.reports.Reports`."""

    def greeting(self) -> list[bytes]:
        """Return what a peer gets at the beginning, and again and again."""

    def take_records(self, records: Sequence[bytes], peer: str) -> tuple[list[bytes], list[bytes]]:
        """Take records of a peer; return those that go to all others, and those for the peer."""

    def gone(self, peer: str) -> None:
        """A peer is not connected any more."""


class Follower(NamedTuple):
    """What follows one subject.

    :ivar carrier: keeps and carries the newest offer about it.
    :ivar recorder: understands records; None while none are of use.
    """

    carrier: Carrier
    recorder: Recorder | None = None


class Host(Protocol):
    """What the exchange needs of its daemon."""

    @property
    def problems(self) -> Problems:
        """The node's problems."""

    def ways(self) -> Mapping[str, Way]:
        """The ways to the connected nodes, by their names."""


class Exchange(Process):
    """``thicket_update`` on one node.

    :param node: this node.
    :param take: takes a signed offer that a peer has sent about a subject; returns whether it was
        news. It raises a ThicketError where the offer does not count.
    :ivar followers: by the subjects that they follow.
    :ivar ignored: messages that were no such messages, or too many.
    """

    answers = False

    def __init__(
        self, node: Node, host: Host, take: Callable[[str, bytes, str], Awaitable[bool]]
    ) -> None:
        super().__init__(node)
        self.cluster = node
        self.followers: dict[str, Follower] = {}
        self.ignored = 0
        self._host = host
        self._take_offer = take
        self._buckets: dict[tuple[str, str, str], Bucket] = {}
        self._offers: asyncio.Queue[tuple[str, str, bytes]] = asyncio.Queue(WAITING)
        self._refused_at = 0.0
        self._news = asyncio.Event()
        self._asking: dict[tuple[str, str], asyncio.TimerHandle] = {}

    async def run(self) -> None:
        """Serve the other nodes until cancelled."""
        if not self.cluster.encrypted:
            log.warning("updates do not travel between nodes whose connections are not encrypted")
            await asyncio.Event().wait()
        self.cluster.register(NAME, self)
        telling = asyncio.create_task(self._keep_telling())
        try:
            while True:
                await self._take(*await self._offers.get())
        finally:
            telling.cancel()
            self.on_stop()
            self.cluster.end(self)

    async def _keep_telling(self) -> None:
        everybody = True
        while True:
            up = [info.name for info in self.cluster.nodes() if info.state == "up"]
            for subject, follower in list(self.followers.items()):
                for peer in up:
                    if everybody or not follower.carrier.knows(peer):
                        self.send(peer, subject, follower.carrier.have())
                self.greet_all(subject)
            if time.monotonic() - self._refused_at > SHOWN:
                self._host.problems.clear("update", "offer-refused")
            everybody = not await wait(self._news, uniform(*TELL))
            if not everybody:
                self._news.clear()
                await asyncio.sleep(uniform(*SOON))

    def on_stop(self) -> None:
        for timer in self._asking.values():
            timer.cancel()
        self._asking.clear()

    # -- to other nodes

    def wire(self, subject: str) -> BoundWire:
        """Return what carries the messages about a subject, see :class:`.carrier.Wire`."""
        return BoundWire(self, subject)

    def send(self, peer: str, subject: str, message: Message) -> None:
        """Send a message to a connected node."""
        connection = self.cluster.connections.get(key_of(peer))
        if connection is not None and self.cluster.encrypted:
            if isinstance(message, Get | Data):  # it answers, or asks for the next chunk
                self._bucket(peer, "chunk", subject).give()
            self.node.send_to_name(connection, self.pid, NAME, wrap(subject, message))

    def unsent(self, peer: str) -> int:
        """Return the bytes that wait to be sent to a node."""
        connection = self.cluster.connections.get(key_of(peer))
        return connection.unsent if connection is not None else 0

    def tell_near(self, subject: str, but: str = "") -> None:
        """Tell all neighbours, except one, which offer about a subject is the newest here."""
        self._news.set()
        for peer, way in self._host.ways().items():
            if peer != but and way.hops <= NEAR:
                self.send(peer, subject, self._have(subject))

    def node_up(self, peer: str) -> None:
        """A node is connected: tell it what is here."""
        for subject, follower in list(self.followers.items()):
            self.send(peer, subject, follower.carrier.have())
            if follower.recorder is not None and self._is_near(peer):
                self._send_records(peer, subject, follower.recorder.greeting())

    def greet_all(self, subject: str) -> None:
        """Have all neighbours compare what they know with what is known here."""
        recorder = self.followers[subject].recorder
        if recorder is not None:
            self.publish(subject, recorder.greeting())

    def publish(self, subject: str, records: list[bytes], but: str = "") -> None:
        """Give records to the neighbours; they do the same with what is news to them."""
        for peer, way in self._host.ways().items():
            if peer != but and way.hops <= NEAR:
                self._send_records(peer, subject, records)

    def _send_records(self, peer: str, subject: str, records: list[bytes]) -> None:
        for at in range(0, len(records), MAX_RECORDS):
            self.send(peer, subject, Records(tuple(records[at : at + MAX_RECORDS])))

    def _is_near(self, peer: str) -> bool:
        way = self._host.ways().get(peer)
        return way is None or way.hops <= NEAR

    def _have(self, subject: str) -> Have:
        follower = self.followers.get(subject)
        return Have(0, b"") if follower is None else follower.carrier.have()

    # -- from other nodes

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None or not self.cluster.encrypted:
            return
        found, peer = unwrap(message), connection.name
        if found is None:
            self.ignored += 1
            return
        subject, said = found
        if not self._due(peer, subject, said):
            self.ignored += 1
            if isinstance(said, Have | Offered):
                self._ask_later(peer, subject)
            return
        follower = self.followers.get(subject)
        match said:
            case Have():
                self._on_have(peer, subject, said)
            case Offered(packed):
                self._on_offer(peer, subject, packed)
            case Records(records):
                if follower is not None and follower.recorder is not None:
                    self._on_records(peer, subject, follower.recorder, records)
            case Has() | Get() | Data() | No():
                if follower is not None:
                    follower.carrier.on(peer, said)

    def _due(self, peer: str, subject: str, message: Message) -> bool:
        match message:
            case _ if subject not in self.followers:
                kind, subject = "new", ""
            case Have() | Offered():
                kind = "offer"
            case Records():
                kind = "record"
            case _:
                kind = "chunk"
        return self._bucket(peer, kind, subject).take(time.monotonic())

    def _bucket(self, peer: str, kind: str, subject: str) -> Bucket:
        return self._buckets.setdefault((peer, kind, subject), Bucket(*RATES[kind]))

    def _ask_later(self, peer: str, subject: str) -> None:
        """Have a peer say again what was not looked at; of a new subject it tells by itself."""
        key = peer, subject
        if key not in self._asking and subject in self.followers:
            pause = 1 / RATES["offer"][0]
            self._asking[key] = asyncio.get_running_loop().call_later(pause, self._ask, key)

    def _ask(self, key: tuple[str, str]) -> None:
        del self._asking[key]
        self.send(*key, self._have(key[1]))

    def _on_have(self, peer: str, subject: str, message: Have) -> None:
        follower = self.followers.get(subject)
        if follower is None:
            if message.number:
                self.send(peer, subject, Have(0, b""))  # it answers with its offer
            return
        carrier = follower.carrier
        news = carrier.news(*message)
        if news > 0:
            self.send(peer, subject, carrier.have())
        elif news < 0 and carrier.newest is not None:
            self.send(peer, subject, Offered(carrier.newest.packed))
        else:
            carrier.tell(peer)

    def _on_offer(self, peer: str, subject: str, packed: bytes) -> None:
        """Have an offer checked, one at a time; whoever is turned away is asked later."""
        try:
            self._offers.put_nowait((peer, subject, packed))
        except asyncio.QueueFull:
            self.ignored += 1
            self._ask_later(peer, subject)

    async def _take(self, peer: str, subject: str, packed: bytes) -> None:
        try:
            if await self._take_offer(subject, packed, peer):
                self.send(peer, subject, self._have(subject))  # it tells which chunks it has
        except (ThicketError, OSError, TimeoutError) as error:
            self._refused_at = time.monotonic()
            log.warning("an update that %s offers is not taken: %s", peer, error)
            self._host.problems.report(
                "update", "offer-refused", f"{peer} offers what is not taken: {error}", "warning"
            )

    def _on_records(
        self, peer: str, subject: str, recorder: Recorder, records: Sequence[bytes]
    ) -> None:
        onward, answer = recorder.take_records(records, peer)
        self.publish(subject, onward, peer)
        self._send_records(peer, subject, answer)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        for key in [key for key in self._buckets if key[0] == connection.name]:
            del self._buckets[key]
        for asked in [key for key in self._asking if key[0] == connection.name]:
            self._asking.pop(asked).cancel()
        for follower in self.followers.values():
            if follower.recorder is not None:
                follower.recorder.gone(connection.name)
            follower.carrier.gone(connection.name)


class BoundWire:
    """Carries the messages about one subject, see :class:`.carrier.Wire`."""

    def __init__(self, exchange: Exchange, subject: str) -> None:
        self._exchange = exchange
        self._subject = subject

    def send(self, peer: str, message: Message) -> None:
        self._exchange.send(peer, self._subject, message)

    def unsent(self, peer: str) -> int:
        return self._exchange.unsent(peer)

    def tell_near(self, but: str = "") -> None:
        self._exchange.tell_near(self._subject, but)
