# SPDX-License-Identifier: Apache-2.0
"""The rollout as people see it: a line for each node, the worst first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from thicket.update.offer import Offer, Order
from thicket.update.progress import MOST_NODES, WHOLE, Entry, State
from thicket.update.rollout import Facts, Seen, View, heard, look

BAR = 10
"""Characters of a bar."""

HEADS: Final = ["NODE", "WAVE", "STATE", "PROGRESS", "FOR", "HEARD", "WHY"]

_ORDER: Final = (
    State.FAILED,
    State.REFUSED,
    State.ABORTED,
    State.PAUSED,
    None,
    State.OFFERED,
    State.FETCHING,
    State.READY,
    State.WAITING,
    State.RESTARTING,
    State.TRIAL,
    State.INSTALLING,
    State.DONE,
)
"""The worst first; None for a node that says nothing."""

_SHARE: Final = {
    State.FETCHING: (0, 40),
    State.READY: (40, 0),
    State.WAITING: (40, 0),
    State.INSTALLING: (40, 30),
    State.RESTARTING: (70, 0),
    State.TRIAL: (80, 0),
    State.DONE: (90, 10),
}
"""Percent of the whole way: at the beginning of a state, and within it."""


class Line(NamedTuple):
    """What is known of one node.

    :ivar wave: number of its wave, 0 for a canary; None for a node that is in none.
    :ivar state: in lower case: one of ``progress.State``, ``lost`` or ``silent``.
    :ivar percent: of the whole way, from 0 to 100.
    :ivar age: seconds since it is in this state; None where that is not known.
    :ivar heard: seconds since it was heard of; None if it never was.
    """

    node: str
    wave: int | None
    state: str
    percent: int
    age: int | None
    heard: int | None
    why: str


def lines(facts: Facts) -> list[Line]:
    """Return what is known of each node, the worst first."""
    return _lines(look(facts), facts.records, facts.now)


def _lines(view: View, records: Mapping[str, Entry], now: float) -> list[Line]:
    waves = {name: number for number, wave in enumerate(view.waves) for name in wave}
    found: list[tuple[tuple[int, int, str], Line]] = []
    for name, seen in view.seen.items():
        line = _line(name, waves.get(name), seen, records.get(name), now)
        rank = -1 if seen.lost else _ORDER.index(None if seen.record is None else seen.record.state)
        found.append(((rank, line.percent, name), line))
    return [line for _, line in sorted(found)]


def _line(name: str, wave: int | None, seen: Seen, entry: Entry | None, now: float) -> Line:
    silent = None if seen.silent == float("inf") else int(seen.silent)
    record = seen.record
    if record is None:
        return Line(name, wave, "silent", 0, None, silent, "says nothing of this offer")
    start, part = _SHARE.get(record.state, (0, 0))
    percent = start + part * record.done // WHOLE
    age = record.age + (0 if entry is None else int(now - entry.heard))
    if seen.lost:
        words = f"has begun, and was {heard(seen.silent)}"
        return Line(name, wave, "lost", percent, age, silent, words)
    why = record.why
    if record.state is State.DONE and not record.well and not why:
        why = "to be well for longer"
    return Line(name, wave, record.state.name.lower(), percent, age, silent, why)


def bar(percent: int) -> str:
    """Return a bar with its number: ``[####      ]  40 %``."""
    full = BAR * percent // 100
    return f"[{'#' * full}{' ' * (BAR - full)}] {percent:3} %"


def rows(found: list[Line]) -> list[list[str]]:
    """Return the cells below ``HEADS``."""
    return [
        [
            line.node,
            "-" if line.wave is None else ("canary" if line.wave == 0 else str(line.wave)),
            line.state,
            bar(line.percent),
            _time(line.age),
            "now" if line.heard is not None and line.heard < 120 else _time(line.heard),
            line.why,
        ]
        for line in found
    ]


def headline(facts: Facts, found: list[Line]) -> str:
    """Return the rollout in one line: what is offered, how many have it, and what holds it up."""
    offer = facts.offer
    done = sum(line.state == "done" for line in found)
    failed = sum(line.state in ("failed", "lost") for line in found)
    what = f"{offer.bundle.application} " if offer.bundle.application else "version "
    words = f"{what}{offer.bundle.version}: {done} of {len(found)} nodes have it"
    if failed:
        words += f", {failed} failed"
    if facts.order is not None:
        words += f"; last order: {facts.order.order}"
    stopped = look(facts).stopped
    return words + (f"; {stopped}" if stopped else "")


NOTHING: Final[dict[str, Any]] = {"offer": None, "order": None, "stopped": None, "nodes": []}
"""The document where there is no offer."""


def table(facts: Facts | None) -> dict[str, Any]:
    """Return the rollout for people: ``headline``, ``heads`` and ``rows``.

    :param facts: None where there is no offer.
    """
    if facts is None:
        return {"headline": "there is no offer", "heads": HEADS, "rows": []}
    found = lines(facts)
    return {"headline": headline(facts, found), "heads": HEADS, "rows": rows(found)}


def document(facts: Facts) -> dict[str, Any]:
    """Return the same for programs (``thicket update status --json``).

    The members: ``offer`` (``identifier``, ``number``, ``version``, ``epoch``, ``compatible``,
    ``application``, ``size``), ``order`` (``number``, ``order``, or None), ``stopped`` (words, or
    None), and ``nodes``, a list with the members of :class:`Line`.
    """
    found = lines(facts)
    return {
        "offer": _offer(facts.offer),
        "order": _order(facts.order),
        "stopped": look(facts).stopped or None,
        "nodes": [line._asdict() for line in found[:MOST_NODES]],
    }


def from_document(members: dict[str, Any]) -> list[Line]:
    """Return the lines of a document that a node has sent."""
    return [Line(**one) for one in members["nodes"]]


def _offer(offer: Offer) -> dict[str, Any]:
    bundle = offer.bundle
    return {
        "identifier": offer.identifier.hex(),
        "number": offer.number,
        "version": bundle.version,
        "epoch": bundle.epoch,
        "compatible": bundle.compatible,
        "application": bundle.application,
        "size": bundle.size,
    }


def _order(order: Order | None) -> dict[str, Any] | None:
    return None if order is None else {"number": order.number, "order": order.order}


def _time(seconds: int | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
