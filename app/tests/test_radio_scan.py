# SPDX-License-Identifier: Apache-2.0
"""What is heard in a scan, as the kernel tells it, and what it means for the mesh."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.netlink.messages import NetlinkError
from thicket.radio.channels import CHANNELS, channel_frequency, channel_number
from thicket.radio.scan import Heard, heard, judge, others, refused
from thicket.radio.section import MeshSection

MAC = bytes.fromhex("027468000002")
#: As a node of the simulator sent it: active path selection and metric, authentication SAE, two
#: peers, forwarding.
MESH = (
    bytes((0, 0))
    + bytes((1, 8, 0x82, 0x84, 0x8B, 0x96, 0x0C, 0x12, 0x18, 0x24))
    + bytes((48, 26, 1, 0, 0, 0x0F, 0xAC, 4, 1, 0, 0, 0x0F, 0xAC, 4, 1, 0, 0, 0x0F, 0xAC, 8))
    + bytes((0xC0, 0, 0, 0, 0, 0x0F, 0xAC, 6))
    + bytes((114, 7)) + b"thicket"
    + bytes((113, 7, 1, 1, 0, 1, 1, 2 << 1, 9))
)  # fmt: skip


def attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def told(elements: bytes, capability: int = 0, mbm: int = -6100, mhz: int = 2412) -> bytes:
    """The kernel's message about one sender."""
    bss = (
        attribute(1, MAC)
        + attribute(2, struct.pack("=I", mhz))
        + attribute(5, struct.pack("=H", capability))
        + attribute(6, elements)
        + attribute(7, struct.pack("=i", mbm))
        + attribute(10, struct.pack("=I", 20))
    )
    return bytes(20) + attribute(3, struct.pack("=I", 9)) + attribute(47, bss)


def rsn(*suites: int) -> bytes:
    """An RSN element with one pairwise cipher and these authentication suites."""
    body = struct.pack("<H", 1) + b"\0\x0f\xac\4" + struct.pack("<H", 1) + b"\0\x0f\xac\4"
    body += struct.pack("<H", len(suites)) + b"".join(b"\0\x0f\xac" + bytes((s,)) for s in suites)
    return bytes((48, len(body))) + body


def test_a_node_of_a_mesh() -> None:
    assert heard(told(MESH), 20) == {
        "mac": "02:74:68:00:00:02", "frequency": 2412, "kind": "mesh", "name": "thicket",
        "security": "sae", "signal_dbm": -61, "peers": 2, "seen_ms": 20,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("elements", "capability", "kind", "security"),
    [
        (b"", 0x1, "access point", "open"),
        (b"", 0x11, "access point", "WEP"),
        (rsn(2), 0x11, "access point", "WPA2"),
        (rsn(8, 2), 0x11, "access point", "WPA2/WPA3"),
        (rsn(1), 0x11, "access point", "802.1X"),
        (rsn(18), 0x11, "access point", "OWE"),
        (rsn(99), 0x11, "access point", "RSN"),
        (bytes((221, 6)) + b"\0\x50\xf2\1\1\0", 0x11, "access point", "WPA"),
        (b"", 0x2, "ad-hoc", "open"),
    ],
)
def test_other_senders(elements: bytes, capability: int, kind: str, security: str) -> None:
    one = heard(told(bytes((0, 4)) + b"home" + elements, capability), 20)
    assert one is not None
    assert (one["kind"], one["name"], one["security"]) == (kind, "home", security)
    assert one["peers"] is None


@given(st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_any_beacon_is_survived(elements: bytes, capability: int) -> None:
    one = heard(told(elements, capability), 20)
    assert one is not None and one["kind"] in ("mesh", "access point", "ad-hoc")


@given(st.binary(max_size=120))
def test_any_message_is_survived(data: bytes) -> None:
    heard(bytes(20) + data, 20)


def test_channels_and_frequencies_are_each_others_inverse() -> None:
    for channel in (*CHANNELS, 14):
        assert channel_number(channel_frequency(channel)) == channel
    assert channel_number(5182) is None


def sender(**facts: Any) -> Heard:
    made: Heard = {
        "mac": "02:00:00:00:00:01", "frequency": 2412, "kind": "mesh", "name": "lab",
        "security": "open", "signal_dbm": -50, "peers": 0, "seen_ms": 0,
    }  # fmt: skip
    made.update(facts)  # type: ignore[typeddict-item]
    return made


OURS = MeshSection({"id": "lab", "security": "sae"})


def test_neighbours_with_another_security_are_named() -> None:
    strangers = others([sender(), sender(mac="02:00:00:00:00:02", security="sae")], OURS)
    assert [one["mac"] for one in strangers] == ["02:00:00:00:00:01"]
    report = judge(strangers, OURS)
    assert 'mesh "lab" there is "open", and here "sae"' in getattr(report, "message", "")
    assert "02:00:00:00:00:01" in getattr(report, "message", "")


@pytest.mark.parametrize(
    ("facts", "shown"),
    [
        ({"security": "sae"}, 0),
        ({"frequency": 2437}, 0),
        ({"kind": "access point"}, 0),
        ({"name": "foreign"}, 1),
    ],
    ids=["our own", "another channel", "no mesh", "another id"],
)
def test_who_is_no_mistake(facts: dict[str, Any], shown: int) -> None:
    strangers = others([sender(**facts)], OURS)
    assert len(strangers) == shown
    assert getattr(judge(strangers, OURS), "message", None) is None


@pytest.mark.parametrize(
    ("number", "code"), [(95, "scan-unsupported"), (16, "scan-busy"), (1, "scan")]
)
def test_a_refusal_says_why(number: int, code: str) -> None:
    assert refused(NetlinkError(number, "no")).code == code
