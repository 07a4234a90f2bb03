# SPDX-License-Identifier: Apache-2.0
"""What a fleet is like, of what its nodes tell and what one of them knows of the others.

Everything here is a function of facts. docs/fleet.schema.json describes the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.base.units import time_text
from thicket.fleet.way import Way, ways
from thicket.metrics.gather import Failure, Told
from thicket.metrics.summary import Link, Summary

if TYPE_CHECKING:
    from thicket.trust.labels import Entry

SCHEMA = 1

#: How a node is, the worst first; all before "warning" is bad news.
HEALTHS = ("problem", "silent", "away", "warning", "untold", "well")
BAD_NEWS = frozenset(HEALTHS[:3])

#: From these values on somebody should know. A Raspberry Pi slows itself down at 80 degrees.
HOT = 80.0
LITTLE = 0.1
WORN = 0.9
RESERVE = 2
#: Seconds by which a clock may differ from one that a time service has set.
CLOCK = 2.0
#: Failures of nodes that are well as far as anybody knows.
_UNTOLD = ("noproc", "refused")
#: States of an application that does what it is for, or is about to.
_AT_WORK = ("running", "starting")


class Known(NamedTuple):
    """What this node knows of another one, or of itself.

    :ivar state: in the cluster: ``self``, ``up``, ``connecting`` or ``heard`` (``thicket nodes``);
        ``away`` for one that is in none.
    :ivar heard: seconds since its last sign of life; None for none since this node's start.
    :ivar why: why it cannot be connected.
    """

    name: str
    state: str
    heard: float | None = None
    why: str = ""


class Facts(NamedTuple):
    """All that is known.

    :ivar told: what nodes have told last, by their names, and ``failures``: why they have not.
    :ivar labels: by the lower halves of addresses.
    :ivar macs: radios by their nodes' names, as our own radio knows them, and ``paths``: hops to
        radios. MAC addresses have 12 digits.
    :ivar monotonic: now, by the clock that ``told`` has.
    :ivar synchronised: whether a time service has set this node's clock.
    """

    own: str
    nodes: list[Known]
    told: Mapping[str, Told[Summary]]
    failures: Mapping[str, Failure]
    labels: Mapping[int, Entry]
    macs: Mapping[str, str]
    paths: Mapping[str, int]
    monotonic: float
    synchronised: bool


def rows(facts: Facts) -> list[dict[str, Any]]:
    """Return all nodes, the worst first."""
    macs = _macs(facts)
    names = {mac: name for name, mac in macs.items()}
    links = {macs[n]: t.value.links for n, t in facts.told.items() if n in macs}
    found = ways(macs[facts.own], links, facts.paths) if facts.own in macs else {}
    made = [_row(facts, known, found.get(macs.get(known.name, "")), names) for known in facts.nodes]
    return sorted(made, key=_rank)


def _macs(facts: Facts) -> dict[str, str]:
    """Return the radios of all nodes; whose one is, our own radio knows better than who tells."""
    macs = dict(facts.macs)
    taken = set(macs.values())
    for name, told in sorted(facts.told.items()):
        mac = told.value.mac
        if mac is not None and name not in macs and mac not in taken:
            macs[name] = mac
            taken.add(mac)
    return macs


def _rank(row: dict[str, Any]) -> tuple[Any, ...]:
    problems = row["problems"] or {"error": 0, "warning": 0}
    return (
        HEALTHS.index(row["health"]),
        -problems["error"],
        -problems["warning"] - len(row["concerns"]),
        str(row["label"] or row["host"]).casefold(),
        row["name"],
    )


def counts(made: list[dict[str, Any]]) -> dict[str, int]:
    """Return how many nodes there are, and how many of them are how."""
    return {
        "nodes": len(made),
        **{health: sum(row["health"] == health for row in made) for health in HEALTHS},
    }


def _row(facts: Facts, known: Known, way: Way | None, names: Mapping[str, str]) -> dict[str, Any]:
    told = facts.told.get(known.name) if known.state in {"self", "up"} else None
    failure = facts.failures.get(known.name)
    address = _address(known.name)
    entry = facts.labels.get(int(address) & (1 << 64) - 1) if address is not None else None
    heard = known.heard
    if told is not None:
        age = max(0.0, facts.monotonic - told.monotonic)
        heard = age if heard is None else min(age, heard)
    row: dict[str, Any] = {
        "name": known.name,
        "host": _host(address, known.name),
        "address": str(address) if address is not None else None,
        **_called(entry),
        "this": known.state == "self",
        "member": known.state in {"self", "up"},
        "heard": 0.0 if known.state == "self" else None if heard is None else round(heard, 1),
        "way": _way(way, names) if known.state == "up" else None,
        "why": known.why or (failure.words if failure is not None and told is None else None),
    }
    row |= _summary(told.value if told is not None else None)
    row["links"] = None if told is None else _links(told.value.links, names)
    row["clock"] = _clock(told)
    row["concerns"] = _concerns(row, synchronised=facts.synchronised)
    row["health"] = _health(row, failure)
    return row


def _address(name: str) -> IPv6Address | None:
    try:
        return IPv6Address(name.partition("@")[2])
    except ValueError:
        return None


def _host(address: IPv6Address | None, name: str) -> str:
    if address is None:
        return name.partition("@")[2] or name
    return f"n-{int(address) & (1 << 48) - 1:012x}"


def _called(entry: Entry | None) -> dict[str, Any]:
    if entry is None:
        return {"label": None, "place": None, "position": None, "note": None}
    words = isinstance(entry.place, str)
    return {
        "label": entry.label or None,
        "place": (entry.place or None) if words else None,
        "position": None if words else list(entry.place),
        "note": entry.note or None,
    }


def _way(way: Way | None, names: Mapping[str, str]) -> dict[str, Any] | None:
    if way is None:
        return None
    weakest = way.weakest
    return {
        "hops": way.hops,
        "weakest": None
        if weakest is None
        else {
            "between": [names.get(mac, mac) for mac in (weakest.one, weakest.other)],
            "signal_dbm": weakest.signal,
            "metric": weakest.metric,
        },
    }


def _links(links: tuple[Link, ...], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {"node": names.get(one.mac, one.mac), "signal_dbm": one.signal, "metric": one.metric}
        for one in links
    ]


def _summary(told: Summary | None) -> dict[str, Any]:
    """Return what a node has told; everything None where it has not."""
    if told is None:
        return dict.fromkeys(
            ("state", "version", "slot", "uptime", "problem", "problems", "load", "cpus",
             "temperature", "undervoltage", "memory", "data", "card", "applications")
        )  # fmt: skip
    card = {"worn": told.worn, "reserve": told.reserve, "errors": told.data_errors}
    return {
        "state": told.state,
        "version": told.version,
        "slot": told.slot,
        "uptime": told.uptime,
        "problem": told.problem._asdict() if told.problem is not None else None,
        "problems": {"error": told.errors, "warning": told.warnings},
        "load": told.load,
        "cpus": told.cpus,
        "temperature": told.temperature,
        "undervoltage": told.undervoltage,
        "memory": _room(told.memory),
        "data": _room(told.data),
        "card": card if any(value is not None for value in card.values()) else None,
        "applications": [one._asdict() for one in told.applications],
    }


def _room(kib: tuple[int, int] | None) -> dict[str, int] | None:
    return None if kib is None else {"available": kib[0] << 10, "size": kib[1] << 10}


def _clock(told: Told[Summary] | None) -> dict[str, Any] | None:
    """Return how a node's clock differs from ours, in seconds; it was read while we waited."""
    if told is None or told.value.time is None:
        return None
    half = told.took / 2
    return {
        "synchronised": told.value.synchronised,
        "offset": round(told.value.time - (told.at - half), 3),
        "uncertainty": round(half, 3),
    }


def _concerns(row: dict[str, Any], *, synchronised: bool) -> list[dict[str, str]]:
    """Return what a node does not call a problem, and somebody should know.

    :param synchronised: whether the clock of this node is right.
    """
    found: list[tuple[str, str]] = []
    if row["undervoltage"]:
        found.append(("undervoltage", "the power supply is too weak"))
    if (row["temperature"] or 0) >= HOT:
        found.append(("hot", f"{row['temperature']:.0f} degrees"))
    for what, words in (("memory", "memory"), ("data", "/data")):
        room = row[what]
        if room is not None and room["size"] and room["available"] < LITTLE * room["size"]:
            free = 100 * room["available"] // room["size"]
            found.append((f"little-{what}", f"{free} % of {words} is free"))
    card = row["card"] or {}
    if (card.get("worn") or 0) >= WORN or (card.get("reserve") or 0) >= RESERVE:
        found.append(("card-worn", "the card is near the end of its life"))
    if card.get("errors"):
        found.append(("data-errors", f"{card['errors']} errors of the file system at /data"))
    clock = row["clock"]
    if synchronised and clock is not None and not row["this"]:
        wrong = abs(clock["offset"]) - clock["uncertainty"]
        if wrong > CLOCK:
            side = "ahead" if clock["offset"] > 0 else "behind"
            found.append(("clock", f"its clock is {time_text(wrong)} {side}"))
    worst = (row["problem"] or {}).get("part")
    for one in row["applications"] or ():
        if one["state"] not in _AT_WORK and worst != f"application {one['name']}":
            found.append(("application", f"{one['name']} is {one['state']}"))
    return [{"code": code, "words": words} for code, words in found]


def _health(row: dict[str, Any], failure: Failure | None) -> str:
    if not row["member"]:
        return "away"
    if row["state"] is None:
        # It says itself that it tells nothing, or is a node of Erlang, or was not asked yet.
        return "untold" if failure is None or failure.code in _UNTOLD else "silent"
    problems = row["problems"]
    if row["state"] != "joined" or problems["error"]:
        return "problem"
    return "warning" if problems["warning"] or row["concerns"] else "well"
