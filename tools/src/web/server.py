# SPDX-License-Identifier: Apache-2.0
"""Serves the page on loopback, to whoever knows the secret of this run.

The page itself holds nothing of a fleet and goes to anybody on this machine. What a fleet is like
takes the secret, in a header: no cookie, which every port of this machine would get, and so no
other site can have a browser ask for it. A name that leads to 127.0.0.1 does not help either: the
host of a request must be ours.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from aiohttp import web

from thicket.base.errors import ThicketError
from thicket.base.pace import wait
from web.checked import number, table, text
from web.errors import WebError
from web.feed import Feed
from web.plan import Plan
from web.source import Deed

LOOPBACK: Final = "127.0.0.1"
#: Pages that look at the same time, and bytes of a request.
MOST_LOOKERS: Final = 32
MOST_REQUEST: Final = 16 * 1024
#: Seconds after which a page that has nothing new gets a sign of life, and that one may take to
#: read what it is sent.
ALIVE: Final = 10.0
READS: Final = 20.0
#: The least seconds between two pictures for one page.
BETWEEN: Final = 0.2
#: Spans of curves that a page can have, in seconds.
SPANS: Final = (3600.0, 86400.0)

_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Nothing from elsewhere, and no script or style that is not a file of ours.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class File(NamedTuple):
    """A file of the page."""

    kind: str
    contents: bytes


def page_files(scripts: Mapping[str, bytes]) -> dict[str, File]:
    """Return the files of the page by their paths.

    :param scripts: of the library (:mod:`.library`).
    """
    found = {
        f"/{path.name}": File(_TYPES[path.suffix], path.read_bytes())
        for path in sorted((Path(__file__).parent / "page").iterdir())
        if path.suffix in _TYPES
    }
    found["/"] = found.pop("/index.html")
    for name, contents in scripts.items():
        found[f"/lib/{name}"] = File(_TYPES[".js"], contents)
    return found


class Server:
    """The page of one feed.

    :param secret: who knows it may look, and change a simulated fleet.
    """

    def __init__(
        self, feed: Feed, secret: str, files: Mapping[str, File], plan: Plan | None = None
    ) -> None:
        self._feed = feed
        self._secret = secret
        self._files = files
        self._plan = plan
        self._lookers = 0
        self._hosts: frozenset[str] = frozenset()
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> int:
        """Listen on loopback, and return the port.

        :param port: 0 for any that is free.
        :raises WebError: that cannot be done.
        """
        app = web.Application(client_max_size=MOST_REQUEST, middlewares=[self._guarded])
        for path in self._files:
            app.router.add_get(path, self._file)
        app.router.add_get("/api/live", self._live)
        app.router.add_get("/api/node", self._node)
        app.router.add_get("/api/curves", self._curves)
        app.router.add_get("/api/plan", self._image)
        app.router.add_post("/api/do", self._do)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, port)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            why = error.strerror or str(error)
            raise WebError(
                "no-port",
                f"port {port} of this machine cannot be had ({why}); --port takes another",
            ) from None
        listening: int = self._runner.addresses[0][1]
        self._hosts = frozenset(f"{name}:{listening}" for name in (LOOPBACK, "localhost"))
        return listening

    async def stop(self) -> None:
        """Listen no more, and end what is under way."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # -- who may

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if request.headers.get("Host", "").lower() not in self._hosts:
                raise web.HTTPMisdirectedRequest(text="this page has another name")
            if request.path.startswith("/api/") and not self._known(request):
                raise web.HTTPForbidden(
                    text="The address of this page lacks its key: open the whole one"
                )
            answer = await handler(request)
        except web.HTTPException as error:
            answer = web.json_response({"error": error.text or error.reason}, status=error.status)
        except ThicketError as error:
            answer = web.json_response({"error": str(error)}, status=409)
        if not answer.prepared:
            answer.headers.update(HEADERS)
        return answer

    def _known(self, request: web.Request) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        return kind == "Bearer" and hmac.compare_digest(
            given.encode("utf-8", "surrogateescape"), self._secret.encode()
        )

    # -- what there is

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file = self._files[request.path]
        return web.Response(body=file.contents, headers={"Content-Type": file.kind})

    async def _image(self, request: web.Request) -> web.StreamResponse:
        if self._plan is None:
            raise web.HTTPNotFound(text="there is no plan")
        return web.Response(body=self._plan.contents, headers={"Content-Type": self._plan.kind})

    async def _live(self, request: web.Request) -> web.StreamResponse:
        """Send pictures as server-sent events (HTML, 9.2) until the page has gone."""
        if self._lookers >= MOST_LOOKERS:
            raise web.HTTPServiceUnavailable(text=f"{MOST_LOOKERS} pages look already; close one")
        answer = web.StreamResponse(headers={**HEADERS, "Content-Type": "text/event-stream"})
        self._lookers += 1
        try:
            with self._feed.looking() as changed:
                await answer.prepare(request)
                known = -1
                while True:
                    changed.clear()
                    number_, message = self._feed.message()
                    if number_ != known or known == -1:
                        message["plan"] = self._plan.corners._asdict() if self._plan else None
                        await self._send(answer, f"data: {json.dumps(message)}\n\n")
                        known = number_
                        await asyncio.sleep(BETWEEN)
                    if not await wait(changed, ALIVE):
                        await self._send(answer, ": alive\n\n")
        except (ConnectionError, TimeoutError):
            return answer  # the page has gone, or does not read
        finally:
            self._lookers -= 1

    async def _send(self, answer: web.StreamResponse, words: str) -> None:
        async with asyncio.timeout(READS):
            await answer.write(words.encode())

    async def _node(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(await self._feed.detail(self._name(request)))

    async def _curves(self, request: web.Request) -> web.StreamResponse:
        given = request.query.get("seconds", "")
        seconds = next((one for one in SPANS if f"{one:.0f}" == given), SPANS[0])
        found = self._feed.curves(self._name(request), seconds)
        return web.json_response({"now": time.time(), "seconds": seconds, **found})

    async def _do(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(text="a deed is JSON")
        try:
            words = table(await request.json())
        except ValueError:
            raise web.HTTPBadRequest(text="a deed is JSON") from None
        deed = _deed(words)
        if deed.kind not in self._feed.source.deeds:
            raise web.HTTPForbidden(text="that cannot be done to this fleet")
        for name in (deed.node, deed.other):
            if name:
                self._there(name)
        await self._feed.source.do(deed)
        return web.json_response({})

    def _name(self, request: web.Request) -> str:
        return self._there(request.query.get("name", ""))

    def _there(self, name: str) -> str:
        """Return the name of a node.

        :raises HTTPNotFound: there is none.
        """
        picture = self._feed.picture
        if picture is None or all(node.name != name for node in picture.nodes):
            raise web.HTTPNotFound(text="there is no such node (any more)")
        return name


def _deed(words: Mapping[str, Any]) -> Deed:
    x, y = (number(words.get(key), -1e6, 1e6) for key in ("x", "y"))
    return Deed(
        text(words.get("kind"), 16),
        text(words.get("node"), 96),
        text(words.get("other"), 96),
        (x, y) if x is not None and y is not None else None,
    )
