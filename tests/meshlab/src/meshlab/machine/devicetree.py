# SPDX-License-Identifier: Apache-2.0
"""What a Raspberry Pi's firmware does to the device tree before it starts the kernel.

Only what an emulated Pi cannot start without: the overlay ``disable-bt``. The format is that of the
Devicetree Specification 0.4, chapter 5, "Flattened Devicetree (DTB) Format".
"""

from __future__ import annotations

import struct

_MAGIC = 0xD00DFEED
_BEGIN_NODE, _END_NODE, _PROP, _NOP, _END = 1, 2, 3, 4, 9
_HEADER = struct.Struct(">10I")
_WORD = struct.Struct(">I")


class DeviceTreeError(Exception):
    """A device tree is damaged. The text says how."""


def without(tree: bytes, names: frozenset[str]) -> bytes:
    """Return a device tree without the nodes of these names, whatever is below them.

    :param tree: The flattened device tree.
    :param names: Names of nodes, with the unit address if they have one.
    :raises DeviceTreeError: when it is damaged.
    """
    try:
        return _without(tree, names)
    except (struct.error, IndexError, ValueError) as error:
        raise DeviceTreeError(f"the device tree is damaged: {error}") from error


def _without(tree: bytes, names: frozenset[str]) -> bytes:
    magic, _total, start, *_rest = _HEADER.unpack_from(tree)
    if magic != _MAGIC:
        raise ValueError(f"it begins with {magic:#010x}")
    made = bytearray(tree)
    at, depth, gone, gone_depth = start, 0, 0, 0
    while True:
        (token,) = _WORD.unpack_from(tree, at)
        begin, at = at, at + 4
        if token == _BEGIN_NODE:
            depth += 1
            end = tree.index(b"\0", at)
            if not gone_depth and tree[at:end].decode("ascii") in names:
                gone, gone_depth = begin, depth
            at = _aligned(end + 1, start)
        elif token == _PROP:
            (length,) = _WORD.unpack_from(tree, at)
            at = _aligned(at + 8 + length, start)
        elif token == _END_NODE:
            if gone_depth and depth == gone_depth:
                # The place stays, as words that mean nothing: no offset changes.
                made[gone:at] = _WORD.pack(_NOP) * ((at - gone) // 4)
                gone_depth = 0
            depth -= 1
        elif token == _END:
            return bytes(made)
        elif token != _NOP:
            raise ValueError(f"{token:#x} at {begin} is no token")


def _aligned(at: int, start: int) -> int:
    return at + (start - at) % 4
