# SPDX-License-Identifier: Apache-2.0
"""A certificate says what it says in DER, or it is refused: there is no second way to read it."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from fleet_for_tests import CLOCK, NOW, one_fleet

from thicket.trust import certificates as x509
from thicket.trust import der, openssl, verify
from thicket.trust import fleet as fleets
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.credentials import make_credentials
from thicket.trust.der import DerError, Reader
from thicket.trust.verify import RefusedError, check_peer

FLEET = one_fleet()
DEVICE, DEVICE_KEY = FLEET.device(1)

UNKNOWN = der.oid("1.2.3.4")
CONTENT = der.octet_string(b"\x05\0")


def long_length(element: bytes) -> bytes:
    """The element with its length in BER's long form."""
    return element[:1] + b"\x81" + element[1:]


def indefinite(element: bytes) -> bytes:
    """The element with BER's indefinite length."""
    return element[:1] + b"\x80" + element[2:] + b"\0\0"


def chain_with(*extensions: bytes) -> tuple[bytes, ...]:
    """A chain whose node certificate has these extensions as well, signed by its device."""
    profile = fleets.node_profile(
        FLEET.fleet,
        Certificate(DEVICE.chain[0]),
        openssl.public_key(openssl.generate_key()),
        7,
        (NOW, NOW + timedelta(days=1)),
    )
    profile = profile._replace(extensions=(*profile.extensions, *extensions))
    return profile.signed(openssl.sign(DEVICE_KEY, profile.digest())), *DEVICE.chain


def refused(chain: tuple[bytes, ...]) -> str:
    with pytest.raises(RefusedError) as caught:
        check_peer(chain, FLEET.fleet, clock=CLOCK)
    assert caught.value.reason == verify.MALFORMED
    return caught.value.detail


def test_an_unknown_extension_that_is_not_critical_does_no_harm() -> None:
    check_peer(chain_with(x509.extension("1.2.3.4", b"\x05\0")), FLEET.fleet, clock=CLOCK)


@pytest.mark.parametrize(
    "extension",
    [
        x509.extension("1.2.3.4", b"\x05\0", critical=True),
        # true in BER, in every byte that OpenSSL takes for true as well
        *(der.sequence(UNKNOWN, bytes((1, 1, byte)), CONTENT) for byte in range(1, 256)),
        # false said aloud, which DER leaves out
        der.sequence(UNKNOWN, der.boolean(False), CONTENT),
        der.sequence(UNKNOWN, b"\1\0", CONTENT),
        der.sequence(UNKNOWN, b"\1\2\xff\xff", CONTENT),
        der.sequence(UNKNOWN, b"\1\2\0\xff", CONTENT),
        der.sequence(UNKNOWN, long_length(der.boolean(True)), CONTENT),
        der.sequence(UNKNOWN, der.boolean(True), der.boolean(True), CONTENT),
        der.sequence(UNKNOWN, der.boolean(True), long_length(CONTENT)),
        der.sequence(long_length(UNKNOWN), der.boolean(True), CONTENT),
        long_length(der.sequence(UNKNOWN, der.boolean(True), CONTENT)),
        indefinite(der.sequence(UNKNOWN, der.boolean(True), CONTENT)),
        # an octet string in pieces
        der.sequence(UNKNOWN, der.boolean(True), der.tlv(0x24, CONTENT)),
        # an enumerated, an implicit and an explicit tag in place of the boolean
        der.sequence(UNKNOWN, b"\x0a\1\xff", CONTENT),
        der.sequence(UNKNOWN, b"\x81\1\xff", CONTENT),
        der.sequence(UNKNOWN, der.context(1, der.boolean(True)), CONTENT),
        # behind the content, and something else behind it
        der.sequence(UNKNOWN, CONTENT, der.boolean(True)),
        der.sequence(UNKNOWN, CONTENT, CONTENT),
        # the number of the extension with leading zeros, or without an end
        der.sequence(b"\x06\4\x2a\x80\3\4", der.boolean(True), CONTENT),
        der.sequence(b"\x06\3\x2a\3\x84", der.boolean(True), CONTENT),
        der.tlv(der.SET, UNKNOWN, der.boolean(True), CONTENT),
    ],
    ids=bytes.hex,
)
def test_an_unknown_critical_extension_is_refused_however_it_is_written(extension: bytes) -> None:
    refused(chain_with(extension))


def test_an_extension_twice_is_refused() -> None:
    unknown = x509.extension("1.2.3.4", b"\x05\0")
    assert "twice" in refused(chain_with(unknown, unknown))
    assert "twice" in refused(chain_with(unknown, x509.extension("1.2.3.4", b"\x05\0\x05\0")))
    assert "twice" in refused(chain_with(x509.key_usage(x509.DIGITAL_SIGNATURE)))
    assert "twice" in refused(chain_with(x509.basic_constraints(False)))


@pytest.mark.parametrize(
    "constraints",
    [
        # a true that is not DER: OpenSSL reads an authority here
        *(der.sequence(bytes((1, 1, byte))) for byte in (1, 2, 0x7F, 0x80, 0xFE)),
        der.sequence(der.boolean(False)),
        der.sequence(der.boolean(False), der.integer(0)),
        der.sequence(b"\1\2\xff\xff"),
        der.sequence(der.boolean(True), der.boolean(True)),
    ],
    ids=bytes.hex,
)
def test_whether_it_is_an_authority_is_said_in_one_way(constraints: bytes) -> None:
    profile = fleets.node_profile(
        FLEET.fleet,
        Certificate(DEVICE.chain[0]),
        openssl.public_key(openssl.generate_key()),
        7,
        (NOW, NOW + timedelta(days=1)),
    )
    extensions = tuple(
        x509.extension(x509.BASIC_CONSTRAINTS, constraints, critical=True)
        if one == x509.basic_constraints(False, critical=True)
        else one
        for one in profile.extensions
    )
    profile = profile._replace(extensions=extensions)
    chain = (profile.signed(openssl.sign(DEVICE_KEY, profile.digest())), *DEVICE.chain)
    refused(chain)


def dns(name: bytes) -> bytes:
    return der.context(2, name, constructed=False)


@pytest.mark.parametrize(
    "constraints",
    [
        # kinds of names that nobody here would check
        der.sequence(der.context(0, der.sequence(der.context(1, b"x@y", constructed=False)))),
        der.sequence(der.context(0, der.sequence(der.context(6, b"uri", constructed=False)))),
        der.sequence(der.context(0, der.sequence(der.context(4, der.sequence())))),
        der.sequence(der.context(0, der.sequence(der.context(7, bytes(8), constructed=False)))),
        # bounds of a subtree
        der.sequence(
            der.context(
                0, der.sequence(dns(b"mesh"), der.context(0, b"\1", constructed=False))
            )
        ),
        # what is excluded
        der.sequence(der.context(1, der.sequence(dns(b"mesh")))),
        der.sequence(der.context(1, der.sequence(der.context(7, bytes(32), constructed=False)))),
        der.sequence(der.context(1, der.sequence(dns(b"mesh"), dns(b"mesh")))),
    ],
    ids=bytes.hex,
)  # fmt: skip
def test_constraints_that_nobody_would_check_are_refused(constraints: bytes) -> None:
    refused(chain_with(x509.extension(x509.NAME_CONSTRAINTS, constraints, critical=True)))


def test_bits_behind_the_end_of_a_bit_string_are_refused() -> None:
    assert der.decode_bits(b"\7\x80") == {0}
    for bad in (b"\7\xc0", b"\1\1", b"\x08\0", b"", b"\1"):
        with pytest.raises(DerError):
            der.decode_bits(bad)


def test_the_products_own_certificates_are_read() -> None:
    chain = asyncio.run(make_credentials(DEVICE, FLEET.fleet, CLOCK)).chain
    check_peer(chain, FLEET.fleet, clock=CLOCK)
    assert Certificate(FLEET.fleet.root.der).permitted_dns == (fleets.DOMAIN,)
    with pytest.raises(CertificateError):
        Certificate(FLEET.fleet.root.der + b"\0")
    with pytest.raises(DerError):
        Reader(b"\1\1\1").flag()
