# SPDX-License-Identifier: Apache-2.0
"""Threads for work that may hang for ever, such as a transfer on a bus or a write to a card.

The event loop goes on meanwhile. The threads are daemons and never joined, so the process can still
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from thicket.base.errors import ThicketError
from thicket.base.patience import Patience

T = TypeVar("T")


def settle(done: asyncio.Future[T], work: Callable[[], T]) -> None:
    """Do ``work`` in this thread, and set its result or exception on ``done``.

    Nothing is set when ``done`` was cancelled, or its event loop has ended.
    """
    result: T | None = None
    error: BaseException | None = None
    try:
        result = work()
    except BaseException as e:
        error = e
        # A future refuses StopIteration, and some of the others would end the event loop.
        if isinstance(e, StopIteration) or not isinstance(e, Exception):
            error = RuntimeError(f"it raised {type(e).__name__}: {e}")

    def tell() -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    with contextlib.suppress(RuntimeError):  # the loop has ended
        done.get_loop().call_soon_threadsafe(tell)


def start(
    work: Callable[[], T], name: str, *, run: Callable[..., Any] | None = None
) -> tuple[asyncio.Future[T], threading.Thread]:
    """Start ``work`` in its own thread; the future gets its result or exception.

    :param name: the thread's name.
    :param run: calls a function with its arguments, for example in a context.
    """
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    arguments = (done, work)
    thread = (
        threading.Thread(target=settle, args=arguments, name=name, daemon=True)
        if run is None
        else threading.Thread(target=run, args=(settle, *arguments), name=name, daemon=True)
    )
    thread.start()
    return done, thread


async def finish(work: Callable[[], T]) -> T:
    """Do ``work`` in a thread of the event loop's; return its result, or raise its exception.

    Who is cancelled while it goes on ends when it has ended, so a lock is held as long as a file is
    written. For work that ends: on a file, not on a bus.
    """
    done = asyncio.get_running_loop().run_in_executor(None, work)
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        while not done.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({done})
        if not done.cancelled():
            done.exception()  # nobody is left to be told
        raise


class BusyError(ThicketError):
    """Work that was begun before has not ended."""


class OneAtATime:
    """Runs blocking work in threads, one after the other; work may hang for ever.

    :param name: the threads' name.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._working: asyncio.Future[Any] | None = None

    async def do(self, work: Callable[[], T], patience: float) -> T:
        """Do ``work`` in a thread and return its result, or raise its exception.

        :param patience: seconds to wait for it in which we get to run; it goes on behind that.
        :raises TimeoutError: it has not ended by then.
        :raises BusyError: the work before has not ended yet, so this was not begun.
        """
        # The future is checked, as the thread lives on for a moment after its result is here.
        if self._working is not None and not self._working.done():
            raise BusyError("work that was begun before has not ended")
        done, _ = start(work, self.name)
        self._working = done
        async with Patience(patience):
            return await asyncio.shield(done)


class InTurn:
    """As :class:`OneAtATime`, but work waits for its turn: several parts may ask at once.

    :param name: the threads' name.
    """

    def __init__(self, name: str) -> None:
        self._threads = OneAtATime(name)
        self._turn = asyncio.Lock()

    async def do(self, work: Callable[[], T], patience: float) -> T:
        """Do ``work`` in a thread and return its result, or raise its exception.

        :param patience: seconds to wait for it, from its turn on; it goes on behind that.
        :raises TimeoutError: it has not ended by then.
        :raises BusyError: work that was given up before has not ended yet, so this was not begun.
        """
        async with self._turn:
            return await self._threads.do(work, patience)
