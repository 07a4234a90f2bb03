# SPDX-License-Identifier: Apache-2.0
"""The file of an application: what it needs to run on a node, and whose it is.

    contents      squashfs with one folder, ``site``: packages, as on ``sys.path``
    end           a message (``trust.cms``) by an update signer
    size          of the end, 8 bytes, the highest first

What is signed is a first line, which nothing else has that such a signer signs, and a JSON object.
One form is written and no other is read: a text is taken if writing anew what was understood gives
the same bytes. It names the hash of the contents, so that one signature is for the whole file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from hashlib import sha256
from typing import BinaryIO, NamedTuple

from thicket.base.errors import CodedError
from thicket.base.headway import Tally, Tell
from thicket.trust import cms, kinds, signed_file
from thicket.trust.cms import CmsError, Message
from thicket.trust.fleet import Fleet
from thicket.trust.signed_file import EndError
from thicket.trust.update_signer import check_signature
from thicket.trust.verify import Verify, verify_signature

ENDING = ".app"
SITE = "site"
"""The folder in the contents that goes onto ``sys.path``."""

MAX_BYTES = 64 << 20
"""Bytes of the largest file that is read."""
MAX_NUMBER = (1 << 32) - 1
MAX_APPLICATIONS = 8
MAX_MODULES = 256
ANY = "any"
ARCHITECTURES = (ANY, "aarch64", "x86_64")

_PIECE = 1 << 20
_FLEET_BYTES = 20
_DIGEST_BYTES = 32
_AGAIN = "copy it again, and if it is the same then, get it anew from where it was built"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")
_VERSION = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z.+!-]{0,38}[0-9A-Za-z])?")
_IMAGE = re.compile(r"(?:0|[1-9][0-9]{0,4})(?:\.(?:0|[1-9][0-9]{0,4})){0,3}")
_PYTHON = re.compile(r"3\.(?:0|[1-9][0-9]{0,2})")
_POINT = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,38}[A-Za-z0-9_])?")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class AppError(CodedError):
    """An application's file is not taken, or something cannot be done with it.

    The text says why, and what to do.
    """


class About(NamedTuple):
    """What the file of an application says of itself.

    :ivar name: the project's; a node has one version of each name in force.
    :ivar number: when it was built, in Unix seconds; the larger number is the newer one.
    :ivar fleet: identifier of the fleet that it is for.
    :ivar least: the oldest version of the image that it runs on.
    :ivar below: it runs on no image from this version on; empty for no end.
    :ivar python: version of Python that it is for: ``3.13``.
    :ivar architecture: one of ``ARCHITECTURES``.
    :ivar applications: names of the applications in it, sorted.
    :ivar modules: names of the modules at the top that it brings, sorted.
    :ivar size: bytes of the contents.
    :ivar sha256: of the contents (32 bytes).
    """

    name: str
    version: str
    number: int
    fleet: bytes
    least: str
    below: str
    python: str
    architecture: str
    applications: tuple[str, ...]
    modules: tuple[str, ...]
    size: int
    sha256: bytes

    @property
    def identifier(self) -> bytes:
        """What stands for this file (32 bytes), whoever has signed it."""
        return sha256(self.text()).digest()

    def text(self) -> bytes:
        """Return what is signed."""
        import json

        members = {
            "applications": list(self.applications),
            "architecture": self.architecture,
            "fleet": self.fleet.hex(),
            "image": {"below": self.below or None, "least": self.least},
            "modules": list(self.modules),
            "name": self.name,
            "number": self.number,
            "python": self.python,
            "sha256": self.sha256.hex(),
            "size": self.size,
            "version": self.version,
        }
        return kinds.APPLICATION + json.dumps(
            members, sort_keys=True, separators=(",", ":")
        ).encode("ascii")


class AppFile(NamedTuple):
    """A file that was read; nobody has checked its signature or its contents."""

    about: About
    message: Message


def read(file: BinaryIO) -> AppFile:
    """Read the end of an application's file.

    :param file: a seekable file.
    :raises AppError: it is none.
    """
    whole = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(kinds.SQUASHFS)) != kinds.SQUASHFS:
        raise _no_application(file)
    if whole > MAX_BYTES:
        raise _bad(
            f"{whole} bytes, and at most {MAX_BYTES} are read: leave out what it can do without"
        )
    try:
        size, end = signed_file.read(file, cms.MAX_SIZE)
        message = cms.read(end)
    except (EndError, CmsError):
        raise _no_application(file) from None
    if not message.content.startswith(kinds.APPLICATION):
        raise _no_application(file)
    about = parse(message.content)
    if about.size != size:
        raise _bad(
            f"it has {size} bytes in front of its end, and {about.size} were signed; {_AGAIN}"
        )
    return AppFile(about, message)


def _no_application(file: BinaryIO) -> AppError:
    found = kinds.kind(file)
    if found == kinds.CUT_OFF:
        return _bad(f"this is {found}; {_AGAIN}")
    return _bad(
        f"this is {found}, and the file of an application is needed; `thicket app build` "
        "makes NAME-VERSION.app"
    )


def check_signer(
    found: AppFile,
    fleet: Fleet,
    *,
    revoked: Collection[str] = (),
    verify: Verify = verify_signature,
) -> str:
    """Return who has signed a file, if that counts in a fleet.

    :param revoked: names of devices and signers, as ``Revocations.names`` has them.
    :raises AppError: it is for another fleet.
    :raises SignerRefusedError: the signature does not count.
    """
    name = check_signature(found.message, fleet, revoked=revoked, verify=verify)
    if found.about.fleet != fleet.identifier:
        raise AppError(
            "other-fleet", f"it is for another fleet than {fleet.name!r}: build it for it"
        )
    return name


def check_contents(file: BinaryIO, about: About, tell: Tell = lambda _done, _total: None) -> None:
    """Compare every byte of the contents with the signed hash.

    :param tell: called for every percent.
    :raises AppError: they differ.
    """
    made, left, work = sha256(), about.size, Tally(about.size, tell)
    file.seek(0)
    while left and (data := file.read(min(_PIECE, left))):
        made.update(data)
        left -= len(data)
        work.add(len(data))
    if made.digest() != about.sha256:
        raise AppError("damaged", f"the contents are not those that were signed; {_AGAIN}")


def parse(content: bytes) -> About:
    """Read what is signed.

    :raises AppError: it is not in the form that :meth:`About.text` writes, or out of bounds.
    """
    import json

    if not content.startswith(kinds.APPLICATION):
        raise _bad("what is signed at its end is no application")
    try:
        about = _about(json.loads(content[len(kinds.APPLICATION) :]))
        same = about.text() == content
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise _bad(f"what it says of itself: {error}; {_AGAIN}") from None
    if not same:
        raise _bad("what it says of itself is not in the form that Thicket writes")
    return about


def version_key(version: str) -> tuple[int, ...]:
    """Return what orders versions of images: the numbers that it begins with.

    Zeros at the end say nothing, and neither does what is not a number: ``0.2.dev3`` is ``0.2``.
    """
    found = _IMAGE.match(version)
    numbers = [int(part) for part in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _bad(words: str) -> AppError:
    return AppError("bad-file", words)


def _about(members: object) -> About:
    if not isinstance(members, dict):
        raise TypeError("no object")
    image = members["image"]
    if not isinstance(image, dict):
        raise TypeError("no image")
    below = image["below"]
    if members["architecture"] not in ARCHITECTURES:
        raise ValueError("an architecture that is not known")
    about = About(
        _word(members, "name", _NAME),
        _word(members, "version", _VERSION),
        _count(members, "number", MAX_NUMBER),
        _digits(members, "fleet", _FLEET_BYTES),
        _word(image, "least", _IMAGE),
        "" if below is None else _word(image, "below", _IMAGE),
        _word(members, "python", _PYTHON),
        members["architecture"],
        _names(members, "applications", _POINT, MAX_APPLICATIONS),
        _names(members, "modules", _MODULE, MAX_MODULES),
        _count(members, "size", MAX_BYTES),
        _digits(members, "sha256", _DIGEST_BYTES),
    )
    if about.below and version_key(about.below) <= version_key(about.least):
        raise ValueError("it runs on no image")
    return about


def _matched(value: object, pattern: re.Pattern[str], what: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what} is not one")
    return value


def _word(members: dict[str, object], key: str, pattern: re.Pattern[str]) -> str:
    return _matched(members[key], pattern, key)


def _count(members: dict[str, object], key: str, most: int) -> int:
    value = members[key]
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"{key} is out of bounds")
    return value


def _digits(members: dict[str, object], key: str, size: int) -> bytes:
    value = members[key]
    if not isinstance(value, str) or len(value) != 2 * size:
        raise ValueError(f"{key} has not {size} bytes")
    return bytes.fromhex(value)


def _names(
    members: dict[str, object], key: str, pattern: re.Pattern[str], most: int
) -> tuple[str, ...]:
    value = members[key]
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise ValueError(f"{key}: 1 to {most}")
    names = tuple(_matched(name, pattern, key) for name in value)
    if list(names) != sorted(set(names)):
        raise ValueError(f"{key} are not in order")
    return names


def is_name(text: str) -> bool:
    """Return whether this may be the name of an application's file."""
    return _NAME.fullmatch(text) is not None
