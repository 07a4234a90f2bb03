# SPDX-License-Identifier: Apache-2.0
"""The log of what a machine wrote to its card: every write and every flush, in their order.

QEMU's driver ``blklogwrites`` writes it (``MachineSpec.write_log``), in the form of Linux's
dm-log-writes (drivers/md/dm-log-writes.c): a superblock, and for each request a head of one sector
with the data behind it. All numbers are little endian. A log is continued by the machine's next
start, so that a restart leaves no gap.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

MAGIC = 0x6A736677736872
VERSION = 1
SECTOR = 512

# struct log_write_super: magic, version, number of entries, size of a sector
_SUPER = struct.Struct("<QQQI")
# struct log_write_entry: first sector, number of sectors, flags, length of a mark's text
_HEAD = struct.Struct("<QQQQ")

FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

MOST_ENTRIES = 1 << 24
MOST_SECTORS = 1 << 17
"""Sectors of one request: 64 MiB. A virtio disk's requests are smaller."""


class WriteLogError(Exception):
    """The log is none, or is damaged; the text says where, and what was found."""


class Entry(NamedTuple):
    """One request.

    :ivar number: counted from 0.
    :ivar sector: the first sector of the card that it is about.
    :ivar sectors: how many; 0 for a flush.
    :ivar flags: FLUSH, FUA, DISCARD and MARK.
    :ivar place: where its data begins in the log, in bytes.
    """

    number: int
    sector: int
    sectors: int
    flags: int
    place: int

    @property
    def end(self) -> int:
        """The first sector behind it."""
        return self.sector + self.sectors

    @property
    def writes(self) -> bool:
        """Whether it changes the card."""
        return self.sectors > 0 and not self.flags & (DISCARD | MARK)

    @property
    def flushes(self) -> bool:
        """Whether everything that was written before is on the card for good."""
        return bool(self.flags & FLUSH)


def create(path: Path) -> None:
    """Make an empty log, which QEMU continues."""
    path.write_bytes(_SUPER.pack(MAGIC, VERSION, 0, SECTOR).ljust(SECTOR, b"\0"))


class WriteLog:
    """A log that is read; QEMU may go on writing it meanwhile.

    :raises WriteLogError: it is no log.
    :raises OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file: BinaryIO = path.open("rb")
        try:
            self._count()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> WriteLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Return the number of complete entries so far."""
        return self._count()

    def _count(self) -> int:
        data = self._read(0, _SUPER.size)
        if len(data) < _SUPER.size:
            raise WriteLogError(f"{self.name} is no log of writes: it has {len(data)} bytes")
        magic, version, count, sector = _SUPER.unpack(data)
        if magic != MAGIC:
            raise WriteLogError(f"{self.name} is no log of writes: it begins with {magic:#x}")
        if version != VERSION:
            raise WriteLogError(f"{self.name} has version {version} of the format, not {VERSION}")
        if sector != SECTOR:
            raise WriteLogError(f"{self.name} is of sectors of {sector} bytes, not of {SECTOR}")
        if count > MOST_ENTRIES:
            raise WriteLogError(f"{self.name} says it has {count} entries, {MOST_ENTRIES} at most")
        return int(count)

    def __iter__(self) -> Iterator[Entry]:
        """Go through the entries that are complete now.

        :raises WriteLogError: one is damaged.
        """
        place = SECTOR
        size = os.fstat(self._file.fileno()).st_size
        for number in range(self._count()):
            head = self._read(place, _HEAD.size)
            where = f"entry {number} of {self.name}, at byte {place},"
            if len(head) < _HEAD.size:
                raise WriteLogError(f"{where} is cut off")
            sector, sectors, flags, length = _HEAD.unpack(head)
            if sectors > MOST_SECTORS or length > MOST_SECTORS * SECTOR:
                raise WriteLogError(f"{where} has {sectors} sectors and a text of {length} bytes")
            if flags & ~(FLUSH | FUA | DISCARD | MARK):
                raise WriteLogError(f"{where} has flags that nobody knows: {flags:#x}")
            entry = Entry(number, sector, sectors, flags, place + SECTOR)
            place += SECTOR
            if entry.writes:
                place += sectors * SECTOR
            if flags & MARK:
                place += -(-length // SECTOR) * SECTOR
            if place > size:
                raise WriteLogError(f"{where} is cut off")
            yield entry

    def data(self, entry: Entry) -> bytes:
        """Return what an entry writes.

        :raises WriteLogError: the log is cut off.
        """
        if not entry.writes:
            return b""
        data = self._read(entry.place, entry.sectors * SECTOR)
        if len(data) < entry.sectors * SECTOR:
            raise WriteLogError(f"entry {entry.number} of {self.name} is cut off")
        return data

    def _read(self, place: int, count: int) -> bytes:
        return os.pread(self._file.fileno(), count, place)


def replay(log: WriteLog, card: Path, first: int = 0, last: int | None = None) -> None:
    """Write entries from ``first`` to in front of ``last`` to a card image, in order."""
    with card.open("r+b") as file:
        for entry in log:
            if last is not None and entry.number >= last:
                break
            if entry.writes and entry.number >= first:
                file.seek(entry.sector * SECTOR)
                file.write(log.data(entry))
