# SPDX-License-Identifier: Apache-2.0
"""``SHA256SUMS``: the checksum of every file of a release.

Behind the first line, which says what kind of file this is and so what its signature is good for,
come lines as ``sha256sum`` writes them. ``sha256sum -c`` takes the first one for a remark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from firmware.releases.errors import ReleaseError

FILE = "SHA256SUMS"

FIRST = b"# thicket release 1\n"

MAX_BYTES = 48 * 1024
"""Bytes of the largest file: with its signature it fits into a message (``cms.MAX_SIZE``)."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,127}")
"""Names of files: they name nothing outside of the folder, and mean the same in every URL."""

SHA256 = re.compile(r"[0-9a-f]{64}")


def text(sums: Mapping[str, str]) -> bytes:
    """Return the file that says ``sums``: SHA-256 (hex) by name.

    :raises ReleaseError: with a name or checksum that cannot be read again, or too many of them.
    """
    for name, digest in sums.items():
        if not NAME.fullmatch(name) or not SHA256.fullmatch(digest):
            raise ReleaseError(f"{name!r} with the checksum {digest!r} cannot be in {FILE}")
    made = FIRST + b"".join(f"{sums[name]}  {name}\n".encode() for name in sorted(sums))
    if len(made) > MAX_BYTES:
        raise ReleaseError(f"{len(sums)} files are too many for {FILE}")
    return made


def read(data: bytes) -> dict[str, str]:
    """Read the file; it is taken only if writing anew what it says gives the same bytes.

    :raises ReleaseError: when it is none of a release.
    """
    if len(data) > MAX_BYTES:
        raise ReleaseError(f"{FILE} has {len(data)} bytes: at most {MAX_BYTES} are read")
    if not data.startswith(FIRST):
        raise ReleaseError(
            f"{FILE} is none of a release of Thicket: its first line is not "
            f"{FIRST.decode().strip()!r}"
        )
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("ascii", "replace").splitlines()[1:], start=2):
        digest, _, name = line.partition("  ")
        if not SHA256.fullmatch(digest) or not NAME.fullmatch(name):
            raise ReleaseError(f"{FILE}, line {number}: not a checksum and the name of a file")
        found[name] = digest
    if text(found) != data:
        raise ReleaseError(f"{FILE} is not as it is written: sorted, each file once")
    return found
