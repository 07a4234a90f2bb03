# SPDX-License-Identifier: Apache-2.0
"""Runs programs whose whole output goes to a log file."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from host import stop
from host.errors import CancelledError, HostError

LOG_TAIL = 25
"""Lines of a log that an error shows."""

PATIENCE = 10.0
"""Seconds that a program has to end by itself, so that make removes its half-made files."""


def tail(log: Path, lines: int = LOG_TAIL) -> str:
    """Return the last ``lines`` of a log file."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


class Runner:
    """Runs programs for several stages at once and ends them all when the build is ended.

    :param nice: is added to their niceness.
    """

    def __init__(self, nice: int = 0) -> None:
        self._nice = nice
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        """End every running program; those started later are refused."""
        self.cancelled.set()
        with self._lock:
            running = list(self._running)
        for process in running:
            # Its own session, so that make's children go with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def run(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        what: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        inherited: Mapping[str, str] = os.environ,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        """Run a program to its end.

        It is ended, with all that it started, when this raises, and when this process dies,
        however it dies.

        :param log: its output is appended to this file.
        :param what: what the program does, for the error's text.
        :param env: what is added to the environment.
        :param inherited: the environment that is added to.
        :param on_line: called with every line of output.
        :raises HostError: when it fails; the text has the end of the log.
        :raises CancelledError: after :meth:`cancel`.
        """
        words = [os.fspath(word) for word in command]
        environment = {**inherited, "LC_ALL": "C", **(env or {})}
        # SIGTERM and not SIGKILL at the death of this process: make then ends its own children.
        setpriv = shutil.which("setpriv")
        prefix = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
        if self._nice:
            prefix += ["nice", "-n", str(self._nice)]
        # Unbuffered: people watch the log while it grows.
        with log.open("ab", buffering=0) as output:
            output.write(f"$ {shlex.join(words)}\n".encode())
            process = None
            try:
                with self._lock, stop.held():
                    if self.cancelled.is_set():
                        raise CancelledError(f"{what}: stopped")
                    process = self._start(prefix + words, cwd, environment, what)
                stdout = process.stdout
                assert stdout is not None
                for raw in stdout:
                    output.write(raw)
                    if on_line is not None:
                        on_line(raw.decode(errors="replace").rstrip("\n"))
                status = process.wait()
            except BaseException:
                if process is not None:
                    _end(process)
                raise
            finally:
                if process is not None:
                    with self._lock:
                        self._running.discard(process)
                    if process.stdout is not None:
                        process.stdout.close()
        if self.cancelled.is_set() and status != 0:
            raise CancelledError(f"{what}: stopped")
        if status != 0:
            outcome = f"exit status {status}" if status > 0 else f"signal {-status}"
            raise HostError(
                f"{what} failed: {words[0]} ended with {outcome}. The end of its output:\n"
                f"{tail(log)}\nThe whole output is in {log}"
            )

    def _start(
        self, words: list[str], cwd: Path | None, env: Mapping[str, str], what: str
    ) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                words,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise HostError(f"{what}: {words[0]} could not be started: {error}") from error
        self._running.add(process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a program and all that it started; what has not ended after PATIENCE is killed."""
    try:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
