# SPDX-License-Identifier: Apache-2.0
"""Commands and replies as they go over the bus (data sheet, sections 6 and 9)."""

from __future__ import annotations

from thicket.identity.chip.errors import ChipProtocolError


class Word:
    """Word addresses: the first byte of every write, which says what the write is."""

    RESET_POINTER = 0x00
    SLEEP = 0x01
    IDLE = 0x02
    COMMAND = 0x03


class Op:
    """Opcodes of the commands."""

    READ = 0x02
    WRITE = 0x12
    NONCE = 0x16
    LOCK = 0x17
    RANDOM = 0x1B
    UPDATE_EXTRA = 0x20
    COUNTER = 0x24
    INFO = 0x30
    GENKEY = 0x40
    SIGN = 0x41
    ECDH = 0x43
    VERIFY = 0x45
    SHA = 0x47
    SELF_TEST = 0x77


AFTER_WAKE = bytes.fromhex("04113343")
SELF_TEST_FAILED = bytes.fromhex("0407c440")
"""Answers after a wake pulse: the chip has just been woken, or its self-test at power-on failed."""

MAX_COUNT = 155
"""Largest packet in bytes, count byte and CRC included."""

TIMES = {
    Op.READ: (0.001, 0.1),
    Op.WRITE: (0.007, 0.2),
    Op.NONCE: (0.001, 0.1),
    Op.LOCK: (0.008, 0.2),
    Op.UPDATE_EXTRA: (0.005, 0.1),
    Op.RANDOM: (0.001, 0.1),
    Op.COUNTER: (0.005, 0.1),
    Op.INFO: (0.001, 0.1),
    Op.GENKEY: (0.030, 0.8),
    Op.SIGN: (0.030, 0.8),
    Op.ECDH: (0.030, 0.8),
    Op.VERIFY: (0.030, 1.2),
    Op.SHA: (0.005, 0.1),
    Op.SELF_TEST: (0.050, 0.7),
}
"""For each command the seconds until the first poll, and until the chip is given up.

The first is about the typical time. The second is above the worst case of the slowest clock of an
ATECC608 (Sign 665 ms, GenKey 653 ms, ECDH 531 ms, Verify 1085 ms), so that it fits every model.
"""

UNKNOWN_TIMES = (0.005, 1.2)
"""The same for other commands."""


def crc16(data: bytes) -> bytes:
    """Return the CRC of a packet in the order of the wire: 2 bytes, little-endian.

    Polynomial 0x8005, start 0, lowest bit of a byte first, register not reflected (data sheet, "CRC
    calculation").
    """
    register = 0
    for byte in data:
        for bit in range(8):
            feedback = (byte >> bit & 1) ^ register >> 15
            register = register << 1 & 0xFFFF
            if feedback:
                register ^= 0x8005
    return register.to_bytes(2, "little")


def pack_command(opcode: int, param1: int = 0, param2: int = 0, data: bytes = b"") -> bytes:
    """Return a command as the bytes of a write, word address included."""
    count = 7 + len(data)
    if count > MAX_COUNT:
        raise ValueError(f"{len(data)} bytes do not fit in a command ({MAX_COUNT - 7} do)")
    body = bytes((count, opcode, param1)) + param2.to_bytes(2, "little") + data
    return bytes((Word.COMMAND,)) + body + crc16(body)


def unpack_reply(raw: bytes) -> bytes:
    """Return the payload of a reply; bytes after it are ignored, as the chip goes on with FF.

    :raises ChipProtocolError: the length or the CRC is wrong.
    """
    count = raw[0] if raw else 0
    if not 4 <= count <= len(raw):
        raise ChipProtocolError(f"reply of impossible length: {raw[:8].hex()}")
    if crc16(raw[: count - 2]) != raw[count - 2 : count]:
        raise ChipProtocolError(f"reply with a bad CRC: {raw[:count].hex()}")
    return raw[1 : count - 2]
