# SPDX-License-Identifier: Apache-2.0
"""``make bench-update``: how long an update takes to reach all nodes of a mesh, and what it sends.

A mesh of nodes with cards on a grid, where every link loses frames. The first node is offered a
small change, then the whole bundle; nobody installs them, as the plan waits for a canary that is
not there. Beside it the same for one neighbour alone. What is printed is one run's, and passes or
fails nothing. The nodes share the host's processors: times are those of a busy host.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from host.cache import cache_root
from meshlab.bench.mesh import table
from meshlab.cli.lab import run_supervised
from meshlab.lab import real_parts, topology
from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec
from meshlab.lab.updates import Desk, put, put_large, run
from meshlab.machine.shell import ShellError
from thicket.update.offer import Plan

NOBODY = Plan(("n-000000000000",), 0, (100,), 0, None)
LONGEST = 1800.0
FRAME = 1400
"""Bytes of a patch that a frame carries, about."""


@dataclass(frozen=True)
class Spread:
    """How a patch spread.

    :ivar size: bytes of it.
    :ivar times: seconds until each node had it, without the first one.
    :ivar sent: transmissions on the air meanwhile, retries included.
    """

    size: int
    times: list[float]
    sent: int

    @property
    def share(self) -> float:
        """Transmissions for each node that got it, by those that one way needs."""
        return self.sent / len(self.times) / (self.size / FRAME)


async def spread(lab: Lab, desk: Desk, bundle: Path, base: str, patch: Path) -> Spread:
    """Offer a patch to the first node; return how it reached the others."""
    first, *others = lab.nodes
    folder = f"/data/{patch.stem}"
    if patch.stat().st_size > 200_000:
        await put_large(lab, first, f"{folder}/patch", patch)
    else:
        await put(lab, first, f"{folder}/patch", patch.read_bytes())
    await put(lab, first, f"{folder}/offer", desk.offer(bundle, {base: patch}, NOBODY))
    before = await lab.medium_call("status", patience=60)
    started = lab.elapsed
    await run(lab, first, f"thicket update offer {folder}")
    waiting, times = set(others), dict.fromkeys(others, 0.0)
    while waiting:
        if lab.elapsed - started > LONGEST:
            raise LabError(f"not within {LONGEST:g} s: {', '.join(sorted(waiting))}")
        for name in sorted(waiting):
            if await _has(lab, name, patch.stat().st_size):
                waiting.remove(name)
                times[name] = lab.elapsed - started
        await asyncio.sleep(0.5)
    after = await lab.medium_call("status", patience=60)
    sent = int(after["attempts"]) - int(before["attempts"])
    return Spread(patch.stat().st_size, sorted(times.values()), sent)


async def _has(lab: Lab, name: str, size: int) -> bool:
    """Whether a node has the whole of the patch of this size."""
    command = "ls -l /data/update/offered/*.patch /data/update/offered/*.list 2>/dev/null"
    try:
        status, said = await lab.run(name, command, 60)
        if status or str(size) not in said:
            return False
        status, said = await lab.run(name, "thicket update status --json", 60)
        if status:
            return False
        patches = json.loads(said)["spread"]["patches"]
    except (LabError, ShellError, ValueError, KeyError):
        return False
    return any(one["size"] == size == one["here"] for one in patches)


async def _measure(nodes: int, loss: float, folder: Path) -> list[Spread]:
    """Measure the spread of a change and of the whole bundle in a mesh."""
    parts = real_parts.load("standin", cache_root(), 1, _progress)
    shape = topology.make("grid" if nodes > 2 else "full", nodes)
    found: list[Spread] = []
    async with Lab(LabSpec(shape, name="bench-update"), parts) as lab:
        await lab.formed(900)
        for one, other in lab.spec.topology.links:
            await lab.link(one, other, loss=loss)
        desk = Desk(lab, folder)
        old, new = desk.bundle(), desk.bundle("2.0.0")
        for before in (old, None):
            base, patch = desk.patch(new, before)
            await _ready(lab)
            found.append(await spread(lab, desk, new, base, patch))
            _progress(f"{nodes} nodes, {patch.name}: {found[-1]}")
    return found


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


async def measure(nodes: int, loss: float) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as name:
        alone = await _measure(2, loss, Path(name))
        fleet = await _measure(nodes, loss, Path(name))
    rows = [
        [
            what,
            f"{one.size / 1024:.0f} KiB",
            f"{one.times[-1]:.1f} s",
            f"{many.times[0]:.1f} s",
            f"{many.times[-1]:.1f} s",
            f"{many.times[-1] / one.times[-1]:.1f}",
            f"{one.share:.2f}",
            f"{many.share:.2f}",
        ]
        for what, one, many in zip(("change", "whole"), alone, fleet, strict=True)
    ]
    heads = ["patch", "size", "alone", "first", "last", "last/alone", "sent alone", "sent a node"]
    print(f"{nodes} nodes on a grid, every link loses {100 * loss:g} % of all frames")
    print(table(heads, rows))
    return 0


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="make bench-update")
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--loss", type=float, default=0.1, help="share of frames, 0 to 1")
    args = parser.parse_args()
    try:
        return run_supervised(measure(args.nodes, args.loss))
    except LabError as error:
        print(f"bench-update: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
