# SPDX-License-Identifier: Apache-2.0
"""Four nodes in a ring: one is cut off, and all others know it long before ticks could tell."""

from __future__ import annotations

import time

import pytest

from meshlab import topology
from meshlab.lab import Lab, LabSpec
from meshlab.testing import Nodes

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(400, func_only=True),
]

# What ticks find out takes a minute, what missing peers do half an hour.
SLOW = {"cluster": {"tick_time": 60}, "mesh": {"max_inactivity": 1800}}


def spec(name: str) -> LabSpec:
    return LabSpec(topology.make("ring", 4), name=name, config=SLOW)


async def test_the_cluster_forms(lab: Lab, nodes: Nodes) -> None:
    await lab.formed(240)
    await nodes.whole()


async def test_a_node_that_is_cut_off_is_missed_by_all_and_found_again(
    lab: Lab, nodes: Nodes
) -> None:
    others = ("n1", "n2", "n3")
    begin = time.monotonic()
    for neighbour in ("n1", "n3"):
        await lab.link("n4", neighbour, cut=True)
    # n2 has no link to n4 and is told of the fear for it by those that have.
    await lab.wait(
        lambda: all("n4" not in lab.state.cluster(name) for name in others), 40, "n4 is missed"
    )
    missed = time.monotonic() - begin
    for name in others:
        assert lab.state.cluster(name) == set(others) - {name}, "nobody else is missed"
    begin = time.monotonic()
    for neighbour in ("n1", "n3"):
        await lab.link("n4", neighbour, restore=True)
    await nodes.whole()
    print(f"missed by all after {missed:.1f} s, whole again after {time.monotonic() - begin:.1f} s")
