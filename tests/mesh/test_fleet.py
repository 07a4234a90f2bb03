# SPDX-License-Identifier: Apache-2.0
"""Eight nodes in a grid: one is cut off and comes back, then the power of all fails and returns.

The times that are printed are those at which the lab has heard of a change from the nodes, which it
asks once a second, and five times a second where one is cut off; the nodes know earlier. They are
of the host's clock and the host's load. THICKET_FLEET is another number of nodes.
"""

from __future__ import annotations

import asyncio
import time

from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes

MESH = "grid"


def inner(lab: Lab) -> str:
    """Return the node with most links: the ways of others lead through it."""
    return max(lab.nodes, key=lambda name: len(lab.spec.topology.peers(name)))


async def test_one_is_cut_off_and_missed_and_comes_back(lab: Lab, nodes: Nodes) -> None:
    lost = inner(lab)
    others = set(lab.nodes) - {lost}
    lab.pace.interval = 0.2
    begin = time.monotonic()
    for neighbour in lab.spec.topology.peers(lost):
        await lab.link(lost, neighbour, cut=True)
    # And nobody else is.
    await nodes.wait(
        lambda: all(lab.state.cluster(name) == others - {name} for name in others), "it is missed"
    )
    missed = time.monotonic() - begin
    # It finds out by itself that it is alone.
    await nodes.wait(lambda: not lab.state.cluster(lost), "it misses the others")
    alone = time.monotonic() - begin
    begin = time.monotonic()
    for neighbour in lab.spec.topology.peers(lost):
        await lab.link(lost, neighbour, restore=True)
    await nodes.whole()
    print(
        f"{lost} of {len(lab.nodes)} cut off: missed by all others after {missed:.1f} s, alone "
        f"after {alone:.1f} s; up again everywhere {time.monotonic() - begin:.1f} s after healing"
    )


async def test_the_whole_fleet_comes_back_after_a_power_cut(lab: Lab, nodes: Nodes) -> None:
    for name in lab.nodes:
        await lab.kill(name)
    begin = time.monotonic()
    await asyncio.gather(*(lab.power_on(name) for name in lab.nodes))
    await nodes.whole()
    seconds = time.monotonic() - begin
    total = {"attempts": 0, "connected": 0, "accepted": 0, "simultaneous": 0, "abandoned": 0}
    most = 0
    for name in lab.nodes:
        counters = await nodes.now(name, "cluster", "counters")
        for key in total:
            total[key] += counters[key]
        most = max(most, counters["attempts"])
    count = len(lab.nodes)
    pairs = count * (count - 1) // 2
    print(
        f"{count} nodes: whole {seconds:.1f} s after the power came back; for {pairs} connections "
        f"{total['attempts']} attempts ({most} by one node), {total}"
    )
    assert total["connected"] >= pairs
    # Each of two nodes may begin once, and be unlucky some times: more often on a slow host.
    unlucky = (4 * pairs + count) * max(1, seconds / 60)
    assert total["attempts"] <= unlucky, "a storm of connections"
