# SPDX-License-Identifier: Apache-2.0
"""What a virtual chip keeps without power, and the file it keeps it in.

The file is JSON for people to read. It holds the chip's private keys, so only its owner may read
it; it is replaced as a whole and synced before a command is reported as done, as a real chip's
EEPROM is. It is never made anew because it could not be read: a chip that lost its key is another
chip, and only a person can decide that.
"""

from __future__ import annotations

import copy
import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

from meshlab.chip import ecc

FORMAT = 1
"""Version of the file's layout."""

MODEL = "ATECC608A"
"""The model of a virtual chip unless another one is asked for."""

REVISIONS = {"ATECC508A": "00005000", "ATECC608A": "00006002", "ATECC608B": "00006003"}
"""The models and their revision bytes."""

SLOTS = 16
SLOT_SIZES = (36,) * 8 + (416,) + (72,) * 7
"""Bytes of each slot of the data zone."""

OTP_SIZE = 64
CONFIG_SIZE = 128
SERIAL_SIZE = 9

# As public dumps of factory-new 608A chips agree; the serial number goes to 0-3 and 8-12.
_FACTORY = bytes.fromhex(
    "01230000 00006002 00000000 ee c1 6100"
    "c0000000 83208720 8f20c48f 8f8f8f8f 9f8faf8f 00000000 00000000 00000000 0000af8f"
    "ffffffff 00000000 ffffffff 00000000"
    "00000000 00000000 00000000 00000000 00005555 ffff0000 00000000"
    "3300330033001c001c001c001c001c00 3c003c003c003c003c003c003c001c00"
)


class ChipStateError(Exception):
    """The file of a virtual chip cannot be used. The message says why and what to do."""


def factory_config(serial: bytes, model: str = MODEL) -> bytearray:
    """Return the configuration zone of a factory-new chip with this ``serial`` (9 bytes).

    Of a 508A only what differs for certain is its own: the revision, the OTP mode in byte 18, and
    LastKeyUse in 68 to 83 (reference dump of the Elixir library atecc508a).
    """
    if len(serial) != SERIAL_SIZE:
        raise ValueError(f"a serial number has {SERIAL_SIZE} bytes, not {len(serial)}")
    config = bytearray(_FACTORY)
    config[0:4], config[8:13] = serial[:4], serial[4:]
    config[4:8] = bytes.fromhex(REVISIONS[model])
    if model == "ATECC508A":
        config[13], config[18] = 0xC0, 0x55
        config[68:84] = b"\xff" * 16
    return config


def serial_for(seed: int | str, index: int) -> bytes:
    """Return the serial number (9 bytes) of the chip of node ``index`` in the lab with ``seed``."""
    middle = sha256(f"thicket-chip/{seed}/{index}".encode()).digest()[:6]
    return b"\x01\x23" + middle + b"\xee"


class ChipState:
    """The non-volatile memory of a chip: configuration, OTP and data zones, private keys."""

    def __init__(self, serial: bytes, model: str = MODEL) -> None:
        """Make the memory of a factory-new chip of ``model``, a name in ``REVISIONS``."""
        self.model = model
        self.config = factory_config(serial, model)
        self.otp = bytearray(b"\xff" * OTP_SIZE)
        self.slots = [bytearray(b"\xff" * size) for size in SLOT_SIZES]
        self.keys: dict[int, bytes] = {}

    @property
    def serial(self) -> bytes:
        """The serial number, 9 bytes."""
        return bytes(self.config[0:4] + self.config[8:13])

    def copy(self) -> Self:
        """Return an independent copy."""
        return copy.deepcopy(self)

    def __eq__(self, other: object) -> bool:
        """Compare contents."""
        return isinstance(other, ChipState) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    # -- the file

    def dump(self) -> str:
        """Return the text of the file."""
        document = {
            "format": FORMAT,
            "model": self.model,
            "serial": self.serial.hex(),
            "config": self.config.hex(),
            "otp": self.otp.hex(),
            "slots": [slot.hex() for slot in self.slots],
            "private_keys": {str(slot): key.hex() for slot, key in sorted(self.keys.items())},
        }
        return json.dumps(document, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write the file so that at every moment it is the old or the new one, readable by us only.

        :raises OSError: when it cannot be written.
        """
        new = path.with_name(path.name + ".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(self.dump())
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @classmethod
    def load(cls, path: Path, serial: bytes) -> Self:
        """Read the file of the chip with this ``serial``.

        :raises ChipStateError: when it cannot be read, is damaged, or of another chip.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(path, f"cannot be read: {error}") from error
        try:
            state = cls._parse(json.loads(text))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise _unusable(path, f"is damaged: {error or type(error).__name__}") from error
        if state.serial != serial:
            raise _unusable(
                path, f"belongs to chip {state.serial.hex()}, the chip {serial.hex()} is needed"
            )
        return state

    @classmethod
    def _parse(cls, document: dict[str, Any]) -> Self:
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}, this program knows {FORMAT}")
        model = document["model"]
        if model not in REVISIONS:
            raise ValueError(f"model {model!r} is none of {', '.join(REVISIONS)}")
        state = cls(bytes.fromhex(document["serial"]), model)
        serial = state.serial
        state.config = _sized("config", document["config"], CONFIG_SIZE)
        if state.serial != serial:
            raise ValueError("serial and config disagree")
        if state.config[4:8] != bytes.fromhex(REVISIONS[model]):
            raise ValueError(f"the revision in config is not that of {model}")
        state.otp = _sized("otp", document["otp"], OTP_SIZE)
        slots = document["slots"]
        if len(slots) != SLOTS:
            raise ValueError(f"{len(slots)} slots instead of {SLOTS}")
        state.slots = [
            _sized(f"slot {number}", slot, size)
            for number, (slot, size) in enumerate(zip(slots, SLOT_SIZES, strict=True))
        ]
        for slot, text in document["private_keys"].items():
            key = bytes.fromhex(text)
            if not 0 <= int(slot) < SLOTS or not ecc.is_private_key(key):
                raise ValueError(f"the private key of slot {slot} is none")
            state.keys[int(slot)] = key
        return state


def _sized(name: str, text: str, size: int) -> bytearray:
    data = bytearray.fromhex(text)
    if len(data) != size:
        raise ValueError(f"{name} has {len(data)} bytes instead of {size}")
    return data


def _unusable(path: Path, reason: str) -> ChipStateError:
    return ChipStateError(
        f"{path}: the state of a virtual chip {reason}. Put a good copy back, or remove the file "
        "to get a factory-new chip (its private keys and its provisioning are then gone for ever)"
    )
