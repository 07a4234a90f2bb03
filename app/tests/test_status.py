# SPDX-License-Identifier: Apache-2.0
"""thicket.status: problems, milestones that outlive the daemon, and the document on disk."""

import asyncio
import json
import os
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from patience import PATIENCE

from thicket.base.problems import Problems
from thicket.base.process import boottime, memory_kib
from thicket.daemon.document import Writer
from thicket.daemon.milestones import MILESTONES, Times


class TestProblems:
    def test_come_and_go_with_their_time(self) -> None:
        changes: list[None] = []
        problems = Problems(lambda: changes.append(None))
        problems.report("radio", "no-radio", "no radio found")
        (first,) = problems.all()
        problems.report("radio", "no-radio", "no radio found")
        assert len(changes) == 1
        problems.report("radio", "no-radio", "still no radio")
        (second,) = problems.all()
        assert second["since"] == first["since"]
        assert second["message"] == "still no radio"
        problems.clear("radio", "no-radio")
        assert problems.all() == []
        assert len(changes) == 3

    def test_errors_first(self) -> None:
        problems = Problems(lambda: None)
        problems.report("identity", "no-chip", "no chip", "warning")
        problems.report("radio", "x", "broken")
        problems.sources["cluster"] = (
            lambda: [{"part": "cluster", "code": "c", "message": "m", "since": 0.0}],
            "warning",
        )
        assert [p["part"] for p in problems.all()] == ["radio", "cluster", "identity"]

    def test_subjects_keep_problems_of_a_code_apart(self) -> None:
        problems = Problems(lambda: None)
        for n in range(3):
            problems.report("configuration", "invalid", f"fault {n}", "warning", str(n))
        assert len(problems.all()) == 3
        problems.clear("configuration", "invalid")
        assert problems.all() == []


class TestTimes:
    def test_are_kept_for_the_next_daemon_of_this_boot(self, tmp_path: Path) -> None:
        path = str(tmp_path / "times.json")
        times = Times(path)
        times.load()
        assert times.reached("daemon")
        assert not times.reached("daemon")
        again = Times(path)
        again.load()
        assert again.values == times.values
        assert again.restarts == 1
        assert again.reached("identity")
        third = Times(path)
        third.load()
        assert third.restarts == 2
        assert third.values["identity"] is not None

    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", "null", "{}", "{", '{"daemon": "x"}', "[[[[",
            json.dumps({**dict.fromkeys(MILESTONES, 9e9), "restarts": 1}),
            json.dumps({**dict.fromkeys(MILESTONES, -1), "restarts": 1}),
            json.dumps({**dict.fromkeys(MILESTONES), "restarts": None}),
        ],
    )  # fmt: skip
    def test_a_spoilt_file_is_ignored(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "times.json"
        path.write_text(text)
        times = Times(str(path))
        times.load()
        assert times.restarts == 0
        assert set(times.values.values()) == {None}

    def test_an_unwritable_place_costs_only_the_times(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        times = Times(str(tmp_path / "file" / "times.json"))
        assert times.reached("daemon")


@pytest.mark.virtual_time
class TestWriter:
    async def test_one_line_whole_at_any_time_and_at_most_two_a_second(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "run" / "status.json"
        count = 0

        def document() -> dict[str, Any]:
            nonlocal count
            count += 1
            return {"n": count, "filler": "x" * 20000}

        async def refresh() -> None:
            pass

        writer = Writer(str(path), document, refresh, 60.0)
        task = asyncio.create_task(writer.run())
        started = monotonic()
        seen: set[int] = set()
        while monotonic() < started + 1.3:
            writer.changed()
            await asyncio.sleep(0.01)
            if path.exists():
                text = path.read_text()
                assert text.count("\n") == 1
                assert text.endswith("\n")
                seen.add(json.loads(text)["n"])
        task.cancel()
        assert 2 <= len(seen) <= 4
        assert writer.written == count

    async def test_refreshes_at_its_interval(self, tmp_path: Path) -> None:
        refreshed = asyncio.Event()
        times = 0

        async def refresh() -> None:
            nonlocal times
            times += 1
            if times == 3:
                refreshed.set()

        writer = Writer(str(tmp_path / "s.json"), dict, refresh, 0.05)
        task = asyncio.create_task(writer.run())
        await asyncio.wait_for(refreshed.wait(), PATIENCE)
        task.cancel()

    async def test_nothing_wakes_it_between_two_refreshes(self, tmp_path: Path) -> None:
        """A node that has settled sleeps."""
        loop = asyncio.get_running_loop()
        timers = 0

        async def refresh() -> None:
            pass

        writer = Writer(str(tmp_path / "s.json"), dict, refresh, 5.0)
        task = asyncio.create_task(writer.run())
        await asyncio.sleep(12.0)
        call_at = loop.call_at

        def counted(*arguments: Any, **named: Any) -> asyncio.TimerHandle:
            nonlocal timers
            timers += 1
            return call_at(*arguments, **named)

        with mock.patch.object(loop, "call_at", counted):
            await asyncio.sleep(50.0)
        task.cancel()
        assert timers <= 1 + 10, "one for each refresh, and that of this test"

    async def test_what_nobody_reads_is_written_once_a_minute(self, tmp_path: Path) -> None:
        path = tmp_path / "s.json"
        refreshed = 0

        async def refresh() -> None:
            nonlocal refreshed
            refreshed += 1

        writer = Writer(str(path), dict, refresh, 5.0)
        task = asyncio.create_task(writer.run())
        await asyncio.sleep(57.0)
        assert (refreshed, writer.written) == (12, 1), "what the refresh looks after goes on"
        await asyncio.sleep(5.0)
        assert writer.written == 2
        task.cancel()

    async def test_while_it_is_read_it_is_written_at_its_interval(self, tmp_path: Path) -> None:
        path = tmp_path / "s.json"

        async def refresh() -> None:
            pass

        writer = Writer(str(path), dict, refresh, 5.0)
        task = asyncio.create_task(writer.run())
        await asyncio.sleep(1.0)
        for count in range(1, 5):
            assert writer.written == count
            path.read_text()
            await asyncio.sleep(5.0)
        assert writer.written == 5
        await asyncio.sleep(30.0)
        task.cancel()
        assert writer.written == 5, "after the last reader it is left alone"

    async def test_without_times_of_access_it_counts_as_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def refresh() -> None:
            pass

        writer = Writer(str(tmp_path / "s.json"), dict, refresh, 5.0)
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_NOATIME))
        task = asyncio.create_task(writer.run())
        await asyncio.sleep(12.0)
        task.cancel()
        assert writer.written == 3

    async def test_what_could_not_be_written_is_tried_again_at_every_refresh(
        self, tmp_path: Path
    ) -> None:
        path = tmp_path / "run" / "status.json"

        async def refresh() -> None:
            pass

        writer = Writer(str(path), dict, refresh, 5.0)
        task = asyncio.create_task(writer.run())
        await asyncio.sleep(1.0)
        (path.parent / "status.json.new").mkdir()
        writer.changed()
        await asyncio.sleep(1.0)
        assert writer.written == 1
        (path.parent / "status.json.new").rmdir()
        await asyncio.sleep(5.0)
        task.cancel()
        assert writer.written == 2

    async def test_a_change_in_the_gap_is_written_at_its_end(self, tmp_path: Path) -> None:
        written: list[float] = []
        loop = asyncio.get_running_loop()

        def document() -> dict[str, Any]:
            written.append(loop.time() - began)
            return {}

        async def refresh() -> None:
            pass

        began = loop.time()
        writer = Writer(str(tmp_path / "s.json"), document, refresh, 5.0)
        task = asyncio.create_task(writer.run())
        await asyncio.sleep(0.1)
        writer.changed()
        await asyncio.sleep(1.9)
        writer.changed()
        await asyncio.sleep(2.5)
        task.cancel()
        assert [round(when, 1) for when in written] == [0.0, 0.5, 2.0]

    async def test_changes_that_nobody_reads_are_written_less_and_less_often(
        self, tmp_path: Path
    ) -> None:
        loop = asyncio.get_running_loop()
        path = tmp_path / "s.json"
        written: list[float] = []

        def document() -> dict[str, Any]:
            written.append(round(loop.time() - began, 1))
            return {}

        async def refresh() -> None:
            pass

        async def change(seconds: float, read_every: float = 1e9, every: float = 0.1) -> None:
            """Change something again and again, and read the document from time to time."""
            end, read = loop.time() + seconds, loop.time() + read_every
            while loop.time() < end:
                writer.changed()
                await asyncio.sleep(every)
                if loop.time() >= read:
                    read = loop.time() + read_every
                    path.read_text()

        began = loop.time()
        writer = Writer(str(path), document, refresh, 300.0)
        task = asyncio.create_task(writer.run())
        await change(9.8)
        assert written == [0.0, 0.5, 1.5, 3.5, 5.5, 7.5, 9.5]
        written.clear()
        await change(20.0, read_every=2.0)
        assert len(written) <= 11, "one for each reading"
        written.clear()
        await change(20.0, read_every=0.1)
        assert 38 <= len(written) <= 41, "somebody sees every second half"
        written.clear()
        await change(20.0, every=1.0)
        assert len(written) <= 12, "nor are changes that come one by one"
        await asyncio.sleep(5.0)
        written.clear()
        writer.changed()
        await asyncio.sleep(0.1)
        assert len(written) == 1, "one change after a quiet time is written at once"
        task.cancel()

    def test_a_full_disk_does_not_end_it(self, tmp_path: Path) -> None:
        async def refresh() -> None:
            pass

        (tmp_path / "file").write_text("")
        writer = Writer(str(tmp_path / "file" / "status.json"), dict, refresh, 5.0)
        writer.write()
        writer.write()
        assert writer.written == 0


def test_figures_of_this_process() -> None:
    assert 1000 < memory_kib() < 10_000_000
    assert boottime() > 0
