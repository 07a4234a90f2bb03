# SPDX-License-Identifier: Apache-2.0
"""The daemon's control socket: a unix socket with one JSON object per line in each direction.

A request is ``{"id": any, "method": text, "params": {...}}``. Its answer is ``{"id": same,
"result": ...}`` or ``{"id": same, "error": {"code": text, "message": text}}``. Requests of one
connection are answered in order. Only root can open the socket (mode 0600).

A method may take the connection over (:class:`Takeover`): after its answer the connection carries
what the method says, until its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from logging import getLogger
from typing import Any, NamedTuple

from thicket.base.errors import RequestError, ThicketError
from thicket.base.jsonlines import pack, unpack

log = getLogger(__name__)

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class Takeover(NamedTuple):
    """What a method returns that takes its connection over.

    :ivar result: the answer to the request.
    :ivar run: has the connection after that; it ends when this returns.
    """

    result: Any
    run: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


#: Longest request in bytes: a whole configuration file, escaped as JSON at its worst.
MAX_REQUEST = 512 * 1024
#: Longest answer in bytes; in place of a longer one the client gets an error.
MAX_ANSWER = 8 * 1024 * 1024
#: Clients served at the same time.
MAX_CLIENTS = 16
#: Seconds that a client may be silent, and may take to read an answer.
IDLE = 60.0
#: Seconds that a request may take.
WORK = 30.0


class Server:
    """Serves ``methods`` on the unix socket at ``path``."""

    def __init__(self, path: str, methods: Mapping[str, Handler]) -> None:
        self.path = path
        self.methods = methods
        self.idle = IDLE
        self.work = WORK
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled.

        :raises OSError: the socket cannot be made.
        """
        server = await asyncio.start_unix_server(
            self._accepted, sock=self._listen(), limit=MAX_REQUEST
        )
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            clients = set(self._clients)
            for client in clients:
                client.cancel()
            if clients:
                await asyncio.wait(clients, timeout=1.0)
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _listen(self) -> socket.socket:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The socket is bound under another name and then renamed: the name never exists with a
        # wrong mode or without a listener, and a socket that a killed daemon left is replaced.
        temporary = self.path + ".new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            s.bind(temporary)
            os.chmod(temporary, 0o600)
            s.listen(MAX_CLIENTS)
            s.setblocking(False)
            os.rename(temporary, self.path)
        except OSError:
            s.close()
            raise
        return s

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            log.warning("refused a control client: %d are connected", MAX_CLIENTS)
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await converse(reader, writer, self.methods, idle=self.idle, work=self.work)
        finally:
            writer.close()


async def converse(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    methods: Mapping[str, Handler],
    *,
    idle: float = IDLE,
    work: float = WORK,
) -> None:
    """Answer the requests of one client until it has gone, is silent, or does not read.

    :param reader: its limit is that of a request.
    :param idle: see ``IDLE``.
    :param work: see ``WORK``.
    """
    with contextlib.suppress(TimeoutError, ConnectionError):
        while True:
            try:
                async with asyncio.timeout(idle):
                    line = await reader.readline()
            except ValueError:  # longer than the limit: the start of the next one is unknown
                error = {"code": "too-long", "message": f"more than {MAX_REQUEST} bytes"}
                writer.write(pack({"id": None, "error": error}))
                return
            if not line:
                return
            answer = await _answer(line, methods, work)
            takeover = answer.get("result")
            if isinstance(takeover, Takeover):
                answer["result"] = takeover.result
            written = pack(answer)
            if len(written) > MAX_ANSWER:
                message = f"the answer has {len(written)} bytes (limit {MAX_ANSWER})"
                error = {"code": "too-long", "message": message}
                written = pack({"id": answer["id"], "error": error})
            writer.write(written)
            async with asyncio.timeout(idle):
                await writer.drain()
            if isinstance(takeover, Takeover):
                await takeover.run(reader, writer)
                return


async def _answer(line: bytes, methods: Mapping[str, Handler], work: float) -> dict[str, Any]:
    ident: Any = None
    try:
        try:
            request = unpack(line)
        except ValueError as e:
            raise RequestError("bad-request", str(e)) from e
        ident = request.get("id")
        params = request.get("params") or {}
        if not isinstance(params, dict):
            raise RequestError("bad-request", "params is not an object")
        method = methods.get(str(request.get("method")))
        if method is None:
            known = ", ".join(methods)
            raise RequestError("unknown-method", f"known methods are {known}")
        async with asyncio.timeout(work):
            result = await method(params)
    except ThicketError as e:
        return {"id": ident, "error": {"code": e.code, "message": str(e)}}
    except TimeoutError:
        message = f"no result within {work:g} s"
        return {"id": ident, "error": {"code": "timeout", "message": message}}
    except Exception as e:
        log.exception("control request failed")
        message = f"{type(e).__name__}: {e}"
        return {"id": ident, "error": {"code": "internal", "message": message}}
    return {"id": ident, "result": result}
