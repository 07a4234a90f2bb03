# SPDX-License-Identifier: Apache-2.0
"""What a node remembers of bundles: which one each slot was written with, and which ones failed.

A bundle is named by the SHA-256 of its manifest. The manifest names the hash tree over the
contents, so that two files of one name have the same contents, whoever signed them.

The memory is one small file on ``/data``. Without it nothing is wrong: a slot's content is unknown
then, and a bundle that failed before is tried once more.
"""

from __future__ import annotations

import json
import os
from hashlib import sha256
from logging import getLogger
from typing import Any, NamedTuple

from thicket.base.files import make_folder, read_kept, write_atomically
from thicket.base.paths import Paths
from thicket.device.boot_record import Slot
from thicket.update.manifest import Manifest

log = getLogger(__name__)

NAME = "/update/bundles.json"
#: Bytes of the largest file that is read.
MOST_BYTES = 16 * 1024
#: Rejected bundles that are remembered, the newest ones.
MOST_REJECTED = 16
#: Characters of a reason.
MOST_WORDS = 400


class Content(NamedTuple):
    """What a slot was written with.

    :ivar bundle: the bundle's name, 64 hexadecimal digits.
    :ivar file: SHA-256 of the bundle's file, likewise, where it came as an offer; else empty.
    :ivar root: dm-verity root hash of its root, likewise; empty where the bundle does not name it.
    """

    bundle: str
    version: str
    epoch: int
    file: str = ""
    root: str = ""


class Kept(NamedTuple):
    """What is remembered.

    :ivar slots: the content of slots that were written with a bundle.
    :ivar rejected: why a bundle was left, by its name; the oldest first.
    """

    slots: dict[Slot, Content]
    rejected: dict[str, str]

    def written(self, slot: Slot, content: Content | None) -> Kept:
        """Return the memory after ``slot`` was written, or (None) while it is being written."""
        slots = {one: kept for one, kept in self.slots.items() if one is not slot}
        if content is not None:
            slots[slot] = content
        return self._replace(slots=slots)

    def with_rejected(self, bundle: str, why: str) -> Kept:
        """Return the memory after a bundle was left."""
        rejected = {name: words for name, words in self.rejected.items() if name != bundle}
        rejected[bundle] = why[:MOST_WORDS]
        while len(rejected) > MOST_REJECTED:
            del rejected[next(iter(rejected))]
        return self._replace(rejected=rejected)

    def without_rejected(self, bundle: str) -> Kept:
        """Return the memory after somebody asked for a bundle to be tried again."""
        return self._replace(
            rejected={name: words for name, words in self.rejected.items() if name != bundle}
        )


def name_of(manifest: Manifest) -> str:
    """Return the name of a bundle."""
    return sha256(manifest.text()).hexdigest()


def content_of(manifest: Manifest, file: str = "") -> Content:
    """Return what a slot holds that was written with a bundle.

    :raises BundleError: the manifest names no epoch, or a root hash that is none.
    """
    return Content(name_of(manifest), manifest.version, manifest.epoch, file, manifest.root)


def load(paths: Paths) -> Kept:
    """Return what is remembered; nothing where the file is missing or damaged."""
    try:
        return unpack(read_kept(paths.data + NAME, MOST_BYTES + 1))
    except OSError:
        return Kept({}, {})


def save(paths: Paths, kept: Kept) -> None:
    """Remember; a node whose /data cannot be written goes without."""
    path = paths.data + NAME
    try:
        make_folder(os.path.dirname(path), 0o700)
        write_atomically(path, pack(kept), mode=0o600, own=True)
    except OSError as e:
        log.warning("%s cannot be written: %s", path, e.strerror)


def pack(kept: Kept) -> bytes:
    """Return the file."""
    members = {
        "slots": {slot.name: content._asdict() for slot, content in kept.slots.items()},
        "rejected": kept.rejected,
    }
    return json.dumps(members).encode() + b"\n"


def unpack(data: bytes) -> Kept:
    """Return what a file says; one that is damaged says nothing."""
    if len(data) > MOST_BYTES:
        return Kept({}, {})
    try:
        members = json.loads(data)
        slots = {Slot[name]: _content(one) for name, one in members["slots"].items()}
        rejected = {_text(name): _text(why) for name, why in members["rejected"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Kept({}, {})
    if Slot.NONE in slots or len(rejected) > MOST_REJECTED:
        return Kept({}, {})
    return Kept(slots, rejected)


def _content(members: Any) -> Content:
    epoch = members["epoch"]
    if not isinstance(epoch, int) or epoch < 0:
        raise ValueError("no epoch")
    file, root = _text(members.get("file", "")), _text(members.get("root", ""))
    return Content(_text(members["bundle"]), _text(members["version"]), epoch, file, root)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("no text")
    return value
