# SPDX-License-Identifier: Apache-2.0
"""The parts of a lab on another machine: its chips are here, its machines are there."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from meshlab.hosts import images
from meshlab.hosts.chip_line import answer
from meshlab.hosts.errors import HostsError
from meshlab.hosts.hosts import Host
from meshlab.hosts.link import Json, LinkError, pump
from meshlab.lab.errors import LabError
from meshlab.lab.parts import ChipLike, FleetLike, MachineLike, Parts, PortsLike
from meshlab.machine import events
from meshlab.machine.events import MachineEvent, OnMachineEvent
from meshlab.machine.qemu import MachineError
from meshlab.machine.shell import Shell
from meshlab.machine.spec import (
    BOARDS,
    CONSOLE_LOG,
    CONSOLE_SOCKET,
    EXEC_SOCKET,
    QEMU_LOG,
    RELAY_SOCKET,
    SHELL_SOCKET,
)
from meshlab.machine.suspend import SavedMachine
from meshlab.wire.sockets import listen

if TYPE_CHECKING:
    from meshlab.lab.real_parts import RealParts

log = logging.getLogger(__name__)

DOORS = (CONSOLE_SOCKET, SHELL_SOCKET, EXEC_SOCKET, RELAY_SOCKET)
START_PATIENCE = 300.0
"""Seconds that a start may take there: the disks of a card are copied, and the host may be busy."""
STOP_PATIENCE = 60.0
_LOGS = (CONSOLE_LOG, QEMU_LOG)
_EVENTS: dict[str, Callable[..., MachineEvent]] = {
    kind.__name__: kind for kind in get_args(MachineEvent)
}


class RemoteChip:
    """A virtual chip here, on an I2C bus there."""

    def __init__(self, directory: Path, serial: bytes, seed: int) -> None:
        from meshlab.chip.bus import I2cBus
        from meshlab.chip.i2c import VirtioI2c
        from meshlab.lab.real_parts import open_chip

        self.chip = open_chip(directory, serial, seed)
        self.controller = VirtioI2c(I2cBus([self.chip]))

    @property
    def fault(self) -> str | None:
        """Return its fault."""
        return self.chip.fault

    @fault.setter
    def fault(self, fault: str | None) -> None:
        self.chip.fault = fault

    @property
    def asleep(self) -> bool:
        """See ``ChipLike``."""
        return self.chip.asleep

    async def start(self) -> None:
        """Do nothing: the node's agent asks."""

    async def stop(self) -> None:
        """Wait until its file is written."""
        if self.chip.saving is not None:
            with contextlib.suppress(OSError):
                await asyncio.wrap_future(self.chip.saving)


class RemoteNode:
    """A node there, as the lab has to know it from one power-on to the next.

    :param name: Its name.
    :param directory: Its directory here: for the chip, the logs and the doors.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.chip: RemoteChip | None = None
        self.machine: RemoteMachine | None = None
        self.config = ""
        self.changed: str | None = None
        """A configuration that the agent has not got yet."""
        self.prepared: object = None
        """The link over which the agent got the node ready."""

    def note(self, note: Json) -> None:
        """See ``hosts.RemoteNode``."""
        if note.get("log") in _LOGS:
            with contextlib.suppress(OSError), (self.directory / note["log"]).open("ab") as file:
                file.write(base64.b64decode(note["data"]))
        elif self.machine is not None:
            self.machine.note(note)

    def lost(self, why: str) -> None:
        """See ``hosts.RemoteNode``."""
        if self.machine is not None and self.machine.running:
            with contextlib.suppress(OSError), (self.directory / QEMU_LOG).open("a") as file:
                file.write(f"{why}\n")
            self.machine.end(None)

    def chip_request(self, params: Json) -> Json:
        """See ``hosts.RemoteNode``."""
        if self.chip is None:
            raise LinkError(f"{self.name} has no chip")
        return answer(self.chip.controller, params)

    def chip_reset(self) -> None:
        """See ``hosts.RemoteNode``."""
        if self.chip is not None:
            self.chip.controller.reset()


class NoPorts(PortsLike):
    """Nothing can be plugged into a machine there.

    :param name: The node.
    :param place: Where it runs.
    """

    def __init__(self, name: str, place: str) -> None:
        self._why = f"{name} runs on {place}, and has no way in by SSH or cable there"

    def __len__(self) -> int:
        return 0

    async def plug(self, *, on: bool) -> None:
        """Refuse."""
        raise MachineError(self._why)

    async def add(self, peer: Path) -> str:
        """Refuse."""
        raise MachineError(self._why)

    async def remove(self, name: str) -> None:
        """Do nothing: there is none."""

    async def closed(self, name: str) -> None:
        """Do nothing: there is none."""


class RemoteMachine(MachineLike):
    """A machine there. What connects to one here connects to it through doors in its directory.

    :param parts: Those that it belongs to.
    :param node: The node.
    """

    def __init__(self, parts: RemoteParts, node: RemoteNode, on_event: OnMachineEvent) -> None:
        self._parts = parts
        self._node = node
        self._on_event = on_event
        self._ports = NoPorts(node.name, parts.place)
        self._shells = (
            Shell(node.directory / SHELL_SOCKET, node.name),
            Shell(node.directory / EXEC_SOCKET, node.name),
        )
        self._ended: asyncio.Future[int | None] | None = None
        self._cost = (0.0, 0)
        self._doors: list[asyncio.Server] = []
        self._visitors: set[asyncio.Task[None]] = set()

    @property
    def shell(self) -> Shell:
        """See ``MachineLike``."""
        return self._shells[0]

    @property
    def exec_shell(self) -> Shell:
        """See ``MachineLike``."""
        return self._shells[1]

    @property
    def ports(self) -> NoPorts:
        """See ``MachineLike``."""
        return self._ports

    @property
    def running(self) -> bool:
        """See ``MachineLike``."""
        return self._ended is not None and not self._ended.done()

    @property
    def pid(self) -> int | None:
        """See ``MachineLike``."""
        return None

    async def start(self) -> None:
        """Switch it on.

        :raises MachineError: when it does not start, in the words of what does not.
        """
        node, host = self._node, self._parts.host
        try:
            await self._parts.prepare(node)
            self._ended = asyncio.get_running_loop().create_future()
            await host.call("start", {"name": node.name}, START_PATIENCE)
            await self._open_doors()
        except HostsError as error:
            self.end(1)
            await self._close_doors()
            raise MachineError(str(error)) from error
        except BaseException:
            host.kill(node.name)
            self.end(1)
            await self._close_doors()
            raise

    async def wake(self, memory: Path, saved: SavedMachine) -> None:
        """Refuse: see ``RemoteParts.keep_image``."""
        raise MachineError(self._parts.not_saved)

    async def save(self, memory: Path) -> SavedMachine:
        """Refuse: see ``RemoteParts.keep_image``."""
        raise MachineError(self._parts.not_saved)

    async def pause(self) -> None:
        """Refuse: see ``RemoteParts.keep_image``."""
        raise MachineError(self._parts.not_saved)

    async def go_on(self) -> None:
        """Refuse: see ``RemoteParts.keep_image``."""
        raise MachineError(self._parts.not_saved)

    async def stop(self, grace: float) -> None:
        """Switch it off in order; see ``Machine.stop``."""
        if self.running and grace > 0 and self._parts.host.connected:
            with contextlib.suppress(HostsError, TimeoutError):
                params = {"name": self._node.name, "grace": grace}
                await self._parts.host.call("stop", params, grace + STOP_PATIENCE)
                async with asyncio.timeout(STOP_PATIENCE):
                    await self.wait()
        self.kill()
        await self.wait()

    def kill(self) -> None:
        """Cut the power."""
        if self.running:
            self._parts.host.kill(self._node.name)
            if not self._parts.host.connected:
                self.end(None)

    async def wait(self) -> int | None:
        """Return the exit status of QEMU when it has ended; ``None``: nobody knows it."""
        if self._ended is None:
            return None
        status = await asyncio.shield(self._ended)
        await self._close_doors()
        return status

    def cpu_seconds(self) -> float:
        """See ``MachineLike``: as of the agent's last word."""
        return self._cost[0]

    def own_kib(self) -> int:
        """See ``MachineLike``: as of the agent's last word."""
        return self._cost[1] if self.running else 0

    def note(self, note: Json) -> None:
        """Take what the agent tells of it."""
        if "cpu" in note:
            self._cost = (float(note["cpu"]), int(note.get("own", 0)))
        if "event" in note:
            self._happened(_EVENTS[note["event"]](*note["fields"]))
        if "ended" in note:
            self.end(note["ended"])

    def end(self, status: int | None) -> None:
        """Have ended."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(status)
            for shell in self._shells:
                shell.reset("the machine has ended")

    def _happened(self, event: MachineEvent) -> None:
        if isinstance(event, events.Reset):
            for shell in self._shells:
                shell.reset("the node has restarted")
        self._on_event(event)

    async def _open_doors(self) -> None:
        """Listen here as QEMU does there."""
        for name in DOORS:
            path = self._node.directory / name
            path.unlink(missing_ok=True)

            def visited(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name
            ) -> None:
                task = asyncio.create_task(self._visit(name, reader, writer))
                self._visitors.add(task)
                task.add_done_callback(self._visitors.discard)

            server = await asyncio.start_unix_server(visited, sock=listen(path))
            path.chmod(0o600)
            self._doors.append(server)

    async def _visit(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            stream = self._parts.host.connect(self._node.name, name)
        except ConnectionError:
            writer.close()
            return
        await pump(stream, reader, writer)

    async def _close_doors(self) -> None:
        doors, self._doors = self._doors, []
        for door in doors:
            door.close()
        if doors:
            for name in DOORS:
                (self._node.directory / name).unlink(missing_ok=True)
            for task in list(self._visitors):
                task.cancel()
            await asyncio.gather(*self._visitors, return_exceptions=True)
            for shell in self._shells:
                await shell.close()


class RemoteParts(Parts):
    """Parts of a lab on another machine, for one image. ``make`` makes them.

    :param host: The machine.
    :param parts: The same parts on this machine.
    :param identity: What the agent knows them by.
    """

    def __init__(self, host: Host, parts: RealParts, identity: str, keep: bool) -> None:
        self.host = host
        self.place = host.name
        self.image = parts.image
        self.description = f"{parts.description}, on {host.name}"
        self.has_chip = parts.has_chip
        self.accel, self.accel_reason, self.boot_slots = "", "", 1
        self._here = parts
        self._identity = identity
        self._keep = keep
        self._digests: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._ready: object = None

    @classmethod
    async def make(
        cls,
        host: Host,
        parts: RealParts,
        identity: str,
        *,
        keep: bool,
        tell: Callable[[str], None],
    ) -> RemoteParts:
        """Send the image if it is not there, and return the parts.

        :param identity: A word for them that no others of the lab have.
        :param keep: Nodes keep the disks of the lab's last run.
        :param tell: Gets lines of progress.
        :raises HostsError: when the machine cannot boot the image.
        """
        made = cls(host, parts, identity, keep)
        files = images.files_of(parts.images)
        for what, path in files.items():
            made._digests[what] = await asyncio.to_thread(images.digest_of, path)
        await host.store([(made._digests[what], path) for what, path in files.items()], tell)
        await made.get_ready()
        tell(f"{host.name}: {host.facts.cores} processors, {made.accel}: {made.accel_reason}")
        return made

    @property
    def not_saved(self) -> str:
        """Return why these nodes cannot be saved."""
        return f"nodes on {self.place} cannot be saved: only those on the lab's own machine can"

    def keep_image(self, folder: Path) -> dict[str, Any]:
        """Refuse: the memory of these nodes is elsewhere.

        :raises LabError: always.
        """
        raise LabError(self.not_saved)

    async def get_ready(self) -> object:
        """Have the agent ready to boot the image, also after the connection was lost."""
        link = await self.host.open()
        if self._ready is not link:
            board = self._here.board
            params = {
                "id": self._identity,
                "image": images.image_to_json(self._here.images, self._digests),
                "arch": self._here.arch,
                "seed": self._here.seed,
                "board": board,
                "own_processor": board is not None and BOARDS[board].own_processor,
            }
            said = await self.host.call("parts", params)
            self.accel, self.accel_reason = said["accel"], said["accel_reason"]
            self.boot_slots = said["boot_slots"]
            self._ready = link
        return link

    async def prepare(self, node: RemoteNode) -> None:
        """Have the agent ready to start a node.

        :raises HostsError: when it cannot.
        """
        link = await self.get_ready()
        if node.prepared is not link:
            params = {
                "name": node.name,
                "parts": self._identity,
                "config": node.config,
                "keep": self._keep or node.prepared is not None,
            }
            await self.host.call("node", params, START_PATIENCE)
            node.prepared = link
        if node.changed is not None:
            params = {"name": node.name, "config": node.changed}
            await self.host.call("configure", params)
            node.changed = None

    # -- Parts

    def serial(self, seed: int, index: int) -> bytes:
        """See ``Parts``."""
        return self._here.serial(seed, index)

    def fleet(self, directory: Path, name: str, prefix: str, keep: bool) -> FleetLike:
        """See ``Parts``."""
        return self._here.fleet(directory, name, prefix, keep)

    def chip(self, directory: Path, serial: bytes) -> ChipLike:
        """See ``Parts``."""
        node = self._node(directory)
        node.chip = RemoteChip(directory, serial, self._here.seed)
        return node.chip

    def disks(self, directory: Path, config: str) -> None:
        """See ``Parts``: they are made there, before the first start."""
        self._node(directory).config = config

    def configure(self, directory: Path, config: str) -> None:
        """See ``Parts``: it is written before the next start."""
        self._node(directory).changed = config

    def report(self, directory: Path) -> str | None:
        """See ``Parts``. Called in a thread."""
        if not self.host.connected or not self._here.has_card:
            return None
        asking = self.host.call("report", {"name": directory.name})
        try:
            text = asyncio.run_coroutine_threadsafe(asking, self._loop).result()
        except HostsError as error:
            log.debug("%s", error)
            return None
        return None if text is None else str(text)

    def machine(self, name: str, directory: Path, on_event: OnMachineEvent) -> MachineLike:
        """See ``Parts``."""
        node = self._node(directory)
        node.machine = RemoteMachine(self, node, on_event)
        return node.machine

    def medium(self, directory: Path) -> list[str]:
        """See ``Parts``: it runs here."""
        return self._here.medium(directory)

    def _node(self, directory: Path) -> RemoteNode:
        name = directory.name
        known = self.host.nodes.get(name)
        if isinstance(known, RemoteNode) and known.directory == directory:
            return known
        node = RemoteNode(name, directory)
        self.host.nodes[name] = node
        return node
