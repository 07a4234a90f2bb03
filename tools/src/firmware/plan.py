# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a card have to be written so that what was on it before does not matter.

A block map, and the holes of an image file, only tell which blocks hold data. A hole reads as
zeros; on a used card it would keep what was there. Where that is harmless (the free space of a file
system) nothing is written. Everywhere else the zeros are:

- outside of the partitions: boot state records, old GPT headers, gaps between partitions;
- the first MiB of every partition, so that no old file system, slot or ``/data`` is found there
  (``S20data.sh`` makes a new ``/data`` when its first 64 KiB are zero);
- holes in front of the last byte that a partition uses: of a FAT its last cluster in use, of a root
  its last data (dm-verity hashes also blocks of zeros), of any other partition with data its end;
- the copies that ext4 keeps of its superblock, at the start of block groups of ``/data``;
- the last MiB of the card, where the second GPT and the marks of RAID arrays are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO

from firmware import card, ranges
from firmware.ranges import Range

HEAD = 1 << 20
TAIL = 1 << 20
"""Bytes that are always written at the start of a partition and at the end of a card."""

_EXT4_GROUP = 32768 * 4096
"""Bytes in a block group of an ext4 file system with blocks of 4 KiB, as ``/data`` is made."""


def for_image(image: BinaryIO, mapped: Sequence[Range]) -> list[Range]:
    """Return the bytes of an image that have to be written, for a map that knows no device.

    :param mapped: the bytes that are not zeros.
    :raises CardError: when the image is not one of a card.
    """
    size = card.size_of(image)
    read = masked(image, mapped)
    return for_card(read, card.read(image), mapped, mapped, image_size=size, size=size)


def for_card(
    read: Callable[[int, int], bytes],
    layout: card.Card,
    mapped: Sequence[Range],
    data: Sequence[Range],
    *,
    image_size: int,
    size: int,
) -> list[Range]:
    """Return the bytes of a card of ``size`` bytes that have to be written, in whole sectors.

    :param read: ``read(offset, count)`` returns what will be there, with zeros for what is not
        mapped.
    :param mapped: has to be written in any case; a map may name zeros as well.
    :param data: what is not all zeros; it tells which partitions are in use.
    """
    partitions = [p for p in layout.partitions.values() if p.number != card.EXTENDED]
    wanted = list(mapped)
    wanted += ranges.subtract([(0, image_size)], [(p.offset, p.end) for p in partitions])
    for partition in partitions:
        wanted.append((partition.offset, min(partition.offset + HEAD, partition.end)))
        used = ranges.clip(data, partition.offset, partition.end)
        if used:
            wanted.append((partition.offset, _used_end(read, partition, used[-1][1], image_size)))
    if card.DATA in layout.partitions:
        start = layout[card.DATA].offset
        # A partition that is grown at the first boot: its old file system may reach to the end.
        wanted.append((start, start + HEAD))
        wanted += [
            (start + group * _EXT4_GROUP, start + group * _EXT4_GROUP + 4096)
            for group in sorted(_superblock_groups((size - start) // _EXT4_GROUP + 1))
        ]
    if size > image_size:
        wanted.append((max(image_size, size - TAIL), size))
    return ranges.clip(ranges.align(wanted, card.SECTOR), 0, size)


def masked(image: BinaryIO, mapped: Sequence[Range]) -> Callable[[int, int], bytes]:
    """Return a function that reads an image with zeros for everything that is not mapped."""

    def read(offset: int, count: int) -> bytes:
        data = bytearray(count)
        for start, end in ranges.clip(mapped, offset, offset + count):
            image.seek(start)
            piece = image.read(end - start)
            data[start - offset : start - offset + len(piece)] = piece
        return bytes(data)

    return read


def _superblock_groups(count: int) -> set[int]:
    """Return the block groups below ``count`` that have a copy of ext4's superblock.

    With sparse_super, which is always on today: 1 and the powers of 3, 5 and 7 (ext4's
    ``ext4_bg_has_super``).
    """
    groups = {1} if count > 1 else set()
    for base in (3, 5, 7):
        group = base
        while group < count:
            groups.add(group)
            group *= base
    return groups


def _used_end(
    read: Callable[[int, int], bytes], partition: card.Partition, last: int, image_size: int
) -> int:
    """Return where the used part of a partition ends that has data up to ``last``."""
    fat_end = fat_used(lambda offset, count: read(partition.offset + offset, count), partition.size)
    if fat_end is not None:
        return partition.offset + fat_end
    if partition.number in (card.ROOT_A, card.ROOT_B):
        return last
    return max(last, min(partition.end, image_size))


def fat_used(read: Callable[[int, int], bytes], size: int) -> int | None:
    """Return how many bytes of a FAT file system are used, from its start; None when it is none.

    What lies behind the last allocated cluster is free. Fields as in Microsoft's "FAT: General
    Overview of On-Disk Format" (2000).
    """
    boot = read(0, card.SECTOR) if size >= card.SECTOR else b""
    if boot[510:512] != b"\x55\xaa":
        return None
    sector = int.from_bytes(boot[11:13], "little")
    cluster = boot[13] * sector
    reserved = int.from_bytes(boot[14:16], "little")
    fats = boot[16]
    root_entries = int.from_bytes(boot[17:19], "little")
    total = int.from_bytes(boot[19:21], "little") or int.from_bytes(boot[32:36], "little")
    fat_sectors = int.from_bytes(boot[22:24], "little") or int.from_bytes(boot[36:40], "little")
    if sector not in (512, 1024, 2048, 4096) or not (boot[13] and reserved and fats in (1, 2)):
        return None
    fat_start, fat_bytes = reserved * sector, fat_sectors * sector
    data_start = fat_start + fats * fat_bytes + -(-32 * root_entries // sector) * sector
    if not fat_bytes or not data_start < total * sector <= size:
        return None
    clusters = (total * sector - data_start) // cluster
    # As Linux tells them apart: only FAT32 has no 16-bit count of the sectors of a FAT.
    bits = 32 if not int.from_bytes(boot[22:24], "little") else 12 if clusters < 4085 else 16
    allocated = len(read(fat_start, fat_bytes).rstrip(b"\0"))
    # The last bit of the last byte in use belongs to this cluster; the first one has the number 2.
    last = (allocated * 8 - 1) // bits
    return min(data_start + max(0, last - 1) * cluster, size)
