# SPDX-License-Identifier: Apache-2.0
"""Chips as NervesKey provisions them, and as Microchip does for Trust&GO: read, and make the first.

A NervesKey has its private key in slot 0, a certificate for it in 10 with its signer's key in 11
and certificate in 12, a second such set for the field in the auxiliary slots 9, 14 and 15, settings
in 8, 7, 6 and 5, and in the OTP zone who made it. Tables and order are those of the Elixir library
nerves_key, so that either program reads what the other wrote.

Locks are for ever. ``Provisioning`` therefore first says what it would do, does only what it was
told to, compares everything with what it expected, and stops at the first surprise.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from thicket.base.errors import ThicketError
from thicket.identity.chip.atecc import Atecc
from thicket.identity.chip.errors import ChipMismatchError
from thicket.identity.chip.memory import (
    SLOT_SIZES,
    ZONE_DATA,
    data_address,
    differences,
    model_of,
    serial_in,
)
from thicket.identity.chip.packet import crc_number
from thicket.trust import compressed
from thicket.trust.certificates import Certificate, CertificateError

if TYPE_CHECKING:
    from datetime import datetime

SLOT_CONFIG: Final = bytes.fromhex("8720" + "0f0f" * 9 + "0f2f" * 4 + "0f0f" * 2)
KEY_CONFIG: Final = bytes.fromhex("3300" + "1c00" * 7 + "3c00" * 3 + "3000" + "3c00" * 4)
"""Policies of the 16 slots (nerves_key, lib/nerves_key/config.ex)."""

PRIVATE_KEY: Final = 0
DEVICE, SIGNER_KEY, SIGNER = "device", "signer key", "signer"
PRIMARY: Final = {DEVICE: 10, SIGNER_KEY: 11, SIGNER: 12}
AUXILIARY: Final = {DEVICE: 9, SIGNER_KEY: 14, SIGNER: 15}
"""Slots of the two sets of certificates; the auxiliary ones can always be written."""

SETTINGS: Final = (8, 7, 6, 5)
"""Slots of the settings in their order, 524 bytes together."""

TRUST_AND_GO_SETTINGS: Final = (8,)

MAGIC: Final = b"Nrvs"

BLANK, NERVES_KEY, TRUST_AND_GO, OTHER = "blank", "NervesKey", "Trust&GO", "other"
"""Kinds of chips by what is in them."""


class ProvisioningError(ThicketError):
    """Provisioning was not begun, or stopped: the text says at what, and what is done already."""


class Otp(NamedTuple):
    """What a NervesKey's OTP zone says about its maker.

    ``serial`` is the manufacturer's serial number (ASCII): with 16 characters or less there are 32
    bytes for the ``user``, a longer one (up to 48) takes their place.
    """

    board: str
    serial: str
    user: bytes = b""

    def pack(self) -> bytes:
        """Return the 64 bytes of the zone. Raises ``ValueError`` when something does not fit."""
        board, serial = self.board.encode("ascii"), self.serial.encode("ascii")
        long = len(serial) > 16
        limits = (("board", board, 10), ("serial number", serial, 48), ("user data", self.user, 32))
        for what, data, limit in limits:
            if len(data) > limit:
                raise ValueError(f"{what}: {len(data)} bytes, the OTP zone has room for {limit}")
        if long and self.user:
            raise ValueError("a serial number of more than 16 characters leaves no user data")
        rest = serial.ljust(48, b"\0") if long else serial.ljust(16, b"\0") + self.user
        return (MAGIC + bytes((0, int(long))) + board.ljust(10, b"\0") + rest).ljust(64, b"\0")

    @classmethod
    def unpack(cls, data: bytes) -> Otp:
        """Read the 64 bytes of the zone. Raises ``ValueError`` when they are not NervesKey's."""
        if len(data) != 64 or data[:4] != MAGIC:
            raise ValueError(f"not the OTP zone of a NervesKey, it begins with {data[:4].hex()}")
        long = data[4:6] == b"\0\1"
        text = [part.rstrip(b"\0").decode("ascii", "replace") for part in (
            data[6:16], data[16:64] if long else data[16:32]
        )]  # fmt: skip
        return cls(text[0], text[1], b"" if long else data[32:64])


def default_otp(serial: bytes) -> Otp:
    """Return what NervesKey writes when nobody says otherwise: the chip's number in Base32."""
    from base64 import b32encode  # for provisioning only

    return Otp("NervesKey", b32encode(serial).decode("ascii").rstrip("="))


def configuration(present: bytes) -> bytes:
    """Return the configuration of a NervesKey for the chip that has ``present`` (128 bytes)."""
    wanted = bytearray(present)
    wanted[18:20] = b"\xaa\x00"
    wanted[20:52] = SLOT_CONFIG
    wanted[92:96] = bytes(4)
    wanted[96:128] = KEY_CONFIG
    return bytes(wanted)


def is_configured(config: bytes) -> bool:
    """Tell whether a configuration is a NervesKey's, in what matters for its use."""
    important = [*range(20, 22), *range(40, 48), *range(96, 98), *range(116, 124)]
    wanted = configuration(config)
    return config[19] == 0 and all(config[at] == wanted[at] for at in important)


def kind_of(config: bytes) -> str:
    """Return what a chip is, by its configuration zone: ``BLANK``, ``NERVES_KEY`` and so on."""
    if config[87] != 0:
        return BLANK
    if config[16] == 0x35 << 1:
        return TRUST_AND_GO
    return NERVES_KEY if is_configured(config) else OTHER


class CertificateSet(NamedTuple):
    """The three slots of one set: device certificate, signer's key (64 bytes), its certificate."""

    device: bytes
    signer_key: bytes
    signer: bytes


class Contents(NamedTuple):
    """What a chip holds, as it was read. ``otp`` is None where there is none of NervesKey's."""

    kind: str
    model: str
    serial: bytes
    public_key: bytes
    otp: Otp | None
    mac: str | None
    primary: CertificateSet | None
    auxiliary: CertificateSet | None

    @property
    def manufacturer_serial(self) -> str:
        """What the maker calls the device; of a Trust&GO part that is the chip's number."""
        return self.otp.serial if self.otp is not None else self.serial.hex().upper()

    def certificates(self, which: CertificateSet | None = None) -> list[bytes]:
        """Return device's and signer's certificate (DER) of a set, by default the primary one.

        Raises ``CertificateError`` when there is none or it is of another kind.
        """
        chosen = which if which is not None else self.primary
        if chosen is None:
            raise CertificateError("there is no certificate in these slots")
        if self.kind == TRUST_AND_GO:
            return [
                compressed.rebuild_trust_and_go_device(
                    chosen.device, self.serial, self.public_key, self.mac or "", chosen.signer_key
                ),
                compressed.rebuild_trust_and_go_signer(chosen.signer, chosen.signer_key),
            ]
        return [
            compressed.rebuild_nerves_key_device(
                chosen.device,
                self.serial,
                self.public_key,
                self.manufacturer_serial,
                chosen.signer_key,
            ),
            compressed.rebuild_nerves_key_signer(chosen.signer, chosen.signer_key),
        ]


def read(chip: Atecc) -> Contents:
    """Read what a provisioned chip holds. Raises ``ChipError``; ``ValueError`` when it is none."""
    config = chip.read_config()
    kind, serial = kind_of(config), serial_in(config)
    if kind in (BLANK, OTHER) or config[86] != 0:
        what = "not provisioned" if kind == BLANK or config[86] != 0 else "provisioned by others"
        raise ValueError(
            f"chip {serial.hex()} is {what}: configuration "
            f"{'locked' if config[87] == 0 else 'open'}, data "
            f"{'locked' if config[86] == 0 else 'open'}"
        )
    otp = mac = None
    if kind == NERVES_KEY:
        otp = Otp.unpack(chip.read_otp())
    else:
        mac = chip.read_slot(5, 12).decode("ascii", "replace")
    return Contents(
        kind,
        model_of(config[4:8]),
        serial,
        chip.public_key(PRIVATE_KEY),
        otp,
        mac,
        read_set(chip, PRIMARY, kind),
        read_set(chip, AUXILIARY, kind) if kind == NERVES_KEY else None,
    )


def read_set(chip: Atecc, slots: dict[str, int], kind: str = NERVES_KEY) -> CertificateSet | None:
    """Return the compressed certificates in ``slots``, or None when there are none."""
    device = chip.read_slot(slots[DEVICE])
    if not any(device) or not any(byte != 0xFF for byte in device):
        return None
    key = chip.read_slot(slots[SIGNER_KEY])
    # Trust&GO keeps keys as Verify wants them in a slot: 4 bytes in front of X and of Y
    key = key[4:36] + key[40:72] if kind == TRUST_AND_GO else key[:64]
    return CertificateSet(device, key, chip.read_slot(slots[SIGNER]))


def slot_contents(certificates: CertificateSet) -> dict[int, bytes]:
    """Return what provisioning writes into the slots 1 to 15, each filled up to its size."""
    data = {slot: bytes(SLOT_SIZES[slot]) for slot in range(1, 16)}
    data |= _set_contents(certificates, PRIMARY)
    return data


def _set_contents(certificates: CertificateSet, slots: dict[str, int]) -> dict[int, bytes]:
    return {
        slots[DEVICE]: certificates.device,
        slots[SIGNER_KEY]: certificates.signer_key.ljust(72, b"\0"),
        slots[SIGNER]: certificates.signer,
    }


# -- what can be written for ever


def write_auxiliary(chip: Atecc, certificates: CertificateSet) -> None:
    """Write the auxiliary certificates and read them back. They can be replaced at any time.

    The device certificate is taken out first and written last: a set that was interrupted is none.
    Raises ``ChipError``.
    """
    contents = _set_contents(certificates, AUXILIARY)
    _erase(chip, AUXILIARY[DEVICE])
    for what in (SIGNER_KEY, SIGNER, DEVICE):
        slot = AUXILIARY[what]
        chip.write_slot(slot, contents[slot])
        wrong = differences(chip.read_slot(slot), contents[slot])
        if wrong:
            raise ChipMismatchError(f"slot {slot} does not read back as written: {wrong}")


def clear_auxiliary(chip: Atecc) -> None:
    """Take the auxiliary certificates out. Raises ``ChipError``."""
    for what in (DEVICE, SIGNER_KEY, SIGNER):
        _erase(chip, AUXILIARY[what])


def _erase(chip: Atecc, slot: int) -> None:
    # The dates first: without them what is left is no certificate, should this be interrupted.
    chip.write(ZONE_DATA, data_address(slot, 64), bytes(4))
    chip.write_slot(slot, bytes(72))


def settings_slots(kind: str) -> tuple[int, ...]:
    """Return the slots that hold the settings of a chip of ``kind``."""
    return TRUST_AND_GO_SETTINGS if kind == TRUST_AND_GO else SETTINGS


def read_settings(chip: Atecc, kind: str = NERVES_KEY) -> bytes:
    """Return the settings as they are, 524 bytes (416 of a Trust&GO part). Raises ``ChipError``."""
    return b"".join(chip.read_slot(slot) for slot in settings_slots(kind))


def write_settings(chip: Atecc, data: bytes, kind: str = NERVES_KEY) -> None:
    """Replace the settings. Raises ``ValueError`` when they are too long, and ``ChipError``."""
    slots = settings_slots(kind)
    room = sum(SLOT_SIZES[slot] for slot in slots)
    if len(data) > room:
        raise ValueError(f"{len(data)} bytes of settings, the chip has room for {room}")
    data = data.ljust(room, b"\0")
    for slot in slots:
        chip.write_slot(slot, data[: SLOT_SIZES[slot]])
        data = data[SLOT_SIZES[slot] :]


def read_settings_term(chip: Atecc, kind: str = NERVES_KEY) -> Any:
    """Return the settings as the Erlang term that NervesKey keeps there, usually a map.

    Raises ``ChipError``, and ``ValueError`` when there is no term (as in a new chip).
    """
    from thicket.distribution import etf  # settings are rarely asked for

    data = read_settings(chip, kind)
    if data[:1] != b"\x83":
        raise ValueError(f"no settings: they begin with {data[:4].hex()}, not as an Erlang term")
    return etf.decode_bare(data, 1)[0]


def write_settings_term(chip: Atecc, term: Any, kind: str = NERVES_KEY) -> None:
    """Replace the settings by an Erlang term; text becomes a binary, as NervesKey has it.

    Raises as ``write_settings`` does.
    """
    from thicket.distribution import etf

    write_settings(chip, etf.encode(term), kind)


# -- provisioning


class Issuer(Protocol):
    """Somebody who gives chips their certificates."""

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        """Return the certificates for the chip with ``serial`` and the key in its slot 0."""

    def check(self, serial: bytes, public_key: bytes, found: CertificateSet) -> None:
        """Raise ``CertificateError`` unless ``found`` is by this issuer, for this chip and key."""

    def describe(self) -> str:
        """Say in words whose certificates they are."""


class NervesKeyIssuer:
    """A signer as NervesKey has them: its certificate is signed by itself, and is the root.

    The device's name is the manufacturer's serial number, which also stands in the OTP zone.
    """

    def __init__(
        self,
        private_key: bytes,
        signer_validity: tuple[datetime, datetime],
        *,
        manufacturer_serial: str,
        device_validity: tuple[datetime, datetime],
    ) -> None:
        """Sign with ``private_key`` (DER). Validities must fit (``compressed.encode_dates``)."""
        from thicket.trust import openssl  # the engineer's machine only

        self._openssl = openssl
        self._key = private_key
        self.public_key = openssl.public_key(private_key)
        self._name = manufacturer_serial
        self._validity = device_validity
        profile = compressed.nerves_key_signer(self.public_key, signer_validity)
        self.certificate = profile.signed(openssl.sign(private_key, profile.digest()))
        """The signer's certificate (DER), for whoever shall believe its devices."""

    def certificates(self, serial: bytes, public_key: bytes) -> CertificateSet:
        """See ``Issuer``."""
        profile = compressed.nerves_key_device(
            serial, public_key, self._name, self.public_key, self._validity
        )
        device = profile.signed(self._openssl.sign(self._key, profile.digest()))
        return CertificateSet(
            compressed.compress(
                device,
                template=compressed.NERVES_KEY_DEVICE,
                source=compressed.FROM_SERIAL,
            ),
            self.public_key,
            compressed.compress(
                self.certificate,
                template=compressed.NERVES_KEY_SIGNER,
                source=compressed.FROM_PUBLIC_KEY,
            ),
        )

    def check(self, serial: bytes, public_key: bytes, found: CertificateSet) -> None:
        """See ``Issuer``."""
        device = Certificate(
            compressed.rebuild_nerves_key_device(
                found.device, serial, public_key, self._name, found.signer_key
            )
        )
        digest = sha256(device.tbs).digest()
        if not self._openssl.verify(self.public_key, digest, device.signature):
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

    ``steps`` tells what there is to do; ``run`` does it. Reading is all that happens before.
    """

    def __init__(
        self, chip: Atecc, otp: Otp | None, issuer: Issuer, *, show: Callable[[str], None] = print
    ) -> None:
        """Look at ``chip``. ``otp`` None means NervesKey's default, ``show`` is told every step.

        Raises ``ProvisioningError`` when the chip is not one to provision, and ``ChipError``.
        """
        self.chip = chip
        self.issuer = issuer
        self._show = show
        self._config = chip.read_config()
        self.serial = serial_in(self._config)
        self.otp = otp if otp is not None else default_otp(self.serial)
        self._otp = self.otp.pack()
        self._wanted = configuration(self._config)
        self._config_locked = self._config[87] == 0
        self._data_locked = self._config[86] == 0
        self._slot_locked = not self._config[88] & 1
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
        if self._config[88:90] not in (b"\xff\xff", b"\xfe\xff"):
            raise ProvisioningError(f"{who} has locked slots ({self._config[88:90].hex()})")
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
        """Do it, and return the certificates that the chip has then.

        Raises ``ProvisioningError`` at the first surprise and ``ChipError`` when the chip fails;
        run it again with a new ``Provisioning`` to go on behind the last lock.
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

        What cannot be made (a date that does not fit, a signer's key that is not there) shall be
        found before the first lock, not behind it.
        """
        from thicket.trust import openssl  # the engineer's machine only

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
                "the chip tells another public key than it made; nothing but the configuration "
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
        from thicket.trust import openssl  # after the locks, and not on every node

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
