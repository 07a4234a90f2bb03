# SPDX-License-Identifier: Apache-2.0
"""Enrolling a chip: what it is decides which of three ways its certificates go."""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple

from authority import nerveskey
from authority.chip import DeskChip
from authority.errors import AuthorityError
from authority.issuer import FleetIssuer
from authority.nerveskey import Otp
from authority.provisioning import Provisioning
from thicket.identity.address import identity_of_serial
from thicket.identity.bus import Bus
from thicket.identity.chip.atecc import ADDRESSES
from thicket.identity.chip.errors import ChipAbsentError, ChipProtocolError, ChipRefusedError
from thicket.identity.chip.memory import CONFIG_LOCK, DATA_LOCK, SLOT_LOCKS, serial_in
from thicket.trust import certificates as x509
from thicket.trust import fleet as fleets
from thicket.trust import openssl
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.chip_slots import PRIMARY, PRIVATE_KEY, read_set
from thicket.trust.fleet import Fleet

_PATIENCE = 20.0
"""Seconds for one conversation with a chip. Its bus may be at the other end of a slow line, where
few attempts end before its watchdog does."""


def chip_on(bus: Bus) -> DeskChip:
    """Return the chip at the first usual address that has one; without any, at the first one."""
    for address in ADDRESSES:
        chip = DeskChip(bus, address, patience=_PATIENCE)
        try:
            chip.serial_number()
        except (ChipAbsentError, ChipProtocolError):  # nothing there, or something else
            continue
        return chip
    return DeskChip(bus, patience=_PATIENCE)


class FoundChip(NamedTuple):
    """A chip, and what was read from it before anything is written.

    :ivar key: the public key in slot 0, if the chip is locked and that key signs what it is given.
    """

    chip: DeskChip
    config: bytes
    serial: bytes
    identity: bytes
    key: bytes | None

    @classmethod
    def look(cls, chip: DeskChip) -> FoundChip:
        """Read what decides about the chip.

        :raises AuthorityError: when its serial number is none of its maker's.
        :raises ChipError: when it does not answer.
        """
        config = chip.read_config()
        serial = serial_in(config)
        try:
            identity = identity_of_serial(serial)
        except ValueError as error:
            raise AuthorityError(str(error)) from None
        locked = config[DATA_LOCK] == 0 and config[CONFIG_LOCK] == 0
        key = chip.public_key(PRIVATE_KEY) if locked and _signs(chip) else None
        return cls(chip, config, serial, identity, key)

    def needs_auxiliary(self, fleet: Fleet) -> bool:
        """Tell whether it is provisioned for somebody else than ``fleet``."""
        locked = self.config[DATA_LOCK] == 0 and self.config[CONFIG_LOCK] == 0
        provisioned = locked and not self.config[SLOT_LOCKS] & 1
        return provisioned and not _is_ours(self.chip, fleet)


def give_file(
    found: FoundChip,
    issuer: FleetIssuer,
    *,
    write: bool,
    show: Callable[[str], None],
    keep: Callable[[str], object],
) -> None:
    """Leave the chip as it is, and make certificates for a file on its device.

    :param keep: called with the certificates (PEM).
    :raises AuthorityError: when the chip has no key that signs.
    """
    if found.key is None:
        raise AuthorityError(
            f"chip {found.serial.hex()} is not locked with a key in slot 0 that signs; enrol it "
            "without --certificate-on-device"
        )
    show(
        f"Chip {found.serial.hex()} ({nerveskey.kind_of(found.config)}) stays as it is: a "
        f"certificate of {issuer.describe()} for the key in its slot 0 goes to a file on the device"
    )
    if write:
        device = issuer.device("chip", found.identity, found.serial, found.key)
        keep(x509.pem(device) + x509.pem(issuer.certificate))


def write_auxiliary(
    found: FoundChip, issuer: FleetIssuer, *, write: bool, show: Callable[[str], None]
) -> None:
    """Write certificates to the auxiliary slots, which takes nothing away from the chip.

    :raises AuthorityError: when it has none.
    """
    kind = nerveskey.kind_of(found.config)
    if kind != nerveskey.NERVES_KEY:
        raise AuthorityError(
            f"chip {found.serial.hex()} has no auxiliary slots: it is not a NervesKey "
            f"({kind}). With --certificate-on-device its certificate goes to a file on the device"
        )
    show(
        f"Chip {found.serial.hex()} is a NervesKey already: certificates of {issuer.describe()} "
        "go to its auxiliary slots 9, 14 and 15, which can be replaced later"
    )
    if write:
        certificates = issuer.certificates(found.serial, found.chip.public_key(PRIVATE_KEY))
        nerveskey.write_auxiliary(found.chip, certificates)


def provision(
    found: FoundChip,
    issuer: FleetIssuer,
    *,
    write: bool,
    show: Callable[[str], None],
    otp: Otp | None,
) -> None:
    """Make a NervesKey of a blank chip, with certificates in its primary slots.

    :raises ProvisioningError: when the chip is not one to provision, or at the first surprise.
    """
    plan = Provisioning(found.chip, otp, issuer, show=show)
    show(plan.describe())
    if found.key is None:
        show(
            f"Serial number {found.serial.hex()} is what the chip says; a blank chip cannot "
            "prove it. Enrol only a device that you hold in your hands"
        )
    if write:
        plan.run()


def _signs(chip: DeskChip) -> bool:
    """Tell whether slot 0 has a key that signs what it is given."""
    digest = os.urandom(32)
    try:
        return openssl.verify(chip.public_key(PRIVATE_KEY), digest, chip.sign(PRIVATE_KEY, digest))
    except ChipRefusedError:
        return False


def _is_ours(chip: DeskChip, fleet: Fleet) -> bool:
    """Tell whether the primary slots hold an enrolment in ``fleet``."""
    try:
        found = read_set(chip, PRIMARY)
    except ChipRefusedError:  # another kind of chip, with a secret there
        return False
    if found is None:
        return False
    try:
        signer = Certificate(fleets.rebuild_signer(fleet, found.signer, found.signer_key))
    except CertificateError:
        return False
    return openssl.verify(fleet.root.public_key, sha256(signer.tbs).digest(), signer.signature)
