# SPDX-License-Identifier: Apache-2.0
"""A server of HTTP/1.1 (RFC 9110, 9112) that answers GET and HEAD, one request a connection.

Whoever reaches it may be slow, many or lying: the number of connections, of all and of each
address, the size of a request and the time for each step are bounded. What the libraries have
instead costs a node more than its whole budget (docs/metrics.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from logging import getLogger
from typing import NamedTuple

log = getLogger(__name__)

#: Longest request in bytes, and most of its headers.
MAX_REQUEST = 8 * 1024
MAX_HEADERS = 64
#: Connections at the same time, of all clients and of one address.
MAX_CLIENTS = 8
MAX_OF_ONE = 4
#: Seconds that a client may take to send its request, and to read the answer.
SEND = 5.0
READ = 10.0
#: Seconds in which the rest of what a client sends is read and dropped, so that it gets the answer.
LINGER = 1.0
#: Seconds that an answer may take.
WORK = 40.0
#: Longer answers are compressed for who can read that.
_WORTH = 1024

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Answer(NamedTuple):
    """What is sent back.

    :ivar kind: for ``Content-Type``.
    """

    body: bytes
    kind: str = "text/plain; charset=utf-8"
    status: int = 200


class Request(NamedTuple):
    """What a client asks for.

    :ivar path: without the query.
    :ivar headers: by their names in small letters; of several with one name the first.
    """

    method: str
    path: str
    headers: Mapping[str, str]


class RefusedError(Exception):
    """The request is answered with an error.

    :ivar status: of HTTP.
    """

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


Handler = Callable[[Request], Awaitable[Answer]]


class Server:
    """Answers what comes to its sockets.

    :param handler: returns the answer.
    :ivar requests: how many were answered with status 200.
    :ivar refused: how many were not, by reason: a status, ``clients`` (too many at once), ``slow``,
        ``gone`` (ended before it had sent a request).
    """

    def __init__(self, handler: Handler) -> None:
        self.requests = 0
        self.refused: Counter[str] = Counter()
        self._handler = handler
        self._clients: dict[asyncio.Task[None], str] = {}

    async def serve(self, listener: socket.socket) -> asyncio.Server:
        """Serve at a socket that is bound, until the server that is returned is closed."""
        return await asyncio.start_server(
            self._accepted, sock=listener, limit=MAX_REQUEST, backlog=MAX_CLIENTS
        )

    async def close(self) -> None:
        """End the connections."""
        clients = set(self._clients)
        for client in clients:
            client.cancel()
        if clients:
            await asyncio.wait(clients, timeout=1.0)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = str((writer.get_extra_info("peername") or ("",))[0])
        of_one = sum(other == peer for other in self._clients.values())
        if len(self._clients) >= MAX_CLIENTS or of_one >= MAX_OF_ONE:
            self.refused["clients"] += 1
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._clients[task] = peer
        task.add_done_callback(self._clients.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._exchange(reader, writer)
        except TimeoutError:
            self.refused["slow"] += 1
        except (OSError, asyncio.IncompleteReadError):
            self.refused["gone"] += 1
        finally:
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = None
        try:
            request = await _read(reader)
            async with asyncio.timeout(WORK):
                answer = await self._handler(request)
        except RefusedError as error:
            answer = Answer(f"{error}\n".encode(), status=error.status)
        except TimeoutError:
            if request is None:
                raise
            answer = Answer(b"the answer takes too long\n", status=503)
        except OSError:
            raise
        except asyncio.IncompleteReadError:
            raise
        except Exception:
            log.exception("a request for numbers failed")
            answer = Answer(b"an error of the node; see its log\n", status=500)
        # All is to be sent when drain() returns, as what is left is thrown away.
        writer.transport.set_write_buffer_limits(0)
        writer.write(_packed(request, answer))
        async with asyncio.timeout(READ):
            await writer.drain()
        if answer.status == 200:
            self.requests += 1
        else:
            self.refused[str(answer.status)] += 1
        writer.write_eof()
        # Who is cut off while he sends may lose what was sent to him (RFC 9112 9.6).
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while await reader.read(MAX_REQUEST):
                    pass


async def _read(reader: asyncio.StreamReader) -> Request:
    """Read a request without a body.

    :raises RefusedError: it is none, or not served.
    :raises TimeoutError: the client takes too long.
    :raises IncompleteReadError: it has gone.
    """
    try:
        async with asyncio.timeout(SEND):
            head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        raise RefusedError(431, f"a request has at most {MAX_REQUEST} bytes") from None
    return parse(head)


def parse(head: bytes) -> Request:
    """Return the request that has this head, with the empty line at its end.

    :raises RefusedError: it is none, or not served.
    """
    first, *lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not words[1].isprintable():
        raise RefusedError(400, "this is no request of HTTP/1.1")
    method, target, version = words
    if version not in {"HTTP/1.1", "HTTP/1.0"}:
        status = 505 if re.fullmatch(r"HTTP/\d\.\d", version) else 400
        raise RefusedError(status, "HTTP/1.1 is spoken here")
    if len(lines) > MAX_HEADERS:
        raise RefusedError(431, f"a request has at most {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name) or re.search(r"[\0\r\n]", value):
            raise RefusedError(400, "a header is wrong")
        headers.setdefault(name.lower(), value.strip(" \t"))
    if version == "HTTP/1.1" and "host" not in headers:
        raise RefusedError(400, "a request of HTTP/1.1 has a header Host")
    if method not in {"GET", "HEAD"}:
        raise RefusedError(405, "only GET and HEAD are answered")
    return Request(method, _path(target), headers)


def _path(target: str) -> str:
    """Return the path of a request's target, which may name the server as well (RFC 9112 3.2.2)."""
    scheme, found, rest = target.partition("://")
    if found and scheme.lower() == "http":
        target = "/" + rest.partition("/")[2]
    return target.partition("?")[0]


def _packed(request: Request | None, answer: Answer) -> bytes:
    """Return an answer as it is sent; ``request`` is None where it could not be read."""
    body, more = answer.body, ""
    encodings = request.headers.get("accept-encoding", "") if request is not None else ""
    if len(body) > _WORTH and re.search(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))", encodings):
        from zlib import compressobj

        packer = compressobj(level=6, wbits=31)  # of gzip (zlib.h, deflateInit2)
        body = packer.compress(body) + packer.flush()
        more = "Content-Encoding: gzip\r\n"
    if answer.status == 405:
        more += "Allow: GET, HEAD\r\n"
    head = (
        f"HTTP/1.1 {answer.status} {_PHRASES[answer.status]}\r\n"
        f"Content-Type: {answer.kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        f"{more}"
        "Vary: Accept, Accept-Encoding\r\n"
        "Cache-Control: no-store\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (b"" if request is not None and request.method == "HEAD" else body)
