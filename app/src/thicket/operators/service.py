# SPDX-License-Identifier: Apache-2.0
"""Lets operators in: a port for TLS 1.3 with the fleet's certificates on both sides.

Anybody in the mesh can connect. Until somebody has proven to be an operator he costs a place among
few, for some seconds, and no memory for TLS before he has sent something; newcomers take the places
of those who have waited longest.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from logging import getLogger
from typing import Any, NamedTuple

from thicket.base.jsonlines import pack
from thicket.base.pace import Seldom
from thicket.base.patience import Patience
from thicket.base.sockets import readable
from thicket.control.server import MAX_REQUEST, Handler, converse
from thicket.operators.door import watch
from thicket.trust.operator import Operator
from thicket.trust.verify import RefusedError

log = getLogger(__name__)

#: Who has not proven anything yet: places for addresses that a node's beacon was believed from, for
#: all others, and for each address.
MAX_EXPECTED = 8
MAX_STRANGERS = 8
MAX_OF_ONE = 4
#: Seconds to send a first byte, and to prove who one is.
SILENT = 5.0
PROVE = 20.0
#: Seconds after a connection that could not be taken.
PAUSE = 0.5
#: Connections of operators at the same time.
MAX_OPERATORS = 32
_LOG_INTERVAL, _LOG_LINES = 60.0, 30


class Door(NamedTuple):
    """By what operators are let in.

    :ivar context: for the server's side; it must ask for a certificate.
    :ivar check: returns who is at the other end of a connection (an SSL object); raises
        ``RefusedError``.
    :ivar expected: returns whether a member is known to be at an address.
    :ivar methods: what an operator can ask for.
    """

    context: ssl.SSLContext
    check: Callable[[Any], Operator]
    expected: Callable[[IPv6Address], bool]
    methods: Callable[[Operator], Mapping[str, Handler]]


class _Guest:
    """Somebody who has connected."""

    def __init__(self, source: IPv6Address, *, expected: bool) -> None:
        self.source = source
        self.expected = expected
        self.operator: Operator | None = None
        self.ssl_object: Any = None
        self.task: asyncio.Task[None] | None = None


class Service:
    """Serves at one socket.

    :ivar served: how many were let in.
    :ivar refused: how many were not, by reason: one of ``verify.REASONS``, ``tls``, ``slow``,
        ``gone``, ``too-many``.
    """

    def __init__(self, door: Door) -> None:
        self.served = 0
        self.refused: Counter[str] = Counter()
        self._door = door
        self._guests: dict[_Guest, None] = {}
        self._seldom = Seldom(_LOG_INTERVAL, _LOG_LINES)

    async def run(self, listener: socket.socket) -> None:
        """Serve at a socket that listens, until cancelled.

        :raises OSError: the socket is of no use any more.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    sock, peer = await loop.sock_accept(listener)
                except OSError as error:
                    if error.errno in {errno.EBADF, errno.EINVAL, errno.ENOTSOCK}:
                        raise
                    # Somebody has gone again, or there are too many open files: none is lost.
                    await asyncio.sleep(PAUSE)
                    continue
                self._take(sock, IPv6Address(peer[0].partition("%")[0]))
        finally:
            tasks = [guest.task for guest in self._guests if guest.task is not None]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=1.0)

    @property
    def operators(self) -> list[dict[str, str]]:
        """Who is connected now: name and address."""
        return [
            {"operator": guest.operator.short, "address": str(guest.source)}
            for guest in self._guests
            if guest.operator is not None
        ]

    def recheck(self) -> None:
        """End the connections of operators who would not be let in now."""
        for guest in list(self._guests):
            if guest.operator is None or guest.task is None:
                continue
            try:
                self._door.check(guest.ssl_object)
            except RefusedError as error:
                self._count(guest, error.reason, str(error))
                guest.task.cancel()

    # -- somebody connects

    def _take(self, sock: socket.socket, source: IPv6Address) -> None:
        guest = _Guest(source, expected=self._door.expected(source))
        waiting = [one for one in self._guests if one.operator is None]
        same = [one for one in waiting if one.source == source]
        pool = [one for one in waiting if one.expected == guest.expected]
        limit = MAX_EXPECTED if guest.expected else MAX_STRANGERS
        if len(same) >= MAX_OF_ONE:
            self._drop(same[0])
        elif len(pool) >= limit:
            self._drop(pool[0])
        guest.task = asyncio.create_task(self._serve(guest, sock))
        self._guests[guest] = None
        guest.task.add_done_callback(lambda _task: self._guests.pop(guest, None))

    def _drop(self, guest: _Guest) -> None:
        self._count(guest, "too-many", "others wait as well")
        self._guests.pop(guest, None)
        if guest.task is not None:
            guest.task.cancel()

    async def _serve(self, guest: _Guest, sock: socket.socket) -> None:
        transport: asyncio.WriteTransport | None = None
        try:
            try:
                async with Patience(SILENT):
                    await readable(sock.fileno())
                watch(sock)
                async with Patience(PROVE):
                    reader, writer = await self._secured(sock)
            except BaseException:
                sock.close()
                raise
            transport = writer.transport
            operator = self._prove(guest, writer)
            if operator is not None:
                await self._let_in(guest, operator, reader, writer)
        except TimeoutError:
            self._count(guest, "slow", "it says nothing")
        except ssl.SSLError as error:
            self._count(guest, "tls", error.reason or str(error))
        except OSError as error:
            self._count(guest, "gone", error.strerror or str(error) or "it has left")
        except Exception:
            log.exception("the connection of an operator failed")
        finally:
            if transport is not None:
                transport.abort() if guest.operator is None else transport.close()

    async def _secured(
        self, sock: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=MAX_REQUEST)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=self._door.context, ssl_handshake_timeout=PROVE
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _prove(self, guest: _Guest, writer: asyncio.StreamWriter) -> Operator | None:
        """Return which operator it is; tell anybody else why not."""
        ssl_object = writer.get_extra_info("ssl_object")
        try:
            operator = self._door.check(ssl_object)
        except RefusedError as error:
            self._count(guest, error.reason, str(error))
            writer.write(pack({"id": None, "error": {"code": error.reason, "message": str(error)}}))
            writer.close()
            return None
        if len(self.operators) >= MAX_OPERATORS:
            message = f"{MAX_OPERATORS} operators are connected"
            self._count(guest, "too-many", message)
            writer.write(pack({"id": None, "error": {"code": "too-many", "message": message}}))
            writer.close()
            return None
        guest.ssl_object = ssl_object
        return operator

    async def _let_in(
        self,
        guest: _Guest,
        operator: Operator,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        guest.operator = operator
        self.served += 1
        log.info("operator %s has connected from %s", operator.short, guest.source)
        began = time.monotonic()
        try:
            await converse(reader, writer, self._door.methods(operator))
        finally:
            lasted = time.monotonic() - began
            log.info("operator %s has gone after %.0f s", operator.short, lasted)

    def _count(self, guest: _Guest, reason: str, words: str) -> None:
        self.refused[reason] += 1
        omitted = self._seldom.take((str(guest.source), reason), time.monotonic())
        if omitted is not None:
            more = f" ({omitted} more since the last of these lines)" if omitted else ""
            log.warning("no operator from %s (%s): %s%s", guest.source, reason, words, more)
