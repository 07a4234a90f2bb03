# SPDX-License-Identifier: Apache-2.0
"""Traffic between nodes: ``flow.py`` is put on both, and asked what came of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, NamedTuple

from meshlab.scenario.errors import StepError
from meshlab.scenario.stage import Stage

FIRST_PORT = 5001
MOST_FLOWS = 32
"""Flows of one run; each has a port of its own, which the firewall of the nodes has to let in."""
FLOW_SECONDS = 3600.0
ALLOWED = f"udp/{FIRST_PORT}-{FIRST_PORT + MOST_FLOWS - 1}"
"""What ``firewall.allow`` gets on all nodes of a scenario with traffic."""

PROGRAM = "/run/meshlab-flow.py"
BEGINNING = 120.0
"""Seconds within which Python has started on a node of a busy host."""
ENDING = 120.0
LOOK = 1.0


class Flow(NamedTuple):
    """What is wanted."""

    source: str
    to: str
    seconds: float
    rate: float
    size: int


class Flowed(NamedTuple):
    """What came of it."""

    sent: int
    arrived: int
    """Datagrams that the other end got; those whose every answer was lost behind them count not."""
    answered: int
    twice: int
    disordered: int
    outage: float
    """The longest time without an answer, in seconds."""
    median: float
    """Of the round trips, in milliseconds; 0 without any, as for those below."""
    p95: float
    slowest: float

    @property
    def loss(self) -> float:
        """Percent of the datagrams that were not answered."""
        return 100 * (self.sent - self.answered) / self.sent if self.sent else 100.0

    @property
    def words(self) -> str:
        return (
            f"{self.answered} of {self.sent} answered ({self.loss:.1f} % lost), round trip "
            f"{self.median:.1f} ms (95 % within {self.p95:.1f} ms), outage {self.outage:.1f} s"
        )


def flowed(text: str) -> Flowed:
    """Return what the sender told.

    :raises StepError: it is not understood.
    """
    try:
        told: dict[str, Any] = json.loads(text)
        trips = told["round_trip_ms"]
        return Flowed(
            sent=int(told["sent"]),
            arrived=int(told["arrived"]),
            answered=int(told["answered"]),
            twice=int(told["twice"]),
            disordered=int(told["disordered"]),
            outage=float(told["outage_s"]),
            median=float(trips.get("median", 0.0)),
            p95=float(trips.get("p95", 0.0)),
            slowest=float(trips.get("max", 0.0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StepError(f"the sender of the traffic said {text.strip()[-300:]!r}") from None


async def flow(stage: Stage, wanted: Flow, index: int) -> Flowed:
    """Let traffic flow, and return what came of it.

    Both ends run in the background: the shells of the nodes stay free for others.

    :raises StepError: an end did not start, or the sender ended without a word.
    """
    if index >= MOST_FLOWS:
        raise StepError(f"there is room for {MOST_FLOWS} flows of traffic in a run")
    state = stage.state.nodes[wanted.to]
    address = state.address or state.expected_address
    if address is None:
        raise StepError(f"{wanted.to} has no address to send to")
    port, told = FIRST_PORT + index, f"/run/meshlab-flow-{index}"
    program = await asyncio.to_thread(Path(__file__).with_name("flow.py").read_bytes)
    for name in dict.fromkeys((wanted.source, wanted.to)):
        await stage.push(name, PROGRAM, program)
    lasting = wanted.seconds + BEGINNING + ENDING
    await _start(stage, wanted.to, f"answer {port} {lasting:g}", f"{told}.answer")
    await _said(stage, wanted.to, f"{told}.answer", BEGINNING)
    words = f"send {address} {port} {wanted.rate:g} {wanted.size} {wanted.seconds:g}"
    await _start(stage, wanted.source, words, f"{told}.send")
    await asyncio.sleep(wanted.seconds)
    return flowed(await _said(stage, wanted.source, f"{told}.send", ENDING))


async def _start(stage: Stage, name: str, words: str, told: str) -> None:
    command = f"rm -f {told}; python3 -S -E {PROGRAM} {words} >{told} 2>&1 </dev/null &"
    status, output = await stage.run(name, command)
    if status:
        raise StepError(f"the traffic does not start on {name}: {output.strip()[-300:]}")


async def _said(stage: Stage, name: str, path: str, within: float) -> str:
    """Wait for a line in a file of a node.

    :raises StepError: there is none in time.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        status, output = await stage.run(name, f"cat {path}")
        if status == 0 and output.endswith("\n"):
            if "Traceback" in output:
                raise StepError(f"the traffic failed on {name}: {output.strip()[-300:]}")
            return output
        if loop.time() > end:
            raise StepError(f"the traffic on {name} said nothing within {within:g} s")
        await asyncio.sleep(LOOK)
