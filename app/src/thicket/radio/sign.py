# SPDX-License-Identifier: Apache-2.0
"""A sign of life of a station: the few numbers that are read about once in a beacon interval.

Numbers and meanings: ``include/uapi/linux/nl80211.h``.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from thicket.netlink.messages import HEADER

_BODY = HEADER.size + 4  # struct nlmsghdr and struct genlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length with this header, type
_TYPE_MASK = 0x3FFF  # include/uapi/linux/netlink.h, NLA_TYPE_MASK

# enum nl80211_attrs
_GENERATION = 46
_STA_INFO = 21

# enum nl80211_sta_info, with the size of the number
_INACTIVE_TIME, _LLID, _PLID, _PLINK_STATE, _CONNECTED_TIME = 1, 4, 5, 6, 16
_SIZES = {_INACTIVE_TIME: 4, _LLID: 2, _PLID: 2, _PLINK_STATE: 1, _CONNECTED_TIME: 4}
_FORMATS = {4: "I", 2: "H", 1: "B"}


class Sign(NamedTuple):
    """The little of a station that tells whether it is still there, and whether all is as it was.

    A value is 0 where the kernel does not tell it.

    :ivar generation: changes whenever a station comes or goes, this one or another.
    :ivar state: enum nl80211_plink_state.
    """

    generation: int
    state: int
    llid: int
    plid: int
    inactive_ms: int
    connected_s: int


class _Form:
    """Where everything is in a message, as far as the last number that is needed.

    :param headers: offset, length and type (as they stand there) of each attribute up to there.
    :param outer: offset of the attribute that holds the facts of the station, one of these.
    :param places: offset and size of each number, in the order of :class:`Sign`.
    """

    __slots__ = ("_expected", "_headers", "_last", "_numbers", "_outer", "_picked")

    def __init__(
        self, headers: list[tuple[int, int, int]], outer: int, places: list[tuple[int, int]]
    ) -> None:
        text, expected, offset = "=", [], 0
        for where, length, kind in headers:
            if where == outer:  # its length is another one whenever a rate behind is told otherwise
                text += f"{where - offset + 2}xH"
                expected.append(kind)
            else:
                text += f"{where - offset}xHH"
                expected += (length, kind)
            offset = where + 4
        self._headers, self._expected = struct.Struct(text), tuple(expected)
        ordered = sorted(places)
        text, offset = "=", 0
        for where, size in ordered:
            text += f"{where - offset}x{_FORMATS[size]}"
            offset = where + size
        self._numbers = struct.Struct(text)
        self._picked = tuple(ordered.index(place) for place in places)
        self._outer, self._last = outer, offset

    def pick(self, message: bytes) -> Sign | None:
        """The sign in a message of this form, None when it has another one."""
        if len(message) < self._last or self._headers.unpack_from(message) != self._expected:
            return None
        length, _ = _ATTRIBUTE.unpack_from(message, self._outer)
        if not self._last <= self._outer + length <= len(message):
            return None
        numbers = self._numbers.unpack_from(message)
        return Sign(*[numbers[index] for index in self._picked])


class SignReader:
    """Reads signs of life from NL80211_CMD_NEW_STATION messages.

    The kernel tells the same facts of a station in the same order each time. So the headers of the
    attributes up to the last one that is needed are remembered, and compared in one go with those
    of the next message: where all are the same, every number is where it was. Otherwise the
    attributes are followed one by one.

    :ivar followed: how many messages were read that way.
    """

    __slots__ = ("_form", "followed")

    def __init__(self) -> None:
        self.followed = 0
        self._form: _Form | None = None

    def read(self, message: bytes) -> Sign | None:
        """The sign of life in a message, None when it is malformed."""
        if self._form is not None and (found := self._form.pick(message)) is not None:
            return found
        self.followed += 1
        return self._follow(message)

    def _follow(self, message: bytes) -> Sign | None:
        """Follow the attributes as far as is needed: the kernel tells some twenty facts behind."""
        unpack = _ATTRIBUTE.unpack_from
        headers: list[tuple[int, int, int]] = []
        places: dict[int, tuple[int, int]] = {}
        offset, end, outer = _BODY, len(message), 0
        while not outer or len(places) < len(_SIZES) + (_GENERATION in places):
            if offset + 4 > end:
                if not outer:
                    return None
                break
            length, kind = unpack(message, offset)
            if length < 4 or offset + length > end:
                return None
            headers.append((offset, length, kind))
            kind &= _TYPE_MASK
            if not outer and kind == _STA_INFO:  # its attributes follow, and it is the last one
                outer, end = offset, offset + length
                offset += 4
                continue
            size = _SIZES.get(kind) if outer else 4 if kind == _GENERATION else None
            if size is not None and size == length - 4:
                places[kind] = (offset + 4, size)
            offset += (length + 3) & ~3
        if len(places) == len(_FIELDS):
            self._form = _Form(headers, outer, [places[field] for field in _FIELDS])
        return Sign(*(_number(message, places.get(field)) for field in _FIELDS))


#: What the fields of :class:`Sign` are read from. (No fact of a station has the number of the
#: generation: 46 of enum nl80211_sta_info is not one of those that are read.)
_FIELDS = (_GENERATION, _PLINK_STATE, _LLID, _PLID, _INACTIVE_TIME, _CONNECTED_TIME)


def _number(message: bytes, place: tuple[int, int] | None) -> int:
    if place is None:
        return 0
    where, size = place
    return int.from_bytes(message[where : where + size], sys.byteorder)
