# SPDX-License-Identifier: Apache-2.0
"""What is taken out of a device tree before an emulated Raspberry Pi's kernel gets it."""

from __future__ import annotations

import struct

from firmware import devicetree


def without(tree: bytes, paths: frozenset[str]) -> bytes:
    """Return a device tree without some nodes, whatever is below them, and properties.

    :param paths: Of nodes and properties; those that the tree does not have change nothing.
    :raises firmware.devicetree.DeviceTreeError: when it is damaged.
    """
    made = bytearray(tree)
    nothing = struct.pack(">I", devicetree.NOP)
    for part in devicetree.walk(tree):
        if part.path in paths and part.kind != devicetree.BEGIN:
            # The place stays, as words that mean nothing: no offset changes.
            made[part.start : part.end] = nothing * ((part.end - part.start) // 4)
    return bytes(made)
