# SPDX-License-Identifier: Apache-2.0
"""An application travels through a mesh of devices with cards; nobody restarts for it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from apps_for_tests import ABOUT, SignerKey, lamp, packed

from authority import offers
from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes
from meshlab.lab.updates import Desk, put
from meshlab.machine.shell import ShellError
from thicket.update.offer import Plan

MESH = "updates"

pytestmark = pytest.mark.skipif(
    not os.environ.get("THICKET_SOAK"), reason="takes minutes: `make soak`, or THICKET_SOAK=1"
)
LONG = 900.0
PLAN = Plan(canaries=1, well=5, waves=(100,), failures=0, window=None)


async def offered(lab: Lab, desk: Desk, name: str, number: int, start: str = "pass") -> None:
    """Make version ``number`` of an application, and offer it to a node."""
    fleet, signer = desk.authority.fleet, desk.signer()
    about = ABOUT._replace(version=f"{number}.0", number=number, fleet=fleet.identifier)
    file = packed(desk.folder, lamp(f"{number}.0", start), about, SignerKey(signer))
    folder = desk.folder / f"offer-{number}"
    offers.make(
        file, [], folder, PLAN,
        target=offers.target_of(file),
        by=(fleet, signer),
        when=datetime.now(UTC),
    )  # fmt: skip
    for path in folder.iterdir():
        await put(lab, name, f"/data/in-{number}/{path.name}", path.read_bytes())
    status, said = await lab.run(name, f"thicket update offer /data/in-{number}", PATIENCE)
    assert status == 0, said
    assert f"offered to the fleet: lamp {number}.0" in said


async def until(
    lab: Lab, name: str, done: Callable[[dict[str, Any]], bool], what: str
) -> dict[str, Any]:
    """Wait until a node sees the rollout of the application so; return it."""
    had, shown = lab.given(), ""
    while had.seconds() < LONG:
        try:
            status, said = await lab.run(name, "thicket update status --json", 60)
        except (LabError, ShellError, TimeoutError):
            status, said = 1, ""
        others = json.loads(said)["others"] if status == 0 else []
        if others:
            rollout: dict[str, Any] = others[0]["rollout"]
            told = ", ".join(f"{one['node']} {one['state']}" for one in rollout["nodes"])
            if told != shown:
                shown = told
                print(f"{lab.elapsed:6.0f} s  {told}", flush=True)
            if done(rollout):
                return rollout
        await asyncio.sleep(1)
    raise AssertionError(f"{what}: not within {LONG:g} s: {shown}")


def runs(number: int, nodes: int) -> Callable[[dict[str, Any]], bool]:
    """Tell whether all nodes have a version and were well with it."""
    return lambda rollout: (
        rollout["offer"]["version"] == f"{number}.0"
        and len(rollout["nodes"]) == nodes
        and all((one["state"], one["percent"]) == ("done", 100) for one in rollout["nodes"])
    )


async def versions(lab: Lab, nodes: Nodes) -> list[str]:
    return [
        (await nodes.run(name, "thicket call $(hostname) lamp.version")).strip()
        for name in lab.nodes
    ]


async def test_an_application_travels_and_a_bad_one_stops_at_the_canary(
    lab: Lab, nodes: Nodes, tmp_path: Path
) -> None:
    nodes.unfit = "its nodes have an application more"
    await lab.formed(PATIENCE)
    desk = Desk(lab, tmp_path)
    starts = [await nodes.run(name, "cat /proc/sys/kernel/random/boot_id") for name in lab.nodes]
    await offered(lab, desk, "n2", 1)
    await until(lab, "n3", runs(1, len(lab.nodes)), "all have the first version")
    assert await versions(lab, nodes) == ['"1.0"'] * len(lab.nodes)

    await offered(lab, desk, "n1", 2, "raise OSError('no lamp')")
    rollout = await until(lab, "n3", lambda seen: bool(seen["stopped"]), "the canary fails")
    assert "OSError: no lamp" in rollout["stopped"]
    assert [one["wave"] for one in rollout["nodes"] if one["state"] == "failed"] == [0]
    assert await versions(lab, nodes) == ['"1.0"'] * len(lab.nodes)
    print(await nodes.run("n3", "thicket update status"))

    await offered(lab, desk, "n3", 3)
    await until(lab, "n1", runs(3, len(lab.nodes)), "all have the third version")
    assert await versions(lab, nodes) == ['"3.0"'] * len(lab.nodes)
    assert starts == [
        await nodes.run(name, "cat /proc/sys/kernel/random/boot_id") for name in lab.nodes
    ], "nobody has restarted"
