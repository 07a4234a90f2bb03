# SPDX-License-Identifier: Apache-2.0
"""Which handshakes that others begin may be in progress at the same time.

A stranger costs nothing to become: an address can be invented, and a connection that says nothing
looks like a member that is slow. So places are few, the ones that waited longest without a word
give way to newcomers, and members that were heard of have places that strangers cannot take.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from thicket.distribution.handshake import HandshakeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from thicket.distribution.connection import Connection

MAX_STRANGERS = 64
"""Limit of handshakes in progress with sources that are not expected."""

MAX_EXPECTED = 64
"""Limit of those with sources that are expected."""

MAX_PER_SOURCE = 8


class Admission:
    """The handshakes in progress that others began, the oldest first.

    :ivar expected: tells whether a member is known to be at an address. Answers of True should
        rest on proof, as a signed beacon is.
    """

    def __init__(self) -> None:
        self.expected: Callable[[str], bool] = lambda _source: False
        self._strangers: dict[Connection, None] = {}
        self._members: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._strangers) + len(self._members)

    def __iter__(self) -> Iterator[Connection]:
        yield from self._members
        yield from self._strangers

    def add(self, connection: Connection) -> None:
        """Admit *connection*, or close it; another one is closed when it gives way."""
        if self.expected(connection.source):
            pool, limit = self._members, MAX_EXPECTED
        else:
            pool, limit = self._strangers, MAX_STRANGERS
        same = [other for other in pool if other.source == connection.source]
        pool[connection] = None
        if len(same) >= MAX_PER_SOURCE:
            _make_room(
                same,
                connection,
                f"too many handshakes in progress, {len(same)} from this source",
            )
        elif len(pool) > limit:
            _make_room(
                [other for other in pool if other is not connection],
                connection,
                f"too many handshakes in progress, {len(pool) - 1} in all",
            )

    def discard(self, connection: Connection) -> None:
        """Forget *connection*: its handshake is over."""
        self._strangers.pop(connection, None)
        self._members.pop(connection, None)


def _make_room(others: list[Connection], newcomer: Connection, why: str) -> None:
    """Close the oldest of *others* that said nothing, else the oldest that proved nothing.

    Where all have proved something, the newcomer is closed.
    """
    leaves = next((other for other in others if not other.heard), None)
    if leaves is None:
        leaves = next((other for other in others if not other.secured_at), newcomer)
    leaves.close(HandshakeError("too-many", why))
