# SPDX-License-Identifier: Apache-2.0
"""Three nodes, one with a wrong passphrase, where wpa_supplicant shuns a failed neighbour for long.

It then blocks a neighbour for the time of ``max_inactivity``, here an hour; the daemon has to find
the way back, and must not touch the link that works for it.
"""

from __future__ import annotations

from typing import Any

from meshlab.lab.lab import Lab
from meshlab.lab.testing import FORMING, Nodes

MESH = "blocked"


async def station(nodes: Nodes, name: str, other: str) -> dict[str, Any]:
    """What a node's radio knows of another node."""
    document = await nodes.json(name, "thicket peers --json")
    mac = nodes.lab.state.nodes[other].mac
    found: list[dict[str, Any]] = [one for one in document["peers"] if one["mac"] == mac]
    return found[0] if found else {"state": "none", "connected_s": 0}


async def blocked(nodes: Nodes) -> None:
    """Wait until n1 shuns n3."""

    async def asked() -> bool:
        return bool((await station(nodes, "n1", "n3"))["state"] == "BLOCKED")

    await nodes.until(asked, "n1 blocks n3")


async def test_a_stranger_is_blocked_and_then_helped_in_vain(nodes: Nodes) -> None:
    await blocked(nodes)
    before = await station(nodes, "n1", "n2")
    await nodes.logs("n1", "authentication is begun anew")
    after = await station(nodes, "n1", "n2")
    assert (before["state"], after["state"]) == ("ESTAB", "ESTAB")
    assert after["connected_s"] >= before["connected_s"], "the same link"
    assert nodes.status("n1", "radio", "supplicant", "restarts") == 0
    await nodes.reach("n1", "n2")

    def told() -> bool:
        return any("passphrase" in text for text in nodes.problems("n1", "radio"))

    await nodes.wait(told, "n1 says that a passphrase does not fit")


async def test_with_the_right_passphrase_it_is_in_long_before_the_block_ends(
    lab: Lab, nodes: Nodes
) -> None:
    await blocked(nodes)
    before = await station(nodes, "n1", "n2")
    begin = lab.elapsed
    nodes.unfit = "n3 belongs to the mesh"
    code, output = await lab.configure("n3", [f"mesh.passphrase={lab.spec.passphrase}"])
    assert code == 0, output
    # The patience is a quarter of the time for which a neighbour is shunned.
    assert lab.nodes["n1"].config["mesh"]["max_inactivity"] >= 4 * FORMING
    await lab.wait(lambda: {"n1", "n2"} <= lab.state.peers("n3"), FORMING, "n3 has its peers")
    print(f"corrected: all peers after {lab.elapsed - begin:.1f} s")
    after = await station(nodes, "n1", "n2")
    assert after["connected_s"] >= before["connected_s"], "the same link"
    await nodes.wait(lambda: not nodes.problems("n1", "radio"), "nothing is left to complain of")
    await nodes.whole()
