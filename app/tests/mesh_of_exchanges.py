# SPDX-License-Identifier: Apache-2.0
"""Nodes that hand on an offer and its patch, in virtual time over air that they share.

Everything between the encoded messages and the files is the product's own: ``exchange``,
``carrier``, ``spread`` and ``store``. This stands in for connections, air and the card's pace; TLS
and the rollout's decisions are left out.

While two talk to each other, nobody who hears one of them sends or receives anything else. One in
``LOSS`` frames is lost and sent again. Who has waited longest is next; what a node sends to several
others goes in turns.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import pytest
from bundles_for_tests import update_key
from test_fleet_links import FLEET

from thicket.base import threads
from thicket.base.problems import Problems
from thicket.distribution import Node
from thicket.distribution.etf import Atom, Pid, decode, encode
from thicket.distribution.node import NodeInfo
from thicket.update import exchange
from thicket.update.carrier import Carrier
from thicket.update.exchange import Exchange, Follower
from thicket.update.offer import CHUNK, Offer, Patch, Plan, Target, check_offer, describe
from thicket.update.spread import Way
from thicket.update.store import Store

T = TypeVar("T")

SUBJECT = "image/thicket-rpi64"
LOSS = 0.1
RATE = 54e6 / 8 / 1.25
"""Bytes per second of a link, with headers and acknowledgements."""
FRAME = 1400
TURN = 4
"""Frames that a node sends before it is another one's turn."""
CONTENTION = 1e-4
"""Seconds of air before each turn."""
HEADERS = 100
"""Bytes around a message: TLS, TCP, IP."""
HANDLING = 1e-3
"""Seconds until the receiver has acted on a message."""
LONGEST = 600.0
METRIC = round(8192 / 54 / (1 - LOSS))

CARD, SYNC, STEP = 5e-4, 0.02, 0.05
"""Seconds of something on the card, of each wait for it to be durable, and until a node has decided
that it wants an offer."""


def air_of(size: int) -> float:
    """Seconds of air that so many bytes take on one hop, on average."""
    turns = -(-size // (FRAME * TURN))
    return turns * CONTENTION + size / RATE / (1 - LOSS)


CHUNK_AIR = air_of(CHUNK + HEADERS)


class _Message:
    def __init__(self, route: list[str], size: int, arrived: Callable[[], None]) -> None:
        self.route = route
        self.size = self.left = size
        self.arrived = arrived


class Air:
    """The air between nodes.

    :ivar links: pairs of those who hear each other.
    :ivar spent: seconds of it that each node's sending took.
    :ivar unused: seconds in which nobody sent.
    """

    def __init__(self, links: set[frozenset[str]], seed: int) -> None:
        self.links = links
        self.random = random.Random(seed)
        self.spent: dict[str, float] = {}
        self.unused = 0.0
        self.unsent: dict[tuple[str, str], int] = {}
        self._near: dict[str, set[str]] = {}
        for link in links:
            for one in link:
                self._near.setdefault(one, set()).update(link - {one})
        self._queues: dict[str, dict[tuple[str, str], deque[_Message]]] = {}
        self._waiting: list[str] = []
        self._sending: set[str] = set()
        self._going: list[frozenset[str]] = []
        self._free_since = 0.0

    def begin(self) -> None:
        """Count from now on, while nobody sends."""
        self.spent.clear()
        self.unused, self._free_since = 0.0, time.monotonic()

    def hops(self, name: str) -> dict[str, int]:
        """Return how far others are."""
        found, edge = {name: 0}, [name]
        for at in edge:
            for other in sorted(self._near[at]):
                if other not in found:
                    found[other] = found[at] + 1
                    edge.append(other)
        del found[name]
        return found

    def send(self, sender: str, receiver: str, size: int, arrived: Callable[[], None]) -> None:
        """Carry so many bytes to a node; what one sends another arrives in its order."""
        far, route = self.hops(receiver), [sender]
        while route[-1] != receiver:
            route.append(min(self._near[route[-1]], key=lambda n: (far.get(n, 0), n)))
        self.unsent[sender, receiver] = self.unsent.get((sender, receiver), 0) + size
        self._queue(_Message(route, size, arrived), (sender, receiver))

    def _queue(self, message: _Message, flow: tuple[str, str]) -> None:
        here = message.route[0]
        queues = self._queues.setdefault(here, {})
        queues.setdefault(flow, deque()).append(message)
        if here not in self._waiting and here not in self._sending:
            self._waiting.append(here)
        self._pump()

    def _pump(self) -> None:
        """Let everybody begin whose turn it is, and whom nobody disturbs."""
        taken = {name for pair in self._going for name in self._heard(pair)}
        for here in list(self._waiting):
            flow, queue = next(iter(self._queues[here].items()))
            pair = frozenset(queue[0].route[:2])
            if not pair & taken:
                self._waiting.remove(here)
                self._sending.add(here)
                if not self._going:
                    self.unused += time.monotonic() - self._free_since
                self._going.append(pair)
                self._begin(here, flow, pair)
            taken |= self._heard(pair)  # or else those in the middle would never have their turn

    def _heard(self, pair: frozenset[str]) -> set[str]:
        """Return who neither sends nor receives anything else while two talk to each other."""
        return set(pair).union(*(self._near[name] for name in pair))

    def _begin(self, here: str, flow: tuple[str, str], pair: frozenset[str]) -> None:
        message = self._queues[here][flow][0]
        size = min(message.left, FRAME * TURN)
        takes = CONTENTION
        for at in range(0, size, FRAME):
            frame = min(FRAME, size - at) / RATE
            takes += frame
            while self.random.random() < LOSS:
                takes += frame
        self.spent[here] = self.spent.get(here, 0.0) + takes
        message.left -= size
        asyncio.get_running_loop().call_later(takes, self._end, here, flow, pair)

    def _end(self, here: str, flow: tuple[str, str], pair: frozenset[str]) -> None:
        self._going.remove(pair)
        self._free_since = time.monotonic()
        self._sending.remove(here)
        queues = self._queues[here]
        queue = queues.pop(flow)
        message = queue[0]
        if not message.left:
            queue.popleft()
        if queue:
            queues[flow] = queue  # behind the others
        if queues:
            self._waiting.append(here)
        if not message.left:
            self._sent(message, flow)
        self._pump()

    def _sent(self, message: _Message, flow: tuple[str, str]) -> None:
        if message.route[0] == flow[0]:
            self.unsent[flow] -= message.size
        del message.route[0]
        message.left = message.size
        if len(message.route) > 1:
            self._queue(message, flow)
        else:
            asyncio.get_running_loop().call_later(HANDLING, message.arrived)


class Card:
    """Stands in for :class:`threads.InTurn`: what is to be done takes its time."""

    waits = 0

    def __init__(self, _name: str) -> None:
        self._turn = asyncio.Lock()

    async def do(self, work: Callable[[], T], _patience: float) -> T:
        async with self._turn:
            before = Card.waits
            try:
                return work()
            finally:
                await asyncio.sleep(CARD + SYNC * (Card.waits - before))


class Link(NamedTuple):
    """A connection."""

    name: str
    air: Air
    own: str

    @property
    def unsent(self) -> int:
        return self.air.unsent.get((self.own, self.name), 0)


class Cluster:
    """Stands in for a node of the cluster that is connected with all others."""

    encrypted = True

    def __init__(self, name: str, mesh: Mesh) -> None:
        self.name = name
        self.connections: dict[str, Link] = {}
        self._mesh = mesh

    def new_pid(self) -> Pid:
        return Pid(Atom(self.name), 1, 0, 1)

    def register(self, _name: str, _process: object) -> None:
        pass

    def end(self, _process: object) -> None:
        pass

    def nodes(self) -> list[NodeInfo]:
        return [NodeInfo(name, "up", 0.0) for name in self.connections]

    def send_to_name(self, connection: Link, _sender: Pid, _name: str, message: object) -> None:
        self._mesh.send(self.name, connection.name, message)


class Member:
    """A node of the fleet, as its part in updates sees it."""

    def __init__(self, name: str, mesh: Mesh, folder: Path) -> None:
        self.name = name
        self.problems = Problems(lambda: None)
        self.cluster = Cluster(name, mesh)
        self.exchange = Exchange(cast(Node, self.cluster), self, self._take_offer)
        self.carrier = Carrier(self, Store(str(folder)), self.exchange.wire(SUBJECT))
        self.exchange.followers[SUBJECT] = Follower(self.carrier)
        self.done: float | None = None
        self._mesh = mesh
        self._wanted: Offer | None = None

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.exchange.run())
            tasks.create_task(self.carrier.run())

    async def _take_offer(self, subject: str, packed: bytes, who: str) -> bool:
        assert subject == SUBJECT
        return await self.carrier.take_offer(packed, who)

    def check(self, packed: bytes) -> Offer:
        return check_offer(packed, FLEET.fleet)

    def base(self) -> str:
        return ""

    def wants(self, offer: Offer) -> bool:
        if self._wanted is not offer:
            asyncio.get_running_loop().call_later(STEP, self._want, offer)
        return self._wanted is offer

    def _want(self, offer: Offer) -> None:
        if self._wanted is not offer:
            self._wanted = offer
            self.carrier.look_again()

    def share(self) -> float:
        return 0.2

    def ways(self) -> Mapping[str, Way]:
        return self._mesh.ways[self.name]

    async def take(self, path: str, offer: Offer, patch: Patch) -> None:
        self.done = time.monotonic()


class Mesh:
    """Members in a grid, each connected with all others.

    :param full: let all hear each other.
    :ivar messages: how many of each kind were sent.
    """

    def __init__(
        self, columns: int, rows: int, folder: Path, seed: int = 1, *, full: bool = False
    ) -> None:
        names = [f"thicket@fd00::{at + 1:x}" for at in range(columns * rows)]
        links = {frozenset(names[at : at + 2]) for at in range(len(names)) if (at + 1) % columns}
        links |= {frozenset(pair) for pair in zip(names, names[columns:], strict=False)}
        if full:
            links = {frozenset(pair) for pair in combinations(names, 2)}
        self.air = Air(links, seed)
        self.messages: dict[str, int] = {}
        self.ways = {
            name: {peer: Way(hops, hops * METRIC) for peer, hops in self.air.hops(name).items()}
            for name in names
        }
        self.members = [Member(name, self, folder / str(at)) for at, name in enumerate(names)]
        self._by_name = {member.name: member for member in self.members}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Let all be there, and know that nobody has anything."""
        for one in self.members:
            for other in self.members:
                if other is not one:
                    one.cluster.connections[other.name] = Link(other.name, self.air, one.name)
        self._tasks = [asyncio.create_task(one.run()) for one in self.members]
        for one in self.members:
            for name in one.cluster.connections:
                one.exchange.node_up(name)
        await asyncio.sleep(30)
        self.air.begin()
        self.messages.clear()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def send(self, sender: str, receiver: str, message: Any) -> None:
        kind = message[1][0]
        self.messages[kind] = self.messages.get(kind, 0) + 1
        packed = encode(message)

        def arrived() -> None:
            back = self._by_name[receiver].cluster.connections[sender]
            self._by_name[receiver].exchange.on_message(cast(Any, back), decode(packed))

        self.air.send(sender, receiver, len(packed) + HEADERS, arrived)

    async def spread(self, folder: str) -> float:
        """Offer the first one what is in a folder; return the seconds until all others have it."""
        begin = time.monotonic()
        for one in self.members:
            one.done = None
        await self.members[0].carrier.offer_folder(folder)
        while any(one.done is None for one in self.members):
            await asyncio.sleep(0.001)
            assert time.monotonic() < begin + LONGEST, [one.done for one in self.members]
        return max(one.done or 0.0 for one in self.members[1:]) - begin


def deterministic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let cards take virtual time, and chance be the same in each run."""

    def counted(_fd: int) -> None:
        Card.waits += 1

    monkeypatch.setattr(os, "fsync", counted)
    monkeypatch.setattr(os, "urandom", random.Random(7).randbytes)
    monkeypatch.setattr(threads, "InTurn", Card)
    monkeypatch.setattr(exchange, "uniform", lambda low, high: (low + high) / 2)


def folder_of(path: Path, chunks: int, number: int = 1) -> str:
    """Make a folder with an offer of a patch of so many chunks."""
    path.mkdir()
    data = random.Random(number).randbytes(chunks * CHUNK - 100)
    with (path / "whole.patch").open("wb") as file:
        file.write(data)
    with (path / "whole.patch").open("rb") as read:
        patch = describe(read, "")[0]
    target = Target("thicket-rpi64", "2", 0, 1 << 20, "ef" * 32)
    offer = Offer(FLEET.fleet.identifier, number, target, (patch,), Plan(1, 60, (100,), 0, None))
    (path / "offer").write_bytes(update_key(FLEET).message(offer.text()))
    return str(path)
