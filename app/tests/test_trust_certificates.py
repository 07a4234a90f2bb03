# SPDX-License-Identifier: Apache-2.0
"""Certificates: DER against cryptography; rebuilt from 72 bytes against those of others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import IPv6Address, IPv6Network

import pytest
import upstream_certificates as upstream
from cryptography import x509 as reference
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from authority import templates
from thicket.trust import certificates as x509
from thicket.trust import compressed, der, openssl
from thicket.trust.certificates import Certificate, CertificateError, Profile
from thicket.trust.compressed import Compressed, decode_dates, encode_dates, serial_number

# -- what others made


def test_trust_and_go_device_is_rebuilt_to_the_byte() -> None:
    key = upstream.TNG_SIGNER_KEY[4:36] + upstream.TNG_SIGNER_KEY[40:72]
    rebuilt = templates.rebuild_trust_and_go_device(
        upstream.TNG_DEVICE,
        upstream.TNG_SERIAL,
        upstream.TNG_KEY,
        upstream.TNG_MAC.decode(),
        key,
    )
    assert rebuilt == upstream.TNG_CERTIFICATE
    # Microchip's signature is about every byte of it
    read = Certificate(rebuilt)
    assert openssl.verify(key, sha256(read.tbs).digest(), read.signature)
    assert (read.common_name, read.ca) == ("sn0123A23F29F9366A01", False)


def test_trust_and_go_signer_carries_microchips_signature() -> None:
    """No copy of this certificate was published; the root's signature says that it is right."""
    key = upstream.TNG_SIGNER_KEY[4:36] + upstream.TNG_SIGNER_KEY[40:72]
    read = Certificate(templates.rebuild_trust_and_go_signer(upstream.TNG_SIGNER, key))
    digest = sha256(read.tbs).digest()
    assert openssl.verify(templates.MICROCHIP_ROOT, digest, read.signature)
    assert (read.ca, read.path_length, read.common_name) == (
        True,
        0,
        "Crypto Authentication Signer 2C00",
    )


def test_nerves_key_signer_is_rebuilt_to_the_byte() -> None:
    [signer] = x509.from_pem(upstream.NERVES_KEY_SIGNER_CERTIFICATE)
    key = upstream.NERVES_KEY_SLOT_11[:64]
    assert templates.rebuild_nerves_key_signer(upstream.NERVES_KEY_SLOT_12, key) == signer
    packed = compressed.compress(
        signer, template=templates.NERVES_KEY_SIGNER, source=compressed.FROM_PUBLIC_KEY
    )
    assert packed == upstream.NERVES_KEY_SLOT_12
    assert x509.pem(signer).strip() == upstream.NERVES_KEY_SIGNER_CERTIFICATE.strip()


def test_nerves_key_device_is_what_the_template_gives() -> None:
    """The template gives upstream's bytes; its dates cannot be compressed, and we say so."""
    [device] = x509.from_pem(upstream.NERVES_KEY_CERTIFICATE)
    read = Certificate(device)
    validity = (datetime(2025, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))
    profile = templates.nerves_key_device(
        upstream.NERVES_KEY_SERIAL,
        read.public_key,
        "1234",
        upstream.NERVES_KEY_SLOT_11[:64],
        validity,
    )
    profile = profile._replace(
        serial=read.serial, not_before=read.not_before, not_after=read.not_after
    )
    assert profile.signed(upstream.NERVES_KEY_SLOT_10[:64]) == device
    with pytest.raises(ValueError, match="2000 to 2127"):
        compressed.compress(device, template=0, source=compressed.FROM_SERIAL)


@pytest.mark.parametrize(
    ("encoded", "begin", "end"),
    [
        # data sheet, and atecc508a test/atecc508a/validity_test.exs
        ("753e0e", datetime(2014, 10, 15, 16), datetime(2028, 10, 15, 16)),
        # cryptoauthlib test/atcacert/test_atcacert_date.c: good, min, max
        ("a99d5c", datetime(2021, 3, 7, 10), datetime(2049, 3, 7, 10)),
        ("008400", datetime(2000, 1, 1), datetime(9999, 12, 31, 23, 59, 59)),
        ("fe7eff", datetime(2031, 12, 31, 23), datetime(2062, 12, 31, 23)),
        # version 1 of the format, as cryptoauthlib 20260505 writes it
        ("00859f40", datetime(2032, 1, 1, 12), datetime(2063, 1, 1, 12)),
        ("d0840810", datetime(2026, 1, 1), datetime(2066, 1, 1)),
        ("fe7efff0", datetime(2127, 12, 31, 23), datetime(2254, 12, 31, 23)),
        ("00840040", datetime(2032, 1, 1), datetime(9999, 12, 31, 23, 59, 59)),
    ],
)
def test_dates(encoded: str, begin: datetime, end: datetime) -> None:
    validity = (begin.replace(tzinfo=UTC), end.replace(tzinfo=UTC))
    assert decode_dates(bytes.fromhex(encoded)) == validity
    assert encode_dates(*validity).hex() == encoded


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [
        (datetime(1999, 1, 1), datetime(2000, 1, 1), "2000 to 2127"),
        (datetime(2128, 1, 1), datetime(2129, 1, 1), "2000 to 2127"),
        (datetime(2014, 10, 15, 16, 1), datetime(2028, 10, 15, 16, 1), "whole hours"),
        (datetime(2014, 10, 15, 16), datetime(2028, 10, 15, 17), "whole number of years"),
        (datetime(2014, 10, 15, 16), datetime(2142, 10, 15, 16), "at most 127"),
        (datetime(2014, 10, 15, 16), datetime(2014, 12, 15, 16), "whole number of years"),
        (datetime(2014, 10, 15, 16), datetime(2013, 10, 15, 16), "at most 127"),
    ],
)
def test_dates_that_would_be_lost_are_refused(begin: datetime, end: datetime, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        encode_dates(begin.replace(tzinfo=UTC), end.replace(tzinfo=UTC))


@given(st.binary(min_size=3, max_size=3))
def test_dates_round_trip(encoded: bytes) -> None:
    try:
        validity = decode_dates(encoded)
    except CertificateError:
        return
    assert encode_dates(*validity) == encoded


def test_serial_numbers() -> None:
    """atecc508a, test/atecc508a/serial_number_test.exs."""
    assert serial_number(bytes(9), bytes(3)) == 114212275507497809804692595957010019923
    assert serial_number(bytes(64), bytes(3)) == 122136849383167108807819891765977662465


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (bytes(72), "empty"),
        (b"\xff" * 72, "empty"),
        (bytes(71), "72 bytes"),
        (b"\x01" * 72, "unknown format"),
    ],
)
def test_slots_without_a_certificate(data: bytes, words: str) -> None:
    with pytest.raises(CertificateError, match=words):
        Compressed.unpack(data)


def test_wrong_templates_and_sources() -> None:
    with pytest.raises(CertificateError, match="template 1 is not that of a NervesKey device"):
        templates.rebuild_nerves_key_device(
            upstream.NERVES_KEY_SLOT_12, bytes(9), bytes(64), "x", bytes(64)
        )
    stored = Compressed.unpack(upstream.NERVES_KEY_SLOT_12)._replace(source=0).pack()
    with pytest.raises(CertificateError, match="source 0"):
        templates.rebuild_nerves_key_signer(stored, bytes(64))


# -- the format


def example() -> tuple[Profile, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.public_key().public_numbers()
    point = numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    return Profile(
        2**125 + 7,
        x509.common_name("Gerät"),
        x509.name((x509.ORGANISATION, "Thicket"), (x509.COMMON_NAME, "n-1.mesh")),
        datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2050, 1, 1, tzinfo=UTC),
        point,
        (
            x509.basic_constraints(True, 1),
            x509.key_usage(x509.DIGITAL_SIGNATURE, x509.KEY_CERT_SIGN),
            x509.extended_key_usage(x509.SERVER_AUTH, x509.CLIENT_AUTH),
            x509.subject_key(x509.key_identifier(point)),
            x509.authority_key(bytes(20)),
            x509.alternative_names(("n-1.mesh",), (IPv6Address("fd12::1"),)),
            x509.name_constraints(("n-1.mesh",), (IPv6Network("fd12::/64"),)),
        ),
    ), key


def test_a_certificate_as_cryptography_reads_it() -> None:
    profile, key = example()
    signature = x509.decode_signature(key.sign(profile.digest(), ec.ECDSA(Prehashed(SHA256()))))
    encoded = profile.signed(signature)
    theirs = reference.load_der_x509_certificate(encoded)
    key.public_key().verify(theirs.signature, theirs.tbs_certificate_bytes, ec.ECDSA(SHA256()))
    assert theirs.serial_number == profile.serial
    assert theirs.issuer.rfc4514_string() == "CN=Gerät"
    assert theirs.not_valid_after_utc == profile.not_after
    get = theirs.extensions.get_extension_for_class
    assert get(reference.BasicConstraints).value == reference.BasicConstraints(True, 1)
    assert get(reference.BasicConstraints).critical
    usage = get(reference.KeyUsage).value
    assert usage.digital_signature and usage.key_cert_sign and not usage.crl_sign
    names = get(reference.SubjectAlternativeName).value
    assert names.get_values_for_type(reference.IPAddress) == [IPv6Address("fd12::1")]
    constraints = get(reference.NameConstraints)
    assert constraints.critical
    assert constraints.value.permitted_subtrees == [
        reference.DNSName("n-1.mesh"),
        reference.IPAddress(IPv6Network("fd12::/64")),
    ]
    ours = Certificate(encoded)
    assert (ours.ca, ours.path_length, ours.common_name) == (True, 1, "n-1.mesh")
    assert (ours.not_before, ours.not_after) == (profile.not_before, profile.not_after)
    assert (ours.dns, ours.addresses) == (("n-1.mesh",), (IPv6Address("fd12::1"),))
    assert ours.permitted_networks == (IPv6Network("fd12::/64"),)
    assert ours.subject_key == x509.key_identifier(profile.public_key)
    assert (ours.signature, ours.serial) == (signature, profile.serial)
    assert (ours.issuer, ours.subject) == (profile.issuer, profile.subject)


@given(data=st.data())
def test_damaged_certificates_never_raise_anything_else(data: st.DataObject) -> None:
    encoded = bytearray(upstream.TNG_CERTIFICATE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        encoded[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(encoded)))
    for attempt in (bytes(encoded), bytes(encoded[:cut]), bytes(encoded) + b"\0"):
        try:
            read = Certificate(attempt)
        except CertificateError:
            continue
        assert read.der == attempt


@given(st.binary(max_size=200))
def test_any_bytes_are_a_certificate_or_an_error(data: bytes) -> None:
    with pytest.raises(CertificateError):
        Certificate(data)


def test_unknown_critical_extensions_are_refused() -> None:
    profile, _ = example()
    more = (*profile.extensions, x509.extension("1.2.3.4", b"\x05\0"))
    Certificate(profile._replace(extensions=more).signed(b"\x01" * 64))
    more = (*profile.extensions, x509.extension("1.2.3.4", b"\x05\0", critical=True))
    with pytest.raises(CertificateError, match=r"1\.2\.3\.4 is critical"):
        Certificate(profile._replace(extensions=more).signed(b"\x01" * 64))
    more = (*profile.extensions, profile.extensions[0])
    with pytest.raises(CertificateError, match="twice"):
        Certificate(profile._replace(extensions=more).signed(b"\x01" * 64))


@given(st.integers(0, 2**300))
def test_integers(value: int) -> None:
    reader = der.Reader(der.integer(value))
    assert der.decode_integer(reader.next(der.INTEGER)) == value
    reader.end()


@given(st.lists(st.integers(0, 2**130), min_size=1, max_size=6))
def test_object_identifiers(arcs: list[int]) -> None:
    dotted = "2." + ".".join(map(str, arcs))
    assert der.decode_oid(der.Reader(der.oid(dotted)).next(der.OBJECT_IDENTIFIER)) == dotted


@given(st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31)))
def test_times(when: datetime) -> None:
    when = when.replace(microsecond=0, tzinfo=UTC)
    assert der.decode_time(*der.Reader(der.time(when)).take()[:2]) == when
    generalized = der.time(when, generalized=True)
    assert der.decode_time(*der.Reader(generalized).take()[:2]) == when


@given(st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1))
def test_signatures(r: int, s: int) -> None:
    raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert x509.decode_signature(x509.encode_signature(raw)) == raw


@pytest.mark.parametrize(
    "encoded",
    [
        "3006020100020180",  # negative
        "300702020001020101",  # not as short as it can be
        "30080201010201010500",  # more than two numbers
        "3081060201010201010000",
        "3080020101020101",
    ],
)
def test_signatures_that_are_not_der(encoded: str) -> None:
    with pytest.raises(CertificateError):
        x509.decode_signature(bytes.fromhex(encoded))


# -- OpenSSL through ctypes


def test_keys_and_signatures() -> None:
    key = openssl.generate_key()
    public, digest = openssl.public_key(key), sha256(b"thicket").digest()
    signature = openssl.sign(key, digest)
    assert openssl.verify(public, digest, signature)
    theirs = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + public)
    theirs.verify(x509.encode_signature(signature), digest, ec.ECDSA(Prehashed(SHA256())))
    assert not openssl.verify(public, sha256(b"other").digest(), signature)
    assert not openssl.verify(openssl.public_key(openssl.generate_key()), digest, signature)
    for wrong in (bytes(64), b"\xff" * 64, signature[:63]):
        assert not openssl.verify(public, digest, wrong)
    for off_curve in (bytes(64), public[:63] + bytes((public[63] ^ 1,)), public[:32]):
        assert not openssl.verify(off_curve, digest, signature)


def test_keys_that_are_none() -> None:
    with pytest.raises(openssl.OpenSslError, match="read a private key"):
        openssl.sign(b"nonsense", bytes(32))
    other = ec.generate_private_key(ec.SECP384R1())
    from cryptography.hazmat.primitives import serialization

    encoded = other.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(openssl.OpenSslError, match="P-256"):
        openssl.public_key(encoded)


def test_validity_of_an_hour_is_no_problem_for_the_profile() -> None:
    profile, _ = example()
    now = datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC)
    short = profile._replace(not_before=now, not_after=now + timedelta(hours=1))
    read = Certificate(short.signed(b"\x01" * 64))
    assert read.not_after - read.not_before == timedelta(hours=1)
