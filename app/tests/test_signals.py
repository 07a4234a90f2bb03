# SPDX-License-Identifier: Apache-2.0
"""thicket.base.signals: signals reach the event loop, and only within their context."""

import asyncio
import os
import signal

from patience import PATIENCE

from thicket.base import signals


async def test_a_signal_wakes_a_loop_that_has_nothing_to_do() -> None:
    came = asyncio.Event()
    with signals.called(asyncio.get_running_loop(), {signal.SIGUSR1: came.set}):
        # The signal must interrupt the loop's wait, so it is sent by another process.
        sender = await asyncio.create_subprocess_exec(
            "sh", "-c", f"sleep 0.2; kill -USR1 {os.getpid()}"
        )
        await asyncio.wait_for(came.wait(), PATIENCE)
        assert await sender.wait() == 0


async def test_each_of_several_signals_in_a_row_is_told() -> None:
    one, two = asyncio.Event(), asyncio.Event()
    handlers = {signal.SIGUSR1: one.set, signal.SIGUSR2: two.set}
    with signals.called(asyncio.get_running_loop(), handlers):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        async with asyncio.timeout(PATIENCE):
            await one.wait()
            await two.wait()


async def test_the_former_handlers_are_in_force_again_afterwards() -> None:
    def before(*_: object) -> None:
        """Stand for what was there."""

    former = signal.signal(signal.SIGUSR1, before)
    try:
        with signals.called(asyncio.get_running_loop(), {signal.SIGUSR1: lambda: None}):
            assert signal.getsignal(signal.SIGUSR1) is not before
        assert signal.getsignal(signal.SIGUSR1) is before
    finally:
        signal.signal(signal.SIGUSR1, former)
