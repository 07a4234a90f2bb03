# SPDX-License-Identifier: Apache-2.0
"""A mesh on two machines: two SSH servers on the loopback device, each with a folder of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ssh_server import MISSING, SSHD, SshServer, program

from host.cache import cache_root
from meshlab.hosts.placement import HostSpec
from meshlab.hosts.spread import Wanted, spread
from meshlab.lab import real_parts, topology
from meshlab.lab.lab import Lab
from meshlab.lab.paths import lab_directory
from meshlab.lab.slots import Places
from meshlab.lab.spec import LabSpec
from meshlab.lab.testing import FORMING, NODES_PER_CORE, Nodes

pytestmark = [
    pytest.mark.skipif(
        not os.environ.get("THICKET_SOAK"), reason="takes minutes: `make soak`, or THICKET_SOAK=1"
    ),
    pytest.mark.skipif(SSHD is None, reason=MISSING),
]

NAME = "test-hosts"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def agents(server: SshServer) -> Iterator[int]:
    """Return the agents of a server's sessions."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"meshlab.hosts.agent" in words and os.fsencode(server.home) in b" ".join(words):
                    yield int(entry.name)


def running(server: SshServer) -> set[int]:
    """Return what runs in the folder of a server's sessions: its QEMUs."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if str((entry / "cwd").readlink()).startswith(str(server.home)):
                    found.add(int(entry.name))
    return found


async def test_a_mesh_forms_on_two_machines_and_survives_the_loss_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = len(os.sched_getaffinity(0))
    places = Places(cache_root() / "node-places", NODES_PER_CORE * cores, "tests on running nodes")
    held = await places.take(4)
    made = real_parts.load("lab", cache_root(), 1, say)
    shape = topology.make("line", 4)
    parts = dict.fromkeys(shape.names, made)
    wanted = Wanted([HostSpec("a", 1), HostSpec("b", 1)])
    with (
        SshServer(tmp_path / "a", "a") as first,
        SshServer(tmp_path / "b", "b") as second,
    ):
        settings = first.settings(), second.settings()
        monkeypatch.setenv("THICKET_SSH", program(tmp_path / "ssh.conf", *settings))
        try:
            own = NAME, lab_directory(NAME)
            async with spread(wanted, own, parts, keep=False, tell=say) as found:
                spec = LabSpec(topology=shape, name=NAME)
                async with Lab(spec, made, others=found.others, doubts=found.doubts) as lab:
                    await play(lab, first, second)
        finally:
            for place in held:
                place.free()
        assert not running(first) | running(second)


async def play(lab: Lab, first: SshServer, second: SshServer) -> None:
    nodes = Nodes(lab)
    await lab.formed(FORMING)
    say(f"formed after {lab.elapsed:.1f} s")
    assert [node.state.host for node in lab.nodes.values()] == ["a", "a", "b", "b"]
    assert len(running(first)) >= 2
    assert len(running(second)) >= 2
    # The ends of the line are on different machines.
    await nodes.reach("n1", "n4")
    assert (await nodes.run("n3", "cat; true")) == ""

    await lab.chip_fault("n2", "absent")
    await lab.chip_fault("n2", None)

    await lab.kill("n4")
    await nodes.wait(lambda: "n4" not in lab.state.cluster("n3"), "n3 loses n4")
    await lab.power_on("n4")
    await nodes.whole()

    for agent in agents(second):
        os.kill(agent, signal.SIGKILL)
    await nodes.wait(
        lambda: lab.state.nodes["n3"].power == lab.state.nodes["n4"].power == "died",
        "the nodes of a machine whose agent was killed are lost",
    )
    assert "b is out of reach" in str(lab.state.nodes["n3"].reason)
    await nodes.wait(lambda: not running(second), "its QEMUs have ended with it")
    await asyncio.gather(lab.power_on("n3"), lab.power_on("n4"))
    await nodes.whole()
    await nodes.reach("n1", "n4")
    status = await lab.medium_call("status")
    say(f"medium: {status['valid']} {status.get('reasons')}, answers {status.get('answer_ms')}")
