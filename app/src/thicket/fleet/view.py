# SPDX-License-Identifier: Apache-2.0
"""How the whole fleet is, for whoever asks this node: asks all others, and remembers for a while.

However many look at it, the mesh is asked once in some seconds, and not at all while nobody looks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.fleet import rows
from thicket.fleet.rows import Facts, Known
from thicket.metrics.gather import MOST_NODES, Asks, Failure, Told, ask_all
from thicket.metrics.summary import Summary, unpack
from thicket.metrics.teller import SUMMARY

if TYPE_CHECKING:
    from thicket.trust.labels import Entries

log = getLogger(__name__)

#: What nodes have told is used again for so many seconds, and so many more for each node: a large
#: fleet is asked less often, as all of it shares the air.
FRESH, FRESH_EACH = 5.0, 0.25
#: Seconds for which this node's own figures are used again.
OWN = 1.0
#: Seconds that asking may take.
GATHER = 8.0


def fresh(nodes: int) -> float:
    """Return for how many seconds what was told is used again in a fleet of so many nodes."""
    return FRESH + FRESH_EACH * nodes


def stale(nodes: int) -> float:
    """Return for how many seconds a node that does not answer is taken for what it told before:
    one answer may be missed."""
    return 2 * (fresh(nodes) + GATHER)


class Seen(NamedTuple):
    """What this node knows without asking; for the fields see :class:`.rows.Facts`."""

    own: str
    nodes: list[Known]
    labels: Entries
    macs: dict[str, str]
    paths: dict[str, int]
    synchronised: bool


class FleetView:
    """The state of all nodes, as one of them knows it.

    :param node: asks other nodes.
    :param seen: returns what this node knows of all of them.
    :param own: returns the summary of this node.
    :ivar dropped: answers that made no sense, since the beginning.
    """

    def __init__(
        self,
        node: Asks,
        seen: Callable[[], Seen],
        own: Callable[[], Awaitable[Summary]],
    ) -> None:
        self.dropped = 0
        self._node = node
        self._seen = seen
        self._own = own
        self._told: dict[str, Told[Summary]] = {}
        self._failures: dict[str, Failure] = {}
        self._asking: asyncio.Task[None] | None = None
        self._asked = float("-inf")

    def close(self) -> None:
        """Ask nobody any more."""
        if self._asking is not None:
            self._asking.cancel()

    async def document(self, *, wait: bool = True) -> dict[str, Any]:
        """Return how all nodes are; docs/fleet.schema.json describes it.

        :param wait: until the nodes have answered. Otherwise they are asked, if that is due, and
            what they have told before is used.
        """
        seen = self._seen()
        if self._due(seen):
            if self._asking is None or self._asking.done():
                self._asking = asyncio.create_task(self._ask(seen))
            if wait or self._asked == float("-inf"):
                await asyncio.shield(self._asking)
                seen = self._seen()
        mine = self._told.get(seen.own)
        if mine is None or time.monotonic() - mine.monotonic >= OWN:
            own = await self._own()
            self._told[seen.own] = Told(own, 0.0, time.time(), time.monotonic())
        now = time.monotonic()
        present, oldest = {known.name for known in seen.nodes}, now - stale(len(seen.nodes))
        self._told = {
            name: told
            for name, told in self._told.items()
            if name in present and told.monotonic >= oldest
        }
        made = rows.rows(
            Facts(
                seen.own, seen.nodes, self._told, self._failures, seen.labels, seen.macs,
                seen.paths, now, seen.synchronised,
            )
        )  # fmt: skip
        return {
            "schema": rows.SCHEMA,
            "node": seen.own,
            "time": round(time.time(), 3),
            "counts": rows.counts(made),
            "dropped": self.dropped,
            "nodes": made,
        }

    def _due(self, seen: Seen) -> bool:
        if time.monotonic() - self._asked > fresh(len(seen.nodes)):
            return True
        known = self._told.keys() | self._failures.keys()
        return any(one.state == "up" and one.name not in known for one in seen.nodes)

    async def _ask(self, seen: Seen) -> None:
        up = [one.name for one in seen.nodes if one.state == "up"][: MOST_NODES - 1]
        answers = await ask_all(self._node, up, GATHER, SUMMARY, unpack)
        self._failures = {}
        for name, answer in answers.items():
            if isinstance(answer, Told):
                self._told[name] = answer
            else:
                self._failures[name] = answer
                self.dropped += answer.code == "nonsense"
        self._asked = time.monotonic()
