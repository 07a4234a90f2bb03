# SPDX-License-Identifier: Apache-2.0
"""Applications: what a device is for, as Python packages that the daemon loads.

An application is a class that an installed package names as an entry point in the group
``thicket.applications``. It runs in the daemon's event loop, and its failures do not stop the node;
docs/applications.md shows one, and what happens when it fails. Everything that it made with the
node (exported functions, mailboxes, memberships) ends with it.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import types
from collections.abc import Callable
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.applications.api import GRACE, ApplicationNode, SettingsError, settings_of, who
from thicket.applications.guard import LoopGuard
from thicket.applications.running import RunningApplication, without_exit
from thicket.applications.trial import Seen
from thicket.base import printed
from thicket.base.process import memory_kib

if TYPE_CHECKING:
    from thicket.base.problems import Problems
    from thicket.distribution import (
        Node,
    )

log = getLogger(__name__)

GROUP = "thicket.applications"
#: Seconds between two looks at health and memory.
LOOK = 10.0
#: MiB by which the process may grow after the applications have started.
GROWTH = 64
#: Objects that are counted to tell which application holds the memory.
_WEIGHED = 200_000
#: Problems of an application that end with it.
_CODES = ("failed", "settings", "unwell")


def judge(
    settings: dict[str, dict[str, Any]], found: dict[str, Callable[[], Any]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """Check the tables ``[application.NAME]``; applications are imported, but not run.

    :returns: the faults as pairs of key and text, and notes on what could not be checked.
    """
    faults, notes = [], []
    for name, table in settings.items():
        key = f"application.{name}"
        if name not in found:
            there = f"there are: {', '.join(sorted(found))}" if found else "there is none"
            notes.append(f"[{key}] is not judged: the application is not installed here ({there})")
            continue
        try:
            settings_of(getattr(without_exit(found[name]), "Settings", None), table)
        except SettingsError as error:
            faults.append((key, str(error)))
        except Exception as error:  # a fault of the application, not of the file
            notes.append(f"[{key}] is not judged: {type(error).__name__}: {error}")
    return faults, notes


class Applications:
    """All applications of the node. :meth:`run` starts and supervises them.

    :param settings: the tables ``[application.NAME]``.
    :param found: the applications by name, each a function that returns its class.
    """

    def __init__(
        self,
        node: Node,
        settings: dict[str, dict[str, Any]],
        problems: Problems,
        found: dict[str, Callable[[], Any]],
    ) -> None:
        self.node = node
        self.settings = settings
        self.problems = problems
        self._found = found
        self._running: dict[str, RunningApplication] = {}
        self._memory = 0
        self._guarded = False

    def status(self) -> list[dict[str, Any]]:
        """Return name, state (``starting``, ``running``, ``waiting``, ``unusable``) and starts of
        each application."""
        return [
            {"name": running.name, "state": running.state, "starts": running.starts}
            for running in self._running.values()
        ]

    def settings_changed(self, settings: dict[str, dict[str, Any]]) -> None:
        """Follow other settings: restart, end or start the applications that they concern."""
        old, self.settings = self.settings, settings
        for name, running in list(self._running.items()):
            if not self._enabled(name):
                del self._running[name]
                running.task.cancel()
            elif old.get(name, {}) != settings.get(name, {}):
                running.apply(settings.get(name, {}))
        self._begin(self._found)

    async def put(self, name: str, factory: Callable[[], Any]) -> None:
        """Run another application under a name, in place of what runs under it."""
        await self.drop(name)
        self._found[name] = factory
        if self._guarded:
            self._begin({name: factory})

    async def drop(self, name: str) -> None:
        """End an application, and forget it."""
        self._found.pop(name, None)
        running = self._running.pop(name, None)
        if running is not None:
            running.task.cancel()
            await asyncio.wait({running.task}, timeout=2 * GRACE)
            for code in _CODES:
                self.problems.clear(f"application {name}", code)

    def seen(self, name: str) -> Seen | None:
        """Return how an application does; None for one that is not to run."""
        running = self._running.get(name)
        if running is None:
            return None
        return Seen(running.state, running.starts, running.unwell(), running.why)

    async def run(self) -> None:
        """Run all applications until cancelled."""
        self._guarded = True
        printed.name_sources(who)
        self._begin(self._found)
        guard = LoopGuard()
        try:
            self._memory = memory_kib()
            while True:
                await asyncio.sleep(LOOK)
                self._look()
        finally:
            self._guarded = False
            guard.close()
            tasks = [running.task for running in self._running.values()]
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=2 * GRACE)
            printed.sweep(0.0)
            for name in self._running:
                for code in _CODES:
                    self.problems.clear(f"application {name}", code)

    def _enabled(self, name: str) -> bool:
        return self.settings.get(name, {}).get("enabled", True) is not False

    def _begin(self, found: dict[str, Callable[[], Any]]) -> None:
        for name, factory in found.items():
            if name not in self._running and self._enabled(name):
                self._running[name] = RunningApplication(
                    name, factory, self.node, self.settings.get(name, {}), self.problems
                )

    # -- care

    def _look(self) -> None:
        """Check health and memory."""
        printed.sweep()
        for running in self._running.values():
            part = f"application {running.name}"
            words = running.unwell()
            if words:
                self.problems.report(part, "unwell", words, "warning")
            else:
                self.problems.clear(part, "unwell")
        grown = (memory_kib() - self._memory) // 1024
        if grown <= GROWTH:
            return
        weights = {
            running: weigh(running.current)
            for running in self._running.values()
            if running.current is not None
        }
        if weights:
            worst = max(weights, key=lambda running: weights[running])
            worst.fail(
                f"the process has grown by {grown} MiB (limit {GROWTH}), most of it is held by this"
                f" application"
            )
            # The growth so far is not counted again.
            self._memory += 1024 * GROWTH // 2


def weigh(root: Any) -> int:
    """Estimate the bytes that only ``root`` holds, by the first :data:`_WEIGHED` objects."""
    ignored: tuple[type, ...] = (
        type,
        types.ModuleType,
        types.FunctionType,
        types.CodeType,
        types.FrameType,
    )
    ignored += (ApplicationNode, asyncio.AbstractEventLoop)
    seen: set[int] = set()
    waiting = [root]
    total = 0
    while waiting and len(seen) < _WEIGHED:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, ignored):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item, 0)
        waiting.extend(gc.get_referents(item))
    return total
