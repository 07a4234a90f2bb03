# SPDX-License-Identifier: Apache-2.0
"""Eight nodes in a grid whose links lose frames: nobody is taken for lost.

The time is that of THICKET_SOAK in seconds; the ten minutes are for a person to ask for.
"""

from __future__ import annotations

import asyncio
import math
import os
import time

from meshlab.lab import starvation
from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes
from meshlab.medium.error import Textbook
from meshlab.wire import ieee80211

SECONDS = float(os.environ.get("THICKET_SOAK", "30"))

MESH = "grid"

LOSS = 0.2
LENGTH = 300
"""Bytes of a frame that is lost with that probability at 6 Mbit/s, the lowest rate that carries
data well; whatever is sent faster is lost, until the rate control of the kernel has found out."""


def snr_of(loss: float) -> float:
    """Return the signal to noise ratio in dB at which frames of LENGTH bytes get lost so often."""
    curve = Textbook().curve(ieee80211.legacy_rates(5180)[0])
    low, high = -20.0, 40.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if curve.loss(middle, LENGTH) > loss else (low, middle)
    return high


def links(lab: Lab) -> list[tuple[str, str]]:
    """Return the pairs of nodes between which the medium carries frames."""
    return sorted((min(p), max(p)) for p, link in lab.state.links.items() if link.usable)


async def losses(nodes: Nodes, name: str) -> int:
    """Return how often a node has lost another one, by its own log."""
    return int(await nodes.run(name, "logread | grep -c 'distribution.* is down' || true"))


async def missed(lab: Lab, nodes: Nodes, before: dict[str, int]) -> str:
    """Look for SECONDS at the cluster as every node sees it, then into the logs.

    :returns: what says that somebody was taken for lost; empty when nobody was.
    """
    end = time.monotonic() + SECONDS
    names = set(lab.nodes)
    while time.monotonic() < end:
        await asyncio.sleep(1)
        for name in names:
            if (seen := lab.state.cluster(name)) != names - {name}:
                return f"{name} sees {sorted(seen)}"
    for name in names:
        if await losses(nodes, name) != before[name]:
            return await nodes.run(name, "logread | tail -n 50")
    return ""


async def nobody_is_missed(lab: Lab, nodes: Nodes, before: dict[str, int]) -> None:
    """Look until nobody is missed for SECONDS in which the host had processors for all."""
    while True:
        async with starvation.watched(lab) as host:
            found = await missed(lab, nodes, before)
        if not found:
            return
        assert host.found, found
        print(f"begun anew, as the host was too busy ({host.found}): {found}")
        await nodes.whole()
        before = {name: await losses(nodes, name) for name in lab.nodes}


async def test_nobody_is_taken_for_lost_when_links_lose_a_fifth(lab: Lab, nodes: Nodes) -> None:
    """A fifth of everything, whatever its rate: data, beacons, acknowledgements."""
    before = {name: await losses(nodes, name) for name in lab.nodes}
    for one, other in links(lab):
        await lab.link(one, other, loss=LOSS)
    await lab.medium_call("reset_stats")
    await nobody_is_missed(lab, nodes, before)

    async def carried() -> bool:
        found = [link["traffic"] or {} for link in (await lab.medium_call("links"))["links"]]
        busy = [traffic for traffic in found if traffic.get("unicast", 0) >= 100]
        return len(busy) >= len(lab.nodes)

    await nodes.until(carried, "some links have carried something")
    # That it was a fifth is for the medium to say. Collisions come on top.
    shares = []
    for link in (await lab.medium_call("links"))["links"]:
        traffic = link["traffic"] or {}
        for kind in ("unicast", "group", "acks"):
            tries, lost = traffic.get(kind, 0), traffic.get(f"{kind}_lost", 0)
            luck = 5 * math.sqrt(LOSS * (1 - LOSS) * tries)
            assert LOSS * tries - luck <= lost <= 1.5 * LOSS * tries + luck, (link, kind)
        assert traffic["group"] > 0
        if traffic["unicast"] >= 100:
            shares.append(traffic["unicast_lost"] / traffic["unicast"])
    print(
        f"{SECONDS:g} s: no node was taken for lost; on {len(shares)} links with 100 unicast "
        f"frames or more, {100 * min(shares):.1f} to {100 * max(shares):.1f} % of them were lost"
    )


async def test_nobody_is_taken_for_lost_when_all_links_become_weak(lab: Lab, nodes: Nodes) -> None:
    """From one moment to the next only the lowest rates get through."""
    before = {name: await losses(nodes, name) for name in lab.nodes}
    snr = snr_of(LOSS)
    for one, other in links(lab):
        await lab.link(one, other, snr=snr)
    await nobody_is_missed(lab, nodes, before)
    print(f"{SECONDS:g} s at {snr:.1f} dB: no node was taken for lost")
