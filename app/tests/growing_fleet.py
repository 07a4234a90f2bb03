# SPDX-License-Identifier: Apache-2.0
"""A fleet that is switched on, in virtual time: who connects whom, and what of that is in vain.

What decides is the product's own code: ``cluster.membership``, ``cluster.topology`` and
``distribution.roster`` on every node. Around it are a graph of radio links, beacons that get lost,
connections that take their time and fail, and messages that come late.

``python app/tests/growing_fleet.py 4 8 16 17 20 50`` prints figures.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv6Address
from typing import Any, NamedTuple

import pytest
from patience import PATIENCE

from meshlab.bench.membership import Graph, grid
from thicket.cluster import membership, topology
from thicket.cluster.membership import Candidate, Membership
from thicket.cluster.topology import Topology
from thicket.distribution import members
from thicket.distribution.roster import Message, Roster, Send

BASE = int(IPv6Address("fd12:3456:789a:1::"))

INTERVAL = 15.0
"""Seconds between two beacons of a node that has settled; the first ones come faster."""

LINKED = 2.0
"""Seconds after the start until the radio tells its links."""

AGAIN = 0.25
"""Seconds until a segment that was lost is sent again."""

HOP = 0.05, 0.2
"""Seconds of a handshake with TLS, for each hop."""

GIVES_UP = 4.0
"""Seconds until an attempt without an answer fails."""


class Figures(NamedTuple):
    """What a fleet did.

    :ivar made: connections that came up.
    :ivar twice: attempts that found another one of the same two nodes under way.
    :ivar dropped: connections that ended, as nobody used them.
    :ivar seen: seconds from the last start until every node saw every other one; None if never.
    :ivar whole: the same until every two nodes were connected.
    """

    made: int
    twice: int
    dropped: int
    seen: float | None
    whole: float | None


class _UnansweredError(Exception):
    code = "unreachable"


class Grown:
    """One node, with the interface that ``Topology`` and ``Membership`` use of it."""

    def __init__(self, fleet: Fleet, at: int) -> None:
        self.fleet = fleet
        self.at = at
        self.address = IPv6Address(BASE + 1 + fleet.order[at])
        self.name = f"thicket@{self.address}"
        self.roster = Roster(self.name, fleet.luck.uniform)
        self.membership = self  # the topology asks for node.membership.roster
        self.members = Membership("thicket", self, self.failed)
        self.topology = Topology(fleet.setting, self, self.members)  # type: ignore[arg-type]
        self.peers: dict[int, float] = {}
        self.dials: set[int] = set()
        self.timer: asyncio.TimerHandle | None = None

    def failed(self, _candidate: Candidate) -> None:
        self.fleet.failed += 1

    # --- what the topology wants

    def choose(self, chosen: Iterable[str], **how: Any) -> None:
        self.roster.choose(chosen, now=self.fleet.now, **how)
        self.step()

    # --- what the membership wants

    async def connect(self, peer: str, timeout: float = 0.0) -> None:
        fleet = self.fleet
        to = fleet.numbers[peer]
        other = fleet.nodes.get(to)
        if other is None or fleet.luck.random() < fleet.loss:
            await asyncio.sleep(GIVES_UP)
            raise _UnansweredError("no answer")
        fleet.twice += self.at in other.dials
        self.dials.add(to)
        try:
            await asyncio.sleep(fleet.slow * fleet.luck.uniform(*HOP) * fleet.hops[self.at][to])
        finally:
            self.dials.discard(to)
        if to not in self.peers:
            fleet.connect(self, other)

    async def probe(self, peer: str, seconds: float) -> bool:
        raise AssertionError("nobody is suspected here")

    def give_up(self, peer: str) -> None:
        raise AssertionError("nobody is given up here")

    def share_suspicion(self, peer: str) -> None:
        raise AssertionError("nobody is suspected here")

    # --- the roster

    def step(self) -> None:
        now = self.fleet.now
        actions = self.roster.step(now)
        while actions:
            for action in actions:
                if isinstance(action, Send):
                    self.fleet.send(self, self.fleet.numbers[action.peer], action.message)
            actions = self.roster.step(now)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        due = self.roster.due()
        if due < float("inf"):
            self.timer = self.fleet.loop.call_at(due, self.step)

    # --- the node's life

    async def run(self) -> None:
        tasks = [asyncio.create_task(one) for one in (self.members.run(), self.look(), self.rest())]
        try:
            fast = 4
            while True:
                self.fleet.beacon(self)
                pause = self.fleet.luck.uniform(1.0, 2.0) if fast else None
                fast -= fast > 0
                if pause is None:
                    pause = INTERVAL * self.fleet.luck.uniform(0.5, 1.5)
                await asyncio.sleep(pause)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def look(self) -> None:
        """As the radio watch does."""
        await asyncio.sleep(self.fleet.slow * LINKED)
        while True:
            fleet = self.fleet
            near = {fleet.nodes[o].address for o in fleet.graph[self.at] if o in fleet.nodes}
            self.topology.follow(near)
            await asyncio.sleep(1.0)

    async def rest(self) -> None:
        """End what nobody uses, as ``distribution.members`` does."""
        while True:
            await asyncio.sleep(members.LOOK)
            for to, since in list(self.peers.items()):
                other = self.fleet.nodes[to]
                idle = self.fleet.now - since >= members.IDLE
                if idle and self.unwanted(other) and other.unwanted(self):
                    self.fleet.end(self, other)

    def unwanted(self, other: Grown) -> bool:
        return not self.roster.wants(other.name) and self.roster.reaches(other.name)


class Fleet:
    """Nodes that are switched on one after the other.

    :param setting: ``[cluster] topology``.
    :param loss: share of beacons, attempts and messages that get lost.
    :param slow: how many times longer everything takes that a processor does.
    """

    def __init__(
        self,
        graph: Graph,
        luck: random.Random,
        *,
        loss: float = 0.0,
        slow: float = 1.0,
        setting: str = "auto",
    ) -> None:
        self.graph = graph
        self.luck = luck
        self.loss = loss
        self.slow = slow
        self.setting = setting
        self.loop = asyncio.get_running_loop()
        self.order = luck.sample(range(len(graph)), len(graph))
        self.hops = [self._hops(at) for at in range(len(graph))]
        self.nodes: dict[int, Grown] = {}
        self.numbers = {
            f"thicket@{IPv6Address(BASE + 1 + order)}": at for at, order in enumerate(self.order)
        }
        self.made = self.twice = self.dropped = self.failed = 0
        self.last = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._arrived: dict[tuple[int, int], float] = {}

    def _hops(self, start: int) -> list[int]:
        found = {start: 0}
        border = [start]
        for at in border:
            for other in sorted(self.graph[at] - found.keys()):
                found[other] = found[at] + 1
                border.append(other)
        return [found[at] for at in range(len(self.graph))]

    @property
    def now(self) -> float:
        return self.loop.time()

    async def switch_on(self, within: float) -> None:
        """Switch all on, one after the other; returns when the last one is."""
        starts = sorted(self.luck.uniform(0.0, within) for _ in self.graph)
        began = self.now
        for at, start in enumerate(starts):
            await asyncio.sleep(began + start - self.now)
            self.nodes[at] = node = Grown(self, at)
            self._tasks.append(asyncio.create_task(node.run()))
        self.last = self.now

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for node in self.nodes.values():
            if node.timer is not None:
                node.timer.cancel()

    # --- the air

    def beacon(self, node: Grown) -> None:
        for other in list(self.nodes.values()):
            if other is not node and self.luck.random() >= self.loss:
                self.loop.call_later(self.luck.uniform(0.0, 0.1), partial(self._hear, other, node))

    def _hear(self, node: Grown, sender: Grown) -> None:
        new = sender.address not in node.members.candidates
        node.members.heard(sender.address, new)
        if new and self.luck.random() >= self.loss:  # it is answered
            back = partial(self._answer, sender, node)
            self.loop.call_later(self.luck.uniform(0.0, 1.0), back)

    def _answer(self, node: Grown, sender: Grown) -> None:
        node.members.heard(sender.address, sender.address not in node.members.candidates)

    def send(self, node: Grown, to: int, message: Message) -> None:
        takes = 0.005 * self.hops[node.at][to] + AGAIN * (self.luck.random() < self.loss)
        arrives = max(self.now + takes, self._arrived.get((node.at, to), 0.0))  # in their order
        self._arrived[node.at, to] = arrives
        self.loop.call_at(arrives, partial(self._receive, node, to, message))

    def _receive(self, sender: Grown, to: int, message: Message) -> None:
        node = self.nodes[to]
        if sender.at in node.peers:
            node.roster.receive(sender.name, message, self.now)
            node.step()

    # --- connections

    def connect(self, one: Grown, other: Grown) -> None:
        self.made += 1
        for node, peer in ((one, other), (other, one)):
            node.peers[peer.at] = self.now
            node.roster.peer_up(peer.name, self.now, speaks=True)
            node.members.node_up(peer.name)
        one.step()
        other.step()

    def end(self, one: Grown, other: Grown) -> None:
        self.dropped += 1
        for node, peer in ((one, other), (other, one)):
            del node.peers[peer.at]
            node.roster.peer_down(peer.name, self.now)
            node.members.node_down(peer.name)
            node.step()

    # --- what is seen

    def seen(self) -> bool:
        """Return whether every node sees every other one."""
        most = len(self.graph) - 1
        return all(len(node.roster.members) == most for node in self.nodes.values())

    def whole(self) -> bool:
        """Return whether every two nodes are connected."""
        return all(len(node.peers) == len(self.graph) - 1 for node in self.nodes.values())

    def linked(self) -> int:
        """Return how many pairs of connected nodes the radio links."""
        return (
            sum(len(self.graph[node.at] & node.peers.keys()) for node in self.nodes.values()) // 2
        )


@contextmanager
def chance(luck: random.Random) -> Iterator[None]:
    """Let the product's own draws follow ``luck``."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (membership, topology):
            patch.setattr(module, "uniform", luck.uniform)
        yield


async def grow(
    graph: Graph,
    seed: int,
    *,
    within: float = 10.0,
    seconds: float = PATIENCE,
    **how: Any,
) -> tuple[Figures, Fleet]:
    """Switch a fleet on, and let it be for so many seconds after its last start.

    :param within: seconds from the first start to the last one.
    :param how: for :class:`Fleet`.
    """
    luck = random.Random(seed)
    with chance(luck):
        fleet = Fleet(graph, luck, **how)
        try:
            await fleet.switch_on(within)
            seen = whole = None
            while fleet.now < fleet.last + seconds:
                await asyncio.sleep(0.25)
                if seen is None and fleet.seen():
                    seen = fleet.now - fleet.last
                if whole is None and fleet.whole():
                    whole = fleet.now - fleet.last
            assert fleet.seen() == (seen is not None), "who was seen is seen"
            figures = Figures(fleet.made, fleet.twice, fleet.dropped, seen, whole)
            return figures, fleet
        finally:
            await fleet.stop()


def crowd(count: int) -> Graph:
    """Return a graph in which all hear all."""
    return [set(range(count)) - {at} for at in range(count)]


def main() -> None:
    from virtual_time import VirtualTimeLoop, one_clock

    print(
        "| nodes | links | loss | slow | on within s | made | twice | dropped | all seen | whole |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    with one_clock():
        for count in map(int, sys.argv[1:]):
            for kind, graph in (("grid", grid(count)), ("crowd", crowd(count))):
                for loss, slow, within in ((0.0, 1.0, 10.0), (0.1, 1.0, 10.0), (0.1, 10.0, 120.0)):
                    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
                        run = grow(graph, 1, within=within, loss=loss, slow=slow)
                        found, _ = runner.run(run)
                    times = ("-" if t is None else f"{t:.1f}" for t in found[3:])
                    print(
                        f"| {count} | {kind} | {loss} | {slow:g} | {within:g} | {found.made} "
                        f"| {found.twice} | {found.dropped} | {' | '.join(times)} |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
