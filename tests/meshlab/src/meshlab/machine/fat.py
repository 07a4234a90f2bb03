# SPDX-License-Identifier: Apache-2.0
"""Files on a FAT partition inside a card image, read and written by mtools.

A card may hold anything: what a power cut left, or what somebody made up. The file system is
therefore never parsed in this process. mtools runs apart, with bounds on its time, its memory and
what it may write, and its worst end is an error in words.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from firmware.card import SECTOR, Partition
from host import mtools

PATIENCE = 20.0
"""Seconds of CPU time that one access may take. A kernel of 30 MB takes a tenth of a second."""

LONGEST = 120.0
"""Seconds that one access may take, with all that the host does meanwhile."""

MEMORY = 512 << 20
"""Bytes of address space that mtools gets; it keeps one file allocation table in memory."""

TYPES = frozenset({0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E, 0xEF})
"""MBR types of partitions that may hold FAT: 12, 16 and 32 bits, by CHS and LBA, and EFI's."""

_NAME = re.compile(r"/?[A-Za-z0-9_.+~ -]+(/[A-Za-z0-9_.+~ -]+)*")


class FatError(Exception):
    """The file system or a file on it cannot be read; says which partition, and what was found."""


class ToolError(FatError):
    """A program is missing. No other partition would fare better."""


def usable_name(name: str) -> bool:
    """Tell whether ``name`` is a path that can be asked for.

    mtools takes patterns and drive letters, so names are letters, digits, blanks and ``_.+~-``,
    with ``/`` between them. Everything on a card has such a name.
    """
    return len(name) <= 255 and _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Fat:
    """The FAT file system in a partition of an image."""

    image: Path
    partition: Partition

    @property
    def where(self) -> str:
        """Return the partition in words."""
        return f"partition {self.partition.number} of {self.image.name}"

    def check(self) -> None:
        """Raise ``FatError`` unless the partition begins as a FAT file system does."""
        if self.partition.type not in TYPES:
            raise FatError(
                f"{self.where} has type {self.partition.type:#04x}, which is not one of FAT"
            )
        try:
            with self.image.open("rb") as file:
                file.seek(self.partition.offset)
                sector = file.read(SECTOR)
        except OSError as error:
            raise FatError(f"{self.where} cannot be read: {error.strerror}") from error
        if len(sector) < SECTOR:
            raise FatError(f"{self.where} begins behind the end of the card")
        # BIOS parameter block: bytes per sector, sectors per cluster, reserved sectors, FATs.
        size, cluster, reserved, fats = struct.unpack_from("<HBHB", sector, 11)
        powers = size in (512, 1024, 2048, 4096) and cluster and not cluster & (cluster - 1)
        if sector[510:512] != b"\x55\xaa" or not powers or not reserved or fats not in (1, 2):
            raise FatError(f"{self.where} holds no FAT file system")

    def read(self, name: str, limit: int = 1 << 20) -> bytes | None:
        """Return a file's content, ``None`` when there is no such file.

        :raises FatError: when it cannot be read, or is longer than ``limit`` bytes.
        """
        done = self._mtools(["mtype", "-i", self._drive, f"::{name}"], limit)
        if done is None:
            return None
        if len(done) > limit:
            raise FatError(f"{name} on {self.where} is longer than {limit} bytes")
        return done

    def copy(self, name: str, target: Path, limit: int) -> bool:
        """Copy a file out to ``target``; tell whether there is one.

        :raises FatError: when it cannot be read, or is longer than ``limit`` bytes.
        """
        target.unlink(missing_ok=True)
        done = self._mtools(["mcopy", "-i", self._drive, f"::{name}", str(target)], limit)
        return done is not None

    def has(self, name: str) -> bool:
        """Tell whether there is a file (or a folder) of this name.

        :raises FatError: when the file system cannot be read.
        """
        return self._mtools(["mdir", "-i", self._drive, f"::{name}"], 1 << 20) is not None

    def write(self, name: str, content: bytes) -> None:
        """Write a file, over an existing one.

        :raises FatError: when it cannot be written.
        """
        self.check()
        self._mtools(["mcopy", "-o", "-i", self._drive, "-", f"::{name}"], None, content)

    def delete(self, name: str) -> None:
        """Delete a file.

        :raises FatError: when it cannot be deleted.
        """
        self.check()
        if self._mtools(["mdel", "-i", self._drive, f"::{name}"], None) is None:
            raise FatError(f"there is no {name} on {self.where}")

    @property
    def _drive(self) -> str:
        return f"{self.image}@@{self.partition.offset}"

    def _mtools(self, command: list[str], limit: int | None, data: bytes = b"") -> bytes | None:
        """Run one program of mtools; return its output, ``None``: it found no such file.

        ``limit``: most bytes that it may give out, ``None``: it changes the image.
        """
        name = command[-1].removeprefix("::") if limit is None else command[3].removeprefix("::")
        if not usable_name(name):
            raise FatError(f"{name!r} is no file name that could be on {self.where}")
        self.check()
        bounds = mtools.Bounds(MEMORY, PATIENCE, None if limit is None else limit + SECTOR)
        try:
            done = mtools.run(command, data, bounds=bounds, timeout=LONGEST)
        except mtools.ToolMissingError as error:
            raise ToolError(str(error)) from None
        except mtools.ToolTimeoutError as error:
            raise FatError(f"{name} on {self.where}: {error}; the file system is damaged") from None
        said = " ".join(done.said.split())[:300]
        if done.status == 0 and not (limit is None and said):
            return done.output
        if said.endswith("not found"):
            return None
        if limit is not None and done.status == -25:  # SIGXFSZ
            raise FatError(f"{name} on {self.where} is longer than {limit} bytes")
        raise FatError(
            f"{name} on {self.where}: {command[0]} ended with {done.status}: {said or 'silent'}"
        )
