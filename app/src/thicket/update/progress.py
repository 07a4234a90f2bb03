# SPDX-License-Identifier: Apache-2.0
"""What a node tells the others of itself about an offer, and the table with what all of them tell.

A record says how far its node is with one offer. Records spread from node to node, so each of them
is signed by the node that it is about (:mod:`thicket.update.member`), and the one with the larger
number is the newer one. No clock is needed: a record says for how long its node was in this state
when the record was made. All numbers are big endian:

    ====== ===== ==================================================================
    offset bytes
    ====== ===== ==================================================================
         0    32 identifier of the offer
        32     7 node: source of its identity (1), identity (6)
        39     8 number: higher in each record of this node
        47     4 number of the last order that the node follows, 0 for none
        51     1 state (the lower four bits), and the stage of its work (the upper four)
        52     2 how much of the stage, or of the state without one, is done, in thousandths
        54     4 seconds since the node is in this state
        58     1 bytes of the words
        59       words in UTF-8, at most 200 bytes
    ====== ===== ==================================================================

Nodes of several versions stand beside each other. A state or a stage that a newer node has and this
one does not know is kept, handed on and shown by its number. New work is a new stage of a state
that there is, so that older nodes know what it means for the rollout.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from hashlib import sha256
from typing import Final, NamedTuple, TypeVar

from thicket.base.errors import ThicketError
from thicket.base.pace import Bucket
from thicket.base.visible import visible
from thicket.identity.address import ID_SIZE, SOURCES

MOST_WORDS = 200
"""Bytes of the words in a record."""

KEEP: Final = 3 * 86400.0
"""Seconds for which a node counts that nothing is heard of."""

MOST_NODES = 1024
"""Nodes whose records are kept."""

WHOLE = 1000
"""Thousandths: all of it is done."""

RATE, BURST = 0.5, 20.0
"""New records of one node that are taken, per second on average, and at once."""

_FIXED = struct.Struct(f"!32sB{ID_SIZE}sQIBHIB")
_LINE = struct.Struct(f"!B{ID_SIZE}sQ")

MAX_SIZE = _FIXED.size + MOST_WORDS
"""Bytes of the largest record, without its signature."""

_STAGE: Final = 4
"""Bits of the state, below those of the stage."""

MAX_NUMBER = (1 << 64) - 1
MAX_AGE = (1 << 32) - 1

MAX_SUMMARY = MOST_NODES * _LINE.size
"""Bytes of the largest summary of a table."""


class RecordError(ThicketError):
    """These bytes are no record; the text says why."""

    code = "bad-record"


class State(IntEnum):
    """How far a node is with an offer. What it is called is said by :func:`called`."""

    #: It knows the offer.
    OFFERED = 0
    #: It gets the patch.
    FETCHING = 1
    #: The bundle is whole and was checked.
    READY = 2
    #: It is ready and does not begin yet; the words say why.
    WAITING = 3
    #: It writes the other slot, or puts an application into place.
    INSTALLING = 4
    #: It is about to start the other slot.
    RESTARTING = 5
    #: It runs the other slot on trial.
    TRIAL = 6
    #: It keeps the version. ``done`` grows until it was well for as long as the plan asks.
    DONE = 7
    #: It tried the version and went back; the words say why.
    FAILED = 8
    #: It does not install it; the words say why.
    REFUSED = 9
    #: It was told to wait.
    PAUSED = 10
    #: It was told not to take it, or to go back to the version before.
    ABORTED = 11

    @classmethod
    def _missing_(cls, value: object) -> State | None:
        """Return a state that a newer node may have."""
        if not isinstance(value, int) or not 0 <= value <= _LOW:
            return None
        return _unknown(cls, value)


class Stage(IntEnum):
    """What a node is doing within a state, where that is another thing than the state says."""

    NONE = 0
    #: It makes the bundle from the patch.
    MAKING = 1
    #: It reads the whole bundle and compares it with what was signed.
    CHECKING = 2

    @classmethod
    def _missing_(cls, value: object) -> Stage | None:
        """Return a stage that a newer node may have."""
        if not isinstance(value, int) or not 0 <= value <= _LOW:
            return None
        return _unknown(cls, value)


_LOW: Final = 15
"""The largest number of a state, and of a stage."""

_N = TypeVar("_N", bound=IntEnum)


def _unknown(kind: type[_N], value: int) -> _N:
    """Return a member that stands for a number which only newer nodes know."""
    made = int.__new__(kind, value)
    made._name_, made._value_ = f"{kind.__name__}_{value}", value
    kind._value2member_map_[value] = made
    return made


SILENT: Final = "silent"
"""What a node is called that says nothing of an offer."""

LOST: Final = "lost"
"""What a node is called that has begun and was not heard of again."""


def called(state: State, stage: Stage = Stage.NONE) -> str:
    """Return what people and programs are told: ``fetching``, ``making``; ``state-12`` for a state
    of a newer node, and ``fetching-5`` for a stage of one."""
    known = state.name.lower().replace("_", "-")
    if stage is Stage.NONE:
        return known
    return stage.name.lower() if stage in tuple(Stage) else f"{known}-{stage.value}"


NAMES: Final = (
    *map(called, State),
    *(called(State.OFFERED, stage) for stage in Stage if stage),
    SILENT,
    LOST,
)
"""All that a node may be called; docs/updating.md explains each."""


BEGUN: Final = frozenset({State.INSTALLING, State.RESTARTING, State.TRIAL})
"""States of a node that has begun and whose end is open."""

ENDED: Final = frozenset({State.FAILED, State.REFUSED, State.ABORTED})
"""States of a node that has not the version and waits for nothing."""


class Stand(NamedTuple):
    """How far this node is; see :class:`Progress` for the members."""

    offer: bytes
    state: State
    done: int = 0
    why: str = ""
    order: int = 0
    stage: Stage = Stage.NONE


class Work(NamedTuple):
    """What this node does for an update now, and how far that is.

    :ivar done: of ``total``.
    :ivar total: bytes of all where they are known (``measured``), else any number.
    :ivar measured: whether ``done`` and ``total`` are bytes that take about the same time each.
    """

    stage: Stage = Stage.NONE
    done: int = 0
    total: int = 0
    measured: bool = False

    @property
    def part(self) -> int:
        """How much is done, in thousandths; less than ``WHOLE``, as it ends with the next state."""
        return min(WHOLE * self.done // self.total, WHOLE - 1) if self.total else 0


class Progress(NamedTuple):
    """One record.

    :ivar node: the node's name: ``n-6f44e3c6b802`` of a node with a chip, with a point and the
        source of its identity behind it of one without: ``n-010203040506.mac``.
    :ivar offer: identifier of the offer that it is about.
    :ivar number: the larger one of a node is the newer one.
    :ivar done: how much of the work of the stage, or of the state without one, is done, in
        thousandths. Of a node that waits or was told to wait, how much of the patch is here; 0
        where it does not tell.
    :ivar why: words for people.
    :ivar age: seconds since the node is in this state and stage.
    :ivar order: number of the last order that it follows.
    """

    node: str
    offer: bytes
    number: int
    state: State
    done: int = 0
    why: str = ""
    age: int = 0
    order: int = 0
    stage: Stage = Stage.NONE

    @property
    def called(self) -> str:
        """What its node is called, see :func:`called`."""
        return called(self.state, self.stage)

    @property
    def begun(self) -> bool:
        """Whether the node has begun, and not yet been well for as long as the plan asks."""
        return self.state in BEGUN or (self.state is State.DONE and self.done < WHOLE)

    @property
    def well(self) -> bool:
        """Whether the node has had the version for as long as the plan asks, and was well."""
        return self.state is State.DONE and self.done >= WHOLE


@lru_cache(maxsize=2 * MOST_NODES)
def node_name(source: str, identity: bytes) -> str:
    """Return the name of the node with these 6 identity bytes."""
    return f"n-{identity.hex()}" + ("" if source == SOURCES[0] else f".{source}")


@lru_cache(maxsize=2 * MOST_NODES)
def split_name(name: str) -> tuple[int, bytes]:
    """Return the number of the source, and the identity, in a node's name.

    :raises ValueError: it is no name of a node.
    """
    label, _, source = name.partition(".")
    index = SOURCES.index(source) if source else 0
    identity = bytes.fromhex(label.removeprefix("n-"))
    if len(identity) != ID_SIZE or node_name(SOURCES[index], identity) != name:
        raise ValueError(f"{name!r} is not the name of a node")
    return index, identity


def short(words: str, most: int = MOST_WORDS) -> str:
    """Return words as a record may have them: in one line, visible, at most ``most`` bytes."""
    line = visible(" ".join(words.split()), keep="")
    data = line.encode("utf-8", "replace")
    if len(data) <= most:
        return data.decode()
    return data[: most - 3].decode("utf-8", "ignore") + "..."


def pack(record: Progress) -> bytes:
    """Return what a node signs."""
    source, identity = split_name(record.node)
    why = record.why.encode()
    return (
        _FIXED.pack(
            record.offer,
            source,
            identity,
            record.number,
            record.order,
            record.state | record.stage << _STAGE,
            record.done,
            min(record.age, MAX_AGE),
            len(why),
        )
        + why
    )


def unpack(data: bytes) -> Progress:
    """Read what :func:`pack` wrote.

    :raises RecordError: it is not in that form.
    """
    if not _FIXED.size <= len(data) <= MAX_SIZE:
        raise RecordError(f"a record of {len(data)} bytes")
    offer, source, identity, number, order, where, done, age, size = _FIXED.unpack_from(data)
    if source >= len(SOURCES) or done > WHOLE or _FIXED.size + size != len(data):
        raise RecordError("a record with numbers that none has")
    try:
        why = data[_FIXED.size :].decode()
    except ValueError as error:
        raise RecordError(f"a record of no known form: {error}") from None
    if why != short(why):
        raise RecordError("a record with words that cannot be shown")
    node = node_name(SOURCES[source], identity)
    state, stage = State(where & _LOW), Stage(where >> _STAGE)
    return Progress(node, offer, number, state, done, why, age, order, stage)


def _place(said: Stand | Progress) -> tuple[bytes, State, Stage]:
    return said.offer, said.state, said.stage


class Own:
    """Makes the records of this node.

    :param start: a number that is higher at each start (``trust.signed_beacon.next_start``).
    """

    #: Bits of the count within one start.
    COUNT = 24
    #: Least seconds between two records that only say how much is done, and until one is made anew.
    SHOW, RENEW = 10.0, 6 * 3600.0
    #: Such records a second that all nodes together send: each of them reaches every node.
    TOGETHER = 2.0

    def __init__(self, node: str, start: int) -> None:
        self.node = node
        self.newest: Progress | None = None
        self._number = start << self.COUNT
        self._since = 0.0
        self._made = 0.0

    def tell(self, now: float, said: Stand, nodes: int = 1) -> Progress | None:
        """Return a new record, if there is something new to tell.

        :param now: seconds of a clock that only goes forward.
        :param nodes: how many nodes there are.
        """
        last, said = self.newest, said._replace(why=short(said.why))
        if last is None or _place(last) != _place(said):
            self._since = now
        elif (last.why, last.order) == (said.why, said.order):
            pause = now - self._made
            show = max(self.SHOW, nodes / self.TOGETHER)
            moved = last.done != said.done and (said.done == WHOLE or pause >= show)
            if not moved and pause < self.RENEW:
                return None
        self._number += 1
        self._made = now
        age = int(now - self._since)
        self.newest = Progress(
            self.node,
            said.offer,
            self._number,
            said.state,
            said.done,
            said.why,
            age,
            said.order,
            said.stage,
        )
        return self.newest

    def compare(self, kept: Progress | None) -> None:
        """Look at the record of this node that everybody has.

        An older one: the last record was not taken, and is made again. A newer one: it is of an
        earlier start whose number was lost, and the next record is newer than it.
        """
        last = self.newest
        if last is not None and (kept is None or kept.number < last.number):
            self.newest = None
        elif kept is not None and kept != last and kept.number >= self._number:
            self._number = min(kept.number, MAX_NUMBER - (1 << self.COUNT))
            self.newest = None


class Entry(NamedTuple):
    """The newest record of a node.

    :ivar moved: when its offer, state, stage or ``done`` became what it is, by the clock of this
        node.
    :ivar heard: when it came.
    :ivar items: what carries the record, with its signature, as it is handed on.
    """

    record: Progress
    moved: float
    heard: float
    items: tuple[bytes, ...] = ()


class Table:
    """The newest record of each node. What comes in here was signed by the node that it is about.

    :ivar entries: by the nodes' names.
    :ivar dropped: records that were not taken, as their node sends too many, or one node too many.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.dropped = 0
        self._turns: dict[str, Bucket] = {}

    def is_news(self, record: Progress) -> bool:
        """Whether a record is newer than the one that is kept of its node."""
        entry = self.entries.get(record.node)
        if entry is None or record.number != entry.record.number:
            return entry is None or record.number > entry.record.number
        if record == entry.record:
            return False
        # Of two records with one number, which only a lying node makes, all nodes keep the same.
        return pack(record) > pack(entry.record)

    def may_take(self, node: str, now: float) -> bool:
        """Whether a newer record of a node would be kept now: what is not costs no signature."""
        turns = self._turns.get(node)
        place = node in self.entries or len(self.entries) < MOST_NODES
        if place and (turns is None or turns.ready(now)):
            return True
        self.dropped += 1  # it comes again when tables are compared
        return False

    def take(self, record: Progress, now: float, items: tuple[bytes, ...] = ()) -> bool:
        """Keep a record that is newer; return whether it is, and so is to be handed on.

        :param now: seconds of a clock that only goes forward.
        """
        if not self.is_news(record) or not self.may_take(record.node, now):
            return False
        self._turns.setdefault(record.node, Bucket(RATE, BURST)).take(now)
        kept = self.entries.get(record.node)
        moved = now
        if kept is not None:
            then = kept.record
            if (_place(then), then.done) == (_place(record), record.done):
                moved = kept.moved
        self.entries[record.node] = Entry(record, moved, now, items)
        return True

    def drop(self, gone: Callable[[Entry], bool]) -> None:
        """Forget the records that do not count any more: of nodes that are revoked or long off."""
        for name in [name for name, entry in self.entries.items() if gone(entry)]:
            del self.entries[name]
            self._turns.pop(name, None)

    # -- comparing two tables

    def summary(self) -> bytes:
        """Return which records are here: node (7 bytes) and number (8) of each, in order."""
        return b"".join(
            sorted(
                _LINE.pack(*split_name(name), entry.record.number)
                for name, entry in self.entries.items()
            )
        )

    def digest(self) -> bytes:
        """Return 32 bytes that are the same where the tables are."""
        return sha256(self.summary()).digest()

    def lacking(self, summary: bytes) -> list[Entry]:
        """Return the records that are newer than those in a summary, or not in it.

        :raises RecordError: it is no summary.
        """
        theirs = dict(_summary(summary))
        return [
            entry
            for name, entry in self.entries.items()
            if entry.record.number > theirs.get(name, -1)
        ]


def _summary(data: bytes) -> Iterator[tuple[str, int]]:
    if len(data) > MAX_SUMMARY or len(data) % _LINE.size:
        raise RecordError(f"a summary of {len(data)} bytes")
    for source, identity, number in _LINE.iter_unpack(data):
        if source >= len(SOURCES):
            raise RecordError("a summary with a source of identities that is none")
        yield node_name(SOURCES[source], identity), number


class Members:
    """Who was heard of in the cluster within the last days, this node's own restarts included.

    What counts is the time in which this node ran: who was off itself has missed nobody.

    :param ages: seconds since each was heard of, as :meth:`ages` returned them before a restart.
    """

    def __init__(self, ages: dict[str, float] | None = None, now: float = 0.0) -> None:
        self._heard = {name: now - age for name, age in (ages or {}).items()}

    def hear(self, names: Iterable[str], now: float) -> None:
        """These were heard of now."""
        for name in names:
            if name in self._heard or len(self._heard) < MOST_NODES:
                self._heard[name] = now

    def ages(self, now: float) -> dict[str, float]:
        """Return the seconds since each was heard of; who was silent for too long is forgotten."""
        self._heard = {name: at for name, at in self._heard.items() if now - at < KEEP}
        return {name: now - at for name, at in self._heard.items()}


def pack_members(ages: dict[str, float]) -> bytes:
    """Return the file that keeps :meth:`Members.ages` over a restart."""
    return "".join(f"{name} {int(age)}\n" for name, age in sorted(ages.items())).encode()


def unpack_members(data: bytes) -> dict[str, float]:
    """Read that file; lines that are damaged are left out."""
    found: dict[str, float] = {}
    for line in data.decode("ascii", "replace").split("\n")[:MOST_NODES]:
        name, _, age = line.partition(" ")
        try:
            split_name(name)
            if age.isdecimal() and len(age) < 10:
                found[name] = float(age)
        except ValueError:
            continue
    return found
