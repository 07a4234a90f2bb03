# SPDX-License-Identifier: Apache-2.0
"""Which driver each part of a board has: the table ``board/BOARD/parts.toml``, and checks with it.

The table says which kernel options bind what a device tree names, and what is meant to have no
driver. :func:`unset` holds it against fragments, :func:`undriven` against a device tree and the
configuration of a kernel that was built.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from firmware.devicetree import Node

#: Kinds of parts that the table covers.
KINDS = (
    "button", "card", "clock", "dma", "ethernet", "heat", "i2c", "interrupts", "light", "mailbox",
    "pcie", "pins", "power", "random", "regulator", "reset", "rp1", "rtc", "serial", "usb",
    "watchdog",
)  # fmt: skip

_COMPATIBLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*(,[A-Za-z0-9.+_-]+)?")
_OPTION = re.compile(r"[A-Z][A-Z0-9_]*[A-Za-z0-9]")
_ON = ("y", "m")


class PartsError(Exception):
    """A table that is not as it must be; the text names the entry."""


class Model(NamedTuple):
    """One model of a board.

    :ivar name: as its maker calls it.
    :ivar chip: the processor's name, by which entries mean all models that have it.
    :ivar tree: the device tree that its firmware loads, without ``.dtb``.
    :ivar boots_as: its name in the simulated boot ROM.
    :ivar overlays: overlays that its firmware loads without being asked.
    """

    name: str
    chip: str
    tree: str
    boots_as: str
    overlays: tuple[str, ...]


class Part(NamedTuple):
    """What binds one part.

    :ivar compatible: what device trees name it by; any of these is enough.
    :ivar models: the models that have it, by their keys.
    :ivar options: the options that bind it, in the kernel that the image has.
    :ivar needs: what these depend on and would be off.
    :ivar mainline: the options that bind it in a mainline kernel; empty if none does.
    """

    kind: str
    compatible: tuple[str, ...]
    models: frozenset[str]
    options: tuple[str, ...]
    needs: tuple[str, ...]
    mainline: tuple[str, ...]


class Without(NamedTuple):
    """What is meant to have no driver of ours, and why."""

    compatible: tuple[str, ...]
    why: str


class Asked(NamedTuple):
    """A parameter or an overlay that ``config.txt`` asks for.

    :ivar file: where the kernel's sources define it.
    :ivar models: the models on which it does something.
    :ivar ignored: models that are asked for it and have no use for it; harmless there.
    :ivar why: what makes it harmless there.
    """

    file: str
    models: frozenset[str]
    ignored: frozenset[str]
    why: str


class Parts(NamedTuple):
    """A board's table."""

    models: Mapping[str, Model]
    parts: tuple[Part, ...]
    without: tuple[Without, ...]
    parameters: Mapping[str, Asked]
    overlays: Mapping[str, Asked]


def load(path: Path) -> Parts:
    """Read a table.

    :raises PartsError: if an entry is not as it must be.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise PartsError(f"{path.name}: {error}") from None
    reader = _Reader(table)
    return Parts(
        reader.models,
        tuple(reader.part(entry) for entry in table.get("part", [])),
        tuple(reader.without(entry) for entry in table.get("without", [])),
        {name: reader.asked(name, entry) for name, entry in table.get("parameter", {}).items()},
        {name: reader.asked(name, entry) for name, entry in table.get("overlay", {}).items()},
    )


class _Reader:
    """Turns entries of one table into records."""

    def __init__(self, table: Mapping[str, object]) -> None:
        known = {"model", "part", "without", "parameter", "overlay"}
        if unknown := set(table) - known:
            raise PartsError(f"there is no such table: {', '.join(sorted(unknown))}")
        entries = table.get("model")
        if not isinstance(entries, dict) or not entries:
            raise PartsError("there are no models")
        self.models = {key: self._model(key, entry) for key, entry in entries.items()}

    def _model(self, key: str, entry: object) -> Model:
        values = _entry(key, entry, {"name", "chip", "tree", "boots_as"}, {"overlays"})
        return Model(
            _word(key, values["name"]),
            _word(key, values["chip"]),
            _word(key, values["tree"]),
            _word(key, values["boots_as"]),
            _words(key, values.get("overlays", [])),
        )

    def part(self, entry: object) -> Part:
        where = _where(entry)
        values = _entry(
            where, entry, {"kind", "compatible", "models", "options"}, {"needs", "mainline"}
        )
        kind = _word(where, values["kind"])
        if kind not in KINDS:
            raise PartsError(f"{where}: there is no kind {kind!r}")
        options = _options(where, values["options"])
        if not options:
            raise PartsError(f"{where}: no option binds it; parts without a driver are 'without'")
        mainline = values.get("mainline")
        return Part(
            kind,
            _compatible(where, values["compatible"]),
            self._models_of(where, values["models"]),
            options,
            _options(where, values.get("needs", [])),
            options if mainline is None else _options(where, mainline),
        )

    def without(self, entry: object) -> Without:
        where = _where(entry)
        values = _entry(where, entry, {"compatible", "why"}, set())
        return Without(_compatible(where, values["compatible"]), _word(where, values["why"]))

    def asked(self, name: str, entry: object) -> Asked:
        values = _entry(name, entry, {"file", "models"}, {"ignored", "why"})
        ignored = self._models_of(name, values.get("ignored", []))
        why = _word(name, values["why"]) if ignored else ""
        models = self._models_of(name, values["models"])
        if both := models & ignored:
            raise PartsError(f"{name}: both used and ignored by {', '.join(sorted(both))}")
        return Asked(_word(name, values["file"]), models, ignored, why)

    def _models_of(self, where: str, value: object) -> frozenset[str]:
        """Return the models that are meant by their own keys or by their chips."""
        found: set[str] = set()
        for word in _words(where, value):
            meant = {key for key, model in self.models.items() if word in (key, model.chip)}
            if not meant:
                raise PartsError(f"{where}: there is no model {word!r}")
            found |= meant
        return frozenset(found)


def _where(entry: object) -> str:
    named = entry.get("compatible") if isinstance(entry, dict) else None
    return str(named[0]) if isinstance(named, list) and named else f"the entry {entry!r}"


def _entry(where: str, entry: object, must: set[str], may: set[str]) -> Mapping[str, object]:
    if not isinstance(entry, dict):
        raise PartsError(f"{where}: not a table")
    if missing := must - set(entry):
        raise PartsError(f"{where}: {', '.join(sorted(missing))} is missing")
    if unknown := set(entry) - must - may:
        raise PartsError(f"{where}: there is no {', '.join(sorted(unknown))}")
    if "ignored" in entry and "why" not in entry:
        raise PartsError(f"{where}: why is missing")
    return entry


def _word(where: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PartsError(f"{where}: {value!r} is not a text")
    return value


def _words(where: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise PartsError(f"{where}: {value!r} is not a list")
    words = tuple(_word(where, word) for word in value)
    if len(set(words)) < len(words):
        raise PartsError(f"{where}: {value!r} names something twice")
    return words


def _compatible(where: str, value: object) -> tuple[str, ...]:
    words = _words(where, value)
    bad = [word for word in words if not _COMPATIBLE.fullmatch(word)]
    if bad or not words:
        raise PartsError(f"{where}: {bad or value!r} is not what a device tree names parts by")
    return words


def _options(where: str, value: object) -> tuple[str, ...]:
    words = _words(where, value)
    if bad := [word for word in words if not _OPTION.fullmatch(word)]:
        raise PartsError(f"{where}: {', '.join(bad)} is no option (without CONFIG_)")
    return words


def unset(parts: Parts, values: Mapping[str, str]) -> list[str]:
    """Return a sentence for each option of the table that ``values`` do not turn on.

    :param values: options with ``CONFIG_``, as a fragment or ``.config`` has them
    """
    return [
        f"{part.kind} {part.compatible[0]}: CONFIG_{option} is "
        f"{values.get(f'CONFIG_{option}', 'not named')}"
        for part in parts.parts
        for option in (*part.options, *part.needs)
        if values.get(f"CONFIG_{option}") not in _ON
    ]


def undriven(
    parts: Parts, nodes: Iterable[Node], values: Mapping[str, str], *, mainline: bool
) -> list[str]:
    """Return a sentence for each enabled node that has no driver, although it should have one.

    :param values: the built kernel's ``.config``
    :param mainline: whether that kernel is mainline's, and not the Raspberry Pi's
    """
    unbound: dict[str, list[str]] = {}
    bound = {word for entry in parts.without for word in entry.compatible}
    for part in parts.parts:
        options = part.mainline if mainline else part.options
        off = [o for o in options if values.get(f"CONFIG_{o}") not in _ON]
        if not options:
            off = ["no option of this kernel"]
        for word in part.compatible:
            if off:
                unbound.setdefault(word, off)
            else:
                bound.add(word)
    found = []
    for node in nodes:
        names = node.compatible
        if not node.enabled or not names or node.path == "/" or bound.intersection(names):
            continue
        off = [option for name in names for option in unbound.get(name, [])]
        why = f"off: {', '.join(off)}" if off else "not in the table"
        found.append(f"{node.path} ({', '.join(names)}): {why}")
    return found
