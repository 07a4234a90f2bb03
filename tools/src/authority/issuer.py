# SPDX-License-Identifier: Apache-2.0
"""What the root of a fleet says, and a signer, as it issues certificates to devices."""

from __future__ import annotations

from datetime import MAXYEAR, UTC, datetime
from hashlib import sha256

from authority.errors import AuthorityError
from authority.keys import SigningKey
from thicket.identity.address import identity_of_serial
from thicket.trust import fleet as fleets
from thicket.trust import openssl
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.chip_slots import CertificateSet
from thicket.trust.compressed import encode_dates
from thicket.trust.fleet import Fleet

SIGNER_YEARS, DEVICE_YEARS = 10, 31
"""Validity of signers and devices in years; a device without RTC in the field has to last."""


def years_from(now: datetime, years: int) -> tuple[datetime, datetime]:
    """Return a validity of whole years.

    :param now: it begins with the hour of this time.
    :raises AuthorityError: it would end behind the calendar.
    """
    begin = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if (begin.month, begin.day) == (2, 29):  # which most years do not have
        begin = begin.replace(day=28)
    if begin.year + years > MAXYEAR:
        raise AuthorityError(
            f"nothing was written: {years} years from {begin.year} on end behind the year "
            f"{MAXYEAR}. Is the clock right?"
        )
    return begin, begin.replace(year=begin.year + years)


def validity_of(now: datetime, years: int) -> tuple[datetime, datetime]:
    """Return :func:`years_from` as far as a chip can keep it.

    Call it before anything is written: a chip's configuration is locked for ever.

    :raises AuthorityError: when a chip cannot keep these dates.
    """
    validity = years_from(now, years)
    try:
        encode_dates(*validity)
    except ValueError as error:
        raise AuthorityError(f"nothing was written: {error}. Is the clock right?") from None
    return validity


class FleetIssuer:
    """Signs the devices of a fleet (a ``provisioning.Issuer``).

    :ivar fleet: the fleet.
    :ivar number: number of the signer.
    :ivar certificate: the signer's certificate (DER).
    :ivar key: the private key to it.
    :ivar validity: when the certificates of devices begin and end.
    """

    def __init__(
        self,
        fleet: Fleet,
        number: int,
        certificate: bytes,
        key: SigningKey,
        validity: tuple[datetime, datetime],
    ) -> None:
        """Sign with a signer's key.

        :raises AuthorityError: when key, certificate and fleet do not belong together, or the
            signer's certificate has ended.
        """
        self.fleet = fleet
        self.number = number
        self.certificate = certificate
        self.key = key
        self._public = key.public_key
        self.validity = validity
        read = Certificate(certificate)
        if read.public_key != self._public or read.authority_key != fleet.identifier:
            raise AuthorityError(
                f"signer {number}: key, certificate and root do not belong together"
            )
        if read.not_after <= validity[0]:
            raise AuthorityError(
                f"signer {number} ended on {read.not_after:%Y-%m-%d}; `thicket ca signer` makes "
                "a new one"
            )

    def device(
        self, source: str, identity: bytes, serial: bytes | None, public_key: bytes
    ) -> bytes:
        """Return a device certificate (DER)."""
        profile = fleets.device_profile(
            self.fleet,
            source=source,
            identity=identity,
            serial=serial,
            public_key=public_key,
            signer_id=self.number,
            signer_key=self._public,
            validity=self.validity,
        )
        return profile.signed(self.key.sign(profile.digest()))

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        """See ``provisioning.Issuer``."""
        device = self.device("chip", identity_of_serial(serial), serial, public_key)
        return CertificateSet(
            fleets.compress_device(device, self.number),
            self._public,
            fleets.compress_signer(self.certificate, self.number),
        )

    def check(self, serial: bytes, public_key: bytes, found: CertificateSet) -> None:
        """See ``provisioning.Issuer``: any signer of the fleet will do."""
        signer = Certificate(fleets.rebuild_signer(self.fleet, found.signer, found.signer_key))
        device = Certificate(
            fleets.rebuild_device(self.fleet, found.device, serial, public_key, found.signer_key)
        )
        for below, key in ((signer, self.fleet.root.public_key), (device, found.signer_key)):
            if not openssl.verify(key, sha256(below.tbs).digest(), below.signature):
                raise CertificateError(
                    f"the certificate of {below.common_name!r} in the chip is not of fleet "
                    f"{self.fleet.name!r}"
                )

    def describe(self) -> str:
        """See ``provisioning.Issuer``."""
        return f"signer {self.number} of fleet {self.fleet.name!r}"
