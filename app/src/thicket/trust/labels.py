# SPDX-License-Identifier: Apache-2.0
"""What people call the devices of a fleet: labels, places and notes in one signed document.

    what a signer of devices signs (``thicket.trust.signed``)   its certificate   2 bytes: its size

A signer of devices signs it, not the root: it is changed often, and who may make members of the
fleet may name them as well. A label gives no right. The document names devices by the lower half of
their addresses, so that it is the same whatever the prefix is.

The document with the highest number holds, on every node and in whatever order they come. Two
numbered alike come from two copies of the authority: of these the one with the higher digest holds.
What a signer has signed ends with the signer: one that is revoked has signed nothing, or its last
document, with the highest number that there is, would be in force for ever.

Each entry has the time of its last change, and one that was emptied stays, without words. So two
documents can be made one (:func:`merged`), which says of each device what was said last.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from ipaddress import IPv6Address
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from thicket.trust import certificates as x509
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.signed import Kind
from thicket.trust.verify import (
    BAD_CHAIN,
    BAD_SIGNATURE,
    MALFORMED,
    OTHER_FLEET,
    RefusedError,
    Verify,
    verify_signature,
)

if TYPE_CHECKING:
    from thicket.trust.fleet import Fleet

MAX_LABELS = 128 * 1024
"""Bytes of the largest document."""
MOST = 1024
"""Devices that one document names at most."""
MAX_NUMBER = (1 << 53) - 1
"""The highest number; JSON readers agree on whole numbers up to this one."""

LONGEST = {"label": 32, "place": 64, "note": 160}
"""Characters of each text at most."""

KIND = Kind(b"thicket labels 1\n", MAX_LABELS, "a list of labels", "the list of labels")

Place: TypeAlias = str | tuple[float, float]
"""Words, or latitude and longitude in degrees (WGS 84)."""


class Entry(NamedTuple):
    """What people say about one device; empty where nothing is said.

    :ivar changed: when it was said, in seconds since 1970.
    """

    changed: int
    label: str = ""
    place: Place = ""
    note: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing is said."""
        return not (self.label or self.place or self.note)


Entries: TypeAlias = dict[int, Entry]
"""By the lower 64 bits of addresses."""


class Labels(NamedTuple):
    """A numbered document."""

    number: int
    issued: datetime
    entries: Entries


class SignedLabels(NamedTuple):
    """A document, the name of the signer who has signed it, and its bytes."""

    labels: Labels
    signer: str
    packed: bytes

    @property
    def digest(self) -> bytes:
        """The name of its contents (32 bytes): the same for two signatures of one text."""
        return KIND.digest(_split(self.packed)[0])

    @property
    def order(self) -> tuple[int, bytes]:
        """What tells the newer one of two documents."""
        return self.labels.number, self.digest

    @classmethod
    def read(
        cls, packed: bytes, fleet: Fleet, *, verify: Verify = verify_signature
    ) -> SignedLabels:
        """Check and read a document.

        :raises RefusedError: no signer of the fleet has signed it, or it does not say what it
            should. Whether the signer is revoked is for the caller to ask.
        """
        contents, encoded = _split(packed)
        try:
            signer = Certificate(encoded)
        except CertificateError as error:
            raise RefusedError(MALFORMED, f"the signer of the labels: {error}") from None
        _check_signer(signer, fleet, verify)

        def build(members: dict[str, Any], issued: datetime) -> Labels:
            number = members["number"]
            if type(number) is not int or not 0 < number <= MAX_NUMBER:
                raise ValueError("its number is none")
            if not signer.not_before <= issued <= signer.not_after:
                raise ValueError("its signer's certificate was not valid when it was signed")
            return Labels(number, issued, _entries(members["labels"]))

        labels = KIND.read(contents, fleet, build, verify, signer.public_key)
        return cls(labels, signer.common_name, bytes(packed))


def _split(packed: bytes) -> tuple[bytes, bytes]:
    """Return what is signed, and the signer's certificate.

    :raises RefusedError: it has not this form.
    """
    size = int.from_bytes(packed[-2:], "big")
    end = len(packed) - 2 - size
    if not packed.startswith(KIND.line) or len(packed) > MAX_LABELS or end < len(KIND.line):
        raise RefusedError(MALFORMED, f"not {KIND.one}")
    return packed[:end], packed[end:-2]


def _check_signer(signer: Certificate, fleet: Fleet, verify: Verify) -> None:
    """:raises RefusedError: it is not the certificate of a signer of the fleet's devices."""
    root, name = fleet.root, signer.common_name
    if signer.issuer != root.subject or signer.authority_key != fleet.identifier:
        raise RefusedError(OTHER_FLEET, f"{name!r} is not a signer of {fleet.name!r}")
    if not signer.ca or signer.path_length != 1 or x509.KEY_CERT_SIGN not in signer.key_usage:
        raise RefusedError(BAD_CHAIN, f"{name!r} is no signer of devices")
    if not verify(root.public_key, sha256(signer.tbs).digest(), signer.signature):
        raise RefusedError(BAD_SIGNATURE, f"that of the signer {name!r}")


def packed_entries(entries: Mapping[int, Entry]) -> dict[str, list[Any]]:
    """Return entries as the document has them."""
    found = {}
    for device, entry in sorted(entries.items()):
        place = list(entry.place) if isinstance(entry.place, tuple) else entry.place
        words: list[Any] = [entry.changed, entry.label, place, entry.note]
        while len(words) > 1 and not words[-1]:
            words.pop()
        found[f"{device:016x}"] = words
    return found


def signed_contents(labels: Labels, identifier: bytes) -> bytes:
    """Return the text of a document, for a signer to sign behind ``KIND.line``.

    :param identifier: that of the fleet's root.
    """
    return json.dumps(
        {
            "format": 1,
            "fleet": identifier.hex(),
            "number": labels.number,
            "issued": f"{labels.issued.replace(tzinfo=None).isoformat(timespec='seconds')}Z",
            "labels": packed_entries(labels.entries),
        },
        separators=(",", ":"),
        ensure_ascii=False,
    ).encode()


def pack(text: bytes, signature: bytes, certificate: bytes) -> bytes:
    """Return a document of its text, the signature (R and S), and the signer's certificate."""
    return KIND.line + signature + text + certificate + len(certificate).to_bytes(2, "big")


# -- entries


def _entries(raw: Any) -> Entries:
    """:raises ValueError: they are none, or two devices have one label."""
    if not isinstance(raw, dict) or len(raw) > MOST:
        raise ValueError(f"it names no devices, or more than {MOST}")
    found: Entries = {}
    for device, words in raw.items():
        if not isinstance(words, list) or len(device) != 16:
            raise ValueError("an entry is none")
        found[int(device, 16)] = _entry(words)
    if len(found) != len(raw):
        raise ValueError("a device stands there twice")
    if taken := double(found):
        raise ValueError(f"two devices have the label {taken!r}")
    return found


def _entry(words: list[Any]) -> Entry:
    changed, label, place, note = [*words, "", "", ""][:4] if words else (None,) * 4
    if type(changed) is not int or not 0 <= changed <= MAX_NUMBER:
        raise ValueError("the time of a change is none")
    if isinstance(place, list):
        place = position(*place) if len(place) == 2 else None
    else:
        place = text("place", place)
    if place is None:
        raise ValueError("a place is none")
    return Entry(changed, text("label", label), place, text("note", note))


def text(what: str, raw: Any) -> str:
    """Return a label, a place in words, or a note.

    :param what: which of them.
    :raises ValueError: it is none.
    """
    if not isinstance(raw, str):
        raise ValueError(f"a {what} is no text")
    if len(raw) > LONGEST[what]:
        raise ValueError(f"a {what} has at most {LONGEST[what]} characters, not {len(raw)}")
    if not raw.isprintable() or raw != raw.strip():
        raise ValueError(f"the {what} {raw!r} has characters that do not print, or blanks around")
    return raw


def position(latitude: Any, longitude: Any) -> tuple[float, float] | None:
    """Return a place on the earth in degrees; None where these are no such numbers."""
    for value, most in ((latitude, 90), (longitude, 180)):
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        if not (isfinite(value) and -most <= value <= most):
            return None
    return float(latitude), float(longitude)


def key(label: str) -> str:
    """Return what is the same for labels that a person takes for the same."""
    return label.casefold()


def double(entries: Mapping[int, Entry]) -> str:
    """Return a label that two devices have; empty if there is none."""
    seen = set()
    for entry in entries.values():
        if entry.label and key(entry.label) in seen:
            return entry.label
        seen.add(key(entry.label))
    return ""


def merged(documents: Iterable[Mapping[int, Entry]]) -> Entries:
    """Return what was said last about each device, in whatever order the documents are."""
    found: Entries = {}
    for entries in documents:
        for device, entry in entries.items():
            if device not in found or _rank(entry) > _rank(found[device]):
                found[device] = entry
    return found


def _rank(entry: Entry) -> tuple[int, str]:
    return entry.changed, repr(entry)


def device_of(address: IPv6Address) -> int:
    """Return the number by which a document names the device with this address."""
    return int(address) & (1 << 64) - 1
