# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.bench.distance``: what a medium makes of a node that is far away.

Two made-up nodes in range of each other, one beside the medium and one behind a connection that
takes its time. The near one sends as much as its kernel would: it stops with so many frames of
which it has heard nothing. Each frame's report, its acknowledgement, waits for the far kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meshlab.bench.medium import data_frame, mac
from meshlab.medium.config import SOCKET_NAME, LinkConfig, MediumConfig, NodeConfig, RadioConfig
from meshlab.medium.fake import FakeKernel
from meshlab.medium.server import Medium
from meshlab.wire import hwsim
from meshlab.wire.hwsim import Rate, TxFlag, TxFrame
from meshlab.wire.rpc import Client

DELAYS_MS = (0, 5, 10, 25, 50, 100, 250, 500, 1000, 2000)
QUEUE = 100
"""Frames of which a kernel of hwsim has heard nothing before it stops its queues (WARN_QUEUE)."""
READY_PATIENCE = 60.0


class Row(NamedTuple):
    """What came of one delay."""

    delay_ms: float
    """One way."""
    burst: int
    """How many frames were on their way."""
    frames: float
    """Reports a second."""
    report_ms: float
    """From a frame to its report, in the mean."""
    lost_percent: float
    """Frames that were reported as not acknowledged."""
    answer_p99_ms: float
    reasons: list[str]


class Way:
    """A socket that leads to another one, each direction late by so many seconds."""

    def __init__(self, path: Path, target: Path, seconds: float) -> None:
        self._path = path
        self._target = target
        self._seconds = seconds
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._visited, str(self._path))

    async def stop(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _visited(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(self._target))
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._carry(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while data := await source.read(65536):
            loop.call_later(self._seconds, _write, target, data)


def _write(target: asyncio.StreamWriter, data: bytes) -> None:
    if not target.is_closing():
        target.write(data)


async def measure(delay: float, burst: int, seconds: float, directory: Path) -> Row:
    """Measure one delay.

    :param delay: Seconds, one way.
    :param burst: Most frames that the sender has on their way.
    :param seconds: How long, at least until the first report.
    :param directory: An empty one.
    """
    nodes = tuple(NodeConfig(f"n{i}", f"n{i}", (RadioConfig(mac(i)),)) for i in (1, 2))
    config = MediumConfig(nodes=nodes, links=(LinkConfig("n1", "n2", 40.0),), run="r")
    for node in nodes:
        (directory / node.directory).mkdir()
    near = FakeKernel(directory / "n1" / "relay.sock")
    far = FakeKernel(directory / "n2" / "far.sock")
    way = Way(directory / "n2" / "relay.sock", far.path, delay)
    for part in (near, far, way):
        await part.start()
    near.keep = True
    medium = Medium(directory, config, None)
    await medium.start()
    try:
        async with await Client.connect(directory / SOCKET_NAME) as client:
            await _ready(client)
            await client.call("reset_stats")
            return await _send(near, client, delay, burst, seconds)
    finally:
        await medium.stop()
        for part in (near, far, way):
            await part.stop()


async def _ready(client: Client) -> None:
    """Wait until both nodes have their radios."""
    pause = 0.05
    for _ in range(round(READY_PATIENCE / pause)):
        if all(node["ready"] for node in (await _status(client))["nodes"].values()):
            return
        await asyncio.sleep(pause)
    raise TimeoutError("the nodes get no radios")


async def _status(client: Client) -> dict[str, Any]:
    return dict(await client.call("status"))


async def _send(near: FakeKernel, client: Client, delay: float, burst: int, seconds: float) -> Row:
    tx_info, tx_info_flags = hwsim.encode_series([Rate(11, 2, 0)])
    before, begun = near.reports, time.monotonic()
    area, last, number = 0.0, begun, 0
    while (now := time.monotonic()) - begun < seconds or near.reports == before:
        area, last = area + near.unanswered * (now - last), now
        while near.unanswered < burst:
            number += 1
            frame = data_frame(mac(1), mac(2), number, 1000)
            near.transmit(
                TxFrame(
                    mac(1), frame, int(TxFlag.REQ_TX_STATUS), 2412, tx_info, tx_info_flags,
                    near.next_cookie(),
                )
            )  # fmt: skip
        near.flush()
        await asyncio.sleep(0.0005)
    took, reports = time.monotonic() - begun, near.reports - before
    status = await _status(client)
    lost = sum(1 for flags in near.report_flags.values() if not flags & TxFlag.STAT_ACK)
    return Row(
        1000 * delay,
        burst,
        reports / took,
        1000 * area / max(reports, 1),  # Little: frames on their way are rate times time
        100 * lost / max(len(near.report_flags), 1),
        status["answer_ms"]["p99"],
        status["reasons"],
    )


async def bench(delays_ms: Sequence[float], seconds: float) -> list[Row]:
    """Measure each delay with one frame on its way and with many."""
    rows = []
    for delay in delays_ms:
        for burst in (1, QUEUE):
            with tempfile.TemporaryDirectory(prefix="thicket-bench-") as directory:
                rows.append(await measure(delay / 1000, burst, seconds, Path(directory)))
    return rows


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m meshlab.bench.distance")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    parser.add_argument("delays", nargs="*", type=float, metavar="MS", help="one way")
    arguments = parser.parse_args()
    rows = asyncio.run(bench(arguments.delays or DELAYS_MS, arguments.seconds))
    print("one way ms  on their way  frames/s  report ms  not acked %  answer p99 ms  verdict")
    for row in rows:
        verdict = "; ".join(row.reasons) or "valid"
        print(
            f"{row.delay_ms:10g}{row.burst:14}{row.frames:10.1f}{row.report_ms:11.1f}"
            f"{row.lost_percent:13.1f}{row.answer_p99_ms:15.1f}  {verdict}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
