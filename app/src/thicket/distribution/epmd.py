# SPDX-License-Identifier: Apache-2.0
"""The protocol of the Erlang Port Mapper Daemon: asking one, being one, registering with one.

The protocol is described in the ERTS User's Guide, "Distribution Protocol", section "EPMD
Protocol": requests have a 16-bit length, answers do not, and a connection carries one request.

Thicket nodes listen on a fixed port and need no port mapper among themselves. Stock Erlang and
Elixir nodes ask one, so :class:`PortMapper` answers them on the node's own address. It also answers
on the loopback addresses, where an Erlang node on the same device can register. When a real epmd
has the port already, the node registers with that one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from contextlib import suppress
from ipaddress import ip_address

from thicket.base.errors import ThicketError
from thicket.base.pace import wait
from thicket.base.patience import Patience

log = logging.getLogger(__name__)

PORT = 4369
"""The port that IANA assigned to epmd."""

NORMAL = 77
HIDDEN = 72

_ALIVE2_REQUEST = 120
_ALIVE2_ANSWER = 121
_ALIVE2_X_ANSWER = 118
_PORT_REQUEST = 122
_PORT_ANSWER = 119
_NAMES_REQUEST = 110
_REFUSED = {107: "KILL", 100: "DUMP", 115: "STOP"}

_VERSION = 6
"""Highest and lowest distribution protocol version we speak (6 is that of OTP 23 and later)."""

_MAX_NAME = 255
_MAX_REQUEST = 1024
_MAX_ANSWER = 64 * 1024
_MAX_CLIENTS = 64
_MAX_REGISTERED = 64
_REQUEST_TIME = 5.0

_BIND_INTERVAL = 1.0
_MAX_INTERVAL = 30.0


class EpmdError(ThicketError):
    """A port mapper refuses, or its answer violates the protocol."""


# --- wire format ------------------------------------------------------------------------------


def _request(body: bytes) -> bytes:
    return len(body).to_bytes(2, "big") + body


def port_request(name: str) -> bytes:
    """Return the request for the port of the node ``name`` (the part before ``@``)."""
    return _request(bytes((_PORT_REQUEST,)) + name.encode())


def alive_request(name: str, port: int, *, hidden: bool = False) -> bytes:
    """Return the request that registers ``name`` at ``port`` while the connection lasts."""
    text = name.encode()
    return _request(
        b"".join(
            (
                bytes((_ALIVE2_REQUEST,)),
                port.to_bytes(2, "big"),
                bytes((HIDDEN if hidden else NORMAL, 0)),
                _VERSION.to_bytes(2, "big") * 2,
                len(text).to_bytes(2, "big"),
                text,
                b"\0\0",
            )
        )
    )


def parse_port_answer(data: bytes) -> int | None:
    """Return the port in the answer ``data``, None when the name is not registered.

    :raises EpmdError: it is no such answer, or the node does not speak version 6.
    """
    if len(data) < 2 or data[0] != _PORT_ANSWER:
        raise EpmdError(f"not an answer to a request for a port: {data[:16]!r}")
    if data[1] != 0:
        return None
    if len(data) < 10:
        raise EpmdError("the answer to a request for a port ends too early")
    port = int.from_bytes(data[2:4], "big")
    highest = int.from_bytes(data[6:8], "big")
    lowest = int.from_bytes(data[8:10], "big")
    if not lowest <= _VERSION <= highest:
        raise EpmdError(f"the node speaks versions {lowest} to {highest}, not {_VERSION}")
    if not port:
        raise EpmdError("the node is registered with port 0")
    return port


def parse_alive_answer(data: bytes) -> int | None:
    """Return the creation in the answer ``data`` to a registration, None while it is incomplete.

    :raises EpmdError: the registration was refused (the name is taken).
    """
    if not data:
        return None
    size = {_ALIVE2_ANSWER: 4, _ALIVE2_X_ANSWER: 6}.get(data[0])
    if size is None:
        raise EpmdError(f"not an answer to a registration: {data[:16]!r}")
    if len(data) < size:
        return None
    if data[1]:
        raise EpmdError("the name is registered already")
    return int.from_bytes(data[2:size], "big")


# --- client -----------------------------------------------------------------------------------


async def ask(
    host: str, request: bytes, enough: int, *, timeout: float, port: int, local: str | None = None
) -> bytes:
    """Send ``request``, and return the answer, at least ``enough`` bytes of it if it is longer."""
    async with Patience(timeout):
        reader, writer = await asyncio.open_connection(
            host, port, local_addr=(local, 0) if local else None, limit=_MAX_ANSWER
        )
        try:
            writer.write(request)
            answer = b""
            while len(answer) < enough:
                data = await reader.read(_MAX_ANSWER)
                if not data:
                    break
                answer += data
            return answer
        finally:
            writer.transport.abort()


async def lookup(
    host: str, name: str, *, timeout: float = 2.0, port: int = PORT, local: str | None = None
) -> int | None:
    """Ask the port mapper at ``host`` for the port of the node ``name``.

    :param name: the part before ``@``.
    :param timeout: seconds for the whole exchange.
    :param local: the address to ask from.
    :returns: the port, None when the name is not registered there.
    :raises OSError: nobody answers at ``host`` (TimeoutError is one).
    :raises EpmdError: the answer makes no sense.
    """
    # The fixed part of the answer has 10 bytes, a refusal 2; then the server closes.
    return parse_port_answer(
        await ask(host, port_request(name), 10, timeout=timeout, port=port, local=local)
    )


# --- server -----------------------------------------------------------------------------------


class Registry:
    """The names and ports of the nodes on this device.

    :ivar counters: answered, refused and malformed requests.
    """

    def __init__(self, name: str, port: int, creation: int, *, hidden: bool = False) -> None:
        self.port_mapper_port = PORT
        self.counters = {"answered": 0, "refused": 0, "malformed": 0}
        self._creation = creation
        kind = HIDDEN if hidden else NORMAL
        self._nodes: dict[str, bytes] = {name: self._entry(name, port, kind)}

    @staticmethod
    def _entry(
        name: str,
        port: int,
        kind: int,
        *,
        highest: int = _VERSION,
        lowest: int = _VERSION,
        extra: bytes = b"",
    ) -> bytes:
        """Return what follows the result byte in the answer about a node."""
        text = name.encode()
        return b"".join(
            (
                port.to_bytes(2, "big"),
                bytes((kind, 0)),
                highest.to_bytes(2, "big"),
                lowest.to_bytes(2, "big"),
                len(text).to_bytes(2, "big"),
                text,
                len(extra).to_bytes(2, "big"),
                extra,
            )
        )

    def answer(self, request: bytes, *, local: bool) -> tuple[bytes, str | None]:
        """Return the answer to ``request`` and, when it registers a node, that node's name.

        :param local: the request came over a loopback address; only such a one may register.
        """
        tag = request[0] if request else 0
        if tag == _PORT_REQUEST:
            self.counters["answered"] += 1
            entry = self._nodes.get(request[1:].decode("utf-8", "replace"))
            if entry is None:
                return bytes((_PORT_ANSWER, 1)), None
            return bytes((_PORT_ANSWER, 0)) + entry, None
        if tag == _NAMES_REQUEST:
            self.counters["answered"] += 1
            lines = "".join(
                f"name {name} at port {int.from_bytes(entry[:2], 'big')}\n"
                for name, entry in self._nodes.items()
            )
            return self.port_mapper_port.to_bytes(4, "big") + lines.encode(), None
        if tag == _ALIVE2_REQUEST:
            return self._register(request, local)
        self.counters["refused" if tag in _REFUSED else "malformed"] += 1
        return b"", None

    def _register(self, request: bytes, local: bool) -> tuple[bytes, str | None]:
        size = int.from_bytes(request[9:11], "big")
        text = request[11 : 11 + size]
        extra_size = int.from_bytes(request[11 + size : 13 + size], "big")
        extra = request[13 + size : 13 + size + extra_size]
        highest = int.from_bytes(request[5:7], "big")
        lowest = int.from_bytes(request[7:9], "big")
        try:
            name = text.decode()
        except UnicodeDecodeError:
            name = ""
        if (
            len(request) < 13 + size + extra_size
            or not 0 < size <= _MAX_NAME
            or not name.isprintable()
            or " " in name
            or "@" in name
        ):
            self.counters["malformed"] += 1
            return b"", None
        refused = not local or name in self._nodes or len(self._nodes) >= _MAX_REGISTERED
        self.counters["refused" if refused else "answered"] += 1
        # Nodes that speak version 6 get a 32-bit creation, others 16 bits of it.
        wide = highest >= _VERSION
        creation = self._creation.to_bytes(4, "big")
        head = bytes((_ALIVE2_X_ANSWER if wide else _ALIVE2_ANSWER, 1 if refused else 0))
        answer = head + (creation if wide else creation[2:])
        if refused:
            return answer, None
        port = int.from_bytes(request[1:3], "big")
        self._nodes[name] = self._entry(
            name, port, request[3], highest=highest, lowest=lowest, extra=extra
        )
        return answer, name

    def forget(self, name: str) -> None:
        """Remove the node ``name``, whose connection has ended."""
        self._nodes.pop(name, None)


class _Client(asyncio.Protocol):
    """One connection to our port mapper."""

    def __init__(self, mapper: PortMapper) -> None:
        self._mapper = mapper
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._data = b""
        self._name: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        clients = self._mapper.clients
        clients[transport] = self
        asking = [known for known, client in clients.items() if client._name is None]
        if len(asking) > _MAX_CLIENTS:
            # A real client asks at once and leaves, so the oldest one only occupies its place.
            self._mapper.registry.counters["refused"] += 1
            clients.pop(asking[0])
            asking[0].abort()
        self._timer = asyncio.get_running_loop().call_later(_REQUEST_TIME, transport.abort)

    def data_received(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or self._name is not None:
            return  # a registered node sends nothing more
        self._data += data
        if len(self._data) < 2:
            return
        size = int.from_bytes(self._data[:2], "big")
        if not 0 < size <= _MAX_REQUEST:
            self._mapper.registry.counters["malformed"] += 1
            transport.abort()
            return
        if len(self._data) < 2 + size:
            return
        request = self._data[2 : 2 + size]
        self._data = b""
        # A client is local when this end of its connection has a loopback address.
        local = _is_loopback(transport.get_extra_info("sockname"))
        answer, self._name = self._mapper.registry.answer(request, local=local)
        if answer:
            transport.write(answer)
        if self._name is None:
            transport.close()
        elif self._timer is not None:
            self._timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._mapper.clients.pop(self._transport, None)
        if self._name is not None:
            self._mapper.registry.forget(self._name)


def _is_loopback(address: tuple[str, int] | None) -> bool:
    return address is not None and ip_address(address[0].partition("%")[0]).is_loopback


class PortMapper:
    """Makes a node known to clients of a port mapper.

    One task binds epmd's port on every given address and answers there. Where the port is taken, it
    registers with the program that has it, and takes over when that one ends. An address that does
    not exist yet is tried again until it does.

    :ivar registry: the nodes that it knows.
    :ivar served: the addresses on which it answers.
    :ivar registered_at: the address of the port mapper that it is registered with, or None.
    """

    def __init__(
        self,
        name: str,
        node_port: int,
        addresses: list[str],
        *,
        creation: int,
        port: int = PORT,
        hidden: bool = False,
    ) -> None:
        self.registry = Registry(name, node_port, creation, hidden=hidden)
        self.registry.port_mapper_port = port
        self.clients: dict[asyncio.Transport, _Client] = {}  # the oldest first
        self.served: list[str] = []
        self.registered_at: str | None = None
        self._name = name
        self._node_port = node_port
        self._hidden = hidden
        self._port = port
        self._addresses = list(dict.fromkeys(addresses))
        self._servers: list[asyncio.Server] = []
        self._task: asyncio.Task[None] | None = None
        self._registration: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name="port mapper")

    async def stop(self) -> None:
        """End the task, close the port and every connection."""
        for task in (self._task, self._registration):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
        self._task = self._registration = None
        for server in self._servers:
            server.close()
        self._servers.clear()
        for transport in list(self.clients):
            transport.abort()
        self.served.clear()

    async def _run(self) -> None:
        interval = _BIND_INTERVAL
        while True:
            absent, taken = await self._bind()
            if not absent and not taken:
                return
            if taken and (self._registration is None or self._registration.done()):
                self._registration = asyncio.create_task(
                    self._register(taken), name="registration with epmd"
                )
            self._wake.clear()
            if await wait(self._wake, interval) or absent:  # the epmd we registered with has gone
                interval = _BIND_INTERVAL
            else:
                interval = min(interval * 2, _MAX_INTERVAL)

    async def _bind(self) -> tuple[list[str], list[str]]:
        """Bind the addresses; return those that do not exist and those whose port is taken."""
        absent: list[str] = []
        taken: list[str] = []
        loop = asyncio.get_running_loop()
        for address in self._addresses:
            if address in self.served:
                continue
            try:
                listener = listen(address, self._port)
            except OSError as error:
                (taken if error.errno == errno.EADDRINUSE else absent).append(address)
                continue
            self._servers.append(await loop.create_server(lambda: _Client(self), sock=listener))
            self.served.append(address)
        return absent, taken

    async def _register(self, taken: list[str]) -> None:
        """Register at one of the addresses whose port is taken, until its port mapper ends."""
        # epmd accepts registrations only from its own device, hence loopback first.
        for address in sorted(taken, key=lambda text: not ip_address(text).is_loopback):
            writer: asyncio.StreamWriter | None = None
            try:
                async with Patience(_REQUEST_TIME):
                    reader, writer = await asyncio.open_connection(address, self._port)
                    writer.write(alive_request(self._name, self._node_port, hidden=self._hidden))
                    answer = b""
                    while parse_alive_answer(answer) is None:
                        data = await reader.read(64)
                        if not data:
                            raise EpmdError("the registration was not answered")
                        answer += data
                self.registered_at = address
                log.info("registered as %s with the epmd at %s", self._name, address)
                with suppress(OSError):
                    while await reader.read(64):
                        pass
                log.info("the epmd at %s has gone", address)
                self._wake.set()
                return
            except (OSError, EpmdError) as error:
                log.debug("no registration with the epmd at %s: %s", address, error)
            finally:
                if self.registered_at is not None:
                    self.registered_at = None
                if writer is not None:
                    writer.transport.abort()


def listen(address: str, port: int, backlog: int = 64) -> socket.socket:
    """Return a listening socket at exactly ``address``, never at all addresses.

    :raises OSError: EADDRNOTAVAIL while no interface has the address or it is tentative,
        EADDRINUSE when another program listens there.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind((address, port))
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener
