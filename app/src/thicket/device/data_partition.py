# SPDX-License-Identifier: Apache-2.0
"""The data partition of the node's own card: grown to the card's end, or made again.

A card image has a small data partition, number 7, the last logical one in the extended partition 4.
The first boot grows it to the card's end. It is made again in the free space when the card ends
behind slot B's root, or the record of partition 7 is damaged. Partitions that somebody made behind
it (8 and on) stay; the data partition then grows up to the first of them.

At most three sectors are written, each in one synchronous write that is read back: the MBR (the
length of partition 4), then the record of partition 7, then the link to it in the record of
partition 6. A power cut between any two leaves a table that works as before and that the next boot
completes. Correct sectors are not written. Nothing else before the end of slot B's root is touched.

``sfdisk`` is not used: it takes anything in the place of partition 7's record for a record, and
writes it back as valid.

The format: an MBR's four entries begin at byte 446, 16 bytes each: status, first sector as CHS,
type, last sector as CHS, first sector and number of sectors, 32 bits, little endian. An extended
boot record (EBR) has the same form; its first entry is its partition, counted from the record, its
second the next record, counted from the start of the extended partition.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from array import array

from thicket.device.disk import SECTOR, CardError, Disk

#: Disk signature of every card ("THCK"); another disk is left alone.
SIGNATURE = 0x5448434B
#: Sectors that partitions are aligned to: 1 MiB, as in the card image.
ALIGN = 2048
#: Least sectors of a data partition: 16 MiB, enough for a file system with a journal.
LEAST = 16 * 2048
#: Bytes by which a file system grows at a time; a power cut keeps the earlier steps. A step is
#: larger than what ext4 keeps for itself on any card, so that each one adds room.
GROW_STEP = 64 << 30
#: Sectors that an MBR can count.
MOST = 0xFFFFFFFF

#: Records that the kernel follows.
_MOST_RECORDS = 100
_EXTENDED_TYPES = (0x05, 0x0F, 0x85)
_LINUX = 0x83
# "beyond what CHS can say", as every partitioning program writes it
_CHS = b"\xfe\xff\xff"
_ENTRY = struct.Struct("<B3sB3sII")

# linux/blkpg.h
_BLKPG = 0x1269
# linux/ext4.h: _IOW('f', 16, __u64), the number of blocks
_EXT4_IOC_RESIZE_FS = 0x40086610
_BLKPG_ADD, _BLKPG_DELETE, _BLKPG_RESIZE = 1, 2, 3


def tell_kernel(disk: Disk, start: int, length: int, known: tuple[int, int] | None) -> None:
    """Tell the kernel where partition 7 is. The other partitions are in use and not touched.

    :param known: what the kernel knows: start and length.
    :raises CardError: the kernel refuses.
    """
    if not disk.is_device or known == (start, length):
        return
    try:
        if known is not None and known[0] != start:
            _blkpg(disk, _BLKPG_DELETE, 0, 0)
            known = None
        _blkpg(disk, _BLKPG_ADD if known is None else _BLKPG_RESIZE, start, length)
    except OSError as e:
        raise CardError(
            f"written, but the kernel does not take it before the next start: {e.strerror}"
        ) from e


def _blkpg(disk: Disk, operation: int, start: int, length: int) -> None:
    # struct blkpg_partition, and the struct blkpg_ioctl_arg that points to it
    partition = array("B", struct.pack("qqi64s64s4x", start * SECTOR, length * SECTOR, 7, b"", b""))
    address, size = partition.buffer_info()
    fcntl.ioctl(disk.fd, _BLKPG, struct.pack("iiiP", operation, 0, size, address))


def _entry(sector: bytes, index: int) -> tuple[int, int, int]:
    """Return type, first sector and number of sectors of an entry; (0, 0, 0) when it is unused."""
    _, _, kind, _, first, count = _ENTRY.unpack_from(sector, 446 + 16 * index)
    return (kind, first, count) if kind and count else (0, 0, 0)


def _with_entry(sector: bytes, index: int, kind: int, first: int, count: int) -> bytes:
    """Return the sector with a new entry, which keeps its status byte."""
    at = 446 + 16 * index
    made = _ENTRY.pack(sector[at], _CHS, kind, _CHS, first, count)
    return sector[:at] + made + sector[at + 16 :]


def _with_length(sector: bytes, index: int, count: int) -> bytes:
    at = 446 + 16 * index + 12
    return sector[:at] + struct.pack("<I", count) + sector[at + 4 :]


def _is_record(sector: bytes) -> bool:
    return sector[510:] == b"\x55\xaa"


def _up(sector: int) -> int:
    return -(-sector // ALIGN) * ALIGN


class Table:
    """The parts of the partition table that matter here.

    :raises CardError: the constructor, when the table is not that of a Thicket card.
    """

    def __init__(self, disk: Disk) -> None:
        self.mbr = disk.read(0)
        if not _is_record(self.mbr):
            raise CardError("the card has no partition table (the mark 55 aa is missing)")
        (signature,) = struct.unpack_from("<I", self.mbr, 440)
        if signature != SIGNATURE:
            raise CardError(f"the disk signature is {signature:08x}, this is no Thicket card")
        kind, self.extended, self.extended_length = _entry(self.mbr, 3)
        if kind not in _EXTENDED_TYPES:
            raise CardError("partition 4 is not an extended partition")
        # the records of partitions 5 and 6, where the roots are
        record, end = self.extended, 0
        for number in (5, 6):
            sector = disk.read(record)
            kind, first, count = _entry(sector, 0)
            start = record + first
            if not _is_record(sector) or not kind or start + count > disk.sectors or start < end:
                raise CardError(f"partition {number} is not as it should be")
            end = start + count
            self.last_record = (record, sector)
            link, offset, _ = _entry(sector, 1)
            record = self.extended + offset if link in _EXTENDED_TYPES else 0
            if number == 5 and record < end:
                raise CardError("partition 6 is missing")
        self.roots_end = end
        #: Where the record of partition 7 is or was; 0 when the link leads nowhere.
        self.record = record if end <= record < disk.sectors else 0
        #: Start and length of partition 7, or None.
        self.data: tuple[int, int] | None = None
        if self.record:
            sector = disk.read(self.record)
            kind, first, count = _entry(sector, 0)
            start = self.record + first
            if (
                _is_record(sector)
                and kind == _LINUX
                and first > 0
                and start < disk.sectors
                and start + count <= MOST
            ):
                self.data = (start, count)
        #: Begin and end of partitions behind the data partition, records included; None: none.
        self.behind = self._behind(disk) if self.data is not None else None

    def _behind(self, disk: Disk) -> tuple[int, int] | None:
        """Return begin and end of the partitions that the record of partition 7 leads to.

        A link is damaged when it leads to no record, to one before the data partition, or in a
        circle.
        """
        assert self.data is not None
        first, last = MOST, 0
        seen: set[int] = set()
        kind, offset, _ = _entry(disk.read(self.record), 1)
        while kind in _EXTENDED_TYPES and len(seen) < _MOST_RECORDS:
            record = self.extended + offset
            if record in seen or not self.data[0] < record < disk.sectors:
                break
            seen.add(record)
            sector = disk.read(record)
            if not _is_record(sector):
                break
            kind, skip, count = _entry(sector, 0)
            start = record + skip
            if kind and kind not in _EXTENDED_TYPES and self.data[0] < start < disk.sectors:
                first, last = min(first, record, start), max(last, start + count)
            kind, offset, _ = _entry(sector, 1)
        return (first, min(last, disk.sectors)) if last else None


def fit(disk: Disk) -> tuple[str, tuple[int, int]]:
    """Make the data partition as it should be.

    :returns: what was done, in words; the partition's start and length.
    :raises CardError: it failed; the partition is as before, or some of the writes are done.
    """
    table = Table(disk)
    end = min(disk.sectors, MOST) // ALIGN * ALIGN
    reach = end - table.extended
    if table.behind is not None and table.data is not None:
        # An existing partition is never made smaller: its file system fills it.
        end = max(min(end, table.behind[0] // ALIGN * ALIGN), sum(table.data))
        reach = max(table.extended_length, max(end, table.behind[1]) - table.extended)
    if table.data is not None:
        record, start = table.record, table.data[0]
        sector = disk.read(record)
        done = f"was {table.data[1] // 2048} MiB"
    else:
        # In its old place, if that is known: its file system may still be there.
        record = table.record if table.record % ALIGN == 0 and table.record else 0
        record = record if record + ALIGN + LEAST <= end else 0
        record = record or _up(table.roots_end)
        start = record + ALIGN
        sector = bytes(510) + b"\x55\xaa"
        done = "made again"
    length = end - start
    if length < LEAST:
        room = max(0, disk.sectors - table.roots_end) // 2048
        raise CardError(
            f"there is no room: {room} MiB behind slot B's root, {LEAST // 2048} needed"
        )
    if table.data == (start, length):
        done = "was right"
    # the extended partition first: while the rest is as before, the next boot completes it
    writes = [(0, table.mbr, _with_length(table.mbr, 3, reach))]
    made = _with_entry(sector, 0, _LINUX, start - record, length)
    # only partitions that somebody made can follow it
    kept = made[462:478] if table.behind is not None else bytes(16)
    made = made[:462] + kept + bytes(32) + made[510:]
    writes.append((record, disk.read(record), made))
    place, before = table.last_record
    link = _with_entry(before, 1, 0x05, record - table.extended, start + length - record)
    # a link that already leads there stays: only programs that people run look at its length
    kind, offset, _ = _entry(before, 1)
    linked = kind in _EXTENDED_TYPES and table.extended + offset == record
    if not linked:
        writes.append((place, before, link))
    for number, old, new in writes:
        if old != new:
            disk.write(number, new)
    said = f"{done}, {length // 2048} MiB now"
    if table.behind is not None:
        said += (
            f", up to what somebody made behind it (at {table.behind[0] // 2048} MiB), which stays"
        )
    return said, (start, length)


def known_to_kernel(path: str) -> tuple[int, int] | None:
    """Return start and length of partition 7 as the kernel knows it, or None."""
    name = os.path.basename(path)
    folder = f"/sys/class/block/{name}"
    try:
        entries = os.listdir(folder)
    except OSError:
        return None
    for entry in entries:
        try:
            if _number(f"{folder}/{entry}/partition") == 7:
                return _number(f"{folder}/{entry}/start"), _number(f"{folder}/{entry}/size")
        except (OSError, ValueError):
            continue
    return None


def _number(path: str) -> int:
    with open(path, encoding="ascii") as f:
        return int(f.read())


def grow(place: str, sectors: int) -> str:
    """Make the ext4 file system mounted at ``place`` fill its device.

    The kernel does it in journalled steps, so a power cut does no harm. ``resize2fs`` is not used:
    it opens the device for writing, which kernels can refuse while it is mounted.

    :param sectors: the size of the device.
    :raises CardError: the kernel refuses.
    """
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            before = os.fstatvfs(fd)
            wanted = sectors * SECTOR // before.f_bsize
            step = GROW_STEP // before.f_bsize
            for blocks in (*range(before.f_blocks + step, wanted, step), wanted):
                fcntl.ioctl(fd, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
            after = os.fstatvfs(fd)
        finally:
            os.close(fd)
    except OSError as e:
        raise CardError(f"{place} cannot be made larger: {e.strerror}") from e
    mib = [f.f_blocks * f.f_frsize >> 20 for f in (before, after)]
    return f"was {mib[0]} MiB, {mib[1]} MiB now"


def main() -> int:
    """Run ``data-partition DISK`` or ``data-partition --grow PLACE SECTORS``.

    It prints what was done or why not; the exit status is 0 or 1.
    """
    if len(sys.argv) == 4 and sys.argv[1] == "--grow":
        try:
            print(grow(sys.argv[2], int(sys.argv[3])))
        except (CardError, ValueError) as e:
            print(e)
            return 1
        return 0
    if len(sys.argv) != 2:
        print("usage: data-partition DISK | --grow PLACE SECTORS")
        return 2
    try:
        disk = Disk(sys.argv[1])
        try:
            said, (start, length) = fit(disk)
            tell_kernel(disk, start, length, known_to_kernel(sys.argv[1]))
        finally:
            disk.close()
    except CardError as e:
        print(e)
        return 1
    print(said)
    return 0
