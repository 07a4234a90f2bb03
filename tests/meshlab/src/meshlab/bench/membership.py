# SPDX-License-Identifier: Apache-2.0
"""``make bench-membership``: who is in the cluster, for fleets of up to 10,000 nodes, simulated.

The decisions are the node's own code (``thicket.distribution.roster``, ``thicket.cluster.overlay``)
in virtual time. What is around them is a model: a graph of radio links, times for connections,
messages and the detection of a silent neighbour as the node's constants give them. There is no air
that fills up, no TCP and no processor that is busy, so times are lower bounds on a mesh whose
channel is free, and bytes are counted, not sent.

Fleets of up to 200 form from nothing. A larger one begins formed: what all its nodes know in
common is kept once, and each node has what differs, because 10,000 tables of 10,000 nodes do not
fit into a computer.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from thicket.cluster import membership, overlay, radio_watch
from thicket.cluster.overlay import Facts, Overlay
from thicket.distribution import members, relay, roster
from thicket.distribution.connection import TICK_INTENSITY
from thicket.distribution.etf import decode_bare, encode_bare
from thicket.distribution.ledger import BUCKETS, Ledger, Record, bucket_of, mark_of
from thicket.distribution.members import pack
from thicket.distribution.roster import (
    Came,
    Message,
    Records,
    Roster,
    Says,
    Send,
    Sum,
    Sums,
    Versions,
    Want,
    Ways,
    Went,
    Wished,
)

#: Bytes around a message: length, TLS 1.3, TCP and IPv6; and the segment that acknowledges it.
AROUND = 4 + 22 + 72
ACKNOWLEDGEMENT = 72
#: Seconds that a message takes over one radio link, and a segment that was lost and is sent again.
HOP = (0.002, 0.008)
AGAIN = 0.25
#: Bytes of what is around a message to a registered name, and to a pid: header, control, pids.
TO_NAME = 83
TO_PID = 119
#: Seconds of a handshake with TLS between two neighbours.
HANDSHAKE = (0.1, 0.4)
#: A peer's beacon interval in seconds, and a mean look of the radio watch.
BEACON = 1.024
LOOK = 0.1
#: Seconds between two choices of a node, as in ``thicket.cluster.topology``; in a fleet that begins
#: formed they are rarer, as they seldom change anything.
CHOOSE = 1.0
CHOOSE_FORMED = 5.0
#: Larger fleets begin formed.
FORMS = 200


def size_of(message: Message) -> int:
    """Return the bytes of a message on the network, about: a test compares it with real ones."""
    match message:
        case Records(records):
            return AROUND + 90 + sum(27 + len(o) + len(t) + len(b) for o, t, _, b in records)
        case Versions(parts, versions):
            return AROUND + 90 + 2 * len(parts) + sum(16 + len(o) + len(t) for o, t in versions)
        case Want(keys):
            return AROUND + 90 + sum(12 + len(origin) + len(topic) for origin, topic in keys)
        case Sums():
            return AROUND + 90 + 11 * BUCKETS
        case Sum() | Wished():
            return AROUND + 100


# --- graphs -------------------------------------------------------------------------------------

Graph = list[set[int]]


def grid(count: int) -> Graph:
    """Return a grid in which every node hears those beside, above and below it."""
    width = math.isqrt(count)
    graph: Graph = [set() for _ in range(count)]
    for at in range(count):
        for other in (at + 1 if (at + 1) % width else -1, at + width):
            if 0 <= other < count:
                graph[at].add(other)
                graph[other].add(at)
    return graph


def geometric(count: int, luck: random.Random, degree: float = 12.0) -> Graph:
    """Return nodes at random places, which hear what is near, so ``degree`` others on average;
    parts that hear nobody of the rest are joined to it where they are nearest."""
    places = [(luck.random(), luck.random()) for _ in range(count)]
    reach = math.sqrt(degree / (math.pi * count))
    cells: dict[tuple[int, int], list[int]] = {}
    for at, (x, y) in enumerate(places):
        cells.setdefault((int(x / reach), int(y / reach)), []).append(at)
    graph: Graph = [set() for _ in range(count)]
    for at, (x, y) in enumerate(places):
        column, row = int(x / reach), int(y / reach)
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                for other in cells.get((column + dx, row + dy), ()):
                    if other > at and math.dist(places[at], places[other]) <= reach:
                        graph[at].add(other)
                        graph[other].add(at)
    while True:
        part = component(graph, 0)
        rest = set(range(count)) - part
        if not rest:
            return graph
        _, one, other = min(
            (math.dist(places[a], places[b]), a, b)
            for a in component(graph, min(rest))
            for b in part
        )
        graph[one].add(other)
        graph[other].add(one)


def component(graph: Graph, start: int) -> set[int]:
    """Return the nodes that a way leads to from ``start``."""
    found, border = {start}, [start]
    while border:
        for other in graph[border.pop()] - found:
            found.add(other)
            border.append(other)
    return found


# --- what all nodes of a formed fleet have in common --------------------------------------------


class Common:
    """The records of a formed fleet, once for all nodes."""

    def __init__(self, says: dict[str, Says]) -> None:
        self.says = says
        self.records = {
            (name, roster.LINKS): Record(name, roster.LINKS, 1, roster.body_of(links))
            for name, links in says.items()
        }
        self.names = frozenset(says)
        self.sums = [0] * BUCKETS
        self.total = 0
        for record in self.records.values():
            mark = mark_of(record)
            self.sums[bucket_of(record.origin)] ^= mark
            self.total ^= mark
        self.size = sum(len(record.body) for record in self.records.values())
        self.reached: dict[int, list[frozenset[str]]] = {}


class Layered(dict[Any, Any]):
    """What differs, above what all have in common. Nothing common is ever removed here."""

    def __init__(self, base: dict[Any, Any]) -> None:
        super().__init__()
        self.base = base

    def __missing__(self, key: Any) -> Any:
        return self.base[key]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.base

    def get(self, key: Any, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def __len__(self) -> int:
        return len(self.base) + sum(key not in self.base for key in self.keys())

    def pop(self, key: Any, default: Any = None) -> Any:
        raise AssertionError("a formed fleet forgets nobody while it is watched")


class LayeredSet:
    """A set as what differs from a common one."""

    def __init__(self, base: frozenset[str]) -> None:
        self.base = base
        self.more: set[str] = set()
        self.less: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name in self.more or (name in self.base and name not in self.less)

    def add(self, name: str) -> None:
        self.less.discard(name)
        if name not in self.base:
            self.more.add(name)

    def discard(self, name: str) -> None:
        self.more.discard(name)
        if name in self.base:
            self.less.add(name)

    def __iter__(self) -> Iterator[str]:
        yield from self.base - self.less
        yield from self.more

    def __len__(self) -> int:
        return len(self.base) - len(self.less) + len(self.more)

    def __sub__(self, other: Iterable[str]) -> set[str]:
        return set((self.base - self.less) | self.more) - frozenset(other)

    def __rsub__(self, other: Iterable[str]) -> set[str]:
        others = frozenset(other)
        return set((others - self.base - self.more) | (others & self.less))


class FormedLedger(Ledger):
    """A ledger above the common one."""

    def __init__(self, own: str, limit: int, common: Common, own_topics: set[str]) -> None:
        super().__init__(own, limit, roster.MOST_BYTES * 16)
        topics = own_topics
        self.records = Layered(common.records)
        self.topics = Layered(dict.fromkeys(()))
        self.topics.base = _Always(common.names, topics)
        self.total, self._sums, self.size = common.total, list(common.sums), common.size
        self._counted = LayeredSet(common.names)  # type: ignore[assignment]


class _Always(dict[Any, Any]):
    """Every node of the fleet has stated the same topics."""

    def __init__(self, names: frozenset[str], topics: set[str]) -> None:
        super().__init__()
        self.names = names
        self.topics = topics

    def __contains__(self, key: object) -> bool:
        return key in self.names

    def __getitem__(self, key: Any) -> Any:
        return self.topics

    def __len__(self) -> int:
        return len(self.names)


class FormedWays(Ways):
    """Ways above the common ones. Two nodes that know the same find the same ways, so these are
    looked for once."""

    def __init__(self, own: str, common: Common) -> None:
        super().__init__(own)
        self.common = common
        self.says = Layered(common.says)
        self.reached = common.names  # type: ignore[assignment]

    def look(self) -> tuple[set[str], set[str]]:
        before = self.reached
        mark = 0
        for name, says in self.says.items():
            if says != self.common.says.get(name):
                mark ^= hash((name, says.links))
        known = self.common.reached.setdefault(mark, [])
        for reached in known:
            if self.own in reached:
                break
        else:
            reached = frozenset(self._from_here(""))
            known.append(reached)
        if reached is before:
            return set(), set()
        self.reached = reached  # type: ignore[assignment]
        return set(reached - before), set(before - reached)


class FormedRoster(Roster):
    """A roster that begins formed."""

    def __init__(self, own: str, luck: random.Random, common: Common, limit: int) -> None:
        super().__init__(own, luck.uniform, limit=limit)
        self.ledger = FormedLedger(own, limit, common, {roster.LINKS})
        self._ways = FormedWays(own, common)
        self.members = LayeredSet(common.names)  # type: ignore[assignment]
        self.members.discard(own)
        self.active = True
        self._mine.keeps_all = False


# --- the simulation -----------------------------------------------------------------------------


class Node:
    """A simulated node.

    :ivar links: the nodes that its radio is linked with.
    :ivar connected: by number.
    """

    def __init__(self, name: str, made: Roster, luck: random.Random) -> None:
        self.name = name
        self.roster = made
        self.overlay = Overlay("auto", made.reaches, made.reaches_without, luck.uniform)
        self.connected: set[int] = set()
        self.connecting: set[int] = set()
        self.chosen: frozenset[str] = frozenset()
        self.alive = True
        self.planned = math.inf


class Seen(NamedTuple):
    """A node saw another one come or go."""

    at: float
    by: int
    name: str
    came: bool
    direct: bool


class Fleet:
    """Nodes on a graph, in virtual time.

    :param loss: share of the messages that take :data:`AGAIN` longer.
    :ivar sent: bytes by kind of message.
    :ivar seen: who saw whom come or go, while :attr:`watching`.
    """

    def __init__(self, graph: Graph, luck: random.Random, loss: float, *, formed: bool) -> None:
        self.graph = graph
        self.luck = luck
        self.loss = loss
        self.now = 0.0
        self.names = [
            f"thicket@fd12:3456:789a:1:0:{n >> 16:x}:e3c6:{n & 65535:x}" for n in range(len(graph))
        ]
        self.number = {name: at for at, name in enumerate(self.names)}
        self.cut: Callable[[int, int], bool] = lambda _one, _other: False
        self.sent: dict[str, int] = {}
        self.seen: list[Seen] = []
        self.watching = False
        self.nodes: list[Node] = []
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._choosing = CHOOSE_FORMED if formed else CHOOSE
        self._last: dict[tuple[int, int], float] = {}
        limit = max(roster.LIMIT, len(graph))
        if formed:
            self._begin_formed(limit)
        else:
            for at, name in enumerate(self.names):
                made = Roster(name, luck.uniform, limit=limit)
                self.nodes.append(Node(name, made, luck))
                self.after(luck.uniform(0.0, 10.0), partial(self._choose, at))

    def _begin_formed(self, limit: int) -> None:
        chosen: list[set[int]] = []
        for at in range(len(self.graph)):
            near = sorted(self.graph[at])
            chosen.append(set(self.luck.sample(near, min(len(near), overlay.FEW))))
        links: Graph = [set() for _ in self.graph]
        for at, others in enumerate(chosen):
            for other in others:
                links[at].add(other)
                links[other].add(at)
        reached = component(links, 0)
        for at in range(len(self.graph)):  # as nodes choose neighbours that no way leads to
            for other in self.graph[at]:
                if at in reached and other not in reached:
                    chosen[at].add(other)
                    links[at].add(other)
                    links[other].add(at)
                    reached |= component(links, other)
        for one in range(len(self.graph)):
            assert one in reached or component(links, one), "the graph has one part"
        says = {
            self.names[at]: Says(frozenset(self.names[o] for o in others), frozenset())
            for at, others in enumerate(links)
        }
        common = Common(says)
        for at, name in enumerate(self.names):
            made = FormedRoster(name, self.luck, common, limit)
            node = Node(name, made, self.luck)
            self.nodes.append(node)
            mine = frozenset(self.names[other] for other in chosen[at])
            node.chosen = mine
            made._mine.chosen = mine
            made._mine.stated[roster.LINKS] = 0.0
            for other in links[at]:
                node.connected.add(other)
                made.peer_up(self.names[other], 0.0, speaks=True)
                theirs = self.names[at] in {self.names[o] for o in chosen[other]}
                made.receive(self.names[other], Wished(roster.Wish(theirs, theirs)), 0.0)
            node.overlay._sparse = True
            node.overlay._chosen = dict.fromkeys(mine, 0.0)
            for peer in made._peers.values():
                peer.compare = self.luck.uniform(*roster.COMPARE)
            made._due.statements.clear()
            made._due.reckon = math.inf
            made._due.flush = math.inf
            made._due.compare = min(
                (peer.compare for peer in made._peers.values()), default=math.inf
            )
            for peer in made._peers.values():
                peer.owed.clear()
            made._out.clear()
            self.after(self.luck.uniform(0.0, self._choosing), partial(self._choose, at))
            self._plan(at)

    # --- time

    def after(self, seconds: float, then: Callable[[], None]) -> None:
        """Do something later."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, then))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Let time pass; return whether ``until``, asked again and again, held before the end."""
        end = self.now + seconds
        ask = self.now + 0.25
        while self._heap and self._heap[0][0] <= end:
            if until is not None and self._heap[0][0] >= ask:
                self.now = max(self.now, ask)
                ask += 0.25
                if until():
                    return True
                continue
            self.now, _, then = heapq.heappop(self._heap)
            then()
        self.now = end
        return until is not None and until()

    # --- one node

    def _plan(self, at: int) -> None:
        node = self.nodes[at]
        due = node.roster.due()
        if due < node.planned:
            node.planned = due
            self.after(max(0.0, due - self.now), lambda: self._wake(at, due))

    def _wake(self, at: int, due: float) -> None:
        node = self.nodes[at]
        if node.planned != due:
            return  # an earlier time came in between
        node.planned = math.inf
        self._step(at)

    def _step(self, at: int) -> None:
        node = self.nodes[at]
        if not node.alive:
            return
        for action in node.roster.step(self.now):
            match action:
                case Send(peer, message):
                    self._send(at, self.number[peer], message)
                case Came(name):
                    if self.watching:
                        self.seen.append(Seen(self.now, at, name, True, False))
                case Went(name, direct):
                    if self.watching:
                        self.seen.append(Seen(self.now, at, name, False, direct))
        self._plan(at)

    def _send(self, at: int, to: int, message: Message) -> None:
        kind = type(message).__name__
        self.sent[kind] = self.sent.get(kind, 0) + size_of(message) + ACKNOWLEDGEMENT
        takes = self.luck.uniform(*HOP)
        if self.luck.random() < self.loss:
            takes += AGAIN
        arrives = max(self.now + takes, self._last.get((at, to), 0.0))  # TCP keeps the order
        self._last[at, to] = arrives
        self.after(arrives - self.now, lambda: self._arrive(at, to, message))

    def _arrive(self, at: int, to: int, message: Message) -> None:
        node = self.nodes[to]
        if node.alive and at in node.connected and self._hears(at, to):
            node.roster.receive(self.names[at], message, self.now)
            self._step(to)

    def _hears(self, one: int, other: int) -> bool:
        return other in self.graph[one] and not self.cut(one, other)

    def _choose(self, at: int) -> None:
        """Choose again and again."""
        if self.nodes[at].alive:
            self._choose_now(at)
            self.after(self._choosing, lambda: self._choose(at))

    def _choose_now(self, at: int) -> None:
        """As ``thicket.cluster.topology`` does."""
        node = self.nodes[at]
        if not node.alive:
            return
        near = [o for o in self.graph[at] if self.nodes[o].alive and not self.cut(at, o)]
        facts = Facts(
            # beacons are heard in the whole mesh, sooner or later
            nodes=len(self.graph),
            neighbours=frozenset(self.names[other] for other in near),
        )
        choice = node.overlay.choose(facts, self.now)
        if choice.chosen != node.chosen or not node.roster.active:
            node.chosen = choice.chosen
            node.roster.choose(choice.chosen, keeps_all=not choice.sparse, now=self.now)
            self._step(at)
        for name in choice.chosen:
            other = self.number[name]
            if other not in node.connected and other not in node.connecting and other in near:
                node.connecting.add(other)
                patience = membership.PATIENCE if node.name < name else (0.0, 0.1)
                wait = self.luck.uniform(*patience) + self.luck.uniform(*HANDSHAKE)
                self.after(wait, partial(self._connect, at, other))

    def _connect(self, at: int, to: int) -> None:
        node, other = self.nodes[at], self.nodes[to]
        node.connecting.discard(to)
        if not (node.alive and other.alive and self._hears(at, to)) or to in node.connected:
            return
        for one, peer in ((at, to), (to, at)):
            self.nodes[one].connected.add(peer)
            self.nodes[one].roster.peer_up(self.names[peer], self.now, speaks=True)
            self._step(one)

    def _lose(self, at: int, to: int) -> None:
        """The connection ends, as ``at`` sees it."""
        node = self.nodes[at]
        if node.alive and to in node.connected:
            node.connected.discard(to)
            node.roster.peer_down(self.names[to], self.now)
            self._step(at)

    def _fall_silent(self, at: int, to: int) -> None:
        """``at`` hears no beacon of ``to`` any more: it asks, and gives up without an answer."""
        since = self.luck.uniform(0.0, BEACON)
        suspects = radio_watch.SILENT_BEACONS * BEACON - since + self.luck.uniform(0.0, 2 * LOOK)
        self.after(suspects + membership.PROBE, lambda: self._lose(at, to))
        silent = radio_watch.ALONE_BEACONS * BEACON - since + LOOK
        self.after(silent, lambda: self._choose_now(at))

    # --- what happens to the fleet

    def crash(self, at: int) -> None:
        """A node loses its power."""
        self.nodes[at].alive = False
        for other in self.graph[at]:
            self._fall_silent(other, at)

    def join(self, near: int) -> int:
        """Another node is switched on beside ``near`` and its neighbours; return its number."""
        at = len(self.nodes)
        others = {near, *list(self.graph[near])[:3]}
        self.graph.append(set(others))
        for other in others:
            self.graph[other].add(at)
        self.names.append(f"thicket@fd12:3456:789a:1:9:{at >> 16:x}:e3c6:{at & 65535:x}")
        self.number[self.names[at]] = at
        made = Roster(self.names[at], self.luck.uniform, limit=max(roster.LIMIT, len(self.graph)))
        self.nodes.append(Node(self.names[at], made, self.luck))
        self.after(0.0, lambda: self._choose(at))
        return at

    def part(self, some: set[int]) -> None:
        """No frame passes between ``some`` and the rest any more."""
        self.cut = lambda one, other: (one in some) != (other in some)
        for one in sorted(some):
            for other in self.graph[one] - some:
                self._fall_silent(one, other)
                self._fall_silent(other, one)

    def heal(self) -> None:
        """All frames pass again."""
        self.cut = lambda _one, _other: False

    # --- figures

    def degree(self) -> float:
        """Return the connections of a node, on average."""
        return sum(len(node.connected) for node in self.nodes) / len(self.nodes)

    def parts(self) -> list[int]:
        """Return the sizes of the parts that hear each other."""
        alive = {at for at, node in enumerate(self.nodes) if node.alive}
        graph = [
            {o for o in near if o in alive and not self.cut(at, o)} if at in alive else set()
            for at, near in enumerate(self.graph)
        ]
        found = []
        while alive:
            part = component(graph, min(alive))
            found.append(len(part))
            alive -= part
        return found

    def whole(self) -> bool:
        """Return whether every node knows of every other one."""
        alive = sum(node.alive for node in self.nodes)
        return all(len(node.roster.members) == alive - 1 for node in self.nodes if node.alive)


def percent(times: list[float], share: float) -> float:
    """Return the time until a share of all have seen something."""
    return (
        sorted(times)[min(len(times) - 1, math.ceil(share * len(times)) - 1)] if times else math.nan
    )


class Line(NamedTuple):
    """A figure."""

    what: str
    value: str


def bench(kind: str, count: int, seed: int, loss: float) -> Iterator[Line]:
    """Run one fleet through everything, and return its figures as they are found."""
    luck = random.Random(seed)
    graph = grid(count) if kind == "grid" else geometric(count, luck)
    formed = count > FORMS
    fleet = Fleet(graph, luck, loss, formed=formed)
    yield Line("radio links of a node", f"{sum(map(len, graph)) / count:.1f}")
    if formed:
        yield Line("forms", "begins formed")
    else:
        ok = fleet.run(600.0, fleet.whole)
        yield Line("forms (switched on within 10 s)", f"{fleet.now:.1f} s" if ok else "no")
        total = sum(fleet.sent.values())
        yield Line("sent by a node meanwhile", f"{total / count / 1024:.0f} KiB")
        fleet.run(120.0)
    yield Line("connections of a node", f"{fleet.degree():.1f}")

    fleet.sent.clear()
    fleet.watching = True
    began = fleet.now
    fleet.run(60.0)
    spoke = sum(fleet.sent.values()) / count / (fleet.now - began)
    ticks = fleet.degree() * TICK_INTENSITY / 15.0 * (AROUND + ACKNOWLEDGEMENT)
    yield Line("idle, roster", f"{spoke:.0f} B/s")
    yield Line("idle, ticks", f"{ticks:.0f} B/s")
    false = len(fleet.seen)
    by_links, directly = publishing(fleet)
    yield Line("a message to all, for each node on the way", f"{by_links:.0f} B")
    yield Line("the same by connections with all", f"{directly:.0f} B")

    lost = count // 2
    near = {other for other in graph[lost] if lost in fleet.nodes[other].connected}
    name = fleet.names[lost]
    fleet.seen.clear()
    fleet.sent.clear()
    began = fleet.now
    fleet.crash(lost)
    fleet.run(40.0)
    times = [s.at - began for s in fleet.seen if s.name == name and not s.came]
    by_near = [s.at - began for s in fleet.seen if s.name == name and not s.came and s.by in near]
    false += sum(s.name != name for s in fleet.seen)
    known = len({s.by for s in fleet.seen if s.name == name})
    yield Line("a loss is known by the last neighbour", f"{percent(by_near, 1):.1f} s")
    yield Line("by half of all, by all", f"{percent(times, 0.5):.1f}, {percent(times, 1):.1f} s")
    yield Line("sent by a node for it", f"{sum(fleet.sent.values()) / count:.0f} B")
    yield Line("nodes that never learnt it", str(count - 1 - known))

    fleet.seen.clear()
    began = fleet.now
    at = fleet.join(0)
    fleet.run(40.0)
    name = fleet.names[at]
    times = [s.at - began for s in fleet.seen if s.name == name and s.came]
    own = [s.at - began for s in fleet.seen if s.by == at]
    false += sum(not s.came for s in fleet.seen)
    yield Line("a newcomer is known by all", f"{percent(times, 1):.1f} s")
    yield Line("and knows all", f"{percent(own, 1):.1f} s, {len(own)} nodes")

    width = math.isqrt(count)
    half = (
        {n for n in range(count) if n % width < width // 2}
        if not formed and kind == "grid"
        else corner(graph, 100 if formed else count // 3)
    )
    half.add(at)  # the newcomer is beside the first node, which is among them
    fleet.seen.clear()
    began = fleet.now
    fleet.part(half)
    fleet.run(40.0)
    gone = [s.at - began for s in fleet.seen if not s.came]
    inside = sum(fleet.nodes[n].alive for n in half)
    parts = fleet.parts()
    pairs = sum(parts) ** 2 - sum(part**2 for part in parts)
    yield Line(f"{inside} nodes are cut off: known by all", f"{percent(gone, 1):.1f} s")
    wrong = len(gone) - pairs
    fleet.seen.clear()
    began = fleet.now
    fleet.heal()
    ok = fleet.run(120.0, fleet.whole)
    yield Line("they are back: whole again", f"{fleet.now - began:.1f} s" if ok else "no")
    yield Line("false alarms, and losses not seen", f"{false + max(0, wrong)}, {max(0, -wrong)}")


def publishing(fleet: Fleet, body: int = 100, sample: int = 20) -> tuple[float, float]:
    """Return the bytes on the air for a message to a group that all nodes are members of, for each
    node: by the links, and by connections between every two nodes.

    :param body: bytes of the message.
    :param sample: senders that are looked at.
    """
    hops, sent, far = 0, 0, 0
    count = len(fleet.names)
    senders = random.Random(count).sample(range(count), min(sample, count))
    for at in senders:
        name = fleet.names[at]
        ways = fleet.nodes[at].roster.ways()
        cast = relay.Cast(name, 1, count, "pg", b"w\x03all", {}, bytes(body))
        sent += (cast.size + AROUND + ACKNOWLEDGEMENT + TO_NAME) * (len(ways) - 1)
        hops += sum(way.hops for way in ways.values())
        far += sum(distances(fleet.graph, at))
    sent += hops * relay.EACH_TARGET
    # Both name sender and receiver by pids.
    direct = far * (body + AROUND + ACKNOWLEDGEMENT + TO_PID)
    return sent / count / len(senders), direct / count / len(senders)


def distances(graph: Graph, start: int) -> Iterator[int]:
    """Return how many radio links are between a node and each other one."""
    found, border, far = {start}, [start], 0
    while border:
        far += 1
        border = [*{other for at in border for other in graph[at]} - found]
        found.update(border)
        yield from (far for _ in border)


def corner(graph: Graph, count: int) -> set[int]:
    """Return so many nodes that hear each other, about the first one."""
    found, order = {0}, [0]
    for at in order:
        for other in sorted(graph[at] - found):
            if len(found) < count:
                found.add(other)
                order.append(other)
    return found


def memory(count: int) -> float:
    """Return the bytes for each node in the tables of a node that knows so many, as it gets them:
    decoded from messages."""
    graph = grid(count)
    names = [f"thicket@fd12:3456:789a:1:0:{n >> 16:x}:e3c6:{n & 65535:x}" for n in range(count)]
    luck = random.Random(1)
    tracemalloc.start()
    made = Roster(names[0], luck.uniform, limit=count)
    made.peer_up(names[1], 0.0, speaks=True)
    made.choose([names[1]], keeps_all=False, now=0.0)
    roster.says.cache_clear()
    before = tracemalloc.get_traced_memory()[0]
    for at in range(count):
        body = roster.body_of(Says(frozenset(names[o] for o in graph[at]), frozenset()))
        packed = encode_bare(pack(Records([Record(names[at], roster.LINKS, 1, body)])), text=True)
        message = members.unpack(decode_bare(packed)[0])
        assert message is not None
        made.receive(names[1], message, 1.0)
    made.step(10.0)
    made.step(20.0)
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(made.members) == count - 1
    return taken / count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200, 1000, 10000])
    parser.add_argument(
        "--graphs", nargs="+", choices=("grid", "geometric"), default=["grid", "geometric"]
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loss", type=float, default=0.02)
    options = parser.parse_args()
    print("Share of the air for ticks among all nodes, 6 Mbit/s, 3 hops:")
    for nodes in (8, 12, 16, 20, 24, 50):
        print(f"  {nodes:3} nodes  {100 * overlay.tick_share(nodes, 3, 6e6):6.1f} %")
    for count in options.sizes:
        for kind in options.graphs:
            began = time.monotonic()
            print(f"\n{count} nodes, {kind}, seed {options.seed}:")
            for line in bench(kind, count, options.seed, options.loss):
                print(f"  {line.what:40} {line.value}", flush=True)
            took = time.monotonic() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"  (computed in {took:.0f} s, at most {peak:.0f} MiB)", flush=True)
        print(f"  tables of one node: {memory(count) * count / 1024:.0f} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
