# SPDX-License-Identifier: Apache-2.0
"""Labs that are saved and go on, on parts that boot nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from meshlab.lab import real_parts, saved, saving, topology
from meshlab.lab.copies import copy_sparse, occupied
from meshlab.lab.errors import LabError
from meshlab.lab.fake import FakeParts
from meshlab.lab.journal import Pace
from meshlab.lab.lab import Lab
from meshlab.lab.real_parts import CardImage, RealParts, of_saved
from meshlab.lab.saved import SavedLab, SavedNode, remove, saved_names, saved_path, saves
from meshlab.lab.saving import save
from meshlab.lab.spec import LabSpec, NodeSpec
from meshlab.machine.accel import Accel
from meshlab.machine.bay import Plugged
from meshlab.machine.bootrom import Boot
from meshlab.machine.suspend import SavedMachine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the nodes, which cost nothing here, more often."""
    monkeypatch.setattr(Pace, "pause", lambda self, nodes, settled: 0.01)


@asynccontextmanager
async def formed(
    parts: FakeParts, cache: Path, others: dict[str, FakeParts] | None = None, **more: Any
) -> AsyncIterator[Lab]:
    spec = LabSpec(topology=topology.make("full", 3), **more)
    async with Lab(spec, parts, cache, others) as lab:
        await lab.formed(60)
        yield lab


@asynccontextmanager
async def resumed(name: str, parts: FakeParts, cache: Path) -> AsyncIterator[Lab]:
    async with Lab(SavedLab.open(name, cache).spec("again"), parts, cache) as lab:
        await lab.formed(60)
        yield lab


async def test_a_saved_lab_goes_on_where_it_was(parts: FakeParts, tmp_path: Path) -> None:
    nodes = {"n3": NodeSpec(config={"mesh": {"max_peers": 9}}, mesh_point=False)}
    async with formed(parts, tmp_path, nodes=nodes, fading="rician k=6 doppler=2") as lab:
        passphrase = lab.spec.passphrase
        await lab.configure("n1", ["node.name=kitchen"])
        await lab.move("n2", 7, 8)
        await lab.chip_fault("n2", "nak")
        (lab.directory / "n1" / "data.img").write_text("what n1 keeps")
        (lab.directory / "medium-state.json").write_text('{"run": "old", "losses": []}')
        (lab.directory / "authority").mkdir()
        (lab.directory / "authority" / "fleet.json").write_text("{}")
        done = await save(lab, "first")
        assert not any(machine.paused for machine in parts.machines)
        assert done.path == saved_path("first", tmp_path)
        await lab.kill("n1")
        (lab.directory / "n1" / "data.img").write_text("what came later")
        configs = {name: node.config for name, node in lab.nodes.items()}
        root = lab.fleet.root if lab.fleet else ""
    again = FakeParts()
    async with resumed("first", again, tmp_path) as lab:
        assert sorted(again.starts) == ["n1", "n2", "n3"]
        assert not any(machine.paused for machine in again.machines)
        assert lab.spec.passphrase == passphrase
        assert lab.spec.fading == "rician k=6 doppler=2"
        assert lab.spec.nodes["n3"].mesh_point is False
        assert {name: node.config for name, node in lab.nodes.items()} == configs
        assert configs["n1"]["node"]["name"] == "kitchen"
        assert configs["n1"]["cluster"]["cookie"] == "lab-default", "not that of the new name"
        assert configs["n3"]["mesh"]["max_peers"] == 9
        assert root == "the root of default"
        assert lab.state.nodes["n2"].position == (7, 8)
        assert again.chips[1].fault == lab.state.nodes["n2"].chip_fault == "nak"
        assert (lab.directory / "n1" / "data.img").read_text() == "what n1 keeps"
        assert (lab.directory / "authority" / "fleet.json").read_text() == "{}"
        assert not (lab.directory / "n1" / "memory").exists(), "it is read where it is"
        changed = json.loads((lab.directory / "medium-state.json").read_text())
        described = json.loads((lab.directory / "medium.json").read_text())
        assert changed == {"run": described["run"], "losses": []}
        assert described["links"] == [
            {"a": a, "b": b, "snr": snr} for (a, b), snr in lab.spec.topology.links.items()
        ]


async def test_the_key_that_nodes_let_in_goes_with_a_save(parts: FakeParts, tmp_path: Path) -> None:
    (key := tmp_path / "labs/default/ssh/id.pub").parent.mkdir(parents=True)
    key.write_text("ssh-ed25519 AAAA one")
    async with formed(parts, tmp_path, keep=True) as lab:
        await save(lab, "orchard")
    key.write_text("ssh-ed25519 AAAA another")
    async with resumed("orchard", FakeParts(), tmp_path) as lab:
        assert (lab.directory / "ssh/id.pub").read_text() == "ssh-ed25519 AAAA one"


async def test_nodes_run_when_all_are_loaded(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with formed(parts, tmp_path) as lab:
        await save(lab, "first")
    again = FakeParts()
    paused = []
    go_on = type(again.machine("n1", tmp_path, lambda _event: None)).go_on
    again.machines.clear()

    async def noted(machine: Any) -> None:
        paused.append([each.name for each in again.machines if each.running])
        await go_on(machine)

    monkeypatch.setattr("meshlab.lab.fake.FakeMachine.go_on", noted)
    async with resumed("first", again, tmp_path):
        assert [sorted(each) for each in paused] == [["n1", "n2", "n3"]] * 3


async def test_a_node_that_was_off_stays_off(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await lab.kill("n2")
        await save(lab, "first")
        assert not (saved_path("first", tmp_path) / "n2" / "memory").exists()
        assert (saved_path("first", tmp_path) / "n2" / "chip.json").exists()
    again = FakeParts()
    async with resumed("first", again, tmp_path) as lab:
        assert sorted(again.starts) == ["n1", "n3"]
        assert lab.state.nodes["n2"].power == "off"
        await lab.power_on("n2")
        await lab.wait(lambda: lab.state.cluster("n1") == {"n2", "n3"}, 60, "n2 is seen")


async def test_the_chips_sleep_at_the_moment_of_a_save(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        parts.chips[1].commands = 2
        await save(lab, "first")
        assert parts.chips[1].commands == 0


async def test_a_chip_that_never_sleeps_is_told(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "CHIP_PATIENCE", 0.0)
    async with formed(parts, tmp_path) as lab:
        parts.chips[1].commands = 1 << 30
        with pytest.raises(LabError, match="the chips of n2 do not go to sleep"):
            await save(lab, "first")
        assert not any(machine.paused for machine in parts.machines)
    assert saved_names(tmp_path) == []


async def test_a_save_that_fails_leaves_nothing_and_the_lab_running(
    parts: FakeParts, tmp_path: Path
) -> None:
    async with formed(parts, tmp_path) as lab:
        parts.broken = {"n2"}
        with pytest.raises(LabError, match="the lab is not saved: n2 cannot be saved"):
            await save(lab, "first")
        assert not any(machine.paused for machine in parts.machines)
        assert list(saved.saved_root(tmp_path).iterdir()) == []
        parts.broken.clear()
        await save(lab, "first")


async def test_a_save_that_is_cut_is_none(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with formed(parts, tmp_path) as lab:
        # As a kill at the last moment leaves it: everything is written, and nothing renamed.
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            patch.setattr(shutil, "rmtree", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt):
                await save(lab, "first")
        assert len(list(saved.saved_root(tmp_path).rglob("lab.json"))) == 1
        assert saved_names(tmp_path) == []
        with pytest.raises(LabError, match="no lab was saved as 'first': there is none"):
            SavedLab.open("first", tmp_path)
        await save(lab, "first")
        assert saved_names(tmp_path) == ["first"]
        left = list(saved.saved_root(tmp_path).iterdir())
        assert left == [saved_path("first", tmp_path)], "the remains are gone"


async def test_a_name_is_used_once(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await save(lab, "first")
        before = (saved_path("first", tmp_path) / "lab.json").read_bytes()
        paused = [machine for machine in parts.machines if machine.paused]
        with pytest.raises(LabError, match="there is a saved lab 'first' already"):
            await save(lab, "first")
        assert (saved_path("first", tmp_path) / "lab.json").read_bytes() == before
        assert paused == []
        with pytest.raises(LabError, match="is not the name of a saved lab"):
            await save(lab, "../first")


async def test_room_is_looked_for_before_anything_stands_still(
    parts: FakeParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with formed(parts, tmp_path) as lab:
        # Three machines of 100 MB, and what stays free.
        needed = 3 * 100_000 * 1024 + saving.MARGIN
        looked: list[Path] = []

        def usage(path: Path) -> SimpleNamespace:
            looked.append(path)
            return SimpleNamespace(free=needed - 1)

        monkeypatch.setattr(shutil, "disk_usage", usage)
        with pytest.raises(LabError, match=f"needs up to {needed >> 20} MiB, and there are"):
            await save(lab, "first")
        assert looked == [saved.saved_root(tmp_path)]
        assert list(saved.saved_root(tmp_path).iterdir()) == []


async def test_a_node_between_on_and_off_is_not_saved(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        parts.on["n2"].end(1)
        await lab.wait(lambda: lab.state.nodes["n2"].power == "died", 60, "n2 has died")
        with pytest.raises(LabError, match="n2 is died"):
            await save(lab, "first")


async def test_images_are_kept_once_for_each_kind(parts: FakeParts, tmp_path: Path) -> None:
    other = FakeParts()
    other.image, other.on = "other", parts.on
    async with formed(parts, tmp_path, {"n3": other}) as lab:
        await save(lab, "first")
    found = SavedLab.open("first", tmp_path)
    assert found.value["images"] == [{"name": "fake"}, {"name": "other"}]
    assert [node.image for node in found.nodes.values()] == [0, 0, 1]
    assert (found.path / "images" / "1" / "kernel").read_text() == "kernel"
    found.close()


async def test_what_is_damaged_or_of_another_version_is_told(
    parts: FakeParts, tmp_path: Path
) -> None:
    async with formed(parts, tmp_path) as lab:
        await save(lab, "first")
    path = saved_path("first", tmp_path)
    memory = (path / "n2" / "memory").read_bytes()
    (path / "n2" / "memory").write_bytes(memory[:-1])
    with pytest.raises(LabError, match=r"n2/memory has 11 bytes instead of 12: it is damaged"):
        SavedLab.open("first", tmp_path)
    (path / "n2" / "memory").unlink()
    with pytest.raises(LabError, match=r"n2/memory is missing: the saved lab is damaged"):
        SavedLab.open("first", tmp_path)
    (path / "n2" / "memory").write_bytes(memory)
    SavedLab.open("first", tmp_path).close()
    described = json.loads((path / "lab.json").read_text())
    (path / "lab.json").write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(LabError, match=r"by another version of the simulator \(format 99"):
        SavedLab.open("first", tmp_path)
    for broken in ("", "[]", "{}", json.dumps({**described, "nodes": {"n1": {}}})):
        (path / "lab.json").write_text(broken)
        with pytest.raises(LabError, match="cannot be read"):
            SavedLab.open("first", tmp_path)
    [(name, error, size)] = saves(tmp_path)
    assert (name, size > 0) == ("first", True)
    assert "cannot be read" in str(error)
    remove(["first"], tmp_path)


async def test_a_node_that_does_not_wake_ends_the_lab(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await save(lab, "first")
    (saved_path("first", tmp_path) / "n2" / "memory").write_text("memory of n3")
    again = FakeParts()
    found = SavedLab.open("first", tmp_path)
    with pytest.raises(LabError, match="n2 did not start: n2 is another machine"):
        async with Lab(found.spec("again"), again, tmp_path) as lab:
            await lab.formed(60)
    assert not again.on


async def test_a_save_is_not_removed_under_a_lab(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await save(lab, "first")
        await save(lab, "second")
    async with resumed("first", FakeParts(), tmp_path):
        with pytest.raises(LabError, match="a lab runs from the saved lab 'first'"):
            remove(["second", "first"], tmp_path)
        assert saved_names(tmp_path) == ["first", "second"], "all or none"
    with pytest.raises(LabError, match="no lab was saved as 'third'"):
        remove(["first", "third"], tmp_path)
    assert remove(["first", "second"], tmp_path) > 0
    assert list(saved.saved_root(tmp_path).iterdir()) == []


async def test_a_resumed_lab_can_be_saved(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await save(lab, "first")
    async with resumed("first", FakeParts(), tmp_path) as lab:
        await save(lab, "second")
    async with resumed("second", FakeParts(), tmp_path) as lab:
        assert lab.nodes["n1"].config["cluster"]["cookie"] == "lab-default"


def test_what_is_said_of_a_machine_comes_back() -> None:
    boot = Boot(2, True, "Image", "quiet", {"kernel": "Image"}, ("a",), ("b",))
    chip = Plugged([1] * 64, [2, 3], [4, 5], 6, [[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    machine = SavedMachine("7.2.0", ["qemu", "-m"], 2_600_000, chip, boot)
    node = SavedNode("running", {"mesh": {"id": "x"}}, (1.0, 2.0), "nak", 1, machine)
    written = json.dumps(node.to_json())
    again = SavedNode.from_json(json.loads(written))
    assert again.machine is not None
    assert isinstance(again.machine.booted, Boot)
    assert again.machine.chip == chip
    assert json.dumps(again.to_json()) == written
    assert again == node


# -- images


def kept(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """What an image says of itself that was saved here."""
    image = CardImage("card", tmp_path / "card.img", "x86_64", "a card")
    accel = Accel("tcg", "test", "max", 2_600_000)
    return {**RealParts(image, accel, tmp_path, 1).keep_image(tmp_path), **changes}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run nodes by TCG, with a clock of 2.6 GHz."""
    monkeypatch.setattr(
        "meshlab.machine.accel.choose", lambda *_, **__: Accel("tcg", "here", "max", 2_600_100)
    )


def test_nodes_wake_with_the_clock_that_they_were_told(tmp_path: Path, here: None) -> None:
    parts = of_saved(tmp_path, kept(tmp_path), tmp_path, 1)
    machine: Any = parts.machine("n1", tmp_path, lambda _event: None)
    assert machine.spec.accel.tsc_khz == 2_600_000
    assert parts.description == "a card, as it was saved"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accel": "kvm", "cpu": "host"}, "saved under kvm with the processor host; here .* tcg"),
        ({"tsc_khz": 3_000_000}, "count 3000000 kHz, and here they count 2600100 kHz"),
    ],
)
def test_another_computer_is_told(
    tmp_path: Path, here: None, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(LabError, match=words):
        of_saved(tmp_path, kept(tmp_path, **changes), tmp_path, 1)


def test_machines_that_cannot_be_saved_are_named(tmp_path: Path) -> None:
    image = CardImage("card", tmp_path / "card.img", "x86_64", "a card")
    parts = RealParts(image, Accel("tcg", "test", "max"), tmp_path, 1, board="pc")
    with pytest.raises(LabError, match="machines of the kind pc cannot be saved, only those of q3"):
        parts.keep_image(tmp_path)


def test_files_of_an_image_are_shared_with_the_cache(tmp_path: Path, here: None) -> None:
    from meshlab.image.image_set import ImageSet

    for name in ("vmlinux", "root"):
        (tmp_path / name).write_text(name)
    (tmp_path / "kept").mkdir()
    images = ImageSet("lab", tmp_path / "vmlinux", tmp_path / "root", "quiet", "an image")
    accel = Accel("tcg", "test", "max", None)
    facts = RealParts(images, accel, tmp_path, 1).keep_image(tmp_path / "kept")
    assert (tmp_path / "kept" / real_parts.KERNEL).samefile(tmp_path / "vmlinux")
    again = of_saved(tmp_path / "kept", json.loads(json.dumps(facts)), tmp_path, 1).images
    assert isinstance(again, ImageSet)
    assert (again.rootfs.read_text(), again.cmdline) == ("root", "quiet")


# -- copies


def test_holes_stay_holes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(os.urandom(4096))
    copy_sparse([disk], tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == disk.read_bytes()
    assert occupied(tmp_path / "copy") < 1 << 20
    with pytest.raises(LabError, match="cannot be copied"):
        copy_sparse([tmp_path / "missing"], tmp_path / "copy")


async def test_two_saves_at_a_time_do_not_mix(parts: FakeParts, tmp_path: Path) -> None:
    async with formed(parts, tmp_path) as lab:
        await asyncio.gather(save(lab, "first"), save(lab, "second"))
        assert not any(machine.paused for machine in parts.machines)
    for name in ("first", "second"):
        SavedLab.open(name, tmp_path).close()


def test_what_differs_of_a_chip_s_bus_is_named() -> None:
    bus = Plugged([1] * 64, [2, 3], [4, 5], 6, [[1, 2, 3, 4, 5, 6, 7, 8, 9]])
    assert bus.beside(bus) == ""
    other = replace(bus, config=[1] * 63 + [16], config_vector=7, vectors=[2])
    assert (
        bus.beside(other) == "config[63] 1, was 16; vectors [2, 3], was [2]; config_vector 6, was 7"
    )
