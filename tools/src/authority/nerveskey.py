# SPDX-License-Identifier: Apache-2.0
"""Chips as NervesKey provisions them, and as Microchip does for Trust&GO: what is in them.

A NervesKey has its private key in slot 0, a certificate for it in 10 with its signer's key in 11
and certificate in 12, a second such set for the field in the auxiliary slots 9, 14 and 15, settings
in 8, 7, 6 and 5, and in the OTP zone who made it. Tables and order are those of the Elixir library
nerves_key, so that either program reads what the other wrote.
"""

from __future__ import annotations

from base64 import b32encode
from typing import Any, Final, NamedTuple

from authority import templates
from authority.chip import DeskChip, differences
from thicket.distribution import etf
from thicket.identity.chip.errors import ChipMismatchError
from thicket.identity.chip.memory import (
    CONFIG_LOCK,
    DATA_LOCK,
    SLOT_SIZES,
    ZONE_DATA,
    data_address,
    model_of,
    serial_in,
)
from thicket.trust.certificates import CertificateError
from thicket.trust.chip_slots import (
    AUXILIARY,
    DEVICE,
    PRIMARY,
    PRIVATE_KEY,
    SIGNER,
    SIGNER_KEY,
    CertificateSet,
    read_set,
)

SLOT_CONFIG: Final = bytes.fromhex("8720" + "0f0f" * 9 + "0f2f" * 4 + "0f0f" * 2)
KEY_CONFIG: Final = bytes.fromhex("3300" + "1c00" * 7 + "3c00" * 3 + "3000" + "3c00" * 4)
"""Policies of the 16 slots (nerves_key, lib/nerves_key/config.ex)."""

SETTINGS: Final = (8, 7, 6, 5)
"""Slots of the settings in their order, 524 bytes together."""

TRUST_AND_GO_SETTINGS: Final = (8,)

MAGIC: Final = b"Nrvs"

BLANK, NERVES_KEY, TRUST_AND_GO, OTHER = "blank", "NervesKey", "Trust&GO", "other"
"""Kinds of chips by what is in them."""


class Otp(NamedTuple):
    """What a NervesKey's OTP zone says about its maker.

    :ivar serial: the manufacturer's serial number (ASCII), up to 48 characters.
    :ivar user: up to 32 bytes; a serial number of more than 16 characters takes their place.
    """

    board: str
    serial: str
    user: bytes = b""

    def pack(self) -> bytes:
        """Return the 64 bytes of the zone.

        :raises ValueError: when something does not fit.
        """
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
        """Read the 64 bytes of the zone.

        :raises ValueError: when they are not NervesKey's.
        """
        if len(data) != 64 or data[:4] != MAGIC:
            raise ValueError(f"not the OTP zone of a NervesKey, it begins with {data[:4].hex()}")
        long = data[4:6] == b"\0\1"
        text = [part.rstrip(b"\0").decode("ascii", "replace") for part in (
            data[6:16], data[16:64] if long else data[16:32]
        )]  # fmt: skip
        return cls(text[0], text[1], b"" if long else data[32:64])


def default_otp(serial: bytes) -> Otp:
    """Return what NervesKey writes when nobody says otherwise: the chip's number in Base32."""
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
    if config[CONFIG_LOCK] != 0:
        return BLANK
    if config[16] == 0x35 << 1:
        return TRUST_AND_GO
    return NERVES_KEY if is_configured(config) else OTHER


class Contents(NamedTuple):
    """What a chip holds, as it was read.

    :ivar otp: None when the zone is not NervesKey's.
    """

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

        :raises CertificateError: when there is none, or it is of another kind.
        """
        chosen = which if which is not None else self.primary
        if chosen is None:
            raise CertificateError("there is no certificate in these slots")
        if self.kind == TRUST_AND_GO:
            return [
                templates.rebuild_trust_and_go_device(
                    chosen.device, self.serial, self.public_key, self.mac or "", chosen.signer_key
                ),
                templates.rebuild_trust_and_go_signer(chosen.signer, chosen.signer_key),
            ]
        return [
            templates.rebuild_nerves_key_device(
                chosen.device,
                self.serial,
                self.public_key,
                self.manufacturer_serial,
                chosen.signer_key,
            ),
            templates.rebuild_nerves_key_signer(chosen.signer, chosen.signer_key),
        ]


def read(chip: DeskChip) -> Contents:
    """Read what a provisioned chip holds.

    :raises ChipError: when the chip fails.
    :raises ValueError: when it is not provisioned.
    """
    config = chip.read_config()
    kind, serial = kind_of(config), serial_in(config)
    if kind in (BLANK, OTHER) or config[DATA_LOCK] != 0:
        blank = kind == BLANK or config[DATA_LOCK] != 0
        what = "not provisioned" if blank else "provisioned by others"
        raise ValueError(
            f"chip {serial.hex()} is {what}: configuration "
            f"{'locked' if config[CONFIG_LOCK] == 0 else 'open'}, data "
            f"{'locked' if config[DATA_LOCK] == 0 else 'open'}"
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
        _primary(chip, kind),
        read_set(chip, AUXILIARY) if kind == NERVES_KEY else None,
    )


def _primary(chip: DeskChip, kind: str) -> CertificateSet | None:
    found = read_set(chip, PRIMARY)
    if found is None or kind != TRUST_AND_GO:
        return found
    # Trust&GO keeps keys as Verify wants them in a slot: 4 bytes in front of X and of Y
    key = chip.read_slot(PRIMARY[SIGNER_KEY])
    return found._replace(signer_key=key[4:36] + key[40:72])


def set_contents(certificates: CertificateSet, slots: dict[str, int]) -> dict[int, bytes]:
    """Return what stands in each of ``slots`` for these certificates."""
    return {
        slots[DEVICE]: certificates.device,
        slots[SIGNER_KEY]: certificates.signer_key.ljust(72, b"\0"),
        slots[SIGNER]: certificates.signer,
    }


# -- what can be written for ever


def write_auxiliary(chip: DeskChip, certificates: CertificateSet) -> None:
    """Write the auxiliary certificates and read them back. They can be replaced at any time.

    The device certificate is taken out first and written last: a set that was interrupted is none.

    :raises ChipError: when the chip fails.
    """
    contents = set_contents(certificates, AUXILIARY)
    _erase(chip, AUXILIARY[DEVICE])
    for what in (SIGNER_KEY, SIGNER, DEVICE):
        slot = AUXILIARY[what]
        chip.write_slot(slot, contents[slot])
        wrong = differences(chip.read_slot(slot), contents[slot])
        if wrong:
            raise ChipMismatchError(f"slot {slot} does not read back as written: {wrong}")


def clear_auxiliary(chip: DeskChip) -> None:
    """Take the auxiliary certificates out.

    :raises ChipError: when the chip fails.
    """
    for what in (DEVICE, SIGNER_KEY, SIGNER):
        _erase(chip, AUXILIARY[what])


def _erase(chip: DeskChip, slot: int) -> None:
    # The dates first: without them what is left is no certificate, should this be interrupted.
    chip.write(ZONE_DATA, data_address(slot, 64), bytes(4))
    chip.write_slot(slot, bytes(72))


def settings_slots(kind: str) -> tuple[int, ...]:
    """Return the slots that hold the settings of a chip of ``kind``."""
    return TRUST_AND_GO_SETTINGS if kind == TRUST_AND_GO else SETTINGS


def read_settings(chip: DeskChip, kind: str = NERVES_KEY) -> bytes:
    """Return the settings as they are, 524 bytes (416 of a Trust&GO part).

    :raises ChipError: when the chip fails.
    """
    return b"".join(chip.read_slot(slot) for slot in settings_slots(kind))


def write_settings(chip: DeskChip, data: bytes, kind: str = NERVES_KEY) -> None:
    """Replace the settings.

    :raises ValueError: when they are too long.
    :raises ChipError: when the chip fails.
    """
    slots = settings_slots(kind)
    room = sum(SLOT_SIZES[slot] for slot in slots)
    if len(data) > room:
        raise ValueError(f"{len(data)} bytes of settings, the chip has room for {room}")
    data = data.ljust(room, b"\0")
    for slot in slots:
        chip.write_slot(slot, data[: SLOT_SIZES[slot]])
        data = data[SLOT_SIZES[slot] :]


def read_settings_term(chip: DeskChip, kind: str = NERVES_KEY) -> Any:
    """Return the settings as the Erlang term that NervesKey keeps there, usually a map.

    :raises ChipError: when the chip fails.
    :raises ValueError: when there is no term, as in a new chip.
    """
    data = read_settings(chip, kind)
    if data[:1] != b"\x83":
        raise ValueError(f"no settings: they begin with {data[:4].hex()}, not as an Erlang term")
    return etf.decode_bare(data, 1)[0]


def write_settings_term(chip: DeskChip, term: Any, kind: str = NERVES_KEY) -> None:
    """Replace the settings by an Erlang term; text becomes a binary, as NervesKey has it.

    :raises ValueError: when the term is too long.
    :raises ChipError: when the chip fails.
    """
    write_settings(chip, etf.encode(term), kind)
