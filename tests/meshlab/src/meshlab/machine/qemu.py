# SPDX-License-Identifier: Apache-2.0
"""One process of QEMU and the connection to its monitor (QMP)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Self

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
)

from host import child
from meshlab.machine.given import Given, within
from meshlab.machine.output import Output
from meshlab.machine.spec import QMP_SOCKET, MachineSpec, Start
from meshlab.wire.sockets import socket_address

NICE = 10
"""Niceness of QEMU: the medium, the chips and the view must not wait for twenty busy guests."""

QMP_PATIENCE = 60.0
"""Seconds, as it is given them, that QEMU has to answer."""

_START_PATIENCE = 300.0
_TICKS = os.sysconf("SC_CLK_TCK")

OnQmpEvent = Callable[[Mapping[str, Any]], None]


class MachineError(Exception):
    """The machine cannot do what was asked; the text has QEMU's own words where there are any."""


class Qemu:
    """QEMU from its start to its end.

    :param spec: The machine.
    :param process: The process, which runs.
    :param output: What it writes.
    :param on_event: Called with each event of QMP.
    :ivar client: The connection to its monitor; ``connect`` makes it.
    :ivar shutdown: Why the guest stopped (ShutdownCause of qapi/run-state.json); "" while it runs.
    """

    def __init__(
        self,
        spec: MachineSpec,
        process: asyncio.subprocess.Process,
        output: Output,
        on_event: OnQmpEvent,
    ) -> None:
        self.process = process
        self.client: QMPClient | None = None
        self.shutdown = ""
        self._spec = spec
        self._output = output
        self._on_event = on_event
        self._cpu = 0.0
        self._dropping: tuple[QMPClient, asyncio.Task[None]] | None = None

    @classmethod
    async def start(
        cls,
        spec: MachineSpec,
        line: Sequence[str],
        start: Start | None,
        output: Output,
        on_event: OnQmpEvent,
    ) -> Self:
        """Start the process.

        :param spec: The machine.
        :param line: Its command line.
        :param start: What the boot ROM found, for a machine with a card.
        :param output: What QEMU will write.
        :param on_event: Called with each event of QMP.
        :raises MachineError: when it does not start.
        """
        try:
            with output.log.open("ab") as log:
                process = await asyncio.create_subprocess_exec(
                    *child.tied(line, nice=NICE),
                    cwd=spec.directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # Ctrl-C in the terminal is for the simulator, which ends its machines itself.
                    process_group=0,
                    pass_fds=() if start is None else (start.memory,),
                )
        except OSError as error:
            raise MachineError(
                f"{spec.name}: cannot start {spec.hardware.qemu}: {error}"
            ) from error
        return cls(spec, process, output, on_event)

    @property
    def running(self) -> bool:
        """Tell whether the process runs."""
        return self.process.returncode is None

    def kill(self) -> None:
        """End the process at once, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def within(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Limit what waits for the process to these seconds, as it is given them.

        :raises TimeoutError: in the context, when they are over.
        """
        return within(seconds, lambda: [self.process.pid])

    async def connect(self) -> None:
        """Connect to the monitor.

        :raises MachineError: when QEMU ended, in its own words, or does not answer.
        """
        spec = self._spec
        path = spec.directory / QMP_SOCKET
        had = Given(lambda: [self.process.pid])
        while True:
            if not self.running:
                raise MachineError(
                    f"{spec.name}: QEMU ended with status {self.process.returncode}: "
                    + (self._output.errors() or "without a word")
                )
            if path.exists():
                client = QMPClient(spec.name)
                # What goes wrong is told by exceptions; the library would print it besides.
                client.logger.setLevel(logging.CRITICAL)
                # Every client keeps all events it ever saw for its default listener: none, please.
                client.events.names = {"none"}
                client.register_listener(EventListener(event_filter=self._listen))
                try:
                    async with self.within(QMP_PATIENCE):
                        await client.connect(socket_address(path))
                except (ConnectError, OSError, TimeoutError):
                    pass  # not listening yet, or ending: decided by the process and the deadline
                else:
                    self.client = client
                    return
            if had.seconds() > _START_PATIENCE:
                errors = self._output.errors()
                raise MachineError(
                    f"{spec.name}: QEMU did not answer on {path} within {_START_PATIENCE:g} s"
                    + (f": {errors}" if errors else "")
                )
            await asyncio.sleep(0.01)

    async def keep_connected(self) -> None:
        """Connect again whenever the connection was lost but QEMU was not; return with its end.

        :raises MachineError: when QEMU does not answer any more.
        """
        while self.client is not None:
            client = self.client
            while client.runstate == Runstate.RUNNING:
                await client.runstate_changed()
            await self._disconnect(client)
            if not self.running:
                return
            try:
                await self.connect()
            except MachineError:
                if self.running:
                    raise
                return

    async def said_all(self) -> None:
        """Wait until what QEMU said last is read: its end closes the connection."""
        client = self.client
        with contextlib.suppress(TimeoutError):
            async with self.within(QMP_PATIENCE):
                while client is not None and client.runstate == Runstate.RUNNING:
                    await client.runstate_changed()

    async def disconnect(self) -> None:
        """Close the connection to the monitor."""
        if self.client is not None:
            client, self.client = self.client, None
            await self._disconnect(client)

    async def _disconnect(self, client: QMPClient) -> None:
        """Disconnect ``client``, once, whoever asks and whoever is cancelled meanwhile."""
        if self._dropping is None or self._dropping[0] is not client:

            async def drop() -> None:
                with contextlib.suppress(Exception):
                    await client.disconnect()

            self._dropping = (client, asyncio.create_task(drop()))
        await asyncio.shield(self._dropping[1])

    async def execute(self, name: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a QMP command and return its answer.

        :param name: The command.
        :param arguments: Its arguments.
        :raises MachineError: when QEMU refuses it, does not answer in time or is not there.
        """
        node = self._spec.name
        if self.client is None or not self.running:
            raise MachineError(f"{node}: {name}: the machine is off")
        try:
            async with self.within(QMP_PATIENCE):
                return await self.client.execute(name, dict(arguments) if arguments else None)
        except ExecuteError as error:
            raise MachineError(f"{node}: {name}: {error}") from error
        except (QMPError, OSError, TimeoutError) as error:
            raise MachineError(
                f"{node}: {name}: QEMU does not answer ({type(error).__name__})"
            ) from error

    def _listen(self, event: Mapping[str, Any]) -> bool:
        """Take an event. Returns False: the listener that asks need not keep it."""
        if event.get("event") == "SHUTDOWN":
            self.shutdown = str((event.get("data") or {}).get("reason", ""))
        self._on_event(event)
        return False

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that the process has used; of the last call when it has ended."""
        if self.running:
            with contextlib.suppress(OSError, ValueError, IndexError):
                # proc_pid_stat(5): utime and stime are fields 14 and 15, in clock ticks.
                text = Path("/proc", str(self.process.pid), "stat").read_text()
                fields = text.rsplit(")", 1)[1].split()
                self._cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        return self._cpu

    def own_kib(self) -> int:
        """Return the memory that the process alone holds now, the guest's included, in KiB.

        Files that it maps (itself, the kernel, the root) are there once for all nodes, and not
        counted. 0 after its end.
        """
        if self.running:
            with contextlib.suppress(OSError):
                # proc_pid_status(5); the guest's memory is of either kind.
                text = Path("/proc", str(self.process.pid), "status").read_text()
                found = re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", text, re.MULTILINE)
                return sum(int(number) for number in found)
        return 0
