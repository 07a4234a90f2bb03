# SPDX-License-Identifier: Apache-2.0
"""The QEMU machine of one node: its command line, its life, and what it costs.

``command`` turns a ``MachineSpec`` into a command line and touches nothing, so it can be read and
tested. ``Machine`` runs it: every file of a node lies in the node's own directory, QEMU runs there,
and socket paths are relative to it. A machine never outlives the process that started it.

A machine either gets its kernel and root directly, or has a card and starts as a Raspberry Pi does:
``bootrom`` finds kernel and parameters on the card, at every restart anew, for which QEMU is
started anew as well. The guest's memory stays, as a Pi's does: it is lost with the power only.

docs/simulator.md, "Machine", has the measurements behind the choices of ``BOARDS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecuteError,
    QMPClient,
    QMPError,
    Runstate,
)

from host import child
from meshlab.machine import bootrom
from meshlab.machine.accel import Accel
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
from meshlab.machine.shell import Shell, ShellError
from meshlab.wire.sockets import socket_address

RELAY_PORT = "thicket.hwsim.0"
"""Name of the virtio-serial port at which the node's hwsim-relay starts."""

CONSOLE_SOCKET = "console.sock"
CONSOLE_LOG = "console.log"
SHELL_SOCKET = "shell.sock"
EXEC_SOCKET = "exec.sock"
RELAY_SOCKET = "relay.sock"
QMP_SOCKET = "qmp.sock"
CHIP_SOCKET = "chip.sock"
QEMU_LOG = "qemu.log"
CARD = "card.img"
KERNEL = "kernel"
"""The kernel that the boot ROM took from the card at the latest start."""

NICE = 10
"""Niceness of QEMU: the medium, the chips and the view must not wait for twenty busy guests."""

_SOCKETS = (CONSOLE_SOCKET, SHELL_SOCKET, EXEC_SOCKET, RELAY_SOCKET, QMP_SOCKET)
_START_PATIENCE = 30.0
_QMP_PATIENCE = 10.0
# Seconds between the steps of one restart: certainly, and when the console says nothing.
_ONE_RESET = 1.0
_ONE_SILENT_RESET = 30.0
# qapi/run-state.json, ShutdownCause: those that end QEMU because of -no-reboot.
_RESET_REASONS = ("guest-reset", "host-qmp-system-reset")
_PANIC = re.compile(r"Kernel panic - not syncing:? ?(.*)")
_TICKS = os.sysconf("SC_CLK_TCK")


class MachineError(Exception):
    """The machine cannot do what was asked; the text has QEMU's own words where there are any."""


@dataclass(frozen=True)
class Board:
    """A kind of QEMU machine: what differs between them, and nothing else."""

    qemu: str
    """The program."""
    machine: str
    """``-machine`` and its options."""
    transport: str
    """How virtio devices are attached: ``pci``, or ``device`` for virtio-mmio."""
    cmdline: str
    """Kernel parameters for this machine, before those of the image."""
    watchdog: str | None
    """The watchdog device."""
    tcg_machine: str = ""
    """More options of ``-machine`` under TCG."""
    tcg_cmdline: str = ""
    """More kernel parameters under TCG."""
    tcg_card_cmdline: str = "norandmaps"
    """More of them for a system from a card; the lab image asks for these itself. ``norandmaps``:
    programs at the same addresses at each start, so that QEMU translates them once."""


# The HPET says how fast it runs. The local APIC's timer has to be compared with another timer for a
# tenth of a second, in which a busy host does not run the guest: its timers were wrong ever after.
_TCG_MACHINE = "hpet=on"
_TCG_CMDLINE = "nolapic_timer"
# meshlab.image.lab, CMDLINE, says why. A clock of known frequency replaces the distrust.
_TCG_CARD_CMDLINE = "norandmaps no_timer_check tsc=unstable"

BOARDS: Mapping[str, Board] = {
    "q35": Board(
        qemu="qemu-system-x86_64",
        machine="q35,smm=off,sata=off,usb=off,smbus=off,vmport=off",
        transport="pci",
        cmdline="console=ttyS0",
        watchdog="i6300esb",
        tcg_machine=_TCG_MACHINE,
        tcg_cmdline=_TCG_CMDLINE,
        tcg_card_cmdline=_TCG_CARD_CMDLINE,
    ),
    "pc": Board(
        qemu="qemu-system-x86_64",
        machine="pc,smm=off,usb=off,vmport=off",
        transport="pci",
        cmdline="console=ttyS0",
        watchdog="i6300esb",
        tcg_machine=_TCG_MACHINE,
        tcg_cmdline=_TCG_CMDLINE,
        tcg_card_cmdline=_TCG_CARD_CMDLINE,
    ),
    "microvm": Board(
        qemu="qemu-system-x86_64",
        machine="microvm,acpi=off,rtc=on",
        transport="device",
        cmdline="console=ttyS0 reboot=t",
        watchdog=None,
    ),
    "virt": Board(
        qemu="qemu-system-aarch64",
        machine="virt,gic-version=3",
        transport="pci",
        cmdline="console=ttyAMA0",
        watchdog="i6300esb",
    ),
}

DEFAULT_BOARDS = {"x86_64": "q35", "aarch64": "virt"}


@dataclass(frozen=True)
class MachineSpec:
    """Everything that decides a node's machine."""

    name: str
    """The node's name: letters, digits, ``-`` and ``_``."""
    directory: Path
    """The node's directory; it holds the disks ``config`` and ``data``, or ``card.img``, and gets
    the sockets."""
    kernel: Path | None
    """``None``: the machine has a card, ``card.img``, and starts from it as a Pi does."""
    rootfs: Path | None
    """The read-only root file system, shared by any number of nodes; ``None`` with a card."""
    cmdline: str
    """The image's kernel parameters, with a card those that are added to the card's."""
    accel: Accel
    memory_mib: int = 128
    chip: bool = True
    """Attach the chip's I2C bus: its back end must listen on ``chip.sock`` before the start."""
    relay: bool = True
    """Attach the port of hwsim-relay."""
    config: str = "config.img"
    data: str = "data.img"
    arch: str = "x86_64"
    board: str | Board | None = None
    """A key of ``BOARDS``, or a board of one's own; ``None``: the default of ``arch``."""
    code_buffer_mib: int = 96
    """TCG's buffer of translated code. A node's boot and daemon fill about 75 MiB; a full buffer is
    thrown away and translated again. QEMU's own default can grow to a gigabyte."""
    extra: tuple[str, ...] = field(default=())
    """More arguments for QEMU, last."""

    def __post_init__(self) -> None:
        """Raise ``ValueError`` for what could not become a command line."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", self.name):
            raise ValueError(f"{self.name!r} is not a node name: letters, digits, '-' and '_'")
        if self.board is None and self.arch not in DEFAULT_BOARDS:
            raise ValueError(f"no machine for {self.arch}; known: {', '.join(DEFAULT_BOARDS)}")
        if isinstance(self.board, str) and self.board not in BOARDS:
            raise ValueError(f"no board {self.board}; known: {', '.join(BOARDS)}")
        if (self.kernel is None) != (self.rootfs is None):
            raise ValueError(f"{self.name}: kernel and root come both from the card or both not")
        if self.memory_mib < 64:
            raise ValueError(f"memory of {self.name}: {self.memory_mib} MiB, at least 64 needed")

    @property
    def hardware(self) -> Board:
        """Return the board."""
        if isinstance(self.board, Board):
            return self.board
        return BOARDS[self.board or DEFAULT_BOARDS[self.arch]]


@dataclass(frozen=True)
class Start:
    """What the boot ROM gives a machine with a card for one start."""

    boot: bootrom.Boot
    memory: int
    """Descriptor, open in QEMU as well, of the file that is the guest's memory."""


def command(spec: MachineSpec, start: Start | None = None) -> list[str]:
    """Return the command line of QEMU for ``spec``, to be run in ``spec.directory``.

    ``start``: what the boot ROM found, for a machine with a card.
    """
    board = spec.hardware
    accel = spec.accel.name
    machine = board.machine
    if accel == "tcg":
        # One virtual processor: a thread of its own for each would only cost switches.
        accel += f",thread=single,tb-size={spec.code_buffer_mib}"
        machine += f",{board.tcg_machine}" if board.tcg_machine else ""
    arguments = [board.qemu, "-name", f"thicket-{spec.name}", "-nodefaults", "-no-user-config"]
    arguments += ["-display", "none", "-smp", "1", "-m", str(spec.memory_mib)]
    # The chip's back end reads requests in the guest's memory, so that must be shareable.
    ram = ""
    if start is not None:
        ram = f"memory-backend-file,id=ram,mem-path=/proc/self/fd/{start.memory}"
    elif spec.chip:
        ram = "memory-backend-memfd,id=ram"
    if ram:
        machine += ",memory-backend=ram"
        arguments += ["-object", f"{ram},size={spec.memory_mib}M,share=on"]
    arguments += ["-machine", machine, "-accel", accel, "-cpu", spec.accel.cpu]
    arguments += ["-rtc", "base=utc,clock=host"]
    if start is None:
        arguments += ["-kernel", _value(spec.kernel or "")]
        arguments += ["-append", " ".join(_kernel_parameters(spec))]
    else:
        # A guest that restarts ends QEMU: the next kernel may be another one. It waits (-S) until
        # somebody listens to how it ends.
        arguments += ["-no-reboot", "-S", "-kernel", KERNEL]
        arguments += ["-append", " ".join(_card_parameters(spec, start.boot.cmdline))]
        # What a Pi's firmware tells in the device tree, /chosen/bootloader.
        for name, value in (
            ("partition", start.boot.partition),
            ("tryboot", int(start.boot.tryboot)),
        ):
            arguments += ["-fw_cfg", f"name=opt/org.thicket/bootloader/{name},string={value}"]
    arguments += [*_listener("qmp", QMP_SOCKET), "-mon", "chardev=qmp,mode=control"]
    arguments += _listener("console", CONSOLE_SOCKET, f",logfile={CONSOLE_LOG},logappend=on")
    arguments += ["-serial", "chardev:console"]
    arguments += _disks(spec)
    arguments += _ports(spec)
    arguments += ["-device", f"virtio-rng-{board.transport}"]
    if spec.chip:
        # No reconnect=: the device wants its back end at once, and a QEMU that may connect later
        # gives up ("vhost_backend_init failed"). The chip listens before QEMU starts.
        arguments += ["-chardev", f"socket,id=chip,path={CHIP_SOCKET}"]
        arguments += ["-device", f"vhost-user-i2c-{board.transport},chardev=chip"]
    if board.watchdog:
        arguments += ["-device", board.watchdog, "-action", "watchdog=reset"]
    return arguments + list(spec.extra)


def _kernel_parameters(spec: MachineSpec) -> list[str]:
    words = spec.hardware.cmdline.split()
    if spec.accel.name == "tcg":
        words += spec.hardware.tcg_cmdline.split()
    return _with_clock(spec, words + spec.cmdline.split())


def _card_parameters(spec: MachineSpec, cmdline: str) -> list[str]:
    """Return the card's own parameters and, behind them, what the machine needs."""
    board = spec.hardware
    (own,) = re.findall(r"console=(\S+)", board.cmdline)
    # config, "enable_uart": the firmware puts the name of its serial port in place of serial0.
    words = [
        re.sub(r"^console=serial0(?=,|$)", f"console={own}", word) for word in cmdline.split(" ")
    ]
    if not any(word.split(",")[0] == f"console={own}" for word in words):
        words.append(f"console={own}")
    words += [word for word in board.cmdline.split() if not word.startswith("console=")]
    if spec.accel.name == "tcg":
        words += f"{board.tcg_cmdline} {board.tcg_card_cmdline}".split()
    return _with_clock(spec, words + spec.cmdline.split())


def _with_clock(spec: MachineSpec, words: list[str]) -> list[str]:
    if spec.accel.tsc_khz is not None:
        # A time stamp counter of known frequency is the cheapest clock there is, in user space as
        # well; an image that distrusts it does so because a guest cannot measure it.
        words = [word for word in words if not word.startswith("tsc")]
        words += [f"tsc_early_khz={spec.accel.tsc_khz}", "tsc=reliable"]
    return words


def _value(text: Path | str) -> str:
    """Return ``text`` for use in a comma-separated option, where a comma is doubled."""
    return str(text).replace(",", ",,")


def _listener(name: str, path: str, more: str = "") -> list[str]:
    return ["-chardev", f"socket,id={name},path={path},server=on,wait=off{more}"]


def _disks(spec: MachineSpec) -> list[str]:
    """Root (vda), data (vdb), configuration (vdc): the order is the names in the guest. Or the card
    alone."""
    arguments = []
    # The host's page cache survives the end of QEMU, which is all the power cuts there are: waiting
    # for the host's disk at every flush of the guest would only cost time.
    disks = [("card", CARD, ",cache=unsafe")]
    if spec.rootfs is not None:
        disks = [
            ("root", _value(spec.rootfs), ",read-only=on"),
            ("data", _value(spec.data), ",cache=unsafe"),
            ("config", _value(spec.config), ",cache=unsafe"),
        ]
    for name, path, more in disks:
        arguments += ["-drive", f"if=none,id={name},format=raw,file={path}{more}"]
        arguments += ["-device", f"virtio-blk-{spec.hardware.transport},drive={name}"]
    return arguments


def _ports(spec: MachineSpec) -> list[str]:
    """hvc0 and hvc1 (shells for programs and for people), and the relay's port."""
    arguments = ["-device", f"virtio-serial-{spec.hardware.transport},id=serial,max_ports=4"]
    for name, path in (("shell", SHELL_SOCKET), ("exec", EXEC_SOCKET)):
        arguments += _listener(name, path)
        arguments += ["-device", f"virtconsole,bus=serial.0,chardev={name}"]
    if spec.relay:
        arguments += _listener("relay", RELAY_SOCKET)
        port = f"virtserialport,bus=serial.0,chardev=relay,id=relay,name={RELAY_PORT}"
        arguments += ["-device", port]
    return arguments


class Machine:
    """One node's QEMU.

    ``on_event`` is called from the event loop with each of ``meshlab.machine.events``.
    """

    def __init__(self, spec: MachineSpec, on_event: OnMachineEvent | None = None) -> None:
        """Make a machine that is switched off."""
        self.spec = spec
        self.shell = Shell(spec.directory / SHELL_SOCKET, spec.name)
        """The shell of programs (hvc0)."""
        self.exec_shell = Shell(spec.directory / EXEC_SOCKET, spec.name)
        """The shell for what people and tests run (hvc1)."""
        self.returncode: int | None = None
        self.resets = 0
        """Restarts of the guest since ``start``."""
        self.booted: bootrom.Boot | None = None
        """What the boot ROM found on the card at the latest start."""
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._restarting = False
        self._shutdown = ""
        self._memory: int | None = None
        self._past_cpu = 0.0
        self._boot_console = 0
        self._qmp: QMPClient | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ended = asyncio.Event()
        self._ended.set()
        self._wanted_end = ""
        self._last_cpu = 0.0
        self._log_start = 0
        self._console_start = 0
        self._panics = 0
        self._last_reset = -_ONE_SILENT_RESET
        self._console_at_reset = 0
        self._dropping: tuple[QMPClient, asyncio.Task[None]] | None = None

    @property
    def running(self) -> bool:
        """Tell whether the machine is on: QEMU runs, or is being started again."""
        return self._alive or self._restarting

    @property
    def _alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Return the process identifier of QEMU while it runs; a card's restarts change it."""
        return self._process.pid if self._alive and self._process else None

    async def start(self) -> None:
        """Switch the machine on; return when QEMU answers on QMP and the guest runs.

        Call it in a thread that lives as long as the machine: QEMU is killed when that thread ends.

        Raises ``MachineError`` with QEMU's words when it does not start, or with those of the boot
        ROM when there is nothing to start on the card.
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
        self._last_cpu = self._past_cpu = 0.0
        self._panics = 0
        self._log_start = _size(spec.directory / QEMU_LOG)
        self._console_start = _size(spec.directory / CONSOLE_LOG)
        try:
            process = await self._start_qemu(bootrom.Request())
        except MachineError:
            await self._reap()
            raise
        self._ended.clear()
        self._tasks.append(asyncio.create_task(self._watch_process(process)))
        try:
            await self._begin_qmp(process)
        except BaseException:
            self.kill()
            await self.wait()
            raise
        self._report(Started(process.pid))

    async def _start_qemu(self, request: bootrom.Request) -> asyncio.subprocess.Process:
        """Start the process; with a card after the boot ROM has had its say."""
        spec = self.spec
        self._remove_sockets()
        start = await self._ask_rom(request) if spec.kernel is None else None
        self._shutdown = ""
        try:
            with (spec.directory / QEMU_LOG).open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    *child.tied(command(spec, start), nice=NICE),
                    cwd=spec.directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    # Ctrl-C in the terminal is for the simulator, which ends its machines itself.
                    process_group=0,
                    pass_fds=() if start is None else (start.memory,),
                )
        except OSError as error:
            raise MachineError(
                f"{spec.name}: cannot start {spec.hardware.qemu}: {error}"
            ) from error
        return self._process

    async def _ask_rom(self, request: bootrom.Request) -> Start:
        """Find out what to start from the card, and say it on the console as a Pi does."""
        spec = self.spec
        card = spec.directory / CARD

        def find() -> bootrom.Boot:
            found = bootrom.boot(card, request)
            bootrom.extract(card, found, spec.directory / KERNEL)
            return found

        try:
            # Not in the loop: this reads some 30 MB, and other nodes want to be served.
            found = await asyncio.to_thread(find)
            parameters = " ".join(_card_parameters(spec, found.cmdline))
            if len(parameters) > bootrom.CMDLINE_LIMIT:
                raise bootrom.BootError(
                    f"cmdline.txt on partition {found.partition} leaves no room: with what the "
                    f"machine needs it has {len(parameters)} characters, a kernel takes "
                    f"{bootrom.CMDLINE_LIMIT}"
                )
        except (bootrom.BootError, OSError) as error:
            self._say(f"boot ROM: {error}")
            raise MachineError(f"{spec.name}: nothing to start: {error}") from error
        self.booted = found
        self._boot_console = _size(spec.directory / CONSOLE_LOG)
        for note in found.notes:
            self._say(f"boot ROM: {note}")
        self._say(f"boot ROM: {found.in_words()}")
        if self._memory is None:
            self._memory = os.memfd_create(f"thicket-{spec.name}", os.MFD_CLOEXEC)
            os.ftruncate(self._memory, spec.memory_mib << 20)
        return Start(found, self._memory)

    def _say(self, text: str) -> None:
        """Write a line to the console's log."""
        with (self.spec.directory / CONSOLE_LOG).open("ab") as log:
            log.write(f"{text}\r\n".encode())

    async def _begin_qmp(self, process: asyncio.subprocess.Process) -> None:
        self._qmp = await self._connect_qmp(process, _START_PATIENCE)
        self._tasks.append(asyncio.create_task(self._watch_qmp(process, self._qmp)))
        if self.spec.kernel is None:
            await self.qmp("cont")

    async def stop(self, grace: float = 10.0) -> None:
        """Switch off in order: the guest's own ``poweroff``, at most ``grace`` seconds, then quit.

        Returns when QEMU is gone; never raises for a machine that is off already.
        """
        if self.running and grace > 0:
            self._wanted_end = "stopped"
            with contextlib.suppress(ShellError, TimeoutError):
                async with asyncio.timeout(grace):
                    # A background process: the shell itself dies in the course of it.
                    await self.exec_shell.run("poweroff", grace)
                    await self._ended.wait()
        if self.running:
            self._wanted_end = self._wanted_end or "stopped"
            with contextlib.suppress(MachineError, TimeoutError):
                await self.quit()
                async with asyncio.timeout(_QMP_PATIENCE):
                    await self._ended.wait()
        if self.running:
            self.kill()
        await self.wait()

    def kill(self) -> None:
        """Cut the power: SIGKILL. What the guest had written to its disks stays, no more."""
        if self._process is not None and self.running:
            self._wanted_end = self._wanted_end or "killed"
            with contextlib.suppress(ProcessLookupError):  # maybe between two lives
                self._process.kill()

    async def wait(self) -> int | None:
        """Return the exit status of QEMU when it has ended (negative: the signal)."""
        await self._ended.wait()
        await self._reap()
        return self.returncode

    async def qmp(self, execute: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a QMP command and return its answer.

        Raises ``MachineError`` when QEMU refuses it, does not answer in time or is not there.
        """
        client = self._qmp
        if client is None or not self.running:
            raise MachineError(f"{self.spec.name}: {execute}: the machine is off")
        try:
            async with asyncio.timeout(_QMP_PATIENCE):
                return await client.execute(execute, dict(arguments) if arguments else None)
        except ExecuteError as error:
            raise MachineError(f"{self.spec.name}: {execute}: {error}") from error
        except (QMPError, OSError, TimeoutError) as error:
            raise MachineError(
                f"{self.spec.name}: {execute}: QEMU does not answer ({type(error).__name__})"
            ) from error

    async def powerdown(self) -> None:
        """Press the power button. Only a guest that listens to ACPI acts on it."""
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
        if self._alive and self._process is not None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                # proc_pid_stat(5): utime and stime are fields 14 and 15, in clock ticks.
                text = Path("/proc", str(self._process.pid), "stat").read_text()
                fields = text.rsplit(")", 1)[1].split()
                self._last_cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        return self._past_cpu + self._last_cpu

    def rss_kib(self) -> int:
        """Return the memory that QEMU holds now, the guest's included, in KiB; 0 when off."""
        if self._alive and self._process is not None:
            with contextlib.suppress(OSError):
                text = Path("/proc", str(self._process.pid), "status").read_text()
                found = re.search(r"^VmRSS:\s+(\d+) kB", text, re.MULTILINE)
                if found:
                    return int(found.group(1))
        return 0

    def console_since_start(self, limit: int = 1 << 20) -> str:
        """Return the last ``limit`` bytes of what came from the guest's console since ``start``."""
        return _tail(self.spec.directory / CONSOLE_LOG, self._console_start, limit)

    def errors_since_start(self) -> str:
        """Return what QEMU itself had to say since ``start``."""
        return _tail(self.spec.directory / QEMU_LOG, self._log_start, 8192).strip()

    # -- inside

    def _report(self, event: MachineEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)

    def _remove_sockets(self) -> None:
        for name in _SOCKETS:
            (self.spec.directory / name).unlink(missing_ok=True)

    async def _reap(self) -> None:
        """Take back what a machine that has ended leaves in this process and in its directory."""
        tasks, self._tasks = self._tasks, []
        current = asyncio.current_task()
        for task in tasks:
            if task is not current:
                task.cancel()
        await asyncio.gather(*(t for t in tasks if t is not current), return_exceptions=True)
        if self._qmp is not None:
            client, self._qmp = self._qmp, None
            await self._drop_qmp(client)
        await self.shell.close()
        await self.exec_shell.close()
        if not self.running:
            self._remove_sockets()
            if self._memory is not None:
                # The power is off: what was in memory is gone.
                os.close(self._memory)
                self._memory = None

    async def _watch_process(self, process: asyncio.subprocess.Process) -> None:
        self.cpu_seconds()
        status = await process.wait()
        reason = ""
        if self.spec.kernel is None and status == 0:
            self._restarting = True
            try:
                if await self._restart():
                    return  # watched by a task of its own
            except MachineError as error:
                status, reason = 1, str(error)
                with (self.spec.directory / QEMU_LOG).open("a") as log:
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
            errors = self.errors_since_start()
            if status and errors:
                reason += f": {errors}"
        for shell in (self.shell, self.exec_shell):
            shell.reset("the machine has ended")
        self._ended.set()
        self._report(Exited(status, reason))

    async def _restart(self) -> bool:
        """Start QEMU again when it ended because the guest restarted; tell whether it did.

        Raises ``MachineError`` when it does not start, or nothing on the card can be started.
        """
        # What QEMU said last is read before the connection counts as lost.
        client = self._qmp
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QMP_PATIENCE):
                while client is not None and client.runstate == Runstate.RUNNING:
                    await client.runstate_changed()
        if self._shutdown not in _RESET_REASONS or self._wanted_end:
            return False
        self._past_cpu, self._last_cpu = self._past_cpu + self._last_cpu, 0.0
        console = _tail(self.spec.directory / CONSOLE_LOG, self._boot_console, 1 << 16)
        guest = self._shutdown == "guest-reset"
        self._restarted(guest, self._shutdown)
        if client is not None:
            self._qmp = None
            await self._drop_qmp(client)
        asked = bootrom.request_of(console) if guest else bootrom.Request()
        process = await self._start_qemu(asked)
        if self._wanted_end:  # switched off meanwhile
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        self._tasks = [task for task in self._tasks if not task.done()]
        self._tasks.append(asyncio.create_task(self._watch_process(process)))
        try:
            await self._begin_qmp(process)
        except MachineError:
            # Whatever was wrong, the task that watches this process tells how it ended.
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        return True

    async def _connect_qmp(self, process: asyncio.subprocess.Process, patience: float) -> QMPClient:
        path = self.spec.directory / QMP_SOCKET
        deadline = asyncio.get_running_loop().time() + patience
        while True:
            if process.returncode is not None:
                raise MachineError(
                    f"{self.spec.name}: QEMU ended with status {process.returncode}: "
                    + (self.errors_since_start() or "without a word")
                )
            if path.exists():
                client = QMPClient(self.spec.name)
                # What goes wrong is told by exceptions; the library would print it besides.
                client.logger.setLevel(logging.CRITICAL)
                # Every client keeps all events it ever saw for its default listener: none, please.
                client.events.names = {"none"}
                client.register_listener(EventListener(event_filter=self._on_qmp_event))
                try:
                    async with asyncio.timeout(_QMP_PATIENCE):
                        await client.connect(socket_address(path))
                    return client
                except (ConnectError, OSError, TimeoutError):
                    pass  # not listening yet, or ending: decided by the process and the deadline
            if asyncio.get_running_loop().time() > deadline:
                raise MachineError(
                    f"{self.spec.name}: QEMU did not answer on {path} within {patience:g} s"
                    + (f": {self.errors_since_start()}" if self.errors_since_start() else "")
                )
            await asyncio.sleep(0.01)

    async def _watch_qmp(self, process: asyncio.subprocess.Process, client: QMPClient) -> None:
        """Connect again when the connection to QEMU was lost but QEMU was not."""
        while True:
            while client.runstate == Runstate.RUNNING:
                await client.runstate_changed()
            await self._drop_qmp(client)
            if process.returncode is not None:
                return
            try:
                client = await self._connect_qmp(process, _START_PATIENCE)
            except MachineError as error:
                if process.returncode is None:
                    self._report(Trouble(str(error)))
                return
            self._qmp = client

    async def _drop_qmp(self, client: QMPClient) -> None:
        """Disconnect ``client``, once, whoever asks and whoever is cancelled meanwhile."""
        if self._dropping is None or self._dropping[0] is not client:

            async def drop() -> None:
                with contextlib.suppress(Exception):
                    await client.disconnect()

            self._dropping = (client, asyncio.create_task(drop()))
        await asyncio.shield(self._dropping[1])

    def _on_qmp_event(self, event: Mapping[str, Any]) -> bool:
        """Act on an event. Returns False: the listener that asks need not keep it."""
        data = event.get("data") or {}
        match event.get("event"):
            case "RESET":
                stamp = event.get("timestamp") or {}
                seconds = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
                self._on_reset(seconds, bool(data.get("guest")), str(data.get("reason", "")))
            case "GUEST_PANICKED":
                self._report(Panic(str(data.get("info", data))))
            case "SHUTDOWN":
                guest = bool(data.get("guest", False))
                self._shutdown = str(data.get("reason", ""))
                if self.spec.kernel is not None or self._shutdown not in _RESET_REASONS:
                    self._report(Shutdown(self._shutdown, guest))
            case "WATCHDOG":
                self._report(WatchdogBite(str(data.get("action", ""))))
            case "VSERPORT_CHANGE" if data.get("id") == "relay":
                self._report(RelayPort(bool(data.get("open", False))))
            case _:
                pass
        return False

    def _on_reset(self, now: float, guest: bool, reason: str) -> None:
        # A PC restarts in several steps: its kernel asks in more than one way, and the firmware,
        # finding that it has run before, once more. QEMU reports each; no node is back so soon. On
        # a busy host the steps are further apart, but the node says nothing between them.
        console = _size(self.spec.directory / CONSOLE_LOG)
        silent = console == self._console_at_reset
        if guest and now - self._last_reset < (_ONE_SILENT_RESET if silent else _ONE_RESET):
            return
        self._last_reset = now
        self._console_at_reset = console
        self._restarted(guest, reason)

    def _restarted(self, guest: bool, reason: str) -> None:
        self.resets += 1
        for shell in (self.shell, self.exec_shell):
            shell.reset("the node has restarted")
        panics = _PANIC.findall(self.console_since_start())
        if guest and len(panics) > self._panics:
            self._report(Panic(panics[-1].strip()))
        self._panics = len(panics)
        self._report(Reset(reason or "unknown", guest))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path, start: int, limit: int) -> str:
    """Return the text of ``path`` from byte ``start`` on, of it the last ``limit`` bytes."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - limit) if end >= start else max(0, end - limit))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""
