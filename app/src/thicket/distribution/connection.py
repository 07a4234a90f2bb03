# SPDX-License-Identifier: Apache-2.0
"""One TCP connection to another node: handshake, frames, ticks, back-pressure.

A :class:`Connection` is an asyncio protocol. It switches from the handshake to frames inside the
parser, because the peer's first messages may come in the segment that ends the handshake.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, Protocol

from . import frames
from .etf import encode_bare
from .handshake import (
    FRAGMENTS,
    SETUP_TIME,
    DistributionError,
    Handshake,
    HandshakeError,
    Initiator,
    RemoteNode,
)

log = logging.getLogger(__name__)

TICK_INTENSITY = 4
"""Ticks within one tick time (the default of kernel's ``net_tickintensity``)."""

HIGH_WATER = 256 * 1024
"""Bytes waiting to be sent above which :meth:`Connection.drain` waits."""

MAX_UNSENT = 16 * 1024 * 1024
"""Bytes waiting to be sent at which a peer that does not read is given up. Senders that use
:meth:`Connection.drain` never get there."""

_CLOSE_TIME = 2.0
_USER_TIMEOUT = 18  # TCP_USER_TIMEOUT of linux/tcp.h


class Owner(Protocol):
    """What a connection reports to."""

    def on_opened(self, connection: Connection) -> None:
        """The TCP connection stands and the handshake begins; may close it."""

    def on_connected(self, connection: Connection) -> None:
        """The handshake has succeeded; messages may follow at once."""

    def on_message(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """A message arrived; *payload* is encoded, without version byte."""

    def on_closed(self, connection: Connection, reason: DistributionError) -> None:
        """The connection is over; called exactly once."""


class Connection(asyncio.Protocol):
    """A connection, from the first byte of the handshake to its end.

    :param handshake: the machine of our side.
    :param tick_time: seconds without a byte after which the peer counts as lost; a tick is sent
        when nothing else was for a quarter of it.
    :param max_message: longest message accepted, in bytes.
    :ivar source: the peer's address, without zone.
    :ivar established: the handshake is over and the connection in use.
    """

    def __init__(
        self,
        owner: Owner,
        handshake: Handshake,
        *,
        tick_time: float,
        setup_time: float = SETUP_TIME,
        max_message: int = frames.MAX_MESSAGE,
    ) -> None:
        self.source = ""
        self.established = False
        self.handshake = handshake
        self.outgoing = isinstance(handshake, Initiator)
        self._owner = owner
        self._tick_time = tick_time
        self._setup_time = setup_time
        self._max_message = max_message
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader: frames.FrameReader
        self._messages: frames.MessageReader
        self._header = False
        self._sequence = 0
        self._closed: DistributionError | None = None
        self._reported = False
        self._received = False
        self._sent = False
        self._silent = 0
        self._paused = False
        self._drained: list[asyncio.Future[None]] = []

    # --- asyncio's side -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        self.source = str(peer[0]).partition("%")[0] if peer else ""
        if self._closed is not None:  # given up before it came to be
            transport.abort()
            return
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Ends the connection when what we sent stays unacknowledged for the tick time.
            raw.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(self._tick_time * 1000))
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._timer = self._loop.call_later(self._setup_time, self._setup_expired)
        self._flush()
        self._owner.on_opened(self)

    def data_received(self, data: bytes) -> None:
        if self._closed is not None:
            return
        self._received = True
        try:
            if self.established:
                self._receive(data)
            else:
                self._shake(data)
        except HandshakeError as error:
            self._flush()
            self.close(error)
        except frames.FrameError as error:
            self.close(DistributionError("protocol", f"{self.name} sent {error}"))

    def eof_received(self) -> bool:
        return False  # a peer that has said its last word is gone

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed is None:
            self._closed = self._loss(exc)
        self._finish()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._release()

    # --- the node's side ----------------------------------------------------------------------

    @property
    def peer(self) -> RemoteNode:
        """The node at the other end; only once it has told its name."""
        assert self.handshake.peer is not None
        return self.handshake.peer

    @property
    def name(self) -> str:
        """The peer's name, or its address as long as that is all we know."""
        return self.handshake.peer.name if self.handshake.peer is not None else self.source

    @property
    def discarded(self) -> int:
        """Number of messages from the peer that were too long."""
        return self._messages.discarded if self.established else 0

    def has(self, flag: int) -> bool:
        """Tell whether both sides have the ability *flag*."""
        return self.handshake.peer is not None and bool(self.handshake.peer.flags & flag)

    def send(self, control: tuple[Any, ...], payload: bytes | None = None) -> None:
        """Send a message without waiting; after the end of the connection it is dropped.

        :param payload: an encoded term without version byte.
        :raises EncodeError: when *control* has no form on the wire.
        """
        transport = self._transport
        if self._closed is not None or transport is None or not self.established:
            return
        sequence = None
        if payload is not None and self.has(FRAGMENTS):
            self._sequence += 1
            sequence = self._sequence
        self._sent = True
        parts = frames.build(encode_bare(control), payload, header=self._header, sequence=sequence)
        # Joined, as writelines() of Python 3.12.0 to 3.12.7 and 3.13.0 knows no high-water mark.
        transport.write(b"".join(parts))
        if transport.get_write_buffer_size() > MAX_UNSENT:
            self.close(DistributionError("stuck", f"{self.name} does not read what it is sent"))

    async def drain(self) -> None:
        """Wait until little enough is waiting to be sent; returns at once after the end."""
        while self._paused and self._closed is None:
            waiter = self._loop.create_future()
            self._drained.append(waiter)
            await waiter

    def close(self, reason: DistributionError) -> None:
        """End the connection; what is in the send buffer gets a moment to leave.

        The owner hears of it before this returns.
        """
        if self._closed is not None:
            return
        self._closed = reason
        if self._transport is not None:
            self._transport.close()
            self._loop.call_later(_CLOSE_TIME, self._transport.abort)
        self._finish()

    # --- inside -------------------------------------------------------------------------------

    def _flush(self) -> None:
        data = self.handshake.take()
        if data and self._transport is not None:
            self._transport.write(data)

    def _shake(self, data: bytes) -> None:
        handshake = self.handshake
        handshake.receive(data)
        self._flush()
        if not handshake.done:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._header = self.has(FRAGMENTS)
        self._messages = frames.MessageReader(header=self._header, max_message=self._max_message)
        self._reader = frames.FrameReader(self._messages.max_frame)
        self.established = True
        self._timer = self._loop.call_later(self._tick_time / TICK_INTENSITY, self._tick)
        self._owner.on_connected(self)
        if handshake.rest and self._closed is None:
            self._receive(handshake.rest)
        handshake.rest = b""

    def _receive(self, data: bytes) -> None:
        feed = self._messages.feed
        for frame in self._reader.feed(data):
            if not frame:
                continue
            message = feed(frame)
            if message is not None:
                self._owner.on_message(self, *message)
                if self._closed is not None:
                    return

    def _tick(self) -> None:
        """Send a tick when nothing was sent lately; give up a peer that was silent too long.

        Silence is counted in intervals, not read from a clock: when this process (or the whole
        machine) stood still, the bytes that arrived meanwhile are read before the next count.
        """
        self._silent = 0 if self._received else self._silent + 1
        self._received = False
        if self._silent >= TICK_INTENSITY:
            self.close(
                DistributionError(
                    "silent", f"{self.name} was not heard for {self._tick_time:g} seconds"
                )
            )
            if self._transport is not None:
                self._transport.abort()
            return
        # A tick behind data that waits to be sent would be of no use.
        if not self._sent and not self._paused and self._transport is not None:
            self._transport.write(frames.TICK)
        self._sent = False
        self._timer = self._loop.call_later(self._tick_time / TICK_INTENSITY, self._tick)

    def _setup_expired(self) -> None:
        self.close(
            HandshakeError(
                "timeout", f"no handshake with {self.name} within {self._setup_time:g} seconds"
            )
        )

    def _loss(self, exc: Exception | None) -> DistributionError:
        """Put the end of the connection into words."""
        how = f"was lost ({exc.strerror or exc})" if isinstance(exc, OSError) else "was closed"
        if self.established:
            return DistributionError("closed", f"the connection to {self.name} {how}")
        ended = exc is None or isinstance(exc, ConnectionResetError)
        if ended and isinstance(self.handshake, Initiator) and self.handshake.awaits_proof:
            return HandshakeError(
                "wrong-cookie",
                f"{self.name} closed the connection after our proof: it has another cookie",
            )
        return HandshakeError("closed", f"the connection to {self.name} {how} in the handshake")

    def _release(self) -> None:
        waiters, self._drained = self._drained, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._release()
        if not self._reported and self._closed is not None:
            self._reported = True
            self._owner.on_closed(self, self._closed)
