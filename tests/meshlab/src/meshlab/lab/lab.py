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
import contextlib
import json
import logging
import os
import re
import secrets
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from meshlab.lab import saving, ssh, summary
from meshlab.lab.air import PATIENCE, Air
from meshlab.lab.directory import LabDirectory, last_lines
from meshlab.lab.errors import LabError, NotFormedError
from meshlab.lab.journal import Journal, Pace
from meshlab.lab.node import Node, Surroundings
from meshlab.lab.parts import Doubts, FleetLike, Parts
from meshlab.lab.paths import slots_directory
from meshlab.lab.requests import Requests
from meshlab.lab.slots import BootSlots
from meshlab.lab.spec import (
    CONFIG_FILE,
    PREFIX,
    LabSpec,
    NodeSpec,
    cluster_key,
    medium_description,
    mesh_key,
    node_config,
    radio_mac,
    to_toml,
)
from meshlab.lab.state import (
    Event,
    Kind,
    LabState,
    LinkState,
    NodeState,
    address_from_serial,
    phase,
)
from meshlab.lab.topology import node_name
from meshlab.machine.given import Given, within
from meshlab.machine.shell import ShellError
from meshlab.wire.rpc import Json, Params, RpcError, Server

log = logging.getLogger(__name__)

T = TypeVar("T")

CONFIGURE_TIMEOUT = 300.0
"""Seconds that a change of a node's configuration may take: many times what a slow host needs. The
node reads all keys, and makes its parts follow."""


class Lab:
    """A running lab. Use it as ``async with Lab(spec, parts) as lab``.

    :param spec: What to build.
    :param parts: Makes the parts of it.
    :param cache: Where labs are; ``None``: in the product's cache folder.
    :param others: Makes the parts of the nodes of these names, which differ from all others.
    :param doubts: Why figures cannot be trusted, beside the medium's own reasons.
    :raises LabError: (From ``start``) when the directory is in use, or the medium or a machine does
        not start.
    """

    def __init__(
        self,
        spec: LabSpec,
        parts: Parts,
        cache: Path | None = None,
        others: Mapping[str, Parts] | None = None,
        doubts: Doubts | None = None,
    ) -> None:
        self.spec = spec
        self.parts = parts
        self._others = dict(others or {})
        self._held = LabDirectory(spec.name, cache)
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
        self.journal = Journal(self.state)
        self.pace = Pace()
        command = parts.medium(self.directory)
        self.air = Air(self.directory, command, self.state, self.journal, self.pace, doubts=doubts)
        self._tasks: set[asyncio.Task[Any]] = set()
        #: The boot slots of each host.
        self._slots = {
            each.place: BootSlots(
                slots_directory(cache) / _folder(each.place),
                each.boot_slots,
                f"{spec.name} (process {os.getpid()})",
            )
            for each in (*self._others.values(), parts)
        }
        self._server = Server(self.directory / "control.sock", Requests(self).methods())

    @property
    def directory(self) -> Path:
        """Return the lab's directory."""
        return self._held.path

    @property
    def elapsed(self) -> float:
        """Host seconds since the lab was made."""
        return self.journal.elapsed

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

    async def start(self) -> None:
        """Prepare the directory, start the medium, and begin to start the nodes."""
        self._held.take()
        run, resume = secrets.token_hex(8), self.spec.resume
        if resume is not None:
            await asyncio.to_thread(resume.unpack, self.directory, run)
            self.spec = replace(self.spec, keep=True)
        if not self.spec.keep:
            ssh.forget(self.directory)
        passphrase = self._held.passphrase(self.spec.passphrase, keep=self.spec.keep)
        self.spec = replace(self.spec, passphrase=passphrase)
        self.journal.open(self.directory / "events.log")
        self.journal.tell(
            Kind.CHANGE, f"lab {self.spec.name}: {len(self.spec.topology.positions)} nodes"
        )
        self.journal.tell(Kind.CHANGE, f"image: {self.parts.description}")
        for name, parts in self._others.items():
            self.journal.tell(Kind.CHANGE, f"image: {parts.description}", name)
        self.journal.tell(Kind.CHANGE, f"{self.parts.accel}: {self.parts.accel_reason}")
        if self.spec.security != "open":
            address = self.spec.config.get("address", {})
            self.fleet = self.parts.fleet(
                self.directory, self.spec.name, address.get("prefix", PREFIX), self.spec.keep
            )
        for index, name in enumerate(self.spec.topology.names, start=1):
            self._prepare(index, name)
        self._write_medium(run)
        for (a, b), snr in self.spec.topology.links.items():
            self.state.links[a, b] = LinkState(a, b, snr, snr)
        await self._server.start()
        self._task(self.air.keep())
        self._task(self.air.watch())
        self._task(self._measure())
        self._task(self._judge())
        for node in self.nodes.values():
            await node.chip.start()
        self._task(self._start_all() if resume is None else saving.wake(self, resume))

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
        self.air.terminate()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(node.end() for node in self.nodes.values()))
        await self.air.stop()
        await self._server.stop()
        self.journal.close()
        self._held.release()
        if self.spec.resume is not None:
            self.spec.resume.close()

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
        self.journal.tell(Kind.DIED, str(error))
        self.done.set()
        self.journal.notify()

    def _prepare(self, index: int, name: str) -> None:
        directory = self._held.prepare_node(name, keep=self.spec.keep)
        spec = self._node_spec(name)
        parts = self.parts_of(name)
        serial = parts.serial(self.spec.topology.seed, index)
        root = None
        if self.fleet is not None:
            if parts.has_chip:
                self.fleet.enroll(directory / "chip.json", serial, self.spec.topology.seed)
            root = self.fleet.root
        key = ssh.public_key(self.directory) if parts.cables else None
        config = node_config(self.spec, spec, root, chip=parts.has_chip, ssh_key=key)
        position = self.spec.topology.positions[name]
        if self.spec.resume is not None:
            saved = self.spec.resume.nodes[name]
            config = {section: dict(values) for section, values in saved.config.items()}
            position = saved.position
            spec = replace(spec, chip_fault=saved.chip_fault)
        prefix = config["address"]["prefix"]
        state = NodeState(
            name=name,
            mac=radio_mac(index),
            position=position,
            serial=serial.hex() if parts.has_chip else None,
            expected_address=address_from_serial(prefix, serial) if parts.has_chip else None,
            chip_fault=spec.chip_fault,
            host=parts.place,
            mesh=mesh_key(config),
            cluster=cluster_key(config),
        )
        chip = parts.chip(directory, serial)
        chip.fault = spec.chip_fault
        text = spec.config_text
        parts.disks(directory, to_toml(config) if text is None else text)
        slots = self._slots[parts.place]
        around = Surroundings(parts, self.state, self.journal, self.pace, slots, self.fleet)
        self.nodes[name] = Node(state, directory, config, chip, around)
        self.state.nodes[name] = state

    def _node_spec(self, name: str) -> NodeSpec:
        return self.spec.nodes.get(name, NodeSpec())

    def _write_medium(self, run: str) -> None:
        mesh = {name: self._node_spec(name).mesh_point for name in self.nodes}
        description = medium_description(self.spec, run, mesh)
        (self.directory / "medium.json").write_text(json.dumps(description, indent=1) + "\n")

    async def _start_all(self) -> None:
        """Start the nodes of all hosts."""
        places: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            places.setdefault(node.state.host, []).append(node)
        await asyncio.gather(*(self._start_on(place, nodes) for place, nodes in places.items()))

    async def _start_on(self, place: str, nodes: list[Node]) -> None:
        """Start the nodes of a host in their order, each as soon as it has room for its boot."""
        starts = []
        told = False

        def tell_of_others(others: set[str]) -> None:
            nonlocal told
            if not told:
                told = True
                names = ", ".join(sorted(others))
                text = f"the host is busy with the boots of other labs: {names}"
                self.journal.tell(Kind.BOOT, text)

        for node in nodes:
            slot = await self._slots[place].take(tell_of_others)
            if node.state.power == "waiting":
                node.slot = slot
                starts.append(self._task(node.power_on()))
            elif slot is not None:  # a client was faster
                slot.free()
        await asyncio.gather(*starts)

    async def power_on(self, name: str) -> None:
        """Start the machine of a node.

        :raises LabError: when it does not start.
        """
        await self.node(name).power_on()

    async def power_off(self, name: str, *, grace: float = 10.0) -> None:
        """Ask a node to shut down; after ``grace`` seconds, or at once when that is 0, cut it."""
        await self.node(name).power_off(grace=grace)

    async def kill(self, name: str) -> None:
        """Cut the power of a node: no goodbye, nothing is written any more."""
        await self.power_off(name, grace=0)

    async def _measure(self) -> None:
        """Measure what the machines cost, every two seconds."""
        while True:
            for node in self.nodes.values():
                node.measure()
            await asyncio.sleep(2)

    # --- events and conditions -----------------------------------------------------------------

    def on_event(self, listener: Callable[[Event], None]) -> None:
        """Have every event from now on reported to ``listener``."""
        self.journal.on_event(listener)

    def snapshot(self) -> LabState:
        """Return the state, with its clock set."""
        return self.journal.snapshot()

    @property
    def failed(self) -> str | None:
        """Why the lab cannot go on, or that somebody ended it."""
        if self.failure is not None:
            return str(self.failure)
        return "somebody ended the lab" if self.done.is_set() else None

    def watch(self) -> None:
        """Ask the nodes more often for a while: somebody waits for what they say."""
        self.pace.lively()

    def programs(self) -> dict[str, int]:
        """Return the processes on which it depends how quick the nodes are, by what they are."""
        found = {"the medium": self.air.pid}
        for name, node in self.nodes.items():
            found[name] = None if node.machine is None else node.machine.pid
        return {name: pid for name, pid in found.items() if pid is not None}

    def within(self, seconds: float) -> AbstractAsyncContextManager[None]:
        """Limit what waits for nodes to these seconds, as they and the medium are given them.

        :raises TimeoutError: in the context, when they are over.
        """
        return within(seconds, lambda: self.programs().values())

    def given(self) -> Given:
        """Return a clock of the time that the nodes and the medium are given from now on."""
        return Given(lambda: self.programs().values())

    async def wait(self, condition: Callable[[], T], timeout: float, what: str) -> T:
        """Wait until ``condition()`` is true and return its value.

        :param timeout: Seconds, as the nodes and the medium are given them.
        :raises TimeoutError: when it has not happened; the text has ``what`` and what the nodes
            say.
        :raises LabError: when the lab fails meanwhile.
        """
        had = self.given()
        with self.journal.changes() as changed:
            while True:
                self.pace.lively()
                changed.clear()
                self.snapshot()
                if value := condition():
                    return value
                if self.failure is not None:
                    raise self.failure
                left = timeout - had.seconds()
                if left <= 0:
                    raise TimeoutError(f"not within {timeout:g} s: {what}\n{self.report()}")
                with contextlib.suppress(TimeoutError):
                    # At least once a second, for conditions that nothing announces.
                    async with asyncio.timeout(min(left, 1.0)):
                        await changed.wait()

    async def formed(self, timeout: float) -> None:
        """Wait until the mesh has formed.

        :raises NotFormedError: when it has not within ``timeout`` seconds.
        """
        try:
            await self.wait(lambda: self.state.formed is not None, timeout, "the mesh forms")
        except TimeoutError:
            lacking = summary.missing(self.snapshot())
            words = "\n".join(summary.in_words(self.state))
            raise NotFormedError(f"not formed within {timeout:g} s\n{words}", lacking) from None

    async def _judge(self) -> None:
        """Notice when the mesh has formed."""
        with self.journal.changes() as changed:
            while summary.missing(self.snapshot()):
                changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await changed.wait()
        self.state.formed = round(self.journal.elapsed, 2)
        self.journal.tell(Kind.FORMED, f"the mesh has formed: {len(self.nodes)} nodes")
        with contextlib.suppress(RpcError):
            # From here on its figures are those of the mesh, no longer of its boot.
            self.state.medium_forming = dict(await self.air.call("status"))
            await self.air.call("reset_stats")
        await self.measure_guests()

    async def measure_guests(self) -> None:
        """Ask every node that is on how much memory it uses."""
        nodes = [node for node in self.nodes.values() if node.state.power == "running"]
        await asyncio.gather(*(node.measure_guest() for node in nodes))

    def report(self) -> str:
        """Return what a person needs to understand a failure: status and logs of every node."""
        lines = [f"lab {self.spec.name} in {self.directory}, {self.journal.elapsed:.0f} s old"]
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

    # --- what people and tests do to it ---------------------------------------------------------

    def node(self, name: Any) -> Node:
        """Return the node ``name`` (n3, or 3).

        :raises RpcError: when there is none; the text names those that exist.
        """
        text = node_name(int(name)) if str(name).isdecimal() else str(name)
        found = self.nodes.get(text)
        if found is None:
            known = summary.in_order(self.nodes)
            several = f"{known[0]} to {known[-1]}" if len(known) > 1 else known[0]
            raise RpcError(
                "no-such-node", f"there is no node {text}: the lab {self.spec.name!r} has {several}"
            )
        return found

    async def run(
        self,
        name: str,
        command: str,
        timeout: float = 30.0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> tuple[int, str]:
        """Run a shell command on a node; return its exit status and output.

        :param timeout: Seconds, as the node is given them.
        """
        return await self.node(name).running().exec_shell.run(command, timeout, on_output)

    async def push(self, name: str, path: str, content: bytes) -> None:
        """Write a file on a node."""
        await self.node(name).running().exec_shell.push(path, content)

    async def medium_call(
        self, method: str, params: Params | None = None, *, patience: float = PATIENCE
    ) -> Json:
        """Make a request to the medium, waiting ``patience`` seconds for one that restarts.

        :raises RpcError: the medium's own, or ``medium-down``.
        """
        return await self.air.call(method, params, patience=patience)

    async def link(
        self,
        a: str,
        b: str,
        *,
        cut: bool = False,
        snr: float | None = None,
        loss: float | None = None,
        fading: str | None = None,
        restore: bool = False,
        both: bool = True,
    ) -> None:
        """Cut, weaken or restore what b hears of a, and with ``both`` what a hears of b.

        ``loss`` is the part of the frames that gets lost, of whatever rate and length they are;
        ``fading`` how the signal changes by itself, the same way in both directions.
        """
        first, second = self.node(a).state.name, self.node(b).state.name
        if first == second:
            raise RpcError("bad-request", "a link has two different ends")
        given = (cut, snr is not None, loss is not None, fading is not None, restore)
        if given.count(True) != 1:
            ways = "--cut, --snr DB, --loss PERCENT, --fading HOW, --restore"
            raise RpcError("bad-request", f"say one of {ways}")
        both = both or fading is not None
        params: Params = {"a": first, "b": second, "both": both}
        if cut:
            params["cut"], what = True, "cut"
        elif restore:
            params["restore"], what = True, "restored"
        elif loss is not None:
            params["loss"], what = loss, f"loses {100 * loss:g} %"
        elif fading is not None:
            params["fading"], what = fading, f"fades: {fading}"
        else:
            params["snr"], what = snr, f"set to {snr:g} dB"
        await self.air.call("link", params)
        arrow = "<->" if both else "->"
        self.journal.tell(Kind.CHANGE, f"link {first} {arrow} {second} {what}")
        self.pace.lively()
        await self.air.refresh_links()

    async def move(self, name: str, x: float, y: float, *, told: bool = True) -> None:
        """Put a node elsewhere; from then on its links follow from the distances.

        :param told: Whether it is an event; of a long way, each step is none.
        """
        state = self.node(name).state
        await self.air.call("move", {"node": state.name, "x": x, "y": y})
        state.position = (x, y)
        if told:
            self.journal.tell(Kind.CHANGE, f"moved to {x:g} m, {y:g} m", state.name)
        self.pace.lively()
        await self.air.refresh_links()

    async def chip_fault(self, name: str, fault: str | None) -> None:
        """Give a node's chip a fault, or None to heal it."""
        node = self.node(name)
        if node.state.serial is None:
            raise RpcError("bad-request", f"{node.state.name} has no chip")
        try:
            node.chip.fault = fault
        except ValueError as error:
            raise RpcError("bad-request", str(error)) from None
        node.state.chip_fault = fault
        self.journal.tell(Kind.CHANGE, f"chip: {fault or 'well'}", node.state.name)

    async def radio(self, name: str, *, plug: bool, index: int = 0) -> None:
        """Unplug or plug in a node's radio."""
        state = self.node(name).state
        await self.air.call("radio", {"node": state.name, "index": index, "plug": plug})
        self.journal.tell(Kind.CHANGE, f"radio {'plugged in' if plug else 'unplugged'}", state.name)
        self.pace.lively()

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
            code, output = await self.run(node.state.name, command, CONFIGURE_TIMEOUT)
        except ShellError as error:
            raise RpcError("failed", str(error)) from None
        if code == 0:
            node.config = changed
            node.state.mesh, node.state.cluster = mesh_key(changed), cluster_key(changed)
            keys = ", ".join(each.partition("=")[0] for each in assignments)
            self.journal.tell(Kind.CHANGE, f"configured: {keys}", node.state.name)
            self.pace.lively()
        return code, output

    def parts_of(self, name: str) -> Parts:
        """Return what makes the parts of the node of this name."""
        return self._others.get(name, self.parts)

    def image_of(self, name: str) -> str:
        """Return what a node boots, in a word."""
        return self.parts_of(self.node(name).state.name).image

    def edit_card(self, name: str, text: str | None = None) -> None:
        """Replace a node's ``thicket.toml`` as a person does with the card in a computer.

        ``None``: the text that the lab gave it at first.

        :raises LabError: when the node is not off.
        """
        node = self.node(name)
        if node.state.power == "running":
            raise LabError(f"{name} is on: switch it off before its card is edited")
        self.parts_of(node.state.name).configure(
            node.directory, to_toml(node.config) if text is None else text
        )
        self.journal.tell(Kind.CHANGE, f"{CONFIG_FILE} on its card was replaced", node.state.name)

    def kill_medium(self) -> None:
        """Kill the medium's process; the lab starts it again."""
        self.air.kill()


def _folder(place: str) -> str:
    """Return the folder of a host's boot slots, below that of this one's."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", f"on-{place}") if place else ""
