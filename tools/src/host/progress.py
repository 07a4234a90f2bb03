# SPDX-License-Identifier: Apache-2.0
"""Tells a person what a build is doing.

A build reports lines of text to a function. Any function that takes a string will do (``print``);
one made by ``reporter`` draws a live line on a terminal and fewer, whole lines elsewhere.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TextIO

Report = Callable[[str], object]

PLAIN_INTERVAL = 15.0
"""Seconds between two lines about work that goes on, where lines cannot be overwritten."""
LIVE_INTERVAL = 0.2


class Line(str):
    """A line of progress; ``passing`` ones are only true now and may be overwritten."""

    passing: bool

    def __new__(cls, text: str, passing: bool = False) -> Line:
        line = super().__new__(cls, text)
        line.passing = passing
        return line


class LiveReport:
    """Reports to a terminal: work that goes on takes one line, which is drawn again and again."""

    interval = LIVE_INTERVAL

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, text: str) -> None:
        passing = isinstance(text, Line) and text.passing
        if passing:
            try:
                import os

                # 0: a terminal that does not know its size
                width = os.get_terminal_size(self._stream.fileno()).columns or 80
            except OSError:
                width = 80
            self._stream.write(f"\r\x1b[K{text[: width - 1]}")
        else:
            self._stream.write(f"\r\x1b[K{text}\n")
        self._stream.flush()


class PlainReport:
    """Reports to a file or pipe, a line at a time."""

    interval = PLAIN_INTERVAL

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def reporter(stream: TextIO) -> LiveReport | PlainReport:
    """Return the report that suits ``stream``."""
    return LiveReport(stream) if stream.isatty() else PlainReport(stream)


def duration(seconds: float) -> str:
    """Return ``seconds`` as a person says them: ``7 s``, ``4 min 09 s``."""
    whole = int(seconds + 0.5)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"


class Progress:
    """What all stages of one build are doing; safe to use from several threads."""

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._interval: float = getattr(report, "interval", PLAIN_INTERVAL)
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[str, str] = {}
        self._started = clock()
        self._shown = self._started

    def stage(self, name: str) -> Stage:
        """Return the progress of the stage ``name``."""
        return Stage(self, name, self._clock)

    def line(self, text: str) -> None:
        """Report something that stays true."""
        with self._lock:
            self._report(Line(text))

    def _update(self, name: str, text: str | None) -> None:
        with self._lock:
            if text is None:
                self._running.pop(name, None)
                return
            self._running[name] = text
            now = self._clock()
            if now - self._shown < self._interval:
                return
            self._shown = now
            parts = "; ".join(f"{key}: {value}" for key, value in self._running.items())
            self._report(Line(f"[{duration(now - self._started)}] {parts}", passing=True))


class Stage:
    """One stage's progress."""

    def __init__(self, progress: Progress, name: str, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._clock = clock
        self._started = clock()
        self.name = name

    def start(self, text: str) -> None:
        """Report that the stage has work to do."""
        self._started = self._clock()
        self._progress.line(f"{self.name}: {text}")
        self.doing("starting")

    def doing(self, text: str) -> None:
        """Say what the stage does now; shown from time to time. Cheap, call it often."""
        self._progress._update(self.name, text)

    def done(self, text: str) -> None:
        """Report that the stage is finished."""
        self._progress._update(self.name, None)
        self._progress.line(f"{self.name}: {text} ({duration(self._clock() - self._started)})")

    def ended(self) -> None:
        """Forget the stage, which did not finish."""
        self._progress._update(self.name, None)
