# SPDX-License-Identifier: Apache-2.0
"""The layout of a card: its partitions, and how its MBR is read.

The layout itself is made by genimage (``board/common/genimage.cfg``); the names here say what each
partition is for. The partition table is an MBR because the boot ROMs of all supported Raspberry Pi
models read one, with logical partitions (a chain of extended boot records) from number 5 on.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

SECTOR = 512
"""Bytes in a sector, the unit of the partition table."""

DISK_SIGNATURE = 0x5448434B
"""The MBR's disk signature ("THCK"), the same on every card: kernel command lines name partitions
by it, as ``PARTUUID=5448434b-05``."""

CONFIG, BOOT_A, BOOT_B, EXTENDED, ROOT_A, ROOT_B, DATA = range(1, 8)
"""Partition numbers: the FAT partition that people edit, the boot partitions and roots of the two
slots (the roots lie in the extended partition), and ``/data``."""

STATE_OFFSET = 16 * SECTOR
STATE_BYTES = 16 * SECTOR
"""Where the boot state records are: a gap in front of the first partition that no tool writes."""

_EXTENDED_TYPES = (0x05, 0x0F, 0x85)
_MAX_LOGICAL = 59
"""Linux gives a disk 63 partitions at most; a longer chain is a loop or rubbish."""


class CardError(ValueError):
    """The card has no partition table that could be used; the text says what was found."""


@dataclass(frozen=True)
class Partition:
    """One partition.

    :ivar type: the MBR's type byte: 0x0c is FAT32 (LBA), 0x83 Linux.
    :ivar offset: its first byte, counted from the start of the card.
    :ivar size: in bytes.
    """

    number: int
    type: int
    offset: int
    size: int

    @property
    def end(self) -> int:
        """The first byte behind the partition."""
        return self.offset + self.size


@dataclass(frozen=True)
class Card:
    """What the partition table of a card says.

    :ivar partitions: by number; the extended partition itself is among them.
    """

    signature: int
    partitions: dict[int, Partition]

    def __getitem__(self, number: int) -> Partition:
        """Return a partition.

        :raises CardError: when the table does not have it.
        """
        try:
            return self.partitions[number]
        except KeyError:
            have = ", ".join(map(str, sorted(self.partitions))) or "none"
            raise CardError(f"no partition {number} (partitions: {have})") from None


def read(file: BinaryIO) -> Card:
    """Read the partition table of a card, a card image or any seekable binary file.

    A broken chain of logical partitions is not an error: as for the kernel, it ends where it
    breaks.

    :raises CardError: when there is no MBR.
    :raises OSError: when reading fails.
    """
    sector = _sector(file, 0)
    if sector is None:
        raise CardError("shorter than one sector")
    if sector[510:512] != b"\x55\xaa":
        raise CardError("no partition table (the MBR's mark 55 aa is missing)")
    partitions = {p.number: p for p in _entries(sector, 0, first_number=1)}
    if any(p.type == 0xEE for p in partitions.values()):
        raise CardError("a GPT partition table; a card has an MBR")
    extended = next((p for p in partitions.values() if p.type in _EXTENDED_TYPES), None)
    if extended is not None:
        for partition in _logical(file, extended):
            partitions[partition.number] = partition
    (signature,) = struct.unpack_from("<I", sector, 440)
    return Card(signature, partitions)


def size_of(file: BinaryIO) -> int:
    """Return the size in bytes of a file or block device."""
    return file.seek(0, os.SEEK_END)


def _sector(file: BinaryIO, offset: int) -> bytes | None:
    file.seek(offset)
    data = file.read(SECTOR)
    return data if len(data) == SECTOR else None


def _entries(sector: bytes, base: int, first_number: int) -> list[Partition]:
    """Return the used ones of the four entries of a boot record; starts count from ``base``."""
    found = []
    for index in range(4):
        # status, CHS of the first sector, type, CHS of the last sector, first sector, sectors
        kind, first, count = struct.unpack_from("<4xB3xII", sector, 446 + 16 * index)
        if kind and count:
            start = base + first * SECTOR
            found.append(Partition(first_number + index, kind, start, count * SECTOR))
    return found


def _logical(file: BinaryIO, extended: Partition) -> list[Partition]:
    found: list[Partition] = []
    record = extended.offset
    seen = set()
    while len(found) < _MAX_LOGICAL and record not in seen:
        seen.add(record)
        sector = _sector(file, record)
        if sector is None or sector[510:512] != b"\x55\xaa":
            break
        # The first entry is the partition, from its own record; the second the next record, from
        # the start of the extended partition.
        for entry in _entries(sector, record, first_number=1)[:1]:
            if entry.type not in _EXTENDED_TYPES:
                found.append(Partition(5 + len(found), entry.type, entry.offset, entry.size))
        links = [e for e in _entries(sector, extended.offset, 1) if e.type in _EXTENDED_TYPES]
        if not links:
            break
        record = links[0].offset
    return found
