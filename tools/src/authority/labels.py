# SPDX-License-Identifier: Apache-2.0
"""What people call the fleet's devices: entries of ``fleet.json``, and ``labels.bin`` for nodes.

Changing them needs no key. A document is signed when it is published, by a signer of devices:
whoever may enrol a device may name it, and the root's key stays where it is safe. A device that is
revoked has no label any more.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from authority import files
from authority.errors import AuthorityError
from authority.folder import Folder
from thicket.trust.labels import (
    KIND,
    MAX_LABELS,
    MAX_NUMBER,
    MOST,
    Entries,
    Entry,
    Labels,
    Place,
    SignedLabels,
    device_of,
    double,
    key,
    merged,
    pack,
    position,
    signed_contents,
    text,
)
from thicket.trust.verify import RefusedError

if TYPE_CHECKING:
    from authority.issuer import FleetIssuer

FILE: Final = "labels.bin"
COLUMNS: Final = ("device", "label", "place", "note")
"""Of a table in a file; the first is any name of a device that :meth:`FleetLabels.device` knows."""

_POSITION: Final = re.compile(r"([-+]?\d+(?:\.\d+)?)\s*,\s*([-+]?\d+(?:\.\d+)?)")
_HOST: Final = re.compile("n-[0-9a-f]{12}")
_LONGEST_FILE: Final = 1 << 20


class Said(NamedTuple):
    """What is said anew about a device; None where that stays as it is, "" takes it away."""

    label: str | None = None
    place: str | None = None
    note: str | None = None


class FleetLabels:
    """What a fleet's authority calls its devices."""

    def __init__(
        self, folder: Folder, issuer: Callable[[], FleetIssuer], clock: Callable[[], datetime]
    ) -> None:
        """Keep them in ``folder``; ``issuer`` opens a signer, ``clock`` gives the time in UTC."""
        self._folder = folder
        self._issuer = issuer
        self._clock = clock

    def entries(self) -> Entries:
        """Return what is said about devices."""
        return _kept(self._folder.document())

    def change(self, said: Iterable[tuple[str, Said]]) -> list[str]:
        """Say something about devices: all of it, or nothing; return the devices that it changes.

        :param said: any name of a device, and what is said about it.
        :raises AuthorityError: there is no such device, a text will not do, or two devices would
            have the same label.
        """
        with self._folder.changing() as document:
            entries, changed = _kept(document), []
            for name, words in said:
                device = _device(document, entries, name)
                before = entries.get(device, Entry(0))
                now = max(int(self._clock().timestamp()), before.changed + 1)
                after = _told(before, words)
                if after != before:
                    entries[device] = after._replace(changed=now)
                    changed.append(_name_of(document, device))
            entries = _without_revoked(document, entries)
            _check(document, entries)
            _keep(document, entries)
        return changed

    def table(self) -> str:
        """Return all devices and what is said about them, as comma-separated values."""
        document = self._folder.document()
        entries = _kept(document)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, device in document["devices"].items():
            if not device.get("revoked"):
                entry = entries.get(device_of(IPv6Address(device["address"])), Entry(0))
                writer.writerow((name, entry.label, place_text(entry.place), entry.note))
        return out.getvalue()

    def merge(self, theirs: Iterable[bytes]) -> tuple[int, bytes | None]:
        """Take up what other copies of this authority say, and return the document for all nodes.

        A signer's key is needed only where no document says all that is said.

        :param theirs: the documents of nodes; empty ones count for nothing.
        :returns: how many devices another copy has spoken of last, and the document, None where
            nobody has ever said anything.
        :raises AuthorityError: two devices have the same label then, or no key is here.
        """
        fleet = self._folder.fleet
        with self._folder.changing() as document:
            found = [one for packed in theirs if (one := self._read(document, fleet, packed))]
            present = self._present(document, fleet)
            if present is not None:
                found.append(present)
            before = _kept(document)
            entries = merged((before, *(one.labels.entries for one in found)))
            taken = sum(entry != before.get(device) for device, entry in entries.items())
            entries = _without_revoked(document, entries)
            _check(document, entries)
            _keep(document, entries)
            if not entries:
                return 0, None
            newest = max(found, key=lambda one: one.order, default=None)
            if newest is None or newest.labels.entries != entries:
                newest = self._sign(entries, newest.labels.number if newest is not None else 0)
            if newest is not present:
                self._folder.write(FILE, newest.packed)
            return taken, newest.packed

    def _read(self, document: dict[str, Any], fleet: Any, packed: bytes) -> SignedLabels | None:
        """Return a document; None for one that nodes do not take either."""
        try:
            found = SignedLabels.read(packed, fleet)
        except RefusedError:
            return None
        revoked = {one["name"] for one in document["signers"].values() if one.get("revoked")}
        return None if found.signer in revoked | set(document.get("revoked", {})) else found

    def _present(self, document: dict[str, Any], fleet: Any) -> SignedLabels | None:
        if not (self._folder.path / FILE).exists():
            return None
        return self._read(document, fleet, self._folder.read(FILE, "the signed labels"))

    def _sign(self, entries: Entries, above: int) -> SignedLabels:
        if above >= MAX_NUMBER:
            raise AuthorityError(
                "the labels of the nodes have the highest number there is, so that no others can "
                "replace them: revoke the signer that has signed them"
            )
        fleet, issuer = self._folder.fleet, self._issuer()
        issued = self._clock().astimezone(UTC).replace(microsecond=0)
        contents = signed_contents(Labels(above + 1, issued, entries), fleet.identifier)
        signature = issuer.key.sign(sha256(KIND.line + contents).digest())
        packed = pack(contents, signature, issuer.certificate)
        if len(packed) > MAX_LABELS:
            raise AuthorityError(
                f"the labels have {len(packed)} bytes, and a node takes up to {MAX_LABELS}: make "
                "notes and places shorter"
            )
        try:
            return SignedLabels.read(packed, fleet)
        except RefusedError as error:  # such as a clock that is wrong
            raise AuthorityError(f"no node would take these labels: {error}") from None


def place_text(place: Place) -> str:
    """Return a place as a person writes it."""
    return place if isinstance(place, str) else f"{place[0]:.6f}, {place[1]:.6f}"


def read_table(path: Path) -> list[tuple[str, Said]]:
    """Return what a table says; columns that it lacks stay as they are.

    :raises AuthorityError: it is no such table.
    """
    with files.reading(path) as file:
        data = file.read(_LONGEST_FILE + 1)
        if len(data) > _LONGEST_FILE:
            raise AuthorityError(f"it is longer than {_LONGEST_FILE} bytes")
        try:
            rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
            heads = [head.strip().lower() for head in rows.fieldnames or ()]
            if "device" not in heads or not set(heads) <= set(COLUMNS) or len(heads) < 2:
                raise AuthorityError(
                    f"its first line names the columns: device, and some of {COLUMNS[1:]}".replace(
                        "'", ""
                    )
                )
            rows.fieldnames = heads
            found = []
            for row in rows:
                if None in row or None in row.values():
                    raise AuthorityError(f"line {rows.line_num} has not the columns of the first")
                found.append((row.pop("device"), Said(**row)))
            return found
        except (UnicodeDecodeError, csv.Error) as error:
            raise AuthorityError(f"no comma-separated values in UTF-8: {error}") from None


def _kept(document: Mapping[str, Any]) -> Entries:
    """Return the entries of ``fleet.json``."""
    found: Entries = {}
    try:
        for device, kept in document.get("labels", {}).items():
            place = kept.get("place", "")
            words = position(*place) if isinstance(place, list) else place
            found[int(device, 16)] = Entry(
                int(kept["changed"]),
                text("label", kept.get("label", "")),
                text("place", words) if words is None or isinstance(words, str) else words,
                text("note", kept.get("note", "")),
            )
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        raise AuthorityError(
            f"the labels in fleet.json are damaged ({error}): take them from your copy of this "
            "folder"
        ) from None
    return found


def _keep(document: dict[str, Any], entries: Entries) -> None:
    if entries:
        document["labels"] = {
            f"{device:016x}": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in entry._asdict().items()
                if value
            }
            for device, entry in sorted(entries.items())
        }


def _without_revoked(document: Mapping[str, Any], entries: Entries) -> Entries:
    """Return entries in which nothing is said about devices that are revoked."""
    gone = {
        device_of(IPv6Address(device["address"]))
        for device in document["devices"].values()
        if device.get("revoked")
    }
    return {
        device: Entry(entry.changed + 1) if device in gone and not entry.empty else entry
        for device, entry in entries.items()
    }


def _told(before: Entry, said: Said) -> Entry:
    """Return an entry with what is said anew."""
    after = before
    try:
        if said.label is not None:
            after = after._replace(label=_label(_clean(said.label)))
        if said.note is not None:
            after = after._replace(note=text("note", _clean(said.note)))
        if said.place is not None:
            after = after._replace(place=_place(_clean(said.place)))
    except ValueError as error:
        raise AuthorityError(str(error)) from None
    return after


def _clean(raw: str) -> str:
    """Return a text in one form of several that look alike (Unicode, Annex 15)."""
    return unicodedata.normalize("NFC", raw.strip())


def _label(raw: str) -> str:
    """:raises ValueError: it could be taken for another name of a node, or will not do."""
    folded = key(raw)
    try:
        ip_address(raw)
    except ValueError:
        if not _HOST.fullmatch(folded) and "@" not in raw:
            return text("label", raw)
    raise ValueError(f"the label {raw!r} would be taken for the name or address of a node")


def _place(raw: str) -> Place:
    if (numbers := _POSITION.fullmatch(raw)) is None:
        return text("place", raw)
    found = position(*(round(float(number), 6) for number in numbers.groups()))
    if found is None:
        raise ValueError(f"{raw} is no place on the earth: latitude and longitude in degrees")
    return found


def _check(document: dict[str, Any], entries: Entries) -> None:
    """:raises AuthorityError: there are too many, or two devices have the same label."""
    if label := double(entries):
        same = [d for d, entry in entries.items() if key(entry.label) == key(label)]
        names = " and ".join(_name_of(document, device) for device in same)
        raise AuthorityError(f"{names} would both have the label {label!r}: choose another for one")
    if len(entries) > MOST:
        raise AuthorityError(f"at most {MOST} devices have labels")


def _name_of(document: dict[str, Any], device: int) -> str:
    """Return the name of a device, or its digits where another copy has enrolled it."""
    for name, known in document["devices"].items():
        if device_of(IPv6Address(known["address"])) == device:
            return str(name)
    return f"n-{device & (1 << 48) - 1:012x}"


def _device(document: dict[str, Any], entries: Entries, name: str) -> int:
    """Return the device that a person means: by its name, address, host name or label, or by the
    last digits of its host name.

    :raises AuthorityError: there is none, or more than one.
    """
    devices = {
        str(known): device_of(IPv6Address(device["address"]))
        for known, device in document["devices"].items()
    }
    every = {*devices.values(), *entries}
    found = {devices[name]} if name in devices else set()
    try:
        found = found or {device_of(IPv6Address(name))} & every
    except ValueError:
        folded = key(_clean(name))
        digits = folded.removeprefix("n-")
        if not found and digits:
            found = {d for d in every if f"{d & (1 << 48) - 1:012x}".endswith(digits)}
            if not _HOST.fullmatch(folded):
                found |= {d for d, entry in entries.items() if key(entry.label) == folded}
    if len(found) == 1:
        return found.pop()
    if found:
        names = " or ".join(sorted(_name_of(document, device) for device in found))
        raise AuthorityError(f"{name} may be {names}")
    raise AuthorityError(f"{name!r} is no device of this fleet; `thicket ca list` names them")
