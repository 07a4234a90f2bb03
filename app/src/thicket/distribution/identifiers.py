# SPDX-License-Identifier: Apache-2.0
"""The identifiers that a node assigns: to processes, references, and requests to unlink."""

from __future__ import annotations

import os

from thicket.distribution.etf import Atom, Pid, Reference


class Identifiers:
    """The identifiers of one start of a node.

    :param name: the node's name, in canonical form.
    :ivar creation: the number of this start, which distinguishes it from earlier ones.
    """

    def __init__(self, name: str, creation: int, last_reference: int) -> None:
        self.creation = creation
        self._node = Atom(name)
        self._last_pid = 0
        self._last_reference = last_reference
        self._last_unlink = 0

    @classmethod
    def of_new_start(cls, name: str) -> Identifiers:
        """Return the identifiers of a node that starts now."""
        # The creations 0 to 3 have another meaning in OTP.
        creation = int.from_bytes(os.urandom(4), "big") | 4
        return cls(name, creation, int.from_bytes(os.urandom(7), "big"))

    def pid(self) -> Pid:
        """Return the next process identifier; after 2^28 of them one may be in use."""
        # Every version of OTP prints and sorts numbers of 15 bits correctly; 28 are allowed.
        self._last_pid = self._last_pid % 0xFFFFFFF + 1
        return Pid(self._node, self._last_pid, 0, self.creation)

    def reference(self) -> Reference:
        """Return a new reference."""
        self._last_reference += 1
        number = self._last_reference
        # Erlang keeps the first word of a reference below 2^18.
        words = (number & 0x3FFFF, number >> 18 & 0xFFFFFFFF, number >> 50 & 0xFFFFFFFF)
        return Reference(self._node, self.creation, words)

    def unlink(self) -> int:
        """Return the next number of a request to unlink."""
        self._last_unlink += 1
        return self._last_unlink
