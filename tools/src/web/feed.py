# SPDX-License-Identifier: Apache-2.0
"""Watches a source for all who look at the page: the newest picture, what happened, the last day.

However many look, the source is watched once; and while nobody does, it is asked once in a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from logging import getLogger
from typing import Any, Final, NamedTuple

from thicket.base.errors import ThicketError
from thicket.base.pace import Backoff
from web.errors import WebError
from web.figures import CURVES
from web.history import History
from web.model import Health, Link, LinkState, Node, Picture
from web.source import Source

log = getLogger(__name__)

#: Events of the last day that are kept, and that a page gets at once.
MOST_EVENTS: Final = 1000
MOST_SENT: Final = 100
#: Nodes that are asked at the same time what they know.
MOST_ASKED: Final = 4
#: Seconds until a source that failed is watched again.
PAUSES: Final = (1.0, 2.0, 5.0, 15.0, 30.0)
#: How bad it is, as a curve shows it.
_RANK: Final = {health: rank for rank, health in enumerate(Health)}


_SAID: Final = {
    Health.PROBLEM: "has a problem",
    Health.SILENT: "is silent",
    Health.AWAY: "is away",
    Health.WARNING: "has a warning",
    Health.FORMING: "is on its way",
    Health.UNTOLD: "tells nothing of itself",
    Health.WELL: "is well",
}


class Event(NamedTuple):
    """Something that has changed.

    :ivar at: seconds since 1970.
    :ivar kind: ``node`` or ``link``.
    :ivar subject: names of nodes, one or two.
    :ivar what: a :class:`.Health`, or a :class:`.LinkState`.
    """

    at: float
    kind: str
    subject: tuple[str, ...]
    what: str
    words: str


class Feed:
    """What the page shows of one source.

    :ivar history: of the last day.
    :ivar picture: the newest one; None before the first.
    :ivar trouble: why there is no newer one; empty for no trouble.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.history = History()
        self.picture: Picture | None = None
        self.trouble = ""
        self._events: deque[Event] = deque(maxlen=MOST_EVENTS)
        self._lookers: set[asyncio.Event] = set()
        #: A picture goes out when this differs from what a page has.
        self._number = 0
        self._asking: dict[str, asyncio.Task[dict[str, Any]]] = {}

    async def run(self) -> None:
        """Watch the source until cancelled; whatever ends it, it is watched again."""
        pauses = Backoff(*PAUSES)
        while True:
            try:
                async for picture in self.source.watch(lambda: bool(self._lookers)):
                    self._take(picture)
                    pauses.reset()
            except ThicketError as error:
                self._failed(str(error))
            except Exception as error:
                log.exception("the source failed")
                self._failed(f"an error of this program: {type(error).__name__}")
            await asyncio.sleep(pauses.failed())

    async def detail(self, node: str) -> dict[str, Any]:
        """Return what a node knows; who asks meanwhile gets the same answer, and few are asked.

        :raises ThicketError: it cannot be asked.
        """
        task = self._asking.get(node)
        if task is None:
            if len(self._asking) >= MOST_ASKED:
                raise WebError("busy", f"{MOST_ASKED} nodes are being asked already; try again")
            task = self._asking[node] = asyncio.create_task(self.source.detail(node))
            task.add_done_callback(lambda _: self._asking.pop(node, None))
        return await asyncio.shield(task)

    @contextlib.contextmanager
    def looking(self) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever there is something new for a page."""
        changed = asyncio.Event()
        changed.set()
        self._lookers.add(changed)
        try:
            yield changed
        finally:
            self._lookers.discard(changed)

    def message(self) -> tuple[int, dict[str, Any]]:
        """Return what a page is to show, and its number."""
        picture = self.picture
        return self._number, {
            "source": {
                "name": self.source.name,
                "kind": self.source.kind,
                "deeds": sorted(self.source.deeds),
            },
            "trouble": self.trouble,
            "at": picture.at if picture is not None else None,
            "picture": picture.to_json() if picture is not None else None,
            "events": [one._asdict() for one in list(self._events)[-MOST_SENT:]],
        }

    def curves(self, node: str, seconds: float) -> dict[str, Any]:
        """Return the curves of a node and its links, of the last ``seconds``: lists of steps."""
        now = time.time()
        links = self.picture.links if self.picture is not None else ()
        found: dict[str, Any] = {
            "node": {
                what: self.history.found((node, what), now, seconds) for what in (*CURVES, "health")
            },
            "links": [],
        }
        for link in links:
            if node not in (link.one, link.other):
                continue
            other = link.other if node == link.one else link.one
            found["links"].append({
                "node": other,
                **{
                    what: self.history.found((*ends, what), now, seconds)
                    for what in ("signal", "metric")
                    for ends in ((node, other),)
                },
                "back": self.history.found((other, node, "metric"), now, seconds),
            })  # fmt: skip
        return found

    # -- what the source tells

    def _take(self, picture: Picture) -> None:
        if self.picture is not None:
            self._events.extend(_changes(self.picture, picture))
        self._note(picture)
        same = self.picture is not None and self.picture._replace(at=0) == picture._replace(at=0)
        self.picture = picture
        if not same or self.trouble:
            self.trouble = ""
            self._tell()

    def _failed(self, why: str) -> None:
        log.warning("%s", why)
        if why != self.trouble:
            self.trouble = why
            self._tell()

    def _tell(self) -> None:
        self._number += 1
        for changed in self._lookers:
            changed.set()

    def _note(self, picture: Picture) -> None:
        put, at = self.history.put, picture.at
        for node in picture.nodes:
            put((node.name, "health"), at, _RANK[node.health])
            for what in CURVES:
                put((node.name, what), at, node.figures.get(what))
        for link in picture.links:
            for ends, side in (
                ((link.one, link.other), link.there),
                ((link.other, link.one), link.back),
            ):
                if side is not None:
                    put((*ends, "signal"), at, side.signal)
                    put((*ends, "metric"), at, side.metric)


def _changes(old: Picture, new: Picture) -> Iterator[Event]:
    """Yield what has changed, in words."""
    before = {node.name: node for node in old.nodes}
    for node in new.nodes:
        known = before.get(node.name)
        if known is None or known.health != node.health:
            yield Event(new.at, "node", (node.name,), node.health, _node_words(known, node))
    labels = {node.name: node.label for node in new.nodes}
    links = {(link.one, link.other): link for link in old.links}
    for link in new.links:
        was = links.get((link.one, link.other))
        if was is None and link.state is LinkState.FORMING:
            continue
        if was is None or was.state is not link.state:
            yield Event(
                new.at, "link", (link.one, link.other), link.state, _link_words(link, labels)
            )


def _node_words(known: Node | None, node: Node) -> str:
    why = node.problems[0].message if node.problems else node.why
    words = f"{node.label} {_SAID[node.health]}"
    if known is None:
        words += ", for the first time"
    return f"{words}: {why}" if why and node.health is not Health.WELL else words


def _link_words(link: Link, labels: dict[str, str]) -> str:
    ends = f"{labels.get(link.one, link.one)} \N{EN DASH} {labels.get(link.other, link.other)}"
    words = {
        LinkState.UP: "is up",
        LinkState.CUT: "is gone",
        LinkState.ONE_WAY: "is known to one end alone",
        LinkState.FORMING: "is expected",
    }
    return f"The link {ends} {words[link.state]}"
