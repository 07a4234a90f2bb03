# SPDX-License-Identifier: Apache-2.0
"""Nodes that fetch a patch from each other, in virtual time over air that they share.

Each node runs the product's decisions (``thicket.update.spread``); this stands in for connections
and air. A frame takes the air of everybody who hears its sender or receiver; one in ``LOSS`` frames
is lost and sent again.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable

from thicket.update import spread
from thicket.update.offer import CHUNK
from thicket.update.spread import Fetch, Offering, Peers, Serve, Teller, Way

LOSS = 0.1
FRAME = 1400
#: Seconds that a chunk takes at 54 Mbit/s on one hop, with overhead and without loss.
HOP = CHUNK * 8 / 54e6 * spread.OVERHEAD
#: As Linux has it: with what is sent again.
METRIC = round(8192 / 54 / (1 - LOSS))
SMALL = 0.002


class SimulatedNode:
    """One node.

    :ivar air: seconds of air that its sending took.
    :ivar got: how often each chunk came that was right.
    """

    def __init__(self, name: str, have: int, share: float) -> None:
        self.name = name
        self.have = have
        self.share = share
        self.up = False
        self.rubbish = False
        self.air = 0.0
        self.got: Counter[int] = Counter()
        self.wrong: Counter[str] = Counter()
        self.done: float | None = None
        self.peers = Peers()
        self.most_uploads = 0


class Running:
    """What a node has in memory from one start to the next."""

    def __init__(self, node: SimulatedNode, count: int, below: Callable[[int], int]) -> None:
        self.fetch = Fetch(count, node.have, Offering(node.peers), below)
        self.serve: Serve[int] = Serve(node.share)
        self.teller = Teller()
        self.unsent: Counter[str] = Counter()
        self.due: float | None = None


class Mesh:
    """Nodes and the air between them."""

    def __init__(self, count: int, *, share: float = 0.2, seed: int = 1, full: bool = True) -> None:
        self.count = count
        self.share = share
        self.full = full
        self.now = 0.0
        self.random = random.Random(seed)
        self.nodes: dict[str, SimulatedNode] = {}
        self.running: dict[str, Running] = {}
        self.links: set[frozenset[str]] = set()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._busy: dict[str, float] = {}
        #: How often two nodes have lost each other.
        self._lost: Counter[frozenset[str]] = Counter()

    # -- making

    def add(self, name: str, have: int = 0) -> SimulatedNode:
        node = self.nodes[name] = SimulatedNode(name, have, self.share)
        if have == self._all:
            node.done = 0.0
        return node

    def link(self, one: str, other: str) -> None:
        self.links.add(frozenset((one, other)))

    def grid(self, columns: int, rows: int) -> None:
        """Nodes that hear those beside, above and below them; the first one has everything."""
        for at in range(columns * rows):
            self.add(f"n{at}", self._all if at == 0 else 0)
            if at % columns:
                self.link(f"n{at}", f"n{at - 1}")
            if at >= columns:
                self.link(f"n{at}", f"n{at - columns}")

    @property
    def _all(self) -> int:
        return (1 << self.count) - 1

    # -- time

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, what))

    def run(self, until: Callable[[], bool], most: float = 36_000.0) -> float:
        """Let time pass until something holds; return the time."""
        while not until():
            assert self._events, "nothing happens any more"
            self.now, _, what = heapq.heappop(self._events)
            assert self.now < most, f"not within {most} s: {self.shown()}"
            what()
        return self.now

    def complete(self) -> bool:
        return all(node.done is not None for node in self.nodes.values() if not node.rubbish)

    def shown(self) -> str:
        return ", ".join(f"{n.name} {n.have.bit_count()}" for n in self.nodes.values())

    # -- life of nodes

    def start(self, name: str) -> None:
        node = self.nodes[name]
        node.up = True
        self.running[name] = Running(node, self.count, self.random.randrange)
        self.meet()

    def stop(self, name: str) -> None:
        self.nodes[name].up = False
        del self.running[name]
        for other in self.running.values():
            other.fetch.offering.bits.pop(name, None)
            other.serve.gone(name, self.now)
            other.teller.gone(name)
            other.unsent.pop(name, None)
        self.meet()

    def meet(self) -> None:
        """Those who can talk now tell each other what they have."""
        for name in self.running:
            ways = self.ways(name)
            one = self.running[name]
            for peer in list(one.fetch.offering.bits):
                if peer not in ways:
                    self._lost[frozenset((name, peer))] += 1
                    one.unsent.pop(peer, None)
                    del one.fetch.offering.bits[peer]
                    one.serve.gone(peer, self.now)
                    one.teller.gone(peer)
            one.teller.changed()
            self.wake(name)

    def part(self, side: set[str]) -> list[frozenset[str]]:
        """Nobody on one side hears anybody on the other."""
        cut = [link for link in self.links if len(link & side) == 1]
        self.links -= set(cut)
        self.meet()
        return cut

    def heal(self, cut: list[frozenset[str]]) -> None:
        self.links |= set(cut)
        self.meet()

    def ways(self, name: str) -> dict[str, Way]:
        found = {name: 0}
        edge = [name]
        while edge:
            following = []
            for at in edge:
                for link in self.links:
                    if at in link:
                        (other,) = link - {at}
                        if other not in found and self.nodes[other].up:
                            found[other] = found[at] + 1
                            following.append(other)
            edge = following
        return {
            peer: Way(hops, METRIC * hops)
            for peer, hops in found.items()
            if hops and (self.full or hops == 1)
        }

    # -- what nodes do

    def wake(self, name: str) -> None:
        running = self.running.get(name)
        if running is not None and running.due != self.now:
            running.due = self.now
            self.at(self.now, lambda: self._step(name, running))

    def _step(self, name: str, running: Running) -> None:
        if self.running.get(name) is not running:
            return
        running.due = None
        ways = self.ways(name)
        fetch, serve, teller = running.fetch, running.serve, running.teller
        if not self.nodes[name].rubbish:
            for ask in fetch.asks(self.now, ways):
                self.send(name, ask.peer, lambda a=ask: self._asked(name, a.peer, a.chunk))  # type: ignore[misc]
        sated = [p for p, bits in fetch.offering.bits.items() if bits == self._all]
        bits = self._all if self.nodes[name].rubbish else fetch.have
        for peer in teller.take(self.now, ways, sated) if bits else ():
            self.send(name, peer, lambda p=peer, b=bits: self._told(name, p, b))  # type: ignore[misc]
        while (item := serve.take(self.now, lambda p: running.unsent[p] >= 2)) is not None:
            self._upload(name, running, *item, way=ways.get(item[0]))
        times = [fetch.due(self.now), teller.due(ways, sated) if bits else None]
        pause = serve.pause(self.now)
        times.append(None if pause is None or not pause else self.now + pause)
        soonest = min((at for at in times if at is not None), default=None)
        if soonest is not None:
            self.at(max(soonest, self.now + 1e-6), lambda: self.wake(name))

    def send(self, sender: str, receiver: str, what: Callable[[], None]) -> None:
        """Deliver something small, if both are still what they were."""
        way = self.ways(sender).get(receiver)
        if way is None:
            return
        same = self._connection(sender, receiver)

        def deliver() -> None:
            if same():
                what()
                self.wake(receiver)

        self.at(self.now + SMALL * way.hops, deliver)

    def _connection(self, one: str, other: str) -> Callable[[], bool]:
        """Return what tells whether two nodes still have the connection of now."""
        pair = frozenset((one, other))
        ends, lost = (self.running[one], self.running[other]), self._lost[pair]
        return lambda: (
            (self.running.get(one), self.running.get(other)) == ends and self._lost[pair] == lost
        )

    def _told(self, sender: str, receiver: str, bits: int) -> None:
        self.running[receiver].fetch.offering.bits[sender] = bits

    def _asked(self, sender: str, receiver: str, chunk: int) -> None:
        running = self.running[receiver]
        way = self.ways(receiver).get(sender, Way())
        pause = running.serve.ask(sender, chunk, way.airtime(), self.now)
        node = self.nodes[receiver]
        node.most_uploads = max(node.most_uploads, len(running.serve))
        if pause is not None:

            def refuse() -> None:
                self.running[sender].fetch.refused(receiver, chunk, pause, self.now)

            self.send(receiver, sender, refuse)

    def _upload(
        self, sender: str, running: Running, receiver: str, chunk: int, way: Way | None
    ) -> None:
        if way is None:
            return
        running.serve.air.spend(way.airtime(), self.now)
        running.unsent[receiver] += 1
        same = self._connection(sender, receiver)
        self._hop(self._route(sender, receiver), sender, receiver, same, chunk)

    def _hop(
        self,
        route: list[str],
        sender: str,
        receiver: str,
        same: Callable[[], bool],
        chunk: int,
    ) -> None:
        """Carry a chunk over the first hop of what is left of its way."""
        if not same():
            return
        here, there = route[0], route[1]
        if frozenset((here, there)) not in self.links:
            return  # lost with the connection
        tries = sum(1 + self._again() for _ in range(CHUNK // FRAME + 1)) / (CHUNK // FRAME + 1)
        takes = HOP * tries
        heard = {here, there} | {n for link in self.links if link & {here, there} for n in link}
        begin = max([self.now, *(self._busy.get(n, 0.0) for n in heard)])
        for one in heard:
            self._busy[one] = begin + takes
        self.nodes[here].air += takes

        def arrived() -> None:
            if len(route) > 2:
                self._hop(route[1:], sender, receiver, same, chunk)
            elif same():
                self.running[sender].unsent[receiver] -= 1
                self._arrived(sender, receiver, chunk)
                self.wake(sender)

        self.at(begin + takes, arrived)

    def _again(self) -> int:
        again = 0
        while self.random.random() < LOSS:
            again += 1
        return again

    def _route(self, sender: str, receiver: str) -> list[str]:
        distance = {peer: way.hops for peer, way in self._all_ways(receiver).items()}
        distance[receiver] = 0
        route = [sender]
        while route[-1] != receiver:
            steps = [n for link in self.links if route[-1] in link for n in link - {route[-1]}]
            route.append(min(steps, key=lambda n: (distance.get(n, 99), n)))
        return route

    def _all_ways(self, name: str) -> dict[str, Way]:
        full, self.full = self.full, True
        found = self.ways(name)
        self.full = full
        return found

    def _arrived(self, sender: str, receiver: str, chunk: int) -> None:
        node, running = self.nodes[receiver], self.running[receiver]
        if self.nodes[sender].rubbish:
            node.wrong[sender] += 1
            running.fetch.wrong(sender, self.now)
        else:
            node.got[chunk] += 1
            if running.fetch.wants(chunk):
                running.fetch.kept(sender, chunk)
                node.have = running.fetch.have
                running.teller.changed()
                if running.fetch.complete and node.done is None:
                    node.done = self.now
        self.wake(receiver)
