# SPDX-License-Identifier: Apache-2.0
"""A node of a Distributed Erlang cluster.

:class:`Node` listens on the node's own address, keeps one connection to each other node, answers
the requests of stock Erlang and Elixir nodes, and offers functions, messages, groups and events of
all nodes to Python applications. It connects on request, or to send something; the caller decides
which nodes stay connected.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from thicket.base.patience import Allowance
from thicket.base.process import boottime
from thicket.distribution import casts, frames, members, services
from thicket.distribution.admission import Admission
from thicket.distribution.atoms import GEN_CALL, IS_AUTH, NOBODY, UNDEFINED, YES
from thicket.distribution.connector import Connector, Maker
from thicket.distribution.epmd import PORT as EPMD_PORT
from thicket.distribution.etf import Atom, Message, Pid, Reference, decode_bare, shown
from thicket.distribution.events import Announcer, NodeDown, NodeUp
from thicket.distribution.handshake import (
    ABILITIES,
    DIST_MONITOR_NAME,
    OURS,
    PUBLISHED,
    SEND_SENDER,
    SETUP_TIME,
    THEIRS,
    Acceptor,
    DistributionError,
    HandshakeError,
    Initiator,
    LocalNode,
    RemoteNode,
    key_of,
    split_name,
)
from thicket.distribution.identifiers import Identifiers
from thicket.distribution.listening import Listening
from thicket.distribution.members import Members
from thicket.distribution.processes import Name, Process, ProcessTable, copy
from thicket.distribution.signals import Signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from ipaddress import IPv6Address

    from thicket.base.events import Listener
    from thicket.distribution.calling import RemoteTask
    from thicket.distribution.calls import Calls
    from thicket.distribution.connection import Connection
    from thicket.distribution.events import ClusterEvent
    from thicket.distribution.groups import Scope, Subscription
    from thicket.distribution.mailbox import Mailbox, NodeEvents
    from thicket.distribution.secure import Tls

log = logging.getLogger(__name__)

DEFAULT_PORT = 9100
DEFAULT_TICK_TIME = 15.0

CALL_TIME = 5.0
"""Default seconds that a call may take, as in Erlang."""

MAILBOX_LIMIT = 1000
"""Default limit of messages, or events, in a queue."""

_SIGN_LOOK = 0.05
"""Seconds between two looks for a sign of life of a node that is probed."""

Function = TypeVar("Function", bound="Callable[..., Any]")


class NodeInfo(NamedTuple):
    """A node of the cluster as seen from here.

    :ivar name: in the node's own spelling once it is connected, until then in the caller's.
    :ivar state: ``up`` or ``connecting``.
    :ivar since: when that state began, in seconds of CLOCK_BOOTTIME.
    :ivar direct: this node is connected with it. Otherwise it is up as others see it, and is
        connected when something is sent to it.
    """

    name: str
    state: str
    since: float
    direct: bool = True


class Node(ProcessTable):
    """This device's node.

    :param name: the part before ``@``, or the full name. This node's name has the address in
        canonical form; the names of others may have any spelling.
    :param cookie: the cluster's shared word. It keeps clusters apart, and does not protect against
        an attacker on the same network.
    :param address: the address to listen on and to connect from. It may appear later.
    :param port: the port to listen on, and to try at peers of which no port is known; 0 for any
        free one.
    :param tick_time: seconds of silence after which a peer counts as lost, Erlang's
        ``net_ticktime``; that of others may differ.
    :param listener: receives the events (:mod:`.events`).
    :param epmd_port: the port mapper's port; None to neither ask one nor answer as one.
    :param published: be visible, unlike Erlang's hidden nodes.
    :param check_source: refuse a peer whose name has another address than it connects from.
    :param setup_time: seconds that a handshake may take, Erlang's ``net_setuptime``.
    :param max_message: longest message accepted, in bytes.
    :param max_held: bytes of all incomplete messages together; by default four of the longest.
    :param tls: talk only inside mutual TLS: :class:`.file_tls.FileTls`, or that of a fleet. The
        cookie is needed as well.
    :raises ValueError: name or cookie cannot be used.
    :ivar host: the address, in canonical form.
    :ivar alive: the part of the name before ``@``.
    :ivar local: what the node says about itself in handshakes.
    :ivar membership: who is in the cluster.
    :ivar casts: messages to groups on nodes that are not connected.
    :ivar scopes: the scopes of groups that exist on this node, by name.
    :ivar pid: the default sender of messages.
    """

    def __init__(
        self,
        name: str,
        cookie: str,
        address: IPv6Address,
        port: int = DEFAULT_PORT,
        *,
        tick_time: float = DEFAULT_TICK_TIME,
        listener: Listener[ClusterEvent] | None = None,
        epmd_port: int | None = EPMD_PORT,
        published: bool = True,
        check_source: bool = True,
        setup_time: float = SETUP_TIME,
        max_message: int = frames.MAX_MESSAGE,
        max_held: int | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.host = str(address)
        self.alive = _alive(name, self.host)
        full = f"{self.alive}@{self.host}"
        _check_cookie(cookie)
        if tick_time <= 0:
            raise ValueError(f"a tick time is greater than 0 seconds, not {tick_time}")
        super().__init__(full, self.identify(full), tick_time)
        self.counters.update(dict.fromkeys(("accepted", "connected", "discarded"), 0))
        flags = ABILITIES | (PUBLISHED if published else 0)
        self.local = LocalNode(full, cookie, self.creation, flags)

        self._announcer = Announcer(listener)
        tell = self._announcer.tell
        self._maker = Maker(
            self,
            tick_time=tick_time,
            setup_time=setup_time,
            max_message=max_message,
            room=frames.Room(4 * max_message if max_held is None else max_held),
            tls=tls,
        )
        self._listening = Listening(
            self.host, port, epmd_port=epmd_port, hidden=not published, tell=tell
        )
        self._admission = Admission(
            full, self.connections, tls=tls, check_source=check_source, tell=tell
        )
        self._connector = Connector(
            self._maker,
            self.connections,
            self._listening,
            epmd_port=epmd_port,
            arriving=self._admission.handshakes.has_nameless,
            local=lambda: self.local,
            tell=tell,
        )
        self._signals = Signals(self, self._on_spawn_request)
        self._since: dict[str, float] = {}  # by key, as the connections
        self.scopes: dict[str, Scope] = {}
        self._calls: Calls | None = None

        kernel = services.NetKernel(self)
        self.pid = kernel.pid
        self.register("net_kernel", kernel)
        self.register("rex", services.Rex(self))
        logger = services.Logger(self)
        for known in logger.NAMES:
            self.register(known, logger)
        self.membership = Members(self, tell, self._expects)
        self.register(members.NAME, self.membership)
        self.casts = casts.Casts(self)
        self.register(casts.NAME, self.casts)

    def identify(self, name: str) -> Identifiers:
        """Return the identifiers of this start of the node."""
        return Identifiers.of_new_start(name)

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to listen, and to answer as port mapper; returns at once.

        While the address does not exist (no interface has it, or duplicate address detection runs)
        or the port is taken, listening is tried again for ever, and :meth:`problems` says so.
        """
        self._listening.start(self.local, self.accept)
        await asyncio.sleep(0)  # usually enough to listen

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        await self._connector.stop()
        await self._listening.stop()
        if self._calls is not None:
            self._calls.stop()
            await asyncio.sleep(0)  # callers still learn of the end
        for process in self.processes():
            process.on_stop()
        reason = DistributionError("stopped", f"{self.name} is stopping")
        for connection in (*self.connections.values(), *self._admission.handshakes):
            connection.close(reason)
        self._announcer.close()

    @property
    def listening(self) -> bool:
        """Whether others can connect with this node."""
        return self._listening.ready

    @property
    def port(self) -> int:
        """The port to listen on, and to try at peers of which no port is known."""
        return self._listening.port

    @port.setter
    def port(self, port: int) -> None:
        self._listening.port = port

    @property
    def max_message(self) -> int:
        """Longest message accepted, in bytes."""
        return self._maker.max_message

    # --- state --------------------------------------------------------------------------------

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes of the cluster, and those that are being connected, by name."""
        known = [
            NodeInfo(connection.name, "up", self._since.get(key, 0.0))
            for key, connection in self.connections.items()
        ]
        known += [
            NodeInfo(attempt.peer, "connecting", attempt.since)
            for key, attempt in self._connector.attempts.items()
            if key not in self.connections and key not in self.membership.since
        ]
        known += [
            NodeInfo(key, "up", since, direct=False)
            for key, since in self.membership.since.items()
            if key not in self.connections
        ]
        return sorted(known)

    @property
    def encrypted(self) -> bool:
        """Whether every connection of this node is inside TLS."""
        return self._maker.encrypted

    def expect(self, expected: Callable[[str], bool]) -> None:
        """Reserve places for the handshakes of members.

        :param expected: returns whether a member is known to be at an address (canonical text).
        """
        self._admission.handshakes.expected = expected

    def connected(self, peer: str) -> bool:
        """Return whether ``peer`` is connected."""
        return key_of(peer) in self.connections

    def spelling(self, peer: str) -> str:
        """Return the name of a connected node in its own spelling, any other name unchanged."""
        key = key_of(peer)
        known = self.connections.get(key)
        return known.name if known is not None else self.name if key == self.name else peer

    def problems(self) -> list[dict[str, Any]]:
        """Return what prevents this node from working: part, code, message, since."""
        return self._listening.problems()

    def statistics(self) -> dict[str, Any]:
        """Return the counters of connections and messages, the state of the port mapper, and by
        reason how often we refused (``refused``) and were refused (``refused_by``)."""
        refusals = self._admission.refusals.counters
        held = sum(connection.discarded for connection in self.connections.values())
        return {
            **self.counters,
            "simultaneous": self._connector.simultaneous,
            "abandoned": self._admission.abandoned,
            "discarded": self.counters["discarded"] + held,
            "refused": dict(refusals[OURS]),
            "refused_by": dict(refusals[THEIRS]),
            "handshakes": len(self._admission.handshakes),
            "epmd": self._listening.statistics(),
        }

    # --- connecting ---------------------------------------------------------------------------

    async def connect(self, peer: str, timeout: float | None = None) -> None:
        """Connect to ``peer`` unless it is connected.

        The port is that of the last connection, or our own number; where nobody answers there, or
        somebody else, the peer's port mapper is asked.

        :param peer: its full name, the address in any spelling.
        :param timeout: seconds to wait; by default as long as an attempt may take.
        :raises DistributionError: it failed; codes ``bad-name``, ``unreachable``, ``timeout``,
            ``closed`` and those of :class:`HandshakeError`.
        """
        await self._connector.connect(peer, timeout)

    def disconnect(self, peer: str, reason: str = "disconnected on request") -> bool:
        """End the connection to ``peer``; False when there is none."""
        connection = self.connections.get(key_of(peer))
        if connection is None:
            return False
        connection.close(DistributionError("disconnected", reason))
        return True

    async def ping(self, peer: str, timeout: float = 5.0) -> float:
        """Ask ``peer``, which may be this node, for a sign of life as ``net_adm:ping`` does.

        :returns: the round-trip time in seconds; the time to connect, if necessary, is not counted.
        :raises DistributionError: there is no answer within ``timeout`` seconds.
        """
        loop = asyncio.get_running_loop()
        begin = loop.time()
        if key_of(peer) != self.name:
            await self.connect(peer, timeout)
        sent = loop.time()
        left = max(timeout - (sent - begin), 0.01)
        answer = await self.request(("net_kernel", peer), (IS_AUTH, Atom(self.name)), left)
        if answer != YES:
            raise DistributionError("not-allowed", f"{peer} answered {shown(answer)} to a ping")
        return loop.time() - sent

    async def probe(self, peer: str, seconds: float) -> bool:
        """Ask a connected node that is suspected to be lost for a sign of life.

        This tells sooner than missing ticks; :meth:`give_up` then ends the connection. Any byte
        from it counts, and so does an acknowledgement by its kernel: a node whose program is slow
        is not lost, and ticks tell when it stands still for long.

        :param seconds: how long to wait, in seconds in which this node ran.
        :returns: whether there was one, as soon as there is; False as well when the node is not
            connected.
        """
        key = key_of(peer)
        connection = self.connections.get(key)
        if connection is None:
            return False
        loop = asyncio.get_running_loop()
        begin = loop.time()
        left = Allowance(seconds)
        asked = loop.create_task(
            self.request(("net_kernel", peer), (IS_AUTH, Atom(self.name)), timeout=None)
        )
        try:
            while True:
                await asyncio.sleep(_SIGN_LOOK)
                over = left.over
                if self.connections.get(key) is not connection:
                    return key in self.connections
                if connection.heard > begin:
                    return True
                if connection.acknowledged_within(loop.time() - begin):
                    return True
                if over:
                    return False
        finally:
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    def give_up(self, peer: str) -> None:
        """End the connection to a node that gave no sign of life, with the code ``lost``."""
        connection = self.connections.get(key_of(peer))
        if connection is not None:
            connection.close(DistributionError("lost", f"{peer} gave no sign of life"))
            connection.abort()

    def share_suspicion(self, peer: str) -> None:
        """Tell the other nodes that we suspect ``peer`` to be lost."""
        self.membership.share_suspicion(peer)

    def choose(
        self, chosen: Iterable[str], *, keeps_all: bool, partial: bool | None = None
    ) -> None:
        """Choose this node's neighbours in the cluster.

        :param chosen: their names.
        :param keeps_all: this node is to be connected with all others. Otherwise connections that
            neither end has chosen or needs end after a time without use.
        :param partial: it is not connected with all, and nodes know each other by their neighbours;
            by default when it does not keep all.
        """
        self.membership.choose(chosen, keeps_all=keeps_all, partial=partial)

    def _expects(self, name: str) -> bool:
        return self._admission.handshakes.expected(name.rpartition("@")[2])

    # --- events of connections, see connection.Owner ------------------------------------------

    def accept(self) -> asyncio.BufferedProtocol:
        """Return the protocol of a connection that somebody else makes."""
        return self._maker.protocol(self._accepting(self.local, self._maker.length_size), None)

    def admit(self, address: str, cookie: str) -> Connection:
        """Return the protocol of a connection whose peer has proven elsewhere who he is.

        :param address: the one that stands in his name, in canonical form.
        :param cookie: what both sides have to know; the cluster's plays no part.
        """
        return self._accepting(self.local._replace(cookie=cookie), 2, address)

    def _accepting(self, local: LocalNode, length_size: int, guest: str = "") -> Connection:
        def decide(remote: RemoteNode) -> str:
            asking = known()
            if asking is None:  # it is gone, so nobody reads the answer
                raise HandshakeError("closed", "the connection has ended")
            self._admission.judge(asking, remote.name)
            return self._connector.welcome(asking, remote.name)

        connection = self._maker.make(Acceptor(local, decide, length_size), guest)
        known = weakref.ref(connection)  # weak, as the connection holds the acceptor
        return connection

    def on_opened(self, connection: Connection) -> None:
        if not connection.outgoing:
            self._admission.handshakes.add(connection)

    def on_secured(self, connection: Connection) -> None:
        # A node that connects to us is checked when it has told its name.
        if isinstance(connection.handshake, Initiator):
            self._admission.check(connection, connection.handshake.wanted)

    def recheck(self) -> list[str]:
        """Check the certificates of all connected nodes again, as after a revocation.

        Handshakes in progress are checked as well. The connection to a node that is refused now is
        closed with the code of the refusal.

        :returns: the names of the refused nodes.
        """
        return self._admission.recheck(self._connector.dialled)

    def on_connected(self, connection: Connection) -> None:
        name, key = connection.name, connection.key
        self._admission.handshakes.discard(connection)
        old = self.connections.pop(key, None)
        if old is not None:
            self._lost(old, DistributionError("replaced", f"{name} connected anew"))
            old.close(DistributionError("replaced", f"{name} connected anew"))
        self.connections[key] = connection
        self._since[key] = boottime()
        self.counters["connected" if connection.outgoing else "accepted"] += 1
        self._connector.connected(connection)
        log.info("%s is up", name)
        if self.local.flags & PUBLISHED and connection.peer.published:
            services.greet_global(self, connection)
        for scope in self.scopes.values():
            scope.discover(connection)
        self._connector.wake(key)
        self._announcer.tell(NodeUp(name))
        self.membership.up(connection)

    def on_silence(self, connection: Connection) -> None:
        # Erlang's runtime itself answers at once that there is no process called ``undefined``,
        # which nobody can register; no process of the peer takes part. Nodes in C and Java answer
        # ticks.
        if connection.has(DIST_MONITOR_NAME):
            connection.send((frames.MONITOR_P, self.pid, UNDEFINED, self.new_reference()))
        else:
            connection.tick()

    def on_message(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        if control[0] != frames.REG_SEND or members.NAME not in control[3:4]:
            connection.used = connection.heard
        self._signals.on_message(connection, control, payload)

    def on_discarded(self, connection: Connection, control: tuple[Any, ...], head: bytes) -> None:
        self._signals.on_discarded(connection, control, head)

    def on_closed(self, connection: Connection, reason: DistributionError) -> None:
        if connection.established:
            self.counters["discarded"] += connection.discarded
            if self.connections.get(connection.key) is connection:
                del self.connections[connection.key]
                self._lost(connection, reason)
        else:
            self._admission.ended(connection, reason)
            self._connector.ended(connection, reason)

    def _lost(self, connection: Connection, reason: DistributionError) -> None:
        name = connection.name
        self._since.pop(connection.key, None)
        log.info("%s is down: %s", name, reason)
        for process in self.processes():
            process.on_disconnect(connection, reason)
        self._announcer.tell(NodeDown(name, reason.code, str(reason)))
        self.membership.down(connection, reason)
        self.casts.down(connection)

    # --- functions ----------------------------------------------------------------------------

    @property
    def calls(self) -> Calls:
        """The functions that others may call here, and the running ones."""
        if self._calls is None:
            from thicket.distribution.calls import Calls  # only needed when there are calls

            self._calls = Calls(self)
        return self._calls

    @overload
    def export(self, function: Function, /) -> Function: ...

    @overload
    def export(
        self, name: str | None = None, /, *, thread: bool = False
    ) -> Callable[[Function], Function]: ...

    def export(self, function: Any = None, /, *, thread: bool = False) -> Any:
        """Let other nodes call a function or coroutine; they can call nothing else.

        Used as ``@node.export``, ``@node.export("module.function")`` or ``node.export(function)``.
        The default name is the last part of the function's module, and its own name. Arguments are
        checked by their annotations, and converted where Erlang has fewer types (:mod:`.convert`).

        A plain function runs in the event loop and must be short.

        :param thread: run a plain function in a thread, because it takes long.
        :raises ValueError: the name is taken or invalid.
        :raises TypeError: no value of another node can satisfy an annotation.
        """
        from thicket.distribution.exports import function_name

        if function is None or isinstance(function, str):

            def decorate(decorated: Function) -> Function:
                name = function or function_name(decorated)
                self.calls.exports.add(name, decorated, thread=thread)
                return decorated

            return decorate
        self.calls.exports.add(function_name(function), function, thread=thread)
        return function

    def unexport(self, name: str) -> None:
        """Undo the export of ``module.function``; running calls go on."""
        self.calls.exports.remove(name)

    def exports(self) -> list[str]:
        """Return the functions that other nodes may call."""
        return self._calls.exports.names() if self._calls is not None else []

    async def call(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = CALL_TIME
    ) -> Any:
        """Call a function on another node and return its result.

        The node is connected if necessary. When the caller is cancelled, or the time is over, the
        function is stopped: a Python function is cancelled, an Erlang process is asked to exit.

        :param peer: the node's full name; our own is allowed.
        :param function: ``module.function``; of Elixir ``Elixir.Module.function``.
        :param arguments: values that have a form in Erlang (:mod:`.etf`).
        :param timeout: seconds to wait, None to wait for ever.
        :raises RemoteError: the function failed, or does not exist.
        :raises DistributionError: the node cannot be reached, or is lost (``closed``, ``silent``
            ...); CallTimeoutError (``timeout``).
        :raises EncodeError: an argument has no form.
        """
        loop = asyncio.get_running_loop()
        begin = loop.time()
        task = await self.spawn(peer, function, *arguments, timeout=timeout)
        if timeout is None:
            return await task
        left = max(timeout - (loop.time() - begin), 0.0)
        timer = loop.call_later(left, task.expire, timeout)
        try:
            return await task
        finally:
            timer.cancel()

    async def spawn(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = CALL_TIME
    ) -> RemoteTask:
        """Start a function on another node, and return a task to await its result.

        :param timeout: seconds for connecting and for sending the request, not for the function.
        :raises DistributionError: the node cannot be reached.
        """
        from thicket.distribution.calling import RemoteTask
        from thicket.distribution.exports import split_function

        split_function(function)
        if key_of(peer) == self.name:
            task = RemoteTask(self, None, peer, function)
            try:
                task.start_here(self.calls, list(arguments))
            except BaseException:
                self.end(task)
                raise
            return task
        connection = await self.connection_to(peer, timeout)
        task = RemoteTask(self, connection, peer, function)
        try:
            control, term = task.request(list(arguments), self.calls.group_leader)
            payload = connection.encode(term)
            task.size = len(payload)
            await self._send_within(connection, control, payload, timeout)
        except BaseException:
            self.end(task)
            raise
        return task

    async def cast(self, peer: str, function: str, /, *arguments: Any) -> None:
        """Run a function on another node without waiting for its result.

        :raises DistributionError: the node cannot be reached.
        """
        from thicket.distribution.calling import cast_request
        from thicket.distribution.exports import split_function

        split_function(function)
        if key_of(peer) == self.name:
            module, name = map(Atom, split_function(function))
            copied = copy(list(arguments))
            self.calls.start(self.pid, module, name, copied, None)
            return
        connection = await self.connection_to(peer, None)
        control, term = cast_request(
            self, function, list(arguments), self.pid, self.calls.group_leader
        )
        await connection.send_in_turn(control, connection.encode(term))

    def _on_spawn_request(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self.calls.on_request(connection, control, payload)

    # --- messages -----------------------------------------------------------------------------

    def mailbox(self, name: str | None = None, limit: int = MAILBOX_LIMIT) -> Mailbox:
        """Return a new process whose messages are taken out with ``await`` or ``async for``.

        :param name: register it under this name, by which other nodes reach it.
        :param limit: number of messages that may wait.
        :raises ValueError: the name is taken.
        """
        from thicket.distribution.mailbox import Mailbox

        made = Mailbox(self, limit)
        if name is not None:
            try:
                self.register(name, made)
            except ValueError:
                made.close()
                raise
        return made

    async def send(
        self, target: Pid | Name | Reference | str, message: Any, *, sender: Process | None = None
    ) -> None:
        """Send ``message`` to a process; waits while the connection is busy.

        The node is connected if necessary. As in Erlang, the sender does not learn whether the
        process exists.

        :param target: a pid, a registered name ``(name, node)``, an alias, or a name that is
            registered on this node.
        :param sender: the sending process; messages of one sender to one receiver arrive in order.
        :raises DistributionError: the node cannot be reached.
        :raises EncodeError: ``message`` has no form in Erlang.
        """
        if isinstance(target, str):
            target = self.own_name(target)
        known = self.connections.get(key_of(_node_of(target)))
        await self.send_encoded(
            sender.pid if sender is not None else self.pid,
            target,
            Message(message, text=known is None or known.text),
        )

    async def send_encoded(
        self, sender: Pid, target: Pid | Name | Reference, message: Message
    ) -> None:
        """Send an encoded message, see :meth:`send`."""
        node = _node_of(target)
        if key_of(node) == self.name:
            process: Process | None
            if isinstance(target, Reference):
                process = self.aliased(target)
            else:
                process = self.find(target if isinstance(target, Pid) else Atom(target[0]))
            if process is not None:
                await process.room()
                self.give(None, process, decode_bare(message.form(True))[0])
            return
        connection = await self.connection_to(node, None)
        control: tuple[Any, ...]
        if isinstance(target, Pid):
            control = (
                (frames.SEND_SENDER, sender, target)
                if connection.has(SEND_SENDER)
                else (frames.SEND, NOBODY, target)
            )
        elif isinstance(target, Reference):
            control = (frames.ALIAS_SEND, sender, target)
        else:
            control = (frames.REG_SEND, sender, NOBODY, Atom(target[0]))
        await connection.send_in_turn(control, message.form(connection.text))

    async def request(
        self, target: Pid | Name | str, request: Any, timeout: float | None = CALL_TIME
    ) -> Any:
        """Ask a process and return its answer, as ``gen_server:call`` does.

        :param target: a pid, ``(name, node)``, or a name that is registered here.
        :raises DistributionError: ``noproc``, there is no such process, or it ends;
            ``system-limit``, request or answer are longer than a node accepts; ``timeout``; those
            of :meth:`connect`.
        """
        from thicket.distribution.failures import CallTimeoutError

        if isinstance(target, str):
            target = self.own_name(target)
        peer = str(target.node) if isinstance(target, Pid) else target[1]
        local = key_of(peer) == self.name
        connection = None if local else await self.connection_to(peer, timeout)
        call = services.Call(self, connection)
        self.add(call)
        item = target if isinstance(target, Pid) else Atom(target[0])
        message = (GEN_CALL, (call.pid, call.reference), request)
        try:
            async with asyncio.timeout(timeout):
                payload = Message(message, text=connection is None or connection.text)
                if connection is None:
                    self.add_watch(None, call.pid, item, call.reference)
                else:
                    connection.send((frames.MONITOR_P, call.pid, item, call.reference), more=True)
                await self.send_encoded(call.pid, target, payload)
                return await call.answer
        except TimeoutError:
            raise CallTimeoutError(
                "timeout", f"{peer} did not answer within {timeout:.3g} seconds"
            ) from None
        finally:
            if connection is not None:
                connection.send((frames.DEMONITOR_P, call.pid, item, call.reference), more=True)
            else:
                self.drop_watch(None, item, call.reference)
            self.end(call)

    # --- nodes --------------------------------------------------------------------------------

    def monitor(self, *, current: bool = True, limit: int = MAILBOX_LIMIT) -> NodeEvents:
        """Return the events of nodes, for ``async for event in node.monitor()``.

        :param current: begin with an event ``up`` for each node of the cluster.
        :param limit: number of events that may wait; beyond it the oldest are dropped.
        """
        from thicket.distribution.mailbox import NodeEvent, NodeEvents

        events = NodeEvents(self._announcer.monitors, limit)
        if current:
            for info in self.nodes():
                if info.state == "up":
                    events.put(NodeEvent("up", info.name))
        return events

    # --- groups -------------------------------------------------------------------------------

    def scope(self, name: str = "pg") -> Scope:
        """Return the process groups of a scope; the first call creates it on this node."""
        known = self.scopes.get(name)
        if known is None:
            from thicket.distribution.groups import Scope

            known = self.scopes[name] = Scope(self, name)
        return known

    def join(self, group: Any, process: Process) -> None:
        """Make a mailbox a member of a group of the scope ``pg``.

        :param group: text for the atom of that name, or any other term.
        """
        self.scope().join(group, process)

    def leave(self, group: Any, process: Process) -> bool:
        """Undo a join; False when the process is no member."""
        return self.scope().leave(group, process)

    def members(self, group: Any) -> list[Pid]:
        """Return the members of a group, of all nodes of the cluster."""
        return self.scope().members(group)

    async def publish(self, group: Any, message: Any) -> int:
        """Send ``message`` to every member of a group, waiting where a connection is busy.

        In a large fleet it goes from neighbour to neighbour (:mod:`.relay`).

        :returns: the number of members that it was sent to.
        """
        return await self.scope().publish(group, message)

    def subscribe(self, group: Any, limit: int = MAILBOX_LIMIT) -> Subscription:
        """Return a new member of a group: ``async for message in node.subscribe(group)``.

        It is a member at once, until the loop is left or it is closed.
        """
        from thicket.distribution.groups import Subscription

        return Subscription(self.scope(), group, limit)

    # --- helpers ------------------------------------------------------------------------------

    async def connection_to(self, peer: str, timeout: float | None) -> Connection:
        """Return the connection to ``peer``, connecting if necessary."""
        key = key_of(peer)
        if self.membership.is_leaving(key):
            await self.membership.settled(key)
        connection = self.connections.get(key)
        if connection is None:
            await self._connect_in_turn(peer, timeout)
            connection = self.connections.get(key)
            if connection is None:
                raise DistributionError("closed", f"the connection to {peer} was closed")
        return connection

    async def _connect_in_turn(self, peer: str, timeout: float | None) -> None:
        """Connect to ``peer``; in a large fleet, where a call to all would otherwise begin as many
        handshakes at once, a few at a time."""
        if not self.membership.roster.active or key_of(peer) in self._connector.attempts:
            await self.connect(peer, timeout)
            return
        try:
            async with asyncio.timeout(timeout):
                async with self.membership.turns:
                    try:
                        await self.connect(peer, members.TURN)
                        return
                    except DistributionError as error:
                        if error.code != "timeout":
                            raise
                await self.connect(peer)  # the attempt goes on
        except TimeoutError:
            raise DistributionError(
                "timeout", f"no connection to {peer} within {timeout:g} seconds"
            ) from None

    def way_to(self, node: str) -> Connection | None:
        if self.membership.is_leaving(key_of(str(node))):
            raise DistributionError("closed", f"the connection to {node} is about to end")
        return super().way_to(node)

    def reach(self, node: str, then: Callable[[Connection | None], None]) -> bool:
        if key_of(node) not in self.membership.since:
            return False
        self.membership.reach(node, then)
        return True

    async def _send_within(
        self,
        connection: Connection,
        control: tuple[Any, ...],
        payload: bytes,
        timeout: float | None,
    ) -> None:
        if not connection.busy:
            connection.send(control, payload)
            return
        try:
            async with asyncio.timeout(timeout):
                await connection.send_in_turn(control, payload)
        except TimeoutError:
            from thicket.distribution.failures import CallTimeoutError

            raise CallTimeoutError(
                "timeout",
                f"{connection.name} took nothing that is sent to it for {timeout:.3g} seconds",
            ) from None


def _node_of(target: Pid | Name | Reference) -> str:
    return str(target[1]) if isinstance(target, tuple) else str(target.node)


def _alive(name: str, host: str) -> str:
    """Return the part before ``@`` of a node's name, which may lack the rest.

    :raises ValueError: a node at the address ``host`` cannot have the name.
    """
    full = name if "@" in name else f"{name}@{host}"
    try:
        alive, named = split_name(full)
    except HandshakeError as error:
        raise ValueError(str(error)) from None
    if named != host:
        raise ValueError(f"a node on {host} cannot be called {full!r}")
    return alive


def _check_cookie(cookie: str) -> None:
    try:
        usable = 0 < len(cookie.encode("latin-1")) <= 255
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ValueError("a cookie has 1 to 255 characters of Latin-1")
