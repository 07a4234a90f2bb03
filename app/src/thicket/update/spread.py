# SPDX-License-Identifier: Apache-2.0
"""Who fetches which chunk from whom, and when: decisions, in the time that the caller tells.

A node asks the nearest nodes that have something it lacks, and waits for them for a while before it
asks others: each hop costs air again. It begins at chunks that few have, as far as it knows, so
that neighbours get different ones and then help each other; a node that has a part of a patch
serves that part. In a line of nodes, a patch so travels over all hops at once.

A node sends to a few others at a time, and tells whoever else asks to come again. Its *share of the
air* limits what it sends: the airtime of each chunk is what the routes' metric says
(IEEE 802.11-2020, 14.9: the time for 8192 bits, with what is sent again, of all hops), plus
``OVERHEAD``. What it receives counts for the sender. So the share is that of one node: nodes within
reach of each other that send at the same time add up.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from thicket.base.pace import Backoff
from thicket.update.offer import CHUNK, Offer

#: Chunks that a node waits for, of all nodes and of one.
WINDOW = 6
WINDOW_OF_ONE = 2
#: Seconds after which a chunk that was asked for does not come any more.
PATIENCE = 45.0
#: Seconds for which a node that lacks nothing from its nearest waits before it asks one more hop.
STALLED = 10.0
#: Nodes that are served at the same time; each may have asked for WINDOW_OF_ONE chunks.
UPLOADS = 3
#: Seconds that one may have had a place longer than another one who waits for one.
TURN = 5.0
#: Seconds until somebody may ask again who found all places taken, and for which it is expected
#: after that.
AGAIN = (0.5, 10.0)
EXPECTED = 1.0
#: Pauses of a node that did not answer, and of one that sent something wrong, in seconds.
SLOW_PAUSES = (5.0, 15.0, 60.0, 300.0)
WRONG_PAUSES = (60.0, 300.0, 1800.0, 7200.0)
#: Seconds between two times that somebody is told which chunks are here: on average a neighbour, at
#: least one that lacks none of them, and who is farther away.
TELL_NEAR = 0.25
TELL_SATED = 2.0
TELL_FAR = 30.0
#: Seconds until somebody farther away hears of the first ones: a small patch is everywhere then.
TELL_FAR_FIRST = 3.0
#: Times that a neighbour is told without a pause, so that a small patch goes on at once.
TELL_AT_ONCE = 8

NEAR = 1
"""Hops to a neighbour on the air."""

ASSUMED = 1366
"""Metric of a hop of which nothing is known: 6 Mbit/s, in µs for 8192 bits as Linux has it."""

OVERHEAD = 1.25
"""Airtime with acknowledgements, headers of all layers and the pauses between frames, as a multiple
of that of the bits alone."""

BURST = 0.25
"""Seconds of air that a node which was silent may take at once."""

MOST_SHUNNED = 1024

OUTSIDE = ""
"""In the place of a node's name: what is fetched from outside the mesh."""

_MICROSECOND = 1e-6
_UNIT = 1024
_TRIES = 8

T = TypeVar("T")


class Way(NamedTuple):
    """The way to a node.

    :ivar hops: over the air.
    :ivar metric: of all of them together.
    """

    hops: int = NEAR
    metric: int = ASSUMED

    def airtime(self, size: int = CHUNK) -> float:
        """Return the seconds that so many bytes take."""
        return self.metric * _MICROSECOND * OVERHEAD * size / _UNIT


class Ask(NamedTuple):
    """Ask a node for a chunk."""

    peer: str
    chunk: int


def random_below(limit: int) -> int:
    """Return a random number; the kernel's, as ``import random`` costs more."""
    return int.from_bytes(os.urandom(4), "little") % limit


def choose(offer: Offer, base: str, failed: Collection[int] = ()) -> int | None:
    """Return which patch of an offer a node fetches, None if none is for it.

    A change of what runs here comes before the whole.

    :param base: the root hash of the running slot; empty if it is not known.
    :param failed: patches of which no bundle could be made.
    """
    fit = [
        (patch.base == "", patch.size, place)
        for place, patch in enumerate(offer.patches)
        if place not in failed and patch.base in ("", base)
    ]
    return min(fit)[2] if fit else None


class _Standing:
    __slots__ = ("busy", "owes", "shunned", "slow", "wrong")

    def __init__(self) -> None:
        self.busy = 0.0
        #: Since when it has no time for us, and has sent nothing.
        self.owes: float | None = None
        self.shunned = 0.0
        self.slow = Backoff(*SLOW_PAUSES)
        self.wrong = Backoff(*WRONG_PAUSES)


class Peers:
    """How others have behaved. It outlives connections, so that nobody is well by coming anew."""

    def __init__(self) -> None:
        self._known: dict[str, _Standing] = {}

    def _of(self, peer: str) -> _Standing:
        found = self._known.get(peer)
        if found is None:
            if len(self._known) >= MOST_SHUNNED:
                del self._known[next(iter(self._known))]
            found = self._known[peer] = _Standing()
        return found

    def well(self, peer: str) -> None:
        """It sent what was asked for."""
        if peer in self._known:
            self._known[peer].slow.reset()
            self._known[peer].owes = None

    def busy(self, peer: str, seconds: float, now: float) -> None:
        """It has no time for us."""
        standing = self._of(peer)
        standing.busy = now + seconds
        if standing.owes is None:
            standing.owes = now

    def is_waited_for(self, peer: str, now: float) -> bool:
        """Whether farther ones are not asked because of it: one that never has time is none."""
        standing = self._known.get(peer)
        return standing is None or standing.owes is None or now - standing.owes < PATIENCE

    def slow(self, peer: str, now: float) -> None:
        """It did not send what was asked for."""
        standing = self._of(peer)
        standing.shunned = max(standing.shunned, now + standing.slow.failed())

    def wrong(self, peer: str, now: float) -> None:
        """It sent something else than what was signed."""
        standing = self._of(peer)
        standing.shunned = max(standing.shunned, now + standing.wrong.failed())

    def is_shunned(self, peer: str, now: float) -> bool:
        """Whether it is not asked, as it did not do what it should."""
        return peer in self._known and now < self._known[peer].shunned

    def ready_at(self, peer: str) -> float:
        """When it may be asked; a time that may be over."""
        standing = self._known.get(peer)
        return max(standing.busy, standing.shunned) if standing is not None else 0.0


class Offering:
    """What others have of one patch.

    :ivar bits: by node; one that is here with none has the chunk list alone.
    """

    def __init__(self, peers: Peers) -> None:
        self.bits: dict[str, int] = {}
        self.peers = peers
        self._reach = NEAR
        self._stalled: float | None = None

    def within_reach(self, lacking: int | None, ways: Mapping[str, Way], now: float) -> list[str]:
        """Return the nodes that have something of what is lacking, and that are to be asked.

        These are the nearest. Farther ones are waited for: one in between may have it soon.

        :param lacking: chunks; None for the chunk list.
        """
        found = {
            peer: ways[peer].hops
            for peer in self._owners(lacking)
            if peer in ways and not self.peers.is_shunned(peer, now)
        }
        if not found:
            return []
        awaited = [found[peer] for peer in found if self.peers.is_waited_for(peer, now)]
        nearest = min(awaited or found.values())
        if nearest > self._reach:
            if self._stalled is None:
                self._stalled = now
            if now - self._stalled < STALLED:
                return []
        self._stalled = None
        self._reach = max(nearest, NEAR)
        return [peer for peer, hops in found.items() if hops <= self._reach]

    def _owners(self, lacking: int | None) -> list[str]:
        return [p for p, bits in self.bits.items() if lacking is None or bits & lacking]

    def progressed(self) -> None:
        """Something came: who was waited for is not to blame."""
        self._stalled = None

    def due(self, lacking: int | None, now: float) -> float | None:
        """Return when another look may find somebody else, None for when somebody says more."""
        times = [self.peers.ready_at(peer) for peer in self._owners(lacking)]
        if self._stalled is not None:
            times.append(self._stalled + STALLED)
        return min((at for at in times if at > now), default=None)


class _Asked(NamedTuple):
    peer: str
    until: float


class Fetch:
    """The chunks of one patch that a node lacks, and whom it has asked for them.

    :param count: how many chunks there are.
    :param have: those that are here.
    :param below: returns a random number below its argument.
    :ivar double: how many chunks came that were here already.
    """

    def __init__(
        self,
        count: int,
        have: int,
        offering: Offering,
        below: Callable[[int], int] = random_below,
    ) -> None:
        self.have = have
        self.double = 0
        self.offering = offering
        self._all = (1 << count) - 1
        self._count = count
        self._below = below
        self._asked: dict[int, _Asked] = {}
        self._got: dict[str, int] = {}

    @property
    def complete(self) -> bool:
        """Whether nothing is lacking."""
        return self.have == self._all

    @property
    def lacking(self) -> int:
        """The chunks that are neither here nor asked for."""
        bits = self._all & ~self.have
        for chunk in self._asked:
            bits &= ~(1 << chunk)
        return bits

    def asks(self, now: float, ways: Mapping[str, Way]) -> list[Ask]:
        """Return whom to ask for what now; it counts as asked then.

        :param ways: the connected nodes.
        """
        peers = self.offering.peers
        for chunk, (peer, until) in list(self._asked.items()):
            if peer not in ways and peer != OUTSIDE:
                del self._asked[chunk]
            elif now >= until:
                del self._asked[chunk]
                peers.slow(peer, now)
        asks: list[Ask] = []
        while len(self._asked) < WINDOW:
            ask = self._next(now, ways)
            if ask is None:
                break
            self._asked[ask.chunk] = _Asked(ask.peer, now + PATIENCE)
            asks.append(ask)
        return asks

    def _next(self, now: float, ways: Mapping[str, Way]) -> Ask | None:
        lacking = self.lacking
        best: tuple[float, int, str] | None = None
        for peer in self.offering.within_reach(lacking, ways, now):
            waiting = sum(asked.peer == peer for asked in self._asked.values())
            if waiting >= WINDOW_OF_ONE or self.offering.peers.ready_at(peer) > now:
                continue
            cost = (ways[peer].airtime() * (1 + waiting), self._got.get(peer, 0), peer)
            if best is None or cost < best:
                best = cost
        if best is None:
            return None
        return Ask(best[2], self._rare(self.offering.bits[best[2]] & lacking))

    def _rare(self, bits: int) -> int:
        """Return one of these chunks that few have."""
        best, fewest = -1, -1
        for _ in range(_TRIES):
            chunk = bit_from(bits, self._below(self._count))
            owners = sum(theirs >> chunk & 1 for theirs in self.offering.bits.values())
            if best < 0 or owners < fewest:
                best, fewest = chunk, owners
        return best

    def claim(self, most: int, now: float) -> list[int]:
        """Return some of the lacking chunks, one behind the other, to be fetched from outside.

        They count as asked for.
        """
        lacking = self.lacking
        claimed: list[int] = []
        while lacking and len(claimed) < most:
            chunk = claimed[-1] + 1 if claimed else bit_from(lacking, 0)
            if not lacking >> chunk & 1:
                break
            claimed.append(chunk)
            lacking &= ~(1 << chunk)
        for chunk in claimed:
            self._asked[chunk] = _Asked(OUTSIDE, now + PATIENCE)
        return claimed

    def release(self, peer: str) -> None:
        """Nothing more comes of what a node was asked for."""
        for chunk in [chunk for chunk, asked in self._asked.items() if asked.peer == peer]:
            del self._asked[chunk]

    def wants(self, chunk: int) -> bool:
        """Whether a chunk that came is of use; if not, it is counted."""
        if self.have >> chunk & 1:
            self.double += 1
            return False
        return True

    def is_asked(self, peer: str, chunk: int) -> bool:
        """Whether a node was asked for a chunk, and has not answered yet."""
        asked = self._asked.get(chunk)
        return asked is not None and asked.peer == peer

    def kept(self, peer: str, chunk: int) -> None:
        """A chunk is here."""
        self.have |= 1 << chunk
        self._asked.pop(chunk, None)
        self._got[peer] = self._got.get(peer, 0) + 1
        self.offering.progressed()
        self.offering.peers.well(peer)

    def wrong(self, peer: str, now: float) -> None:
        """A node has sent something else than a chunk: the others have their turn.

        What another one was asked for stays so, whoever says that this was it.
        """
        self.offering.peers.wrong(peer, now)
        self.release(peer)

    def refused(self, peer: str, chunk: int, seconds: float, now: float) -> None:
        """A node does not send a chunk.

        :param seconds: when to ask again; 0 if it does not have it.
        """
        if not self.is_asked(peer, chunk):
            return
        del self._asked[chunk]
        if seconds > 0:
            self.offering.peers.busy(peer, min(max(seconds, AGAIN[0]), AGAIN[1]), now)
        else:
            self.offering.bits[peer] = self.offering.bits.get(peer, 0) & ~(1 << chunk)
            # It said that it has it, and may say so again and again.
            self.offering.peers.slow(peer, now)

    def due(self, now: float) -> float | None:
        """Return when :meth:`asks` is to be called although nothing happened; None for never."""
        times = [asked.until for asked in self._asked.values()]
        later = self.offering.due(self.lacking, now)
        if later is not None and len(self._asked) < WINDOW:
            times.append(later)
        return min(times, default=None)


class Listing:
    """The chunk list of a patch, which is fetched from one node, and judged as a whole.

    :param count: how many chunks the list itself has.
    """

    def __init__(self, count: int, offering: Offering) -> None:
        self.offering = offering
        self.peer: str | None = None
        self._count = count
        self._parts: list[bytes] = []
        self._until = 0.0

    def ask(self, now: float, ways: Mapping[str, Way]) -> Ask | None:
        """Return whom to ask for which chunk of the list now; it counts as asked then."""
        peers = self.offering.peers
        if self.peer is not None:
            if self.peer in ways and now < self._until:
                return None
            if self.peer in ways:
                peers.slow(self.peer, now)
            self._leave()
        found = [
            (ways[peer].metric, peer)
            for peer in self.offering.within_reach(None, ways, now)
            if peers.ready_at(peer) <= now
        ]
        if not found:
            return None
        return self._asked(min(found)[1], now)

    def _asked(self, peer: str, now: float) -> Ask:
        self.peer, self._until = peer, now + PATIENCE
        return Ask(peer, len(self._parts))

    def arrived(self, peer: str, number: int, data: bytes, now: float) -> Ask | bytes | None:
        """A chunk of the list has come.

        :returns: what to ask for next, or the whole list, which may be wrong; None if nobody has
            asked for this.
        """
        if peer != self.peer or number != len(self._parts):
            return None
        self._parts.append(data)
        if len(self._parts) < self._count:
            return self._asked(peer, now)
        return b"".join(self._parts)

    def wrong(self, peer: str, now: float) -> None:
        """The list is not the one that was signed."""
        self.offering.peers.wrong(peer, now)
        self._leave()

    def refused(self, peer: str, seconds: float, now: float) -> None:
        """A node does not send a chunk of the list; see :meth:`Fetch.refused`."""
        if peer != self.peer:
            return
        if seconds > 0:
            self.offering.peers.busy(peer, min(max(seconds, AGAIN[0]), AGAIN[1]), now)
        else:
            self.offering.bits.pop(peer, None)
            self.offering.peers.slow(peer, now)
        self._leave()

    def _leave(self) -> None:
        self.peer, self._parts = None, []

    def due(self, now: float) -> float | None:
        """Return when :meth:`ask` is to be called although nothing happened; None for never."""
        return self._until if self.peer is not None else self.offering.due(None, now)


class Air:
    """The airtime that a node may take.

    :param share: of each second.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._balance = BURST
        self._then = 0.0

    def pause(self, now: float) -> float:
        """Return the seconds until something may be sent."""
        self._look(now)
        return 0.0 if self._balance > 0 else -self._balance / self.share + 1e-6

    def spend(self, seconds: float, now: float) -> None:
        """Something was sent that takes so long; the pause after it makes up for it."""
        self._look(now)
        self._balance -= seconds

    def _look(self, now: float) -> None:
        gained = max(0.0, now - self._then) * self.share
        self._balance, self._then = min(BURST, self._balance + gained), now


class _Place(Generic[T]):
    """A node that is served.

    :ivar since: when it got its place.
    :ivar queue: what it has asked for.
    :ivar leaves: whether it gets no more than that.
    :ivar blocked: since when too much waits to be sent to it; None while nothing does.
    """

    __slots__ = ("blocked", "leaves", "queue", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.queue: deque[T] = deque()
        self.leaves = False
        self.blocked: float | None = None


class Serve(Generic[T]):
    """What others have asked for and is to be sent, one after the other.

    There are ``UPLOADS`` places. A node has its place for as long as it asks for more, unless one
    waits that had a place for ``TURN`` seconds less: then it leaves, and those who had less are
    first. So who never stops asking gets no more than others. Of who comes late, or seldom, no more
    than two turns count that it has not had.

    :param share: of the air.
    :param air: where others take of the same share.
    :param most: how much one node gets; None for no end.
    :ivar lost: what nodes had asked for that have lost their places, and do not know it yet.
    """

    def __init__(self, share: float, air: Air | None = None, most: int | None = None) -> None:
        self.air = air or Air(share)
        self.lost: list[tuple[str, T]] = []
        self._places: dict[str, _Place[T]] = {}
        #: Until when somebody is expected who was told to ask again.
        self._waiting: dict[str, float] = {}
        #: Seconds that nodes had a place, without those of the present one.
        self._had: dict[str, float] = {}
        self._shunned: set[str] = set()
        self._given: Counter[str] = Counter()
        self._most = most

    def ask(
        self, peer: str, item: T, cost: float, now: float, *, blocked: bool = False
    ) -> float | None:
        """A node asks for something.

        :param cost: seconds of air.
        :param blocked: whether too much waits to be sent to it already.
        :returns: None when it gets it; else after how many seconds it may ask again.
        """
        if not blocked:
            self._shunned.discard(peer)
        place = self._places.get(peer)
        if place is not None:
            if item in place.queue:
                return None
            if len(place.queue) >= WINDOW_OF_ONE:
                return AGAIN[1]
            leaving = sum(one.leaves for one in self._places.values() if one is not place)
            place.leaves = self._rivals(peer, now) > self._free + leaving
            if place.leaves:
                return self._pause(cost)
        else:
            had_all = self._most is not None and self._given[peer] >= self._most
            if had_all or peer in self._shunned:
                return AGAIN[1]
            self._lift(peer, now)
            if self._rivals(peer, now) >= self._free:
                pause = self._pause(cost)
                self._waiting[peer] = now + pause + EXPECTED
                return pause
            self._waiting.pop(peer, None)
            place = self._places[peer] = _Place(now)
        place.queue.append(item)
        return None

    @property
    def _free(self) -> int:
        return UPLOADS - len(self._places)

    def _pause(self, cost: float) -> float:
        queued = sum(len(one.queue) for one in self._places.values())
        return min(max(queued * cost / self.air.share, AGAIN[0]), AGAIN[1])

    def _rivals(self, peer: str, now: float) -> int:
        """Return how many wait who have a better claim to a place than this node."""
        for gone in [one for one, until in self._waiting.items() if until <= now]:
            del self._waiting[gone]
        enough = self._total(peer, now) - TURN
        return sum(self._had[one] <= enough for one in self._waiting if one != peer)

    def _total(self, peer: str, now: float) -> float:
        place = self._places.get(peer)
        return self._had.get(peer, 0.0) + (0.0 if place is None else now - place.since)

    def _lift(self, peer: str, now: float) -> None:
        """Count two turns at most that a node had less than those who are served."""
        least = min((self._total(one, now) for one in self._places), default=0.0)
        self._count(peer, max(self._had.get(peer, 0.0), least - 2 * TURN))

    def _count(self, peer: str, seconds: float) -> None:
        if peer not in self._had and len(self._had) >= MOST_SHUNNED:
            oldest = next(iter(self._had))
            del self._had[oldest]
            self._waiting.pop(oldest, None)
        self._had[peer] = seconds

    def _leave(self, peer: str, now: float) -> None:
        """Take a node's place away."""
        self._count(peer, self._total(peer, now))
        del self._places[peer]

    def take(self, now: float, blocked: Callable[[str], bool]) -> tuple[str, T] | None:
        """Return what is to be sent now, the nodes in turns; None if there is nothing.

        :param blocked: whether too much waits to be sent to a node already.
        """
        if not self._places or self.air.pause(now) > 0:
            return None
        for peer, place in list(self._places.items()):
            if blocked(peer):
                if place.blocked is None:
                    place.blocked = now
                patience = AGAIN[1] if self._rivals(peer, now) else PATIENCE
                if now - place.blocked >= patience:
                    # It does not read what it gets: others have its place.
                    self.lost += [(peer, item) for item in place.queue]
                    self._leave(peer, now)
                    self._shunned.add(peer)
                continue
            place.blocked = None
            item = place.queue.popleft()
            self._given[peer] += 1
            if place.queue:
                self._places[peer] = self._places.pop(peer)  # behind the others
            else:
                self._leave(peer, now)
            return peer, item
        return None

    def pause(self, now: float) -> float | None:
        """Return the seconds until something may be sent; None when nothing waits."""
        return self.air.pause(now) if self._places else None

    def gone(self, peer: str, now: float) -> None:
        """A node is not connected any more; what it had counts also when it comes again."""
        if peer in self._places:
            self._leave(peer, now)
        self._waiting.pop(peer, None)
        self._shunned.discard(peer)

    def __len__(self) -> int:
        return len(self._places)


class _Told(NamedTuple):
    """What somebody was told.

    :ivar version: of what is here.
    :ivar at: when.
    :ivar paced: until when what was told is enough, at one time in ``TELL_NEAR``.
    """

    version: int
    at: float
    paced: float


_NEVER = _Told(0, float("-inf"), float("-inf"))


class Teller:
    """When to tell whom which chunks are here: neighbours at once, others seldom."""

    def __init__(self) -> None:
        self._version = 0
        self._told: dict[str, _Told] = {}

    def changed(self) -> None:
        """There is something else to tell."""
        self._version += 1

    def told(self, peer: str, now: float) -> None:
        """A node was told all."""
        before = self._told.get(peer)
        paced = now if before is None else max(before.paced, now)
        self._told[peer] = _Told(self._version, now, paced + TELL_NEAR)

    def gone(self, peer: str) -> None:
        """A node is not connected any more."""
        self._told.pop(peer, None)

    def take(self, now: float, ways: Mapping[str, Way], sated: Collection[str]) -> list[str]:
        """Return whom to tell now; they count as told.

        :param sated: those who lack nothing of it; it is only for people that they are told.
        """
        for peer, way in ways.items():
            if way.hops > NEAR and peer not in self._told and self._version:
                self._told[peer] = _Told(0, now - TELL_FAR + TELL_FAR_FIRST, now)
        due = [peer for peer, at in self._due(ways, sated) if at <= now]
        for peer in due:
            self.told(peer, now)
        return due

    def due(self, ways: Mapping[str, Way], sated: Collection[str]) -> float | None:
        """Return when somebody is to be told; None when all know all."""
        return min((at for _, at in self._due(ways, sated)), default=None)

    def _due(self, ways: Mapping[str, Way], sated: Collection[str]) -> Iterable[tuple[str, float]]:
        for peer, way in ways.items():
            told = self._told.get(peer, _NEVER)
            if told.version == self._version:
                continue
            if way.hops > NEAR:
                yield peer, told.at + TELL_FAR
            elif peer in sated:
                yield peer, told.at + TELL_SATED
            else:
                yield peer, told.paced - TELL_NEAR * (TELL_AT_ONCE - 1)


def bit_from(bits: int, start: int) -> int:
    """Return the first bit that is set from ``start`` on, or else from 0 on; -1 if none is."""
    above = bits >> start
    if above:
        return start + (above & -above).bit_length() - 1
    return (bits & -bits).bit_length() - 1
