# SPDX-License-Identifier: Apache-2.0
"""``make bench-features``: what a node pays for what only some of its users need.

The same mesh of three, idle, once as it comes and once with all that can be switched off
(``OFF``). Memory is what the kernel counts for the daemon and its programs, processor time what
they took of the guest's emulated core. A figure is one run's, and passes or fails nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from host.cache import cache_root
from meshlab.bench.mesh import middle, table
from meshlab.cli.lab import run_supervised
from meshlab.lab import real_parts, topology
from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec

NODES = 3
SETTLE = 60.0
"""Seconds after forming in which what follows it ends."""
IDLE = 180.0
"""Seconds of idleness that are measured."""

OFF: Mapping[str, Mapping[str, Any]] = {
    "access": {"operators": False},
    "metrics": {"share": False},
    "time": {"enabled": False},
}
"""The switches, by sections."""

ASK = (
    "for p in /proc/[0-9]*; do case $(tr '\\0' ' ' <$p/cmdline 2>/dev/null) in "
    "*thicketd*|*chronyd*) "
    "a=$(grep RssAnon $p/status | tr -dc 0-9); s=$(sed 's/.*) //' $p/stat | cut -d' ' -f12,13); "
    'echo "$a $s";; esac; done; getconf CLK_TCK 2>/dev/null || echo 100'
)
"""Prints anonymous memory (KiB) and processor time (ticks: user, system) of each program of ours,
and the ticks of a second."""


@dataclass
class Costs:
    """What nodes cost, one entry for each."""

    mib: list[float] = field(default_factory=list)
    """Memory that no other process shares, of the daemon and what it has started."""
    percent: list[float] = field(default_factory=list)
    """Of the guest's core, while nothing happens."""
    to_joined: list[float] = field(default_factory=list)
    """Seconds of the host's processor for a node until it had joined."""


def read(output: str) -> tuple[float, float]:
    """Return memory in MiB and processor time in seconds from what ``ASK`` prints.

    :raises LabError: when it is anything else.
    """
    try:
        *lines, hertz = output.splitlines()
        rows = [[int(word) for word in line.split()] for line in lines]
        return (
            sum(row[0] for row in rows) / 1024,
            sum(row[1] + row[2] for row in rows) / int(hertz),
        )
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise LabError(f"a node tells {output[:200]!r} of its programs: {error}") from error


async def ask(lab: Lab) -> dict[str, tuple[float, float]]:
    """Return memory and processor time of each node's programs."""
    found = {}
    for name in lab.nodes:
        status, output = await lab.run(name, ASK, 60)
        if status:
            raise LabError(f"{name} does not tell what its programs cost: {output[:200]}")
        found[name] = read(output)
    return found


async def measure(
    made: real_parts.RealParts, config: Mapping[str, Any], timeout: float, idle: float
) -> Costs:
    """Run a mesh with this configuration until it has been idle for a while."""
    costs = Costs()
    spec = LabSpec(topology.make("full", NODES), name="bench-features", config=dict(config))
    async with Lab(spec, made) as lab:
        await lab.formed(timeout)
        await asyncio.sleep(SETTLE)
        before, begun = await ask(lab), lab.elapsed
        await asyncio.sleep(idle)
        after, seconds = await ask(lab), lab.elapsed - begun
        for name, (mib, spent) in after.items():
            costs.mib.append(mib)
            costs.percent.append(100 * (spent - before[name][1]) / seconds)
        costs.to_joined += [
            node.cpu_seconds_to_joined
            for node in lab.state.nodes.values()
            if node.cpu_seconds_to_joined is not None
        ]
    return costs


def report(found: Mapping[str, Costs]) -> str:
    """Return a table with a line for each configuration, and one for the difference."""
    rows: list[Sequence[str]] = [
        (name, middle(one.mib, 2), middle(one.percent, 2), middle(one.to_joined, 2))
        for name, one in found.items()
    ]
    if len(found) == 2:
        first, second = found.values()
        rows.append(
            (
                "difference",
                *(
                    f"{statistics.median(a) - statistics.median(b):+.2f}" if a and b else "-"
                    for a, b in (
                        (first.mib, second.mib),
                        (first.percent, second.percent),
                        (first.to_joined, second.to_joined),
                    )
                ),
            )
        )
    return table(("a mesh of three", "memory, MiB", "CPU idle, %", "CPU s to joined"), rows)


async def run(options: argparse.Namespace) -> int:
    """Measure both, and print."""
    made = real_parts.load("lab", cache_root(), 1, lambda text: print(text, file=sys.stderr))
    found: dict[str, Costs] = {}
    for name, config in (("as it comes", {}), ("all of it switched off", OFF)):
        print(f"measuring a mesh {name}", file=sys.stderr, flush=True)
        found[name] = await measure(made, config, options.timeout, options.idle)
    words = ", ".join(f"{s}.{k}" for s, keys in OFF.items() for k in keys)
    print(f"Medians (largest) of {NODES} nodes. Switched off: {words}.\n\n{report(found)}")
    return 0


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(
        prog="python -m meshlab.bench.features", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--idle", type=float, default=IDLE, help="seconds that are measured")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for forming")
    options = parser.parse_args()
    try:
        return run_supervised(run(options))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
