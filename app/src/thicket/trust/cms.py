# SPDX-License-Identifier: Apache-2.0
"""Signed messages in the Cryptographic Message Syntax (RFC 5652): how RAUC's bundles are signed.

One form is written and no other is read: SignedData in DER around its content, one signer with its
certificate, ECDSA on P-256 with SHA-256, and three signed attributes: content type, signing time
and the content's digest. Whatever OpenSSL might read otherwise than this module is refused, because
a message is only taken if writing it anew gives the same bytes.

``Message`` is not verified; ``update_signer`` decides whose it is.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

from thicket.base.errors import ThicketError
from thicket.trust import der
from thicket.trust.certificates import (
    Certificate,
    CertificateError,
    decode_signature,
    encode_signature,
)
from thicket.trust.der import DerError, Reader

MAX_SIZE = 64 * 1024
"""Bytes of the largest message that is read; RAUC reads none that is larger either."""

_DATA = der.oid("1.2.840.113549.1.7.1")
_SIGNED_DATA = der.oid("1.2.840.113549.1.7.2")
_CONTENT_TYPE = der.oid("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST = der.oid("1.2.840.113549.1.9.4")
_SIGNING_TIME = der.oid("1.2.840.113549.1.9.5")
_SHA256 = der.sequence(der.oid("2.16.840.1.101.3.4.2.1"))
_ECDSA_SHA256 = der.sequence(der.oid("1.2.840.10045.4.3.2"))
_VERSION_1 = der.integer(1)


class CmsError(ThicketError, ValueError):
    """These bytes are no signed message of the one form that is read; the text says why."""


class Message(NamedTuple):
    """A signed message.

    :ivar content: what is signed.
    :ivar digest: what the signer says SHA-256 of the content is.
    :ivar signed_at: when it was signed, as the signer says.
    :ivar certificate: the signer's.
    :ivar signature: R and S (64 bytes), by the signer's key over :attr:`to_sign`.
    """

    content: bytes
    digest: bytes
    signed_at: datetime
    certificate: Certificate
    signature: bytes

    @property
    def intact(self) -> bool:
        """Whether the content is the one that was signed."""
        return sha256(self.content).digest() == self.digest

    @property
    def to_sign(self) -> bytes:
        """SHA-256 of what the signature is about: the signed attributes (RFC 5652, 5.4)."""
        return sha256(der.set_of(*self._attributes())).digest()

    def _attributes(self) -> tuple[bytes, ...]:
        return (
            der.sequence(_CONTENT_TYPE, der.set_of(_DATA)),
            der.sequence(_SIGNING_TIME, der.set_of(der.time(self.signed_at))),
            der.sequence(_MESSAGE_DIGEST, der.set_of(der.octet_string(self.digest))),
        )

    def packed(self) -> bytes:
        """Return the message in DER."""
        issuer, serial = self.certificate.issuer, der.integer(self.certificate.serial)
        signer = der.sequence(
            _VERSION_1,
            der.sequence(issuer, serial),
            _SHA256,
            der.context(0, *sorted(self._attributes())),
            _ECDSA_SHA256,
            der.octet_string(encode_signature(self.signature)),
        )
        signed = der.sequence(
            _VERSION_1,
            der.set_of(_SHA256),
            der.sequence(_DATA, der.context(0, der.octet_string(self.content))),
            der.context(0, self.certificate.der),
            der.set_of(signer),
        )
        return der.sequence(_SIGNED_DATA, der.context(0, signed))


def sign(
    content: bytes, certificate: bytes, when: datetime, key: Callable[[bytes], bytes]
) -> bytes:
    """Return a signed message (DER).

    :param certificate: the signer's (DER).
    :param when: the time, written into the message in whole seconds.
    :param key: signs: returns R and S (64 bytes) for a SHA-256 digest.
    :raises CmsError: the message would be too large.
    """
    when = when.astimezone(UTC).replace(microsecond=0)
    unsigned = Message(content, sha256(content).digest(), when, Certificate(certificate), bytes(64))
    packed = unsigned._replace(signature=key(unsigned.to_sign)).packed()
    if len(packed) > MAX_SIZE:
        raise CmsError(f"a signed message of {len(packed)} bytes: at most {MAX_SIZE} are read")
    return packed


def read(data: bytes) -> Message:
    """Read a message; nothing is verified.

    :raises CmsError: it is none of the one form that is read.
    """
    if len(data) > MAX_SIZE:
        raise CmsError(f"a signed message of {len(data)} bytes: at most {MAX_SIZE} are read")
    try:
        message = _read(data)
        same = message.packed() == data
    except (DerError, CertificateError, ValueError, OverflowError) as error:
        raise CmsError(f"not a signed message: {error}") from None
    if not same:
        raise CmsError(
            "not a signed message of the form that Thicket writes: one signer, his certificate, "
            "ECDSA with SHA-256, in DER"
        )
    return message


def _read(data: bytes) -> Message:
    """Take out what differs from message to message; all the rest is compared afterwards."""
    signed = Reader(data).inside(der.SEQUENCE)
    signed.take()
    fields = signed.inside(0xA0).inside(der.SEQUENCE)
    fields.take()
    fields.take()
    wrapped = fields.inside(der.SEQUENCE)
    wrapped.take()
    content = wrapped.inside(0xA0).next(der.OCTET_STRING)
    certificate = Certificate(fields.inside(0xA0).take()[2])
    signer = fields.inside(der.SET).inside(der.SEQUENCE)
    for _ in range(3):
        signer.take()
    digest, when = None, None
    attributes = signer.inside(0xA0)
    while attributes.more:
        attribute = attributes.inside(der.SEQUENCE)
        kind = attribute.take()[2]
        value = attribute.inside(der.SET)
        if kind == _MESSAGE_DIGEST:
            digest = value.next(der.OCTET_STRING)
        elif kind == _SIGNING_TIME:
            when = der.decode_time(*value.take()[:2])
    if digest is None or when is None:
        raise DerError("the signer says no time, or no digest")
    signer.take()
    signature = decode_signature(signer.next(der.OCTET_STRING))
    return Message(content, digest, when, certificate, signature)
