# SPDX-License-Identifier: Apache-2.0
"""The meshes that tests share, on parts that boot nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from patience import PATIENCE

from meshlab.lab import testing, topology
from meshlab.lab.fake import FakeParts
from meshlab.lab.journal import Pace
from meshlab.lab.lab import Lab
from meshlab.lab.slots import Places
from meshlab.lab.spec import LabSpec, NodeSpec
from meshlab.lab.testing import Mesh, Meshes, is_skipped, whole

NODES = {"n2": NodeSpec(chip_fault="absent")}
FULL = Mesh("full", LabSpec(topology.make("full", 3), nodes=NODES))
PAIR = Mesh("pair", LabSpec(topology.make("full", 2)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Pace, "pause", lambda self, nodes, settled: 0.01)
    monkeypatch.setenv("THICKET_CACHE", str(tmp_path))


@pytest_asyncio.fixture
async def meshes(tmp_path: Path) -> AsyncIterator[Meshes]:
    found = Meshes(lambda mesh: FakeParts(), Places(tmp_path / "places", 10, "a test"))
    yield found
    await found.end()


async def test_tests_share_a_mesh_which_ends_with_the_last_of_them(meshes: Meshes) -> None:
    meshes.needed.update(full=2, pair=1)
    lab = await meshes.take(FULL)
    assert lab.state.formed is not None
    await meshes.give_back(FULL, fit=True)
    other = await meshes.take(PAIR)
    await meshes.give_back(PAIR, fit=True)
    assert other.state.stopping
    assert not lab.state.stopping
    assert await meshes.take(FULL) is lab
    await meshes.give_back(FULL, fit=True)
    assert lab.state.stopping
    assert (lab.spec.name, other.spec.name) == ("test-full", "test-pair")


def test_a_test_that_is_skipped_keeps_no_mesh_running() -> None:
    here, soak = pytest.mark.skipif(False, reason=""), pytest.mark.skipif(True, reason="")
    assert not is_skipped([pytest.mark.lab.mark, here.mark])
    assert is_skipped([pytest.mark.lab.mark, here.mark, soak.mark])
    assert is_skipped([pytest.mark.skip(reason="").mark])


async def test_a_test_finds_power_links_radios_and_chips_as_they_were(meshes: Meshes) -> None:
    meshes.needed.update(full=9)
    lab = await meshes.take(FULL)
    await lab.link("n1", "n2", cut=True)
    await lab.link("n1", "n3", loss=0.2, both=False)
    await lab.link("n2", "n3", snr=3)
    await lab.link("n3", "n1", fading="rayleigh")
    await lab.radio("n3", plug=False)
    await lab.chip_fault("n1", "nak")
    await lab.chip_fault("n2", None)
    await lab.kill("n3")
    await meshes.give_back(FULL, fit=True)
    assert await meshes.take(FULL) is lab
    assert whole(lab)
    assert lab.state.nodes["n3"].power == "running"
    assert {link["state"] for link in (await lab.medium_call("links"))["links"]} == {"link"}
    links = (await lab.medium_call("links"))["links"]
    assert not any(link["loss"] or link["fading_set"] for link in links)
    ports = (await lab.medium_call("status"))["nodes"]
    assert all(port["radios"] == [{"plugged": True}] for port in ports.values())
    chips = [lab.nodes[name].chip for name in ("n1", "n2", "n3")]
    assert [chip and chip.fault for chip in chips] == [None, "absent", None]


async def test_after_a_failed_test_the_mesh_is_made_anew_beside_the_logs_of_it(
    meshes: Meshes,
) -> None:
    meshes.needed.update(full=2)
    lab = await meshes.take(FULL)
    await meshes.give_back(FULL, fit=False)
    assert lab.state.stopping
    again = await meshes.take(FULL)
    assert again is not lab
    assert again.spec.name == "test-full-2"
    assert (lab.directory / "events.log").exists()


async def test_a_mesh_that_does_not_become_ready_is_ended_and_fails_the_test(
    meshes: Meshes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testing, "FORMING", 0.1)
    never = Mesh("never", PAIR.spec, ready=lambda lab: False)
    meshes.needed.update(never=2)
    with pytest.raises(TimeoutError, match="the mesh never is ready"):
        await meshes.take(never)
    with pytest.raises(TimeoutError):
        await meshes.take(never)
    async with Lab(LabSpec(topology.make("full", 2), name="test-never"), FakeParts()):
        pass  # its directory is free


async def test_a_mesh_gives_its_places_back_also_when_it_was_of_no_use(
    meshes: Meshes, tmp_path: Path
) -> None:
    meshes.needed.update(full=3)
    for fit in (False, True, True):
        await meshes.take(FULL)
        await meshes.give_back(FULL, fit=fit)
    places = Places(tmp_path / "places", 10, "another test")
    assert len(await asyncio.wait_for(places.take(10), PATIENCE)) == 10
