# SPDX-License-Identifier: Apache-2.0
"""The ``meshlab`` command: run a lab, and talk to one that runs."""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import select
import shlex
import signal
import socket
import stat
import sys
import tempfile
import termios
import threading
import time
import tty
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from host.cache import cache_root
from meshlab.lab import summary, topology
from meshlab.lab.directory import is_held
from meshlab.lab.errors import LabError, NotFormedError
from meshlab.lab.lab import Lab
from meshlab.lab.paths import lab_directory, own_call
from meshlab.lab.spec import LabSpec
from meshlab.lab.state import Event, LabState
from meshlab.view import screen
from meshlab.wire.rpc import Client, Json, Params, RpcError
from meshlab.wire.sockets import socket_address
from thicket.base.visible import visible

DESCRIPTION = """\
Boot a mesh of simulated Thicket nodes, watch it, and play with it from other terminals.
"""

EPILOG = """\
NODE is a node's name or number: n3 or 3. Every command takes --lab NAME before it when several labs
run at once.

  meshlab up --nodes 5 --topology ring      boots five nodes; Ctrl-C ends it
  meshlab exec n1 -- thicket nodes          who is in the cluster, seen from n1
  meshlab link n1 n2 --cut                  the two no longer hear each other
  meshlab pcap -w - | wireshark -k -i -     everything on the air
"""


class CommandError(Exception):
    """Ends the program with a message and a status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="meshlab",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument(
        "--lab", default="default", metavar="NAME", help="which lab (default: default)"
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Callable[[argparse.Namespace], int]) -> Any:
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    up = command("up", "boot a mesh and show it until Ctrl-C", cmd_up)
    up.add_argument("-n", "--nodes", type=int, default=5, help="how many nodes (default: 5)")
    up.add_argument("--topology", choices=topology.KINDS, default="grid", help="default: grid")
    up.add_argument("--image", default="lab", help="what the nodes boot (default: lab)")
    up.add_argument("--seed", type=int, default=1, help="of chips, radios, random topologies")
    up.add_argument("--security", choices=("sae", "open"), default="sae", help="default: sae")
    up.add_argument(
        "--application",
        action="append",
        default=[],
        type=Path,
        metavar="DIRECTORY",
        help="install this Python project on every node of the lab image (repeatable)",
    )
    up.add_argument("--keep", action="store_true", help="keep the disks and chips of the last run")
    up.add_argument(
        "--once", action="store_true", help="wait until formed, print a summary as JSON, end"
    )
    up.add_argument(
        "--timeout", type=float, metavar="S", help="with --once: give up after so many seconds"
    )
    up.add_argument("--plain", action="store_true", help="progress as lines, also on a terminal")

    status = command("status", "show a running lab once", cmd_status)
    status.add_argument("--json", action="store_true", help="the summary, as `up --once` prints it")

    execute = command("exec", "run a command on a node; its exit status is passed on", cmd_exec)
    execute.add_argument("node", metavar="NODE")
    execute.add_argument("-n", dest="no_input", action="store_true", help="without input")
    execute.add_argument("--timeout", type=float, metavar="S", help="end it after so many seconds")
    execute.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND...")

    console = command("console", "type at a node's console; Ctrl-] leaves", cmd_console)
    console.add_argument("node", metavar="NODE")

    logs = command("logs", "show a node's system log", cmd_logs)
    logs.add_argument("node", metavar="NODE")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    logs.add_argument("--console", action="store_true", help="its console instead: kernel and init")

    link = command("link", "change what two nodes hear of each other", cmd_link)
    link.add_argument("a", metavar="A")
    link.add_argument("b", metavar="B")
    how = link.add_mutually_exclusive_group(required=True)
    how.add_argument("--cut", action="store_true", help="nothing any more")
    how.add_argument("--snr", type=float, metavar="DB", help="this signal-to-noise ratio")
    how.add_argument("--loss", type=float, metavar="PERCENT", help="so many of all frames get lost")
    how.add_argument("--restore", action="store_true", help="as it was at the start")
    link.add_argument("--oneway", action="store_true", help="only what B hears of A")

    move = command("move", "put a node elsewhere; its links then follow its distances", cmd_move)
    move.add_argument("node", metavar="NODE")
    move.add_argument("x", type=float, metavar="X", help="metres")
    move.add_argument("y", type=float, metavar="Y", help="metres")

    kill = command("kill", "cut the power of a node: nothing is written any more", cmd_power)
    kill.add_argument("node", metavar="NODE")
    kill.set_defaults(action="kill")
    power = command("power", "switch a node on, or shut it down", cmd_power)
    power.add_argument("node", metavar="NODE")
    power.add_argument("action", choices=("on", "off"))

    pcap = command("pcap", "record what is on the air, as pcapng, until Ctrl-C", cmd_pcap)
    pcap.add_argument("node", nargs="?", metavar="NODE", help="only what this node sends and hears")
    pcap.add_argument("-w", dest="file", metavar="FILE", help="where to; - or nothing: to stdout")
    pcap.add_argument("--stop", action="store_true", help="end a recording that was left running")

    chip = command("chip", "break a node's chip, or mend it", cmd_chip)
    chip.add_argument("node", metavar="NODE")
    chip.add_argument("what", choices=("fault",))
    chip.add_argument("fault", metavar="absent|nak|bad-crc|stuck|watchdog|none")

    radio = command("radio", "unplug a node's radio, or plug it in", cmd_radio)
    radio.add_argument("node", metavar="NODE")
    radio.add_argument("action", choices=("unplug", "plug"))

    config = command("config", "change a node's configuration, by `thicket config set`", cmd_config)
    config.add_argument("node", metavar="NODE")
    config.add_argument("settings", nargs="+", metavar="SECTION.KEY=VALUE")

    medium = command(
        "medium", "show the medium's figures, or kill it (it is restarted)", cmd_medium
    )
    medium.add_argument("action", choices=("status", "kill"), nargs="?", default="status")

    command("down", "end a running lab", cmd_down)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = parser().parse_args(arguments)
    try:
        lab_directory(options.lab)
        status: int = options.run(options)
    except CommandError as failure:
        print(f"meshlab: {failure}", file=sys.stderr)
        return failure.status
    except (LabError, ValueError) as error:
        print(f"meshlab: {error}", file=sys.stderr)
        return 1
    except RpcError as error:
        print(f"meshlab: {_explained(error, options.lab)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Who read our output has left: not an error, and nothing more can be said there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _explained(error: RpcError, lab: str) -> str:
    if error.code != "not-running":
        return error.message
    labs = running_labs()
    if labs and lab not in labs:
        return f"no lab {lab!r} is running; running: {', '.join(labs)} (choose with --lab NAME)"
    start = "make qemu-mesh" if lab == "default" else f"make qemu-mesh LAB={lab}"
    return f"no lab {lab!r} is running: start one with `{start}`"


def running_labs() -> list[str]:
    """Return the names of the labs whose supervisor answers."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted((cache_root() / "labs").glob("*/control.sock")):
            with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
                probe.connect(socket_address(path))
                found.append(path.parent.name)
    return found


# --- up ----------------------------------------------------------------------------------------


def own_command() -> str:
    """Return how a person in this directory calls this program."""
    given = os.environ.get("MESHLAB_COMMAND")
    if given:
        return given
    # From a checkout there is bin/meshlab, which finds its Python environment by itself.
    program = Path(__file__).resolve().parents[5] / "bin" / "meshlab"
    if not program.exists():
        return "meshlab"
    near = os.path.relpath(program)
    return near if not near.startswith("..") else str(program)


def cmd_up(options: argparse.Namespace) -> int:
    shape = topology.make(options.topology, options.nodes, options.seed)
    for path in options.application:
        if not (path / "pyproject.toml").is_file():
            why = "has no pyproject.toml" if path.is_dir() else "is no directory"
            raise CommandError(f"{path}: no application to install, it {why}", 2)
    # A terminal that vanishes ends the lab as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    from meshlab.image.lab import Extras
    from meshlab.lab import real_parts

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    extras = Extras(tuple(path.resolve() for path in options.application))
    made = real_parts.load(
        options.image, cache_root(), options.seed, progress, extras if extras.applications else None
    )
    spec = LabSpec(topology=shape, name=options.lab, security=options.security, keep=options.keep)
    lab = Lab(spec, made)
    plain = options.plain or options.once or not sys.stderr.isatty()
    timeout = options.timeout or 120 + 20 * options.nodes
    return run_supervised(_up(lab, once=options.once, plain=plain, timeout=timeout))


def run_supervised(coroutine: Coroutine[Any, Any, int]) -> int:
    """Run the supervisor; a signal ends it in order, a second one at once."""
    interrupted = 0

    async def supervise() -> int:
        task = asyncio.create_task(coroutine)
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            nonlocal interrupted
            interrupted += 1
            if interrupted > 1:
                if sys.stderr.isatty():  # leave the view's screen, show the cursor
                    os.write(sys.stderr.fileno(), b"\x1b[?1049l\x1b[?25h")
                # Children are tied to this process: the kernel ends them with it.
                os._exit(130)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, interrupt)
        try:
            return await task
        except asyncio.CancelledError:
            return 130

    return asyncio.run(supervise())


async def _up(lab: Lab, *, once: bool, plain: bool, timeout: float) -> int:
    if once:
        return await _up_once(lab, timeout)
    if plain:
        lab.on_event(print_event)
        async with lab:
            try:
                await lab.wait(
                    lambda: lab.state.formed is not None or lab.done.is_set(), 1e9, "formed"
                )
                for tip in screen.hints(lab.state, own_command()):
                    print(f"try: {tip}", file=sys.stderr)
                await lab.done.wait()
            except asyncio.CancelledError:
                print("stopping", file=sys.stderr)
                raise
        return _ending(lab)
    return await _up_live(lab)


async def _up_once(lab: Lab, timeout: float) -> int:
    lab.on_event(print_event)
    status = 0
    async with lab:
        waiting = asyncio.create_task(lab.formed(timeout))
        ending = asyncio.create_task(lab.done.wait())
        try:
            await asyncio.wait([waiting, ending], return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                raise lab.failure or LabError("ended before the mesh had formed")
            await waiting
            await lab.measure_guests()
        except NotFormedError as error:
            print(f"meshlab: {error}", file=sys.stderr)
            status = 1
        finally:
            waiting.cancel()
            ending.cancel()
        state = lab.snapshot()
        for line in summary.troubles(state) if not status else ():
            print(f"meshlab: {line}", file=sys.stderr)
            status = 1
        print(json.dumps(summary.summarise(state), indent=2), flush=True)
    return status


async def _up_live(lab: Lab) -> int:
    console = Console(stderr=True)
    shown = screen.View(lab.state, own_command())
    with Live(
        shown, console=console, screen=True, auto_refresh=False, vertical_overflow="crop"
    ) as live:

        async def draw() -> None:
            while True:
                lab.snapshot()
                live.refresh()
                await asyncio.sleep(0.5)

        drawing = asyncio.create_task(draw())
        try:
            async with lab:
                try:
                    await lab.done.wait()
                finally:
                    lab.state.stopping = True
                    live.refresh()
        finally:
            drawing.cancel()
    # The screen of the view is gone with it; these lines stay.
    lab.state.stopping = False
    console.print(screen.progress(lab.state))
    console.print(f"logs: {lab.directory}")
    return _ending(lab)


def _ending(lab: Lab) -> int:
    if lab.failure is not None:
        raise lab.failure
    return 0


def print_event(event: Event) -> None:
    """Print one event as a line of progress."""
    who = f"{event.node}: " if event.node else ""
    print(f"{event.at:7.1f} s  {who}{event.text}", file=sys.stderr, flush=True)


# --- clients -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def connected(lab: str) -> AsyncIterator[Client]:
    """Connect to the lab's supervisor."""
    async with await Client.connect(lab_directory(lab) / "control.sock") as client:
        yield client


def ask(
    options: argparse.Namespace,
    method: str,
    params: Params | None = None,
    *,
    timeout: float | None = 60.0,
    on_event: Callable[[Json], None] | None = None,
) -> Json:
    """Make one request to the running lab."""

    async def go() -> Json:
        async with connected(options.lab) as client:
            return await client.call(method, params, timeout=timeout, on_event=on_event)

    return asyncio.run(go())


def cmd_status(options: argparse.Namespace) -> int:
    if options.json:
        print(json.dumps(ask(options, "summary"), indent=2))
        return 0
    state = LabState.from_json(ask(options, "status"))
    console = Console()
    # All of it, however small the terminal is: this is a page to read, not a screen to watch.
    height = len(state.nodes) + 30
    width = max(console.width, 80)
    shown = screen.View(state, own_command()).render(width, height)
    console.print(shown, width=width, crop=False, soft_wrap=False)
    for line in (*summary.in_words(state), *summary.troubles(state)):
        console.print(Text(line, "yellow"))
    return 0


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
    """Return the shell command that `exec NODE -- words` means.

    One word is a line for the shell, as with ssh; several are a command and its arguments.
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


async def _read_input(most: int) -> bytes:
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
        data = await _read_input(1 << 16)
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


def cmd_link(options: argparse.Namespace) -> int:
    if options.loss is not None and not 0 <= options.loss <= 100:
        raise CommandError(f"--loss {options.loss:g}: a loss is 0 to 100 percent of all frames", 2)
    params = {
        "a": options.a,
        "b": options.b,
        "cut": options.cut,
        "snr": options.snr,
        "loss": None if options.loss is None else options.loss / 100,
        "restore": options.restore,
        "both": not options.oneway,
    }
    ask(options, "link", params)
    return 0


def cmd_move(options: argparse.Namespace) -> int:
    ask(options, "move", {"node": options.node, "x": options.x, "y": options.y})
    return 0


def cmd_power(options: argparse.Namespace) -> int:
    ask(options, "power", {"node": options.node, "action": options.action})
    return 0


def cmd_chip(options: argparse.Namespace) -> int:
    ask(options, "chip", {"node": options.node, "fault": options.fault})
    return 0


def cmd_radio(options: argparse.Namespace) -> int:
    ask(options, "radio", {"node": options.node, "action": options.action})
    return 0


def cmd_config(options: argparse.Namespace) -> int:
    answer = ask(options, "config", {"node": options.node, "settings": options.settings})
    stream = sys.stdout if answer["status"] == 0 else sys.stderr
    stream.write(answer["output"])
    return int(answer["status"])


def cmd_medium(options: argparse.Namespace) -> int:
    answer = ask(options, "medium", {"action": options.action})
    if options.action == "status":
        print(json.dumps(answer, indent=2))
    return 0


def cmd_down(options: argparse.Namespace) -> int:
    async def go() -> None:
        async with connected(options.lab) as client:
            await client.call("down")
        # The supervisor holds its directory until everything is switched off.
        deadline = time.monotonic() + 30
        while is_held(lab_directory(options.lab)):
            if time.monotonic() > deadline:
                raise CommandError(f"the lab {options.lab!r} has not ended within 30 s")
            await asyncio.sleep(0.05)

    asyncio.run(go())
    return 0


# --- pcap and console --------------------------------------------------------------------------


def cmd_pcap(options: argparse.Namespace) -> int:
    if options.stop:
        ask(options, "pcap", {"stop": True})
        return 0
    if options.file in (None, "-"):
        if sys.stdout.isatty():
            raise CommandError("a recording is no text: -w FILE, or pipe it somewhere", 2)
        return asyncio.run(_pcap_stdout(options))
    return asyncio.run(_pcap_file(options, Path(options.file).absolute()))


def _interruption() -> asyncio.Event:
    """Return an event that SIGINT, SIGTERM and SIGHUP set from now on."""
    loop = asyncio.get_running_loop()
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupted.set)
    return interrupted


async def _pcap_file(options: argparse.Namespace, path: Path) -> int:
    async with connected(options.lab) as client:
        interrupted = _interruption()
        await client.call("pcap", {"path": str(path), "node": options.node})
        print(f"recording to {path}, Ctrl-C ends it", file=sys.stderr, flush=True)
        await interrupted.wait()
        ended = await client.call("pcap", {"stop": True, "path": str(path)})
        for capture in ended.get("captures", []):
            problem = f", {capture['problem']}" if capture.get("problem") else ""
            print(f"{capture['packets']} packets in {path}{problem}", file=sys.stderr)
    return 0


async def _pcap_stdout(options: argparse.Namespace) -> int:
    """Have the medium write to a file of ours, and pass on what it gets."""
    with tempfile.TemporaryDirectory(prefix="meshlab-") as directory:
        path = Path(directory) / "air.pcapng"
        async with connected(options.lab) as client:
            interrupted = _interruption()
            await client.call("pcap", {"path": str(path), "node": options.node})
            with path.open("rb") as recorded:
                try:
                    while not interrupted.is_set():
                        _pass_on(recorded)
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.2):
                                await interrupted.wait()
                finally:
                    await client.call("pcap", {"stop": True, "path": str(path)})
                _pass_on(recorded)
    return 0


def _pass_on(recorded: BinaryIO) -> None:
    """Write what was appended since to the standard output."""
    while data := recorded.read(1 << 20):
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


LEAVE = 0x1D
"""Ctrl-], which telnet uses, too."""


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


if __name__ == "__main__":
    sys.exit(main())
