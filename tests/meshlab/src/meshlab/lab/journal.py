# SPDX-License-Identifier: Apache-2.0
"""What happens in a lab: its clock, its events, and those who wait for a change."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from meshlab.lab.state import (
    Event,
    Kind,
    LabState,
)

LIVELY = 20.0
"""Seconds for which nodes are asked more often when something is about to happen."""


class Journal:
    """Tells of every event: to the lab's state, its ``events.log`` and whoever listens."""

    def __init__(self, state: LabState) -> None:
        self._state = state
        self._born = time.monotonic()
        self._listeners: list[Callable[[Event], None]] = []
        self._changed: set[asyncio.Event] = set()
        self._file: IO[str] | None = None

    @property
    def elapsed(self) -> float:
        """Host seconds since the lab was made."""
        return time.monotonic() - self._born

    def open(self, path: Path) -> None:
        """Write every event from now on to a file of its own, too."""
        self._file = path.open("w", encoding="utf-8")

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Have every event from now on reported to ``listener``."""
        self._listeners.append(listener)

    def tell(self, kind: Kind, text: str, node: str | None = None) -> None:
        """Tell that something has happened, to ``node`` or to the lab."""
        event = Event(round(self.elapsed, 1), kind, text, node)
        self._state.events.append(event)
        if self._file is not None:
            self._file.write(f"{event.at:8.1f} {node or '-':<5} {kind:<8} {text}\n")
            self._file.flush()
        for listener in self._listeners:
            listener(event)
        self.notify()

    def notify(self) -> None:
        """Wake those who wait for a change of the state."""
        for changed in self._changed:
            changed.set()

    @contextlib.contextmanager
    def changes(self) -> Iterator[asyncio.Event]:
        """Give an event that is set at every change of the state."""
        changed = asyncio.Event()
        self._changed.add(changed)
        try:
            yield changed
        finally:
            self._changed.discard(changed)

    def snapshot(self) -> LabState:
        """Return the state, with its clock set."""
        self._state.elapsed = self.elapsed
        return self._state


class Pace:
    """How often nodes are asked for their status: more often while something happens."""

    def __init__(self) -> None:
        self.interval = 1.0
        """Seconds between two questions while something happens, at least."""
        self._until = 0.0

    def lively(self, seconds: float = LIVELY) -> None:
        """Ask more often for a while: something is about to happen."""
        self._until = max(self._until, time.monotonic() + seconds)

    def pause(self, nodes: int, settled: bool) -> float:
        """Return the seconds until a node of ``nodes`` is asked again."""
        crowd = max(1.0, nodes / 10)
        if time.monotonic() < self._until:
            return crowd * self.interval
        return 4.0 if settled else crowd
