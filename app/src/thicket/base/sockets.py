# SPDX-License-Identifier: Apache-2.0
"""Sockets that the configuration asks for, and waiting for what a file descriptor is ready for."""

from __future__ import annotations

import asyncio
import socket

#: ``linux/in.h`` and ``linux/in6.h``; Python has no names for them.
_IP_FREEBIND = 15
_IPV6_FREEBIND = 78


def is_address(place: str) -> bool:
    """Return whether a place is an address, and not the name of an interface."""
    return ":" in place or place.replace(".", "").isdigit()


def bound(place: str, port: int) -> socket.socket:
    """Return a TCP socket for what comes to an address, or to any address by one interface.

    An address need not be there yet.

    :raises OSError: there is no such interface, or something else has the port.
    """
    four = is_address(place) and ":" not in place
    s = socket.socket(socket.AF_INET if four else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        s.setblocking(False)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if four:
            s.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        elif is_address(place):
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            s.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        else:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, place.encode())
        s.bind((place if is_address(place) else "::", port))
    except OSError:
        s.close()
        raise
    return s


async def readable(descriptor: int) -> None:
    """Wait until reading would not block."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


async def writable(descriptor: int) -> None:
    """Wait until writing would not block."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(descriptor)
