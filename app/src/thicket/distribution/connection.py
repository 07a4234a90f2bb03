# SPDX-License-Identifier: Apache-2.0
"""One TCP connection to another node: handshake, frames, ticks, back-pressure.

A :class:`Connection` is an asyncio protocol. It switches from the handshake to frames inside the
parser, because the peer's first messages may come in the segment that ends the handshake.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from ipaddress import IPv6Address
from struct import Struct
from typing import TYPE_CHECKING, Any, Protocol

from thicket.base.patience import Countdown
from thicket.distribution import frames
from thicket.distribution.etf import encode_bare
from thicket.distribution.handshake import (
    DIST_MONITOR_NAME,
    FRAGMENTS,
    SETUP_TIME,
    TEXT,
    DistributionError,
    Handshake,
    HandshakeError,
    Initiator,
    RemoteNode,
    key_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

TICK_INTENSITY = 4
"""Ticks within one tick time (the default of kernel's ``net_tickintensity``)."""

ASK_AFTER = TICK_INTENSITY // 2
"""Silent intervals after which a peer, which may tick more slowly, is asked for a sign of life."""

ANSWER_AFTER = 0.25
"""Seconds without sending after which whatever arrives from an Erlang node is answered with a tick,
as its tick time may be shorter. The shortest one, 1 s, has such intervals."""

HIGH_WATER = 256 * 1024
"""Bytes waiting to be sent above which :meth:`Connection.drain` waits."""

MAX_UNSENT = 16 * 1024 * 1024
"""Bytes waiting to be sent at which a peer that does not read is given up, unless a single message
is longer. Senders that use :meth:`Connection.drain` never reach it."""

_HANDSHAKE_READ = 4 * 1024
"""Bytes read at a time during the handshake, when the peer may be anybody."""

NOT_SENT = 128 * 1024
"""Unsent bytes that the kernel buffers, so that a tick or a small message does not wait behind
megabytes."""

_CLOSE_TIME = 2.0
_USER_TIMEOUT = 18  # TCP_USER_TIMEOUT of linux/tcp.h
_NOTSENT_LOWAT = 25  # TCP_NOTSENT_LOWAT of linux/tcp.h
_LAST_ACK_RECEIVED = 56  # tcpi_last_ack_recv in struct tcp_info of linux/tcp.h, ms
_TCP_INFO_SIZE = 60
_get_u32 = Struct("=I").unpack_from
_COALESCE = 64 * 1024
_SENDER_SECOND = frozenset((frames.SPAWN_REQUEST, frames.UNLINK_ID, frames.UNLINK_ID_ACK))


class Owner(Protocol):
    """Receives the events of a connection."""

    def on_opened(self, connection: Connection) -> None:
        """The TCP connection is up and the handshake begins, with TLS first; may close it."""

    def on_secured(self, connection: Connection) -> None:
        """TLS is up, and nothing was sent inside it yet.

        :raises HandshakeError: to refuse the peer; it learns the reason.
        """

    def on_connected(self, connection: Connection) -> None:
        """The handshake has succeeded; messages may follow at once."""

    def on_silence(self, connection: Connection) -> None:
        """The peer was silent for half the tick time: ask it for a cheap sign of life."""

    def on_message(
        self, connection: Connection, control: tuple[Any, ...], payload: bytes | None
    ) -> None:
        """A message arrived; ``payload`` is encoded, without version byte."""

    def on_discarded(self, connection: Connection, control: tuple[Any, ...], head: bytes) -> None:
        """A message was too long and dropped; ``head`` is the beginning of its payload."""

    def on_closed(self, connection: Connection, reason: DistributionError) -> None:
        """The connection is over; called exactly once."""


class Beat:
    """When connections look at their silence and tick: all of a node together, so that one wake-up
    serves all.

    :param tick_time: see :class:`Connection`.
    :ivar interval: seconds between two beats.
    """

    def __init__(self, tick_time: float) -> None:
        self.interval = tick_time / TICK_INTENSITY
        self._connections: dict[Connection, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Connection) -> None:
        """Let a connection follow the beats from the next one on."""
        self._connections[connection] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.interval, self._beat)

    def discard(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.pop(connection, None)
        if not self._connections and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.interval, self._beat)
        for connection in list(self._connections):
            connection.beat()


class Connection(asyncio.BufferedProtocol):
    """A connection, from the first byte of the handshake to its end.

    :param handshake: the machine of our side.
    :param tick_time: seconds without a byte after which the peer counts as lost. It is asked for a
        sign of life after half of it; a tick is sent when nothing else was for a quarter of it. The
        peer's tick time may differ.
    :param max_message: longest message accepted, in bytes.
    :param room: memory for incomplete messages; by default the connection has its own.
    :param inside_tls: send nothing before :meth:`secured` is called.
    :param beat: that of ``tick_time``; by default the connection has its own.
    :param guest: the address that must stand in the name of a peer who was let in otherwise, and
        has proven there who he is; it counts as the one that he connects from.
    :ivar source: the peer's address in canonical form, without zone.
    :ivar heard: when the last bytes came, by the event loop's clock; 0 before the first.
    :ivar secured_at: when TLS came up, by the same clock; 0 before, and without TLS.
    :ivar established: the handshake is over and the connection in use.
    :ivar text: the peer distinguishes text from bytes, as Thicket nodes do.
    :ivar checked: the name for which the peer's certificate was accepted.
    :ivar used: when something was sent or received, besides ticks, by the same clock.
    """

    def __init__(
        self,
        owner: Owner,
        handshake: Handshake,
        *,
        tick_time: float,
        setup_time: float = SETUP_TIME,
        max_message: int = frames.MAX_MESSAGE,
        room: frames.Room | None = None,
        inside_tls: bool = False,
        beat: Beat | None = None,
        guest: str = "",
    ) -> None:
        self.source = self.guest = guest
        self.checked = ""
        self.heard = self.used = 0.0
        self.secured_at = 0.0
        self.established = False
        self.text = False
        self.handshake = handshake
        self.outgoing = isinstance(handshake, Initiator)
        self._owner = owner
        self._tick_time = tick_time
        self._setup_time = setup_time
        self._max_message = max_message
        self._room = room
        self._inside_tls = inside_tls
        self._beat = Beat(tick_time) if beat is None else beat
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | Countdown | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._reader = frames.FrameReader(max_message, _HANDSHAKE_READ)
        self._messages: frames.MessageReader
        self._header = False
        self._sequence = 0
        self._closed: DistributionError | None = None
        self._reported = False
        self._received = False
        self._answering = False
        self._said = 0.0  # when something was sent, by the event loop's clock
        self._silent = 0
        self._paused = False
        self._drained: deque[asyncio.Future[None]] = deque()
        self._holders: set[object] = set()
        # Small messages of one turn of the event loop are sent together.
        self._scheduled = False
        self._corked = False
        self._small: list[bytes] = []
        self._small_size = 0
        # Long messages, in fragments, by sender, whose messages keep their order.
        self._long: dict[Any, deque[tuple[int, Iterator[bytes]]]] = {}
        self._long_size = 0
        self._longest = 0  # of those that wait now

    # --- asyncio's side -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        peer = transport.get_extra_info("peername")
        # The C library may use another spelling than the canonical one.
        if not self.guest:
            self.source = str(IPv6Address(peer[0].partition("%")[0])) if peer else ""
        if self._closed is not None:  # closed before it came up
            transport.abort()
            return
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # The kernel ends the connection when sent data stays unacknowledged for the tick time.
            raw.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(self._tick_time * 1000))
            raw.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, NOT_SENT)
        transport.set_write_buffer_limits(high=HIGH_WATER)
        self._timer = Countdown(self._setup_time, self._setup_expired)
        self._owner.on_opened(self)
        if not self._inside_tls:
            self._flush()

    def secured(self) -> None:
        """TLS is up: check the peer, and begin the handshake of nodes."""
        self._inside_tls = False
        self.secured_at = self._loop.time()
        try:
            self._owner.on_secured(self)
        except HandshakeError as error:
            self.handshake.refuse(error)
            self._flush()
            self.close(error)
        else:
            self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.space()

    def buffer_updated(self, nbytes: int) -> None:
        self._reader.filled(nbytes)
        self._received = True
        self.heard = self._loop.time()
        self._take()
        if self._answering and self.heard - self._said >= ANSWER_AFTER:
            self.tick()

    def _take(self) -> None:
        """Handle the bytes read, unless a receiver is full."""
        if self._closed is not None:
            return
        try:
            if self.established:
                self._receive()
            else:
                self._shake(self._reader.drop())
        except HandshakeError as error:
            self._flush()
            self.close(error)
        except frames.FrameError as error:
            self.close(DistributionError("protocol", f"{self.name} sent {error}"))

    def eof_received(self) -> bool:
        return False  # a peer that sends no more is gone

    def connection_lost(self, exc: Exception | None) -> None:
        if self._closed is None:
            self._closed = self._loss(exc)
        if self._closing is not None:
            self._closing.cancel()
        self._finish()
        # Free the memory now, without waiting for the garbage collector.
        self._transport = self._closing = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._pump()
        self._release()

    # --- the node's side ----------------------------------------------------------------------

    @property
    def peer(self) -> RemoteNode:
        """The node at the other end, once it has told its name."""
        assert self.handshake.peer is not None
        return self.handshake.peer

    @property
    def name(self) -> str:
        """The peer's name, or its address while the name is not known."""
        return self.handshake.peer.name if self.handshake.peer is not None else self.source

    @property
    def key(self) -> str:
        """The key of the peer's name (:func:`.handshake.key_of`)."""
        return key_of(self.name)

    @property
    def called(self) -> str:
        """The name that the peer has or should have, and its address, for messages."""
        handshake = self.handshake
        if isinstance(handshake, Initiator):
            return handshake.wanted
        name = getattr(handshake, "name", None)
        return f"{name!r} at {self.source}" if name else self.source

    @property
    def ssl_object(self) -> Any:
        """The state of TLS; None without TLS."""
        return self._transport.get_extra_info("ssl_object") if self._transport else None

    def acknowledged_within(self, seconds: float) -> bool:
        """Return whether the peer's kernel acknowledged data in the last ``seconds``, whatever its
        program does; False when our kernel does not tell."""
        raw = self._transport.get_extra_info("socket") if self._transport is not None else None
        if raw is None:
            return False
        try:
            info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        except OSError:
            return False
        if len(info) < _TCP_INFO_SIZE:
            return False
        milliseconds: int = _get_u32(info, _LAST_ACK_RECEIVED)[0]
        return milliseconds < seconds * 1000

    @property
    def discarded(self) -> int:
        """Number of messages from the peer that were too long."""
        return self._messages.discarded if self.established else 0

    def has(self, flag: int) -> bool:
        """Return whether both sides have the ability ``flag``."""
        return self.handshake.peer is not None and bool(self.handshake.peer.flags & flag)

    def encode(self, term: Any) -> bytes:
        """Return ``term`` in the form that the peer reads, for :meth:`send`.

        :raises EncodeError: it has no form.
        """
        return encode_bare(term, text=self.text)

    def send(
        self, control: tuple[Any, ...], payload: bytes | None = None, *, more: bool = False
    ) -> None:
        """Send a message without waiting; after the end of the connection it is dropped.

        A message longer than a fragment is sent piece by piece, as the connection takes it, and
        messages of other senders may overtake it.

        :param payload: an encoded term, see :meth:`encode`.
        :param more: another message follows at once, and both may leave together.
        :raises EncodeError: when ``control`` has no form on the wire.
        """
        if self._closed is not None or self._transport is None or not self.established:
            return
        encoded = self.encode(control)
        size = len(payload) if payload is not None else 0
        waiting = self._long_size + self._transport.get_write_buffer_size()
        self._said = self.used = self._loop.time()
        if self._long and (queue := self._long.get(_sender(control))) is not None:
            self._long_size += size + len(encoded)
            queue.append((size + len(encoded), self._parts(encoded, payload)))
        elif payload is not None and size > frames.FRAGMENT_SIZE and self.has(FRAGMENTS):
            self._long_size += size + len(encoded)
            self._longest = max(self._longest, size + len(encoded))
            self._long[_sender(control)] = deque(
                [(size + len(encoded), self._parts(encoded, payload))]
            )
            self._pump()
        else:
            self._write(b"".join(frames.build(encoded, payload, header=self._header)), more)
        if waiting > MAX_UNSENT + self._longest and self._closed is None:
            self.close(DistributionError("stuck", f"{self.name} does not read what it is sent"))

    async def drain(self) -> None:
        """Wait until little data waits to be sent; returns at once after the end.

        Waiters take turns in the order in which they came, so that one that sends without end does
        not keep others from sending.
        """
        if not self.busy or self._closed is not None:
            return
        waiter = self._loop.create_future()
        self._drained.append(waiter)
        try:
            await waiter
        finally:
            # The next one has its turn when this one has sent, if there is room then.
            self._loop.call_soon(self._release)

    async def send_in_turn(self, control: tuple[Any, ...], payload: bytes | None = None) -> None:
        """Wait as :meth:`drain` does, then send a message as :meth:`send` does."""
        if self.busy:
            await self.drain()
        self.send(control, payload)

    @property
    def busy(self) -> bool:
        """Whether much data, or a sender, is waiting; see :meth:`drain`."""
        return self._paused or bool(self._long) or bool(self._drained)

    @property
    def unsent(self) -> int:
        """Bytes that wait in this process to be sent."""
        waiting = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return self._long_size + self._small_size + waiting

    def spoke(self) -> None:
        """Note that the peer has sent something, even if only to TLS."""
        self.heard = self._loop.time()

    def tick(self) -> None:
        """Send a tick, unless it would wait behind other data, which serves the same purpose."""
        if self._closed is None and not self._paused and self._transport is not None:
            self._said = self._loop.time()
            self._transport.write(frames.TICK)

    def hold(self, holder: object) -> None:
        """Stop reading until ``holder``, whose messages wait to be taken, calls :meth:`release`.

        The peer then has to stop sending. That must end well within the tick time, as the peer's
        kernel ends a connection that accepts nothing for that long.
        """
        if self._transport is not None and self._closed is None:
            if not self._holders:
                self._transport.pause_reading()
            self._holders.add(holder)

    def release(self, holder: object) -> None:
        """Read again, unless another holder is full."""
        if holder in self._holders:
            self._holders.discard(holder)
            if not self._holders:
                self._loop.call_soon(self._resume)

    def close(self, reason: DistributionError) -> None:
        """End the connection; the send buffer has a moment to be sent.

        The owner is called before this returns.
        """
        if self._closed is not None:
            return
        self._uncork()
        self._closed = reason
        if self._transport is not None:
            self._closing = self._loop.call_later(_CLOSE_TIME, self._transport.abort)
            self._transport.close()
        self._finish()

    def abort(self) -> None:
        """Drop a closed connection at once, with what has not been sent."""
        if self._transport is not None:
            self._transport.abort()

    # --- inside -------------------------------------------------------------------------------

    def _flush(self) -> None:
        data = self.handshake.take()
        if data and self._transport is not None and self._closed is None:
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
        self.text = self.has(TEXT)
        # Nodes that answer ticks are not answered, or two such nodes would tick without end over a
        # slow link: Thicket nodes, and those in C and Java, which have no monitors by name.
        self._answering = self.has(DIST_MONITOR_NAME) and not self.text
        self._messages = frames.MessageReader(
            header=self._header,
            max_message=self._max_message,
            room=self._room,
            on_discarded=self._discarded,
        )
        self._reader = frames.FrameReader(self._messages.max_frame)
        self.established = True
        self._said = self.used = self._loop.time()
        self._timer = None
        self._beat.add(self)
        self._owner.on_connected(self)
        if handshake.rest and self._closed is None:
            self._reader.push(handshake.rest)
            self._receive()
        handshake.rest = b""

    def _receive(self) -> None:
        feed = self._messages.feed
        take = self._reader.take
        deliver = self._owner.on_message
        while not self._holders:
            try:
                frame = take()
            except frames.LongFrameError as long:
                self._messages.refuse(long)
                continue
            if frame is None:
                return
            if not frame:
                continue
            message = feed(frame)
            if message is not None:
                deliver(self, *message)
            if self._closed is not None:
                return

    def _discarded(self, control: tuple[Any, ...], head: bytes) -> None:
        log.warning(
            "a message of %s was dropped: it is longer than %d bytes, or many long ones come at "
            "the same time",
            self.name,
            self._max_message,
        )
        self._owner.on_discarded(self, control, head)

    def _resume(self) -> None:
        if self._holders or self._closed is not None or self._transport is None:
            return
        self._take()
        if not self._holders and self._closed is None:
            self._transport.resume_reading()

    def _write(self, data: bytes, more: bool = False) -> None:
        """Send ``data`` together with other data of this turn of the event loop."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._uncork)
        if self._corked or more or self._small:
            self._small.append(data)
            self._small_size += len(data)
            if more or (self._corked and self._small_size <= _COALESCE):
                return
            self._send_small()
        elif self._transport is not None:
            self._transport.write(data)
        self._corked = True

    def _send_small(self) -> None:
        if self._small and self._transport is not None:
            # Joined, as writelines() of Python 3.12.0 to 3.12.7 and 3.13.0 ignores the high-water
            # mark.
            data, self._small, self._small_size = b"".join(self._small), [], 0
            self._transport.write(data)

    def _uncork(self) -> None:
        self._scheduled = self._corked = False
        if self._closed is None:
            self._send_small()

    def _parts(self, control: bytes, payload: bytes | None) -> Iterator[bytes]:
        """Return the frames of a message that waits for its turn."""
        if payload is None or len(payload) <= frames.FRAGMENT_SIZE or not self.has(FRAGMENTS):
            return iter((b"".join(frames.build(control, payload, header=self._header)),))
        self._sequence += 1
        return frames.fragments(control, payload, self._sequence)

    def _pump(self) -> None:
        """Send fragments of long messages, the senders in turns, while there is room."""
        while self._long and not self._paused and self._closed is None:
            sender, queue = next(iter(self._long.items()))
            del self._long[sender]
            size, parts = queue[0]
            part = next(parts, None)
            if part is None:
                queue.popleft()
                self._long_size -= size
            if not queue and not self._long:
                self._longest = 0
            if queue:
                self._long[sender] = queue  # behind the others
            if part is not None and self._transport is not None:
                self._send_small()  # they came first
                self._said = self._loop.time()
                self._transport.write(part)

    def beat(self) -> None:
        """Send a tick when nothing was sent lately; give up a peer that was silent too long.

        A peer with a longer tick time is silent for longer, so it is asked when half the time is
        left for its answer.

        Silence is counted in beats, not read from a clock: after this process, or the whole
        machine, stood still, the bytes that arrived meanwhile are read before the next count.
        """
        if self._closed is not None:
            return
        self._silent = 0 if self._received or self._holders else self._silent + 1
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
        if self._loop.time() - self._said > self._beat.interval / 2:
            self.tick()
        if self._silent == ASK_AFTER:
            self._owner.on_silence(self)

    def _setup_expired(self) -> None:
        of = " of TLS" if self._inside_tls else ""
        self.close(
            self.handshake.refusal
            or HandshakeError(
                "timeout", f"no handshake{of} with {self.name} within {self._setup_time:g} seconds"
            )
        )

    def _loss(self, exc: Exception | None) -> DistributionError:
        """Describe the end of the connection."""
        how = f"was lost ({exc.strerror or exc})" if isinstance(exc, OSError) else "was closed"
        if self.established:
            return DistributionError("closed", f"the connection to {self.name} {how}")
        if self.handshake.refusal is not None:
            return self.handshake.refusal
        ended = exc is None or isinstance(exc, ConnectionResetError)
        if ended and isinstance(self.handshake, Initiator) and self.handshake.awaits_proof:
            return HandshakeError(
                "wrong-cookie",
                f"{self.name} closed the connection after our proof: it has another cookie",
            )
        return HandshakeError("closed", f"the connection to {self.name} {how} in the handshake")

    def _release(self) -> None:
        while self._drained:
            if (self._paused or self._long) and self._closed is None:
                return
            waiter = self._drained.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if self._closed is None:
                    return

    def _finish(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._beat.discard(self)
        if self.established:
            self._messages.close()
        self._long.clear()
        self._small.clear()
        self._holders.clear()
        self._release()
        if not self._reported and self._closed is not None:
            self._reported = True
            self._owner.on_closed(self, self._closed)
            _let_go(self._closed)


def _sender(control: tuple[Any, ...]) -> Any:
    """Return the sender of ``control``, whose messages arrive in order."""
    return control[2 if control[0] in _SENDER_SECOND else 1]


def _let_go(error: BaseException | None) -> None:
    """Drop the traceback of ``error``, whose frames hold the connection, which holds ``error``."""
    while error is not None:
        error.__traceback__ = None
        error = error.__context__
