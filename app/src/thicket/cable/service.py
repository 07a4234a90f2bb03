# SPDX-License-Identifier: Apache-2.0
"""The node at its cables: looks which there are, has them brought up, and answers on each.

Interfaces come and go (a USB gadget, an adapter), and so does what is at their other end. Nothing
of this is for the mesh: a cable has link-local addresses, no route, and answers of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from logging import getLogger
from time import monotonic
from typing import Any

from thicket.base.errors import ThicketError
from thicket.base.pace import Backoff
from thicket.base.problems import Problems
from thicket.cable import links
from thicket.cable.answers import answer, counted
from thicket.cable.links import Link

log = getLogger(__name__)

#: Seconds between two looks. One costs less than 0.1 ms of a Pi's processor.
LOOK = 3.0
#: Pauses in seconds before another attempt to answer on a cable; the last one repeats.
PAUSES = (3.0, 30.0, 120.0)


class Cables:
    """Serves all cables while :meth:`run` runs.

    :param hostname: the node's name, ``n-`` and 12 digits.
    :param properties: what it says of itself besides.
    :param sysfs: where sysfs is mounted.
    :param reserved: wired interfaces that are for something else, as an uplink is.
    :param use: told the names of the cables when they change; it lets people in there.
    :param bring_up: gives them link-local addresses; told when one is new.
    :ivar answering: those on which the node can be found.
    :ivar dropped: packets that were none of its business, by reason.
    """

    def __init__(
        self,
        hostname: str,
        properties: dict[str, str],
        problems: Problems,
        *,
        sysfs: str,
        reserved: frozenset[str],
        use: Callable[[frozenset[str]], None],
        bring_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._hostname = hostname
        self._properties = properties
        self._problems = problems
        self._sysfs = sysfs
        self._reserved = reserved
        self._use = use
        self._bring_up = bring_up
        self._names: tuple[str, ...] = ()
        self._ends: dict[Link, asyncio.Task[None]] = {}
        self.answering: set[Link] = set()
        self.dropped = counted()

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the part ``cables`` of the status document."""
        ends = {link.name: link for link in self._ends}
        return [
            {
                "interface": name,
                "plugged": links.plugged(self._sysfs, name),
                "found": ends.get(name) in self.answering,
                "addresses": [str(one) for one in ends[name].addresses] if name in ends else [],
            }
            for name in self._names
        ]

    async def run(self) -> None:
        """Look and answer until cancelled."""
        try:
            while True:
                await self._look()
                await asyncio.sleep(LOOK)
        finally:
            for task in self._ends.values():
                task.cancel()
            await asyncio.gather(*self._ends.values(), return_exceptions=True)
            self._ends.clear()
            self._problems.clear("cable")

    async def _look(self) -> None:
        names = links.cables(self._sysfs, self._reserved)
        if names != self._names:
            new = set(names) - set(self._names)
            self._names = names
            self._use(frozenset(names))
            if new:
                log.info("cables: %s", ", ".join(names))
                await self._bring_up()
        found = set()
        for name in names:
            if links.plugged(self._sysfs, name) and (link := links.link(name)) is not None:
                found.add(link)
        for link in self._ends.keys() - found:
            self._ends.pop(link).cancel()
            self._problems.clear_one("cable", "not-answering", link.name)
        for link in found - self._ends.keys():
            self._ends[link] = asyncio.create_task(self._serve(link))

    def _found(self, link: Link) -> None:
        """The node can be found on a cable now."""
        self.answering.add(link)
        self._problems.clear_one("cable", "not-answering", link.name)

    async def _serve(self, link: Link) -> None:
        """Answer on one cable until cancelled; failures are retried."""
        pauses = Backoff(*PAUSES, settled=PAUSES[-1])
        where = ", ".join(map(str, link.addresses))
        log.info("%s.local on %s: %s", self._hostname, link.name, where)
        while True:
            began = monotonic()
            why = "zeroconf has ended"
            try:
                await answer(
                    self._hostname,
                    self._properties,
                    link,
                    self.dropped,
                    lambda: self._found(link),
                )
            except (ThicketError, OSError, ImportError) as e:
                why = str(e) or type(e).__name__
            finally:
                self.answering.discard(link)
            message = (
                f"cannot be found by name on {link.name}: {why}; trying again. Meanwhile: ssh "
                f"root@{link.ipv6}%INTERFACE"
            )
            self._problems.report("cable", "not-answering", message, "warning", link.name)
            await asyncio.sleep(pauses.failed(monotonic() - began))
