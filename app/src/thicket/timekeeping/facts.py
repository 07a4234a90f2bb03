# SPDX-License-Identifier: Apache-2.0
"""What the part ``time`` is told of its node, and what it remembers between two looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.timekeeping.section import NTS

if TYPE_CHECKING:
    from thicket.timekeeping.claims import Choice
    from thicket.timekeeping.report import Report, Source
    from thicket.timekeeping.section import TimeSection
    from thicket.trust.verify import Clock


class Host(NamedTuple):
    """What the part is told of its node.

    :ivar settings: returns the section in force.
    :ivar me: returns the node's address, and the prefix of its mesh.
    :ivar mesh: the interface of the mesh.
    :ivar trusted: returns what is known about the time from certificates.
    :ivar end: returns when the device's certificates end, in seconds since 1970; None without any.
    :ivar changed: called when the status has changed.
    :ivar save: saves the time for the next start, in a thread.
    """

    settings: Callable[[], TimeSection]
    me: Callable[[], tuple[IPv6Address, IPv6Network]]
    mesh: str
    trusted: Callable[[], Clock]
    end: Callable[[], float | None]
    changed: Callable[[], None]
    save: Callable[[], None]


class Moment(NamedTuple):
    """What was found at the last look.

    :ivar choice: whom the node follows.
    :ivar followed: the source that chronyd follows; None without one.
    """

    choice: Choice
    report: Report | None = None
    followed: Source | None = None
    servers: tuple[str, ...] = ()

    @property
    def network(self) -> bool:
        """Whether the time is from a server of the network."""
        return self.followed is not None and self.followed.address in names_of(self.servers)


def names_of(servers: tuple[str, ...]) -> set[str]:
    return {server.removeprefix(NTS) for server in servers}


class Times:
    """When what happened, on the monotonic clock.

    :ivar refused_until: until then the servers are left alone.
    :ivar said: what others have heard last.
    :ivar unanswered: since when no server answers; None while one does.
    """

    #: Origins whose time was refused.
    MOST = 64

    def __init__(self) -> None:
        self.refused_until = 0.0
        self.rtc_at = 0.0
        self.unanswered: float | None = None
        self.said: tuple[Any, ...] = ()
        self._changed = time.monotonic()
        self._base = time.time() - self._changed
        self._disputes: dict[IPv6Address, tuple[float, float]] = {}
        self._keeping: asyncio.Task[None] | None = None

    def changed(self) -> None:
        self._changed = time.monotonic()

    def moved(self, seconds: float) -> bool:
        """Return whether the clock was set by more than that since this was True last."""
        base = time.time() - time.monotonic()
        if abs(base - self._base) <= seconds:
            return False
        self._base = base
        return True

    @property
    def age(self) -> float:
        """Seconds since something has changed."""
        return time.monotonic() - self._changed

    def disputed(self, origin: IPv6Address) -> float:
        """Return the seconds since the time of an origin was refused first."""
        found = self._disputes.get(origin)
        return 0.0 if found is None else time.monotonic() - found[0]

    def agreed(self, origin: IPv6Address) -> None:
        """The time of an origin is that of this node."""
        self._disputes.pop(origin, None)

    def refused(self, origin: IPv6Address) -> None:
        """The time of an origin is not taken."""
        now = time.monotonic()
        if len(self._disputes) >= self.MOST and origin not in self._disputes:
            self._disputes.pop(next(iter(self._disputes)))
        first, _ = self._disputes.get(origin, (now, now))
        self._disputes[origin] = first, now

    def over(self, seconds: float) -> list[IPv6Address]:
        """Forget those whose time was refused last this long ago, and return them."""
        past = time.monotonic() - seconds
        gone = [origin for origin, (_, last) in self._disputes.items() if last < past]
        for origin in gone:
            del self._disputes[origin]
        return gone

    def keep(self, task: asyncio.Task[None]) -> None:
        """Hold a task that nobody waits for."""
        self._keeping = task
