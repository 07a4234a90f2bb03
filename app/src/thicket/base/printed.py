# SPDX-License-Identifier: Apache-2.0
"""Output of ``print()`` and to stderr goes to the log, line by line.

Each line becomes a record as soon as it is complete, so that lines and other records keep their
order. The beginning of a line waits for its end. It is logged without its end when its thread logs
something else, when it is long, and by :func:`sweep`.
"""

from __future__ import annotations

import codecs
import io
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

#: A line of this many characters is logged without its end.
LONGEST = 4096
#: The beginning of a line waits at least this many seconds for its end.
WAIT = 1.0
#: Lines of one source that are logged in ten seconds.
BURST = 200
#: Threads whose lines are collected; when there are more, the oldest beginning is logged.
_THREADS = 64

log = logging.getLogger(__name__)


def _nobody() -> str:
    return ""


class _Begun:
    """The beginning of a line."""

    __slots__ = ("source", "text", "when")

    def __init__(self, source: str) -> None:
        self.source = source
        self.text = ""
        self.when = time.monotonic()


class Printed(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr``.

    :param original: where the log's own failures are written.
    :param level: the level at which lines are logged.
    :ivar source: returns who prints (the name of an application), or an empty text.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, original: Any, level: int) -> None:
        super().__init__()
        self.original = original
        self.level = level
        self.source: Callable[[], str] = _nobody
        self.buffer = _Bytes(self)
        # An RLock, as the alarm of a blocked event loop may log while this thread holds it.
        self._lock = threading.RLock()
        self._begun: dict[int, _Begun] = {}
        self._own = threading.local()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        """Return the file that child programs inherit as this stream.

        :raises io.UnsupportedOperation: when this process was started without one.
        """
        if self.original is None:
            raise io.UnsupportedOperation("fileno")
        number: int = self.original.fileno()
        return number

    def write(self, text: str) -> int:
        """Take in ``text``, and log the lines that it completes."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if getattr(self._own, "logging", False):  # the log itself failed, and says so
            self._aside(text)
            return len(text)
        thread = threading.get_ident()
        lines: list[tuple[str, str]] = []
        with self._lock:
            begun = self._begun.get(thread)
            if begun is None:
                begun = self._begun[thread] = _Begun(self.source())
                if len(self._begun) > _THREADS:
                    oldest = next(iter(self._begun))
                    lines.append(self._end(oldest))
            *ended, rest = text.split("\n")
            for line in ended:
                lines.append((begun.source, begun.text + line))
                begun.text = ""
            begun.text += rest
            while len(begun.text) > LONGEST:
                lines.append((begun.source, begun.text[:LONGEST]))
                begun.text = begun.text[LONGEST:]
            if not begun.text:
                self._begun.pop(thread, None)
        self._record(lines)
        return len(text)

    def flush_thread(self) -> None:
        """Log the beginning of a line that the calling thread has written."""
        with self._lock:
            thread = threading.get_ident()
            lines = [self._end(thread)] if thread in self._begun else []
        self._record(lines)

    def sweep(self, wait: float = WAIT) -> None:
        """Log the beginnings of lines that are ``wait`` seconds old."""
        now = time.monotonic()
        with self._lock:
            old = [thread for thread, begun in self._begun.items() if now - begun.when >= wait]
            lines = [self._end(thread) for thread in old]
        self._record(lines)

    def _end(self, thread: int) -> tuple[str, str]:
        begun = self._begun.pop(thread)
        return begun.source, begun.text

    def _record(self, lines: list[tuple[str, str]]) -> None:
        if not lines:
            return
        self._own.logging = True
        try:
            for source, line in lines:
                if line.strip():
                    who = source.replace("%", "%%") or "printed"
                    log.log(self.level, f"{who}: %s", line, extra={"burst": BURST})
        finally:
            self._own.logging = False

    def _aside(self, text: str) -> None:
        try:
            self.original.write(text)
            self.original.flush()
        except (OSError, ValueError, AttributeError):
            pass  # there is nowhere else to write it


class _Bytes(io.RawIOBase):
    """The stream for code that writes bytes."""

    def __init__(self, stream: Printed) -> None:
        super().__init__()
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Take in text in UTF-8."""
        raw = bytes(data)
        self._stream.write(self._decoder.decode(raw))
        return len(raw)


class _InOrder(logging.Filter):
    """Logs the beginning of a line before another record of the same thread; all records pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name != log.name:
            flush_thread()
        return True


_streams: list[Printed] = []


def take() -> None:
    """Send everything that this process prints to the log, which must have been set up."""
    if _streams:
        return
    for name, level in (("stdout", logging.INFO), ("stderr", logging.WARNING)):
        stream = Printed(getattr(sys, f"__{name}__"), level)
        setattr(sys, name, stream)
        _streams.append(stream)
    for handler in logging.getLogger().handlers:
        handler.addFilter(_InOrder())


def give_back() -> None:
    """Take :func:`take` back."""
    sweep(0.0)
    for handler in logging.getLogger().handlers:
        for one in [one for one in handler.filters if isinstance(one, _InOrder)]:
            handler.removeFilter(one)
    for stream in _streams:
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is stream:
                setattr(sys, name, stream.original)
    _streams.clear()


def name_sources(source: Callable[[], str]) -> None:
    """Name the source of lines.

    :param source: returns the name of the application that prints, or an empty text.
    """
    for stream in _streams:
        stream.source = source


def flush_thread() -> None:
    """Log the beginnings of lines that the calling thread has written."""
    for stream in _streams:
        stream.flush_thread()


def sweep(wait: float = WAIT) -> None:
    """Log the beginnings of lines that have waited for ``wait`` seconds."""
    for stream in _streams:
        stream.sweep(wait)
