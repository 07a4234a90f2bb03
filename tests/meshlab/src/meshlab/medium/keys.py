# SPDX-License-Identifier: Apache-2.0
"""The keys of an encrypted mesh, and its frames in clear. For captures.

SAE is made so that the passphrase and a recording of everything on the air are not enough: each
pair of nodes agrees on a master key (PMK) that only its ends know. With that key, for which the lab
asks the nodes (``lab.pmks``), the two Mesh Peering Open frames of the pair tell what it agreed on
afterwards (IEEE Std 802.11-2020, 14.5.7; wpa_supplicant's ``mesh_rsn.c``):

- the AMPE element of each Open, encrypted by AES-SIV, has the sender's nonce and its group key;
- PMK, nonces, link identifiers and addresses give the pair's temporal key (MTK).

Both keys are used with CCMP-128 (12.5.3), for data and for protected management frames. A frame
that none of the known keys fits stays as it is: its integrity code tells.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESSIV

from meshlab.wire.ieee80211 import FrameError, Type, parse

SELF_PROTECTED = 15
"""Category of mesh peering frames (table 9-51)."""
OPEN = 1

_PEERING_ELEMENT, _MIC_ELEMENT, _AMPE_ELEMENT = 117, 140, 139  # table 9-92
_SAE = bytes.fromhex("000fac08")
"""Selector of the AKM (table 9-151)."""
_KEY = 16
_NONCE = 32
_CCMP_HEADER, _CCMP_MIC = 8, 8
_PROTECTED = 0x40
_KEPT = 8
"""Peerings and keys that are remembered for each: an Open is sent several times, each time
encrypted anew, and frames are still on their way when a new key is agreed on."""


def kdf(key: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """Return ``length`` bytes by KDF-Hash-Length with SHA-256 (12.7.1.7.2)."""
    made = b""
    count = 1
    bits = (8 * length).to_bytes(2, "little")
    while len(made) < length:
        data = count.to_bytes(2, "little") + label + context + bits
        made += hmac.new(key, data, hashlib.sha256).digest()
        count += 1
    return made[:length]


def _in_order(a: bytes, b: bytes) -> bytes:
    return min(a, b) + max(a, b)


def peering_key(pmk: bytes, a: bytes, b: bytes) -> bytes:
    """Return the key of the peering frames between two addresses (AEK)."""
    return kdf(pmk, b"AEK Derivation", _SAE + _in_order(a, b), 32)


class Opened(NamedTuple):
    """What one side says of itself in a Mesh Peering Open."""

    sender: bytes
    nonce: bytes
    link: int
    group_key: bytes


def temporal_key(pmk: bytes, one: Opened, other: Opened) -> bytes:
    """Return the key that two nodes have agreed on (MTK)."""
    first, second = sorted((one.link, other.link))
    context = (
        _in_order(one.nonce, other.nonce)
        + first.to_bytes(2, "little")
        + second.to_bytes(2, "little")
        + _SAE
        + _in_order(one.sender, other.sender)
    )
    return kdf(pmk, b"Temporal Key Derivation", context, _KEY)


def read_open(frame: bytes, pmk: bytes) -> Opened | None:
    """Return what a Mesh Peering Open says, None when this is no such frame or not its key."""
    if not is_open(frame):
        return None
    link = None
    at = 24 + 2 + 2  # header, category and action, capability
    while at + 2 <= len(frame):
        kind, length = frame[at], frame[at + 1]
        body = frame[at + 2 : at + 2 + length]
        if kind == _PEERING_ELEMENT and length >= 4:
            link = int.from_bytes(body[2:4], "little")
        elif kind == _MIC_ELEMENT and length == 16 and link is not None:
            receiver, sender = frame[4:10], frame[10:16]
            siv = AESSIV(peering_key(pmk, sender, receiver))
            try:
                element = siv.decrypt(frame[at + 2 :], [sender, receiver, frame[24:at]])
            except InvalidTag:
                return None
            group_key = element[2 + 4 + 2 * _NONCE :][
                :_KEY
            ]  # after the cipher suite and the nonces
            if element[0] != _AMPE_ELEMENT or len(group_key) < _KEY:
                return None
            return Opened(sender, element[6 : 6 + _NONCE], link, group_key)
        at += 2 + length
    return None


def is_open(frame: bytes) -> bool:
    """Tell whether a frame is a Mesh Peering Open."""
    return (
        len(frame) > 28 and frame[0] == 0xD0 and frame[24] == SELF_PROTECTED and frame[25] == OPEN
    )


def ccmp_clear(frame: bytes, key: bytes) -> bytes | None:
    """Return a CCMP frame without its protection, None when the key is not its (12.5.3)."""
    try:
        head = parse(frame)
    except (FrameError, ValueError):
        return None
    start = head.header_length
    if head.addr2 is None or len(frame) < start + _CCMP_HEADER + _CCMP_MIC:
        return None
    header = frame[start : start + _CCMP_HEADER]
    number = header[7:3:-1] + header[1::-1]
    priority = (head.tid or 0) | (0x10 if head.type == Type.MANAGEMENT else 0)
    data = head.type == Type.DATA
    control = (
        frame[0] & (0x8F if data else 0xFF),
        # Retry, power management and more data may change, so they do not count; nor does +HTC.
        frame[1] & (0x47 if head.tid is not None else 0xC7),
    )
    authenticated = bytes(control) + frame[4:22] + bytes((frame[22] & 0x0F, 0))
    if head.addr4 is not None:
        authenticated += head.addr4
    if head.tid is not None:
        authenticated += bytes((head.tid, 0))
    try:
        body = AESCCM(key, tag_length=_CCMP_MIC).decrypt(
            bytes((priority,)) + head.addr2 + number, frame[start + _CCMP_HEADER :], authenticated
        )
    except InvalidTag:
        return None
    return frame[:1] + bytes((frame[1] & ~_PROTECTED,)) + frame[2:start] + body


class Keyring:
    """Everything that is known of the keys of a mesh."""

    def __init__(self) -> None:
        self._masters: dict[frozenset[bytes], list[bytes]] = {}
        self._opens: dict[tuple[bytes, bytes], list[bytes]] = {}
        """By sender and receiver."""
        self._stale: set[frozenset[bytes]] = set()
        """Pairs of which something new is known."""
        self._pairwise: dict[frozenset[bytes], list[bytes]] = {}
        self._group: dict[bytes, list[bytes]] = {}

    def learn(self, a: bytes, b: bytes, pmk: bytes) -> None:
        """Take the master key of two addresses."""
        pair = frozenset((a, b))
        if _first(self._masters.setdefault(pair, []), pmk):
            self._stale.add(pair)

    def watch(self, frame: bytes) -> None:
        """Take a frame that may open a peering."""
        if is_open(frame):
            receiver, sender = frame[4:10], frame[10:16]
            plain = frame[:1] + b"\0" + frame[2:22] + b"\0\0" + frame[24:]  # as a repetition is
            if _first(self._opens.setdefault((sender, receiver), []), plain):
                self._stale.add(frozenset((sender, receiver)))

    def _derive(self, pair: frozenset[bytes]) -> None:
        self._stale.discard(pair)
        for pmk in reversed(self._masters.get(pair, ())):
            a, b = pair
            frames = self._opens.get((a, b), []) + self._opens.get((b, a), [])
            found = [read_open(frame, pmk) for frame in frames]
            opened = [one for one in found if one is not None]
            for one in opened:
                _first(self._group.setdefault(one.sender, []), one.group_key)
                for other in opened:
                    if other.sender > one.sender:
                        key = temporal_key(pmk, one, other)
                        _first(self._pairwise.setdefault(pair, []), key)

    def clear(self, frame: bytes) -> bytes | None:
        """Return a frame in clear, None when it is encrypted and no key is known."""
        if len(frame) < 24 or not frame[1] & _PROTECTED or frame[0] & 0x0C == Type.CONTROL << 2:
            return frame
        receiver, sender = frame[4:10], frame[10:16]
        for pair in [pair for pair in self._stale if sender in pair]:
            self._derive(pair)
        if receiver[0] & 1:
            keys = self._group.get(sender, [])
        else:
            keys = self._pairwise.get(frozenset((receiver, sender)), [])
        for key in keys:
            found = ccmp_clear(frame, key)
            if found is not None:
                return found
        return None


def _first(kept: list[bytes], what: bytes) -> bool:
    """Put something where it is tried first; tell whether it is new."""
    new = what not in kept
    if not new:
        kept.remove(what)
    kept.insert(0, what)
    del kept[_KEPT:]
    return new
