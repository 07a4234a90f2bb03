# SPDX-License-Identifier: Apache-2.0
"""The rules of docs/architecture.md: who may import whom, and how much state a class may hold."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest

TREE = Path(__file__).parents[1]
NODE = TREE / "app/src"
SOURCES = {
    "thicket": NODE,
    "authority": TREE / "tools/src",
    "cable": TREE / "tools/src",
    "firmware": TREE / "tools/src",
    "host": TREE / "tools/src",
    "remote": TREE / "tools/src",
    "web": TREE / "tools/src",
    "meshlab": TREE / "tests/meshlab/src",
}

#: The rooms of the node from the ground up. A room may use what is below its floor, not beside it.
#: Sections of the configuration (``section.py``) are on the floor ``sections``, whatever room they
#: are in, and so are the tables that judge their values.
FLOORS = (
    {"base"},
    {"sections", "netlink", "device", "control"},
    {"config"},
    {"identity", "radio", "distribution"},
    {"discovery"},
    {"trust"},
    {
        "cable",
        "cluster",
        "firewall",
        "gateway",
        "applications",
        "operators",
        "update",
        "upkeep",
        "metrics",
        "syslog",
        "timekeeping",
    },
    {"fleet"},
    {"daemon"},
    {"cli"},
)
JUDGES_OF_VALUES = {"thicket.radio.countries", "thicket.radio.country_names"}

#: Packages beside the node's, and the others of ours that each may import.
DESKS = {
    "thicket": set(),
    "authority": {"thicket", "host", "cable"},
    "cable": {"thicket"},
    "firmware": {"thicket", "host", "authority"},
    "host": set(),
    "web": {"thicket", "host"},
    "remote": {"thicket", "authority", "host", "cable", "web"},
    "meshlab": {"thicket", "authority", "firmware", "host", "remote", "web"},
}

MOST_ATTRIBUTES = 15
#: Classes with more attributes of their own, each with the reason.
LARGE = {
    "thicket.base.paths.Paths": "a list of places, without behaviour",
    "thicket.trust.certificates.Certificate": "a record: one attribute for each field",
    "thicket.config.schema.Settings": "a record: one attribute for each table of the file",
    "thicket.distribution.connection.Connection": "one TCP connection: all of it dies together",
    "meshlab.chip.atecc608.Atecc608": "a chip: its memory and its volatile registers",
    "meshlab.chip.vhost_user.Vring": "a ring of virtio: the fields of its protocol",
    "meshlab.medium.fake.FakeKernel": "stands for several kernels",
    "meshlab.medium.stats.Stats": "counters",
    "meshlab.medium.objects.Radio": "a record of the hot path",
}


class Import(NamedTuple):
    """``module`` uses ``used``, in a line of its source."""

    module: str
    used: str
    line: int


def modules(package: str) -> dict[str, Path]:
    """All modules of a package by their names."""
    source = SOURCES[package]
    found = {}
    for path in sorted((source / package).rglob("*.py")):
        parts = list(path.relative_to(source).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


ALL = {name: path for package in SOURCES for name, path in modules(package).items()}


@functools.cache
def nodes(package: str) -> tuple[tuple[str, ast.AST], ...]:
    """The imports and the scopes of a package, each with its module, of one walk for all tests."""
    kept = ast.ImportFrom | ast.Import | ast.ClassDef | ast.Module
    return tuple(
        (module, node)
        for module, path in modules(package).items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kept)
    )


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Give back the memory behind these tests."""
    yield
    nodes.cache_clear()


def imports(package: str) -> Iterator[Import]:
    """Every import of our own modules, also those inside functions and those for types."""
    for module, node in nodes(package):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                used = name if name in ALL else str(node.module)
                if used.partition(".")[0] in SOURCES:
                    yield Import(module, used, node.lineno)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in SOURCES:
                    yield Import(module, alias.name, node.lineno)


def test_what_the_guides_name_is_there() -> None:
    """Authors of applications import by the guides; a move must not break that."""
    named = set()
    for guide in (TREE / "README.md", *sorted((TREE / "docs").glob("*.md"))):
        text = guide.read_text(encoding="utf-8")
        for module, names in re.findall(r"^from (thicket[\w.]*) import ([\w, ]+)$", text, re.M):
            named |= {f"{module}.{name.strip()}" for name in names.split(",")}
        named |= set(re.findall(r"`((?:thicket|meshlab)\.[a-z_]+(?:\.\w+)+)", text))
    assert {"thicket.applications.Application", "thicket.distribution.Request"} <= named
    for name in sorted(named):
        if name.startswith(("thicket.hwsim.", "thicket.shell.", "thicket.toml.")):  # ports, files
            continue
        module = name
        while module not in ALL:
            module = module.rpartition(".")[0]
        found: object = import_module(module)
        for part in name.removeprefix(module).split(".")[1:]:
            found = getattr(found, part)


def room(module: str) -> str:
    """The room of a module of the node; that of the package itself is empty."""
    parts = module.split(".")
    if parts[-1] == "section" or module in JUDGES_OF_VALUES:
        return "sections"
    return parts[1] if len(parts) > 1 else ""


def floor(module: str) -> int:
    """The number of a module's floor."""
    found = [number for number, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert found, f"{module} is in no room of FLOORS"
    return found[0]


def test_every_room_has_a_floor() -> None:
    rooms = {room(module) for module in modules("thicket")} - {"", "__main__"}
    assert rooms == set.union(*FLOORS)


def test_the_drawing_shows_the_floors() -> None:
    guide = (TREE / "docs/architecture.md").read_text(encoding="utf-8")
    drawing = guide.partition("```text\n")[2].partition("```")[0].splitlines()
    drawn = [set(re.split(r"\s{4,}", line)[0].split()) for line in drawing]
    assert drawn == [*reversed(FLOORS)]


def test_imports_run_downward_only() -> None:
    wrong = []
    for one in imports("thicket"):
        if not one.used.startswith("thicket.") or room(one.module) in {"", "__main__"}:
            continue
        same_package = one.module.split(".")[1] == one.used.split(".")[1]
        if not same_package and floor(one.used) >= floor(one.module):
            wrong.append(one)
    assert wrong == []


@pytest.mark.parametrize("package", SOURCES)
def test_who_may_use_whom(package: str) -> None:
    used = {one.used.partition(".")[0] for one in imports(package)} - {package}
    assert used <= DESKS[package]


@pytest.mark.parametrize("package", SOURCES)
def test_nothing_private_is_imported(package: str) -> None:
    wrong = []
    for module, node in nodes(package):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in SOURCES:
            wrong += [
                (module, f"{node.module}.{alias.name}")
                for alias in node.names
                if re.match(r"_[^_]", alias.name)
            ]
    assert wrong == []


def attributes(node: ast.ClassDef) -> set[str]:
    """What the methods of a class assign to ``self``."""
    found = set()
    for inner in ast.walk(node):
        if (
            isinstance(inner, ast.Attribute)
            and isinstance(inner.ctx, ast.Store)
            and isinstance(inner.value, ast.Name)
            and inner.value.id == "self"
        ):
            found.add(inner.attr)
    return found


def test_no_class_holds_the_state_of_several_objects() -> None:
    large = {}
    for package in SOURCES:
        for module, node in nodes(package):
            if (
                isinstance(node, ast.ClassDef)
                and (count := len(attributes(node))) > MOST_ATTRIBUTES
            ):
                large[f"{module}.{node.name}"] = count
    assert set(large) == set(LARGE), large


def assigned(node: ast.AST) -> Iterator[ast.expr]:
    """The names and attributes that ``node`` gives a value."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner


@pytest.mark.parametrize("package", SOURCES)
def test_a_constant_has_one_value(package: str) -> None:
    """What is written in capitals is assigned once, where it is defined."""
    wrong = []
    for module, scope in nodes(package):
        if not isinstance(scope, ast.Module | ast.ClassDef):
            continue
        own = [part for part in scope.body if not isinstance(part, ast.ClassDef)]
        names = [ast.unparse(target) for part in own for target in assigned(part)]
        constants = [name for name in names if re.fullmatch(r"(\w+\.)*_?[A-Z][A-Z0-9_]+", name)]
        twice = {name for name in constants if constants.count(name) > 1 or "." in name}
        wrong += [(module, name) for name in sorted(twice)]
    assert wrong == []
