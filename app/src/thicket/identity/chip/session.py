# SPDX-License-Identifier: Apache-2.0
"""The commands of one conversation with a chip that is awake (data sheet, section 9)."""

from __future__ import annotations

from thicket.identity.chip.errors import ChipRefusedError
from thicket.identity.chip.packet import Op, pack_command
from thicket.identity.chip.wire import Wire

BLOCK = 0x80
"""Bit of the zone in Read and Write: a block of 32 bytes, not a word of 4."""


class NonceMode:
    """What Nonce fills."""

    RANDOM = 0x00
    TEMP_KEY = 0x03
    DIGEST_BUFFER = 0x43


class GenKeyMode:
    """What GenKey does with the key of a slot."""

    PUBLIC = 0x00
    NEW = 0x04


class SignMode:
    """Where the digest is that Sign signs."""

    TEMP_KEY = 0x80
    DIGEST_BUFFER = 0xA0


class LockMode:
    """What Lock locks; for a slot its number stands above bit 2."""

    CONFIG = 0x00
    DATA = 0x01
    SLOT = 0x02


class Session:
    """The commands of one conversation with a chip that is awake; ``Atecc.run`` makes it.

    The contents of the volatile registers are lost when the conversation is repeated.

    :raises ChipError: any method; the class says what happened.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._given = 0

    def execute(
        self, opcode: int, param1: int = 0, param2: int = 0, data: bytes = b"", *, reply: int = 1
    ) -> bytes:
        """Give one command, and return the payload of its reply.

        :param reply: the length of the payload; with 1 it is a status, which must be "success".
        """
        self._given += 1
        try:
            return self.wire.execute(pack_command(opcode, param1, param2, data), reply)
        except ChipRefusedError as error:
            # Another program may have sent the chip to sleep and woken it, so that the contents of
            # TempKey are gone. One repetition tells that from a refusal by the slot's policy.
            error.repeats = int(self._given > 1)
            raise

    def read(self, zone: int, address: int, length: int) -> bytes:
        """Read 4 or 32 bytes at an address word of a zone (Read)."""
        if length not in (4, 32):
            raise ValueError("the chip reads 4 or 32 bytes at a time")
        return self.execute(Op.READ, zone | (BLOCK if length == 32 else 0), address, reply=length)

    def load(self, digest: bytes) -> None:
        """Put ``digest`` (32 bytes) into TempKey as it is (Nonce in pass-through mode)."""
        if len(digest) != 32:
            raise ValueError("a SHA-256 digest has 32 bytes")
        self.execute(Op.NONCE, NonceMode.TEMP_KEY, 0, digest)

    def generate_key(self, slot: int) -> bytes:
        """Make a new private key in ``slot`` and return its public key, X and Y, 64 bytes."""
        return self.execute(Op.GENKEY, GenKeyMode.NEW, slot, reply=64)

    def public_key(self, slot: int) -> bytes:
        """Return the public key of the private key in ``slot``, X and Y, 64 bytes (GenKey)."""
        return self.execute(Op.GENKEY, GenKeyMode.PUBLIC, slot, reply=64)

    def sign(self, slot: int, *, buffer: bool = False) -> bytes:
        """Sign what ``load`` put into TempKey: R and S, 64 bytes.

        With ``buffer``, sign what ``load_digest`` put into the Message Digest Buffer.
        """
        mode = SignMode.DIGEST_BUFFER if buffer else SignMode.TEMP_KEY
        return self.execute(Op.SIGN, mode, slot, reply=64)

    def counter(self, number: int, *, increment: bool = False) -> int:
        """Return counter ``number`` (0 or 1), after counting up by one if ``increment``."""
        return int.from_bytes(self.execute(Op.COUNTER, int(increment), number, reply=4), "little")

    def lock(self, mode: int, crc: int = 0) -> None:
        """Lock for ever what ``mode`` says (Lock): see ``Atecc.lock_config`` and its like."""
        self.execute(Op.LOCK, mode, crc)
