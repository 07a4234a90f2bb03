# SPDX-License-Identifier: Apache-2.0
"""Messages that go over the links of the overlay, to many nodes at once.

A *cast* names the nodes that it is for, its targets. Each node on the way takes itself out, splits
the rest by the neighbour that leads there (:meth:`.Roster.ways`), and hands each part on. So a cast
crosses a link once, however many targets lie behind it, and nobody gets it twice.

* **Order**: the sender numbers what it sends to each target. A target that misses a number keeps
  later ones back for :data:`HOLD` seconds, then counts it as lost.
* **Loss**: a node keeps a copy until the neighbour says that it has taken it. When their connection
  ends, the copy goes another way. What no way leads to, or nobody takes, for :data:`PATIENCE`
  seconds is dropped and counted. So only a node that ends takes with it what it has taken.
* **Longer messages** than :data:`MAX_BODY` are numbered in the same way, but go to their target by
  a connection of its own, and are not handed on.
* **Back-pressure**: a neighbour has at most :data:`WINDOW` casts, or :data:`WINDOW_BYTES`, that it
  has not taken, and takes no more than it can hand on itself. The sender waits for room. As nodes
  in a ring could all wait for each other, a node also takes what has waited for :data:`SLACK`
  seconds, while it keeps little.
* **Bounds**: what one neighbour sends is handed on at :data:`RATE` bytes a second at most, counted
  for each neighbour that it goes to, and over so many hops as its targets are away.

:class:`Relay` is a state machine, as :class:`~thicket.distribution.roster.Roster` is: it has no
clock and no sockets.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from thicket.distribution.etf import Atom

MAX_BODY = 64 * 1024
"""Longest message that is handed on, in bytes of its encoding."""

MAX_TARGETS = 4096
"""Limit of targets of a cast."""

MAX_HOPS = 8192

MAX_WORD = 1024
"""Longest name of a scope or of a group, in bytes."""

WINDOW = 32
WINDOW_BYTES = 64 * 1024
"""Casts, and their bytes, that a neighbour may have without having taken them."""

RATE = 128 * 1024
BURST = 256 * 1024
"""Bytes that are handed on for one neighbour, per second on average and at once."""

HOLD = 3.0
"""Seconds for which a target waits for a cast that later ones have overtaken."""

PATIENCE = 10.0
"""Seconds for which a node keeps a cast that it cannot hand on."""

AGAIN = 1.0
"""Seconds between two attempts with casts that no way leads to, unless the ways change."""

TELL = 0.5
"""Seconds until a neighbour learns what was taken, unless it waits for that."""

SLACK = 0.25
"""Seconds after which a cast is taken that could not be handed on yet."""

KEPT_BYTES = 1024 * 1024
"""Limit of the bytes of casts that no way leads to, of those that are kept back, and of those that
are taken while they wait."""

MAX_STREAMS = 8192
"""Limit of the pairs of sender and target whose numbers are remembered."""

KEPT_BACK = 256
"""Limit of casts that are kept back for one pair."""

MAX_NUMBER = 2**32 - 1

SPARE = 16
"""Hops that a cast may take besides twice its way."""

DROPS = ("form", "full", "hops", "long", "no-way", "stuck", "window")
"""Why casts are dropped: without a valid form; more than is kept; more hops than the way has; long
and not for the connected node; no way; a neighbour that takes nothing; a neighbour that sends more
than it was asked for."""

_AROUND = 64

EACH_TARGET = 12
"""Bytes of a target of a cast."""

_CAST, _TAKEN = Atom("cast"), Atom("taken")


class Cast(NamedTuple):
    """Message: something for the members of a group on some nodes.

    :ivar origin: the sender.
    :ivar run: of its numbers: they begin with 1 in each.
    :ivar hops: how many it may still take.
    :ivar group: the encoded name.
    :ivar targets: the marks of the nodes, and the number of the cast for each.
    :ivar body: the encoded message.
    """

    origin: str
    run: int
    hops: int
    scope: str
    group: bytes
    targets: dict[bytes, int]
    body: bytes

    @property
    def size(self) -> int:
        """Bytes, about."""
        words = len(self.origin.encode()) + len(self.scope.encode()) + len(self.group)
        return _AROUND + words + len(self.body) + EACH_TARGET * len(self.targets)


class Taken(NamedTuple):
    """Message: so many more casts of the receiver were taken."""

    casts: int


class Pass(NamedTuple):
    """Action: send a message to a connected node."""

    peer: str
    message: Cast | Taken


class Deliver(NamedTuple):
    """Action: give a cast to the members on this node, or on a connected one without a roster."""

    node: str
    cast: Cast


class Way(NamedTuple):
    """The way to a node.

    :ivar hop: the neighbour that it begins with; this node where it ends here.
    :ivar node: the node's key.
    :ivar hops: its length.
    """

    hop: str
    node: str
    hops: int


@lru_cache(maxsize=8192)
def mark_of(name: str) -> bytes:
    """Return the eight bytes that stand for a node's key in casts."""
    from hashlib import blake2b  # loading OpenSSL is slow, and a small fleet does not need it

    return blake2b(name.encode(), digest_size=8).digest()


def by_way_of(node: str, leaf: str) -> str:
    """Return what stands for a node without a roster that ``node`` sends something to."""
    return f"{node} {leaf}"


def pack(message: Cast | Taken) -> tuple[Any, ...]:
    """Return a message as a term."""
    if isinstance(message, Taken):
        return _TAKEN, message.casts
    origin, run, hops, scope, group, targets, body = message
    packed = b"".join(mark + number.to_bytes(4, "big") for mark, number in targets.items())
    return _CAST, origin.encode(), run, hops, scope.encode(), group, packed, body


def unpack(term: Any) -> Cast | Taken | None:
    """Return the message that a term is; None if it is none."""
    match term:
        case ("taken", int() as count) if type(count) is int and 0 < count <= 2 * WINDOW:
            return Taken(count)
        case ("cast", bytes() as origin, int() as run, int() as hops, *rest) if (
            0 < len(origin) <= MAX_WORD and 0 <= run < 2**32 and 0 <= hops <= MAX_HOPS
        ):
            match rest:
                case [bytes() as scope, bytes() as group, bytes() as targets, bytes() as body]:
                    return _cast(Cast("", run, hops, "", group, {}, body), origin, scope, targets)
    return None


def _cast(cast: Cast, origin: bytes, scope: bytes, packed: bytes) -> Cast | None:
    if max(len(scope), len(cast.group)) > MAX_WORD or len(packed) % EACH_TARGET:
        return None
    if not 0 < len(packed) <= MAX_TARGETS * EACH_TARGET:
        return None
    targets = {
        packed[at : at + 8]: int.from_bytes(packed[at + 8 : at + EACH_TARGET], "big")
        for at in range(0, len(packed), EACH_TARGET)
    }
    try:
        return cast._replace(origin=origin.decode(), scope=scope.decode(), targets=targets)
    except UnicodeDecodeError:
        return None


class _Link:
    """A connected node.

    :ivar waiting: copies for which it has no room.
    :ivar sent: copies that it has not taken.
    :ivar size: bytes of these.
    :ivar held: casts that came from it and are not taken here.
    :ivar free: when what was handed on for it lies within the rate.
    :ivar taken: casts that it is still to hear of.
    :ivar tell: when it hears of them.
    """

    __slots__ = ("free", "held", "sent", "size", "taken", "tell", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Copy] = deque()
        self.sent: deque[_Copy] = deque()
        self.size = 0
        self.held = 0
        self.free = 0.0
        self.taken = 0
        self.tell = float("inf")

    @property
    def has_room(self) -> bool:
        return not self.sent or (len(self.sent) < WINDOW and self.size < WINDOW_BYTES)


class _Credit:
    """A cast of a neighbour, of which some copies are not handed on yet.

    :ivar size: bytes that are handed on for it.
    :ivar since: when it came.
    """

    __slots__ = ("left", "link", "long", "since", "size")

    def __init__(self, link: _Link, cast: Cast, now: float) -> None:
        self.link = link
        self.since = now
        self.long = cast.size >= WINDOW_BYTES // 4
        self.left = 1
        self.size = 0


class _Copy(NamedTuple):
    """A cast on its way to a neighbour."""

    cast: Cast
    since: float
    credit: _Credit | None


class _Stream:
    """What came from one sender for one target.

    :ivar node: the target.
    :ivar next: the number that is due.
    :ivar known: everything before it has come, or is counted.
    :ivar back: what has overtaken it.
    """

    __slots__ = ("back", "known", "next", "node")

    def __init__(self, node: str) -> None:
        self.node = node
        self.next = 1
        self.known = False
        self.back: dict[int, Cast] = {}


class _Streams:
    """Puts what comes in its order.

    :ivar counters: those of the relay.
    :ivar late: the streams that wait for a number, and until when.
    """

    def __init__(self, counters: Counter[str]) -> None:
        self.counters = counters
        self.late: dict[tuple[str, int, bytes], float] = {}
        self._streams: dict[tuple[str, int, bytes], _Stream] = {}
        self._size = 0

    def arrive(self, cast: Cast, mark: bytes, node: str, now: float) -> list[Deliver]:
        """Return what can be delivered, now that ``cast`` is here for ``node``."""
        key = cast.origin, cast.run, mark
        stream = self._streams.pop(key, None) or _Stream(node)
        self._streams[key] = stream
        if len(self._streams) > MAX_STREAMS:
            oldest = next(iter(self._streams))
            self._size -= sum(late.size for late in self._streams.pop(oldest).back.values())
            self.late.pop(oldest, None)
        number = cast.targets[mark]
        if number < stream.next or number in stream.back:
            self.counters["again"] += 1
            return []
        stream.back[number] = cast
        self._size += cast.size
        out = self._take(stream)
        while stream.back and (len(stream.back) > KEPT_BACK or self._size > KEPT_BYTES):
            out += self._skip(stream)
        if not stream.back:
            self.late.pop(key, None)
        elif out or key not in self.late:
            self.late[key] = now + HOLD
        return out

    def _take(self, stream: _Stream) -> list[Deliver]:
        out = []
        while stream.next in stream.back:
            cast = stream.back.pop(stream.next)
            self._size -= cast.size
            stream.next += 1
            stream.known = True
            out.append(Deliver(stream.node, cast))
        return out

    def _skip(self, stream: _Stream) -> list[Deliver]:
        """Give up what has not come."""
        first = min(stream.back)
        if stream.known:  # otherwise this node has begun anew, and does not know what came
            self.counters["lost"] += first - stream.next
        stream.next = first
        return self._take(stream)

    def expire(self, now: float) -> list[Deliver]:
        """Return what need not wait any longer."""
        out = []
        for key in [key for key, until in self.late.items() if until <= now]:
            stream = self._streams[key]
            out += self._skip(stream)
            del self.late[key]
            if stream.back:
                self.late[key] = now + HOLD
        return out


class Relay:
    """Sends, hands on and receives casts on one node.

    :param own: this node's key.
    :param ways: returns the ways to other nodes by their marks, see :meth:`.Roster.ways`.
    :param new_run: returns a number of 32 bits that is another one each time.
    :ivar counters: casts that were sent (``sent``), handed on (``passed``), given to members
        (``delivered``) and came twice (``again``); those for this node that did not come
        (``lost``); and by reason (:data:`DROPS`) those that were dropped here, each target once.
    """

    def __init__(
        self, own: str, ways: Callable[[], dict[bytes, Way]], new_run: Callable[[], int]
    ) -> None:
        self.own = own
        self.counters: Counter[str] = Counter()
        self._ways = ways
        self._new_run = new_run
        self._run = new_run()
        self._numbers: dict[bytes, int] = {}
        self._links: dict[str, _Link] = {}
        self._slack: deque[_Credit] = deque()
        self._parked: deque[_Copy] = deque()
        self._parked_size = 0
        self._again = float("inf")
        self._streams = _Streams(self.counters)
        self._out: list[Pass | Deliver] = []

    # --- sending ------------------------------------------------------------------------------

    def has_room(self, peer: str) -> bool:
        """Return whether a cast of this node that goes to a neighbour is sent at once."""
        link = self._links.get(peer)
        return link is None or (not link.waiting and link.has_room)

    def make(self, scope: str, group: bytes, names: Iterable[str], body: bytes) -> Cast:
        """Return a new cast of this node."""
        marks = [mark_of(name) for name in names]
        used = self._numbers
        if len(used) > MAX_TARGETS or any(used.get(mark, 0) >= MAX_NUMBER for mark in marks):
            used.clear()
            self._run = self._new_run()
        for mark in marks:
            used[mark] = used.get(mark, 0) + 1
        targets = {mark: used[mark] for mark in marks}
        return Cast(self.own, self._run, MAX_HOPS, scope, group, targets, body)

    def send(self, cast: Cast, now: float, to: str = "") -> None:
        """Send a cast of this node.

        :param to: its only target, a connected node; by default it goes by the links.
        """
        self.counters["sent"] += 1
        if to:
            self._hand(to, _Copy(cast._replace(hops=0), now, None), now)
        else:
            self._route(cast, now, now)

    # --- facts --------------------------------------------------------------------------------

    def peer_down(self, peer: str, now: float) -> None:
        """A connection has ended: what the node has not taken goes another way."""
        link = self._links.pop(peer, None)
        if link is None:
            return
        for copy in (*link.sent, *link.waiting):
            self._settle(copy.credit, now)
            if len(copy.cast.body) > MAX_BODY:
                self.counters["long"] += 1
            else:
                self._route(copy.cast._replace(hops=MAX_HOPS), copy.since, now, None, peer)

    def changed(self, now: float) -> None:
        """The ways may have changed: try again what none led to."""
        parked, self._parked, self._parked_size = self._parked, deque(), 0
        self._again = float("inf")
        for copy in parked:
            self._route(copy.cast, copy.since, now)

    def receive(self, peer: str, message: Cast | Taken | None, now: float) -> None:
        """A connected node has sent a message; None is one without a valid form."""
        link = self._links.setdefault(peer, _Link())
        if message is None:
            self.counters["form"] += 1
        elif isinstance(message, Taken):
            for _ in range(min(message.casts, len(link.sent))):
                link.size -= link.sent.popleft().cast.size
            self._pump(peer, link, now)
        elif link.held + link.taken >= 2 * WINDOW:
            self.counters["window"] += len(message.targets)
        else:
            link.held += 1
            credit = _Credit(link, message, now)
            self._route(message, now, now, credit, peer)
            self._settle(credit, now)
            if credit.left:
                self._slack.append(credit)

    # --- ways ---------------------------------------------------------------------------------

    def _route(
        self,
        cast: Cast,
        since: float,
        now: float,
        credit: _Credit | None = None,
        source: str = "",
    ) -> None:
        """Deliver a cast, and split it by the neighbours that lead to its targets.

        :param source: the neighbour that it comes from. Where it seems to lead there, one of the
            two does not know yet what has changed: it waits for that, or it would go to and fro.
        """
        ways = self._ways()
        parts: dict[str, dict[bytes, int]] = {}
        parked: dict[bytes, int] = {}
        longest = 0
        for mark, number in cast.targets.items():
            way = ways.get(mark)
            if way is not None and not way.hops:
                self._arrive(cast, mark, way.node, now)
            elif way is None or way.hop == source:
                parked[mark] = number
            else:
                parts.setdefault(way.hop, {})[mark] = number
                longest = max(longest, way.hops)
        if len(cast.body) > MAX_BODY or not cast.hops:
            self.counters["hops" if not cast.hops else "long"] += len(cast.targets) if parts else 0
            parts, parked = {}, {}
        # Twice the way as it is known here, as that may change; not what a liar states.
        hops = min(cast.hops - 1, 2 * longest + SPARE)
        for hop, targets in parts.items():
            part = cast._replace(targets=targets, hops=hops)
            if credit is not None:
                credit.left += 1
                credit.size += part.size
            self._hand(hop, _Copy(part, since, credit), now)
        if parked:
            self._park(_Copy(cast._replace(targets=parked), since, None), now)

    def _arrive(self, cast: Cast, mark: bytes, node: str, now: float) -> None:
        self._deliver(self._streams.arrive(cast, mark, node, now))

    def _deliver(self, ready: list[Deliver]) -> None:
        self.counters["delivered"] += len(ready)
        self._out += ready

    def _park(self, copy: _Copy, now: float) -> None:
        if self._parked_size + copy.cast.size > KEPT_BYTES:
            self.counters["full"] += len(copy.cast.targets)
            return
        self._parked.append(copy)
        self._parked_size += copy.cast.size
        self._again = min(self._again, now + AGAIN)

    def _hand(self, peer: str, copy: _Copy, now: float) -> None:
        link = self._links.setdefault(peer, _Link())
        link.waiting.append(copy)
        self._pump(peer, link, now)

    def _pump(self, peer: str, link: _Link, now: float) -> None:
        """Send what a neighbour has room for."""
        while link.waiting and link.has_room:
            copy = link.waiting.popleft()
            link.sent.append(copy)
            link.size += copy.cast.size
            self.counters["passed"] += copy.cast.origin != self.own
            self._out.append(Pass(peer, copy.cast))
            self._settle(copy.credit, now)

    @staticmethod
    def _settle(credit: _Credit | None, now: float) -> None:
        """A copy of a neighbour's cast is handed on, or dropped. With the last one, the cast is
        taken."""
        if credit is None or not credit.left:
            return
        credit.left -= 1
        if credit.left:
            return
        link = credit.link
        link.free = max(link.free, now - BURST / RATE) + credit.size / RATE
        link.held -= 1
        link.taken += 1
        at_once = credit.long or link.taken >= WINDOW // 4
        link.tell = max(min(link.tell, now if at_once else now + TELL), link.free)

    # --- time ---------------------------------------------------------------------------------

    def due(self) -> float:
        """Return when :meth:`step` has something to do."""
        due = min(self._streams.late.values(), default=float("inf"))
        for link in self._links.values():
            due = min(due, link.tell)
            if link.waiting:
                due = min(due, link.waiting[0].since + PATIENCE)
        if self._slack:
            due = min(due, self._slack[0].since + SLACK)
        return min(due, self._again)

    def _ease(self, now: float) -> None:
        """Take what has waited for a while."""
        while self._slack and (not self._slack[0].left or self._slack[0].since + SLACK <= now):
            credit = self._slack.popleft()
            if credit.left:
                size = sum(c.cast.size for link in self._links.values() for c in link.waiting)
                if size > KEPT_BYTES:
                    credit.since = now
                    self._slack.append(credit)
                    return
                credit.left = 1
                self._settle(credit, now)

    def _retire(self, now: float) -> None:
        """Drop what has waited for too long."""
        while self._parked and self._parked[0].since + PATIENCE <= now:
            copy = self._parked.popleft()
            self._parked_size -= copy.cast.size
            self.counters["no-way"] += len(copy.cast.targets)
        for link in self._links.values():
            while link.waiting and link.waiting[0].since + PATIENCE <= now:
                copy = link.waiting.popleft()
                self.counters["stuck"] += len(copy.cast.targets)
                self._settle(copy.credit, now)

    def step(self, now: float) -> list[Pass | Deliver]:
        """Do what is due, and return what is to be done."""
        self._retire(now)
        self._ease(now)
        if self._again <= now:
            self.changed(now)
        for peer, link in self._links.items():
            if link.tell <= now:
                self._out.append(Pass(peer, Taken(link.taken)))
                link.taken, link.tell = 0, float("inf")
        self._deliver(self._streams.expire(now))
        out, self._out = self._out, []
        return out
