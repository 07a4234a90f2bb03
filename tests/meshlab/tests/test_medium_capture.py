# SPDX-License-Identifier: Apache-2.0
"""Captures as scapy reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from meshlab.medium.capture import PATIENCE, Capture, View, radiotap
from meshlab.medium.keys import Keyring
from meshlab.medium.virtual import BROADCAST, VirtualAir, data_frame, mac
from meshlab.wire.hwsim import Rate, RateFlag
from meshlab.wire.ieee80211 import LEGACY_2GHZ, rate

scapy_utils = pytest.importorskip("scapy.utils")
dot11 = pytest.importorskip("scapy.layers.dot11")


def capture(air: VirtualAir, path: Path, view: View, keys: Keyring | None = None) -> Capture:
    made = Capture(path, view, lambda: air.now, -91.0, keys)
    air.engine.observer = made
    return made


def packets(path: Path) -> list[Any]:
    return list(scapy_utils.rdpcap(str(path)))


def comment(packet: Any) -> str:
    found = getattr(packet, "comments", None) or [getattr(packet, "comment", None) or b""]
    return b"; ".join(found).decode()


def test_everything_on_the_air(tmp_path: Path) -> None:
    air = VirtualAir(3, [(1, 2, 30.0), (1, 3, 30.0)])
    made = capture(air, tmp_path / "air.pcapng", View())
    air.send(1, 2, rates=[Rate(4, 2, 0)])
    air.run(0.1)
    air.send(3, BROADCAST, rates=[Rate(0, 1, 0)])
    air.run(0.1)
    made.close()
    data, ack, group = packets(made.path)
    assert made.packets == 3
    assert data[dot11.Dot11].addr1 == mac(2).hex(":")
    assert data[dot11.RadioTap].Rate == 24.0
    assert data[dot11.RadioTap].ChannelFrequency == 5180
    assert comment(data) == "n1/0 > n2/0: received"
    assert ack[dot11.Dot11].addr1 == mac(1).hex(":")
    assert (ack[dot11.Dot11].type, ack[dot11.Dot11].subtype) == (1, 13)
    assert comment(group) == "n3/0 > n1/0: received"
    # SIFS and an acknowledgement at 24 Mbit/s later.
    assert float(ack.time) - float(data.time) == pytest.approx(44e-6, abs=2e-6)


def test_why_frames_were_lost(tmp_path: Path) -> None:
    air = VirtualAir(3, [(1, 2, 30.0), (1, 3, 30.0)])
    made = capture(air, tmp_path / "air.pcapng", View())
    air.refuses = lambda injected: injected.node == "n3"
    air.send(1, BROADCAST)
    air.run(0.01)
    air.send(1, BROADCAST)
    air.run(0.01)
    air.links.set("n1", "n2", 0.0)
    air.send(1, BROADCAST, rates=[Rate(7, 1, 0)])
    air.run(0.01)
    made.close()
    comments = [comment(p) for p in packets(made.path)]
    assert comments[1:] == [
        "n1/0 > n2/0: received; n3/0: the receiver is down or on another channel",
        "n1/0 > n2/0: frame error; n3/0: the receiver is down or on another channel",
    ]


def test_the_view_of_one_node(tmp_path: Path) -> None:
    """Its own frames as sent, those of others with their signal, lost ones with the reason."""
    air = VirtualAir(3, [(1, 2, 30.0), (2, 3, 12.0)])
    made = capture(air, tmp_path / "n2.pcapng", View(frozenset({"n2"})))
    air.send(1, 2, rates=[Rate(0, 1, 0)])
    air.run(0.01)
    air.send(3, 2, size=1500, rates=[Rate(7, 2, 0), Rate(0, 1, 0)])
    air.run(0.1)
    made.close()
    got = packets(made.path)
    inbound = [p for p in got if p[dot11.RadioTap].dBm_AntSignal is not None]
    assert [(p[dot11.Dot11].addr2, p.dBm_AntSignal, p.dBm_AntNoise) for p in inbound] == [
        (mac(1).hex(":"), -61, -91),
        (mac(3).hex(":"), -79, -91),
        (mac(3).hex(":"), -79, -91),
        (mac(3).hex(":"), -79, -91),
    ]
    assert [comment(p) for p in inbound] == ["", "lost: frame error", "lost: frame error", ""]
    assert [bool(p[dot11.Dot11].FCfield & 8) for p in inbound] == [False, False, True, True]
    acks = [p for p in got if p[dot11.Dot11].type == 1]
    assert [p[dot11.Dot11].addr1 for p in acks] == [mac(1).hex(":"), mac(3).hex(":")]


def test_several_nodes_in_one_file_each_on_its_interface(tmp_path: Path) -> None:
    air = VirtualAir(3, [(1, 2, 30.0), (2, 3, 20.0)])
    made = capture(air, tmp_path / "air.pcapng", View(frozenset({"n1", "n3"})))
    air.send(2, BROADCAST)
    air.run(0.01)
    air.send(1, BROADCAST)
    air.run(0.01)
    made.close()
    got = packets(made.path)
    senders = [p[dot11.Dot11].addr2 for p in got]
    assert senders == [mac(2).hex(":"), mac(2).hex(":"), mac(1).hex(":")]
    assert [p.dBm_AntSignal for p in got[:2]] == [-61, -71]
    assert [p.sniffed_on for p in got] == ["n1/0", "n3/0", "n1/0"]


def test_one_link_has_what_its_ends_send_in_range_of_each_other(tmp_path: Path) -> None:
    air = VirtualAir(3, [(1, 2, 30.0), (1, 3, 30.0)])
    link = View(links=frozenset({frozenset({"n1", "n2"})}))
    made = capture(air, tmp_path / "air.pcapng", link)
    air.send(1, 2)
    air.run(0.01)
    air.send(1, 3)
    air.run(0.01)
    air.send(3, 1)
    air.run(0.01)
    air.send(1, BROADCAST)
    air.run(0.01)
    made.close()
    data, ack, group = packets(made.path)
    assert comment(data) == "n1/0 > n2/0: received"
    assert ack[dot11.Dot11].addr1 == mac(1).hex(":")
    assert comment(group) == "n1/0 > n2/0: received"


def test_frames_wait_for_their_key_and_all_behind_them(tmp_path: Path) -> None:
    air = VirtualAir(2, [(1, 2, 30.0)])
    made = capture(air, tmp_path / "air.pcapng", View(), Keyring())
    frame = bytearray(data_frame(mac(1), BROADCAST))
    frame[1] |= 0x40  # protected, by a key that nobody knows
    air.send(1, BROADCAST, frame=bytes(frame))
    air.run(0.01)
    air.send(2, BROADCAST)
    air.run(0.01)
    made.flush()
    assert made.packets == 0
    air.run(PATIENCE)
    made.flush()
    assert made.packets == 2
    made.close()
    first, second = packets(made.path)
    assert bytes(first[dot11.Dot11])[: len(frame)] == bytes(frame)
    assert first.time < second.time


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("r", LEGACY_2GHZ)
def test_legacy_radiotap(r: Any, short: bool) -> None:
    if short and 0 < r.index < 4:
        r = rate(r.index, RateFlag.SHORT_PREAMBLE, True)
    header = dot11.RadioTap(radiotap(r, 2412, signal=-70, noise=-91, tx_flags=8))
    assert header.Rate == r.kbps / 1000
    assert header.ChannelFrequency == 2412
    assert ("CCK" in str(header.ChannelFlags)) is (r.index < 4)
    assert (header.dBm_AntSignal, header.dBm_AntNoise) == (-70, -91)
    assert int(header.TXFlags) == 8
    assert ("ShortPreamble" in str(header.Flags)) is r.short_preamble


def test_mcs_radiotap() -> None:
    r = rate(13, RateFlag.MCS | RateFlag.WIDTH_40 | RateFlag.SHORT_GI, False)
    header = dot11.RadioTap(radiotap(r, 5180, tx_flags=0))
    assert header.MCS_index == 13
    assert header.MCS_bandwidth == 1
    assert header.guard_interval == 1
    assert header.len == len(radiotap(r, 5180, tx_flags=0))


def test_vht_radiotap() -> None:
    r = rate(0x19, RateFlag.VHT_MCS | RateFlag.WIDTH_80, False)
    raw = radiotap(r, 5180, signal=-50, noise=-91)
    header = dot11.RadioTap(raw)
    assert header.len == len(raw)
    assert header.VHT_bandwidth == 4
    assert raw[-8] == 0x92  # MCS 9, two streams (radiotap.org, VHT)


def test_a_file_that_cannot_be_written_ends_the_capture(tmp_path: Path) -> None:
    air = VirtualAir(2, [(1, 2, 30.0)])
    with pytest.raises(OSError, match="No such file"):
        capture(air, tmp_path / "none" / "air.pcapng", View())
    made = capture(air, Path("/dev/full"), View())
    for _ in range(200):
        air.send(1, BROADCAST, size=1000)
        air.run(0.01)
    assert made.problem is not None
    assert len(air.injected) == 200
