# SPDX-License-Identifier: Apache-2.0
"""X.509 certificates of P-256 keys signed by ECDSA with SHA-256: the only kind in a fleet.

``Certificate`` reads one; it checks no signature, which is ``openssl``'s part. ``Profile`` is what
a certificate says, and ``Profile.tbs`` its bytes as they are signed. RFC 5280 is the source of
structures and object identifiers, RFC 5480 of keys, RFC 3279 of signatures.
"""

from datetime import datetime
from functools import lru_cache
from hashlib import sha1, sha256
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple

from thicket.base.errors import ThicketError
from thicket.trust import der
from thicket.trust.der import DerError, Reader

COMMON_NAME = "2.5.4.3"
ORGANISATION = "2.5.4.10"
SERIAL_NUMBER = "2.5.4.5"

SUBJECT_KEY = "2.5.29.14"
KEY_USAGE = "2.5.29.15"
ALTERNATIVE_NAMES = "2.5.29.17"
BASIC_CONSTRAINTS = "2.5.29.19"
NAME_CONSTRAINTS = "2.5.29.30"
AUTHORITY_KEY = "2.5.29.35"
EXTENDED_KEY_USAGE = "2.5.29.37"

SERVER_AUTH = "1.3.6.1.5.5.7.3.1"
CLIENT_AUTH = "1.3.6.1.5.5.7.3.2"
CODE_SIGNING = "1.3.6.1.5.5.7.3.3"

DIGITAL_SIGNATURE, KEY_ENCIPHERMENT, KEY_AGREEMENT, KEY_CERT_SIGN, CRL_SIGN = 0, 2, 4, 5, 6
"""Bits of the key usage (RFC 5280, 4.2.1.3)."""

_ECDSA_SHA256 = der.sequence(der.oid("1.2.840.10045.4.3.2"))
_P256_KEY = der.sequence(der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.3.1.7"))

MAX_SIZE = 4096
"""Bytes of the largest certificate that is read."""


class CertificateError(ThicketError, ValueError):
    """These bytes are no certificate of the kind that a fleet uses. The text says what is wrong."""


def name(*attributes: tuple[str, str]) -> bytes:
    """Return a distinguished name of (object identifier, text) pairs as UTF8Strings."""
    return der.sequence(
        *(der.set_of(der.sequence(der.oid(kind), der.utf8(text))) for kind, text in attributes)
    )


def common_name(text: str) -> bytes:
    """Return a distinguished name that is only a common name."""
    return name((COMMON_NAME, text))


def key_info(public_key: bytes) -> bytes:
    """Return the SubjectPublicKeyInfo of a P-256 key given as X and Y (64 bytes)."""
    if len(public_key) != 64:
        raise ValueError(f"a public key has 64 bytes, not {len(public_key)}")
    return der.sequence(_P256_KEY, der.bit_string(b"\x04" + public_key))


def key_identifier(public_key: bytes) -> bytes:
    """Return the usual identifier of a key: SHA-1 of its point (RFC 5280, 4.2.1.2, method 1)."""
    return sha1(b"\x04" + public_key, usedforsecurity=False).digest()


def encode_signature(raw: bytes) -> bytes:
    """Return R and S (64 bytes, as a chip gives them) in DER."""
    if len(raw) != 64:
        raise ValueError(f"a signature has 64 bytes, not {len(raw)}")
    r, s = (int.from_bytes(part, "big") for part in (raw[:32], raw[32:]))
    return der.sequence(der.integer(r), der.integer(s))


def decode_signature(encoded: bytes) -> bytes:
    """Return R and S (64 bytes) of a signature in DER.

    :raises CertificateError: it is no signature on P-256.
    """
    try:
        outer = Reader(encoded)
        inner = outer.inside(der.SEQUENCE)
        numbers = [der.decode_integer(inner.next(der.INTEGER)) for _ in range(2)]
        inner.end()
        outer.end()
        return b"".join(number.to_bytes(32, "big") for number in numbers)
    except (DerError, OverflowError) as error:
        raise CertificateError(f"not an ECDSA signature on P-256: {error}") from None


# -- extensions


def extension(kind: str, content: bytes, *, critical: bool = False) -> bytes:
    """Return one extension."""
    return der.sequence(
        der.oid(kind), der.boolean(True) if critical else b"", der.octet_string(content)
    )


@lru_cache(maxsize=16)
def basic_constraints(
    ca: bool, path_length: int | None = None, *, critical: bool | None = None
) -> bytes:
    """Return basic constraints; by default they are critical for authorities only."""
    parts = [der.boolean(True)] if ca else []
    if path_length is not None:
        parts.append(der.integer(path_length))
    return extension(
        BASIC_CONSTRAINTS, der.sequence(*parts), critical=ca if critical is None else critical
    )


@lru_cache(maxsize=16)
def key_usage(*bits: int) -> bytes:
    """Return the key usage, always critical."""
    return extension(KEY_USAGE, der.named_bits(*bits), critical=True)


@lru_cache(maxsize=16)
def extended_key_usage(*purposes: str) -> bytes:
    """Return the extended key usage."""
    return extension(EXTENDED_KEY_USAGE, der.sequence(*(der.oid(p) for p in purposes)))


def subject_key(identifier: bytes) -> bytes:
    """Return the subject key identifier."""
    return extension(SUBJECT_KEY, der.octet_string(identifier))


def authority_key(identifier: bytes) -> bytes:
    """Return the authority key identifier."""
    return extension(AUTHORITY_KEY, der.sequence(der.context(0, identifier, constructed=False)))


def alternative_names(dns: tuple[str, ...], addresses: tuple[IPv6Address, ...]) -> bytes:
    """Return subject alternative names: host names first, then addresses."""
    return extension(
        ALTERNATIVE_NAMES,
        der.sequence(
            *(der.context(2, text.encode("ascii"), constructed=False) for text in dns),
            *(der.context(7, address.packed, constructed=False) for address in addresses),
        ),
    )


def name_constraints(dns: tuple[str, ...], networks: tuple[IPv6Network, ...]) -> bytes:
    """Return critical name constraints: the names of each kind that an authority may give.

    With ``networks``, all IPv4 addresses are excluded, because nothing in a mesh has one. A kind of
    name that is not mentioned is not constrained (RFC 5280, 4.2.1.10).
    """
    permitted = [
        *(der.sequence(der.context(2, text.encode("ascii"), constructed=False)) for text in dns),
        *(
            der.sequence(
                der.context(7, net.network_address.packed, net.netmask.packed, constructed=False)
            )
            for net in networks
        ),
    ]
    no_ipv4 = der.context(1, der.sequence(der.context(7, bytes(8), constructed=False)))
    return extension(
        NAME_CONSTRAINTS,
        der.sequence(der.context(0, *permitted), no_ipv4 if networks else b""),
        critical=True,
    )


class Profile(NamedTuple):
    """What a certificate says, before somebody signs it. Names are DER.

    :ivar generalized: whether the end of validity is a GeneralizedTime even before 2050, as in
        Trust&GO certificates.
    """

    serial: int
    issuer: bytes
    subject: bytes
    not_before: datetime
    not_after: datetime
    public_key: bytes
    extensions: tuple[bytes, ...]
    generalized: bool = False

    def tbs(self) -> bytes:
        """Return the part that is signed, in DER."""
        return der.sequence(
            der.context(0, der.integer(2)),
            der.integer(self.serial),
            _ECDSA_SHA256,
            self.issuer,
            der.sequence(
                der.time(self.not_before),
                der.time(self.not_after, generalized=self.generalized or None),
            ),
            self.subject,
            key_info(self.public_key),
            der.context(3, der.sequence(*self.extensions)),
        )

    def digest(self) -> bytes:
        """Return what a chip signs: SHA-256 of ``tbs``."""
        return sha256(self.tbs()).digest()

    def signed(self, signature: bytes) -> bytes:
        """Return the certificate in DER, with a signature given as R and S (64 bytes)."""
        return der.sequence(self.tbs(), _ECDSA_SHA256, der.bit_string(encode_signature(signature)))


class Certificate:
    """A certificate that was read.

    An extension that is critical and unknown makes a certificate unusable, as RFC 5280 demands, and
    so does a constraint of names that nobody here would check.

    :param encoded: the certificate in DER.
    :raises CertificateError: it cannot be understood.
    """

    def __init__(self, encoded: bytes) -> None:
        self.der = bytes(encoded)
        self.ca = False
        self.path_length: int | None = None
        self.key_usage: frozenset[int] = frozenset()
        self.purposes: frozenset[str] = frozenset()
        self.dns: tuple[str, ...] = ()
        self.addresses: tuple[IPv4Address | IPv6Address, ...] = ()
        self.permitted_dns: tuple[str, ...] = ()
        self.permitted_networks: tuple[IPv6Network, ...] = ()
        self.constrained = False
        self.subject_key: bytes | None = None
        self.authority_key: bytes | None = None
        if len(encoded) > MAX_SIZE:
            raise CertificateError(f"{len(encoded)} bytes are too many for a certificate")
        try:
            self._read()
        except (DerError, UnicodeDecodeError) as error:
            raise CertificateError(f"not a certificate of a P-256 key: {error}") from None

    def _read(self) -> None:
        outer = Reader(self.der)
        whole = outer.inside(der.SEQUENCE)
        outer.end()
        _, body, self.tbs = whole.take()
        if not self.tbs.startswith(bytes((der.SEQUENCE,))):
            raise DerError("no sequence to sign")
        _, _, algorithm = whole.take()
        signature = whole.next(der.BIT_STRING)
        whole.end()
        if signature[:1] != b"\0":
            raise DerError("a signature with unused bits")
        self.signature = decode_signature(signature[1:])
        fields = Reader(body)
        version = fields.inside(0xA0)
        if der.decode_integer(version.next(der.INTEGER)) != 2:
            raise DerError("not an X.509 certificate of version 3")
        version.end()
        self.serial = der.decode_integer(fields.next(der.INTEGER))
        if fields.take()[2] != _ECDSA_SHA256 or algorithm != _ECDSA_SHA256:
            raise CertificateError("not signed by ECDSA with SHA-256")
        _, _, self.issuer = fields.take()
        validity = fields.inside(der.SEQUENCE)
        self.not_before = der.decode_time(*validity.take()[:2])
        self.not_after = der.decode_time(*validity.take()[:2])
        validity.end()
        _, subject, self.subject = fields.take()
        _, _, info = fields.take()
        self.public_key = info[-64:]
        if len(info) < 64 or info != key_info(self.public_key):
            raise CertificateError("not a certificate of an uncompressed P-256 key")
        self.common_name = _common_name(subject)
        if fields.more:
            wrapper = fields.inside(0xA3)
            self._extensions(wrapper.inside(der.SEQUENCE))
            wrapper.end()
        fields.end()

    def _extensions(self, extensions: Reader) -> None:
        seen: set[str] = set()
        while extensions.more:
            one = extensions.inside(der.SEQUENCE)
            kind = der.decode_oid(one.next(der.OBJECT_IDENTIFIER))
            critical = one.flag()
            content = Reader(one.next(der.OCTET_STRING))
            one.end()
            if kind in seen:
                raise DerError(f"extension {kind} twice")
            seen.add(kind)
            read = _EXTENSIONS.get(kind)
            if read is not None:
                read(self, content)
                content.end()
            elif critical:
                raise CertificateError(f"extension {kind} is critical and not known here")

    # -- one extension each

    def _basic_constraints(self, content: Reader) -> None:
        fields = content.inside(der.SEQUENCE)
        self.ca = fields.flag()
        if fields.more:
            self.path_length = der.decode_integer(fields.next(der.INTEGER))
        fields.end()

    def _key_usage(self, content: Reader) -> None:
        self.key_usage = frozenset(der.decode_bits(content.next(der.BIT_STRING)))

    def _purposes(self, content: Reader) -> None:
        fields = content.inside(der.SEQUENCE)
        purposes = set()
        while fields.more:
            purposes.add(der.decode_oid(fields.next(der.OBJECT_IDENTIFIER)))
        self.purposes = frozenset(purposes)

    def _names(self, content: Reader) -> None:
        fields = content.inside(der.SEQUENCE)
        dns: list[str] = []
        addresses: list[IPv4Address | IPv6Address] = []
        while fields.more:
            tag, value, _ = fields.take()
            if tag == 0x82:
                dns.append(value.decode("ascii"))
            elif tag == 0x87:
                if len(value) not in (4, 16):
                    raise DerError(f"an IP address of {len(value)} bytes")
                addresses.append(ip_address(value))
        self.dns, self.addresses = tuple(dns), tuple(addresses)

    def _constraints(self, content: Reader) -> None:
        self.constrained = True
        fields = content.inside(der.SEQUENCE)
        dns: list[str] = []
        networks: list[IPv6Network] = []
        if fields.peek() == 0xA0:
            for tag, value in _subtrees(fields.inside(0xA0)):
                if tag == 0x82:
                    dns.append(value.decode("ascii"))
                elif tag == 0x87 and len(value) == 32:
                    networks.append(_network(value))
                else:
                    raise DerError("a constraint of names that are not known here")
        self.permitted_dns, self.permitted_networks = tuple(dns), tuple(networks)
        # Nobody here checks exclusions, except that of IPv4 addresses, which nothing has.
        if fields.peek() == 0xA1 and _subtrees(fields.inside(0xA1)) != [(0x87, bytes(8))]:
            raise DerError("an exclusion of names that is not known here")
        fields.end()

    def _subject_key(self, content: Reader) -> None:
        self.subject_key = content.next(der.OCTET_STRING)

    def _authority_key(self, content: Reader) -> None:
        fields = content.inside(der.SEQUENCE)
        if fields.peek() == 0x80:
            self.authority_key = fields.next(0x80)


_EXTENSIONS = {
    BASIC_CONSTRAINTS: Certificate._basic_constraints,
    KEY_USAGE: Certificate._key_usage,
    EXTENDED_KEY_USAGE: Certificate._purposes,
    ALTERNATIVE_NAMES: Certificate._names,
    NAME_CONSTRAINTS: Certificate._constraints,
    SUBJECT_KEY: Certificate._subject_key,
    AUTHORITY_KEY: Certificate._authority_key,
}


def _common_name(subject: bytes) -> str:
    sets, found = Reader(subject), ""
    while sets.more:
        members = sets.inside(der.SET)
        while members.more:
            attribute = members.inside(der.SEQUENCE)
            kind = der.decode_oid(attribute.next(der.OBJECT_IDENTIFIER))
            _, value, _ = attribute.take()
            if kind == COMMON_NAME:
                found = value.decode("utf-8")
    return found


def _subtrees(trees: Reader) -> list[tuple[int, bytes]]:
    """Return tags and contents of names, which have no bounds (RFC 5280, 4.2.1.10)."""
    found = []
    while trees.more:
        tree = trees.inside(der.SEQUENCE)
        found.append(tree.take()[:2])
        tree.end()
    return found


def _network(value: bytes) -> IPv6Network:
    mask = int.from_bytes(value[16:], "big")
    length = mask.bit_count()
    if mask != ((1 << 128) - 1) ^ ((1 << 128 - length) - 1):
        raise DerError("a network whose mask has holes")
    try:
        return IPv6Network((value[:16], length))
    except ValueError:
        raise DerError("a network with bits behind its mask") from None


def pem(encoded: bytes) -> str:
    """Return a certificate in PEM."""
    from base64 import b64encode  # rare

    text = b64encode(encoded).decode("ascii")
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))


def from_pem(text: str) -> list[bytes]:
    """Return the certificates (DER) in a PEM text.

    :raises CertificateError: one is damaged.
    """
    from base64 import b64decode

    found: list[bytes] = []
    for part in text.split("-----BEGIN CERTIFICATE-----")[1:]:
        body, mark, _ = part.partition("-----END CERTIFICATE-----")
        try:
            if not mark:
                raise ValueError("it does not end")
            found.append(b64decode("".join(body.split()), validate=True))
        except ValueError as error:
            raise CertificateError(f"a damaged certificate in PEM: {error}") from None
    return found
