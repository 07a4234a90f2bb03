# SPDX-License-Identifier: Apache-2.0
"""The host's end of a relay's port: ``package/hwsim-relay/PROTOCOL.md``.

``Deframer`` finds frames in a stream and knows no sockets. ``RelayPort`` keeps a connection to the
socket of one node for ever: it connects when the node appears, begins a session with HELLO, begins
another when the stream makes no sense, and starts over when the node goes away.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from enum import IntEnum
from pathlib import Path
from typing import Protocol

from meshlab.wire.sockets import socket_address

log = logging.getLogger(__name__)

MAX_LENGTH = 65536
VERSION = 1
MAGIC = b"HWSIMRLY"

CONNECT_RETRY_MIN = 0.05
CONNECT_RETRY_MAX = 1.0
HELLO_RETRY_MIN = 1.0
HELLO_RETRY_MAX = 8.0
GREETING_PATIENCE = 0.3
"""Seconds for which a HELLO is taken to be on its way when a relay says that it has none."""
STALL = 2.0
"""Seconds after which a frame that stays incomplete is taken for the loss of the stream."""

HIGH_WATER = 256 * 1024
"""Bytes a node may leave unread before frames for it are dropped."""
LOW_WATER = 64 * 1024
HARD_LIMIT = 2 * 1024 * 1024
"""Bytes a node may leave unread before it is taken for dead."""


class Kind(IntEnum):
    """What a frame is."""

    NETLINK = 0
    HELLO = 1
    STATS = 2
    ERROR = 3


COUNTERS = (
    "to_kernel",
    "to_host",
    "sessions",
    "queue_full",
    "overruns",
    "truncated",
    "foreign",
    "refused",
    "send_errors",
    "bad_frames",
    "stalls",
    "skipped_bytes",
    "discarded_bytes",
)
"""A relay's counters in their order."""

DROP_COUNTERS = ("queue_full", "overruns", "truncated", "send_errors")
"""Those that mean that the simulation lost frames by itself."""

_FRAMING = struct.Struct("<IB")
_HELLO = struct.Struct("<IBBH8sQ")
HELLO_BODY = _HELLO.size - 4


class RelayError(Exception):
    """The stream makes no sense."""


def encode(kind: Kind, body: bytes = b"") -> bytes:
    """Return one frame."""
    return _FRAMING.pack(len(body) + 1, kind) + body


def encode_hello(nonce: int) -> bytes:
    """Return the host's HELLO."""
    return _HELLO.pack(HELLO_BODY, Kind.HELLO, VERSION, 0, MAGIC, nonce)


def encode_node_hello(family: int, nonce: int, counters: tuple[int, ...] = ()) -> bytes:
    """Return a node's HELLO (for tests and benchmarks)."""
    tail = struct.pack(f"<{len(counters)}Q", *counters)
    head = _HELLO.pack(HELLO_BODY + len(tail), Kind.HELLO, VERSION, family, MAGIC, nonce)
    return head + tail


def decode_counters(buffer: bytes, start: int, end: int) -> dict[str, int]:
    """Return the counters that the relay has and this version knows."""
    values = struct.unpack_from(f"<{(end - start) // 8}Q", buffer, start)
    return dict(zip(COUNTERS, values, strict=False))


class Deframer:
    """Splits a stream into frames; before a session it searches for the answer to HELLO.

    ``feed`` returns one buffer and a list of (kind, start, end) of the bodies in it.
    """

    __slots__ = ("_rest", "nonce", "skipped")

    def __init__(self) -> None:
        self.nonce = 0
        """Of the HELLO whose answer is searched for; 0: in a session."""
        self._rest = b""
        self.skipped = 0
        """Bytes skipped while searching."""

    def search(self, nonce: int) -> None:
        """Look for the answer with ``nonce``; a greeting (nonce 0) is reported as well."""
        self.nonce = nonce

    @property
    def incomplete(self) -> bool:
        """Tell whether a frame has begun and not ended."""
        return bool(self._rest) and not self.nonce

    def reset(self) -> None:
        """Forget what is incomplete."""
        self._rest = b""

    def feed(self, data: bytes) -> tuple[bytes, list[tuple[int, int, int]]]:
        """Take bytes of the stream. Raises ``RelayError`` when they make no sense."""
        buffer = self._rest + data if self._rest else data
        frames: list[tuple[int, int, int]] = []
        at = 0
        size = len(buffer)
        if self.nonce:
            at = self._search(buffer, frames)
            if self.nonce:
                self._rest = buffer[at:]
                return buffer, frames
        while size - at >= 5:
            length, kind = _FRAMING.unpack_from(buffer, at)
            if not 1 <= length <= MAX_LENGTH or kind > Kind.ERROR:
                self._rest = b""
                raise RelayError(f"a frame of kind {kind} and {length} bytes")
            end = at + 4 + length
            if end > size:
                break
            frames.append((kind, at + 5, end))
            at = end
        self._rest = buffer[at:] if at < size else b""
        return buffer, frames

    def _search(self, buffer: bytes, frames: list[tuple[int, int, int]]) -> int:
        """Look for a HELLO; return where to go on. Ends the search when it is the answer."""
        at = 0
        while True:
            found = buffer.find(MAGIC, at + 8)
            if found < 0:
                # The magic may be cut in two, and eight bytes of the frame go before it.
                keep = max(at, len(buffer) - (8 + len(MAGIC) - 1))
                self.skipped += keep - at
                return keep
            start = found - 8
            length: int
            length, kind, version = struct.unpack_from("<IBB", buffer, start)
            if kind != Kind.HELLO or version != VERSION or not HELLO_BODY <= length <= 4096:
                self.skipped += start + 1 - at
                at = start + 1
                continue
            if len(buffer) < start + 4 + length:
                self.skipped += start - at
                return start
            self.skipped += start - at
            at = start + 4 + length
            nonce: int = struct.unpack_from("<Q", buffer, start + 16)[0]
            if nonce in (self.nonce, 0):
                frames.append((Kind.HELLO, start + 5, at))
            if nonce == self.nonce:
                self.nonce = 0
                return at


class RelayUser(Protocol):
    """Who uses a port."""

    def session_started(self, family: int, counters: dict[str, int]) -> None:
        """A session began; ``family`` is hwsim's number in the node's kernel."""
        ...

    def session_ended(self, reason: str) -> None:
        """The session is over."""
        ...

    def netlink(self, buffer: bytes, start: int, end: int) -> None:
        """A netlink message came. Raises ``ValueError`` when it makes no sense."""
        ...

    def relay_error(self, errno: int, text: str) -> None:
        """The relay reports a problem."""
        ...

    def relay_counters(self, counters: dict[str, int]) -> None:
        """The relay's counters came."""
        ...

    def paused(self, paused: bool) -> None:
        """The node does not read, or reads again."""
        ...


class RelayPort(asyncio.Protocol):
    """A connection to one relay that heals itself. ``path`` is the socket on which QEMU listens."""

    def __init__(self, path: Path, user: RelayUser, first_nonce: int = 1) -> None:
        self.path = path
        self.connected = False
        """There is a connection to QEMU (the node may still be booting)."""
        self.in_session = False
        self.connects = 0
        self.sync_losses = 0
        """Times at which the stream made no sense."""
        self._user = user
        self._nonce = first_nonce - 1
        self._deframer = Deframer()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost: asyncio.Event = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._hello_at = 0.0
        self._hello_wait = HELLO_RETRY_MIN
        self._received_at = 0.0
        self._full = False

    @property
    def skipped(self) -> int:
        """Bytes skipped while searching for the beginning of a session."""
        return self._deframer.skipped

    def start(self) -> None:
        """Connect, and keep connected until ``stop``."""
        if self._task is None:
            self._task = self._loop.create_task(self._run())

    async def stop(self) -> None:
        """Close the connection and stop trying."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._drop("stopped")

    def send(self, pieces: list[bytes]) -> None:
        """Send framed messages in one go; without a session they are thrown away."""
        transport = self._transport
        if transport is None or not self.in_session:
            return
        transport.write(b"".join(pieces))
        if self._full and transport.get_write_buffer_size() > HARD_LIMIT:
            self._drop("it does not read")

    def request_counters(self) -> None:
        """Ask for the relay's counters."""
        if self.in_session and not self._full:
            self.send([encode(Kind.STATS)])

    def check(self, now: float) -> None:
        """Look after the deadlines; to be called a few times a second."""
        if self._transport is None:
            return
        if self._deframer.nonce:
            if now - self._hello_at >= self._hello_wait and not self._full:
                self._hello_wait = min(self._hello_wait * 2, HELLO_RETRY_MAX)
                self._hello()
        elif self._deframer.incomplete and now - self._received_at >= STALL:
            self.resynchronise("a frame stayed incomplete")

    def resynchronise(self, reason: str) -> None:
        """Begin a new session because the stream or its contents make no sense."""
        if self._transport is None:
            return
        self.sync_losses += 1
        log.warning("%s: %s; beginning a new session", self.path, reason)
        self._end_session(reason)
        self._deframer.reset()
        self._hello_wait = HELLO_RETRY_MIN
        self._hello()

    async def _run(self) -> None:
        wait = CONNECT_RETRY_MIN
        while True:
            self._lost.clear()
            try:
                async with asyncio.timeout(5):
                    address = socket_address(self.path)
                    await self._loop.create_unix_connection(lambda: self, address)
            except (OSError, TimeoutError, ValueError):
                await asyncio.sleep(wait)
                wait = min(wait * 2, CONNECT_RETRY_MAX)
                continue
            wait = CONNECT_RETRY_MIN
            await self._lost.wait()
            await asyncio.sleep(wait)

    def _hello(self) -> None:
        self._nonce = self._nonce % 0xFFFFFFFFFFFFFFFF + 1
        self._deframer.search(self._nonce)
        self._hello_at = self._loop.time()
        if self._transport is not None:
            self._transport.write(encode_hello(self._nonce))

    def _end_session(self, reason: str) -> None:
        if self.in_session:
            self.in_session = False
            self._user.session_ended(reason)

    def _drop(self, reason: str) -> None:
        transport, self._transport = self._transport, None
        self.connected = False
        self._end_session(reason)
        if transport is not None:
            transport.abort()
        self._lost.set()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a session."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._transport = transport
        self.connected = True
        self.connects += 1
        self._full = False
        self._deframer.reset()
        self._hello_wait = HELLO_RETRY_MIN
        self._hello()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session; ``_run`` connects again."""
        if self._transport is not None:
            self._drop("the node is gone")

    def pause_writing(self) -> None:
        """The node does not read."""
        self._full = True
        self._user.paused(True)

    def resume_writing(self) -> None:
        """The node reads again."""
        self._full = False
        self._user.paused(False)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the relay."""
        self._received_at = self._loop.time()
        try:
            buffer, frames = self._deframer.feed(data)
            user = self._user
            for kind, start, end in frames:
                if kind == Kind.NETLINK:
                    user.netlink(buffer, start, end)
                elif kind == Kind.HELLO:
                    self._take_hello(buffer, start, end)
                elif kind == Kind.STATS:
                    user.relay_counters(decode_counters(buffer, start, end))
                elif end - start >= 4:
                    errno = struct.unpack_from("<i", buffer, start)[0]
                    user.relay_error(errno, buffer[start + 4 : end].decode(errors="replace"))
        except (RelayError, ValueError) as error:
            self.resynchronise(str(error))

    def _take_hello(self, buffer: bytes, start: int, end: int) -> None:
        if end - start < HELLO_BODY - 1 or buffer[start + 3 : start + 11] != MAGIC:
            raise RelayError("a HELLO that is none")
        family, _magic, nonce = struct.unpack_from("<H8sQ", buffer, start + 1)
        if nonce and nonce == self._nonce:
            self._hello_wait = HELLO_RETRY_MIN
            self.in_session = True
            self._user.session_started(family, decode_counters(buffer, start + 19, end))
        elif nonce == 0:
            self._greeted()

    def _greeted(self) -> None:
        """A relay has (re)started and has no session."""
        if self.in_session:
            self._end_session("the relay has restarted")
            self._hello()
        elif self._loop.time() - self._hello_at >= GREETING_PATIENCE:
            self._hello()
