# SPDX-License-Identifier: Apache-2.0
"""Card images made by hand: an MBR, and FAT partitions with given files, right or wrong."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

MIB = 1 << 20
Files = Mapping[str, bytes]

KERNEL = bytes(0x38) + b"ARM\x64" + bytes(0x1000)
"""What looks like an arm64 kernel."""

AUTOBOOT = b"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"


def slot(name: str) -> dict[str, bytes]:
    """Return the files of a boot partition."""
    return {
        "config.txt": b"kernel=Image\n",
        "cmdline.txt": f"console=serial0,115200 thicket.slot={name}\n".encode(),
        "Image": KERNEL,
    }


def make_card(
    path: Path,
    config: Files | None = None,
    boot_a: Files | None = None,
    boot_b: Files | None = None,
    *,
    mib: int = 2,
) -> Path:
    """Write a card laid out as the firmware's, with partitions of ``mib`` MiB.

    ``None`` for a partition: what belongs there.
    """
    contents = (
        {"autoboot.txt": AUTOBOOT} if config is None else config,
        slot("A") if boot_a is None else boot_a,
        slot("B") if boot_b is None else boot_b,
    )
    start, sectors = MIB // 512, mib * MIB // 512
    entries = [(0x0C, start + i * sectors, sectors) for i in range(3)]
    extended = start + 3 * sectors
    # Three logical partitions, each behind its own boot record and a gap of 1 MiB.
    step = MIB // 512 + sectors
    with path.open("wb") as file:
        file.truncate((extended + 3 * step) * 512)
        file.write(mbr([*entries, (0x05, extended, 3 * step)]))
        for i in range(3):
            links = [(0x83, MIB // 512, sectors)]
            if i < 2:
                links.append((0x05, (i + 1) * step, step))
            file.seek((extended + i * step) * 512)
            file.write(mbr(links))
    for i, files in enumerate(contents):
        make_fat(path, MIB + i * mib * MIB, mib, files)
    return path


def mbr(entries: list[tuple[int, int, int]]) -> bytes:
    """Return a boot record: type, first sector and sectors of each partition."""
    sector = bytearray(512)
    struct.pack_into("<I", sector, 440, 0x5448434B)
    for i, (kind, first, count) in enumerate(entries):
        struct.pack_into("<4xB3xII", sector, 446 + 16 * i, kind, first, count)
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def make_fat(image: Path, offset: int, mib: int, files: Files) -> None:
    """Make a FAT file system in an image and fill it."""
    environment = dict(os.environ, MTOOLS_SKIP_CHECK="1", MTOOLSRC="/dev/null")
    environment["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

    def run(command: list[str], data: bytes = b"") -> None:
        subprocess.run(command, input=data, capture_output=True, check=True, env=environment)

    fat = image.with_name(f"{image.name}.fat")
    fat.unlink(missing_ok=True)
    run(["mkfs.fat", "-C", "-F", "12", "--invariant", str(fat), str(mib * 1024)])
    folders = {str(Path(name).parent) for name in files} - {"."}
    if folders:
        run(["mmd", "-i", str(fat), *(f"::{name}" for name in sorted(folders))])
    for name, content in files.items():
        run(["mcopy", "-i", str(fat), "-", f"::{name}"], content)
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(fat.read_bytes())
    fat.unlink()
