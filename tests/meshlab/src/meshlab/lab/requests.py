# SPDX-License-Identifier: Apache-2.0
"""What clients ask of a lab over ``control.sock``: requests judged, and answered by the lab."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
from collections import deque
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshlab.lab import ssh, summary
from meshlab.lab.errors import LabError
from meshlab.lab.paths import own_call
from meshlab.lab.pmks import Pmks
from meshlab.lab.saving import save
from meshlab.machine.qemu import MachineError
from meshlab.machine.shell import ShellError
from meshlab.machine.spec import CABLE_SOCKET
from meshlab.wire.rpc import Call, Handler, Json, Params, RpcError

if TYPE_CHECKING:
    from meshlab.lab.lab import Lab
    from meshlab.lab.node import Node


DEEDS = ("link", "move", "power", "chip", "radio", "config", "medium")
"""Methods that change a lab, besides commands on nodes."""
MOST_DEEDS = 10_000
"""Deeds that a lab remembers."""

CHANGES_PAUSE = 0.2
"""The least seconds between two changes that a client is told of."""

LOG_PAUSE = 1.5
"""Seconds between two looks at the log of a node that somebody follows."""


class Requests:
    """The methods of a lab's ``control.sock``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        #: Input of commands that run, by a number that their clients know; None is its end.
        self._inputs: dict[int, asyncio.Queue[bytes | None]] = {}
        self._commands = itertools.count(1)
        self._pmks = Pmks(lab)
        #: The commands that got some input.
        self._fed: set[int] = set()
        #: What clients have done, oldest first: time, method, parameters.
        self._deeds: deque[Json] = deque(maxlen=MOST_DEEDS)
        self._done = 0
        #: Nodes with a cable.
        self._cabled: set[str] = set()

    def methods(self) -> dict[str, Handler]:
        """Return the methods of ``control.sock``, by their names."""
        methods: dict[str, Handler] = {
            "status": self._status,
            "changes": self._changes,
            "summary": self._summary,
            "node": self._node,
            "exec": self._exec,
            "exec-input": self._exec_input,
            "logs": self._logs,
            "link": self._link,
            "move": self._move,
            "power": self._power,
            "pcap": self._pcap,
            "chip": self._chip,
            "radio": self._radio,
            "config": self._config,
            "medium": self._medium,
            "pipe": self._pipe,
            "cable": self._cable,
            "save": self._save,
            "down": self._down,
            "deeds": self._tell_deeds,
        }
        return {
            name: self._noting(name, each) if name in DEEDS else each
            for name, each in methods.items()
        }

    def _noting(self, method: str, handler: Handler) -> Handler:
        """Return what does a handler's work, and notes it when it was done."""

        async def run(params: Params, call: Call) -> Json:
            at = self._lab.elapsed
            result = await handler(params, call)
            if params.get("action") != "status":
                self._note(at, method, params)
            return result

        return run

    def _note(self, at: float, method: str, params: Params) -> None:
        self._deeds.append({"at": round(at, 1), "method": method, "params": dict(params)})
        self._done += 1

    async def _tell_deeds(self, params: Params, call: Call) -> Json:
        """What the lab is, and what clients have done to it: enough to do it again."""
        lab = self._lab
        shape = lab.spec.topology
        images = {name: lab.image_of(name) for name in lab.nodes}
        return {
            "topology": shape.kind,
            "nodes": len(shape.names),
            "seed": shape.seed,
            "security": lab.spec.security,
            "fading": lab.spec.fading,
            "decoding": lab.spec.decoding,
            "ht": lab.spec.ht,
            "image": lab.parts.image,
            "description": lab.parts.description,
            "images": {name: one for name, one in images.items() if one != lab.parts.image},
            "formed": lab.state.formed,
            "whole": not summary.missing(lab.snapshot()),
            "deeds": list(self._deeds),
            "forgotten": self._done - len(self._deeds),
        }

    async def _status(self, params: Params, call: Call) -> Json:
        return self._lab.snapshot().to_json()

    async def _changes(self, params: Params, call: Call) -> Json:
        """Tell of each change, until the client leaves: that there was one, and no more."""
        with self._lab.journal.changes() as changed:
            while True:
                await changed.wait()
                changed.clear()
                await call.event({})
                await asyncio.sleep(CHANGES_PAUSE)

    async def _summary(self, params: Params, call: Call) -> Json:
        return summary.summarise(self._lab.snapshot())

    async def _node(self, params: Params, call: Call) -> Json:
        node = self._lab.node(params.get("node"))
        return {
            "name": node.state.name,
            "power": node.state.power,
            "directory": str(node.directory),
        }

    async def _exec(self, params: Params, call: Call) -> Json:
        node = self._lab.node(params.get("node"))
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
        number, at = next(self._commands), self._lab.elapsed
        try:
            shell = node.running().exec_shell
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
            fed = number in self._fed
            self._fed.discard(number)
            self._inputs.pop(number, None)
            sender.cancel()
            self._lab.pace.lively()
        if lost:
            raise RpcError("failed", f"{lost} bytes of output were lost: nobody read them in time")
        done = {"node": node.state.name, "command": command, "status": code, "fed": fed}
        self._note(at, "exec", done)
        return {"status": code}

    async def _exec_input(self, params: Params, call: Call) -> Json:
        """A piece of the input of a command that runs; waits until there is room for it."""
        del call
        queue = self._inputs.get(params.get("number", 0))
        data = _decoded(params.get("data", ""))
        if queue is None:
            return {"wanted": False}
        if data:
            self._fed.add(params["number"])
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

    async def _logs(self, params: Params, call: Call) -> Json:
        """Send a node's system log; with ``follow`` go on until the client leaves."""
        node = self._lab.node(params.get("node"))
        last: str | None = None
        while True:
            try:
                code, text = await node.running().exec_shell.run("logread", 30)
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

    async def _link(self, params: Params, call: Call) -> Json:
        snr = params.get("snr")
        if snr is not None and not isinstance(snr, int | float):
            raise RpcError("bad-request", "an SNR is a number of dB")
        loss = params.get("loss")
        if loss is not None and not isinstance(loss, int | float):
            raise RpcError("bad-request", "a loss is a number from 0 to 1")
        fading = params.get("fading")
        if fading is not None and not isinstance(fading, str):
            raise RpcError("bad-request", "fading is a text such as 'rayleigh doppler=2'")
        await self._lab.link(
            str(params.get("a")),
            str(params.get("b")),
            cut=bool(params.get("cut")),
            snr=snr,
            loss=loss,
            fading=fading,
            restore=bool(params.get("restore")),
            both=bool(params.get("both", True)),
        )
        return {}

    async def _move(self, params: Params, call: Call) -> Json:
        x, y = params.get("x"), params.get("y")
        if not isinstance(x, int | float) or not isinstance(y, int | float):
            raise RpcError("bad-request", "a position is two numbers of metres")
        await self._lab.move(str(params.get("node")), x, y)
        return {}

    async def _power(self, params: Params, call: Call) -> Json:
        name = self._lab.node(params.get("node")).state.name
        action = params.get("action")
        try:
            if action == "on":
                await self._lab.power_on(name)
            elif action == "off":
                await self._lab.power_off(name)
            elif action == "kill":
                await self._lab.kill(name)
            else:
                raise RpcError("bad-request", "power is on, off or kill")
        except LabError as error:
            raise RpcError("failed", str(error)) from None
        return {}

    async def _pcap(self, params: Params, call: Call) -> Json:
        if params.get("stop"):
            ended = await self._lab.medium_call("pcap_stop", {"path": params.get("path")})
            if not ended.get("decrypting"):
                await self._pmks.end()
            return ended
        links = [[self._name(end) for end in link] for link in params.get("links") or []]
        asked = {
            "path": params.get("path"),
            "nodes": [self._name(name) for name in params.get("nodes") or []],
            "links": links,
            "decrypt": bool(params.get("decrypt")),
        }
        begun = await self._lab.medium_call("pcap", asked)
        if asked["decrypt"]:
            await self._pmks.begin()
        return begun

    def _name(self, name: Any) -> str:
        return self._lab.node(name).state.name

    async def _chip(self, params: Params, call: Call) -> Json:
        fault = params.get("fault")
        await self._lab.chip_fault(str(params.get("node")), None if fault == "none" else fault)
        return {}

    async def _radio(self, params: Params, call: Call) -> Json:
        await self._lab.radio(str(params.get("node")), plug=params.get("action") == "plug")
        return {}

    async def _config(self, params: Params, call: Call) -> Json:
        settings = params.get("settings")
        if not isinstance(settings, list) or not all(isinstance(s, str) for s in settings):
            raise RpcError("bad-request", "settings is a list of section.key=value")
        code, output = await self._lab.configure(str(params.get("node")), settings)
        return {"status": code, "output": output}

    async def _medium(self, params: Params, call: Call) -> Json:
        if params.get("action") == "kill":
            self._lab.kill_medium()
            return {}
        return await self._lab.medium_call("status")

    async def _pipe(self, params: Params, call: Call) -> Json:
        """Lead an SSH server of a node to a socket, until one of both ends it."""
        node, path = self._lab.node(params.get("node")), params.get("path")
        if not isinstance(path, str) or not Path(path).is_absolute():
            raise RpcError("bad-request", "a pipe needs the path of a socket, from the root")
        machine = node.running()
        try:
            key = await asyncio.to_thread(ssh.public_key, self._lab.directory)
            channel = await machine.ports.add(Path(path))
        except (LabError, MachineError) as error:
            raise RpcError("failed", str(error)) from None
        try:
            command = ssh.serve_command(channel, key)
            code, text = await machine.shell.run(command, ssh.START_PATIENCE)
            if code != 0:
                why = f"no SSH server could be started on {node.state.name}: {text.strip()}"
                raise RpcError("failed", why)
            await call.event({"ready": True})
            await machine.ports.closed(channel)
        except ShellError as error:
            raise RpcError("failed", str(error)) from None
        finally:
            await asyncio.shield(machine.ports.remove(channel))
        return {}

    async def _cable(self, params: Params, call: Call) -> Json:
        """Plug cables into nodes until the client leaves."""
        names = params.get("nodes")
        if not isinstance(names, list) or not names:
            raise RpcError("bad-request", "cables go to nodes: name at least one")
        nodes = {node.state.name: node for node in map(self._lab.node, names)}
        if taken := sorted(self._cabled & set(nodes)):
            raise RpcError("failed", f"{', '.join(taken)} has a cable already: end that first")
        self._cabled |= set(nodes)
        plugged: list[Node] = []
        try:
            for name, node in nodes.items():
                if not self._lab.parts_of(name).cables:
                    call_again = own_call(self._lab.spec.name, "up --cables")
                    why = f"{name} has no wired port: `{call_again}` (CABLES=1) gives one to nodes"
                    raise RpcError("failed", f"{why} that this machine runs, with virtio")
                await node.running().ports.plug(on=True)
                plugged.append(node)
            sockets = {name: str(node.directory / CABLE_SOCKET) for name, node in nodes.items()}
            await call.event({"sockets": sockets})
            await asyncio.Event().wait()
        except MachineError as error:
            raise RpcError("failed", str(error)) from None
        finally:
            self._cabled -= set(nodes)
            await asyncio.shield(_unplug(plugged))
        return {}

    async def _save(self, params: Params, call: Call) -> Json:
        name = params.get("name")
        if not isinstance(name, str):
            raise RpcError("bad-request", "a save needs a name")
        try:
            saved = await save(self._lab, name)
        except LabError as error:
            raise RpcError("failed", str(error)) from None
        return {"path": str(saved.path), "size": saved.size, "paused": saved.paused}

    async def _down(self, params: Params, call: Call) -> Json:
        self._lab.done.set()
        self._lab.journal.notify()
        return {}


async def _unplug(nodes: Iterable[Node]) -> None:
    for node in nodes:
        with contextlib.suppress(MachineError, RpcError):  # it is off by now
            await node.running().ports.plug(on=False)


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
    """Return the bytes that a request has as base64.

    :raises RpcError: when it is no base64.
    """
    try:
        if not isinstance(value, str):
            raise ValueError
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise RpcError("bad-request", "an input is base64") from None
