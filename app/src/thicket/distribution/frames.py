# SPDX-License-Identifier: Apache-2.0
"""The frames of connected nodes, without input or output.

After the handshake a frame is a 32-bit length and that many bytes; an empty frame is a tick. A
frame carries a control message (a tuple that begins with an operation) and for some operations a
payload. The handshake decides the form (ERTS User's Guide, "Distribution Protocol", sections
"Protocol between Connected Nodes" and "Distribution Header"):

* *pass-through*, ``112 131 control [131 payload]``, for peers without fragments;
* a *distribution header*, ``131 68 0 control [payload]``, without version bytes, and always with
  zero atom references, as we refuse the atom cache;
* *fragments*, ``131 69 sequence fragment 0 control part`` and ``131 70 sequence fragment
  part``, whose numbers count down to 1. Sequences may interleave.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Any

from thicket.base.errors import ThicketError
from thicket.distribution.etf import VERSION, DecodeError, decode_bare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICK = b"\0\0\0\0"

FRAGMENT_SIZE = 64 * 1024
"""Bytes of payload in one fragment, as in OTP."""

MAX_MESSAGE = 32 * 1024 * 1024
"""Default limit of one message's payload, in bytes."""

MAX_SEQUENCES = 4096
"""Limit of incomplete messages, that is of the peer's processes that send long messages at the same
time. Their memory has another limit."""

READ_SIZE = 128 * 1024
"""Bytes that are read at a time: two fragments, the usual send buffer."""

_MAX_CONTROL = 64 * 1024
# Bytes of a frame that is too long that are read: they tell its sender and its receiver.
_HEAD = _MAX_CONTROL
_MAX_LENGTH = 0x7FFFFFFF  # of any frame that a node sends
# The cost of an incomplete message beyond its bytes: each fragment counts as at least this many.
_LEAST_PART = 512
# Most elements of the control message of an incomplete message.
_MAX_CONTROL_TERMS = 256
_PASS_THROUGH = 112
_HEADER = 68
_FIRST_FRAGMENT = 69
_NEXT_FRAGMENT = 70

# Operations of control messages; P: a payload follows.
LINK = 1
SEND = 2  # P
EXIT = 3
UNLINK = 4
NODE_LINK = 5
REG_SEND = 6  # P
GROUP_LEADER = 7
EXIT2 = 8
SEND_TT = 12  # P
EXIT_TT = 13
REG_SEND_TT = 16  # P
EXIT2_TT = 18
MONITOR_P = 19
DEMONITOR_P = 20
MONITOR_P_EXIT = 21
SEND_SENDER = 22  # P
SEND_SENDER_TT = 23  # P
PAYLOAD_EXIT = 24  # P
PAYLOAD_EXIT_TT = 25  # P
PAYLOAD_EXIT2 = 26  # P
PAYLOAD_EXIT2_TT = 27  # P
PAYLOAD_MONITOR_P_EXIT = 28  # P
SPAWN_REQUEST = 29  # P
SPAWN_REQUEST_TT = 30  # P
SPAWN_REPLY = 31
SPAWN_REPLY_TT = 32
ALIAS_SEND = 33  # P
ALIAS_SEND_TT = 34  # P
UNLINK_ID = 35
UNLINK_ID_ACK = 36

# Frequent control messages, which hold nothing mutable.
_FREQUENT = frozenset((SEND, SEND_SENDER, REG_SEND, ALIAS_SEND))

_u32 = Struct(">I").pack
_get_u32 = Struct(">I").unpack_from
_get_u64_u64 = Struct(">QQ").unpack_from
_fragment = Struct(">IBBQQ").pack


class FrameError(ThicketError, ValueError):
    """Bytes that the protocol does not allow; the connection must end."""


class LongFrameError(FrameError):
    """A frame is longer than allowed. Its rest is skipped, and the connection can go on.

    :ivar head: its beginning.
    """

    def __init__(self, length: int, limit: int, head: bytes) -> None:
        super().__init__(f"a frame of {length} bytes (limit {limit})")
        self.head = head


class Room:
    """Memory for incomplete messages, shared by all connections of a node.

    When it is used up, the connection that holds most of it loses its longest message.

    :ivar limit: its size in bytes.
    :ivar held: bytes in use.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.readers: set[MessageReader] = set()

    def make(self) -> None:
        """Discard messages until the rest is within the limit."""
        while self.held > self.limit:
            largest = max(self.readers, key=lambda reader: reader.held)
            if not largest.discard_longest():
                return


def build(
    control: bytes, payload: bytes | None, *, header: bool, sequence: int | None = None
) -> list[bytes]:
    """Return the frames, lengths included, of one message.

    :param control: the encoded control message, without version byte.
    :param payload: the encoded payload, without version byte.
    :param header: use the distribution header instead of pass-through.
    :param sequence: number of this message when it may be sent in fragments, as a payload longer
        than :data:`FRAGMENT_SIZE` then is.
    """
    if not header:
        body = b"\x70\x83" + control + (b"\x83" + payload if payload is not None else b"")
        return [_u32(len(body)), body]
    size = len(payload) if payload is not None else 0
    if payload is None or sequence is None or size <= FRAGMENT_SIZE:
        head = _u32(3 + len(control) + size) + b"\x83\x44\x00" + control
        return [head, payload] if payload is not None else [head]
    return list(fragments(control, payload, sequence))


def fragments(control: bytes, payload: bytes, sequence: int) -> Iterator[bytes]:
    """Yield the frames, lengths included, of a message in fragments.

    The arguments are those of :func:`build`. The payload is copied piece by piece, so that a
    waiting message is in memory only once.
    """
    size = len(payload)
    number = max(1, (size + FRAGMENT_SIZE - 1) // FRAGMENT_SIZE)
    view = memoryview(payload)
    head = _fragment(0, VERSION, _FIRST_FRAGMENT, sequence, number)[4:] + b"\0" + control
    for start in range(0, max(size, 1), FRAGMENT_SIZE):
        part = view[start : start + FRAGMENT_SIZE]
        if start:
            number -= 1
            yield _fragment(18 + len(part), VERSION, _NEXT_FRAGMENT, sequence, number) + part
        else:
            yield b"".join((_u32(len(head) + len(part)), head, part))


class FrameReader:
    """Cuts a stream of bytes into frames.

    Bytes are read into :meth:`space`, reported by :meth:`filled`, and taken out by :meth:`take`.
    Memory is allocated when the first bytes come.

    :param max_frame: the longest frame allowed, in bytes.
    :param read_size: bytes that are read at a time.
    """

    def __init__(self, max_frame: int, read_size: int = READ_SIZE) -> None:
        self._max_frame = max_frame
        self._read_size = read_size
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._need = 4
        self._skip = 0  # bytes to come of a frame that is too long

    def space(self) -> memoryview:
        """Return memory to read bytes into; it is never empty."""
        size = len(self._buffer)
        held = self._end - self._start
        if not held:
            self._start = self._end = 0
        elif self._start and (size - self._end < size // 2 or self._start + self._need > size):
            # Move the rest of a frame to the front.
            self._view[:held] = self._view[self._start : self._end]
            self._start, self._end = 0, held
        wanted = max(self._read_size, self._need, held + 4096)
        if wanted > size or (size > 4 * self._read_size and wanted == self._read_size):
            old = self._view
            self._buffer = bytearray(wanted)
            self._view = memoryview(self._buffer)
            self._view[:held] = old[self._start : self._end]
            self._start, self._end = 0, held
            old.release()
        return self._view[self._end :]

    def filled(self, count: int) -> None:
        """Note that ``count`` bytes were read into :meth:`space`."""
        self._end += count

    def push(self, data: bytes) -> None:
        """Take in bytes that were read elsewhere."""
        while data:
            space = self.space()
            count = min(len(space), len(data))
            space[:count] = data[:count]
            self.filled(count)
            data = data[count:]

    def drop(self) -> bytes:
        """Return all bytes, whatever frames they are in, and become empty."""
        data = bytes(self._view[self._start : self._end])
        self._start = self._end = 0
        return data

    def take(self) -> bytes | None:
        """Return the next complete frame, or None; a tick is an empty frame.

        :raises LongFrameError: a frame is longer than allowed; the next call goes on after it.
        :raises FrameError: no node sends a frame of this length.
        """
        if self._skip:
            skipped = min(self._skip, self._end - self._start)
            self._start += skipped
            self._skip -= skipped
        start = self._start
        held = self._end - start
        if self._skip or held < 4:
            self._need = 4
            return None
        length = int(_get_u32(self._buffer, start)[0])
        if length > self._max_frame:
            if length > _MAX_LENGTH:
                raise FrameError(f"a frame of {length} bytes (limit {self._max_frame})")
            wanted = 4 + min(length, _HEAD)
            if held < wanted:
                self._need = wanted
                return None
            self._start = start + wanted
            self._skip = length + 4 - wanted
            head = bytes(self._view[start + 4 : self._start])
            raise LongFrameError(length, self._max_frame, head)
        if held < 4 + length:
            self._need = 4 + length
            return None
        self._start = start + 4 + length
        return bytes(self._view[start + 4 : self._start])

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that ``data`` completes.

        :raises FrameError: see :meth:`take`.
        """
        self.push(data)
        frames = []
        while (frame := self.take()) is not None:
            frames.append(frame)
        return frames


class _Partial:
    """An incomplete message; without parts when it is being discarded."""

    __slots__ = ("control", "next", "parts", "size")

    def __init__(
        self, control: tuple[Any, ...], number: int, parts: list[memoryview] | None
    ) -> None:
        self.control = control
        self.next = number
        self.parts = parts
        self.size = 0


class MessageReader:
    """Turns frames into control messages and payloads, and assembles fragments.

    :param header: the handshake agreed on distribution headers.
    :param max_message: longest payload, in bytes. All incomplete messages together may hold twice
        as much. A longer message is discarded and counted.
    :param room: memory for incomplete messages; by default the reader has its own.
    :param on_discarded: called with the control message and the beginning of the payload of a
        message as soon as it is too long.
    :ivar held: bytes of incomplete messages.
    :ivar discarded: number of messages dropped for their size.
    """

    def __init__(
        self,
        *,
        header: bool,
        max_message: int = MAX_MESSAGE,
        room: Room | None = None,
        on_discarded: Callable[[tuple[Any, ...], bytes], None] | None = None,
    ) -> None:
        self._header = header
        self._max_message = max_message
        self._room = Room(2 * max_message) if room is None else room
        self._on_discarded = on_discarded
        self._partial: dict[int, _Partial] = {}
        self.held = 0
        # The last control message; the next one is often the same.
        self._known = b""
        self._control: tuple[Any, ...] = ()
        self.discarded = 0

    @property
    def max_frame(self) -> int:
        """The longest frame that can be part of an acceptable message."""
        return self._max_message + _MAX_CONTROL

    def feed(self, frame: bytes) -> tuple[tuple[Any, ...], bytes | None] | None:
        """Return control message and payload (without version byte) when ``frame`` completes one.

        :raises FrameError: the frame violates the protocol.
        """
        try:
            return self._feed(frame)
        except (DecodeError, IndexError) as error:
            raise FrameError(f"a control message that cannot be read: {error}") from None

    def refuse(self, long: LongFrameError) -> None:
        """Discard the message of a frame that is too long.

        :raises FrameError: the frame is no message, or its control message is too long.
        """
        head = long.head
        try:
            if self._header:
                if head[0] != VERSION or head[1] != _HEADER or head[2] != 0:
                    raise long
                control, end = decode_bare(head, 3, max_terms=_MAX_CONTROL_TERMS)
            else:
                if head[0] != _PASS_THROUGH or head[1] != VERSION:
                    raise long
                control, end = decode_bare(head, 2, max_terms=_MAX_CONTROL_TERMS)
                end += 1  # the payload's version byte
        except (DecodeError, IndexError):
            raise long from None
        self._discarded(_checked(control), head[end:])

    def close(self) -> None:
        """Drop all incomplete messages, as nothing follows."""
        self._room.held -= self.held
        self.held = 0
        self._partial.clear()
        self._room.readers.discard(self)
        self._on_discarded = None

    def discard_longest(self) -> bool:
        """Discard the longest of the incomplete messages; False when there is none."""
        kept = [partial for partial in self._partial.values() if partial.parts is not None]
        if not kept:
            return False
        self._discard(max(kept, key=lambda partial: partial.size))
        return True

    def _hold(self, size: int) -> None:
        self.held += size
        self._room.held += size
        if self.held:
            self._room.readers.add(self)
        else:
            self._room.readers.discard(self)

    def _discard(self, partial: _Partial) -> None:
        assert partial.parts is not None
        control, head = partial.control, bytes(partial.parts[0])
        self._hold(-partial.size)
        partial.parts = None
        partial.control = ()
        partial.size = 0
        self._discarded(control, head)

    def _discarded(self, control: tuple[Any, ...], head: bytes) -> None:
        self.discarded += 1
        if self._on_discarded is not None:
            self._on_discarded(control, head)

    def _feed(self, frame: bytes) -> tuple[tuple[Any, ...], bytes | None] | None:
        if not self._header:
            if frame[0] != _PASS_THROUGH or frame[1] != VERSION:
                raise FrameError(f"not a message: {frame[:4]!r}")
            control, end = decode_bare(frame, 2)
            if end == len(frame):
                return _checked(control), None
            if frame[end] != VERSION:
                raise FrameError("a payload without a version byte")
            return _checked(control), frame[end + 1 :]
        if frame[0] != VERSION:
            raise FrameError(f"not a message: {frame[:4]!r}")
        form = frame[1]
        if form == _HEADER:
            if frame[2] != 0:
                raise FrameError("a message with atom references, which were not agreed on")
            if self._known and frame.startswith(self._known, 3):
                # No encoded term is the beginning of another one.
                return self._control, frame[3 + len(self._known) :] or None
            control, end = decode_bare(frame, 3)
            control = _checked(control)
            if control[0] in _FREQUENT:
                self._known, self._control = frame[3:end], control
            return control, (frame[end:] if end < len(frame) else None)
        if form not in (_FIRST_FRAGMENT, _NEXT_FRAGMENT):
            raise FrameError(f"not a message: {frame[:4]!r}")
        if len(frame) < 18:
            raise FrameError("a fragment that ends too early")
        sequence, number = _get_u64_u64(frame, 2)
        if form == _FIRST_FRAGMENT:
            return self._first(frame, sequence, number)
        return self._next(frame, sequence, number)

    def _first(
        self, frame: bytes, sequence: int, number: int
    ) -> tuple[tuple[Any, ...], bytes | None] | None:
        if frame[18] != 0:
            raise FrameError("a message with atom references, which were not agreed on")
        control, end = decode_bare(frame, 19, max_terms=_MAX_CONTROL_TERMS)
        control = _checked(control)
        if number == 1:
            return control, (frame[end:] if end < len(frame) else None)
        if number == 0 or sequence in self._partial:
            raise FrameError("a fragment out of order")
        if len(self._partial) >= MAX_SEQUENCES:
            raise FrameError(f"more than {MAX_SEQUENCES} messages incomplete at the same time")
        partial = _Partial(control, number - 1, [memoryview(frame)[end:]])
        partial.size = max(len(frame), _LEAST_PART)
        self._partial[sequence] = partial
        self._hold(partial.size)
        self._limit(partial)
        return None

    def _next(
        self, frame: bytes, sequence: int, number: int
    ) -> tuple[tuple[Any, ...], bytes | None] | None:
        partial = self._partial.get(sequence)
        if partial is None or partial.next != number:
            raise FrameError("a fragment out of order")
        partial.next -= 1
        if partial.parts is not None:
            part = memoryview(frame)[18:]
            partial.parts.append(part)
            size = max(len(part), _LEAST_PART)
            partial.size += size
            self._hold(size)
            self._limit(partial)
        if number > 1:
            return None
        del self._partial[sequence]
        if partial.parts is None:
            return None
        self._hold(-partial.size)
        return partial.control, b"".join(partial.parts)

    def _limit(self, partial: _Partial) -> None:
        """Discard ``partial`` when it, or all messages together, have become too long."""
        if partial.size > self._max_message or self.held > 2 * self._max_message:
            self._discard(partial)
        else:
            self._room.make()


def _checked(control: Any) -> tuple[Any, ...]:
    if type(control) is not tuple or not control or type(control[0]) is not int:
        raise FrameError("a control message that is not a tuple with an operation")
    return control
