# SPDX-License-Identifier: Apache-2.0
"""By whose root the desk verifies what an update signer has signed, and who is revoked there."""

from __future__ import annotations

from pathlib import Path

from authority.authority import Authority
from authority.errors import AuthorityError
from thicket.trust import certificates as x509
from thicket.trust.certificates import CertificateError
from thicket.trust.fleet import Fleet
from thicket.trust.revocations import MAX_FILE, SignedList, all_names, split
from thicket.trust.verify import RefusedError

_MOST_PEM = 64 * 1024


def trusted(
    authority: Authority, root: Path | None, lists: Path | None
) -> tuple[Fleet, frozenset[str], str]:
    """Return the fleet, the names that are revoked in it, and in words how that is known."""
    if root is None:
        revoked = authority.revocations.names
        return authority.fleet, revoked, f"not among the {len(revoked)} names that are revoked"
    found = x509.from_pem(_read(root, _MOST_PEM).decode("ascii", "replace"))
    if not found:
        raise AuthorityError(f"{root} has no certificate in PEM; `thicket ca root` prints the root")
    try:
        fleet = Fleet(found[0])
    except CertificateError as error:
        raise AuthorityError(f"{root}: {error}; `thicket ca root` prints the root") from None
    if lists is None:
        return fleet, frozenset(), "REVOCATIONS WERE NOT LOOKED AT (--revocations FILE)"
    try:
        revoked = all_names(SignedList.read(one, fleet) for one in split(_read(lists, MAX_FILE)))
    except RefusedError:
        raise AuthorityError(
            f"{lists} is no list of revocations of fleet {fleet.name!r}: "
            "`thicket revocations export` on one of its nodes writes one"
        ) from None
    return fleet, revoked, f"not among the {len(revoked)} names that are revoked"


def _read(path: Path, most: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise AuthorityError(f"{path} is larger than any that is read ({most} bytes)")
    return data
