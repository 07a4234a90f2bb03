# SPDX-License-Identifier: Apache-2.0
"""What the certificates of a fleet say.

    root             the fleet's own, kept by the engineer; names the prefix of its addresses
    signer           signs devices; pathlen 1, so that a device's certificate may sign
    device authority one for each device and its chip's key; may sign for its own host name only
                     (name constraints), from which its address follows; pathlen 0
    node             a key that the node makes at each start and keeps in memory; both TLS roles

A chip can keep the certificates of signer and device authority in 72 bytes each: everything else in
them follows from the root, the chip's serial number and the keys.

A stock Erlang node must be able to join, so two obvious means are not used. A device's address is
not in its name constraints: Erlang's path validation (public_key of OTP 25, 27 and 29) crashes on a
constraint of IP addresses when a certificate names one. ``verify`` derives the address from the
host name instead, and the root keeps all addresses within the fleet's prefix. There is no object
identifier of our own: OTP 27 and 29 do not read one with a UUID in it.

The names of a device tell whether its key is in a chip. Its signer has given them to it, and they
go with the source in its address: a software identity cannot be taken for a chip.
"""

from __future__ import annotations

from datetime import datetime
from ipaddress import IPv6Address, IPv6Interface, IPv6Network

from thicket.identity.address import ID_SIZE, SOURCES, address_in, identity_of_serial
from thicket.trust import certificates as x509
from thicket.trust import compressed
from thicket.trust.certificates import Certificate, CertificateError, Profile
from thicket.trust.compressed import Compressed, serial_number

DOMAIN = "mesh"
"""Domain of the host names in certificates: ``n-6f44e3c6b802.mesh`` of a node with a chip, and
``n-010203040506.mac.mesh`` of one whose identity is from a MAC address."""


class Fleet:
    """A fleet, as its root certificate describes it: name, key, prefix of all addresses.

    :param root: the root certificate in DER.
    :raises CertificateError: it is none.
    """

    def __init__(self, root: bytes) -> None:
        self.root = Certificate(root)
        networks = self.root.permitted_networks
        if (
            not self.root.ca
            or self.root.subject != self.root.issuer
            or self.root.permitted_dns != (DOMAIN,)
            or len(networks) != 1
        ):
            raise CertificateError(
                "not the root certificate of a fleet: it must be an authority that signed itself "
                f"and is constrained to the domain {DOMAIN!r} and one prefix"
            )
        self.network: IPv6Network = networks[0]
        self._prefix = IPv6Interface(f"{self.network.network_address}/64")

    @property
    def name(self) -> str:
        """The fleet's name."""
        return self.root.common_name

    @property
    def identifier(self) -> bytes:
        """The key identifier of the root (20 bytes): two fleets never have the same."""
        return x509.key_identifier(self.root.public_key)

    def address(self, source: str, identity: bytes) -> IPv6Address:
        """Return the address of a node; see ``identity.address.address_in``."""
        return address_in(self._prefix, source, identity).ip


def host_name(source: str, identity: bytes) -> str:
    """Return the name in certificates of the node with these 6 identity bytes from ``source``."""
    return f"n-{identity.hex()}." + (DOMAIN if source == "chip" else f"{source}.{DOMAIN}")


def split_host_name(host: str) -> tuple[str, bytes]:
    """Return source and identity in a name that ``host_name`` made.

    :raises ValueError: it is no such name.
    """
    label, _, domain = host.partition(".")
    source = "chip" if domain == DOMAIN else domain.removesuffix("." + DOMAIN)
    identity = bytes.fromhex(label.removeprefix("n-"))
    if source not in SOURCES or len(identity) != ID_SIZE or host_name(source, identity) != host:
        raise ValueError(f"{host} is not the host name of a node")
    return source, identity


def device_name(source: str, identity: bytes, serial: bytes | None) -> str:
    """Return the common name of a device authority: what can be revoked.

    The serial number of the chip (18 digits), or ``software-`` with source and identity.
    """
    if source == "chip":
        if serial is None or identity_of_serial(serial) != identity:
            raise ValueError("the serial number of the chip does not go with the identity")
        return serial.hex()
    return f"software-{source}-{identity.hex()}"


def signer_name(signer_id: int) -> str:
    """Return the common name of the signer with this number (0 to 65535)."""
    return f"Signer {signer_id:04X}"


def signer_profile(
    fleet: Fleet, signer_id: int, public_key: bytes, validity: tuple[datetime, datetime]
) -> Profile:
    """Return what the certificate of a fleet's signer says."""
    dates = compressed.encode_dates(*validity)
    return Profile(
        serial_number(public_key, dates),
        fleet.root.subject,
        x509.common_name(signer_name(signer_id)),
        *validity,
        public_key,
        (
            x509.basic_constraints(True, 1),
            x509.key_usage(x509.KEY_CERT_SIGN, x509.CRL_SIGN),
            x509.extended_key_usage(x509.SERVER_AUTH, x509.CLIENT_AUTH),
            x509.subject_key(x509.key_identifier(public_key)),
            x509.authority_key(fleet.identifier),
        ),
    )


def device_profile(
    fleet: Fleet,
    *,
    source: str,
    identity: bytes,
    serial: bytes | None,
    public_key: bytes,
    signer_id: int,
    signer_key: bytes,
    validity: tuple[datetime, datetime],
) -> Profile:
    """Return what the certificate of a device authority says.

    :param serial: the chip's serial number; None for a software identity (``source`` not "chip").
    """
    name = device_name(source, identity, serial)
    dates = compressed.encode_dates(*validity)
    return Profile(
        serial_number(serial if serial is not None else name.encode(), dates),
        x509.common_name(signer_name(signer_id)),
        x509.common_name(name),
        *validity,
        public_key,
        (
            x509.basic_constraints(True, 0),
            x509.key_usage(x509.DIGITAL_SIGNATURE, x509.KEY_CERT_SIGN),
            x509.extended_key_usage(x509.SERVER_AUTH, x509.CLIENT_AUTH),
            x509.subject_key(x509.key_identifier(public_key)),
            x509.authority_key(x509.key_identifier(signer_key)),
            x509.name_constraints((host_name(source, identity),), ()),
        ),
    )


def node_profile(
    fleet: Fleet,
    device: Certificate,
    public_key: bytes,
    serial: int,
    validity: tuple[datetime, datetime],
) -> Profile:
    """Return what the certificate of a node says, for the ``device`` authority to sign.

    :param serial: a random number of up to 126 bits.
    :raises CertificateError: ``device`` is no device authority.
    """
    try:
        (host,) = device.permitted_dns
        address = fleet.address(*split_host_name(host))
    except ValueError as error:
        raise CertificateError(
            f"the device's certificate does not say which names are its own: {error}"
        ) from None
    return Profile(
        serial,
        device.subject,
        x509.common_name(host),
        *validity,
        public_key,
        (
            x509.basic_constraints(False, critical=True),
            x509.key_usage(x509.DIGITAL_SIGNATURE),
            x509.extended_key_usage(x509.SERVER_AUTH, x509.CLIENT_AUTH),
            x509.subject_key(x509.key_identifier(public_key)),
            x509.authority_key(x509.key_identifier(device.public_key)),
            x509.alternative_names((host,), (address,)),
        ),
    )


# -- in 72 bytes


def compress_signer(certificate: bytes, signer_id: int) -> bytes:
    """Return the 72 bytes that a chip keeps of a signer's certificate."""
    return compressed.compress(
        certificate,
        template=compressed.FLEET_SIGNER,
        source=compressed.FROM_PUBLIC_KEY,
        signer_id=signer_id,
    )


def compress_device(certificate: bytes, signer_id: int) -> bytes:
    """Return the 72 bytes that a chip keeps of its own certificate as a device authority."""
    return compressed.compress(
        certificate,
        template=compressed.DEVICE_AUTHORITY,
        source=compressed.FROM_SERIAL,
        signer_id=signer_id,
    )


def rebuild_signer(fleet: Fleet, data: bytes, public_key: bytes) -> bytes:
    """Return the certificate (DER) of a signer from its 72 bytes.

    :raises CertificateError: it is not one of a fleet.
    """
    kept = Compressed.unpack(data)
    kept.expect(compressed.FLEET_SIGNER, "a fleet's signer")
    return signer_profile(fleet, kept.signer_id, public_key, kept.validity).signed(kept.signature)


def rebuild_device(
    fleet: Fleet, data: bytes, serial: bytes, public_key: bytes, signer_key: bytes
) -> bytes:
    """Return the certificate (DER) of a device authority from its 72 bytes and what goes with them.

    Nothing is verified.

    :raises CertificateError: it is not one of a fleet.
    """
    try:
        identity = identity_of_serial(serial)
    except ValueError as error:
        raise CertificateError(str(error)) from None
    return rebuild_device_of(
        fleet,
        data,
        source="chip",
        identity=identity,
        serial=serial,
        public_key=public_key,
        signer_key=signer_key,
    )


def rebuild_device_of(
    fleet: Fleet,
    data: bytes,
    *,
    source: str,
    identity: bytes,
    serial: bytes | None,
    public_key: bytes,
    signer_key: bytes,
) -> bytes:
    """Do what :func:`rebuild_device` does, for a device of any source.

    :param serial: the chip's serial number, if there is one.
    """
    kept = Compressed.unpack(data)
    kept.expect(compressed.DEVICE_AUTHORITY, "a device of a fleet")
    try:
        return device_profile(
            fleet,
            source=source,
            identity=identity,
            serial=serial,
            public_key=public_key,
            signer_id=kept.signer_id,
            signer_key=signer_key,
            validity=kept.validity,
        ).signed(kept.signature)
    except CertificateError:
        raise
    except ValueError as error:
        raise CertificateError(str(error)) from None
