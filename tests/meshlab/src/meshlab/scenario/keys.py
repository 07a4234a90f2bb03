# SPDX-License-Identifier: Apache-2.0
"""Keys of a scenario: declared once, as fields of records, with what is allowed and their meaning.

A record is a frozen dataclass whose fields are made by ``key``. ``read`` makes one of a table of
the file and finds every fault in it; docs/scenarios.md is written from the same declarations.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

Link = tuple[str, str]
Place = tuple[float, float]
Where = tuple[str | int, ...]
"""Where something is in the file: names of tables and keys, and numbers in arrays, from 0."""

MOST_ITEMS = 1000
"""Most items of a list: more are a mistake, and none of it is shown."""


class Fault(NamedTuple):
    """What is wrong at a place of the file."""

    where: Where
    message: str


@dataclass(frozen=True)
class Around:
    """What the meaning of a key depends on."""

    nodes: tuple[str, ...]
    """The names of the nodes."""
    folder: Path
    """Of the scenario: paths in it begin there."""

    def node(self, value: object) -> str:
        """Return the name of a node.

        :raises ValueError: there is none of this name.
        """
        name = f"n{value}" if isinstance(value, int) and not isinstance(value, bool) else value
        if not isinstance(name, str) or name not in self.nodes:
            known = f"{self.nodes[0]} to {self.nodes[-1]}" if self.nodes else "none"
            raise ValueError(f"{shown(value)} is no node: the nodes are {known}")
        return name


Check = Callable[[object, Around], T]


class Kind(NamedTuple, Generic[T]):
    """What a key allows."""

    check: Check[T]
    """Gives the value; raises ValueError."""
    words: str
    """For people: what is to be written."""


def key(kind: Kind[T], help: str, *, default: Any = MISSING, name: str = "") -> Any:
    """Declare a key.

    :param kind: What it allows.
    :param help: What it means.
    :param default: Its value where it is not written; without one it has to be.
    :param name: What it is called in the file, where Python has no such name.
    """
    return field(default=default, metadata={"kind": kind, "help": help, "name": name})


class Key(NamedTuple):
    """A declared key."""

    attribute: str
    name: str
    kind: Kind[Any]
    help: str
    default: Any

    @property
    def needed(self) -> bool:
        return self.default is MISSING


def keys_of(record: type[Any]) -> list[Key]:
    """Return the keys of a record, in their order."""
    return [
        Key(
            each.name,
            each.metadata["name"] or each.name,
            each.metadata["kind"],
            each.metadata["help"],
            each.default,
        )
        for each in dataclasses.fields(record)
        if "kind" in each.metadata
    ]


def read(
    record: type[T],
    table: Mapping[str, Any],
    where: Where,
    around: Around,
    faults: list[Fault],
    *,
    beside: Sequence[str] = (),
) -> T | None:
    """Return the record that a table describes; None when one of its keys is wrong or missing.

    :param where: The table's place.
    :param faults: Gets every fault.
    :param beside: Keys of the table that are read elsewhere.
    """
    keys = {each.name: each for each in keys_of(record)}
    values: dict[str, Any] = {}
    for name in table:
        if name not in keys and name not in beside:
            faults.append(Fault((*where, name), unknown("key", name, [*keys, *beside])))
    before = len(faults)
    for name, each in keys.items():
        if name not in table:
            if each.needed:
                faults.append(Fault(where, f"{name} is missing: it is {each.kind.words}"))
            continue
        try:
            values[each.attribute] = each.kind.check(table[name], around)
        except ValueError as error:
            faults.append(Fault((*where, name), str(error)))
    if len(faults) > before:
        return None
    try:
        return record(**values)
    except ValueError as error:  # keys that do not go together
        faults.append(Fault(where, str(error)))
        return None


def unknown(what: str, name: str, known: Sequence[str]) -> str:
    """Return the words for a name that is not known, with what may have been meant."""
    near = difflib.get_close_matches(name[:40], known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"unknown {what} {shown(name)}; {hint}"


def shown(value: object) -> str:
    """Return a value as it may be shown: in one short line."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


# -- what keys allow


def _refused(kind: str) -> ValueError:
    return ValueError(f"must be {kind}")


def _text(value: object, _around: Around) -> str:
    if not isinstance(value, str) or not value or len(value) > 4000:
        raise _refused(text.words)
    return value


def _truth(value: object, _around: Around) -> bool:
    if not isinstance(value, bool):
        raise _refused(truth.words)
    return value


def number(low: float, high: float, unit: str = "") -> Kind[float]:
    """Return the kind of numbers from ``low`` to ``high``."""
    words = f"a number{' of ' if unit else ''}{unit} from {low:.10g} to {high:.10g}"

    def check(value: object, _around: Around) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _refused(words)
        # A whole number of any length is compared before it becomes a float.
        if (isinstance(value, float) and not math.isfinite(value)) or not low <= value <= high:
            raise _refused(words)
        return float(value)

    return Kind(check, words)


def whole(low: int, high: int) -> Kind[int]:
    """Return the kind of whole numbers from ``low`` to ``high``."""
    words = f"a whole number from {low} to {high}"

    def check(value: object, _around: Around) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _refused(words)
        return value

    return Kind(check, words)


def one_of(*words: str) -> Kind[str]:
    """Return the kind of these words."""
    listed = " or ".join(f'"{word}"' for word in words)

    def check(value: object, _around: Around) -> str:
        if not isinstance(value, str) or value not in words:
            raise _refused(listed)
        return value

    return Kind(check, listed)


def _node(value: object, around: Around) -> str:
    return around.node(value)


def _list(value: object, words: str) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_ITEMS:
        raise _refused(words)
    return value


def _nodes(value: object, around: Around) -> tuple[str, ...]:
    if value == "all":
        return around.nodes
    if isinstance(value, str | int):
        return (around.node(value),)
    found = [around.node(each) for each in _list(value, nodes.words)]
    return tuple(dict.fromkeys(found))


def _some(value: object, around: Around) -> tuple[str, ...]:
    return () if value == [] else _nodes(value, around)


def _groups(value: object, around: Around) -> tuple[tuple[str, ...], ...]:
    found = [_nodes(each, around) for each in _list(value, groups.words)]
    named = [name for group in found for name in group]
    if len(found) < 2 or len(set(named)) < len(named):
        raise ValueError(f"must be {groups.words}, and each node in one of them at most")
    return tuple(found)


def _links(value: object, around: Around) -> tuple[Link, ...]:
    found = []
    for each in [value] if isinstance(value, str) else _list(value, links.words):
        ends = each.split("-") if isinstance(each, str) else []
        if len(ends) != 2:
            raise _refused(links.words)
        a, b = (around.node(end.strip()) for end in ends)
        if a == b:
            raise ValueError(f"{shown(each)}: a link has two different ends")
        found.append((a, b))
    return tuple(found)


def _place(value: object, around: Around) -> Place:
    found = [metres.check(each, around) for each in _list(value, place.words)]
    if len(found) != 2:
        raise _refused(place.words)
    return found[0], found[1]


def _places(value: object, around: Around) -> tuple[Place, ...]:
    return tuple(_place(each, around) for each in _list(value, places.words))


def _pattern(value: object, around: Around) -> re.Pattern[str]:
    try:
        return re.compile(_text(value, around))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"is no regular expression of Python: {error}") from None


def _file(value: object, around: Around) -> Path:
    try:
        path = around.folder / _text(value, around)
        found = path.is_file()
    except (OSError, ValueError):
        raise _refused(file.words) from None
    if not found:
        raise ValueError(f"{shown(value)} is no file in {around.folder}")
    return path


def _folders(value: object, around: Around) -> tuple[Path, ...]:
    found = []
    for each in _list(value, folders.words):
        path = around.folder / _text(each, around)
        if "\0" in str(path) or not (path / "pyproject.toml").is_file():
            raise ValueError(f"{shown(each)} is no application: it has no pyproject.toml")
        found.append(path.resolve())
    return tuple(found)


def _fault(value: object, around: Around) -> str:
    from meshlab.chip.atecc608 import parse_fault

    said = _text(value, around)
    parse_fault(None if said == "none" else said)
    return said


def _fading(value: object, around: Around) -> str:
    from meshlab.medium.fading import parse

    return str(parse(_text(value, around)))


def _settings(value: object, _around: Around) -> tuple[str, ...]:
    if not isinstance(value, dict) or not 1 <= len(value) <= MOST_ITEMS:
        raise _refused(settings.words)
    found = []
    for path, raw in value.items():
        if not re.fullmatch(r"[a-z_]+(\.[a-z0-9_-]+)+", path):
            raise ValueError(f"{shown(path)} is no section.key; write it in quotes")
        said = str(raw).lower() if isinstance(raw, bool) else raw
        if isinstance(raw, list):
            said = ",".join(map(str, raw))
        if not isinstance(said, str | int | float):
            raise _refused(settings.words)
        found.append(f"{path}={said}")
    return tuple(found)


def _anything(value: object, _around: Around) -> object:
    if not isinstance(value, str | int | float):
        raise _refused(anything.words)
    return value


text = Kind(_text, "a text")
truth = Kind(_truth, "true or false")
node = Kind(_node, 'a node, such as "n3"')
nodes = Kind(_nodes, 'a node, a list of nodes such as ["n1", "n2"], or "all"')
some = Kind(_some, 'nodes such as ["n1", "n2"], "all", or [] for none')
groups = Kind(_groups, 'two or more groups, such as [["n1", "n2"], ["n3"]]')
links = Kind(_links, 'a link such as "n1-n2", or a list of links')
metres = number(-1e6, 1e6, "metres")
place = Kind(_place, "a place [x, y] in metres")
places = Kind(_places, "a list of places [x, y] in metres")
pattern = Kind(_pattern, "a regular expression")
file = Kind(_file, "the path of a file, from the folder of the scenario")
folders = Kind(_folders, "a list of folders of Python projects, from that of the scenario")
fault = Kind(_fault, "a fault of a chip, such as absent, or none")
fading = Kind(_fading, 'fading, such as "rician k=6 doppler=2 shadowing=4 decorrelation=10"')
settings = Kind(_settings, 'a table such as {"mesh.channel" = 6}')
anything = Kind(_anything, "a text, a number, true or false")
seconds = number(0, 1e6, "seconds")
