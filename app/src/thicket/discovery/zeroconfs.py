# SPDX-License-Identifier: Apache-2.0
"""python-zeroconf on one interface: opened, guarded, heard, and closed.

Each of them has one interface alone. What belongs to a cable never reaches the mesh's, nor the
other way round: Linux gives a socket what any socket of the machine has joined a group for, on
whatever interface, so each of theirs is bound to its device.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from logging import CRITICAL, getLogger
from typing import Any

from thicket.base.imports import stand_in
from thicket.base.patience import BOUND, Patience

#: Seconds that zeroconf may take to open its sockets, which takes some turns of the event loop. Its
#: own limit of 9 s takes a node without a processor for a failure, so it is told a larger one.
OPENING = 9.0
#: Announcements and their distance in seconds (RFC 6762 8.3).
ANNOUNCEMENTS = (2, 1.0)
#: Seconds that it gets to close.
_CLOSING = 2.0


async def begun(interfaces: list[str | int], *, version: str) -> Any:
    """Return an ``AsyncZeroconf`` that begins to open its sockets.

    :param interfaces: an index for IPv6, an address for IPv4.
    :param version: a name of zeroconf's ``IPVersion``.
    :raises OSError: they cannot be opened.
    :raises ImportError: zeroconf is not installed.
    """
    # a late import, as it is slow: one of zeroconf's libraries starts ldconfig, gcc and ld to
    # ask where the C library is. On a node the answer is None, and means the one in use.
    with stand_in("ctypes.util", {"find_library": lambda name: None}):
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncZeroconf

    getLogger("zeroconf").setLevel(CRITICAL)  # it logs each malformed packet
    return AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion[version])


async def opened(zeroconf: Any) -> None:
    """Wait until its sockets are open.

    :raises TimeoutError: they are not in time; an OSError.
    """
    async with Patience(OPENING):
        await zeroconf.zeroconf.async_wait_for_start(2 * BOUND * OPENING)


async def closed(zeroconf: Any) -> None:
    """Close it."""
    with contextlib.suppress(OSError, TimeoutError):
        async with Patience(_CLOSING):
            await zeroconf.async_close()


def guard(
    zeroconf: Any,
    interface: str,
    gate: Callable[[asyncio.DatagramProtocol], asyncio.DatagramProtocol],
) -> None:
    """Bind its sockets to their interface, and put a gate before each.

    :param zeroconf: the ``Zeroconf``, with open sockets.
    :param gate: makes one; it is given what zeroconf reads with.
    :raises OSError: they cannot be bound.
    """
    for reader in zeroconf.engine.readers:
        transport = reader.transport
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0"
        )
        transport.set_protocol(gate(transport.get_protocol()))


async def announce(zeroconf: Any, info: Any) -> AsyncIterator[None]:
    """Tell what is published (RFC 6762 8.3); yields after each time."""
    number, pause = ANNOUNCEMENTS
    for _ in range(number):
        zeroconf.async_send(zeroconf.generate_service_broadcast(info, None))
        yield
        await asyncio.sleep(pause)
