# SPDX-License-Identifier: Apache-2.0
"""Block maps (``card.img.bmap``): which blocks of an image matter, with a checksum for each run.

The format is version 2.0 of bmap-tools (https://github.com/yoctoproject/bmaptool), so ``bmaptool
copy`` writes our images as well. Its own library is not used for flashing: it writes in the order
of the map (a card must get its MBR last), does not read back, and is GPL and not on PyPI.

``python -m firmware.bmap card.img`` writes ``card.img.bmap``. Unlike ``bmaptool create`` it knows
how a card is laid out: blocks that are holes in the image file but have to be zero on the card
(see ``firmware.plan``) are in the map.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from firmware import plan, ranges
from firmware.ranges import Range

BLOCK = 4096
"""Bytes in a block of the maps that are written here; other maps say theirs."""

SUFFIX = ".bmap"
MAX_FILE = 16 << 20
"""Bytes of the largest map that is read."""
_PIECE = 1 << 20
_ZEROS = memoryview(bytes(_PIECE))
_HASHES = {"sha256": 64, "sha384": 96, "sha512": 128}


class BmapError(ValueError):
    """A block map that cannot be used, or an image that is not the one it describes."""


@dataclass(frozen=True)
class Run:
    """A run of blocks that matter; ``start`` and ``end`` in bytes, ``end`` within the image.

    :ivar checksum: hex digest of these bytes.
    """

    start: int
    end: int
    checksum: str


@dataclass(frozen=True)
class Bmap:
    """A block map.

    :ivar runs: sorted and disjoint.
    """

    image_size: int
    block_size: int
    checksum_type: str
    runs: tuple[Run, ...]

    @property
    def mapped(self) -> list[Range]:
        """The bytes that matter."""
        return ranges.union((run.start, run.end) for run in self.runs)

    def verify(self, image: BinaryIO, progress: Callable[[int], object] = lambda _: None) -> None:
        """Check an image against the map.

        :param progress: called with the number of bytes of each piece that was read.
        :raises BmapError: when bytes differ; the text names the first of them.
        """
        _compare_sizes(self, image.seek(0, os.SEEK_END))
        for run in self.runs:
            found = _digest(image, run.start, run.end, self.checksum_type, progress)
            _compare(run, found, self.checksum_type)


class Verifier:
    """Checks an image against its map while it is read from start to end."""

    def __init__(self, map_: Bmap) -> None:
        self._map = map_
        self._runs = iter(map_.runs)
        self._run = next(self._runs, None)
        self._digest = hashlib.new(map_.checksum_type)
        self._at = 0

    def feed(self, data: memoryview) -> None:
        """Take what comes next of the image.

        :raises BmapError: when a run of blocks is not as the map says.
        """
        begin, end = self._at, self._at + len(data)
        while self._run is not None and self._run.start < end:
            run = self._run
            self._digest.update(data[max(0, run.start - begin) : run.end - begin])
            if run.end > end:
                break
            _compare(run, self._digest.hexdigest(), self._map.checksum_type)
            self._digest = hashlib.new(self._map.checksum_type)
            self._run = next(self._runs, None)
        self._at = end

    def finish(self) -> None:
        """Make sure that the image was read to its end.

        :raises BmapError: when it has another size than the map says.
        """
        _compare_sizes(self._map, self._at)


def _compare(run: Run, found: str, kind: str) -> None:
    if found != run.checksum:
        raise BmapError(
            f"bytes {run.start} to {run.end - 1} do not have the checksum of the map "
            f"({kind} {found[:16]}..., it says {run.checksum[:16]}...)"
        )


def _compare_sizes(map_: Bmap, size: int) -> None:
    if size != map_.image_size:
        raise BmapError(f"the map is for an image of {map_.image_size} bytes, this one has {size}")


def make(image: BinaryIO, mapped: Iterable[Range]) -> Bmap:
    """Return the map of an image whose bytes ``mapped`` matter, in whole blocks."""
    size = image.seek(0, os.SEEK_END)
    runs = [
        Run(start, end, _digest(image, start, end, "sha256", lambda _: None))
        for start, end in ranges.clip(ranges.align(mapped, BLOCK), 0, size)
    ]
    return Bmap(size, BLOCK, "sha256", tuple(runs))


def data_ranges(image: BinaryIO) -> list[Range]:
    """Return the blocks of an image that are not all zeros.

    The same for the same bytes, whether their zeros are holes of the file or not: that depends on
    the program that wrote, copied or unpacked it. Holes are only a short cut (``SEEK_DATA``).
    """
    fd = image.fileno()
    size = os.fstat(fd).st_size
    found: list[Range] = []
    position = 0
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA) // BLOCK * BLOCK
        except OSError:  # ENXIO: only a hole is left
            break
        position = min(size, -(-os.lseek(fd, start, os.SEEK_HOLE) // BLOCK) * BLOCK)
        for at, end in ranges.pieces([(start, position)], _PIECE):
            found += data_in(memoryview(os.pread(fd, end - at, at)), at)
    return ranges.union(found)


def data_in(piece: memoryview, at: int) -> list[Range]:
    """Return the blocks of a piece of an image that are not all zeros.

    :param at: where the piece begins, at the start of a block.
    """
    if piece == _ZEROS[: len(piece)]:
        return []
    found = []
    for offset in range(0, len(piece), BLOCK):
        block = piece[offset : offset + BLOCK]
        if block != _ZEROS[: len(block)]:
            found.append((at + offset, at + offset + len(block)))
    return ranges.union(found)


_FILE = """\
<?xml version="1.0" ?>
<!-- Which blocks of a card image have to be written to a card; the others do not matter.
     Made by firmware.bmap of Thicket, used by `make flash` and by bmaptool. -->

<bmap version="2.0">
    <ImageSize> {size} </ImageSize>
    <BlockSize> {block} </BlockSize>
    <BlocksCount> {blocks} </BlocksCount>
    <MappedBlocksCount> {mapped} </MappedBlocksCount>
    <ChecksumType> {kind} </ChecksumType>
    <!-- Of this file, with zeros in place of the checksum -->
    <BmapFileChecksum> {checksum} </BmapFileChecksum>
    <BlockMap>
{runs}    </BlockMap>
</bmap>
"""


def render(bmap: Bmap) -> bytes:
    """Return the file that says ``bmap``. The same map gives the same file."""
    block = bmap.block_size
    lines, mapped = [], 0
    for run in bmap.runs:
        first, last = run.start // block, (run.end - 1) // block
        mapped += last - first + 1
        numbers = f"{first}" if first == last else f"{first}-{last}"
        lines.append(f'        <Range chksum="{run.checksum}"> {numbers} </Range>\n')
    zero = "0" * _HASHES[bmap.checksum_type]
    text = _FILE.format(
        size=bmap.image_size,
        block=block,
        blocks=-(-bmap.image_size // block),
        mapped=mapped,
        kind=bmap.checksum_type,
        checksum=zero,
        runs="".join(lines),
    )
    digest = hashlib.new(bmap.checksum_type, text.encode()).hexdigest()
    return text.replace(f"> {zero} <", f"> {digest} <").encode()


def parse(data: bytes) -> Bmap:
    """Read a map of version 2.

    :raises BmapError: when something is wrong with it; the text says what.
    """
    if len(data) > MAX_FILE:
        raise BmapError(f"{len(data)} bytes are too many for a block map")
    try:
        # expat itself limits how far entities may expand.
        root = ElementTree.fromstring(data)  # noqa: S314
    except ElementTree.ParseError as error:
        raise BmapError(f"not XML: {error}") from None
    version = root.get("version", "")
    if root.tag != "bmap" or version.partition(".")[0] != "2":
        raise BmapError(
            f"not a block map of version 2 (<{root.tag} version={version!r}>); "
            "`python -m firmware.bmap IMAGE` makes one"
        )
    kind = _text(root, "ChecksumType")
    if kind not in _HASHES:
        raise BmapError(f"checksums of type {kind!r}: only {', '.join(_HASHES)} are known")
    own = _text(root, "BmapFileChecksum")
    blank = data.replace(own.encode(), b"0" * len(own), 1)
    if len(own) != _HASHES[kind] or hashlib.new(kind, blank).hexdigest() != own:
        raise BmapError("damaged: it does not have the checksum that it says it has")
    size, block = _number(root, "ImageSize"), _number(root, "BlockSize")
    if block <= 0 or _number(root, "BlocksCount") != -(-size // block):
        raise BmapError(f"{size} bytes are not that many blocks of {block}")
    runs: list[Run] = []
    mapped, after = 0, 0
    for element in root.iterfind("BlockMap/Range"):
        text = (element.text or "").strip()
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", text, re.ASCII)
        if match is None:
            raise BmapError(f"{text!r} is not a range of blocks")
        first, last = int(match[1]), int(match[2] or match[1])
        if not after <= first <= last or last * block >= size:
            raise BmapError(f"the range {text} is out of order or behind the end of the image")
        checksum = element.get("chksum", "")
        if not re.fullmatch(f"[0-9a-f]{{{_HASHES[kind]}}}", checksum):
            raise BmapError(f"the range {text} has no {kind} checksum")
        runs.append(Run(first * block, min((last + 1) * block, size), checksum))
        after = last + 1
        mapped += last - first + 1
    if mapped != _number(root, "MappedBlocksCount"):
        raise BmapError(f"it lists {mapped} blocks, but says otherwise")
    return Bmap(size, block, kind, tuple(runs))


def _text(root: ElementTree.Element, name: str) -> str:
    element = root.find(name)
    if element is None or element.text is None:
        raise BmapError(f"incomplete: <{name}> is missing")
    return element.text.strip()


def _number(root: ElementTree.Element, name: str) -> int:
    text = _text(root, name)
    if not re.fullmatch("[0-9]{1,18}", text, re.ASCII):
        raise BmapError(f"<{name}> is {text!r}, not a number")
    return int(text)


def _digest(
    image: BinaryIO, start: int, end: int, kind: str, progress: Callable[[int], object]
) -> str:
    digest = hashlib.new(kind)
    image.seek(start)
    while start < end:
        data = image.read(min(_PIECE, end - start))
        if not data:
            raise BmapError(f"the image ends at byte {start}, while it was read")
        digest.update(data)
        progress(len(data))
        start += len(data)
    return digest.hexdigest()


def write(image: Path, to: Path) -> Bmap:
    """Write the map of a card image to ``to``, at once or not at all.

    :raises OSError: when a file cannot be read or written.
    :raises CardError: when the image is not one of a card.
    """
    with image.open("rb") as file:
        mapped = data_ranges(file)
        made = make(file, plan.for_image(file, mapped))
    with tempfile.NamedTemporaryFile(dir=to.parent, prefix=f".{to.name}.", delete=False) as new:
        try:
            new.write(render(made))
            new.flush()
            # A build's outputs are for everybody; mkstemp made it for the owner only.
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(new.fileno(), 0o666 & ~umask)
            Path(new.name).replace(to)
        except BaseException:
            Path(new.name).unlink(missing_ok=True)
            raise
    return made


def main(arguments: list[str] | None = None) -> int:
    """Write the block map of a card image."""
    parser = argparse.ArgumentParser(
        prog="python -m firmware.bmap", description="Write the block map of a card image."
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="default: IMAGE.bmap")
    options = parser.parse_args(arguments)
    output = options.output or options.image.with_name(options.image.name + SUFFIX)
    try:
        made = write(options.image, output)
    except (OSError, ValueError) as error:
        print(f"thicket: no block map of {options.image}: {error}", file=sys.stderr)
        return 1
    used = ranges.length(made.mapped) / 2**20
    print(f"{output}: {used:.1f} of {made.image_size / 2**20:.1f} MiB have to be written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
