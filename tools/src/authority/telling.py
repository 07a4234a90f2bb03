# SPDX-License-Identifier: Apache-2.0
"""Tells a person how far long work is: on a terminal in one line, elsewhere a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from typing import Final

from thicket.base.visible import redraw

LIVE: Final = 0.2
PLAIN: Final = 10.0
"""Seconds between two lines: on a terminal, and elsewhere."""


class Telling:
    """Tells what is done. A step that says nothing itself is told with its time."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began = time.monotonic()
        self._said = self._began
        self._text = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticks = threading.Thread(target=self._tick, name="telling", daemon=True)

    def __enter__(self) -> Telling:
        self._ticks.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Make room for what comes next."""
        self._ended.set()
        self._ticks.join()
        if self._live:
            redraw(sys.stderr)

    def __call__(self, text: str) -> None:
        """Say what is done now; cheap, and called often."""
        with self._lock:
            new = text.partition(":")[0] != self._text.partition(":")[0]
            self._text = text
            if time.monotonic() - self._said >= (LIVE if self._live else PLAIN) or (
                new and self._live
            ):
                self._show()

    def _tick(self) -> None:
        pause = 1.0 if self._live else PLAIN
        while not self._ended.wait(pause):
            with self._lock:
                if self._text and time.monotonic() - self._said >= pause:
                    self._show()

    def _show(self) -> None:
        now = time.monotonic()
        self._said = now
        line = f"[{now - self._began:.0f} s] {self._text}"
        if self._live:
            redraw(sys.stderr, line[:79])
        else:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


class Bar:
    """Tells how much of a transfer is done."""

    def __init__(self, size: int, tell: Telling) -> None:
        self._size = size
        self._tell = tell

    def __call__(self, done: int) -> None:
        """So many bytes were sent."""
        full = 20 * done // self._size
        bar = "#" * full + "." * (20 - full)
        self._tell(f"sending: [{bar}] {done / 2**20:.1f} of {self._size / 2**20:.1f} MiB")
