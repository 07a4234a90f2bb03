# SPDX-License-Identifier: Apache-2.0
"""Certificates that are not a fleet's, from their 72 bytes: NervesKey's and those of Trust&GO.

NervesKey's are those of the Elixir library nerves_key; Trust&GO's are in Microchip's data sheets.
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha1
from typing import Final

from thicket.trust import certificates as x509
from thicket.trust import der
from thicket.trust.certificates import Profile
from thicket.trust.compressed import Compressed, encode_dates, serial_number

_PRINTABLE_STRING: Final = 0x13

NERVES_KEY_DEVICE, NERVES_KEY_SIGNER = 0, 1
"""Templates of NervesKey."""

TRUST_AND_GO_SIGNER = 1
"""Template number of Trust&GO signers; their devices have 2 or 3. Which family a number belongs to
is known from the chip, not from the certificate."""


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

    :param serial: the chip's serial number.
    :param manufacturer_serial: the text in the chip's OTP zone.
    :param issuer: the signer's name, by default the one that NervesKey gives it.
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
    """Return the certificate (DER) of a NervesKey from slot 10 or 9.

    Nothing is verified; the result is only right if all arguments are.

    :raises CertificateError: when the slot's contents are of another kind.
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
    """Return the certificate (DER) of a Trust&GO part from slot 10.

    See the ATECC608B-TNGTLS data sheet, table 4-12.

    :param mac: the 12 digits in slot 5.
    :raises CertificateError: when the slot's contents are of another kind.
    """
    kept = Compressed.unpack(data)
    begin, end = kept.validity
    eui = der.sequence(
        der.set_of(
            der.sequence(
                der.oid(x509.SERIAL_NUMBER),
                der.tlv(_PRINTABLE_STRING, f"eui48_{mac}".encode("ascii")),
            )
        )
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
