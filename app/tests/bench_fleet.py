# SPDX-License-Identifier: Apache-2.0
"""``make bench-fleet``: what ``thicket fleet`` costs, in bytes of TCP, and a node that nobody asks.

Whole daemons in one process and in virtual time, as in :mod:`bench_peer`, in a grid whose nodes
have labels, places and notes. Bytes are those that arrive from connections, inside TCP: of a minute
in which nobody looks, and of one in which one node is looked at all the time. Nothing passes or
fails.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "tests/helpers"))

from bench_peer import AIR, APART, SETTLE, Air, FleetOfDaemons
from bench_peer import Ether as BeaconsInMemory
from private_network import Network, enter
from virtual_time import VirtualTimeLoop, one_clock

from authority.labels import Said
from thicket.cli.fleet import REDRAW
from thicket.daemon.cluster_part import ClusterSession
from thicket.daemon.daemon import Daemon
from thicket.discovery import service
from thicket.distribution.secure import TlsTransport
from thicket.metrics import machine
from thicket.metrics.gather import pack as pack_numbers
from thicket.metrics.numbers import numbers
from thicket.metrics.summary import pack, summary

MINUTE = 60.0

#: What a running node has imported.
NODE = (
    "thicket.daemon.daemon", "thicket.daemon.live", "thicket.distribution.node",
    "thicket.cluster.passphrase", "thicket.trust.exchange", "thicket.trust.tls",
    "thicket.trust.clock", "thicket.radio.mesh", "thicket.discovery.service",
)  # fmt: skip
#: What it imports besides.
BESIDES = {
    "a node that nobody asks": ("thicket.fleet.label_store",),
    "with labels": ("thicket.trust.labels",),
    "that another one has asked": ("thicket.metrics.machine", "thicket.metrics.summary"),
    "that a person has asked": ("thicket.daemon.fleet_part",),
}


class Minutes(NamedTuple):
    """Bytes and processor time of all nodes in a minute.

    :ivar looked: of that in which one was looked at, and ``idle`` of one in which none was.
    :ivar labels: bytes until all had the labels.
    :ivar connections: that were made, by both ends, while one was looked at.
    :ivar hops: from the node that asks to the others, on average.
    """

    idle: int
    looked: int
    seconds_idle: float
    seconds_looked: float
    labels: int
    connections: int
    hops: float


class Looked:
    """Counts what arrives from connections."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bytes: Counter[str] = Counter()
        before = TlsTransport.buffer_updated

        made = TlsTransport.connection_made

        def begun(transport: TlsTransport, below: asyncio.BaseTransport) -> None:
            self.bytes["connections"] += 1
            made(transport, below)

        def counting(transport: TlsTransport, nbytes: int) -> None:
            self.bytes["all"] += nbytes
            before(transport, nbytes)

        patch.setattr(service, "BeaconSocket", BeaconsInMemory)
        patch.setattr(TlsTransport, "buffer_updated", counting)
        patch.setattr(TlsTransport, "connection_made", begun)

    def take(self) -> int:
        """Return the bytes since the last time."""
        return self.bytes.pop("all", 0)


def session(daemon: Daemon) -> ClusterSession:
    assert daemon.live is not None
    assert daemon.live.cluster.session is not None
    return daemon.live.cluster.session


def labelled(daemon: Daemon) -> bool:
    store = session(daemon).labels
    return store is not None and store.current() is not None


def labels(fleet: FleetOfDaemons) -> bytes:
    """Say something of usual length about all devices of a fleet."""
    said = [
        (name, Said(f"mast {number}", f"hall {number}, roof", "antenna to the north"))
        for number, name in enumerate(fleet.authority.list()["devices"])
    ]
    fleet.authority.labels.change(said)
    packed = fleet.authority.labels.merge(())[1]
    assert packed is not None
    print(f"labels of {len(said)} devices: {len(packed)} bytes")
    return packed


async def measure(fleet: FleetOfDaemons, count: int, looked: Looked) -> Minutes:
    with tempfile.TemporaryDirectory(dir=fleet.folder) as folder:
        daemons = [fleet.daemon(at, Path(folder)) for at in range(count)]
        AIR[:] = [Air(count, random.Random(1))]
        loop = asyncio.get_running_loop()
        tasks = []
        for daemon in daemons:
            tasks.append(loop.create_task(daemon._run(loop)))
            await asyncio.sleep(APART)
        await asyncio.sleep(SETTLE)
        live = daemons[0].live
        assert live is not None
        asks = session(daemons[0]).fleet(live).view
        looked.take()
        packed = labels(fleet)
        began = loop.time()
        store = session(daemons[0]).labels
        assert store is not None
        store.take(packed, "the bench")
        store.tell_all()
        while not all(map(labelled, daemons)):
            await asyncio.sleep(0.1)
            assert loop.time() - began < MINUTE, "the labels have not reached all"
        of_labels = looked.take()
        await asyncio.sleep(MINUTE)
        looked.take()
        begin = time.process_time()
        await asyncio.sleep(MINUTE)
        idle, seconds_idle = looked.take(), time.process_time() - begin
        looked.bytes.clear()
        begin, end = time.process_time(), loop.time() + MINUTE
        document = await asks.document()
        while loop.time() < end:
            await asyncio.sleep(REDRAW)
            document = await asks.document(wait=False)
        found, seconds = looked.take(), time.process_time() - begin
        assert document["counts"]["untold"] == document["counts"]["silent"] == 0, document
        hops = [row["way"]["hops"] for row in document["nodes"] if row["way"]]
        for daemon in daemons:
            daemon.stop()
        await asyncio.gather(*tasks)
        far = sum(hops) / len(hops)
        made = looked.bytes["connections"]
        return Minutes(idle, found, seconds_idle, seconds, of_labels, made, far)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 20])
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    network = Network(enter())
    if not network.private:
        print("bench-fleet: this machine permits no network of its own to this user")
        return 1
    print(
        "| nodes | idle, bytes a minute | one looks | more, for each other node | hops | labels |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for count in options.sizes:
            fleet = FleetOfDaemons(Path(folder, str(count)), network)
            random.seed(1)
            with (
                one_clock(),
                pytest.MonkeyPatch.context() as patch,
                asyncio.Runner(loop_factory=VirtualTimeLoop) as runner,
            ):
                found = runner.run(measure(fleet, count, Looked(patch)))
            more = (found.looked - found.idle) / (count - 1)
            print(
                f"| {count} | {found.idle} | {found.looked} | {more:.0f} | {found.hops:.1f} "
                f"| {found.labels} |",
                flush=True,
            )
            print(
                f"  processor time of all nodes: {found.seconds_idle:.2f} s, "
                f"{found.seconds_looked:.2f} s while one looks; {found.connections} ends of "
                "connections made meanwhile"
            )
    sizes()
    memory()
    return 0


def sizes() -> None:
    """Print the bytes of an answer."""
    from status_documents import MAC, document

    for count in (2, 8):
        (peer, *_) = document()["peers"]
        peers = [{**peer, "mac": MAC.format(n), "signal_dbm": -50 - n} for n in range(count)]
        made, facts = document(peers=peers), machine.read()
        print(
            f"an answer with {count} peers: {len(pack(summary(made, facts)))} bytes; all numbers "
            f"{len(pack_numbers(numbers(made, facts)))}"
        )


def memory() -> None:
    """Print what imports take."""
    code = (
        "import sys, tracemalloc\n"
        f"sys.path[:0] = {sys.path!r}\n"
        f"for name in {NODE!r}: __import__(name)\n"
        f"for what, names in {BESIDES!r}.items():\n"
        "    tracemalloc.start()\n"
        "    for name in names: __import__(name)\n"
        "    print(f'modules, {what}: {tracemalloc.get_traced_memory()[0] / 1024:.0f} KiB')\n"
        "    tracemalloc.stop()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    sys.exit(main())
