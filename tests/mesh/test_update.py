# SPDX-License-Identifier: Apache-2.0
"""An update travels through a mesh of devices with cards, each of which installs and keeps it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshlab.lab.errors import LabError
from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes
from meshlab.lab.updates import Desk, put
from meshlab.machine.shell import ShellError
from thicket.update.offer import Plan

MESH = "updates"

VERSION = "2.0.0"
LONG = 1500.0
"""Seconds within which a fleet takes an update on a busy host that emulates it."""


@pytest.fixture
def desk(lab: Lab, tmp_path: Path) -> Iterator[Desk]:
    yield Desk(lab, tmp_path)


async def test_a_change_travels_is_installed_and_kept_by_all(
    lab: Lab, nodes: Nodes, desk: Desk
) -> None:
    nodes.unfit = "its nodes run another version"
    await lab.formed(PATIENCE)
    old, new = desk.bundle(), desk.bundle(VERSION)
    base, patch = desk.patch(new, old)
    plan = Plan(canaries=1, well=10, waves=(100,), failures=0, window=None)
    packed = desk.offer(new, {base: patch}, plan)
    print(f"bundle {new.stat().st_size}, change {patch.stat().st_size}, offer {len(packed)}")
    await put(lab, "n1", "/data/in/offer", packed)
    await put(lab, "n1", "/data/in/change", patch.read_bytes())
    said = await nodes.succeeds("n1", "thicket update offer /data/in")
    assert f"{patch.stat().st_size} bytes, here" in said
    await until_all(lab, "done")
    for name in lab.nodes:
        assert VERSION in await nodes.run(name, "cat /usr/lib/os-release")
        assert "slot=B" in await nodes.run(name, "cat /proc/cmdline")
    await lab.formed(PATIENCE)
    print(await nodes.run("n1", "thicket update status"))


async def until_all(lab: Lab, state: str, seconds: float = LONG) -> None:
    """Wait until every node says that it is in a state, and for as long as the plan asks."""
    end, shown = lab.elapsed + seconds, ""
    while lab.elapsed < end:
        for name in lab.nodes:  # some of them restart
            try:
                async with asyncio.timeout(60):
                    status, said = await lab.run(name, "thicket update status --json", 50)
            except (LabError, ShellError, TimeoutError):
                continue
            if status != 0:
                continue
            found = json.loads(said)["rollout"]["nodes"]
            told = ", ".join(f"{one['node']} {one['state']} {one['percent']} %" for one in found)
            if told != shown:
                shown = told
                print(f"{lab.elapsed:6.0f} s  {told}", flush=True)
            if all(one["state"] == state and one["percent"] == 100 for one in found):
                return
            break
        await asyncio.sleep(2)
    raise AssertionError(f"not all {state} within {seconds:g} s: {shown}")
