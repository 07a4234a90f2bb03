# SPDX-License-Identifier: Apache-2.0
"""The page's view of a fleet: asked through one node, as ``thicket fleet --json`` asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol

from remote.errors import RemoteError
from web.checked import number, table, tables, text, texts, whole
from web.details import of_status
from web.figures import of_row
from web.links import Links
from web.model import MOST_NODES, MOST_PROBLEMS, Health, Node, Picture, Problem, Side, Update
from web.plan import Origin
from web.source import Deed

#: Seconds between two questions to the first node, which asks the others less often: while somebody
#: looks, and while nobody does. A connection is closed after a minute of silence.
LIVELY: Final = 1.0
QUIET: Final = 45.0
#: Questions about nodes, for each one about updates.
_UPDATES_EACH: Final = 5
#: Errors that say that there are no updates, and those of a node that is on its way.
_NO_UPDATES: Final = frozenset({"no-slots", "no-fleet", "starting", "not-joined", "no-such-method"})


class Asks(Protocol):
    """A node that answers requests, see ``remote.session.Session``."""

    async def request(self, method: str, params: dict[str, Any]) -> Any:
        """Call a method of the node, and return its result."""


Opens = Callable[[str | None], AbstractAsyncContextManager[Asks]]
"""Gives a connection to a node; None for the first one."""


class FleetSource:
    """A fleet, through a first node; see ``web.source.Source``.

    :param name: what people call it.
    :param origin: the point that metres count from; None for the first node with a position.
    """

    kind = "fleet"
    deeds: frozenset[str] = frozenset()

    def __init__(self, name: str, opens: Opens, origin: Origin | None = None) -> None:
        self.name = name
        self._opens = opens
        self._origin = origin
        self._links = Links()
        self._first = ""
        self._names: dict[str, str] = {}

    async def watch(self, looked_at: Callable[[], bool]) -> AsyncIterator[Picture]:
        """See ``web.source.Source``."""
        async with self._opens(None) as node:
            updates: tuple[Update, ...] = ()
            rounds = 0
            while True:
                fleet = await node.request("fleet", {"wait": False})
                if rounds % _UPDATES_EACH == 0:
                    updates = await _updates(node)
                rounds += 1
                yield self.picture(fleet, updates)
                await _pause(looked_at)

    async def detail(self, node: str) -> dict[str, Any]:
        """See ``web.source.Source``."""
        target = None if node == self._first else node.partition("@")[2]
        async with self._opens(target) as session:
            return of_status(await session.request("status", {}), self._names)

    async def do(self, deed: Deed) -> None:
        """Refuse: nothing is done to a real fleet from the page."""
        raise RemoteError("not-here", "nothing can be done to a real fleet from here")

    def picture(self, document: Any, updates: tuple[Update, ...] = ()) -> Picture:
        """Return what the page shows of a document of ``thicket fleet``.

        :param document: of a node, which may lie.
        """
        rows = tables(table(document).get("nodes"), MOST_NODES)
        nodes: dict[str, Node] = {}
        told: dict[str, dict[str, Side]] = {}
        self._first = text(table(document).get("node"), 96)
        for row in rows:
            node = self._node(row)
            if not node.name or node.name in nodes:
                continue
            nodes[node.name] = node
            if isinstance(row.get("links"), list):
                told[node.name] = {
                    text(one.get("node"), 96): Side(
                        whole(one.get("signal_dbm"), -200, 100), whole(one.get("metric"), 0)
                    )
                    for one in tables(row["links"], 128)
                }
        self._names = dict(_names(nodes))
        return Picture(
            asked=self._first,
            at=time.time(),
            nodes=tuple(nodes.values()),
            links=tuple(
                link
                for link in self._links.judged(told, time.time())
                if link.one in nodes and link.other in nodes
            ),
            updates=updates,
        )

    def _node(self, row: Mapping[str, Any]) -> Node:
        host, label = text(row.get("host"), 64), text(row.get("label"), 32)
        problem, counted = row.get("problem"), table(row.get("problems"))
        more = sum(whole(counted.get(kind), 0) or 0 for kind in ("error", "warning")) - 1
        hops = table(row.get("way")).get("hops")
        return Node(
            name=text(row.get("name"), 96),
            label=label or host,
            host=host,
            health=_health(row.get("health")),
            state=text(row.get("state"), 32),
            why=text(row.get("why")),
            address=text(row.get("address"), 64) or None,
            place=text(row.get("place"), 64) or None,
            note=text(row.get("note"), 160) or None,
            at=self._metres(row.get("position")),
            asked=row.get("this") is True,
            member=row.get("member") is True,
            hops=whole(hops, 1, 255),
            heard=number(row.get("heard"), 0),
            problems=_problem(problem),
            more_problems=max(0, more) if isinstance(problem, dict) else 0,
            concerns=tuple(
                text(one.get("words")) for one in tables(row.get("concerns"), MOST_PROBLEMS)
            ),
            figures=of_row(row),
        )

    def _metres(self, position: Any) -> tuple[float, float] | None:
        if not isinstance(position, list) or len(position) != 2:
            return None
        latitude, longitude = number(position[0], -90, 90), number(position[1], -180, 180)
        if latitude is None or longitude is None:
            return None
        if self._origin is None:
            self._origin = Origin(latitude, longitude)
        return self._origin.metres(latitude, longitude)


def _health(value: Any) -> Health:
    try:
        return Health(value)
    except ValueError:
        return Health.UNTOLD


def _problem(value: Any) -> tuple[Problem, ...]:
    if not isinstance(value, dict):
        return ()
    return (
        Problem(
            "error" if value.get("severity") == "error" else "warning",
            text(value.get("part"), 64),
            text(value.get("code"), 32),
            text(value.get("message")),
        ),
    )


def _names(nodes: Mapping[str, Node]) -> Any:
    for node in nodes.values():
        yield node.name.lower(), node.name
        if node.address:
            yield node.address.lower(), node.name


async def _updates(node: Asks) -> tuple[Update, ...]:
    try:
        answer = await node.request("update-status", {})
    except RemoteError as error:
        if error.code in _NO_UPDATES:
            return ()
        raise
    return tuple(
        Update(
            text(one.get("headline")),
            tuple(texts(one.get("heads"), 12, 32)),
            tuple(tuple(texts(cells, 12)) for cells in (one.get("rows") or ())[:MOST_NODES]),
        )
        for one in tables(table(answer).get("tables"), 16)
        if isinstance(one.get("rows"), list) and one["rows"]
    )


async def _pause(looked_at: Callable[[], bool]) -> None:
    """Wait until the node is to be asked again: soon when somebody looks, or begins to."""
    waited = 0.0
    while waited < (LIVELY if looked_at() else QUIET):
        await asyncio.sleep(LIVELY)
        waited += LIVELY
