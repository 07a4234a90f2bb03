# SPDX-License-Identifier: Apache-2.0
"""The card image that is flashed: where it is, what of it matters, what the card will hold."""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from firmware import bmap, boards, card, ranges
from firmware.errors import FlashError
from firmware.ranges import Range
from firmware.unpacked import ENDINGS, MOST, Unpacked, temporary
from thicket.trust import kinds

_PIECE = 4096
Progress = Callable[[int], object]


def locate(name: str, cache: Path) -> Path:
    """Return the image file that ``name`` means: a path, or a board whose image was built.

    :raises FlashError: when there is none; the text names what there is.
    """
    path = Path(name)
    if path.is_file():
        return path
    if path.is_dir() and name not in boards.names():
        raise FlashError(
            f"{name} is a folder: a release is named by its path (./{name}), a card image by its "
            f"own ({path / 'card.img'}), or give a board ({', '.join(boards.names())})"
        )
    if "/" in name or name.endswith((".img", *ENDINGS)):
        raise FlashError(f"there is no image {name}")
    images = cache / "build" / name / "images"
    for suffix in ("", *ENDINGS):
        built = images / f"card.img{suffix}"
        if built.is_file():
            return built
    there = sorted(p.parent.parent.name for p in cache.glob("build/*/images/card.img*"))
    have = f"Built are: {', '.join(dict.fromkeys(there))}." if there else "None was built yet."
    if name not in boards.names():
        raise FlashError(
            f"{name} is neither a file nor a board ({', '.join(boards.names())}). {have}"
        )
    raise FlashError(
        f"there is no image of {name}: {images / 'card.img'} does not exist. {have}\n"
        f"  `make {name}` builds it; a path to a card.img can be given in place of the name."
    )


@dataclass(frozen=True)
class Image:
    """An open card image.

    :ivar file: its bytes, unpacked.
    :ivar mapped: the bytes that matter; all others are zeros, whatever the file holds there.
    :ivar data: those of them that are not all zeros.
    :ivar checked: whether it was compared with its map when it was opened.
    """

    path: Path
    file: BinaryIO
    size: int
    layout: card.Card
    mapped: list[Range]
    data: list[Range]
    map: bmap.Bmap | None
    checked: bool = False

    def check(self, progress: Progress = lambda _: None) -> None:
        """Compare the image with its map's checksums.

        :raises FlashError: when they differ.
        """
        if self.map is None or self.checked:
            return
        try:
            self.map.verify(self.file, progress)
        except bmap.BmapError as error:
            raise _differs(self.path, error) from None


def _differs(path: Path, error: bmap.BmapError) -> FlashError:
    return FlashError(
        f"{path} is damaged, or its .bmap belongs to another build: {error}.\n"
        "  Build (or download) both again; `python -m firmware.bmap IMAGE` makes a new map of an "
        "image that is known to be good."
    )


@contextlib.contextmanager
def opened(
    path: Path,
    progress: Progress = lambda _: None,
    *,
    map_: bmap.Bmap | None = None,
    most: int = MOST,
) -> Iterator[Image]:
    """Open an image. One that is packed (xz, gz, zst) is unpacked once, to be checked.

    :param progress: called with the number of bytes of each piece that was unpacked.
    :param map_: its block map; without one, that of the file beside it.
    :param most: bytes that a packed image may hold.
    :raises FlashError: when it cannot be read, is no card image, or is packed and differs from its
        map.
    """
    with contextlib.ExitStack() as stack:
        try:
            packed = path.suffix in ENDINGS
            map_ = map_ or _map_of(path, path.with_suffix("") if packed else path)
            if packed:
                unpacked = stack.enter_context(
                    contextlib.closing(Unpacked(path, map_.image_size if map_ else most))
                )
                file = cast(BinaryIO, unpacked)
                try:
                    data = unpacked.scan(map_, progress)
                except bmap.BmapError as error:
                    raise _differs(path, error) from None
            else:
                file = stack.enter_context(path.open("rb"))
                data = bmap.data_ranges(file)
            mapped = map_.mapped if map_ else data
            data = ranges.intersect(data, mapped)
            size, layout = card.size_of(file), card.read(file)
            image = Image(path, file, size, layout, mapped, data, map_, checked=packed)
        except card.CardError as error:
            raise FlashError(f"{path} is not a card image: {_kind(path) or error}") from None
        except bmap.BmapError as error:
            raise FlashError(
                f"{path}: its block map (.bmap) cannot be used: {error}.\n"
                "  Build both again, or delete the .bmap: then all data of the image is written."
            ) from None
        except OSError as error:
            raise FlashError(f"{path} could not be read: {error}") from None
        first = image.layout.partitions.get(card.CONFIG)
        if first is None or first.end > image.size:
            raise FlashError(
                f"{path} is not a card image: its first partition, with the configuration, is "
                + ("missing" if first is None else "cut off")
            )
        yield image


class Content:
    """What a card will hold: the mapped bytes of an image, another first partition if wanted, and
    zeros everywhere else."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self.mapped = image.mapped
        self.data = image.data
        self._starts = [start for start, _ in self.mapped]
        self._config = image.layout[card.CONFIG]
        self._replacement: BinaryIO | None = None

    def replace_config(self, partition: BinaryIO) -> None:
        """Put ``partition`` in the place of the first partition, whose size it has."""
        self._replacement = partition
        inside, base = [(self._config.offset, self._config.end)], self._config.offset
        own = [(base + start, base + end) for start, end in bmap.data_ranges(partition)]
        self.mapped = ranges.union([*ranges.subtract(self.image.mapped, inside), *own])
        self.data = ranges.union([*ranges.subtract(self.image.data, inside), *own])
        self._starts = [start for start, _ in self.mapped]

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with what is on the card from ``offset`` on.

        :raises FlashError: when the image ends too early: it was cut while it was read.
        """
        end = offset + len(view)
        view[:] = bytes(len(view))
        index = max(0, bisect_right(self._starts, offset) - 1)
        for start, stop in self.mapped[index:]:
            if start >= end:
                break
            at, until = max(start, offset), min(stop, end)
            if at < until:
                self._read(at, view[at - offset : until - offset])

    def read(self, offset: int, count: int) -> bytes:
        """Return ``count`` bytes of what is on the card from ``offset`` on."""
        data = bytearray(count)
        self.read_into(offset, memoryview(data))
        return bytes(data)

    def _read(self, offset: int, view: memoryview) -> None:
        end, config, image = offset + len(view), self._config, self.image.file
        replacement = self._replacement or image
        base = config.offset if self._replacement else 0
        # In front of the first partition, in it, behind it: a run of mapped blocks may be in all.
        for start, stop, file, origin in (
            (offset, min(end, config.offset), image, 0),
            (max(offset, config.offset), min(end, config.end), replacement, base),
            (max(offset, config.end), end, image, 0),
        ):
            if start < stop:
                _read_all(file, start - origin, view[start - offset : stop - offset])


def partition_file(read: Callable[[int, memoryview], None], partition: card.Partition) -> BinaryIO:
    """Return a temporary file with the bytes of a partition; zeros in it take no room.

    :param read: ``read(offset, view)`` fills ``view`` with the card's bytes from ``offset`` on.
    """
    file = temporary()
    data = memoryview(bytearray(1 << 20))
    for start, end in ranges.pieces([(partition.offset, partition.end)], len(data)):
        read(start, data[: end - start])
        _write_sparse(file, start - partition.offset, data[: end - start])
    file.truncate(partition.size)
    file.flush()
    return file


def _map_of(path: Path, plain: Path) -> bmap.Bmap | None:
    for beside in (plain, path):
        file = beside.with_name(beside.name + bmap.SUFFIX)
        if file.is_file():
            return bmap.parse(file.read_bytes())
    return None


def _kind(path: Path) -> str:
    """Return what a file of an update is that was taken for a card image; empty for any other."""
    with path.open("rb") as file:
        found = kinds.kind(file)
    if "bundle" not in found and found not in (kinds.A_PATCH, kinds.AN_APPLICATION):
        return ""
    return f"this is {found}, which a node that runs installs (docs/updating.md)"


def _write_sparse(file: BinaryIO, offset: int, data: memoryview) -> None:
    """Write ``data`` without its blocks of zeros."""
    zeros = bytes(_PIECE)
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        if piece != zeros[: len(piece)]:
            file.seek(offset + at)
            file.write(piece)


def _read_all(file: BinaryIO, offset: int, view: memoryview) -> None:
    file.seek(offset)
    while view:
        data = file.read(len(view))
        if not data:
            raise FlashError(
                f"the image ended at byte {file.tell()} while it was read: was it replaced?"
            )
        view[: len(data)] = data
        view = view[len(data) :]
