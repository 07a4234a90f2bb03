# SPDX-License-Identifier: Apache-2.0
"""Packs card images as xz, which everything reads that people flash cards with.

Raspberry Pi Imager, balenaEtcher and bmaptool read xz. Not all of them read zstd: balenaEtcher
does not, nor does the Imager before 1.9.4 on Windows. One block in one stream is what the oldest of
them can read.

A new card holds the same system twice, and the second copy takes no room where the first one is
still in the dictionary. That halves the download, and unpacking takes as much memory as the
dictionary has.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable
from pathlib import Path

ENDING = ".xz"

DICTIONARY = 144 << 20
"""Bytes: a little more than lie between the two roots of a card (129 MiB)."""

PRESET = 2
"""A third of the time of 6, and a tenth more bytes, measured on a card of the stand-in."""

_LEAST = 1 << 20
_PIECE = 1 << 20


def xz(source: Path, target: Path, progress: Callable[[int], object] = lambda _: None) -> int:
    """Pack a file; return how many bytes it has unpacked. The same bytes make the same bytes.

    :param progress: called with the number of bytes of each piece that was read.
    """
    size = source.stat().st_size
    dictionary = min(max(-(-size // _LEAST) * _LEAST, _LEAST), DICTIONARY)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": PRESET, "dict_size": dictionary}]
    packer = lzma.LZMACompressor(lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters)
    with source.open("rb") as file, target.open("wb") as packed:
        while data := file.read(_PIECE):
            packed.write(packer.compress(data))
            progress(len(data))
        packed.write(packer.flush())
        return file.tell()
