# SPDX-License-Identifier: Apache-2.0
"""Three nodes, one of whose links becomes weak: frames take the two good ones instead."""

from __future__ import annotations

import os

import pytest

from meshlab.lab import questions
from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes

MESH = "firewall"  # n1 logs everything

pytestmark = pytest.mark.skipif(
    not os.environ.get("THICKET_SOAK"), reason="takes minutes: `make soak`, or THICKET_SOAK=1"
)

WEAK_SNR = 1.5  # no OFDM rate gets through


async def test_a_path_over_a_weak_link_gives_way_to_two_good_ones(lab: Lab, nodes: Nodes) -> None:
    mac = lab.state.nodes["n3"].radio_mac
    await nodes.reach("n1", "n3")

    await lab.link("n1", "n3", snr=WEAK_SNR)
    try:

        async def searched() -> bool:
            words = f"path to {mac} over {mac}, a link of metric"
            status, _ = await lab.run("n1", f"logread | grep -qF '{words}'", PATIENCE)
            return status == 0

        await nodes.until(searched, "n1 searches for a way around the weak link")

        async def around() -> bool:
            await nodes.reach("n1", "n3")
            return questions.next_hop(lab.state, "n1", "n3") == "n2"

        await nodes.until(around, "n1 has its path to n3 over n2")
    finally:
        await lab.link("n1", "n3", restore=True)
