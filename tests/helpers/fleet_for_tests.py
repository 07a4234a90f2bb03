# SPDX-License-Identifier: Apache-2.0
"""A fleet on the table: authority, devices with keys in memory, and a clock."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from ipaddress import IPv6Network

from authority.issuer import FleetIssuer, root_profile, years_from
from authority.keys import HeldKey
from meshlab.chip.state import serial_for
from thicket.identity.address import identity_of_serial
from thicket.trust import compressed, openssl
from thicket.trust import fleet as fleets
from thicket.trust.credentials import FileKey
from thicket.trust.fleet import Fleet
from thicket.trust.verify import Clock

PREFIX = IPv6Network("fd12:3456:789a:1::/64")
NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
CLOCK = Clock(datetime(2026, 1, 1, tzinfo=UTC), NOW)


class TestFleet:
    """A root, a signer, and their keys."""

    __test__ = False

    def __init__(self, name: str = "test", network: IPv6Network = PREFIX) -> None:
        self.root_key = openssl.generate_key()
        profile = root_profile(
            name,
            network,
            openssl.public_key(self.root_key),
            (datetime(2026, 1, 1, tzinfo=UTC), compressed.NO_END),
        )
        self.fleet = Fleet(profile.signed(openssl.sign(self.root_key, profile.digest())))
        self.signer_key = openssl.generate_key()
        validity = years_from(datetime(2026, 1, 1, tzinfo=UTC), 10)
        profile = fleets.signer_profile(
            self.fleet, 1, openssl.public_key(self.signer_key), validity
        )
        self.signer = profile.signed(openssl.sign(self.root_key, profile.digest()))
        self.issuer = FleetIssuer(self.fleet, 1, self.signer, HeldKey(self.signer_key), validity)

    def device(self, index: int = 1) -> tuple[FileKey, bytes]:
        """Return the key of a device with a chip (kept in memory here) and its private key."""
        serial = serial_for("fleet", index)
        key = openssl.generate_key()
        certificate = self.issuer.device(
            "chip", identity_of_serial(serial), serial, openssl.public_key(key)
        )
        return FileKey(key, (certificate, self.signer)), key

    def software(self, identity: bytes = b"\1\2\3\4\5\6") -> tuple[FileKey, bytes]:
        """Return the key of a node without chip and its private key."""
        key = openssl.generate_key()
        certificate = self.issuer.device("mac", identity, None, openssl.public_key(key))
        return FileKey(key, (certificate, self.signer)), key


@cache
def one_fleet(name: str = "test") -> TestFleet:
    """Return the same fleet every time."""
    return TestFleet(name)
