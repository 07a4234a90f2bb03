# SPDX-License-Identifier: Apache-2.0
"""Ways into a simulated fleet from this machine: ssh, files, ``thicket --lab``, Erlang, a cable.

The programs are those of a person: the real ssh, and the commands as processes of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from meshlab.cable.errors import CableError
from meshlab.cable.network import check
from meshlab.lab.lab import Lab
from meshlab.lab.ssh import FOLDER
from meshlab.lab.testing import PATIENCE, Nodes

MESH = "line"
TREE = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")


class Desk:
    """The machine of a person beside a lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    async def meshlab(self, *words: str, given: bytes = b"") -> tuple[int, str, str]:
        """Run a command of ``meshlab``; return its status and what it says."""
        return await self.run(
            sys.executable, "-m", "meshlab", "--lab", self._lab.spec.name, *words, given=given
        )

    async def thicket(self, *words: str, given: bytes = b"", at: str = "") -> tuple[int, str, str]:
        """Run ``thicket --lab``."""
        name = self._lab.spec.name + at
        return await self.run(
            sys.executable, "-m", "meshlab.cli.remote", "--lab", name, *words, given=given
        )

    async def run(self, *words: str, given: bytes = b"") -> tuple[int, str, str]:
        paths = [TREE / each for each in ("tests/meshlab/src", "app/src", "tools/src")]
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "TERM": "dumb"},
        )
        try:
            async with self._lab.within(PATIENCE):
                out, err = await process.communicate(given)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return process.returncode, out.decode("utf-8", "replace"), err.decode("utf-8", "replace")


@pytest.fixture
def desk(lab: Lab) -> Desk:
    return Desk(lab)


async def test_ssh_lets_in_the_lab_s_key_and_no_other(
    lab: Lab, nodes: Nodes, desk: Desk, tmp_path: Path
) -> None:
    name = await nodes.run("n1", "hostname")
    found = await desk.meshlab("ssh", "n1", "--", "hostname; cat; exit 3", given=b"typed")
    assert found == (3, f"{name}typed", "")
    folder = lab.directory / FOLDER
    code, _, err = await desk.run(
        "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{tmp_path}/id"
    )
    assert code == 0, err
    other = (folder / "config").read_text().replace(str(folder / "id"), str(tmp_path / "id"))
    (tmp_path / "config").write_text(other)
    code, out, err = await desk.run("ssh", "-F", str(tmp_path / "config"), "n1", "echo in")
    assert (code, out) == (255, "")
    assert "Permission denied (publickey)" in err
    # Nothing is left of what has ended.
    await lab.wait(lambda: _channels(lab) == 0, PATIENCE, "no channel is left")


def _channels(lab: Lab) -> int:
    return sum(len(node.running().ports) for node in lab.nodes.values())


async def test_several_are_in_a_node_at_a_time_and_as_many_as_it_has_room_for(
    lab: Lab, desk: Desk
) -> None:
    stay = [
        asyncio.create_task(desk.meshlab("ssh", "n2", "--", "echo in; cat", given=b"x" * 200_000))
        for _ in range(3)
    ]
    for code, out, _ in await asyncio.gather(*stay):
        assert (code, len(out)) == (0, 200_003)


async def test_files_and_folders_are_copied_both_ways(
    lab: Lab, nodes: Nodes, desk: Desk, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    (folder / "deep").mkdir(parents=True)
    (folder / "a b").write_bytes(os.urandom(300_000))
    (folder / "deep/run").write_text("#!/bin/sh\n")
    (folder / "deep/run").chmod(0o755)
    assert await desk.meshlab("cp", str(folder), "n3:/tmp") == (0, "", "")
    assert await desk.meshlab("cp", str(folder / "a b"), "n3:/tmp/c") == (0, "", "")
    size = await nodes.run("n3", "[ -x /tmp/one/deep/run ] && wc -c </tmp/c")
    assert size.split() == ["300000"]
    code, _, err = await desk.meshlab("cp", "n3:/tmp/one", "n3:/tmp/c", str(tmp_path / "back"))
    assert (code, "need a folder" in err) == (1, True)
    (tmp_path / "back").mkdir()
    assert await desk.meshlab("cp", "n3:/tmp/one", "3:/tmp/c", str(tmp_path / "back")) == (
        0,
        "",
        "",
    )
    assert (tmp_path / "back/c").read_bytes() == (folder / "a b").read_bytes()
    assert (tmp_path / "back/one/a b").read_bytes() == (folder / "a b").read_bytes()
    assert (tmp_path / "back/one/deep/run").stat().st_mode & 0o100
    code, _, err = await desk.meshlab("cp", "n3:/tmp/none", str(tmp_path))
    assert code == 1
    assert "n3:/tmp/none was not copied" in err


async def test_commands_of_nodes_run_as_the_lab_s_operator(
    lab: Lab, nodes: Nodes, desk: Desk, tmp_path: Path
) -> None:
    names = {name: (await nodes.run(name, "hostname")).strip() for name in lab.nodes}
    code, out, err = await desk.thicket("fleet", "--json")
    assert code == 0, err
    assert {each["host"] for each in json.loads(out)["nodes"]} == set(names.values())
    # Its neighbour's neighbour, through the mesh: TLS with the operator's certificate.
    code, out, err = await desk.thicket("status", names["n3"], "--json")
    assert (code, json.loads(out)["address"]) == (0, nodes.address("n3")), err
    code, out, _ = await desk.thicket("logs", names["n3"])
    assert "thicketd" in out
    code, out, err = await desk.thicket("shell", names["n3"], given=b"hostname; exit 4\n")
    assert (code, out.strip()) == (4, names["n3"]), err
    (tmp_path / "file").write_bytes(b"from here")
    code, _, err = await desk.thicket("cp", str(tmp_path / "file"), f"{names['n2']}:/tmp")
    assert code == 0, err
    assert await nodes.run("n2", "cat /tmp/file") == "from here"
    # It can be entered anywhere.
    code, out, _ = await desk.thicket("run", "--", "hostname", at="/n2")
    assert (code, out.strip()) == (0, names["n2"])
    code, _, err = await desk.thicket("status", at="/n9")
    assert (code, "there is no node n9" in err) == (1, True)


@pytest.mark.skipif(shutil.which("erl") is None, reason="erl is not installed")
async def test_a_real_erlang_of_this_machine_joins_the_fleet(
    lab: Lab, nodes: Nodes, desk: Desk
) -> None:
    first, third = (f"thicket@{nodes.address(name)}" for name in ("n1", "n3"))
    words = (
        f"io:format(\"~p ~p ~p~n\", [net_adm:ping('{first}'), net_adm:ping('{third}'), "
        "length(nodes())]), halt()."
    )
    code, out, err = await desk.thicket("erl", "-noshell", "-eval", words)
    assert (code, out.split()) == (0, ["pong", "pong", "2"]), err


@pytest.mark.skipif(shutil.which("iex") is None, reason="iex is not installed")
async def test_a_real_iex_of_this_machine_joins_the_fleet(
    lab: Lab, nodes: Nodes, desk: Desk
) -> None:
    third = f"thicket@{nodes.address('n3')}"
    words = f'IO.puts("#{{Node.ping(:"{third}")}} #{{length(Node.list())}}"); System.halt(0)'
    code, out, err = await desk.thicket("iex", "--eval", words)
    assert code == 0, err
    assert out.split()[-2:] == ["pong", "2"]


# --- cables ---------------------------------------------------------------------------------------


@pytest.fixture
def cabled() -> None:
    try:
        check()
    except CableError as error:
        pytest.skip(str(error))


WAIT = 'while [ ! -e "$0" ]; do sleep 0.1; done'


@pytest.mark.usefixtures("cabled")
async def test_a_cable_leads_to_the_wired_ports_of_nodes_until_it_is_pulled(
    nodes: Nodes, desk: Desk, tmp_path: Path
) -> None:
    for name in ("n1", "n2"):
        # The node has brought it up, for whoever comes.
        await nodes.succeeds(name, "[ $(cat /sys/class/net/eth0/carrier) = 0 ]")
    enough = tmp_path / "enough"
    call = asyncio.create_task(
        desk.meshlab("cable", "n1", "n2", "--", "sh", "-c", WAIT, str(enough))
    )
    for name in ("n1", "n2"):
        await nodes.succeeds(name, "[ $(cat /sys/class/net/eth0/carrier) = 1 ]")
    # One cable at a time.
    code, _, err = await desk.meshlab("cable", "n2", "--", "true")
    assert (code, "n2 has a cable already" in err) == (1, True)
    enough.touch()
    code, _, err = await call
    assert code == 0, err
    for name in ("n1", "n2"):
        await nodes.succeeds(name, "[ $(cat /sys/class/net/eth0/carrier) = 0 ]")


@pytest.mark.usefixtures("cabled")
async def test_devices_at_a_cable_are_found_and_entered(
    nodes: Nodes, desk: Desk, tmp_path: Path
) -> None:
    names = [(await nodes.run(name, "hostname")).strip() for name in ("n1", "n2")]
    remote = (sys.executable, "-m", "remote.cli", "--folder", str(tmp_path / "fleet"))

    async def found() -> bool:
        _, out, _ = await desk.meshlab("cable", "n1", "n2", "--", *remote, "--cable")
        return all(name in out for name in names)

    await nodes.until(found, "both are found at the cable by their names")
    words = ("cable", "n1", "n2", "--", *remote, "--cable", names[1], "status")
    code, out, err = await desk.meshlab(*words)
    assert code == 0, err
    assert f"Host name:      {names[1]}" in out
