# SPDX-License-Identifier: Apache-2.0
"""A line of three, at whose end a node loses its power and gets it back at once."""

from __future__ import annotations

import asyncio

import pytest

from meshlab import topology
from meshlab.lab import Lab, LabSpec
from meshlab.testing import Nodes

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(600, func_only=True),
]


def spec(name: str) -> LabSpec:
    return LabSpec(topology.make("line", 3), name=name)


async def test_it_is_a_member_again_before_old_paths_expire(lab: Lab, nodes: Nodes) -> None:
    """The others have paths to it from before, which count as newer than what it says itself."""
    await nodes.whole(240)
    await asyncio.sleep(5)
    for _ in range(4):
        await lab.power_off("n3", grace=0)
        await lab.power_on("n3")
        begun = lab.elapsed
        await lab.wait(lambda: nodes.status("n3", "radio", "state") == "joined", 120, "it joins")
        joined = lab.elapsed
        await nodes.whole(120)
        whole = lab.elapsed
        print(
            f"joined {joined - begun:.1f} s after power-on, a member {whole - joined:.1f} s later"
        )
        await asyncio.sleep(8)
