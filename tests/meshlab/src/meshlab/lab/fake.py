# SPDX-License-Identifier: Apache-2.0
"""Parts of a lab that boot nothing, for tests of the supervisor and the commands.

Machines that answer at once, as nodes that see every other one, and a medium of a few lines.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from meshlab.lab.parts import ChipLike, FleetLike, MachineLike, Parts, PortsLike, ShellLike
from meshlab.lab.state import address_from_serial
from meshlab.lab.topology import node_index
from meshlab.machine.events import OnMachineEvent
from meshlab.machine.qemu import MachineError
from meshlab.machine.shell import ShellError, ShellTimeoutError
from meshlab.machine.suspend import SavedMachine

PREFIX = "fd12:3456:789a:1::/64"

MEDIUM = """
import asyncio, json, pathlib, sys
from meshlab.wire.rpc import Server, RpcError
lab = pathlib.Path(sys.argv[1])
described = json.loads((lab / "medium.json").read_text())
links = {}
for link in described["links"]:
    links[link["a"], link["b"]] = links[link["b"], link["a"]] = link["snr"]
first = dict(links)
lossy = {}
fading = set()
plugged = {node["name"]: True for node in described["nodes"]}
calls = []
async def status(params, call):
    nodes = {name: {"radios": [{"plugged": on}]} for name, on in plugged.items()}
    return {"frames": 100, "valid": True, "lag_ms": 1.5, "calls": calls, "nodes": nodes}
async def all_links(params, call):
    return {"links": [
        {"a": a, "b": b, "snr_db": snr, "loss": lossy.get((a, b), 0.0),
         "fading_set": (a, b) in fading,
         "state": "cut" if snr is None else "link" if snr == first[a, b] else "set"}
        for (a, b), snr in links.items()
    ]}
async def link(params, call):
    calls.append(["link", params])
    a, b = params["a"], params["b"]
    for pair in ((a, b), (b, a)) if params["both"] else ((a, b),):
        if params.get("cut"):
            links[pair] = None
        elif params.get("restore"):
            links[pair] = first[pair]
            lossy.pop(pair, None)
            fading.discard(pair)
        elif params.get("fading"):
            fading.add(pair)
        elif params.get("loss"):
            lossy[pair] = params["loss"]
        elif "snr" in params:
            links[pair] = params["snr"]
async def pcap(params, call):
    calls.append(["pcap", params])
    pathlib.Path(params["path"]).write_bytes(b"packets")
    return params
async def radio(params, call):
    calls.append(["radio", params])
    plugged[params["node"]] = params["plug"]
    return {}
def noted(name):
    async def method(params, call):
        calls.append([name, params])
        return {}
    return method
async def main():
    methods = {"status": status, "links": all_links, "link": link, "pcap": pcap, "radio": radio}
    methods |= {name: noted(name) for name in ("move", "keys", "pcap_stop", "reset_stats")}
    async with Server(lab / "medium.sock", methods):
        await asyncio.Event().wait()
asyncio.run(main())
"""


class FakeShell(ShellLike):
    """Answers what a guest would."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.commands: list[str] = []

    async def run(
        self,
        command: str,
        timeout: float | None = 30.0,
        on_output: Callable[[bytes], None] | None = None,
    ) -> tuple[int, str]:
        self.commands.append(command)
        await asyncio.sleep(0)
        if not self.machine.running:
            raise ShellError("the machine is off")
        if "meminfo" in command:
            return 0, "MemTotal: 120000\nMemAvailable: 70000\n"
        if "MESH_PMKSA_GET" in command:
            pair = "own 02:74:68:00:00:01\n02:74:68:00:00:02"
            return 0, f"{pair} {'00' * 16} {'11' * 32} 600\n"
        if command == "hang":
            try:
                async with asyncio.timeout(timeout):
                    await asyncio.Event().wait()
            except TimeoutError:
                raise ShellTimeoutError(f"hang: not finished after {timeout:g} s", b"") from None
            except asyncio.CancelledError:
                self.machine.parts.cancelled.append(command)
                raise
        if command == "logread":
            return 0, "".join(f"{line}\n" for line in self.machine.parts.syslog)
        if command == "yes" and on_output is not None:
            while True:
                on_output(b"y\n" * 1000)
                await asyncio.sleep(0)
        output = f"{self.machine.name}$ {command}\n"
        if on_output is not None:
            for line in output.splitlines(keepends=True):
                on_output(line.encode())
        return (3, output) if command == "false" else (0, output)

    async def stream(
        self,
        command: str,
        on_output: Callable[[bytes], None],
        timeout: float | None = None,
        source: AsyncIterator[bytes] | None = None,
    ) -> int:
        if source is not None and command == "cat":
            async for data in source:
                on_output(data)
            return 0
        return (await self.run(command, timeout, on_output))[0]

    async def push(self, path: str, content: bytes, timeout: float = 60.0) -> None:
        await asyncio.sleep(0)
        self.machine.parts.pushed[path] = content

    async def read_if_changed(self, path: str, timeout: float = 5.0) -> str | None:
        await asyncio.sleep(0)
        if not self.machine.running:
            raise ShellError("the machine is off")
        status = self.machine.status()
        return None if status is None else json.dumps(status)


class FakePorts(PortsLike):
    """Ports of a machine whose guest never closes one by itself."""

    def __init__(self, parts: FakeParts, name: str) -> None:
        self._parts = parts
        self._name = name
        self.plugged = False
        self.added: dict[str, tuple[Path, asyncio.Event]] = {}

    def __len__(self) -> int:
        return len(self.added) + self.plugged

    async def plug(self, *, on: bool) -> None:
        if not self._parts.cables:
            raise MachineError(f"{self._name} has no wired port")
        self.plugged = on

    async def add(self, peer: Path) -> str:
        if self._name in self._parts.broken:
            raise MachineError(f"{self._name} has no room")
        name = f"port{len(self.added) + 1}"
        self.added[name] = peer, asyncio.Event()
        return name

    async def remove(self, name: str) -> None:
        self.added.pop(name, None)

    async def closed(self, name: str) -> None:
        await self.added[name][1].wait()


class FakeMachine(MachineLike):
    """A machine that is through with its boot as soon as it is asked."""

    def __init__(self, parts: FakeParts, name: str, directory: Path) -> None:
        self.parts = parts
        self.name = name
        self.directory = directory
        self.shells = FakeShell(self), FakeShell(self)
        self.plugs = FakePorts(parts, name)
        self.ended: asyncio.Future[int] | None = None
        self.stopped_with: float | None = None
        self.paused = False
        self.on_event: OnMachineEvent | None = None

    @property
    def shell(self) -> FakeShell:
        return self.shells[0]

    @property
    def exec_shell(self) -> FakeShell:
        return self.shells[1]

    @property
    def ports(self) -> FakePorts:
        return self.plugs

    @property
    def running(self) -> bool:
        return self.ended is not None and not self.ended.done()

    @property
    def pid(self) -> int | None:
        return None

    async def start(self) -> None:
        if self.name in self.parts.broken:
            raise OSError("no such program: qemu-system-x86_64")
        self.ended = asyncio.get_running_loop().create_future()
        self.parts.on[self.name] = self
        self.parts.starts.append(self.name)
        (self.directory / "console.log").write_text(f"console of {self.name}\n")

    async def pause(self) -> None:
        self.paused = True

    async def go_on(self) -> None:
        self.paused = False

    async def save(self, memory: Path) -> SavedMachine:
        if self.name in self.parts.broken or not self.paused:
            raise MachineError(f"{self.name} cannot be saved")
        memory.write_text(f"memory of {self.name}")
        return SavedMachine("7.2.0", [self.name], None, None)

    async def wake(self, memory: Path, saved: SavedMachine) -> None:
        if memory.read_text() != f"memory of {self.name}" or saved.hardware != [self.name]:
            raise MachineError(f"{self.name} is another machine")
        await self.start()
        self.paused = True

    def end(self, code: int) -> None:
        self.parts.on.pop(self.name, None)
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(code)

    async def stop(self, grace: float) -> None:
        self.stopped_with = grace
        self.end(0)

    def kill(self) -> None:
        self.end(-9)

    async def wait(self) -> int | None:
        if self.ended is None:
            return None
        return await asyncio.shield(self.ended)

    def cpu_seconds(self) -> float:
        return 4.25

    def own_kib(self) -> int:
        return 100_000

    def status(self) -> dict[str, Any] | None:
        return self.parts.status(self.name)


class FakeChip(ChipLike):
    """A chip with a fault, maybe."""

    def __init__(self) -> None:
        self._fault: str | None = None
        self.serving = False
        self.commands = 0
        """Commands that it is still to work on: one ends whenever somebody looks."""

    @property
    def asleep(self) -> bool:
        self.commands, working = max(0, self.commands - 1), self.commands > 0
        return not working

    @property
    def fault(self) -> str | None:
        return self._fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        if fault not in (None, "absent", "nak"):
            raise ValueError(f"{fault!r} is no fault: absent, nak")
        self._fault = fault

    async def start(self) -> None:
        self.serving = True

    async def stop(self) -> None:
        self.serving = False


class FakeFleet(FleetLike):
    """An authority that has enrolled every chip that it was shown."""

    def __init__(self, name: str) -> None:
        self.root = f"the root of {name}"
        self.enrolled: list[bytes] = []
        self.consoles: list[Path] = []

    def enroll(self, chip: Path, serial: bytes, seed: int) -> None:
        self.enrolled.append(serial)

    def enroll_software(self, console: Path) -> str:
        self.consoles.append(console)
        return f"software-{len(self.consoles)}"


class FakeParts(Parts):
    """Makes a lab in which every node that is on sees every other node that is on."""

    image = "fake"
    description = "nothing is booted"
    accel = "none"
    accel_reason = "nothing is booted"
    has_chip = True

    def __init__(self) -> None:
        self.boot_slots = 2
        self.on: dict[str, FakeMachine] = {}
        self.starts: list[str] = []
        self.broken: set[str] = set()
        self.silent: set[str] = set()
        self.unlinked: set[str] = set()
        self.syslog = ["a", "b"]
        self.cancelled: list[str] = []
        self.pushed: dict[str, bytes] = {}
        self.reports: dict[str, str] = {}
        self.chips: list[FakeChip] = []
        self.machines: list[FakeMachine] = []
        self.medium_code = MEDIUM

    def serial(self, seed: int, index: int) -> bytes:
        digest = hashlib.sha256(f"{seed} {index}".encode()).digest()
        return b"\x01\x23" + digest[:6] + b"\xee"

    def fleet(self, directory: Path, name: str, prefix: str, keep: bool) -> FakeFleet:
        return FakeFleet(name)

    def chip(self, directory: Path, serial: bytes) -> FakeChip:
        (directory / "chip.json").touch()
        self.chips.append(FakeChip())
        return self.chips[-1]

    def disks(self, directory: Path, config: str) -> None:
        if not (directory / "config.img").exists():
            (directory / "config.img").write_text(config)

    def configure(self, directory: Path, config: str) -> None:
        (directory / "config.img").write_text(config)

    def report(self, directory: Path) -> str | None:
        return self.reports.get(directory.name)

    def keep_image(self, folder: Path) -> dict[str, Any]:
        (folder / "kernel").write_text("kernel")
        return {"name": self.image}

    def machine(self, name: str, directory: Path, on_event: OnMachineEvent) -> FakeMachine:
        self.machines.append(FakeMachine(self, name, directory))
        self.machines[-1].on_event = on_event
        return self.machines[-1]

    def medium(self, directory: Path) -> list[str]:
        return [sys.executable, "-c", self.medium_code, str(directory)]

    def status(self, name: str) -> dict[str, Any] | None:
        if name in self.silent:
            return None
        others = [other for other in self.on if other != name and other not in self.silent]
        linked = [] if name in self.unlinked else [o for o in others if o not in self.unlinked]
        own = address_from_serial(PREFIX, self.serial(1, node_index(name)))
        addresses = {o: address_from_serial(PREFIX, self.serial(1, node_index(o))) for o in others}
        return {
            "schema": 1,
            "state": "joined",
            "problems": [],
            "times": {"daemon": 3.0},
            "identity": {"source": "chip", "software": False},
            "address": own,
            "radio": {"state": "joined", "mac": mac(name), "mesh_id": "thicket"},
            "peers": [{"mac": mac(o), "state": "ESTAB", "signal_dbm": -61} for o in linked],
            "cluster": {
                "node": f"thicket@{own}",
                "nodes": [{"name": f"thicket@{addresses[o]}", "state": "up"} for o in linked],
            },
        }


def mac(name: str) -> str:
    return f"02:74:68:00:00:{node_index(name):02x}"
