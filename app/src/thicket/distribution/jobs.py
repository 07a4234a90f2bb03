# SPDX-License-Identifier: Apache-2.0
"""Functions that run for other nodes, and their limits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.distribution.atoms import CANCELLED, KILL, KILLED, NORMAL
from thicket.distribution.failures import raised, returned
from thicket.distribution.handshake import key_of
from thicket.distribution.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.distribution.calls import Calls
    from thicket.distribution.connection import Connection
    from thicket.distribution.etf import Pid, Reference
    from thicket.distribution.exports import Exported
    from thicket.distribution.handshake import DistributionError
    from thicket.distribution.processes import ProcessTable

log = logging.getLogger(__name__)

MAX_JOBS = 1000
"""Functions that run at the same time for other nodes."""

MAX_JOBS_PER_NODE = 250
"""The same for one other node."""

MAX_THREADS = 8
"""Threads for exported functions; the node's own work has others."""

MAX_THREADS_PER_NODE = 4


class Caller(NamedTuple):
    """The caller of the running function.

    :ivar node: the node at the other end of the call's connection. A node that passes on a call of
        another one is the caller itself.
    :ivar pid: the calling process, by that node's own word.
    """

    node: str
    pid: Pid


CALLER: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("caller", default=None)
"""The caller of the exported function that runs."""


class Job(Process):
    """A function that runs for another node.

    :param result: what the caller tells the result by; None when it wants none.
    :param cancel_with_watch: the watch whose end cancels the function.
    """

    answers = False

    def __init__(
        self,
        node: ProcessTable,
        calls: Calls,
        connection: Connection | None,
        caller: Pid,
        *,
        exported: Exported,
        arguments: list[Any],
        result: Any,
        cancel_with_watch: Reference | None = None,
    ) -> None:
        super().__init__(node)
        self._calls = calls
        self._connection = connection
        self._caller = caller
        self._exported = exported
        self._arguments = arguments
        self._result = result
        self._watch = cancel_with_watch
        self._why: Any = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Run the function in its own task."""
        self.node.add(self)
        self._calls.jobs.add(self)
        self._task = asyncio.create_task(
            self._run(), name=f"{self._exported.name} for {self._caller.node}"
        )
        self._task.add_done_callback(self._done)

    @property
    def source(self) -> str:
        """The node that the function runs for."""
        return str(self._caller.node)

    async def _run(self) -> None:
        CALLER.set(Caller(self.source, self._caller))
        exported = self._exported
        reason: Any
        plain = exported.at_once
        try:
            if plain and self._connection is not None:
                await self._connection.drain()
            made = exported.signature.convert(self._arguments)
            if exported.asynchronous:
                value = await exported.function(*made)
            elif exported.thread:
                value = await self._calls.threads.run(self.source, exported.function, made)
            else:
                value = exported.function(*made)
                if inspect.isawaitable(value):
                    value = await value
            reader = self._connection
            reason = returned(self._result, value, text=reader is None or reader.text)
        except asyncio.CancelledError:
            if self._why is None:
                reason = raised(self._result, exported.name, "exit", CANCELLED)
            else:
                reason = self._why
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a call of exit() must not end the node either
            reason = self._calls.failed(self._result, exported, self._arguments, error, self.source)
        if self._connection is not None and self.monitors and not plain:
            with suppress(asyncio.CancelledError):
                await self._connection.drain()
        self.node.end(self, reason)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._calls.jobs.discard(self)
        self.node.end(self, KILLED)  # when it was cancelled before it began
        if not task.cancelled() and task.exception() is not None:
            log.error("a call of %s failed", self._exported.name, exc_info=task.exception())

    def cancel(self, why: Any) -> None:
        """Cancel the function; ``why`` is the reason of the process's end."""
        if self._task is not None and self._why is None:
            self._why = why
            self._task.cancel()

    def on_demonitor(self, reference: Reference) -> None:
        if reference == self._watch:
            self.cancel(CANCELLED)

    def on_exit(
        self, connection: Connection | None, sender: Pid, reason: Any, *, linked: bool
    ) -> None:
        if reason != NORMAL or (sender == self._caller and not linked):
            self.cancel(KILLED if reason == KILL and not linked else reason)

    def on_disconnect(self, connection: Connection, reason: DistributionError) -> None:
        super().on_disconnect(connection, reason)
        if connection is self._connection and self._watch is not None:
            self.cancel(CANCELLED)  # nobody waits any more


class Threads:
    """Threads for exported functions."""

    def __init__(self) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(MAX_THREADS, "exported")
        self._turns: dict[str, asyncio.Semaphore] = {}

    async def run(self, source: str, function: Callable[..., Any], arguments: list[Any]) -> Any:
        """Run a function in a thread for the node ``source``.

        A node that uses its share of the threads waits until one of them ends, even if that one's
        caller has gone.
        """
        host = key_of(source).partition("@")[2]
        turn = self._turns.setdefault(host, asyncio.Semaphore(MAX_THREADS_PER_NODE))
        await turn.acquire()
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(turn.release)

        context = contextvars.copy_context()
        try:
            running = self._threads.submit(context.run, function, *arguments)
        except BaseException:
            turn.release()
            raise
        running.add_done_callback(ended)
        return await asyncio.wrap_future(running)

    def stop(self) -> None:
        """Start no more functions; running ones cannot be stopped."""
        self._threads.shutdown(wait=False, cancel_futures=True)
