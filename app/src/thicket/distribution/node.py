# SPDX-License-Identifier: Apache-2.0
"""A node of a Distributed Erlang cluster.

:class:`Node` listens on the node's own address, connects to others, keeps one connection to
each, answers what stock Erlang and Elixir nodes ask of every node, and is what applications in
Python use: functions, messages, groups and events of all nodes. It connects when it is told to, or
to send something; whom to keep connected is the caller's decision.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, overload

from thicket.distribution import frames, services
from thicket.distribution.admission import Admission
from thicket.distribution.connection import Connection
from thicket.distribution.epmd import PORT as EPMD_PORT
from thicket.distribution.epmd import EpmdError, PortMapper, listen, lookup
from thicket.distribution.etf import Atom, Message, Pid, Reference, decode_bare, shown
from thicket.distribution.handshake import (
    ABILITIES,
    ALIVE,
    DIST_MONITOR_NAME,
    NOK,
    OK,
    OK_SIMULTANEOUS,
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
from thicket.distribution.processes import (
    GEN_CALL,
    NOBODY,
    UNDEFINED,
    Name,
    Process,
    ProcessTable,
    copy,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv6Address

    from thicket.distribution.calls import Calls, RemoteTask
    from thicket.distribution.groups import Scope, Subscription
    from thicket.distribution.mailbox import Mailbox, NodeEvents
    from thicket.distribution.secure import Shared
    from thicket.distribution.tls import Tls

log = logging.getLogger(__name__)

DEFAULT_PORT = 9100
DEFAULT_TICK_TIME = 15.0

MAX_CONNECTIONS = 1024

MAX_CONNECTIONS_PER_HOST = 16
"""Limit of connected nodes at one address, which one certificate speaks for."""

_EPMD_TIME = 2.0
_CONNECT_TIME = 4.0
_CLOSE_TIME = 2.0
_BIND_INTERVAL = 0.1
_MAX_BIND_INTERVAL = 2.0
_PATIENCE = 10.0  # seconds an address may be missing before that is a problem
_LOG_INTERVAL = 60.0
_LOG_LINES = 30  # of refusals, within that interval
_MAX_REASONS = 64

CALL_TIME = 5.0
"""Default seconds that a call may take, as in Erlang."""

MAILBOX_LIMIT = 1000
"""Default limit of messages, or events, that wait to be taken out."""

Function = TypeVar("Function", bound="Callable[..., Any]")


class NodeInfo(NamedTuple):
    """A node of the cluster as seen from here.

    :ivar name: as the node itself spells it once it is connected, until then as it was asked for.
    :ivar state: ``up`` or ``connecting``.
    :ivar since: when it got into that state, in seconds of CLOCK_BOOTTIME.
    """

    name: str
    state: str
    since: float


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Node(ProcessTable):
    """This device's node.

    :param name: the part before ``@``, or the full name. The node's own has the address in
        canonical form; those of others are taken in any spelling, and are the same node in all.
    :param cookie: the cluster's shared word. It keeps clusters apart; it is no protection
        against an attacker on the same network.
    :param address: the address to listen on and to connect from. It may appear later.
    :param port: the port to listen on, and to try at peers whose port mapper does not know them;
        0 for any free one.
    :param tick_time: seconds of silence after which a peer counts as lost, Erlang's
        ``net_ticktime``; that of others may be another one.
    :param on_change: called with a kind and details: ``connecting`` {name}, ``node-up`` {name},
        ``node-down`` {name, code, reason}, ``suspected`` {name, by} (another node of ours fears
        for one of our peers), ``refused`` {source, name, code, message} (we refused a node) and
        ``refused-by`` with the same details (a node refused us), both not more often than logged,
        ``problem`` and ``recovered`` {part, code, message, since}.
    :param epmd_port: the port mapper's port; None to neither ask nor answer as one.
    :param published: be visible, as opposed to Erlang's hidden nodes.
    :param check_source: refuse a peer whose name has another address than it connects from.
    :param setup_time: seconds that a handshake may take, Erlang's ``net_setuptime``.
    :param max_message: longest message accepted, in bytes.
    :param max_held: bytes of all messages together of which parts are missing; four of the longest
        by default.
    :param tls: talk with others inside mutual TLS and in no other way: :class:`.tls.FileTls`, or
        that of a fleet. A cookie is then needed all the same.
    :raises ValueError: when name or cookie cannot be used.
    """

    def __init__(
        self,
        name: str,
        cookie: str,
        address: IPv6Address,
        port: int = DEFAULT_PORT,
        *,
        tick_time: float = DEFAULT_TICK_TIME,
        on_change: Callable[[str, dict[str, Any]], None] | None = None,
        epmd_port: int | None = EPMD_PORT,
        published: bool = True,
        check_source: bool = True,
        setup_time: float = SETUP_TIME,
        max_message: int = frames.MAX_MESSAGE,
        max_held: int | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.host = str(address)
        full = name if "@" in name else f"{name}@{self.host}"
        try:
            self.alive, host = split_name(full)
        except HandshakeError as error:
            raise ValueError(str(error)) from None
        if host != self.host:
            raise ValueError(f"a node on {self.host} cannot be called {full!r}")
        self.name = f"{self.alive}@{self.host}"
        try:
            usable = 0 < len(cookie.encode("latin-1")) <= 255
        except UnicodeEncodeError:
            usable = False
        if not usable:
            raise ValueError("a cookie has 1 to 255 characters of Latin-1")
        if tick_time <= 0:
            raise ValueError(f"a tick time is greater than 0 seconds, not {tick_time}")
        self.port = port
        self.tick_time = tick_time
        self.listening = False
        # Tells this start of the node from an earlier one; 0 to 3 mean something else to OTP.
        self.creation = int.from_bytes(os.urandom(4), "big") | 4
        flags = ABILITIES | (PUBLISHED if published else 0)
        self._local = LocalNode(self.name, cookie, self.creation, flags)
        self._atom = Atom(self.name)
        self._on_change = on_change
        self._epmd_port = epmd_port
        self._published = published
        self._check_source = check_source
        self._setup_time = setup_time
        self._attempt_time = _EPMD_TIME + _CONNECT_TIME + setup_time
        self.max_message = max_message
        self._room = frames.Room(4 * max_message if max_held is None else max_held)
        self._tls = tls
        self._length_size = 2 if tls is None else 4
        self._shared: Shared | None = None

        self._server: asyncio.Server | None = None
        self._listening: asyncio.Task[None] | None = None
        self._mapper: PortMapper | None = None
        self._stopped = False
        # All of these by the key of the peer's name, which is one for all its spellings.
        self._connections: dict[str, Connection] = {}
        self._since: dict[str, float] = {}
        self._handshakes = Admission()  # begun by others
        self._incoming: dict[str, set[Connection]] = {}  # of those, the ones that told a name
        self._attempts: dict[str, tuple[str, asyncio.Task[None]]] = {}  # the name as asked for
        self._dialled: dict[str, tuple[Connection, asyncio.Future[None]]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._problems: dict[str, dict[str, Any]] = {}
        self._refusals = _Refusals()

        super().__init__(int.from_bytes(os.urandom(7), "big"))
        self._counters.update(
            dict.fromkeys(("accepted", "connected", "simultaneous", "abandoned", "discarded"), 0)
        )
        self._listeners: list[NodeEvents] = []
        self._scopes: dict[str, Scope] = {}
        self._calls: Calls | None = None
        kernel = services.NetKernel(self)
        self.pid = kernel.pid
        self.register("net_kernel", kernel)
        self.register("rex", services.Rex(self))
        events = services.Logger(self)
        for known in events.NAMES:
            self.register(known, events)
        self._suspicions = services.Suspicions(self)
        self.register(self._suspicions.NAME, self._suspicions)

    # --- life ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to listen, answer as port mapper, and accept.

        Returns at once. While the address does not exist (no interface has it, or duplicate
        address detection runs) or the port is taken, listening is tried again for ever, and
        :meth:`problems` tells.
        """
        if self._listening is not None:
            raise RuntimeError("the node was started already")
        self._listening = asyncio.get_running_loop().create_task(
            self._listen(), name="distribution listener"
        )
        await asyncio.sleep(0)  # usually enough to listen

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        self._stopped = True
        tasks = [task for _, task in self._attempts.values()]
        if self._listening is not None:
            tasks.append(self._listening)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._mapper is not None:
            await self._mapper.stop()
        if self._server is not None:
            self._server.close()
            self.listening = False
        if self._calls is not None:
            self._calls.stop()
            await asyncio.sleep(0)  # their ends are still told
        for process in list(self._processes.values()):
            close = getattr(process, "close", None)
            if close is not None:  # a mailbox: who waits for a message hears of the end
                close()
        reason = DistributionError("stopped", f"{self.name} is stopping")
        for connection in (*self._connections.values(), *self._handshakes):
            connection.close(reason)
        for listener in list(self._listeners):
            listener.close()

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        interval = _BIND_INTERVAL
        patience = loop.time() + _PATIENCE
        while True:
            try:
                listener = listen(self.host, self.port)
                break
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    self._problem(
                        "port-taken",
                        f"cannot listen on [{self.host}]:{self.port}: another program has that "
                        f"port; stop it or set another [cluster] port",
                    )
                elif error.errno != errno.EADDRNOTAVAIL:
                    self._problem(
                        "listen", f"cannot listen on [{self.host}]:{self.port}: {error.strerror}"
                    )
                elif loop.time() > patience:
                    self._problem(
                        "address-missing",
                        f"cannot listen on [{self.host}]:{self.port}: no interface has this "
                        f"address; waiting for it",
                    )
            await asyncio.sleep(interval)
            interval = min(interval * 1.5, _MAX_BIND_INTERVAL)
        # The socket stays good when the address goes and comes back.
        self.port = listener.getsockname()[1]
        self._server = await loop.create_server(self._accept, sock=listener)
        self.listening = True
        log.info("%s listens on port %d", self.name, self.port)
        for code in ("port-taken", "listen", "address-missing"):
            self._recovered(code)
        if self._epmd_port is not None:
            self._mapper = PortMapper(
                self.alive,
                self.port,
                [self.host, "::1", "127.0.0.1"],
                creation=self.creation,
                port=self._epmd_port,
                hidden=not self._published,
            )
            self._mapper.start()

    # --- what others ask ----------------------------------------------------------------------

    def nodes(self) -> list[NodeInfo]:
        """Return the nodes that are connected or being connected, in the order of their names."""
        known = [
            NodeInfo(connection.name, "up", self._since[key])
            for key, connection in self._connections.items()
        ]
        known += [
            NodeInfo(name, "connecting", self._since.get(key, 0.0))
            for key, (name, _) in self._attempts.items()
            if key not in self._connections
        ]
        return sorted(known)

    @property
    def encrypted(self) -> bool:
        """Whether every connection of this node is inside TLS."""
        return self._tls is not None

    def expect(self, expected: Callable[[str], bool]) -> None:
        """Keep places for the handshakes of members, whatever strangers do.

        :param expected: tells whether a member is known to be at an address (canonical text).
        """
        self._handshakes.expected = expected

    def connected(self, peer: str) -> bool:
        """Tell whether *peer* is connected."""
        return key_of(peer) in self._connections

    def spelling(self, peer: str) -> str:
        """Return the name of a connected node as itself writes it, any other name as it is."""
        key = key_of(peer)
        known = self._connections.get(key)
        return known.name if known is not None else self.name if key == self.name else peer

    def problems(self) -> list[dict[str, Any]]:
        """Return what keeps this node from working: part, code, message, since."""
        return list(self._problems.values())

    def statistics(self) -> dict[str, Any]:
        """Return counters: connections, messages; how epmd is answered; and, by reason, whom we
        refused (``refused``) and who refused us (``refused_by``)."""
        mapper = self._mapper
        counters: dict[str, Any] = dict(self._counters)
        counters["discarded"] += sum(c.discarded for c in self._connections.values())
        counters["refused"] = dict(self._refusals.counters[OURS])
        counters["refused_by"] = dict(self._refusals.counters[THEIRS])
        counters["handshakes"] = len(self._handshakes)
        counters["epmd"] = {
            "served": list(mapper.served) if mapper is not None else [],
            "registered_at": mapper.registered_at if mapper is not None else None,
            **(mapper.registry.counters if mapper is not None else {}),
        }
        return counters

    # --- connecting ---------------------------------------------------------------------------

    async def connect(self, peer: str, timeout: float | None = None) -> None:
        """Connect to *peer* unless it is connected.

        The peer's port mapper is asked for its port first; when there is none, or it does not
        know the peer, our own port number is tried.

        :param peer: its full name, the address in any spelling.
        :param timeout: seconds to wait; by default as long as an attempt may take.
        :raises DistributionError: why it did not work; codes ``bad-name``, ``unreachable``,
            ``timeout``, ``closed`` and those of :class:`HandshakeError`.
        """
        split_name(peer)
        key = key_of(peer)
        if key == self.name:
            raise HandshakeError("bad-name", "a node does not connect to itself")
        if key in self._connections:
            return
        if self._stopped:
            raise DistributionError("stopped", f"{self.name} is stopping")
        _, attempt = self._attempts.get(key, (peer, None))
        if attempt is None:
            attempt = asyncio.get_running_loop().create_task(
                self._attempt(peer), name=f"connect to {peer}"
            )
            self._attempts[key] = peer, attempt
            self._since[key] = _now()
            attempt.add_done_callback(lambda task: self._attempted(key, task))
            self._change("connecting", {"name": peer})
        timeout = self._attempt_time if timeout is None else timeout
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(attempt)  # others may wait for the same attempt
        except TimeoutError:
            raise DistributionError(
                "timeout", f"no connection to {peer} within {timeout:g} seconds"
            ) from None

    def _attempted(self, key: str, task: asyncio.Task[None]) -> None:
        peer, _ = self._attempts.pop(key)
        if key not in self._connections:
            self._since.pop(key, None)
        if not task.cancelled() and task.exception() is not None:
            log.debug("no connection to %s: %s", peer, task.exception())

    async def _attempt(self, peer: str) -> None:
        """Connect to *peer*, within the time that all the steps may take together."""
        try:
            async with asyncio.timeout(self._attempt_time):
                await self._reach(peer)
        except TimeoutError:
            raise DistributionError(
                "timeout", f"no connection to {peer} within {self._attempt_time:g} seconds"
            ) from None

    async def _reach(self, peer: str) -> None:
        alive, host = split_name(peer)
        key = key_of(peer)
        if self._incoming.get(key) and await self._comes_up(key):
            return
        failure: Exception | None = None
        for port in await self._ports(alive, host):
            try:
                await self._dial(peer, host, port)
                return
            except HandshakeError as error:
                if error.code in ("simultaneous", "connected"):
                    if await self._comes_up(key):
                        return
                    raise
                if error.code != "wrong-peer":
                    raise
                failure = error
            except OSError as error:
                if key in self._connections:
                    return
                if failure is None or not isinstance(failure, HandshakeError):
                    failure = error
        if isinstance(failure, HandshakeError):
            raise failure
        raise DistributionError(
            "unreachable", f"{peer} cannot be reached: {_words(failure)}"
        ) from failure

    async def _ports(self, alive: str, host: str) -> list[int]:
        """Return the ports to try, the likeliest first."""
        fixed = [self.port] if self.port else []
        if self._epmd_port is None:
            return fixed
        try:
            port = await lookup(
                host, alive, timeout=_EPMD_TIME, port=self._epmd_port, local=self.host
            )
        except (OSError, EpmdError) as error:
            log.debug("the port mapper at %s does not help: %s", host, error)
            return fixed
        return fixed if port is None else [port, *(p for p in fixed if p != port)]

    async def _dial(self, peer: str, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        key = key_of(peer)
        raw = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            raw.setblocking(False)
            raw.bind((self.host, 0))  # the peer compares our name with where we come from
            async with asyncio.timeout(_CONNECT_TIME):
                await loop.sock_connect(raw, (host, port))
        except BaseException:
            raw.close()
            raise
        # The peer may have been faster. It does not know yet that we are connecting, too.
        if key in self._connections or self._incoming.get(key):
            raw.close()
            if key in self._connections:
                return
            raise HandshakeError("simultaneous", f"{peer} is connecting to this node")
        connection = Connection(
            self,
            Initiator(
                self._local,
                peer,
                on_alive=lambda: key not in self._connections,
                length_size=self._length_size,
            ),
            tick_time=self.tick_time,
            setup_time=self._setup_time,
            max_message=self.max_message,
            room=self._room,
            inside_tls=self._tls is not None,
        )
        result: asyncio.Future[None] = loop.create_future()
        self._dialled[key] = connection, result
        try:
            protocol = self._protocol(connection, host)
            await loop.create_connection(lambda: protocol, sock=raw)
            await result
        finally:
            del self._dialled[key]
            if not connection.established:
                connection.close(HandshakeError("closed", f"the attempt to reach {peer} ended"))

    async def _comes_up(self, key: str) -> bool:
        """Wait until a node that is connecting to us is connected; False when it fails."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._setup_time
        # When we yielded to a connection of the peer's, it can be a moment until it is here.
        grace = loop.time() + _EPMD_TIME
        while key not in self._connections:
            now = loop.time()
            limit = end if self._incoming.get(key) else min(grace, end)
            if now >= limit:
                return False
            waiter = loop.create_future()
            self._waiters.setdefault(key, []).append(waiter)
            with suppress(TimeoutError):
                async with asyncio.timeout(limit - now):
                    await waiter
        return True

    def _wake(self, key: str) -> None:
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    def disconnect(self, peer: str, reason: str = "disconnected on request") -> bool:
        """End the connection to *peer*; False when there is none."""
        connection = self._connections.get(key_of(peer))
        if connection is None:
            return False
        connection.close(DistributionError("disconnected", reason))
        return True

    async def ping(self, peer: str, timeout: float = 5.0) -> float:
        """Ask *peer* for a sign of life as ``net_adm:ping`` does, connecting when necessary.

        Our own name is allowed.

        :returns: the round-trip time in seconds, without connecting.
        :raises DistributionError: when there is no answer within *timeout* seconds.
        """
        loop = asyncio.get_running_loop()
        begin = loop.time()
        if key_of(peer) != self.name:
            await self.connect(peer, timeout)
        sent = loop.time()
        left = max(timeout - (sent - begin), 0.01)
        answer = await self.request(("net_kernel", peer), (Atom("is_auth"), self._atom), left)
        if answer != services.YES:
            raise DistributionError("not-allowed", f"{peer} answered {shown(answer)} to a ping")
        return loop.time() - sent

    async def probe(self, peer: str, seconds: float) -> bool:
        """Ask a connected node for a sign of life, for when there is a reason to fear for it.

        Sooner than missing ticks tell; :meth:`give_up` ends the connection then. Any byte of
        it counts, and that its system confirms what we send: a node whose program is slow is not
        lost; ticks tell when it stands still for long.

        :param seconds: how long to wait for it.
        :returns: whether there was one. False, too, when the node is not connected.
        """
        key = key_of(peer)
        connection = self._connections.get(key)
        if connection is None:
            return False
        loop = asyncio.get_running_loop()
        begin = loop.time()
        with suppress(DistributionError):
            request = (Atom("is_auth"), self._atom)
            await self.request(("net_kernel", peer), request, seconds)
        if self._connections.get(key) is not connection:
            return key in self._connections
        return connection.heard > begin or connection.acknowledged_within(loop.time() - begin)

    def give_up(self, peer: str) -> None:
        """End the connection to a node that gave no sign of life; its loss is called ``lost``."""
        connection = self._connections.get(key_of(peer))
        if connection is not None:
            connection.close(DistributionError("lost", f"{peer} gave no sign of life"))
            connection.abort()

    def share_suspicion(self, peer: str) -> None:
        """Tell the other nodes that we fear for *peer*."""
        for key, connection in self._connections.items():
            if key != key_of(peer):
                self._suspicions.tell(connection, peer)

    def suspected(self, peer: str, by: str) -> None:
        """Take note that the node *by* fears for *peer*."""
        if key_of(peer) in self._connections:
            self._change("suspected", {"name": self.spelling(peer), "by": by})

    # --- what connections report --------------------------------------------------------------

    def _accept(self) -> asyncio.BufferedProtocol:
        def decide(remote: RemoteNode) -> str:
            asking = known()
            assert asking is not None
            return self._decide(asking, remote)

        connection = Connection(
            self,
            Acceptor(self._local, decide, self._length_size),
            tick_time=self.tick_time,
            setup_time=self._setup_time,
            max_message=self.max_message,
            room=self._room,
            inside_tls=self._tls is not None,
        )
        known = weakref.ref(connection)  # weak, as the connection holds the acceptor
        return self._protocol(connection, None)

    def _protocol(self, connection: Connection, host: str | None) -> asyncio.BufferedProtocol:
        """Return what reads from the socket: the connection, or TLS in between.

        :param host: the address connected to, None when the peer connects.
        """
        if self._tls is None:
            return connection
        from thicket.distribution.secure import Shared, TlsTransport  # loads ssl

        if self._shared is None:
            self._shared = Shared()
        if host is None:
            return TlsTransport(connection, self._tls.server, self._shared, server_side=True)
        return TlsTransport(
            connection, self._tls.client, self._shared, server_side=False, host=host
        )

    def on_opened(self, connection: Connection) -> None:
        """Count a handshake that somebody else begins, and refuse one too many."""
        if not connection.outgoing:
            self._handshakes.add(connection)

    def on_secured(self, connection: Connection) -> None:
        """Check a node that we connect to, before it hears who we are.

        One that connects is checked when it has told its name.

        :raises HandshakeError: when it is refused.
        """
        if isinstance(connection.handshake, Initiator):
            self._check(connection, connection.handshake.wanted)

    def _check(self, connection: Connection, name: str) -> None:
        """Check the certificate of the peer, which is or calls itself *name*.

        :raises HandshakeError: when it is refused.
        """
        assert self._tls is not None
        try:
            self._tls.check(connection.ssl_object, split_name(name)[1], name)
        except HandshakeError as error:
            error.refusal = OURS
            raise
        except Exception as error:
            log.exception("the certificate of %s cannot be checked", name)
            raise HandshakeError("tls", "the certificate cannot be checked", OURS) from error
        connection.checked = name

    def recheck(self) -> list[str]:
        """Check the certificates of all connected nodes again, as after a revocation.

        The connection to one that is refused now is closed, and the code of its loss is the
        reason. What is just being connected is checked as well.

        :returns: the names of the nodes that were refused.
        """
        if self._tls is None:
            return []
        gone = []
        dialled = [connection for connection, _ in self._dialled.values()]
        for connection in {*self._connections.values(), *self._handshakes, *dialled}:
            if not connection.checked:
                continue
            try:
                self._check(connection, connection.checked)
            except HandshakeError as error:
                gone.append(connection.checked)
                if connection.established:  # otherwise it is told of when it is closed
                    self._refuse(connection, error)
                connection.close(error)
        return sorted(gone)

    def _decide(self, connection: Connection, remote: RemoteNode) -> str:
        """Return the status for *remote*, which has begun a handshake.

        :raises HandshakeError: when it is not allowed.
        """
        name = remote.name
        if self._check_source and split_name(name)[1] != connection.source:
            raise HandshakeError(
                "wrong-source", f"a node that calls itself {name} connects from {connection.source}"
            )
        if self._tls is not None:
            self._check(connection, name)
        key = key_of(name)
        if key == self.name:
            raise HandshakeError("bad-name", f"another node calls itself {name}, as this one does")
        if len(self._connections) >= MAX_CONNECTIONS:
            raise HandshakeError("too-many", f"{MAX_CONNECTIONS} nodes are connected already")
        if key not in self._connections:
            same = sum(known.source == connection.source for known in self._connections.values())
            if same >= MAX_CONNECTIONS_PER_HOST:
                raise HandshakeError("too-many", f"{same} nodes of one address are connected")
        status = OK
        dialled = self._dialled.get(key)
        if key in self._connections:
            # It has lost its end without our noticing. Ours is closed when it proves itself.
            status = ALIVE
        elif dialled is not None and dialled[0].handshake.done is False:
            # Both began: the connection of the node with the greater name stays.
            self._counters["simultaneous"] += 1
            if name.encode() <= self.name.encode():
                return NOK
            status = OK_SIMULTANEOUS
        self._incoming.setdefault(key, set()).add(connection)
        if status == OK_SIMULTANEOUS and dialled is not None:
            dialled[0].close(HandshakeError("simultaneous", f"{name} is connecting to this node"))
        return status

    def on_connected(self, connection: Connection) -> None:
        """Take a connection whose handshake has succeeded into use."""
        name, key = connection.name, connection.key
        self._forget_handshake(connection)
        old = self._connections.pop(key, None)
        if old is not None:
            self._lost(old, DistributionError("replaced", f"{name} connected anew"))
            old.close(DistributionError("replaced", f"{name} connected anew"))
        self._connections[key] = connection
        self._since[key] = _now()
        self._counters["connected" if connection.outgoing else "accepted"] += 1
        dialled = self._dialled.get(key)
        if dialled is not None:
            if dialled[0] is not connection:
                dialled[0].close(HandshakeError("simultaneous", f"{name} has connected"))
            elif not dialled[1].done():
                dialled[1].set_result(None)
        log.info("%s is up", name)
        if self._published and connection.peer.published:
            services.greet_global(self, connection)
        for scope in self._scopes.values():
            scope.discover(connection)
        self._wake(key)
        self._change("node-up", {"name": name})

    def on_silence(self, connection: Connection) -> None:
        """Ask a peer for a sign of life.

        Erlang's runtime itself says at once that there is no process called ``undefined``, which
        nobody can register; no process of the peer has a part in it. Nodes of C and Java answer
        ticks.
        """
        if connection.has(DIST_MONITOR_NAME):
            connection.send((frames.MONITOR_P, self.pid, UNDEFINED, self.new_reference()))
        else:
            connection.tick()

    def on_closed(self, connection: Connection, reason: DistributionError) -> None:
        """Drop a connection that has ended, in use or not."""
        key = connection.key
        if connection.established:
            self._counters["discarded"] += connection.discarded
            if self._connections.get(key) is connection:
                del self._connections[key]
                self._lost(connection, reason)
            return
        refusal = reason.refusal if isinstance(reason, HandshakeError) else ""
        if refusal == THEIRS or (refusal == OURS and connection.outgoing):
            self._refuse(connection, reason)
        if connection.outgoing:
            for dialled, result in self._dialled.values():
                if dialled is connection and not result.done():
                    result.set_exception(reason)
        else:
            self._forget_handshake(connection)
            if reason.code == "closed":
                # Its own doing: it was stopped, or dropped this connection in favour of ours.
                self._counters["abandoned"] += 1
            elif refusal != THEIRS and reason.code not in (
                "simultaneous",
                "connected",
                "stopped",
            ):
                self._refuse(connection, reason)
        self._wake(key)

    def _forget_handshake(self, connection: Connection) -> None:
        self._handshakes.discard(connection)
        incoming = self._incoming.get(connection.key)
        if incoming is not None:
            incoming.discard(connection)
            if not incoming:
                del self._incoming[connection.key]

    def _lost(self, connection: Connection, reason: DistributionError) -> None:
        name = connection.name
        self._since.pop(connection.key, None)
        log.info("%s is down: %s", name, reason)
        for process in list(self._processes.values()):
            process.on_disconnect(connection, reason)
        self._change("node-down", {"name": name, "code": reason.code, "reason": str(reason)})

    def _refuse(self, connection: Connection, reason: DistributionError) -> None:
        """Count a refusal, and tell of each source and reason once in a while.

        It is the peer that refused us when *reason* says so.
        """
        theirs = isinstance(reason, HandshakeError) and reason.refusal == THEIRS
        handshake = connection.handshake
        name: str | None = connection.checked or None
        if isinstance(handshake, Initiator):
            name = handshake.wanted
        elif isinstance(handshake, Acceptor):
            name = name or handshake.name
        omitted = self._refusals.add(THEIRS if theirs else OURS, connection.source, reason.code)
        if omitted is None:
            return
        log.warning(
            "%s (%s): %s%s",
            f"refused by {connection.source}"
            if theirs
            else f"refused {'the' if connection.outgoing else 'a'} connection "
            f"{'to' if connection.outgoing else 'from'} {connection.source}"
            + (f", {name!r}" if name else ""),
            reason.code,
            reason,
            f" ({omitted} more since the last of these lines)" if omitted else "",
        )
        self._change(
            "refused-by" if theirs else "refused",
            {
                "source": connection.source,
                "name": name,
                "code": reason.code,
                "message": str(reason),
            },
        )

    # --- events and problems ------------------------------------------------------------------

    def _change(self, kind: str, detail: dict[str, Any]) -> None:
        if self._listeners and kind in ("node-up", "node-down"):
            self._tell(kind, detail)
        if self._on_change is None:
            return
        try:
            self._on_change(kind, detail)
        except Exception:
            log.exception("the handler of the event %s failed", kind)

    def _tell(self, kind: str, detail: dict[str, Any]) -> None:
        from thicket.distribution.mailbox import NodeEvent

        event = NodeEvent(
            kind.removeprefix("node-"),
            detail["name"],
            detail.get("code", ""),
            detail.get("reason", ""),
        )
        for listener in list(self._listeners):
            listener.put(event)

    def _problem(self, code: str, message: str) -> None:
        if code not in self._problems:
            problem = {"part": "cluster", "code": code, "message": message, "since": _now()}
            self._problems[code] = problem
            log.error("%s", message)
            self._change("problem", problem)

    def _recovered(self, code: str) -> None:
        problem = self._problems.pop(code, None)
        if problem is not None:
            self._change("recovered", problem)

    # --- functions ----------------------------------------------------------------------------

    @property
    def calls(self) -> Calls:
        """The functions that others may call here, and those that run."""
        if self._calls is None:
            from thicket.distribution.calls import Calls  # a node that nobody calls needs none

            self._calls = Calls(self)
        return self._calls

    @overload
    def export(self, function: Function, /) -> Function: ...

    @overload
    def export(
        self, name: str | None = None, /, *, thread: bool = False
    ) -> Callable[[Function], Function]: ...

    def export(self, function: Any = None, /, *, thread: bool = False) -> Any:
        """Let other nodes call a function or coroutine; nothing else of ours can be called.

        Used as ``@node.export``, ``@node.export("module.function")`` or ``node.export(function)``.
        Without a name it is that of the function's module (its last part) and its own. Arguments
        are checked by their annotations and, where Erlang has fewer types, converted
        (:mod:`.convert`).

        A plain function runs in the event loop: it must be short.

        :param thread: run a plain function in a thread, because it takes long.
        :raises ValueError: when the name is taken, or is none.
        :raises TypeError: for an annotation that no value of another node can satisfy.
        """
        from thicket.distribution.calls import function_name

        if function is None or isinstance(function, str):

            def decorate(decorated: Function) -> Function:
                name = function or function_name(decorated)
                self.calls.exports.add(name, decorated, thread=thread)
                return decorated

            return decorate
        self.calls.exports.add(function_name(function), function, thread=thread)
        return function

    def unexport(self, name: str) -> None:
        """Take back the export of ``module.function``; calls that run go on."""
        self.calls.exports.remove(name)

    def exports(self) -> list[str]:
        """Return the functions that other nodes may call."""
        return self._calls.exports.names() if self._calls is not None else []

    async def call(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = CALL_TIME
    ) -> Any:
        """Call a function on another node and return what it returns.

        The node is connected to when necessary. When the caller is cancelled, or the time is over,
        the function is stopped: one of Python is cancelled, one of Erlang told to exit.

        :param peer: the node's full name; our own is allowed.
        :param function: ``module.function``; of Elixir ``Elixir.Module.function``.
        :param arguments: values that have a form in Erlang (:mod:`.etf`).
        :param timeout: seconds to wait, None to wait for ever.
        :raises RemoteError: when the function fails, or there is none.
        :raises DistributionError: when the node cannot be reached, or is lost (``closed``,
            ``silent`` ...); CallTimeoutError (``timeout``).
        :raises EncodeError: for arguments without a form.
        """
        begin = self._loop_time()
        task = await self.spawn(peer, function, *arguments, timeout=timeout)
        if timeout is None:
            return await task
        left = max(timeout - (self._loop_time() - begin), 0.0)
        timer = asyncio.get_running_loop().call_later(left, task.expire, timeout)
        try:
            return await task
        finally:
            timer.cancel()

    async def spawn(
        self, peer: str, function: str, /, *arguments: Any, timeout: float | None = CALL_TIME
    ) -> RemoteTask:
        """Start a function on another node; await the task that is returned for its result.

        :param timeout: seconds for connecting and for sending the request, not for the function.
        :raises DistributionError: when the node cannot be reached.
        """
        from thicket.distribution.calls import RemoteTask, split_function

        split_function(function)
        if key_of(peer) == self.name:
            task = RemoteTask(self, None, peer, function)
            try:
                task.start_here(self.calls, list(arguments))
            except BaseException:
                self.end(task)
                raise
            return task
        connection = await self._connection_to(peer, timeout)
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
        """Have a function run on another node without learning what becomes of it.

        :raises DistributionError: when the node cannot be reached.
        """
        from thicket.distribution.calls import cast_request, split_function

        split_function(function)
        if key_of(peer) == self.name:
            module, name = map(Atom, split_function(function))
            copied = copy(list(arguments))
            self.calls.start(self.pid, module, name, copied, None)
            return
        connection = await self._connection_to(peer, None)
        control, term = cast_request(
            self, function, list(arguments), self.pid, self.calls.group_leader
        )
        await connection.send_in_turn(control, connection.encode(term))

    def _got_spawn_request(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self.calls.on_request(connection, control, payload)

    # --- messages -----------------------------------------------------------------------------

    def mailbox(self, name: str | None = None, limit: int = MAILBOX_LIMIT) -> Mailbox:
        """Return a new process whose messages are taken out with ``await`` or ``async for``.

        :param name: register it under this name, by which other nodes reach it.
        :param limit: number of messages that may wait.
        :raises ValueError: when the name is taken.
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
        """Send *message* to a process, a registered name ``(name, node)``, or an alias.

        A name alone is one that is registered on this node.

        The node is connected to when necessary. Waits while the connection is busy. Whether the
        process exists is not told, as in Erlang.

        :param sender: from which process, for the order of messages: those of one sender to one
            receiver arrive in order.
        :raises DistributionError: when the node cannot be reached.
        :raises EncodeError: when *message* has no form in Erlang.
        """
        if isinstance(target, str):
            target = self.own_name(target)
        known = self._connections.get(key_of(_node_of(target)))
        await self.send_encoded(
            sender.pid if sender is not None else self.pid,
            target,
            Message(message, text=known is None or known.text),
        )

    async def send_encoded(
        self, sender: Pid, target: Pid | Name | Reference, message: Message
    ) -> None:
        """Send a message that is encoded already, see :meth:`send`."""
        node = _node_of(target)
        if key_of(node) == self.name:
            process: Process | None
            if isinstance(target, Reference):
                process = self._aliases.get(target)
            else:
                process = self._find(target if isinstance(target, Pid) else Atom(target[0]))
            if process is not None:
                room = getattr(process, "room", None)
                if room is not None:
                    await room()
                self.give(None, process, decode_bare(message.form(True))[0])
            return
        connection = await self._connection_to(node, None)
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
        :raises DistributionError: codes ``noproc`` when there is no such process or it ends,
            ``system-limit`` when request or answer are longer than a node takes, ``timeout``, and
            those of :meth:`connect`.
        """
        from thicket.distribution.calls import CallTimeoutError

        if isinstance(target, str):
            target = self.own_name(target)
        peer = str(target.node) if isinstance(target, Pid) else target[1]
        local = key_of(peer) == self.name
        connection = None if local else await self._connection_to(peer, timeout)
        call = services.Call(self, connection)
        self.add(call)
        item = target if isinstance(target, Pid) else Atom(target[0])
        message = (GEN_CALL, (call.pid, call.reference), request)
        try:
            async with asyncio.timeout(timeout):
                payload = Message(message, text=connection is None or connection.text)
                if connection is None:
                    self._monitor(None, call.pid, item, call.reference)
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
                self._demonitor(None, item, call.reference)
            self.end(call)

    # --- nodes --------------------------------------------------------------------------------

    def monitor(self, *, current: bool = True, limit: int = MAILBOX_LIMIT) -> NodeEvents:
        """Return what happens to nodes, for ``async for event in node.monitor()``.

        :param current: begin with an event ``up`` for each node that is connected.
        :param limit: number of events that may wait; beyond it the oldest are dropped.
        """
        from thicket.distribution.mailbox import NodeEvent, NodeEvents

        events = NodeEvents(self._listeners, limit)
        if current:
            for name in sorted(connection.name for connection in self._connections.values()):
                events.put(NodeEvent("up", name))
        return events

    # --- groups -------------------------------------------------------------------------------

    def scope(self, name: str = "pg") -> Scope:
        """Return the process groups of a scope, which begins to exist on this node by that."""
        known = self._scopes.get(name)
        if known is None:
            from thicket.distribution.groups import Scope

            known = self._scopes[name] = Scope(self, name)
        return known

    def join(self, group: Any, process: Process) -> None:
        """Make a mailbox a member of a group of the scope ``pg``.

        :param group: text for the atom of that name, or any other term.
        """
        self.scope().join(group, process)

    def leave(self, group: Any, process: Process) -> bool:
        """Take a join back; False when the process is no member."""
        return self.scope().leave(group, process)

    def members(self, group: Any) -> list[Pid]:
        """Return the members of a group, of all connected nodes."""
        return self.scope().members(group)

    async def publish(self, group: Any, message: Any) -> int:
        """Send *message* to every member of a group, waiting where a connection is busy.

        :returns: the number of members that it was sent to.
        """
        return await self.scope().publish(group, message)

    def subscribe(self, group: Any, limit: int = MAILBOX_LIMIT) -> Subscription:
        """Return a new member of a group: ``async for message in node.subscribe(group)``.

        It is a member at once, and until the loop is left or it is closed.
        """
        from thicket.distribution.groups import Subscription

        return Subscription(self.scope(), group, limit)

    # --- helpers ------------------------------------------------------------------------------

    @staticmethod
    def _loop_time() -> float:
        return asyncio.get_running_loop().time()

    async def _connection_to(self, peer: str, timeout: float | None) -> Connection:
        """Return the connection to *peer*, connecting when necessary."""
        key = key_of(peer)
        connection = self._connections.get(key)
        if connection is None:
            await self.connect(peer, timeout)
            connection = self._connections.get(key)
            if connection is None:
                raise DistributionError("closed", f"the connection to {peer} was closed")
        return connection

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
            from thicket.distribution.calls import CallTimeoutError

            raise CallTimeoutError(
                "timeout",
                f"{connection.name} took nothing that is sent to it for {timeout:.3g} seconds",
            ) from None


class _Refusals:
    """Counts refusals, and decides which of them are told of.

    The same source and reason once a minute: a peer that tries again every second must not fill
    the log. And of all together some 30 a minute, as sources are cheap for an attacker.
    """

    def __init__(self) -> None:
        self.counters: dict[str, dict[str, int]] = {OURS: {}, THEIRS: {}}
        self._told: dict[tuple[str, str, str], float] = {}
        self._omitted = 0

    def add(self, whose: str, source: str, code: str) -> int | None:
        """Return how many were not told of since the last one that was; None: nor is this."""
        counters = self.counters[whose]
        if code not in counters and len(counters) >= _MAX_REASONS:
            code = "other"  # the peer's words are no way to fill our memory
        counters[code] = counters.get(code, 0) + 1
        key = whose, source, code
        now = time.monotonic()
        for known, when in list(self._told.items()):  # the oldest first
            if now - when < _LOG_INTERVAL:
                break
            del self._told[known]
        if key in self._told or len(self._told) >= _LOG_LINES:
            self._omitted += 1
            return None
        self._told[key] = now
        omitted, self._omitted = self._omitted, 0
        return omitted


def _node_of(target: Pid | Name | Reference) -> str:
    return str(target[1]) if isinstance(target, tuple) else str(target.node)


def _words(error: Exception | None) -> str:
    """Put what happened to an attempt to connect into words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return "no port is known" if error is None else str(error)
