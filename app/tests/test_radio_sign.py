# SPDX-License-Identifier: Apache-2.0
"""Signs of life against bytes built by hand, after include/uapi/linux/nl80211.h of Linux 6.12."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nl80211_bytes import attribute, message, u32

from thicket.radio import nl80211
from thicket.radio.nl80211 import station
from thicket.radio.sign import Sign, SignReader

MAC = bytes.fromhex("02746800000a")


def station_bytes(*info: bytes, generation: int = 1) -> bytes:
    facts = attribute(21, b"".join(info))
    return message(19, u32(3, 5), attribute(6, MAC), u32(46, generation), facts)


def read(data: bytes) -> Sign | None:
    return SignReader().read(data)


#: What Linux 6.12 tells of a mesh peer of mac80211_hwsim: before what a sign of life is read from,
#: in its order, and some of what comes behind.
BEFORE = [u32(16, 77), u32(1, 840), attribute(42, bytes(8)), u32(2, 5_000), u32(3, 6_000)]
SIGN = [
    attribute(4, struct.pack("=H", 0x8F3D)),
    attribute(5, struct.pack("=H", 0x2AB1)),
    attribute(6, b"\x04"),
]
BEHIND = [attribute(7, b"\xc6"), attribute(8, u32(5, 650)), attribute(17, bytes(8)), u32(41, 819)]


def test_a_sign_of_life_is_what_a_station_tells() -> None:
    whole = station_bytes(*BEFORE, *SIGN, *BEHIND)
    assert read(whole) == Sign(1, 4, 0x8F3D, 0x2AB1, 840, 77)
    known = station(whole)
    assert known is not None
    assert (known["llid"], known["plid"]) == (0x8F3D, 0x2AB1)
    assert (known["inactive_ms"], known["connected_s"], known["state"]) == (840, 77, "ESTAB")


def test_what_comes_behind_the_sign_is_not_read() -> None:
    """So it costs the same however much the kernel tells."""
    broken = struct.pack("=HH", 999, 7)
    assert read(station_bytes(*BEFORE, *SIGN, broken)) == Sign(1, 4, 0x8F3D, 0x2AB1, 840, 77)


def test_a_sign_of_a_kernel_that_tells_less() -> None:
    without = station_bytes(attribute(6, b"\x04"), attribute(1, b"\x01"))
    assert read(without) == Sign(1, 4, 0, 0, 0, 0), "a number of another size is none"
    alone = message(19, u32(3, 5), attribute(6, MAC), attribute(0x8000 | 21, u32(0x4000 | 1, 7)))
    assert read(alone) == Sign(0, 0, 0, 0, 7, 0), "the flags in a type are left out"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        message(19),
        message(19, u32(3, 5), attribute(6, MAC)),
        station_bytes(*BEFORE)[:-1],
        message(19, struct.pack("=HH", 3, 46)),
        message(19, struct.pack("=HH", 99, 21)),
        station_bytes(struct.pack("=HH", 0, 1)),
        station_bytes(struct.pack("=HH", 9, 1), bytes(4)),
    ],
)
def test_a_damaged_sign_is_none(data: bytes) -> None:
    assert read(data) is None


@given(st.data())
def test_a_sign_and_a_station_agree(data: st.DataObject) -> None:
    """In whatever order the kernel tells it, with whatever in between."""
    numbers = {
        1: data.draw(st.integers(0, 2**32 - 1)),
        16: data.draw(st.integers(0, 2**32 - 1)),
        4: data.draw(st.integers(0, 2**16 - 1)),
        5: data.draw(st.integers(0, 2**16 - 1)),
        6: data.draw(st.integers(0, 6)),
    }
    sizes = {1: "=I", 16: "=I", 4: "=H", 5: "=H", 6: "=B"}
    told = data.draw(st.sets(st.sampled_from(sorted(numbers))))
    facts = [attribute(kind, struct.pack(sizes[kind], numbers[kind])) for kind in sorted(told)]
    others = data.draw(st.lists(st.builds(attribute, st.integers(18, 40), st.binary(max_size=9))))
    whole = station_bytes(*data.draw(st.permutations(facts + others)))
    known, found = station(whole), read(whole)
    assert known is not None
    assert found is not None
    assert found.generation == 1
    assert (found.llid, found.plid) == (known["llid"] or 0, known["plid"] or 0)
    assert found.inactive_ms == (known["inactive_ms"] or 0)
    assert found.connected_s == (known["connected_s"] or 0)
    assert nl80211.PLINK_STATES[found.state] == known["state"] or 6 not in told


@given(st.binary(max_size=120), st.integers(0, 40), st.integers(0, 255))
def test_a_sign_is_read_from_anything(data: bytes, where: int, byte: int) -> None:
    read(data)
    whole = bytearray(station_bytes(*BEFORE, *SIGN, *BEHIND))
    whole[20 + where] = byte
    found = read(bytes(whole))
    assert found is None or found.inactive_ms <= 0xFFFFFFFF


def told(inactive: int, *, generation: int = 1, behind: int = 4) -> bytes:
    """One of the messages of a settled peer; what comes behind differs."""
    facts = [*BEFORE[:1], u32(1, inactive), *BEFORE[2:], *SIGN, *BEHIND[:behind]]
    return station_bytes(*facts, generation=generation)


def test_a_settled_peer_is_read_in_one_go() -> None:
    reader = SignReader()
    for number in range(9):
        found = reader.read(told(number, generation=number, behind=number % 5))
        assert found == Sign(number, 4, 0x8F3D, 0x2AB1, number, 77)
    assert reader.followed == 1


def test_another_form_is_followed_and_remembered() -> None:
    reader = SignReader()
    reader.read(told(1))
    for number in range(3):
        other = station_bytes(u32(1, number), *SIGN, u32(16, 5))
        assert reader.read(other) == Sign(1, 4, 0x8F3D, 0x2AB1, number, 5)
    assert reader.followed == 2
    assert reader.read(told(7)) == Sign(1, 4, 0x8F3D, 0x2AB1, 7, 77)


def test_a_message_that_ends_early_is_malformed_in_the_usual_form_as_well() -> None:
    reader = SignReader()
    whole = told(1, behind=0)
    reader.read(whole)
    for size in range(len(whole)):
        cut = whole[:size]
        assert reader.read(cut) == read(cut)
    short = bytearray(whole)
    short[48:50] = struct.pack("=H", 30)  # the attribute with all facts ends within them
    assert reader.read(bytes(short)) == read(bytes(short)) != read(whole)


@given(
    st.lists(
        st.one_of(
            st.builds(told, st.integers(0, 2**32 - 1), behind=st.integers(0, 4)),
            st.permutations([*BEFORE, *SIGN]).map(lambda facts: station_bytes(*facts)),
            st.lists(
                st.builds(attribute, st.integers(0, 50), st.binary(max_size=9)), max_size=9
            ).map(lambda facts: station_bytes(*facts)),
            st.binary(max_size=90),
        ),
        max_size=12,
    ),
    st.data(),
)
def test_what_was_read_before_changes_nothing(messages: list[bytes], data: st.DataObject) -> None:
    reader = SignReader()
    for one in messages:
        where = data.draw(st.integers(0, 2 * len(one) + 1))
        damaged = bytearray(one)
        if where < len(one):
            damaged[where] = data.draw(st.integers(0, 255))
        assert reader.read(bytes(damaged)) == read(bytes(damaged))
