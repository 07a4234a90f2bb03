# SPDX-License-Identifier: Apache-2.0
"""The connection to another machine: the system's ``ssh``, and the agent at its other end."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import shlex
import shutil
from pathlib import Path

from host.child import tied
from meshlab.hosts import bootstrap
from meshlab.hosts.bundle import bundle
from meshlab.hosts.errors import HostsError, in_words
from meshlab.hosts.link import PATIENCE, Handlers, Link

PROGRAM = "THICKET_SSH"
"""Environment variable: the command to use instead of ``ssh``, such as ``ssh -F FILE``."""

OPTIONS = (
    *("-T", "-x", "-a"),
    *("-e", "none"),
    *("-o", "BatchMode=yes"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "ConnectTimeout=15"),
    *("-o", "ServerAliveInterval=5"),
    *("-o", "ServerAliveCountMax=4"),
)
"""Nothing is asked, nothing forwarded. Keys, ports and jump hosts come from ``~/.ssh/config``."""

GREETING_PATIENCE = 300.0
"""Seconds until the other side has said its first line."""
END_PATIENCE = 10.0
_SAID = 16 * 1024


class Connection:
    """ssh from its start to its end.

    :param process: It.
    :param log: Where what it says goes.
    """

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log
        self._said = b""
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, host: str, log: Path) -> Connection:
        """Start ssh, which starts the agent's first words.

        :param host: As ssh takes it.
        :param log: What it says on standard error is added to this file.
        :raises HostsError: when there is no ssh.
        """
        agent = bundle()
        words = ["python3", "-c", inspect.getsource(bootstrap), agent.digest, str(len(agent.data))]
        program = shlex.split(os.environ.get(PROGRAM, "ssh"))
        if shutil.which(program[0]) is None:
            raise HostsError(f"{host}: there is no program {program[0]} on this machine")
        command = [*program, *OPTIONS, "--", host, f"exec {shlex.join(words)}"]
        try:
            process = await asyncio.create_subprocess_exec(
                *tied(command),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                process_group=0,  # Ctrl-C is for the lab, which ends it in order
            )
        except OSError as error:
            raise HostsError(f"{host}: {program[0]} cannot be started: {error}") from error
        return cls(process, log)

    @property
    def said(self) -> str:
        """Return the end of what was said on standard error."""
        return self._said.decode(errors="replace")

    async def link(self, host: str, handlers: Handlers, patience: float = PATIENCE) -> Link:
        """Send the agent if it is not there, and return the link to it.

        :raises HostsError: when the machine cannot be used; the text says why.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(GREETING_PATIENCE):
                have = await self._greeting()
        except TimeoutError:
            text = f"{host}: nothing came within {GREETING_PATIENCE:g} s"
            raise HostsError(text) from None
        if have is None:
            raise HostsError(await self.failure(host))
        if not have:
            self.process.stdin.write(bundle().data)
        link = Link(self.process.stdout, self.process.stdin, handlers, first=0, patience=patience)
        link.start()
        return link

    async def failure(self, host: str) -> str:
        """Return why the machine cannot be used: ssh has ended, or is about to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_PATIENCE):
                await self.process.wait()
                await self._listening
        return in_words(host, self.process.returncode, self.said)

    async def end(self, patience: float = END_PATIENCE) -> None:
        """Wait for the end of ssh, and make it end."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(patience):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)

    async def _greeting(self) -> bool | None:
        """Return whether the agent is there; ``None``: ssh has ended. Other lines are skipped: the
        other side's shell may print some."""
        assert self.process.stdout is not None
        while True:
            try:
                line = await self.process.stdout.readline()
            except ValueError:
                continue  # a line without end, which is not ours
            if not line:
                return None
            with contextlib.suppress(ValueError, TypeError, KeyError):
                said = json.loads(line)
                if said["thicket-agent"] == bundle().digest:
                    return bool(said["have"])

    async def _listen(self) -> None:
        assert self.process.stderr is not None
        while data := await self.process.stderr.read(4096):
            self._said = (self._said + data)[-_SAID:]
            with contextlib.suppress(OSError), self._log.open("ab") as log:
                log.write(data)
