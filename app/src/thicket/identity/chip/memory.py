# SPDX-License-Identifier: Apache-2.0
"""The chip's memory: its three zones, what Write can reach of them, and what they tell."""

from __future__ import annotations

from collections.abc import Iterable

ZONE_CONFIG, ZONE_OTP, ZONE_DATA = 0, 1, 2

CONFIG_SIZE = 128
OTP_SIZE = 64

SLOTS = 16
SLOT_SIZES = (36,) * 8 + (416,) + (72,) * 7
"""Bytes of each slot of the data zone (data sheet, section 2.1)."""

LOCK_WORD, SLOT_LOCK_WORD = 21, 22
"""Words of the configuration that hold the locks: bytes 86 (data and OTP) and 87 (configuration)
are 0 when locked; a bit of bytes 88 and 89 is 0 when that slot is locked."""

ADDRESS_BYTE = 16
"""Byte of the configuration with the I2C address, which is above its lowest bit."""

EXTRA = 84
"""First of the two bytes of the configuration that UpdateExtra sets, and Write does not reach."""

DATA_LOCK, CONFIG_LOCK, SLOT_LOCKS = 86, 87, 88
"""Bytes of the configuration that hold the locks; those of the slots are two bytes."""

COUNTER_MAX = 2_097_151
"""Where the two counters end."""

CHIPS_OWN = frozenset((*range(16), DATA_LOCK, CONFIG_LOCK, SLOT_LOCKS, SLOT_LOCKS + 1))
"""Bytes of the configuration that Write does not change: serial number, revision, what the factory
enabled, locks."""

CONFIG_WRITES = (
    *((offset, 4) for offset in range(16, 32, 4)),
    (32, 32),
    *((offset, 4) for offset in range(64, 84, 4)),
    (SLOT_LOCKS, 4),
    (92, 4),
    (96, 32),
)
"""Offset and size of the writes that make a configuration: whole blocks where the chip takes
them, single words around the bytes 84 to 87 that Write must not touch."""


def whole_config(wanted: bytes) -> bytes:
    """Return ``wanted`` if it is a whole configuration zone; raises ``ValueError`` otherwise."""
    if len(wanted) != CONFIG_SIZE:
        raise ValueError(f"the configuration zone has {CONFIG_SIZE} bytes, not {len(wanted)}")
    return bytes(wanted)


def model_of(revision: bytes) -> str:
    """Return the name of the chip with these 4 revision bytes (configuration bytes 4 to 7)."""
    if revision[:3] == b"\x00\x00\x60":
        return "ATECC608B" if revision[3] >= 0x03 else "ATECC608A"
    return "ATECC508A" if revision[2:3] == b"\x50" else f"unknown ({revision.hex()})"


def serial_in(block: bytes) -> bytes:
    """Return the serial number (9 bytes) in the first block of the configuration zone."""
    return block[0:4] + block[8:13]


def differences(found: bytes, wanted: bytes, skip: Iterable[int] = ()) -> str:
    """Say where two pieces of memory differ, byte numbers first; empty when they do not.

    Bytes whose number is in ``skip`` are not compared.
    """
    ignored = frozenset(skip)
    size = max(len(found), len(wanted))
    parts: list[str] = []
    at = 0
    while at < size:
        end = at
        while end < size and end not in ignored and found[end : end + 1] != wanted[end : end + 1]:
            end += 1
        if end > at:
            place = f"byte {at}" if end == at + 1 else f"bytes {at} to {end - 1}"
            parts.append(
                f"{place}: {found[at:end].hex() or 'nothing'}, "
                f"not {wanted[at:end].hex() or 'nothing'}"
            )
        at = max(end, at + 1)
    return "; ".join(parts)


def data_address(slot: int, offset: int) -> int:
    """Return the address word of byte ``offset`` of ``slot`` in the data zone."""
    if not 0 <= slot < SLOTS or not 0 <= offset < SLOT_SIZES[slot]:
        raise ValueError(f"there is no byte {offset} in slot {slot}")
    block, rest = divmod(offset, 32)
    return block << 8 | slot << 3 | rest >> 2
