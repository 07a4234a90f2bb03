# SPDX-License-Identifier: Apache-2.0
"""The supervisor, on parts that boot nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from meshlab.chip.driver import open_chip
from meshlab.chip.state import serial_for
from meshlab.lab import air, node, requests, saving, ssh, summary, topology
from meshlab.lab.errors import LabError, NotFormedError
from meshlab.lab.fake import FakeFleet, FakeParts
from meshlab.lab.fleet import LabFleet
from meshlab.lab.journal import Pace
from meshlab.lab.lab import Lab
from meshlab.lab.parts import Doubts
from meshlab.lab.spec import PREFIX, LabSpec, NodeSpec, to_toml
from meshlab.lab.state import visible_values
from meshlab.machine.events import Panic
from meshlab.machine.spec import CONSOLE_SOCKET
from meshlab.wire.rpc import Client, RpcError
from thicket.trust.certificates import Certificate, from_pem
from thicket.trust.credentials import enrolled_chain
from thicket.trust.fleet import Fleet

needs_ssh = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh is not installed")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the nodes, which cost nothing here, more often."""
    monkeypatch.setattr(Pace, "pause", lambda self, nodes, settled: 0.01)


def spec(count: int = 3, kind: str = "full", **more: Any) -> LabSpec:
    return LabSpec(topology=topology.make(kind, count), **more)


@asynccontextmanager
async def formed(parts: FakeParts, cache: Path, **more: Any) -> AsyncIterator[Lab]:
    async with Lab(spec(**more), parts, cache) as lab:
        await lab.formed(60)
        yield lab


async def calls(lab: Lab) -> list[list[Any]]:
    return list((await lab.medium_call("status"))["calls"])


async def test_a_lab_forms_and_leaves_nothing(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        medium = lab.air.pid
        assert medium is not None
        assert summary.summarise(lab.snapshot())["formed"] is True
        assert lab.state.formed is not None
        assert parts.starts == ["n1", "n2", "n3"]
        assert all(chip.serving for chip in parts.chips)
        await lab.wait(lambda: lab.state.nodes["n3"].guest_used_kib == 50000, 60, "memory")
    assert not parts.on
    assert not any(chip.serving for chip in parts.chips)
    assert not Path(f"/proc/{medium}").exists()
    assert lab.air.pid is None
    assert not (lab.directory / "control.sock").exists()
    assert "the mesh has formed" in (lab.directory / "events.log").read_text()


async def test_a_node_that_is_off_is_known_in_the_views_of_others(
    parts: FakeParts, tmp_path: Path
) -> None:
    async with formed(parts, tmp_path) as lab:
        listed = lab.state.nodes["n1"].status
        parts.silent = {"n1"}  # it says what it said before n3 was off
        await lab.kill("n3")
        assert lab.state.nodes["n3"].status is None
        lab.state.nodes["n1"].status = listed
        assert lab.state.cluster("n1") == {"n2", "n3"}


async def test_no_more_nodes_boot_at_once_than_there_is_room(
    parts: FakeParts, tmp_path: Path
) -> None:
    parts.silent = {"n1", "n2", "n3", "n4", "n5"}
    async with Lab(spec(5), parts, tmp_path) as lab:
        await lab.wait(lambda: len(parts.starts) == 2, 60, "two nodes are started")
        parts.silent.remove("n1")
        await lab.wait(lambda: len(parts.starts) == 3, 60, "another one is started")
        assert lab.state.nodes["n4"].power == "waiting"
        parts.silent.clear()
        await lab.formed(60)


async def test_every_host_has_its_own_boot_slots(parts: FakeParts, tmp_path: Path) -> None:
    elsewhere = FakeParts()
    elsewhere.place = "user@b:2"
    elsewhere.on = parts.on  # they see each other
    parts.silent = elsewhere.silent = {"n1", "n2", "n3", "n4", "n5", "n6"}
    others = dict.fromkeys(("n4", "n5", "n6"), elsewhere)
    async with Lab(spec(6), parts, tmp_path, others) as lab:
        started = parts.starts, elsewhere.starts
        await lab.wait(lambda: [len(each) for each in started] == [2, 2], 60, "two on each")
        assert lab.state.nodes["n3"].power == lab.state.nodes["n6"].power == "waiting"
        assert lab.state.nodes["n6"].host == "user@b:2"
        parts.silent.clear()
        await lab.formed(60)


async def test_further_doubts_make_a_run_invalid(parts: FakeParts, tmp_path: Path) -> None:
    class Some(Doubts):
        def __init__(self) -> None:
            self.found: list[str] = []
            self.resets = 0

        def reasons(self) -> list[str]:
            return self.found

        def reset(self) -> None:
            self.found = []
            self.resets += 1

    doubts = Some()
    async with Lab(spec(), parts, tmp_path, doubts=doubts) as lab:
        await lab.formed(60)
        await lab.wait(lambda: doubts.resets == 1, 60, "the measurement of the mesh begins")
        assert (await lab.medium_call("status"))["valid"] is True
        doubts.found = ["the way to b is long"]
        status = await lab.medium_call("status")
        assert status["valid"] is False
        assert status["reasons"] == ["the way to b is long"]
        await lab.wait(
            lambda: any("the way to b is long" in event.text for event in lab.state.events),
            60,
            "it is told",
        )
        await lab.medium_call("reset_stats")
        assert (await lab.medium_call("status"))["valid"] is True


async def test_a_node_whose_host_is_lost_says_so(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        (lab.nodes["n2"].directory / "qemu.log").write_text("b is out of reach: nothing came\n")
        ended = parts.on["n2"].ended
        assert ended is not None
        ended.set_result(None)  # type: ignore[arg-type] # nobody knows how it ended
        await lab.wait(lambda: lab.state.nodes["n2"].power == "died", 60, "n2 is lost")
        assert lab.state.nodes["n2"].reason == "b is out of reach: nothing came"


async def test_a_node_without_shell_is_known_by_the_report_on_its_card(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "REPORT_PAUSE", 0.01)
    parts.silent = {"n2"}
    parts.reports = dict.fromkeys(("n1", "n2"), "State:  of an earlier start\n")
    async with Lab(spec(2), parts, tmp_path) as lab:
        silent = lab.state.nodes["n2"]
        await lab.wait(lambda: lab.nodes["n2"].tasks, 60, "n2 is on")
        await lab.wait(lambda: lab.state.nodes["n1"].status, 60, "n1 answers")
        assert silent.report is None
        problem = "radio (error): USB devices without a driver: 0403:6001"
        report = f"Host name:  n-1\nState:      bad\x1b[2J\n\nProblems\n  - {problem}\n\nMore.\n"
        parts.reports["n2"] = parts.reports["n1"] = report
        await lab.wait(lambda: silent.report, 60, "the card is read")
        assert silent.report == f"bad\\u001b[2J; {problem}"
        (words,) = summary.missing(lab.snapshot())["n2"]
        assert words.endswith(f"after power-on. The report on its card: {silent.report}")
        told = [event.node for event in lab.state.events if problem in event.text]
        assert told == ["n2"], "once, and of the one that does not answer"
        parts.silent.clear()
        await lab.formed(60)
        await lab.wait(lambda: silent.report is None, 60, "it speaks for itself")


async def test_what_is_missing_is_said(parts: FakeParts, tmp_path: Path) -> None:
    parts.unlinked = {"n2"}
    async with Lab(spec(3), parts, tmp_path) as lab:
        alone = {"n1": ["no link with n2"], "n2": ["no link with n1, n3"]}
        await lab.wait(
            lambda: all(
                summary.missing(lab.snapshot()).get(name, [])[:1] == words
                for name, words in alone.items()
            ),
            60,
            "all but n2 is through",
        )
        with pytest.raises(NotFormedError, match="n2: no link with n1, n3") as caught:
            await lab.formed(0.1)
        assert set(caught.value.lacking) == {"n1", "n2", "n3"}


async def test_a_second_lab_of_the_same_name_is_refused(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path):
        with pytest.raises(LabError, match=rf"process {os.getpid()}.*LAB=other"):
            await Lab(spec(), parts, tmp_path).start()
        async with Lab(spec(name="other"), FakeParts(), tmp_path) as other:
            await other.formed(60)
    async with Lab(spec(), parts, tmp_path) as again:
        await again.formed(60)


async def test_fresh_by_default_and_kept_on_request(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        node = lab.directory / "n1"
        (node / "data.img").write_text("mine")
        (node / "config.img").write_text("edited")
    async with formed(parts, tmp_path, keep=True):
        assert (node / "data.img").read_text() == "mine"
        assert (node / "config.img").read_text() == "edited"
    async with formed(parts, tmp_path):
        assert not (node / "data.img").exists()
        assert "[mesh]" in (node / "config.img").read_text()
    assert (node / "console.log.1").exists()


async def test_nodes_get_their_configuration(parts: FakeParts, tmp_path: Path) -> None:
    nodes = {
        "n2": NodeSpec(config={"mesh": {"id": "other"}}, mesh_point=False),
        "n3": NodeSpec(config_text="broken =", chip_fault="absent"),
    }
    async with Lab(spec(security="sae", nodes=nodes), parts, tmp_path) as lab:
        texts = [(lab.directory / f"n{i}" / "config.img").read_text() for i in (1, 2, 3)]
        first, second = tomllib.loads(texts[0]), tomllib.loads(texts[1])
        assert first["mesh"]["security"] == "sae"
        assert len(first["mesh"]["passphrase"]) >= 8
        assert (first["mesh"]["id"], second["mesh"]["id"]) == ("thicket", "other")
        assert texts[2] == "broken ="
        assert parts.chips[2].fault == "absent"
        assert lab.state.expected_peers("n1") == {"n3"}
        assert first["trust"]["root"] == "the root of default"
        assert "security" not in first["cluster"]
        serials = [bytes.fromhex(node.serial or "") for node in lab.state.nodes.values()]
        assert lab.fleet.enrolled == serials  # type: ignore[union-attr]
        medium = (lab.directory / "medium.json").read_text()
        assert medium.count('"mesh": false') == 1
    async with Lab(spec(security="open"), parts, tmp_path) as lab:
        assert lab.fleet is None
        config = tomllib.loads((lab.directory / "n1" / "config.img").read_text())
        assert (config["cluster"]["security"], config["discovery"]["beacon"]) == ("cookie", "plain")
        assert "trust" not in config


class Chipless(FakeParts):
    """Nodes without chip, which are in no fleet until they are enrolled."""

    has_chip = False
    image = "pi"

    def __init__(self, fleet: Callable[[], FakeFleet]) -> None:
        super().__init__()
        self.of = fleet

    def status(self, name: str) -> dict[str, Any] | None:
        found = super().status(name)
        if found is not None:
            state = "ready" if self.of().consoles else "not-enrolled"
            found |= {"trust": {"state": state}}
        return found


async def test_a_node_of_other_parts_without_chip(parts: FakeParts, tmp_path: Path) -> None:
    def fleet() -> FakeFleet:
        assert isinstance(lab.fleet, FakeFleet)
        return lab.fleet

    other = Chipless(fleet)
    other.on = parts.on  # they see each other
    lab = Lab(spec(security="sae"), parts, tmp_path, {"n2": other})
    async with lab:
        await lab.formed(20)
        assert [machine.name for machine in other.machines] == ["n2"]
        texts = {name: node.directory / "config.img" for name, node in lab.nodes.items()}
        assert tomllib.loads(texts["n2"].read_text())["identity"] == {"i2c_bus": "none"}
        assert "identity" not in tomllib.loads(texts["n1"].read_text())
        node = lab.state.nodes["n2"]
        assert (node.serial, node.expected_address) == (None, None)
        serials = [each.serial for each in lab.state.nodes.values() if each.serial]
        assert [serial.hex() for serial in fleet().enrolled] == serials
        await lab.wait(lambda: fleet().consoles, 20, "n2 is enrolled")
        assert fleet().consoles == [lab.nodes["n2"].directory / CONSOLE_SOCKET]
        await lab.wait(
            lambda: any("software-1" in event.text for event in lab.state.events), 20, "it is told"
        )
        with pytest.raises(RpcError, match="n2 has no chip"):
            await lab.chip_fault("n2", "absent")
        await lab.power_off("n2", grace=0)
        lab.edit_card("2", "x = 1\n")
        assert texts["n2"].read_text() == "x = 1\n"


def test_a_fleet_enrols_chips_and_knows_them_again(tmp_path: Path) -> None:
    made = LabFleet(tmp_path, "one", PREFIX, keep=False)
    serial = serial_for(0, 1)
    chip = tmp_path / "chip.json"
    made.enroll(chip, serial, 0)
    fleet = Fleet(from_pem(made.root)[0])
    device = Certificate(enrolled_chain(open_chip(chip), fleet)[0])
    assert device.common_name == serial.hex()
    operator = made.authority.operators.open(None)
    kept = LabFleet(tmp_path, "one", PREFIX, keep=True)
    assert kept.root == made.root
    assert kept.authority.operators.open(None).certificate == operator.certificate
    before = chip.read_text()
    kept.enroll(chip, serial, 0)
    assert chip.read_text() == before
    # another fleet: the chip is a NervesKey now, and has other slots for it
    other = LabFleet(tmp_path, "one", PREFIX, keep=False)
    assert other.root != made.root
    other.enroll(chip, serial, 0)
    assert enrolled_chain(open_chip(chip), Fleet(from_pem(other.root)[0]))
    with pytest.raises(LabError, match=r"console\.sock: the node cannot be enrolled: "):
        other.enroll_software(tmp_path / CONSOLE_SOCKET)
    with pytest.raises(LabError, match="cannot be made"):
        LabFleet(tmp_path, "two", "fd00::/99", keep=False)


async def asked(lab: Lab, client: Client, method: str, params: dict[str, Any]) -> asyncio.Task[Any]:
    """Make a request that lasts, and return when it has sent an event."""
    begun: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    call = asyncio.create_task(client.call(method, params, timeout=None, on_event=begun.set_result))
    done, _ = await asyncio.wait({call, begun}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert done, f"{method} says nothing"
    if call in done:
        call.result()
    return call


@needs_ssh
async def test_ssh_is_led_to_a_server_that_is_started_for_it(
    parts: FakeParts, tmp_path: Path
) -> None:
    async with formed(parts, tmp_path) as lab:
        machine = parts.on["n1"]
        async with await Client.connect(lab.directory / "control.sock") as client:
            pipe = {"node": "n1", "path": "/somewhere/pipe.sock"}
            await asked(lab, client, "pipe", pipe)
            assert [path for path, _ in machine.ports.added.values()] == [Path(pipe["path"])]
            public = (lab.directory / "ssh/id.pub").read_text().strip()
            assert any(f"K='{public}' C=port1 " in each for each in machine.shell.commands)
            with pytest.raises(LabError, match="somebody is connected with n1"):
                await saving.save(lab, "now")
            # The node's program ends it ...
            again = await asked(lab, client, "pipe", pipe)
            machine.ports.added["port2"][1].set()
            assert await asyncio.wait_for(again, 60) == {}
            for wrong in ({"node": "n1"}, {"node": "n1", "path": "here"}):
                with pytest.raises(RpcError, match="from the root"):
                    await client.call("pipe", wrong)
            parts.broken.add("n2")
            with pytest.raises(RpcError, match="n2 has no room"):
                await client.call("pipe", {**pipe, "node": "n2"})
        # ... or the client's leaving.
        await lab.wait(lambda: not machine.ports.added, 60, "nothing is left of it")


@needs_ssh
async def test_cables_are_pulled_when_their_client_leaves(parts: FakeParts, tmp_path: Path) -> None:
    parts.cables = True
    async with formed(parts, tmp_path) as lab:
        key = (lab.directory / "ssh/id.pub").read_text().strip()
        assert lab.nodes["n1"].config["access"]["ssh_keys"] == key
        ports = {name: machine.ports for name, machine in parts.on.items()}
        async with await Client.connect(lab.directory / "control.sock") as client:
            await asked(lab, client, "cable", {"nodes": ["n1", 2]})
            assert [ports[name].plugged for name in ("n1", "n2", "n3")] == [True, True, False]
            with pytest.raises(RpcError, match="n2 has a cable already"):
                await client.call("cable", {"nodes": ["n3", "n2"]})
            with pytest.raises(RpcError, match="name at least one"):
                await client.call("cable", {"nodes": []})
            await lab.kill("n3")
            with pytest.raises(RpcError, match="n3 is off"):
                await client.call("cable", {"nodes": ["n3"]})
        await lab.wait(lambda: not any(len(each) for each in ports.values()), 60, "all are pulled")
        async with await Client.connect(lab.directory / "control.sock") as client:
            await asked(lab, client, "cable", {"nodes": ["n2"]})


@needs_ssh
def test_a_lab_s_keys_and_what_ssh_has_to_know(tmp_path: Path) -> None:
    key = ssh.public_key(tmp_path)
    assert key.startswith("ssh-ed25519 ")
    assert ssh.public_key(tmp_path) == key
    assert (tmp_path / "ssh/id").stat().st_mode & 0o077 == 0
    path = ssh.write_config(tmp_path, ["env", "A=b c%", "pipe"])
    done = subprocess.run(
        ["ssh", "-G", "-F", path, "n3"], capture_output=True, text=True, check=True
    )
    known = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert known["user"] == "root"
    assert known["proxycommand"] == "env 'A=b c%%' pipe %h"
    assert known["identityfile"] == str(tmp_path / "ssh/id")
    ssh.forget(tmp_path)
    assert ssh.public_key(tmp_path) != key


async def test_a_node_is_killed_and_comes_back(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await lab.kill("n2")
        assert lab.state.nodes["n2"].power == "off"
        await lab.wait(lambda: lab.state.peers("n1") == {"n3"}, 60, "n1 loses n2")
        texts = [event.text for event in lab.state.events]
        assert "link with n2 is gone" in texts
        with pytest.raises(LabError, match="n2 is not on"):
            await lab.kill("n2")
        await lab.power_on("n2")
        await lab.wait(lambda: not summary.missing(lab.snapshot()), 60, "whole again")
        await lab.power_off("n2", grace=5)
        assert parts.machines[-1].stopped_with == 5


async def test_a_machine_that_dies_is_told(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        (lab.directory / "n1" / "qemu.log").write_text("qemu: out of memory\n")
        parts.on["n1"].end(1)
        await lab.wait(lambda: lab.state.nodes["n1"].power == "died", 60, "n1 is dead")
        reason = "QEMU ended with status 1: qemu: out of memory"
        assert lab.state.nodes["n1"].reason == reason
        assert parts.on["n2"].on_event is not None
        parts.on["n2"].on_event(Panic("not syncing"))
        assert lab.state.events[-1].text == "its kernel panicked: not syncing"
        parts.on["n2"].end(0)
        await lab.wait(lambda: lab.state.nodes["n2"].power == "off", 60, "n2 went by itself")


async def test_a_machine_that_does_not_start_ends_the_lab(parts: FakeParts, tmp_path: Path) -> None:
    parts.broken = {"n2"}
    async with Lab(spec(), parts, tmp_path) as lab:
        with pytest.raises(LabError, match="n2 did not start: no such program"):
            await lab.formed(60)
        assert lab.done.is_set()


async def test_the_medium_is_started_again(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        first = lab.air.pid
        assert first is not None
        lab.kill_medium()
        await lab.wait(lambda: lab.state.medium_restarts == 1, 60, "it was noticed")
        await lab.wait(lambda: lab.state.medium.get("valid"), 60, "it answers")
        assert lab.air.pid not in (first, None)
        assert any("signal SIGKILL" in event.text for event in lab.state.events)


async def test_a_medium_that_cannot_run_ends_the_lab(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(air, "RESTART_PAUSE", 0.01)
    parts.medium_code = "raise SystemExit('no medium today')"
    parts.silent = {"n1", "n2", "n3"}
    async with Lab(spec(), parts, tmp_path) as lab:
        with pytest.raises(LabError, match=r"does not stay up.*no medium today"):
            await lab.wait(lambda: False, 120, "it fails")
        # Nobody starts it again: who asks for it does not wait.
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(RpcError, match=r"does not stay up.*no medium today"):
                await lab.medium_call("status", patience=3600)


async def test_links_are_changed_and_expected_no_more(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await lab.wait(lambda: lab.state.medium.get("valid"), 60, "the medium answers")
        await lab.link("1", "n2", cut=True)
        assert (await calls(lab))[-1][1] == {"a": "n1", "b": "n2", "both": True, "cut": True}
        assert lab.state.expected_peers("n1") == {"n3"}
        await lab.link("n1", "n2", snr=20, both=False)
        link = lab.state.links["n1", "n2"]
        assert (link.snr, link.snr_back) == (20, None)
        await lab.link("n1", "n2", fading="rayleigh doppler=2", both=False)
        told = {"a": "n1", "b": "n2", "both": True, "fading": "rayleigh doppler=2"}
        assert (await calls(lab))[-1][1] == told, "channels are reciprocal"
        await lab.link("n1", "n2", restore=True)
        assert lab.state.expected_peers("n1") == {"n2", "n3"}
        with pytest.raises(RpcError, match="say one of"):
            await lab.link("n1", "n2")
        with pytest.raises(RpcError, match="say one of"):
            await lab.link("n1", "n2", cut=True, restore=True)
        with pytest.raises(RpcError, match="two different ends"):
            await lab.link("n1", "n1", cut=True)


async def test_clients(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        async with await Client.connect(lab.directory / "control.sock") as client:
            heard: list[Any] = []
            answer = await client.call(
                "exec", {"node": 2, "command": "echo x"}, on_event=heard.append
            )
            assert answer == {"status": 0}
            assert heard == [{"output": "n2$ echo x\n"}]
            answer = await client.call("exec", {"node": "n2", "command": "false"})
            assert answer == {"status": 3}
            with pytest.raises(RpcError, match=r"not finished after 0\.1 s"):
                await client.call("exec", {"node": "n1", "command": "hang", "timeout": 0.1})
            with pytest.raises(RpcError, match="no node n9: the lab 'default' has n1 to n3"):
                await client.call("exec", {"node": "9", "command": "true"})
            assert (await client.call("summary"))["formed"] is True
            assert (await client.call("status"))["name"] == "default"
            await client.call("power", {"node": "n3", "action": "kill"})
            with pytest.raises(RpcError, match="n3 is off: `meshlab power n3 on`"):
                await client.call("exec", {"node": "n3", "command": "true"})
            await client.call("power", {"node": "n3", "action": "on"})
            with pytest.raises(RpcError, match="n3 is on already"):
                await client.call("power", {"node": "n3", "action": "on"})
            await client.call("chip", {"node": "n1", "fault": "nak"})
            assert parts.chips[0].fault == "nak"
            await client.call("chip", {"node": "n1", "fault": "none"})
            assert parts.chips[0].fault is None
            with pytest.raises(RpcError, match="is no fault"):
                await client.call("chip", {"node": "n1", "fault": "melted"})
            await client.call("radio", {"node": "n1", "action": "unplug"})
            await client.call("move", {"node": "n1", "x": 5, "y": 6.5})
            await client.call("pcap", {"path": "/tmp/x", "nodes": ["1"], "links": [["2", "n3"]]})
            # On a busy host the lab's own reset of the figures may still come in between.
            asked = [call for call in await calls(lab) if call[0] != "reset_stats"]
            assert asked[-3:] == [
                ["radio", {"node": "n1", "index": 0, "plug": False}],
                ["move", {"node": "n1", "x": 5, "y": 6.5}],
                [
                    "pcap",
                    {"path": "/tmp/x", "nodes": ["n1"], "links": [["n2", "n3"]], "decrypt": False},
                ],
            ]
            assert lab.state.nodes["n1"].position == (5, 6.5)
            await client.call("down")
        await asyncio.wait_for(lab.done.wait(), PATIENCE)


async def test_a_capture_in_clear_asks_nodes_for_their_keys(
    parts: FakeParts, tmp_path: Path
) -> None:
    async with (
        formed(parts, tmp_path) as lab,
        await Client.connect(lab.directory / "control.sock") as client,
    ):
        await client.call("pcap", {"path": str(tmp_path / "x"), "decrypt": True})
        pairs = [params["pairs"] for name, params in await calls(lab) if name == "keys"]
        assert [entry[:2] for entry in pairs[0]] == [["027468000001", "027468000002"]] * 3
        await client.call("pcap", {"stop": True})


async def test_a_client_that_leaves_ends_its_command(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        client = await Client.connect(lab.directory / "control.sock")
        asking = asyncio.create_task(client.call("exec", {"node": "n1", "command": "hang"}))
        await lab.wait(
            lambda: any("hang" in m.exec_shell.commands for m in parts.machines), 60, "it runs"
        )
        await client.close()
        await lab.wait(lambda: parts.cancelled == ["hang"], 60, "it is ended")
        with pytest.raises(RpcError):
            await asking


async def test_following_a_log_sends_every_line_once(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "LOG_PAUSE", 0.01)
    async with formed(parts, tmp_path) as lab:
        heard: list[str] = []
        async with await Client.connect(lab.directory / "control.sock") as client:
            following = asyncio.create_task(
                client.call(
                    "logs",
                    {"node": "n1", "follow": True},
                    on_event=lambda event: heard.extend(event["output"].splitlines()),
                )
            )
            await lab.wait(lambda: heard == ["a", "b"], 60, "what is there")
            parts.syslog = ["b", "c", "d"]
            await lab.wait(lambda: heard == ["a", "b", "c", "d"], 60, "what came")
            parts.syslog = ["x"]
            await lab.wait(lambda: heard[4:] == ["x"], 60, "after a restart")
            following.cancel()


async def test_a_changed_configuration_changes_what_is_expected(
    parts: FakeParts, tmp_path: Path
) -> None:
    async with formed(parts, tmp_path) as lab:
        code, output = await lab.configure("n1", ["mesh.id=my mesh", "cluster.cookie=c"])
        assert (code, output) == (
            0,
            "n1$ thicket config set 'mesh.id=my mesh' cluster.cookie=c\n",
        )
        assert lab.state.expected_peers("n1") == set()
        assert lab.state.expected_peers("n2") == {"n3"}
        with pytest.raises(RpcError, match=r"'meshid' is not section\.key=value"):
            await lab.configure("n1", ["meshid"])


async def test_a_report_names_every_node_and_its_console(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        with pytest.raises(TimeoutError) as caught:
            await lab.wait(lambda: False, 0.1, "something impossible")
        text = str(caught.value)
        assert "not within 0.1 s: something impossible" in text
        for name in ("n1", "n2", "n3"):
            assert f"--- {name}: up" in text
            assert f"console of {name}" in text


@given(
    st.dictionaries(
        st.text(ascii_lowercase, min_size=1, max_size=8),
        st.dictionaries(
            st.text(ascii_lowercase + "_", min_size=1, max_size=8),
            st.booleans()
            | st.integers(-(1 << 63), (1 << 63) - 1)
            | st.text(st.characters(exclude_categories=["Cs"])),
        ),
    )
)
def test_a_configuration_is_toml(config: dict[str, dict[str, Any]]) -> None:
    assert tomllib.loads(to_toml(config)) == config


SUPERVISOR = """
import pathlib, sys
from meshlab.lab import topology
from meshlab.cli.lab import run_supervised
from meshlab.lab.fake import FakeParts
from meshlab.lab.lab import Lab
from meshlab.lab.journal import Pace
from meshlab.machine.events import Panic
from meshlab.lab.spec import LabSpec
async def main():
    lab = Lab(LabSpec(topology=topology.make("line", 2)), FakeParts(), pathlib.Path(sys.argv[1]))
    async with lab:
        await lab.wait(lambda: lab.state.medium.get("valid"), 60, "the medium runs")
        print(lab.air.pid, flush=True)
        await lab.done.wait()
    return 0
sys.exit(run_supervised(main()))
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_nothing_is_left_running_however_it_ends(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    code = SUPERVISOR
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdout is not None
        medium = int(supervisor.stdout.readline())
        os.kill(medium, 0)
        supervisor.send_signal(number)
        assert supervisor.wait(60) == status
    deadline = time.monotonic() + PATIENCE
    while Path(f"/proc/{medium}").exists() and not _zombie(medium):
        assert time.monotonic() < deadline, "the medium outlived the supervisor"
        time.sleep(0.02)


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_messages_name_the_lab_that_they_mean(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path, name="other") as lab:
        with pytest.raises(LabError, match="`meshlab --lab other down`"):
            async with Lab(spec(name="other"), parts, tmp_path):
                pass
        async with await Client.connect(lab.directory / "control.sock") as client:
            await client.call("power", {"node": "n2", "action": "kill"})
            with pytest.raises(RpcError, match="`meshlab --lab other power n2 on`"):
                await client.call("exec", {"node": "n2", "command": "true"})
            with pytest.raises(RpcError, match="the lab 'other' has n1 to n3"):
                await client.call("exec", {"node": "n7", "command": "true"})


def test_values_are_visible_in_every_depth() -> None:
    assert visible_values({"\x1b[2J": [1, {"a": "\x9d0;you are root\x9c"}], "b": None}) == {
        "\\u001b[2J": [1, {"a": "\\u009d0;you are root\\u009c"}],
        "b": None,
    }
