# SPDX-License-Identifier: Apache-2.0
"""Asks the network at the uplink whether it leads somewhere. :mod:`.health` judges the answers.

All is sent by the uplink itself, whatever routes there are (SO_BINDTODEVICE). A question for names
is one for the name servers of the root (RFC 1035 4.1), which every resolver can answer that reaches
the internet, and which names nobody's servers.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

from thicket.gateway.health import PATIENCE
from thicket.gateway.section import address_and_port

_DNS_PORT = 53
#: A port that nobody listens at: a packet to it makes the kernel look for the router.
_DISCARD = 9
_RECURSION = b"\x01\x00"
_ONE_QUESTION = b"\0\1\0\0\0\0\0\0"
_ROOT_NS = b"\0\0\2\0\1"
_NO_ERROR = 0

Address = IPv4Address | IPv6Address


def question(number: bytes) -> bytes:
    """Return a question for the name servers of the root.

    :param number: two bytes that the answer repeats.
    """
    return number + _RECURSION + _ONE_QUESTION + _ROOT_NS


def answers(packet: bytes, number: bytes) -> bool:
    """Return whether a packet is the answer of a resolver that works."""
    return (
        len(packet) >= 12
        and packet[:2] == number
        and bool(packet[2] & 0x80)
        and packet[3] & 0x0F == _NO_ERROR
        and packet[6:8] != b"\0\0"
    )


def _socket(address: Address, kind: socket.SocketKind, interface: str) -> socket.socket:
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    made = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    except OSError:
        made.close()
        raise
    return made


async def asks_names(server: Address, interface: str) -> bool:
    """Return whether a name server answers in time."""
    loop = asyncio.get_running_loop()
    number = os.urandom(2)
    try:
        with _socket(server, socket.SOCK_DGRAM, interface) as asked:
            await loop.sock_connect(asked, (str(server), _DNS_PORT))
            async with asyncio.timeout(PATIENCE):
                await loop.sock_sendall(asked, question(number))
                while not answers(await loop.sock_recv(asked, 2048), number):
                    pass
    except (OSError, TimeoutError):
        return False
    return True


async def connects(target: str, interface: str) -> bool:
    """Return whether a place lets itself be connected to in time; that it refuses counts as well,
    as it has answered."""
    found = address_and_port(target)
    if found is None:
        return False
    from ipaddress import ip_address

    loop = asyncio.get_running_loop()
    try:
        with _socket(ip_address(found[0]), socket.SOCK_STREAM, interface) as asked:
            async with asyncio.timeout(PATIENCE):
                await loop.sock_connect(asked, found)
    except ConnectionRefusedError:
        return True
    except (OSError, TimeoutError):
        return False
    return True


def poke(router: Address, interface: str, index: int) -> None:
    """Send a packet to a router, so that the kernel looks whether it is there."""
    with suppress(OSError), _socket(router, socket.SOCK_DGRAM, interface) as asked:
        if router.version == 6:
            asked.sendto(b"", (str(router), _DISCARD, 0, index))
        else:
            asked.sendto(b"", (str(router), _DISCARD))


async def all_of(asked: Iterable[tuple[str, Address]], interface: str) -> dict[str, bool]:
    """Ask name servers at the same time; return which of them answer."""
    pairs = list(asked)
    found = await asyncio.gather(*(asks_names(server, interface) for _, server in pairs))
    return {name: answer for (name, _), answer in zip(pairs, found, strict=True)}


async def all_targets(targets: Iterable[str], interface: str) -> dict[str, bool]:
    """Connect to places at the same time; return which of them answer."""
    names = list(targets)
    found = await asyncio.gather(*(connects(name, interface) for name in names))
    return dict(zip(names, found, strict=True))
