# SPDX-License-Identifier: Apache-2.0
"""Programs that wait for a processor of the host."""

from __future__ import annotations

import os
import subprocess
import sys

from meshlab.lab.starvation import TOO_LONG, Starvation, waited


def seen(rates: list[float]) -> str:
    """Return what is found of a program that waited this long in each second."""
    found, total = Starvation(), 0.0
    found.look(0.0, {"n1": total})
    for second, rate in enumerate(rates, start=1):
        total += rate
        found.look(float(second), {"n1": total, "n2": 7.0})
    return found.found


def test_who_waits_a_little_all_the_time_is_not_starved() -> None:
    assert not seen([0.4] * 60)


def test_who_waits_long_in_one_go_is_starved_wherever_it_falls() -> None:
    for before in range(8):
        assert seen([0.1] * before + [1.0] * 3 + [0.0] * 9).startswith("n1 waited ")


def test_a_look_that_comes_late_counts_the_wait_in_it() -> None:
    found = Starvation()
    found.look(0.0, {"n1": 0.0})
    found.look(20.0, {"n1": 18.0})
    assert found.found == "n1 waited 18.0 s of 20.0 s"


def test_a_program_that_was_started_again_begins_anew() -> None:
    found = Starvation()
    found.look(0.0, {"n1": 100.0})
    found.look(1.0, {"n1": 0.0})
    found.look(2.0, {"n1": 1.0})
    assert not found.found


def test_the_kernel_counts_who_waits() -> None:
    """Two loops that share one processor: each waits for the other."""
    cpu = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    loops = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        while min(waited(loop.pid) for loop in loops) < TOO_LONG / 10:
            assert all(loop.poll() is None for loop in loops)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert waited(loops[0].pid) == 0.0, "it has ended"
