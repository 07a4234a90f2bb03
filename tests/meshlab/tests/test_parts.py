# SPDX-License-Identifier: Apache-2.0
"""Which image a word means, and the disks and cards of nodes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from firmware import card as cards
from meshlab.image.image_set import ImageSet
from meshlab.lab import real_parts, topology
from meshlab.lab.errors import LabError
from meshlab.lab.fake import FakeParts
from meshlab.lab.lab import Lab
from meshlab.lab.spec import LabSpec
from meshlab.machine import bootrom
from meshlab.machine.accel import Accel
from meshlab.machine.machine import Machine
from meshlab.machine.spec import CARD

sys.path.insert(0, str(Path(__file__).parent))
import flat_tree
from crafted_card import KERNEL, MIB, make_card, slot
from tiny_guest import guest

TCG = Accel("tcg", "test", "max")
FACTS = {
    "board": "x86_64",
    "arch": "x86_64",
    "version": "1.2.3",
    "kernel": "6.12.9-thicket",
    "slots": {"root_bytes": 53 * MIB},
}


def built(cache: Path, board: str, kernel: bytes, facts: dict[str, Any] | None) -> Path:
    """Leave a card image where ``make BOARD`` does."""
    images = cache / "build" / board / "images"
    images.mkdir(parents=True)
    if facts is not None:
        (images / "manifest.json").write_text(json.dumps(facts))
    return make_card(images / "card.img", None, {**slot("A"), "Image": kernel})


def test_a_built_firmware_is_found_and_described(tmp_path: Path) -> None:
    card = built(tmp_path, "x86_64", guest(), FACTS)
    image = real_parts.find_card("x86_64", tmp_path)
    assert image is not None
    assert (image.card, image.arch, image.name) == (card, "x86_64", "x86_64")
    assert image.description == (
        "x86_64: card image for x86_64, thicket 1.2.3, Linux 6.12.9-thicket "
        "(card 16 MiB, root 53 MiB, kernel 0 MiB)"
    )


def test_a_firmware_that_is_not_built_names_its_target(tmp_path: Path) -> None:
    for board in ("rpi64", "x86_64"):
        with pytest.raises(LabError, match=f"firmware {board} is not built .*`make {board}`"):
            real_parts.load(board, tmp_path, 1, print)


def test_a_card_image_comes_alone_or_in_a_directory(tmp_path: Path) -> None:
    card = built(tmp_path, "rpi64", gzip.compress(KERNEL), None)
    for name in (str(card), str(card.parent)):
        image = real_parts.find_card(name, tmp_path)
        assert image is not None
        assert (image.card, image.arch) == (card, "aarch64")
        assert image.description.startswith("card.img: card image for aarch64 (card 16 MiB")
    card.with_name("manifest.json").write_text("{broken")
    assert real_parts.find_card(str(card), tmp_path) is not None
    assert real_parts.find_card(str(tmp_path), tmp_path) is None
    assert real_parts.find_card("nonsense", tmp_path) is None


@pytest.mark.parametrize(
    ("kernel", "facts", "words"),
    [
        (bytes(5000), None, "Image on partition 2 is no kernel"),
        (b"", None, "cannot be booted: Image on partition 2 of card.img is empty"),
        (KERNEL, FACTS, "a kernel for aarch64, and .*manifest.json says x86_64"),
    ],
)
def test_cards_that_nothing_boots_from(
    tmp_path: Path, kernel: bytes, facts: dict[str, Any] | None, words: str
) -> None:
    built(tmp_path, "x86_64", kernel, facts)
    with pytest.raises(LabError, match=words):
        real_parts.load("x86_64", tmp_path, 1, print)


def test_other_words_list_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="IMAGE is lab, standin, standin-rpi64, rpi64, x86_64, a c"):
        real_parts.load("nonsense", tmp_path, 1, print)
    (tmp_path / "file").write_bytes(b"text")
    with pytest.raises(LabError, match="file cannot be booted: file: shorter than one sector"):
        real_parts.load(str(tmp_path / "file"), tmp_path, 1, print)


def test_a_node_has_a_card_of_its_own(tmp_path: Path) -> None:
    built(tmp_path, "x86_64", guest(), FACTS)
    image = real_parts.find_card("x86_64", tmp_path)
    assert image is not None
    before = image.card.read_bytes()
    made = real_parts.RealParts(image, TCG, tmp_path, 1)
    directory = tmp_path / "n1"
    directory.mkdir()
    made.disks(directory, "a = 1\n")
    card = directory / CARD
    assert [path.name for path in directory.iterdir()] == [CARD]
    assert card.stat().st_size == real_parts.CARD_MIB * MIB
    assert card.stat().st_blocks * 512 < 32 * MIB, "what is empty takes no room"
    config = real_parts.partition(card, cards.CONFIG)
    assert config.read("thicket.toml") == b"a = 1\n"
    assert bootrom.boot(card).partition == 2
    # Kept is kept; edited is only the one file.
    made.disks(directory, "b = 2\n")
    assert config.read("thicket.toml") == b"a = 1\n"
    made.configure(directory, "c = 3\n")
    assert config.read("thicket.toml") == b"c = 3\n"
    assert image.card.read_bytes() == before
    machine = made.machine("n1", directory, lambda _: None)
    assert isinstance(machine, Machine)
    assert (machine.spec.kernel, machine.spec.rootfs, machine.spec.arch) == (None, None, "x86_64")


def test_a_larger_image_is_not_cut(tmp_path: Path) -> None:
    image = make_card(tmp_path / "image")
    real_parts.copy_card(image, tmp_path / "copy", 4096)
    assert (tmp_path / "copy").read_bytes() == image.read_bytes()
    with pytest.raises(LabError, match="absent"):
        real_parts.copy_card(tmp_path / "absent", tmp_path / "copy2", 4096)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "image"]


def test_a_card_without_its_first_partition(tmp_path: Path) -> None:
    card = make_card(tmp_path / CARD)
    image = real_parts.CardImage("x", card, "x86_64", "x")
    with card.open("r+b") as file:
        file.seek(MIB)
        file.write(bytes(512))
    made = real_parts.RealParts(image, TCG, tmp_path, 1)
    with pytest.raises(LabError, match=r"thicket\.toml cannot be written .*partition 1"):
        made.configure(tmp_path, "a = 1\n")
    card.write_bytes(bytes(512))
    with pytest.raises(LabError, match="no partition table"):
        made.configure(tmp_path, "a = 1\n")


def pi_card(directory: Path, trees: Mapping[str, bytes]) -> real_parts.CardImage:
    files = {**slot("A"), "Image": guest(), "start.elf": b"", "fixup.dat": b"", **trees}
    return real_parts.CardImage("pi", make_card(directory / "pi.img", None, files), "aarch64", "x")


def test_a_pi_has_a_card_of_a_power_of_two_and_no_chip(tmp_path: Path) -> None:
    image = pi_card(tmp_path, {"bcm2837-rpi-3-b.dtb": flat_tree.tree(flat_tree.node(""))})
    real_parts.check_board("raspi3b", "aarch64", image)
    sizes = {}
    for name, size in (("small", 16 * MIB), ("large", 1024 * MIB + 512)):
        os.truncate(image.card, size)
        made = real_parts.RealParts(image, TCG, tmp_path, 1, board="raspi3b")
        assert not made.has_chip
        assert made.description == "x, on raspi3b"
        directory = tmp_path / name
        directory.mkdir()
        made.disks(directory, "a = 1\n")
        sizes[name] = (directory / CARD).stat().st_size
        machine = made.machine("n1", directory, lambda _: None)
        assert isinstance(machine, Machine)
        assert (machine.spec.board, machine.spec.chip, machine.spec.relay) == (
            "raspi3b",
            False,
            True,
        )
        assert made.report(directory) is None
        real_parts.partition(directory / CARD, cards.CONFIG).write("report.txt", b"State: well\r\n")
        assert made.report(directory) == "State: well\r\n"
        os.truncate(directory / CARD, 512)
        assert made.report(directory) is None
    assert sizes == {"small": 1024 * MIB, "large": 2048 * MIB}


def test_a_machine_that_cannot_start_an_image_is_refused(tmp_path: Path) -> None:
    lab = ImageSet("lab", tmp_path / "vmlinux", tmp_path / "root", "quiet", "lab image")
    with pytest.raises(LabError, match=r"no machine 'pi5': MACHINE is q35, .*raspi3b"):
        real_parts.load("lab", tmp_path, 1, print, board="pi5")
    with pytest.raises(LabError, match=r"raspi4b can carry no relay: MACHINE is q35, .*raspi3b$"):
        real_parts.check_board("raspi4b", "aarch64", None)
    with pytest.raises(LabError, match="for x86_64, and raspi3b has another processor"):
        real_parts.load("lab", tmp_path, 1, print, board="raspi3b")
    with pytest.raises(LabError, match="raspi3b starts from a card, and lab is no card image"):
        real_parts.check_board("raspi3b", "aarch64", lab)
    with pytest.raises(LabError, match=r"pi cannot start on raspi3b: .*bcm2837-rpi-3-b\.dtb"):
        real_parts.check_board("raspi3b", "aarch64", pi_card(tmp_path, {}))
    real_parts.check_board("pc", "x86_64", lab)
    built(tmp_path, "x86_64", guest(), FACTS)
    with pytest.raises(LabError, match="for x86_64, and virt has another processor"):
        real_parts.load("x86_64", tmp_path, 1, print, board="virt")


def test_the_lab_image_has_disks(tmp_path: Path) -> None:
    image = ImageSet("lab", tmp_path / "vmlinux", tmp_path / "root", "quiet", "lab image")
    made = real_parts.RealParts(image, TCG, tmp_path, 1)
    directory = tmp_path / "n1"
    directory.mkdir()
    made.disks(directory, "a = 1\n")
    assert sorted(path.name for path in directory.iterdir()) == ["config.img", "data.img"]
    made.configure(directory, "b = 2\n")
    done = subprocess.run(
        ["mtype", "-i", directory / "config.img", "::thicket.toml"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "b = 2\n"
    machine = made.machine("n1", directory, lambda _: None)
    assert isinstance(machine, Machine)
    assert (machine.spec.kernel, machine.spec.cmdline) == (tmp_path / "vmlinux", "quiet")


async def test_a_lab_edits_cards_of_nodes_that_are_off(tmp_path: Path, parts: FakeParts) -> None:
    async with Lab(LabSpec(topology.make("line", 1), name="edit"), parts, tmp_path) as lab:
        await lab.formed(20)
        card = lab.nodes["n1"].directory / "config.img"
        first = card.read_text()
        with pytest.raises(LabError, match="n1 is on: switch it off"):
            lab.edit_card("n1", "x = 1\n")
        await lab.power_off("n1")
        lab.edit_card("n1", "x = 1\n")
        assert card.read_text() == "x = 1\n"
        lab.edit_card("n1")
        assert card.read_text() == first
        texts = [event.text for event in lab.state.events]
        assert "image: nothing is booted" in texts
