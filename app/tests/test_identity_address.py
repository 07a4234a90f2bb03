# SPDX-License-Identifier: Apache-2.0
"""Addresses: the vector of the published Nerves mesh, and what must hold for every identity."""

from __future__ import annotations

from hashlib import sha256
from ipaddress import IPv6Address, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thicket.identity.address import (
    SOURCES,
    address_in,
    identity_of_serial,
    identity_of_value,
)

PREFIX = "fd12:3456:789a:1::/64"

# From the published description: serial number, and the address that its node gets.
POST_SERIAL = bytes.fromhex("01236f44e3c6b802ee")
POST_ADDRESS = "fd12:3456:789a:1:0:6f44:e3c6:b802"

identities = st.binary(min_size=6, max_size=6).filter(any)


def test_the_address_of_the_post() -> None:
    identity = identity_of_serial(POST_SERIAL)
    assert identity == bytes.fromhex("6f44e3c6b802")
    assert str(address_in(PREFIX, "chip", identity)) == POST_ADDRESS + "/64"


def test_the_post_puts_the_whole_site_on_link() -> None:
    address = address_in("fd12:3456:789a:1::/48", "chip", identity_of_serial(POST_SERIAL))
    assert str(address) == POST_ADDRESS + "/48"
    assert str(address.network) == "fd12:3456:789a::/48"


@given(source=st.sampled_from(SOURCES), identity=identities)
def test_identity_can_be_read_from_its_address(source: str, identity: bytes) -> None:
    address = address_in(PREFIX, source, identity)
    assert address.network == IPv6Interface(PREFIX).network
    number = int(address.ip) & (1 << 64) - 1
    assert (SOURCES[number >> 48], number.to_bytes(8, "big")[2:]) == (source, identity)


@given(identity=identities)
def test_the_post_spells_it_so_and_means_our_address(identity: bytes) -> None:
    digits = identity.hex()
    text = "fd12:3456:789a:1::" + ":".join((digits[0:4], digits[4:8], digits[8:12]))
    assert IPv6Address(text) == address_in(PREFIX, "chip", identity).ip


@given(identity=identities)
def test_software_identities_never_equal_chips(identity: bytes) -> None:
    addresses = {address_in(PREFIX, source, identity).ip for source in SOURCES}
    assert len(addresses) == len(SOURCES)


@pytest.mark.parametrize(
    "serial",
    [
        b"",
        POST_SERIAL[:8],
        POST_SERIAL + b"\x00",
        bytes.fromhex("0123000000000000ee"),
        b"\xff" * 9,
        bytes(9),
    ],
)
def test_serial_numbers_that_no_chip_has(serial: bytes) -> None:
    with pytest.raises(ValueError, match="serial number"):
        identity_of_serial(serial)


def test_all_zero_interface_identifier_is_refused() -> None:
    with pytest.raises(ValueError, match="anycast"):
        address_in(PREFIX, "chip", bytes(6))


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ("fd12:3456:789a:1::", "/64 or /48"),
        ("fd12:3456:789a:1::/56", "/64 or /48"),
        ("fd12:3456:789a:1::/128", "/64 or /48"),
        ("fd12:3456:789a:1::1/64", "last 64 bits"),
        ("ff02::/64", "unicast"),
        ("fe80::/64", "unicast"),
        ("::/64", "unicast"),
        ("10.0.0.0/8", "Expected 4 octets|At least 3 parts|permitted|Only hex"),
        ("mesh", "mesh"),
    ],
)
def test_unusable_prefixes(prefix: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        address_in(prefix, "chip", b"\x01" * 6)


def test_prefix_may_be_an_interface() -> None:
    assert address_in(IPv6Interface(PREFIX), "chip", b"\x01" * 6) == IPv6Interface(
        "fd12:3456:789a:1:0:101:101:101/64"
    )


def test_unknown_source_or_length() -> None:
    with pytest.raises(ValueError, match="source"):
        address_in(PREFIX, "guess", b"\x01" * 6)
    with pytest.raises(ValueError, match="6 bytes"):
        address_in(PREFIX, "chip", b"\x01" * 5)


def test_value_is_hashed_with_its_source() -> None:
    expected = sha256(b"mesh-id-v1" + b"mac" + b"02:74:68:00:00:01").digest()[:6]
    assert identity_of_value("mac", "02:74:68:00:00:01") == expected
    assert identity_of_value("board", "02:74:68:00:00:01") != expected
