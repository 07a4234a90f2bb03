# SPDX-License-Identifier: Apache-2.0
"""A way through this node to another one, for an operator who reaches only this one.

It carries bytes and understands none of them: operator and other node speak TLS with each other, so
that this node can neither read nor change what they say.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

from thicket.base.errors import RequestError
from thicket.operators.frames import LONGEST

#: Seconds to connect.
CONNECT = 10.0
#: Seconds that data may stay unacknowledged, and after which a silent connection is probed.
LOST = 60
_PROBE = 20
_USER_TIMEOUT = 18  # TCP_USER_TIMEOUT of linux/tcp.h

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def watch(sock: socket.socket) -> None:
    """Let the kernel end a TCP connection whose other side has gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, LOST * 1000)


async def open_to(address: str, port: int) -> Ends:
    """Connect to another node's port for operators.

    :raises RequestError: it does not answer.
    """
    try:
        async with asyncio.timeout(CONNECT):
            reader, writer = await asyncio.open_connection(address, port, limit=LONGEST)
    except TimeoutError:
        message = f"{address} does not answer within {CONNECT:g} s"
        raise RequestError("unreachable", message) from None
    except OSError as e:
        why = os.strerror(e.errno) if e.errno else str(e)  # asyncio has words of its own
        raise RequestError(
            "unreachable",
            f"{address}, port {port}: {why}; is the node on, and access.operators set there?",
        ) from None
    watch(writer.get_extra_info("socket"))
    return reader, writer


async def splice(one: Ends, other: Ends) -> None:
    """Carry bytes both ways until one side has ended its connection."""
    ways = [
        asyncio.create_task(_carry(one[0], other[1])),
        asyncio.create_task(_carry(other[0], one[1])),
    ]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        other[1].close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(LONGEST):
            writer.write(data)
            await writer.drain()
