# SPDX-License-Identifier: Apache-2.0
"""The examples that people copy run as they stand: those of docs/cluster.md and the application."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import tomllib
import types
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.applications.entrypoints import find
from thicket.applications.service import Applications
from thicket.base.problems import Problems
from thicket.distribution import Node

TOP = Path(__file__).parents[2]
EXAMPLE = TOP / "examples" / "readings"


def examples(file: Path) -> list[tuple[int, str]]:
    """Return the Python blocks of a document, with their lines."""
    text = file.read_text(encoding="utf-8")
    return [
        (text[: match.start(1)].count("\n"), match[1])
        for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


@asynccontextmanager
async def a_node(network: Network, name: str, number: int) -> AsyncIterator[Node]:
    address, mapper = network.address(number), network.epmd_port
    node = Node(name, "secret", address, 0, epmd_port=mapper, setup_time=PATIENCE)
    await node.start()
    try:
        await until(
            lambda: (
                node.host in node.statistics()["epmd"]["served"]
                or node.statistics()["epmd"]["registered_at"]
            ),
            "it can be found",
        )
        yield node
    finally:
        await node.stop()


@in_private_network
async def test_the_examples_of_the_guide(network: Network) -> None:
    file = TOP / "docs" / "cluster.md"
    blocks = examples(file)
    assert len(blocks) >= 7
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:
        spaces: list[dict[str, Any]] = [
            {"node": node, "peer": peer.name, "__name__": "sensors"}
            for node, peer in ((b, a), (a, b))
        ]
        # Both run the exports of the whole guide first, as the guide says of the peer.
        for line, block in blocks:
            tree = ast.parse(block, str(file))
            ast.increment_lineno(tree, line)
            for first, space in zip((True, False), spaces, strict=True):
                if first:  # the peer: definitions only
                    tree.body, kept = (
                        [
                            item
                            for item in tree.body
                            if isinstance(item, (ast.Import, ast.ImportFrom))
                            or (isinstance(item, ast.AsyncFunctionDef) and item.decorator_list)
                        ],
                        tree.body,
                    )
                else:
                    tree.body = kept
                code = compile(tree, str(file), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                done = eval(code, space)
                if inspect.isawaitable(done):
                    await asyncio.wait_for(done, PATIENCE)
        assert a.exports() == b.exports() != []


@in_private_network
async def test_the_example_application(network: Network) -> None:
    """On three nodes: everybody knows all readings, all agree on who leads, also when it goes."""
    sys.path.insert(0, str(EXAMPLE))
    from thicket_readings import Readings

    settings = {"readings": {"interval": 0.05}}
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        running: list[asyncio.Task[None]] = []
        problems = Problems(lambda: None)
        for number, name in enumerate(("a", "b", "c"), 1):
            node = await stack.enter_async_context(a_node(network, name, number))
            made = Applications(node, settings, problems, {"readings": lambda: Readings})
            task = asyncio.create_task(made.run())
            stack.callback(task.cancel)
            nodes.append(node)
            running.append(task)
        a, b, c = nodes
        await b.connect(a.name)
        await c.connect(a.name)
        await c.connect(b.name)

        async def all_say(function: str, wanted: Any, of: list[Node]) -> None:
            async def agree() -> bool:
                said = [await c.call(node.name, function) for node in of]
                found = [sorted(answer) if isinstance(answer, dict) else answer for answer in said]
                return found == [wanted] * len(of)

            async with asyncio.timeout(PATIENCE):
                while not await agree():  # noqa: ASYNC110  # what others will say tells nobody
                    await asyncio.sleep(0.02)

        await all_say("readings.latest", sorted(node.name for node in nodes), nodes)
        await all_say("readings.leader", a.name, nodes)
        summary: dict[str, Any] = {}
        async with asyncio.timeout(PATIENCE):
            while summary.get("nodes") != 3:
                summary = await c.call(b.name, "readings.summary")
                await asyncio.sleep(0.02)
        assert summary["leader"] == a.name
        assert 15 < summary["mean"] < 27
        # The leader goes: its application first, as in the daemon.
        running[0].cancel()
        await asyncio.wait({running[0]})
        await a.stop()
        await all_say("readings.leader", b.name, [b, c])
        await all_say("readings.latest", sorted((b.name, c.name)), [b, c])
        assert not problems.all()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def test_the_example_is_an_application(tmp_path: Path) -> None:
    """Its entry point names a class that exists, under the name of its settings."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["thicket.applications"]
    file = tmp_path / "readings.dist-info" / "entry_points.txt"
    file.parent.mkdir()
    file.write_text(
        "[thicket.applications]\n" + "\n".join(f"{name} = {to}" for name, to in points.items())
    )
    found = find("thicket.applications", [str(tmp_path)])
    assert list(found) == ["readings"]
    sys.path.insert(0, str(EXAMPLE))
    assert found["readings"]().__name__ == "Readings"


def projects() -> dict[str, dict[str, Any]]:
    """The Python projects of the tree, by their files."""
    files = [*TOP.glob("*/pyproject.toml"), *TOP.glob("*/*/pyproject.toml")]
    read = {str(f.relative_to(TOP)): tomllib.loads(f.read_text(encoding="utf-8")) for f in files}
    return {name: made for name, made in read.items() if "project" in made}


def test_no_project_asks_an_index_for_a_package_of_ours() -> None:
    """Whoever owns such a name there could put a program onto an engineer's machine."""
    made = projects()
    assert {"app/pyproject.toml", "examples/readings/pyproject.toml"} <= made.keys()
    ours = {"thicket", "meshlab", "firmware"} | {p["project"]["name"] for p in made.values()}
    for file, project in made.items():
        asked = [*project["build-system"]["requires"], *project["project"].get("dependencies", [])]
        for extra in project["project"].get("optional-dependencies", {}).values():
            asked += extra
        names = {re.split(r"[^A-Za-z0-9._-]", need)[0].lower().replace("_", "-") for need in asked}
        assert not names & ours, file


def test_the_distribution_has_a_name_of_its_own_and_the_import_the_short_one() -> None:
    project = projects()["app/pyproject.toml"]
    assert project["project"]["name"] == "thicket-node"
    assert project["project"]["scripts"]["thicketd"].startswith("thicket.")
    assert (TOP / "app/src/thicket/__init__.py").is_file()


@in_private_network
async def test_the_application_of_the_walk(network: Network) -> None:
    """docs/first-application.md: both nodes count the greetings of both."""
    guide = TOP / "docs" / "first-application.md"
    ((line, code),) = examples(guide)
    tree = ast.increment_lineno(ast.parse(code, str(guide)), line)
    hello = types.ModuleType("hello")
    sys.modules["hello"] = hello  # dataclasses look their module up
    exec(compile(tree, str(guide), "exec"), vars(hello))
    text = re.search(r"^```toml\n(.*?)^```$", guide.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None
    (entry,) = tomllib.loads(text[1])["project"]["entry-points"]["thicket.applications"].values()
    made = getattr(sys.modules[entry.partition(":")[0]], entry.partition(":")[2])
    async with AsyncExitStack() as stack:
        nodes: list[Node] = []
        for number, name in enumerate(("a", "b"), 1):
            node = await stack.enter_async_context(a_node(network, name, number))
            runs = Applications(
                node, {"hello": {"every": 0.05}}, Problems(lambda: None), {"hello": lambda: made}
            )
            stack.callback(asyncio.create_task(runs.run()).cancel)
            nodes.append(node)
        a, b = nodes
        await b.connect(a.name)
        await until(lambda: "hello.heard" in b.exports(), "it runs")
        heard: dict[str, int] = {}
        async with asyncio.timeout(PATIENCE):
            while set(heard) != {a.name, b.name}:
                heard = await a.call(b.name, "hello.heard")
                await asyncio.sleep(0.05)
