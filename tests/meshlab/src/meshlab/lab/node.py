# SPDX-License-Identifier: Apache-2.0
"""One node of a running lab: its parts, and the tasks that watch them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, NamedTuple

from meshlab.lab.directory import last_lines
from meshlab.lab.errors import LabError
from meshlab.lab.journal import Journal, Pace
from meshlab.lab.parts import ChipLike, FleetLike, MachineLike, Parts
from meshlab.lab.paths import own_call
from meshlab.lab.slots import BootSlots, Slot
from meshlab.lab.spec import (
    Config,
)
from meshlab.lab.state import (
    SETTLED,
    Kind,
    LabState,
    NodeState,
    get,
    news,
    phase,
    report_in_short,
    visible_values,
)
from meshlab.machine.events import MachineEvent, Panic, Reset, WatchdogBite
from meshlab.machine.spec import CONSOLE_SOCKET
from meshlab.machine.suspend import SavedMachine
from meshlab.wire.rpc import RpcError

log = logging.getLogger(__name__)

STATUS_FILE = "/run/thicket/status.json"

# Only what is built into the guest's shell: a process under TCG costs some 20 ms.
_ASK_MEMORY = (
    "while read -r k v u; do case $k in MemTotal:|MemAvailable:) "
    "printf '%s %s\\n' $k $v;; esac; done </proc/meminfo"
)

REPORT_PAUSE = 20.0
"""Seconds between looks at the card of a node that does not answer."""

BOOT_DEADLINE = 90.0
"""Host seconds after which a node that has not joined no longer holds up the start of others."""

ASK_TIMEOUT = 20.0
"""Seconds that a node may take to answer; a guest of a busy TCG host can be slow."""


ENROLLING_PAUSES = (5.0, 10.0, 20.0, 40.0)
"""Seconds between attempts to enrol a node; after the last one a person has to."""


class Surroundings(NamedTuple):
    """What the nodes of a lab share."""

    parts: Parts
    state: LabState
    journal: Journal
    pace: Pace
    slots: BootSlots
    fleet: FleetLike | None


class Node:
    """One node of a running lab."""

    def __init__(
        self,
        state: NodeState,
        directory: Path,
        config: Config,
        chip: ChipLike,
        around: Surroundings,
    ) -> None:
        self.state = state
        self.directory = directory
        self.config = config
        self.chip = chip
        self.machine: MachineLike | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.busy: tuple[float, float] | None = None
        """(host seconds, processor seconds) of the last measurement."""
        self.lock = asyncio.Lock()
        """Held while it is switched on or off."""
        self.slot: Slot | None = None
        """Its boot slot, from before power-on until it has joined."""
        self._around = around

    def tell(self, kind: Kind, text: str) -> None:
        """Tell that something has happened to this node."""
        self._around.journal.tell(kind, text, self.state.name)

    def free_slot(self) -> None:
        """Make room for the boot of another node."""
        if self.slot is not None:
            self.slot.free()
            self.slot = None

    def running(self) -> MachineLike:
        """Return its machine.

        :raises RpcError: when it is not on.
        """
        if self.machine is None or self.state.power != "running":
            name = self.state.name
            call = own_call(self._around.state.name, f"power {name} on")
            raise RpcError("off", f"{name} is {self.state.power}: `{call}`")
        return self.machine

    async def power_on(self) -> None:
        """Start the machine.

        :raises LabError: when it does not start.
        """
        async with self.lock:
            state = self.state
            if state.power == "running":
                raise LabError(f"{state.name} is on already")
            report = await asyncio.to_thread(self._around.parts.report, self.directory)
            machine = self._new_machine()
            # Who asks for a node does not wait for those that a lab starts; these wait for it.
            if self.slot is None:
                self.slot = self._around.slots.try_take()
            if self.slot is not None:
                asyncio.get_running_loop().call_later(BOOT_DEADLINE, self.slot.free)
            state.power, state.started = "running", self._around.journal.elapsed
            await self._begun(machine.start())
            self.tell(Kind.BOOT, "switched on")
            self._look_after(machine, report)

    async def load(self, memory: Path, saved: SavedMachine) -> None:
        """Get the machine ready to go on from where it was saved.

        :param memory: The file that it was saved to.
        :param saved: What there is to know of it.
        :raises LabError: when it cannot.
        """
        async with self.lock:
            await self._begun(self._new_machine().wake(memory, saved))

    async def go_on(self) -> None:
        """Let a machine run that was loaded.

        :raises LabError: when it does not.
        """
        async with self.lock:
            machine = self.machine
            if machine is None:
                raise LabError(f"{self.state.name} was not loaded")
            await self._begun(machine.go_on())
            self.state.power, self.state.started = "running", self._around.journal.elapsed
            self._look_after(machine, None)

    def _new_machine(self) -> MachineLike:
        """Make a machine, of which nothing is known yet."""
        for task in self.tasks:
            task.cancel()
        self.tasks = []
        state = self.state
        state.status, state.answered, state.reason = None, None, None
        state.cpu_percent, state.cpu_seconds_to_joined, state.joined = None, None, None
        state.guest_used_kib, state.report = None, None
        self.busy = None
        self.machine = self._around.parts.machine(state.name, self.directory, self._told)
        return self.machine

    async def _begun(self, start: Awaitable[None]) -> None:
        try:
            await start
        except Exception as error:
            self.state.power, self.state.reason = "died", str(error)
            self.free_slot()
            self.tell(Kind.DIED, f"did not start: {error}")
            raise LabError(f"{self.state.name} did not start: {error}") from error

    def _look_after(self, machine: MachineLike, report: str | None) -> None:
        """Begin to watch a machine that runs.

        :param report: The report of an earlier start that is on its card.
        """
        self._around.pace.lively()
        self.tasks = [
            asyncio.create_task(self._watch(machine)),
            asyncio.create_task(self._ask(machine)),
            asyncio.create_task(self._look_at_card(machine, report)),
        ]
        fleet = self._around.fleet
        if fleet is not None and not self._around.parts.has_chip:
            self.tasks.append(asyncio.create_task(self._enroll(machine, fleet)))

    async def power_off(self, *, grace: float = 10.0) -> None:
        """Ask it to shut down; after ``grace`` seconds, or at once when that is 0, cut it."""
        async with self.lock:
            if self.state.power != "running" or self.machine is None:
                raise LabError(f"{self.state.name} is not on")
            # Said first: the machine's end is then no surprise to those who watch it.
            self.state.power = "off"
            self.free_slot()
            if grace <= 0:
                self.machine.kill()
            await self.machine.stop(grace)
            for task in self.tasks:
                task.cancel()
            self.tasks = []
            self.state.status = None
            self.state.cpu_percent = None
            self.tell(Kind.CHANGE, "power cut" if grace <= 0 else "switched off")
            self._around.pace.lively()

    def _told(self, event: MachineEvent) -> None:
        """Pass on what the machine tells that nobody asked for."""
        match event:
            case Panic(message):
                self.tell(Kind.TROUBLE, f"its kernel panicked: {message}")
            case Reset(reason):
                self.tell(Kind.CHANGE, f"restarts ({reason})")
                self.state.status = None
                self._around.pace.lively()
            case WatchdogBite(action):
                self.tell(Kind.TROUBLE, f"its watchdog bit: {action}")
            case _:
                pass

    async def _watch(self, machine: MachineLike) -> None:
        """Notice when the machine ends by itself."""
        code = await machine.wait()
        if self.state.power != "running" or self.machine is not machine:
            return
        self.free_slot()
        self.state.status = None
        self.state.cpu_percent = None
        if code == 0:
            self.state.power = "off"
            self.tell(Kind.CHANGE, "switched itself off")
        else:
            self.state.power = "died"
            tail = last_lines(self.directory / "qemu.log", 3) or "(it said nothing)"
            if code is None:  # the host it runs on is lost, and with it how it ended
                self.state.reason = tail.splitlines()[-1]
            else:
                how = f"status {code}" if code >= 0 else signal.Signals(-code).name
                self.state.reason = f"QEMU ended with {how}: {tail}"
            self.tell(Kind.DIED, self.state.reason)

    async def _ask(self, machine: MachineLike) -> None:
        """Ask for its status again and again, for as long as the machine runs."""
        while self.machine is machine and self.state.power == "running":
            try:
                text = await machine.shell.read_if_changed(STATUS_FILE, ASK_TIMEOUT)
                # What a node says of itself ends on a person's terminal.
                status = visible_values(json.loads(text)) if text else None
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whatever a dying guest or half a line makes of it
                log.debug(
                    "%s does not answer: %s: %s", self.state.name, type(error).__name__, error
                )
                status = None
            if isinstance(status, dict):
                self._answered(status)
            settled = phase(self._around.state, self.state.name) in SETTLED
            nodes = len(self._around.state.nodes)
            await asyncio.sleep(self._around.pace.pause(nodes, settled))

    async def _look_at_card(self, machine: MachineLike, past: str | None) -> None:
        """Read the report on the card of a node that does not answer: it may have no shell.

        :param machine: The node's machine.
        :param past: The report of an earlier start.
        """
        parts = self._around.parts
        while self.machine is machine and self.state.power == "running":
            await asyncio.sleep(REPORT_PAUSE)
            if self.state.status is not None:
                self.state.report = None
                continue
            report = await asyncio.to_thread(parts.report, self.directory)
            if report is None or report == past:
                continue
            past, short = report, report_in_short(report)
            if short:
                self.state.report = short
                self.tell(Kind.TROUBLE, f"does not answer; the report on its card: {short}")

    async def _enroll(self, machine: MachineLike, fleet: FleetLike) -> None:
        """Enrol a node without chip as soon as it says that it is in no fleet."""
        pauses = iter(ENROLLING_PAUSES)
        while self.machine is machine and self.state.power == "running":
            await asyncio.sleep(1.0)
            if get(self.state.status, "trust", "state") != "not-enrolled":
                continue
            try:
                console = self.directory / CONSOLE_SOCKET
                device = await asyncio.to_thread(fleet.enroll_software, console)
            except LabError as error:
                self.tell(Kind.TROUBLE, str(error))
            else:
                self.tell(Kind.IDENTITY, f"enrolled over its console as {device}")
            pause = next(pauses, None)
            if pause is None:
                return
            await asyncio.sleep(pause)

    def _answered(self, status: dict[str, Any]) -> None:
        state, lab = self.state, self._around.state
        old, state.status = state.status, status
        state.answered = self._around.journal.elapsed
        state.cluster_name = get(status, "cluster", "node") or state.cluster_name
        told = list(news(state.name, old, status, lab.by_mac(), lab.by_cluster_name()))
        for kind, text in told:
            self.tell(kind, text)
        if told:
            self._around.pace.lively(8.0)
        if get(status, "radio", "state") == "joined":
            if state.joined is None:
                state.joined = self._around.journal.elapsed
                if self.machine is not None:
                    state.cpu_seconds_to_joined = self.machine.cpu_seconds()
            self.free_slot()
        elif get(status, "radio", "state") in ("absent", "unsuitable", "failed"):
            self.free_slot()  # it will not get further by itself: make room for the next
        self._around.journal.notify()

    def measure(self) -> None:
        """Measure what the machine costs."""
        machine = self.machine
        if machine is None or self.state.power != "running":
            return
        now, used = time.monotonic(), machine.cpu_seconds()
        if self.busy is not None and now > self.busy[0]:
            self.state.cpu_percent = 100 * (used - self.busy[1]) / (now - self.busy[0])
        self.busy = (now, used)
        self.state.cpu_seconds = used
        self.state.own_kib = machine.own_kib()

    async def measure_guest(self) -> None:
        """Ask how much memory it uses; a node that does not answer keeps its last figure."""
        try:
            _, text = await self.running().shell.run(_ASK_MEMORY, ASK_TIMEOUT)
            values = dict(line.split() for line in text.splitlines())
            self.state.guest_used_kib = int(values["MemTotal:"]) - int(values["MemAvailable:"])
        except asyncio.CancelledError:
            raise
        except Exception as error:
            log.debug("memory of %s: %s", self.state.name, error)

    async def end(self) -> None:
        """Wait for the end of the machine that was killed, and stop the chip."""
        with contextlib.suppress(Exception):
            if self.machine is not None:
                async with asyncio.timeout(10):
                    await self.machine.wait()
        with contextlib.suppress(Exception):
            await self.chip.stop()
