# SPDX-License-Identifier: Apache-2.0
"""Nodes and properties taken out of a device tree, and what is no device tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.devicetree import DeviceTreeError
from meshlab.machine.devicetree import without

sys.path.insert(0, str(Path(__file__).parent))
from flat_tree import NOP, node, prop, tree

UART = node("serial@7e201000", prop(b"okay\0"), node("bluetooth", prop(b"x" * 5), node("deep")))
OTHER = node("bluetooth", prop(b"bluetooth\0"))
BLUETOOTH = frozenset({"/serial@7e201000/bluetooth"})


def words(found: bytes) -> bytes:
    """Return what a tree has behind its header, without what means nothing."""
    parts = [found[i : i + 4] for i in range(40, len(found), 4)]
    return b"".join(part for part in parts if part != NOP)


def test_a_node_goes_with_all_below_it_and_nothing_else_does() -> None:
    whole = tree(node("", prop(b"a"), UART, OTHER))
    found = without(whole, BLUETOOTH)
    assert len(found) == len(whole), "offsets of the rest stay"
    rest = tree(node("", prop(b"a"), node("serial@7e201000", prop(b"okay\0")), OTHER))
    assert words(found) == words(rest)
    assert without(found, BLUETOOTH) == found
    assert without(whole, frozenset()) == whole


def test_a_property_goes_alone() -> None:
    card, fixed = prop(b"okay\0"), prop(b"", "non-removable")
    whole = tree(node("", fixed, node("mmc@1", fixed, card, node("wifi"))))
    found = without(whole, frozenset({"/mmc@1/non-removable"}))
    assert words(found) == words(tree(node("", fixed, node("mmc@1", card, node("wifi")))))


@settings(deadline=None)  # hosts may be busy
@given(st.data())
def test_a_damaged_tree_is_told(data: st.DataObject) -> None:
    whole = bytearray(tree(node("", UART)))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        without(cut, BLUETOOTH)
    except DeviceTreeError as error:
        assert str(error)
    with pytest.raises(DeviceTreeError, match="begins with"):
        without(b"\x7fELF" + bytes(60), frozenset())
