# SPDX-License-Identifier: Apache-2.0
"""Runs the page until it is ended."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

from web.feed import Feed
from web.library import scripts
from web.plan import Plan
from web.server import LOOPBACK, Server, page_files
from web.source import Source


async def serve(
    source: Source,
    *,
    port: int = 0,
    plan: Plan | None = None,
    tell: Callable[[str], None],
) -> None:
    """Serve the page of a source until cancelled.

    :param port: of loopback; 0 for any that is free.
    :param tell: gets the page's address, with the secret.
    :raises WebError: it cannot be served.
    """
    files = page_files(await asyncio.to_thread(scripts))
    secret = secrets.token_urlsafe(24)
    feed = Feed(source)
    server = Server(feed, secret, files, plan)
    listening = await server.start(port)
    watching = asyncio.create_task(feed.run())
    try:
        # Behind a # it stays in the browser: no server and no log gets it.
        tell(f"http://{LOOPBACK}:{listening}/#{secret}")
        await watching
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await server.stop()
