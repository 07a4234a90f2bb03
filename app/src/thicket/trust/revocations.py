# SPDX-License-Identifier: Apache-2.0
"""Lists of revocations side by side: what is revoked is on any list that the root ever signed.

One authority numbers its lists, and each has the names of the one before. Two copies of an
authority do not know of each other: their lists lack each other's names, whatever their numbers
are. So a list never takes back what another one says. A node keeps as many lists as are needed for
all names, and the one with the highest number in any case. Which these are depends only on which
lists were seen, in whatever order, so that nodes that exchange lists end up with the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from thicket.trust.fleet import Fleet
from thicket.trust.verify import MALFORMED, MAX_LIST, RefusedError, Revocations

MAX_LISTS: Final = 64
"""Lists that are kept at most. A careless engineer makes two or three; only the root can make more.
"""

_TAG: Final = b"thicket lists of revocations 1\n"


class SignedList(NamedTuple):
    """A list of revocations and the bytes in which the root has signed it."""

    listed: Revocations
    packed: bytes

    @classmethod
    def read(cls, packed: bytes, fleet: Fleet) -> SignedList:
        """Check and read a list. Raises ``RefusedError`` when it is not the root's."""
        return cls(Revocations.unpack(packed, fleet), bytes(packed))

    @property
    def digest(self) -> bytes:
        """The name of its contents (32 bytes): the same for two signatures of one text."""
        return sha256(self.listed.text(self.packed)).digest()


def needed(lists: Iterable[SignedList]) -> tuple[SignedList, ...]:
    """Return the lists that together have all names, the one with the highest number first.

    Any list but the first is left out when those before it have its names.
    """
    kept: list[SignedList] = []
    names: set[str] = set()
    for one in sorted(lists, key=lambda one: (-one.listed.number, one.digest)):
        if not kept or not one.listed.names <= names:
            kept.append(one)
            names |= one.listed.names
    return tuple(kept)


def all_names(lists: Iterable[SignedList]) -> frozenset[str]:
    """Return what any of the lists revokes."""
    return frozenset[str]().union(*(one.listed.names for one in lists))


def pack(lists: Sequence[SignedList]) -> bytes:
    """Return the lists as one file; a single one as the root signed it."""
    return pack_parts([one.packed for one in lists])


def pack_parts(parts: Sequence[bytes]) -> bytes:
    """Do the same with lists that are packed already."""
    if len(parts) == 1:
        return parts[0]
    return _TAG + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def split(data: bytes) -> list[bytes]:
    """Return the single lists in a file of either form, unread and unchecked.

    Raises ``RefusedError`` when it ends within one.
    """
    if not data.startswith(_TAG):
        return [data]
    found: list[bytes] = []
    at = len(_TAG)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if size > MAX_LIST or at + size > len(data) or len(found) >= MAX_LISTS:
            raise RefusedError(MALFORMED, "a file of lists of revocations that is cut off")
        found.append(data[at : at + size])
        at += size
    return found


MAX_FILE: Final = len(_TAG) + MAX_LISTS * (4 + MAX_LIST)
"""Bytes of the largest file of lists."""
