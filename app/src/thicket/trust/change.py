# SPDX-License-Identifier: Apache-2.0
"""A change of the mesh's passphrase, signed by the fleet's root.

    thicket passphrase 1\\n   R and S (64 bytes)   a JSON object

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

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from thicket.trust.verify import (
    BAD_SIGNATURE,
    MALFORMED,
    OTHER_FLEET,
    RefusedError,
    Verify,
    verify_signature,
)

if TYPE_CHECKING:
    from thicket.trust.fleet import Fleet

_TAG: Final = b"thicket passphrase 1\n"

MAX_CHANGE: Final = 4096
"""Bytes of the longest change."""

MAX_NUMBER: Final = (1 << 53) - 1
"""The highest number; JSON readers agree on whole numbers up to this one."""

MAX_FORMER: Final = 64
"""Passphrases that a change replaces, at most: the last ones."""


def tag(passphrase: str, identifier: bytes) -> str:
    """Return what stands for a passphrase in the fleet with this ``identifier``; not reversible,
    but a passphrase that is easy to guess is found by trying."""
    return sha256(b"thicket passphrase\0" + identifier + passphrase.encode()).hexdigest()[:32]


class Change(NamedTuple):
    """A change of the mesh's passphrase."""

    number: int
    issued: datetime
    passphrase: str
    """The other passphrase; empty where an offer is withdrawn."""
    used: bool
    """Whether it is to be used now; otherwise it is kept beside the one in use."""
    former: frozenset[str]
    """Tags of the passphrases that it replaces."""

    def __repr__(self) -> str:
        """Return what may be printed."""
        return f"Change({self.number}, {'used' if self.used else 'offered'}, ********)"

    def pack(self, identifier: bytes, sign: Callable[[bytes], bytes]) -> bytes:
        """Return it signed: ``sign`` gives R and S for a digest. ``identifier`` is the fleet's."""
        import json

        text = json.dumps(
            {
                "format": 1,
                "fleet": identifier.hex(),
                "number": self.number,
                "issued": f"{self.issued.replace(tzinfo=None).isoformat(timespec='seconds')}Z",
                "passphrase": self.passphrase,
                "used": self.used,
                "former": sorted(self.former),
            },
            separators=(",", ":"),
        ).encode()
        return _TAG + sign(sha256(_TAG + text).digest()) + text


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
        return sha256(self.packed[len(_TAG) + 64 :]).digest()

    @property
    def order(self) -> tuple[int, bytes]:
        """What tells the newer one of two changes."""
        return self.change.number, self.digest

    @classmethod
    def read(
        cls, packed: bytes, fleet: Fleet, *, verify: Verify = verify_signature
    ) -> SignedChange:
        """Check and read a change. Raises ``RefusedError`` when it is not the root's."""
        import json

        signature, text = packed[len(_TAG) : len(_TAG) + 64], packed[len(_TAG) + 64 :]
        if not packed.startswith(_TAG) or len(packed) > MAX_CHANGE:
            raise RefusedError(MALFORMED, "not a change of the passphrase")
        if not verify(fleet.root.public_key, sha256(_TAG + text).digest(), signature):
            raise RefusedError(BAD_SIGNATURE, "that of a change of the passphrase")
        try:
            document = json.loads(text)
            if document["format"] != 1 or document["fleet"] != fleet.identifier.hex():
                raise RefusedError(OTHER_FLEET, "a change of the passphrase")
            number, passphrase = document["number"], document["passphrase"]
            used, former = document["used"], document["former"]
            if (
                not (isinstance(number, int) and isinstance(used, bool))
                or not 0 < number <= MAX_NUMBER
                or not (isinstance(passphrase, str) and isinstance(former, list))
                or len(former) > MAX_FORMER
                or (used and not passphrase)
            ):
                raise ValueError("a member is not of its kind")
            issued = datetime.strptime(document["issued"], "%Y-%m-%dT%H:%M:%SZ")
            change = Change(
                number, issued.replace(tzinfo=UTC), passphrase, used, frozenset(map(str, former))
            )
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            # the words of these errors may quote the passphrase
            raise RefusedError(MALFORMED, "a change of the passphrase") from None
        return cls(change, bytes(packed))
