# SPDX-License-Identifier: Apache-2.0
"""A packed card image (xz, gz, zst), read as if it were unpacked, without a copy of it on a disk.

It is unpacked twice: once to see that all of it is there and good, before a card is touched
(:meth:`Unpacked.scan`), and once while it is written. Reading forward is cheap, going back means to
unpack from the start again; so what is read out of turn is kept at hand: the partition table, the
FATs, and the first partition, which a configuration is put into.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import subprocess
import tempfile
import zlib
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from firmware import bmap, card, ranges
from firmware.errors import FlashError
from firmware.ranges import Range

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ENDINGS = (".xz", ".gz", ".zst")
"""What is unpacked, by the end of its name."""

MOST = 1 << 36
"""Bytes of the largest unpacked image where nothing says how large it is: 64 GiB."""

MEMORY = 256 << 20
"""Bytes that unpacking may take; the largest dictionary of xz needs six times as much."""

_PIECE = 1 << 20
_PACKED_PIECE = 1 << 18
_TABLES = 4 << 20
"""Bytes at the start of a FAT partition that are kept: its tables."""


class Unpacked(io.RawIOBase):
    """What a packed image holds.

    :raises FlashError: by every method, when the packed file is damaged or holds too much.
    """

    def __init__(self, path: Path, most: int = MOST) -> None:
        """Open a packed image.

        :param most: bytes that may be in it.
        """
        super().__init__()
        self.path = path
        self._most = most
        self._packed = path.open("rb")
        self._stream: BinaryIO | None = None
        self._at = 0
        self._position = 0
        self._size: int | None = None
        self._kept = temporary()
        self._kept_ranges: list[Range] = []
        self.restarts = 0
        """How often it was unpacked from the start."""

    def scan(
        self, map_: bmap.Bmap | None, progress: Callable[[int], object] = lambda _: None
    ) -> list[Range]:
        """Unpack it once from start to end; return the blocks that are not all zeros.

        :param map_: what to compare it with.
        :param progress: called with the bytes of each piece.
        :raises BmapError: it is not the image that the map is of.
        """
        verifier = bmap.Verifier(map_) if map_ is not None else None
        keep = _Keep()
        found: list[Range] = []
        self._start()
        at = 0
        buffer = memoryview(bytearray(_PIECE))
        while count := self._fill(buffer):
            piece = buffer[:count]
            if verifier is not None:
                verifier.feed(piece)
            data = bmap.data_in(piece, at)
            found += data
            for start, end in keep.wanted(piece, at):
                self._kept_ranges.append((start, end))
                for first, last in ranges.clip(data, start, end):
                    self._kept.seek(first)
                    self._kept.write(piece[first - at : last - at])
            at += count
            progress(count)
        if verifier is not None:
            verifier.finish()
        self._size = at
        self._kept.truncate(at)
        self._kept.flush()
        self._kept_ranges = ranges.union(self._kept_ranges)
        return ranges.union(found)

    # -- as a file

    def readable(self) -> bool:
        """Tell that it can be read."""
        return True

    def seekable(self) -> bool:
        """Tell that any place can be read."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the packed file."""
        return self._packed.fileno()

    def tell(self) -> int:
        """Return the place that is read next."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        if whence == os.SEEK_CUR:
            offset += self._position
        elif whence == os.SEEK_END:
            if self._size is None:
                raise io.UnsupportedOperation("its size is known when it was scanned")
            offset += self._size
        self._position = offset
        return offset

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill ``buffer`` as far as there is anything; return how many bytes there were."""
        whole = memoryview(buffer).cast("B")
        done = 0
        while done < len(whole):
            kept, until = self._is_kept(self._position)
            part = whole[done : done + until - self._position]
            count = self._take_kept(part) if kept else self._take(part)
            if not count:
                break
            done += count
            self._position += count
        return done

    def close(self) -> None:
        """End the unpacking."""
        if not self.closed:
            self._end()
            self._packed.close()
            self._kept.close()
        super().close()

    def _is_kept(self, offset: int) -> tuple[bool, int]:
        """Return whether a byte is kept, and up to where the same is true."""
        index = bisect_right(self._kept_ranges, (offset, 1 << 62)) - 1
        if index >= 0 and offset < self._kept_ranges[index][1]:
            return True, self._kept_ranges[index][1]
        following = self._kept_ranges[index + 1 : index + 2]
        return False, following[0][0] if following else 1 << 62

    def _take_kept(self, view: memoryview) -> int:
        return os.preadv(self._kept.fileno(), [view], self._position)

    def _take(self, view: memoryview) -> int:
        if self._stream is None or self._at > self._position:
            self._start()
        while self._at < self._position:
            skipped = memoryview(bytearray(min(_PIECE, self._position - self._at)))
            if not self._fill(skipped):
                return 0
        return self._fill(view)

    def _start(self) -> None:
        self._end()
        self._packed.seek(0)
        self._at = 0
        self.restarts += 1
        if self.path.suffix == ".gz":
            self._stream = cast(BinaryIO, gzip.GzipFile(fileobj=self._packed))
        elif self.path.suffix == ".xz":
            self._stream = cast(BinaryIO, _Xz(self._packed))
        else:
            self._stream = cast(BinaryIO, _Zstd(self.path))

    def _end(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _fill(self, view: memoryview) -> int:
        """Read on in the stream until ``view`` is full or the stream ends."""
        assert self._stream is not None
        done = 0
        try:
            while done < len(view):
                # readinto would be said to be there for buffered files alone
                data = self._stream.read(len(view) - done)
                if not data:
                    break
                view[done : done + len(data)] = data
                done += len(data)
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            if isinstance(error, lzma.LZMAError) and "limit" in str(error):
                raise FlashError(
                    f"{self.path} needs more than {MEMORY >> 20} MiB of memory to be unpacked: "
                    "pack it with a smaller dictionary (`xz -9` needs 65 MiB)"
                ) from None
            raise FlashError(
                f"{self.path} could not be read: it is damaged or cut off ({error}). Get it anew"
            ) from None
        self._at += done
        if self._at > self._most:
            raise FlashError(
                f"{self.path} holds more than {self._most} bytes, which is what it should hold at "
                "most: it was stopped. Do not use it"
            )
        return done


class _Keep:
    """Chooses what is kept at hand, from the partition table on."""

    def __init__(self) -> None:
        self._ranges: list[Range] = []

    def wanted(self, piece: memoryview, at: int) -> list[Range]:
        """Return what of a piece is kept.

        :param at: where it begins.
        """
        if at == 0:
            self._ranges = _first_partitions(bytes(piece[: card.SECTOR]))
        # The records of logical partitions, and the starts of all partitions: both begin at a
        # whole MiB. Where they do not, the image is unpacked more often, no more than that.
        own = [(at, min(at + bmap.BLOCK, at + len(piece)))]
        return ranges.clip([*own, *self._ranges], at, at + len(piece))


def _first_partitions(sector: bytes) -> list[Range]:
    try:
        layout = card.read(io.BytesIO(sector))
    except card.CardError:
        return []
    found = []
    for partition in layout.partitions.values():
        if partition.number == card.CONFIG:
            found.append((partition.offset, partition.end))
        elif partition.number in (card.BOOT_A, card.BOOT_B):
            found.append((partition.offset, min(partition.offset + _TABLES, partition.end)))
    return found


class _Xz:
    """Unpacks xz, also of several streams, within the memory that it may take."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._unpacker: lzma.LZMADecompressor | None = None
        self._rest = b""

    def read(self, count: int) -> bytes:
        """Return at most ``count`` bytes, none at the end."""
        while True:
            unpacker = self._unpacker or self._begin()
            if unpacker is None:
                return b""
            if unpacker.needs_input and not self._rest:
                self._rest = self._file.read(_PACKED_PIECE)
                if not self._rest:
                    raise EOFError("it ends in the middle")
            data = unpacker.decompress(self._rest, max_length=count)
            self._rest = unpacker.unused_data
            self._unpacker = None if unpacker.eof else unpacker
            if data:
                return data

    def _begin(self) -> lzma.LZMADecompressor | None:
        """Begin with the next stream, behind the zeros that fill up the one before."""
        while not (rest := self._rest.lstrip(b"\0")):
            self._rest = self._file.read(_PACKED_PIECE)
            if not self._rest:
                return None
        self._rest = rest
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)

    def close(self) -> None:
        """Forget what is in the middle."""
        self._unpacker = None


class _Zstd:
    """Unpacks zst by the program ``zstd``."""

    def __init__(self, path: Path) -> None:
        if shutil.which("zstd") is None:
            raise FlashError(f"{path}: unpacking it needs zstd (apt-get install zstd)")
        self._program = subprocess.Popen(
            ["zstd", "-dcq", f"--memory={MEMORY >> 20}MB", "--", path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def read(self, count: int) -> bytes:
        """Return at most ``count`` bytes, none at the end."""
        stdout, stderr = self._program.stdout, self._program.stderr
        assert stdout is not None
        assert stderr is not None
        data = stdout.read(count)
        if not data and self._program.wait() != 0:
            said = stderr.read(500).decode("utf-8", "replace").strip().rpartition(": ")[2]
            raise EOFError(f"zstd says: {said}")
        return data

    def close(self) -> None:
        """End the program."""
        self._program.kill()
        self._program.communicate()


def temporary() -> BinaryIO:
    """Return a file without a name."""
    # /tmp may be in memory and too small for what images hold.
    folder = None if "TMPDIR" in os.environ or not Path("/var/tmp").is_dir() else "/var/tmp"  # noqa: S108
    return cast(BinaryIO, tempfile.TemporaryFile(dir=folder))
