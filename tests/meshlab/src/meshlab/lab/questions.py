# SPDX-License-Identifier: Apache-2.0
"""What people, tests and scenarios ask of a lab: answers of one moment, which wait for nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple, Protocol

from meshlab.lab.state import LabState, get_list

PATIENCE = 300.0
"""Seconds, as nodes are given them, after which something is taken to never happen."""


class Runs(Protocol):
    """A lab that runs commands on its nodes."""

    state: LabState

    async def run(
        self,
        name: str,
        command: str,
        timeout: float = ...,
        on_output: Callable[[bytes], None] | None = ...,
    ) -> tuple[int, str]: ...


class Pinged(NamedTuple):
    """What came of some pings."""

    sent: int
    times: tuple[float, ...]
    """Round trips in milliseconds."""

    @property
    def loss(self) -> float:
        """Percent of the pings that were not answered."""
        return 100 * (self.sent - len(self.times)) / self.sent


def problems(lab: LabState, name: str, part: str | None = None) -> list[str]:
    """Return the problems of a node, in its words; those of one part of it."""
    found = get_list(lab.nodes[name].status, "problems")
    return [str(p.get("message", p)) for p in found if part is None or p.get("part") == part]


def next_hop(lab: LabState, name: str, other: str) -> str | None:
    """Return the node over which a node's mesh path leads to another; None without a path."""
    wanted = lab.nodes[other].radio_mac
    for path in get_list(lab.nodes[name].status, "paths"):
        if str(path.get("destination")).lower() == wanted:
            hop = str(path.get("next_hop")).lower()
            return lab.by_mac().get(hop, hop)
    return None


async def ping(lab: Runs, name: str, other: str, count: int = 3) -> Pinged:
    """Send pings from a node to another one."""
    address = lab.state.nodes[other].address or lab.state.nodes[other].expected_address
    if address is None:
        return Pinged(count, ())
    command = f"ping -6 -n -c {count} -i 0.3 -W 2 {address}"
    _, output = await lab.run(name, command, PATIENCE)
    times = [float(value) for value in re.findall(r"time=([0-9.]+) ms", output)]
    return Pinged(count, tuple(times[:count]))
