# SPDX-License-Identifier: Apache-2.0
"""Frames against scapy's encoder, rates against the tables of the standard."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.wire import ieee80211
from meshlab.wire.hwsim import RateFlag
from meshlab.wire.ieee80211 import (
    LEGACY_2GHZ,
    LEGACY_5GHZ,
    AccessCategory,
    FrameError,
    Management,
    Phy,
    Type,
    access_category,
    control_rate,
    parse,
    rate,
    receive_index,
    transmitter,
    wants_no_ack,
)

scapy = pytest.importorskip("scapy.layers.dot11")

A1, A2, A3, A4 = (f"02:00:00:00:00:0{i}" for i in range(1, 5))


def raw(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def test_a_beacon_of_scapy() -> None:
    frame = bytes(
        scapy.Dot11(type=0, subtype=8, addr1="ff:ff:ff:ff:ff:ff", addr2=A2, addr3=A2, SC=0x1230)
        / scapy.Dot11Beacon()
    )
    got = parse(frame)
    assert (got.type, got.subtype) == (Type.MANAGEMENT, Management.BEACON)
    assert got.group
    assert (got.addr1, got.addr2, got.addr3) == (b"\xff" * 6, raw(A2), raw(A2))
    assert (got.sequence, got.fragment, got.header_length) == (0x123, 0, 24)
    assert access_category(frame) is AccessCategory.VOICE


@settings(deadline=None)
@given(st.integers(0, 7), st.integers(0, 3), st.booleans(), st.integers(0, 0xFFFF))
def test_a_four_address_qos_frame_of_scapy(tid: int, policy: int, retry: bool, sc: int) -> None:
    flags = "to_DS+from_DS" + ("+retry" if retry else "")
    frame = bytes(
        scapy.Dot11(
            type=2, subtype=8, FCfield=flags, addr1=A1, addr2=A2, addr3=A3, addr4=A4, SC=sc, ID=44
        )
        / scapy.Dot11QoS(TID=tid, Ack_Policy=policy)
        / b"body"
    )
    got = parse(frame)
    assert (got.type, got.to_ds, got.from_ds, got.retry) == (Type.DATA, True, True, retry)
    assert (got.addr1, got.addr2, got.addr3, got.addr4) == tuple(raw(a) for a in (A1, A2, A3, A4))
    assert (got.tid, got.no_ack, got.header_length, got.duration) == (tid, policy == 1, 32, 44)
    assert (got.sequence, got.fragment) == (sc >> 4, sc & 15)
    assert wants_no_ack(frame) is (policy == 1)
    assert not got.group
    assert got.mesh is None


def test_mesh_control() -> None:
    """Mesh Control by 9.2.4.7.3: flags with the address extension, TTL, sequence, addresses."""
    frame = (
        b"\x88\x03\0\0" + raw(A1) + raw(A2) + raw(A3) + raw(A4)[:0] + b"\x10\0" + raw(A4)
        + b"\x00\x01"  # QoS Control: Mesh Control Present
        + b"\x02\x1f" + (7).to_bytes(4, "little") + raw(A1) + raw(A2)
    )  # fmt: skip
    mesh = parse(frame).mesh
    assert mesh is not None
    assert (mesh.ttl, mesh.sequence, mesh.addresses) == (31, 7, (raw(A1), raw(A2)))
    encrypted = frame[:1] + b"\x43" + frame[2:]
    assert parse(encrypted).mesh is None
    assert parse(frame[:40]).mesh is None


def test_control_frames() -> None:
    rts = bytes(scapy.Dot11(type=1, subtype=11, addr1=A1, addr2=A2))
    got = parse(rts[:16])
    assert (got.type, got.addr1, got.addr2) == (Type.CONTROL, raw(A1), raw(A2))
    ack = b"\xd4\0\0\0" + raw(A1)
    assert parse(ack).addr2 is None
    assert transmitter(ack) is None
    assert transmitter(rts) == raw(A2)


@pytest.mark.parametrize(
    ("tid", "category"),
    [(0, 2), (1, 3), (2, 3), (3, 2), (4, 1), (5, 1), (6, 0), (7, 0)],
)
def test_user_priorities(tid: int, category: int) -> None:
    """Table 10-1."""
    frame = b"\x88\0\0\0" + bytes(20) + bytes((tid, 0))
    assert access_category(frame) == category
    assert access_category(b"\x08" + frame[1:]) is AccessCategory.BEST_EFFORT


@pytest.mark.parametrize(
    "frame", [b"", bytes(9), b"\x80" + bytes(22), b"\x88" + bytes(24), b"\x01" + bytes(30)]
)
def test_frames_cut_short(frame: bytes) -> None:
    with pytest.raises(FrameError):
        parse(frame)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        got = parse(data)
    except FrameError:
        return
    assert got.addr1 == data[4:10]
    access_category(data)
    wants_no_ack(data)
    transmitter(data)


def test_legacy_rates_are_those_of_hwsim() -> None:
    """``hwsim_rates`` in mac80211_hwsim.c; 5 GHz leaves out the first four."""
    assert [r.kbps // 100 for r in LEGACY_2GHZ] == [
        10, 20, 55, 110, 60, 90, 120, 180, 240, 360, 480, 540,
    ]  # fmt: skip
    assert [r.kbps for r in LEGACY_5GHZ] == [r.kbps for r in LEGACY_2GHZ[4:]]
    assert [r.index for r in LEGACY_5GHZ] == list(range(8))


@pytest.mark.parametrize(
    ("index", "flags", "mbps"),
    [
        # Tables 19-27, 19-28, 19-31 and 19-35.
        (0, RateFlag.MCS, 6.5),
        (7, RateFlag.MCS, 65.0),
        (7, RateFlag.MCS | RateFlag.SHORT_GI, 72.2),
        (7, RateFlag.MCS | RateFlag.WIDTH_40, 135.0),
        (15, RateFlag.MCS | RateFlag.WIDTH_40 | RateFlag.SHORT_GI, 300.0),
        (31, RateFlag.MCS | RateFlag.WIDTH_40 | RateFlag.SHORT_GI, 600.0),
        # Tables 21-30, 21-38, 21-46 and 21-54.
        (8, RateFlag.VHT_MCS, 78.0),
        (9, RateFlag.VHT_MCS | RateFlag.WIDTH_40, 180.0),
        (9, RateFlag.VHT_MCS | RateFlag.WIDTH_80, 390.0),
        (0x19, RateFlag.VHT_MCS | RateFlag.WIDTH_80 | RateFlag.SHORT_GI, 866.7),
        (0x79, RateFlag.VHT_MCS | RateFlag.WIDTH_160 | RateFlag.SHORT_GI, 6933.3),
    ],
)
def test_mcs_rates_of_the_standard(index: int, flags: int, mbps: float) -> None:
    assert rate(index, int(flags), False).kbps / 1000 == pytest.approx(mbps, abs=0.06)


@pytest.mark.parametrize(
    ("index", "flags", "two_ghz"),
    [
        (12, 0, True),
        (8, 0, False),
        (-1, 0, True),
        (32, RateFlag.MCS, True),
        (0, RateFlag.MCS | RateFlag.WIDTH_80, False),
        (10, RateFlag.VHT_MCS, False),
        (-1, RateFlag.VHT_MCS, False),
    ],
)
def test_rates_that_do_not_exist(index: int, flags: int, two_ghz: bool) -> None:
    with pytest.raises(ValueError, match=r"index|MCS|MHz"):
        rate(index, int(flags), two_ghz)


@settings(deadline=None)
@given(st.integers(-128, 127), st.integers(0, 65535), st.sampled_from([2412, 5180]))
def test_every_rate_has_an_index_for_its_receiver(index: int, flags: int, frequency: int) -> None:
    try:
        sent = rate(index, flags, frequency < 3000)
    except ValueError:
        return
    assert 0 <= receive_index(sent, frequency) < (12 if frequency < 3000 else 8)
    answer = control_rate(sent, frequency < 3000)
    assert answer in ieee80211.legacy_rates(frequency)
    assert answer.kbps <= max(sent.kbps, 6000)


@pytest.mark.parametrize(
    ("index", "flags", "two_ghz", "kbps"),
    [
        (0, 0, True, 1000),
        (3, 0, True, 2000),
        (4, 0, True, 6000),
        (5, 0, True, 6000),
        (6, 0, True, 12000),
        (8, 0, True, 24000),
        (11, 0, True, 24000),
        (1, 0, False, 6000),
        (7, 0, False, 24000),
        (0, RateFlag.MCS, False, 6000),
        (1, RateFlag.MCS, False, 12000),
        (7, RateFlag.MCS, False, 24000),
        (8, RateFlag.MCS | RateFlag.WIDTH_40, False, 6000),
    ],
)
def test_rates_of_acknowledgements(index: int, flags: int, two_ghz: bool, kbps: int) -> None:
    """10.6.6.5.2 with the mandatory rates 1, 2 and 6, 12, 24 Mbit/s."""
    assert control_rate(rate(index, int(flags), two_ghz), two_ghz).kbps == kbps


def test_names() -> None:
    assert LEGACY_2GHZ[2].name == "5.5 Mbit/s"
    assert rate(0x19, RateFlag.VHT_MCS | RateFlag.WIDTH_80, False).name == "VHT80 MCS 9/2"
    assert rate(7, RateFlag.MCS | RateFlag.SHORT_GI, False).name == "HT20 MCS 7 SGI"
    assert rate(1, RateFlag.SHORT_PREAMBLE, True).short_preamble
    assert rate(1, RateFlag.SHORT_PREAMBLE, True).phy is Phy.DSSS
