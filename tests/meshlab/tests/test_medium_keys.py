# SPDX-License-Identifier: Apache-2.0
"""Keys of a mesh from its master keys, and frames in clear."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESSIV

from meshlab.lab import pmks
from meshlab.medium.keys import Keyring, ccmp_clear, kdf, peering_key
from meshlab.medium.virtual import mac

A, B, C = mac(1), mac(2), mac(3)
PMK = bytes(range(32))
NONCES = {A: b"\x22" * 32, B: b"\x11" * 32}
GROUPS = {A: b"a" * 16, B: b"b" * 16}
LINKS = {A: 0x1234, B: 0x0FFF}


def test_the_ccmp_example_of_the_standard() -> None:
    """IEEE Std 802.11-2020, annex J.6.4."""
    key = bytes.fromhex("c97c1f67ce371185514a8a19f2bdd52f")
    header = bytes.fromhex("0848c32c0fd2e128a57c5030f1844408abaea5b8fcba8033")
    ccmp = bytes.fromhex("0ce700207697 03b5".replace(" ", ""))
    body = bytes.fromhex(
        "f3d0a2fe9a3dbf2342a643e43246e80c3c04d019 7845ce0b16f97623".replace(" ", "")
    )
    clear = bytes.fromhex("f8ba1a55d02f85ae967bb62fb6cda8eb7e78a050")
    expected = header[:1] + bytes((header[1] & ~0x40,)) + header[2:] + clear
    assert ccmp_clear(header + ccmp + body, key) == expected
    assert ccmp_clear(header + ccmp + body, bytes(16)) is None


def opening(sender: bytes, receiver: bytes, nonce: bytes, *, pmk: bytes = PMK) -> bytes:
    """Return a Mesh Peering Open, as wpa_supplicant makes it."""
    head = b"\xd0\0\0\0" + receiver + sender + sender + b"\x10\0"
    action = bytes((15, 1, 0, 0)) + b"\x01\x02\x82\x84" + b"\x72\x04mesh"
    action += bytes((117, 20, 1, 0)) + LINKS[sender].to_bytes(2, "little") + bytes(16)
    ampe = bytes.fromhex("000fac04") + nonce + bytes(32) + GROUPS[sender] + bytes(8) + b"\xff" * 4
    element = bytes((139, len(ampe))) + ampe
    siv = AESSIV(peering_key(pmk, sender, receiver))
    return head + action + b"\x8c\x10" + siv.encrypt(element, [sender, receiver, action])


def pair_key() -> bytes:
    """Return the MTK of A and B by 14.5.7: the smaller of each comes first."""
    context = NONCES[B] + NONCES[A] + b"\xff\x0f\x34\x12" + bytes.fromhex("000fac08") + A + B
    return kdf(PMK, b"Temporal Key Derivation", context, 16)


def encrypted(
    sender: bytes, receiver: bytes, key: bytes, body: bytes, *, mesh: bool = True, number: int = 7
) -> bytes:
    """Return a QoS data frame by CCMP: with four addresses, for a group with three."""
    four = not receiver[0] & 1
    control = b"\x88" + (b"\x43" if four else b"\x42")
    last = C if four else b""
    qos = b"\x05\x01" if mesh else b"\x05\0"
    header = control + b"\0\0" + receiver + sender + C + b"\x30\x01" + last + qos
    # Bits that others may change do not count: of the subtype, of the sequence, of QoS.
    associated = b"\x88" + control[1:] + receiver + sender + C + b"\0\0" + last + b"\x05\0"
    packet = number.to_bytes(6, "big")
    nonce = b"\x05" + sender + packet
    ccmp = bytes((packet[5], packet[4], 0, 0x20, packet[3], packet[2], packet[1], packet[0]))
    return header + ccmp + AESCCM(key, tag_length=8).encrypt(nonce, body, associated)


def known() -> Keyring:
    keys = Keyring()
    for one, other in ((A, B), (B, A)):
        keys.watch(opening(one, other, NONCES[one]))
    keys.learn(A, B, PMK)
    return keys


@pytest.mark.parametrize(("sender", "receiver"), [(A, B), (B, A)])
def test_what_two_nodes_send_each_other(sender: bytes, receiver: bytes) -> None:
    frame = encrypted(sender, receiver, pair_key(), b"nobody may read this")
    clear = known().clear(frame)
    assert clear is not None
    assert clear[32:] == b"nobody may read this"
    assert clear[:1] + clear[2:32] == frame[:1] + frame[2:32]
    assert clear[1] == frame[1] & ~0x40


def test_what_a_node_sends_to_all() -> None:
    frame = encrypted(B, b"\xff" * 6, GROUPS[B], b"to all")
    clear = known().clear(frame)
    assert clear is not None
    assert clear.endswith(b"to all")
    assert known().clear(encrypted(C, b"\xff" * 6, GROUPS[B], b"to all")) is None


def test_the_master_key_may_come_last_or_first() -> None:
    frame = encrypted(A, B, pair_key(), b"x")
    keys = Keyring()
    keys.learn(B, A, PMK)
    assert keys.clear(frame) is None
    for one, other in ((A, B), (B, A)):
        keys.watch(opening(one, other, NONCES[one]))
    assert keys.clear(frame) is not None


def test_a_new_peering_leaves_the_frames_of_the_one_before_readable() -> None:
    keys = known()
    before = encrypted(A, B, pair_key(), b"before")
    other_pmk = bytes(32)
    for one, other in ((A, B), (B, A)):
        keys.watch(opening(one, other, b"\x33" * 32, pmk=other_pmk))
    keys.learn(A, B, other_pmk)
    assert keys.clear(before) is not None


def test_what_is_in_clear_stays_and_what_nobody_knows_is_not_guessed() -> None:
    keys = known()
    beacon = b"\x80\0" + bytes(40)
    assert keys.clear(beacon) == beacon
    assert keys.clear(encrypted(A, B, bytes(16), b"x")) is None
    assert keys.clear(encrypted(A, B, pair_key(), b"x")[:40]) is None


def test_what_nodes_tell_of_their_master_keys() -> None:
    answer = (
        "own 02:74:68:00:00:01\n\n"
        f"02:74:68:00:00:02 {'0' * 32} {'ab' * 32} 43188\n"
        f"02:74:68:00:00:03 {'1' * 32} {'cd' * 32} -5\n\n"
    )
    assert pmks.read(answer) == [
        ("027468000001", "027468000002", "ab" * 32),
        ("027468000001", "027468000003", "cd" * 32),
    ]
    assert pmks.read("own 02:74:68:00:00:01\n\nUNKNOWN COMMAND\n") == []


# Recorded between two nodes of the lab: Linux 6.12, wpa_supplicant 2.10.

RECORDED_PMK = bytes.fromhex("8a884d7a4b0415cf44d87a3dba3d72091bb39dea1899578c082528b56fcda63b")
RECORDED_OPENS = (
    "d0003a0102746800000102746800000202746800000270080f011000010882848b968c1298243204b048606c"
    "30140100000fac040100000fac040100000fac08c0007207746869636b657471070101000101000975140100"
    "18877d98212806ab43073054edacc1c25e228c10f551c32723fc251bfcfd6ecffdd2329ff4b4aa96563c8d8c"
    "a8a81691ef826d71efc4f0babb9887b72fc3137d77af891ccef8934993b4f6693f7df5b81ca8c571f7b56297"
    "2f84ed33471738c7085ba19f350ca2ce2821c1326211a273cdaaadfbd304d6f469df486bcc72a4c9632f6dcf"
    "64e3651bc33b7af611584922a11e50cdd3a6b628b28e3489d05c",
    "d0003a01027468000002027468000001027468000001d0080f011000010882848b968c1298243204b048606c"
    "30140100000fac040100000fac040100000fac08c0007207746869636b657471070101000101020975140100"
    "6fa17d98212806ab43073054edacc1c25e228c1064724b43af055f4110fd1db5e7d608342d475a11b88ca4be"
    "3fd42816a55bebf1450290c6c7f0601da7b9364e9939f1dc05040728fdc9d188056659f96a1306a9d9e12331"
    "428f9de58d0f9e133ccad211cf03426d1cce10de4d4556aec86026dddc0136fec18c4f2e3436ce7a99743508"
    "7fc21d426eceb6e614d46cca2dfa6378fbda5f4c597ce223b18b",
)
RECORDED = {
    "data": (
        "88433000027468000002027468000001027468000002200002746800000100010300002000000000d7ad73d1"
        "93bf288c628a24906c3625fd7d00ccda5f8a2c534790bd7b902b62122501810d48a33ecafded8fda7372a341"
        "58ab65cb44058a903a69e6a04b108337704765d1231fbf1128d7d05444d922b571f5cf1fea649e92bb5ecaa3"
        "71d9",
        "8803300002746800000202746800000102746800000220000274680000010001001f6b000000aaaa03000000"
        "86dd6000000000203afffd123456789a000100005e8ee8e31236fe80000000000000007468fffe0000028800"
        "3ddd60000000fd123456789a000100005e8ee8e312360201027468000001",
    ),
    "a robust management frame": (
        "d0403a01027468000001027468000002027468000002e008010000200000000045616d15ec6890d44fe2c2e0"
        "6120a5471ce416fbf8ea2e4938a2b28a84d1156d41a54aa3e4ded96cd0b80d",
        "d0003a01027468000001027468000002027468000002e0080d01831f00001f02746800000202000000707200"
        "000000000002746800000103000000",
    ),
    "to a group": (
        "884200003333ff000002027468000002027468000002f007200102000060000000005c7560f089312bb6977f"
        "7eaacd73d38b5c0d6c66e5660b3a3eff8ea433fbac26b6e7bcc239d06e6388d3338f32432c230c742fd7721f"
        "b22670ad89a73aafee6847a2ea2507023cae601cc8cbc870d91a8488666899784d4f01ec9741b414",
        "880200003333ff000002027468000002027468000002f0072001001f56000000aaaa0300000086dd60000000"
        "00203aff00000000000000000000000000000000ff0200000000000000000001ff0000028700a6ba00000000"
        "fe80000000000000007468fffe0000020e011eec66bada44",
    ),
}


@pytest.mark.parametrize("kind", list(RECORDED))
def test_frames_of_real_nodes(kind: str) -> None:
    keys = Keyring()
    for recorded in RECORDED_OPENS:
        keys.watch(bytes.fromhex(recorded))
    keys.learn(A, B, RECORDED_PMK)
    encrypted_frame, clear = RECORDED[kind]
    found = keys.clear(bytes.fromhex(encrypted_frame))
    assert found is not None
    assert found.hex() == clear
