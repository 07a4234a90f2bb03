# SPDX-License-Identifier: Apache-2.0
"""thicket.upkeep.service: what the node does about itself, with disks that do not answer."""

import asyncio
import itertools
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from thicket.base.fields import Finding
from thicket.base.files import write_atomically
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.load import Loaded
from thicket.config.schema import Settings
from thicket.device import factory_reset
from thicket.upkeep import report, service
from thicket.upkeep.service import Upkeep

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGm3S2ZKwQ0q8k7xZ2xk9y3m0m6m8nq9cQb4m2Yx5G1c a"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("START", 0.0), ("FIRST_REPORT", 0.05), ("REPORT_GAP", 0.2), ("LOOK", 0.02), ("HANGS", 60),
    ):  # fmt: skip
        monkeypatch.setattr(service, name, value)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, str]]:
    """The reports that were written, with the time."""
    found: list[tuple[float, str]] = []

    def write(paths: Paths, text: str) -> bool:
        found.append((time.monotonic(), text))
        return True

    monkeypatch.setattr(report, "write", write)
    monkeypatch.setattr(report, "compose", lambda doc: str(doc["text"]))
    return found


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(str(tmp_path))
    for folder in ("data/thicket", "run/thicket", "proc", "etc", "usr/sbin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "etc/inittab").touch()
    (tmp_path / "usr/sbin/dropbear").touch()
    (tmp_path / "run/thicket/data").write_text("clean \n")
    (tmp_path / "run/thicket/last-run").write_text("running\n")
    return made


class Running:
    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.problems = Problems(lambda: None)
        self.loaded = Loaded(Settings(), "file", [], None, False)
        self.document = {"text": "first"}
        self.part = Upkeep(
            paths,
            self.problems,
            lambda: self.loaded,
            lambda: self.document,
            asyncio.Event(),
            software=("1", None),
        )
        self.task = asyncio.create_task(self.part.run())

    def settings(self, **access: object) -> None:
        self.loaded.settings = Settings({"access": access})
        self.part.settings_changed()

    def codes(self) -> set[str]:
        return {str(problem["code"]) for problem in self.problems.all()}

    async def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert not self.task.done(), self.task
            assert time.monotonic() < deadline, what
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(paths: Paths) -> AsyncIterator[Running]:
    made = Running(paths)
    try:
        yield made
    finally:
        made.task.cancel()
        await asyncio.wait({made.task}, timeout=PATIENCE)


async def test_the_last_restart_is_found_out_and_kept(paths: Paths, reports: Any) -> None:
    async with running(paths) as run:
        await run.until(lambda: run.part.last_restart, "the reason is known")
        assert run.part.last_restart is not None
        assert run.part.last_restart["reason"] == "power"
        assert (Path(paths.data) / "thicket/restarts.jsonl").exists()
        assert run.part.data == {"state": "clean", "message": ""}
        assert run.codes() == set()
    # the next daemon of this boot knows it at once
    async with running(paths) as run:
        assert run.part.last_restart is not None


async def test_a_factory_reset_and_its_button_are_told(paths: Paths, reports: Any) -> None:
    factory_reset.ask(paths, "command")
    factory_reset.run(paths)
    (Path(paths.run) / "reset-failed").write_text("the card is worn\n")
    async with running(paths) as run:
        run.loaded.settings = Settings({"reset": {"gpio": 17}})
        run.part.settings_changed()
        await run.until(lambda: run.part.factory_reset, "the reset is known")
        await run.until(lambda: len(run.codes()) == 2, "button and reset are told")
        assert run.codes() == {"not-done", "button"}
        assert (Path(paths.data) / "reset/button").read_text() == "17 low spent\n"
        # it is looked at again as long as something is wrong
        button = Path(paths.data) / "reset/button"
        button.unlink()
        await run.until(button.exists, "the button is looked at again")
        run.loaded.settings = Settings()
        run.part.settings_changed()
        await run.until(lambda: run.codes() == {"not-done"}, "there is no button any more")
        assert not (Path(paths.data) / "reset/button").exists()
        # there is room for the request of the next one
        assert (Path(paths.data) / "reset/room").stat().st_size > 0


async def test_the_time_is_saved(paths: Paths, reports: Any) -> None:
    clock = Path(paths.data) / "thicket/clock"
    clock.touch()
    os.utime(clock, (0, 0))
    begin = time.time() - 1  # the file system's clock is a coarse one
    async with running(paths) as run:
        await run.until(lambda: clock.stat().st_mtime >= begin, "the time is saved")


@pytest.mark.parametrize(("state", "code"), [("ram", "ram"), ("readonly", "readonly")])
async def test_data_that_does_not_last_is_a_problem(
    state: str, code: str, paths: Paths, reports: Any
) -> None:
    Path(paths.run + "/data").write_text(f"{state} no device\n")
    async with running(paths) as run:
        await run.until(lambda: code in run.codes(), "it is told")


class TestReport:
    async def test_news_only_and_not_often(
        self, paths: Paths, reports: list[tuple[float, str]]
    ) -> None:
        async with running(paths) as run:
            await run.until(lambda: reports, "the first report")
            await asyncio.sleep(0.3)
            assert [text for _, text in reports] == ["first"]
            begin = time.monotonic()
            for number in range(40):
                run.document = {"text": f"number {number}"}
                await asyncio.sleep(0.02)
            await run.until(lambda: reports[-1][1] == "number 39", "the last one is written")
        assert len(reports) <= 2 + (reports[-1][0] - begin) / service.REPORT_GAP
        gaps = [b[0] - a[0] for a, b in itertools.pairwise(reports)]
        assert min(gaps) >= service.REPORT_GAP * 0.9

    async def test_the_first_does_not_wait_for_the_next_look(
        self, paths: Paths, reports: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "LOOK", 3600.0)
        async with running(paths) as run:
            await run.until(lambda: reports, "the first report")

    async def test_the_first_is_not_late_where_the_look_before_it_took_long(
        self, paths: Paths, reports: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "LOOK", 3600.0)
        monkeypatch.setattr(service, "HANGS", 60.0)
        monkeypatch.setattr(service, "save_clock", lambda paths: time.sleep(0.2))
        async with running(paths) as run:
            await run.until(lambda: reports, "the first report")

    async def test_one_that_cannot_be_written_is_a_problem_and_tried_again(
        self, paths: Paths, reports: list[tuple[float, str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = report.write

        def fail(paths: Paths, text: str) -> bool:
            raise report.ReportError("report.txt cannot be written: no room")

        monkeypatch.setattr(report, "write", fail)
        async with running(paths) as run:
            await run.until(lambda: "not-written" in run.codes(), "it is told")
            monkeypatch.setattr(report, "write", good)
            run.document = {"text": "second"}
            await run.until(lambda: "not-written" not in run.codes(), "it is over")
            assert reports[-1][1] == "second"


class TestAccess:
    async def test_follows_the_settings(self, paths: Paths, reports: Any) -> None:
        kept = Path(paths.data) / "ssh/authorized_keys"
        async with running(paths) as run:
            run.settings(ssh_keys=KEY)
            await run.until(kept.exists, "the key is kept")
            run.settings()
            await run.until(lambda: not kept.exists(), "the key is gone")

    async def test_a_damaged_file_closes_nothing(self, paths: Paths, reports: Any) -> None:
        kept = Path(paths.data) / "ssh/authorized_keys"
        kept.parent.mkdir()
        kept.write_text(KEY + "\n")
        async with running(paths) as run:
            run.loaded = Loaded(
                Settings(), "defaults", [Finding("f", "", "", "is damaged")], None, False
            )
            run.part.settings_changed()
            # Of what is done after a change, the report is the last.
            await run.until(lambda: reports, "the damaged file was followed")
            assert kept.read_text() == KEY + "\n"
            run.loaded = Loaded(Settings(), "file", [], None, False)
            run.part.settings_changed()
            await run.until(lambda: not kept.exists(), "a right file without keys closes it")

    async def test_problems_come_and_go(self, paths: Paths, reports: Any) -> None:
        server = Path(paths.root) / "usr/sbin/dropbear"
        server.unlink()
        async with running(paths) as run:
            run.settings(ssh_keys=KEY)
            await run.until(lambda: "ssh-missing" in run.codes(), "it is told")
            server.touch()
            run.settings(ssh_keys=KEY)
            await run.until(lambda: "ssh-missing" not in run.codes(), "it is over")


async def test_a_card_that_does_not_answer_holds_up_nothing(
    paths: Paths, reports: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "HANGS", 0.3)
    release = threading.Event()
    held = write_atomically

    def hang(*arguments: Any, **options: Any) -> None:
        release.wait()
        held(*arguments, **options)

    monkeypatch.setattr("thicket.upkeep.last_run.write_atomically", hang)
    try:
        async with running(paths) as run:
            await run.until(lambda: "hangs" in run.codes(), "it is told")
            assert not run.task.done()
        assert run.task.done(), "it ends while the card still hangs"
    finally:
        release.set()
