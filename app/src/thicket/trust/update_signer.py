# SPDX-License-Identifier: Apache-2.0
"""Who may sign updates: certificates that the fleet's root gives for that and nothing else.

An update's signer is no authority and no member: its certificate is for code signing only
(RFC 5280, 4.2.1.12), so that no node takes it for a peer. Nodes, devices and their signers have no
such purpose, so that none of them can sign an update.

Whether the certificate had expired is judged by the time of signing: a bundle that was good stays
good, and a node without a clock can tell. Whoever has stolen a key can claim any time, so what ends
a signer is its revocation.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from hashlib import sha256

from thicket.base.errors import ThicketError
from thicket.trust import certificates as x509
from thicket.trust.certificates import Certificate, Profile
from thicket.trust.cms import Message
from thicket.trust.compressed import serial_number
from thicket.trust.fleet import Fleet
from thicket.trust.verify import Verify, verify_signature

NOT_A_SIGNER = "not-a-signer"
OTHER_FLEET = "other-fleet"
FORGED = "forged"
CHANGED = "changed"
EXPIRED = "expired"
REVOKED = "revoked"

REASONS = {
    NOT_A_SIGNER: "the certificate it is signed with is not for updates",
    OTHER_FLEET: "it is signed for another fleet",
    FORGED: "the signature is wrong",
    CHANGED: "what it says was changed after it was signed",
    EXPIRED: "the signer's certificate was not valid when it was signed",
    REVOKED: "its signer is revoked",
}
"""Every reason for not taking a signature, in words."""

ADVICE = {
    NOT_A_SIGNER: "have it signed with a key that `thicket ca update-signer` made",
    OTHER_FLEET: "take one that was signed for this fleet, or have a signer of this fleet sign it",
    FORGED: "do not install it; get it anew from where it was built, or sign it again",
    CHANGED: "do not install it; get it anew from where it was built, or sign it again",
    EXPIRED: "sign it again with a newer signer (`thicket ca update-signer`), and look at the "
    "clock of the machine that signs",
    REVOKED: "have another signer sign it, if what is in it is to be trusted",
}
"""What a person can do about each."""

_PREFIX = "Update signer "


class SignerRefusedError(ThicketError):
    """The signature of an update is not taken.

    :ivar reason: a key of ``REASONS``.
    :ivar detail: what was found.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{REASONS[reason]} ({detail}): {ADVICE[reason]}")
        self.code = self.reason = reason
        self.detail = detail


def signer_name(name: str) -> str:
    """Return the common name of an update signer's certificate: what can be revoked.

    It holds blanks, so that nobody takes it for a host name, which the root's name constraints
    would refuse.
    """
    return _PREFIX + name


def signer_profile(
    fleet: Fleet, name: str, public_key: bytes, validity: tuple[datetime, datetime]
) -> Profile:
    """Return what the certificate of an update signer says."""
    return Profile(
        serial_number(public_key, name.encode()),
        fleet.root.subject,
        x509.common_name(signer_name(name)),
        *validity,
        public_key,
        (
            x509.basic_constraints(False, critical=True),
            x509.key_usage(x509.DIGITAL_SIGNATURE),
            x509.extended_key_usage(x509.CODE_SIGNING),
            x509.subject_key(x509.key_identifier(public_key)),
            x509.authority_key(fleet.identifier),
        ),
    )


def is_signer(certificate: Certificate) -> bool:
    """Return whether a certificate is an update signer's, of whatever fleet."""
    return (
        not certificate.ca
        and certificate.key_usage == {x509.DIGITAL_SIGNATURE}
        and certificate.purposes == {x509.CODE_SIGNING}
        and not certificate.constrained
        and certificate.common_name.startswith(_PREFIX)
    )


def check_signature(
    message: Message,
    fleet: Fleet,
    *,
    revoked: Collection[str] = (),
    verify: Verify = verify_signature,
) -> str:
    """Return the name of the signer of an update: the common name of its certificate.

    :param revoked: names of devices and signers, as ``Revocations.names`` has them.
    :raises SignerRefusedError: the signature is not taken.
    """
    signer, root = message.certificate, fleet.root
    name = signer.common_name
    if not is_signer(signer):
        raise SignerRefusedError(NOT_A_SIGNER, f"it is that of {name!r}")
    if signer.issuer != root.subject or signer.authority_key != fleet.identifier:
        raise SignerRefusedError(OTHER_FLEET, f"{name!r} is no signer of {fleet.name!r}")
    if not verify(root.public_key, sha256(signer.tbs).digest(), signer.signature):
        raise SignerRefusedError(FORGED, f"the root of {fleet.name!r} never signed {name!r}")
    if not verify(signer.public_key, message.to_sign, message.signature):
        raise SignerRefusedError(FORGED, f"it is not by {name!r}")
    if not message.intact:
        raise SignerRefusedError(CHANGED, f"after {message.signed_at:%Y-%m-%d %H:%M} UTC")
    if not signer.not_before <= message.signed_at <= signer.not_after:
        raise SignerRefusedError(
            EXPIRED,
            f"{name!r} is valid from {signer.not_before:%Y-%m-%d} to {signer.not_after:%Y-%m-%d}, "
            f"and it was signed on {message.signed_at:%Y-%m-%d}",
        )
    if name in revoked:
        raise SignerRefusedError(REVOKED, name)
    return name
