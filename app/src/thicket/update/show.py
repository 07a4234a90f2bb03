# SPDX-License-Identifier: Apache-2.0
"""The rollout as people see it: a line for each node, the worst first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from thicket.base.units import time_text
from thicket.update.offer import Offer, Order
from thicket.update.progress import (
    LOST,
    MOST_NODES,
    SILENT,
    WHOLE,
    Entry,
    Progress,
    Stage,
    State,
    called,
)
from thicket.update.rollout import HEARD, Facts, Seen, View, heard, look

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
"""The worst first; None for a node that says nothing. States of newer nodes come last."""

_SHARE: Final = {
    (State.OFFERED, Stage.NONE): (0, 0),
    (State.FETCHING, Stage.NONE): (0, 30),
    (State.FETCHING, Stage.MAKING): (30, 10),
    (State.FETCHING, Stage.CHECKING): (40, 0),
    (State.READY, Stage.NONE): (40, 0),
    (State.WAITING, Stage.NONE): (0, 40),
    (State.PAUSED, Stage.NONE): (0, 40),
    (State.INSTALLING, Stage.CHECKING): (40, 5),
    (State.INSTALLING, Stage.NONE): (45, 25),
    (State.RESTARTING, Stage.NONE): (70, 0),
    (State.TRIAL, Stage.NONE): (80, 0),
    (State.DONE, Stage.NONE): (90, 10),
}
"""Percent of the whole way: at the beginning of a state or its stage, and within it."""

_WORK: Final = (State.FETCHING, State.INSTALLING)
"""States of which people are told how much of their work, or of its stage, is done."""


class Line(NamedTuple):
    """What is known of one node.

    :ivar wave: number of its wave, 0 for a canary; None for a node that is in none.
    :ivar state: one of ``progress.NAMES``, or what :func:`.progress.called` makes of a newer one.
    :ivar percent: of the whole way, from 0 to 100; None where it is not on it, or does not tell.
    :ivar age: seconds since it is in this state; None where that is not known.
    :ivar heard: seconds since it was heard of; None if it never was.
    :ivar part: percent of the work of its state that is done; None for states without.
    """

    node: str
    wave: int | None
    state: str
    percent: int | None
    age: int | None
    heard: int | None
    why: str
    part: int | None = None


def lines(facts: Facts) -> list[Line]:
    """Return what is known of each node, the worst first."""
    return _lines(look(facts), facts.records, facts.now)


def _lines(view: View, records: Mapping[str, Entry], now: float) -> list[Line]:
    waves = {name: number for number, wave in enumerate(view.waves) for name in wave}
    found: list[tuple[tuple[int, int, str], Line]] = []
    for name, seen in view.seen.items():
        line = _line(name, waves.get(name), seen, records.get(name), now)
        found.append(((_rank(seen), line.percent or 0, name), line))
    return [line for _, line in sorted(found)]


def _rank(seen: Seen) -> int:
    if seen.lost:
        return -1
    state = None if seen.record is None else seen.record.state
    return _ORDER.index(state) if state in _ORDER else len(_ORDER)


def percent_of(record: Progress) -> int | None:
    """Return how much of the whole way a node has behind it, in percent.

    None where it is not on the way, and where it does not tell.
    """
    state, done = record.state, record.done
    if state is State.WAITING and not done:
        done = WHOLE  # nodes of older versions do not tell it, and mostly have the bundle
    if state is State.PAUSED and not done:
        return None
    share = _SHARE.get((state, record.stage)) or _SHARE.get((state, Stage.NONE))
    return None if share is None else share[0] + share[1] * done // WHOLE


def _part_of(record: Progress) -> int | None:
    return 100 * record.done // WHOLE if record.state in _WORK else None


def _line(name: str, wave: int | None, seen: Seen, entry: Entry | None, now: float) -> Line:
    silent = None if seen.silent == float("inf") else int(seen.silent)
    record = seen.record
    if record is None:
        return Line(name, wave, SILENT, None, None, silent, "says nothing of this offer")
    percent = percent_of(record)
    age = record.age + (0 if entry is None else int(now - entry.heard))
    if seen.lost:
        words = f"has begun, and was {heard(seen.silent)}"
        return Line(name, wave, LOST, percent, age, silent, words)
    why = record.why
    if record.state is State.DONE and not record.well and not why:
        why = "to be well for longer"
    return Line(name, wave, record.called, percent, age, silent, why, _part_of(record))


def bar(percent: int | None) -> str:
    """Return a bar with its number: ``[####      ]  40 %``; ``-`` where there is none."""
    if percent is None:
        return "-"
    full = BAR * percent // 100
    return f"[{'#' * full}{' ' * (BAR - full)}] {percent:3} %"


def rows(found: list[Line]) -> list[list[str]]:
    """Return the cells below ``HEADS``."""
    return [
        [
            line.node,
            "-" if line.wave is None else ("canary" if line.wave == 0 else str(line.wave)),
            line.state if line.part is None else f"{line.state} {line.part} %",
            bar(line.percent),
            _time(line.age),
            "now" if line.heard is not None and line.heard < HEARD else _time(line.heard),
            line.why,
        ]
        for line in found
    ]


def headline(facts: Facts, found: list[Line]) -> str:
    """Return the rollout in one line: what is offered, how many have it, and what holds it up."""
    offer = facts.offer
    done = sum(line.state == called(State.DONE) for line in found)
    failed = sum(line.state in (called(State.FAILED), LOST) for line in found)
    what = f"{offer.bundle.application} " if offer.bundle.application else "version "
    words = f"{what}{offer.bundle.version}: {done} of {len(found)} nodes have it"
    if failed:
        words += f", {failed} failed"
    if facts.order is not None:
        words += f"; last order: {facts.order.order}"
    stopped = look(facts).stopped
    return words + (f"; {stopped}" if stopped else "")


NOTHING: Final[dict[str, Any]] = {
    "offer": None,
    "order": None,
    "stopped": None,
    "mine": None,
    "nodes": [],
}
"""The document where there is no offer."""


def table(facts: Facts | None) -> dict[str, Any]:
    """Return the rollout for people: ``headline``, ``heads`` and ``rows``.

    :param facts: None where there is no offer.
    """
    if facts is None:
        return {"headline": "there is no offer", "heads": HEADS, "rows": []}
    found = lines(facts)
    return {"headline": headline(facts, found), "heads": HEADS, "rows": rows(found)}


def document(facts: Facts, mine: NamedTuple | None = None) -> dict[str, Any]:
    """Return the same for programs (``thicket update status --json``).

    The members: ``offer`` (``identifier``, ``number``, ``version``, ``epoch``, ``compatible``,
    ``application``, ``size``), ``order`` (``number``, ``order``, or None), ``stopped`` (words, or
    None), ``mine`` and ``nodes``, a list with the members of :class:`Line`.

    :param mine: what this node does about it, see :class:`.mine.Mine`; None where it is not known.
    """
    found = lines(facts)
    return {
        "offer": _offer(facts.offer),
        "order": _order(facts.order),
        "stopped": look(facts).stopped or None,
        "mine": None if mine is None else mine._asdict(),
        "nodes": [line._asdict() for line in found[:MOST_NODES]],
    }


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
    return "-" if seconds is None else time_text(seconds)
