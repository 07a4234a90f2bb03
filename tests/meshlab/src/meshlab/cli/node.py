# SPDX-License-Identifier: Apache-2.0
"""Commands for one node: its shells and logs, its power, its chip and its configuration."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import select
import shlex
import socket
import stat
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from meshlab.cli.common import CommandError, Define, ask, connected, request
from meshlab.lab import topology
from meshlab.lab.paths import lab_directory, own_call
from meshlab.wire.rpc import Client, Json
from meshlab.wire.sockets import socket_address
from thicket.base.visible import visible

LEAVE = 0x1D
"""Ctrl-], which telnet uses, too."""


def define(command: Define) -> None:
    """Define the commands.

    :param command: Adds one.
    """
    execute = command(
        "exec", "run a command on a node; its exit status is passed on", cmd_exec, of_node=True
    )
    execute.add_argument("-n", dest="no_input", action="store_true", help="without input")
    execute.add_argument(
        "--timeout", type=float, metavar="S", help="end it after this many seconds"
    )
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND...")

    command("console", "type at a node's console; Ctrl-] leaves", cmd_console, of_node=True)

    logs = command("logs", "show a node's system log", cmd_logs, of_node=True)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("--console", action="store_true", help="its console instead: kernel and init")

    switch = request("power", "node", "action")
    kill = command(
        "kill", "cut the power of a node: nothing is written any more", switch, of_node=True
    )
    kill.set_defaults(action="kill")
    power = command("power", "switch a node on, or shut it down", switch, of_node=True)
    power.add_argument("action", choices=("on", "off"))

    chip = command(
        "chip", "break a node's chip, or mend it", request("chip", "node", "fault"), of_node=True
    )
    chip.add_argument("what", choices=("fault",))
    chip.add_argument("fault", metavar="absent|nak|bad-crc|stuck|watchdog|none")

    config = command(
        "config",
        "change a node's configuration, by `thicket config set`",
        cmd_config,
        of_node=True,
    )
    config.add_argument("settings", nargs="+", metavar="SECTION.KEY=VALUE")


def _write_output(stream: TextIO) -> Callable[[Json], None]:
    """Return what prints a node's output: as it is into a file, made visible on a terminal."""
    shown = visible if stream.isatty() else str

    def write(event: Json) -> None:
        data = base64.b64decode(event.get("data", ""))
        if data and not stream.isatty():
            stream.buffer.write(data)
        else:
            stream.write(shown(event.get("output", "") or data.decode(errors="replace")))
        stream.flush()

    return write


def command_line(words: Sequence[str]) -> str:
    """Return the shell command that ``exec NODE -- words`` means.

    One word is a line for the shell, as with ssh; several are a command and its arguments.

    :param words: What stands behind the node.
    :raises CommandError: when there is no command.
    """
    rest = list(words[1:] if words[:1] == ["--"] else words)
    if not rest:
        raise CommandError("exec needs a command: meshlab exec n1 -- thicket status", 2)
    return rest[0] if len(rest) == 1 else shlex.join(rest)


def wants_input() -> bool:
    """Return whether the standard input is for a command: not a terminal of another job."""
    try:
        mode = os.fstat(0).st_mode
        if os.isatty(0):
            return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # closed
        return False
    return not stat.S_ISCHR(mode)  # /dev/null


async def read_input(most: int) -> bytes:
    """Return the next bytes of the standard input, b"" at its end.

    Read in a thread that does not keep the program from ending when the command does.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()

    def settle(data: bytes) -> None:
        if not done.done():
            done.set_result(data)

    def work() -> None:
        try:
            data = os.read(0, most)
        except OSError:
            data = b""
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, data)

    threading.Thread(target=work, daemon=True).start()
    return await done


async def _pass_input(client: Client, number: int) -> None:
    """Pass the standard input on to a command, as it takes it."""
    while True:
        data = await read_input(1 << 16)
        params = {"number": number, "data": base64.b64encode(data).decode()}
        answer = await client.call("exec-input", params, timeout=None)
        if not data or not answer["wanted"]:
            return


def cmd_exec(options: argparse.Namespace) -> int:
    params = {
        "node": options.node,
        "command": command_line(options.words),
        "timeout": options.timeout,
        "input": not options.no_input and wants_input(),
    }
    write = _write_output(sys.stdout)

    async def go() -> Json:
        passing: set[asyncio.Task[None]] = set()
        async with connected(options.lab) as client:

            def event(value: Json) -> None:
                if "input" in value:
                    passing.add(asyncio.create_task(_pass_input(client, value["input"])))
                else:
                    write(value)

            try:
                return await client.call("exec", params, timeout=None, on_event=event)
            finally:
                for task in passing:
                    task.cancel()
                await asyncio.gather(*passing, return_exceptions=True)

    return int(asyncio.run(go())["status"])


def cmd_logs(options: argparse.Namespace) -> int:
    if options.console:
        return _console_log(options)
    params = {"node": options.node, "follow": options.follow}
    ask(options, "logs", params, timeout=None, on_event=_write_output(sys.stdout))
    return 0


def _console_log(options: argparse.Namespace) -> int:
    """Print a node's console log; works for a lab that has ended, too."""
    name = topology.node_name(int(options.node)) if options.node.isdecimal() else options.node
    path = lab_directory(options.lab) / name / "console.log"
    try:
        with path.open("r", encoding="utf-8", errors="replace") as file:
            while True:
                if text := file.read(65536):
                    sys.stdout.write(visible(text) if sys.stdout.isatty() else text)
                    sys.stdout.flush()
                elif options.follow:
                    time.sleep(0.2)
                else:
                    return 0
    except FileNotFoundError:
        raise CommandError(
            f"there is no console log of {name} in the lab {options.lab!r}"
        ) from None


def cmd_config(options: argparse.Namespace) -> int:
    answer = ask(options, "config", {"node": options.node, "settings": options.settings})
    stream = sys.stdout if answer["status"] == 0 else sys.stderr
    stream.write(answer["output"])
    return int(answer["status"])


def cmd_console(options: argparse.Namespace) -> int:
    found = ask(options, "node", {"node": options.node})
    if found["power"] != "running":
        call = own_call(options.lab, f"power {found['name']} on")
        raise CommandError(f"{found['name']} is {found['power']}: `{call}`")
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(socket_address(Path(found["directory"]) / "console.sock"))
        except OSError as error:
            raise CommandError(
                f"the console of {found['name']} is not reachable: {error}"
            ) from None
        print(f"console of {found['name']}, Ctrl-] leaves", file=sys.stderr)
        _talk(line)
    print("", file=sys.stderr)
    return 0


def _talk(line: socket.socket) -> None:
    """Connect the terminal with ``line`` until Ctrl-], the end of the input, or its hang-up."""
    keys = sys.stdin.fileno()
    raw = os.isatty(keys)
    before = termios.tcgetattr(keys) if raw else None
    try:
        if raw:
            tty.setraw(keys)
            line.sendall(b"\n")  # makes the shell show its prompt
        while True:
            ready, _, _ = select.select([keys, line], [], [])
            if line in ready:
                data = line.recv(65536)
                if not data:
                    return
                os.write(sys.stdout.fileno(), data)
            if keys in ready:
                typed = os.read(keys, 1024)
                if not typed or (raw and LEAVE in typed):
                    return
                line.sendall(typed)
    finally:
        if before is not None:
            termios.tcsetattr(keys, termios.TCSADRAIN, before)
