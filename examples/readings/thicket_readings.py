# SPDX-License-Identifier: Apache-2.0
"""An application to copy: every node shares what its sensor reads, and one of them leads.

All nodes that run it are members of the group ``readings``. Each publishes its reading there now
and then and keeps the latest of everybody. The leader is the member whose node has the smallest
name: all see the same members, so all agree without asking, and when the leader is lost the next
one is known as soon as the loss is. The leader also publishes a summary.

    thicket call NODE readings.latest
    thicket monitor readings
"""

from __future__ import annotations

import asyncio
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thicket.applications import Application

GROUP = "readings"


@dataclass
class Settings:
    """What ``[application.readings]`` may have.

    :ivar interval: seconds between two readings.
    :ivar source: a file that holds the temperature in thousandths of a degree, as the kernel's
        thermal zones and hwmon have it; empty for a made-up sensor.
    """

    interval: float = 5.0
    source: str = ""

    def __post_init__(self) -> None:
        if not 0.01 <= self.interval <= 3600:
            raise ValueError("interval: must be 0.01 to 3600 seconds")


class Readings(Application):
    """Shared readings with a leader."""

    Settings = Settings

    async def start(self) -> None:
        self.latest: dict[str, float] = {}
        self.summary: dict[str, Any] = {}
        self.fault: str | None = None
        self.leads = False
        self.subscription = self.node.subscribe(GROUP)
        self.node.export("readings.latest")(self.get_latest)
        self.node.export("readings.leader")(self.get_leader)
        self.node.export("readings.summary")(self.get_summary)

    async def run(self) -> None:
        self.node.create_task(self.forget_lost_nodes())
        self.node.create_task(self.measure())
        async for message in self.subscription:
            match message:
                case {"node": node, "celsius": float() as celsius}:
                    self.latest[as_text(node)] = celsius
                case {"summary": dict() as summary}:
                    self.summary = {as_text(key): value for key, value in summary.items()}

    async def measure(self) -> None:
        """Publish our readings, and as the leader the summary."""
        while True:
            try:
                celsius = self.read()
                self.fault = None
            except (OSError, ValueError) as error:
                self.fault = f"the sensor {self.settings.source} cannot be read: {error}"
            else:
                await self.node.publish(GROUP, {"node": self.node.name, "celsius": celsius})
            leads = self.leader() == self.node.name
            if leads and self.latest:
                values = list(self.latest.values())
                summary = {
                    "leader": self.node.name,
                    "nodes": len(values),
                    "mean": round(statistics.fmean(values), 3),
                }
                await self.node.publish(GROUP, {"summary": summary})
            # With jitter, so that a fleet does not speak all at once.
            await asyncio.sleep(self.settings.interval * random.uniform(0.9, 1.1))

    async def forget_lost_nodes(self) -> None:
        """Keep readings of nodes that are there only."""
        async for event in self.node.monitor(current=False):
            if event.kind == "down":
                self.latest.pop(event.name, None)

    def read(self) -> float:
        """Return the temperature in degrees Celsius."""
        if not self.settings.source:
            return round(random.gauss(21.0, 0.5), 3)
        return int(Path(self.settings.source).read_text(encoding="ascii")) / 1000

    def leader(self) -> str:
        """Return the node that leads."""
        return min((str(pid.node) for pid in self.node.members(GROUP)), default=self.node.name)

    def health(self) -> str | None:
        return self.fault

    # What other nodes, and `thicket call`, may ask.

    async def get_latest(self) -> dict[str, float]:
        return dict(self.latest)

    async def get_leader(self) -> str:
        return self.leader()

    async def get_summary(self) -> dict[str, Any]:
        return self.summary


def as_text(value: Any) -> str:
    """Return text that may have come by way of an Erlang node."""
    return value.decode() if isinstance(value, bytes) else str(value)
