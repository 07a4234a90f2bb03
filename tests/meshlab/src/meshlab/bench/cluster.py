# SPDX-License-Identifier: Apache-2.0
"""``make bench-cluster-mesh``: calls between simulated nodes, beside Erlang's over the same link.

Two nodes whose lab image also has Debian's Erlang. On both run, one pair after the other: nodes of
``erl`` that call each other by ``erpc``, and nodes of ours (``thicket.distribution``, in a process
of their own, as Erlang's). Then the link is cut, and both kinds say when they have noticed. What is
printed is one run's, and passes or fails nothing. A guest under TCG computes some 10 to 20 times
slower than the processor it runs on: the part of a round trip that is computed counts that much
more than on a device.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import statistics
import sys
import time
from collections.abc import Sequence

from host.cache import cache_root
from meshlab.bench.mesh import ping_times, table
from meshlab.cli.lab import run_supervised
from meshlab.image.lab import Extras
from meshlab.lab import real_parts, topology
from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec

EXTRAS = Extras(packages=("erlang-base",), files=("usr/bin/erl", "usr/lib/erlang"))
CALLS = 400
ROUNDS = 3
TICK_TIME = 15
WORK = "/run/bench"
PATIENCE = 90.0
"""Seconds in which a node has to notice that another one is lost."""

SERVER = f"""
import asyncio, sys
from ipaddress import IPv6Address
from thicket.distribution import Node

async def main():
    own = IPv6Address(sys.argv[1])
    node = Node("python", "bench", own, 9200, epmd_port=None, tick_time={TICK_TIME})

    @node.export("bench.echo")
    def echo(value: object) -> object:
        return value

    await node.start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""

CLIENT = f"""
import asyncio, json, sys, time
from ipaddress import IPv6Address
from thicket.distribution import Node

async def main():
    own, other, count = IPv6Address(sys.argv[1]), "python@" + sys.argv[2], int(sys.argv[3])
    node = Node("caller", "bench", own, 9200, epmd_port=None, tick_time={TICK_TIME})
    await node.start()
    for _ in range(30):
        await node.call(other, "bench.echo", 1)
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        await node.call(other, "bench.echo", 1)
        times.append((time.perf_counter() - begin) * 1e6)
    print(json.dumps(times), flush=True)
    await node.stop()

asyncio.run(main())
"""

ERL = (
    f"erl -noshell -proto_dist inet6_tcp -start_epmd false -erl_epmd_port 9300 -setcookie bench "
    f"-kernel net_ticktime {TICK_TIME} -kernel prevent_overlapping_partitions false "
    f"-kernel inet_dist_use_interface '{{{{{{address}}}}}}' -name {{name}}@{{text}} -eval {{code}}"
)

ERL_CALLS = (
    "N = '{peer}', pong = net_adm:ping(N), "
    "[erpc:call(N, erlang, abs, [1]) || _ <- lists:seq(1, 30)], "
    # timer:tc/3 of a compiled function: the evaluator's own time is not counted
    "T = [element(1, timer:tc(erpc, call, [N, erlang, abs, [1]])) || _ <- lists:seq(1, {count})], "
    'io:format("~w~n", [T]), halt().'
)

ERL_WATCH = (
    "N = '{peer}', pong = net_adm:ping(N), monitor_node(N, true), "
    'file:write_file("{work}/watching", ""), '
    'receive {{nodedown, N}} -> file:write_file("{work}/down", "") end, halt().'
)


class Guests:
    """Two nodes, n1 that calls and n2 that is called."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.address = {name: str(node.address) for name, node in lab.state.nodes.items()}

    async def run(self, name: str, command: str, timeout: float = 120) -> str:
        """Run a command that must succeed; return its output."""
        status, output = await self.lab.run(name, command, timeout)
        if status:
            raise LabError(f"{command[:200]!r} on {name} ended with {status}: {output[-2000:]}")
        return output

    async def start(self, name: str, command: str, ready: str) -> None:
        """Start a program in the background, and wait until it has said ``ready``."""
        log = f"{WORK}/log"
        await self.run(name, f"mkdir -p {WORK}; rm -f {WORK}/*")
        await self.run(name, f"(setsid {command} >{log} 2>&1 & echo $! >{WORK}/pid)")
        for _ in range(60):
            if (await self.lab.run(name, f"grep -q {ready} {log}", 30))[0] == 0:
                return
            await asyncio.sleep(1)
        raise LabError(f"{command[:200]!r} on {name}: {await self.run(name, f'cat {log}')}")

    async def stop(self, name: str) -> None:
        """End what :meth:`start` has started."""
        await self.lab.run(name, f"kill -9 -$(cat {WORK}/pid) $(cat {WORK}/pid)", 30)

    def erl(self, name: str, called: str, code: str) -> str:
        """Return the command of an Erlang node on a guest."""
        text = self.address[name]
        groups = ",".join(f"16#{group}" for group in _exploded(text))
        return ERL.format(address=groups, name=called, text=text, code=shlex.quote(code))


def _exploded(text: str) -> list[str]:
    from ipaddress import IPv6Address

    return IPv6Address(text).exploded.split(":")


async def erlang_calls(guests: Guests, count: int) -> list[float]:
    """Return the times of calls from Erlang to Erlang, in microseconds."""
    await guests.start("n2", guests.erl("n2", "erlang", 'io:format("ready~n").'), "ready")
    try:
        code = ERL_CALLS.format(peer=f"erlang@{guests.address['n2']}", count=count)
        output = await guests.run("n1", guests.erl("n1", "caller", code), 600)
    finally:
        await guests.stop("n2")
    found = re.search(r"\[([0-9,]+)\]", output)
    if found is None:
        raise LabError(f"erl on n1 printed no times: {output[-2000:]}")
    return [float(value) for value in found[1].split(",")]


async def python_calls(guests: Guests, count: int) -> list[float]:
    """Return the times of calls from Python to Python, in microseconds."""
    n1, n2 = guests.address["n1"], guests.address["n2"]
    await guests.start("n2", f"python3 -c {shlex.quote(SERVER)} {n2}", "ready")
    try:
        command = f"python3 -c {shlex.quote(CLIENT)} {n1} {n2} {count}"
        return [float(value) for value in json.loads(await guests.run("n1", command, 600))]
    finally:
        await guests.stop("n2")


async def pings(guests: Guests, count: int) -> list[float]:
    """Return the times of pings between the two, in microseconds."""
    command = f"ping -6 -n -q -c 3 {guests.address['n2']} >/dev/null; "
    command += f"ping -6 -n -c {count} -i 0.1 {guests.address['n2']}"
    return [1000 * value for value in ping_times(await guests.run("n1", command, 600))]


async def memory(guests: Guests, name: str) -> dict[str, float]:
    """Return the memory of a node's whole daemon in MiB, by the kernel's words for it."""
    find = "for p in /proc/[0-9]*; do grep -q bin/thicketd $p/cmdline && cat $p/status; done"
    text = await guests.run(name, f"{find}; true")
    wanted = ("VmHWM", "VmRSS", "RssAnon", "RssFile")
    return {
        key: round(int(value) / 1024, 1)
        for key, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
        if key in wanted
    }


async def noticed(guests: Guests) -> dict[str, float | None]:
    """Cut the link; return after how many host seconds each kind on n1 has missed its peer."""
    peer = f"erlang@{guests.address['n2']}"
    await guests.start("n2", guests.erl("n2", "erlang", 'io:format("ready~n").'), "ready")
    watch = ERL_WATCH.format(peer=peer, work=WORK)
    await guests.run("n1", f"mkdir -p {WORK}; rm -f {WORK}/*")
    command = guests.erl("n1", "caller", watch)
    await guests.run("n1", f"(setsid {command} >{WORK}/log 2>&1 & echo $! >{WORK}/pid)")
    deadline = time.monotonic() + 60
    while (await guests.lab.run("n1", f"test -e {WORK}/watching", 30))[0]:
        if time.monotonic() > deadline:
            raise LabError(f"erl on n1: {await guests.run('n1', f'cat {WORK}/log')}")
        await asyncio.sleep(0.5)
    await asyncio.sleep(TICK_TIME)  # as if nothing had been said for a while
    found: dict[str, float | None] = {"Erlang": None, "Thicket": None}
    await guests.lab.link("n1", "n2", cut=True)
    begin = time.monotonic()
    while None in found.values() and time.monotonic() - begin < PATIENCE:
        if found["Thicket"] is None and "n2" not in guests.lab.state.cluster("n1"):
            found["Thicket"] = time.monotonic() - begin
        if (
            found["Erlang"] is None
            and not (await guests.lab.run("n1", f"test -e {WORK}/down", 30))[0]
        ):
            found["Erlang"] = time.monotonic() - begin
        guests.lab.pace.lively()
        await asyncio.sleep(0.25)
    await guests.stop("n1")
    await guests.stop("n2")
    await guests.lab.link("n1", "n2", restore=True)
    return found


def row(what: str, times: Sequence[float]) -> list[str]:
    """Return a line of the table: milliseconds."""
    cuts = statistics.quantiles(times, n=100)
    return [what, str(len(times)), *(f"{cuts[at] / 1000:.2f}" for at in (9, 49, 89, 98))]


async def measure(made: real_parts.RealParts, count: int) -> None:
    """Run the lab, and print what is found."""
    ports = {"firewall": {"allow": ["tcp/9200", "tcp/9300"]}}
    spec = LabSpec(topology.make("line", 2), name="bench-cluster", config=ports)
    async with Lab(spec, made) as lab:
        await lab.formed(300)
        await asyncio.sleep(20)
        guests = Guests(lab)
        print(f"two nodes, {made.description}; {made.accel}\n")
        for name in lab.nodes:
            print(f"{name}: thicketd idle, MiB: {await memory(guests, name)}", flush=True)
        rows, ratios = [], []
        for _ in range(ROUNDS):
            rows.append(row("ping", await pings(guests, 100)))
            erlang = await erlang_calls(guests, count)
            python = await python_calls(guests, count)
            rows += [row("Erlang to Erlang, erpc", erlang), row("Python to Python", python)]
            ratios.append(statistics.median(python) / statistics.median(erlang))
        head = ("ms", "calls", "p10", "p50", "p90", "p99")
        print("\n" + table(head, rows))
        words = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"\nmedian of ours over Erlang's, in each round: {words}", flush=True)
        lost = await noticed(guests)
        texts = [f"{kind} {'not' if s is None else f'{s:.1f} s'}" for kind, s in lost.items()]
        print(f"the link is cut; missed after: {', '.join(texts)} (tick time {TICK_TIME} s)")
        for name in lab.nodes:
            print(f"{name}: thicketd afterwards, MiB: {await memory(guests, name)}")


async def run(count: int) -> int:
    """Make the image and measure."""

    def progress(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    await measure(real_parts.load("lab", cache_root(), 1, progress, EXTRAS), count)
    return 0


def main() -> int:
    """Run the command; return its exit status."""
    try:
        return run_supervised(run(CALLS))
    except LabError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
