# SPDX-License-Identifier: Apache-2.0
"""nl80211 messages against bytes built by hand.

Layout and numbers of the bytes: include/uapi/linux/nl80211.h of Linux 6.1, packed with struct.
"""

import struct
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nl80211_bytes import attribute, message, u32

from thicket.netlink.messages import NetlinkError, Requests, decode, encode
from thicket.radio import nl80211
from thicket.radio.nl80211 import Message, Nl80211, Wiphy, interface, path, station


def parsed(data: bytes) -> Any:
    decoded = decode(Message, data)
    assert decoded is not None
    return decoded


MAC = bytes.fromhex("02746800000a")
NEXT = bytes.fromhex("02746800000b")


def station_bytes(*info: bytes) -> bytes:
    return message(19, u32(3, 5), attribute(6, MAC), u32(46, 1), attribute(21, b"".join(info)))


def test_station() -> None:
    found = station(
        station_bytes(
            u32(1, 840),  # inactive time
            u32(2, 5_000),
            u32(3, 6_000),
            attribute(23, struct.pack("=Q", 5 << 32)),
            attribute(24, struct.pack("=Q", 6 << 32)),
            attribute(4, struct.pack("=H", 0x8F3D)),
            attribute(5, struct.pack("=H", 0x2AB1)),
            attribute(6, b"\x04"),
            attribute(7, struct.pack("=b", -58)),
            attribute(13, struct.pack("=b", -57)),
            attribute(8, attribute(1, struct.pack("=H", 540)) + u32(5, 650)),
            attribute(14, attribute(1, struct.pack("=H", 10))),
            u32(11, 3),
            u32(12, 2),
            u32(16, 77),
            u32(41, 8193),
            attribute(17, struct.pack("=II", 0xFF, 0x2E)),  # authorized, no MFP
        )
    )
    assert found == {
        "mac": "02:74:68:00:00:0a",
        "state": "ESTAB",
        "llid": 0x8F3D,
        "plid": 0x2AB1,
        "signal_dbm": -57,
        "metric": 8193,
        "inactive_ms": 840,
        "connected_s": 77,
        "tx_kbps": 65_000,
        "rx_kbps": 1_000,
        "rx_bytes": 5 << 32,
        "tx_bytes": 6 << 32,
        "tx_failed": 2,
        "authorized": True,
        "mfp": False,
    }


#: What Linux 6.12 tells of a mesh peer of mac80211_hwsim, as far as a sign of life is read from it.
SIGN = [
    u32(16, 77), u32(1, 840), attribute(42, bytes(8)), u32(2, 5_000), u32(3, 6_000),
    attribute(4, struct.pack("=H", 0x8F3D)), attribute(5, struct.pack("=H", 0x2AB1)),
    attribute(6, b"\x04"),
]  # fmt: skip


def test_station_of_an_old_kernel() -> None:
    """Without the 64-bit counters, the 32-bit bitrate and the metric."""
    found = station(
        station_bytes(
            u32(2, 5_000),
            u32(3, 6_000),
            attribute(6, b"\x01"),
            attribute(7, struct.pack("=b", -80)),
            attribute(13, b"\0"),
            attribute(8, attribute(1, struct.pack("=H", 60))),
        )
    )
    assert found is not None
    assert (found["rx_bytes"], found["tx_bytes"], found["tx_kbps"]) == (5_000, 6_000, 6_000)
    assert (found["state"], found["signal_dbm"], found["metric"]) == ("OPN_SNT", -80, None)
    assert (found["authorized"], found["mfp"]) == (None, None)


@pytest.mark.parametrize(
    ("flags", "authorized", "mfp"),
    [
        (struct.pack("=II", 0x12, 0x12), True, True),
        (struct.pack("=II", 0x12, 0x00), False, False),
        (struct.pack("=II", 0x02, 0x12), True, None),  # a kernel that does not tell of the other
        (struct.pack("=I", 0x12), None, None),
        (b"", None, None),
    ],
)
def test_station_flags(flags: bytes, authorized: bool | None, mfp: bool | None) -> None:
    found = station(station_bytes(attribute(17, flags)))
    assert found is not None
    assert (found["authorized"], found["mfp"]) == (authorized, mfp)


@pytest.mark.parametrize(
    ("number", "word"),
    [(0, "LISTEN"), (4, "ESTAB"), (5, "HOLDING"), (6, "BLOCKED"), (7, "UNKNOWN"), (255, "UNKNOWN")],
)
def test_plink_states(number: int, word: str) -> None:
    found = station(station_bytes(attribute(6, bytes([number]))))
    assert found is not None
    assert found["state"] == word


def test_station_without_what_makes_one() -> None:
    assert station(message(19, u32(3, 5))) is None
    assert station(message(19, attribute(6, MAC))) is None


@given(st.binary(max_size=120))
def test_a_malformed_station_is_left_out_or_holds_what_it_promises(junk: bytes) -> None:
    for data in (station_bytes(junk), message(19, junk), message(19, attribute(6, MAC), junk)):
        found = station(data)
        if found is not None:
            assert isinstance(found["mac"], str)
            assert isinstance(found["rx_bytes"], int)
            for key in ("signal_dbm", "metric", "tx_kbps", "inactive_ms"):
                value = found[key]
                assert value is None or isinstance(value, int)


def test_path() -> None:
    info = (
        u32(1, 0), u32(2, 17), u32(3, 16386), u32(4, 4_900), attribute(5, b"\x15"), u32(6, 100),
        attribute(7, b"\0"), attribute(8, b"\2"), u32(9, 1),
    )  # fmt: skip
    data = message(
        23, u32(3, 5), attribute(6, MAC), attribute(26, NEXT), attribute(27, b"".join(info))
    )
    found = path(data)
    assert found == {
        "destination": "02:74:68:00:00:0a",
        "next_hop": "02:74:68:00:00:0b",
        "metric": 16386,
        "hops": 2,
        "expires_ms": 4_900,
        "flags": 0x15,
    }
    assert found["flags"] & nl80211.MPATH_ACTIVE
    assert path(message(23, attribute(6, MAC))) is None


def test_interface() -> None:
    data = message(
        7, u32(3, 9), attribute(4, b"mesh0\0"), u32(1, 2), u32(5, 7), attribute(6, MAC),
        u32(38, 2412),
    )  # fmt: skip
    assert interface(parsed(data)) == {
        "index": 9,
        "name": "mesh0",
        "wiphy": 2,
        "type": nl80211.IFTYPE_MESH_POINT,
        "mac": "02:74:68:00:00:0a",
        "frequency": 2412,
    }
    p2p_device = message(7, u32(1, 2), u32(5, 10), attribute(6, MAC))
    assert interface(parsed(p2p_device)) is None


def band(*frequencies: bytes) -> bytes:
    listed = b"".join(attribute(i, frequency) for i, frequency in enumerate(frequencies))
    return attribute(2, attribute(1, u32(1, 10))) + attribute(1, listed)  # rates, then frequencies


def wiphy_bytes(index: int, types: list[int], *bands: bytes) -> bytes:
    return message(
        3,
        u32(1, index),
        attribute(2, b"phy%d\0" % index),
        attribute(32, b"".join(attribute(kind, b"") for kind in types)),
        attribute(22, b"".join(attribute(i, one) for i, one in enumerate(bands))),
        attribute(115, b""),
        u32(143, 1 << 27 | 1 << 16),
    )


CHANNELS = band(
    u32(1, 2412) + u32(6, 2000),
    u32(1, 2467) + attribute(3, b""),
    u32(1, 2484) + attribute(2, b""),
    u32(1, 5260) + attribute(3, b"") + attribute(5, b"") + u32(7, 0) + u32(8, 4000),
    u32(1, 5500) + attribute(5, b"") + u32(7, 1) + u32(8, 90000),
)


def test_wiphy() -> None:
    wiphy = Wiphy(3)
    wiphy.absorb(parsed(wiphy_bytes(3, [2, 3, 7], CHANNELS)))
    assert (wiphy.name, wiphy.mesh_point, wiphy.mesh_auth) == ("phy3", True, True)
    assert wiphy.iftypes == {2, 3, 7}
    assert sorted(wiphy.channels) == [2412, 2467, 2484, 5260, 5500]
    assert wiphy.channels[2412].obstacle is None
    assert "listened to" in (wiphy.channels[2467].obstacle or "")
    assert wiphy.channels[2484].obstacle == "is disabled"
    assert [mhz for mhz, one in wiphy.channels.items() if one.radar] == [5260, 5500]
    assert wiphy.channels[5260].radar_heard is None, "nobody has listened yet"
    assert wiphy.channels[5500].radar_heard == 90.0


def test_widest_channels_in_a_dump_of_several_messages() -> None:
    wiphy = Wiphy(0)
    ht = attribute(4, struct.pack("=H", 0x2)) + attribute(1, b"")
    for bands in (
        attribute(0, ht),
        attribute(1, ht + attribute(8, bytes(4))),
        attribute(1, attribute(1, attribute(0, u32(1, 5180)))),
    ):
        wiphy.absorb(parsed(message(3, u32(1, 0), attribute(22, bands))))
    assert (wiphy.widest(2412), wiphy.widest(5180)) == (40, 80)
    assert Wiphy(1).widest(5180) == 20, "of which nothing is known"


class Kernel(Requests):
    """Answers requests as a kernel would, and remembers them as bytes."""

    def __init__(self, answers: dict[int, list[bytes]]) -> None:
        self.answers = answers
        self.asked: list[bytes] = []

    def request(self, kind: int, wanted: Any, flags: int = 4, reply: Any = None) -> list[Any]:
        self.asked.append(encode(wanted, kind, flags))
        return [parsed(data) for data in self.answers.get(wanted["cmd"], [])]

    def ask(self, request: bytes, read: Callable[[bytes], Any] | None) -> list[Any]:
        self.asked.append(request)
        assert read is not None
        found = [read(data) for data in self.answers.get(request[16], [])]
        return [one for one in found if one is not None]

    def ask_one(self, request: bytearray) -> bytes:
        self.asked.append(bytes(request))
        return self.answers[request[16]][0]


def nl80211_with(answers: dict[int, list[bytes]]) -> tuple[Nl80211, Kernel]:
    kernel = Kernel(answers)
    with (
        mock.patch.object(nl80211, "Requests", lambda protocol: kernel),
        mock.patch.object(nl80211, "family", lambda requests, name: (0x1C, {})),
    ):
        return Nl80211(), kernel


def test_wiphys_whose_channels_the_dump_leaves_out_are_asked_for() -> None:
    answers = [wiphy_bytes(1, [2, 7], CHANNELS), wiphy_bytes(0, [2])]
    subject, kernel = nl80211_with({1: answers})
    found = subject.wiphys()
    assert [wiphy.index for wiphy in found] == [0, 1]
    assert len(kernel.asked) == 2
    assert kernel.asked[1][16:] == struct.pack("=BBH", 1, 1, 0) + u32(1, 0)


def test_new_mesh_interface() -> None:
    made = message(7, u32(3, 9), attribute(4, b"mesh0\0"), u32(1, 2), u32(5, 7))
    subject, kernel = nl80211_with({7: [made]})
    wiphy = Wiphy(2)
    wiphy.mac = "02:74:68:00:00:0a"
    assert subject.add_mesh_interface(wiphy, "mesh0")["index"] == 9
    wiphy.features = 1 << 27
    subject.add_mesh_interface(wiphy, "mesh0")
    wanted = struct.pack("=BBH", 7, 1, 0) + u32(1, 2) + attribute(4, b"mesh0\0") + u32(5, 7)
    assert [asked[16:] for asked in kernel.asked] == [wanted, wanted + attribute(6, MAC)]


def test_set_mesh_parameters() -> None:
    subject, kernel = nl80211_with({})
    subject.set_mesh_parameters(9, {"ttl": 20, "hwmp_rootmode": 4, "rssi_threshold": -70})
    nested = attribute(6, b"\x14") + attribute(14, b"\4") + attribute(20, struct.pack("=i", -70))
    wanted = struct.pack("=BBH", 29, 1, 0) + u32(3, 9) + attribute(0x8000 | 35, nested)
    assert kernel.asked[0][16:] == wanted


def test_remove_path() -> None:
    subject, kernel = nl80211_with({})
    subject.remove_path(9, "02:74:68:00:00:0a")
    assert kernel.asked[0][16:] == struct.pack("=BBH", 24, 1, 0) + u32(3, 9) + attribute(6, MAC)


def test_stations_and_paths_have_one_entry_for_each_address() -> None:
    old = station_bytes(attribute(6, b"\5"))
    new = station_bytes(attribute(6, b"\4"))
    subject, kernel = nl80211_with({17: [old, new]})
    assert [one["state"] for one in subject.stations(9)] == ["ESTAB"]
    assert kernel.asked[0][16:] == struct.pack("=BBH", 17, 1, 0) + u32(3, 9)
    assert subject.paths(9) == []


def test_a_sign_is_asked_for_with_one_request_that_is_kept() -> None:
    subject, kernel = nl80211_with({17: [station_bytes(*SIGN)]})
    for _ in range(2):
        assert subject.sign(9, "02:74:68:00:00:0a").inactive_ms == 840
    subject.sign(9, "02:74:68:00:00:0b")
    first, again, other = kernel.asked
    assert first == again
    assert first[:16] == struct.pack("=IHHII", len(first), 0x1C, 1, 0, 0), "no dump, no receipt"
    assert first[16:] == struct.pack("=BBH", 17, 1, 0) + u32(3, 9) + attribute(6, MAC)
    assert other[16:] == struct.pack("=BBH", 17, 1, 0) + u32(3, 9) + attribute(6, NEXT)


def test_the_kept_requests_are_bounded() -> None:
    subject, kernel = nl80211_with({17: [station_bytes(*SIGN)]})
    for number in range(1000):
        subject.sign(number, "02:74:68:00:00:0a")
        assert len(subject.kept) <= nl80211.MOST_SIGNS
    assert kernel.asked[-1][20:28] == u32(3, 999)


def test_a_damaged_sign_is_an_error_that_names_the_station() -> None:
    subject, _ = nl80211_with({17: [message(19, u32(3, 5))]})
    with pytest.raises(NetlinkError, match="02:74:68:00:00:0a is damaged"):
        subject.sign(9, "02:74:68:00:00:0a")


def test_a_scan_asks_any_network_and_any_mesh() -> None:
    subject, kernel = nl80211_with({})
    subject.start_scan(9, [2412, 5180])
    (asked,) = kernel.asked
    assert asked[16:] == (
        struct.pack("=BBH", 33, 1, 0)
        + u32(3, 9)
        + attribute(0x8000 | 44, u32(0, 2412) + u32(1, 5180))
        + attribute(0x8000 | 45, attribute(0, b""))
        + attribute(42, bytes((114, 0)))
    )


@pytest.mark.parametrize(("kind", "mhz"), [(0, 20), (1, 20), (2, 40), (3, 80), (77, None)])
def test_width(kind: int, mhz: int | None) -> None:
    subject, _ = nl80211_with({5: [message(7, u32(3, 9), u32(38, 5180), u32(159, kind))]})
    assert subject.width(9) == mhz


def test_frequency_and_country_are_asked_for_alone() -> None:
    told = message(7, u32(3, 9), attribute(4, b"mesh0\0"), u32(38, 2412), u32(39, 1))
    rules = message(31, attribute(33, b"DE\0"), attribute(0x8000 | 34, bytes(400)))
    subject, kernel = nl80211_with({5: [told], 31: [rules]})
    assert subject.frequency(9) == 2412
    assert subject.country() == "DE"
    assert [asked[16:] for asked in kernel.asked] == [
        struct.pack("=BBH", 5, 1, 0) + u32(3, 9), struct.pack("=BBH", 31, 1, 0)
    ]  # fmt: skip
    subject, _ = nl80211_with({5: [message(7, u32(3, 9))], 31: [message(31)]})
    assert (subject.frequency(9), subject.country()) == (None, None)
