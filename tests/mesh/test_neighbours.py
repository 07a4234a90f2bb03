# SPDX-License-Identifier: Apache-2.0
"""Four nodes in a line that connect to their mesh neighbours only, and to others when asked to."""

from __future__ import annotations

import json

import pytest

from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes

MESH = "neighbours"

NEIGHBOURS = {"n1": {"n2"}, "n2": {"n1", "n3"}, "n3": {"n2", "n4"}, "n4": {"n3"}}


async def test_nodes_connect_to_their_mesh_neighbours_and_to_nobody_else(
    lab: Lab, nodes: Nodes
) -> None:
    def heard(name: str) -> int:
        return len(nodes.status(name, "discovery", "heard") or [])

    await nodes.wait(lambda: all(heard(name) == 3 for name in lab.nodes), "all hear all others")
    for name in lab.nodes:
        assert lab.state.cluster(name) == NEIGHBOURS[name]


async def test_a_neighbour_that_goes_is_missed_and_one_that_comes_is_connected(
    lab: Lab, nodes: Nodes
) -> None:
    await lab.link("n1", "n2", cut=True)
    await nodes.wait(lambda: not lab.state.cluster("n1"), "n1 is alone")
    await lab.link("n1", "n2", restore=True)
    await nodes.wait(
        lambda: "n2" in lab.state.cluster("n1") and "n1" in lab.state.cluster("n2"),
        "n1 and n2 are connected again",
    )


@pytest.mark.usefixtures("readings")
async def test_a_call_reaches_a_node_that_is_not_connected(lab: Lab, nodes: Nodes) -> None:
    """Over three hops of the mesh, by a connection that is made for it."""
    far = nodes.address("n4")
    nodes.unfit = "n1 stays connected to n4"

    async def answered() -> bool:  # the application begins some time after the node
        command = f"thicket call --json {far} readings.leader"
        status, output = await lab.run("n1", command, PATIENCE)
        return status == 0 and "thicket@" in str(json.loads(output)["result"])

    await nodes.until(answered, "n4 answers n1")
    await nodes.wait(lambda: "n4" in lab.state.cluster("n1"), "the connection is listed")
    assert lab.state.cluster("n2") == NEIGHBOURS["n2"], "who passes it on takes no part"
    assert far in await nodes.succeeds("n1", f"thicket ping {far}")
