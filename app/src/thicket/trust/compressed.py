# SPDX-License-Identifier: Apache-2.0
"""Certificates in 72 bytes, as a chip keeps them, and the templates that make them whole again.

A compressed certificate holds the signature, the dates and which template it was made from;
everything else is known or can be computed. As the signature is about every byte, a template must
give exactly the bytes that were signed. Layout: Atmel application note 8974A, "Compressed
Certificate Definition", and for dates from 2032 on version 1 of the format, as Microchip's library
cryptoauthlib reads and writes it; templates 0 and 1 are NervesKey's, those of Trust&GO Microchip's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha1, sha256
from typing import Final, NamedTuple

from thicket.trust import certificates as x509
from thicket.trust import der
from thicket.trust.certificates import Certificate, CertificateError, Profile

SIZE: Final = 72
"""Bytes of a compressed certificate."""

NO_END: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""The end of a certificate that does not expire (RFC 5280, 4.1.2.5)."""

FROM_PUBLIC_KEY, FROM_SERIAL = 0xA, 0xB
"""Where the serial number of the certificate comes from: hash of the key, or of the chip's serial
number, each with the dates behind it."""

NERVES_KEY_DEVICE, NERVES_KEY_SIGNER = 0, 1
"""Templates of NervesKey."""

TRUST_AND_GO_SIGNER = 1
"""Template number of Trust&GO signers; their devices have 2 or 3. Which family a number belongs to
is known from the chip, not from the certificate."""

DEVICE_AUTHORITY, FLEET_SIGNER = 10, 11
"""Templates of Thicket's fleets (``thicket.trust.fleet``). Far from those that others use."""


MAX_YEAR: Final = 2127
"""The last year in which a validity can begin."""

_SHORT, _LONG = 3, 4
"""Bytes of dates in versions 0 and 1 of the format."""


def encode_dates(not_before: datetime, not_after: datetime) -> bytes:
    """Return the bytes that hold a validity.

    Year since 2000 (5 bits), month (4), day (5), hour (5), years until the end (5, 0 for never).
    Years from 2032 on, and more than 31 years, need version 1 of the format: a fourth byte has two
    more bits of either number at its top. Raises ``ValueError`` when the dates cannot be kept
    exactly.
    """
    years = 0 if not_after == NO_END else not_after.year - not_before.year
    try:
        since = not_before.year - 2000
        if not 0 <= since <= MAX_YEAR - 2000:
            raise ValueError(f"only the years 2000 to {MAX_YEAR} can begin a validity")
        if not 0 <= years <= 127:
            raise ValueError(f"{years} years of validity do not fit (at most 127, or no end)")
        number = since & 0x1F
        for value, bits in (
            (not_before.month, 4),
            (not_before.day, 5),
            (not_before.hour, 5),
            (years & 0x1F, 5),
        ):
            number = number << bits | value
        more = bytes((since >> 5 << 6 | years >> 5 << 4,))
        encoded = number.to_bytes(_SHORT, "big") + (more if any(more) else b"")
        if decode_dates(encoded) != (not_before, not_after):
            raise ValueError("they must be whole hours, a whole number of years apart")
    except CertificateError as error:
        raise ValueError(str(error)) from None
    except ValueError as error:
        raise ValueError(
            f"{not_before:%Y-%m-%d %H:%M:%S} to {not_after:%Y-%m-%d %H:%M:%S} cannot be the "
            f"validity of a compressed certificate: {error}"
        ) from None
    return encoded


def decode_dates(encoded: bytes) -> tuple[datetime, datetime]:
    """Return begin and end of the validity in 3 or 4 bytes. Raises ``CertificateError``."""
    number = int.from_bytes(encoded[:_SHORT], "big")
    more = encoded[_SHORT] if len(encoded) == _LONG else 0
    years = number & 0x1F | (more >> 4 & 3) << 5
    try:
        if more & 0x0F:
            raise ValueError("reserved bits are set")
        begin = datetime(
            2000 + (number >> 19 | more >> 6 << 5),
            number >> 15 & 0xF,
            number >> 10 & 0x1F,
            number >> 5 & 0x1F,
            tzinfo=UTC,
        )
        return begin, begin.replace(year=begin.year + years) if years else NO_END
    except ValueError as error:
        raise CertificateError(f"dates {encoded.hex()} of a certificate: {error}") from None


def serial_number(source: bytes, dates: bytes) -> int:
    """Return the certificate's serial number, made of a key or a chip's number and the dates.

    The first 16 bytes of a SHA-256, with 01 as the two highest bits so that it is positive and
    always of the same length.
    """
    digest = bytearray(sha256(source + dates).digest()[:16])
    digest[0] = digest[0] & 0x3F | 0x40
    return int.from_bytes(digest, "big")


class Compressed(NamedTuple):
    """The 72 bytes of a compressed certificate, taken apart."""

    signature: bytes
    dates: bytes
    """3 bytes in version 0 of the format, 4 in version 1."""
    signer_id: int
    template: int
    chain: int
    source: int

    @classmethod
    def unpack(cls, data: bytes) -> Compressed:
        """Read 72 bytes. Raises ``CertificateError`` when they hold no certificate."""
        if len(data) != SIZE:
            raise CertificateError(f"a compressed certificate has {SIZE} bytes, not {len(data)}")
        if data in (bytes(SIZE), b"\xff" * SIZE):
            raise CertificateError("there is no certificate in the slot: it is empty")
        version = data[70] & 0x0F
        if version > 1 or data[71] & (0x0F if version else 0xFF):
            raise CertificateError(
                f"a compressed certificate of an unknown format ({data[70]:02x} {data[71]:02x})"
            )
        return cls(
            bytes(data[:64]),
            bytes(data[64:67] + (data[71:72] if version else b"")),
            int.from_bytes(data[67:69], "big"),
            data[69] >> 4,
            data[69] & 0xF,
            data[70] >> 4,
        )

    def pack(self) -> bytes:
        """Return the 72 bytes."""
        more = self.dates[_SHORT] if len(self.dates) == _LONG else 0
        version = len(self.dates) - _SHORT
        return (
            self.signature
            + self.dates[:_SHORT]
            + self.signer_id.to_bytes(2, "big")
            + bytes((self.template << 4 | self.chain, self.source << 4 | version, more))
        )

    @property
    def validity(self) -> tuple[datetime, datetime]:
        """Begin and end of the validity. Raises ``CertificateError``."""
        return decode_dates(self.dates)

    def serial(self, serial: bytes, public_key: bytes) -> int:
        """Return the serial number of the certificate. Raises ``CertificateError``."""
        if self.source == FROM_PUBLIC_KEY:
            return serial_number(public_key, self.dates)
        if self.source == FROM_SERIAL:
            return serial_number(serial, self.dates)
        raise CertificateError(
            f"the serial number of the certificate is from source {self.source:X}, which is not "
            "kept in the chip"
        )

    def expect(self, template: int, what: str) -> None:
        """Raise ``CertificateError`` unless the certificate was made from ``template``."""
        if self.template != template:
            raise CertificateError(f"template {self.template} is not that of {what} ({template})")


def compress(certificate: bytes, *, template: int, source: int, signer_id: int = 0) -> bytes:
    """Return the 72 bytes of a certificate (DER) that ``template`` gives back exactly.

    Whether it does is for the caller to try. Raises ``CertificateError`` or ``ValueError``.
    """
    read = Certificate(certificate)
    dates = encode_dates(read.not_before, read.not_after)
    return Compressed(read.signature, dates, signer_id, template, 0, source).pack()


# -- NervesKey


def nerves_key_identifier(public_key: bytes) -> bytes:
    """Return a key's identifier as the Elixir library x509 makes it: SHA-1 of the whole key info.

    Others hash the point alone (``certificates.key_identifier``).
    """
    return sha1(x509.key_info(public_key), usedforsecurity=False).digest()


def nerves_key_device(
    serial: bytes,
    public_key: bytes,
    manufacturer_serial: str,
    signer_key: bytes,
    validity: tuple[datetime, datetime],
    *,
    issuer: bytes | None = None,
) -> Profile:
    """Return what the certificate of a NervesKey device says (template 0).

    ``serial`` is the chip's, ``manufacturer_serial`` the text in its OTP zone, ``issuer`` the name
    of the signer, by default the one that NervesKey gives it.
    """
    return Profile(
        serial_number(serial, encode_dates(*validity)),
        issuer if issuer is not None else x509.common_name("Signer"),
        x509.common_name(manufacturer_serial),
        *validity,
        public_key,
        (
            x509.basic_constraints(False),
            x509.key_usage(x509.DIGITAL_SIGNATURE, x509.KEY_ENCIPHERMENT),
            x509.extended_key_usage(x509.CLIENT_AUTH),
            x509.authority_key(nerves_key_identifier(signer_key)),
        ),
    )


def nerves_key_signer(public_key: bytes, validity: tuple[datetime, datetime]) -> Profile:
    """Return what the certificate of a NervesKey signer says (template 1): it signs itself."""
    own, name = nerves_key_identifier(public_key), x509.common_name("Signer")
    return Profile(
        serial_number(public_key, encode_dates(*validity)),
        name,
        name,
        *validity,
        public_key,
        (
            x509.basic_constraints(True, 0),
            x509.key_usage(x509.DIGITAL_SIGNATURE, x509.KEY_CERT_SIGN, x509.CRL_SIGN),
            x509.extended_key_usage(x509.SERVER_AUTH, x509.CLIENT_AUTH),
            x509.subject_key(own),
            x509.authority_key(own),
        ),
    )


def rebuild_nerves_key_device(
    data: bytes, serial: bytes, public_key: bytes, manufacturer_serial: str, signer_key: bytes
) -> bytes:
    """Return the certificate (DER) of a NervesKey from slot 10 or 9. Raises ``CertificateError``.

    Nothing is verified; the result is only right if all arguments are.
    """
    kept = Compressed.unpack(data)
    kept.expect(NERVES_KEY_DEVICE, "a NervesKey device")
    profile = nerves_key_device(serial, public_key, manufacturer_serial, signer_key, kept.validity)
    return profile._replace(serial=kept.serial(serial, public_key)).signed(kept.signature)


def rebuild_nerves_key_signer(data: bytes, public_key: bytes) -> bytes:
    """Return the certificate (DER) of a NervesKey signer from slot 12 or 15 and its key."""
    kept = Compressed.unpack(data)
    kept.expect(NERVES_KEY_SIGNER, "a NervesKey signer")
    profile = nerves_key_signer(public_key, kept.validity)
    return profile._replace(serial=kept.serial(b"", public_key)).signed(kept.signature)


# -- Trust&GO

MICROCHIP_ROOT: Final = bytes.fromhex(
    "bd54e66de3875484006b53ae1580d50aa069e78adf5578d85ce2d54dd5b83029"
    "6bffdd6e6f7256fbd99ef1a116b11d33ad49103aa1858739dcfae437e19d634e"
)
"""Public key of Microchip's "Crypto Authentication Root CA 002" (X and Y), which signs the signers
of Trust&GO parts."""


def _microchip(common_name: str) -> bytes:
    return x509.name(
        (x509.ORGANISATION, "Microchip Technology Inc"), (x509.COMMON_NAME, common_name)
    )


def _signer_name(signer_id: int) -> bytes:
    return _microchip(f"Crypto Authentication Signer {signer_id:04X}")


def rebuild_trust_and_go_device(
    data: bytes, serial: bytes, public_key: bytes, mac: str, signer_key: bytes
) -> bytes:
    """Return the certificate (DER) of a Trust&GO part from slot 10. Raises ``CertificateError``.

    ``mac`` are the 12 digits in slot 5. ATECC608B-TNGTLS data sheet, table 4-12.
    """
    kept = Compressed.unpack(data)
    begin, end = kept.validity
    eui = der.sequence(
        der.set_of(der.sequence(der.oid(x509.SERIAL_NUMBER), der.printable(f"eui48_{mac}")))
    )
    return Profile(
        kept.serial(serial, public_key),
        _signer_name(kept.signer_id),
        _microchip("sn" + serial.hex().upper()),
        begin,
        end,
        public_key,
        (
            x509.extension(x509.ALTERNATIVE_NAMES, der.sequence(der.context(4, eui))),
            x509.basic_constraints(False, critical=True),
            x509.key_usage(x509.DIGITAL_SIGNATURE, x509.KEY_AGREEMENT),
            x509.subject_key(x509.key_identifier(public_key)),
            x509.authority_key(x509.key_identifier(signer_key)),
        ),
        generalized=True,
    ).signed(kept.signature)


def rebuild_trust_and_go_signer(
    data: bytes, public_key: bytes, root_key: bytes = MICROCHIP_ROOT
) -> bytes:
    """Return the certificate (DER) of the signer of a Trust&GO part from slots 12 and 11."""
    kept = Compressed.unpack(data)
    kept.expect(TRUST_AND_GO_SIGNER, "a Trust&GO signer")
    begin, end = kept.validity
    return Profile(
        kept.serial(b"", public_key),
        _microchip("Crypto Authentication Root CA 002"),
        _signer_name(kept.signer_id),
        begin,
        end,
        public_key,
        (
            x509.key_usage(x509.DIGITAL_SIGNATURE, x509.KEY_CERT_SIGN, x509.CRL_SIGN),
            x509.basic_constraints(True, 0),
            x509.subject_key(x509.key_identifier(public_key)),
            x509.authority_key(x509.key_identifier(root_key)),
        ),
        generalized=True,
    ).signed(kept.signature)
