# SPDX-License-Identifier: Apache-2.0
"""Admission of nodes: places for handshakes, checks of peers, and counts of refusals.

Anybody can be a stranger at no cost: an address can be invented, and a silent connection looks like
a slow member. So there are few places for handshakes, the longest silent ones give way to
newcomers, and known members have places that strangers cannot take.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from thicket.base.pace import Seldom
from thicket.distribution.events import Refused, RefusedBy
from thicket.distribution.handshake import (
    OURS,
    THEIRS,
    Acceptor,
    DistributionError,
    HandshakeError,
    Initiator,
    key_of,
    split_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from thicket.distribution.connection import Connection
    from thicket.distribution.secure import Tls

log = logging.getLogger(__name__)

MAX_STRANGERS = 64
"""Limit of handshakes in progress with sources that are not expected."""

MAX_EXPECTED = 64
"""Limit of handshakes in progress with expected sources."""

MAX_PER_SOURCE = 8

MAX_CONNECTIONS = 1024

MAX_CONNECTIONS_PER_HOST = 16
"""Limit of connected nodes at one address, which one certificate covers."""

_LOG_INTERVAL = 60.0
_LOG_LINES = 30  # lines about refusals within that interval
_MAX_REASONS = 64
_NO_REFUSALS = frozenset(("simultaneous", "connected", "stopped"))


class Handshakes:
    """The handshakes in progress that others began, the oldest first.

    :ivar expected: returns whether a member is known to be at an address. It should rest on proof,
        such as a signed beacon.
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

    def has_nameless(self, source: str) -> bool:
        """Return whether somebody at an address has a place, and has not told its name."""
        return any(one.source == source and one.handshake.peer is None for one in self)

    def add(self, connection: Connection) -> None:
        """Give ``connection`` a place; close it, or another one, when there is none."""
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
        """Forget ``connection``: its handshake is over."""
        self._strangers.pop(connection, None)
        self._members.pop(connection, None)


def _make_room(others: list[Connection], newcomer: Connection, why: str) -> None:
    """Close the oldest silent one of ``others``, else the oldest without TLS, else the newcomer."""
    leaves = next((other for other in others if not other.heard), None)
    if leaves is None:
        leaves = next((other for other in others if not other.secured_at), newcomer)
    leaves.close(HandshakeError("too-many", why))


class Refusals:
    """Counts refusals, and decides which of them are reported.

    The same source and reason is reported once a minute, so that a peer that tries again every
    second does not fill the log; all together 30 times a minute, as an attacker can invent sources.

    :ivar counters: by reason, how often this node refused (OURS) and was refused (THEIRS).
    """

    def __init__(self) -> None:
        self.counters: dict[str, dict[str, int]] = {OURS: {}, THEIRS: {}}
        self._seldom = Seldom(_LOG_INTERVAL, _LOG_LINES)

    def add(self, whose: str, source: str, code: str) -> int | None:
        """Count a refusal.

        :returns: how many were not reported since the last one; None when this one is not either.
        """
        counters = self.counters[whose]
        if code not in counters and len(counters) >= _MAX_REASONS:
            code = "other"  # the peer must not fill our memory with invented codes
        counters[code] = counters.get(code, 0) + 1
        return self._seldom.take((whose, source, code), time.monotonic())


class Admission:
    """Decides which nodes may be connected, and reports those that may not.

    :param own: the node's name.
    :param connections: the connected nodes by the key of their names.
    :param tls: checks certificates; None without TLS.
    :param check_source: refuse a peer whose name has another address than it connects from.
    :param tell: called with the events of refusals.
    :ivar handshakes: those in progress that others began.
    :ivar refusals: how many there were.
    :ivar abandoned: number of handshakes that the peer gave up.
    """

    def __init__(
        self,
        own: str,
        connections: dict[str, Connection],
        *,
        tls: Tls | None,
        check_source: bool,
        tell: Callable[[Refused | RefusedBy], None],
    ) -> None:
        self.handshakes = Handshakes()
        self.refusals = Refusals()
        self.abandoned = 0
        self._own = own
        self._connections = connections
        self._tls = tls
        self._check_source = check_source
        self._tell = tell

    def judge(self, connection: Connection, name: str) -> None:
        """Check a node that has begun a handshake and calls itself ``name``.

        :raises HandshakeError: when it is refused.
        """
        checks = self._check_source or connection.guest
        if checks and split_name(name)[1] != connection.source:
            raise HandshakeError(
                "wrong-source", f"a node that calls itself {name} connects from {connection.source}"
            )
        self.check(connection, name)
        key = key_of(name)
        if key == self._own:
            raise HandshakeError("bad-name", f"another node calls itself {name}, as this one does")
        if len(self._connections) >= MAX_CONNECTIONS:
            raise HandshakeError("too-many", f"{MAX_CONNECTIONS} nodes are connected already")
        if key not in self._connections:
            same = sum(known.source == connection.source for known in self._connections.values())
            if same >= MAX_CONNECTIONS_PER_HOST:
                raise HandshakeError("too-many", f"{same} nodes of one address are connected")

    def check(self, connection: Connection, name: str) -> None:
        """Check the certificate of the peer, which is or calls itself ``name``, if there is TLS.

        :raises HandshakeError: when it is refused.
        """
        if self._tls is None or connection.guest:
            return
        try:
            self._tls.check(connection.ssl_object, split_name(name)[1], name)
        except HandshakeError as error:
            error.refusal = OURS
            raise
        except Exception as error:
            log.exception("the certificate of %s cannot be checked", name)
            raise HandshakeError("tls", "the certificate cannot be checked", OURS) from error
        connection.checked = name

    def recheck(self, dialled: Iterable[Connection]) -> list[str]:
        """Check the certificates of all connections again, and close those of refused nodes.

        :param dialled: the handshakes in progress that this node began.
        :returns: the names of the nodes that were refused.
        """
        gone = []
        for connection in {*self._connections.values(), *self.handshakes, *dialled}:
            if not connection.checked:
                continue
            try:
                self.check(connection, connection.checked)
            except HandshakeError as error:
                gone.append(connection.checked)
                if connection.established:  # otherwise closing reports it
                    self.refuse(connection, error)
                connection.close(error)
        return sorted(gone)

    def ended(self, connection: Connection, reason: DistributionError) -> None:
        """Count a failed handshake, whoever began it."""
        self.handshakes.discard(connection)
        refusal = reason.refusal if isinstance(reason, HandshakeError) else ""
        if refusal == THEIRS or (refusal == OURS and connection.outgoing):
            self.refuse(connection, reason)
        if connection.outgoing:
            return
        if reason.code == "closed":
            # The peer closed it: it was stopped, or preferred the connection that we began.
            self.abandoned += 1
        elif refusal != THEIRS and reason.code not in _NO_REFUSALS:
            self.refuse(connection, reason)

    def refuse(self, connection: Connection, reason: DistributionError) -> None:
        """Count a refusal, and report each source and reason from time to time.

        :param reason: says whether the peer refused this node.
        """
        theirs = isinstance(reason, HandshakeError) and reason.refusal == THEIRS
        handshake = connection.handshake
        name: str | None = connection.checked or None
        if isinstance(handshake, Initiator):
            name = handshake.wanted
        elif isinstance(handshake, Acceptor):
            name = name or handshake.name
        omitted = self.refusals.add(THEIRS if theirs else OURS, connection.source, reason.code)
        if omitted is None:
            return
        log.warning(
            "%s (%s): %s%s",
            f"refused by {connection.source}"
            if theirs
            else f"refused {'the' if connection.outgoing else 'a'} connection "
            f"{'to' if connection.outgoing else 'from'} {connection.source}"
            + (f", {name!r}" if name else ""),
            reason.code,
            reason,
            f" ({omitted} more since the last of these lines)" if omitted else "",
        )
        kind = RefusedBy if theirs else Refused
        self._tell(kind(connection.source, name, reason.code, str(reason)))
