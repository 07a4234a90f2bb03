# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees made by hand."""

from __future__ import annotations

import struct

BEGIN, END_NODE, PROP, NOP, END = (struct.pack(">I", word) for word in (1, 2, 3, 4, 9))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def node(name: str, *inside: bytes) -> bytes:
    """Return a node: its properties, then the nodes below it."""
    return BEGIN + padded(name.encode() + b"\0") + b"".join(inside) + END_NODE


def prop(value: bytes) -> bytes:
    """Return a property; its name is the first one of the table."""
    return PROP + struct.pack(">II", len(value), 0) + padded(value)


def tree(*roots: bytes) -> bytes:
    """Return a device tree without strings and reserved memory."""
    words = b"".join(roots) + END
    sizes = (40 + len(words), 40, 40 + len(words), 0, 17, 16, 0, 0, len(words))
    return struct.pack(">10I", 0xD00DFEED, *sizes) + words
