# SPDX-License-Identifier: Apache-2.0
"""``SHA256SUMS.cms``: the signature of a release, by a signer of updates.

It is a CMS message with ``SHA256SUMS`` in it, byte for byte, so that one line of ``openssl cms``
checks it as well (docs/releases.md). The first line of ``SHA256SUMS`` keeps it apart from whatever
else the same key signs: a bundle's manifest, an offer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple

from firmware.releases import sums
from firmware.releases.errors import ReleaseError
from thicket.trust import cms
from thicket.trust.cms import CmsError, Message
from thicket.trust.fleet import Fleet
from thicket.trust.update_signer import SignerRefusedError, check_signature

FILE = f"{sums.FILE}.cms"


class Signed(NamedTuple):
    """Who signed a release.

    :ivar signer: the common name of the certificate.
    :ivar when: the time of signing, as the signer says.
    :ivar fingerprint: SHA-256 of the certificate, as ``openssl x509 -fingerprint`` writes it.
    """

    signer: str
    when: datetime
    fingerprint: str


def sign(listed: bytes, certificate: bytes, when: datetime, key: Callable[[bytes], bytes]) -> bytes:
    """Return the signature of a ``SHA256SUMS``.

    :param listed: the file.
    :param certificate: the signer's (DER).
    :param when: the time of signing.
    :param key: signs: returns R and S for a SHA-256 digest.
    :raises CmsError: the message would be too large.
    """
    return cms.sign(listed, certificate, when, key)


def claimed(packed: bytes, listed: bytes) -> Signed:
    """Return who says that he signed a ``SHA256SUMS``; nothing is verified.

    :raises ReleaseError: it is no signature of that file.
    """
    return _signed(_read(packed, listed))


def check(packed: bytes, listed: bytes, fleet: Fleet, revoked: Collection[str] = ()) -> Signed:
    """Return who signed a ``SHA256SUMS``.

    :param fleet: whose signer it must be.
    :param revoked: names that are revoked in that fleet.
    :raises ReleaseError: it is not signed by such a signer; the text says why.
    """
    message = _read(packed, listed)
    try:
        check_signature(message, fleet, revoked=revoked)
    except SignerRefusedError as error:
        raise ReleaseError(f"the release's signature is not taken: {error}") from None
    return _signed(message)


def _read(packed: bytes, listed: bytes) -> Message:
    try:
        message = cms.read(packed)
    except CmsError as error:
        raise ReleaseError(f"{FILE} cannot be used: {error}") from None
    if message.content != listed:
        raise ReleaseError(
            f"{FILE} does not belong to {sums.FILE}: one of them was changed, or is of another "
            "release"
        )
    return message


def _signed(message: Message) -> Signed:
    certificate = message.certificate
    digest = sha256(certificate.der).hexdigest().upper()
    pairs = ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))
    return Signed(certificate.common_name, message.signed_at, pairs)
