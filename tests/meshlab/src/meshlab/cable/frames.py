# SPDX-License-Identifier: Apache-2.0
"""Ethernet frames on a stream, as QEMU's ``-netdev stream`` has them, and a switch for them."""

from __future__ import annotations

import struct
from collections.abc import Hashable, Iterable, Iterator

LONGEST = 65536 + 64
"""Bytes of a frame, as QEMU bounds them (``NET_BUFSIZE`` is 68 KiB); Ethernet has 1514."""
SHORTEST = 14
"""Destination, source, type."""
MOST_ADDRESSES = 1024
"""Addresses that a switch remembers."""

_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The stream has something else than frames: nothing behind it can be understood."""


def packed(frame: bytes) -> bytes:
    """Return a frame as it is on the stream."""
    return _LENGTH.pack(len(frame)) + frame


class Frames:
    """Cuts a stream into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the frames that are complete with ``data``.

        :raises FrameError: when there is a length that no frame has.
        """
        self._data += data
        while len(self._data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._data)
            if length > LONGEST:
                raise FrameError(f"a frame of {length} bytes")
            if len(self._data) < _LENGTH.size + length:
                return
            frame = bytes(self._data[_LENGTH.size : _LENGTH.size + length])
            del self._data[: _LENGTH.size + length]
            yield frame


class Switch:
    """Knows behind which of its ports an address is, from what came from there."""

    def __init__(self) -> None:
        self._places: dict[bytes, Hashable] = {}

    def goes_to(self, frame: bytes, port: Hashable, ports: Iterable[Hashable]) -> list[Hashable]:
        """Return the ports that a frame leaves by; none for what is no Ethernet frame.

        :param port: Where it came from.
        :param ports: All ports that something is plugged into.
        """
        if len(frame) < SHORTEST:
            return []
        to, sender = frame[:6], frame[6:12]
        if not sender[0] & 1:
            # The oldest goes first: an address that still speaks is learned again.
            self._places.pop(sender, None)
            if len(self._places) >= MOST_ADDRESSES:
                del self._places[next(iter(self._places))]
            self._places[sender] = port
        others = [each for each in ports if each != port]
        place = self._places.get(to)
        if to[0] & 1 or place is None or place not in others:
            return [] if place == port else others
        return [place]
