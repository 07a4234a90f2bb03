# SPDX-License-Identifier: Apache-2.0
"""Flattened device trees: what was written is read, and what is damaged is refused in words."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.devicetree import DeviceTreeError, Node, read

NAMES = st.from_regex(r"[a-z][a-z0-9,._+-]{0,8}(@[0-9a-f]{1,4})?", fullmatch=True)
VALUES = st.binary(max_size=9)
PROPERTIES = st.dictionaries(NAMES, VALUES, max_size=3)


class Branch(NamedTuple):
    """A node to be written."""

    name: str
    properties: dict[str, bytes]
    below: list[Branch]


BRANCHES = st.recursive(
    st.builds(Branch, NAMES, PROPERTIES, st.just([])),
    lambda below: st.builds(Branch, NAMES, PROPERTIES, st.lists(below, max_size=3)),
    max_leaves=8,
)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def blob(structure: bytes, strings: bytes, *, magic: int = 0xD00DFEED, version: int = 17) -> bytes:
    """A tree of these blocks, which are behind the header and an empty list of reservations."""
    first = 40 + 16
    total = first + len(structure) + len(strings)
    header = struct.pack(
        ">10I", magic, total, first, first + len(structure), 40, version, 16, 0,
        len(strings), len(structure),
    )  # fmt: skip
    return header + bytes(16) + structure + strings


def write(root: Branch) -> bytes:
    strings = b""

    def node(branch: Branch) -> bytes:
        nonlocal strings
        out = number(1) + padded(branch.name.encode() + b"\0")
        for name, value in branch.properties.items():
            out += number(3) + number(len(value)) + number(len(strings)) + padded(value)
            strings += name.encode() + b"\0"
        return out + b"".join(number(4) + node(below) for below in branch.below) + number(2)

    structure = node(root._replace(name="")) + number(9)
    return blob(structure, strings)


def expected(branch: Branch, path: str = "/", *, on: bool = True) -> Iterator[Node]:
    status = branch.properties.get("status", b"okay").rstrip(b"\0")
    on = on and status in (b"okay", b"ok")
    yield Node(path, branch.properties, on)
    for below in branch.below:
        yield from expected(below, f"{path.rstrip('/')}/{below.name}", on=on)


def leaf(name: str, status: str = "", **properties: bytes) -> Branch:
    if status:
        properties["status"] = status.encode() + b"\0"
    return Branch(name, properties, [])


@settings(deadline=None)  # hosts may be busy
@given(BRANCHES)
def test_what_was_written_is_read(root: Branch) -> None:
    assert read(write(root)) == list(expected(root))


def test_a_node_that_is_off_turns_off_all_below_it() -> None:
    bus = leaf("soc", "disabled")._replace(below=[leaf("mmc@1", "okay"), leaf("usb@2")])
    root = Branch("", {}, [leaf("a", "ok"), bus, leaf("b", "fail"), leaf("c")])
    assert [(node.path, node.enabled) for node in read(write(root))] == [
        ("/", True),
        ("/a", True),
        ("/soc", False),
        ("/soc/mmc@1", False),
        ("/soc/usb@2", False),
        ("/b", False),
        ("/c", True),
    ]


def test_names_for_drivers_are_a_list() -> None:
    (node,) = read(write(leaf("", compatible=b"arm,pl011\0arm,primecell\0")))
    assert node.compatible == ("arm,pl011", "arm,primecell")
    (node,) = read(write(leaf("")))
    assert node.compatible == ()


WHOLE = number(1) + padded(b"\0") + number(2) + number(9)
DEEP = b"".join(number(1) + padded(b"n\0") for _ in range(100))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are too few"),
        (blob(WHOLE, b"", magic=0xFEEDD00D), "begins with 0xfeedd00d"),
        (blob(WHOLE, b"", version=16), "of version 16"),
        (blob(WHOLE, b"")[:-1], "should have 72 bytes and has 71"),
        (blob(WHOLE[:-4], b""), "has no end"),
        (blob(b"", b""), "has no end"),
        (blob(number(9), b""), "ends within a node"),
        (blob(number(1) + padded(b"\0") + number(9), b""), "ends within a node"),
        (blob(number(2) + number(9), b""), "outside of the root"),
        (blob(number(7), b""), "no token 0x7"),
        (blob(WHOLE[:-4] + WHOLE, b""), "a second root"),
        (blob(DEEP, b""), "more than 64 deep"),
        (blob(number(1) + b"abcd", b""), "a name has no end"),
        (blob(number(1) + padded(b"\xff\0"), b""), "not ASCII"),
        (blob(number(1) + padded(b"\0") + number(3) + number(0) + number(0), b""), "no end"),
        (blob(number(1) + padded(b"\0") + number(3) + number(99) + number(0), b"a\0"), "beyond"),
    ],
)
def test_what_is_no_tree_is_refused_in_words(data: bytes, words: str) -> None:
    with pytest.raises(DeviceTreeError, match=words):
        read(data)


def test_a_block_beyond_the_end_is_refused() -> None:
    data = bytearray(blob(WHOLE, b""))
    data[36:40] = number(1 << 20)
    with pytest.raises(DeviceTreeError, match="reaches beyond its end"):
        read(bytes(data))


@settings(deadline=None)
@given(BRANCHES, st.data())
def test_damage_is_read_or_refused(root: Branch, data: st.DataObject) -> None:
    whole = bytearray(write(root))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for damaged in (bytes(whole), bytes(whole[:cut])):
        try:
            read(damaged)
        except DeviceTreeError as error:
            assert str(error)
