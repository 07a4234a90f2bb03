# SPDX-License-Identifier: Apache-2.0
"""How far a program is that goes through many bytes."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from firmware.blockdev import human


class Report:
    """Tells a person how far it is: a bar on a terminal, a line now and then elsewhere."""

    INTERVAL = 10.0

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._text = ""
        self._total = self._done = 0
        self._started = self._said = 0.0

    @contextlib.contextmanager
    def phase(self, text: str, total: int) -> Iterator[None]:
        """Show a phase that has ``total`` bytes to go (0: not known) while the block runs."""
        self._text, self._total, self._done = text, total, 0
        self._started = self._said = time.monotonic()
        if not self._console.is_terminal:
            yield
            self._say("done")
            return
        columns = (
            TextColumn("{task.description:9}"),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self._console, refresh_per_second=5) as self._progress:
            self._task = self._progress.add_task(text, total=total or None)
            yield
        self._progress = None

    def advance(self, count: int) -> None:
        """Add ``count`` bytes to what is done."""
        self._done += count
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, count)
        elif time.monotonic() - self._said > self.INTERVAL:
            self._said = time.monotonic()
            self._say(f"{100 * self._done // self._total} %" if self._total else "")

    def _say(self, how: str) -> None:
        seconds = max(time.monotonic() - self._started, 1e-3)
        rate = self._done / 2**20 / seconds
        self._console.print(f"{self._text}: {human(self._done)}, {rate:.1f} MiB/s, {how}")
