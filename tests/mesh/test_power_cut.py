# SPDX-License-Identifier: Apache-2.0
"""A line of three, at whose end a node loses its power and gets it back at once.

Four times, or for as many seconds as THICKET_SOAK says.
"""

from __future__ import annotations

import os

from meshlab.lab.lab import Lab
from meshlab.lab.spec import radio_mac
from meshlab.lab.testing import Nodes

MESH = "line"

CUTS = 4
SECONDS = float(os.environ.get("THICKET_SOAK", "0"))


async def next_hop(nodes: Nodes, name: str) -> str:
    """The next hop of a node's path to n3, as it has it; empty when there is none."""
    found = (await nodes.json(name, "thicket peers --json"))["paths"]
    return next((path["next_hop"] for path in found if path["destination"] == radio_mac(3)), "")


async def test_frames_to_it_take_its_link_and_no_path_from_before(lab: Lab, nodes: Nodes) -> None:
    """n1 still knows a path to n3 over n2: taken, frames would run in a circle.

    Without what the radio does about that, half of the cuts ended so.
    """

    async def known() -> bool:
        await nodes.reaches("n1", "n3")
        return await next_hop(nodes, "n1") == radio_mac(2)

    begin, cuts = lab.elapsed, 0
    while cuts < CUTS or lab.elapsed - begin < SECONDS:
        cuts += 1
        await nodes.until(known, "n1 has a path to n3 over n2")
        await lab.power_off("n3", grace=0)
        await lab.power_on("n3")
        begun = lab.elapsed
        await nodes.wait(lambda: nodes.status("n3", "radio", "state") == "joined", "it joins")
        joined = lab.elapsed
        assert await next_hop(nodes, "n2") != radio_mac(1)  # to look at the paths is to mend them
        await nodes.whole()
        whole = lab.elapsed
        print(
            f"joined {joined - begun:.1f} s after power-on, a member {whole - joined:.1f} s later"
        )
