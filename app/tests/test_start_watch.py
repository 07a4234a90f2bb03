# SPDX-License-Identifier: Apache-2.0
"""thicket.device.start_watch: what a start may go on with, on real processes and disks made up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

from thicket.device.start_watch import PASSES, STALLED, Disks, StartWatch, disks, processes

SIZE = 1000


class Start:
    """A shell that waits for a program, as rcS does, one disk, and a clock."""

    def __init__(self, path: Path) -> None:
        self.now = 0.0
        self.fed = 0
        self.said: list[str] = []
        self.block = path
        (path / "mmcblk0").mkdir()
        (path / "mmcblk0/size").write_text(f"{SIZE}\n")
        self.disk(0, 0)
        # what was left in the background is older than what the shell waits for
        self.shell = subprocess.Popen(
            ["/bin/sh", "-c", "sleep 1001 & sh -c 'sleep 1002; true'; echo ended $?; read line"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.watch = StartWatch(
            self.shell.pid,
            feed=self._feed,
            say=self.said.append,
            block=str(path),
            clock=lambda: self.now,
        )
        while len(self.children()) < 2 or not self.grandchildren():
            assert self.shell.poll() is None

    def _feed(self) -> None:
        self.fed += 1

    def children(self) -> list[int]:
        return [p.pid for p in processes("/proc").get(self.shell.pid, [])]

    def grandchildren(self) -> list[int]:
        table = processes("/proc")
        return [p.pid for child in self.children() for p in table.get(child, [])]

    def disk(self, requests: int, moved: int) -> None:
        text = f"{requests} 0 {moved} 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
        (self.block / "mmcblk0/stat").write_text(text)

    def look(self, now: float) -> None:
        self.now = now
        self.watch.look()

    def ended(self) -> str:
        """Wait until the program has ended; what the shell says about it."""
        assert self.shell.stdout is not None
        return self.shell.stdout.readline().strip()

    def end(self) -> None:
        os.killpg(self.shell.pid, signal.SIGKILL)
        self.shell.communicate(timeout=PATIENCE)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = Start(tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_a_program_without_progress_is_killed_with_what_it_started(start: Start) -> None:
    start.look(0)
    both = start.grandchildren()
    start.look(STALLED - 1)
    assert start.fed == 2
    assert not start.said
    start.look(STALLED)
    assert start.ended() == "ended 137"
    assert start.said == ["sh was stopped: no progress for 90 s"]
    for pid in both:
        with contextlib.suppress(FileNotFoundError):
            # ended, whether or not somebody has asked for its status yet
            while Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX":
                time.sleep(0.05)
    # the script goes on, what it had left in the background is alive, and the watchdog is fed again
    assert len(start.children()) == 1
    start.look(STALLED + 1)
    assert start.fed == 3


def test_a_program_takes_as_long_as_the_disk_answers(start: Start) -> None:
    for step in range(50):
        start.disk(step, step)
        start.look(step * (STALLED - 1))
    assert start.fed == 50
    assert not start.said
    assert len(start.children()) == 2


def test_a_program_that_reads_everything_again_and_again_is_killed(start: Start) -> None:
    for step in range(PASSES + 1):
        start.disk(step, step * SIZE)
        start.look(step)
    assert not start.said
    start.disk(PASSES + 1, PASSES * SIZE + 1)
    start.look(PASSES + 1)
    assert start.ended() == "ended 137"
    assert start.said == ["sh was stopped: it has read and written everything 8 times"]


def test_what_cannot_be_killed_is_left_to_the_watchdog(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start.look(0)
    monkeypatch.setattr(os, "kill", lambda pid, number: None)
    for later in range(5):
        start.look(STALLED + later)
    assert start.fed == 1
    assert len(start.said) == 1


def test_only_whole_disks_count(tmp_path: Path) -> None:
    for name, text in (
        ("a", "1 2 3 4 5 6 7 8 9 10 11\n"),
        ("b", ""),
        ("c", "1 0 1 0 1 0 1 0 0 0 0 9 0 0 0 8 0\n"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "stat").write_text(text)
        (tmp_path / name / "size").write_text("100\n")
    assert disks(str(tmp_path)) == Disks(requests=6 + 19, moved=10 + 2, size=200)
