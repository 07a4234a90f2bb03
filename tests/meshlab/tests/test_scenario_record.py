# SPDX-License-Identifier: Apache-2.0
"""What a person does to a lab, and the scenario that is recorded of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from meshlab.lab import topology
from meshlab.lab.fake import FakeParts
from meshlab.lab.journal import Pace
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec
from meshlab.scenario import actions
from meshlab.scenario.actions import Action
from meshlab.scenario.errors import ScenarioError
from meshlab.scenario.file import parse
from meshlab.scenario.record import recorded
from meshlab.wire.rpc import Client, RpcError


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "pause", lambda self, nodes, settled: 0.01)


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """A client of a lab that has formed."""
    spec = LabSpec(topology.make("full", 3))
    async with Lab(spec, FakeParts(), tmp_path) as lab:
        await lab.formed(60)
        async with await Client.connect(lab.directory / "control.sock") as found:
            yield found


def steps(text: str) -> list[Action]:
    return [step.action for step in parse(text.encode(), Path("recorded.toml")).steps]


async def test_what_was_done_is_read_back_as_it_was(client: Client) -> None:
    for method, params in (
        ("link", {"a": "n1", "b": 2, "cut": True}),
        ("link", {"a": "n1", "b": "n2", "restore": True}),
        ("link", {"a": "n1", "b": "n2", "restore": True, "both": False}),
        ("link", {"a": "n1", "b": "n3", "loss": 0.25, "both": False}),
        ("link", {"a": "n2", "b": "n3", "snr": 12}),
        ("link", {"a": "n2", "b": "n3", "fading": "rician k=6 doppler=1"}),
        ("move", {"node": "3", "x": 10, "y": -5.5}),
        ("exec", {"node": 1, "command": "echo 'a \"b\"'"}),
        ("exec", {"node": 2, "command": "false"}),
        ("chip", {"node": "n2", "fault": "absent"}),
        ("chip", {"node": "n2", "fault": "none"}),
        ("radio", {"node": "n2", "action": "unplug"}),
        ("radio", {"node": "n2", "action": "plug"}),
        ("config", {"node": "n1", "settings": ["mesh.channel=6", "mesh.passphrase=secret"]}),
        ("config", {"node": "n1", "settings": ["mesh.passphrase=secret"]}),
        ("power", {"node": "n2", "action": "kill"}),
        ("power", {"node": "n2", "action": "on"}),
        ("power", {"node": "n3", "action": "off"}),
        ("medium", {"action": "status"}),
        ("medium", {"action": "kill"}),
    ):
        await client.call(method, params)
    told = await client.call("deeds")
    text = recorded(told, "an afternoon")
    assert steps(text) == [
        actions.Cut((("n1", "n2"),)),
        actions.Restore((("n1", "n2"),)),
        actions.Restore((("n1", "n2"),), oneway=True),
        actions.Degrade((("n1", "n3"),), loss=25.0, oneway=True),
        actions.Degrade((("n2", "n3"),), snr=12.0),
        actions.Degrade((("n2", "n3"),), fading="rician k=6 doppler=1"),
        actions.Move("n3", ((10.0, -5.5),)),
        actions.Command(("n1",), "echo 'a \"b\"'", 0),
        actions.Command(("n2",), "false", 3),
        actions.Chip(("n2",), "absent"),
        actions.Chip(("n2",), "none"),
        actions.Pull(("n2",)),
        actions.Plug(("n2",)),
        actions.Config(("n1",), ("mesh.channel=6",)),
        actions.Crash(("n2",)),
        actions.PowerOn(("n2",)),
        actions.PowerOff(("n3",)),
        actions.KillMedium(),
    ]
    found = parse(text.encode(), Path("recorded.toml"))
    assert (found.head.name, found.spec.topology.kind, found.spec.security) == (
        "an afternoon", "full", "sae",
    )  # fmt: skip
    assert "fading =" not in text.partition("[[step]]")[0]
    times = [step.when.at for step in found.steps]
    assert times == sorted(times, key=lambda at: at or 0.0)
    assert "secret" not in text
    assert text.count("what was set is not recorded: mesh.passphrase") == 2


async def test_what_was_refused_was_not_done(client: Client) -> None:
    for method, params in (
        ("link", {"a": "n1", "b": "n1", "cut": True}),
        ("power", {"node": "n1", "action": "on"}),
        ("exec", {"node": "n1"}),
    ):
        with pytest.raises(RpcError):
            await client.call(method, params)
    assert (await client.call("deeds"))["deeds"] == []


async def test_input_of_a_command_is_told_as_missing(client: Client) -> None:
    number: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def heard(event: dict[str, Any]) -> None:
        if "input" in event:
            number.set_result(event["input"])

    running = asyncio.create_task(
        client.call("exec", {"node": "n1", "command": "cat", "input": True}, on_event=heard)
    )
    fed = await number
    await client.call("exec-input", {"number": fed, "data": "aGVsbG8="})
    await client.call("exec-input", {"number": fed, "data": ""})
    await running
    text = recorded(await client.call("deeds"), "x")
    assert "s: its input is not recorded" in text
    assert steps(text) == [actions.Command(("n1",), "cat", 0)]


TOLD: dict[str, Any] = {
    "topology": "line", "nodes": 2, "seed": 4, "security": "open", "image": "lab",
    "fading": "rician k=6 doppler=2", "decoding": "soft", "ht": True,
    "description": "lab\x1b[2J", "images": {"n2": "standin"}, "formed": 10.0, "whole": False,
    "deeds": [
        {"at": 9.0, "method": "power", "params": {"node": "n1", "action": "kill"}},
        {"at": 11.5, "method": "dance", "params": {}},
    ],
    "forgotten": 3,
}  # fmt: skip


def test_what_cannot_be_a_step_is_a_remark() -> None:
    text = recorded(TOLD, "x")
    assert "# The first 3 deeds are forgotten." in text
    assert "# 1 s before the mesh had formed: power, left out" in text
    assert "# 1.5 s: dance, for which there is no step" in text
    assert "\x1b" not in text
    found = parse(text.encode(), Path("recorded.toml"))
    assert found.images.others == {"n2": ("standin", None)}
    spec = found.spec
    assert (spec.fading, spec.decoding, spec.ht) == ("rician k=6 doppler=2", "soft", True)
    assert not found.steps
    assert not found.finally_


@pytest.mark.parametrize("change", [{"formed": None}, {"topology": "distance"}])
def test_what_is_no_beginning_of_a_scenario_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ScenarioError):
        recorded({**TOLD, **change}, "x")
