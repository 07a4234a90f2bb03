# SPDX-License-Identifier: Apache-2.0
"""An emulated Raspberry Pi 3 B is a peer of an ordinary node, in one mesh and one cluster.

Its own start, card and report are in tests/firmware/test_raspi.py.
"""

from __future__ import annotations

from meshlab.lab import summary
from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes
from meshlab.wire.relay import DROP_COUNTERS

MESH = "pi"

FLOOD = "ping -6 -n -q -c 300 -i 0.01 -s 1400 -W 5"
"""A thousand frames of full length within seconds: all that an emulated line has to take."""


async def test_a_pi_and_another_node_are_peers_and_joined(lab: Lab, nodes: Nodes) -> None:
    await lab.formed(PATIENCE)
    model = await nodes.run("n2", "cat /proc/device-tree/model")
    assert model.startswith("Raspberry Pi 3 Model B")
    assert (lab.state.peers("n1"), lab.state.peers("n2")) == ({"n2"}, {"n1"})
    for name, other in (("n1", "n2"), ("n2", "n1")):
        assert nodes.status(name, "radio", "state") == "joined"
        await nodes.says(name, "thicket peers", lab.state.nodes[other].mac)
    found = summary.summarise(lab.snapshot())
    assert found["formed"]
    assert found["troubles"] == []


async def test_pings_go_both_ways(nodes: Nodes) -> None:
    await nodes.reach("n1", "n2")
    await nodes.reach("n2", "n1")


async def test_a_pi_without_chip_is_in_the_fleet_and_in_the_cluster(lab: Lab, nodes: Nodes) -> None:
    assert nodes.status("n2", "trust", "state") == "ready"
    assert nodes.status("n2", "identity", "software")
    assert lab.state.cluster("n1") == {"n2"}
    assert lab.state.cluster("n2") == {"n1"}
    far = nodes.address("n2")
    assert far in await nodes.succeeds("n1", f"thicket ping {far}")


async def test_its_relay_takes_a_flood_and_loses_nothing_of_the_stream(
    lab: Lab, nodes: Nodes
) -> None:
    async def port() -> dict[str, int]:
        found = (await lab.medium_call("status"))["nodes"]["n2"]
        assert found["connected"]
        return {"sessions": found["sessions"], "errors": found["relay_errors"], **found["relay"]}

    before = await port()
    for name, other in (("n1", "n2"), ("n2", "n1")):
        await nodes.run(name, f"{FLOOD} {nodes.address(other)}; true")
    await nodes.reach("n1", "n2")
    after = await port()
    assert after["to_host"] - before["to_host"] > 600, "echoes and their answers"
    kept = ("sessions", "errors", "bad_frames", "stalls", "skipped_bytes", *DROP_COUNTERS)
    assert {name: after[name] - before[name] for name in kept} == dict.fromkeys(kept, 0)
