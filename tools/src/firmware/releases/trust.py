# SPDX-License-Identifier: Apache-2.0
"""Whose signature a release must have: that of the fleet whose root certificate is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from authority.errors import AuthorityError
from authority.words import authority_in, chosen_folder
from firmware.releases.errors import ReleaseError
from thicket.trust import certificates as x509
from thicket.trust.certificates import CertificateError
from thicket.trust.fleet import Fleet

NONE = "none"
"""What a person says instead of a file to have checksums compared alone."""

_MOST_PEM = 64 * 1024


class Trust(NamedTuple):
    """Who is trusted.

    :ivar fleet: whose signers; None: checksums are compared alone.
    :ivar revoked: names that are revoked in it.
    :ivar how: where that was found, or why there is none, in words.
    """

    fleet: Fleet | None
    revoked: frozenset[str]
    how: str


def trusted(root: str | None) -> Trust:
    """Return who is trusted.

    :param root: the root certificate of a fleet (PEM), ``NONE``, or None for the fleet in the
        authority's folder, if there is one.
    :raises ReleaseError: the certificate cannot be used.
    """
    if root == NONE:
        return Trust(None, frozenset(), "as was asked for")
    if root is not None:
        return Trust(
            _fleet(Path(root)), frozenset(), "revocations were not looked at: they are not in it"
        )
    folder = chosen_folder()
    if not (folder / "fleet.json").exists():
        return Trust(None, frozenset(), f"no fleet's root certificate is in {folder}")
    own = authority_in(folder)
    try:
        revoked = own.revocations.names
        return Trust(own.fleet, revoked, f"not among the {len(revoked)} names revoked in {folder}")
    except AuthorityError as error:
        raise ReleaseError(str(error)) from None


def _fleet(path: Path) -> Fleet:
    try:
        with path.open("rb") as file:
            found = x509.from_pem(file.read(_MOST_PEM).decode("ascii", "replace"))
        if not found:
            raise CertificateError("it has no certificate in PEM")
        return Fleet(found[0])
    except OSError as error:
        raise ReleaseError(f"the root certificate {path}: {error.strerror}") from None
    except CertificateError as error:
        raise ReleaseError(
            f"the root certificate {path} cannot be used: {error}. `thicket ca root` prints it; "
            "ROOT=none compares checksums alone"
        ) from None
