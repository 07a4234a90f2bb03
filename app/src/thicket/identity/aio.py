# SPDX-License-Identifier: Apache-2.0
"""The chip for asyncio: every conversation in one thread of its own, the loop never waits.

One thread, because the chip does one thing at a time; a daemon thread, because a transfer on a bus
may never come back (i2c-virtio waits for ever for a device that has gone) and must not keep the
process from ending. When that happens the chip is given up: whoever waits is told, and so is
everybody who asks later, at once and without another thread.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from thicket.base import threads
from thicket.identity.chip.errors import ChipBusError

if TYPE_CHECKING:
    from thicket.identity.chip.atecc import Atecc

T = TypeVar("T")

GRACE = 5.0
"""Seconds over the chip's patience after which a conversation will never end: the kernel gives up a
transfer on a stuck bus after about one."""


class AsyncAtecc:
    """``Atecc`` with awaitable methods. For one event loop; close it when the chip is let go.

    A conversation that was begun is always ended, also when the one who asked for it is cancelled:
    the chip must not be left in the middle. One that has not been begun then never is.
    """

    def __init__(self, chip: Atecc, *, grace: float = GRACE) -> None:
        """Use ``chip``; nobody else may at the same time. Its thread starts with the first job."""
        self.chip = chip
        self._grace = grace
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn = asyncio.Lock()
        self._hangs = False
        self._closed = False

    async def call(self, work: Callable[[Atecc], T]) -> T:
        """Let ``work`` use the chip in its thread and return what it returns.

        Raises what ``work`` raises, and ``ChipBusError`` when a transfer never came back.
        """
        async with self._turn:
            if self._closed:
                raise ChipBusError(f"{self.chip.bus.name}: the chip has been let go")
            if self._hangs:
                raise ChipBusError(
                    f"{self.chip.bus.name}: an earlier transfer still hangs; only a restart helps"
                )
            done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="chip", daemon=True)
                self._thread.start()
            self._jobs.put(lambda: threads.settle(done, lambda: work(self.chip)))
            waiting = asyncio.ensure_future(
                asyncio.wait({done}, timeout=self.chip.patience + self._grace)
            )
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                # The turn is not given to the next one before the chip is free.
                await waiting
                if done.done():
                    done.exception()  # nobody else looks at it
                self._hangs = self._hangs or not done.done()
                raise
            if not done.done():
                self._hangs = True
                raise ChipBusError(
                    f"{self.chip.bus.name}: a transfer did not come back within "
                    f"{self.chip.patience + self._grace:g} s; the chip is given up"
                )
            return done.result()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def close(self) -> None:
        """Wait for the conversation under way and give the bus back."""
        async with self._turn:
            if self._closed:
                return
            self._closed = True
            if self._hangs:
                return  # closing the bus under a transfer is not possible
            self._jobs.put(None)
            self.chip.bus.close()

    async def sign(self, slot: int, digest: bytes) -> bytes:
        """See ``Atecc.sign``."""
        return await self.call(lambda chip: chip.sign(slot, digest))
