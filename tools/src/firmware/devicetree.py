# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees (``.dtb``): their nodes, and which of them are enabled.

Only what a check of drivers needs is read. Devicetree Specification 0.4, chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

MAGIC = 0xD00DFEED
_HEADER = struct.Struct(">10I")
_VERSION = 17
"""The version that is read here; a tree says how old a reader may be."""
_BEGIN, _END, _PROPERTY, _NOP, _LAST = 1, 2, 3, 4, 9
_DEPTH = 64


class DeviceTreeError(Exception):
    """A file that is no device tree, or a damaged one; the text says what is wrong."""


class Node(NamedTuple):
    """One node of a tree.

    :ivar path: from the root, ``/`` for the root itself.
    :ivar enabled: neither its own ``status`` nor that of a node above it turns it off.
    """

    path: str
    properties: Mapping[str, bytes]
    enabled: bool

    @property
    def compatible(self) -> tuple[str, ...]:
        """What drivers may be looked for by, the most exact one first; empty if by nothing."""
        value = self.properties.get("compatible", b"")
        return tuple(word.decode("ascii", "replace") for word in value.split(b"\0") if word)


def read(data: bytes) -> list[Node]:
    """Return the nodes of a tree, each before those below it.

    :raises DeviceTreeError: if the data is not a whole device tree.
    """
    structure, strings = _blocks(data)
    found: list[Node] = []
    open_nodes: list[tuple[str, dict[str, bytes]]] = []
    marks: list[int] = []
    for token, name, value in _tokens(structure, strings):
        if token == _BEGIN:
            if not open_nodes and found:
                raise DeviceTreeError("there is a second root")
            if len(open_nodes) >= _DEPTH:
                raise DeviceTreeError(f"nodes are nested more than {_DEPTH} deep")
            above = open_nodes[-1][0] if open_nodes else ""
            path = f"{above.rstrip('/')}/{name}"
            properties: dict[str, bytes] = {}
            open_nodes.append((path, properties))
            marks.append(len(found))
            found.append(Node(path, properties, enabled=True))
        elif not open_nodes:
            raise DeviceTreeError("something stands outside of the root")
        elif token == _PROPERTY:
            open_nodes[-1][1][name] = value
        else:
            _path, properties = open_nodes.pop()
            start = marks.pop()
            if properties.get("status", b"okay\0").rstrip(b"\0") not in (b"okay", b"ok"):
                found[start:] = [node._replace(enabled=False) for node in found[start:]]
    if open_nodes or not found:
        raise DeviceTreeError("the tree ends within a node")
    return found


def _blocks(data: bytes) -> tuple[bytes, bytes]:
    """Return the blocks of the structure and of the names."""
    if len(data) < _HEADER.size:
        raise DeviceTreeError(f"{len(data)} bytes are too few for a header")
    header = _HEADER.unpack_from(data)
    magic, total, structure, strings, _reserved, version, oldest, _cpu, size, length = header
    if magic != MAGIC:
        raise DeviceTreeError(f"it begins with {magic:#010x}, not with {MAGIC:#010x}")
    if version < _VERSION or oldest > _VERSION:
        raise DeviceTreeError(f"it is of version {version} (for readers of {oldest})")
    if total > len(data):
        raise DeviceTreeError(f"it should have {total} bytes and has {len(data)}")
    for start, extent in ((structure, length), (strings, size)):
        if start + extent > total:
            raise DeviceTreeError("a block reaches beyond its end")
    return data[structure : structure + length], data[strings : strings + size]


def _tokens(structure: bytes, strings: bytes) -> Iterator[tuple[int, str, bytes]]:
    """Yield what stands in the structure: a token, with a name and a value where it has these."""
    place = 0
    while True:
        (token,) = _numbers(structure, place, 1)
        place += 4
        if token == _BEGIN:
            name = _text(structure, place)
            place = _aligned(place + len(name) + 1)
            yield token, name, b""
        elif token == _PROPERTY:
            length, offset = _numbers(structure, place, 2)
            place += 8
            if place + length > len(structure):
                raise DeviceTreeError("a property reaches beyond the structure")
            yield token, _text(strings, offset), structure[place : place + length]
            place = _aligned(place + length)
        elif token == _END:
            yield token, "", b""
        elif token == _LAST:
            return
        elif token != _NOP:
            raise DeviceTreeError(f"there is no token {token:#x}")


def _numbers(block: bytes, place: int, count: int) -> tuple[int, ...]:
    if place + 4 * count > len(block):
        raise DeviceTreeError("the structure has no end")
    return struct.unpack_from(f">{count}I", block, place)


def _text(block: bytes, place: int) -> str:
    end = block.find(b"\0", place)
    if place >= len(block) or end < 0:
        raise DeviceTreeError("a name has no end")
    try:
        return block[place:end].decode("ascii")
    except UnicodeDecodeError:
        raise DeviceTreeError(f"a name is not ASCII: {block[place:end]!r}") from None


def _aligned(place: int) -> int:
    return (place + 3) & ~3
