# SPDX-License-Identifier: Apache-2.0
"""A line of three, at whose end a node loses its power and gets it back at once."""

from __future__ import annotations

import asyncio
import json

import pytest

from meshlab import topology
from meshlab.lab import Lab, LabSpec, radio_mac
from meshlab.testing import Nodes

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(600, func_only=True),
]


def spec(name: str) -> LabSpec:
    return LabSpec(topology.make("line", 3), name=name)


async def way(nodes: Nodes) -> str:
    """The next hop of n2's path to its neighbour n3, as n2 has it; empty when there is none."""
    found = json.loads(await nodes.run("n2", "thicket peers --json; true"))["paths"]
    return next((path["next_hop"] for path in found if path["destination"] == radio_mac(3)), "")


async def test_frames_to_it_take_its_link_and_no_path_from_before(lab: Lab, nodes: Nodes) -> None:
    """n1 may still know a path to n3 over n2: taken, frames would run in a circle.

    Without what the radio does about that, half of the cuts ended so.
    """
    await nodes.whole(240)
    await asyncio.sleep(5)
    for _ in range(4):
        await lab.power_off("n3", grace=0)
        await lab.power_on("n3")
        begun = lab.elapsed
        await lab.wait(lambda: nodes.status("n3", "radio", "state") == "joined", 120, "it joins")
        joined = lab.elapsed
        assert await way(nodes) != radio_mac(1)  # to look at the paths is to mend them
        await nodes.whole(120)
        whole = lab.elapsed
        print(
            f"joined {joined - begun:.1f} s after power-on, a member {whole - joined:.1f} s later"
        )
        await asyncio.sleep(8)
