# SPDX-License-Identifier: Apache-2.0
"""A node's identity, six bytes, and the IPv6 address that is made of it.

An address is ``prefix (64 bits) | source (16 bits) | identity (48 bits)``. With a security chip the
source is 0 and the identity is bytes 2..7 of the serial number, as in the Nerves mesh, so that both
kinds of node agree on every address. A software identity has another source number, so its address
can never be that of a chip.
"""

from __future__ import annotations

from ipaddress import IPv6Interface

SOURCES = ("chip", "board", "mac", "random")
"""Where an identity can come from; the index is the number in the top 16 bits of the interface
identifier (RFC 4291)."""

ID_SIZE = 6
"""Bytes of an identity."""

SERIAL_SIZE = 9
"""Bytes of the serial number of an ATECC508A/608A/608B."""

_LOW_64 = (1 << 64) - 1


def identity_of_serial(serial: bytes) -> bytes:
    """Return the identity (6 bytes) in a chip's ``serial`` number (9 bytes).

    The first two bytes (01 23) and the last one (EE, or 01 on pre-provisioned parts) are the same
    on most chips and are left out.

    :raises ValueError: the length is wrong, or no chip has this serial number: its address would be
        all zero, which is the subnet-router anycast address (RFC 4291, 2.6.1), or an unconnected
        bus reads so.
    """
    if len(serial) != SERIAL_SIZE:
        raise ValueError(f"a chip's serial number has {SERIAL_SIZE} bytes, not {len(serial)}")
    identity = serial[2:8]
    if identity == bytes(ID_SIZE):
        raise ValueError(f"serial number {serial.hex()}: bytes 2 to 7 are zero, no address in it")
    if serial == b"\xff" * SERIAL_SIZE:
        raise ValueError(f"serial number {serial.hex()}: all ones is an empty bus, not a chip")
    return identity


def identity_of_value(source: str, value: str) -> bytes:
    """Return the identity (6 bytes) of a node without chip, made of a ``value`` of ``source``.

    The value is hashed with its own tag, so that the address reveals neither a board's serial
    number nor a MAC address.
    """
    from hashlib import sha256  # rare, and loading OpenSSL is slow

    return sha256(f"mesh-id-v1{source}{value}".encode()).digest()[:ID_SIZE]


def interface_identifier(source: str, identity: bytes) -> int:
    """Return the low 64 bits of the address of a node.

    :raises ValueError: an unknown ``source``, a wrong length, or an all-zero result.
    """
    if source not in SOURCES:
        raise ValueError(f"{source!r} is not a source of identity: {', '.join(SOURCES)}")
    if len(identity) != ID_SIZE:
        raise ValueError(f"an identity has {ID_SIZE} bytes, not {len(identity)}")
    number = SOURCES.index(source) << 48 | int.from_bytes(identity, "big")
    if number == 0:
        raise ValueError("an all-zero identity would be the subnet-router anycast address")
    return number


def address_in(prefix: str | IPv6Interface, source: str, identity: bytes) -> IPv6Interface:
    """Return the address of a node in ``prefix``, with the prefix length.

    :param prefix: such as ``fd12:3456:789a:1::/64``. With ``/48`` the address is the same, but the
        whole site counts as on-link, as in the published Nerves mesh.
    :raises ValueError: it is not a usable IPv6 prefix of 48 or 64 bits.
    """
    base = IPv6Interface(prefix)
    length = base.network.prefixlen
    if length not in (48, 64):
        raise ValueError(f"prefix {prefix}: a length of /64 or /48 is needed")
    if int(base.ip) & _LOW_64:
        raise ValueError(f"prefix {prefix}: the last 64 bits must be zero, they are the node's")
    if base.ip.is_multicast or base.ip.is_link_local or int(base.ip) == 0:
        raise ValueError(f"prefix {prefix}: not a prefix for unicast addresses of a site")
    return IPv6Interface((int(base.ip) | interface_identifier(source, identity), length))
