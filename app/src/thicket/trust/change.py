# SPDX-License-Identifier: Apache-2.0
"""A change of the mesh's passphrase, signed by the fleet's root (``thicket.trust.signed``).

A passphrase is first *offered*, so that every node has it beside the one in use, and then *used*;
or the offer is withdrawn, by an offer of nothing. Each of these is a change of its own with a
higher number; the one with the highest number holds. Two of the same number come from two copies of
the authority: the one with the higher digest holds, on every node. So there is one order of all
changes, whoever passes them on and in whatever order.

A change names the passphrases that it replaces, by tags. It does nothing on a node that has another
one: an old change cannot lead a new card astray, and a passphrase that a person has put on a card
for another mesh stays. No clock is asked: nodes have none, and the number says what is newer.

A packed change has the passphrase in it, readable: it goes over authenticated TLS connections only,
and into files that only root can read.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.trust.signed import Kind
from thicket.trust.verify import Verify, verify_signature

if TYPE_CHECKING:
    from thicket.trust.fleet import Fleet

MAX_CHANGE = 4096
"""Bytes of the longest change."""

MAX_NUMBER = (1 << 53) - 1
"""The highest number; JSON readers agree on whole numbers up to this one."""

MAX_FORMER = 64
"""Passphrases that a change replaces, at most: the last ones."""

KIND = Kind(
    b"thicket passphrase 1\n",
    MAX_CHANGE,
    "a change of the passphrase",
    "a change of the passphrase",
    secret=True,
)


def tag(passphrase: str, identifier: bytes) -> str:
    """Return what stands for a passphrase in the fleet with this ``identifier``.

    It is not reversible, but a passphrase that is easy to guess is found by trying.
    """
    return sha256(b"thicket passphrase\0" + identifier + passphrase.encode()).hexdigest()[:32]


class Change(NamedTuple):
    """A change of the mesh's passphrase.

    :ivar passphrase: the other passphrase; empty where an offer is withdrawn.
    :ivar used: whether it is to be used now; otherwise it is kept beside the one in use.
    :ivar former: tags of the passphrases that it replaces.
    """

    number: int
    issued: datetime
    passphrase: str
    used: bool
    former: frozenset[str]

    def __repr__(self) -> str:
        """Return what may be printed."""
        return f"Change({self.number}, {'used' if self.used else 'offered'}, ********)"


class SignedChange(NamedTuple):
    """A change and the bytes in which the root has signed it."""

    change: Change
    packed: bytes

    def __repr__(self) -> str:
        """Return what may be printed."""
        return repr(self.change)

    @property
    def digest(self) -> bytes:
        """The name of its contents (32 bytes): the same for two signatures of one text."""
        return KIND.digest(self.packed)

    @property
    def order(self) -> tuple[int, bytes]:
        """What tells the newer one of two changes."""
        return self.change.number, self.digest

    @classmethod
    def read(
        cls, packed: bytes, fleet: Fleet, *, verify: Verify = verify_signature
    ) -> SignedChange:
        """Check and read a change.

        :raises RefusedError: it is not the root's.
        """
        return cls(KIND.read(packed, fleet, _change, verify), bytes(packed))


def _change(members: dict[str, Any], issued: datetime) -> Change:
    number, passphrase = members["number"], members["passphrase"]
    used, former = members["used"], members["former"]
    if (
        not (isinstance(number, int) and isinstance(used, bool))
        or not 0 < number <= MAX_NUMBER
        or not (isinstance(passphrase, str) and isinstance(former, list))
        or len(former) > MAX_FORMER
        or (used and not passphrase)
    ):
        raise ValueError("a member is not of its kind")
    return Change(number, issued, passphrase, used, frozenset(map(str, former)))
