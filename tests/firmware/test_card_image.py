# SPDX-License-Identifier: Apache-2.0
"""The card image: board/common/post-image.sh on stand-in inputs, with the real genimage, mkfs.fat,
mtools and veritysetup.
"""

from __future__ import annotations

import filecmp
import json
import os
import random
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from firmware import boards, bundle, card
from meshlab.lab import shared

# By the link that Buildroot uses as well.
POST_IMAGE = boards.ROOT / "br2-external/board/common/post-image.sh"
FIRMWARE = ("bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat")


def inputs(board: str, images: Path, root_bytes: int = 1 << 20) -> None:
    """Make stand-ins of what Buildroot leaves."""
    images.mkdir(exist_ok=True)
    files = images.parent / "root"
    files.mkdir(exist_ok=True)
    # Random, so that it does not compress; seeded by its size, so that it is the same each time.
    (files / "data").write_bytes(random.Random(root_bytes).randbytes(root_bytes))
    run(["mkfs.erofs", "-T0", "-U00000000-0000-0000-0000-000000000000", images / "rootfs.erofs",
         files])  # fmt: skip
    kernel = "Image" if board == "rpi64" else "bzImage"
    (images / kernel).write_bytes(b"kernel" * 1000)
    if board == "rpi64":
        firmware = images / "rpi-firmware"
        (firmware / "overlays").mkdir(parents=True, exist_ok=True)
        for name in FIRMWARE:
            (firmware / name).write_bytes(name.encode())
        (images / "bcm2710-rpi-3-b.dtb").write_bytes(b"dtb")
        overlays = (boards.ROOT / "board/rpi64/overlays.txt").read_text().split("\n")
        for name in overlays:
            if name and not name.startswith("#"):
                (firmware / "overlays" / f"{name}.dtbo").write_bytes(b"overlay")


def run(command: list[str | Path], **more: str) -> str:
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path, "MTOOLS_SKIP_CHECK": "1", **more},
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def make(board: str, images: Path) -> Path:
    run([POST_IMAGE, images, board], SOURCE_DATE_EPOCH="1790000000", THICKET_COMMIT="c0ffee")
    return images / "card.img"


@pytest.fixture(scope="module", params=boards.names())
def board(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def image(board: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card, made once per run, beside what it was made of."""

    def build(folder: Path) -> None:
        folder.mkdir()
        inputs(board, folder / "images")
        make(board, folder / "images")

    folder = shared.run_directory(tmp_path_factory)
    return shared.once(folder, f"card-of-{board}", build) / "images/card.img"


def cat(image: Path, number: int, name: str) -> bytes:
    with image.open("rb") as file:
        offset = card.read(file)[number].offset
    done = subprocess.run(
        ["mtype", "-i", f"{image}@@{offset}", f"::{name}"],
        capture_output=True,
        check=True,
        env={**os.environ, "MTOOLS_SKIP_CHECK": "1"},
    )
    return done.stdout


def test_partitions_are_where_card_py_says(image: Path) -> None:
    with image.open("rb") as file:
        layout = card.read(file)
        size = card.size_of(file)
    assert layout.signature == card.DISK_SIGNATURE
    assert sorted(layout.partitions) == [1, 2, 3, 4, 5, 6, 7]
    kinds = {n: layout[n].type for n in layout.partitions}
    assert [kinds[n] for n in (card.CONFIG, card.BOOT_A, card.BOOT_B)] == [0x0C] * 3
    assert [kinds[n] for n in (card.ROOT_A, card.ROOT_B, card.DATA)] == [0x83] * 3
    first = layout[card.CONFIG].offset
    assert first >= card.STATE_OFFSET + card.STATE_BYTES, "the state records lie before it"
    for number in (card.CONFIG, card.BOOT_A, card.BOOT_B, card.ROOT_A, card.ROOT_B, card.DATA):
        assert layout[number].offset % (1 << 20) == 0
    assert layout[card.ROOT_A].size == layout[card.ROOT_B].size
    assert layout[card.BOOT_A].size == layout[card.BOOT_B].size
    assert layout[card.DATA].end <= size <= 512 << 20


def test_the_gap_for_the_state_is_empty(image: Path) -> None:
    with image.open("rb") as file:
        file.seek(512)
        assert not any(file.read((4 << 20) - 512))


def test_the_boot_rom_is_led_to_slot_a(image: Path) -> None:
    text = cat(image, card.CONFIG, "autoboot.txt")
    assert len(text) == 512
    assert b"\0" not in text
    assert text.decode().split() == [
        "[all]", "tryboot_a_b=1", "boot_partition=2", "[tryboot]", "boot_partition=3",
    ]  # fmt: skip


def test_people_find_their_file(image: Path) -> None:
    template = (boards.ROOT / "app/src/thicket/thicket.toml").read_bytes()
    assert cat(image, card.CONFIG, "thicket.toml") == template
    assert b"thicket.toml" in cat(image, card.CONFIG, "README.txt")
    # Written in place by the device, so that no sector of a directory or FAT changes.
    report = cat(image, card.CONFIG, "report.txt")
    assert len(report) == 16384
    assert set(report) == set(b" \r\n")


@pytest.mark.parametrize("slot", ["A", "B"])
def test_a_slot_names_its_own_root_and_the_kernel_would_find_it_right(
    image: Path, slot: str, tmp_path: Path
) -> None:
    boot, root = {"A": (2, 5), "B": (3, 6)}[slot]
    line = cat(image, boot, "cmdline.txt").decode()
    assert line == cat(image, boot, f"cmdline-{slot}.txt").decode()
    assert line.count("\n") == 1
    assert len(line) < 1024
    words = dict(word.partition("=")[::2] for word in shlex.split(line))
    assert words["thicket.slot"] == slot
    assert words["root"] == "/dev/dm-0"
    assert words["dm-mod.waitfor"] == f"PARTUUID={card.DISK_SIGNATURE:08x}-{root:02}"
    # Documentation/admin-guide/device-mapper/verity.rst: the construction parameters
    found = re.fullmatch(
        r"root,,,ro,0 (\d+) verity 1 (\S+) (\S+) 4096 4096 (\d+) (\d+) sha256 (\S+) (\S+) 1 "
        r"panic_on_corruption",
        words["dm-mod.create"],
    )
    assert found
    sectors, data, hashes, blocks, start, digest, salt = found.groups()
    assert data == hashes == words["dm-mod.waitfor"]
    assert int(sectors) * 512 == int(blocks) * 4096
    with image.open("rb") as file:
        partition = card.read(file)[root]
        file.seek(partition.offset)
        content = file.read(partition.size)
    slot_file = tmp_path / "slot"

    def verify(content: bytes) -> int:
        slot_file.write_bytes(content)
        return subprocess.run(
            ["veritysetup", "verify", "--no-superblock", "--hash=sha256", f"--salt={salt}",
             f"--data-blocks={blocks}", f"--hash-offset={int(start) * 4096}", slot_file, slot_file,
             digest],
            env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
            capture_output=True,
            check=False,
        ).returncode  # fmt: skip

    assert verify(content) == 0
    broken = bytearray(content)
    broken[4096 * (int(blocks) // 2) + 17] ^= 1
    assert verify(bytes(broken)) != 0


def test_the_kernel_and_what_the_rom_wants_are_on_both_boot_partitions(
    board: str, image: Path
) -> None:
    for boot in (card.BOOT_A, card.BOOT_B):
        config = cat(image, boot, "config.txt").decode()
        kernel = re.findall(r"^kernel=(\S+)$", config, re.MULTILINE)
        assert len(kernel) == 1
        assert cat(image, boot, kernel[0]) == b"kernel" * 1000
        if board == "rpi64":
            assert cat(image, boot, "bcm2710-rpi-3-b.dtb") == b"dtb"
    if board == "rpi64":
        for name in FIRMWARE:
            assert cat(image, card.CONFIG, name) == name.encode()
            if name != "bootcode.bin":
                assert cat(image, card.BOOT_A, name) == name.encode()


def test_the_manifest_tells_what_is_in_it(board: str, image: Path) -> None:
    manifest = json.loads((image.parent / "manifest.json").read_text())
    assert manifest["board"] == board
    assert manifest["commit"] == "c0ffee"
    project = tomllib.loads((boards.ROOT / "app/pyproject.toml").read_text())
    assert manifest["version"] == project["project"]["version"]
    assert manifest["epoch"] == project["tool"]["thicket"]["epoch"] >= 1
    assert manifest["card_bytes"] == image.stat().st_size
    assert manifest["slots"]["root_bytes"] == (image.parent / "rootfs.erofs").stat().st_size
    assert manifest["root_hash"] in cat(image, card.BOOT_A, "cmdline.txt").decode()


def test_both_slots_are_the_boot_image_of_bundles_but_for_the_command_line(image: Path) -> None:
    boot = (image.parent / bundle.BOOT).read_bytes()
    slots = {}
    with image.open("rb") as file:
        layout = card.read(file)
        for slot, number in (("A", card.BOOT_A), ("B", card.BOOT_B)):
            file.seek(layout[number].offset)
            slots[slot] = file.read(layout[number].size)
    found = subprocess.run(
        ["mtype", "-i", image.parent / bundle.BOOT, "::cmdline.txt"],
        capture_output=True, check=True, env={**os.environ, "MTOOLS_SKIP_CHECK": "1"},
    ).stdout  # fmt: skip
    assert len(boot) == len(slots["A"])
    assert boot.count(found) == 1
    # It starts neither root, and the kernel restarts itself.
    assert b"panic=10 thicket.slot=none" in found
    assert b"root=" not in found
    for slot, content in slots.items():
        line = cat(image, card.BOOT_A, f"cmdline-{slot}.txt")
        assert len(line) == len(found), "the hook of a bundle writes it in place"
        assert content == boot.replace(found, line)


def test_what_bundles_are_made_of_stays(image: Path) -> None:
    said = bundle.release(image.parent)
    assert said.build == "c0ffee"
    assert f" {said.root} " in cat(image, card.BOOT_A, "cmdline-A.txt").decode()
    assert (image.parent / bundle.ROOT_IMAGE).stat().st_size % 4096 == 0
    assert not list(image.parent.glob("boot-*"))


def test_the_same_inputs_make_the_same_card(board: str, image: Path, tmp_path: Path) -> None:
    inputs(board, tmp_path / "images")
    again = make(board, tmp_path / "images")
    assert filecmp.cmp(again, image, shallow=False)


def test_a_root_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    images = tmp_path / "images"
    inputs("x86_64", images, root_bytes=128 << 20)
    done = subprocess.run(
        [POST_IMAGE, images, "x86_64"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin"},
    )
    assert done.returncode == 1
    assert "a root slot has 134217728" in done.stderr
    assert not (images / "card.img").exists()
