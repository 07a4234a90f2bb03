# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.bench``: what a simulated mesh costs on this machine, as Markdown tables.

Time to a formed mesh for several sizes, processor time and memory of a node, frames and lag of the
medium, and round trips over several hops. A figure is one run's; nothing is averaged away, and
nothing passes or fails: that is for people to judge.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firmware import build, sizes
from host.cache import cache_root
from meshlab.cli.lab import run_supervised
from meshlab.lab import real_parts, topology
from meshlab.lab.errors import LabError, NotFormedError
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec
from meshlab.lab.state import LabState, get
from meshlab.machine.spec import MachineSpec
from meshlab.wire.rpc import RpcError

SIZES = (3, 8, 20)
QUICK_SIZES = (3,)
HOPS = (1, 2, 4)
QUICK_HOPS = (1, 2)

PACKAGES = 12
"""How many packages the table of sizes has."""

JOINS = 5
"""How often a node joins again."""

SETTLE = 20.0
"""Seconds of a formed mesh over which idle figures are taken."""


@dataclass
class Forming:
    """What a run of a grid came to; times in seconds, memory in MiB."""

    nodes: int
    formed: float | None
    lacking: str = ""
    shell: list[float] = field(default_factory=list)
    boot: list[float] = field(default_factory=list)
    joined: list[float] = field(default_factory=list)
    first_peer: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    idle_percent: list[float] = field(default_factory=list)
    host_mib: list[float] = field(default_factory=list)
    guest_mib: list[float] = field(default_factory=list)
    daemon_mib: list[float] = field(default_factory=list)
    forming_frames: int = 0
    frames_per_second: float = 0.0
    lag_ms: dict[str, float] = field(default_factory=dict)
    verdict: str = ""


@dataclass
class RoundTrip:
    """Times of pings over a number of hops, in milliseconds."""

    hops: int
    sent: int
    times: list[float]


def middle(values: Sequence[float], digits: int = 1) -> str:
    """Return the median and the largest of ``values`` as text."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({max(values):.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns line up."""
    lines = [list(head), *[list(row) for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    texts = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    texts.insert(1, "| " + " | ".join("-" * w for w in widths) + " |")
    return "\n".join(texts)


def ping_times(output: str) -> list[float]:
    """Return the round trip times in milliseconds that ping reports."""
    return [float(value) for value in re.findall(r"time=([0-9.]+) ms", output)]


@dataclass
class Joining:
    """What joining costs with and without security; times in seconds."""

    security: str
    rejoined: list[float]
    """From a daemon that leaves mesh and cluster to its start as a full member."""
    idle_percent: list[float]
    daemon_mib: list[float]


def machine_facts(state: LabState, image: str) -> list[tuple[str, str]]:
    """Return what the figures depend on."""
    model = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
        if found := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
            model = found.group(1).strip()
    except OSError:
        pass
    qemu = shutil.which("qemu-system-x86_64")
    version = "-"
    if qemu:
        words = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False)
        version = words.stdout.splitlines()[0] if words.stdout else "-"
    return [
        ("processor", f"{len(os.sched_getaffinity(0))} cores of {model}"),
        ("accelerator", f"{state.accel} ({state.accel_reason})"),
        ("QEMU", version),
        ("kernel, Python", f"{platform.release()}, {platform.python_version()}"),
        ("image", image),
    ]


async def measure_forming(
    made: real_parts.RealParts, count: int, timeout: float
) -> tuple[Forming, Lab]:
    """Run a grid of ``count`` nodes until it has formed and been idle for a while."""
    spec = LabSpec(topology.make("grid", count), name=f"bench-{count}")
    result = Forming(count, None)
    async with Lab(spec, made) as lab:
        try:
            await lab.formed(timeout)
        except NotFormedError as error:
            result.lacking = "; ".join(f"{n}: {w[0]}" for n, w in error.lacking.items())
        result.formed = lab.state.formed
        if result.formed is not None:
            before = {name: node.cpu_seconds for name, node in lab.state.nodes.items()}
            begun = lab.elapsed
            await asyncio.sleep(SETTLE)
            await lab.measure_guests()
            result.shell = await shell_times(lab)
            seconds = lab.elapsed - begun
            for name, node in lab.state.nodes.items():
                result.idle_percent.append(100 * (node.cpu_seconds - before[name]) / seconds)
            try:
                status = await lab.medium_call("status")
                result.frames_per_second = status["frames"] / seconds
                result.lag_ms = status["lag_percentiles_ms"]
                result.verdict = "valid" if status["valid"] else f"invalid: {status['reason']}"
            except RpcError as error:
                result.verdict = str(error)
        result.forming_frames = int(lab.state.medium_forming.get("frames", 0))
        for node in lab.state.nodes.values():
            for values, value in (
                (result.boot, node.time("daemon")),
                (result.joined, node.time("radio")),
                (result.first_peer, node.time("first_peer")),
                (result.cpu, node.cpu_seconds_to_joined),
                (result.host_mib, node.own_kib / 1024 if node.own_kib else None),
                (result.guest_mib, node.guest_used_kib and node.guest_used_kib / 1024),
                (result.daemon_mib, (get(node.status, "memory_kib") or 0) / 1024 or None),
            ):
                if value is not None:
                    values.append(value)
    return result, lab


async def shell_times(lab: Lab) -> list[float]:
    """Return when each node's init was ready (rcS notes it), in guest seconds after power-on."""
    found = []
    for name in lab.nodes:
        status, output = await lab.run(name, "cat /run/thicket/booted", 30)
        if status == 0:
            found.append(float(output))
    return found


async def measure_round_trips(
    made: real_parts.RealParts, hops: Sequence[int], timeout: float
) -> list[RoundTrip]:
    """Ping along a line of nodes."""
    count = max(hops) + 1
    found = []
    async with Lab(LabSpec(topology.make("line", count), name="bench-line"), made) as lab:
        await lab.formed(timeout)
        await asyncio.sleep(5)  # what follows the forming is over
        for distance in hops:
            target = lab.state.nodes[f"n{distance + 1}"].address
            command = f"ping -6 -n -c 1 -W 5 {target} >/dev/null; ping -6 -n -c 20 -i 0.2 {target}"
            _, output = await lab.run("n1", command, 120)
            found.append(RoundTrip(distance, 20, ping_times(output)))
    return found


async def measure_joining(made: real_parts.RealParts, security: str, timeout: float) -> Joining:
    """Let a node of three leave and join again, several times, and look at what idling costs."""
    result = Joining(security, [], [], [])
    spec = LabSpec(topology.make("full", 3), name=f"bench-{security}", security=security)
    async with Lab(spec, made) as lab:
        await lab.formed(timeout)
        await asyncio.sleep(5)  # what follows the forming is over
        before = {name: node.cpu_seconds for name, node in lab.state.nodes.items()}
        begun = lab.elapsed
        await asyncio.sleep(SETTLE)
        seconds = lab.elapsed - begun
        for name, node in lab.state.nodes.items():
            result.idle_percent.append(100 * (node.cpu_seconds - before[name]) / seconds)
            result.daemon_mib.append((get(node.status, "memory_kib") or 0) / 1024)
        node = lab.state.nodes["n3"]
        for count in range(1, JOINS + 1):
            begun = lab.elapsed
            status, output = await lab.run("n3", "thicketd --stop-radio", 60)
            if status:
                raise LabError(f"n3 does not leave: {output}")
            await lab.wait(
                lambda count=count: (  # type: ignore[misc]
                    get(node.status, "restarts") == count and len(lab.state.cluster("n3")) == 2
                ),
                timeout,
                "n3 is a member again",
            )
            result.rejoined.append(lab.elapsed - begun)
    return result


def report_joining(found: Sequence[Joining]) -> str:
    """Return the table of joining."""
    rows = [
        (
            one.security,
            middle(one.rejoined),
            f"{60 / statistics.median(one.rejoined):.1f}",
            middle(one.idle_percent),
            middle(one.daemon_mib, 0),
        )
        for one in found
    ]
    return table(("security", "to join, s", "joins/min", "CPU idle, %", "daemon, MiB"), rows)


def report(facts: Sequence[tuple[str, str]], formings: Sequence[Forming]) -> str:
    """Return the tables of machine and forming."""
    rows = []
    for one in formings:
        formed = "not formed" if one.formed is None else f"{one.formed:.1f}"
        rows.append(
            (
                str(one.nodes),
                formed,
                middle(one.shell),
                middle(one.boot),
                middle(one.first_peer),
                middle(one.joined),
                middle(one.cpu),
                middle(one.idle_percent),
                middle(one.host_mib, 0),
                middle(one.guest_mib, 0),
                middle(one.daemon_mib, 0),
            )
        )
    head = [
        "nodes",
        "formed, s",
        "shell, s",
        "daemon, s",
        "first peer, s",
        "joined, s",
        "CPU to joined, s",
    ]
    head += ["CPU idle, %", "QEMU, MiB", "guest, MiB", "daemon, MiB"]
    medium = [
        (
            str(one.nodes),
            str(one.forming_frames),
            f"{one.frames_per_second:.0f}",
            " / ".join(f"{one.lag_ms.get(key, 0):.1f}" for key in ("p50", "p99", "max")),
            one.verdict or "-",
        )
        for one in formings
    ]
    texts = [
        table(("machine", ""), facts),
        "Grids from `up` to formed; of a node: median (worst), times in guest seconds after "
        "power-on.",
        table(head, rows),
        table(
            ("nodes", "frames to form", "frames/s idle", "lag p50 / p99 / max, ms", "the medium"),
            medium,
        ),
    ]
    texts += [f"{one.nodes} nodes not formed: {one.lacking}" for one in formings if one.lacking]
    return "\n\n".join(texts)


def report_sizes(image: str) -> str:
    """Return the tables of a built firmware's sizes; nothing for other images."""
    output = build.images(image).parent
    if image not in real_parts.CARDS or not (output / "build").is_dir():
        return ""
    packages = sizes.by_package(output)
    mib = 1 << 20
    rows = [(name, f"{size / mib:.1f}") for name, size in sizes.by_part(output).items()]
    rows += [("root, uncompressed", f"{packages.total() / mib:.1f}")]
    head, *others = sizes.beside_others(output, MachineSpec.memory_mib)
    texts = [
        table(("part of the card", "MiB"), rows),
        table(
            ("package", "MiB of the root"),
            [(name, f"{size / mib:.1f}") for name, size in packages.most_common(PACKAGES)],
        ),
        table(head, others),
    ]
    return "\n\n".join(texts) + "\n\n"


def report_round_trips(found: Sequence[RoundTrip]) -> str:
    """Return the table of round trips."""
    rows = []
    for one in found:
        times = sorted(one.times)
        if times:
            words = [f"{times[0]:.1f}", f"{statistics.median(times):.1f}", f"{times[-1]:.1f}"]
        else:
            words = ["-", "-", "-"]
        rows.append((str(one.hops), *words, f"{one.sent - len(times)} of {one.sent}"))
    return table(("hops", "ping min, ms", "median, ms", "max, ms", "lost"), rows)


async def run(sizes: Sequence[int], hops: Sequence[int], image: str) -> int:
    """Measure everything and print it as it comes."""

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    made = real_parts.load(image, cache_root(), 1, progress)
    print(report_sizes(image), end="", flush=True)
    formings = []
    facts: list[tuple[str, str]] = []
    status = 0
    for count in sizes:
        progress(f"bench: a grid of {count}")
        result, lab = await measure_forming(made, count, 120 + 20 * count)
        facts = machine_facts(lab.state, made.description)
        formings.append(result)
        status |= result.formed is None
        words = f"formed in {result.formed} s" if result.formed else "not formed"
        progress(f"bench: {count} nodes {words}")
    print(report(facts, formings), flush=True)
    progress("bench: round trips")
    try:
        trips = await measure_round_trips(made, hops, 300)
    except LabError as error:
        progress(f"bench: {error}")
        return 1
    print("\n" + report_round_trips(trips), flush=True)
    joinings = []
    for security in ("sae", "open"):
        progress(f"bench: a node that joins again and again, {security}")
        try:
            joinings.append(await measure_joining(made, security, 300))
        except (LabError, TimeoutError) as error:
            progress(f"bench: {error}")
            return 1
    print(
        "\nA daemon that leaves mesh and cluster and starts again, in a mesh of three; median "
        "(worst)\n\n" + report_joining(joinings),
        flush=True,
    )
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="meshlab.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three nodes only")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="N", help="sizes of the grids")
    parser.add_argument("--image", default="lab", help="what the nodes boot (default: lab)")
    options = parser.parse_args(arguments)
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    try:
        return run_supervised(run(sizes, QUICK_HOPS if options.quick else HOPS, options.image))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
