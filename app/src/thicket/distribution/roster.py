# SPDX-License-Identifier: Apache-2.0
"""Which nodes are in the cluster when not every two of them are connected.

Some connections of a node are *links*: one of its two ends has chosen the other as a neighbour.
Each node states its links, and the nodes that keep no roster (of Erlang, for example) that it is
connected with. Everybody gets these statements (:mod:`.ledger`). A node is a member for this node
when a way of links leads to it, each stated by both of its ends, or when it is connected. So a node
is gone when all its neighbours have lost it, and all nodes behind a gap are gone together.

A node that this one has lost itself, and that no way leads to, is gone at once. For another one,
:data:`GRACE` seconds pass, in which a link that was replaced by another one does no harm.

:class:`Roster` is a state machine: facts and times go in, messages and events come out. It has no
clock and no sockets, and runs in the simulation (``meshlab.bench.membership``) as on a node.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

from thicket.base.pace import Bucket
from thicket.distribution.ledger import MAX_BODY, MAX_NAME, Found, Key, Ledger, Record
from thicket.distribution.relay import Way, by_way_of, mark_of

LIMIT = 4096
"""Limit of other nodes in the roster."""

MOST_BYTES = 16 * 1024 * 1024
"""Limit of the bytes of all statements."""

STRANGERS = 4
"""Nodes that nobody expects get one of so many places at most."""

MAX_LINKS = 256
"""Limit of links, and of nodes without a roster, that one node states."""

GRACE = 1.0
"""Seconds after which a node that no way leads to is gone."""

LATELY = 10.0
"""Seconds for which it counts that this node has lost another one itself."""

SOON = (0.02, 0.04)
"""Seconds until news is handed on, so that what comes together leaves together."""

CALM = 0.5
"""Seconds between two statements of this node on the same topic that tell of nothing urgent."""

RECKON = 0.1
RECKON_EACH = 0.0002
"""Seconds until news of links leads to a look at the ways, and as many more for each node: a look
takes time in proportion. When a connection has ended, the look follows at once."""

COMPARE = (20.0, 40.0)
"""Seconds between two comparisons with a neighbour."""

AFTERWARDS = (2.0, 4.0)
"""The same, after nodes have come into reach. Their statements are not handed on then, if they were
known before; and a neighbour that was compared with meanwhile may lack them."""

KEEP = 600.0
"""Seconds for which the statements of a node that is gone are kept."""

BATCH = 128
"""Limit of statements, and of keys, in one message."""

BATCH_BYTES = 128 * 1024

RATE = 50.0
BURST = 4.0 * LIMIT
"""Statements of one neighbour that are looked at, per second on average and at once. What is too
much is dropped, and comes again with the next comparison."""

COMPARISONS = (1.0, 16.0)
"""Comparisons that one neighbour gets an answer to, per second and at once."""

LINKS = ""
"""The topic of links."""

RELAYS = "!c"
"""Says among the links of a node that it hands on messages. Nodes before it take it for a link with
a node that does not exist."""


class Wish(NamedTuple):
    """What an end of a connection wants of it, the rest of the time that it stands.

    :ivar keeps: it is to stay, used or not.
    :ivar chose: the other end is a neighbour in the overlay.
    """

    keeps: bool
    chose: bool


class Wished(NamedTuple):
    """Message: what the sender wants of this connection."""

    wish: Wish


class Sum(NamedTuple):
    """Message: the sum of the sender's ledger."""

    total: int


class Sums(NamedTuple):
    """Message: the sums of all parts; sent when those of the ledgers differ."""

    sums: list[int]


class Versions(NamedTuple):
    """Message: what the sender has of some parts."""

    parts: list[int]
    versions: dict[Key, int]


class Want(NamedTuple):
    """Message: statements that the sender lacks."""

    keys: list[Key]


class Records(NamedTuple):
    """Message: statements."""

    records: list[Record]


Message = Wished | Sum | Sums | Versions | Want | Records


class Send(NamedTuple):
    """Action: send a message to a connected node."""

    peer: str
    message: Message


class Came(NamedTuple):
    """Event: a node is a member now."""

    name: str


class Went(NamedTuple):
    """Event: a node is none any more; ``direct`` when its connection ended just now."""

    name: str
    direct: bool


class Doubted(NamedTuple):
    """Event: ``by``, a neighbour of a node that is connected here as well, has lost it."""

    name: str
    by: str


class Stated(NamedTuple):
    """Event: a node has said something new about a topic that is not the roster's own."""

    record: Record


Action = Send | Came | Went | Doubted | Stated


class Says(NamedTuple):
    """What a node states as its links.

    :ivar links: the nodes that it is linked with.
    :ivar leaves: connected nodes that keep no roster.
    :ivar relays: it hands on messages to others (:mod:`.relay`).
    """

    links: frozenset[str]
    leaves: frozenset[str]
    relays: bool = True


NOTHING = Says(frozenset(), frozenset(), relays=False)


class _Peer:
    """A connected node."""

    __slots__ = (
        "compare", "comparisons", "leaf", "linked", "owed", "rate", "speaks", "theirs", "told",
    )  # fmt: skip

    def __init__(self, speaks: bool, leaf: bool) -> None:
        self.speaks = speaks
        self.leaf = leaf
        #: What the other end wants; until it says so it is taken for one that keeps all.
        self.theirs = Wish(True, False)
        #: What it was told that this end wants; None before the first time.
        self.told: Wish | None = None
        self.linked = False
        #: When it gets what is owed to it, and when its ledger is compared with ours.
        self.owed: dict[Key, None] = {}
        self.compare = float("inf")
        self.rate = Bucket(RATE, BURST)
        self.comparisons = Bucket(*COMPARISONS)


class Roster:
    """The roster of one node.

    :param own: this node's name.
    :param uniform: draws a number from a range, for jitter.
    :param expected: whether a node is known to exist in another way, such as by its beacon.
    :ivar members: the other nodes of the cluster.
    :ivar dropped: what was too much, too long or without a valid form, by reason.
    :ivar epoch: grows when the ways may have changed.
    :ivar active: it takes part. Until a neighbour speaks, or this node chooses some
        (:meth:`choose`), it is silent, and the connected nodes are the members.
    """

    def __init__(
        self,
        own: str,
        uniform: Callable[[float, float], float],
        *,
        limit: int = LIMIT,
        expected: Callable[[str], bool] = lambda _name: True,
    ) -> None:
        self.own = own
        self.ledger = Ledger(own, limit, MOST_BYTES)
        self.members: set[str] = set()
        self.dropped: Counter[str] = Counter()
        self.epoch = 0
        self.active = False
        self._ways = Ways(own)
        self._uniform = uniform
        self._expected = expected
        self._peers: dict[str, _Peer] = {}
        self._mine = Mine()
        self._out: list[Action] = []
        self._due = Due()

    # --- facts --------------------------------------------------------------------------------

    def peer_up(self, name: str, now: float, *, speaks: bool, hidden: bool = False) -> None:
        """A node is connected.

        :param speaks: it keeps a roster, too.
        :param hidden: nobody else is to learn of it.
        """
        peer = self._peers[name] = _Peer(speaks, leaf=not speaks and not hidden)
        if name not in self.members:
            self._come(name)
        if self.active:
            self._wish(name, peer)
            self._relink(now)

    def peer_down(self, name: str, now: float) -> None:
        """A connection has ended."""
        if self._peers.pop(name, None) is None:
            return
        self._due.suspense.pop(name, None)
        if self.active:
            self._mine.lost[name] = now
            for old in [old for old, at in self._mine.lost.items() if now - at > LATELY]:
                del self._mine.lost[old]
        self._relink(now)
        self._reckon(now, lost=name)

    def choose(
        self, chosen: Iterable[str], *, keeps_all: bool, now: float, partial: bool | None = None
    ) -> None:
        """This node's neighbours in the overlay are these from now on.

        :param keeps_all: the other connections are to stay as well.
        :param partial: this node is not to be connected with all; by default when it does not keep
            all.
        """
        chosen = frozenset(chosen)
        partial = not keeps_all if partial is None else partial
        if (chosen, keeps_all) == (self._mine.chosen, self._mine.keeps_all) and self.active:
            return
        self._mine.chosen, self._mine.keeps_all = chosen, keeps_all
        if not partial and not self.active:
            return  # all are connected with all, as far as this node knows
        self.active = False
        self._activate(now)

    def _activate(self, now: float) -> None:
        if self.active:
            return
        self.active = True
        for name, peer in self._peers.items():
            self._wish(name, peer)
        self._relink(now)

    def state(self, topic: str, body: bytes, now: float) -> None:
        """Let all nodes know something of this one; ``topic`` is not :data:`LINKS`.

        What is too long is not told, and counted.
        """
        if len(body) > MAX_BODY:
            self.dropped["own"] += 1
            return
        self._mine.states[topic] = body
        self._due.statements.setdefault(topic, now + self._calm(topic, now))

    # --- questions ----------------------------------------------------------------------------

    def reaches(self, name: str) -> bool:
        """Return whether a way of links leads to a node; it need not be connected."""
        return name in self._ways.reached

    def reaches_without(self, name: str) -> bool:
        """Return whether there is a way to a neighbour besides the link with it."""
        return self._ways.leads(name, without=name)

    def wants(self, name: str) -> bool:
        """Return whether an end of the connection with a node wants it to stay."""
        peer = self._peers.get(name)
        if peer is None or not peer.speaks or not self.active:
            return True
        return self._mine.keeps_all or name in self._mine.chosen or peer.theirs.keeps

    @property
    def links(self) -> list[str]:
        """The connected neighbours in the overlay."""
        return sorted(name for name, peer in self._peers.items() if peer.linked)

    def ways(self) -> dict[bytes, Way]:
        """Return the shortest ways over nodes that hand on messages, by the mark of the node that
        each leads to. The way to one without a roster ends at a node that is connected with it; it
        has the mark of both (:func:`.relay.by_way_of`)."""
        return self._ways.to_all(self.epoch)

    def bodies(self, topic: str) -> dict[str, bytes]:
        """Return what the other members that a way leads to say about a topic."""
        return {
            origin: record.body
            for origin in self._ways.reached
            if origin != self.own
            and (record := self.ledger.records.get((origin, topic))) is not None
        }

    def leaves_of(self, origin: str) -> frozenset[str]:
        """Return the nodes without a roster that a node is connected with, as it says."""
        return self._ways.says.get(origin, NOTHING).leaves

    # --- messages -----------------------------------------------------------------------------

    def receive(self, name: str, message: Message, now: float) -> None:
        """A connected node has sent a message."""
        peer = self._peers.get(name)
        if peer is None or not peer.speaks:
            self.dropped["stranger"] += 1
            return
        self._activate(now)
        match message:
            case Wished(wish):
                if wish != peer.theirs:
                    peer.theirs = wish
                    self._relink(now)
            case Records(records):
                for record in records:
                    if peer.rate.take(now):
                        self._take(name, peer, record, now)
                    else:
                        self.dropped["rate"] += 1
            case _ if not peer.comparisons.take(now):
                self.dropped["comparisons"] += 1
            case Sum(total):
                if total != self.ledger.total:
                    self._send(name, Sums(self.ledger.sums()))
                elif peer.linked:
                    peer.compare = now + self._uniform(*COMPARE)  # this was one
            case Sums(sums):
                parts = self.ledger.differing(sums)
                if parts:
                    self._send(name, Versions(parts, self.ledger.versions(parts)))
            case Versions(parts, versions):
                lacking, wanted = self.ledger.compare(parts, versions)
                self._owe(peer, lacking, now)
                for at in range(0, len(wanted), 8 * BATCH):
                    self._send(name, Want(wanted[at : at + 8 * BATCH]))
            case Want(keys):
                self._owe(peer, [key for key in keys if key in self.ledger.records], now)

    def _take(self, name: str, peer: _Peer, record: Record, now: float) -> None:
        key = record.origin, record.topic
        if record.topic == LINKS and record.origin != self.own and says(record.body) is None:
            self.dropped["form"] += 1
            return
        if record.origin not in self.ledger.topics and not self._has_place(record.origin):
            self.dropped["full"] += 1
            return
        found = self.ledger.take(record)
        if found is Found.NEWS:
            self._on_news(name, record, now)
        elif found is Found.KNOWN:
            peer.owed.pop(key, None)
        elif found is Found.OLD and record.origin == name:
            self._owe(peer, [key], now)  # it has begun anew, and learns where to go on
        elif found is Found.OURS:
            made = self.ledger.overtake(record)
            if made is not None:
                self._spread(made, now)
        elif found is Found.REFUSED:
            self.dropped["refused"] += 1

    def _has_place(self, origin: str) -> bool:
        """Return whether a new node may be kept; those that are gone give way to it."""
        ledger = self.ledger
        if len(ledger.topics) > ledger.limit:
            for gone in [one for one in ledger.topics if not self._counts(one)]:
                self._forget(gone)
        if len(ledger.topics) > ledger.limit:
            return False
        if len(ledger.topics) <= ledger.limit // STRANGERS:
            return True
        return self._expected(origin)

    def _counts(self, origin: str) -> bool:
        return origin == self.own or origin in self._ways.reached

    def _on_news(self, name: str, record: Record, now: float) -> None:
        origin = record.origin
        if record.topic == LINKS:
            before = self._ways.says.get(origin, NOTHING)
            after = says(record.body) or NOTHING
            self._ways.says[origin] = after
            for lost in before.links - after.links | before.leaves - after.leaves:
                if lost in self._peers:
                    self._out.append(Doubted(lost, origin))
            if not self._ways.is_settled(origin, before, after):
                pause = RECKON + RECKON_EACH * len(self._ways.says)
                self._due.reckon = min(self._due.reckon, now + pause)
        else:
            self._out.append(Stated(record))
        if not self._counts(origin):
            self._due.forget.setdefault(origin, now + KEEP)
        self._spread(record, now, but=name)

    # --- handing on ---------------------------------------------------------------------------

    def _spread(self, record: Record, now: float, but: str = "") -> None:
        key = record.origin, record.topic
        for name, peer in self._peers.items():
            if peer.linked and name != but:
                self._owe(peer, (key,), now)

    def _owe(self, peer: _Peer, keys: Iterable[Key], now: float) -> None:
        peer.owed.update(dict.fromkeys(keys))
        if peer.owed and self._due.flush > now + SOON[1]:
            self._due.flush = now + self._uniform(*SOON)

    def _flush(self, now: float) -> None:
        self._due.flush = float("inf")
        for name, peer in self._peers.items():
            batch: list[Record] = []
            size = 0
            while peer.owed and len(batch) < BATCH and size < BATCH_BYTES:
                record = self.ledger.records.get(key := next(iter(peer.owed)))
                del peer.owed[key]
                if record is not None:
                    batch.append(record)
                    size += len(record.body)
            if batch:
                self._send(name, Records(batch))
            if peer.owed:
                self._due.flush = min(self._due.flush, now + self._uniform(*SOON))

    def _send(self, name: str, message: Message) -> None:
        self._out.append(Send(name, message))

    def _wish(self, name: str, peer: _Peer) -> None:
        chose = name in self._mine.chosen
        wish = Wish(chose or self._mine.keeps_all, chose)
        if peer.speaks and wish != peer.told:
            peer.told = wish
            self._send(name, Wished(wish))

    # --- links --------------------------------------------------------------------------------

    def _relink(self, now: float) -> None:
        """Find out which connections are links, and state it."""
        if not self.active:
            return
        for name, peer in self._peers.items():
            linked = peer.speaks and (name in self._mine.chosen or peer.theirs.chose)
            if linked and not peer.linked:
                # one of the two begins at once
                peer.compare = now if name < self.own else now + self._uniform(*COMPARE)
                self._due.compare = min(self._due.compare, peer.compare)
            elif not linked:
                peer.compare = float("inf")
            peer.linked = linked
        mine = Says(
            frozenset(name for name, peer in self._peers.items() if peer.linked),
            frozenset(name for name, peer in self._peers.items() if peer.leaf),
        )
        before, self._ways.says[self.own] = self._ways.says.get(self.own, NOTHING), mine
        if mine[:2] != before[:2]:
            lost = before.links - mine.links or before.leaves - mine.leaves
            at = now if lost else now + self._calm(LINKS, now)
            self._due.statements[LINKS] = min(at, self._due.statements.get(LINKS, at))
            self._due.reckon = min(self._due.reckon, now)

    def _calm(self, topic: str, now: float) -> float:
        """Return the seconds to wait before the next statement about a topic."""
        return max(0.0, self._mine.stated.get(topic, float("-inf")) + CALM - now)

    def _say(self, topic: str, now: float) -> None:
        del self._due.statements[topic]
        self._mine.stated[topic] = now
        if topic == LINKS:
            body = body_of(self._ways.says.get(self.own, NOTHING))
        else:
            body = self._mine.states[topic]
        try:
            made = self.ledger.state(topic, body)
        except ValueError:
            self.dropped["own"] += 1
            return
        if made is not None:
            self._spread(made, now)

    # --- members ------------------------------------------------------------------------------

    def _come(self, name: str) -> None:
        self.members.add(name)
        self._out.append(Came(name))

    def _reckon(self, now: float, lost: str = "") -> None:
        """Look at the ways, and find out who is a member.

        :param lost: the node whose connection has ended just now.
        """
        due = self._due
        due.reckon = float("inf")
        if self.active:
            come, gone = self._ways.look()
            self.epoch += 1
            self.ledger.count(come, gone)
            for origin in gone:
                due.forget.setdefault(origin, now + KEEP)
                if origin in self._peers:
                    self._out.append(Doubted(origin, self.own))
            for origin in come:
                due.forget.pop(origin, None)
            if come:
                self._compare_soon(now)
        present = self._ways.reached | self._ways.leaves | self._peers.keys()
        for name in present - self.members - {self.own}:
            self._come(name)
        for name in self.members - present:
            if name == lost or now - self._mine.lost.get(name, float("-inf")) <= LATELY:
                self.members.discard(name)
                self._out.append(Went(name, direct=name == lost))
            else:
                due.suspense.setdefault(name, now + GRACE)
        for name in [name for name in due.suspense if name in present or name not in self.members]:
            del due.suspense[name]

    def _compare_soon(self, now: float) -> None:
        for peer in self._peers.values():
            if peer.linked:
                peer.compare = min(peer.compare, now + self._uniform(*AFTERWARDS))
                self._due.compare = min(self._due.compare, peer.compare)

    def _end_suspense(self, now: float) -> None:
        suspense = self._due.suspense
        while _first(suspense) <= now:
            name = next(iter(suspense))
            del suspense[name]
            self.members.discard(name)
            self._out.append(Went(name, direct=False))

    def _forget(self, origin: str) -> None:
        self.ledger.forget(origin)
        self._ways.says.pop(origin, None)
        self._due.forget.pop(origin, None)

    # --- time ---------------------------------------------------------------------------------

    def due(self) -> float:
        """Return when :meth:`step` has something to do."""
        due = self._due
        return min(
            due.flush,
            due.reckon,
            due.compare,
            min(due.statements.values(), default=float("inf")),
            _first(due.suspense),
            _first(due.forget),
        )

    def step(self, now: float) -> list[Action]:
        """Do what is due, and return what is to be done and what has happened."""
        due = self._due
        for topic in [topic for topic, at in due.statements.items() if at <= now]:
            self._say(topic, now)
        if due.reckon <= now:
            self._reckon(now)
        if _first(due.suspense) <= now:
            self._end_suspense(now)
        if due.compare <= now:
            due.compare = float("inf")
            for name, peer in self._peers.items():
                if peer.compare <= now:
                    self._send(name, Sum(self.ledger.total))
                    peer.compare = now + self._uniform(*COMPARE)
                due.compare = min(due.compare, peer.compare)
        if due.flush <= now:
            self._flush(now)
        while _first(due.forget) <= now:
            self._forget(next(iter(due.forget)))
        out, self._out = self._out, []
        return out


class Mine:
    """What this node wants and says.

    :ivar chosen: its neighbours in the overlay.
    :ivar keeps_all: it keeps its other connections as well.
    :ivar lost: when a connection ended.
    :ivar states: what it says, by topic.
    :ivar stated: when it said something about a topic last.
    """

    __slots__ = ("chosen", "keeps_all", "lost", "stated", "states")

    def __init__(self) -> None:
        self.chosen: frozenset[str] = frozenset()
        self.keeps_all = True
        self.lost: dict[str, float] = {}
        self.states: dict[str, bytes] = {}
        self.stated: dict[str, float] = {}


class Due:
    """When something is due.

    :ivar flush: neighbours get what is owed to them.
    :ivar reckon: the ways are looked at.
    :ivar compare: a ledger is compared.
    :ivar statements: this node states something about a topic.
    :ivar suspense: a node that nobody reaches is gone; the first one first.
    :ivar forget: the statements of a node that is gone are dropped; the first one first.
    """

    __slots__ = ("compare", "flush", "forget", "reckon", "statements", "suspense")

    def __init__(self) -> None:
        self.flush = self.reckon = self.compare = float("inf")
        self.statements: dict[str, float] = {}
        self.suspense: dict[str, float] = {}
        self.forget: dict[str, float] = {}


def _first(times: dict[str, float]) -> float:
    """Return the first of times that are in their order."""
    return next(iter(times.values()), float("inf"))


class Ways:
    """The graph of links.

    :ivar says: what each node states.
    :ivar reached: the nodes that a way leads to from this one, which is among them.
    :ivar leaves: the nodes without a roster that one of those is connected with.
    """

    def __init__(self, own: str) -> None:
        self.own = own
        self.says: dict[str, Says] = {}
        self.reached: set[str] = {own}
        self.leaves: set[str] = set()
        self._to_all: tuple[int, dict[bytes, Way]] = -1, {}

    def look(self) -> tuple[set[str], set[str]]:
        """Find the ways anew; return the nodes that are reached now and were not, and the
        reverse."""
        before = self.reached
        self.reached = self._from_here("")
        self.leaves = set()
        for name in self.reached:
            self.leaves |= self.says.get(name, NOTHING).leaves
        self.leaves -= self.reached
        return self.reached - before, before - self.reached

    def is_settled(self, origin: str, before: Says, after: Says) -> bool:
        """Return whether another statement of a node cannot change who is reached."""
        if before[1:] != after[1:] or not before.links <= after.links:
            return False
        return origin in self.reached and all(name in self.reached for name in after.links)

    def leads(self, name: str, without: str = "") -> bool:
        """Return whether a way leads to a node.

        :param without: a neighbour whose link does not count.
        """
        return name in self._from_here(without)

    def to_all(self, epoch: int) -> dict[bytes, Way]:
        """Return the ways of :meth:`.Roster.ways`.

        :param epoch: the ways are looked for once in each.
        """
        if self._to_all[0] == epoch:
            return self._to_all[1]
        says, own = self.says, self.own
        found = {own: Way(own, own, 0)}
        border = [own]
        while border:
            further = []
            for name in border:
                _, _, hops = way = found[name]
                for other in sorted(says.get(name, NOTHING).links):
                    theirs = says.get(other, NOTHING)
                    if other not in found and theirs.relays and name in theirs.links:
                        found[other] = Way(other if name == own else way.hop, other, hops + 1)
                        further.append(other)
            border = further
        for name, way in list(found.items()):
            for leaf in says.get(name, NOTHING).leaves:
                found[by_way_of(name, leaf)] = way._replace(node=leaf)
        self._to_all = epoch, {mark_of(name): way for name, way in found.items()}
        return self._to_all[1]

    def _from_here(self, without: str) -> set[str]:
        says, own = self.says, self.own
        found = {own}
        border = [own]
        while border:
            name = border.pop()
            for other in says.get(name, NOTHING).links:
                if other in found or name not in says.get(other, NOTHING).links:
                    continue
                if without and {name, other} == {own, without}:
                    continue
                found.add(other)
                border.append(other)
        return found


@lru_cache(maxsize=LIMIT)
def says(body: bytes) -> Says | None:
    """Return the links in a statement; None when it has no valid form."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    names = text.split("\n") if text else []
    leaves = [name[1:] for name in names if name.startswith("*")]
    links = [name for name in names if not name.startswith(("*", "!"))]
    if len(names) > 2 * MAX_LINKS + 1 or any(
        not 0 < len(name) <= MAX_NAME for name in links + leaves
    ):
        return None
    return Says(frozenset(links), frozenset(leaves), RELAYS in names)


def body_of(links: Says) -> bytes:
    """Return the statement of a node about its links."""
    names = sorted(links.links)[:MAX_LINKS]
    names += [f"*{name}" for name in sorted(links.leaves)[:MAX_LINKS]]
    if links.relays:
        names.append(RELAYS)
    return "\n".join(names).encode()
