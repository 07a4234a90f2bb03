# SPDX-License-Identifier: Apache-2.0
"""Nodes taken out of a device tree, and what is no device tree."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.machine.devicetree import DeviceTreeError, without

sys.path.insert(0, str(Path(__file__).parent))
from flat_tree import NOP, node, prop, tree

UART = node("serial@7e201000", prop(b"okay\0"), node("bluetooth", prop(b"x" * 5), node("deep")))
OTHER = node("bluetooth@1", prop(b"bluetooth\0"))


def test_a_node_goes_with_all_below_it_and_nothing_else_does() -> None:
    whole = tree(node("", prop(b"a"), UART, OTHER))
    found = without(whole, frozenset({"bluetooth"}))
    assert len(found) == len(whole), "offsets of the rest stay"
    rest = tree(node("", prop(b"a"), node("serial@7e201000", prop(b"okay\0")), OTHER))
    words = [found[i : i + 4] for i in range(40, len(found), 4)]
    assert b"".join(word for word in words if word != NOP) == rest[40:]
    assert without(found, frozenset({"bluetooth"})) == found
    assert without(whole, frozenset()) == whole


@settings(deadline=None)  # hosts may be busy
@given(st.data())
def test_a_damaged_tree_is_told(data: st.DataObject) -> None:
    whole = bytearray(tree(node("", UART)))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        without(cut, frozenset({"bluetooth"}))
    except DeviceTreeError as error:
        assert "damaged" in str(error)
    with pytest.raises(DeviceTreeError, match="begins with"):
        without(b"\x7fELF" + bytes(60), frozenset())
