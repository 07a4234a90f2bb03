# SPDX-License-Identifier: Apache-2.0
"""What kind of file somebody has given, to tell it where another kind is needed.

Nothing is verified: a file is known by how it begins, and a signed one by the first line of what is
signed.
"""

from __future__ import annotations

import os
from typing import BinaryIO

APPLICATION = b"thicket application 1\n"
OFFER = b"thicket update offer 1\n"
ORDER = b"thicket update order 1\n"
PATCH = b"thicket patch 1\n"
MANIFEST = b"[update]"
SQUASHFS = b"hsqs"
DER = b"\x30"

A_PATCH = "a patch"
LISTS = "a list of revocations"
CHANGE = "a change of the passphrase"
LABELS = "a list of labels"
AN_APPLICATION = "the file of an application"
CUT_OFF = (
    "a squashfs without what follows in bundles and applications, one that is cut off, or with "
    "something behind its end"
)

_BEGINNINGS = (
    (PATCH, A_PATCH),
    (b"thicket offer 1\n", "what `thicket update send` sends"),
    (b"thicket revocations", LISTS),
    (b"thicket lists of revocations", LISTS),
    (b"thicket passphrase", CHANGE),
    (b"thicket time", "a signed time"),
    (b"thicket labels", LABELS),
    (b"-----BEGIN CERTIFICATE", "a certificate"),
    (b"-----BEGIN", "a key"),
    (b"ssh-", "an SSH key"),
    (b"PK\x03\x04", "a ZIP archive or a wheel"),
    (b"\x1f\x8b", "a compressed file (gzip)"),
    (b"\xfd7zXZ", "a compressed file (xz)"),
    (b"\x28\xb5\x2f\xfd", "a compressed file (zstd)"),
)
_SIGNED = (
    (APPLICATION, AN_APPLICATION),
    (OFFER, "an offer (`thicket update offer`, `send`)"),
    (ORDER, "an order (`thicket update order`)"),
    (MANIFEST, "a signed bundle"),
)
_HEAD = 64


def kind(file: BinaryIO) -> str:
    """Return what a seekable file is, as in "this is ..."."""
    from thicket.trust import cms, signed_file
    from thicket.trust.cms import CmsError
    from thicket.trust.signed_file import EndError

    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_HEAD)
    if not head:
        return "an empty file"
    for beginning, words in _BEGINNINGS:
        if head.startswith(beginning):
            return words
    end = b""
    if head.startswith(SQUASHFS):
        try:
            _, end = signed_file.read(file, cms.MAX_SIZE)
        except EndError:
            return CUT_OFF
        if end.startswith(MANIFEST):
            return "a bundle that is not signed (`thicket update sign`)"
        if not end.startswith(DER):
            return CUT_OFF
    elif head.startswith(DER) and size <= cms.MAX_SIZE:
        file.seek(0)
        end = file.read()
    if end.startswith(DER):
        try:
            content = cms.read(end).content
        except CmsError:
            return "a damaged file"
        return next((words for line, words in _SIGNED if content.startswith(line)), "a message")
    if head.lstrip()[:1] == b"{" or not set(head) - set(range(0x20, 0x7F)) - set(b"\r\n\t"):
        return "a text"
    return "something else"
