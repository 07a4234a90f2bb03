# SPDX-License-Identifier: Apache-2.0
"""Addresses of nodes of which others tell, to be tried: DNS-SD proves nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from logging import getLogger
from time import monotonic
from typing import Any

log = getLogger(__name__)

SERVICE = "_thicket._tcp.local."

#: Names that are counted.
MOST_NAMES = 4096
#: Published nodes whose addresses are not known yet.
WAITING = 256
#: Milliseconds to find the addresses of one.
ASK_MS = 3000
#: Hints that are tried at the same time. Attempts to connect take turns with those to nodes that
#: were heard, and must not crowd them out.
TRIALS = 4
#: Seconds that a hint is tried.
TRIAL = 60.0


class Hints:
    """Addresses to try: a bounded number at a time, each again after a while."""

    def __init__(self, prefix: IPv6Network, own: IPv6Address) -> None:
        self.prefix = prefix
        self.own = own
        self._trials: dict[IPv6Address, float] = {}

    def fits(self, address: IPv6Address, node: str, expected: str) -> bool:
        """Whether the node ``node``, said to be at ``address``, can be one of our cluster.

        :param expected: the name of a node of our cluster at this address.
        """
        from thicket.distribution.handshake import key_of  # the cluster's part

        return address != self.own and address in self.prefix and key_of(node) == expected

    def take(self, address: IPv6Address, now: float) -> bool:
        """Whether to try ``address`` now; False while it, or enough others, are being tried."""
        self._trials = {a: end for a, end in self._trials.items() if end > now}
        if address in self._trials or len(self._trials) >= TRIALS:
            return False
        self._trials[address] = now + TRIAL
        return True

    def tried(self, address: IPv6Address, now: float) -> bool:
        """Whether ``address`` is being tried."""
        return self._trials.get(address, now) > now

    def settled(self, address: IPv6Address) -> None:
        """The node at ``address`` became known in another way."""
        self._trials.pop(address, None)


class Published:
    """What others publish, and whom of them the node tries.

    :param own: the name of our own service.
    :param name_of: returns the cluster's name of a node at an address.
    :param known: whether the node at an address is known already.
    :param on_hint: called with an address to try.
    :ivar hinted: how often it was called.
    """

    def __init__(
        self,
        own: str,
        hints: Hints,
        *,
        name_of: Callable[[IPv6Address], str],
        known: Callable[[IPv6Address], bool],
        on_hint: Callable[[IPv6Address], None],
    ) -> None:
        self.own = own.lower()
        self.hints = hints
        self.name_of = name_of
        self.known = known
        self.on_hint = on_hint
        self.hinted = 0
        #: The names that were told, at most MOST_NAMES.
        self.seen: set[str] = set()
        self._names: asyncio.Queue[str] = asyncio.Queue(WAITING)
        #: Names whose hints found no place yet.
        self._later: set[str] = set()

    def forget(self) -> None:
        """Begin anew."""
        self.seen.clear()
        self._later.clear()

    def told_of(self, address: IPv6Address) -> bool:
        """Whether nothing more needs to be known of the node at an address."""
        return self.known(address) or self.hints.tried(address, monotonic())

    def hear(self, name: str, *, new: bool, expired: bool) -> None:
        """Take a name that somebody publishes, or that has expired."""
        if expired:
            self.seen.discard(name)
            return
        if len(self.seen) < MOST_NAMES:
            self.seen.add(name)
        if new and name.lower() != self.own:
            self._want(name)

    def again(self) -> None:
        """Try those that found no place before."""
        for name in self._later:
            self._want(name)
        self._later.clear()

    def _want(self, name: str) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._names.put_nowait(name)

    async def ask(self, zeroconf: Any) -> None:
        """Find the addresses of published nodes, and try those that are not known, for ever."""
        while True:
            await self._ask(zeroconf, await self._names.get())

    async def _ask(self, zeroconf: Any, name: str) -> None:
        from zeroconf import IPVersion
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(zeroconf, ASK_MS):
                return
            node = (info.properties.get(b"node") or b"").decode("utf-8", "replace")
            addresses = info.ip_addresses_by_version(IPVersion.V6Only)[:4]
        except zeroconf_errors() as e:
            log.debug("%s: %s", name, e)
            return
        for found in addresses:
            address = IPv6Address(int(found))
            if self.known(address):
                self.hints.settled(address)
            elif not self.hints.fits(address, node, self.name_of(address)):
                continue
            elif not self.hints.take(address, monotonic()):
                if len(self._later) < WAITING:
                    self._later.add(name)
            else:
                log.info("found %s by DNS-SD", address)
                self.hinted += 1
                self.on_hint(address)


def zeroconf_errors() -> tuple[type[Exception], ...]:
    """Return what zeroconf raises: its own errors, and those that broken names lead to."""
    from zeroconf import Error

    return (Error, ValueError, AssertionError)
