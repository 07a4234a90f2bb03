# SPDX-License-Identifier: Apache-2.0
"""thicket.applications: lifecycle, settings, and that no application takes the node with it."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from private_network import until

from thicket.applications import api, entrypoints, service
from thicket.applications.api import Application, SettingsError, settings_of
from thicket.applications.service import Applications
from thicket.base.problems import Problems
from thicket.distribution import Node, RemoteError


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thicket.applications.running.PAUSES", (0.05,))
    monkeypatch.setattr(api, "BLOCKED", 60.0)
    monkeypatch.setattr(service, "LOOK", 0.05)


@asynccontextmanager
async def running(
    settings: dict[str, dict[str, Any]] | None = None,
    missing: dict[str, Callable[[], Any]] | None = None,
    **found: Any,
) -> AsyncIterator[tuple[Applications, Node, Problems]]:
    node = Node("a", "c", IPv6Address("::1"), 0, epmd_port=None)
    problems = Problems(lambda: None)
    factories: dict[str, Callable[[], Any]] = {
        name: (lambda kind=kind: kind)  # type: ignore[misc]
        for name, kind in found.items()
    }
    made = Applications(node, settings or {}, problems, factories | (missing or {}))
    task = asyncio.create_task(made.run())
    await node.start()
    try:
        yield made, node, problems
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.stop()
        assert node.exports() == []


def words(problems: Problems, code: str) -> list[str]:
    return [problem["message"] for problem in problems.all() if problem["code"] == code]


async def test_life_of_an_application() -> None:
    events: list[str] = []

    class App(Application):
        async def start(self) -> None:
            events.append("start")
            self.node.export("app.where")(self.where)
            self.node.mailbox("inbox")
            self.node.create_task(self.beside())

        async def beside(self) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                events.append("beside ended")

        async def run(self) -> None:
            events.append("run")
            async for message in self.node.subscribe("group"):
                events.append(message)

        async def where(self) -> str:
            return self.node.name

        async def stop(self) -> None:
            events.append("stop")

        def health(self) -> str | None:
            return "not well" if "sick" in events else None

    async with running(app=App) as (made, node, problems):
        await until(lambda: events == ["start", "run"], "it runs")
        assert made.status() == [{"name": "app", "state": "running", "starts": 1}]
        assert await node.call(node.name, "app.where") == node.name
        await until(lambda: node.members("group"), "it listens")
        assert await node.publish("group", "sick") == 1
        await until(lambda: words(problems, "unwell") == ["not well"], "its health is told")
        events.remove("sick")
        await until(lambda: not words(problems, "unwell"), "it is well again")
    assert events[2:] == ["stop", "beside ended"]
    assert node.members("group") == []
    assert node.whereis("inbox") is None


async def test_one_that_raises_or_ends_is_started_again() -> None:
    class Raises(Application):
        async def start(self) -> None:
            self.node.export("raises.f")(lambda: 1)

        async def run(self) -> None:
            raise ValueError("no sensor")

    class Ends(Application):
        async def run(self) -> None:
            return

    class Beside(Application):
        async def start(self) -> None:
            async def fails() -> None:
                raise OSError("beside")

            self.node.create_task(fails())

    class Exits(Application):
        async def run(self) -> None:
            raise SystemExit(3)

    class Well(Application):
        pass

    def missing() -> Any:
        raise ImportError("no module named x")

    async with running(
        missing={"missing": missing},
        raises=Raises,
        ends=Ends,
        beside=Beside,
        exits=Exits,
        well=Well,
    ) as (
        made,
        _,
        problems,
    ):
        await until(
            lambda: all(a["starts"] > 2 for a in made.status() if a["name"] != "well"), "again"
        )
        states = {status["name"]: status for status in made.status()}
        assert states["well"] == {"name": "well", "state": "running", "starts": 1}
        found = {problem["part"]: problem["message"] for problem in problems.all()}
        assert "ValueError: no sensor" in found["application raises"]
        assert "started again in 0.05 s" in found["application raises"]
        assert "ended by itself" in found["application ends"]
        assert "it called exit(3)" in found["application exits"]
        assert "OSError: beside" in found["application beside"]
        assert "ImportError" in found["application missing"]
        assert "application well" not in found
        assert {problem["severity"] for problem in problems.all()} == {"warning"}
    assert problems.all() == []


async def test_an_import_may_take_long_and_the_node_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As from a slow card; an alarm in the middle would begin it anew for ever."""
    monkeypatch.setattr(api, "BLOCKED", 1.0)
    monkeypatch.setattr("thicket.applications.running.LOADING", 2.0)
    arrived = threading.Event()

    class Quiet(Application):
        async def run(self) -> None:
            await asyncio.Event().wait()

    def factory() -> type[Application]:
        assert arrived.wait(PATIENCE)
        return Quiet

    problems = Problems(lambda: None)
    node = Node("a", "c", IPv6Address("::1"), 0, epmd_port=None)
    made = Applications(node, {}, problems, {"slow": factory})
    task = asyncio.create_task(made.run())
    await node.start()
    try:
        await until(lambda: words(problems, "loading"), "it is said that it takes long")
        assert f"at {threading.__file__}" in words(problems, "loading")[0]
        assert made.status()[0]["state"] == "starting"
        arrived.set()
        await until(lambda: made.status()[0]["state"] == "running", "it runs")
        assert made.status()[0]["starts"] == 1
        assert problems.all() == []
    finally:
        arrived.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.stop()


@pytest.mark.parametrize("kind", [StopIteration, SystemExit, KeyboardInterrupt, ImportError])
async def test_whatever_an_import_raises_is_reported(kind: type[BaseException]) -> None:
    def factory() -> type[Application]:
        raise kind("not today")

    problems = Problems(lambda: None)
    node = Node("a", "c", IPv6Address("::1"), 0, epmd_port=None)
    made = Applications(node, {}, problems, {"broken": factory})
    task = asyncio.create_task(made.run())
    await node.start()
    try:
        await until(lambda: words(problems, "failed"), "it is said")
        assert "not today" in words(problems, "failed")[0]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await node.stop()


async def test_one_that_blocks_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "BLOCKED", 1.0)
    blocks = ["loop", "sleep"]

    class Blocks(Application):
        async def run(self) -> None:
            while True:
                await asyncio.sleep(0.01)
                if not blocks:
                    continue
                if blocks.pop() == "sleep":
                    time.sleep(3600)  # noqa: ASYNC251
                while True:
                    try:
                        while True:
                            pass
                    except Exception:
                        pass

    class Exports(Application):
        async def start(self) -> None:
            self.node.export("exports.block")(lambda: time.sleep(3600))
            self.node.export("exports.exit")(sys.exit)

    async with running(blocks=Blocks, exports=Exports) as (made, node, problems):

        def by_name(name: str) -> dict[str, Any]:
            return next(a for a in made.status() if a["name"] == name)

        await until(lambda: by_name("blocks")["starts"] == 3, "interrupted twice")
        reported = words(problems, "failed")
        assert len(reported) == 1
        assert f"kept the node from running for 1 s, at {__file__}" in reported[0]
        assert by_name("exports")["starts"] == 1
        # In a function that another node calls.
        with pytest.raises(RemoteError, match="SystemExit: 3"):
            await node.call(node.name, "exports.exit", 3)
        with pytest.raises(RemoteError):
            await node.call(node.name, "exports.block")
        await until(lambda: by_name("exports")["starts"] == 2, "its application starts again")
        await until(lambda: by_name("exports")["state"] == "running", "and runs")


async def test_one_that_leaks_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "GROWTH", 16)

    class Leaks(Application):
        async def start(self) -> None:
            self.kept: list[bytes] = []

        async def run(self) -> None:
            while True:
                await asyncio.sleep(0.005)
                self.kept.append(bytes(range(256)) * 4096)

    class Modest(Application):
        async def start(self) -> None:
            self.kept = list(range(1000))

    async with running(modest=Modest, leaks=Leaks) as (made, _, problems):
        await until(lambda: {a["name"]: a["starts"] for a in made.status()}["leaks"] > 1, "again")
        assert {a["name"]: a["starts"] for a in made.status()}["modest"] == 1
        assert "has grown by" in words(problems, "failed")[0]


@dataclass
class Settings:
    sensor: str
    interval: float = 10.0
    names: list[str] | None = None

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ValueError("interval: must be greater than 0")


def test_settings_are_checked() -> None:
    assert settings_of(Settings, {"sensor": "x", "interval": 3}) == Settings("x", 3.0)
    assert settings_of(None, {"enabled": True}) is None
    for table, told in (
        ({}, "sensor is missing"),
        ({"sensor": 1}, "sensor: text"),
        ({"sensor": "x", "interval": 0}, "greater than 0"),
        ({"sensor": "x", "names": [1]}, "names: "),
        ({"sensor": "x", "speed": 1}, "speed is not known; known are: sensor, interval, names"),
    ):
        with pytest.raises(SettingsError, match=told):
            settings_of(Settings, table)
    with pytest.raises(SettingsError, match="no settings"):
        settings_of(None, {"x": 1})


async def test_settings_are_followed() -> None:
    seen: list[Any] = []
    kind = Settings

    class App(Application):
        Settings = kind

        async def run(self) -> None:
            seen.append(self.settings)
            await asyncio.Event().wait()

    async with running({"other": {"enabled": False}}, app=App, other=App) as (made, _, problems):
        await until(lambda: words(problems, "settings"), "the missing key is told")
        assert words(problems, "settings") == ["[application.app] sensor is missing"]
        assert [a["state"] for a in made.status()] == ["unusable"]
        made.settings_changed({"app": {"sensor": "x"}, "other": {"sensor": "y"}})
        await until(lambda: len(seen) == 2, "both run")
        assert not problems.all()
        made.settings_changed({"app": {"sensor": "z"}, "other": {"sensor": "y"}})
        await until(lambda: len(seen) == 3, "the changed one runs anew")
        assert {s.sensor for s in seen} == {"x", "y", "z"}
        made.settings_changed({"app": {"enabled": False}, "other": {"sensor": "y"}})
        await until(lambda: [a["name"] for a in made.status()] == ["other"], "one has ended")
        assert not problems.all()


def test_entry_points_are_found(tmp_path: Path) -> None:
    info = tmp_path / "some-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(
        "[console_scripts]\nx = a:b\n\n[thicket.applications]\n# one\none = pathlib:Path.home\n"
        "two=json : loads [extra]\nthree = nowhere.at.all:x\n"
    )
    (tmp_path / "broken-1.0.dist-info").mkdir()
    found = entrypoints.find("thicket.applications", [str(tmp_path / "not-there"), str(tmp_path)])
    assert sorted(found) == ["one", "three", "two"]
    assert found["one"]() == Path.home
    import json

    assert found["two"]() is json.loads
    with pytest.raises(ImportError):
        found["three"]()
    assert "thicket.applications" not in entrypoints.find("console_scripts", [str(tmp_path)])
