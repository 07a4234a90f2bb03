# SPDX-License-Identifier: Apache-2.0
"""thicket.base.patience: our own lateness is no fault of others."""

import asyncio
import time
from collections.abc import Callable
from typing import cast

import pytest
from patience import PATIENCE
from virtual_time import VirtualTimeLoop

from thicket.base import patience
from thicket.base.patience import Allowance, Patience, Stopwatch, wait_for


def late(every: float, lateness: float) -> Callable[[], None]:
    """Let the event loop not run for ``lateness`` seconds every ``every`` seconds."""
    loop = cast("VirtualTimeLoop", asyncio.get_running_loop())
    on = True

    def miss() -> None:
        if on:
            loop.now += lateness
            loop.call_later(every, miss)

    def stop() -> None:
        nonlocal on
        on = False

    loop.call_later(every, miss)
    return stop


async def took(seconds: float, bound: float = patience.BOUND) -> float:
    """Return after how many seconds of the clock the patience is over."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    with pytest.raises(TimeoutError):
        async with Patience(seconds, bound):
            await asyncio.Event().wait()
    return loop.time() - begin


@pytest.mark.virtual_time
class TestPatience:
    @pytest.mark.parametrize("seconds", [0.1, 0.5, 3.2, 20.0])
    async def test_it_is_a_time_limit_for_who_is_not_late(self, seconds: float) -> None:
        assert await took(seconds) == pytest.approx(seconds, abs=1e-6)

    async def test_lateness_does_not_count(self) -> None:
        stop = late(1.0, 4.0)
        assert await took(10.0) >= 40.0
        stop()

    async def test_it_is_bounded(self) -> None:
        stop = late(0.1, 50.0)
        assert 80.0 <= await took(10.0) <= 80.0 + 2 * 50.2
        stop()

    async def test_an_answer_that_came_while_we_were_late_is_taken(self) -> None:
        loop = cast("VirtualTimeLoop", asyncio.get_running_loop())
        answer = loop.create_future()
        # both are overdue when the event loop gets to run: the answer, and then the time limit
        loop.call_at(loop.time() + 3.0, answer.set_result, "it")
        loop.call_soon(lambda: setattr(loop, "now", loop.now + 100.0))
        async with Patience(4.0, 1.0):
            assert await answer == "it"

    async def test_what_the_body_raises_passes(self) -> None:
        with pytest.raises(ZeroDivisionError):
            async with Patience(1.0):
                raise ZeroDivisionError
        await asyncio.sleep(5)  # nothing is left that would cancel this

    async def test_an_event(self) -> None:
        event = asyncio.Event()
        assert not await wait_for(event, 2.0)
        asyncio.get_running_loop().call_later(1.0, event.set)
        assert await wait_for(event, 2.0)


@pytest.mark.virtual_time
class TestAllowance:
    async def seconds(self, allowance: Allowance) -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        while not allowance.over:
            pause = allowance.look() - loop.time()
            await asyncio.sleep(max(0.001, pause))
        return loop.time() - begin

    async def test_it_is_used_up_by_who_is_not_late(self) -> None:
        assert await self.seconds(Allowance(7.3)) == pytest.approx(7.3, abs=0.01)

    async def test_lateness_does_not_count_up_to_a_bound(self) -> None:
        stop = late(1.0, 4.0)
        assert 20.0 <= await self.seconds(Allowance(6.0)) <= 48.0
        stop()
        stop = late(0.1, 50.0)
        assert 48.0 <= await self.seconds(Allowance(6.0)) <= 48.0 + 2 * 50.2
        stop()


class TestRun:
    def test_it_returns_status_and_words(self) -> None:
        assert patience.run(["sh", "-c", "echo one; echo two >&2; exit 3"], PATIENCE) == (
            3,
            "one\ntwo",
        )
        with pytest.raises(FileNotFoundError):
            patience.run(["/no/such/program"], PATIENCE)

    def test_what_does_not_end_is_killed(self) -> None:
        with pytest.raises(TimeoutError, match=r"^sleep did not end within 0.3 s$"):
            patience.run(["sleep", "600"], 0.3)

    def test_it_has_its_seconds_also_where_we_are_late(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0

        def late() -> float:
            nonlocal now
            now += 50.0
            return now

        monkeypatch.setattr(time, "monotonic", late)
        assert patience.run(["sh", "-c", "sleep 1; echo done"], PATIENCE) == (0, "done")


class Time:
    """A clock, and a sleep that is late."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.late = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


class TestStopwatch:
    def test_it_goes_with_the_clock_for_who_is_not_late(self) -> None:
        clock = Time()
        watch = Stopwatch(clock.clock, clock.sleep)
        for _ in range(1000):
            watch.sleep(0.01)
            clock.now += 0.02
        assert watch() == pytest.approx(clock.now)

    def test_lateness_does_not_count_in_a_sleep_and_little_of_it_elsewhere(self) -> None:
        clock = Time()
        watch = Stopwatch(clock.clock, clock.sleep)
        clock.late = 0.7
        for _ in range(10):
            watch.sleep(0.1)
        assert watch() == pytest.approx(1001.0)
        clock.now += 9.0
        assert watch() == pytest.approx(1001.0 + Stopwatch.STRIDE)

    def test_it_is_bounded(self) -> None:
        clock = Time()
        watch = Stopwatch(clock.clock, clock.sleep)
        clock.late = 1.0
        begin = watch()
        while watch() - begin < 4.0:
            watch.sleep(0.001)
            assert clock.now - 1000.0 < 40.0
        assert clock.now - 1000.0 >= 4.0 + Stopwatch.MOST

    def test_a_thread_that_hangs_is_seen(self) -> None:
        clock = Time()
        watch = Stopwatch(clock.clock, clock.sleep)
        before = watch.readings
        watch.sleep(0.1)
        assert watch.readings > before
