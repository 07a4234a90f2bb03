# SPDX-License-Identifier: Apache-2.0
"""Three nodes in a line, whose ends do not hear each other: forming, faults, and the ways back."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable

from meshlab.lab import questions, summary
from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes
from meshlab.machine.shell import ShellError
from meshlab.scenario import report
from meshlab.scenario.outcome import Outcome, Verdict

MESH = "line"


async def test_the_mesh_forms(lab: Lab) -> None:
    await lab.formed(PATIENCE)
    found = summary.summarise(lab.snapshot())
    for node in found["nodes"]:
        assert node["identity"] == "chip"
        assert node["boot_seconds"] > 0
        assert node["cpu_seconds_to_joined"] > 0


async def test_every_address_is_the_one_of_the_nodes_chip(lab: Lab, nodes: Nodes) -> None:
    for name, node in lab.state.nodes.items():
        assert node.expected_address is not None
        assert nodes.address(name) == node.expected_address
        assert nodes.status(name, "identity", "serial") == node.serial

        # The kernel's word, not the daemon's.
        async def has_it(name: str = name, address: str = node.expected_address) -> bool:
            return await nodes.kernel_addresses(name, "mesh0") == [address]

        await nodes.until(has_it, f"{name} has its address and no other")


async def test_the_ends_do_not_hear_each_other(lab: Lab, nodes: Nodes) -> None:
    neighbours = {"n1": {"n2"}, "n2": {"n1", "n3"}, "n3": {"n2"}}
    await nodes.wait(
        lambda: {name: lab.state.peers(name) for name in lab.nodes} == neighbours,
        "each has its neighbours",
    )


async def test_the_ends_reach_each_other_through_the_middle(lab: Lab, nodes: Nodes) -> None:
    await nodes.reach("n1", "n3")
    await nodes.wait(
        lambda: questions.next_hop(lab.state, "n1", "n3") == "n2", "n1 has its path to n3 over n2"
    )


async def test_all_nodes_see_each_other_in_the_cluster(lab: Lab, nodes: Nodes) -> None:
    await nodes.wait(lambda: lab.state.cluster("n1") == {"n2", "n3"}, "n1 sees the others")
    far = nodes.address("n3")
    await nodes.says("n1", "thicket nodes --json", far)
    assert far in await nodes.succeeds("n1", f"thicket ping {far}")


async def test_the_command_says_it_in_words(lab: Lab, nodes: Nodes) -> None:
    await nodes.says("n2", "thicket status", nodes.address("n2"), "joined")
    ends = [lab.state.nodes[name].radio_mac for name in ("n1", "n3")]
    await nodes.says("n2", "thicket peers", *ends)


async def test_a_cut_link_breaks_the_way_and_a_restored_one_heals_it(
    played: Callable[[str], Awaitable[Outcome]],
) -> None:
    outcome = await played("partition")
    assert outcome.verdict is Verdict.PASSED, report.table(outcome)


async def test_the_root_is_read_only(nodes: Nodes) -> None:
    mounts = await nodes.run("n1", "cat /proc/mounts")
    root = next(line for line in mounts.splitlines() if line.split()[1] == "/")
    assert root.split()[2] == "erofs"
    assert "ro" in root.split()[3].split(",")
    status, output = await nodes.lab.run("n1", "touch /usr/x")
    assert status != 0
    assert "Read-only file system" in output


async def test_a_killed_node_is_missed_and_comes_back_as_itself(lab: Lab, nodes: Nodes) -> None:
    address = nodes.address("n3")
    await nodes.run("n3", "echo kept >/data/kept && sync")
    await lab.kill("n3")
    await nodes.wait(
        lambda: "n3" not in lab.state.cluster("n1") | lab.state.peers("n2"), "n3 is missed"
    )
    await lab.power_on("n3")
    await nodes.whole()
    assert nodes.address("n3") == address
    # And what it had written survived the cut.
    assert await nodes.run("n3", "cat /data/kept") == "kept\n"
    mounts = await nodes.run("n3", "cat /proc/mounts")
    assert any(line.split()[1:3] == ["/data", "ext4"] for line in mounts.splitlines())


async def test_a_node_that_restarts_itself_rejoins(lab: Lab, nodes: Nodes) -> None:
    """With a card that is another QEMU, started through the boot ROM: to the lab, the same."""
    begun = round(lab.elapsed, 1)
    with contextlib.suppress(ShellError):  # whether or not it can still tell how that ended
        await lab.run("n2", "reboot", PATIENCE)

    def said(text: str) -> bool:
        mine = [e for e in lab.state.events if e.node == "n2" and e.at >= begun]
        return any(text in event.text for event in mine)

    await nodes.wait(lambda: said("restarts (guest-reset)"), "n2 restarts")
    await nodes.wait(lambda: nodes.status("n2", "radio", "state") == "joined", "n2 is back")
    await nodes.whole()
    await nodes.reach("n1", "n3")
    assert lab.state.nodes["n2"].power == "running"
    assert not said("switched") and not said("QEMU ended"), "it was never off"


async def test_a_killed_daemon_is_back_and_rejoins(lab: Lab, nodes: Nodes) -> None:
    before = await nodes.now("n2", "restarts")
    await nodes.succeeds("n2", "kill -9 $(pidof thicketd)")
    await nodes.wait(lambda: (nodes.status("n2", "restarts") or 0) > before, "the daemon is back")
    await nodes.whole()


async def test_a_killed_wpa_supplicant_is_replaced(lab: Lab, nodes: Nodes) -> None:
    before = await nodes.signal_supplicant("n2", "KILL")
    await nodes.wait(
        lambda: nodes.status("n2", "radio", "supplicant", "pid") not in (None, before),
        "another wpa_supplicant runs",
    )
    await nodes.whole()


async def test_a_stopped_wpa_supplicant_is_replaced(nodes: Nodes) -> None:
    before = await nodes.signal_supplicant("n2", "STOP")
    await nodes.wait(
        lambda: nodes.status("n2", "radio", "supplicant", "pid") not in (None, before),
        "another wpa_supplicant runs",
    )
    await nodes.whole()


async def test_a_killed_medium_is_survived(lab: Lab, nodes: Nodes) -> None:
    before = [await nodes.run(n, "pidof hwsim-relay; pidof thicketd") for n in lab.nodes]
    restarts = lab.state.medium_restarts
    lab.kill_medium()
    await nodes.wait(lambda: lab.state.medium_restarts > restarts, "the medium is back")
    await lab.medium_call("status", patience=PATIENCE)
    await nodes.reach("n1", "n3")
    await nodes.whole()
    after = [await nodes.run(n, "pidof hwsim-relay; pidof thicketd") for n in lab.nodes]
    assert after == before, "the nodes had to restart something"


async def test_a_radio_that_is_unplugged_and_plugged_in_again(lab: Lab, nodes: Nodes) -> None:
    await lab.radio("n3", plug=False)
    await nodes.wait(lambda: nodes.status("n3", "radio", "state") == "absent", "n3 notices")
    await nodes.wait(
        lambda: any("radio" in text for text in nodes.problems("n3", "radio")), "n3 says so"
    )
    await nodes.says("n3", "thicket status", "radio")
    await nodes.wait(lambda: "n3" not in lab.state.peers("n2"), "n2 notices")
    await lab.radio("n3", plug=True)
    await nodes.whole()
    await nodes.wait(lambda: not nodes.problems("n3", "radio"), "n3 complains no more")


async def test_a_broken_configuration_is_reported_and_the_last_good_one_used(
    lab: Lab, nodes: Nodes
) -> None:
    await lab.power_off("n3", grace=PATIENCE)
    lab.edit_card("n3", "[mesh]\nid = 7\n")
    await lab.power_on("n3")
    await nodes.wait(lambda: nodes.problems("n3", "configuration"), "the fault is reported")
    words = " ".join(nodes.problems("n3", "configuration"))
    assert "mesh.id" in words
    assert "7" in words
    await nodes.whole()
    assert nodes.status("n3", "radio", "mesh_id") == "thicket"
    await nodes.says("n3", "thicket status", "mesh.id")
    await nodes.logs("n3", "mesh.id")
    # Repaired as a person does: the card is edited again.
    await lab.power_off("n3", grace=PATIENCE)
    lab.edit_card("n3")
    await lab.power_on("n3")
    await nodes.whole()
    assert not nodes.problems("n3", "configuration")


async def test_the_simulator_itself_lost_nothing(lab: Lab, nodes: Nodes) -> None:
    """No damaged data on the way, no frame dropped by relay or medium."""
    await nodes.run("n1", f"ping -6 -n -c 50 -i 0.2 {nodes.address('n3')}; true")
    status = await lab.medium_call("status")
    assert status["frames"] > 0
    assert (status["malformed"], status["bad_rates"], status["short_frames"]) == (0, 0, 0)
    assert status["losses"]["back_pressure"] == 0
    assert {name: node["relay_dropped"] for name, node in status["nodes"].items()} == {
        "n1": 0,
        "n2": 0,
        "n3": 0,
    }
