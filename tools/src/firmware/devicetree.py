# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees (``.dtb``): their nodes, and which of them are enabled.

Devicetree Specification 0.4, chapter 5.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

MAGIC = 0xD00DFEED
_HEADER = struct.Struct(">10I")
_VERSION = 17
"""The version that is read here; a tree says how old a reader may be."""
BEGIN, END, PROPERTY, NOP, _LAST = 1, 2, 3, 4, 9
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


class Part(NamedTuple):
    """A part of a tree: the beginning of a node, one of its properties, or the node as a whole.

    :ivar kind: :data:`BEGIN`, :data:`PROPERTY`, or :data:`END` with the node's last word.
    :ivar path: of the node, or of the property as if it were a node.
    :ivar value: of a property.
    :ivar start: where in the file it begins; with :data:`END`, where the node does.
    :ivar end: where in the file it ends.
    """

    kind: int
    path: str
    value: bytes
    start: int
    end: int


def read(data: bytes) -> list[Node]:
    """Return the nodes of a tree, each before those below it.

    :raises DeviceTreeError: if the data is not a whole device tree.
    """
    found: list[Node] = []
    open_nodes: list[tuple[int, dict[str, bytes]]] = []
    for part in walk(data):
        if part.kind == BEGIN:
            properties: dict[str, bytes] = {}
            open_nodes.append((len(found), properties))
            found.append(Node(part.path, properties, enabled=True))
        elif part.kind == PROPERTY:
            open_nodes[-1][1][part.path.rpartition("/")[2]] = part.value
        else:
            first, properties = open_nodes.pop()
            if properties.get("status", b"okay\0").rstrip(b"\0") not in (b"okay", b"ok"):
                found[first:] = [node._replace(enabled=False) for node in found[first:]]
    return found


def walk(data: bytes) -> Iterator[Part]:
    """Yield the parts of a tree in the order in which it has them.

    :raises DeviceTreeError: if the data is not a whole device tree.
    """
    start, structure, strings = _blocks(data)
    open_nodes: list[tuple[str, int]] = []
    roots = 0
    for token, name, value, begin, end in _tokens(structure, strings):
        first, last = start + begin, start + end
        path = f"{open_nodes[-1][0].rstrip('/') if open_nodes else ''}/{name}"
        if token == BEGIN:
            if not open_nodes and roots:
                raise DeviceTreeError("there is a second root")
            if len(open_nodes) >= _DEPTH:
                raise DeviceTreeError(f"nodes are nested more than {_DEPTH} deep")
            roots = 1
            open_nodes.append((path, first))
            yield Part(BEGIN, path, b"", first, last)
        elif not open_nodes:
            raise DeviceTreeError("something stands outside of the root")
        elif token == PROPERTY:
            yield Part(PROPERTY, path, value, first, last)
        else:
            path, first = open_nodes.pop()
            yield Part(END, path, b"", first, last)
    if open_nodes or not roots:
        raise DeviceTreeError("the tree ends within a node")


def _blocks(data: bytes) -> tuple[int, bytes, bytes]:
    """Return where the block of the structure begins, that block, and the one of the names."""
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
    return structure, data[structure : structure + length], data[strings : strings + size]


def _tokens(structure: bytes, strings: bytes) -> Iterator[tuple[int, str, bytes, int, int]]:
    """Yield what stands in the structure: token, name, value, and from where to where."""
    place = 0
    while True:
        begin, name, value = place, "", b""
        (token,) = _numbers(structure, place, 1)
        place += 4
        if token == BEGIN:
            name = _text(structure, place)
            place = _aligned(place + len(name) + 1)
        elif token == PROPERTY:
            length, offset = _numbers(structure, place, 2)
            place += 8
            if place + length > len(structure):
                raise DeviceTreeError("a property reaches beyond the structure")
            name, value = _text(strings, offset), structure[place : place + length]
            place = _aligned(place + length)
        elif token == _LAST:
            return
        elif token == NOP:
            continue
        elif token != END:
            raise DeviceTreeError(f"there is no token {token:#x}")
        yield token, name, value, begin, place


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
