# SPDX-License-Identifier: Apache-2.0
"""Seven nodes in everybody's range, of which only some belong: a mesh with a passphrase.

n1 and n2 are as they should be. n3 names another mesh, n4 has a wrong passphrase, n5 has no chip
and is enrolled without one,
n6 a radio that cannot do mesh, n7 a card that nobody has written a passphrase on.
"""

from __future__ import annotations

import asyncio

from authority.cli import main
from meshlab.lab import summary
from meshlab.lab.fleet import LabFleet
from meshlab.lab.lab import Lab
from meshlab.lab.testing import FORMING, Nodes
from meshlab.machine.spec import CONSOLE_SOCKET

MESH = "misfits"


INSIDE = ["n1", "n2", "n5"]


async def test_frames_are_encrypted(nodes: Nodes) -> None:
    for name in ("n1", "n2"):
        assert nodes.status(name, "radio", "security") == "sae"
    await nodes.reach("n1", "n2")


async def test_a_node_of_another_mesh_stays_outside(lab: Lab, nodes: Nodes) -> None:
    await nodes.wait(lambda: nodes.status("n3", "radio", "state") == "joined", "n3 joins its own")
    assert nodes.status("n3", "radio", "mesh_id") == "elsewhere"
    assert lab.state.peers("n3") == set()
    assert lab.state.cluster("n3") == set()
    assert not any("n3" in lab.state.peers(name) for name in INSIDE)
    assert not await nodes.reaches("n1", "n3")


async def test_a_node_without_chip_joins_and_is_marked(lab: Lab, nodes: Nodes) -> None:
    assert nodes.status("n5", "identity", "software") is True
    assert nodes.status("n5", "identity", "source") in ("mac", "random", "board")
    assert nodes.status("n5", "identity", "serial") is None
    assert nodes.address("n5") != lab.state.nodes["n5"].expected_address
    assert nodes.problems("n5", "identity")
    await nodes.says("n5", "thicket status", "software")
    await nodes.reach("n1", "n5")


async def test_a_node_without_chip_is_enrolled_over_its_console(lab: Lab, nodes: Nodes) -> None:
    await nodes.wait(lambda: nodes.problems("n5", "trust"), "n5 says what it lacks")
    assert "thicket ca enroll" in nodes.problems("n5", "trust")[0]
    assert lab.state.cluster("n5") == set()
    assert isinstance(lab.fleet, LabFleet)
    words = ["--folder", str(lab.fleet.authority.folder), "enroll", "--software"]
    words += ["--console", str(lab.nodes["n5"].directory / CONSOLE_SOCKET)]
    assert await asyncio.to_thread(main, words) == 0
    await nodes.wait(lambda: lab.state.cluster("n5") >= {"n1", "n2"}, "n5 is in the cluster")
    await nodes.wait(lambda: nodes.status("n5", "trust", "software") is True, "n5 has no chip")
    await nodes.wait(lambda: not nodes.problems("n5", "trust"), "n5 lacks nothing more")


async def test_a_radio_without_mesh_point_is_reported_in_words(lab: Lab, nodes: Nodes) -> None:
    await nodes.wait(
        lambda: nodes.status("n6", "radio", "state") == "unsuitable", "n6 looks at its radio"
    )
    await nodes.wait(
        lambda: any("mesh point" in text for text in nodes.problems("n6", "radio")), "n6 says so"
    )
    assert any("mesh point" in text for text in summary.missing(lab.snapshot(), ["n6"])["n6"])
    await nodes.says("n6", "thicket status", "mesh point")


async def test_a_card_without_passphrase_is_no_open_node(lab: Lab, nodes: Nodes) -> None:
    await nodes.wait(lambda: nodes.problems("n7", "radio"), "n7 says what it lacks")
    (words,) = nodes.problems("n7", "radio")
    assert "write mesh.passphrase into thicket.toml" in words
    assert nodes.status("n7", "state") == "degraded"
    assert not nodes.problems("n7", "configuration"), "nothing is wrong with its file"
    assert "mesh0" not in (await nodes.run("n7", "ls /sys/class/net")).split()


async def test_a_wrong_passphrase_stays_outside_and_joins_when_corrected(
    lab: Lab, nodes: Nodes
) -> None:
    def refused() -> bool:
        # Somebody says so: the one who was refused, or those who did.
        names = (*INSIDE, "n4")
        return any("passphrase" in text for n in names for text in nodes.problems(n, "radio"))

    await nodes.wait(refused, "the wrong passphrase is reported")
    assert lab.state.peers("n4") == set()
    assert lab.state.cluster("n4") == set()
    nodes.unfit = "n4 belongs to the mesh"
    code, output = await lab.configure("n4", [f"mesh.passphrase={lab.spec.passphrase}"])
    assert code == 0, output
    # Those who refused it shun it for the time of max_inactivity.
    await lab.wait(lambda: set(INSIDE) <= lab.state.peers("n4"), FORMING, "n4 has its peers")
    await nodes.wait(lambda: {"n1", "n2"} <= lab.state.cluster("n4"), "n4 is in the cluster")
    await nodes.reach("n1", "n4")
