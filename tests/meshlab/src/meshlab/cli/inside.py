# SPDX-License-Identifier: Apache-2.0
"""Ways into nodes from this machine: SSH, files, and cables."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import host
import meshlab
import thicket
from meshlab.cli.common import CommandError, Define, ask, connected
from meshlab.cli.node import read_input
from meshlab.lab import ssh, topology
from meshlab.lab.paths import lab_directory
from meshlab.wire.rpc import Json, RpcError

_PACKAGES = tuple(str(each.__file__) for each in (meshlab, host, thicket))
PIECE = 64 * 1024
CONNECT = 120.0
"""Seconds that a node may take to start its SSH server."""


def define(command: Define) -> None:
    """Define the commands.

    :param command: Adds one.
    """
    shell = command("ssh", "a shell on a node, or a command, by ssh", cmd_ssh, of_node=True)
    shell.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="[SSH OPTION...] [--] [COMMAND...]"
    )

    copy = command("cp", "copy files and folders to nodes, or from them", cmd_cp)
    copy.add_argument(
        "words",
        nargs="+",
        metavar="PATH",
        help="the last one is the target; NODE:PATH is on a node",
    )

    command("pipe", "what ssh connects through (its ProxyCommand)", cmd_pipe, of_node=True)

    cable = command(
        "cable", "plug nodes into a network of this machine, and run a command in it", cmd_cable
    )
    cable.add_argument("words", nargs=argparse.REMAINDER, metavar="[NODE...] [-- COMMAND...]")
    cable.set_defaults(refuse=cable.error)


# -- ssh


def ssh_command(lab: str) -> list[str]:
    """Return the beginning of a call of ssh that knows the nodes of a lab by their names.

    :raises CommandError: when ssh is not installed.
    :raises LabError: when the lab has no key, and none can be made.
    """
    program = shutil.which("ssh")
    if program is None:
        raise CommandError(
            "ssh is missing. Install it with:\n"
            "    sudo apt-get install --no-install-recommends openssh-client"
        )
    directory = lab_directory(lab)
    ssh.public_key(directory)
    # Not by bin/meshlab: this Python is the right one, and finding it takes time.
    homes = dict.fromkeys(str(Path(each).resolve().parents[1]) for each in _PACKAGES)
    pipe = ["env", f"PYTHONPATH={os.pathsep.join(homes)}"]
    if cache := os.environ.get("THICKET_CACHE"):
        pipe.append(f"THICKET_CACHE={cache}")
    pipe += [sys.executable, "-m", "meshlab", "--lab", lab, "pipe"]
    return [program, "-F", str(ssh.write_config(directory, pipe))]


def cmd_ssh(options: argparse.Namespace) -> int:
    name = _running(options)
    words = list(options.words)
    own: list[str] = []
    if "--" in words:
        at = words.index("--")
        own, words = words[:at], words[at + 1 :]
    else:
        while words and words[0].startswith("-"):
            own.append(words.pop(0))
    command = [*ssh_command(options.lab), *own, name, *words]
    sys.stdout.flush()
    os.execv(command[0], command)


def _running(options: argparse.Namespace, node: str | None = None) -> str:
    """Return the full name of a node.

    :raises RpcError: when there is no such node, or no such lab.
    :raises CommandError: when it is off.
    """
    found = ask(options, "node", {"node": node or options.node})
    if found["power"] != "running":
        raise CommandError(f"{found['name']} is {found['power']}")
    return str(found["name"])


def cmd_pipe(options: argparse.Namespace) -> int:
    """Be the connection of an ssh: standard input and output lead to an SSH server of the node."""
    with tempfile.TemporaryDirectory(prefix="meshlab-") as folder:
        path = Path(folder, "pipe.sock")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(1)
            listener.setblocking(False)
            return asyncio.run(_pipe(options, path, listener))


async def _pipe(options: argparse.Namespace, path: Path, listener: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    async with connected(options.lab) as client:
        call = asyncio.create_task(
            client.call(
                "pipe",
                {"node": options.node, "path": str(path)},
                timeout=None,
                on_event=lambda _event: ready.set(),
            )
        )
        begun = asyncio.create_task(ready.wait())
        try:
            async with asyncio.timeout(CONNECT):
                await asyncio.wait({call, begun}, return_when=asyncio.FIRST_COMPLETED)
                if call.done():
                    call.result()  # raises what the lab says
                    return 0
                line, _ = await loop.sock_accept(listener)
        except TimeoutError:
            raise CommandError(f"{options.node} has no SSH server after {CONNECT:g} s") from None
        finally:
            begun.cancel()
        with line:
            line.setblocking(False)
            ends = [
                call,
                asyncio.create_task(_from_node(line)),
                asyncio.create_task(_to_node(line)),
            ]
            # The end of what ssh sends is not the end of what it wants to hear.
            await asyncio.wait(ends[:2], return_when=asyncio.FIRST_COMPLETED)
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
    return 0


async def _from_node(line: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(line, PIECE):
            while data:
                data = data[await asyncio.to_thread(os.write, 1, data) :]


async def _to_node(line: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await read_input(PIECE):
            await loop.sock_sendall(line, data)
        line.shutdown(socket.SHUT_WR)


# -- cp


class Place(NamedTuple):
    """A path on a node."""

    node: str
    path: str


def place_of(word: str) -> Place | None:
    """Return what ``NODE:PATH`` names; None for a path of this machine."""
    node, colon, path = word.partition(":")
    if not colon or "/" in node or not node:
        return None
    return Place(topology.node_name(int(node)) if node.isdecimal() else node, path or "/root")


def cmd_cp(options: argparse.Namespace) -> int:
    if len(options.words) < 2:
        raise CommandError("cp needs what is copied, and where: meshlab cp FILE... n1:/tmp", 2)
    *sources, goal = options.words
    target = place_of(goal)
    there = [place_of(word) for word in sources]
    if target is not None and not any(there):
        return _bring(options, [Path(word) for word in sources], target)
    if target is None and all(there):
        if len(there) > 1 and not Path(goal).is_dir():
            raise CommandError(f"{goal}: several files need a folder")
        for place in filter(None, there):
            _fetch(options, place, Path(goal))
        return 0
    raise CommandError("cp copies from here to a node, or from nodes to here", 2)


_UNPACK = """\
set -e
if [ -d "$0" ]; then exec tar -xof - -C "$0"; fi
D=$(dirname "$0")
W=$(mktemp -d "$D/.cp-XXXXXX")
trap 'rm -rf "$W"' EXIT
tar -xof - -C "$W"
mv -f "$W"/* "$0"
"""
"""Takes an archive into a folder, or its only member as a file or folder of another name."""


def _bring(options: argparse.Namespace, sources: list[Path], target: Place) -> int:
    pack = ["tar", "-cf", "-"]
    for path in sources:
        whole = path.resolve()
        if not whole.exists():
            raise CommandError(f"{path} is not there")
        if not whole.name:
            raise CommandError(f"{path} has no name that a node could give it")
        pack += ["-C", str(whole.parent), f"./{whole.name}"]
    if len(sources) > 1:
        call = _on_node(options, target.node, ["test", "-d", target.path])
        if subprocess.run(call, stdin=subprocess.DEVNULL, check=False).returncode:
            raise CommandError(f"{target.node}:{target.path}: several files need a folder")
    unpack = _on_node(options, target.node, ["sh", "-c", _UNPACK, target.path])
    if not _joined(pack, unpack):
        raise CommandError(f"not copied to {target.node}, see above")
    return 0


def _fetch(options: argparse.Namespace, place: Place, goal: Path) -> None:
    path = PurePosixPath(place.path)
    if path.name in {"", ".", ".."}:
        raise CommandError(f"{place.node}:{place.path}: name a file or folder by its own name")
    pack = ["tar", "-cf", "-", "-C", str(path.parent), f"./{path.name}"]
    target = goal / path.name if goal.is_dir() else goal
    with tempfile.TemporaryDirectory(prefix=".cp-", dir=target.absolute().parent) as folder:
        # tar itself puts nothing outside of the folder, whatever the node names.
        unpack = ["tar", "-xf", "-", "--no-same-owner", "-C", folder]
        copied = _joined(_on_node(options, place.node, pack), unpack)
        found = Path(folder, path.name)
        if not copied or not found.exists():
            raise CommandError(f"{place.node}:{place.path} was not copied, see above")
        if found.is_dir() and target.is_dir():
            shutil.copytree(found, target, symlinks=True, dirs_exist_ok=True)
        else:
            found.replace(target)


def _on_node(options: argparse.Namespace, node: str, words: list[str]) -> list[str]:
    """Return the call of ssh that runs a program on a node with these words."""
    return [*ssh_command(options.lab), "-T", _running(options, node), shlex.join(words)]


def _joined(one: list[str], other: list[str]) -> bool:
    """Run two programs, the second of which reads what the first writes; tell whether both did."""
    with subprocess.Popen(one, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        with subprocess.Popen(other, stdin=first.stdout) as second:
            first.stdout.close()  # the second has it: its end ends the first
    return first.returncode == 0 and second.returncode == 0


# -- cables


def cmd_cable(options: argparse.Namespace) -> int:
    words = list(options.words)
    at = words.index("--") if "--" in words else len(words)
    nodes, command = words[:at], words[at + 1 :]
    if wrong := next((word for word in nodes if word.startswith("-")), None):
        options.refuse(f"unrecognized arguments: {wrong}")
    if not nodes:
        nodes = sorted(ask(options, "status")["nodes"], key=topology.node_index)
    from meshlab.cable.network import INTERFACE, Network

    if not command:
        print(f"{INTERFACE} leads to {', '.join(nodes)}; the shell's end pulls it", file=sys.stderr)
        command = [os.environ.get("SHELL") or "sh"]
    ssh_command(options.lab)  # makes the key, or says that there is no ssh
    key = lab_directory(options.lab) / ssh.FOLDER / ssh.KEY
    # The nodes let in the lab's key, which every ssh in there gets from an agent of its own.
    command = ["ssh-agent", "sh", "-c", 'ssh-add -q "$0" && exec "$@"', str(key), *command]

    async def go() -> int:
        sockets: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()

        def event(value: Json) -> None:
            if not sockets.done():
                sockets.set_result(value["sockets"])

        async with connected(options.lab) as client:
            call = asyncio.create_task(
                client.call("cable", {"nodes": nodes}, timeout=None, on_event=event)
            )
            try:
                await asyncio.wait({call, sockets}, return_when=asyncio.FIRST_COMPLETED)
                if call.done():
                    call.result()
                    raise RpcError("closed", "the lab has ended")
                paths = {name: Path(path) for name, path in sockets.result().items()}
                return await Network(paths).run(command)
            finally:
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)

    return asyncio.run(go())
