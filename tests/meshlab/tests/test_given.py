# SPDX-License-Identifier: Apache-2.0
"""Limits that a busy host does not use up."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

import pytest

from meshlab.machine import given
from meshlab.machine.given import LOOK, Given, waits, within


class Host:
    """Processes whose threads wait as a test says, by the clock of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.waited: dict[int, dict[int, float]] = {os.getpid(): {}}
        monkeypatch.setattr(given, "waits", lambda pid: dict(self.waited.get(pid, {})))

    def clock(self, *pids: int | None) -> Given:
        return Given(lambda: pids, lambda: self.now)

    def passes(self, seconds: float, **waits: float) -> None:
        """Let time pass in which threads wait: t7_3 is thread 3 of process 7."""
        self.now += seconds
        for name, wait in waits.items():
            pid, thread = map(int, name[1:].split("_"))
            threads = self.waited.setdefault(pid, {})
            threads[thread] = threads.get(thread, 0.0) + wait


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_time_in_which_nobody_waits_counts(host: Host) -> None:
    clock = host.clock(7)
    for _ in range(20):
        host.passes(1.0)
        clock.seconds()
    assert clock.seconds() == 20


def test_the_clock_stands_while_a_process_waits(host: Host) -> None:
    clock = host.clock(7, None)
    host.passes(10.0, t7_1=9.0)
    assert clock.seconds() == pytest.approx(1.0)


def test_the_clock_stands_while_we_wait(host: Host) -> None:
    clock = host.clock(7)
    host.waited[os.getpid()] = {1: 9.0}
    host.passes(10.0)
    assert clock.seconds() == pytest.approx(1.0)


def test_of_threads_that_wait_at_a_time_one_counts(host: Host) -> None:
    clock = host.clock(7, 8)
    host.passes(10.0, t7_1=6.0, t7_2=3.0, t8_5=5.0)
    assert clock.seconds() == pytest.approx(4.0)


def test_threads_that_wait_one_after_the_other_count_all(host: Host) -> None:
    clock = host.clock(7)
    host.passes(1.0, t7_1=1.0)
    assert clock.seconds() == pytest.approx(0.0)
    host.passes(1.0, t7_2=1.0)
    assert clock.seconds() == pytest.approx(0.0)


def test_a_wait_that_is_told_late_is_taken_back(host: Host) -> None:
    clock = host.clock(7)
    host.passes(5.0)
    assert clock.seconds() == pytest.approx(5.0)
    host.passes(1.0, t7_1=6.0)
    assert clock.seconds() == pytest.approx(0.0)


def test_a_process_that_was_started_anew_counts_as_well(host: Host) -> None:
    pids = [7]
    clock = Given(lambda: pids, lambda: host.now)
    host.passes(1.0)
    clock.seconds()
    pids[:] = [9]
    host.passes(4.0, t9_9=3.0)
    assert clock.seconds() == pytest.approx(2.0)


async def test_a_limit_expires_where_nobody_waits_for_a_processor() -> None:
    with pytest.raises(TimeoutError):
        async with within(0.05):
            await asyncio.Event().wait()


async def test_no_limit_is_none() -> None:
    async with Given().within(None):
        await asyncio.sleep(0)


async def test_a_limit_expires_by_what_a_process_that_waits_was_given(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: host.now)
    begun = host.now
    with pytest.raises(TimeoutError):
        async with within(100.0, lambda: [7]):
            while host.now < begun + 20_000:
                host.passes(1.0, t7_1=0.99)
                await asyncio.sleep(0)
    assert 9_500 < host.now - begun < 10_500


def test_the_kernel_tells_which_thread_waits() -> None:
    """Two loops that share one processor: each waits for the other."""
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        clock = Given(lambda: [loop.pid for loop in loops])
        begun = time.monotonic()
        while time.monotonic() - begun - clock.seconds() < LOOK / 2:
            assert all(loop.poll() is None for loop in loops)
            time.sleep(LOOK / 10)
        (thread,) = waits(loops[0].pid)
        assert thread == loops[0].pid
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert waits(loops[0].pid) == {}, "it has ended"
