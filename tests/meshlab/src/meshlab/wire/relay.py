# SPDX-License-Identifier: Apache-2.0
"""The host's end of a relay's port: ``package/hwsim-relay/PROTOCOL.md``.

``Deframer`` finds frames in a stream and knows no sockets. ``RelayPort`` keeps a connection to the
socket of one node for ever: it connects when the node appears and again when the node comes back.
``Connection`` is one of those connections: it begins a session with HELLO, and another when the
stream makes no sense.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from enum import IntEnum
from pathlib import Path
from typing import Protocol, cast

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


# For every frame: an enumeration costs 0.2 us a look.
_NETLINK = int(Kind.NETLINK)
_LAST_KIND = int(Kind.ERROR)

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

DROP_COUNTERS = ("queue_full", "overruns", "truncated", "refused", "send_errors")
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
        """Take bytes of the stream.

        :raises RelayError: when they make no sense.
        """
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
            if not 1 <= length <= MAX_LENGTH or kind > _LAST_KIND:
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
        """A netlink message came.

        :raises ValueError: when it makes no sense.
        """
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


class RelayPort:
    """A connection to one relay that heals itself.

    :param path: The socket on which QEMU listens.
    :param user: Who is told what comes.
    :param first_nonce: The nonce of the first HELLO; each later one has the next.
    :ivar connection: The connection to QEMU while there is one (the node may still be booting).
    :ivar sync_losses: Times at which the stream made no sense.
    """

    def __init__(self, path: Path, user: RelayUser, first_nonce: int = 1) -> None:
        self.path = path
        self.user = user
        self.connection: Connection | None = None
        self.sync_losses = 0
        self._nonce = first_nonce - 1
        self._task: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Tell whether there is a connection to QEMU (the node may still be booting)."""
        return self.connection is not None

    @property
    def in_session(self) -> bool:
        """Tell whether the relay has answered."""
        return self.connection is not None and self.connection.in_session

    def next_nonce(self) -> int:
        """Return a nonce that no earlier HELLO had; never 0."""
        self._nonce = self._nonce % 0xFFFFFFFFFFFFFFFF + 1
        return self._nonce

    def start(self) -> None:
        """Connect, and keep connected until ``stop``."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Close the connection and stop trying."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self.connection is not None:
            self.connection.drop("stopped")

    def send(self, pieces: list[bytes]) -> None:
        """Send framed messages in one go; without a session they are thrown away.

        :param pieces: The messages.
        """
        if self.connection is not None:
            self.connection.send(pieces)

    def request_counters(self) -> None:
        """Ask for the relay's counters."""
        if self.connection is not None and not self.connection.full:
            self.connection.send([encode(Kind.STATS)])

    def check(self, now: float) -> None:
        """Look after the deadlines; to be called a few times a second.

        :param now: The event loop's time.
        """
        if self.connection is not None:
            self.connection.check(now)

    def resynchronise(self, reason: str) -> None:
        """Begin a new session because the stream or its contents make no sense.

        :param reason: What is wrong.
        """
        if self.connection is not None:
            self.connection.resynchronise(reason)

    async def _run(self) -> None:
        wait = CONNECT_RETRY_MIN
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout(5):
                    address = socket_address(self.path)
                    _, connection = await loop.create_unix_connection(
                        lambda: Connection(self), address
                    )
            except (OSError, TimeoutError, ValueError):
                await asyncio.sleep(wait)
                wait = min(wait * 2, CONNECT_RETRY_MAX)
                continue
            wait = CONNECT_RETRY_MIN
            await connection.lost.wait()
            await asyncio.sleep(wait)


class Connection(asyncio.Protocol):
    """One connection of a port to QEMU, from its beginning to its end.

    :param port: The port, of which it is the ``connection`` as long as it lasts.
    :ivar in_session: The relay has answered the latest HELLO.
    :ivar full: The node does not read.
    :ivar lost: Set at its end.
    :ivar hello_at: When the latest HELLO was sent, by the event loop's clock.
    :ivar received_at: When the latest bytes came.
    """

    def __init__(self, port: RelayPort) -> None:
        self.in_session = False
        self.full = False
        self.lost = asyncio.Event()
        self.hello_at = 0.0
        self.received_at = 0.0
        self._port = port
        self._user = port.user
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._deframer = Deframer()
        self._nonce = 0
        self._hello_wait = HELLO_RETRY_MIN

    def send(self, pieces: list[bytes]) -> None:
        """Send framed messages in one go; without a session they are thrown away.

        :param pieces: The messages.
        """
        transport = self._transport
        if transport is None or not self.in_session:
            return
        transport.write(b"".join(pieces))
        if self.full and transport.get_write_buffer_size() > HARD_LIMIT:
            self.drop("it does not read")

    def check(self, now: float) -> None:
        """Look after the deadlines.

        :param now: The event loop's time.
        """
        if self._deframer.nonce:
            if now - self.hello_at >= self._hello_wait and not self.full:
                self._hello_wait = min(self._hello_wait * 2, HELLO_RETRY_MAX)
                self._hello()
        elif self._deframer.incomplete and now - self.received_at >= STALL:
            self.resynchronise("a frame stayed incomplete")

    def resynchronise(self, reason: str) -> None:
        """Begin a new session because the stream or its contents make no sense.

        :param reason: What is wrong.
        """
        if self._transport is None:
            return
        self._port.sync_losses += 1
        log.warning("%s: %s; beginning a new session", self._port.path, reason)
        self._end_session(reason)
        self._deframer.reset()
        self._hello_wait = HELLO_RETRY_MIN
        self._hello()

    def drop(self, reason: str) -> None:
        """End the connection.

        :param reason: Why, for the user.
        """
        transport, self._transport = self._transport, None
        if self._port.connection is self:
            self._port.connection = None
        self._end_session(reason)
        if transport is not None:
            transport.abort()
        self.lost.set()

    def _hello(self) -> None:
        self._nonce = self._port.next_nonce()
        self._deframer.search(self._nonce)
        self.hello_at = self._loop.time()
        if self._transport is not None:
            self._transport.write(encode_hello(self._nonce))

    def _end_session(self, reason: str) -> None:
        if self.in_session:
            self.in_session = False
            self._user.session_ended(reason)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a session."""
        transport = cast("asyncio.Transport", transport)  # uvloop's is one, but does not say so
        transport.set_write_buffer_limits(high=HIGH_WATER, low=LOW_WATER)
        self._transport = transport
        self._port.connection = self
        self._hello()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session; the port connects again."""
        if self._transport is not None:
            self.drop("the node is gone")

    def pause_writing(self) -> None:
        """The node does not read."""
        self.full = True
        self._user.paused(True)

    def resume_writing(self) -> None:
        """The node reads again."""
        self.full = False
        self._user.paused(False)

    def data_received(self, data: bytes) -> None:
        """Take bytes from the relay."""
        self.received_at = self._loop.time()
        try:
            buffer, frames = self._deframer.feed(data)
            user = self._user
            for kind, start, end in frames:
                if kind == _NETLINK:
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
        elif self._loop.time() - self.hello_at >= GREETING_PATIENCE:
            self._hello()
