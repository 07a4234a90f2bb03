# SPDX-License-Identifier: Apache-2.0
"""The hash tree of dm-verity: SHA-256, format version 1, blocks of 4096 bytes, no superblock.

The source is the kernel's Documentation/admin-guide/device-mapper/verity.rst. Every block has the
SHA-256 of salt and contents; 128 of these make a block of the level above, until one block is left,
whose hash is the root's. The tree lies behind the data, its top first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import BinaryIO, NamedTuple

from thicket.update.errors import BundleError

BLOCK = 4096
"""Bytes of a block, of data and of the tree."""

SALT_BYTES = 32

_DIGEST = 32
_IN_BLOCK = BLOCK // _DIGEST
_READ = 256 * BLOCK


class Tree(NamedTuple):
    """A hash tree.

    :ivar root: the hash that stands for all the data.
    :ivar blocks: the tree's bytes as they lie behind the data.
    """

    root: bytes
    blocks: bytes


def tree_bytes(data_bytes: int) -> int:
    """Return how long the tree over so many bytes is; they are whole blocks, at least two."""
    total, count = 0, data_bytes // BLOCK
    while count > 1:
        count = (count + _IN_BLOCK - 1) // _IN_BLOCK
        total += count
    return total * BLOCK


def tree(
    file: BinaryIO,
    data_bytes: int,
    salt: bytes,
    start: int = 0,
    progress: Callable[[int], object] = lambda _: None,
) -> Tree:
    """Return the tree over the first bytes of a file.

    :param data_bytes: how many; whole blocks, at least two.
    :param start: where they begin, if not at the file's beginning.
    :param progress: called with the bytes of each piece that was read.
    :raises BundleError: the file is shorter.
    """
    if data_bytes < 2 * BLOCK or data_bytes % BLOCK or len(salt) != SALT_BYTES:
        raise ValueError(f"no tree over {data_bytes} bytes with a salt of {len(salt)}")
    return _above(_hashes(_read(file, data_bytes, start, progress), salt), salt)


def _above(hashes: bytes, salt: bytes) -> Tree:
    """Return the tree whose lowest level begins with these hashes."""
    levels = []
    while True:
        hashes += bytes(-len(hashes) % BLOCK)
        levels.append(hashes)
        if len(hashes) == BLOCK:
            break
        hashes = _hashes([hashes], salt)
    return Tree(sha256(salt + hashes).digest(), b"".join(reversed(levels)))


def data_bytes(total: int) -> int:
    """Return how much of so many bytes is data, if the rest is the tree over it.

    :raises BundleError: no data and its tree are together so long.
    """
    blocks = total // BLOCK
    # A tree takes little more than a 127th of its data.
    for count in range(max(2, blocks * 127 // 128 - 4), blocks):
        if total == count * BLOCK + tree_bytes(count * BLOCK):
            return count * BLOCK
    raise BundleError(f"{total} bytes are no data with a hash tree behind it")


def root_of(blocks: bytes, data_bytes: int, salt: bytes) -> bytes:
    """Return the root's hash of a tree; empty where its levels do not go together."""
    if len(blocks) != tree_bytes(data_bytes):
        return b""
    found = _above(blocks[-_lowest(data_bytes) :], salt)
    return found.root if found.blocks == blocks else b""


def _lowest(data_bytes: int) -> int:
    """Return how many bytes the lowest level has, in whole blocks."""
    count = data_bytes // BLOCK * _DIGEST
    return count + -count % BLOCK


def damaged(made: Tree, kept: bytes, data_bytes: int) -> list[int]:
    """Return where the blocks begin that do not have the hash in a tree that is kept behind them.

    :returns: byte offsets; none when every block has its hash.
    """
    count, size = data_bytes // BLOCK * _DIGEST, _lowest(data_bytes)
    ours, theirs = made.blocks[-size:], kept[-size:]
    return [
        at // _DIGEST * BLOCK
        for at in range(0, count, _DIGEST)
        if ours[at : at + _DIGEST] != theirs[at : at + _DIGEST]
    ]


def _read(
    file: BinaryIO, size: int, start: int, progress: Callable[[int], object]
) -> Iterator[bytes]:
    file.seek(start)
    done = 0
    while done < size:
        data = file.read(min(_READ, size - done))
        if not data or len(data) % BLOCK:
            raise BundleError(
                f"the file ends after {done + len(data)} bytes, within its contents: it was cut "
                "off, so copy it again"
            )
        done += len(data)
        yield data
        progress(len(data))


def _hashes(parts: Iterable[bytes], salt: bytes) -> bytes:
    """Return the hashes of all blocks of ``parts``, which are whole blocks."""
    salted = sha256(salt)
    found = bytearray()
    for part in parts:
        view = memoryview(part)
        for at in range(0, len(view), BLOCK):
            one = salted.copy()
            one.update(view[at : at + BLOCK])
            found += one.digest()
    return bytes(found)
