# SPDX-License-Identifier: Apache-2.0
"""Sends what the daemon logs to a server.

Lines wait in memory, the oldest are dropped and counted when there are too many, and a thread sends
them: neither a server that is slow or away nor a name that cannot be resolved delays the daemon.
(asyncio is imported without TLS, see :mod:`thicket.daemon.start`.)
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from thicket.base import threads
from thicket.base.log import Limit, severity
from thicket.base.pace import Backoff
from thicket.base.problems import Problems
from thicket.syslog.message import Line, Sender, framed, message
from thicket.syslog.section import SyslogSection, host_and_port
from thicket.trust.clock import synchronised
from thicket.trust.tls import NO_CHECK_TIME

#: Most lines that wait, and most bytes of them.
MOST_LINES = 512
MOST_BYTES = 128 * 1024
#: Seconds that connecting, the handshake of TLS, and sending a line may take, each.
PATIENCE = 15.0
#: Pauses between attempts in seconds; the last one repeats.
PAUSES = (1.0, 5.0, 15.0, 60.0)
#: Seconds in which what waits is still sent when the daemon ends.
GRACE = 1.0


class Waiting(logging.Handler):
    """Keeps lines until they are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.more = threading.Condition()
        self.lines: deque[Line] = deque()
        self.bytes = 0
        self.lost = 0
        self.closing = False
        self.setFormatter(logging.Formatter("%(message)s"))
        self.addFilter(Limit())

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record, line by line."""
        try:
            set_ = synchronised()
            level = severity(record.levelno)
            for text in self.format(record).splitlines():
                self.put(Line(record.created, level, text, set_))
        except Exception:  # a log message must not end the program; standard handlers do the same
            self.handleError(record)

    def put(self, line: Line) -> None:
        """Keep one line; the oldest ones make room for it."""
        with self.more:
            self.lines.append(line)
            self.bytes += len(line.text)
            while len(self.lines) > MOST_LINES or (self.bytes > MOST_BYTES and len(self.lines) > 1):
                self.bytes -= len(self.lines.popleft().text)
                self.lost += 1
            self.more.notify()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # of logging.Handler
        """Count a record that could not be kept."""
        self.lost += 1

    def first(self, seconds: float | None) -> Line | None:
        """Wait for a line, and return the first without taking it; None where there is none.

        :param seconds: None waits until there is one, or the end.
        """
        with self.more:
            self.more.wait_for(lambda: self.lines or self.closing, seconds)
            return self.lines[0] if self.lines else None

    def done(self, line: Line) -> None:
        """Take out a line that was sent, unless others have pushed it out meanwhile."""
        with self.more:
            if self.lines and self.lines[0] is line:
                self.bytes -= len(self.lines.popleft().text)

    def end(self) -> None:
        """Let nobody wait any more."""
        with self.more:
            self.closing = True
            self.more.notify()


class Forwarder:
    """The part ``syslog`` of the daemon.

    :param settings: with a server.
    :param who: returns hostname, name in the cluster, address and version of this node.
    """

    def __init__(
        self,
        settings: SyslogSection,
        problems: Problems,
        who: Callable[[], tuple[str, str, str, str]],
    ) -> None:
        found = host_and_port(settings.server)
        assert found is not None, "the section has judged it"
        self._server = found
        self._authority = settings.ca
        self._problems = problems
        self._who = who
        self._waiting = Waiting()
        self._tell: Callable[[str], object] = lambda _: None
        self.connected = False
        self.sent = 0

    def snapshot(self) -> dict[str, Any]:
        """Return the part ``syslog`` of the status document."""
        waiting = self._waiting
        return {
            "connected": self.connected,
            "sent": self.sent,
            "waiting": len(waiting.lines),
            "lost": waiting.lost,
        }

    async def run(self) -> None:
        """Forward until cancelled."""
        loop, root = asyncio.get_running_loop(), logging.getLogger()
        self._tell = lambda why: loop.call_soon_threadsafe(self._report, why)
        root.addHandler(self._waiting)
        working, _ = threads.start(self._work, "syslog")
        try:
            await working
        finally:
            root.removeHandler(self._waiting)
            self._waiting.end()
            await asyncio.wait({working}, timeout=GRACE)
            self._tell = lambda _: None
            self._problems.clear("syslog")

    def _report(self, why: str) -> None:
        if why:
            host, port = self._server
            message_ = f"the log cannot be sent to {host}, port {port}: {why}"
            self._problems.report("syslog", "not-sent", message_, "warning")
        else:
            self._problems.clear("syslog", "not-sent")

    # -- in the thread

    def _work(self) -> None:
        backoff = Backoff(*PAUSES)
        while self._waiting.first(None) is not None:
            try:
                with self._connect() as connection:
                    self.connected = True
                    backoff.reset()
                    self._tell("")
                    self._send_all(connection)
            except (OSError, ValueError) as error:
                pause = backoff.failed()
                # The node joins its mesh, and finds a gateway, some time after its start.
                if backoff.exhausted:
                    self._tell(str(getattr(error, "strerror", None) or error))
                self._rest(pause)
            finally:
                self.connected = False
            if self._waiting.closing:
                return

    def _rest(self, seconds: float) -> None:
        waiting = self._waiting
        with waiting.more:
            waiting.more.wait_for(lambda: waiting.closing, seconds)

    def _connect(self) -> ssl.SSLSocket:
        """Connect to the server and check its certificate.

        :raises OSError: it cannot be reached, or is another one; ssl.SSLError is one.
        """
        context = ssl.create_default_context(cadata=self._authority or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if not synchronised():
            # As for the fleet's certificates: a clock that nobody has set refuses nobody.
            context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
        plain = socket.create_connection(self._server, PATIENCE)
        try:
            return context.wrap_socket(plain, server_hostname=self._server[0])
        except BaseException:
            plain.close()
            raise

    def _send_all(self, connection: ssl.SSLSocket) -> None:
        """Send what waits, and what comes, until the daemon ends.

        :raises OSError: the connection is lost.
        """
        waiting, told = self._waiting, 0
        hostname, node, address, version = self._who()
        while (line := waiting.first(None)) is not None:
            if not node:  # it was not known at first
                hostname, node, address, version = self._who()
            sender = Sender(hostname, node, address, version, "thicketd", os.getpid())
            _look(connection)
            lost = waiting.lost
            if lost > told:
                words = f"({lost - told} lines before this one were lost)"
                connection.sendall(framed(message(line._replace(text=words, severity=4), sender)))
                told = lost
            connection.sendall(framed(message(line, sender)))
            waiting.done(line)
            self.sent += 1


def _look(connection: ssl.SSLSocket) -> None:
    """Read what the server says, which is nothing but TLS's own.

    :raises OSError: it has closed the connection.
    """
    connection.settimeout(0)
    try:
        if not connection.recv(64):
            raise ConnectionResetError("the server has closed the connection")
    except (ssl.SSLWantReadError, BlockingIOError):
        pass
    finally:
        connection.settimeout(PATIENCE)
