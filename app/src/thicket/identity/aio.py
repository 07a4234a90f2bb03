# SPDX-License-Identifier: Apache-2.0
"""The chip for asyncio: its conversations run in a thread, and the event loop never waits.

There is one thread, because the chip does one thing at a time. It is a daemon thread, because a
transfer on a bus may never return (i2c-virtio waits for ever for a device that has gone) and must
not keep the process from ending. When that happens the chip is given up: the waiting caller gets an
error, and so does each later one, at once and without another thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from thicket.base import threads
from thicket.base.patience import Patience
from thicket.identity.chip.errors import ChipBusError

if TYPE_CHECKING:
    from thicket.identity.chip.atecc import Atecc

T = TypeVar("T")

GRACE = 5.0
"""Seconds beyond the chip's patience after which a conversation counts as hung. The kernel gives up
a transfer on a stuck bus after about one."""


class AsyncAtecc:
    """``Atecc`` for one event loop; close it when it is no longer needed.

    A conversation that has begun always runs to its end, also when its caller is cancelled, as the
    chip must not be left in the middle. One that has not begun by then never runs.

    :param chip: the chip; nobody else may use it at the same time.
    """

    def __init__(self, chip: Atecc, *, grace: float = GRACE) -> None:
        self.chip = chip
        self._grace = grace
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._turn = asyncio.Lock()
        self._hangs = False
        self._closed = False

    async def call(self, work: Callable[[Atecc], T]) -> T:
        """Let ``work`` use the chip in its thread, and return the result.

        :raises ChipBusError: a transfer never returned; otherwise what ``work`` raises.
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
            waiting = asyncio.ensure_future(self._wait(done))
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                # The next caller's turn comes when the chip is free.
                await waiting
                if done.done():
                    done.exception()  # mark it as seen; nobody else reads it
                self._hangs = self._hangs or not done.done()
                raise
            if not done.done():
                self._hangs = True
                raise ChipBusError(
                    f"{self.chip.bus.name}: a transfer did not come back within "
                    f"{self.chip.patience + self._grace:g} s; the chip is given up"
                )
            return done.result()

    async def _wait(self, done: asyncio.Future[T]) -> None:
        """Wait until a conversation has ended, or no longer gets on.

        It may take longer than its patience where we get no processor.
        """
        before = -1
        while not done.done() and before != self.chip.watch.readings:
            before = self.chip.watch.readings
            with contextlib.suppress(TimeoutError):
                async with Patience(self.chip.patience + self._grace):
                    await asyncio.wait({done})

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def close(self) -> None:
        """Wait for the present conversation, and close the bus."""
        async with self._turn:
            if self._closed:
                return
            self._closed = True
            if self._hangs:
                return  # closing the bus under a transfer is not possible
            self._jobs.put(None)
            self.chip.bus.close()

    async def sign(self, slot: int, digest: bytes) -> bytes:
        """Do as ``Atecc.sign``."""
        return await self.call(lambda chip: chip.sign(slot, digest))
