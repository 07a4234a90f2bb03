# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees made by hand."""

from __future__ import annotations

import struct

BEGIN, END_NODE, PROP, NOP, END = (struct.pack(">I", word) for word in (1, 2, 3, 4, 9))
STRINGS = b"status\0non-removable\0"


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def node(name: str, *inside: bytes) -> bytes:
    """Return a node: its properties, then the nodes below it."""
    return BEGIN + padded(name.encode() + b"\0") + b"".join(inside) + END_NODE


def prop(value: bytes, name: str = "status") -> bytes:
    """Return a property, one of :data:`STRINGS`."""
    at = STRINGS.index(f"{name}\0".encode())
    return PROP + struct.pack(">II", len(value), at) + padded(value)


def tree(*roots: bytes) -> bytes:
    """Return a device tree without reserved memory."""
    words = b"".join(roots) + END
    behind = 40 + len(words)
    sizes = (behind + len(STRINGS), 40, behind, 0, 17, 16, 0, len(STRINGS), len(words))
    return struct.pack(">10I", 0xD00DFEED, *sizes) + words + STRINGS
