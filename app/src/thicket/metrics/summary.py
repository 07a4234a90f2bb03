# SPDX-License-Identifier: Apache-2.0
"""What people want to see of each node of a fleet, as one node tells it to another: some 300 bytes.

A JSON object, compressed, with the fields of :class:`Summary`. What a node does not know it leaves
out, and so does an older one; what a newer one says besides is not read. A member that lies can lie
about itself, and no more: every field has its type and its bounds, texts have visible characters
alone, and one that has not spoils its whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

from thicket.metrics import packed as packed_form
from thicket.metrics.machine import Machine
from thicket.metrics.text import printable

#: Longest answer in bytes, packed and not. A node with 99 peers and 32 applications has some 7,000.
MOST_PACKED = 8 * 1024
MOST_BYTES = 16 * 1024
#: Most applications and links that are told. A node has at most 99 peers (``mesh.max_peers``).
MOST_APPLICATIONS, MOST_LINKS = 32, 99
#: Characters of texts at most: of words, of a message for people, and of a name.
WORD, MESSAGE, NAME = 32, 240, 64

_MAC = re.compile("[0-9a-f]{12}")
_LARGEST = 2**53


class Problem(NamedTuple):
    """The worst problem of a node."""

    severity: str
    part: str
    code: str
    message: str


class Application(NamedTuple):
    """An application, and what it does (docs/applications.md)."""

    name: str
    state: str


class Link(NamedTuple):
    """A mesh link, as one of its ends sees it.

    :ivar mac: of the other end, 12 digits.
    :ivar signal: dBm at which that is heard.
    :ivar metric: airtime link metric towards it, in units of 10.24 us.
    """

    mac: str
    signal: int | None
    metric: int | None


class Summary(NamedTuple):
    """How a node is; None where it does not know.

    :ivar uptime: seconds since power-on.
    :ivar problem: the worst one; None for none.
    :ivar errors: problems of that severity, and ``warnings``.
    :ivar load: mean of 1 minute.
    :ivar temperature: degrees Celsius, of the hottest zone.
    :ivar memory: KiB that programs can still get, and of all, and ``data``: of /data.
    :ivar data_errors: that the file system at /data has noted.
    :ivar worn: share of its life that the card has used, and ``reserve``: see
        :class:`.machine.Card`.
    :ivar time: seconds since 1970, by its clock; ``synchronised``: a time service has set that.
    :ivar mac: of its radio, 12 digits.
    """

    state: str
    version: str | None = None
    slot: str | None = None
    uptime: int | None = None
    problem: Problem | None = None
    errors: int = 0
    warnings: int = 0
    load: float | None = None
    cpus: int | None = None
    temperature: float | None = None
    undervoltage: bool | None = None
    memory: tuple[int, int] | None = None
    data: tuple[int, int] | None = None
    data_errors: int | None = None
    worn: float | None = None
    reserve: int | None = None
    time: float | None = None
    synchronised: bool | None = None
    applications: tuple[Application, ...] = ()
    mac: str | None = None
    links: tuple[Link, ...] = ()


# -- what a node knows of itself


def summary(document: dict[str, Any], machine: Machine) -> Summary:
    """Return the summary of a node.

    :param document: the status document (docs/node.md).
    """
    problems = document["problems"]
    memory = machine.memory.get("MemAvailable"), machine.memory.get("MemTotal")
    cards = machine.cards.values()
    peers = [
        peer
        for peer in document["peers"]
        # The kernel keeps a link for half a minute after its other end has gone.
        if peer["state"] == "ESTAB" and not peer.get("silent")
    ]
    return Summary(
        state=document["state"],
        version=printable(document["version"], WORD),
        slot=printable(document["slot"], WORD) if document["slot"] else None,
        uptime=int(document["uptime"]),
        problem=_problem(problems[0]) if problems else None,
        errors=sum(problem["severity"] == "error" for problem in problems),
        warnings=sum(problem["severity"] != "error" for problem in problems),
        load=machine.load[0] if machine.load is not None else None,
        cpus=machine.cpus,
        temperature=max((round(t, 1) for t in machine.temperatures.values()), default=None),
        undervoltage=machine.undervoltage,
        memory=_kib(*memory),
        data=_kib(machine.data[2], machine.data[0]) if machine.data is not None else None,
        data_errors=machine.data_errors,
        worn=max((card.worn for card in cards if card.worn is not None), default=None),
        reserve=max((card.reserve for card in cards if card.reserve is not None), default=None),
        time=round(machine.time, 3),
        synchronised=machine.synchronised,
        applications=tuple(
            Application(printable(one["name"], NAME), printable(one["state"], WORD))
            for one in document["applications"][:MOST_APPLICATIONS]
        ),
        mac=_digits(document["radio"].get("mac")),
        links=tuple(
            Link(mac, peer.get("signal_dbm"), peer.get("metric"))
            for peer in peers[:MOST_LINKS]
            if (mac := _digits(peer["mac"])) is not None
        ),
    )


def _problem(problem: dict[str, Any]) -> Problem:
    return Problem(
        problem["severity"],
        printable(problem["part"], NAME),
        printable(problem["code"], WORD),
        printable(problem["message"], MESSAGE),
    )


def _kib(available: int | None, size: int | None) -> tuple[int, int] | None:
    return None if available is None or size is None else (available >> 10, size >> 10)


def _digits(mac: str | None) -> str | None:
    digits = (mac or "").replace(":", "").lower()
    return digits if _MAC.fullmatch(digits) else None


# -- as it travels


def pack(told: Summary) -> bytes:
    """Return a summary as it travels."""
    fields = {name: value for name, value in told._asdict().items() if value not in (None, ())}
    return packed_form.pack(fields)


def unpack(packed: bytes) -> tuple[Summary, int]:
    """Return a summary that another node has packed, and its size in bytes.

    :raises ValueError: it is none.
    """
    plain, size = packed_form.unpack(packed, MOST_PACKED, MOST_BYTES)
    fields: dict[str, Any] = {}
    for name, check in _CHECKS.items():
        if plain.get(name) is None:
            continue
        if not check(value := plain[name]):
            raise ValueError(f"{name} is {value!r:.80}")
        fields[name] = _KINDS.get(name, lambda value: value)(value)
    if "state" not in fields:
        raise ValueError("it says no state")
    return Summary(**fields), size


_Check = Callable[[Any], bool]


def _whole(least: int, most: int = _LARGEST) -> _Check:
    return lambda raw: type(raw) is int and least <= raw <= most


def _number(least: float, most: float) -> _Check:
    return lambda raw: type(raw) in (int, float) and isfinite(raw) and least <= raw <= most


def _text(most: int) -> _Check:
    return lambda raw: isinstance(raw, str) and len(raw) <= most and raw.isprintable()


def _flag(raw: Any) -> bool:
    return isinstance(raw, bool)


def _mac(raw: Any) -> bool:
    return isinstance(raw, str) and _MAC.fullmatch(raw) is not None


def _all(*checks: _Check) -> _Check:
    """As many items as there are checks, each of which is good."""
    return lambda raw: (
        isinstance(raw, list)
        and len(raw) == len(checks)
        and all(check(item) for check, item in zip(checks, raw, strict=True))
    )


def _some(check: _Check, most: int) -> _Check:
    return lambda raw: isinstance(raw, list) and len(raw) <= most and all(map(check, raw))


def _or_none(check: _Check) -> _Check:
    return lambda raw: raw is None or check(raw)


#: What each field must be.
_CHECKS: dict[str, _Check] = {
    "state": _text(WORD),
    "version": _text(WORD),
    "slot": _text(WORD),
    "uptime": _whole(0),
    "problem": _all(
        lambda raw: raw in ("error", "warning"), _text(NAME), _text(WORD), _text(MESSAGE)
    ),
    "errors": _whole(0, 10_000),
    "warnings": _whole(0, 10_000),
    "load": _number(0, 1e6),
    "cpus": _whole(1, 4096),
    "temperature": _number(-273.2, 1000),
    "undervoltage": _flag,
    "memory": _all(_whole(0), _whole(1)),
    "data": _all(_whole(0), _whole(0)),
    "data_errors": _whole(0),
    "worn": _number(0, 10),
    "reserve": _whole(0, 255),
    "time": _number(0, 1e11),
    "synchronised": _flag,
    "applications": _some(_all(_text(NAME), _text(WORD)), MOST_APPLICATIONS),
    "mac": _mac,
    "links": _some(
        _all(_mac, _or_none(_whole(-200, 100)), _or_none(_whole(0, 2**32 - 1))), MOST_LINKS
    ),
}

#: What each of them becomes, where that is not what JSON has.
_KINDS: dict[str, Callable[[Any], Any]] = {
    "problem": lambda raw: Problem(*raw),
    "memory": tuple,
    "data": tuple,
    "applications": lambda raw: tuple(Application(*one) for one in raw),
    "links": lambda raw: tuple(Link(*one) for one in raw),
}
