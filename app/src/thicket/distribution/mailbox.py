# SPDX-License-Identifier: Apache-2.0
"""Queues from which Python code takes messages, and events of nodes and processes.

Every queue is bounded. When a :class:`Mailbox` is full, the node stops reading from the node that
fills it, so that the sender has to wait. That also stops everything else from there, so it lasts
for a limited time, after which the oldest messages are dropped and counted.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.distribution.atoms import GEN_CALL, KILL, KILLED, NORMAL
from thicket.distribution.etf import Pid, Reference, shown
from thicket.distribution.handshake import DistributionError
from thicket.distribution.processes import Name, Process, ProcessTable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from thicket.distribution.connection import Connection

log = logging.getLogger(__name__)

LIMIT = 1000
"""Default limit of messages in a mailbox."""

MAX_HOLD = 3.0
"""Most seconds for which reading stops; a peer with the shortest tick time, 4 s, must not believe
that this node is lost."""

HOLD_TIME = 0.25
"""Fraction of the tick time for which the sender of a full mailbox waits."""


class Down(NamedTuple):
    """A watched process has ended: the reference of the watch, the process, why."""

    reference: Reference
    target: Pid | str
    reason: Any


class Exit(NamedTuple):
    """A linked process has ended (``linked``), or a process asks this one to exit: who, why."""

    sender: Pid
    reason: Any
    linked: bool


class Request:
    """A request that waits for an answer, as ``gen_server:call`` sends it.

    :ivar request: what is asked.
    :ivar sender: the process that asks.
    """

    __slots__ = ("_connection", "_process", "_tag", "request", "sender")

    def __init__(
        self, process: Process, connection: Connection | None, sender: Pid, tag: Any, request: Any
    ) -> None:
        self.sender = sender
        self.request = request
        self._process = process
        self._connection = connection
        self._tag = tag

    def reply(self, answer: Any) -> None:
        """Answer; nothing happens when the caller is gone or no longer waits.

        :raises EncodeError: ``answer`` has no form in Erlang.
        """
        self._process.reply(self._connection, self.sender, self._tag, answer)

    def __repr__(self) -> str:
        return f"Request({shown(self.request)} of {self.sender!r})"


class Mailbox(Process):
    """A process whose messages Python code takes out: ``await mailbox.get()``, or ``async for``.

    It delivers messages as they were sent, a :class:`Request` for each ``gen_server:call``, and a
    :class:`Down` or :class:`Exit` after :meth:`watch` and :meth:`link`. ``exit(Pid, kill)`` of any
    process closes the mailbox.

    :param limit: number of messages that may wait.
    :ivar dropped: messages lost because nobody took them out in time.
    """

    def __init__(self, node: ProcessTable, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"a mailbox holds at least one message, not {limit}")
        super().__init__(node)
        self.limit = limit
        self.dropped = 0
        self.closed = False
        self._queue: deque[Any] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._room: deque[asyncio.Future[None]] = deque()
        self._held: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._overflown = False
        node.add(self)

    # --- taking out ---------------------------------------------------------------------------

    async def get(self) -> Any:
        """Return the next message, waiting for it.

        :raises DistributionError: ``closed``, when the mailbox was closed and is empty.
        """
        while not self._queue:
            if self.closed:
                raise DistributionError("closed", "the mailbox is closed")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # another waiter gets the message
                raise
        message = self._queue.popleft()
        if len(self._queue) <= self.limit // 2:
            self._relax()
        return message

    async def __aiter__(self) -> AsyncIterator[Any]:
        while self._queue or not self.closed:
            try:
                message = await self.get()
            except DistributionError:
                return
            yield message

    def __len__(self) -> int:
        return len(self._queue)

    # --- sending ------------------------------------------------------------------------------

    def send(self, target: Pid | Name | Reference | str, message: Any) -> None:
        """Send ``message`` from this process without waiting; :meth:`.Node.send` waits.

        :param target: as for :meth:`.Node.send`.
        :raises DistributionError: ``closed``, the node is not connected; ``noproc``, a name is not
            registered on this node.
        """
        if isinstance(target, str):
            target = self.node.own_name(target)
        if isinstance(target, Pid):
            self.node.send_to(self.node.way_to(target.node), self.pid, target, message)
        elif isinstance(target, Reference):
            self.node.send_to_alias(self.node.way_to(target.node), self.pid, target, message)
        else:
            self.node.send_to_name(self.node.way_to(target[1]), self.pid, target[0], message)

    def watch(self, target: Pid | Name | str) -> Reference:
        """Get a :class:`Down` when ``target`` ends; at once when it does not exist."""
        return self.node.watch(self, target)

    def unwatch(self, reference: Reference) -> None:
        """Undo :meth:`watch`. A :class:`Down` may be in the queue already."""
        self.node.unwatch(self, reference)

    def link(self, target: Pid) -> None:
        """Get an :class:`Exit` when ``target`` ends; it gets one when this mailbox closes."""
        self.node.link(self, target)

    def unlink(self, target: Pid) -> None:
        """Undo a link."""
        self.node.unlink(self, target)

    def exit(self, target: Pid, reason: Any) -> None:
        """Ask ``target`` to exit.

        :raises DistributionError: ``closed``, its node is not connected.
        """
        self.node.exit(self.pid, target, reason)

    def alias(self) -> Reference:
        """Return an address of this mailbox, until :meth:`drop_alias`."""
        return self.node.new_alias(self)

    def drop_alias(self, alias: Reference) -> None:
        """Drop an alias, and messages to it from now on."""
        self.node.drop_alias(alias)

    def close(self, reason: Any = NORMAL) -> None:
        """End the process. The messages in the queue can still be taken out."""
        if self.closed:
            return
        self.closed = True
        self._relax()
        self.node.end(self, reason)
        while self._waiters:
            self._wake()

    async def __aenter__(self) -> Mailbox:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # --- receiving ----------------------------------------------------------------------------

    def on_message(self, connection: Connection | None, message: Any) -> None:
        if type(message) is tuple and len(message) == 3 and message[0] == GEN_CALL:
            match message[1]:
                case (Pid() as sender, tag):
                    # Answers take the way back.
                    if not self.node.speaks_for(connection, sender, "a request"):
                        return
                    message = Request(self, connection, sender, tag, message[2])
        self._put(connection, message)

    def on_down(self, connection: Connection | None, reference: Reference, reason: Any) -> None:
        known = self.watched.pop(reference, None)
        if known is not None:
            self._put(None, Down(reference, known[1], reason))

    def on_exit(
        self, connection: Connection | None, sender: Pid, reason: Any, *, linked: bool
    ) -> None:
        if reason == KILL and not linked:
            self.close(KILLED)
        elif linked or reason != NORMAL:
            self._put(None, Exit(sender, reason, linked))

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        self._held.discard(connection)

    def on_stop(self) -> None:
        self.close()

    async def room(self) -> None:
        if len(self._queue) < self.limit or self.closed or self._overflown:
            return
        self._start_timer()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._room.append(waiter)
        await waiter

    def _put(self, connection: Connection | None, message: Any) -> None:
        if self.closed:
            return
        queue = self._queue
        queue.append(message)
        if self._waiters:
            self._wake()
        if len(queue) < self.limit:
            return
        if connection is not None and not self._overflown:
            connection.hold(self)
            self._held.add(connection)
            self._start_timer()
        if len(queue) > self.limit and (self._overflown or connection is None):
            queue.popleft()
            self.dropped += 1

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(
                min(self.node.tick_time * HOLD_TIME, MAX_HOLD), self._overflow
            )

    def _overflow(self) -> None:
        """Stop waiting for the reader of the mailbox."""
        log.warning(
            "a mailbox of %d messages is full and is not read: the oldest are dropped", self.limit
        )
        self._relax()
        self._overflown = True

    def _relax(self) -> None:
        self._overflown = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        held, self._held = self._held, set()
        for connection in held:
            connection.release(self)
        while self._room:
            waiter = self._room.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return


class NodeEvent(NamedTuple):
    """A node came or went.

    :ivar kind: ``up`` or ``down``.
    :ivar name: the node.
    :ivar code: for ``down``, the reason in one word (``closed``, ``silent``, ``stopped`` ...).
    :ivar reason: for ``down``, the reason as text.
    """

    kind: str
    name: str
    code: str = ""
    reason: str = ""


class NodeEvents:
    """The events of nodes, for ``async for``. Close it, or leave the loop.

    :ivar missed: events that were dropped because nobody took them out in time.
    """

    def __init__(self, sources: list[NodeEvents], limit: int = LIMIT) -> None:
        self.limit = limit
        self.missed = 0
        self._sources = sources
        self._queue: deque[NodeEvent] = deque()
        self._waiter: asyncio.Event = asyncio.Event()
        self.closed = False
        sources.append(self)

    def put(self, event: NodeEvent) -> None:
        """Add an event."""
        if len(self._queue) >= self.limit:
            self._queue.popleft()
            self.missed += 1
        self._queue.append(event)
        self._waiter.set()

    async def get(self) -> NodeEvent:
        """Return the next event, waiting for it.

        :raises DistributionError: ``closed``, after :meth:`close`.
        """
        while not self._queue:
            if self.closed:
                raise DistributionError("closed", "the events are closed")
            self._waiter.clear()
            await self._waiter.wait()
        return self._queue.popleft()

    async def __aiter__(self) -> AsyncIterator[NodeEvent]:
        try:
            while True:
                try:
                    event = await self.get()
                except DistributionError:
                    return
                yield event
        finally:
            self.close()

    def close(self) -> None:
        """Receive no more events."""
        if not self.closed:
            self.closed = True
            self._sources.remove(self)
            self._waiter.set()
