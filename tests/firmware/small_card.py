# SPDX-License-Identifier: Apache-2.0
"""A small image with the layout of a card, made by hand: MBR, EBRs, FATs with files, a root.

Root B and ``/data`` are empty.
"""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from firmware.card import (
    BOOT_A,
    BOOT_B,
    CONFIG,
    DATA,
    DISK_SIGNATURE,
    EXTENDED,
    ROOT_A,
    ROOT_B,
    SECTOR,
)

MIB = 1 << 20
SIZE = 24 * MIB
TOML = b'# of the image\n[mesh]\nid = "image"\n'

START = {CONFIG: 2, BOOT_A: 6, BOOT_B: 9, EXTENDED: 12, ROOT_A: 13, ROOT_B: 17, DATA: 21}
LENGTH = {CONFIG: 3, BOOT_A: 3, BOOT_B: 3, EXTENDED: 12, ROOT_A: 3, ROOT_B: 3, DATA: 2}
"""In MiB; a logical partition has its record one MiB in front of it."""

ROOT_BYTES = 1_800_000
"""How much of root A is in use; there is a hole in it."""
ROOT_HOLE = (1_200_128, 1_400_832)


def _entry(kind: int, start: int, length: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", start, length)


def _record(entries: list[bytes], signature: int = 0) -> bytes:
    table = b"".join(entries).ljust(64, b"\0")
    return bytes(440) + struct.pack("<IH", signature, 0) + table + b"\x55\xaa"


def _sectors(mib: int) -> int:
    return mib * MIB // SECTOR


def mbr() -> bytes:
    """The first sector of the card."""
    kinds = {CONFIG: 0x0C, BOOT_A: 0x0C, BOOT_B: 0x0C, EXTENDED: 0x0F}
    return _record(
        [_entry(k, _sectors(START[n]), _sectors(LENGTH[n])) for n, k in kinds.items()],
        DISK_SIGNATURE,
    )


def fat(path: Path, mib: int, label: str, files: dict[str, bytes]) -> None:
    """Make a FAT file system that holds ``files``."""
    environment = dict(os.environ, PATH=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    environment |= {"MTOOLSRC": "/dev/null", "MTOOLS_SKIP_CHECK": "1"}
    subprocess.run(
        ["mkfs.fat", "-C", "-n", label, str(path), str(mib * 1024)],
        env=environment,
        check=True,
        capture_output=True,
    )
    for name, data in files.items():
        subprocess.run(
            ["mcopy", "-i", str(path), "-", f"::{name}"], input=data, env=environment, check=True
        )


def _sparse_copy(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        for at in range(0, len(data), 4096):
            piece = data[at : at + 4096]
            if piece.strip(b"\0"):
                file.seek(offset + at)
                file.write(piece)


def make(path: Path) -> Path:
    """Make the image; all of its blocks of zeros are holes."""
    with path.open("wb") as file:
        file.truncate(SIZE)
    _sparse_copy(path, 0, mbr())
    logical = (ROOT_A, ROOT_B, DATA)
    for number, following in zip(logical, (*logical[1:], None), strict=True):
        entries = [_entry(0x83, _sectors(1), _sectors(LENGTH[number]))]
        if following:
            record = START[following] - 1 - START[EXTENDED]
            entries.append(_entry(0x0F, _sectors(record), _sectors(LENGTH[following] + 1)))
        _sparse_copy(path, (START[number] - 1) * MIB, _record(entries))
    # A file with zeros in it: they are holes of the image, but must not be garbage on the card.
    kernel = os.urandom(30_000) + bytes(300_000) + b"end" + bytes(50_000)
    for number, label, files in (
        (CONFIG, "THICKET", {"autoboot.txt": b"[all]\nboot_partition=2\n", "thicket.toml": TOML}),
        (BOOT_A, "BOOT-A", {"kernel.img": kernel, "cmdline.txt": b"root=a\n"}),
        (BOOT_B, "BOOT-B", {}),
    ):
        part = path.with_name(f"part{number}")
        part.unlink(missing_ok=True)
        fat(part, LENGTH[number], label, files)
        _sparse_copy(path, START[number] * MIB, part.read_bytes())
        part.unlink()
    root = bytearray(os.urandom(ROOT_BYTES))
    root[ROOT_HOLE[0] : ROOT_HOLE[1]] = bytes(ROOT_HOLE[1] - ROOT_HOLE[0])
    _sparse_copy(path, START[ROOT_A] * MIB, bytes(root))
    return path
