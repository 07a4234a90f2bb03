# SPDX-License-Identifier: Apache-2.0
"""The example application on four nodes: shared readings, and a leader who may die.

The four are in a ring, so that any of them can go without taking the way between others along.
"""

from __future__ import annotations

import json
from ipaddress import IPv6Address
from typing import Any

from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes

MESH = "ring"


async def asked(nodes: Nodes, name: str, other: str, function: str) -> Any:
    """Return what a function of ``other`` answers to ``name``; None while it does not."""
    command = f"thicket call --json {nodes.address(other)} readings.{function}"
    status, output = await nodes.lab.run(name, command, PATIENCE)
    return json.loads(output)["result"] if status == 0 else None


def smallest(nodes: Nodes, names: set[str]) -> str:
    """Return the node whose name is the smallest, by which the example chooses its leader."""
    return min(names, key=lambda name: f"thicket@{IPv6Address(nodes.address(name))}")


async def test_it_runs_on_all_nodes(readings: None, lab: Lab, nodes: Nodes) -> None:
    def runs(name: str) -> bool:
        found = nodes.status(name, "applications") or []
        return any(app["name"] == "readings" and app["state"] == "running" for app in found)

    await nodes.wait(lambda: all(map(runs, lab.nodes)), "the application runs everywhere")


async def agree(nodes: Nodes, names: set[str], leader: str) -> None:
    """Wait until all ``names`` have each other's readings and agree on who leads."""
    cluster = {f"thicket@{nodes.address(name)}" for name in names}
    for name in sorted(names):

        async def knows(name: str = name) -> bool:
            latest = await asked(nodes, name, name, "latest")
            leads = await asked(nodes, name, name, "leader")
            return (
                latest is not None
                and set(latest) == cluster
                and leads == f"thicket@{nodes.address(leader)}"
            )

        await nodes.until(knows, f"{name} knows the readings and the leader of {names}")


async def test_all_have_the_readings_of_all_and_one_leads(
    readings: None, lab: Lab, nodes: Nodes
) -> None:
    names = set(lab.nodes)
    leader = smallest(nodes, names)
    await agree(nodes, names, leader)

    # The leader's word reaches every node, and any node can be asked by any other.
    async def told() -> bool:
        one = min(names - {leader})
        summary = await asked(nodes, leader, one, "summary")
        return bool(summary) and summary["leader"] == f"thicket@{nodes.address(leader)}"

    await nodes.until(told, "the leader's summary is known")


async def test_when_the_leader_dies_the_next_one_leads(
    readings: None, lab: Lab, nodes: Nodes
) -> None:
    leader = smallest(nodes, set(lab.nodes))
    rest = set(lab.nodes) - {leader}
    heir = smallest(nodes, rest)
    await lab.kill(leader)
    await agree(nodes, rest, heir)

    await lab.power_on(leader)
    await nodes.whole()
    await agree(nodes, set(lab.nodes), leader)
