# SPDX-License-Identifier: Apache-2.0
"""What travels between an operator and a program that runs on a node.

A connection carries frames after the request ``exec`` was answered: a kind (one byte), a length
(two bytes, the most significant first) and as many bytes. Both sides send ``ALIVE`` when they have
nothing to say, so that each notices that the other has gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct
from typing import NamedTuple

from thicket.base.errors import ThicketError

LONGEST = 16 * 1024
"""Bytes of the longest frame, without its head."""

ALIVE_EVERY = 10.0
"""Seconds without a frame after which one side sends ``ALIVE``."""

GONE_AFTER = 60.0
"""Seconds without a frame after which the other side counts as gone."""

_HEAD = Struct(">BH")
_SIZE = Struct(">HH")


class Kind(IntEnum):
    """The kinds of frames. Their contents:

    ``IN``: bytes for the program; none is their end. ``OUT``, ``ERROR``: what the program writes.
    ``SIZE``: rows and columns of the terminal, two bytes each. ``SIGNAL``: the number of a signal.
    ``EXIT``: the exit status, 128 and the signal's number for one that a signal has ended; the
    last frame. ``ALIVE``: nothing.
    """

    IN = 0
    SIZE = 1
    SIGNAL = 2
    ALIVE = 3
    OUT = 16
    ERROR = 17
    EXIT = 18


TO_NODE = frozenset({Kind.IN, Kind.SIZE, Kind.SIGNAL, Kind.ALIVE})
TO_OPERATOR = frozenset({Kind.OUT, Kind.ERROR, Kind.EXIT, Kind.ALIVE})

_LENGTHS = {Kind.SIZE: _SIZE.size, Kind.SIGNAL: 1, Kind.ALIVE: 0, Kind.EXIT: 1}


class FrameError(ThicketError):
    """The other side sends what is no frame; nothing after it can be read."""


class Frame(NamedTuple):
    """One frame."""

    kind: Kind
    data: bytes

    def packed(self) -> bytes:
        """Return the frame as it is sent."""
        return _HEAD.pack(self.kind, len(self.data)) + self.data

    def size(self) -> tuple[int, int]:
        """Return rows and columns of a frame ``SIZE``."""
        rows, columns = _SIZE.unpack(self.data)
        return rows, columns


def of_size(rows: int, columns: int) -> Frame:
    """Return a frame ``SIZE``; what a terminal cannot have becomes the nearest that it can."""
    return Frame(Kind.SIZE, _SIZE.pack(*(min(max(n, 0), 0xFFFF) for n in (rows, columns))))


def cut(kind: Kind, data: bytes) -> Iterator[Frame]:
    """Return the frames that carry ``data``; none for none."""
    for at in range(0, len(data), LONGEST):
        yield Frame(kind, data[at : at + LONGEST])


class Reader:
    """Takes bytes as they come, and returns the frames in them.

    :param kinds: what the other side may send.
    """

    def __init__(self, kinds: frozenset[Kind]) -> None:
        self._kinds = kinds
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are complete with ``data``.

        Less than one frame is kept.

        :raises FrameError: that is no frame.
        """
        self._rest += data
        found = []
        at = 0
        while len(self._rest) - at >= _HEAD.size:
            number, length = _HEAD.unpack_from(self._rest, at)
            kind = self._known(number, length)
            end = at + _HEAD.size + length
            if len(self._rest) < end:
                break
            found.append(Frame(kind, bytes(self._rest[at + _HEAD.size : end])))
            at = end
        del self._rest[:at]
        return found

    def _known(self, number: int, length: int) -> Kind:
        if number not in self._kinds:
            raise FrameError(f"a frame of kind {number}, which the other side does not send")
        kind = Kind(number)
        if length > LONGEST:
            raise FrameError(f"a frame of {length} bytes (limit {LONGEST})")
        if length != _LENGTHS.get(kind, length):
            raise FrameError(f"a frame {kind.name} of {length} bytes")
        return kind
