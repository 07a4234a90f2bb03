# SPDX-License-Identifier: Apache-2.0
"""Three nodes, one of whose links becomes weak: frames take the two good ones instead."""

from __future__ import annotations

import os

import pytest

from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes

MESH = "firewall"  # n1 logs everything

pytestmark = pytest.mark.skipif(
    not os.environ.get("THICKET_SOAK"), reason="takes minutes: `make soak`, or THICKET_SOAK=1"
)

WEAK_SNR = 1.5  # no OFDM rate gets through


async def test_a_path_over_a_weak_link_gives_way_to_two_good_ones(lab: Lab, nodes: Nodes) -> None:
    mac = {name: node.radio_mac for name, node in lab.state.nodes.items()}
    await nodes.reach("n1", "n3")

    def next_hop() -> str | None:
        paths = nodes.status("n1", "paths") or []
        return next((p["next_hop"] for p in paths if p["destination"] == mac["n3"]), None)

    await lab.link("n1", "n3", snr=WEAK_SNR)
    try:

        async def searched() -> bool:
            words = f"path to {mac['n3']} over {mac['n3']}, a link of metric"
            return words in await nodes.run("n1", "logread")

        await nodes.until(searched, "n1 searches for a way around the weak link")

        async def around() -> bool:
            await nodes.reach("n1", "n3")
            return next_hop() == mac["n2"]

        await nodes.until(around, "n1 has its path to n3 over n2")
    finally:
        await lab.link("n1", "n3", restore=True)
