# SPDX-License-Identifier: Apache-2.0
"""Making a NervesKey of a blank chip.

Locks are for ever. ``Provisioning`` therefore first says what it would do, does only what it was
told to, compares everything with what it expected, and stops at the first surprise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import NamedTuple, Protocol

from authority import templates
from authority.chip import DeskChip, crc_number, differences
from authority.nerveskey import Otp, configuration, default_otp, set_contents
from thicket.base.errors import ThicketError
from thicket.identity.chip.memory import (
    CONFIG_LOCK,
    DATA_LOCK,
    SLOT_LOCKS,
    SLOT_SIZES,
    model_of,
    serial_in,
)
from thicket.trust import compressed, openssl
from thicket.trust.certificates import Certificate, CertificateError
from thicket.trust.chip_slots import PRIMARY, PRIVATE_KEY, CertificateSet, read_set


class ProvisioningError(ThicketError):
    """Provisioning was not begun, or stopped: the text says at what, and what is done already."""


class Issuer(Protocol):
    """Somebody who gives chips their certificates."""

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        """Return the certificates for the chip with ``serial`` and the key in its slot 0."""

    def check(self, serial: bytes, public_key: bytes, found: CertificateSet) -> None:
        """Check that certificates are by this issuer, for this chip and key.

        :raises CertificateError: when they are not.
        """

    def describe(self) -> str:
        """Say in words whose certificates they are."""


class NervesKeyIssuer:
    """A signer as NervesKey has them: its certificate is signed by itself, and is the root.

    The device's name is the manufacturer's serial number, which also stands in the OTP zone.

    :ivar public_key: the signer's key (X and Y, 64 bytes).
    :ivar certificate: the signer's certificate (DER), for those who verify its devices.
    """

    def __init__(
        self,
        private_key: bytes,
        signer_validity: tuple[datetime, datetime],
        *,
        manufacturer_serial: str,
        device_validity: tuple[datetime, datetime],
    ) -> None:
        """Sign with a key.

        :param private_key: the key (DER).
        :param signer_validity: when the signer's certificate begins and ends; the dates must fit
            (``compressed.encode_dates``).
        :param device_validity: the same of devices' certificates.
        """
        self._key = private_key
        self.public_key = openssl.public_key(private_key)
        self._name = manufacturer_serial
        self._validity = device_validity
        profile = templates.nerves_key_signer(self.public_key, signer_validity)
        self.certificate = profile.signed(openssl.sign(private_key, profile.digest()))

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        """See ``Issuer``."""
        profile = templates.nerves_key_device(
            serial, public_key, self._name, self.public_key, self._validity
        )
        device = profile.signed(openssl.sign(self._key, profile.digest()))
        return CertificateSet(
            compressed.compress(
                device,
                template=templates.NERVES_KEY_DEVICE,
                source=compressed.FROM_SERIAL,
            ),
            self.public_key,
            compressed.compress(
                self.certificate,
                template=templates.NERVES_KEY_SIGNER,
                source=compressed.FROM_PUBLIC_KEY,
            ),
        )

    def check(self, serial: bytes, public_key: bytes, found: CertificateSet) -> None:
        """See ``Issuer``."""
        device = Certificate(
            templates.rebuild_nerves_key_device(
                found.device, serial, public_key, self._name, found.signer_key
            )
        )
        digest = sha256(device.tbs).digest()
        if not openssl.verify(self.public_key, digest, device.signature):
            raise CertificateError("the device certificate in the chip is not by this signer")

    def describe(self) -> str:
        """See ``Issuer``."""
        return f"the NervesKey signer {self.public_key[:4].hex()}... for {self._name!r}"


class Step(NamedTuple):
    """One thing that provisioning does."""

    what: str
    irreversible: bool
    done: bool


class Provisioning:
    """Makes a NervesKey of a blank chip, or goes on where an earlier attempt was interrupted.

    Before :meth:`run` nothing is written: the chip is only read.

    :ivar serial: the chip's serial number.
    :ivar otp: what its OTP zone has, or gets.
    """

    def __init__(
        self,
        chip: DeskChip,
        otp: Otp | None,
        issuer: Issuer,
        *,
        show: Callable[[str], None] = print,
    ) -> None:
        """Look at ``chip``.

        :param otp: what its OTP zone gets; None means NervesKey's default.
        :param show: called with every step, in words.
        :raises ProvisioningError: when the chip is not one to provision.
        :raises ChipError: when the chip fails.
        """
        self.chip = chip
        self.issuer = issuer
        self._show = show
        self._config = chip.read_config()
        self.serial = serial_in(self._config)
        self.otp = otp if otp is not None else default_otp(self.serial)
        self._otp = self.otp.pack()
        self._wanted = configuration(self._config)
        self._config_locked = self._config[CONFIG_LOCK] == 0
        self._data_locked = self._config[DATA_LOCK] == 0
        self._slot_locked = not self._config[SLOT_LOCKS] & 1
        self._look()

    def _look(self) -> None:
        who = f"chip {self.serial.hex()} ({model_of(self._config[4:8])})"
        if model_of(self._config[4:8]).startswith("unknown"):
            raise ProvisioningError(f"{who} is of a model that NervesKey does not know")
        if self._config_locked:
            wrong = self.chip.compare_config(self._wanted)
            if wrong:
                raise ProvisioningError(
                    f"{who} has its configuration locked, and it is not NervesKey's: {wrong}"
                )
        if self._data_locked and not self._config_locked:
            raise ProvisioningError(f"{who} has its data locked but not its configuration")
        if self._config[SLOT_LOCKS : SLOT_LOCKS + 2] not in (b"\xff\xff", b"\xfe\xff"):
            raise ProvisioningError(
                f"{who} has locked slots ({self._config[SLOT_LOCKS : SLOT_LOCKS + 2].hex()})"
            )
        if self._data_locked:
            found = self.chip.read_otp()
            if found != self._otp:
                raise ProvisioningError(
                    f"{who} is provisioned already, for somebody else: "
                    f"OTP {differences(found, self._otp)}"
                )

    def steps(self) -> list[Step]:
        """Return what there is to do, in order, with what is done already."""
        config, data = self._config_locked, self._data_locked
        ready = config or not differences(self._config[16:84], self._wanted[16:84])
        return [
            Step(
                "write the configuration of a NervesKey (slots "
                f"{self._wanted[20:52].hex()}, keys {self._wanted[96:].hex()})",
                False,
                ready and self._config[92:128] == self._wanted[92:128],
            ),
            Step(f"lock the configuration, CRC {crc_number(self._wanted):04x}", True, config),
            Step(f"write the OTP zone {self._otp.hex()}", data, data),
            Step("make a new private key in slot 0", False, data),
            Step(
                f"write certificates of {self.issuer.describe()} to slots 10 to 12, zeros to the "
                "other slots",
                False,
                data,
            ),
            Step("lock data and OTP zone, with the CRC of what was written", True, data),
            Step("read everything back and let the key sign", False, False),
            Step("lock slot 0: its key can never be replaced", True, self._slot_locked),
        ]

    def describe(self) -> str:
        """Return the plan for people, what cannot be taken back marked."""
        lines = [f"Chip {self.serial.hex()} at 0x{self.chip.address:02x} of {self.chip.bus.name}"]
        for number, step in enumerate(self.steps(), 1):
            mark = "done already" if step.done else "FOR EVER" if step.irreversible else ""
            lines.append(f"{number}. {step.what}" + (f"  [{mark}]" if mark else ""))
        return "\n".join(lines)

    def run(self) -> CertificateSet:
        """Provision the chip, and return the certificates that it has then.

        After an error, a new ``Provisioning`` of the chip goes on behind the last lock.

        :raises ProvisioningError: at the first surprise.
        :raises ChipError: when the chip fails.
        """
        chip = self.chip
        if not self._data_locked:
            self._rehearse()
        if not self._config_locked:
            self._show("writing the configuration")
            chip.write_config(self._wanted)
            found = chip.read_config()
            self._same("configuration", found, self._wanted)
            self._show(f"LOCKING the configuration for ever (CRC {crc_number(found):04x})")
            chip.lock_config(crc_number(found))
        if not self._data_locked:
            certificates = self._fill()
        else:
            found_set = read_set(chip, PRIMARY)
            if found_set is None:
                raise ProvisioningError("the data is locked, and there is no certificate in it")
            certificates = found_set
        self._show("reading back, and letting the key sign")
        self._check(certificates)
        if not self._slot_locked:
            self._show("LOCKING slot 0 for ever")
            chip.lock_slot(PRIVATE_KEY)
        return certificates

    def _rehearse(self) -> None:
        """Make and check the certificates for a key that is thrown away.

        A certificate that cannot be made (a date that does not fit, a signer's key that is not
        there) is thus found before the first lock, not behind it.

        :raises ProvisioningError: when one cannot be made.
        """
        key = openssl.public_key(openssl.generate_key())
        try:
            certificates = self.issuer.certificates(self.serial, key)
            slot_contents(certificates)
            self.issuer.check(self.serial, key, certificates)
        except ValueError as error:  # CertificateError is one
            raise ProvisioningError(f"nothing was written: {error}") from error

    def _fill(self) -> CertificateSet:
        chip = self.chip
        self._show("writing the OTP zone")
        chip.write_otp(self._otp)
        self._show("making a private key in slot 0")
        public_key = chip.generate_key(PRIVATE_KEY)
        if chip.public_key(PRIVATE_KEY) != public_key:
            raise ProvisioningError(
                "the chip reports another public key than the one it made; only the configuration "
                "is locked"
            )
        certificates = self.issuer.certificates(self.serial, public_key)
        contents = slot_contents(certificates)
        self._show("writing the slots 1 to 15")
        for slot, data in contents.items():
            chip.write_slot(slot, data, locked=False)
        crc = crc_number(b"".join(contents.values()) + self._otp)
        self._show(f"LOCKING data and OTP zone for ever (CRC {crc:04x})")
        chip.lock_data(crc)
        return certificates

    def _check(self, certificates: CertificateSet) -> None:
        chip = self.chip
        self._same("OTP zone", chip.read_otp(), self._otp)
        for slot, wanted in slot_contents(certificates).items():
            if slot in PRIMARY.values():
                self._same(f"slot {slot}", chip.read_slot(slot), wanted)
        key = chip.public_key(PRIVATE_KEY)
        try:
            self.issuer.check(self.serial, key, certificates)
        except CertificateError as error:
            raise ProvisioningError(str(error)) from error
        digest = os.urandom(32)
        if not openssl.verify(key, digest, chip.sign(PRIVATE_KEY, digest)):
            raise ProvisioningError("the chip's signature is not by the key it tells")

    def _same(self, what: str, found: bytes, wanted: bytes) -> None:
        wrong = differences(found, wanted)
        if wrong:
            raise ProvisioningError(f"{what} does not read back as written: {wrong}")


def slot_contents(certificates: CertificateSet) -> dict[int, bytes]:
    """Return what provisioning writes into the slots 1 to 15, each filled up to its size."""
    data = {slot: bytes(SLOT_SIZES[slot]) for slot in range(1, 16)}
    data |= set_contents(certificates, PRIMARY)
    return data
