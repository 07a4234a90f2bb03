# SPDX-License-Identifier: Apache-2.0
"""What of the mesh's multicast DNS reaches python-zeroconf (RFC 6762).

The library takes a packet apart whole, in Python, and keeps all it gets. A node has a use for few:
questions about itself, answers in its own name, and answers about nodes that it does not know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from logging import getLogger
from time import monotonic
from typing import Any

from thicket.base.pace import Bucket
from thicket.discovery.questions import HEADER, MOST_BYTES, first_labels, label

log = getLogger(__name__)

#: Why packets are dropped. ``known``: it tells of nodes that are known already; ``fault``: it
#: caused an error in zeroconf; the others as their names say.
REASONS = ("length", "other", "known", "rate", "fault")

_SERVICE = label("_thicket")
_ENUMERATION = label("_services")  # RFC 6763 9


class Sieve(asyncio.DatagramProtocol):
    """Passes packets on to zeroconf's own protocol, as far as the node has a use for them.

    :param dropped: counts what is dropped, by reason (of ``REASONS``).
    """

    #: Packets and bytes: per second on average, and at once.
    PACKETS = (40.0, 160.0)
    BYTES = (16 * 1024.0, 96 * 1024.0)

    def __init__(self, inner: asyncio.DatagramProtocol, dropped: dict[str, int]) -> None:
        self.inner = inner
        self.dropped = dropped
        self._packets = Bucket(*self.PACKETS)
        self._bytes = Bucket(*self.BYTES)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        now = monotonic()
        reason = self._useless(data)
        if reason is None and not (self._packets.take(now) and self._bytes.ready(now)):
            reason = "rate"
        if reason is not None:
            self.dropped[reason] += 1
            return
        self._bytes.tokens -= len(data)
        try:
            self.inner.datagram_received(data, addr)
        except Exception as e:
            # the sender causes the parser's faults; they are not worth a traceback
            self.dropped["fault"] += 1
            log.debug("a packet of %s: %s: %s", addr[0], type(e).__name__, e)

    def _useless(self, data: bytes) -> str | None:
        """Return why the node has no use for a packet, or None."""
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        self.inner.connection_lost(exc)


class Gate(Sieve):
    """The mesh's: questions about the node, conflicts of its names, and nodes that are not known.

    :param hostname: the node's own, whose conflicts zeroconf must see.
    :param prefix: where the nodes of the mesh have their addresses.
    :param known: whether nothing more needs to be known of the node at an address.
    """

    def __init__(
        self,
        inner: asyncio.DatagramProtocol,
        hostname: str,
        prefix: IPv6Network,
        known: Callable[[IPv6Address], bool],
        dropped: dict[str, int],
    ) -> None:
        super().__init__(inner, dropped)
        self._own = label(hostname)
        self._prefix = prefix.network_address.packed[: prefix.prefixlen // 8]
        self._known = known

    def _useless(self, data: bytes) -> str | None:
        """Return why the node has no use for a packet, or None."""
        if not HEADER.size <= len(data) <= MOST_BYTES:
            return "length"
        small = data.lower()
        if self._own in small:  # a conflict, a question about us, or what a questioner knows of us
            return None
        if data[2] & 0x80:  # an answer
            if _SERVICE not in small:
                return "other"
            return "known" if self._tells_known(data) else None
        labels = first_labels(small)
        if labels is None or _SERVICE in labels or _ENUMERATION in labels:
            return None
        return "other"

    def _tells_known(self, data: bytes) -> bool:
        """Return whether a packet holds addresses of the mesh, and of known nodes only."""
        at, found = data.find(self._prefix), False
        while 0 <= at <= len(data) - 16:
            if not self._known(IPv6Address(data[at : at + 16])):
                return False
            found = True
            at = data.find(self._prefix, at + 16)
        return found


class QuestionGate(Sieve):
    """A cable's: questions about the node and its service alone. What others answer is nothing to a
    node that asks nothing there, and would only fill zeroconf's memory.

    :param labels: the first labels of the names that the node answers to.
    """

    def __init__(
        self, inner: asyncio.DatagramProtocol, labels: frozenset[bytes], dropped: dict[str, int]
    ) -> None:
        super().__init__(inner, dropped)
        self._labels = labels | {_ENUMERATION}

    def _useless(self, data: bytes) -> str | None:
        """See ``Sieve``."""
        if not HEADER.size <= len(data) <= MOST_BYTES:
            return "length"
        if data[2] & 0x80:  # an answer
            return "other"
        labels = first_labels(data.lower())
        return None if labels is not None and self._labels.intersection(labels) else "other"
