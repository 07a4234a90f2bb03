# SPDX-License-Identifier: Apache-2.0
"""A node's disks, read back by tools that did not write them where there are such."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from host import mtools
from meshlab.image import config
from meshlab.image.errors import ImageError

TOML = '[mesh]\nid = "Wäldchen"\n' + "# a long comment\n" * 500


def read_fat12(image: bytes) -> tuple[str, dict[str, bytes]]:
    """Return label and files of a FAT12 file system's root, long names included.

    Written from Microsoft's "FAT: General Overview of On-Disk Format" 1.03, for this test only.
    """
    sector, cluster, reserved, fats, entries = struct.unpack_from("<HBHBH", image, 11)
    fat_sectors = struct.unpack_from("<H", image, 22)[0]
    fat = image[reserved * sector :]
    root = (reserved + fats * fat_sectors) * sector
    data = root + entries * 32
    label, files, long = "", {}, ""
    for at in range(root, data, 32):
        entry = image[at : at + 32]
        if entry[0] == 0:
            break
        if entry[11] == 0x0F:
            part = (entry[1:11] + entry[14:26] + entry[28:32]).decode("utf-16-le")
            long = part.partition("\0")[0].rstrip("\uffff") + long
            continue
        if entry[11] & 0x08:
            label = entry[:11].decode().rstrip()
            continue
        number, size = struct.unpack_from("<HI", entry, 26)
        content = b""
        while number < 0xFF8:
            start = data + (number - 2) * cluster * sector
            content += image[start : start + cluster * sector]
            pair = struct.unpack_from("<H", fat, number * 3 // 2)[0]
            number = pair >> 4 if number % 2 else pair & 0xFFF
        short = entry[:8].decode().rstrip() + "." + entry[8:11].decode().rstrip()
        files[long or short] = content[:size]
        long = ""
    return label, files


def test_the_configuration_disk_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.img"
    config.make_config_disk(path, TOML)
    label, files = read_fat12(path.read_bytes())
    assert label == "THICKET"
    assert files == {"thicket.toml": TOML.encode()}
    assert [p.name for p in tmp_path.iterdir()] == ["config.img"]


def test_the_configuration_disk_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "config.img"
    config.make_config_disk(path, TOML)
    search = os.environ["PATH"] + ":/usr/sbin:/sbin"
    fsck = shutil.which("fsck.fat", path=search)
    assert fsck, "fsck.fat (package dosfstools) is missing"
    done = subprocess.run([fsck, "-n", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_same_text_makes_a_disk_of_the_same_contents(tmp_path: Path) -> None:
    for name in ("a", "b"):
        config.make_config_disk(tmp_path / name, TOML)
    assert read_fat12((tmp_path / "a").read_bytes()) == read_fat12((tmp_path / "b").read_bytes())


def test_a_disk_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "config.img"
    config.make_config_disk(path, "old = 1\n")
    config.make_config_disk(path, "new = 1\n")
    assert read_fat12(path.read_bytes())[1] == {"thicket.toml": b"new = 1\n"}


def test_a_failure_leaves_the_old_disk(tmp_path: Path) -> None:
    path = tmp_path / "config.img"
    config.make_config_disk(path, "old = 1\n")
    before = path.read_bytes()
    with pytest.raises(ImageError, match="mcopy"):
        config.make_config_disk(path, "x" * (config.CONFIG_KIB + 1) * 1024)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["config.img"]


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mtools, "PLACES", str(tmp_path))
    with pytest.raises(ImageError, match=r"apt-get install .*dosfstools mtools"):
        config.make_config_disk(tmp_path / "config.img", "")


def test_many_at_once(tmp_path: Path) -> None:
    """Nodes of a lab are prepared side by side."""
    threads = [
        threading.Thread(
            target=config.make_config_disk, args=(tmp_path / f"{n}.img", f"number = {n}\n")
        )
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(20):
        content = read_fat12((tmp_path / f"{n}.img").read_bytes())[1]
        assert content == {"thicket.toml": f"number = {n}\n".encode()}


def test_the_data_disk_is_blank_and_takes_no_room(tmp_path: Path) -> None:
    path = tmp_path / "data.img"
    config.make_data_disk(path, 64)
    assert path.stat().st_size == 64 << 20
    assert path.stat().st_blocks * 512 < 1 << 20
    with path.open("rb") as file:
        assert not any(file.read(1 << 16))
    assert [p.name for p in tmp_path.iterdir()] == ["data.img"]


def test_a_data_disk_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 is the least"):
        config.make_data_disk(tmp_path / "data.img", 4)
    assert list(tmp_path.iterdir()) == []
