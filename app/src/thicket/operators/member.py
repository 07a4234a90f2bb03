# SPDX-License-Identifier: Apache-2.0
"""An operator as a member of the cluster: Erlang's distribution over his connection.

The node takes him for who he has proven to be; whatever he calls himself before the ``@``, behind
it stands the address of his key. He is connected with the nodes that he connects to, and nobody can
connect to him.
"""

from __future__ import annotations

import asyncio
from typing import Any

from thicket.base.errors import RequestError
from thicket.distribution.connection import Connection

#: Characters of a cookie, as Erlang has it (an atom).
MOST_COOKIE = 255


def cookie_of(params: dict[str, Any]) -> str:
    """Return the cookie that a request ``member`` brings.

    :raises RequestError: it brings none.
    """
    cookie = params.get("cookie")
    if not isinstance(cookie, str) or not 1 <= len(cookie) <= MOST_COOKIE or not cookie.isascii():
        raise RequestError("bad-params", f"cookie is a text of 1 to {MOST_COOKIE} characters")
    return cookie


class _Watched(asyncio.BufferedProtocol):
    """A connection, and when it has ended."""

    def __init__(self, connection: Connection) -> None:
        self.ended = asyncio.Event()
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.buffer_updated(nbytes)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set()
        self._connection.connection_lost(exc)


async def join(connection: Connection, writer: asyncio.StreamWriter) -> None:
    """Hand a connection over to the cluster, until it ends.

    :param connection: see ``Node.admit``.
    :param writer: nothing may have been sent by the other side since the request was answered.
    """
    transport: Any = writer.transport
    watched = _Watched(connection)
    transport.set_protocol(watched)
    connection.connection_made(transport)
    if not transport.is_closing() and not transport.is_reading():
        transport.resume_reading()
    try:
        await watched.ended.wait()
    finally:
        transport.abort()
