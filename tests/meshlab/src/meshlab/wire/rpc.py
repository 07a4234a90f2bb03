# SPDX-License-Identifier: Apache-2.0
"""JSON lines over a unix socket: requests, answers and streams between the lab's processes.

One JSON object a line, UTF-8, at most ``MAX_LINE`` bytes with the newline::

    -> {"id": 1, "method": "link", "params": {"a": "n1", "b": "n2"}}
    <- {"id": 1, "event": {...}}                       (any number, only from methods that stream)
    <- {"id": 1, "result": {...}}                      or
    <- {"id": 1, "error": {"code": "no-such-node", "message": "there is no node n9: ..."}}

``id`` is chosen by the client and is unique among its unanswered requests. Requests of one
connection run at the same time. A request ends early when its connection closes.

A server::

    async def link(params: Params, call: Call) -> Json: ...
    server = Server(path, {"link": link})
    await server.start()

A client::

    async with await Client.connect(path) as client:
        await client.call("link", {"a": "n1", "b": "n2", "cut": True})
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from meshlab.wire.sockets import socket_address

log = logging.getLogger(__name__)

MAX_LINE = 4 << 20
"""Longest line in bytes, newline included, in either direction (a 100-node SNR matrix: 60 KiB)."""

MAX_PENDING = 256
"""Unanswered requests that one connection may have; further ones are refused with ``busy``."""

Json = Any
"""What ``json`` can carry: None, bool, int, float, str, list, dict with str keys."""

Params = dict[str, Any]


class RpcError(Exception):
    """An error that reaches the other side: a code for programs and a message for people.

    Codes of this module: ``bad-request``, ``no-such-method``, ``too-large``, ``busy``,
    ``internal``; on the client's side also ``not-running`` (nobody listens), ``closed``,
    ``timeout``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def to_json(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message}


class Call:
    """The server's view of one request being answered: lets a method stream events."""

    def __init__(self, connection: _Connection, request_id: Json) -> None:
        self._connection = connection
        self._id = request_id

    async def event(self, value: Json) -> None:
        """Send one event to the client; waits while the client reads slowly.

        :raises ConnectionError: when the client is gone.
        """
        await self._connection.send({"id": self._id, "event": value})


Handler = Callable[[Params, Call], Awaitable[Json]]


def encode(message: Mapping[str, Json]) -> bytes:
    """Return ``message`` as one line.

    :raises RpcError: ``too-large``: it is longer than ``MAX_LINE``.
    """
    line = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise RpcError(
            "too-large", f"message of {len(line)} bytes, at most {MAX_LINE} are possible"
        )
    return line


def decode(line: bytes) -> dict[str, Json]:
    """Return the object in ``line``.

    :raises RpcError: ``bad-request``: it is anything else.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RpcError("bad-request", f"not a line of JSON: {error}") from None
    if not isinstance(message, dict):
        raise RpcError("bad-request", f"expected an object, found {type(message).__name__}")
    return message


class _Connection:
    """One client of a server."""

    def __init__(self, writer: asyncio.StreamWriter, write_timeout: float) -> None:
        self._writer = writer
        self._write_timeout = write_timeout
        self._lock = asyncio.Lock()

    async def send(self, message: Mapping[str, Json]) -> None:
        """Send one line. A client that takes nothing for the write timeout is cut off."""
        line = encode(message)
        async with self._lock:
            if self._writer.is_closing():
                raise ConnectionError("the client is gone")
            self._writer.write(line)
            try:
                async with asyncio.timeout(self._write_timeout):
                    await self._writer.drain()
            except TimeoutError:
                self._writer.transport.abort()
                raise ConnectionError("the client does not read") from None


class Server:
    """Answers requests on a unix socket.

    :param path: Its place: created with mode 0600 (a stale socket there is replaced) and removed by
        ``stop``.
    """

    def __init__(
        self, path: Path, handlers: Mapping[str, Handler], *, write_timeout: float = 30.0
    ) -> None:
        self.path = path
        self._handlers = dict(handlers)
        self._write_timeout = write_timeout
        self._server: asyncio.Server | None = None
        self._inode: int | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen.

        :raises OSError: when the socket cannot be made.
        """
        address = socket_address(self.path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()
            # A socket takes its mode at bind; narrowing it on the descriptor first leaves no gap.
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(address)
            self._server = await asyncio.start_unix_server(
                self._serve, sock=listener, limit=MAX_LINE
            )
        except BaseException:
            listener.close()
            raise
        self._inode = self.path.stat().st_ino

    async def stop(self) -> None:
        """Stop listening, end every request and close every connection."""
        if self._server is None:
            return
        self._server.close()
        for task in list(self._clients):
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None
        with contextlib.suppress(OSError):
            # Not the socket of a successor that has replaced this one.
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        connection = _Connection(writer, self._write_timeout)
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                try:
                    line = await reader.readuntil(b"\n")
                except asyncio.LimitOverrunError:
                    # The rest of the line cannot be told from the next request: say why and close.
                    refusal = RpcError("too-large", f"a line may have at most {MAX_LINE} bytes")
                    await connection.send({"id": None, "error": refusal.to_json()})
                    break
                except asyncio.IncompleteReadError:
                    break
                request_id: Json = None
                try:
                    message = decode(line)
                    request_id = message.get("id")
                    if len(running) >= MAX_PENDING:
                        raise RpcError("busy", f"{MAX_PENDING} requests are already running")
                    handler, params = self._look_up(message)
                except RpcError as error:
                    await connection.send({"id": request_id, "error": error.to_json()})
                    continue
                job = asyncio.create_task(
                    self._answer(connection, request_id, message["method"], handler, params)
                )
                running.add(job)
                job.add_done_callback(running.discard)
        except (ConnectionError, asyncio.CancelledError):
            # Cancelled by stop(), which waits for us; swallowed because asyncio's stream server
            # would otherwise log it as an unhandled error.
            pass
        finally:
            for job in list(running):
                job.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._clients.discard(task)

    def _look_up(self, message: dict[str, Json]) -> tuple[Handler, Params]:
        method = message.get("method")
        if not isinstance(method, str):
            raise RpcError("bad-request", 'a request needs "method", a string')
        params = message.get("params")
        if params is None:
            params = {}
        if not isinstance(params, dict):
            raise RpcError("bad-request", '"params" must be an object')
        handler = self._handlers.get(method)
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise RpcError("no-such-method", f"there is no method {method!r}, only {known}")
        return handler, params

    async def _answer(
        self,
        connection: _Connection,
        request_id: Json,
        method: str,
        handler: Handler,
        params: Params,
    ) -> None:
        try:
            answer: dict[str, Json] = {
                "result": await handler(params, Call(connection, request_id))
            }
        except RpcError as error:
            answer = {"error": error.to_json()}
        except ConnectionError as error:
            log.debug("%s: %s", method, error)
            answer = {"error": RpcError("internal", f"{method}: {error}").to_json()}
        except Exception as error:
            log.exception("request %s failed", method)
            text = f"{method}: {type(error).__name__}: {error}"
            answer = {"error": RpcError("internal", text).to_json()}
        with contextlib.suppress(ConnectionError):
            try:
                await connection.send({"id": request_id, **answer})
            except RpcError as error:
                await connection.send({"id": request_id, "error": error.to_json()})


class Client:
    """A connection to a ``Server``; requests may overlap."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._pending: dict[int, tuple[asyncio.Future[Json], Callable[[Json], None] | None]] = {}
        self._task = asyncio.create_task(self._receive())

    @classmethod
    async def connect(cls, path: Path, *, timeout: float = 5.0) -> Self:
        """Connect to the server at ``path``.

        :raises RpcError: ``not-running``: nobody listens there.
        """
        try:
            async with asyncio.timeout(timeout):
                reader, writer = await asyncio.open_unix_connection(
                    socket_address(path), limit=MAX_LINE
                )
        except (OSError, TimeoutError) as error:
            reason = "it does not answer" if isinstance(error, TimeoutError) else error.strerror
            raise RpcError("not-running", f"nothing answers at {path}: {reason}") from None
        return cls(reader, writer)

    async def call(
        self,
        method: str,
        params: Params | None = None,
        *,
        timeout: float | None = 30.0,
        on_event: Callable[[Json], None] | None = None,
    ) -> Json:
        """Make one request and return its result.

        :param timeout: Bounds the silence in seconds between one message of the answer and the next
            (None: for ever).
        :param on_event: Gets each event before the result. What it raises ends the call, which
            raises it.
        :raises RpcError: the server's own, or ``closed`` or ``timeout``.
        """
        if self._task.done():
            raise RpcError("closed", "the connection is closed")
        loop = asyncio.get_running_loop()
        number = next(self._ids)
        future: asyncio.Future[Json] = loop.create_future()
        heard = loop.time()

        def event(value: Json) -> None:
            nonlocal heard
            heard = loop.time()
            if on_event is not None:
                try:
                    on_event(value)
                except Exception as error:  # the caller's to handle, not the reader's
                    if not future.done():
                        future.set_exception(error)

        self._pending[number] = (future, event)
        try:
            self._writer.write(encode({"id": number, "method": method, "params": params or {}}))
            with contextlib.suppress(ConnectionError):  # the receiver finds out and says so
                async with asyncio.timeout(timeout):
                    await self._writer.drain()
            while True:
                left = None if timeout is None else heard + timeout - loop.time()
                done, _ = await asyncio.wait([future], timeout=left)
                if done:
                    return future.result()
                if timeout is not None and loop.time() - heard >= timeout:
                    raise TimeoutError
        except TimeoutError:
            raise RpcError("timeout", f"{method}: no answer within {timeout:g} s") from None
        finally:
            self._pending.pop(number, None)

    async def close(self) -> None:
        """Close the connection; unanswered requests end with ``RpcError`` (``closed``)."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def _receive(self) -> None:
        reason = RpcError("closed", "the other side closed the connection")
        try:
            while True:
                self._deliver(decode(await self._reader.readuntil(b"\n")))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.LimitOverrunError:
            reason = RpcError("too-large", f"an answer of more than {MAX_LINE} bytes")
        except RpcError as error:
            reason = error
        finally:
            for future, _ in self._pending.values():
                if not future.done():
                    future.set_exception(reason)
            if self._writer.can_write_eof():
                self._writer.close()

    def _deliver(self, message: dict[str, Json]) -> None:
        number = message.get("id")
        if number is None and "error" in message:
            raise _error(message["error"])
        entry = self._pending.get(number) if isinstance(number, int) else None
        if entry is None:
            return  # a late answer to a request that has timed out
        future, on_event = entry
        if "event" in message:
            if on_event is not None:
                on_event(message["event"])
        elif not future.done():
            if "error" in message:
                future.set_exception(_error(message["error"]))
            else:
                future.set_result(message.get("result"))


def _error(value: Json) -> RpcError:
    if isinstance(value, dict):
        return RpcError(str(value.get("code", "internal")), str(value.get("message", value)))
    return RpcError("internal", str(value))
