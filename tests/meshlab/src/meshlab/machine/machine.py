# SPDX-License-Identifier: Apache-2.0
"""The QEMU machine of one node: its life, and what it costs.

``Machine`` runs what ``spec.command`` says, in the node's own directory. A machine never outlives
the process that started it.

A machine either gets its kernel and root directly, or has a card and starts as a Raspberry Pi does:
``bootrom`` finds kernel and parameters on the card, at every restart anew, for which QEMU is
started anew as well. The guest's memory stays, as a Pi's does: it is lost with the power only.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from meshlab.machine import bootrom
from meshlab.machine.card import Card
from meshlab.machine.events import (
    Exited,
    MachineEvent,
    OnMachineEvent,
    Panic,
    RelayPort,
    Reset,
    Shutdown,
    Started,
    Trouble,
    WatchdogBite,
)
from meshlab.machine.given import within
from meshlab.machine.output import Output
from meshlab.machine.ports import Ports
from meshlab.machine.qemu import QMP_PATIENCE, MachineError, Qemu
from meshlab.machine.shell import Shell, ShellError
from meshlab.machine.spec import CARD, EXEC_SOCKET, SHELL_SOCKET, SOCKETS, MachineSpec, command
from meshlab.machine.suspend import SavedMachine, load, store

# qapi/run-state.json, ShutdownCause: those that end QEMU because of -no-reboot.
_RESET_REASONS = ("guest-reset", "host-qmp-system-reset")


class Machine:
    """One node's machine, switched off at first.

    :param spec: What it consists of.
    :param on_event: Called from the event loop with each of ``meshlab.machine.events``.
    :ivar shell: The shell of programs (hvc0).
    :ivar exec_shell: The shell for what people and tests run (hvc1).
    :ivar output: What guest and QEMU have written.
    :ivar qemu: The latest process of QEMU since ``start``.
    :ivar returncode: The exit status of QEMU when it has ended.
    :ivar ports: What is plugged in while it runs.
    :ivar resets: Restarts of the guest since ``start``.
    """

    def __init__(self, spec: MachineSpec, on_event: OnMachineEvent | None = None) -> None:
        self.spec = spec
        self.shell, self.exec_shell = (
            Shell(spec.directory / socket, spec.name, lambda: [self.pid])
            for socket in (SHELL_SOCKET, EXEC_SOCKET)
        )
        self.output = Output(spec.directory)
        self.qemu: Qemu | None = None
        self.returncode: int | None = None
        self.resets = 0
        self.ports = Ports(spec, self.qmp)
        self._card = Card(spec, self.output)
        self._on_event = on_event
        self._restarting = False
        self._past_cpu = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = asyncio.Event()
        self._ended.set()
        self._wanted_end = ""

    @property
    def running(self) -> bool:
        """Tell whether the machine is on: QEMU runs, or is being started again."""
        return self._restarting or (self.qemu is not None and self.qemu.running)

    @property
    def pid(self) -> int | None:
        """Return the process identifier of QEMU while it runs; a card's restarts change it."""
        qemu = self.qemu
        return qemu.process.pid if qemu is not None and qemu.running else None

    @property
    def booted(self) -> bootrom.Boot | None:
        """Return what the boot ROM found on the card at the latest start."""
        return self._card.booted

    async def start(self) -> None:
        """Switch the machine on; return when QEMU answers on QMP and the guest runs.

        Call it in a thread that lives as long as the machine: QEMU is killed when that thread ends.

        :raises MachineError: when it does not start, in QEMU's words, or when there is nothing to
            start on the card, in those of the boot ROM.
        """
        await self._start(None)

    async def wake(self, memory: Path, saved: SavedMachine) -> None:
        """Be a machine that was saved, whose disks are in the directory again, paused.

        :param memory: The file that ``save`` wrote.
        :param saved: What it returned.
        :raises MachineError: when it cannot be loaded.
        """
        await self._start(saved.booted)
        try:
            await load(self, memory, saved)
        except BaseException:
            self.kill()
            await self.wait()
            raise

    async def save(self, memory: Path) -> SavedMachine:
        """Write what a paused machine is, besides its disks, and leave it as it was.

        :param memory: The file that gets it.
        :raises MachineError: when it cannot be saved; the machine may be lost then.
        """
        return await store(self, memory)

    async def pause(self) -> None:
        """Stop the guest's processor and clocks; what it has written is in its disks' files then.

        :raises MachineError: when QEMU refuses it.
        """
        await self.qmp("stop")

    async def go_on(self) -> None:
        """Let a paused guest run.

        :raises MachineError: when QEMU refuses it.
        """
        await self.qmp("cont")

    async def _start(self, woken: bootrom.Boot | bool | None) -> None:
        """Start QEMU.

        :param woken: The machine waits for a saved state, for that of a system that was booted so
            from a card, or from none (True).
        """
        spec = self.spec
        if self.running:
            raise MachineError(f"{spec.name} is running already")
        await self._reap()
        disks = [spec.directory / CARD]
        if spec.kernel is not None and spec.rootfs is not None:
            disks = [spec.kernel, spec.rootfs]
            disks += [spec.directory / spec.data, spec.directory / spec.config]
        for path in disks:
            if not path.exists():
                raise MachineError(f"{spec.name}: there is no {path}")
        self.returncode = None
        self.resets = 0
        self._wanted_end = ""
        self._past_cpu = 0.0
        self.qemu = None
        self.output.begin()
        try:
            qemu = await self._start_qemu(bootrom.Request(), woken)
        except MachineError:
            await self._reap()
            raise
        self._ended.clear()
        self._tasks.append(asyncio.create_task(self._watch(qemu)))
        try:
            await self._begin_qmp(qemu, asleep=woken is not None)
        except BaseException:
            self.kill()
            await self.wait()
            raise
        self._report(Started(qemu.process.pid))

    async def _start_qemu(
        self, request: bootrom.Request, woken: bootrom.Boot | bool | None = None
    ) -> Qemu:
        """Start the process; with a card after the boot ROM has had its say."""
        self._remove_sockets()
        start = None
        if isinstance(woken, bootrom.Boot):
            start = self._card.wake(woken)
        elif self.spec.kernel is None:
            start = await self._card.start(request)
        line = command(self.spec, start, asleep=woken is not None)
        self.qemu = await Qemu.start(self.spec, line, start, self.output, self.qmp_event)
        return self.qemu

    async def _begin_qmp(self, qemu: Qemu, *, asleep: bool = False) -> None:
        await qemu.connect()
        await self.ports.begin()
        self._tasks.append(asyncio.create_task(self._keep_connected(qemu)))
        if self.spec.kernel is None and not asleep:
            await self.qmp("cont")

    async def _keep_connected(self, qemu: Qemu) -> None:
        try:
            await qemu.keep_connected()
        except MachineError as error:
            self._report(Trouble(str(error)))

    async def stop(self, grace: float = 10.0) -> None:
        """Switch off in order: the guest's own ``poweroff``, then QEMU's ``quit``.

        Returns when QEMU is gone. A machine that is off already stays off.

        :param grace: Seconds that the guest has, as it is given them.
        """
        if self.running and grace > 0:
            self._wanted_end = "stopped"
            with contextlib.suppress(ShellError, TimeoutError):
                async with self.within(grace):
                    # A background process: the shell itself dies in the course of it.
                    await self.exec_shell.run("poweroff", grace)
                    await self._ended.wait()
        if self.running:
            self._wanted_end = self._wanted_end or "stopped"
            with contextlib.suppress(MachineError, TimeoutError):
                await self.quit()
                async with self.within(QMP_PATIENCE):
                    await self._ended.wait()
        if self.running:
            self.kill()
        await self.wait()

    def kill(self) -> None:
        """Cut the power: SIGKILL. What the guest had written to its disks stays, no more."""
        if self.running:
            self._wanted_end = self._wanted_end or "killed"
            if self.qemu is not None:  # not between two lives
                self.qemu.kill()

    async def wait(self) -> int | None:
        """Return the exit status of QEMU when it has ended (negative: the signal)."""
        await self._ended.wait()
        await self._reap()
        return self.returncode

    async def qmp(self, execute: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a QMP command and return its answer.

        :param execute: The command.
        :param arguments: Its arguments.
        :raises MachineError: when QEMU refuses it, does not answer in time or is not there.
        """
        if self.qemu is None:
            raise MachineError(f"{self.spec.name}: {execute}: the machine is off")
        return await self.qemu.execute(execute, arguments)

    async def powerdown(self) -> None:
        """Press the power button. Of our kernels only that for x86-64 cards has a driver for it."""
        await self.qmp("system_powerdown")

    async def quit(self) -> None:
        """End QEMU at once, its files closed in order."""
        self._wanted_end = self._wanted_end or "stopped"
        await self.qmp("quit")

    async def reset(self) -> None:
        """Press the reset button."""
        await self.qmp("system_reset")

    async def status(self) -> str:
        """Return QEMU's run state, ``running`` or ``paused`` for example (``off`` without QEMU)."""
        if not self.running:
            return "off"
        answer = await self.qmp("query-status")
        return str(answer["status"])

    def cpu_seconds(self) -> float:
        """Return the CPU seconds that QEMU has used since ``start``; of the last call when off."""
        return self._past_cpu + (0.0 if self.qemu is None else self.qemu.cpu_seconds())

    def own_kib(self) -> int:
        """Return the memory that QEMU alone holds now, the guest's included, in KiB; 0 when off."""
        return 0 if self.qemu is None else self.qemu.own_kib()

    def within(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Limit what waits for the guest to these seconds, as QEMU is given them.

        :raises TimeoutError: in the context, when they are over.
        """
        return within(seconds, lambda: [self.pid])

    def console_since_start(self, limit: int = 1 << 20) -> str:
        """Return what came from the guest's console since ``start``.

        :param limit: At most this many bytes, the last ones.
        """
        return self.output.console(limit)

    def errors_since_start(self) -> str:
        """Return what QEMU itself had to say since ``start``."""
        return self.output.errors()

    # -- inside

    def _report(self, event: MachineEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _remove_sockets(self) -> None:
        for name in SOCKETS:
            (self.spec.directory / name).unlink(missing_ok=True)

    async def _reap(self) -> None:
        """Take back what a machine that has ended leaves in this process and in its directory."""
        tasks, self._tasks = self._tasks, []
        current = asyncio.current_task()
        for task in tasks:
            if task is not current:
                task.cancel()
        await asyncio.gather(*(t for t in tasks if t is not current), return_exceptions=True)
        if self.qemu is not None:
            await self.qemu.disconnect()
        await self.shell.close()
        await self.exec_shell.close()
        if not self.running:
            self._remove_sockets()
            self._card.power_off()

    async def _watch(self, qemu: Qemu) -> None:
        qemu.cpu_seconds()
        status = await qemu.process.wait()
        reason = ""
        if self.spec.kernel is None and status == 0:
            self._restarting = True
            try:
                if await self._restart(qemu):
                    return  # watched by a task of its own
            except MachineError as error:
                status, reason = 1, str(error)
                with self.output.log.open("a") as log:
                    log.write(f"{error}\n")
            finally:
                self._restarting = False
        self.returncode = status
        reason = self._wanted_end or reason
        if not reason:
            how = f"status {status}"
            if status < 0:
                how = f"signal {-status} ({signal.Signals(-status).name})"
            reason = "the guest switched off" if status == 0 else f"QEMU ended with {how}"
            errors = self.output.errors()
            if status and errors:
                reason += f": {errors}"
        for shell in (self.shell, self.exec_shell):
            shell.reset("the machine has ended")
        self.ports.end()
        self._ended.set()
        self._report(Exited(status, reason))

    async def _restart(self, ended: Qemu) -> bool:
        """Start QEMU again when it ended because the guest restarted; tell whether it did.

        :raises MachineError: when it does not start, or nothing on the card can be started.
        """
        await ended.said_all()
        if ended.shutdown not in _RESET_REASONS or self._wanted_end:
            return False
        self._past_cpu += ended.cpu_seconds()
        self.qemu = None
        console = self.output.console_since_boot()
        guest = ended.shutdown == "guest-reset"
        self._restarted(guest, ended.shutdown)
        await ended.disconnect()
        qemu = await self._start_qemu(bootrom.request_of(console) if guest else bootrom.Request())
        if self._wanted_end:  # switched off meanwhile
            qemu.kill()
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(self._watch(qemu)))
        try:
            await self._begin_qmp(qemu)
        except MachineError:
            # Whatever was wrong, the task that watches this process tells how it ended.
            qemu.kill()
        return True

    def qmp_event(self, event: Mapping[str, Any]) -> None:
        """Act on an event of QEMU's.

        :param event: The event as QMP has it.
        """
        data = event.get("data") or {}
        match event.get("event"):
            case "RESET":
                stamp = event.get("timestamp") or {}
                seconds = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
                guest = bool(data.get("guest"))
                if self.output.is_restart(seconds, guest):
                    self._restarted(guest, str(data.get("reason", "")))
            case "GUEST_PANICKED":
                self._report(Panic(str(data.get("info", data))))
            case "SHUTDOWN":
                reason = str(data.get("reason", ""))
                if self.spec.kernel is not None or reason not in _RESET_REASONS:
                    self._report(Shutdown(reason, bool(data.get("guest", False))))
            case "WATCHDOG":
                self._report(WatchdogBite(str(data.get("action", ""))))
            case "VSERPORT_CHANGE" if data.get("id") == "relay":
                self._report(RelayPort(bool(data.get("open", False))))
            case "VSERPORT_CHANGE":
                self.ports.changed(str(data.get("id")), is_open=bool(data.get("open", False)))
            case _:
                pass

    def _restarted(self, guest: bool, reason: str) -> None:
        self.resets += 1
        self.ports.end()
        for shell in (self.shell, self.exec_shell):
            shell.reset("the node has restarted")
        panic = self.output.fresh_panic()
        if guest and panic is not None:
            self._report(Panic(panic))
        self._report(Reset(reason or "unknown", guest))
