# SPDX-License-Identifier: Apache-2.0
"""What the program prints, by ``print()`` or to stderr, goes to the log line by line.

Each line becomes a record as soon as it is complete, so that lines and other records stay in the
order in which they came. The beginning of a line waits for its end; it is logged without one when
its thread logs something else, when it is long, and by :func:`sweep`.
"""

from __future__ import annotations

import codecs
import io
import logging
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: Characters of a line at which it is logged without its end.
LONGEST: Final = 4096
#: Seconds that the beginning of a line waits for its end, at least.
WAIT: Final = 1.0
#: Lines of one source that are logged in ten seconds.
BURST: Final = 200
#: Threads whose lines are collected; beyond, the one that waits longest is logged.
_THREADS: Final = 64

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
    :param level: the kind of record that a line becomes.
    :ivar source: tells who prints (the name of an application), or an empty text.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, original: Any, level: int) -> None:
        super().__init__()
        self.original = original
        self.level = level
        self.source: Callable[[], str] = _nobody
        self.buffer = _Bytes(self)
        # RLock: the alarm of a blocked event loop logs in the middle of anything.
        self._lock = threading.RLock()
        self._begun: dict[int, _Begun] = {}
        self._own = threading.local()

    def writable(self) -> bool:
        """See :class:`io.IOBase`."""
        return True

    def isatty(self) -> bool:
        """See :class:`io.IOBase`."""
        return False

    def fileno(self) -> int:
        """Return the file that programs inherit which are started with this stream.

        :raises io.UnsupportedOperation: when this process was started without one.
        """
        if self.original is None:
            raise io.UnsupportedOperation("fileno")
        number: int = self.original.fileno()
        return number

    def write(self, text: str) -> int:
        """Take in *text*, and log the lines that it completes."""
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
        """Log the beginning of a line of the calling thread."""
        with self._lock:
            thread = threading.get_ident()
            lines = [self._end(thread)] if thread in self._begun else []
        self._record(lines)

    def sweep(self, wait: float = WAIT) -> None:
        """Log beginnings of lines that are *wait* seconds old."""
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
            pass  # there is nowhere left to say it


class _Bytes(io.RawIOBase):
    """The binary form of a stream, for what is written as bytes."""

    def __init__(self, stream: Printed) -> None:
        super().__init__()
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        """See :class:`io.IOBase`."""
        return True

    def write(self, data: Any, /) -> int:
        """Take in what is text in UTF-8."""
        raw = bytes(data)
        self._stream.write(self._decoder.decode(raw))
        return len(raw)


class _InOrder(logging.Filter):
    """Has the beginning of a line logged before what its thread logs otherwise."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if record.name != log.name:
            flush_thread()
        return True


_streams: list[Printed] = []


def take() -> None:
    """Let everything that this process prints go to the log, which has been set up."""
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
    """Let *source* tell who prints: the name of an application, or an empty text."""
    for stream in _streams:
        stream.source = source


def flush_thread() -> None:
    """Log the beginnings of lines of the calling thread."""
    for stream in _streams:
        stream.flush_thread()


def sweep(wait: float = WAIT) -> None:
    """Log the beginnings of lines that have waited for *wait* seconds."""
    for stream in _streams:
        stream.sweep(wait)
