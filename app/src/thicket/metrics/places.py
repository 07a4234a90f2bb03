# SPDX-License-Identifier: Apache-2.0
"""Serves at the places that the configuration names, as they come and go."""

from __future__ import annotations

import asyncio
import socket
from logging import getLogger

from thicket.base.pace import Backoff
from thicket.base.problems import Problems
from thicket.base.sockets import bound, is_address
from thicket.metrics.http import Server

log = getLogger(__name__)

#: Pauses between attempts in seconds; the last one repeats.
PAUSES = (1.0, 5.0, 15.0)
#: Seconds between two looks whether an interface is still the one that it was.
LOOK = 10.0


async def serve(server: Server, places: dict[str, str], port: int, problems: Problems) -> None:
    """Serve at all these places until cancelled; what cannot be served at is tried again.

    :param places: addresses, and interfaces as the kernel calls them, by what the configuration
        calls them.
    """
    problems.clear("metrics")
    work = [
        asyncio.create_task(_serve_at(server, said, place, port, problems))
        for said, place in places.items()
    ]
    try:
        await asyncio.gather(*work)
    finally:
        for one in work:
            one.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        await server.close()
        problems.clear("metrics")


async def _serve_at(server: Server, said: str, place: str, port: int, problems: Problems) -> None:
    backoff = Backoff(*PAUSES)
    while True:
        try:
            index = None if is_address(place) else socket.if_nametoindex(place)
            listener = bound(place, port)
            try:
                serving = await server.serve(listener)
            except OSError:
                listener.close()
                raise
        except OSError as e:
            pause = backoff.failed()
            # The mesh is joined some seconds after the start, and a cable is plugged in later.
            if backoff.exhausted:
                message = f"no numbers are served at {said}, port {port}: {e.strerror or e}"
                problems.report("metrics", "not-served", message, "warning", said)
            await asyncio.sleep(pause)
            continue
        backoff.reset()
        problems.clear_one("metrics", "not-served", said)
        log.info("numbers are served at %s, port %d", said, port)
        try:
            if index is None:
                await asyncio.Event().wait()
            await _gone(place, index)
        finally:
            serving.close()


async def _gone(interface: str, index: int | None) -> None:
    """Wait until the interface is another one, or none."""
    while True:
        await asyncio.sleep(LOOK)
        try:
            if socket.if_nametoindex(interface) != index:
                return
        except OSError:
            return
