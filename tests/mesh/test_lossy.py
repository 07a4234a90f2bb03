# SPDX-License-Identifier: Apache-2.0
"""Eight nodes in a grid whose links lose frames: nobody is taken for lost.

The time is that of THICKET_SOAK in seconds; the ten minutes are for a person to ask for.
"""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from meshlab import ieee80211, topology
from meshlab.lab import Lab, LabSpec
from meshlab.medium.error import Textbook
from meshlab.testing import Nodes

SECONDS = float(os.environ.get("THICKET_SOAK", "30"))

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(600 + SECONDS, func_only=True),
]

LOSS = 0.2
LENGTH = 300
"""Bytes of a frame that is lost with that probability at 6 Mbit/s, the lowest rate that carries
data well; whatever is sent faster is lost, until the rate control of the kernel has found out."""


def spec(name: str) -> LabSpec:
    return LabSpec(topology.make("grid", 8), name=name)


def snr_of(loss: float) -> float:
    """Return the signal to noise ratio in dB at which frames of LENGTH bytes get lost so often."""
    curve = Textbook().curve(ieee80211.legacy_rates(5180)[0])
    low, high = -20.0, 40.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if curve.loss(middle, LENGTH) > loss else (low, middle)
    return high


async def test_the_cluster_forms(lab: Lab, nodes: Nodes) -> None:
    await lab.formed(400)
    await nodes.whole(300)


async def test_nobody_is_taken_for_lost_on_links_that_lose_a_fifth(lab: Lab, nodes: Nodes) -> None:
    async def losses(name: str) -> int:
        return int(await nodes.run(name, "logread | grep -c 'distribution.* is down' || true"))

    before = {name: await losses(name) for name in lab.nodes}
    snr = snr_of(LOSS)
    links = {tuple(sorted((name, peer))) for name in lab.nodes for peer in lab.state.peers(name)}
    assert len(links) >= 10
    for one, other in links:
        await lab.link(one, other, snr=snr)
    end = time.monotonic() + SECONDS
    names = set(lab.nodes)
    while time.monotonic() < end:
        await asyncio.sleep(1)
        for name in names:
            assert lab.state.cluster(name) == names - {name}
    for name in names:
        assert await losses(name) == before[name], await nodes.run(name, "logread | tail -n 50")
    print(f"{SECONDS:g} s at {snr:.1f} dB: no node was taken for lost")
