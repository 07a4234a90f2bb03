# SPDX-License-Identifier: Apache-2.0
"""Commands for a whole lab: ``up``, ``status``, ``down``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from host.cache import cache_root
from meshlab.cli.common import CommandError, Define, ask, connected, fading_text, own_command
from meshlab.hosts.errors import HostsError
from meshlab.hosts.placement import Capacity, parse_hosts, place
from meshlab.hosts.spread import Wanted, spread
from meshlab.lab import summary, topology
from meshlab.lab.directory import is_held
from meshlab.lab.errors import LabError, NotFormedError
from meshlab.lab.lab import Lab
from meshlab.lab.paths import lab_directory
from meshlab.lab.saved import IMAGES, SavedLab, remove, saves
from meshlab.lab.spec import LabSpec, NodeSpec
from meshlab.lab.state import Event, Kind, LabState
from meshlab.lab.topology import node_name
from meshlab.medium.config import DECODING
from meshlab.view import screen


def define(command: Define) -> None:
    """Define the commands.

    :param command: Adds one.
    """
    up = command("up", "boot a mesh and show it until Ctrl-C", cmd_up)
    up.add_argument("-n", "--nodes", type=int, default=5, help="how many nodes (default: 5)")
    up.add_argument("--topology", choices=topology.KINDS, default="grid", help="default: grid")
    up.add_argument("--image", default="lab", help="what the nodes boot (default: lab)")
    up.add_argument("--machine", help="what they boot on, such as raspi3b (default: the image's)")
    up.add_argument(
        "--node",
        action="append",
        default=[],
        metavar="NODE=IMAGE[@MACHINE]",
        help="another image or machine for one node (repeatable)",
    )
    up.add_argument("--seed", type=int, default=1, help="of chips, radios, random topologies")
    up.add_argument(
        "--fading",
        type=fading_text,
        default="none",
        metavar="HOW",
        help="how the signals of all links change, such as 'rician k=6 doppler=2 shadowing=4'",
    )
    up.add_argument(
        "--decoding", choices=DECODING, default="hard", help="of receivers (default: hard)"
    )
    up.add_argument(
        "--ht", action="store_true", help="HT rates and aggregation instead of legacy rates"
    )
    up.add_argument("--security", choices=("sae", "open"), default="sae", help="default: sae")
    up.add_argument(
        "--application",
        action="append",
        default=[],
        type=Path,
        metavar="DIRECTORY",
        help="install this Python project on every node of the lab image (repeatable)",
    )
    define_hosts(up)
    up.add_argument(
        "--cables", action="store_true", help="nodes have wired ports, for `meshlab cable`"
    )
    up.add_argument(
        "--uplink",
        action="append",
        default=[],
        metavar="NODE",
        help="a gateway, whose uplink is this machine's network (repeatable)",
    )
    up.add_argument("--keep", action="store_true", help="keep the disks and chips of the last run")
    up.add_argument(
        "--resume", metavar="NAME", help="go on from a lab that was saved; it says all the rest"
    )
    up.add_argument(
        "--once", action="store_true", help="wait until formed, print a summary as JSON, end"
    )
    up.add_argument(
        "--timeout", type=float, metavar="S", help="with --once: give up after this many seconds"
    )
    up.add_argument("--plain", action="store_true", help="progress as lines, also on a terminal")

    up.add_argument("--web", action="store_true", help="serve the page of the mesh, too")
    up.set_defaults(defaults=up.get_default)

    web = command("web", "serve the page of a running lab until Ctrl-C", cmd_web)
    web.add_argument("--port", type=int, default=0, help="of 127.0.0.1 (default: any)")
    web.add_argument("--plan", type=Path, metavar="IMAGE", help="a floor plan below the nodes")
    web.add_argument(
        "--corners",
        nargs=2,
        metavar=("X,Y", "X,Y"),
        help="metres of its upper left and lower right corner",
    )

    status = command("status", "show a running lab once", cmd_status)
    status.add_argument("--json", action="store_true", help="the summary, as `up --once` prints it")

    command("down", "end a running lab", cmd_down)

    save = command("save", "save a running lab, which goes on", cmd_save)
    save.add_argument("name", metavar="NAME", help="what to call the save")

    saved = command("saved", "list labs that were saved", cmd_saved)
    saved.add_argument(
        "--remove", action="append", default=[], metavar="NAME", help="remove it (repeatable)"
    )


def define_hosts(command: argparse.ArgumentParser) -> None:
    """Define the options for machines that nodes run on; ``hosts_of`` reads them.

    :param command: What gets them.
    """
    command.add_argument(
        "--hosts",
        metavar="HOSTS",
        help='machines that nodes run on, by SSH: "user@a b=2 local", with weights if wanted '
        "(docs/simulator.md)",
    )
    command.add_argument(
        "--on",
        action="append",
        default=[],
        metavar="NODE=HOST",
        help="the machine of one node (repeatable)",
    )


RESUMED = ("lab", "command", "defaults", "run", "resume", "once", "timeout", "plain", "web")
"""What can be said of a lab that goes on from one that was saved."""


def cmd_up(options: argparse.Namespace) -> int:
    if options.resume is not None:
        return _resume(options)
    shape = topology.make(options.topology, options.nodes, options.seed)
    for path in options.application:
        if not (path / "pyproject.toml").is_file():
            why = "has no pyproject.toml" if path.is_dir() else "is no directory"
            raise CommandError(f"{path}: no application to install, it {why}", 2)
    kinds = _kinds(options.node, shape.names)
    wanted = hosts_of(options, shape.names)
    uplinks = _uplinks(options, shape.names)
    # A terminal that vanishes ends the lab as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    from meshlab.image.lab import Extras
    from meshlab.lab import real_parts

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    extras = Extras(tuple(path.resolve() for path in options.application))
    cache = cache_root()
    made = real_parts.load(
        options.image,
        cache,
        options.seed,
        progress,
        extras if extras.applications else None,
        board=options.machine,
        cables=options.cables,
        uplinks=uplinks,
    )
    others = {
        name: real_parts.load(
            image,
            cache,
            options.seed,
            progress,
            board=machine,
            cables=options.cables,
            uplinks=uplinks,
        )
        for name, (image, machine) in kinds.items()
    }
    for name in uplinks:
        if not others.get(name, made).uplinks:
            raise CommandError(f"{name}: its board has no port for an uplink", 2)
    spec = LabSpec(
        topology=shape,
        name=options.lab,
        nodes=dict.fromkeys(uplinks, _gateway(cables=options.cables)),
        security=options.security,
        keep=options.keep,
        fading=options.fading,
        decoding=options.decoding,
        ht=options.ht,
    )

    async def go() -> int:
        if wanted is None:
            return await _up(Lab(spec, made, others=others), options)
        parts = {name: others.get(name, made) for name in shape.names}
        own = options.lab, lab_directory(options.lab)
        async with spread(wanted, own, parts, keep=options.keep, tell=progress) as found:
            lab = Lab(spec, made, others=found.others, doubts=found.doubts)
            return await _up(lab, options)

    return run_supervised(go())


def _uplinks(options: argparse.Namespace, names: Collection[str]) -> list[str]:
    """Return the nodes with uplinks, each once."""
    found = list(dict.fromkeys(options.uplink))
    for name in found:
        if name not in names:
            raise CommandError(f"--uplink {name}: there is no such node", 2)
    if found and options.hosts:
        raise CommandError("--uplink is for a lab whose nodes all run on this machine", 2)
    return found


def _gateway(*, cables: bool) -> NodeSpec:
    from meshlab.lab.real_parts import uplink_interface

    return NodeSpec(config={"gateway": {"uplink": uplink_interface(cables=cables)}})


def _resume(options: argparse.Namespace) -> int:
    """Go on from a lab that was saved."""
    given = {name: value for name, value in vars(options).items() if name not in RESUMED}
    other = [name for name, value in given.items() if value != options.defaults(name)]
    if other:
        words = ", ".join(f"--{name}" for name in other)
        raise CommandError(f"{words}: --resume takes these from the saved lab", 2)
    from meshlab.lab import real_parts

    cache = cache_root()
    saved = SavedLab.open(options.resume, cache)
    try:
        spec = saved.spec(options.lab)
        made = [
            real_parts.of_saved(saved.path / IMAGES / str(number), kept, cache, spec.topology.seed)
            for number, kept in enumerate(saved.value["images"])
        ]
        others = {name: made[node.image] for name, node in saved.nodes.items() if node.image}
        return run_supervised(_up(Lab(spec, made[0], others=others), options))
    finally:
        saved.close()


def hosts_of(options: argparse.Namespace, names: Sequence[str]) -> Wanted | None:
    """Return the machines that nodes run on; ``None``: this one.

    :param options: The command line.
    :param names: The nodes.
    :raises CommandError: when they are not understood.
    """
    on: dict[str, str] = {}
    for option in options.on:
        node, equals, host = option.partition("=")
        if not equals or not host:
            raise CommandError(f"--on {option}: it is NODE=HOST", 2)
        on[node_name(int(node)) if node.isdecimal() else node] = host
    if not options.hosts:
        if on:
            raise CommandError("--on needs --hosts", 2)
        return None
    try:
        hosts = parse_hosts(options.hosts)
        # Names only: how much room there is, is known when they are connected.
        place(list(names), [Capacity(host.name, 1, len(names)) for host in hosts], on)
    except HostsError as error:
        raise CommandError(str(error), 2) from None
    return Wanted(hosts, on)


def _kinds(options: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """Return image and machine of each node that ``--node`` names.

    :raises CommandError: when one is not understood.
    """
    found: dict[str, tuple[str, str | None]] = {}
    for option in options:
        node, _, rest = option.partition("=")
        name = node_name(int(node)) if node.isdecimal() else node
        image, at, machine = rest.partition("@")
        if not image or (at and not machine):
            raise CommandError(f"--node {option}: it is NODE=IMAGE or NODE=IMAGE@MACHINE", 2)
        if name not in names:
            raise CommandError(f"--node {option}: the nodes are {names[0]} to {names[-1]}", 2)
        if name in found:
            raise CommandError(f"--node {option}: {name} has an image already", 2)
        found[name] = image, machine or None
    return found


def run_supervised(coroutine: Coroutine[Any, Any, int]) -> int:
    """Run the supervisor; a signal ends it in order, a second one at once.

    :param coroutine: The supervisor.
    :returns: The exit status: what it returns, or 130 after a signal.
    """
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


def cmd_web(options: argparse.Namespace) -> int:
    from meshlab.web.serving import chosen_plan, serve_lab
    from web.errors import WebError

    if (options.plan is None) != (options.corners is None):
        raise CommandError("--plan and --corners belong together", 2)

    def tell(address: str) -> None:
        print(address, flush=True)
        print("Only who has this address can look. Ctrl-C ends it.", file=sys.stderr, flush=True)

    async def go() -> int:
        async with connected(options.lab) as client:  # a lab that does not run is said at once
            await client.call("node", {"node": 1})
        plan = chosen_plan(options.plan, options.corners)
        await serve_lab(options.lab, port=options.port, plan=plan, tell=tell)
        return 0

    try:
        return run_supervised(go())
    except WebError as error:
        raise CommandError(str(error)) from None


@contextlib.asynccontextmanager
async def _page(lab: Lab, *, wanted: bool) -> AsyncIterator[None]:
    """Serve the page of a lab while it runs; what stands in the way of that ends no lab."""
    if not wanted:
        yield
        return
    from meshlab.web.serving import serve_lab
    from web.errors import WebError

    def tell(address: str) -> None:
        lab.journal.tell(Kind.CHANGE, f"its page: {address}")

    async def run() -> None:
        try:
            await serve_lab(lab.spec.name, tell=tell)
        except WebError as error:
            lab.journal.tell(Kind.TROUBLE, f"no page: {error}")

    serving = asyncio.create_task(run())
    try:
        yield
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def _up(lab: Lab, options: argparse.Namespace) -> int:
    if options.once:
        nodes = len(lab.spec.topology.positions)
        return await _up_once(lab, options.timeout or 120 + 20 * nodes)
    if options.plain or not sys.stderr.isatty():
        lab.on_event(print_event)
        async with lab, _page(lab, wanted=options.web):
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
    return await _up_live(lab, web=options.web)


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


async def _up_live(lab: Lab, *, web: bool) -> int:
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
            async with lab, _page(lab, wanted=web):
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
    """Print one event as a line of progress.

    :param event: The event.
    """
    who = f"{event.node}: " if event.node else ""
    print(f"{event.at:7.1f} s  {who}{event.text}", file=sys.stderr, flush=True)


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


def cmd_save(options: argparse.Namespace) -> int:
    done = ask(options, "save", {"name": options.name}, timeout=None)
    print(
        f"saved {done['size'] >> 20} MiB in {done['path']}; the nodes stood still for "
        f"{done['paused']:.1f} s. Go on from it: `{own_command()} up --resume {options.name}`"
    )
    return 0


def cmd_saved(options: argparse.Namespace) -> int:
    if options.remove:
        freed = remove(options.remove)
        print(f"removed: {', '.join(options.remove)} ({freed >> 20} MiB)")
        return 0
    for name, found, size in saves():
        words = f"{name}: {size >> 20} MiB, "
        if isinstance(found, LabError):
            print(f"{words}cannot be used: {found}")
            continue
        shape, images = found.value["spec"]["topology"], found.value["images"]
        what = " and ".join(dict.fromkeys(str(image["name"]) for image in images))
        print(
            f"{words}{len(found.nodes)} nodes ({shape['kind']}) of {what}, {found.value['saved']}"
        )
    return 0
