# SPDX-License-Identifier: Apache-2.0
"""What the page shows, whatever it is fed from: the one form of a real fleet and a simulated one.

Everything is plain values. What a member says of itself has been checked by who makes these
records (:mod:`.checked`); the page writes all of it as text, never as HTML.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

from web.advice import what_to_do

#: Most nodes and links of a picture; :mod:`thicket.metrics.gather` has the same bound of nodes.
MOST_NODES = 1024
MOST_LINKS = 8192
#: Most problems and concerns of one node.
MOST_PROBLEMS = 32


class Health(StrEnum):
    """How a node is, the worst first."""

    PROBLEM = "problem"
    SILENT = "silent"
    """In the cluster, and does not answer."""
    AWAY = "away"
    """Not in the cluster, or switched off."""
    WARNING = "warning"
    FORMING = "forming"
    """On its way into the mesh, nothing is wrong yet."""
    UNTOLD = "untold"
    """It keeps its state for itself."""
    WELL = "well"


class LinkState(StrEnum):
    """How a mesh link is, the worst first."""

    CUT = "cut"
    """There was one, and neither end has it now."""
    ONE_WAY = "one-way"
    """Only one of both ends has it."""
    FORMING = "forming"
    """Both could hear each other, and there was none yet."""
    UP = "up"


class Problem(NamedTuple):
    """Something that is wrong with a node.

    :ivar severity: ``error`` or ``warning``.
    :ivar code: stays the same between versions (docs/node.md).
    """

    severity: str
    part: str
    code: str
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return it with what a person can do about it."""
        return {**self._asdict(), "do": what_to_do(self.part, self.code)}


class Node(NamedTuple):
    """A node.

    :ivar name: what tells it from all others, in this source.
    :ivar label: what people call it.
    :ivar state: a word of the daemon, or of the lab.
    :ivar why: why it tells nothing, or what it lacks; empty for nothing.
    :ivar at: metres to the east and to the south of some point; None where that is not known.
    :ivar hops: to it, from the node that was asked; None where that is not known, or it is itself.
    :ivar figures: numbers that people want to see, see :mod:`.figures`.
    :ivar on: whether it is switched on; None where only it would know.
    """

    name: str
    label: str
    host: str
    health: Health
    state: str = ""
    why: str = ""
    address: str | None = None
    place: str | None = None
    note: str | None = None
    at: tuple[float, float] | None = None
    asked: bool = False
    member: bool = False
    hops: int | None = None
    heard: float | None = None
    problems: tuple[Problem, ...] = ()
    more_problems: int = 0
    concerns: tuple[str, ...] = ()
    figures: dict[str, Any] = {}  # noqa: RUF012 - a default that nobody changes
    on: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as the page takes it."""
        plain = self._asdict()
        plain["problems"] = [one.to_json() for one in self.problems]
        return plain


class Side(NamedTuple):
    """One direction of a link, as the end tells it that sends.

    :ivar signal: dBm at which the sender hears the other end.
    :ivar metric: airtime link metric towards the other end, in units of 10.24 us.
    """

    signal: int | None
    metric: int | None


class Link(NamedTuple):
    """A link between two nodes.

    :ivar one: the lesser name, and ``other``: the greater one.
    :ivar there: from ``one`` to ``other``, and ``back``: None where the end does not have it.
    :ivar since: when the state began, seconds since 1970.
    """

    one: str
    other: str
    there: Side | None
    back: Side | None
    state: LinkState
    since: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as the page takes it."""
        return {
            **self._asdict(),
            "there": self.there and self.there._asdict(),
            "back": self.back and self.back._asdict(),
        }


class Update(NamedTuple):
    """An update under way, as ``thicket update status`` tells it."""

    headline: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Picture(NamedTuple):
    """All that is known at one moment.

    :ivar asked: the name of the node that was asked; empty for none.
    :ivar at: seconds since 1970.
    """

    asked: str
    at: float
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    updates: tuple[Update, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return it as the page takes it."""
        return {
            "asked": self.asked,
            "nodes": [node.to_json() for node in self.nodes],
            "links": [link.to_json() for link in self.links],
            "updates": [update._asdict() for update in self.updates],
        }
