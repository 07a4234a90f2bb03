# SPDX-License-Identifier: Apache-2.0
"""One pair of pipes between a lab and its agent on another machine, and all that it carries.

Requests with an answer, notes without one, and streams: a stream is a connection that either side
opens, for example to the console of a node. A frame is its length, its kind and a number (of the
stream or the request), then its payload. Every stream has a window, so that one that nobody reads
does not hold up the others. Each side sends a pulse every ``PULSE`` seconds and takes the other for
lost after a longer silence: a network that swallows everything is noticed, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import struct
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import Any

log = logging.getLogger(__name__)

Json = Any

PULSE = 1.0
"""Seconds between two signs of life."""
PATIENCE = 30.0
"""Seconds of silence after which the other side is taken for lost."""
WINDOW = 256 * 1024
"""Bytes of a stream that may be on their way."""
PIECE = 32 * 1024
"""Most bytes of a stream in one frame: what is urgent waits for no more than that."""
MOST = 16 << 20
"""Longest payload in bytes."""
_HEAD = struct.Struct("!IBI")
_STAMP = struct.Struct("!d")
_COUNT = struct.Struct("!I")


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    DATA = 2
    END = 3
    RESET = 4
    CREDIT = 5
    REQUEST = 6
    ANSWER = 7
    REFUSAL = 8
    NOTE = 9
    PING = 10
    PONG = 11


class LinkError(Exception):
    """The other side refused a request, or is gone; the text is for people."""


class Stream:
    """One connection over a link.

    :param what: What it is for, as the side said that opened it.
    """

    def __init__(self, link: Link, number: int, what: Json) -> None:
        self.what = what
        self._link = link
        self._number = number
        self._arrived: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = WINDOW
        self._more = asyncio.Event()
        self._over = False
        self._ended = [False, False]  # by us, by them

    async def read(self) -> bytes:
        """Return what came next, b"" at the end."""
        if self._over and self._arrived.empty():
            return b""
        data = await self._arrived.get()
        if data is None:
            self._arrived.put_nowait(None)
            return b""
        self._link.send(Kind.CREDIT, self._number, _COUNT.pack(len(data)))
        return data

    async def read_all(self) -> bytes:
        """Return everything until the end."""
        parts = []
        while data := await self.read():
            parts.append(data)
        return b"".join(parts)

    async def write(self, data: bytes) -> None:
        """Send data; wait while the other side has not read what was sent before.

        :raises ConnectionError: when nobody will read it any more.
        """
        view = memoryview(data)
        while view:
            while self._room <= 0 and not self._over:
                self._more.clear()
                await self._more.wait()
            if self._over or self._ended[0]:
                raise ConnectionResetError("the other end is gone")
            piece = view[: min(PIECE, self._room)]
            self._room -= len(piece)
            self._link.send(Kind.DATA, self._number, bytes(piece))
            view = view[len(piece) :]
            await self._link.drain()

    def finish(self) -> None:
        """Say that no more data comes from here."""
        if not self._ended[0] and not self._over:
            self._ended[0] = True
            self._link.send(Kind.END, self._number)
            self._forget_if_done()

    def reset(self) -> None:
        """End it in both directions at once. May be called again."""
        if not self._over:
            if not all(self._ended):
                self._link.send(Kind.RESET, self._number)
            self.lost()

    # -- called by the link

    def take(self, kind: Kind, payload: bytes) -> None:
        """Take a frame of this stream."""
        match kind:
            case Kind.DATA:
                self._arrived.put_nowait(payload)
            case Kind.CREDIT:
                self._room += _COUNT.unpack(payload)[0]
                self._more.set()
            case Kind.END:
                self._ended[1] = True
                self._arrived.put_nowait(None)
                self._forget_if_done()
            case _:
                self.lost()

    def lost(self) -> None:
        """Be over: the other side or the link is gone."""
        if not self._over:
            self._over = True
            self._arrived.put_nowait(None)
            self._more.set()
            self._link.forget(self._number)

    def _forget_if_done(self) -> None:
        if all(self._ended):
            self._link.forget(self._number)


Handler = Callable[[Json], Awaitable[Json]]


class Handlers:
    """What a side of a link does with what the other one asks."""

    async def request(self, method: str, params: Json) -> Json:
        """Answer a request.

        :raises Exception: its text becomes the other side's ``LinkError``.
        """
        raise LinkError(f"there is no request {method!r}")

    def note(self, note: Json) -> None:
        """Take a note."""

    async def stream(self, stream: Stream) -> None:
        """Serve a stream that the other side opened; it is over when this returns."""


class Link:
    """One side of a link. ``start`` begins to read.

    :param first: The number of the first stream that this side opens: one side has 0, the other 1.
    :param handlers: What this side does.
    :ivar ended: Why it is over, once it is.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Handlers,
        *,
        first: int,
        patience: float = PATIENCE,
    ) -> None:
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.heard = time.monotonic()
        """When something last came from the other side."""
        self.round_trips: deque[float] = deque(maxlen=10_000)
        """Seconds from a pulse to its answer, the last ones."""
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._patience = patience
        self._numbers = itertools.count(first, 2)
        self._requests = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Json]] = {}
        self._streams: dict[int, Stream] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._own: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to read, and to send signs of life."""
        self._own = [asyncio.create_task(self._read()), asyncio.create_task(self._pulse())]

    async def call(self, method: str, params: Json = None, timeout: float | None = 300.0) -> Json:
        """Make a request and return its answer.

        :raises LinkError: when it is refused, not answered in time, or the link ends.
        """
        if self.ended.done():
            raise LinkError(self.ended.result())
        number = next(self._requests)
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        self.send(Kind.REQUEST, number, _encode({"method": method, "params": params}))
        try:
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise LinkError(f"{method}: no answer within {timeout:g} s") from None
        finally:
            self._asked.pop(number, None)

    def note(self, note: Json) -> None:
        """Tell the other side something that needs no answer."""
        self.send(Kind.NOTE, 0, _encode(note))

    def open(self, what: Json) -> Stream:
        """Open a stream."""
        stream = Stream(self, next(self._numbers), what)
        if self.ended.done():
            stream.lost()
            return stream
        self._streams[stream._number] = stream
        self.send(Kind.OPEN, stream._number, _encode(what))
        return stream

    async def close(self, why: str = "closed") -> None:
        """End it. May be called again."""
        self._end(why)
        for task in (*self._own, *self._jobs):
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(
            *(t for t in (*self._own, *self._jobs) if t is not asyncio.current_task()),
            return_exceptions=True,
        )
        self._writer.close()

    # -- used by streams

    def send(self, kind: Kind, number: int, payload: bytes = b"") -> None:
        """Send a frame."""
        if not self.ended.done():
            self._writer.write(_HEAD.pack(len(payload), kind, number) + payload)

    async def drain(self) -> None:
        """Wait while the pipe is full."""
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    def forget(self, number: int) -> None:
        """Drop a stream that is over."""
        self._streams.pop(number, None)

    # -- inside

    def _end(self, why: str) -> None:
        if self.ended.done():
            return
        self.ended.set_result(why)
        for stream in list(self._streams.values()):
            stream.lost()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LinkError(why))

    async def _read(self) -> None:
        why = "the connection was closed"
        try:
            while True:
                size, kind, number = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
                if size > MOST:
                    raise LinkError(f"a frame of {size} bytes")
                payload = await self._reader.readexactly(size)
                self.heard = time.monotonic()
                self._take(Kind(kind), number, payload)
        except asyncio.IncompleteReadError:
            pass
        except Exception as error:  # of the network, or what the other side sent makes no sense
            log.debug("the link ends", exc_info=error)
            why = f"the connection broke: {error}"
        self._end(why)

    def _take(self, kind: Kind, number: int, payload: bytes) -> None:
        match kind:
            case Kind.OPEN:
                stream = self._streams[number] = Stream(self, number, json.loads(payload))
                self._job(self._serve(stream))
            case Kind.REQUEST:
                self._job(self._answer(number, json.loads(payload)))
            case Kind.ANSWER | Kind.REFUSAL:
                answer = self._asked.get(number)
                if answer is not None and not answer.done():
                    value = json.loads(payload)
                    if kind is Kind.ANSWER:
                        answer.set_result(value)
                    else:
                        answer.set_exception(LinkError(str(value)))
            case Kind.NOTE:
                self._handlers.note(json.loads(payload))
            case Kind.PING:
                self.send(Kind.PONG, 0, payload)
            case Kind.PONG:
                self.round_trips.append(time.monotonic() - _STAMP.unpack(payload)[0])
            case _:
                stream_or_none = self._streams.get(number)
                if stream_or_none is not None:
                    stream_or_none.take(kind, payload)

    def _job(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _serve(self, stream: Stream) -> None:
        try:
            await self._handlers.stream(stream)
        except Exception as error:
            log.warning("stream %s: %s: %s", stream.what, type(error).__name__, error)
        finally:
            stream.reset()

    async def _answer(self, number: int, asked: Mapping[str, Json]) -> None:
        try:
            answer = await self._handlers.request(str(asked["method"]), asked["params"])
            self.send(Kind.ANSWER, number, _encode(answer))
        except Exception as error:
            log.debug("%s", asked["method"], exc_info=error)
            self.send(Kind.REFUSAL, number, _encode(str(error) or type(error).__name__))

    async def _pulse(self) -> None:
        while not self.ended.done():
            self.send(Kind.PING, 0, _STAMP.pack(time.monotonic()))
            await asyncio.sleep(min(PULSE, self._patience / 4))
            silent = time.monotonic() - self.heard
            if silent > self._patience:
                self._end(f"nothing came for {silent:.0f} s")


def _encode(value: Json) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


async def pump(stream: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy between a stream and a socket in both directions until both, or one of them, have ended.

    The end of one direction is passed on; a broken one ends the other.
    """

    async def out() -> None:
        while data := await reader.read(PIECE):
            await stream.write(data)
        stream.finish()

    async def back() -> None:
        while data := await stream.read():
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    tasks = [asyncio.create_task(out()), asyncio.create_task(back())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.exception()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stream.reset()
        writer.close()
