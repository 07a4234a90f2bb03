# SPDX-License-Identifier: Apache-2.0
"""Logging to the system log, and to stderr where there is none.

The standard ``logging`` package does the work (asyncio imports it in any case). The handler is
ours, because importing ``logging.handlers`` costs start-up time for much that a node does not need.
"""

import contextlib
import logging
import os
import select
import socket
import sys
import time

from thicket.base.visible import visible

#: RFC 5424 6.2.1: facility 3, system daemons.
_FACILITY = 3 << 3
#: RFC 5424 6.2.1: severities.
_SEVERITIES = (
    (logging.CRITICAL, 2),
    (logging.ERROR, 3),
    (logging.WARNING, 4),
    (logging.INFO, 6),
)
#: Longest text of one datagram in bytes; syslog daemons of embedded systems cut at 1024 or before.
_LONGEST = 900
#: A longer line is split into at most this many datagrams.
_MOST_PIECES = 8
#: Seconds to wait for a log daemon whose queue is full.
_PATIENCE = 0.2
#: Seconds without any waiting after a wait that did not help.
_HASTE = 10.0
#: One message (its text before the values are filled in) is logged at most _BURST times in _WINDOW
#: seconds.
_BURST = 20
_WINDOW = 10.0


def severity(level: int) -> int:
    """Return the severity of syslog for a level of ``logging``."""
    return next((number for least, number in _SEVERITIES if level >= least), 7)


class Limit(logging.Filter):
    """Drops messages that repeat too often; the next one that passes tells how many were dropped.

    A record may carry its own limit in the attribute ``burst``.
    """

    #: Different messages that are remembered; all are forgotten when there are more.
    KINDS = 256

    def __init__(self, burst: int = _BURST, window: float = _WINDOW) -> None:
        super().__init__()
        self.burst = burst
        self.window = window
        self._seen: dict[tuple[str, str], list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        now = record.created if record.created > 0 else time.time()
        key = (record.name, str(record.msg))
        # [start of the window, logged in it, dropped since the last one logged]
        state = self._seen.get(key)
        if state is None:
            if len(self._seen) >= self.KINDS:
                self._seen.clear()
            self._seen[key] = [now, 1, 0]
            return True
        if not 0 <= now - state[0] < self.window:
            state[0], state[1] = now, 0
        if state[1] >= getattr(record, "burst", self.burst):
            state[2] += 1
            return False
        state[1] += 1
        if state[2]:
            record.msg = f"{record.getMessage()} ({int(state[2])} like this not logged)"
            record.args = None
            state[2] = 0
        return True


class SyslogHandler(logging.Handler):
    """Sends each line of a record as one datagram to ``path`` (RFC 3164, without the time).

    A log daemon queues about ten lines. When it does not keep up, the handler waits for it briefly,
    and not again soon when that did not help: the lines are lost then, and the next one tells how
    many. Without a log daemon the lines go to stderr; each record tries the log daemon again.
    """

    def __init__(self, tag: str, path: str = "/dev/log") -> None:
        super().__init__()
        self.path = path
        self.prefix = f"{tag}[{os.getpid()}]: "
        self._socket: socket.socket | None = None
        self._lost = 0
        self._hasty_until = 0.0

    def _connected(self) -> socket.socket:
        if self._socket is None:
            s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            try:
                s.connect(self.path)
            except OSError:
                s.close()
                raise
            self._socket = s
        return self._socket

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            number = severity(record.levelno)
            for line in self.format(record).splitlines():
                self._line(number, line)
        except Exception:  # a log message must not end the program; standard handlers do the same
            self.handleError(record)

    def _line(self, number: int, line: str) -> None:
        # addresses and names in messages come from the network: keep terminals and logs safe
        clean = visible(line, keep="")
        more = f"({self._lost} lines were lost) " if self._lost else ""
        head = f"<{_FACILITY | number}>{self.prefix}"
        for piece in _pieces(more + clean, _LONGEST - len(head.encode())):
            if not self._sent(head.encode() + piece):
                _aside(f"{self.prefix}{clean}\n")
                return

    def _sent(self, data: bytes) -> bool:
        for _ in range(2):
            try:
                self._send(data)
                return True
            except OSError:
                # a restarted log daemon refuses on its old socket; it may have a new one
                self.close_socket()
        return False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # of logging.Handler
        """Write to stderr that a record could not be logged; never raises, and never logs."""
        error = sys.exc_info()[0]
        kind = error.__name__ if error is not None else "?"
        _aside(f"{self.prefix}a message of {record.name} could not be logged: {kind}\n")

    def _send(self, data: bytes) -> None:
        log_daemon = self._connected()
        try:
            log_daemon.send(data)
        except BlockingIOError:
            now = time.monotonic()
            if now < self._hasty_until or not select.select([], [log_daemon], [], _PATIENCE)[1]:
                if now >= self._hasty_until:
                    self._hasty_until = now + _HASTE
                self._lost += 1
                return
            try:
                log_daemon.send(data)
            except BlockingIOError:  # another program was faster
                self._lost += 1
                return
        self._lost = 0

    def close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self) -> None:
        """Close the connection to the log daemon."""
        self.close_socket()
        super().close()


def _pieces(text: str, room: int) -> list[bytes]:
    """Split ``text`` into pieces of at most ``room`` bytes, never within a character."""
    data = text.encode("utf-8", "replace")
    pieces: list[bytes] = []
    while len(data) > room and len(pieces) < _MOST_PIECES - 1:
        end = room
        while data[end] & 0xC0 == 0x80:  # a byte that continues a character
            end -= 1
        pieces.append(data[:end])
        data = data[end:]
    if len(data) > room:
        rest = f" (and {len(data) - room} bytes more)".encode()
        data = data[: room - len(rest)].decode("utf-8", "ignore").encode() + rest
    return [*pieces, data]


def _aside(text: str) -> None:
    """Write to the real stderr, also where a stream that logs has replaced it."""
    stream = getattr(sys.stderr, "original", sys.stderr)
    with contextlib.suppress(OSError, ValueError, AttributeError):
        stream.write(text)
        stream.flush()


def setup(level: str, tag: str = "thicketd", path: str = "/dev/log") -> None:
    """Send everything that is logged in this process to the system log."""
    handler = SyslogHandler(tag, path)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(Limit())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # saves a look at the caller's frame for every record
    logging._srcfile = ""
    logging.logThreads = logging.logMultiprocessing = logging.logProcesses = False
    set_level(level)


def set_level(level: str) -> None:
    """Change the least important level that is logged (a word of the configuration)."""
    number = getattr(logging, level.upper())
    logging.getLogger().setLevel(number)
    # asyncio's debug messages are about itself; pyroute2 logs every message it parses
    for noisy in ("asyncio", "pyroute2"):
        logging.getLogger(noisy).setLevel(max(number, logging.INFO))
