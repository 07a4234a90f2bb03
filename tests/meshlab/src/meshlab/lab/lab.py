# SPDX-License-Identifier: Apache-2.0
"""The supervisor of a lab: one process that starts the medium and the nodes and watches over them.

A lab is a directory (``$THICKET_CACHE/labs/<name>``) with one directory per node, see
docs/simulator.md. ``Lab`` fills it, starts the medium as a child process, then the nodes one after
the other as fast as the host can boot them, asks every node for its status, keeps a ``LabState`` of
it all and does what clients ask for over ``control.sock``. Whatever ends it, nothing is left
running: children are killed, also by the kernel when this process is killed itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import itertools
import json
import logging
import os
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from host.child import tied
from meshlab.lab import summary
from meshlab.lab.errors import LabError, NotFormedError
from meshlab.lab.parts import ChipLike, FleetLike, MachineLike, Parts
from meshlab.lab.paths import lab_directory, own_call, slots_directory
from meshlab.lab.slots import BootSlots, Slot
from meshlab.lab.spec import (
    CONFIG_FILE,
    PREFIX,
    LabSpec,
    NodeSpec,
    cluster_key,
    mesh_key,
    node_config,
    radio_mac,
    to_toml,
)
from meshlab.lab.state import (
    Event,
    LabState,
    LinkState,
    NodeState,
    address_from_serial,
    get,
    news,
    phase,
)
from meshlab.lab.topology import node_name
from meshlab.machine.shell import ShellError
from meshlab.wire.rpc import Call, Client, Json, Params, RpcError, Server
from thicket.base.visible import visible_values

log = logging.getLogger(__name__)

T = TypeVar("T")
STATUS_FILE = "/run/thicket/status.json"

# Only what is built into the guest's shell: a process under TCG costs some 20 ms.
_ASK_MEMORY = (
    "while read -r k v u; do case $k in MemTotal:|MemAvailable:) "
    "printf '%s %s\\n' $k $v;; esac; done </proc/meminfo"
)

BOOT_DEADLINE = 90.0
"""Host seconds after which a node that has not joined no longer holds up the start of others."""

ASK_TIMEOUT = 20.0
"""Seconds that a node may take to answer; a guest of a busy TCG host can be slow."""

RESTART_PAUSE = 1.0
"""Seconds before a medium that ended quickly is started again."""

LOG_PAUSE = 1.5
"""Seconds between two looks at the log of a node that somebody follows."""


class Node:
    """One node of a running lab: its parts, and the tasks that watch them."""

    def __init__(self, state: NodeState, directory: Path, spec: NodeSpec, index: int) -> None:
        self.state = state
        self.directory = directory
        self.spec = spec
        self.index = index
        self.config: dict[str, dict[str, Any]] = {}
        self.chip: ChipLike | None = None
        self.machine: MachineLike | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.busy: tuple[float, float] | None = None
        """(host seconds, processor seconds) of the last measurement."""
        self.lock = asyncio.Lock()
        """Held while it is switched on or off."""
        self.slot: Slot | None = None
        """Its boot slot, from before power-on until it has joined."""

    def free_slot(self) -> None:
        """Make room for the boot of another node."""
        if self.slot is not None:
            self.slot.free()
            self.slot = None


class Lab:
    """A running lab. Use it as ``async with Lab(spec, parts) as lab``.

    Raises ``LabError`` from ``start`` when it cannot be: the directory is in use, the medium or a
    machine does not start.
    """

    def __init__(self, spec: LabSpec, parts: Parts, cache: Path | None = None) -> None:
        self.spec = spec
        self.parts = parts
        self.directory = lab_directory(spec.name, cache)
        self.state = LabState(
            name=spec.name,
            image=parts.image,
            accel=parts.accel,
            accel_reason=parts.accel_reason,
            topology=spec.topology.kind,
            seed=spec.topology.seed,
            security=spec.security,
            prefix=PREFIX,
        )
        self.nodes: dict[str, Node] = {}
        self.fleet: FleetLike | None = None
        """The authority, in a lab that is not open."""
        self.done = asyncio.Event()
        """Set when a client asked for the end (``meshlab down``)."""
        self.failure: LabError | None = None
        """Why the lab cannot go on; ``done`` is set with it."""
        self._born = time.monotonic()
        self._listeners: list[Callable[[Event], None]] = []
        self._changed: set[asyncio.Event] = set()
        #: Input of commands that run, by a number that their clients know; None is its end.
        self._inputs: dict[int, asyncio.Queue[bytes | None]] = {}
        self._commands = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slots = BootSlots(
            slots_directory(cache), parts.boot_slots, f"{spec.name} (process {os.getpid()})"
        )
        self._told_of_others = False
        self._lively_until = 0.0
        #: Seconds between two questions for a node's status while something happens, at least.
        self.lively_interval = 1.0
        self._lock_file: int | None = None
        self._events_file: Any = None
        self._medium: asyncio.subprocess.Process | None = None
        self._medium_client: Client | None = None
        self._medium_lock = asyncio.Lock()
        self._server = Server(self.directory / "control.sock", self._methods())

    # --- life ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def elapsed(self) -> float:
        """Host seconds since the lab was made."""
        return time.monotonic() - self._born

    async def start(self) -> None:
        """Prepare the directory, start the medium, and begin to start the nodes."""
        self._take_directory()
        self._take_passphrase()
        self._events_file = (self.directory / "events.log").open("w", encoding="utf-8")
        self._event("change", f"lab {self.spec.name}: {len(self.spec.topology.positions)} nodes")
        self._event("change", f"image: {self.parts.description}")
        self._event("change", f"{self.parts.accel}: {self.parts.accel_reason}")
        if self.spec.security != "open":
            address = self.spec.config.get("address", {})
            self.fleet = self.parts.fleet(
                self.directory, self.spec.name, address.get("prefix", PREFIX), self.spec.keep
            )
        for index, name in enumerate(self.spec.topology.names, start=1):
            self._prepare(index, name)
        self._write_medium()
        for (a, b), snr in self.spec.topology.links.items():
            self.state.links[a, b] = LinkState(a, b, snr, snr)
        await self._server.start()
        self._task(self._keep_medium())
        self._task(self._watch_medium())
        self._task(self._measure())
        self._task(self._judge())
        for node in self.nodes.values():
            assert node.chip is not None
            await node.chip.start()
        self._task(self._start_all())

    async def stop(self) -> None:
        """Switch everything off and let go of the directory. May be called twice."""
        self.state.stopping = True
        tasks, self._tasks = self._tasks, set()
        for node in self.nodes.values():
            tasks.update(node.tasks)
            node.tasks = []
        for task in tasks:
            task.cancel()
        for node in self.nodes.values():
            node.free_slot()
        # Killed before the waiting: a task that does not end keeps no machine alive.
        for node in self.nodes.values():
            if node.machine is not None:
                node.machine.kill()
        if self._medium is not None and self._medium.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._medium.terminate()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(self._end(node) for node in self.nodes.values()))
        if self._medium is not None:
            try:
                async with asyncio.timeout(5):
                    await self._medium.wait()
            except TimeoutError:
                self._medium.kill()
                await self._medium.wait()
            self._medium = None
        if self._medium_client is not None:
            await self._medium_client.close()
            self._medium_client = None
        await self._server.stop()
        if self._events_file is not None:
            self._events_file.close()
            self._events_file = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    async def _end(self, node: Node) -> None:
        with contextlib.suppress(Exception):
            if node.machine is not None:
                async with asyncio.timeout(10):
                    await node.machine.wait()
        with contextlib.suppress(Exception):
            if node.chip is not None:
                await node.chip.stop()

    def _task(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the lab failed", exc_info=error)
            text = f"{type(error).__name__}: {error}"
            self._fail(error if isinstance(error, LabError) else LabError(text))

    def _fail(self, error: LabError) -> None:
        self.failure = self.failure or error
        self._event("died", str(error))
        self.done.set()
        self._notify()

    def _take_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            raise LabError(
                f"the lab {self.spec.name!r} is already running (process {owner}): "
                f"end it with `{own_call(self.spec.name, 'down')}`, or run a second one beside it "
                "with LAB=other"
            ) from None
        self._lock_file = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)

    def _take_passphrase(self) -> None:
        """Have a passphrase for the mesh; no two labs have the same, as no two fleets should."""
        path = self.directory / "passphrase"
        if not self.spec.passphrase and self.spec.keep:
            with contextlib.suppress(FileNotFoundError):
                self.spec = replace(self.spec, passphrase=path.read_text(encoding="utf-8"))
        if not self.spec.passphrase:
            self.spec = replace(self.spec, passphrase=secrets.token_urlsafe(15))
        path.touch(mode=0o600)
        path.write_text(self.spec.passphrase, encoding="utf-8")

    # --- the parts of a node -------------------------------------------------------------------

    def _prepare(self, index: int, name: str) -> None:
        directory = self.directory / name
        spec = self.spec.nodes.get(name, NodeSpec())
        directory.mkdir(exist_ok=True)
        for path in directory.iterdir():
            if path.suffix == ".log":
                path.replace(path.with_suffix(".log.1"))  # the run before can still be read
            elif path.is_dir():
                shutil.rmtree(path)
            elif path.suffix == ".sock" or (not self.spec.keep and path.suffix != ".1"):
                path.unlink()
        serial = self.parts.serial(self.spec.topology.seed, index)
        root = None
        if self.fleet is not None:
            self.fleet.enroll(directory / "chip.json", serial, self.spec.topology.seed)
            root = self.fleet.root
        config = node_config(self.spec, spec, root)
        prefix = config["address"]["prefix"]
        state = NodeState(
            name=name,
            mac=radio_mac(index),
            position=self.spec.topology.positions[name],
            serial=serial.hex(),
            expected_address=address_from_serial(prefix, serial),
            chip_fault=spec.chip_fault,
            mesh=mesh_key(config),
            cluster=cluster_key(config),
        )
        node = Node(state, directory, spec, index)
        node.config = config
        node.chip = self.parts.chip(directory, serial)
        node.chip.fault = spec.chip_fault
        text = spec.config_text
        self.parts.disks(directory, to_toml(config) if text is None else text)
        self.nodes[name] = node
        self.state.nodes[name] = state

    def _write_medium(self) -> None:
        description = {
            "seed": self.spec.topology.seed,
            "run": secrets.token_hex(8),
            "unlinked": "cut",
            "nodes": [
                {
                    "name": name,
                    "directory": name,
                    "position": list(node.state.position),
                    "radios": [{"mac": node.state.mac, "mesh": node.spec.mesh_point}],
                }
                for name, node in self.nodes.items()
            ],
            "links": [
                {"a": a, "b": b, "snr": snr} for (a, b), snr in self.spec.topology.links.items()
            ],
        }
        (self.directory / "medium.json").write_text(json.dumps(description, indent=1) + "\n")

    async def _start_all(self) -> None:
        """Start the nodes in their order, each as soon as the host has room for its boot."""
        starts = []
        for node in self.nodes.values():
            slot = await self._slots.take(self._tell_of_others)
            if node.state.power == "waiting":
                node.slot = slot
                starts.append(self._task(self.power_on(node.state.name)))
            elif slot is not None:  # a client was faster
                slot.free()
        await asyncio.gather(*starts)

    def _tell_of_others(self, others: set[str]) -> None:
        if not self._told_of_others:
            self._told_of_others = True
            names = ", ".join(sorted(others))
            self._event("boot", f"the host is busy with the boots of other labs: {names}")

    async def power_on(self, name: str) -> None:
        """Start the machine of a node. Raises ``LabError`` when it does not start."""
        node = self.node(name)
        async with node.lock:
            if node.state.power == "running":
                raise LabError(f"{name} is on already")
            for task in node.tasks:
                task.cancel()
            node.tasks = []
            state = node.state
            state.status, state.answered, state.reason = None, None, None
            state.cpu_percent, state.cpu_seconds_to_joined, state.joined = None, None, None
            state.guest_used_kib = None
            node.busy = None
            # Who asks for a node does not wait for those that a lab starts; these wait for it.
            if node.slot is None:
                node.slot = self._slots.try_take()
            if node.slot is not None:
                asyncio.get_running_loop().call_later(BOOT_DEADLINE, node.slot.free)
            machine = self.parts.machine(
                name, node.directory, lambda kind, detail: self._machine_event(node, kind, detail)
            )
            node.machine = machine
            state.power, state.started = "running", self.elapsed
            try:
                await machine.start()
            except Exception as error:
                state.power, state.reason = "died", str(error)
                node.free_slot()
                self._event("died", f"did not start: {error}", name)
                raise LabError(f"{name} did not start: {error}") from error
            self._event("boot", "switched on", name)
            self.lively()
            node.tasks = [
                asyncio.create_task(self._watch(node, machine)),
                asyncio.create_task(self._ask(node, machine)),
            ]

    async def power_off(self, name: str, *, grace: float = 10.0) -> None:
        """Ask a node to shut down; after ``grace`` seconds, or at once when that is 0, cut it."""
        node = self.node(name)
        async with node.lock:
            if node.state.power != "running" or node.machine is None:
                raise LabError(f"{name} is not on")
            # Said first: the machine's end is then no surprise to those who watch it.
            node.state.power = "off"
            node.free_slot()
            if grace <= 0:
                node.machine.kill()
            await node.machine.stop(grace)
            for task in node.tasks:
                task.cancel()
            node.tasks = []
            node.state.status = None
            node.state.cpu_percent = None
            self._event("change", "power cut" if grace <= 0 else "switched off", name)
            self.lively()

    async def kill(self, name: str) -> None:
        """Cut the power of a node: no goodbye, nothing is written any more."""
        await self.power_off(name, grace=0)

    def _machine_event(self, node: Node, kind: str, detail: dict[str, Any]) -> None:
        """Pass on what the machine tells that nobody asked for."""
        name = node.state.name
        if kind == "panic":
            self._event("trouble", f"its kernel panicked: {detail.get('message')}", name)
        elif kind == "reset":
            self._event("change", f"restarts ({detail.get('reason')})", name)
            node.state.status = None
            self.lively()
        elif kind == "watchdog":
            self._event("trouble", f"its watchdog bit: {detail.get('action')}", name)

    async def _watch(self, node: Node, machine: MachineLike) -> None:
        """Notice when a machine ends by itself."""
        code = await machine.wait()
        if node.state.power != "running" or node.machine is not machine:
            return
        node.free_slot()
        node.state.status = None
        node.state.cpu_percent = None
        if code == 0:
            node.state.power = "off"
            self._event("change", "switched itself off", node.state.name)
        else:
            node.state.power = "died"
            tail = last_lines(node.directory / "qemu.log", 3) or "(it said nothing)"
            how = f"status {code}" if code is None or code >= 0 else signal.Signals(-code).name
            node.state.reason = f"QEMU ended with {how}: {tail}"
            self._event("died", node.state.reason, node.state.name)

    async def _ask(self, node: Node, machine: MachineLike) -> None:
        """Ask a node for its status again and again, for as long as the machine runs."""
        while node.machine is machine and node.state.power == "running":
            try:
                text = await machine.shell.read_if_changed(STATUS_FILE, ASK_TIMEOUT)
                # What a node says of itself ends on a person's terminal.
                status = visible_values(json.loads(text)) if text else None
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever a dying guest or half a line makes of it
                log.debug(
                    "%s does not answer: %s: %s", node.state.name, type(error).__name__, error
                )
                status = None
            if isinstance(status, dict):
                self._answered(node, status)
            await asyncio.sleep(self._interval(node))

    def _interval(self, node: Node) -> float:
        """Return the seconds until a node is asked again: often while something happens."""
        crowd = max(1.0, len(self.nodes) / 10)
        if time.monotonic() < self._lively_until:
            return crowd * self.lively_interval
        settled = phase(self.state, node.state.name) in ("up", "problem", "degraded")
        return 4.0 if settled else crowd

    def lively(self, seconds: float = 20.0) -> None:
        """Ask the nodes more often for a while: something is about to happen."""
        self._lively_until = max(self._lively_until, time.monotonic() + seconds)

    def _answered(self, node: Node, status: dict[str, Any]) -> None:
        state = node.state
        old, state.status = state.status, status
        state.answered = self.elapsed
        told = list(
            news(state.name, old, status, self.state.by_mac(), self.state.by_cluster_name())
        )
        for kind, text in told:
            self._event(kind, text, state.name)
        if told:
            self.lively(8.0)
        if get(status, "radio", "state") == "joined":
            if state.joined is None:
                state.joined = self.elapsed
                if node.machine is not None:
                    state.cpu_seconds_to_joined = node.machine.cpu_seconds()
            node.free_slot()
        elif get(status, "radio", "state") in ("absent", "unsuitable", "failed"):
            node.free_slot()  # it will not get further by itself: make room for the next
        self._notify()

    async def _measure(self) -> None:
        """Measure what the machines cost, every two seconds."""
        while True:
            for node in self.nodes.values():
                machine = node.machine
                if machine is None or node.state.power != "running":
                    continue
                now, used = time.monotonic(), machine.cpu_seconds()
                if node.busy is not None and now > node.busy[0]:
                    node.state.cpu_percent = 100 * (used - node.busy[1]) / (now - node.busy[0])
                node.busy = (now, used)
                node.state.cpu_seconds = used
                node.state.rss_kib = machine.rss_kib()
            await asyncio.sleep(2)

    # --- events and conditions -----------------------------------------------------------------

    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Have every event from now on reported to ``listener``."""
        self._listeners.append(listener)

    def _event(self, kind: str, text: str, node: str | None = None) -> None:
        event = Event(round(self.elapsed, 1), kind, text, node)
        self.state.events.append(event)
        if self._events_file is not None:
            self._events_file.write(f"{event.at:8.1f} {node or '-':<5} {kind:<8} {text}\n")
            self._events_file.flush()
        for listener in self._listeners:
            listener(event)
        self._notify()

    def _notify(self) -> None:
        for changed in self._changed:
            changed.set()

    def snapshot(self) -> LabState:
        """Return the state, with its clock set."""
        self.state.elapsed = self.elapsed
        return self.state

    async def wait(self, condition: Callable[[], T], timeout: float, what: str) -> T:
        """Wait until ``condition()`` is true and return its value.

        Raises ``TimeoutError`` with ``what`` and what the nodes say, ``LabError`` when the lab
        fails meanwhile.
        """
        changed = asyncio.Event()
        self._changed.add(changed)
        deadline = time.monotonic() + timeout
        try:
            while True:
                self.lively()
                changed.clear()
                self.snapshot()
                if value := condition():
                    return value
                if self.failure is not None:
                    raise self.failure
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"not within {timeout:g} s: {what}\n{self.report()}")
                with contextlib.suppress(TimeoutError):
                    # At least once a second, for conditions that nothing announces.
                    async with asyncio.timeout(min(left, 1.0)):
                        await changed.wait()
        finally:
            self._changed.discard(changed)

    async def formed(self, timeout: float) -> None:
        """Wait until the mesh has formed.

        Raises ``NotFormedError`` when it has not within ``timeout`` seconds.
        """
        try:
            await self.wait(lambda: self.state.formed is not None, timeout, "the mesh forms")
        except TimeoutError:
            lacking = summary.missing(self.snapshot())
            words = "\n".join(summary.in_words(self.state))
            raise NotFormedError(f"not formed within {timeout:g} s\n{words}", lacking) from None

    async def _judge(self) -> None:
        """Notice when the mesh has formed."""
        changed = asyncio.Event()
        self._changed.add(changed)
        while summary.missing(self.snapshot()):
            changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await changed.wait()
        self._changed.discard(changed)
        self.state.formed = round(self.elapsed, 2)
        self._event("formed", f"the mesh has formed: {len(self.nodes)} nodes")
        with contextlib.suppress(RpcError):
            # From here on its figures are those of the mesh, no longer of its boot.
            self.state.medium_forming = dict(await self.medium_call("status"))
            await self.medium_call("reset_stats")
        await self.measure_guests()

    async def measure_guests(self) -> None:
        """Ask every node that is on how much memory it uses."""
        names = [name for name, node in self.nodes.items() if node.state.power == "running"]
        await asyncio.gather(*(self._guest_memory(self.nodes[name]) for name in names))

    async def _guest_memory(self, node: Node) -> None:
        try:
            assert node.machine is not None
            _, text = await node.machine.shell.run(_ASK_MEMORY, ASK_TIMEOUT)
            values = dict(line.split() for line in text.splitlines())
            node.state.guest_used_kib = int(values["MemTotal:"]) - int(values["MemAvailable:"])
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.debug("memory of %s: %s", node.state.name, error)

    def report(self) -> str:
        """Return what a person needs to understand a failure: status and logs of every node."""
        lines = [f"lab {self.spec.name} in {self.directory}, {self.elapsed:.0f} s old"]
        lines += summary.in_words(self.snapshot())
        for name, node in self.nodes.items():
            lines.append(f"--- {name}: {phase(self.state, name)}")
            lines.append(f"status: {json.dumps(node.state.status)}")
            lines.append(last_lines(node.directory / "console.log", 15) or "(no console output)")
        lines.append("--- medium")
        lines.append(json.dumps(self.state.medium))
        lines.append(last_lines(self.directory / "medium.log", 15))
        lines.append("--- events")
        lines += [f"{e.at:7.1f} {e.node or '-'} {e.text}" for e in list(self.state.events)[-40:]]
        return "\n".join(lines)

    # --- the medium ----------------------------------------------------------------------------

    async def _keep_medium(self) -> None:
        """Run the medium, and run it again whenever it ends."""
        command = self.parts.medium(self.directory)
        quick = 0
        while True:
            begun = time.monotonic()
            with (self.directory / "medium.log").open("ab") as output:
                self._medium = await asyncio.create_subprocess_exec(
                    *tied(command),
                    cwd=self.directory,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=0,  # Ctrl-C in the terminal is the supervisor's to handle
                )
            code = await self._medium.wait()
            self.state.medium = {}
            tail = last_lines(self.directory / "medium.log", 3)
            quick = quick + 1 if time.monotonic() - begun < 3 else 0
            if quick >= 4:
                raise LabError(f"the medium does not stay up (status {code}): {tail}")
            self.state.medium_restarts += 1
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}: {tail}"
            self._event("medium", f"the medium ended ({how}), starting it again")
            self.lively()
            await asyncio.sleep(0.2 if quick == 0 else RESTART_PAUSE)

    async def medium_call(
        self, method: str, params: Params | None = None, *, patience: float = 8.0
    ) -> Json:
        """Make a request to the medium, waiting ``patience`` seconds for one that restarts.

        Raises ``RpcError``: the medium's own, or ``medium-down``.
        """
        deadline = time.monotonic() + patience
        async with self._medium_lock:
            while True:
                try:
                    if self._medium_client is None:
                        self._medium_client = await Client.connect(self.directory / "medium.sock")
                    return await self._medium_client.call(method, params, timeout=10)
                except RpcError as error:
                    if error.code not in ("not-running", "closed", "timeout"):
                        raise
                    if self._medium_client is not None:
                        await self._medium_client.close()
                        self._medium_client = None
                    if error.code == "timeout" or time.monotonic() > deadline:
                        text = f"the medium does not answer ({error}); see medium.log"
                        raise RpcError("medium-down", text) from None
                await asyncio.sleep(0.1)

    async def _watch_medium(self) -> None:
        """Keep the state's picture of the medium fresh."""
        since_links = 0
        was_valid = True
        while True:
            pause = 2.0
            try:
                facts = dict(await self.medium_call("status", patience=0))
                self.state.medium = facts
                # While nodes boot beside it the medium is late, and nothing depends on it yet.
                valid = facts.get("valid") is not False or self.state.formed is None
                if was_valid and not valid:
                    reason = facts.get("reason") or "the host cannot keep up"
                    self._event("trouble", f"the medium's figures are invalid: {reason}")
                was_valid = valid
                if since_links == 0:
                    await self.refresh_links()
                since_links = (since_links + 1) % 5
            except RpcError as error:
                log.debug("medium: %s", error)
                pause = 0.3
            await asyncio.sleep(pause)

    async def refresh_links(self) -> None:
        """Ask the medium who hears whom and where the nodes are."""
        self._take_links(await self.medium_call("links"))

    def _take_links(self, answer: Json) -> None:
        heard: dict[tuple[str, str], float | None] = {}
        for each in answer["links"]:
            heard[each["a"], each["b"]] = each["snr_db"]
        known = dict.fromkeys([*self.state.links, *heard])
        for a, b in known:
            if (b, a) in self.state.links:
                continue
            snr, back = heard.get((a, b)), heard.get((b, a))
            if (a, b) in self.state.links or snr is not None or back is not None:
                self.state.links[a, b] = LinkState(a, b, snr, back)
        self._notify()

    # --- what clients ask for ------------------------------------------------------------------

    def node(self, name: Any) -> Node:
        """Return the node ``name`` (n3, or 3). Raises ``RpcError`` naming those that exist."""
        text = node_name(int(name)) if str(name).isdecimal() else str(name)
        found = self.nodes.get(text)
        if found is None:
            known = summary.in_order(self.nodes)
            several = f"{known[0]} to {known[-1]}" if len(known) > 1 else known[0]
            raise RpcError(
                "no-such-node", f"there is no node {text}: the lab {self.spec.name!r} has {several}"
            )
        return found

    def _methods(self) -> dict[str, Any]:
        return {
            "status": self._rpc_status,
            "summary": self._rpc_summary,
            "node": self._rpc_node,
            "exec": self._rpc_exec,
            "exec-input": self._rpc_exec_input,
            "logs": self._rpc_logs,
            "link": self._rpc_link,
            "move": self._rpc_move,
            "power": self._rpc_power,
            "pcap": self._rpc_pcap,
            "chip": self._rpc_chip,
            "radio": self._rpc_radio,
            "config": self._rpc_config,
            "medium": self._rpc_medium,
            "down": self._rpc_down,
        }

    async def _rpc_status(self, params: Params, call: Call) -> Json:
        return self.snapshot().to_json()

    async def _rpc_summary(self, params: Params, call: Call) -> Json:
        return summary.summarise(self.snapshot())

    async def _rpc_node(self, params: Params, call: Call) -> Json:
        node = self.node(params.get("node"))
        return {
            "name": node.state.name,
            "power": node.state.power,
            "directory": str(node.directory),
        }

    def _machine(self, node: Node) -> MachineLike:
        if node.machine is None or node.state.power != "running":
            name = node.state.name
            call = own_call(self.spec.name, f"power {name} on")
            raise RpcError("off", f"{name} is {node.state.power}: `{call}`")
        return node.machine

    async def run(
        self,
        name: str,
        command: str,
        timeout: float = 30.0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> tuple[int, str]:
        """Run a shell command on a node; return its exit status and output."""
        return await self._machine(self.node(name)).exec_shell.run(command, timeout, on_output)

    async def _rpc_exec(self, params: Params, call: Call) -> Json:
        node = self.node(params.get("node"))
        command = params.get("command")
        if not isinstance(command, str) or not command.strip():
            raise RpcError("bad-request", "exec needs a command")
        timeout = params.get("timeout")
        if timeout is not None and not isinstance(timeout, int | float):
            raise RpcError("bad-request", "a timeout is a number of seconds")
        wants_input = params.get("input", False)
        if not isinstance(wants_input, bool):
            raise RpcError("bad-request", "input is true or false")
        chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1000)

        lost = 0

        def output(data: bytes) -> None:
            nonlocal lost
            try:
                chunks.put_nowait(data)
            except asyncio.QueueFull:  # the shell must not wait for a client
                lost += len(data)

        async def send() -> None:
            while (data := await chunks.get()) is not None:
                await call.event(_output(data))

        sender = asyncio.create_task(send())
        number = next(self._commands)
        try:
            shell = self._machine(node).exec_shell
            source = None
            if wants_input:
                self._inputs[number] = asyncio.Queue(2)
                source = _until_none(self._inputs[number])
                await call.event({"input": number})
            code = await shell.stream(command, output, timeout, source)
            await chunks.put(None)
            await sender
        except ShellError as error:
            raise RpcError("failed", str(error)) from None
        finally:
            self._inputs.pop(number, None)
            sender.cancel()
            self.lively()
        if lost:
            raise RpcError("failed", f"{lost} bytes of output were lost: nobody read them in time")
        return {"status": code}

    async def _rpc_exec_input(self, params: Params, call: Call) -> Json:
        """A piece of the input of a command that runs; waits until there is room for it."""
        del call
        queue = self._inputs.get(params.get("number", 0))
        data = _decoded(params.get("data", ""))
        if queue is None:
            return {"wanted": False}
        putting = asyncio.ensure_future(queue.put(data or None))
        try:
            # The command may end meanwhile, and nobody takes it then.
            while self._inputs.get(params["number"]) is queue:
                done, _ = await asyncio.wait({putting}, timeout=0.2)
                if done:
                    return {"wanted": True}
        finally:
            putting.cancel()
        return {"wanted": False}

    async def _rpc_logs(self, params: Params, call: Call) -> Json:
        """Send a node's system log; with ``follow`` go on until the client leaves."""
        node = self.node(params.get("node"))
        last: str | None = None
        while True:
            try:
                code, text = await self._machine(node).exec_shell.run("logread", 30)
            except ShellError as error:
                raise RpcError("failed", str(error)) from None
            lines = text.splitlines()
            if code != 0:
                raise RpcError("failed", f"logread on {node.state.name}: {text.strip()}")
            start = 0
            if last is not None:
                # The log is a ring: what was sent last may still be in it, or have been pushed out.
                found = [i for i, line in enumerate(lines) if line == last]
                start = found[-1] + 1 if found else 0
            if lines[start:]:
                await call.event({"output": "\n".join(lines[start:]) + "\n"})
                last = lines[-1]
            if not params.get("follow"):
                return {}
            await asyncio.sleep(LOG_PAUSE)

    async def link(
        self,
        a: str,
        b: str,
        *,
        cut: bool = False,
        snr: float | None = None,
        loss: float | None = None,
        restore: bool = False,
        both: bool = True,
    ) -> None:
        """Cut, weaken or restore what b hears of a, and with ``both`` what a hears of b.

        ``loss`` is the part of the frames that gets lost, of whatever rate and length they are.
        """
        first, second = self.node(a).state.name, self.node(b).state.name
        if first == second:
            raise RpcError("bad-request", "a link has two different ends")
        if (cut, snr is not None, loss is not None, restore).count(True) != 1:
            raise RpcError("bad-request", "say one of --cut, --snr DB, --loss PERCENT, --restore")
        params: Params = {"a": first, "b": second, "both": both}
        if cut:
            params["cut"], what = True, "cut"
        elif restore:
            params["restore"], what = True, "restored"
        elif loss is not None:
            params["loss"], what = loss, f"loses {100 * loss:g} %"
        else:
            params["snr"], what = snr, f"set to {snr:g} dB"
        await self.medium_call("link", params)
        arrow = "<->" if both else "->"
        self._event("change", f"link {first} {arrow} {second} {what}")
        self.lively()
        await self.refresh_links()

    async def _rpc_link(self, params: Params, call: Call) -> Json:
        snr = params.get("snr")
        if snr is not None and not isinstance(snr, int | float):
            raise RpcError("bad-request", "an SNR is a number of dB")
        loss = params.get("loss")
        if loss is not None and not isinstance(loss, int | float):
            raise RpcError("bad-request", "a loss is a number from 0 to 1")
        await self.link(
            str(params.get("a")),
            str(params.get("b")),
            cut=bool(params.get("cut")),
            snr=snr,
            loss=loss,
            restore=bool(params.get("restore")),
            both=bool(params.get("both", True)),
        )
        return {}

    async def move(self, name: str, x: float, y: float) -> None:
        """Put a node elsewhere; from then on its links follow from the distances."""
        state = self.node(name).state
        await self.medium_call("move", {"node": state.name, "x": x, "y": y})
        state.position = (x, y)
        self._event("change", f"moved to {x:g} m, {y:g} m", state.name)
        self.lively()
        await self.refresh_links()

    async def _rpc_move(self, params: Params, call: Call) -> Json:
        x, y = params.get("x"), params.get("y")
        if not isinstance(x, int | float) or not isinstance(y, int | float):
            raise RpcError("bad-request", "a position is two numbers of metres")
        await self.move(str(params.get("node")), x, y)
        return {}

    async def _rpc_power(self, params: Params, call: Call) -> Json:
        name = self.node(params.get("node")).state.name
        action = params.get("action")
        try:
            if action == "on":
                await self.power_on(name)
            elif action == "off":
                await self.power_off(name)
            elif action == "kill":
                await self.kill(name)
            else:
                raise RpcError("bad-request", "power is on, off or kill")
        except LabError as error:
            raise RpcError("failed", str(error)) from None
        return {}

    async def _rpc_pcap(self, params: Params, call: Call) -> Json:
        if params.get("stop"):
            return await self.medium_call("pcap_stop", {"path": params.get("path")})
        name = params.get("node")
        node = None if name is None else self.node(name).state.name
        return await self.medium_call("pcap", {"path": params.get("path"), "node": node})

    async def chip_fault(self, name: str, fault: str | None) -> None:
        """Give a node's chip a fault, or None to heal it."""
        node = self.node(name)
        assert node.chip is not None
        try:
            node.chip.fault = fault
        except ValueError as error:
            raise RpcError("bad-request", str(error)) from None
        node.state.chip_fault = fault
        self._event("change", f"chip: {fault or 'well'}", node.state.name)

    async def _rpc_chip(self, params: Params, call: Call) -> Json:
        fault = params.get("fault")
        await self.chip_fault(str(params.get("node")), None if fault == "none" else fault)
        return {}

    async def radio(self, name: str, *, plug: bool, index: int = 0) -> None:
        """Unplug or plug in a node's radio."""
        state = self.node(name).state
        await self.medium_call("radio", {"node": state.name, "index": index, "plug": plug})
        self._event("change", f"radio {'plugged in' if plug else 'unplugged'}", state.name)
        self.lively()

    async def _rpc_radio(self, params: Params, call: Call) -> Json:
        await self.radio(str(params.get("node")), plug=params.get("action") == "plug")
        return {}

    async def configure(self, name: str, settings: Iterable[str]) -> tuple[int, str]:
        """Change a node's configuration ("section.key=value") by the node's own command."""
        node = self.node(name)
        assignments = list(settings)
        changed: dict[str, dict[str, Any]] = {k: dict(v) for k, v in node.config.items()}
        for each in assignments:
            path, equals, value = each.partition("=")
            section, dot, key = path.partition(".")
            if not (equals and dot and section and key):
                raise RpcError("bad-request", f"{each!r} is not section.key=value")
            changed.setdefault(section, {})[key] = value
        command = f"thicket config set {' '.join(map(shlex.quote, assignments))}"
        try:
            code, output = await self.run(node.state.name, command, 60)
        except ShellError as error:
            raise RpcError("failed", str(error)) from None
        if code == 0:
            node.config = changed
            node.state.mesh, node.state.cluster = mesh_key(changed), cluster_key(changed)
            keys = ", ".join(each.partition("=")[0] for each in assignments)
            self._event("change", f"configured: {keys}", node.state.name)
            self.lively()
        return code, output

    async def _rpc_config(self, params: Params, call: Call) -> Json:
        settings = params.get("settings")
        if not isinstance(settings, list) or not all(isinstance(s, str) for s in settings):
            raise RpcError("bad-request", "settings is a list of section.key=value")
        code, output = await self.configure(str(params.get("node")), settings)
        return {"status": code, "output": output}

    def edit_card(self, name: str, text: str | None = None) -> None:
        """Replace a node's ``thicket.toml`` as a person does with the card in a computer.

        ``None``: the text that the lab gave it at first. Raises ``LabError`` unless it is off.
        """
        node = self.node(name)
        if node.state.power == "running":
            raise LabError(f"{name} is on: switch it off before its card is edited")
        self.parts.configure(node.directory, to_toml(node.config) if text is None else text)
        self._event("change", f"{CONFIG_FILE} on its card was replaced", node.state.name)

    async def kill_medium(self) -> None:
        """Kill the medium's process; the lab starts it again."""
        if self._medium is not None and self._medium.returncode is None:
            self._medium.kill()

    async def _rpc_medium(self, params: Params, call: Call) -> Json:
        if params.get("action") == "kill":
            await self.kill_medium()
            return {}
        return await self.medium_call("status")

    async def _rpc_down(self, params: Params, call: Call) -> Json:
        self.done.set()
        self._notify()
        return {}


def is_held(directory: Path) -> bool:
    """Tell whether a supervisor has a lab's directory."""
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _output(data: bytes) -> dict[str, str]:
    """Return output as an event: as text, or in Base64 where it is none (or a character is cut)."""
    try:
        return {"output": data.decode()}
    except UnicodeDecodeError:
        return {"data": base64.b64encode(data).decode()}


async def _until_none(queue: asyncio.Queue[bytes | None]) -> AsyncIterator[bytes]:
    while (data := await queue.get()) is not None:
        yield data


def _decoded(value: object) -> bytes:
    """Return the bytes that a request has as base64. Raises ``RpcError``."""
    try:
        if not isinstance(value, str):
            raise ValueError
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise RpcError("bad-request", "an input is base64") from None


def last_lines(path: Path, count: int) -> str:
    """Return the last lines of a text file, "" when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 16384))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "\n".join(line.rstrip() for line in lines[-count:])
