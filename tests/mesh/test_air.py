# SPDX-License-Identifier: Apache-2.0
"""What the kernels of three nodes in a line hear when a link fades and when one sends with less."""

from __future__ import annotations

import re

from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes

MESH = "line"
PHY = 'iw phy "$(cat /sys/class/net/mesh0/phy80211/name)"'
"""The command for a node's radio."""


async def signal(lab: Lab, nodes: Nodes, name: str, of: str) -> int:
    """Return the dBm of the last frame that a node's kernel has received of another's."""
    told = await nodes.run(name, f"iw dev mesh0 station get {lab.state.nodes[of].radio_mac}")
    found = re.search(r"^\s*signal:\s+(-?\d+)", told, re.MULTILINE)
    assert found is not None, told
    return int(found[1])


async def snr(lab: Lab, a: str, b: str) -> float:
    """Return what the medium says of how one node hears another."""
    links = (await lab.medium_call("links"))["links"]
    return next(float(each["snr_db"]) for each in links if (each["a"], each["b"]) == (a, b))


async def test_one_link_fades_and_another_does_not(lab: Lab, nodes: Nodes) -> None:
    before = await signal(lab, nodes, "n2", "n3")
    await lab.link("n1", "n2", fading="rician k=9 doppler=0.5")
    seen: dict[str, set[int]] = {"n1": set(), "n3": set()}

    async def changed() -> bool:
        for of, signals in seen.items():
            signals.add(await signal(lab, nodes, "n2", of))
        return len(seen["n1"]) > 3

    await nodes.until(changed, "n2 hears n1 with changing signals")
    assert seen["n3"] == {before}
    await lab.link("n1", "n2", restore=True)

    async def steady() -> bool:
        return await signal(lab, nodes, "n2", "n1") == before

    await nodes.until(steady, "n2 hears n1 as before, with a frame since then")


async def test_a_node_that_sends_with_less_is_heard_so_much_less(lab: Lab, nodes: Nodes) -> None:
    full = await signal(lab, nodes, "n2", "n1")
    back = await signal(lab, nodes, "n1", "n2")
    own = await snr(lab, "n1", "n2")
    await nodes.run("n1", f"{PHY} set txpower fixed 1300")

    async def weaker() -> bool:
        return await signal(lab, nodes, "n2", "n1") == full - 7

    await nodes.until(weaker, "n2 hears n1 with 7 dB less")
    assert await snr(lab, "n1", "n2") == own - 7
    assert await signal(lab, nodes, "n1", "n2") == back
    await nodes.run("n1", f"{PHY} set txpower auto")

    async def strong() -> bool:
        return await signal(lab, nodes, "n2", "n1") == full

    await nodes.until(strong, "n2 hears n1 as before")
