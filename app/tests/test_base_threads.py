# SPDX-License-Identifier: Apache-2.0
"""Work in threads that ends before who waits for it does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from thicket.base.threads import finish


def test_the_result_and_the_exception_are_told() -> None:
    async def run() -> None:
        assert await finish(lambda: 7) == 7
        with pytest.raises(OSError, match="full"):
            await finish(failing)

    asyncio.run(run())


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_cancelled_ends_after_the_work(fails: bool) -> None:
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()
        ended.set()
        if fails:
            failing()

    async def run() -> None:
        told: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: told.append(what))
        lock = asyncio.Lock()

        async def locked() -> None:
            async with lock:
                await finish(work)

        task = asyncio.create_task(locked())
        await asyncio.to_thread(begun.wait)
        for _ in range(3):  # a second word changes nothing
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert lock.locked()
            assert not task.done()
        go_on.set()
        await asyncio.wait({task})
        assert task.cancelled()
        assert ended.is_set()
        assert not lock.locked()
        assert not told

    asyncio.run(run())


def failing() -> None:
    raise OSError("the card is full")
