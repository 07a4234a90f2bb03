# SPDX-License-Identifier: Apache-2.0
"""The event loop that tests use where time itself is what they wait for."""

import asyncio
import time
from time import monotonic

import pytest

pytestmark = pytest.mark.virtual_time


async def test_an_hour_takes_no_time() -> None:
    real = time.perf_counter()
    begin = time.monotonic()
    await asyncio.sleep(3600)
    assert time.monotonic() - begin == pytest.approx(3600)
    assert time.perf_counter() - real < 600


async def test_a_name_imported_from_time_tells_the_same() -> None:
    begin = monotonic()
    await asyncio.sleep(60)
    assert monotonic() - begin == pytest.approx(60)


async def test_timers_come_in_their_order_and_at_their_time() -> None:
    begin = time.monotonic()
    seen: list[tuple[str, float]] = []

    async def wait(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        seen.append((name, time.monotonic() - begin))

    await asyncio.gather(wait("late", 20), wait("early", 0.5), wait("between", 7))
    assert [name for name, _ in seen] == ["early", "between", "late"]
    assert [at for _, at in seen] == pytest.approx([0.5, 7, 20])


async def test_a_timeout_is_not_early_although_the_machine_is_slow() -> None:
    async def slow() -> str:
        time.sleep(0.05)  # the machine does something else  # noqa: ASYNC251
        await asyncio.sleep(0.02)
        return "done"

    assert await asyncio.wait_for(slow(), 0.03) == "done"


async def test_time_stands_still_while_a_thread_works() -> None:
    begin = time.monotonic()
    async with asyncio.timeout(0.01):
        await asyncio.to_thread(time.sleep, 0.1)
    assert time.monotonic() == begin
