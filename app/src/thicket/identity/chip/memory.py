# SPDX-License-Identifier: Apache-2.0
"""The layout of the chip's memory, and what it tells."""

from __future__ import annotations

ZONE_CONFIG, ZONE_DATA = 0, 2

CONFIG_SIZE = 128

SLOTS = 16
SLOT_SIZES = (36,) * 8 + (416,) + (72,) * 7
"""Bytes of each slot of the data zone (data sheet, section 2.1)."""

LOCK_WORD = 21
"""Word of the configuration that holds locks: bytes 86 (data and OTP) and 87 (configuration) are 0
when locked."""

DATA_LOCK, CONFIG_LOCK, SLOT_LOCKS = 86, 87, 88
"""Bytes of the configuration that hold the locks; those of the slots are two bytes."""


def model_of(revision: bytes) -> str:
    """Return the name of the chip with these 4 revision bytes (configuration bytes 4 to 7)."""
    if revision[:3] == b"\x00\x00\x60":
        return "ATECC608B" if revision[3] >= 0x03 else "ATECC608A"
    return "ATECC508A" if revision[2:3] == b"\x50" else f"unknown ({revision.hex()})"


def serial_in(block: bytes) -> bytes:
    """Return the serial number (9 bytes) in the first block of the configuration zone."""
    return block[0:4] + block[8:13]


def data_address(slot: int, offset: int) -> int:
    """Return the address word of byte ``offset`` of ``slot`` in the data zone."""
    if not 0 <= slot < SLOTS or not 0 <= offset < SLOT_SIZES[slot]:
        raise ValueError(f"there is no byte {offset} in slot {slot}")
    block, rest = divmod(offset, 32)
    return block << 8 | slot << 3 | rest >> 2
