# SPDX-License-Identifier: Apache-2.0
"""Connecting to other nodes, also when both sides begin at the same time."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING

from thicket.base.patience import Patience
from thicket.base.process import boottime
from thicket.distribution import frames
from thicket.distribution.connection import Beat, Connection, Owner
from thicket.distribution.epmd import EpmdError, lookup
from thicket.distribution.events import Connecting
from thicket.distribution.handshake import (
    ALIVE,
    NOK,
    OK,
    OK_SIMULTANEOUS,
    DistributionError,
    Handshake,
    HandshakeError,
    Initiator,
    LocalNode,
    key_of,
    split_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.distribution.listening import Listening
    from thicket.distribution.secure import Tls

log = logging.getLogger(__name__)

_EPMD_TIME = 2.0
_CONNECT_TIME = 4.0
_MOST_PORTS = 1024  # nodes whose port is remembered


class Maker:
    """Makes the connections of a node, which share limits, times and TLS.

    :param owner: receives the events of the connections.
    :param setup_time: seconds that a handshake may take.
    :param room: memory for incomplete messages.
    :param tls: the TLS to use, or None.
    :ivar length_size: bytes of the length of a frame in the handshake.
    """

    def __init__(
        self,
        owner: Owner,
        *,
        tick_time: float,
        setup_time: float,
        max_message: int,
        room: frames.Room,
        tls: Tls | None,
    ) -> None:
        self.setup_time = setup_time
        self.max_message = max_message
        self.length_size = 2 if tls is None else 4
        self._owner = owner
        self._tick_time = tick_time
        self._beat = Beat(tick_time)
        self._room = room
        self._secure = None
        if tls is not None:
            from thicket.distribution.secure import Secure  # loads ssl

            self._secure = Secure(tls)

    @property
    def encrypted(self) -> bool:
        """Whether the connections are inside TLS."""
        return self._secure is not None

    def make(self, handshake: Handshake, guest: str = "") -> Connection:
        """Return a connection that begins with ``handshake``.

        :param guest: see :class:`.Connection`; there is no TLS in such a connection.
        """
        return Connection(
            self._owner,
            handshake,
            tick_time=self._tick_time,
            setup_time=self.setup_time,
            max_message=self.max_message,
            room=self._room,
            inside_tls=self.encrypted and not guest,
            beat=self._beat,
            guest=guest,
        )

    def protocol(self, connection: Connection, host: str | None) -> asyncio.BufferedProtocol:
        """Return the protocol of the socket: the connection, or TLS below it.

        :param host: the address connected to, None when the peer connects.
        """
        return connection if self._secure is None else self._secure.transport(connection, host)


class Attempt:
    """An attempt to reach a node, in several steps.

    :ivar peer: the node's name as the caller spelt it.
    :ivar since: when it began, in seconds of CLOCK_BOOTTIME.
    """

    __slots__ = ("peer", "since", "task")

    def __init__(self, peer: str, task: asyncio.Task[None]) -> None:
        self.peer = peer
        self.since = boottime()
        self.task = task


class _Dial:
    """The handshake of an attempt."""

    __slots__ = ("connection", "result")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.result: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Connector:
    """Connects to other nodes, and decides which connection stays when both sides began one.

    :param connections: the connected nodes by the key of their names.
    :param listening: its port is tried at peers of which no port is known.
    :param epmd_port: the port mappers' port; None to ask none.
    :param arriving: returns whether somebody at an address (canonical text) connects to this node,
        and has not told its name.
    :param local: returns what this node says of itself in handshakes.
    :param tell: called with the events of attempts.
    :ivar attempts: the attempts under way, by the key of the peer's name.
    :ivar simultaneous: number of connections that both sides began.
    :ivar stopped: set to begin no more attempts.
    """

    def __init__(
        self,
        maker: Maker,
        connections: dict[str, Connection],
        listening: Listening,
        *,
        epmd_port: int | None,
        arriving: Callable[[str], bool],
        local: Callable[[], LocalNode],
        tell: Callable[[Connecting], None],
    ) -> None:
        self.attempts: dict[str, Attempt] = {}
        self.simultaneous = 0
        self.stopped = False
        self._maker = maker
        self._connections = connections
        self._listening = listening
        self._epmd_port = epmd_port
        self._arriving = arriving
        self._known_ports: OrderedDict[str, int] = OrderedDict()  # by key, the oldest first
        self._local = local
        self._tell = tell
        self._attempt_time = _EPMD_TIME + _CONNECT_TIME + maker.setup_time
        # By the key of the peer's name, as the attempts.
        self._dials: dict[str, _Dial] = {}
        self._incoming: dict[str, set[Connection]] = {}
        self._waiters: dict[str, list[asyncio.Future[None]]] = {}

    @property
    def dialled(self) -> list[Connection]:
        """The handshakes in progress that this node began."""
        return [dial.connection for dial in self._dials.values()]

    async def connect(self, peer: str, timeout: float | None = None) -> None:
        """Connect to ``peer`` unless it is connected, see :meth:`.Node.connect`."""
        split_name(peer)
        key = key_of(peer)
        local = self._local()
        if key == key_of(local.name):
            raise HandshakeError("bad-name", "a node does not connect to itself")
        if key in self._connections:
            return
        if self.stopped:
            raise DistributionError("stopped", f"{local.name} is stopping")
        attempt = self.attempts.get(key)
        if attempt is None:
            task = asyncio.create_task(self._attempt(peer), name=f"connect to {peer}")
            attempt = self.attempts[key] = Attempt(peer, task)
            task.add_done_callback(lambda task: self._attempted(key, task))
            self._tell(Connecting(peer))
        # A limit that somebody set is one by the clock.
        limit = Patience(self._attempt_time) if timeout is None else asyncio.timeout(timeout)
        timeout = self._attempt_time if timeout is None else timeout
        try:
            async with limit:
                await asyncio.shield(attempt.task)  # others may wait for the same attempt
        except TimeoutError:
            raise DistributionError(
                "timeout", f"no connection to {peer} within {timeout:g} seconds"
            ) from None

    async def stop(self) -> None:
        """Cancel all attempts, and begin no more."""
        self.stopped = True
        tasks = [attempt.task for attempt in self.attempts.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one attempt --------------------------------------------------------------------------

    def _attempted(self, key: str, task: asyncio.Task[None]) -> None:
        peer = self.attempts.pop(key).peer
        if not task.cancelled() and task.exception() is not None:
            log.debug("no connection to %s: %s", peer, task.exception())

    async def _attempt(self, peer: str) -> None:
        """Connect to ``peer`` within the time for all steps together."""
        try:
            async with Patience(self._attempt_time):
                await self._reach(peer)
        except TimeoutError:
            raise DistributionError(
                "timeout", f"no connection to {peer} within {self._attempt_time:g} seconds"
            ) from None

    async def _reach(self, peer: str) -> None:
        _, host = split_name(peer)
        key = key_of(peer)
        await self._let_arrive(key, host)
        if key in self._connections or (self._incoming.get(key) and await self._comes_up(key)):
            return
        tried = set()
        failure: Exception | None = None
        for ask in (False, True):
            for port in await self._ports(peer, ask=ask):
                if port in tried:
                    continue
                tried.add(port)
                failure = await self._try(peer, port, failure)
                if failure is None:
                    return
        if isinstance(failure, HandshakeError):
            raise failure
        raise DistributionError(
            "unreachable", f"{peer} cannot be reached: {_words(failure)}"
        ) from failure

    async def _try(self, peer: str, port: int, before: Exception | None) -> Exception | None:
        """Connect to one port.

        :param before: the failure at another port.
        :returns: None when ``peer`` is connected, otherwise the failure that tells most.
        """
        key = key_of(peer)
        try:
            await self._dial(peer, port)
        except HandshakeError as error:
            if error.code not in ("simultaneous", "connected"):
                return error
            if not await self._comes_up(key):
                raise
        except OSError as error:
            if key not in self._connections:
                return before if isinstance(before, HandshakeError) else error
        else:
            self._keep_port(key, port)
        return None

    async def _ports(self, peer: str, *, ask: bool) -> list[int]:
        """Return the ports to try first: that of the last connection, or else our own number, which
        most nodes of a cluster have in common. It is not tried where another node has it: to begin
        a handshake with a connected node ends the connection.

        :param ask: those to try when that leads nowhere: the one that the port mapper tells, and
            our own number.
        """
        own = self._listening
        alive, host = split_name(peer)
        told: int | None = None
        if not ask:
            told = self._known_ports.get(key_of(peer))
        elif self._epmd_port is not None:
            try:
                told = await lookup(
                    host, alive, timeout=_EPMD_TIME, port=self._epmd_port, local=own.host
                )
            except (OSError, EpmdError) as error:
                log.debug("the port mapper at %s does not help: %s", host, error)
        found = [told] if told else []
        if own.port and (ask or not (found or self._has_nodes(host))):
            found.append(own.port)
        return found

    def _has_nodes(self, host: str) -> bool:
        """Return whether this node, or a connected one, is at an address."""
        return host == self._listening.host or any(
            split_name(key)[1] == host for key in self._connections
        )

    def _keep_port(self, key: str, port: int) -> None:
        self._known_ports[key] = port
        self._known_ports.move_to_end(key)
        if len(self._known_ports) > _MOST_PORTS:
            self._known_ports.popitem(last=False)

    async def _dial(self, peer: str, port: int) -> None:
        """Connect to one port; returns when ``peer`` is connected."""
        loop = asyncio.get_running_loop()
        _, host = split_name(peer)
        key = key_of(peer)
        raw = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        try:
            raw.setblocking(False)
            # The peer compares our name with where we come from.
            raw.bind((self._listening.host, 0))
            async with Patience(_CONNECT_TIME):
                await loop.sock_connect(raw, (host, port))
            # The peer may have been faster; it does not know yet that we are connecting as well.
            if key > key_of(self._local().name):
                await self._let_arrive(key, host)  # that connection would stay
            if key in self._connections:
                raw.close()
                return
            if self._incoming.get(key):
                raise HandshakeError("simultaneous", f"{peer} is connecting to this node")
        except BaseException:
            raw.close()
            raise
        connection = self._maker.make(
            Initiator(
                self._local(),
                peer,
                on_alive=lambda: key not in self._connections,
                length_size=self._maker.length_size,
            )
        )
        dial = self._dials[key] = _Dial(connection)
        try:
            protocol = self._maker.protocol(connection, host)
            await loop.create_connection(lambda: protocol, sock=raw)
            await dial.result
        finally:
            del self._dials[key]
            if not connection.established:
                connection.close(HandshakeError("closed", f"the attempt to reach {peer} ended"))

    async def _let_arrive(self, key: str, host: str) -> None:
        """Let somebody at an address, who is connecting to us, tell its name first: it may be the
        node that we mean, and a handshake that both sides begin costs twice as much."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _CONNECT_TIME
        while key not in self._connections and not self._incoming.get(key):
            if not self._arriving(host) or loop.time() >= end:
                return
            await self._changed(key, end - loop.time())

    async def _changed(self, key: str, seconds: float) -> None:
        """Wait until something has happened to the handshakes of a node, or of its address."""
        waiter = asyncio.get_running_loop().create_future()
        waiters = self._waiters.setdefault(key, [])
        waiters.append(waiter)
        try:
            await asyncio.wait({waiter}, timeout=seconds)
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
            if not waiters and self._waiters.get(key) is waiters:
                del self._waiters[key]

    async def _comes_up(self, key: str) -> bool:
        """Wait until a node that is connecting to us is connected; False when it fails."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._maker.setup_time
        # A connection of the peer that we yielded to may take a moment to arrive.
        grace = loop.time() + _EPMD_TIME
        while key not in self._connections:
            now = loop.time()
            limit = end if self._incoming.get(key) else min(grace, end)
            if now >= limit:
                return False
            await self._changed(key, limit - now)
        return True

    # --- both sides at once -------------------------------------------------------------------

    def welcome(self, connection: Connection, name: str) -> str:
        """Return the status that answers the handshake of an admitted node.

        When both sides began, the connection of the node with the greater name stays. A connected
        node that connects again has lost its end of the old connection, which is closed when the
        node has proved itself.
        """
        key = key_of(name)
        dial = self._dials.get(key)
        connected = key in self._connections
        dialling = dial is not None and dial.connection.handshake.done is False
        if dialling and not connected:
            self.simultaneous += 1
        status = _status(name, self._local().name, connected=connected, dialling=dialling)
        if status == NOK:
            return status
        self._incoming.setdefault(key, set()).add(connection)
        self._wake_host(connection.source)
        if status == OK_SIMULTANEOUS and dial is not None:
            error = HandshakeError("simultaneous", f"{name} is connecting to this node")
            dial.connection.close(error)
        return status

    def connected(self, connection: Connection) -> None:
        """End the attempts to reach a node that has become connected."""
        self._no_longer_incoming(connection)
        dial = self._dials.get(connection.key)
        if dial is not None:
            if dial.connection is not connection:
                dial.connection.close(
                    HandshakeError("simultaneous", f"{connection.name} has connected")
                )
            elif not dial.result.done():
                dial.result.set_result(None)

    def ended(self, connection: Connection, reason: DistributionError) -> None:
        """Continue an attempt whose handshake has failed, or that waited for the peer's."""
        if connection.outgoing:
            for dial in self._dials.values():
                if dial.connection is connection and not dial.result.done():
                    dial.result.set_exception(reason)
        else:
            self._no_longer_incoming(connection)
        self.wake(connection.key)
        if not connection.outgoing:  # it may not have told its name
            self._wake_host(connection.source)

    def wake(self, key: str) -> None:
        """Make attempts check again whether a node is connected."""
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(None)

    def _wake_host(self, host: str) -> None:
        for key in [key for key in self._waiters if split_name(key)[1] == host]:
            self.wake(key)

    def _no_longer_incoming(self, connection: Connection) -> None:
        incoming = self._incoming.get(connection.key)
        if incoming is not None:
            incoming.discard(connection)
            if not incoming:
                del self._incoming[connection.key]


def _status(theirs: str, ours: str, *, connected: bool, dialling: bool) -> str:
    """Return the status of a handshake that the node ``theirs`` begins with the node ``ours``."""
    if connected:
        return ALIVE
    if dialling:
        return NOK if theirs.encode() <= ours.encode() else OK_SIMULTANEOUS
    return OK


def _words(error: Exception | None) -> str:
    """Describe the failure of an attempt to connect."""
    if isinstance(error, TimeoutError):
        return "no answer"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return "no port is known" if error is None else str(error)
