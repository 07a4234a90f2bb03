# SPDX-License-Identifier: Apache-2.0
"""Reads scenarios from TOML, strictly: every fault is told with its line and what to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from meshlab.lab import topology
from meshlab.lab.spec import Config, LabSpec, NodeSpec
from meshlab.lab.topology import Pair, Topology, node_name
from meshlab.scenario.actions import ACTIONS, Traffic
from meshlab.scenario.errors import ScenarioError
from meshlab.scenario.expectations import CONDITIONS, TrafficBounds
from meshlab.scenario.keys import Around, Fault, Where, keys_of, read, shown, unknown
from meshlab.scenario.model import (
    FORMED,
    Expectation,
    Head,
    Images,
    Mesh,
    OwnLink,
    OwnNode,
    Scenario,
    Shape,
    Step,
    Terms,
    When,
)
from meshlab.scenario.traffic import ALLOWED
from thicket.base.fields import ConfigError
from thicket.base.visible import visible
from thicket.config import schema
from thicket.config.parse import decode, parse_toml
from thicket.config.statements import statements

TABLES = ("scenario", "topology", "mesh", "config", "node", "link", "step", "expect")
MOST_FAULTS = 20
MOST_STEPS = 1000
UNTIL = 60.0
"""Seconds within which an expectation that says nothing of time has to become true."""


def load(path: Path) -> Scenario:
    """Return the scenario in a file.

    :raises ScenarioError: every fault in it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(1 << 20)
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from None
    return parse(data, path)


def parse(data: bytes, path: Path) -> Scenario:
    """Return the scenario in the bytes of a file.

    :param path: Its path, for messages and for the paths in it.
    :raises ScenarioError: every fault in it.
    """
    try:
        text = decode(data, str(path))
        tables = parse_toml(text, str(path))
    except ConfigError as error:
        raise ScenarioError(str(error)) from None
    reading = _Reading(tables, path, _lines(text))
    scenario = reading.scenario()
    if scenario is None:
        raise ScenarioError("\n".join(_told(path, reading.lines, reading.faults)))
    return scenario


def _told(path: Path, lines: Mapping[Where, int], faults: Sequence[Fault]) -> list[str]:
    """Return the faults as lines for people, in the order of the file."""
    found = []
    for where, message in faults:
        known = where
        while known and known not in lines:
            known = known[:-1]
        parts = [str(part) if isinstance(part, str) else f"{part + 1}" for part in where]
        place = " ".join(parts)
        found.append((lines.get(known, 0), visible(f"{place}: {message}" if place else message)))
    found.sort(key=lambda one: one[0])
    told = [f"{path}: {f'line {n}: ' if n else ''}{words}" for n, words in found[:MOST_FAULTS]]
    if len(found) > MOST_FAULTS:
        told.append(f"{path}: and {len(found) - MOST_FAULTS} more faults")
    return told


def _lines(text: str) -> dict[Where, int]:
    """Return the lines of tables and keys; items of arrays of tables are counted from 0."""
    found: dict[Where, int] = {(): 1}
    counts: dict[Where, int] = {}
    line, counted = 1, 0
    for statement in statements(text):
        line += text.count("\n", counted, statement.start)
        counted = statement.start
        where: Where = ()
        for index, name in enumerate(statement.path):
            where = (*where, name)
            last = index == len(statement.path) - 1
            if last and statement.is_table and text.startswith("[[", statement.start):
                counts[where] = counts.get(where, -1) + 1
            if where in counts:
                where = (*where, counts[where])
        found.setdefault(where, line)
    return found


class _Reading:
    """The reading of one file."""

    def __init__(self, tables: Mapping[str, Any], path: Path, lines: Mapping[Where, int]) -> None:
        self.faults: list[Fault] = []
        self.lines = lines
        self._places: dict[str, tuple[float, float]] = {}
        self._path = path
        self._tables = tables
        self._around = Around((), path.parent)

    def _fault(self, message: str, *where: str | int) -> None:
        self.faults.append(Fault(where, message))

    def scenario(self) -> Scenario | None:
        """Return the scenario; None when there are faults."""
        for name in self._tables:
            if name not in TABLES:
                self._fault(unknown("table", name, TABLES), name)
        head = self._one(Head, "scenario")
        shape = self._one(Shape, "topology")
        mesh = self._one(Mesh, "mesh", needed=False)
        if head is None or shape is None or mesh is None:
            return None
        made = self._topology(shape, head.seed)
        if made is None:
            return None
        self._around = Around(tuple(made.names), self._path.parent)
        config = self._config(self._tables.get("config", {}), "config")
        nodes, others = self._nodes(mesh)
        made, fadings = self._linked(shape, made)
        steps = self._steps()
        finally_ = self._expectations(self._tables, (), "")
        self._names(steps, finally_)
        if self.faults:
            return None
        if any(isinstance(step.action, Traffic) for step in steps):
            config, nodes = _with_traffic(config, nodes)
        spec = LabSpec(
            topology=made, security=mesh.security, config=config, nodes=nodes,
            propagation=_propagation(shape), fading=shape.fading, fadings=fadings,
            decoding=shape.decoding, ht=mesh.ht,
        )  # fmt: skip
        images = Images(mesh.image, mesh.machine, mesh.applications, others)
        return Scenario(self._path, head, spec, images, tuple(steps), tuple(finally_))

    def _one(self, record: type[Any], name: str, *, needed: bool = True) -> Any:
        table = self._tables.get(name)
        if table is None and needed:
            first = keys_of(record)[0]
            self._fault(f"[{name}] is missing: it has at least {first.name}, {first.kind.words}")
            return None
        if not isinstance(table, dict | None):
            self._fault(f"is a table: write [{name}] and its keys below", name)
            return None
        return read(record, table or {}, (name,), self._around, self.faults)

    def _many(self, tables: Mapping[str, Any], name: str, where: Where) -> list[dict[str, Any]]:
        found = tables.get(name, [])
        if (
            not isinstance(found, list)
            or not all(isinstance(each, dict) for each in found)
            or len(found) > MOST_STEPS
        ):
            dotted = ".".join(str(part) for part in (*where, name) if isinstance(part, str))
            self._fault(f"is one or more tables (at most {MOST_STEPS}): [[{dotted}]]", *where, name)
            return []
        return found

    def _topology(self, shape: Shape, seed: int) -> Topology | None:
        """Return the nodes at their places, with the links of a regular shape."""
        own = self._many(self._tables, "node", ())
        if shape.kind not in ("links", "distance"):
            if shape.nodes is None:
                self._fault(f'nodes is missing: how many, as kind is "{shape.kind}"', "topology")
                return None
            return topology.make(shape.kind, shape.nodes, seed)
        if shape.nodes is not None:
            self._fault(f"is the number of [[node]] tables with {shape.kind}", "topology", "nodes")
            return None
        names = [each.get("name") for each in own]
        wanted = [node_name(index) for index in range(1, len(names) + 1)]
        if not wanted or len(wanted) > topology.MAX_NODES:
            self._fault(f"with {shape.kind} there are 1 to {topology.MAX_NODES} [[node]]", "node")
            return None
        for index, (name, right) in enumerate(zip(names, wanted, strict=True)):
            if name != right:
                message = f"node {index + 1} is named {right}, in this order, not {shown(name)}"
                self._fault(message, "node", index, "name")
                return None
        return Topology(shape.kind, seed, dict.fromkeys(wanted, (0.0, 0.0)), {})

    def _nodes(self, mesh: Mesh) -> tuple[dict[str, NodeSpec], dict[str, tuple[str, str | None]]]:
        specs: dict[str, NodeSpec] = {}
        others: dict[str, tuple[str, str | None]] = {}
        for index, table in enumerate(self._many(self._tables, "node", ())):
            where: Where = ("node", index)
            try:
                name = self._around.node(table.get("name"))
            except ValueError as error:
                self._fault(str(error), *where, "name")
                continue
            beside = ("name", "config")
            own = read(OwnNode, table, where, self._around, self.faults, beside=beside)
            if name in specs:
                self._fault(f"{name} has a table already", *where, "name")
            config = self._config(table.get("config", {}), *where, "config")
            if own is None:
                continue
            specs[name] = NodeSpec(config, own.card, own.chip, own.mesh_point, own.tx_power)
            if own.at is not None:
                self._places[name] = own.at
            if own.image is not None or own.machine is not None:
                others[name] = own.image or mesh.image, own.machine
        return specs, others

    def _linked(self, shape: Shape, made: Topology) -> tuple[Topology, dict[Pair, str]]:
        positions = {**made.positions, **self._places}
        links, fadings = dict(made.links), dict[Pair, str]()
        if shape.kind == "distance":
            for name in made.names:
                if name not in self._places:
                    self._fault(f"{name} needs `at`, its place, with distance", "node")
        for index, table in enumerate(self._many(self._tables, "link", ())):
            own = read(OwnLink, table, ("link", index), self._around, self.faults)
            if own is None:
                continue
            distant = shape.kind == "distance"
            if distant and own.snr is None and own.fading is None:
                self._fault("says nothing: with distance it has snr, fading or both", "link", index)
            for a, b in own.between:
                pair = (b, a) if (b, a) in links else (a, b)
                if own.snr is not None:
                    links[pair] = own.snr
                elif not distant:
                    links.setdefault(pair, topology.LINK_SNR)
                if own.fading is not None:
                    fadings[min(a, b), max(a, b)] = own.fading
        if shape.kind == "links" and not self._places:
            circle = topology.make("ring", len(positions)).positions  # somewhere to be drawn
            positions = dict(zip(made.names, circle.values(), strict=True))
        return Topology(made.kind, made.seed, positions, links), fadings

    def _config(self, tables: Any, *where: str | int) -> dict[str, dict[str, Any]]:
        """Return a node's configuration by section and key, judged as the node does."""
        if not isinstance(tables, dict):
            self._fault("is a table of sections, such as [config.mesh]", *where)
            return {}
        found: dict[str, dict[str, Any]] = {}
        try:
            schema.check(dict(tables), "config")
        except ConfigError as error:
            for one in error.findings:
                key = one.key.strip("[]").split(".") if one.key else []
                self._fault(one.message, *where, *key)
            return {}
        for section, table in tables.items():
            if section == schema.APPLICATION:
                found |= {f"{section}.{name}": dict(own) for name, own in table.items()}
            else:
                found[section] = dict(table)
        return found

    def _steps(self) -> list[Step]:
        found = []
        for index, table in enumerate(self._many(self._tables, "step", ())):
            where: Where = ("step", index)
            beside = [key.name for key in keys_of(When)] + ["do", "expect", "background"]
            action = self._kind(ACTIONS, "do", table, where, beside)
            when = self._part(When, table, where)
            background = table.get("background", False)
            if not isinstance(background, bool):
                self._fault("must be true or false", *where, "background")
            name = (when and when.name) or f"step {index + 1}"
            expectations = self._expectations(table, where, f"{name}, ")
            if action is not None and when is not None:
                line = self.lines.get(where, 0)
                found.append(Step(name, line, when, bool(background), action, tuple(expectations)))
        return found

    def _expectations(
        self, table: Mapping[str, Any], above: Where, prefix: str
    ) -> list[Expectation]:
        found = []
        for index, each in enumerate(self._many(table, "expect", above)):
            where: Where = (*above, "expect", index)
            own = [key.name for record in (When, Terms) for key in keys_of(record)]
            condition = self._kind(CONDITIONS, "that", each, where, [*own, "that"])
            when, terms = self._part(When, each, where), self._part(Terms, each, where)
            if condition is None or when is None or terms is None:
                continue
            within = terms.within
            if within is None:
                within = 0.0 if terms.holds else UNTIL
            name = when.name or f"{prefix}expectation {index + 1}"
            line = self.lines.get(where, 0)
            found.append(Expectation(name, line, when, within, terms.holds, condition))
        return found

    def _part(self, record: type[Any], table: Mapping[str, Any], where: Where) -> Any:
        """Read the keys of a record from a table that has others as well."""
        names = {key.name for key in keys_of(record)}
        own = {name: value for name, value in table.items() if name in names}
        return read(record, own, where, self._around, self.faults)

    def _kind(
        self,
        kinds: Mapping[str, type[Any]],
        word: str,
        table: Mapping[str, Any],
        where: Where,
        beside: Sequence[str],
    ) -> Any:
        """Return what the word of a table (`do`, `that`) makes of its other keys."""
        name = table.get(word)
        if name is None:
            self._fault(f"{word} is missing: it is one of {', '.join(kinds)}", *where)
            return None
        if not isinstance(name, str) or name not in kinds:
            self._fault(unknown("word", str(name), list(kinds)), *where, word)
            return None
        return read(kinds[name], table, where, self._around, self.faults, beside=[*beside, word])

    def _names(self, steps: Sequence[Step], finally_: Sequence[Expectation]) -> None:
        """Check that names are given once, and that nothing waits for itself."""
        places: dict[str, Where] = {}
        waits: dict[str, list[str]] = {}
        before: str | None = None
        for index, step in enumerate(steps):
            self._named(places, step.name, ("step", index))
            waits[step.name] = _awaited(step.when, before)
            for number, each in enumerate(step.expectations):
                self._named(places, each.name, ("step", index, "expect", number))
                waits[each.name] = [each.when.after or step.name]
            # What comes next waits for this step with its expectations.
            before = step.name
        for number, each in enumerate(finally_):
            self._named(places, each.name, ("expect", number))
            alone = each.when.at is None and each.when.after is None
            waits[each.name] = list(waits) if alone else _awaited(each.when, None)
        flows = {step.name for step in steps if isinstance(step.action, Traffic)}
        for own in (*(e for s in steps for e in s.expectations), *finally_):
            bounds = own.condition
            if isinstance(bounds, TrafficBounds) and bounds.step not in flows:
                self._fault(
                    f"{shown(bounds.step)} is no step that lets traffic flow; there are "
                    f"{', '.join(sorted(flows)) or 'none'}",
                    *places[own.name], "step",
                )  # fmt: skip
        for name, awaited in waits.items():
            for one in awaited:
                if one != FORMED and one not in waits:
                    self._fault(unknown("name", one, list(places)), *places[name], "after")
        if not self.faults:
            for name in _circle(steps, finally_):
                self._fault("waits for itself: choose another `after`", *places[name], "after")

    def _named(self, places: dict[str, Where], name: str, where: Where) -> None:
        if name in places or name == FORMED:
            self._fault(f"the name {shown(name)} is taken", *where, "name")
        places[name] = where


def _awaited(when: When, before: str | None) -> list[str]:
    if when.after is not None:
        return [when.after]
    return [before] if when.at is None and before is not None else [FORMED]


def _circle(steps: Sequence[Step], finally_: Sequence[Expectation]) -> list[str]:
    """Return the names of those that can never begin, because they wait for each other."""
    waits: dict[str, set[str]] = {}
    over: set[str] = set()
    for step, before in zip(steps, (None, *steps), strict=False):
        waits[step.name] = set(_awaited(step.when, None)) - {FORMED}
        if step.when.after is None and step.when.at is None and before is not None:
            # The step before is over with its expectations, unless it goes on in the background.
            waits[step.name] = {before.name}
            if not before.background:
                waits[step.name] |= {each.name for each in before.expectations}
        for each in step.expectations:
            waits[each.name] = {step.name} | ({each.when.after} if each.when.after else set())
            waits[each.name] -= {FORMED}
    for each in finally_:
        alone = each.when.at is None and each.when.after is None
        own = set() if alone else set(_awaited(each.when, None)) - {FORMED}
        waits[each.name] = own
    while ready := {name for name, own in waits.items() if name not in over and own <= over}:
        over |= ready
    return [name for name in waits if name not in over]


def _propagation(shape: Shape) -> dict[str, Any] | None:
    """Return how nodes without a link hear each other."""
    if shape.kind != "distance":
        return None
    return {
        "model": "log-distance",
        "exponent": shape.exponent,
        "shadowing_db": shape.shadowing,
    }


def _with_traffic(
    config: Config, nodes: Mapping[str, NodeSpec]
) -> tuple[dict[str, dict[str, Any]], dict[str, NodeSpec]]:
    """Return configurations that let the traffic of a scenario in."""

    def opened(layer: Config) -> dict[str, dict[str, Any]]:
        own = {section: dict(values) for section, values in layer.items()}
        wall = own.setdefault("firewall", {})
        wall["allow"] = [*wall.get("allow", ()), ALLOWED]
        return own

    common = opened(config)
    special = {
        name: replace(node, config=opened(node.config))
        if "allow" in node.config.get("firewall", {})
        else node
        for name, node in nodes.items()
    }
    return common, special
