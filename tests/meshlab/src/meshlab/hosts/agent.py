# SPDX-License-Identifier: Apache-2.0
"""What runs on another machine: the machines of a lab's nodes, and nothing that outlives the lab.

``python3 -m meshlab.hosts.agent FOLDER``, started by ``bootstrap`` at the end of an SSH connection;
the lab is on its standard input and output. It runs the machines as a lab does on its own machine,
from images that it keeps by their hashes. Chips and medium are the lab's: requests of the guests'
I2C controllers and the ports of the relays travel over the link.

It ends with its connection, or when nothing came for as long as the lab has said, or by a signal;
its QEMUs are tied to it and end with it, however it ends. A ``guard`` looks after the silence.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

from host import child
from meshlab.chip.vhost_user import VhostUserServer
from meshlab.hosts.chip_line import ChipLine
from meshlab.hosts.guard import Guard
from meshlab.hosts.images import UNUSED_DAYS, image_from_json
from meshlab.hosts.link import Handlers, Json, Link, LinkError, Stream, pump
from meshlab.hosts.memory import available_mib
from meshlab.lab.directory import clear_node
from meshlab.lab.real_parts import RealParts
from meshlab.machine import accel
from meshlab.machine.events import MachineEvent
from meshlab.machine.given import Given
from meshlab.machine.machine import Machine
from meshlab.machine.spec import CHIP_SOCKET, CONSOLE_LOG, QEMU_LOG, SOCKETS
from meshlab.wire.sockets import socket_address

log = logging.getLogger(__name__)

LOG_PAUSE = 0.25
"""Seconds between two looks at what machines have written."""
MEASURE_EVERY = 8
"""Looks between two measurements of what they cost."""
LOG_PIECE = 64 * 1024
SOCKET_PATIENCE = 10.0
"""Seconds, as QEMU is given them, that a running machine has to make its sockets: from a card it
restarts in a new QEMU."""
TAKE_OVER = 120.0
"""Seconds that an agent that was left behind has to end."""
PROGRAMS = {"mkfs.fat": "dosfstools", "mcopy": "mtools", "setpriv": "util-linux", "cp": "coreutils"}


class Guest:
    """A node on this machine.

    :param directory: Its disks, logs and sockets.
    """

    def __init__(self, name: str, directory: Path, parts: RealParts) -> None:
        self.name = name
        self.directory = directory
        self.parts = parts
        self.machine: Machine | None = None
        self.chip: VhostUserServer | None = None
        self.line: ChipLine | None = None
        self.sent: dict[str, int] = {}
        """How much of each log the lab has."""
        self.task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Tell whether its machine is on."""
        return self.machine is not None and self.machine.running


class Agent(Handlers):
    """All that a lab has on this machine.

    :param root: Its folder.
    :param guard: Ends this process when the lab is silent for too long.
    """

    def __init__(self, root: Path, guard: Guard) -> None:
        self.root = root
        self.link: Link | None = None
        self.over = asyncio.Event()
        self._guard = guard
        self._guests: dict[str, Guest] = {}
        self._parts: dict[str, RealParts] = {}
        self._folder: Path | None = None
        self._lock: int | None = None
        self._requests = {
            "facts": self._facts,
            "begin": self._begin,
            "missing": self._missing,
            "parts": self._make_parts,
            "node": self._node,
            "start": self._start,
            "stop": self._stop,
            "configure": self._configure,
            "report": self._report,
            "end": self._end,
        }

    # -- Handlers

    async def request(self, method: str, params: Json) -> Json:
        """Answer a request of the lab."""
        handler = self._requests.get(method)
        if handler is None:
            raise LinkError(f"there is no request {method!r}")
        return await handler(params)

    def note(self, note: Json) -> None:
        """Take a note of the lab: a machine is to be killed."""
        guest = self._guests.get(note.get("kill", ""))
        if guest is not None and guest.machine is not None:
            guest.machine.kill()

    async def stream(self, stream: Stream) -> None:
        """Serve a stream: a file that comes, or a connection to a socket of a machine."""
        if "file" in stream.what:
            await stream.write(json.dumps(await self._receive(stream)).encode())
            stream.finish()
            await stream.read_all()
            return
        guest = self._guests[stream.what["node"]]
        name = stream.what["socket"]
        if name not in SOCKETS:
            raise LinkError(f"no socket {name!r}")
        pair = await _connect(guest, guest.directory / name)
        if pair is not None:
            await pump(stream, *pair)

    # -- requests

    async def _facts(self, params: Json) -> Json:
        missing = {package for name, package in PROGRAMS.items() if shutil.which(name) is None}
        disk = shutil.disk_usage(self.root)
        return {
            "python": platform.python_version(),
            "arch": platform.machine(),
            "cores": len(os.sched_getaffinity(0)),
            "memory_mib": available_mib(),
            "disk_mib": disk.free >> 20,
            "missing": sorted(missing),
        }

    async def _begin(self, params: Json) -> Json:
        """Take the lab's folder, from an agent of the same lab that was left behind if need be."""
        self._guard.deadline = float(params["deadline"])
        folder = self.root / "labs" / Path(params["lab"]).name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        until = time.monotonic() + TAKE_OVER
        asked = False
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                holder = os.pread(fd, 32, 0).decode(errors="replace").strip()
                if not asked and _is_agent(holder):
                    asked = True
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(int(holder), signal.SIGTERM)
                if time.monotonic() > until:
                    os.close(fd)
                    raise LinkError(
                        f"process {holder} there still holds this lab and does not end"
                    ) from None
            await asyncio.sleep(0.05)
        self._lock = fd
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._folder = folder
        await asyncio.to_thread(_remove_unused, folder.parent)
        for path in folder.iterdir():
            if path.is_dir() and not params["keep"] and path.name not in params["nodes"]:
                await asyncio.to_thread(shutil.rmtree, path)
        return {}

    async def _missing(self, params: Json) -> Json:
        """Say which images are not here."""
        store = self._store()
        now = time.time()
        for path in store.iterdir():
            if path.name in params:
                os.utime(path)
            elif now - path.stat().st_mtime > UNUSED_DAYS * 86400:
                path.unlink()
        return [digest for digest in params if not (store / digest).exists()]

    async def _receive(self, stream: Stream) -> Json:
        digest = Path(stream.what["file"]).name
        fresh = self._store() / f".{digest}.{os.getpid()}"
        hashed, unpacker = hashlib.sha256(), zlib.decompressobj()
        try:
            with fresh.open("wb") as file:
                while packed := await stream.read():
                    data = unpacker.decompress(packed)
                    hashed.update(data)
                    _write_sparse(file, data)
                file.truncate()
            if hashed.hexdigest() != digest:
                return {"error": "an image was damaged on its way"}
            fresh.replace(self._store() / digest)
        except OSError as error:
            return {"error": f"an image cannot be stored there: {error.strerror}"}
        finally:
            fresh.unlink(missing_ok=True)
        return {}

    async def _make_parts(self, params: Json) -> Json:
        """Get ready to boot an image."""
        image = image_from_json(params["image"], self._store())
        qemu = f"qemu-system-{params['arch']}"
        try:
            chosen = await asyncio.to_thread(accel.choose, self.root, qemu)
        except accel.AccelError as error:
            raise LinkError(str(error)) from error
        if params["own_processor"]:
            why = f"{params['board']} has a processor of its own"
            chosen = accel.Accel("tcg", why, chosen.cpu)
        parts = RealParts(image, chosen, self.root, params["seed"], board=params["board"])
        self._parts[params["id"]] = parts
        return {
            "accel": parts.accel,
            "accel_reason": parts.accel_reason,
            "boot_slots": parts.boot_slots,
        }

    async def _node(self, params: Json) -> Json:
        """Prepare a node: its directory, its disks and the line to its chip."""
        assert self._folder is not None
        name = Path(params["name"]).name
        parts = self._parts[params["parts"]]
        directory = self._folder / name
        directory.mkdir(mode=0o700, exist_ok=True)
        clear_node(directory, keep=params["keep"])
        guest = self._guests[name] = Guest(name, directory, parts)
        await asyncio.to_thread(parts.disks, directory, params["config"])
        if parts.has_chip and self.link is not None:
            guest.line = ChipLine(self.link, name)
            guest.chip = VhostUserServer(directory / CHIP_SOCKET, guest.line, name=name)
            await guest.chip.start()
        return {}

    async def _start(self, params: Json) -> Json:
        guest = self._guests[params["name"]]
        if guest.task is not None:
            await guest.task

        def told(event: MachineEvent) -> None:
            self._tell(guest, {"event": type(event).__name__, "fields": list(event)})

        guest.sent = {log: _size(guest.directory / log) for log in (CONSOLE_LOG, QEMU_LOG)}
        machine = guest.parts.machine(guest.name, guest.directory, told)
        assert isinstance(machine, Machine)
        guest.machine = machine
        try:
            await machine.start()
        except Exception:
            self._send_logs(guest)
            raise
        guest.task = asyncio.create_task(self._watch(guest, machine))
        return {}

    async def _watch(self, guest: Guest, machine: Machine) -> None:
        """Tell the lab when a machine has ended, after all that it has written."""
        status = await machine.wait()
        while self._send_logs(guest):
            pass
        self._tell(guest, {"ended": status, "cpu": machine.cpu_seconds()})

    async def _stop(self, params: Json) -> Json:
        guest = self._guests[params["name"]]
        if guest.machine is not None:
            await guest.machine.stop(params["grace"])
        return {}

    async def _configure(self, params: Json) -> Json:
        guest = self._guests[params["name"]]
        await asyncio.to_thread(guest.parts.configure, guest.directory, params["config"])
        return {}

    async def _report(self, params: Json) -> Json:
        guest = self._guests.get(params["name"])
        if guest is None:
            return None
        return await asyncio.to_thread(guest.parts.report, guest.directory)

    async def _end(self, params: Json) -> Json:
        await self.stop_all()
        self.over.set()
        return {}

    # -- inside

    async def stop_all(self) -> None:
        """Kill every machine and wait for its end."""
        guests = list(self._guests.values())
        for guest in guests:
            if guest.machine is not None:
                guest.machine.kill()
        await asyncio.gather(*(_ended(guest) for guest in guests), return_exceptions=True)

    async def look(self) -> None:
        """Send what machines write and cost, for as long as this runs."""
        looks = 0
        while True:
            await asyncio.sleep(LOG_PAUSE)
            looks += 1
            for guest in self._guests.values():
                if not guest.running or guest.machine is None:
                    continue
                self._send_logs(guest)
                if looks % MEASURE_EVERY == 0:
                    machine = guest.machine
                    self._tell(guest, {"cpu": machine.cpu_seconds(), "own": machine.own_kib()})

    def _send_logs(self, guest: Guest) -> bool:
        """Send a piece of what is new; tell whether there was something."""
        found = False
        for name, start in guest.sent.items():
            with contextlib.suppress(OSError), (guest.directory / name).open("rb") as file:
                file.seek(start)
                if data := file.read(LOG_PIECE):
                    found = True
                    guest.sent[name] = start + len(data)
                    text = base64.b64encode(data).decode()
                    self._tell(guest, {"log": name, "data": text})
        return found

    def _tell(self, guest: Guest, note: dict[str, Any]) -> None:
        if self.link is not None:
            self.link.note({"node": guest.name, **note})

    def _store(self) -> Path:
        store = self.root / "images"
        store.mkdir(mode=0o700, exist_ok=True)
        return store


async def _ended(guest: Guest) -> None:
    if guest.machine is not None:
        await guest.machine.wait()
    if guest.task is not None:
        await guest.task
    if guest.chip is not None:
        await guest.chip.stop()


async def _connect(
    guest: Guest, path: Path
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    """Connect to a socket of a machine, waiting while the machine restarts."""
    had = Given(lambda: [guest.machine.pid if guest.machine is not None else None])
    while guest.running and had.seconds() < SOCKET_PATIENCE:
        try:
            return await asyncio.open_unix_connection(socket_address(path))
        except OSError:
            await asyncio.sleep(0.05)
    return None


def _is_agent(pid: str) -> bool:
    """Tell whether a process is an agent: who has the lock may not have written its own yet."""
    try:
        words = Path("/proc", str(int(pid)), "cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return __spec__.name.encode() in words


def _remove_unused(labs: Path) -> None:
    """Remove the folders of labs that were not here for long, and that no agent holds."""
    for folder in labs.iterdir():
        lock = folder / "lock"
        with contextlib.suppress(OSError), lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - lock.stat().st_mtime > UNUSED_DAYS * 86400:
                shutil.rmtree(folder)


def _write_sparse(file: Any, data: bytes) -> None:
    """Write data, and leave holes where it is nothing but zeros."""
    for at in range(0, len(data), 4096):
        piece = data[at : at + 4096]
        if piece.count(0) == len(piece):
            file.seek(len(piece), os.SEEK_CUR)
        else:
            file.write(piece)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


async def serve(root: Path, guard: Guard) -> None:
    """Serve the lab at standard input and output until it ends.

    :param root: The folder of all that is kept here.
    :param guard: Ends this process when the lab is silent for too long.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    # What is printed by mistake must not get between the frames.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, out)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    agent = Agent(root, guard)
    link = agent.link = Link(reader, writer, agent, first=1, patience=3600)
    link.start()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        loop.add_signal_handler(number, agent.over.set)
    tasks = [asyncio.create_task(agent.look()), asyncio.create_task(guard.tell(link))]
    link.ended.add_done_callback(lambda _why: agent.over.set())
    await agent.over.wait()
    async with asyncio.timeout(10):
        await agent.stop_all()
    await link.drain()
    for task in tasks:
        task.cancel()
    await link.close()


def main() -> int:
    """Run the agent; return its exit status."""
    os.umask(0o077)
    # Where Debian has mkfs.fat, and where a user's commands by SSH are not looked for.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    try:
        child.tied([])
        asyncio.run(serve(Path(sys.argv[1]), Guard()))
    except FileNotFoundError as error:
        print(f"thicket: {error}", file=sys.stderr)
        return 70
    except TimeoutError:
        pass
    # Whatever is left in a thread: the kernel ends the machines with this process.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
