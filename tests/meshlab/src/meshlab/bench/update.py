# SPDX-License-Identifier: Apache-2.0
"""``make bench-update``: how long an update takes to reach all nodes of a mesh, and what it sends.

A mesh of nodes with cards on a grid, where every link loses frames. The first node is offered a
small change, then the whole bundle; nobody installs them, as the plan waits for a canary that is
not there. Beside it the same for one neighbour alone. What is printed is one run's, and passes or
fails nothing.

What a node sends is counted in *bundles of air*: the airtime of its large frames, with what is sent
again, by that of the one that serves one neighbour alone. Chunks travel in large frames; ticks,
beacons and reports in small ones. What large frames took before the update is taken away.

The nodes share the host's processors, and an emulated node needs some five seconds of one for each
megabyte that it takes or gives. Eight nodes then wait for processors where two wait for the air.
The column ``host`` says so: times where it is near 100 % are those of the host. With ``--air-share
1`` the nodes send so slowly that the air is what they wait for, as devices do.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from host.cache import cache_root
from meshlab.bench.mesh import table
from meshlab.cli.lab import run_supervised
from meshlab.image.lab import Text
from meshlab.lab import real_parts, topology
from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec
from meshlab.lab.updates import Desk, put, put_large, run
from meshlab.machine.shell import ShellError
from thicket.update.offer import Plan

NOBODY = Plan(("n-000000000000",), 0, (100,), 0, None)
LONGEST = 1800.0
REST = 20.0
"""Seconds in which the large frames are counted that have nothing to do with the update."""


@dataclass(frozen=True)
class Spread:
    """How a patch spread.

    :ivar size: bytes of it.
    :ivar times: seconds until each node had it, without the first one.
    :ivar air: seconds of air that the chunks took which each node sent, the first one's first.
    :ivar rest: of a second of air, what large frames took before, of all nodes.
    :ivar far: share of the chunks that came over more than one hop.
    :ivar host: share of the host's processors that the nodes took.
    """

    size: int
    times: list[float]
    air: list[float]
    rest: float
    far: float
    host: float


async def spread(lab: Lab, desk: Desk, bundle: Path, base: str, patch: Path) -> Spread:
    """Offer a patch to the first node; return how it reached the others."""
    first, *others = lab.nodes
    folder = f"/data/{patch.stem}"
    if patch.stat().st_size > 200_000:
        await put_large(lab, first, f"{folder}/patch", patch)
    else:
        await put(lab, first, f"{folder}/patch", patch.read_bytes())
    await put(lab, first, f"{folder}/offer", desk.offer(bundle, {base: patch}, NOBODY))
    resting, began = await _air(lab), lab.elapsed
    await asyncio.sleep(REST)
    before = await _air(lab)
    rates = [
        (after - at) / (lab.elapsed - began) for at, after in zip(resting, before, strict=True)
    ]
    counted, used = await _counters(lab, others), _used(lab)
    size, started = patch.stat().st_size, lab.elapsed
    async with asyncio.TaskGroup() as group:
        arriving = [group.create_task(_arrives(lab, name, size)) for name in others]
        await run(lab, first, f"thicket update offer {folder}")
    times = sorted(task.result() - started for task in arriving)
    used, took = _used(lab) - used, lab.elapsed - started
    after = await _air(lab)
    air = [
        max(0.0, then - at - rate * took)
        for at, then, rate in zip(before, after, rates, strict=True)
    ]
    now = await _counters(lab, others)
    received, far = (now[key] - counted[key] for key in ("received", "far"))
    return Spread(
        size,
        times,
        air,
        sum(rates),
        far / received,
        used / took / len(os.sched_getaffinity(0)),
    )


async def _air(lab: Lab) -> list[float]:
    """Return the seconds of air that each node's large frames took so far."""
    told = (await lab.medium_call("status", patience=60))["nodes"]
    return [
        sum(float(radio["air_large_seconds"]) for radio in told[name]["radios"])
        for name in lab.nodes
    ]


async def _counters(lab: Lab, names: list[str]) -> dict[str, int]:
    """Return what nodes have counted of chunks, all together."""
    total = dict.fromkeys(("received", "far"), 0)
    for name in names:
        said = json.loads(await run(lab, name, "thicket update status --json"))
        for key in total:
            total[key] += said["spread"]["counters"][key]
    return total


def _used(lab: Lab) -> float:
    """Return the processor seconds that the nodes have taken."""
    machines = (node.machine for node in lab.nodes.values())
    return sum(machine.cpu_seconds() for machine in machines if machine is not None)


async def _arrives(lab: Lab, name: str, size: int) -> float:
    """Return when a node has the whole of the patch of this size.

    Each node looks into its own log: a program that asks the daemon takes seconds on a busy host,
    and one node after the other would be asked.
    """
    words = f"the patch is here: {size} bytes"
    try:
        await lab.run(name, f"until logread | grep -q '{words}'; do sleep 0.5; done", LONGEST)
    except ShellError as error:
        raise LabError(f"{name} has not got the patch: {error}") from None
    return lab.elapsed


async def _measure(nodes: int, args: argparse.Namespace, folder: Path) -> list[Spread]:
    """Measure the spread of a change, and of the whole bundle, in a mesh."""
    parts = real_parts.load("standin", cache_root(), 1, _progress)
    shape = topology.make("grid" if nodes > 2 else "full", nodes)
    found: list[Spread] = []
    config = {"update": {"air_share": args.air_share}}
    async with Lab(LabSpec(shape, name="bench-update", config=config), parts) as lab:
        await lab.formed(900)
        for one, other in lab.spec.topology.links:
            await lab.link(one, other, loss=args.loss)
        desk = Desk(lab, folder)
        old, new = await desk.bundle(), await desk.bundle("2.0.0", *_ballast(args.change))
        for before in (old, None) if args.whole else (old,):
            base, patch = await desk.patch(new, before)
            await _ready(lab)
            found.append(await spread(lab, desk, new, base, patch))
            _progress(f"{nodes} nodes, {patch.name}: {found[-1]}")
    return found


def _ballast(size: int) -> tuple[Text, ...]:
    """Return a file that makes a change so many KiB larger, as nothing makes it smaller."""
    data = random.Random(size).randbytes(size << 10)
    return (Text("usr/share/ballast", base64.b64encode(data).decode("ascii")),) if size else ()


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _ready(lab: Lab) -> None:
    """Wait until the first node takes offers."""
    for _ in range(300):
        status, _said = await lab.run(next(iter(lab.nodes)), "thicket update status", 60)
        if status == 0:
            return
        await asyncio.sleep(1)
    raise LabError("the first node takes no offers")


async def measure(args: argparse.Namespace) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        alone = await _measure(2, args, Path(name))
        fleet = await _measure(args.nodes, args, Path(name))
    rows = [
        [
            what,
            f"{one.size / 1024:.0f} KiB",
            f"{one.times[-1]:.1f} s",
            f"{many.times[0]:.1f} s",
            f"{many.times[-1]:.1f} s",
            f"{many.times[-1] / one.times[-1]:.1f}",
            f"{one.air[0]:.2f} s",
            f"{sum(many.air) / len(many.air) / one.air[0]:.2f}",
            f"{max(many.air) / one.air[0]:.2f}",
            f"{100 * many.far:.0f} %",
            f"{100 * one.host:.0f} %, {100 * many.host:.0f} %",
        ]
        for what, one, many in zip(("change", "whole"), alone, fleet, strict=False)
    ]
    heads = ["patch", "size", "alone", "first", "last", "last/alone", "air alone", "bundles a node"]
    heads += ["most", "far", "host"]
    print(
        f"{args.nodes} nodes on a grid, every link loses {100 * args.loss:g} % of all frames, "
        f"each node may take {args.air_share} % of the air"
    )
    print(table(heads, rows))
    return 0


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="make bench-update")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--loss", type=float, default=0.1, help="share of frames, 0 to 1")
    parser.add_argument(
        "--air-share", type=int, default=20, metavar="PERCENT", help="[update] air_share"
    )
    parser.add_argument(
        "--change", type=int, default=0, metavar="KIB", help="how much larger the change is"
    )
    parser.add_argument(
        "--no-whole", dest="whole", action="store_false", help="the change alone, not the whole"
    )
    args = parser.parse_args()
    try:
        return run_supervised(measure(args))
    except* LabError as group:
        print(f"bench-update: {'; '.join(map(str, group.exceptions))}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
