# SPDX-License-Identifier: Apache-2.0
"""What the fleet's root signs besides certificates: JSON objects, each of one kind.

    first line of the kind   R and S (64 bytes)   the object

The signature is of the first line and the object. Every object has a ``format`` (1), the ``fleet``
it is for (the identifier of the root's key), a ``number`` that is higher in a newer one, and the
time when it was ``issued``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from thicket.trust.verify import (
    BAD_SIGNATURE,
    MALFORMED,
    OTHER_FLEET,
    RefusedError,
    Verify,
)

if TYPE_CHECKING:
    from thicket.trust.fleet import Fleet

T = TypeVar("T")


class Kind(NamedTuple):
    """One kind of signed object.

    :ivar line: its first line, which nothing else of Thicket signs.
    :ivar limit: bytes of the largest one that is read.
    :ivar one: what people call one of them, with "a".
    :ivar this: the same, of the one that was read.
    :ivar secret: whether words about a fault must not quote from it.
    """

    line: bytes
    limit: int
    one: str
    this: str
    secret: bool = False

    def digest(self, packed: bytes) -> bytes:
        """Return the name of an object's contents: the same for two signatures of one text."""
        return sha256(packed[len(self.line) + 64 :]).digest()

    def read(
        self,
        packed: bytes,
        fleet: Fleet,
        build: Callable[[dict[str, Any], datetime], T],
        verify: Verify,
        key: bytes | None = None,
    ) -> T:
        """Check an object and return what ``build`` makes of its members and its time.

        :param key: the public key of who may sign it in the root's place, if that is another.
        :raises RefusedError: it is not the root's, is for another fleet, or does not say what it
            should.
        """
        import json

        at = len(self.line)
        signature, text = packed[at : at + 64], packed[at + 64 :]
        if not packed.startswith(self.line) or len(packed) > self.limit:
            raise RefusedError(MALFORMED, f"not {self.one}")
        if not verify(key or fleet.root.public_key, sha256(self.line + text).digest(), signature):
            raise RefusedError(BAD_SIGNATURE, f"that of {self.this}")
        try:
            members = json.loads(text)
            if members["format"] != 1 or members["fleet"] != fleet.identifier.hex():
                raise RefusedError(OTHER_FLEET, self.this)
            issued = datetime.strptime(members["issued"], "%Y-%m-%dT%H:%M:%SZ")
            return build(members, issued.replace(tzinfo=UTC))
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
            fault = self.this if self.secret else f"{self.this}: {error}"
            raise RefusedError(MALFORMED, fault) from None
