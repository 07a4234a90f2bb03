# SPDX-License-Identifier: Apache-2.0
"""Lists of revocations side by side: what is revoked is on any list that the root ever signed.

One authority numbers its lists, and each has the names of the one before. Two copies of an
authority do not know of each other: their lists lack each other's names, whatever their numbers
are. So a list never takes back what another one says. A node keeps as many lists as are needed for
all names, and the one with the highest number in any case. Which these are depends only on which
lists were seen, in whatever order, so that nodes that exchange lists end up with the same ones.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from thicket.trust.fleet import Fleet
from thicket.trust.signed import Kind
from thicket.trust.verify import MALFORMED, RefusedError, Verify, verify_signature

MAX_LIST = 256 * 1024
"""Bytes of the largest list of revocations: some 12,000 devices."""

MAX_LISTS = 64
"""Lists that are kept at most. A careless engineer makes two or three; only the root can make more.
"""

MAX_NEEDLESS = 256
"""Lists made needless by others that are remembered, so that they are not asked for again."""

KIND = Kind(
    b"thicket revocations 1\n", MAX_LIST, "a list of revocations", "the list of revocations"
)
_FILE = b"thicket lists of revocations 1\n"


class Revocations(NamedTuple):
    """A list of devices and signers that are out, signed by the fleet's root.

    It spreads from node to node; a node believes the names of every list that it ever had.
    """

    number: int
    issued: datetime
    names: frozenset[str]

    @classmethod
    def unpack(
        cls, data: bytes, fleet: Fleet, *, verify: Verify = verify_signature
    ) -> "Revocations":
        """Read a list and check its signature.

        :raises RefusedError: it is not the root's.
        """

        def build(members: dict[str, Any], issued: datetime) -> Revocations:
            names = frozenset(str(name) for name in members["revoked"])
            return cls(int(members["number"]), issued, names)

        return KIND.read(data, fleet, build, verify)


class SignedList(NamedTuple):
    """A list of revocations and the bytes in which the root has signed it."""

    listed: Revocations
    packed: bytes

    @classmethod
    def read(cls, packed: bytes, fleet: Fleet) -> "SignedList":
        """Check and read a list.

        :raises RefusedError: it is not the root's.
        """
        return cls(Revocations.unpack(packed, fleet), bytes(packed))

    @property
    def digest(self) -> bytes:
        """The name of its contents (32 bytes): the same for two signatures of one text."""
        return KIND.digest(self.packed)


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


class InForce:
    """The lists of revocations that are in force on a node.

    :ivar lists: those that are needed for all names, the one with the highest number first.
    :ivar names: the devices and signers that are out: those of all lists.
    """

    __slots__ = ("_needless", "lists", "names")

    def __init__(self) -> None:
        self.lists: tuple[SignedList, ...] = ()
        self.names: frozenset[str] = frozenset()
        self._needless: dict[bytes, None] = {}

    @property
    def number(self) -> int:
        """The highest number of a list; 0 without one."""
        return self.lists[0].listed.number if self.lists else 0

    def add(self, found: SignedList) -> bool:
        """Put a list in force beside the others; return whether that makes a difference.

        :raises RefusedError: there would be more than ``MAX_LISTS``.
        """
        lists = needed((*self.lists, found))
        if len(lists) > MAX_LISTS:
            raise RefusedError(MALFORMED, f"{MAX_LISTS} lists that lack each other's names")
        for one in (*self.lists, found):
            if one not in lists:
                self._needless[one.digest] = None
        while len(self._needless) > MAX_NEEDLESS:
            del self._needless[next(iter(self._needless))]
        if lists == self.lists:
            return False
        self.lists, self.names = lists, all_names(lists)
        return True

    def knows(self, digest: bytes) -> bool:
        """Return whether the list with this digest is in force, or was made needless by others."""
        return digest in self._needless or any(one.digest == digest for one in self.lists)

    def by_digest(self) -> dict[bytes, bytes]:
        """Return the packed lists by their digests."""
        return {one.digest: one.packed for one in self.lists}


def pack_parts(parts: Sequence[bytes]) -> bytes:
    """Return packed lists as one file; a single one as the root signed it."""
    if len(parts) == 1:
        return parts[0]
    return _FILE + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def split(data: bytes) -> list[bytes]:
    """Return the single lists in a file of either form, unread and unchecked.

    :raises RefusedError: it ends within a list.
    """
    if not data.startswith(_FILE):
        return [data]
    found: list[bytes] = []
    at = len(_FILE)
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if size > MAX_LIST or at + size > len(data) or len(found) >= MAX_LISTS:
            raise RefusedError(MALFORMED, "a file of lists of revocations that is cut off")
        found.append(data[at : at + size])
        at += size
    return found


MAX_FILE = len(_FILE) + MAX_LISTS * (4 + MAX_LIST)
"""Bytes of the largest file of lists."""
