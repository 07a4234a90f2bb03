# SPDX-License-Identifier: Apache-2.0
"""Which disks may be overwritten, judged on made-up trees of /sys and /proc."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from firmware import blockdev
from firmware.blockdev import Disk, Machine, human

GIB = 1 << 30
USB = "pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host4/target4:0:0/4:0:0:0"
SATA = "pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0"
NVME = "pci0000:00/0000:01:00.0/nvme/nvme0"
SLOT = "platform/soc/mmc0/mmc0:aaaa"


@dataclass
class Tree:
    """Builds what the kernel would show."""

    root: Path
    numbers: dict[str, str] = field(default_factory=dict)
    mounts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for folder in ("sys/class/block", "sys/dev/block", "proc/self"):
            (self.root / folder).mkdir(parents=True)
        self.write("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def device(self, name: str, number: str, folder: Path, size: int, **files: str) -> Path:
        folder.mkdir(parents=True)
        for file, text in {"dev": number, "size": str(size // 512), "ro": "0", **files}.items():
            path = folder / file.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        (self.root / "sys/class/block" / name).symlink_to(folder)
        (self.root / "sys/dev/block" / number).symlink_to(folder)
        (folder / "holders").mkdir()
        self.numbers[f"/dev/{name}"] = number
        return folder

    def disk(
        self, name: str, number: str, bus: str, size: int = 32 * GIB, parts: int = 2, **files: str
    ) -> None:
        folder = self.root / "sys/devices" / bus / "block" / name
        values = {"removable": "0", "queue__logical_block_size": "512", "diskseq": "7"} | files
        self.device(name, number, folder, size, **values)
        major, _, minor = number.partition(":")
        for index in range(1, parts + 1):
            part = f"{name}p{index}" if name[-1].isdigit() else f"{name}{index}"
            self.device(
                part, f"{major}:{int(minor) + index}", folder / part, GIB, partition=str(index)
            )

    def virtual(self, name: str, number: str, below: list[str], **files: str) -> None:
        folder = self.root / "sys/devices/virtual/block" / name
        self.device(name, number, folder, GIB, **files)
        for lower in below:
            (self.root / "sys/class/block" / lower / "holders" / name).symlink_to(folder)

    def mount(self, number: str, place: str, kind: str = "ext4", source: str = "none") -> str:
        line = f"27 1 {number} / {place} rw,relatime shared:1 - {kind} {source} rw\n"
        self.mounts.append(line)
        return line

    @property
    def machine(self) -> Machine:
        self.write("proc/self/mountinfo", "".join(self.mounts))
        return Machine(self.root / "sys", self.root / "proc", self.numbers.get, self.root / "udev")

    def refusals(self, name: str, least: int = GIB, force: bool = False) -> list[str]:
        machine = self.machine
        disk = machine.disk(name)
        assert disk is not None
        return [str(r) for r in machine.refusals(disk, least, force)]

    def refusal(self, name: str, least: int = GIB, force: bool = False) -> str:
        (only,) = self.refusals(name, least, force)
        return only


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A laptop: root on NVMe, an SD card in a USB reader, another in a slot."""
    made = Tree(tmp_path)
    made.disk("nvme0n1", "259:0", NVME, 512 * GIB)
    made.disk("sdb", "8:16", USB, removable="1")
    made.disk("mmcblk0", "179:0", SLOT, device__type="SD")
    made.mount("259:2", "/")
    made.mount("0:23", "/proc", "proc", "proc")
    return made


def test_cards_may_be_overwritten(tree: Tree) -> None:
    assert tree.refusals("sdb") == []
    assert tree.refusals("mmcblk0") == []
    tree.disk("sdc", "8:32", USB.replace("usb2/2-1", "usb2/2-2"))  # many a stick says it is fixed
    assert tree.refusals("sdc") == []


def test_what_is_known_of_a_disk(tree: Tree) -> None:
    tree.disk(
        "sdd", "8:48", USB + "9", removable="1", device__vendor="Generic ", device__model="STORAGE"
    )
    disk = tree.machine.disk("sdd")
    assert disk == Disk(
        name="sdd",
        path="/dev/sdd",
        number="8:48",
        size=32 * GIB,
        sector=512,
        read_only=False,
        removable=True,
        transport="usb",
        sequence="7",
        model="Generic STORAGE",
        contents=(blockdev.Partition("sdd1", GIB), blockdev.Partition("sdd2", GIB)),
    )
    assert tree.machine.disk("sdx") is None
    assert [d.name for d in tree.machine.disks()] == ["mmcblk0", "nvme0n1", "sdb", "sdd"]


def test_partitions_have_a_parent(tree: Tree) -> None:
    tree.numbers["/dev/disk/by-label/bootfs"] = "8:17"
    assert tree.machine.find("/dev/disk/by-label/bootfs") == "sdb1"
    assert tree.machine.parent("sdb1") == "sdb"
    assert tree.machine.parent("mmcblk0p2") == "mmcblk0"
    assert tree.machine.parent("sdb") is None
    assert tree.machine.find("/dev/nothing") is None


@pytest.mark.parametrize("force", [False, True])
def test_the_system_disk_is_never_overwritten(tree: Tree, force: bool) -> None:
    said = tree.refusal("nvme0n1", force=force)
    assert "it holds /.\n" in said
    assert "never overwritten" in said


@pytest.mark.parametrize("place", blockdev.SYSTEM_PLACES)
def test_every_system_place_makes_a_system_disk(tree: Tree, place: str) -> None:
    tree.mount("8:17", place)
    assert f"it holds {place}." in tree.refusal("sdb", force=True)


def test_a_system_on_lvm_on_raid_on_a_card_is_found(tree: Tree) -> None:
    tree.virtual("md0", "9:0", ["sdb2"])
    tree.virtual("dm-0", "253:0", ["md0"], dm__name="vg-usr", dm__uuid="LVM-abc")
    tree.mount("253:0", "/usr", source="/dev/mapper/vg-usr")
    assert "runs from: it holds /usr" in tree.refusal("sdb")


def test_a_system_on_a_partitioned_raid_is_found(tree: Tree) -> None:
    tree.virtual("md0", "9:0", ["sdb"])
    folder = tree.root / "sys/devices/virtual/block/md0/md0p1"
    tree.device("md0p1", "259:9", folder, GIB, partition="1")
    tree.mount("259:9", "/home")
    assert "runs from: it holds /home" in tree.refusal("sdb")


def test_swap_makes_a_system_disk(tree: Tree) -> None:
    head = "Filename Type Size Used Priority\n"
    tree.write("proc/swaps", head + "/swapfile file 1 0 -2\n/dev/sdb2 partition 99 0 -3\n")
    assert "it holds swap" in tree.refusal("sdb", force=True)


def test_btrfs_hides_its_devices_behind_another_number(tree: Tree) -> None:
    """Its mounts name one of its disks; the others belong to it as much."""
    tree.mount("0:31", "/", "btrfs", "/dev/sdb1")
    for member in ("sdb1", "mmcblk0p1"):
        (tree.root / "sys/fs/btrfs/1234-5678/devices" / member).mkdir(parents=True)
    for disk in ("sdb", "mmcblk0"):
        assert "it holds /" in tree.refusal(disk, force=True)


def test_a_mounted_btrfs_of_several_disks_is_in_use(tree: Tree) -> None:
    tree.mount("0:31", "/mnt/pool", "btrfs", "/dev/sdb1")
    for member in ("sdb1", "mmcblk0p1"):
        (tree.root / "sys/fs/btrfs/1234-5678/devices" / member).mkdir(parents=True)
    assert "sdb1 is mounted at /mnt/pool" in tree.refusal("sdb")
    assert "mmcblk0p1 belongs to the mounted btrfs 1234-5678" in tree.refusal("mmcblk0")


@pytest.mark.parametrize("force", [False, True])
def test_what_is_mounted_is_refused_with_the_way_out(tree: Tree, force: bool) -> None:
    tree.mount("8:17", "/media/me/boot")
    tree.mount("8:18", "/media/me/my\\040files")
    said = tree.refusal("sdb", force=force)
    assert "sdb1 is mounted at /media/me/boot, sdb2 is mounted at /media/me/my files" in said
    assert "sudo umount /media/me/boot\n" in said
    assert "sudo umount '/media/me/my files'" in said


def test_a_file_system_on_the_whole_disk_is_seen(tree: Tree) -> None:
    tree.mount("8:16", "/mnt")
    assert "sdb is mounted at /mnt" in tree.refusal("sdb")


def test_mounts_of_other_namespaces_count(tree: Tree) -> None:
    mine = tree.mount("8:17", "/media/boot")
    tree.mounts.remove(mine)
    for process, space in (("12", "mnt:[1]"), ("13", "mnt:[1]"), ("14", "mnt:[2]")):
        tree.write(f"proc/{process}/mountinfo", mine if space == "mnt:[1]" else "")
        (tree.root / f"proc/{process}/ns").mkdir()
        (tree.root / f"proc/{process}/ns/mnt").symlink_to(space)
    said = tree.refusal("sdb")
    assert said.count("sdb1 is mounted at /media/boot in another mount namespace") == 1
    assert "umount" not in said, "it cannot be unmounted from here"


def test_holders_are_refused_without_any_mount(tree: Tree) -> None:
    tree.virtual("dm-3", "253:3", ["sdb2"], dm__name="secret", dm__uuid="CRYPT-LUKS2-x")
    tree.virtual("md127", "9:127", ["mmcblk0p1"])
    assert "sdb2 is part of dm-3 (secret)" in tree.refusal("sdb")
    assert "mmcblk0p1 is part of md127 (RAID)" in tree.refusal("mmcblk0")


def test_a_loop_device_on_the_disk_is_a_use(tree: Tree) -> None:
    tree.virtual("loop5", "7:5", [], loop__backing_file="/dev/sdb2")
    tree.virtual("loop6", "7:6", [], loop__backing_file="/home/me/disk.img")
    assert "sdb2 is used by loop5 (sudo losetup -d /dev/loop5)" in tree.refusal("sdb")
    assert tree.refusals("mmcblk0") == []


def test_a_card_without_a_medium(tree: Tree) -> None:
    tree.disk("sde", "8:64", USB + "7", size=0, parts=0, removable="1")
    assert tree.refusal("sde", force=True) == "/dev/sde is empty.\n  Put a card into the reader."


def test_the_lock_switch(tree: Tree) -> None:
    tree.disk("sde", "8:64", USB + "7", removable="1", ro="1")
    assert "Push the lock switch" in tree.refusal("sde", force=True)


def test_other_sectors(tree: Tree) -> None:
    tree.disk("sde", "8:64", USB + "7", removable="1", queue__logical_block_size="4096")
    assert "sectors of 4096 bytes" in tree.refusal("sde", force=True)


def test_fixed_disks_need_to_be_meant(tree: Tree) -> None:
    tree.disk("sda", "8:0", SATA)
    tree.disk("mmcblk1", "179:8", "platform/soc/mmc1/mmc1:0001", device__type="MMC")
    assert "(sata).\n  If it really is" in tree.refusal("sda")
    assert "(emmc)" in tree.refusal("mmcblk1")
    assert tree.refusals("sda", force=True) == tree.refusals("mmcblk1", force=True) == []


def test_too_small_says_both_sizes(tree: Tree) -> None:
    least = 32 * GIB + 512
    assert tree.refusals("sdb", 32 * GIB) == []
    said = tree.refusal("sdb", least, force=True)
    assert f"32.0 GiB ({32 * GIB} bytes)" in said
    assert f"({least} bytes)" in said


def test_all_reasons_are_told_at_once(tree: Tree) -> None:
    tree.disk("sda", "8:0", SATA, ro="1")
    tree.mount("8:1", "/mnt")
    assert len(tree.refusals("sda", 64 * GIB)) == 4


def lsblk(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    program = folder / "lsblk"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")


def test_what_is_shown_comes_from_lsblk(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tree.machine.disk("sdb")
    assert disk is not None
    part = {"name": "sdb1", "size": 268435456, "fstype": "vfat", "label": "boot\u001b[2Jfs"}
    entry = {
        "name": "sdb",
        "size": disk.size,
        "fstype": None,
        "label": None,
        "model": "Ultra  Card",
        "serial": "4C53",
        "children": [part],
    }
    lsblk(tmp_path, monkeypatch, json.dumps({"blockdevices": [entry]}))
    assert blockdev.described(disk) == replace(
        disk,
        model="Ultra Card",
        serial="4C53",
        contents=(blockdev.Partition("sdb1", 268435456, "vfat", "boot\\u001b[2Jfs"),),
    )
    for broken in ("", "{}", '{"blockdevices": [{}]}', '{"blockdevices": []}'):
        lsblk(tmp_path, monkeypatch, broken)
        assert blockdev.described(disk) == disk


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (31914983424, "29.7 GiB")],
)
def test_sizes_are_readable(size: int, text: str) -> None:
    assert human(size) == text


def test_every_disk_of_a_bcachefs_is_in_use(tree: Tree) -> None:
    tree.mount("0:31", "/mnt/pool", "bcachefs", "/dev/sdb1:/dev/mmcblk0p1")
    assert "sdb1 is mounted at /mnt/pool" in tree.refusal("sdb", force=True)
    assert "mmcblk0p1 is mounted at /mnt/pool" in tree.refusal("mmcblk0", force=True)


def test_a_system_on_a_bcachefs_of_several_disks_is_never_overwritten(tree: Tree) -> None:
    tree.mounts.clear()
    tree.mount("0:31", "/", "bcachefs", "/dev/sdb1:/dev/mmcblk0p1")
    for disk in ("sdb", "mmcblk0"):
        assert "it holds /" in tree.refusal(disk, force=True)


def udev_found(tree: Tree, number: str, text: str) -> None:
    tree.write(f"udev/b{number}", f"E:ID_BUS=usb\n{text}\n")


@pytest.mark.parametrize("mounted", [True, False])
def test_a_disk_of_a_zfs_pool_is_in_use(tree: Tree, mounted: bool) -> None:
    """A pool may be imported without being mounted: for its volumes, or by hand."""
    if mounted:
        tree.mount("0:31", "/tank", "zfs", "tank/data")
    else:
        tree.write("proc/spl/kstat/zfs/tank/state", "ONLINE\n")
    for number in ("8:16", "8:17", "8:18", "179:0", "179:1", "179:2"):
        udev_found(tree, number, "E:ID_FS_TYPE=vfat")
    udev_found(tree, "8:17", "E:ID_FS_TYPE=zfs_member")
    said = tree.refusal("sdb", force=True)
    assert "sdb1 is a disk of a ZFS pool while tank is in use" in said
    assert tree.refusals("mmcblk0") == [], "a card beside the pool may be overwritten"


def test_while_a_zfs_pool_is_in_use_a_disk_that_nobody_knows_is_not_overwritten(
    tree: Tree,
) -> None:
    tree.mount("0:31", "/", "zfs", "rpool/ROOT")
    said = tree.refusal("sdb", force=True)
    assert "sdb1 may be a disk of the ZFS pool rpool" in said
