# SPDX-License-Identifier: Apache-2.0
"""Certificates in 72 bytes, as a chip keeps them, and the templates that make them whole again.

A compressed certificate holds the signature, the dates and which template it was made from;
everything else is known or can be computed. As the signature is about every byte, a template must
give exactly the bytes that were signed. Layout: Atmel application note 8974A, "Compressed
Certificate Definition", and for dates from 2032 on version 1 of the format, as Microchip's library
cryptoauthlib reads and writes it. Templates of others: ``authority.templates``.
"""

from datetime import UTC, datetime
from hashlib import sha256
from typing import NamedTuple

from thicket.trust.certificates import Certificate, CertificateError

SIZE = 72
"""Bytes of a compressed certificate."""

NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""The end of a certificate that does not expire (RFC 5280, 4.1.2.5)."""

FROM_PUBLIC_KEY, FROM_SERIAL = 0xA, 0xB
"""Where the serial number of the certificate comes from: hash of the key, or of the chip's serial
number, each with the dates behind it."""

DEVICE_AUTHORITY, FLEET_SIGNER = 10, 11
"""Templates of Thicket's fleets (``thicket.trust.fleet``). Far from those that others use."""


MAX_YEAR = 2127
"""The last year in which a validity can begin."""

_SHORT, _LONG = 3, 4
"""Bytes of dates in versions 0 and 1 of the format."""


def encode_dates(not_before: datetime, not_after: datetime) -> bytes:
    """Return the bytes that hold a validity.

    Year since 2000 (5 bits), month (4), day (5), hour (5), years until the end (5, 0 for never).
    Years from 2032 on, and more than 31 years, need version 1 of the format: a fourth byte has two
    more bits of either number at its top.

    :raises ValueError: the dates cannot be kept exactly.
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
    """Return begin and end of the validity in 3 or 4 bytes.

    :raises CertificateError: they are no dates.
    """
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
    """The 72 bytes of a compressed certificate, taken apart.

    :ivar dates: 3 bytes in version 0 of the format, 4 in version 1.
    """

    signature: bytes
    dates: bytes
    signer_id: int
    template: int
    chain: int
    source: int

    @classmethod
    def unpack(cls, data: bytes) -> "Compressed":
        """Read 72 bytes.

        :raises CertificateError: they hold no certificate.
        """
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
        """Begin and end of the validity.

        :raises CertificateError: there are no dates.
        """
        return decode_dates(self.dates)

    def serial(self, serial: bytes, public_key: bytes) -> int:
        """Return the serial number of the certificate.

        :param serial: the chip's serial number.
        :raises CertificateError: it is made of something that the chip does not keep.
        """
        if self.source == FROM_PUBLIC_KEY:
            return serial_number(public_key, self.dates)
        if self.source == FROM_SERIAL:
            return serial_number(serial, self.dates)
        raise CertificateError(
            f"the serial number of the certificate is from source {self.source:X}, which is not "
            "kept in the chip"
        )

    def expect(self, template: int, what: str) -> None:
        """Make sure that the certificate was made from a template.

        :param what: what the template is for, in words.
        :raises CertificateError: it is of another one.
        """
        if self.template != template:
            raise CertificateError(f"template {self.template} is not that of {what} ({template})")


def compress(certificate: bytes, *, template: int, source: int, signer_id: int = 0) -> bytes:
    """Return the 72 bytes of a certificate (DER).

    The caller makes sure that ``template`` gives the certificate back exactly.

    :raises CertificateError: the certificate cannot be read.
    :raises ValueError: its dates cannot be kept.
    """
    read = Certificate(certificate)
    dates = encode_dates(read.not_before, read.not_after)
    return Compressed(read.signature, dates, signer_id, template, 0, source).pack()
