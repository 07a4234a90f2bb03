# SPDX-License-Identifier: Apache-2.0
"""One supervised application: imported, started, ended and restarted."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.applications import api
from thicket.applications.api import (
    CURRENT,
    GRACE,
    Application,
    ApplicationNode,
    BlockedError,
    SettingsError,
    settings_of,
    within,
)
from thicket.base import threads
from thicket.base.pace import Backoff
from thicket.base.supervise import Supervisor

if TYPE_CHECKING:
    import types

    from thicket.base.problems import Problems
    from thicket.distribution import Node

log = getLogger(__name__)

#: Pauses before an application is restarted, in seconds; the last one repeats.
PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)
#: An import that takes longer than this many seconds is reported.
LOADING = 60.0


class RunningApplication(Supervisor):
    """One application of a node.

    :param factory: imports the application and returns its class.
    :param settings: its table ``[application.NAME]``.
    :ivar state: ``starting``, ``running``, ``waiting`` or ``unusable``.
    :ivar starts: how often it was started.
    :ivar why: why it failed the last time; empty before.
    """

    SETTLED = 60.0

    def __init__(
        self,
        name: str,
        factory: Callable[[], Any],
        node: Node,
        settings: dict[str, Any],
        problems: Problems,
    ) -> None:
        self.factory = factory
        self.node = node
        self.settings = settings
        self.problems = problems
        self.state = "starting"
        self.starts = 0
        self.why = ""
        self.current: Application | None = None
        self._part = f"application {name}"
        self._blocked: str | None = None
        self._reason: str | None = None
        self._backoff = Backoff(*PAUSES, settled=self.SETTLED)
        super().__init__(name)

    def apply(self, settings: dict[str, Any]) -> None:
        """Restart the application with other settings."""
        self.settings = settings
        self.restart()

    def unwell(self) -> str:
        """Ask it what is wrong with it; empty for nothing, and while it does not run."""
        if self.current is None or self.state != "running":
            return ""
        try:
            return self.current.health() or ""
        except Exception as error:
            return f"its health cannot be told: {type(error).__name__}: {error}"

    def fail(self, reason: str) -> None:
        """End the application as failed for ``reason``."""
        if self._inner is not None and not self._inner.done():
            self._reason = reason
            self._inner.cancel()

    def block(self, place: str) -> None:
        """End the application because it blocks the event loop at ``place``."""
        self._blocked = place
        if self._inner is not None and not self._inner.done():
            self._inner.cancel()

    def settled(self) -> None:
        self.problems.clear(self._part, "failed")

    def ended(self, error: BaseException | None, lasted: float) -> float | None:
        self.state = "waiting"
        if isinstance(error, SettingsError):
            message = self.why = f"[application.{self.name}] {error}"
            self.problems.report(self._part, "settings", message, "warning")
            self.state = "unusable"
            return None
        if self._blocked is not None:
            reason = f"it kept the node from running for {api.BLOCKED:g} s, at {self._blocked}"
        elif self._reason is not None:
            reason = self._reason
        elif error is None:
            reason = "it ended by itself"
        else:
            reason = f"{type(error).__name__}: {error}"
        self.why = reason
        pause = self._backoff.failed(lasted)
        log.error("the application %s failed: %s", self.name, reason, exc_info=error)
        message = f"failed ({reason}); it is started again in {pause:g} s"
        self.problems.report(self._part, "failed", message, "warning")
        return pause

    async def run(self) -> None:
        """Run the application once."""
        CURRENT.set(self)
        self._reason = self._blocked = None
        self.problems.clear(self._part, "settings")
        node = ApplicationNode(self.node)
        self.starts += 1
        application: Application | None = None
        try:
            made = await self._loaded()
            settings = settings_of(getattr(made, "Settings", None), self.settings)
            application = self.current = made(node, settings)
            await within(application.start())
            self.state = "running"
            log.info("the application %s runs", self.name)
            work = asyncio.create_task(within(application.run()))
            try:
                await asyncio.wait({work, node.failed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                work.cancel()
                await asyncio.wait({work}, timeout=GRACE)
            if node.failed.done():
                node.failed.result()
            if not work.cancelled():
                work.result()
        except BlockedError:
            return
        finally:
            self.current = None
            if application is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(GRACE):
                        await application.stop()
            await node.close()

    async def _loaded(self) -> Any:
        """Import the application, and return its class.

        It is imported in a thread, so that the node goes on while a slow card is read. An import
        that hangs is reported and never given up.
        """

        def load() -> Any:
            try:
                return without_exit(self.factory)
            except BaseException as error:
                if isinstance(error, Exception) and not isinstance(error, StopIteration):
                    raise
                words = f"its import raised {type(error).__name__}: {error}"
                raise RuntimeError(words) from error

        context = contextvars.copy_context()  # tells whose lines the thread prints
        done, thread = threads.start(load, f"import {self.name}", run=context.run)
        try:
            async with asyncio.timeout(LOADING):
                return await asyncio.shield(done)
        except TimeoutError:
            place = place_of(sys._current_frames().get(thread.ident or 0))
            words = f"its import has not ended after {LOADING:g} s and is waited for, at {place}"
            self.problems.report(self._part, "loading", words, "warning")
        try:
            return await done
        finally:
            self.problems.clear(self._part, "loading")


def place_of(frame: types.FrameType | None) -> str:
    """Return file, line and function where a thread is, in words."""
    if frame is None:
        return "?"
    last = traceback.extract_stack(frame)[-1]
    return f"{last.filename}:{last.lineno} in {last.name}"


def without_exit(function: Callable[[], Any]) -> Any:
    """Call a function; a call of exit() becomes a failure and does not end the node."""
    try:
        return function()
    except SystemExit as error:
        raise RuntimeError(f"it called exit({error.code})") from error
