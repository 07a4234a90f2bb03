# SPDX-License-Identifier: Apache-2.0
"""Four nodes in a line that connect to their mesh neighbours only, know of all others by them, and
connect to others when asked to."""

from __future__ import annotations

import json

import pytest

from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes

MESH = "neighbours"

NEIGHBOURS = {"n1": {"n2"}, "n2": {"n1", "n3"}, "n3": {"n2", "n4"}, "n4": {"n3"}}


def connected(lab: Lab, nodes: Nodes, name: str) -> set[str]:
    """Return the nodes that ``name`` is connected with, of those that it knows to be up."""
    names = lab.state.by_cluster_name()
    listed = nodes.status(name, "cluster", "nodes") or []
    return {
        names.get(str(node["name"]), str(node["name"]))
        for node in listed
        if node["state"] == "up" and node["direct"]
    }


def everybody_knows_all(lab: Lab) -> bool:
    return all(lab.state.cluster(name) == set(lab.nodes) - {name} for name in lab.nodes)


async def test_nodes_connect_to_their_mesh_neighbours_and_know_of_all(
    lab: Lab, nodes: Nodes
) -> None:
    def heard(name: str) -> int:
        return len(nodes.status(name, "discovery", "heard") or [])

    await nodes.wait(lambda: all(heard(name) == 3 for name in lab.nodes), "all hear all others")
    await nodes.wait(lambda: everybody_knows_all(lab), "all know that all are up")

    def linked(name: str) -> bool:
        # the application's messages connect others as well, for as long as it sends some
        links = nodes.status(name, "cluster", "counters")["links"]
        return links == len(NEIGHBOURS[name]) and connected(lab, nodes, name) >= NEIGHBOURS[name]

    await nodes.wait(lambda: all(map(linked, lab.nodes)), "all are linked with their neighbours")


async def test_a_neighbour_that_goes_is_missed_by_all_and_one_that_comes_is_connected(
    lab: Lab, nodes: Nodes
) -> None:
    await lab.link("n1", "n2", cut=True)
    await nodes.wait(lambda: not lab.state.cluster("n1"), "n1 is alone")
    await nodes.wait(
        lambda: lab.state.cluster("n4") == {"n2", "n3"}, "n4, over two hops, knows that n1 is lost"
    )
    await lab.link("n1", "n2", restore=True)
    await nodes.wait(lambda: everybody_knows_all(lab), "n1 is back for all")


@pytest.mark.usefixtures("readings")
async def test_a_message_to_a_group_reaches_a_node_that_is_not_connected(
    lab: Lab, nodes: Nodes
) -> None:
    await nodes.wait(lambda: everybody_knows_all(lab), "all know that all are up")

    async def all_got_it() -> bool:  # the application begins some time after the node
        _, said = await lab.run("n1", "thicket publish readings '{}'", PATIENCE)
        return f"sent to {len(lab.nodes)} members" in said

    await nodes.until(all_got_it, "a message to the group reaches a member on each node")


@pytest.mark.usefixtures("readings")
async def test_a_call_reaches_a_node_that_is_not_connected(lab: Lab, nodes: Nodes) -> None:
    """Over three hops of the mesh, by a connection that is made for it."""
    far = nodes.address("n4")
    nodes.unfit = "n1 may be connected to n4 for a while"

    async def answered() -> bool:  # the application begins some time after the node
        command = f"thicket call --json {far} readings.leader"
        status, output = await lab.run("n1", command, PATIENCE)
        return status == 0 and "thicket@" in str(json.loads(output)["result"])

    async def listed() -> bool:  # it ends when it was not used for a while, so it is used again
        return await answered() and "n4" in connected(lab, nodes, "n1")

    await nodes.until(answered, "n4 answers n1")
    await nodes.until(listed, "the connection is listed")
    assert far in await nodes.succeeds("n1", f"thicket ping {far}")
