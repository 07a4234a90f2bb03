# SPDX-License-Identifier: Apache-2.0
"""``make bench-cluster``: calls and messages between nodes on loopback, beside real Erlang.

Prints a table. Nothing passes or fails: a figure is one run's, on the machine as busy as it is.
Each node is a process of its own. RTT is ``erpc:call`` of a function that returns at once, msgs/s
are messages of 20 bytes to one registered process, MB/s binaries of 1 MiB to it, both until the
receiver says that all have come. Memory is resident, of the node that is called, idle and after the
load. Then, where it is permitted, the two nodes are in networks of their own, joined by a link that
takes ``--link`` milliseconds each way, as a hop of a mesh may: what is left of the difference. The
last table has both nodes in one process and its processor time, which other programs of a busy
machine do not change: for a connection (with TLS: both handshakes, and both sides' checks of the
other's certificates in a fleet), a call, a message of 20 bytes, and a megabyte.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))

from delayed_link import DelayedLink
from erlang import Erl, Release, a_real_epmd, releases
from private_network import Network, enter
from test_tls import Authority

from thicket.distribution import Node, Request
from thicket.distribution.file_tls import FileTls
from thicket.distribution.secure import Tls

MESSAGE = b"x" * 20
MIB = bytes(1 << 20)

SINK = (
    "F = fun F(N) -> receive {'$gen_call', From, _} -> gen_server:reply(From, N), F(0); "
    "_ -> F(N + 1) end end, register(sink, spawn(fun() -> F(0) end)), ok"
)


class Figures(NamedTuple):
    """What was measured between two nodes."""

    p50: float
    p99: float
    calls: float
    messages: float
    megabytes: float


def resident(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def serve(node: Node) -> None:
    """Be the node that others call."""

    @node.export("bench.echo")
    def echo(value: Any) -> Any:
        return value

    count = 0
    async for message in node.mailbox("sink", limit=100_000):
        if isinstance(message, Request):
            message.reply(count)
            count = 0
        else:
            count += 1


def make(arguments: argparse.Namespace, name: str, address: str) -> Node:
    tls: Tls | None = None
    if arguments.tls:
        folder = Path(arguments.tls)
        tls = FileTls(folder / f"{name}.pem", folder / f"{name}.key", folder / "ca.pem")
    return Node(
        name, "secret", IPv6Address(address), 0, epmd_port=arguments.epmd, tls=tls, tick_time=60
    )


async def run_node(arguments: argparse.Namespace) -> None:
    """Be a process with a node: serve, and measure when it is told to."""
    node = make(arguments, *arguments.node)
    await node.start()
    while not node.statistics()["epmd"]["registered_at"]:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    serving = asyncio.create_task(serve(node))
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        peer, calls, messages, large = line.split()
        print(*await measure(node, peer, int(calls), int(messages), int(large)), flush=True)
    serving.cancel()
    await node.stop()


async def measure(node: Node, peer: str, calls: int, messages: int, large: int) -> Figures:
    """Call and send from Python."""
    function = "bench.echo" if peer.startswith("py") else "erlang.abs"
    for _ in range(100):
        await node.call(peer, function, 1)
    times = []
    begin = time.perf_counter()
    for _ in range(calls):
        start = time.perf_counter()
        await node.call(peer, function, 1)
        times.append(time.perf_counter() - start)
    rate = calls / (time.perf_counter() - begin)
    rates = []
    for payload, count in ((MESSAGE, messages), (MIB, large)):
        begin = time.perf_counter()
        for _ in range(count):
            await node.send(("sink", peer), payload)
        # The question may pass the last messages on the way.
        missing = count
        while missing := missing - await node.request(("sink", peer), 1, 120):
            pass
        rates.append(count / (time.perf_counter() - begin))
    cuts = statistics.quantiles(times, n=100)
    return Figures(cuts[49] * 1e6, cuts[98] * 1e6, rate, rates[0], rates[1] * 1.048576)


async def measure_erlang(erl: Erl, peer: str, calls: int, messages: int, large: int) -> Figures:
    """The same from Erlang."""
    function = "bench, echo" if peer.startswith("py") else "erlang, abs"
    one = f"element(1, timer:tc(fun() -> erpc:call('{peer}', {function}, [1]) end))"
    # In a compiled fun of timer:tc, but looped by the evaluator, whose own time is not counted.
    times = await erl.eval(f"[{one} || _ <- lists:seq(1, {calls})]", 600)
    send = (
        f"Big = binary:copy(<<0>>, %d), {{T, _}} = timer:tc(fun() -> lists:foreach(fun(_) -> "
        f"erlang:send({{sink, '{peer}'}}, Big) end, lists:seq(1, %d)), "
        f"gen_server:call({{sink, '{peer}'}}, 1, 120000) end), T"
    )
    rates = []
    for size, count in ((len(MESSAGE), messages), (len(MIB), large)):
        rates.append(count / (await erl.eval(send % (size, count), 600) / 1e6))
    cuts = statistics.quantiles([float(micros) for micros in times], n=100)
    return Figures(cuts[49], cuts[98], 1e6 / statistics.fmean(times), rates[0], rates[1] * 1.048576)


@asynccontextmanager
async def python(
    network: Network, name: str, address: IPv6Address, tls: str | None
) -> AsyncIterator[asyncio.subprocess.Process]:
    words = ["--node", name, str(address), "--epmd", str(network.epmd_port)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, *words, *(("--tls", tls) if tls else ()),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def compare(network: Network, arguments: argparse.Namespace, release: Release) -> None:
    """Print the table."""
    counts = (arguments.calls, arguments.messages, arguments.large)
    print(f"OTP {release.number}, Python {sys.version.split()[0]}, {os.cpu_count()} cores,")
    print(f"load before {os.getloadavg()[0]:.1f}; {counts[0]} calls, {counts[1]} messages\n")
    print("| | RTT p50 µs | p99 µs | calls/s | msgs/s | MB/s | MiB idle | MiB after |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        pairs = Pairs(network, Path(folder), release)
        for tls in (False, True) if arguments.with_tls else (False,):
            async with a_real_epmd(network):
                for pair in (("e1", "e2"), ("e1", "py2"), ("py1", "e2"), ("py1", "py2")):
                    idle, f, after = await pairs.between(*pair, tls=tls, counts=counts)
                    print(
                        f"| {kinds(*pair, tls=tls)} | {f.p50:.0f} | {f.p99:.0f} | {f.calls:.0f} "
                        f"| {f.messages:.0f} | {f.megabytes:.0f} | {idle:.1f} | {after:.1f} |",
                        flush=True,
                    )


async def compare_over_a_link(
    arguments: argparse.Namespace, release: Release, link: DelayedLink
) -> None:
    """Print the table of calls over a link with a delay."""
    print(f"\nCalls over a link of {arguments.link:g} ms each way, OTP {release.number}:\n")
    print("| | RTT p50 µs | p99 µs |\n|---|---|---|")
    counts = (max(arguments.calls // 3, 100), 1, 1)
    network = Network(private=True)  # the addresses of each end
    with tempfile.TemporaryDirectory() as folder:
        pairs = Pairs(network, Path(folder), release, link.within)
        async with AsyncExitStack() as stack:
            for number in range(2):
                with link.within(number):
                    await stack.enter_async_context(a_real_epmd(network))
            for tls in (False, True) if arguments.with_tls else (False,):
                for pair in (("e1", "e2"), ("py1", "py2")):
                    _, f, _ = await pairs.between(*pair, tls=tls, counts=counts)
                    print(f"| {kinds(*pair, tls=tls)} | {f.p50:.0f} | {f.p99:.0f} |", flush=True)


async def processor(network: Network, counts: tuple[int, int, int], links: int) -> None:
    """Print the processor time that is needed, both ends together, without TLS and with it."""
    # Not in the nodes whose memory is told of.
    from fleet_for_tests import CLOCK, one_fleet

    from thicket.trust.credentials import make_credentials
    from thicket.trust.tls import FleetTls
    from thicket.trust.verify import Rules

    print("\nProcessor time in Python, both ends together:\n")
    print("| | connect ms | call µs | message µs | MB ms |\n|---|---|---|---|---|")
    issued = one_fleet()
    mine = [await make_credentials(issued.device(n)[0], issued.fleet, CLOCK) for n in (1, 2)]
    for inside in ("plain", "TLS"):
        nodes: list[Node] = []
        for credentials in mine:
            address = network.address(len(nodes) + 1)
            tls = None
            if inside == "TLS" and network.private:
                address = credentials.peer.address
                network.add(address)
                tls = FleetTls(issued.fleet, credentials, lambda: Rules(CLOCK))
            name = f"py{len(nodes)}"
            node = Node(name, "secret", address, 0, epmd_port=network.epmd_port, tls=tls)
            await node.start()
            nodes.append(node)
        figures = await processor_times(nodes[0], nodes[1], counts, links)
        print(
            f"| {inside} | {figures[0]:.2f} | {figures[1]:.0f} | {figures[2]:.1f} "
            f"| {figures[3]:.2f} |",
            flush=True,
        )
        for node in nodes:
            await node.stop()


async def processor_times(
    one: Node, two: Node, counts: tuple[int, int, int], links: int
) -> list[float]:
    calls, messages, large = counts
    while two.host not in two.statistics()["epmd"]["served"]:  # noqa: ASYNC110  # no event tells
        await asyncio.sleep(0.01)
    serving = asyncio.create_task(serve(two))

    async def connect(count: int) -> None:
        for _ in range(count):
            await one.connect(two.name)
            one.disconnect(two.name)
            while two.nodes() or one.nodes():  # noqa: ASYNC110  # no event tells
                await asyncio.sleep(0)

    async def call(count: int) -> None:
        for _ in range(count):
            await one.call(two.name, "bench.echo", 1)

    async def send(count: int, payload: bytes) -> None:
        for _ in range(count):
            await one.send(("sink", two.name), payload)
        while count := count - await one.request(("sink", two.name), 1, 120):
            pass

    figures = []
    for work, divisor in (
        (connect(links), links / 1e3),
        (call(calls), calls / 1e6),
        (send(messages, MESSAGE), messages / 1e6),
        (send(large, MIB), large * 1.048576 / 1e3),
    ):
        begin = time.process_time()
        await work
        figures.append((time.process_time() - begin) / divisor)
    serving.cancel()
    return figures


class Pairs:
    """Measures between nodes of either kind, called py1, py2, e1 and e2.

    :param within: what to be in while the node that calls (0) or is called (1) is started.
    """

    def __init__(
        self,
        network: Network,
        folder: Path,
        release: Release,
        within: Callable[[int], AbstractContextManager[None]] = lambda _number: nullcontext(),
    ) -> None:
        self.network = network
        self.folder = folder
        self.release = release
        self.within = within
        self.numbers = {"e1": 0, "py1": 0, "e2": 1, "py2": 1}
        self.addresses: dict[str, IPv6Address] = {}
        for host, (name, number) in enumerate(self.numbers.items(), 1):
            with within(number):
                self.addresses[name] = network.address(host)
        authority = Authority(folder)
        self.options = {
            name: authority.erlang(name, str(address)) for name, address in self.addresses.items()
        }

    async def between(
        self, caller: str, called: str, *, tls: bool, counts: tuple[int, int, int]
    ) -> tuple[float, Figures, float]:
        """Return the memory of the node that is called, before and after, around the figures."""
        async with self._node(called, tls) as server:
            if isinstance(server, Erl):
                await server.eval(SINK)
            process = server.process if isinstance(server, Erl) else server
            idle = resident(process.pid)
            peer = f"{called}@{self.addresses[called]}"
            async with self._node(caller, tls) as client:
                if isinstance(client, Erl):
                    assert await client.eval(f"net_adm:ping('{peer}')") == "pong"
                    figures = await measure_erlang(client, peer, *counts)
                else:
                    assert client.stdin is not None
                    assert client.stdout is not None
                    client.stdin.write(f"{peer} {' '.join(map(str, counts))}\n".encode())
                    line = await client.stdout.readline()
                    figures = Figures(*map(float, line.split()))
            return idle, figures, resident(process.pid)

    @asynccontextmanager
    async def _node(self, name: str, tls: bool) -> AsyncIterator[Erl | asyncio.subprocess.Process]:
        address = self.addresses[name]
        async with AsyncExitStack() as stack:
            with self.within(self.numbers[name]):
                if name.startswith("py"):
                    folder = str(self.folder) if tls else None
                    node: Any = await stack.enter_async_context(
                        python(self.network, name, address, folder)
                    )
                else:
                    more: dict[str, Any] = {}
                    if tls:
                        more = {"proto": "inet6_tls", "options": self.options[name]}
                    node = await stack.enter_async_context(
                        await Erl.start(
                            self.network, name, address,
                            tick_time=60, release=self.release, **more,
                        )
                    )  # fmt: skip
            yield node


def kinds(caller: str, called: str, *, tls: bool) -> str:
    """Return the name of a line."""
    of = {"e": "Erlang", "p": "Python"}
    return f"{of[caller[0]]} to {of[called[0]]}{' TLS' if tls else ''}"


def link_of(arguments: argparse.Namespace, network: Network) -> DelayedLink | None:
    """Make the link with a delay, where that is permitted; otherwise say that it is not."""
    if not arguments.link or not network.private:
        return None
    try:
        return DelayedLink(arguments.link / 1000)
    except OSError as error:
        print(f"no calls over a link with a delay: {error}\n")
        return None


def main() -> None:
    """Run the comparison, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--large", type=int, default=100)
    parser.add_argument("--links", type=int, default=50)
    parser.add_argument("--link", type=float, default=1.0, help="ms each way; 0: without")
    parser.add_argument("--with-tls", action="store_true")
    parser.add_argument("--processor", action="store_true", help="processor times only")
    parser.add_argument("--node", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--epmd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tls", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.node:
        asyncio.run(run_node(arguments))
        return
    network = Network(enter())
    link = link_of(arguments, network)
    for release in releases() if not arguments.processor else ():
        asyncio.run(compare(network, arguments, release))
        if link is not None:
            asyncio.run(compare_over_a_link(arguments, release, link))
    counts = arguments.calls, arguments.messages, arguments.large
    asyncio.run(processor(network, counts, arguments.links))


if __name__ == "__main__":
    main()
