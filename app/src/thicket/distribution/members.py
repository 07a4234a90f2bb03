# SPDX-License-Identifier: Apache-2.0
"""``thicket_membership``: the process by which Thicket nodes tell each other who is in the cluster.

It runs the :class:`~thicket.distribution.roster.Roster`, tells which nodes are suspected to be
lost, and ends connections that nobody needs any more. Nodes of Erlang have no process of this name;
nothing of the roster is sent to a node that does not say in the handshake that it keeps one.

    {suspect, Name}                     I suspect that this node is lost
    {wish, Keeps, Chose}                what I want of this connection
    {sum, Integer}                      of my ledger
    {sums, [Integer]}                   of its parts
    {versions, [Part], [Key]}           what I have of some parts; Key is {Origin, Topic, Version}
    {want, [{Origin, Topic}]}           send me these statements
    {records, [{Origin, Topic, Version, Body}]}
    bye                                 let us end this connection, nobody uses it
    {bye, now}                          the same, as I have many such connections
    stay                                no
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from thicket.base.pace import uniform
from thicket.base.process import boottime
from thicket.distribution.etf import Atom
from thicket.distribution.events import MemberDown, MemberUp, Suspected
from thicket.distribution.handshake import ROSTER, DistributionError, key_of
from thicket.distribution.ledger import BUCKETS, Record
from thicket.distribution.processes import Process
from thicket.distribution.roster import (
    BATCH,
    MAX_LINKS,
    Action,
    Came,
    Doubted,
    Message,
    Records,
    Roster,
    Send,
    Stated,
    Sum,
    Sums,
    Versions,
    Want,
    Went,
    Wish,
    Wished,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from thicket.distribution.connection import Connection
    from thicket.distribution.events import ClusterEvent
    from thicket.distribution.node import Node

log = logging.getLogger(__name__)

NAME = "thicket_membership"

IDLE = 30.0
"""Seconds without use after which a connection ends that nobody wants or needs."""

LOOK = 5.0
"""Seconds between two looks for such connections, and for the answer of the other end."""

MOST = 16
"""Connections that nobody wants, beyond which the one that was used least lately ends ..."""

RESTS = 0.5
"""... when it has not been used for so many seconds."""

AT_ONCE = 8
"""Nodes that are being connected at the same time because something is to be sent to them."""

TURN = 2.0
"""Seconds after which another attempt begins, though one of so many has not ended."""

MAX_KEYS = 8 * BATCH * MAX_LINKS
"""Limit of keys in a message."""

_SUSPECT, _WISH, _SUM, _SUMS = Atom("suspect"), Atom("wish"), Atom("sum"), Atom("sums")
_VERSIONS, _WANT, _RECORDS = Atom("versions"), Atom("want"), Atom("records")
_BYE, _STAY, _NOW = Atom("bye"), Atom("stay"), Atom("now")


def pack(message: Message) -> tuple[Any, ...]:
    """Return a message of the roster as a term."""
    match message:
        case Wished(wish):
            return _WISH, wish.keeps, wish.chose
        case Sum(total):
            return _SUM, total
        case Sums(sums):
            return _SUMS, sums
        case Versions(parts, versions):
            keys = [(o.encode(), t.encode(), version) for (o, t), version in versions.items()]
            return _VERSIONS, parts, keys
        case Want(keys):
            return _WANT, [(origin.encode(), topic.encode()) for origin, topic in keys]
        case Records(records):
            return _RECORDS, [(o.encode(), t.encode(), v, body) for o, t, v, body in records]


def unpack(term: Any) -> Message | None:
    """Return the message of the roster that a term is; None if it is none."""
    try:
        match term:
            case ("wish", bool() as keeps, bool() as chose):
                return Wished(Wish(keeps, chose))
            case ("sum", int() as total):
                return Sum(total)
            case ("sums", list() as sums) if len(sums) == BUCKETS and _are(sums, int):
                return Sums(sums)
            case ("versions", list() as parts, list() as keys) if _fit(parts, keys):
                return Versions(parts, {(_text(o), _text(t)): _number(v) for o, t, v in keys})
            case ("want", list() as keys) if len(keys) <= MAX_KEYS:
                return Want([(_text(origin), _text(topic)) for origin, topic in keys])
            case ("records", list() as records) if len(records) <= BATCH:
                return Records(
                    [Record(_text(o), _text(t), _number(v), _bytes(b)) for o, t, v, b in records]
                )
    except (TypeError, ValueError):  # other elements, or another number of them
        pass
    return None


def _fit(parts: list[Any], keys: list[Any]) -> bool:
    return len(parts) <= BUCKETS and _are(parts, int) and len(keys) <= MAX_KEYS


def _are(values: list[Any], kind: type) -> bool:
    return all(type(value) is kind for value in values)


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise TypeError("bytes were expected")
    return value


def _text(value: Any) -> str:
    return _bytes(value).decode()


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a number was expected")
    return value


class Members(Process):
    """``thicket_membership`` on one node.

    :param tell: called with the events of members.
    :ivar roster: who is in the cluster.
    :ivar since: since when, in seconds of CLOCK_BOOTTIME.
    :ivar ended: connections that were ended because nobody used them.
    :ivar turns: places for attempts to connect.
    """

    answers = False
    pins = False

    def __init__(
        self, node: Node, tell: Callable[[ClusterEvent], None], expected: Callable[[str], bool]
    ) -> None:
        super().__init__(node)
        self.roster = Roster(node.name, uniform, expected=expected)
        self.since: dict[str, float] = {}
        self.ended = 0
        self.turns = asyncio.Semaphore(AT_ONCE)
        self._node = node
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None
        self._look: asyncio.TimerHandle | None = None
        self._trimming: asyncio.TimerHandle | None = None
        self._leaving: dict[str, asyncio.Future[None]] = {}
        self._reaching: set[asyncio.Task[None]] = set()
        self._stopped = False

    # --- facts --------------------------------------------------------------------------------

    def up(self, connection: Connection) -> None:
        """A node is connected."""
        self.roster.peer_up(
            connection.key,
            self._now(),
            speaks=connection.has(ROSTER),
            hidden=not connection.peer.published,
        )
        self._step()
        self._trim()

    def down(self, connection: Connection, reason: DistributionError) -> None:
        """A connection has ended."""
        self._settle(connection.key)
        self.roster.peer_down(connection.key, self._now())
        self._step(reason, connection.name)

    def choose(
        self, chosen: Iterable[str], *, keeps_all: bool, partial: bool | None = None
    ) -> None:
        """Choose neighbours, see :meth:`.Roster.choose`."""
        keys = {key_of(name) for name in chosen}
        self.roster.choose(keys, keeps_all=keeps_all, partial=partial, now=self._now())
        self._step()

    def state(self, topic: str, body: bytes) -> None:
        """Let all nodes know something of this one, see :meth:`.Roster.state`."""
        self.roster.state(topic, body, self._now())
        self._step()

    # --- messages -----------------------------------------------------------------------------

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if connection is None:
            return
        match message:
            case ("suspect", (str() | bytes()) as name):
                text = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
                self._suspected(text, connection.name)
            case "bye":
                self._asked_to_end(connection, IDLE / 2)
            case ("bye", "now"):
                self._asked_to_end(connection, RESTS / 2)
            case "stay":
                self._settle(connection.key)
            case _:
                self._received(connection, message)

    def _received(self, connection: Connection, message: Any) -> None:
        found = unpack(message)
        if found is None:
            self.roster.dropped["form"] += 1
            return
        self.roster.receive(connection.key, found, self._now())
        self._step()

    def share_suspicion(self, name: str) -> None:
        """Tell the connected nodes that we suspect ``name`` to be lost."""
        for key, connection in self._node.connections.items():
            if key != key_of(name):
                self._send(connection, (_SUSPECT, name.encode()))

    def _suspected(self, name: str, by: str) -> None:
        if key_of(name) in self._node.connections:
            self._tell(Suspected(self._node.spelling(name), by))

    def _send(self, connection: Connection, message: Any) -> None:
        used = connection.used
        self.node.send_to_name(connection, self.pid, NAME, message)
        connection.used = used  # who is in the cluster is no use of a connection

    # --- time ---------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _step(self, reason: DistributionError | None = None, spelt: str = "") -> None:
        """Do what is due.

        :param reason: why a connection has just ended, with ``spelt``, the name of its node.
        """
        now = self._now()
        actions = self.roster.step(now)
        while actions:
            for action in actions:
                self._do(action, reason, spelt)
            actions = self.roster.step(now)
        if self._stopped:
            return
        self._node.casts.follow()
        due = self.roster.due()
        if self._timer is None or self._timer.when() != due:
            self._rest()
            if due < float("inf"):
                self._timer = asyncio.get_running_loop().call_at(due, self._on_due)
        if self.roster.active and self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK, self._end_idle)
            for scope in self._node.scopes.values():
                scope.restate()

    def _on_due(self) -> None:
        self._timer = None
        self._step()

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _do(self, action: Action, reason: DistributionError | None, spelt: str) -> None:
        node = self._node
        match action:
            case Send(peer, message):
                connection = node.connections.get(peer)
                if connection is not None:
                    self._send(connection, pack(message))
            case Came(name):
                self.since[name] = boottime()
                self._tell(MemberUp(node.spelling(name)))
            case Went(name, direct):
                self.since.pop(name, None)
                if direct and reason is not None:
                    self._tell(MemberDown(spelt or name, reason.code, str(reason)))
                else:
                    words = "no node of the cluster is connected with it any more"
                    self._tell(MemberDown(name, "lost", words))
            case Doubted(name, by):
                self._suspected(name, by)
            case Stated(record):
                for scope in node.scopes.values():
                    scope.on_stated(record)

    def reach(self, node: str, then: Callable[[Connection | None], None]) -> None:
        """Connect with a node, and call ``then`` with the connection, or None."""

        async def connect() -> None:
            connection = None
            with suppress(DistributionError):
                connection = await self._node.connection_to(node, None)
            then(connection)

        task = asyncio.create_task(connect(), name=f"reach {node}")
        self._reaching.add(task)
        task.add_done_callback(self._reaching.discard)

    def on_stop(self) -> None:
        self._stopped = True
        self._rest()
        for task in self._reaching:
            task.cancel()
        for timer in (self._look, self._trimming):
            if timer is not None:
                timer.cancel()
        for key in list(self._leaving):
            self._settle(key)

    # --- the end of connections ---------------------------------------------------------------

    def _end_idle(self) -> None:
        """Propose the end of connections that nobody uses."""
        self._look = asyncio.get_running_loop().call_later(LOOK, self._end_idle)
        for key in list(self._leaving):
            self._settle(key)  # there was no answer
        for key, connection in self._node.connections.items():
            if self._is_idle(connection, IDLE):
                self._leaving[key] = asyncio.get_running_loop().create_future()
                self._send(connection, _BYE)

    def _trim(self) -> None:
        """Propose the end of connections that nobody wants, if there are many."""
        if self._trimming is not None:
            self._trimming.cancel()
            self._trimming = None
        roster = self.roster
        if not roster.active or self._stopped:
            return
        spare = [c for key, c in self._node.connections.items() if not roster.wants(key)]
        excess = len(spare) - len(self._leaving.keys() & {c.key for c in spare}) - MOST
        if excess <= 0:
            return
        for connection in sorted(spare, key=lambda c: c.used):
            if excess and connection.key not in self._leaving and self._is_idle(connection, RESTS):
                excess -= 1
                self._leaving[connection.key] = asyncio.get_running_loop().create_future()
                self._send(connection, (_BYE, _NOW))
        self._trimming = asyncio.get_running_loop().call_later(RESTS, self._trim)

    def _is_idle(self, connection: Connection, seconds: float) -> bool:
        key = connection.key
        return (
            not self.roster.wants(key)
            and self.roster.reaches(key)
            and self._now() - connection.used >= seconds
            and not connection.unsent
            and not any(p.pins and p.needs(connection) for p in self._node.processes())
        )

    def _asked_to_end(self, connection: Connection, seconds: float) -> None:
        if self._is_idle(connection, seconds):
            self.ended += 1
            words = "nobody used it; other nodes stay in touch with this one"
            connection.close(DistributionError("idle", words))
        else:
            self._send(connection, _STAY)

    def _settle(self, key: str) -> None:
        waiting = self._leaving.pop(key, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def is_leaving(self, key: str) -> bool:
        """Return whether the end of a connection was proposed, and the answer is not there yet."""
        return key in self._leaving

    async def settled(self, key: str) -> None:
        """Wait until a connection whose end was proposed has ended, or stays."""
        waiting = self._leaving.get(key)
        if waiting is not None:
            await asyncio.shield(waiting)
