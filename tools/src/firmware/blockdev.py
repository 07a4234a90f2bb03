# SPDX-License-Identifier: Apache-2.0
"""The disks of this machine, and whether one of them may be overwritten.

What decides comes from the kernel itself (sysfs, ``/proc/*/mountinfo``, ``/proc/swaps``), so it is
the same with and without udev; what is only shown to a person comes from lsblk as well.
"""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from thicket.base.visible import visible

SYSTEM_PLACES = (
    "/",
    "/boot",
    "/boot/efi",
    "/boot/firmware",
    "/efi",
    "/etc",
    "/home",
    "/usr",
    "/var",
)
"""The disks below these are never overwritten, whatever the flags."""


def device_number(path: str) -> str | None:
    """Return ``major:minor`` of the block device that ``path`` names; None when it is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 # names of /proc need not be paths that Path knows
    except (OSError, ValueError):
        return None
    if not stat.S_ISBLK(status.st_mode):
        return None
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


@dataclass(frozen=True)
class Partition:
    """What is shown of one partition, or of a disk that is one file system."""

    name: str
    size: int
    filesystem: str = ""
    label: str = ""


@dataclass(frozen=True)
class Disk:
    """One whole disk; sizes in bytes.

    :ivar number: ``major:minor``, the kernel's name of it.
    :ivar size: 0 for a card reader without a card.
    :ivar transport: usb, sd, emmc, nvme, sata, scsi, virtio or virtual.
    :ivar sequence: a number that changes when the medium does (``diskseq``); empty on kernels
        before 5.15.
    """

    name: str
    path: str
    number: str
    size: int
    sector: int
    read_only: bool
    removable: bool
    transport: str
    sequence: str
    model: str = ""
    serial: str = ""
    contents: tuple[Partition, ...] = ()

    @property
    def is_card(self) -> bool:
        """Whether it is what cards are in: removable, an SD slot, or on USB."""
        return self.removable or self.transport in ("usb", "sd")


@dataclass(frozen=True)
class Refusal:
    """Why a disk is not overwritten, and what a person can do about it."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}.\n  {self.remedy}"


@dataclass(frozen=True)
class _Mount:
    number: str
    place: str
    kind: str
    source: str
    own: bool = field(compare=False)
    """Whether it is in this program's own mount namespace."""


@dataclass
class Machine:
    """The block devices that the kernel tells of.

    Tests put made-up folders in place of the kernel's.

    :ivar sys: where sysfs is.
    :ivar proc: where procfs is.
    :ivar number: finds a device by its path.
    :ivar udev: where udev keeps what it found on each device.
    """

    sys: Path = Path("/sys")
    proc: Path = Path("/proc")
    number: Callable[[str], str | None] = device_number
    udev: Path = Path("/run/udev/data")
    _mounts: list[_Mount] | None = field(default=None, init=False)

    def find(self, path: str) -> str | None:
        """Return the kernel's name (``sdb``) of the block device ``path``, or None."""
        number = self.number(path)
        return self._name(number) if number else None

    def parent(self, name: str) -> str | None:
        """Return the disk that a partition is on; None for what is not a partition."""
        folder = self._folder(name)
        if not (folder / "partition").exists():
            return None
        return folder.resolve().parent.name

    def disks(self) -> list[Disk]:
        """Return every disk that hardware stands behind, in the order of their names."""
        try:
            names = sorted(p.name for p in (self.sys / "class/block").iterdir())
        except OSError:
            return []
        found = []
        for name in names:
            if self.parent(name) is None:
                disk = self.disk(name)
                if disk is not None and disk.transport != "virtual":
                    found.append(disk)
        return found

    def disk(self, name: str) -> Disk | None:
        """Return what there is to know of the disk ``name``; None when it is gone."""
        folder = self._folder(name)
        number = _read(folder / "dev")
        if not number:
            return None
        model = " ".join(
            filter(None, (_read(folder / "device" / key) for key in ("vendor", "model", "name")))
        )
        return Disk(
            name=name,
            path="/dev/" + name.replace("!", "/"),
            number=number,
            size=int(_read(folder / "size") or 0) * 512,
            sector=int(_read(folder / "queue/logical_block_size") or 512),
            read_only=_read(folder / "ro") == "1",
            removable=_read(folder / "removable") == "1",
            transport=self._transport(name),
            sequence=_read(folder / "diskseq"),
            model=_printable(model),
            serial=_printable(_read(folder / "device/serial") or _read(folder / "serial")),
            contents=tuple(
                Partition(part, int(_read(self._folder(part) / "size") or 0) * 512)
                for part in self._partitions(name)
            ),
        )

    def refusals(self, disk: Disk, least: int, force: bool = False) -> list[Refusal]:
        """Return why ``disk`` must not be overwritten; empty when it may.

        :param least: the size in bytes that the image needs (0: not known).
        :param force: let a disk pass that is no card; nothing else is ever waived.
        """
        path = disk.path
        found = []
        if disk.size == 0:
            return [Refusal(f"{path} is empty", "Put a card into the reader.")]
        system = self._system_uses(disk.name)
        if system:
            found.append(
                Refusal(
                    f"{path} is a disk that this system runs from: it holds {_list(system)}",
                    "It is never overwritten. `bin/flash --list` shows what can be.",
                )
            )
        else:
            uses, places = self._uses(disk.name)
            if uses:
                remedy = "End that use first."
                if places:
                    remedy = "Unmount it first:"
                    remedy += "".join(f"\n    sudo umount {_quoted(p)}" for p in places)
                found.append(Refusal(f"{path} is in use: {_list(uses)}", remedy))
        if disk.read_only:
            found.append(
                Refusal(
                    f"{path} is read-only",
                    "Push the lock switch at the side of the SD card (or its adapter) towards the "
                    "contacts, and put it in again; a card that still is read-only is worn out.",
                )
            )
        if disk.sector != 512:
            found.append(
                Refusal(
                    f"{path} has sectors of {disk.sector} bytes, the image's partition table "
                    "counts in 512",
                    "Take another card or reader.",
                )
            )
        if not disk.is_card and not force and not system:
            found.append(
                Refusal(
                    f"{path} is not removable, not on USB and not an SD card ({disk.transport})",
                    "If it really is the one to overwrite, say so with --force-fixed (FORCE=1 with "
                    "make).",
                )
            )
        if least and disk.size < least:
            found.append(
                Refusal(
                    f"{path} is too small: it has {human(disk.size)} ({disk.size} bytes), the "
                    f"image needs {human(least)} ({least} bytes)",
                    "Take a larger card.",
                )
            )
        return found

    def _folder(self, name: str) -> Path:
        return self.sys / "class/block" / name

    def _name(self, number: str) -> str | None:
        link = self.sys / "dev/block" / number
        return link.resolve().name if link.exists() else None

    def _partitions(self, disk: str) -> list[str]:
        folder = self._folder(disk)
        try:
            names = [p.name for p in folder.iterdir() if (p / "partition").exists()]
        except OSError:
            return []
        return sorted(names, key=lambda name: int(_read(folder / name / "partition") or 0))

    def _transport(self, name: str) -> str:
        device = str(self._folder(name).resolve())
        if "/devices/virtual/" in device:
            return "virtual"
        if name.startswith("mmcblk"):
            # "MMC" is eMMC: soldered on, the system disk of many a small computer
            return "sd" if _read(self._folder(name) / "device/type") == "SD" else "emmc"
        for part, transport in (
            ("/usb", "usb"),
            ("/nvme", "nvme"),
            ("/ata", "sata"),
            ("/virtio", "virtio"),
        ):
            if part in device:
                return transport
        return "scsi"

    def _stacked(self, name: str) -> Iterator[tuple[str, str]]:
        """Yield what is built on a disk, as (what, on what); the disk and its partitions first."""
        queue = [(name, "")] + [(part, name) for part in self._partitions(name)]
        seen = set()
        while queue:
            this, below = queue.pop(0)
            if this in seen:
                continue
            seen.add(this)
            yield this, below
            for holder in _names(self._folder(this) / "holders"):
                queue.append((holder, this))
                queue += [(part, holder) for part in self._partitions(holder)]

    def _numbers(self, disk: str) -> dict[str, str]:
        """Return the names of a disk and of everything built on it, by number."""
        pairs = ((_read(self._folder(name) / "dev"), name) for name, _ in self._stacked(disk))
        return {number: name for number, name in pairs if number}

    def _uses(self, disk: str) -> tuple[list[str], list[str]]:
        """Return who uses a disk, in words, and where it is mounted in our own view."""
        uses: list[str] = []
        places: list[str] = []
        numbers = self._numbers(disk)
        own = {disk, *self._partitions(disk)}
        for name, below in self._stacked(disk):
            if name not in own and self.parent(name) is None:
                uses.append(f"{below} is part of {name}{self._stack_kind(name)}")
        for mount in self._all_mounts():
            user = self._mounted_on(mount, numbers)
            if user is not None:
                elsewhere = "" if mount.own else " in another mount namespace (a container?)"
                uses.append(f"{user} is mounted at {mount.place}{elsewhere}")
                if mount.own and mount.place not in places:
                    places.append(mount.place)
        for member, group in self._btrfs_members().items():
            if member in numbers.values() and not any(m.startswith(f"{member} ") for m in uses):
                uses.append(f"{member} belongs to the mounted btrfs {group}")
        pools = self._zfs_pools()
        if pools:
            uses += self._zfs_uses(numbers, _list(pools))
        for path in self._swaps():
            user = numbers.get(self.number(path) or "")
            if user is not None:
                uses.append(f"{user} is swap space (sudo swapoff {path})")
        for loop in sorted((self.sys / "class/block").glob("loop*/loop/backing_file")):
            backing, holder = _read(loop), loop.parent.parent.name
            user = numbers.get(self.number(backing) or "")
            if user is not None and holder not in own:
                uses.append(f"{user} is used by {holder} (sudo losetup -d /dev/{holder})")
        return uses, places

    def _system_uses(self, disk: str) -> list[str]:
        """Return which system places (and swap) lie on a disk, directly or through what is built
        on it."""
        numbers = self._numbers(disk)
        found = []
        btrfs = self._btrfs_members()
        groups = {group for member, group in btrfs.items() if member in numbers.values()}
        for mount in self._all_mounts():
            if mount.place not in SYSTEM_PLACES or mount.place in found:
                continue
            if self._mounted_on(mount, numbers) is not None:
                found.append(mount.place)
            elif mount.kind == "btrfs":
                # Any disk of the file system may be the one that is named as its source.
                source = self._name(self.number(mount.source) or "")
                if source is not None and btrfs.get(source) in groups:
                    found.append(mount.place)
        if any(numbers.get(self.number(path) or "") for path in self._swaps()):
            found.append("swap")
        return found

    def _mounted_on(self, mount: _Mount, numbers: dict[str, str]) -> str | None:
        name = numbers.get(mount.number)
        if name is None and mount.number.startswith("0:") and mount.source.startswith("/"):
            # btrfs and others that may span disks show a number of their own; ask the source,
            # in which bcachefs names all of its disks
            sources = [mount.source, *mount.source.replace(":/", "\n/").split("\n")]
            found = (numbers.get(self.number(source) or "") for source in sources)
            name = next((name for name in found if name is not None), None)
        return name

    def _zfs_pools(self) -> list[str]:
        """Return the names of the ZFS pools in use: the module's own list, and what is mounted."""
        folder = self.proc / "spl/kstat/zfs"
        pools = {name for name in _names(folder) if (folder / name).is_dir()}
        pools |= {m.source.split("/")[0] for m in self._all_mounts() if m.kind == "zfs"}
        return sorted(pools)

    def _zfs_uses(self, numbers: dict[str, str], pools: str) -> list[str]:
        """Return which devices are, or may be, disks of a ZFS pool while ``pools`` are in use.

        The kernel does not tell the disks of a pool. What udev found on a device does; without a
        word from udev, any device may be one.
        """
        uses = []
        for number, name in numbers.items():
            said = _read(self.udev / f"b{number}")
            if "E:ID_FS_TYPE=zfs_member" in said.splitlines():
                uses.append(
                    f"{name} is a disk of a ZFS pool while {pools} is in use (zpool export)"
                )
            elif not said:
                uses.append(
                    f"{name} may be a disk of the ZFS pool {pools}: udev tells nothing of it"
                )
        return uses

    def _all_mounts(self) -> list[_Mount]:
        """Return the mounts of every mount namespace that a visible process is in."""
        if self._mounts is None:
            texts: list[tuple[str, bool]] = []
            seen: set[str] = set()
            for process in ("self", *(n for n in _names(self.proc) if n.isdigit())):
                folder = self.proc / process
                try:
                    space = os.readlink(folder / "ns/mnt")  # noqa: PTH115 # not a path
                except OSError:
                    space = process
                if space in seen:
                    continue
                text = _read(folder / "mountinfo")
                if text:
                    seen.add(space)
                    texts.append((text, process == "self"))
            mounts = (mount for text, own in texts for mount in _parse_mounts(text, own))
            # The same mount is seen from many namespaces; the first one, our own, tells of it.
            self._mounts = list(dict.fromkeys(mounts))
        return self._mounts

    def _swaps(self) -> list[str]:
        """Return the paths of swap partitions; a swap file shows by the mount that it is in."""
        lines = [line.split() for line in _read(self.proc / "swaps").splitlines()[1:]]
        return [_unescaped(words[0]) for words in lines if words[1:2] == ["partition"]]

    def _btrfs_members(self) -> dict[str, str]:
        """Return the devices of all mounted btrfs file systems, with the file system's UUID."""
        folder = self.sys / "fs/btrfs"
        return {
            member: group
            for group in _names(folder)
            for member in _names(folder / group / "devices")
        }

    def _stack_kind(self, name: str) -> str:
        mapped = _read(self._folder(name) / "dm/name")
        if mapped:
            kind = "LVM " if _read(self._folder(name) / "dm/uuid").startswith("LVM-") else ""
            return f" ({kind}{mapped})"
        return " (RAID)" if name.startswith("md") else ""


def described(disk: Disk) -> Disk:
    """Return ``disk`` with what lsblk knows more: file systems, labels, model and serial number.

    Without lsblk, or when it fails, ``disk`` is returned as it is: this is only shown.
    """
    columns = "NAME,SIZE,FSTYPE,LABEL,MODEL,SERIAL"
    command = ["lsblk", "--json", "--bytes", "--output", columns, disk.path]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=20)
        (entry,) = json.loads(done.stdout)["blockdevices"]
        parts = tuple(
            Partition(
                str(part["name"]),
                int(part["size"] or 0),
                _printable(part["fstype"]),
                _printable(part["label"]),
            )
            for part in [*entry.get("children", []), entry]
            if part is not entry or entry["fstype"]
        )
        return Disk(
            **{
                **disk.__dict__,
                "contents": parts,
                "model": _printable(entry["model"]) or disk.model,
                "serial": _printable(entry["serial"]) or disk.serial,
            }
        )
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return disk


def human(size: int) -> str:
    """Return a size as a person reads it: ``29.7 GiB``."""
    value, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{size} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def _parse_mounts(text: str, own: bool) -> Iterator[_Mount]:
    # proc_pid_mountinfo(5): id parent major:minor root place options [fields] - type source options
    for line in text.splitlines():
        head, _, tail = line.partition(" - ")
        words, more = head.split(" "), tail.split(" ")
        if len(words) >= 6 and len(more) >= 2:
            yield _Mount(words[2], _unescaped(words[4]), more[0], _unescaped(more[1]), own)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except (OSError, ValueError):
        return ""


def _printable(text: object) -> str:
    """Return what a card says of itself as one line without characters that move the cursor."""
    return visible(" ".join(str(text or "").split()), keep="")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _list(words: list[str]) -> str:
    shown = words if len(words) <= 6 else [*words[:5], f"{len(words) - 5} more"]
    return ", ".join(shown)


def _quoted(path: str) -> str:
    return path if re.fullmatch(r"[\w@%+=:,./-]+", path) else "'" + path.replace("'", "'\\''") + "'"
