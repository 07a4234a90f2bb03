# SPDX-License-Identifier: Apache-2.0
"""thicket.radio.hang: a process that hangs, and one that only gets no processor."""

import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from patience import PATIENCE

from thicket.base.patience import STEP
from thicket.radio import hang, session
from thicket.radio.hang import HANG_SECONDS, MOST_SECONDS, Doing, Judge

Does = Callable[[float], Doing]


def asleep(state: str) -> Does:
    return lambda now: Doing(state, 3.0)


def works(share: float) -> Does:
    return lambda now: Doing("R", 3.0 + share * now)


def found(does: Does, step: float = STEP) -> tuple[float, str]:
    """Return after how many seconds a process that does this is found to hang, and the words."""
    judge = Judge(does(0.0), HANG_SECONDS)
    now = 0.0
    while True:
        now += step
        words = judge.look(does(now), step)
        if words is not None:
            return now, words


@pytest.mark.parametrize(
    ("does", "words"),
    [
        (asleep("T"), "and does nothing"),
        (asleep("S"), "and does nothing"),
        (asleep("D"), "and does nothing"),
        (works(1.0), "of 5 s of work"),
    ],
    ids=["stopped", "waits for something else", "a dead call of the kernel", "in a loop"],
)
def test_on_an_idle_node_one_that_hangs_is_found_in_ten_seconds(does: Does, words: str) -> None:
    seconds, said = found(does)
    assert said.strip() == words
    assert session.WATCHDOG_SECONDS + seconds < 10.0


def test_a_real_process_that_is_stopped_is_found_in_ten_seconds() -> None:
    child = subprocess.Popen(["sleep", "600"])
    try:
        child.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + PATIENCE
        while present(child.pid).state != "T":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        seconds, said = found(lambda now: present(child.pid))
    finally:
        child.kill()
        child.wait()
    assert said == " and does nothing"
    assert session.WATCHDOG_SECONDS + seconds < 10.0


def present(pid: int) -> Doing:
    does = hang.doing(pid)
    assert does is not None
    return does


def test_one_that_gets_no_processor_is_waited_for_up_to_a_bound() -> None:
    assert found(works(0.0)) == (MOST_SECONDS, "")
    assert found(works(0.03)) == (MOST_SECONDS, ""), "nor one that gets a little"


def test_one_that_gets_a_tenth_of_a_processor_may_use_as_much_of_it_as_any_other() -> None:
    seconds, said = found(works(0.1))
    assert seconds == pytest.approx(50.0, abs=STEP)
    assert said == " of 5 s of work"


def test_who_is_late_himself_counts_less() -> None:
    """A host that gives the whole node a tenth of a processor."""
    seconds, said = found(asleep("S"), step=5.0)
    assert (seconds, said) == (50.0, " and does nothing")
    assert found(asleep("D"), step=5.0) == (MOST_SECONDS, ""), "others in the kernel are as late"


def test_one_that_stops_after_it_has_worked_is_found_as_late_as_any_other() -> None:
    seconds, _ = found(lambda now: Doing("R" if now < 3 else "S", min(now, 3.0)))
    assert seconds == 3.0 + HANG_SECONDS


def test_of_an_unknown_one_the_seconds_of_the_event_loop_count() -> None:
    judge = Judge(None, 20.0)
    assert [judge.look(None, 5.0) for _ in range(23)] == [None] * 23
    assert judge.look(None, 5.0) == "", "the bound"
    judge = Judge(None, 20.0)
    assert [judge.look(None, STEP) for _ in range(40)] == [*[None] * 39, ""]


def test_one_that_has_just_ended_is_unknown() -> None:
    judge = Judge(Doing("S", 1.0), hang.HANG_SECONDS)
    assert judge.look(None, STEP) is None
