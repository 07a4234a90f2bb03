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

COUNT = 300
FLOOD = f"ping -6 -n -q -c {COUNT} -i 0.01 -s 1400 -W 5"
"""A hundred long frames a second, their answers, and acknowledgements: more than a mesh sends."""


async def test_a_pi_and_another_node_are_peers_and_joined(lab: Lab, nodes: Nodes) -> None:
    await lab.formed(PATIENCE)
    model = await nodes.run("n2", "cat /proc/device-tree/model")
    assert model.startswith("Raspberry Pi 3 Model B")
    for name, other in (("n1", "n2"), ("n2", "n1")):
        await nodes.says(name, "thicket peers", lab.state.nodes[other].mac)
    await nodes.wait(
        lambda: summary.well(lab.snapshot()), "both are peers, joined and have no trouble"
    )
    assert (lab.state.peers("n1"), lab.state.peers("n2")) == ({"n2"}, {"n1"})


async def test_pings_go_both_ways(nodes: Nodes) -> None:
    await nodes.reach("n1", "n2")
    await nodes.reach("n2", "n1")


async def test_a_pi_without_chip_is_in_the_fleet_and_in_the_cluster(lab: Lab, nodes: Nodes) -> None:
    assert nodes.status("n2", "trust", "state") == "ready"
    assert nodes.status("n2", "identity", "software")
    await nodes.wait(
        lambda: (lab.state.cluster("n1"), lab.state.cluster("n2")) == ({"n2"}, {"n1"}),
        "both see each other in the cluster",
    )
    far = nodes.address("n2")
    assert far in await nodes.succeeds("n1", f"thicket ping {far}")


async def line(lab: Lab) -> dict[str, int]:
    """What the medium and the relay count of the line to the Pi."""
    found = (await lab.medium_call("status", patience=PATIENCE))["nodes"]["n2"]
    own = {"begun": found["sessions"], "errors": found["relay_errors"]}
    return {**own, **found["relay"]}


async def test_its_line_takes_a_flood_and_loses_nothing(lab: Lab, nodes: Nodes) -> None:
    before = await line(lab)
    for name, other in (("n1", "n2"), ("n2", "n1")):
        await nodes.run(name, f"{FLOOD} {nodes.address(other)}; true")
    after: dict[str, int] = {}

    async def counted() -> bool:
        after.update(await line(lab))
        return after["to_host"] - before["to_host"] > 2 * COUNT

    await nodes.until(counted, "the relay has counted echoes and answers")
    kept = ("begun", "sessions", "errors", "bad_frames", "stalls", "skipped_bytes", *DROP_COUNTERS)
    assert {name: after[name] - before[name] for name in kept} == dict.fromkeys(kept, 0)


async def test_its_radio_comes_back_when_relay_or_medium_has_died(lab: Lab, nodes: Nodes) -> None:
    """Neither end of a serial line sees that the other one is gone."""

    async def another_session() -> bool:
        found = await line(lab)
        return found.get("to_host", 0) > 0 and found["begun"] != before["begun"]

    before, restarts = await line(lab), lab.state.medium_restarts
    await nodes.run("n2", "kill -KILL $(pidof hwsim-relay)")
    await nodes.until(another_session, "the relay's next life has a session")
    await nodes.reach("n1", "n2")
    lab.kill_medium()
    await nodes.wait(lambda: lab.state.medium_restarts > restarts, "the medium is started again")
    await nodes.reach("n2", "n1")
