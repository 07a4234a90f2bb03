# SPDX-License-Identifier: Apache-2.0
"""What tests on running nodes need: meshes that several tests share, and short words for nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from meshlab.lab import questions, summary
from meshlab.lab.lab import Lab
from meshlab.lab.parts import Parts
from meshlab.lab.slots import Places, Slot
from meshlab.lab.spec import LabSpec, NodeSpec
from meshlab.lab.state import get

PATIENCE = questions.PATIENCE

_SOAK = float(os.environ.get("THICKET_SOAK", "0"))

HANGS = (4 if _SOAK else 1) * 3600 + _SOAK
"""Seconds by the clock on the wall after which a test is ended that hangs where nothing else ends
it. What a test waits for has limits that a busy host does not use up: ``meshlab.machine.given``."""

NODES_PER_CORE = 5
"""Most nodes that run at a time for each core, without KVM: with more, each gets too little to keep
its links, and all of them begin anew again and again."""

FORMING = 900.0
"""As ``PATIENCE``, for a mesh that forms while other labs boot theirs."""


def whole(lab: Lab) -> bool:
    """Tell whether the mesh has formed and nothing is missing."""
    return lab.state.formed is not None and not summary.missing(lab.snapshot())


class Kind(NamedTuple):
    """What a node is that differs from the others."""

    image: str
    board: str | None = None
    """A key of ``meshlab.machine.spec.BOARDS``."""


@dataclass(frozen=True)
class Mesh:
    """A mesh that tests share."""

    name: str
    spec: LabSpec
    applications: tuple[Path, ...] = ()
    """Directories of applications to install, where the image can be made with some."""
    ready: Callable[[Lab], bool] = whole
    """Whether a running lab of it is as its tests expect it."""
    cables: bool = False
    """Whether its nodes have wired ports."""
    uplinks: tuple[str, ...] = ()
    """The nodes that have a port to this machine's own network."""
    others: Mapping[str, Kind] = field(default_factory=dict)
    """The nodes that differ from the others."""


class Mark(Protocol):
    """What is used of ``pytest.Mark``."""

    @property
    def name(self) -> str: ...

    @property
    def args(self) -> tuple[Any, ...]: ...


def is_skipped(marks: Iterable[Mark]) -> bool:
    """Tell whether its marks skip a test, so that it never takes the mesh that it names."""
    return any(
        mark.name == "skip" or (mark.name == "skipif" and all(mark.args[:1])) for mark in marks
    )


class Meshes:
    """The meshes that run.

    A mesh is started for the first test that needs it and ended after the last one. A failed test
    may leave anything behind: the next one gets a mesh that is made anew, in another directory.
    """

    def __init__(
        self,
        parts: Callable[[Mesh], Parts],
        places: Places,
        others: Callable[[Kind], Parts] | None = None,
    ) -> None:
        self._parts = parts
        self._others = others
        self._places = places
        self._held: dict[str, list[Slot]] = {}
        self._running: dict[str, Lab] = {}
        self._runs: Counter[str] = Counter()
        self.needed: Counter[str] = Counter()
        """How many tests still need a mesh, by its name."""

    async def take(self, mesh: Mesh) -> Lab:
        """Return the mesh, ready for a test, which has to give it back.

        :raises TimeoutError: when it does not become ready.
        """
        self.needed[mesh.name] -= 1
        try:
            lab = self._running.get(mesh.name)
            if lab is not None:
                await put_back(lab)
            else:
                lab = await self._start(mesh)
            await lab.wait(lambda: mesh.ready(lab), FORMING, f"the mesh {mesh.name} is ready")
        except BaseException:
            await self._end(mesh.name)
            raise
        return lab

    async def give_back(self, mesh: Mesh, *, fit: bool) -> None:
        """End the mesh unless it is ``fit`` for another test that needs it."""
        if not fit or self.needed[mesh.name] <= 0:
            await self._end(mesh.name)

    async def end(self) -> None:
        """End all meshes."""
        for mesh in list(self._held):
            await self._end(mesh)

    async def _start(self, mesh: Mesh) -> Lab:
        self._runs[mesh.name] += 1
        run = self._runs[mesh.name]
        name = f"test-{mesh.name}" if run == 1 else f"test-{mesh.name}-{run}"
        self._held[mesh.name] = await self._places.take(len(mesh.spec.topology.names))
        kinds = mesh.others.items()
        others = {node: self._others(kind) for node, kind in kinds} if self._others else None
        lab = Lab(replace(mesh.spec, name=name), self._parts(mesh), others=others)
        self._running[mesh.name] = lab
        await lab.start()
        return lab

    async def _end(self, name: str) -> None:
        lab = self._running.pop(name, None)
        try:
            if lab is not None:
                await lab.stop()
        finally:
            for place in self._held.pop(name, []):
                place.free()


async def put_back(lab: Lab) -> None:
    """Undo what a test did to power, links, radios and chips; the nodes take their time."""
    lab.pace.interval = 1.0
    for name, node in lab.nodes.items():
        fault = lab.spec.nodes.get(name, NodeSpec()).chip_fault
        if node.state.chip_fault != fault:
            await lab.chip_fault(name, fault)
        if node.state.power in ("off", "died"):
            await lab.power_on(name)
    for link in (await lab.medium_call("links", patience=PATIENCE))["links"]:
        if link["state"] in ("set", "cut") or link["loss"] or link["fading_set"]:
            await lab.link(link["a"], link["b"], restore=True)
    for name, port in (await lab.medium_call("status"))["nodes"].items():
        for index, radio in enumerate(port["radios"]):
            if not radio["plugged"]:
                await lab.radio(name, plug=True, index=index)


class Nodes:
    """What tests ask of nodes, in short words."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.unfit: str | None = None
        """Why the mesh is of no use to other tests after this one."""

    def status(self, name: str, *keys: str) -> Any:
        """Return a member of a node's status."""
        return get(self.lab.state.nodes[name].status, *keys)

    async def now(self, name: str, *keys: str) -> Any:
        """Return a member of a node's status as it is now.

        What the lab has of it may be old: a counter alone is no change that the node tells at once.
        """
        return get(await self.json(name, "thicket status --json"), *keys)

    def problems(self, name: str, part: str) -> list[str]:
        """Return the problems of a part of a node, in its words."""
        return questions.problems(self.lab.state, name, part)

    def address(self, name: str) -> str:
        address = self.lab.state.nodes[name].address
        assert address, f"{name} has no address"
        return address

    async def run(self, name: str, command: str, timeout: float = PATIENCE) -> str:
        """Run a command that must succeed; return its output."""
        status, output = await self.lab.run(name, command, timeout)
        assert status == 0, f"{command!r} on {name} ended with {status}: {output}"
        return output

    async def succeeds(self, name: str, command: str) -> str:
        """Wait until a command succeeds; return its output."""
        outputs: list[str] = []

        async def succeeded() -> bool:
            status, output = await self.lab.run(name, command, PATIENCE)
            outputs.append(output)
            return status == 0

        await self.until(succeeded, f"{command!r} on {name} succeeds")
        return outputs[-1]

    async def signal_supplicant(self, name: str, signal: str) -> int:
        """Send wpa_supplicant a signal, as soon as it runs; return the number of its process."""
        state = "/run/thicket/supplicant.state"
        command = f"pid=$(cut -d' ' -f1 {state}) && kill -{signal} $pid && echo $pid"
        return int((await self.succeeds(name, command)).split()[-1])

    async def kernel_addresses(self, name: str, interface: str) -> list[str]:
        """Return the global IPv6 addresses of an interface, as the kernel has them.

        ``/proc/net/if_inet6`` (net/ipv6/addrconf.c): address, index, prefix length, scope (0 is
        global), flags, name. It is there whichever ``ip`` an image has.
        """
        lines = (await self.run(name, "cat /proc/net/if_inet6")).splitlines()
        rows = [line.split() for line in lines]
        return [
            str(IPv6Address(bytes.fromhex(row[0])))
            for row in rows
            if row[5] == interface and row[3] == "00"
        ]

    async def reaches(self, name: str, other: str) -> bool:
        """Tell whether one ping of three is answered."""
        return bool((await questions.ping(self.lab, name, other)).times)

    async def reach(self, name: str, other: str) -> None:
        """Wait until a ping is answered."""
        await self.until(lambda: self.reaches(name, other), f"{name} reaches {other}")

    async def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Wait for a condition of the lab's state."""
        await self.lab.wait(condition, PATIENCE, what)

    async def until(self, check: Callable[[], Awaitable[bool]], what: str) -> None:
        """Wait for a condition that has to be asked for."""
        had = self.lab.given()
        while not await check():
            if had.seconds() > PATIENCE:
                raise TimeoutError(f"not within {PATIENCE:g} s: {what}\n{self.lab.report()}")
            await asyncio.sleep(0.3)

    async def json(self, name: str, command: str) -> Any:
        """Return what ``command`` says in JSON.

        Whatever its exit status: that may be the node's state. A daemon that starts or is busy says
        nothing in JSON; then it is asked again.
        """
        found: list[Any] = []

        async def answered() -> bool:
            _, output = await self.lab.run(name, command, PATIENCE)
            with contextlib.suppress(ValueError):
                found.append(json.loads(output))
            return bool(found)

        await self.until(answered, f"{command!r} on {name} says something in JSON")
        return found[-1]

    async def says(self, name: str, command: str, *words: str) -> None:
        """Wait until what ``command`` says has all these words, whatever its exit status."""

        async def said() -> bool:
            _, output = await self.lab.run(name, command, PATIENCE)
            return all(word.lower() in output.lower() for word in words)

        await self.until(said, f"{command!r} on {name} says {', '.join(words)}")

    async def logs(self, name: str, words: str, *, more_than: int = 0) -> None:
        """Wait until a node's log has a line with these words (more than so many)."""

        async def said() -> bool:
            return (await self.run(name, "logread")).count(words) > more_than

        await self.until(said, f"{name} logs {words!r}")

    async def whole(self) -> None:
        """Wait until nothing is missing."""
        await self.lab.wait(lambda: whole(self.lab), FORMING, "whole again")
