# SPDX-License-Identifier: Apache-2.0
"""``python -m meshlab.bench.engine``: what the medium's engine costs without sockets and processes.

The engine runs in virtual time, with kernels that take everything and answer after 2 ms. Only the
engine's own CPU time counts. The digest is that of everything it sent: versions of the engine with
the same digests have the same air.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from meshlab.bench.medium import BROADCAST, Load, data_frame, grid, mac
from meshlab.medium.config import State
from meshlab.medium.engine import Engine
from meshlab.medium.links import Links
from meshlab.medium.objects import Node
from meshlab.wire import hwsim
from meshlab.wire.hwsim import Command, Rate, TxFlag, TxFrame

FAMILY = 29
FREQUENCY = 2412
SEED = "1"
ANSWER = 0.002
"""Seconds that a kernel takes to answer."""

LOADS = (
    Load("unicast 2000/s, 20 nodes", 20, 5, 2000.0, False, 200, 0.5),
    Load("unicast 6000/s, 20 nodes", 20, 5, 6000.0, False, 200, 0.5),
    Load("broadcast 2000/s, 20 nodes", 20, 5, 2000.0, True, 200, 0.5),
    Load("broadcast 4000/s, 50 nodes", 50, 10, 4000.0, True, 200, 0.5),
    Load("unicast 1000/s, 50 in range", 50, 0, 1000.0, False, 200, 0.5),
    Load("broadcast 1000/s, 50 in range", 50, 0, 1000.0, True, 200, 0.5),
)

_Arrival = tuple[float, Node, bytes]


@dataclass(frozen=True, slots=True)
class Result:
    """What one run did."""

    us_per_frame: float
    attempts_per_frame: float
    deliveries: int
    reports: int
    digest: str


class _Air:
    """The engine, and what its kernels have to say."""

    def __init__(self, load: Load) -> None:
        config = grid(load)
        self.engine = Engine(Links(config, State()), SEED)
        self.arrivals: deque[_Arrival] = deque()
        self.answers: deque[_Arrival] = deque()
        self.reports = 0
        self.digest = hashlib.sha256()
        self._dirty: list[Node] = []
        for node_config in config.nodes:
            node = self.engine.add_node(node_config)
            node.wake = self._waker(node)
            self.engine.node_up(node, FAMILY)
            for radio in node.radios:
                self.engine.radio_up(radio)
        beside: dict[str, list[int]] = {node.name: [] for node in config.nodes}
        for link in config.links:
            beside[link.a].append(int(link.b[1:]))
            beside[link.b].append(int(link.a[1:]))
        series = hwsim.encode_series([Rate(11, 2, 0), Rate(8, 2, 0)])
        chance = random.Random(SEED)
        for number in range(int(load.seconds * load.rate)):
            index = number % load.nodes + 1
            near = beside[f"n{index}"]
            to = BROADCAST if load.group else mac(near[number // load.nodes % len(near)])
            flags = TxFlag.REQ_TX_STATUS | (TxFlag.NO_ACK if load.group else 0)
            frame = data_frame(mac(index), to, number, load.size)
            sent = TxFrame(mac(index), frame, int(flags), FREQUENCY, *series, number + 1)
            at = (number + chance.random()) / load.rate
            node = self.engine.nodes[f"n{index}"]
            self.arrivals.append((at, node, hwsim.encode_frame(FAMILY, sent)))
        for node in self.engine.nodes.values():
            self.engine.reaches.of(node.radios[0], FREQUENCY)  # made once, so it does not count

    def _waker(self, node: Node) -> Callable[[], None]:
        return lambda: self._dirty.append(node)

    def due(self) -> float | None:
        """Return when something happens next."""
        times = [waiting[0][0] for waiting in (self.arrivals, self.answers) if waiting]
        event = self.engine.next_event()
        if event is not None:
            times.append(event)
        return min(times, default=None)

    def come(self, now: float) -> list[_Arrival]:
        """Return what kernels say by ``now``."""
        came = []
        for waiting in (self.arrivals, self.answers):
            while waiting and waiting[0][0] <= now:
                came.append(waiting.popleft())
        return came

    def drain(self, now: float) -> None:
        """Take what the engine has for kernels."""
        while self._dirty:
            node = self._dirty.pop()
            stream, node.out = b"".join(node.out), []
            self.digest.update(node.name.encode() + stream)
            at = 0
            while at < len(stream):
                (length,) = struct.unpack_from("<I", stream, at)
                message = stream[at + 5 : at + 4 + length]
                (flags,) = struct.unpack_from("<H", message, 6)
                if message[16] == Command.TX_INFO_FRAME:
                    self.reports += 1
                elif flags & hwsim.NLM_F_ACK:
                    self.answers.append((now + ANSWER, node, hwsim.encode_answer(0, message)))
                at += 4 + length


def run(load: Load) -> Result:
    """Run a load and return what it cost."""
    air = _Air(load)
    engine = air.engine
    frames = len(air.arrivals)
    clock = time.thread_time_ns
    spent = looks = 0
    while (now := air.due()) is not None:
        came = air.come(now)
        begin = clock()
        for _, node, message in came:
            engine.receive(node, message, 0, len(message), now)
        engine.advance(now)
        spent += clock() - begin
        looks += 1
        air.drain(now)
    begin = clock()
    for _ in range(looks):
        clock()
    spent -= clock() - begin
    stats = engine.stats
    return Result(
        round(spent / 1e3 / frames, 1),
        round(stats.attempts / frames, 2),
        stats.deliveries,
        air.reports,
        air.digest.hexdigest()[:12],
    )


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m meshlab.bench.engine",
        description="Measures the medium's engine in virtual time.",
    )
    parser.add_argument("--runs", type=int, default=7, help="runs of each load; the first warms up")
    arguments = parser.parse_args()
    print(
        f"{'load':32}{'us/frame':>10}{'lowest':>8}{'highest':>9}{'tries/frame':>13}"
        f"{'delivered':>11}  digest"
    )
    for load in LOADS:
        results = [run(load) for _ in range(max(arguments.runs, 2))][1:]
        times = [result.us_per_frame for result in results]
        first = results[0]
        print(
            f"{load.name:32}{statistics.median(times):>10.1f}{min(times):>8}{max(times):>9}"
            f"{first.attempts_per_frame:>13}{first.deliveries:>11}  {first.digest}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
