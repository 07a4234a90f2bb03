# SPDX-License-Identifier: Apache-2.0
"""``index.json``: what a release is and what its files are.

The members, of which a reader passes over those that it does not know::

    format    1
    version   as of the images and bundles
    epoch     the security epoch
    commit    what was built
    date      the commit's time, UTC, as 2026-11-24T12:00:00Z
    files     a list: name, kind, board, size, sha256; of an image also `unpacked`, its size when
              it is unpacked; of a delta also `from`, the version that it makes the new bundle of,
              unless it makes it of nothing
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from firmware.releases import sums
from firmware.releases.errors import ReleaseError

FILE = "index.json"
FORMAT = 1

IMAGE, MAP, BUNDLE, DELTA = "image", "block-map", "bundle", "delta"
SBOM, LICENCES, PAGE = "sbom", "licences", "page"
"""Kinds of files. A reader passes over those that it does not know."""

MAX_BYTES = 256 * 1024
MAX_FILES = 256
MAX_SIZE = 1 << 36
"""Bytes of the largest file, packed or unpacked: 64 GiB, more than a card image ever has."""

_WORD = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~_-]{0,63}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


class File(NamedTuple):
    """A file of a release.

    :ivar kind: ``IMAGE``, ``MAP`` ...
    :ivar board: which board it is for; empty for all.
    :ivar size: in bytes.
    :ivar unpacked: of a packed image, its bytes when it is unpacked; else 0.
    :ivar since: of a delta, the version that it makes the new bundle of; empty: of nothing.
    """

    name: str
    kind: str
    board: str
    size: int
    sha256: str
    unpacked: int = 0
    since: str = ""


class Index(NamedTuple):
    """What a release says of itself.

    :ivar files: all but ``index.json`` itself, ``SHA256SUMS`` and its signature, sorted by name.
    """

    version: str
    epoch: int
    commit: str
    date: str
    files: tuple[File, ...]

    @property
    def boards(self) -> list[str]:
        """The boards that there is a card image of."""
        return sorted({file.board for file in self.files if file.kind == IMAGE})

    def of(self, kind: str, board: str) -> list[File]:
        """Return the files of a kind for a board."""
        return [file for file in self.files if (file.kind, file.board) == (kind, board)]

    def text(self) -> bytes:
        """Return the file that says this. The same index gives the same bytes."""
        document = {
            "format": FORMAT,
            "version": self.version,
            "epoch": self.epoch,
            "commit": self.commit,
            "date": self.date,
            "files": [_members(file) for file in sorted(self.files)],
        }
        return (json.dumps(document, indent=1) + "\n").encode()


def _members(file: File) -> dict[str, str | int]:
    members: dict[str, str | int] = {
        "name": file.name,
        "kind": file.kind,
        "board": file.board,
        "size": file.size,
        "sha256": file.sha256,
    }
    if file.unpacked:
        members["unpacked"] = file.unpacked
    if file.since:
        members["from"] = file.since
    return members


def read(data: bytes) -> Index:
    """Read an index.

    :raises ReleaseError: when it is none, or one of a later format.
    """
    if len(data) > MAX_BYTES:
        raise ReleaseError(f"{FILE} has {len(data)} bytes: at most {MAX_BYTES} are read")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ReleaseError(f"{FILE} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ReleaseError(f"{FILE} is not an object")
    number = _number(document, "format", 1 << 31)
    if number != FORMAT:
        raise ReleaseError(
            f"{FILE} is of format {number}, and this program reads format {FORMAT}: take a newer "
            "checkout of Thicket"
        )
    listed = document.get("files")
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_FILES:
        raise ReleaseError(f"{FILE}: `files` is no list of 1 to {MAX_FILES} files")
    files = tuple(sorted(_file(one) for one in listed))
    names = [file.name for file in files]
    if len(set(names)) != len(names):
        raise ReleaseError(f"{FILE} names a file twice")
    return Index(
        _text(document, "version", _VERSION),
        _number(document, "epoch", 1 << 31),
        _text(document, "commit", _VERSION),
        _text(document, "date", _DATE),
        files,
    )


def _file(members: object) -> File:
    if not isinstance(members, dict):
        raise ReleaseError(f"{FILE}: an entry of `files` is no object")
    return File(
        _text(members, "name", sums.NAME),
        _text(members, "kind", _WORD),
        _text(members, "board", _WORD) if members.get("board") != "" else "",
        _number(members, "size", MAX_SIZE),
        _text(members, "sha256", sums.SHA256),
        _number(members, "unpacked", MAX_SIZE) if "unpacked" in members else 0,
        _text(members, "from", _VERSION) if "from" in members else "",
    )


def _text(members: dict[str, object], name: str, pattern: re.Pattern[str]) -> str:
    value = members.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ReleaseError(f"{FILE}: `{name}` is {str(value)[:80]!r}, which it cannot be")
    return value


def _number(members: dict[str, object], name: str, most: int) -> int:
    value = members.get(name)
    if type(value) is not int or not 0 <= value <= most:
        raise ReleaseError(f"{FILE}: `{name}` is {str(value)[:80]!r}, which it cannot be")
    return value
