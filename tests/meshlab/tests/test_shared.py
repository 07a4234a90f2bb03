# SPDX-License-Identifier: Apache-2.0
"""Things that the workers of a test run share."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from pathlib import Path

import pytest
from patience import PATIENCE

from meshlab.lab import shared


def _worker(directory: Path, barrier: object, asynchronous: bool) -> None:
    """Ask for the thing at the same time as the others; note who made it and what was there."""

    def make(path: Path) -> None:
        (directory / f"made-{os.getpid()}").touch()
        path.mkdir()
        for number in range(200):
            (path / str(number)).write_text("whole")

    async def make_async(path: Path) -> None:
        make(path)

    barrier.wait(60)  # type: ignore[attr-defined]
    if asynchronous:
        found = asyncio.run(shared.once_async(directory, "thing", make_async))
    else:
        found = shared.once(directory, "thing", make)
    if len(list(found.iterdir())) == 200:
        (directory / f"whole-{os.getpid()}").touch()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_several_workers_make_a_thing_once_and_all_see_it_whole(
    tmp_path: Path, asynchronous: bool
) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [
        context.Process(target=_worker, args=(tmp_path, barrier, asynchronous)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PATIENCE)
        assert worker.exitcode == 0
    assert len(list(tmp_path.glob("made-*"))) == 1
    assert len(list(tmp_path.glob("whole-*"))) == 3


def test_what_failed_is_tried_again_from_the_start(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        shared.once(tmp_path, "thing", fail)
    assert not (tmp_path / "thing").exists()
    found = shared.once(tmp_path, "thing", lambda path: path.mkdir())
    assert list(found.iterdir()) == []


class _Temp:
    def __init__(self, base: Path) -> None:
        self.base = base

    def getbasetemp(self) -> Path:
        return self.base


def test_the_workers_of_a_run_see_one_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert shared.run_directory(_Temp(tmp_path / "popen-gw0")) == tmp_path
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    assert shared.run_directory(_Temp(tmp_path)) == tmp_path
