# SPDX-License-Identifier: Apache-2.0
"""Three nodes, one with a wrong passphrase, where wpa_supplicant shuns a failed neighbour for long.

It then blocks a neighbour for the time of ``max_inactivity``, here a quarter of an hour; the daemon
has to find the way back, and must not touch the link that works for it.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from meshlab import topology
from meshlab.lab import Lab, LabSpec, NodeSpec
from meshlab.testing import Nodes

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(600, func_only=True),
]

BLOCKED_FOR = 900


def spec(name: str) -> LabSpec:
    return LabSpec(
        topology.make("full", 3),
        name=name,
        config={"mesh": {"max_inactivity": BLOCKED_FOR}},
        nodes={"n3": NodeSpec(config={"mesh": {"passphrase": "not the passphrase"}})},
    )


async def station(nodes: Nodes, name: str, other: str) -> dict[str, Any]:
    """What a node's radio knows of another node."""
    document = json.loads(await nodes.run(name, "thicket peers --json"))
    mac = nodes.lab.state.nodes[other].mac
    found: list[dict[str, Any]] = [one for one in document["peers"] if one["mac"] == mac]
    return found[0] if found else {"state": "none", "connected_s": 0}


async def test_a_stranger_is_blocked_and_then_helped_in_vain(lab: Lab, nodes: Nodes) -> None:
    await lab.wait(lambda: "n2" in lab.state.peers("n1"), 240, "n1 and n2 have a link")

    async def blocked() -> bool:
        return bool((await station(nodes, "n1", "n3"))["state"] == "BLOCKED")

    await nodes.until(blocked, 300, "n1 blocks n3")
    before = await station(nodes, "n1", "n2")

    async def helped() -> bool:
        return "authentication is begun anew" in await nodes.run("n1", "logread")

    await nodes.until(helped, 200, "n1 tries n3 again although it is blocked")
    after = await station(nodes, "n1", "n2")
    assert (before["state"], after["state"]) == ("ESTAB", "ESTAB")
    assert after["connected_s"] >= before["connected_s"], "the same link"
    assert nodes.status("n1", "radio", "supplicant", "restarts") == 0
    assert await nodes.reaches("n1", "n2")
    assert any("passphrase" in text for text in nodes.problems("n1", "radio"))


async def test_with_the_right_passphrase_it_is_in_long_before_the_block_ends(
    lab: Lab, nodes: Nodes
) -> None:
    before = await station(nodes, "n1", "n2")
    begin = time.monotonic()
    code, output = await lab.configure("n3", [f"mesh.passphrase={lab.spec.passphrase}"])
    assert code == 0, output
    await lab.wait(
        lambda: {"n1", "n2"} <= lab.state.peers("n3"), BLOCKED_FOR / 2, "n3 has its peers"
    )
    print(f"corrected: all peers after {time.monotonic() - begin:.1f} s")
    after = await station(nodes, "n1", "n2")
    assert after["connected_s"] >= before["connected_s"], "the same link"
    await lab.wait(lambda: not nodes.problems("n1", "radio"), 240, "nothing is left to complain of")
    await nodes.whole(240)
