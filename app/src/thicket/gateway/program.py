# SPDX-License-Identifier: Apache-2.0
"""A program of others that runs as long as it is wanted: dhcpcd, tayga, unbound."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from contextlib import suppress
from logging import getLogger

from thicket.base.errors import CodedError
from thicket.base.files import read, remove, write_atomically
from thicket.base.patience import wait_for

log = getLogger(__name__)

#: Seconds that it has to end.
_END_SECONDS = 4.0


class ProgramError(CodedError):
    """A program cannot be started; ``code`` is missing or start."""


class Program:
    """One program in the foreground, as a child of this process.

    :param folder: in RAM, for the file of its number and what it says.
    :param command: its command line; the first word is its name.
    """

    def __init__(self, folder: str, command: tuple[str, ...]) -> None:
        self.command = command
        self.name = os.path.basename(command[0])
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = asyncio.Event()
        self._pidfd = -1

    @property
    def running(self) -> bool:
        return self._child is not None and not self._ended.is_set()

    async def start(self) -> None:
        """Start it anew; one that an earlier daemon has left is ended.

        :raises ProgramError: it cannot be started.
        """
        await self.stop()
        await self._end_stray()
        try:
            child = self._child = self._spawn()
        except FileNotFoundError:
            raise ProgramError("missing", f"{self.name} is not installed") from None
        except OSError as error:
            raise ProgramError("start", f"{self.name} cannot be started: {error}") from None
        write_atomically(self._path("pid"), f"{child.pid}\n".encode(), durable=False)
        self._watch(child)

    def _spawn(self) -> subprocess.Popen[bytes]:
        with open(self._path("log"), "wb") as output:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def _path(self, kind: str) -> str:
        return f"{self._folder}/{self.name}.{kind}"

    def _watch(self, child: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        self._ended = ended = asyncio.Event()
        pidfd = self._pidfd = os.pidfd_open(child.pid)

        def gone() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            child.wait()
            ended.set()

        loop.add_reader(pidfd, gone)

    def last_words(self) -> str:
        """Return the end of what it has said before it could log."""
        lines = (read(self._path("log")) or "").splitlines()
        return "; ".join(lines[-2:])[-300:]

    async def stop(self) -> None:
        """End it."""
        child, self._child = self._child, None
        if child is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._ended.is_set():
                break
            with suppress(ProcessLookupError, OSError):
                signal.pidfd_send_signal(self._pidfd, number)
            await wait_for(self._ended, _END_SECONDS)
        remove(self._path("pid"))

    async def _end_stray(self) -> None:
        """End the one that a daemon has left which was killed."""
        text = read(self._path("pid")) or ""
        pid = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
        if pid and (read(f"/proc/{pid}/comm") or "") == self.name[:15]:
            log.info("ending the %s (process %d) of an earlier start", self.name, pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
                for _ in range(int(_END_SECONDS / 0.1)):
                    os.kill(pid, 0)
                    await asyncio.sleep(0.1)
                os.kill(pid, signal.SIGKILL)
        remove(self._path("pid"))
