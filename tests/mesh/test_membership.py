# SPDX-License-Identifier: Apache-2.0
"""Four nodes in a ring: one is cut off, and all others know it long before ticks could tell."""

from __future__ import annotations

import time

from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes

MESH = "ring"


async def test_a_node_that_is_cut_off_is_missed_by_all_and_found_again(
    lab: Lab, nodes: Nodes
) -> None:
    others = ("n1", "n2", "n3")
    # Neither ticks nor silent peers tell it within the time that the test waits.
    config = lab.nodes["n1"].config
    assert min(0.75 * config["cluster"]["tick_time"], config["mesh"]["max_inactivity"]) > PATIENCE
    begin = time.monotonic()
    for neighbour in ("n1", "n3"):
        await lab.link("n4", neighbour, cut=True)
    # n2 has no link to n4 and is told of the fear for it by those that have.
    # Nobody else is missed.
    await nodes.wait(
        lambda: all(lab.state.cluster(name) == set(others) - {name} for name in others),
        "n4 is missed",
    )
    missed = time.monotonic() - begin
    begin = time.monotonic()
    for neighbour in ("n1", "n3"):
        await lab.link("n4", neighbour, restore=True)
    await nodes.whole()
    print(f"missed by all after {missed:.1f} s, whole again after {time.monotonic() - begin:.1f} s")
