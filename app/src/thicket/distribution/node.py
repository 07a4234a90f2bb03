# SPDX-License-Identifier: Apache-2.0
"""A node of a Distributed Erlang cluster.

:class:`Node` listens on the node's own address, connects to others, keeps one connection to
each, and answers what stock Erlang and Elixir nodes ask of every node. It connects when it is told
to; whom to connect, and when to try again, is the caller's decision.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from . import frames, services
from .connection import Connection
from .epmd import PORT as EPMD_PORT
from .epmd import EpmdError, PortMapper, listen, lookup
from .etf import Atom, DecodeError, Pid, Reference, decode_bare, encode_bare
from .handshake import (
    ABILITIES,
    ALIAS,
    ALIVE,
    EXIT_PAYLOAD,
    NOK,
    OK,
    OK_SIMULTANEOUS,
    PUBLISHED,
    SEND_SENDER,
    SETUP_TIME,
    Acceptor,
    DistributionError,
    HandshakeError,
    Initiator,
    LocalNode,
    RemoteNode,
    split_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv6Address

log = logging.getLogger("thicket.distribution")

DEFAULT_PORT = 9100
DEFAULT_TICK_TIME = 15.0

MAX_CONNECTIONS = 1024
MAX_HANDSHAKES = 64
"""Limit of handshakes in progress that others began."""
MAX_HANDSHAKES_PER_SOURCE = 8
MAX_WATCHERS = 10_000
"""Limit of monitors, and of links, on one process of ours."""

_EPMD_TIME = 2.0
_CONNECT_TIME = 4.0
_ATTEMPT_TIME = _EPMD_TIME + _CONNECT_TIME + SETUP_TIME
_BIND_INTERVAL = 0.1
_MAX_BIND_INTERVAL = 2.0
_PATIENCE = 10.0  # seconds an address may be missing before that is a problem
_LOG_INTERVAL = 60.0
_NOBODY = Atom("")


class NodeInfo(NamedTuple):
    """A node of the cluster as seen from here.

    :ivar state: ``up`` or ``connecting``.
    :ivar since: when it got into that state, in seconds of CLOCK_BOOTTIME.
    """

    name: str
    state: str
    since: float


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Node:
    """This device's node.

    :param name: the part before ``@``, or the full name.
    :param cookie: the cluster's shared word. It keeps clusters apart; it is no protection
        against an attacker on the same network.
    :param address: the address to listen on and to connect from. It may appear later.
    :param port: the port to listen on, and to try at peers whose port mapper does not know them;
        0 for any free one.
    :param tick_time: seconds of silence after which a peer counts as lost; the same on every
        node, Erlang's ``net_ticktime``.
    :param on_change: called with a kind and details: ``connecting`` {name}, ``node-up`` {name},
        ``node-down`` {name, code, reason}, ``refused`` {source, name, code, message},
        ``problem`` and ``recovered`` {part, code, message, since}.
    :param epmd_port: the port mapper's port; None to neither ask nor answer as one.
    :param published: be visible, as opposed to Erlang's hidden nodes.
    :param check_source: refuse a peer whose name has another address than it connects from.
    :param setup_time: seconds that a handshake may take, Erlang's ``net_setuptime``.
    :param max_message: longest message accepted, in bytes.
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
    ) -> None:
        self.host = str(address)
        self.name = name if "@" in name else f"{name}@{self.host}"
        try:
            self.alive, host = split_name(self.name)
        except HandshakeError as error:
            raise ValueError(str(error)) from None
        if host != self.host:
            raise ValueError(f"a node on {self.host} cannot be called {self.name!r}")
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
        self._max_message = max_message

        self._server: asyncio.Server | None = None
        self._listening: asyncio.Task[None] | None = None
        self._mapper: PortMapper | None = None
        self._stopped = False
        self._connections: dict[str, Connection] = {}
        self._since: dict[str, float] = {}
        self._handshakes: set[Connection] = set()  # begun by others
        self._incoming: dict[str, set[Connection]] = {}  # of those, the ones that told a name
        self._attempts: dict[str, asyncio.Task[None]] = {}
        self._dialled: dict[str, tuple[Connection, asyncio.Future[None]]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}
        self._problems: dict[str, dict[str, Any]] = {}
        self._logged: dict[tuple[str, str], float] = {}
        self._counters: dict[str, int] = dict.fromkeys(
            (
                "accepted",
                "connected",
                "simultaneous",
                "abandoned",
                "messages",
                "unknown",
                "undecodable",
                "discarded",
            ),
            0,
        )
        self._refused: dict[str, int] = {}

        self._last_pid = 0
        self._last_reference = int.from_bytes(os.urandom(7), "big")
        self._processes: dict[int, services.Process] = {}
        self._names: dict[str, services.Process] = {}
        self.register("net_kernel", services.NetKernel(self))
        self.register("rex", services.Rex(self))
        self._handlers: dict[int, Callable[[Connection, tuple[Any, ...], bytes | None], None]] = {
            frames.SEND: self._got_send,
            frames.SEND_TT: self._got_send,
            frames.SEND_SENDER: self._got_send,
            frames.SEND_SENDER_TT: self._got_send,
            frames.REG_SEND: self._got_named_send,
            frames.REG_SEND_TT: self._got_named_send,
            frames.MONITOR_P: self._got_monitor,
            frames.DEMONITOR_P: self._got_demonitor,
            frames.MONITOR_P_EXIT: self._got_down,
            frames.PAYLOAD_MONITOR_P_EXIT: self._got_down,
            frames.LINK: self._got_link,
            frames.UNLINK: self._got_unlink,
            frames.UNLINK_ID: self._got_unlink_id,
            frames.SPAWN_REQUEST: self._got_spawn_request,
            frames.SPAWN_REQUEST_TT: self._got_spawn_request,
        }
        # Known and without effect on a node whose processes cannot be killed from outside, have
        # no group leader, no aliases, and spawn nothing elsewhere.
        self._ignored = frozenset(
            (
                frames.EXIT,
                frames.EXIT_TT,
                frames.EXIT2,
                frames.EXIT2_TT,
                frames.PAYLOAD_EXIT,
                frames.PAYLOAD_EXIT_TT,
                frames.PAYLOAD_EXIT2,
                frames.PAYLOAD_EXIT2_TT,
                frames.GROUP_LEADER,
                frames.NODE_LINK,
                frames.ALIAS_SEND,
                frames.ALIAS_SEND_TT,
                frames.SPAWN_REPLY,
                frames.SPAWN_REPLY_TT,
                frames.UNLINK_ID_ACK,
            )
        )

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
        tasks = [*self._attempts.values()]
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
        reason = DistributionError("stopped", f"{self.name} is stopping")
        for connection in (*self._connections.values(), *self._handshakes):
            connection.close(reason)

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
        known = [NodeInfo(name, "up", self._since[name]) for name in self._connections]
        known += [
            NodeInfo(name, "connecting", self._since.get(name, 0.0))
            for name in self._attempts
            if name not in self._connections
        ]
        return sorted(known)

    def connected(self, peer: str) -> bool:
        """Tell whether *peer* is connected."""
        return peer in self._connections

    def problems(self) -> list[dict[str, Any]]:
        """Return what keeps this node from working: part, code, message, since."""
        return list(self._problems.values())

    def statistics(self) -> dict[str, Any]:
        """Return counters: connections, messages, and refusals by reason; how epmd is answered."""
        mapper = self._mapper
        counters: dict[str, Any] = dict(self._counters)
        counters["discarded"] += sum(c.discarded for c in self._connections.values())
        counters["refused"] = dict(self._refused)
        counters["handshakes"] = len(self._handshakes)
        counters["epmd"] = {
            "served": list(mapper.served) if mapper is not None else [],
            "registered_at": mapper.registered_at if mapper is not None else None,
            **(mapper.registry.counters if mapper is not None else {}),
        }
        return counters

    # --- connecting ---------------------------------------------------------------------------

    async def connect(self, peer: str, timeout: float = _ATTEMPT_TIME) -> None:
        """Connect to *peer* unless it is connected.

        The peer's port mapper is asked for its port first; when there is none, or it does not
        know the peer, our own port number is tried.

        :param peer: its full name, the address in canonical form.
        :param timeout: seconds to wait.
        :raises DistributionError: why it did not work; codes ``bad-name``, ``unreachable``,
            ``timeout``, ``closed`` and those of :class:`HandshakeError`.
        """
        split_name(peer)
        if peer == self.name:
            raise HandshakeError("bad-name", "a node does not connect to itself")
        if peer in self._connections:
            return
        if self._stopped:
            raise DistributionError("stopped", f"{self.name} is stopping")
        attempt = self._attempts.get(peer)
        if attempt is None:
            attempt = asyncio.get_running_loop().create_task(
                self._attempt(peer), name=f"connect to {peer}"
            )
            self._attempts[peer] = attempt
            self._since[peer] = _now()
            attempt.add_done_callback(lambda task: self._attempted(peer, task))
            self._change("connecting", {"name": peer})
        try:
            async with asyncio.timeout(timeout):
                await asyncio.shield(attempt)  # others may wait for the same attempt
        except TimeoutError:
            raise DistributionError(
                "timeout", f"no connection to {peer} within {timeout:g} seconds"
            ) from None

    def _attempted(self, peer: str, task: asyncio.Task[None]) -> None:
        del self._attempts[peer]
        if peer not in self._connections:
            self._since.pop(peer, None)
        if not task.cancelled() and task.exception() is not None:
            log.debug("no connection to %s: %s", peer, task.exception())

    async def _attempt(self, peer: str) -> None:
        """Connect to *peer*, within the time that all the steps may take together."""
        try:
            async with asyncio.timeout(_ATTEMPT_TIME):
                await self._reach(peer)
        except TimeoutError:
            raise DistributionError(
                "timeout", f"no connection to {peer} within {_ATTEMPT_TIME:g} seconds"
            ) from None

    async def _reach(self, peer: str) -> None:
        alive, host = split_name(peer)
        if self._incoming.get(peer) and await self._comes_up(peer):
            return
        failure: Exception | None = None
        for port in await self._ports(alive, host):
            try:
                await self._dial(peer, host, port)
                return
            except HandshakeError as error:
                if error.code in ("simultaneous", "connected"):
                    if await self._comes_up(peer):
                        return
                    raise
                if error.code != "wrong-peer":
                    raise
                failure = error
            except OSError as error:
                if peer in self._connections:
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
        if peer in self._connections or self._incoming.get(peer):
            raw.close()
            if peer in self._connections:
                return
            raise HandshakeError("simultaneous", f"{peer} is connecting to this node")
        connection = Connection(
            self,
            Initiator(self._local, peer, on_alive=lambda: peer not in self._connections),
            tick_time=self.tick_time,
            setup_time=self._setup_time,
            max_message=self._max_message,
        )
        result: asyncio.Future[None] = loop.create_future()
        self._dialled[peer] = connection, result
        try:
            await loop.create_connection(lambda: connection, sock=raw)
            await result
        finally:
            del self._dialled[peer]
            if not connection.established:
                connection.close(HandshakeError("closed", f"the attempt to reach {peer} ended"))

    async def _comes_up(self, peer: str) -> bool:
        """Wait until *peer*, which is connecting to us, is connected; False when it fails."""
        loop = asyncio.get_running_loop()
        end = loop.time() + SETUP_TIME
        # When we yielded to a connection of the peer's, it can be a moment until it is here.
        grace = loop.time() + _EPMD_TIME
        while peer not in self._connections:
            now = loop.time()
            limit = end if self._incoming.get(peer) else min(grace, end)
            if now >= limit:
                return False
            waiter = loop.create_future()
            self._waiters.setdefault(peer, []).append(waiter)
            with suppress(TimeoutError):
                async with asyncio.timeout(limit - now):
                    await waiter
        return True

    def _wake(self, peer: str) -> None:
        for waiter in self._waiters.pop(peer, ()):
            if not waiter.done():
                waiter.set_result(None)

    def disconnect(self, peer: str, reason: str = "disconnected on request") -> bool:
        """End the connection to *peer*; False when there is none."""
        connection = self._connections.get(peer)
        if connection is None:
            return False
        connection.close(DistributionError("disconnected", reason))
        return True

    async def ping(self, peer: str, timeout: float = 5.0) -> float:
        """Ask *peer* for a sign of life as ``net_adm:ping`` does, connecting when necessary.

        :returns: the round-trip time in seconds, without connecting.
        :raises DistributionError: when there is no answer within *timeout* seconds.
        """
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await self.connect(peer, timeout)
        sent = loop.time()
        left = max(timeout - (sent - begin), 0.01)
        answer = await self._call(peer, "net_kernel", (Atom("is_auth"), self._atom), left)
        if answer != services.YES:
            raise DistributionError("not-allowed", f"{peer} answered {answer!r} to a ping")
        return loop.time() - sent

    async def _call(self, peer: str, name: str, request: Any, timeout: float) -> Any:
        """Ask the process registered as *name* on *peer*, as ``gen_server:call`` does."""
        connection = self._connections.get(peer)
        if connection is None:
            raise DistributionError("closed", f"{peer} is not connected")
        call = services.Call(self, connection)
        self._processes[call.pid.id] = call
        target = Atom(name)
        message = (services.GEN_CALL, (call.pid, call.reference), request)
        try:
            async with asyncio.timeout(timeout):
                connection.send((frames.MONITOR_P, call.pid, target, call.reference))
                connection.send((frames.REG_SEND, call.pid, _NOBODY, target), encode_bare(message))
                await connection.drain()
                return await call.answer
        except TimeoutError:
            raise DistributionError(
                "timeout", f"{peer} did not answer within {timeout:.3g} seconds"
            ) from None
        finally:
            connection.send((frames.DEMONITOR_P, call.pid, target, call.reference))
            self._end(call, services.NORMAL)

    # --- what connections report --------------------------------------------------------------

    def _accept(self) -> Connection:
        acceptor = Acceptor(self._local, lambda remote: self._decide(connection, remote))
        connection = Connection(
            self,
            acceptor,
            tick_time=self.tick_time,
            setup_time=self._setup_time,
            max_message=self._max_message,
        )
        return connection

    def on_opened(self, connection: Connection) -> None:
        """Count a handshake that somebody else begins, and refuse one too many."""
        if connection.outgoing:
            return
        same = sum(other.source == connection.source for other in self._handshakes)
        self._handshakes.add(connection)
        if same >= MAX_HANDSHAKES_PER_SOURCE or len(self._handshakes) > MAX_HANDSHAKES:
            connection.close(
                HandshakeError(
                    "too-many", f"too many handshakes in progress, {same} from this source"
                )
            )

    def _decide(self, connection: Connection, remote: RemoteNode) -> str:
        """Return the status for *remote*, which has begun a handshake.

        :raises HandshakeError: when it is not allowed.
        """
        name = remote.name
        if self._check_source and split_name(name)[1] != connection.source:
            raise HandshakeError(
                "wrong-source", f"a node that calls itself {name} connects from {connection.source}"
            )
        if name == self.name:
            raise HandshakeError("bad-name", f"another node calls itself {name}, as this one does")
        if len(self._connections) >= MAX_CONNECTIONS:
            raise HandshakeError("too-many", f"{MAX_CONNECTIONS} nodes are connected already")
        status = OK
        dialled = self._dialled.get(name)
        if name in self._connections:
            # It has lost its end without our noticing. Ours is closed when it proves itself.
            status = ALIVE
        elif dialled is not None and dialled[0].handshake.done is False:
            # Both began: the connection of the node with the greater name stays.
            self._counters["simultaneous"] += 1
            if name.encode() <= self.name.encode():
                return NOK
            status = OK_SIMULTANEOUS
        self._incoming.setdefault(name, set()).add(connection)
        if status == OK_SIMULTANEOUS and dialled is not None:
            dialled[0].close(HandshakeError("simultaneous", f"{name} is connecting to this node"))
        return status

    def on_connected(self, connection: Connection) -> None:
        """Take a connection whose handshake has succeeded into use."""
        name = connection.name
        self._forget_handshake(connection)
        old = self._connections.pop(name, None)
        if old is not None:
            self._lost(name, old, DistributionError("replaced", f"{name} connected anew"))
            old.close(DistributionError("replaced", f"{name} connected anew"))
        self._connections[name] = connection
        self._since[name] = _now()
        self._counters["connected" if connection.outgoing else "accepted"] += 1
        dialled = self._dialled.get(name)
        if dialled is not None:
            if dialled[0] is not connection:
                dialled[0].close(HandshakeError("simultaneous", f"{name} has connected"))
            elif not dialled[1].done():
                dialled[1].set_result(None)
        log.info("%s is up", name)
        self._wake(name)
        self._change("node-up", {"name": name})

    def on_closed(self, connection: Connection, reason: DistributionError) -> None:
        """Drop a connection that has ended, in use or not."""
        name = connection.name
        if connection.established:
            self._counters["discarded"] += connection.discarded
            if self._connections.get(name) is connection:
                del self._connections[name]
                self._lost(name, connection, reason)
            return
        if connection.outgoing:
            for dialled, result in self._dialled.values():
                if dialled is connection and not result.done():
                    result.set_exception(reason)
        else:
            self._forget_handshake(connection)
            if reason.code == "closed":
                # Its own doing: it was stopped, or dropped this connection in favour of ours.
                self._counters["abandoned"] += 1
            elif reason.code not in ("simultaneous", "connected", "stopped"):
                self._refuse(connection, reason)
        self._wake(name)

    def _forget_handshake(self, connection: Connection) -> None:
        self._handshakes.discard(connection)
        name = connection.name
        incoming = self._incoming.get(name)
        if incoming is not None:
            incoming.discard(connection)
            if not incoming:
                del self._incoming[name]

    def _lost(self, name: str, connection: Connection, reason: DistributionError) -> None:
        self._since.pop(name, None)
        log.info("%s is down: %s", name, reason)
        for process in list(self._processes.values()):
            process.on_disconnect(connection, reason)
        self._change("node-down", {"name": name, "code": reason.code, "reason": str(reason)})

    def _refuse(self, connection: Connection, reason: DistributionError) -> None:
        """Count a refused handshake; tell of each source and reason once a minute."""
        self._refused[reason.code] = self._refused.get(reason.code, 0) + 1
        key = (connection.source, reason.code)
        now = time.monotonic()
        if now - self._logged.get(key, -_LOG_INTERVAL) < _LOG_INTERVAL:
            return
        if len(self._logged) >= 256:
            self._logged.clear()
        self._logged[key] = now
        name = getattr(connection.handshake, "name", None)
        log.warning("refused a connection from %s: %s", connection.source, reason)
        self._change(
            "refused",
            {
                "source": connection.source,
                "name": name,
                "code": reason.code,
                "message": str(reason),
            },
        )

    def on_message(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """Handle a message; what is not understood is counted and ignored."""
        self._counters["messages"] += 1
        handler = self._handlers.get(control[0])
        if handler is None:
            if control[0] not in self._ignored:
                self._counters["unknown"] += 1
            return
        try:
            handler(connection, control, payload)
        except DecodeError as error:
            self._counters["undecodable"] += 1
            log.warning("a message of %s cannot be decoded: %s", connection.name, error)
        except (ValueError, TypeError, IndexError):
            # Too few elements, or not of the types they should have.
            self._counters["unknown"] += 1
            log.debug("a message of %s is not understood", connection.name, exc_info=True)
        except Exception:
            log.exception("the handling of a message of %s failed", connection.name)

    # --- events and problems ------------------------------------------------------------------

    def _change(self, kind: str, detail: dict[str, Any]) -> None:
        if self._on_change is None:
            return
        try:
            self._on_change(kind, detail)
        except Exception:
            log.exception("the handler of the event %s failed", kind)

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

    # --- processes ----------------------------------------------------------------------------

    def new_pid(self) -> Pid:
        """Return a process identifier that is not in use."""
        while True:
            # 15 bits of number are what every version of OTP prints and sorts without surprises;
            # 28 are allowed.
            self._last_pid = self._last_pid % 0xFFFFFFF + 1
            if self._last_pid not in self._processes:
                return Pid(self._atom, self._last_pid, 0, self.creation)

    def new_reference(self) -> Reference:
        """Return a reference that was not used before."""
        self._last_reference += 1
        number = self._last_reference
        # Erlang keeps the first word of a reference below 2^18.
        words = (number & 0x3FFFF, number >> 18 & 0xFFFFFFFF, number >> 50 & 0xFFFFFFFF)
        return Reference(self._atom, self.creation, words)

    def register(self, name: str, process: services.Process) -> None:
        """Let *process* be reached by *name*."""
        self._processes[process.pid.id] = process
        self._names[name] = process

    def _end(self, process: services.Process, reason: Any) -> None:
        """End *process*: tell who watches it and who is linked with it."""
        self._processes.pop(process.pid.id, None)
        for reference, (connection, watcher, item) in process.monitors.items():
            self._send_down(connection, item, watcher, reference, reason)
        for pid, connection in process.links.items():
            self._send_exit(connection, process.pid, pid, reason)
        process.monitors.clear()
        process.links.clear()

    def _find(self, target: Any) -> services.Process | None:
        """Return the process of ours that is meant by a pid or a registered name."""
        if type(target) is Pid:
            process = self._processes.get(target.id)
            return process if process is not None and process.pid == target else None
        return self._names.get(target) if type(target) is Atom else None

    # --- sending ------------------------------------------------------------------------------

    def send_to(self, connection: Connection, sender: Pid, target: Pid, message: Any) -> None:
        """Send *message* to a process of a connected node."""
        control = (
            (frames.SEND_SENDER, sender, target)
            if connection.has(SEND_SENDER)
            else (frames.SEND, _NOBODY, target)
        )
        connection.send(control, encode_bare(message))

    def send_to_alias(
        self, connection: Connection, sender: Pid, alias: Reference, message: Any
    ) -> None:
        """Send *message* to a process of a connected node by an alias it made."""
        if connection.has(ALIAS):
            connection.send((frames.ALIAS_SEND, sender, alias), encode_bare(message))

    def _send_down(
        self, connection: Connection, item: Pid | Atom, watcher: Pid, reference: Reference, why: Any
    ) -> None:
        if connection.has(EXIT_PAYLOAD):
            connection.send(
                (frames.PAYLOAD_MONITOR_P_EXIT, item, watcher, reference), encode_bare(why)
            )
        else:
            connection.send((frames.MONITOR_P_EXIT, item, watcher, reference, why))

    def _send_exit(self, connection: Connection, sender: Pid, target: Pid, why: Any) -> None:
        if connection.has(EXIT_PAYLOAD):
            connection.send((frames.PAYLOAD_EXIT, sender, target), encode_bare(why))
        else:
            connection.send((frames.EXIT, sender, target, why))

    # --- receiving ----------------------------------------------------------------------------

    def _deliver(self, connection: Connection, target: Any, payload: bytes | None) -> None:
        process = self._find(target)
        # Nobody there: as in Erlang, the message is gone. It is not even decoded.
        if process is not None and payload is not None:
            process.on_message(connection, decode_bare(payload)[0])

    def _got_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._deliver(connection, control[2], payload)

    def _got_named_send(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._deliver(connection, control[3], payload)

    def _got_monitor(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, watcher, item, reference = control
        _require(watcher, Pid)
        _require(reference, Reference)
        process = self._find(item)
        if process is None:
            self._send_down(connection, item, watcher, reference, services.NO_PROCESS)
        elif len(process.monitors) >= MAX_WATCHERS:
            self._send_down(connection, item, watcher, reference, Atom("system_limit"))
        else:
            process.monitors[reference] = connection, watcher, item

    def _got_demonitor(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, _, item, reference = control
        process = self._find(item)
        if process is not None and process.monitors.get(reference, (None,))[0] is connection:
            del process.monitors[reference]

    def _got_down(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        process = self._find(control[2])
        if process is not None:
            reason = control[4] if payload is None else decode_bare(payload)[0]
            process.on_down(connection, control[3], reason)

    def _got_link(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, sender, target = control
        _require(sender, Pid)
        _require(target, Pid)
        process = self._find(target)
        if process is None:
            self._send_exit(connection, target, sender, services.NO_PROCESS)
        elif len(process.links) < MAX_WATCHERS:
            process.links[sender] = connection

    def _unlink(self, sender: Any, target: Any) -> None:
        process = self._find(target)
        if process is not None and type(sender) is Pid:
            process.links.pop(sender, None)

    def _got_unlink(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        self._unlink(control[1], control[2])

    def _got_unlink_id(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        _, number, sender, target = control
        _require(number, int)
        self._unlink(sender, target)
        # Before anything else goes from target to sender, or the sender takes it for old.
        connection.send((frames.UNLINK_ID_ACK, number, target, sender))

    def _got_spawn_request(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """Answer a request to run a function here, which is how ``rpc`` and ``erpc`` call.

        Nothing is exported yet: a call fails as the call of a function that does not exist,
        at once; other requests are not supported.
        """
        request, caller, _, function, options = control[1:6]
        _require(request, Reference)
        _require(caller, Pid)
        arguments: Any = None
        with suppress(DecodeError):
            arguments = decode_bare(payload)[0] if payload is not None else None
        monitored = type(options) is list and "monitor" in options
        linked = type(options) is list and "link" in options
        refusal: Atom | None = None
        reason: Any = None
        match function, arguments:
            case ("erpc", "execute_call", 4), [result, called, name, values]:
                trace = services.stack(called, name, values)
                reason = (result, services.ERROR, services.UNDEFINED_FUNCTION, trace)
            case ("erpc", "execute_cast", 3), [called, name, values]:
                reason = (services.UNDEFINED_FUNCTION, services.stack(called, name, values))
            case ("erpc", "execute_call" | "execute_cast", _), _:
                refusal = services.BAD_ARGUMENT
            case _:
                refusal = services.NOT_SUPPORTED
        if refusal is not None:
            connection.send((frames.SPAWN_REPLY, request, caller, 0, refusal))
            return
        pid = self.new_pid()
        granted = (1 if linked else 0) | (2 if monitored else 0)
        # The caller's runtime waits for this even where the caller does not.
        connection.send((frames.SPAWN_REPLY, request, caller, granted, pid))
        if monitored:
            self._send_down(connection, pid, caller, request, reason)
        if linked:
            self._send_exit(connection, pid, caller, reason)


def _require(value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise TypeError(f"a {kind.__name__} was expected")


def _words(error: Exception | None) -> str:
    """Put what happened to an attempt to connect into words."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return "no port is known" if error is None else str(error)
