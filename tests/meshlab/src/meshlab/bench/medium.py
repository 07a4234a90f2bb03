# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.bench.medium``: how many frames a second the medium carries, at what cost.

The medium runs as the process it always is. The nodes are synthetic kernels in this process: each
speaks the relay's protocol over a unix socket, sends frames at the rate asked for, answers every
injection, and waits for the report on every frame as a kernel does.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshlab.medium.config import (
    CONFIG_NAME,
    SOCKET_NAME,
    LinkConfig,
    MediumConfig,
    NodeConfig,
    RadioConfig,
    write_json,
)
from meshlab.medium.fake import FakeKernel
from meshlab.wire import hwsim
from meshlab.wire.hwsim import Rate, TxFlag, TxFrame
from meshlab.wire.rpc import Client, RpcError

BROADCAST = b"\xff" * 6


@dataclass(frozen=True, slots=True)
class Load:
    """What the nodes send."""

    name: str
    nodes: int
    columns: int
    """The nodes stand in a grid this wide and hear the four beside them. 0: all hear all."""
    rate: float
    """Frames a second, all nodes together."""
    group: bool
    size: int
    seconds: float = 5.0


def mac(index: int) -> bytes:
    """Return the address of node ``index``."""
    return b"\x02\x74\x68\x00" + index.to_bytes(2, "big")


def grid(load: Load) -> MediumConfig:
    """Return the configuration for a load."""
    nodes = tuple(
        NodeConfig(f"n{i + 1}", f"n{i + 1}", (RadioConfig(mac(i + 1)),)) for i in range(load.nodes)
    )
    links = []
    if not load.columns:
        for a, b in itertools.combinations(range(1, load.nodes + 1), 2):
            links.append(LinkConfig(f"n{a}", f"n{b}", 30.0))
        return MediumConfig(nodes=nodes, links=tuple(links), run=str(time.time_ns()))
    for i in range(load.nodes):
        if (i + 1) % load.columns and i + 1 < load.nodes:
            links.append(LinkConfig(f"n{i + 1}", f"n{i + 2}", 30.0))
        if i + load.columns < load.nodes:
            links.append(LinkConfig(f"n{i + 1}", f"n{i + load.columns + 1}", 30.0))
    return MediumConfig(nodes=nodes, links=tuple(links), run=str(time.time_ns()))


def data_frame(sender: bytes, receiver: bytes, number: int, size: int) -> bytes:
    """Return a data frame (IBSS format) with ``number`` as its sequence number."""
    control = (number & 0xFFF) << 4
    head = b"\x08\0\0\0" + receiver + sender + sender + control.to_bytes(2, "little")
    return head + bytes(max(0, size - len(head)))


async def _run(load: Load, lab: Path) -> dict[str, Any]:
    config = grid(load)
    write_json(lab / CONFIG_NAME, config.to_json())
    kernels = []
    for node in config.nodes:
        directory = lab / node.directory
        directory.mkdir(exist_ok=True)
        kernel = FakeKernel(directory / "relay.sock")
        await kernel.start()
        kernels.append(kernel)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "meshlab.medium", "--lab", str(lab), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(20):
            for kernel in kernels:
                await kernel.wait_radios(1)
        client = await _connect(lab / SOCKET_NAME)
        async with client:
            await client.call("reset_stats")
            figures = await _measure(load, config, kernels, client)
            return figures | {"memory_mib": _memory(process.pid)}
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        for kernel in kernels:
            await kernel.stop()


def _memory(pid: int) -> float:
    """Return the largest memory that a process had, in MiB (``VmHWM`` of proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmHWM:")[2].split()[0]) / 1024, 1)


async def _connect(path: Path) -> Client:
    deadline = time.monotonic() + 10
    while True:
        try:
            return await Client.connect(path)
        except RpcError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)


async def _measure(
    load: Load, config: MediumConfig, kernels: list[FakeKernel], client: Client
) -> dict[str, Any]:
    beside: dict[str, list[int]] = {node.name: [] for node in config.nodes}
    for link in config.links:
        beside[link.a].append(int(link.b[1:]))
        beside[link.b].append(int(link.a[1:]))
    tx_info, tx_info_flags = hwsim.encode_series([Rate(11, 2, 0), Rate(8, 2, 0)])
    before = await client.call("status")
    reported = sum(kernel.reports for kernel in kernels)
    loop = asyncio.get_running_loop()
    start = loop.time()
    sent = 0
    skipped = 0
    while (elapsed := loop.time() - start) < load.seconds:
        due = int(elapsed * load.rate)
        while sent < due:
            i = sent % load.nodes
            kernel = kernels[i]
            sent += 1
            if kernel.unanswered >= hwsim.MAX_PENDING // 2:
                skipped += 1  # a kernel would have stopped its queues
                continue
            near = beside[f"n{i + 1}"]
            receiver = BROADCAST if load.group else mac(near[sent // load.nodes % len(near)])
            flags = TxFlag.REQ_TX_STATUS | (TxFlag.NO_ACK if load.group else 0)
            kernel.transmit(
                TxFrame(
                    mac(i + 1),
                    data_frame(mac(i + 1), receiver, sent, load.size),
                    int(flags),
                    2412,
                    tx_info,
                    tx_info_flags,
                    kernel.next_cookie(),
                )
            )
        for kernel in kernels:
            kernel.flush()
        await asyncio.sleep(0.001)
    took = loop.time() - start
    after = await client.call("status")
    frames = after["frames"] - before["frames"]
    cpu = after["cpu_seconds"] - before["cpu_seconds"]
    return {
        "load": load.name,
        "nodes": load.nodes,
        "offered_per_second": round(load.rate),
        "frames_per_second": round(frames / took),
        "reports_per_second": round((sum(k.reports for k in kernels) - reported) / took),
        "deliveries_per_second": round((after["deliveries"] - before["deliveries"]) / took),
        "not_sent": skipped,
        "cpu_percent": round(100 * cpu / took, 1),
        "cpu_us_per_frame": round(1e6 * cpu / max(frames, 1), 1),
        "lag_ms": after["lag_percentiles_ms"],
        "queue_delay_ms": after["queue_delay_ms"],
        "loss_percent": after["loss_percent"],
        "valid": after["valid"],
    }


LOADS = (
    Load("beacons of 20 nodes", 20, 5, 20.0, True, 120),
    Load("unicast 500/s, 8 nodes", 8, 4, 500.0, False, 200),
    Load("unicast 2000/s, 20 nodes", 20, 5, 2000.0, False, 200),
    Load("broadcast 2000/s, 20 nodes", 20, 5, 2000.0, True, 200),
    Load("as much as it takes, 20 nodes", 20, 5, 20000.0, False, 200),
    Load("broadcast 500/s, 50 in range", 50, 0, 500.0, True, 200),
    Load("all broadcast it takes, 50 nodes", 50, 10, 20000.0, True, 200),
)


async def bench(seconds: float) -> list[dict[str, Any]]:
    """Run every load for ``seconds`` and return the figures."""
    results = []
    for load in LOADS:
        with tempfile.TemporaryDirectory(prefix="thicket-bench-") as directory:
            timed = Load(
                load.name, load.nodes, load.columns, load.rate, load.group, load.size, seconds
            )
            results.append(await _run(timed, Path(directory)))
    return results


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m meshlab.bench.medium",
        description="Measures the medium with synthetic nodes over unix sockets.",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    results = asyncio.run(bench(arguments.seconds))
    if arguments.json:
        print(json.dumps({"cores": os.cpu_count(), "loads": results}, indent=1))
        return 0
    print(
        f"{'load':33}{'frames/s':>10}{'delivered/s':>13}{'CPU %':>8}{'us/frame':>10}"
        f"{'lag p99 ms':>12}{'lag max':>9}{'MiB':>7}  valid"
    )
    for result in results:
        print(
            f"{result['load']:33}{result['frames_per_second']:>10}"
            f"{result['deliveries_per_second']:>13}{result['cpu_percent']:>8}"
            f"{result['cpu_us_per_frame']:>10}{result['lag_ms']['p99']:>12}"
            f"{result['lag_ms']['max']:>9}{result['memory_mib']:>7}  {result['valid']}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
