# SPDX-License-Identifier: Apache-2.0
"""DER, as far as certificates on P-256 need it: written by functions, read by ``Reader``.

This encoder keeps every byte in view, which a general one does not: certificates that a chip keeps
in 72 bytes are rebuilt from a template, and one wrong byte makes their signature worthless. ITU-T
X.690 (DER) and X.680 are the source of tags and rules.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache

from thicket.base.errors import ThicketError

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OBJECT_IDENTIFIER = 0x06
UTF8_STRING = 0x0C
UTC_TIME = 0x17
GENERALIZED_TIME = 0x18
SEQUENCE = 0x30
SET = 0x31

MAX_LENGTH_BYTES = 4
"""Bytes of the longest length that is read; no element that we read has 64 KiB."""


class DerError(ThicketError, ValueError):
    """These bytes are not DER, or not the DER that belongs here."""


def tlv(tag: int, *parts: bytes) -> bytes:
    """Return one element: ``tag`` (one byte), length, and ``parts`` as its contents."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def sequence(*parts: bytes) -> bytes:
    """Return a SEQUENCE."""
    return tlv(SEQUENCE, *parts)


def set_of(*parts: bytes) -> bytes:
    """Return a SET OF, its members sorted as DER wants them."""
    return tlv(SET, *sorted(parts))


def boolean(value: bool) -> bytes:
    """Return a BOOLEAN."""
    return tlv(BOOLEAN, b"\xff" if value else b"\0")


def integer(value: int) -> bytes:
    """Return an INTEGER, which here is never negative."""
    if value < 0:
        raise ValueError("no negative numbers in certificates")
    return tlv(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def bit_string(data: bytes, unused: int = 0) -> bytes:
    """Return a BIT STRING with ``unused`` bits at its end."""
    return tlv(BIT_STRING, bytes((unused,)), data)


def named_bits(*bits: int) -> bytes:
    """Return a BIT STRING with these bits set, without trailing zeros (X.690, 11.2.2)."""
    if not bits:
        return bit_string(b"")
    size = max(bits) + 1
    number = sum(1 << (size - 1 - bit) for bit in bits)
    unused = -size % 8
    return bit_string((number << unused).to_bytes((size + 7) // 8, "big"), unused)


def octet_string(data: bytes) -> bytes:
    """Return an OCTET STRING."""
    return tlv(OCTET_STRING, data)


@lru_cache(maxsize=64)
def oid(dotted: str) -> bytes:
    """Return an OBJECT IDENTIFIER, given as ``1.2.840.10045.2.1``."""
    first, second, *rest = (int(number) for number in dotted.split("."))
    content = b""
    for number in (first * 40 + second, *rest):
        digits = [number & 0x7F]
        while number := number >> 7:
            digits.append(number & 0x7F | 0x80)
        content += bytes(reversed(digits))
    return tlv(OBJECT_IDENTIFIER, content)


def utf8(text: str) -> bytes:
    """Return a UTF8String."""
    return tlv(UTF8_STRING, text.encode())


def context(number: int, *parts: bytes, constructed: bool = True) -> bytes:
    """Return an element tagged ``[number]``."""
    return tlv((0xA0 if constructed else 0x80) | number, *parts)


def time(when: datetime, *, generalized: bool | None = None) -> bytes:
    """Return ``when`` (UTC, whole seconds) as RFC 5280 wants it: UTCTime before 2050.

    :param generalized: write a GeneralizedTime whatever the year, as Trust&GO certificates do.
    """
    if generalized or (generalized is None and when.year >= 2050):
        text = f"{when.year:04d}{when:%m%d%H%M%S}Z"
        return tlv(GENERALIZED_TIME, text.encode("ascii"))
    return tlv(UTC_TIME, f"{when:%y%m%d%H%M%S}Z".encode("ascii"))


@lru_cache(maxsize=64)
def decode_oid(content: bytes) -> str:
    """Return the dotted form of the contents of an OBJECT IDENTIFIER."""
    if not content or content[-1] & 0x80:
        raise DerError("an object identifier that does not end")
    numbers: list[int] = []
    number, fresh = 0, True
    for byte in content:
        if fresh and byte == 0x80:
            raise DerError("an object identifier with leading zeros")
        number, fresh = number << 7 | byte & 0x7F, False
        if not byte & 0x80:
            numbers.append(number)
            number, fresh = 0, True
    first = min(numbers[0] // 40, 2)
    return ".".join(str(n) for n in (first, numbers[0] - 40 * first, *numbers[1:]))


def decode_integer(content: bytes) -> int:
    """Return the contents of an INTEGER; certificates hold none that is negative."""
    if not content or (len(content) > 1 and content[0] == 0 and not content[1] & 0x80):
        raise DerError("a number that is not as short as it can be")
    if content[0] & 0x80:
        raise DerError("a negative number")
    return int.from_bytes(content, "big")


def decode_boolean(content: bytes) -> bool:
    """Return the contents of a BOOLEAN. DER has one form of each (X.690, 11.1).

    Any other byte is refused: BER and other readers take it for true.
    """
    if content not in (b"\0", b"\xff"):
        raise DerError("a boolean that is neither 00 nor ff")
    return content == b"\xff"


def decode_time(tag: int, content: bytes) -> datetime:
    """Return the time in a UTCTime (1950 to 2049) or GeneralizedTime, both with seconds and Z."""
    text = content.decode("ascii", "replace")
    if tag == UTC_TIME and len(text) == 13:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif tag != GENERALIZED_TIME:
        raise DerError("a time of an unknown form")
    if len(text) != 15 or text[-1] != "Z" or not text[:14].isdecimal() or not text.isascii():
        raise DerError(f"{text!r} is not a time in UTC with seconds")
    fields = [int(text[:4])] + [int(text[at : at + 2]) for at in range(4, 14, 2)]
    try:
        return datetime(*fields, tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError as error:
        raise DerError(f"{text!r}: {error}") from None


def decode_bits(content: bytes) -> set[int]:
    """Return the numbers of the bits that are set in a BIT STRING."""
    if not content or content[0] > 7 or (len(content) == 1 and content[0]):
        raise DerError("a bit string of impossible length")
    if len(content) > 1 and content[-1] & (1 << content[0]) - 1:
        raise DerError("a bit string with bits behind its end")
    return {
        8 * at + bit
        for at, byte in enumerate(content[1:])
        for bit in range(8)
        if byte & 0x80 >> bit
    }


class Reader:
    """Reads elements one after the other. Every method raises ``DerError``."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        """Whether there is another element."""
        return self._at < len(self._data)

    def peek(self) -> int:
        """Return the tag of the next element; 0 at the end."""
        return self._data[self._at] if self.more else 0

    def take(self) -> tuple[int, bytes, bytes]:
        """Return tag, contents and whole encoding of the next element."""
        data, begin = self._data, self._at
        if begin + 2 > len(data):
            raise DerError("an element is missing")
        tag, size, at = data[begin], data[begin + 1], begin + 2
        if tag & 0x1F == 0x1F:
            raise DerError("a tag of several bytes")
        if size & 0x80:
            count = size & 0x7F
            if not 1 <= count <= MAX_LENGTH_BYTES or at + count > len(data):
                raise DerError("a length of impossible form")
            size = int.from_bytes(data[at : at + count], "big")
            at += count
            if size < 0x80 or size < 1 << 8 * (count - 1):
                raise DerError("a length that is not as short as it can be")
        if at + size > len(data):
            raise DerError("an element that is cut off")
        self._at = at + size
        return tag, data[at : at + size], data[begin : self._at]

    def next(self, tag: int) -> bytes:
        """Return the contents of the next element, which must have ``tag``."""
        found, content, _ = self.take()
        if found != tag:
            raise DerError(f"tag {found:02x} instead of {tag:02x}")
        return content

    def inside(self, tag: int) -> Reader:
        """Return a reader of the contents of the next element, which must have ``tag``."""
        return Reader(self.next(tag))

    def flag(self) -> bool:
        """Return a BOOLEAN that is left out when it is false (X.690, 11.5)."""
        if self.peek() != BOOLEAN:
            return False
        if not decode_boolean(self.next(BOOLEAN)):
            raise DerError("a boolean that says what its absence says")
        return True

    def end(self) -> None:
        """Make sure that nothing follows."""
        if self.more:
            raise DerError(f"{len(self._data) - self._at} bytes too many")
