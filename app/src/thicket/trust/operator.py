# SPDX-License-Identifier: Apache-2.0
"""Who may operate the fleet: certificates that its root gives to people, for that and nothing else.

An operator is no member: the certificate has no host name, and is for the client's side of TLS only
(RFC 5280, 4.2.1.12), so that no node takes it for a peer, and nobody can serve with it. Nodes,
devices and their signers can be servers as well, so that none of them can pass for an operator.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from hashlib import sha256
from ipaddress import IPv6Address
from typing import NamedTuple

from thicket.trust import certificates as x509
from thicket.trust import verify as rules
from thicket.trust.certificates import Certificate, CertificateError, Profile
from thicket.trust.compressed import serial_number
from thicket.trust.fleet import Fleet
from thicket.trust.verify import Clock, RefusedError, Verify, verify_signature

PREFIX = "Operator "
"""What the common names of operators' certificates begin with. They hold a blank, so that nobody
takes them for host names, which the root's name constraints would refuse."""

_SOURCE = 0xFF
"""In place of the number of an identity's source (``identity.address.SOURCES``)."""

PORT = 9102
"""Where nodes listen for operators (``[access] operator_port``)."""


class Operator(NamedTuple):
    """Who an operator has proved to be.

    :ivar name: the common name of the certificate: what can be revoked.
    :ivar until: its end.
    :ivar address: what stands in his name as a member of the cluster. Nothing has this address.
    """

    name: str
    until: datetime
    address: IPv6Address

    @property
    def short(self) -> str:
        """The name that people chose."""
        return self.name.removeprefix(PREFIX)


def operator_name(name: str) -> str:
    """Return the common name of an operator's certificate."""
    return PREFIX + name


def operator_address(fleet: Fleet, public_key: bytes) -> IPv6Address:
    """Return the address in the name of an operator as a member of the cluster.

    It is of no identity's source, and another one for each key.
    """
    number = _SOURCE << 48 | int.from_bytes(sha256(public_key).digest()[:6], "big")
    return IPv6Address(int(fleet.network.network_address) | number)


def operator_profile(
    fleet: Fleet, name: str, public_key: bytes, validity: tuple[datetime, datetime]
) -> Profile:
    """Return what the certificate of an operator says."""
    full = operator_name(name)
    return Profile(
        serial_number(public_key, full.encode()),
        fleet.root.subject,
        x509.common_name(full),
        *validity,
        public_key,
        (
            x509.basic_constraints(False, critical=True),
            x509.key_usage(x509.DIGITAL_SIGNATURE),
            x509.extended_key_usage(x509.CLIENT_AUTH),
            x509.subject_key(x509.key_identifier(public_key)),
            x509.authority_key(fleet.identifier),
        ),
    )


def is_operator(certificate: Certificate) -> bool:
    """Return whether a certificate is an operator's, of whatever fleet."""
    return (
        not certificate.ca
        and certificate.key_usage == {x509.DIGITAL_SIGNATURE}
        and certificate.purposes == {x509.CLIENT_AUTH}
        and not certificate.constrained
        and not certificate.dns
        and not certificate.addresses
        and certificate.common_name.startswith(PREFIX)
    )


def check_operator(
    chain: Sequence[bytes],
    fleet: Fleet,
    *,
    clock: Clock,
    revoked: Collection[str] = (),
    verify: Verify = verify_signature,
) -> Operator:
    """Return which operator has shown these certificates.

    :param chain: the operator's certificate (DER); the root may follow and is not looked at.
    :param revoked: names, as ``Revocations.names`` has them.
    :raises RefusedError: it is no operator of the fleet, or no longer.
    """
    if not 1 <= len(chain) <= 2:
        raise RefusedError(rules.NOT_AN_OPERATOR, f"{len(chain)} certificates instead of 1")
    try:
        one = Certificate(chain[0])
    except CertificateError as error:
        raise RefusedError(rules.MALFORMED, str(error)) from None
    name = one.common_name
    if not is_operator(one):
        raise RefusedError(rules.NOT_AN_OPERATOR, f"it is that of {name!r}")
    if one.issuer != fleet.root.subject or one.authority_key != fleet.identifier:
        raise RefusedError(rules.OTHER_FLEET, f"{name!r} is no operator of {fleet.name!r}")
    if not verify(fleet.root.public_key, sha256(one.tbs).digest(), one.signature):
        raise RefusedError(rules.BAD_SIGNATURE, f"the root of {fleet.name!r} never signed {name!r}")
    if one.not_after < clock.lower_bound:
        raise RefusedError(rules.EXPIRED, f"{name!r} until {one.not_after:%Y-%m-%d %H:%M}")
    if name in revoked:
        raise RefusedError(rules.REVOKED, name)
    return Operator(name, one.not_after, operator_address(fleet, one.public_key))
