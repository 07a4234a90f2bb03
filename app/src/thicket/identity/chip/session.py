# SPDX-License-Identifier: Apache-2.0
"""The commands of one conversation with a chip that is awake (data sheet, section 9)."""

from __future__ import annotations

from thicket.identity.chip.errors import (
    CheckFailedError,
    ChipParseError,
    ChipRefusedError,
    failure,
)
from thicket.identity.chip.memory import model_of
from thicket.identity.chip.packet import Op, pack_command
from thicket.identity.chip.wire import Wire

BLOCK = 0x80
"""Bit of the zone in Read and Write: a block of 32 bytes, not a word of 4."""

P256 = 0x0004
"""Key type of the curve P-256."""


class InfoMode:
    """What Info tells."""

    REVISION = 0x00
    KEY_VALID = 0x01


class NonceMode:
    """What Nonce fills, and with what."""

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


class VerifyMode:
    """Where Verify has the public key from."""

    STORED = 0x00
    EXTERNAL = 0x02


class ShaMode:
    """The steps of SHA."""

    START = 0x00
    UPDATE = 0x01
    END = 0x02


class LockMode:
    """What Lock locks; for a slot its number stands above bit 2."""

    CONFIG = 0x00
    DATA = 0x01
    SLOT = 0x02


class ExtraMode:
    """Which byte of the configuration UpdateExtra sets."""

    BYTE_84 = 0
    BYTE_85 = 1


SELF_TESTS = {0x01: "random numbers", 0x02: "ECDSA", 0x08: "ECDH", 0x10: "AES", 0x20: "SHA"}
"""What an ATECC608 can test of itself, by the bit that asks for it and that reports its failure
(ATECC608A data sheet, SelfTest)."""

ALL_TESTS = sum(SELF_TESTS)


class Session:
    """The commands of one conversation with a chip that is awake.

    Get one from ``Atecc.run``. Every method raises the ``ChipError`` that tells what happened; what
    the volatile registers hold is lost when the conversation is repeated.
    """

    def __init__(self, wire: Wire) -> None:
        """Give commands on ``wire``, whose chip must be awake."""
        self._wire = wire
        self._given = 0

    def execute(
        self, opcode: int, param1: int = 0, param2: int = 0, data: bytes = b"", *, reply: int = 1
    ) -> bytes:
        """Give one command and return the payload of its reply, which must be ``reply`` bytes.

        With ``reply=1`` the reply is a status, which is checked to be "success".
        """
        self._given += 1
        try:
            return self._wire.execute(pack_command(opcode, param1, param2, data), reply)
        except ChipRefusedError as error:
            # What an earlier command left in TempKey may be gone because somebody else on the bus
            # sent the chip to sleep and woke it: once more, then it is the policy's word.
            error.repeats = int(self._given > 1)
            raise

    def revision(self) -> bytes:
        """Return the 4 revision bytes (Info)."""
        return self.execute(Op.INFO, InfoMode.REVISION, reply=4)

    def read(self, zone: int, address: int, length: int) -> bytes:
        """Read 4 or 32 bytes at an address word of a zone (Read)."""
        if length not in (4, 32):
            raise ValueError("the chip reads 4 or 32 bytes at a time")
        return self.execute(Op.READ, zone | (BLOCK if length == 32 else 0), address, reply=length)

    def write(self, zone: int, address: int, data: bytes) -> None:
        """Write 4 or 32 bytes in the clear at an address word of a zone (Write)."""
        if len(data) not in (4, 32):
            raise ValueError("the chip writes 4 or 32 bytes at a time")
        self.execute(Op.WRITE, zone | (BLOCK if len(data) == 32 else 0), address, data)

    def random(self) -> bytes:
        """Return 32 random bytes (Random). ``FFFF0000...`` until the configuration is locked."""
        return self.execute(Op.RANDOM, reply=32)

    def nonce(self, number: bytes) -> bytes:
        """Fill TempKey from the chip's random number and ``number`` (20 bytes): return the former.

        TempKey is then SHA-256 of the 32 bytes returned, ``number``, and the bytes 16 00 00.
        """
        if len(number) != 20:
            raise ValueError("a nonce takes 20 bytes from the host")
        return self.execute(Op.NONCE, NonceMode.RANDOM, 0, number, reply=32)

    def load(self, digest: bytes) -> None:
        """Put ``digest`` (32 bytes) into TempKey as it is (Nonce in pass-through mode)."""
        if len(digest) != 32:
            raise ValueError("a SHA-256 digest has 32 bytes")
        self.execute(Op.NONCE, NonceMode.TEMP_KEY, 0, digest)

    def load_digest(self, digest: bytes) -> None:
        """Put ``digest`` (32 bytes) into the Message Digest Buffer (ATECC608 only)."""
        if len(digest) != 32:
            raise ValueError("a SHA-256 digest has 32 bytes")
        self.execute(Op.NONCE, NonceMode.DIGEST_BUFFER, 0, digest)

    def key_valid(self, slot: int) -> bool:
        """Tell whether ``slot`` holds a private key that can be used (Info, mode KeyValid)."""
        return bool(self.execute(Op.INFO, InfoMode.KEY_VALID, slot, reply=4)[0])

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

    def verify(self, signature: bytes, public_key: bytes) -> bool:
        """Tell whether ``signature`` of what ``load`` put into TempKey is by ``public_key``."""
        if len(signature) != 64 or len(public_key) != 64:
            raise ValueError("a signature and a public key have 64 bytes")
        try:
            self.execute(Op.VERIFY, VerifyMode.EXTERNAL, P256, signature + public_key)
        except CheckFailedError:
            return False
        return True

    def verify_stored(self, signature: bytes, slot: int) -> bool:
        """Tell whether ``signature`` of TempKey is by the public key stored in ``slot``."""
        if len(signature) != 64:
            raise ValueError("a signature has 64 bytes")
        try:
            self.execute(Op.VERIFY, VerifyMode.STORED, slot, signature)
        except CheckFailedError:
            return False
        return True

    def ecdh(self, slot: int, point: bytes) -> bytes:
        """Return the secret (32 bytes) shared with the owner of ``point`` (X and Y, 64 bytes).

        It comes over the bus in the clear. Raises ``ChipRefusedError`` when the policy of the slot
        does not allow that, ``ChipFaultError`` when the point is not on the curve.
        """
        if len(point) != 64:
            raise ValueError("a public key has 64 bytes")
        return self.execute(Op.ECDH, 0, slot, point, reply=32)

    def sha256(self, message: bytes) -> bytes:
        """Return the SHA-256 digest of ``message`` as the chip computes it (SHA).

        All must happen in one time awake, and a block of 64 bytes may take an ATECC608 36 ms: a
        message is limited to 512 bytes. The host hashes faster.
        """
        if len(message) > 512:
            raise ValueError(f"{len(message)} bytes are too many for the chip, hash on the host")
        self.execute(Op.SHA, ShaMode.START)
        whole = len(message) // 64 * 64
        for at in range(0, whole, 64):
            self.execute(Op.SHA, ShaMode.UPDATE, 64, message[at : at + 64])
        rest = message[whole:]
        return self.execute(Op.SHA, ShaMode.END, len(rest), rest, reply=32)

    def self_test(self, tests: int = ALL_TESTS) -> list[str]:
        """Let an ATECC608 test itself and return what failed, in words of ``SELF_TESTS``.

        ``tests`` is the sum of the bits in ``SELF_TESTS``. A 508A raises ``ChipParseError``.
        """
        if model_of(self.revision()) == "ATECC508A":
            raise ChipParseError("an ATECC508A has no command for a self-test")
        # The result looks like a status: 0 when all is well, else the bits of what failed.
        packet = pack_command(Op.SELF_TEST, tests)
        failed = self._wire.exchange(packet, 1)[0]
        # Status codes that are no set of the tests asked for are failures of another kind.
        if failed & ~tests:
            raise failure(failed)
        return [name for bit, name in SELF_TESTS.items() if failed & bit]

    def update_extra(self, mode: int, value: int) -> None:
        """Set byte 84 (mode 0) or 85 (mode 1) of the configuration (UpdateExtra).

        Once the configuration is locked, that works only while the byte is zero.
        """
        if mode not in (ExtraMode.BYTE_84, ExtraMode.BYTE_85) or not 0 <= value <= 0xFF:
            raise ValueError("UpdateExtra sets byte 84 (mode 0) or 85 (mode 1) to 0..255")
        self.execute(Op.UPDATE_EXTRA, mode, value)

    def renew(self) -> None:
        """Let the chip idle for a moment and wake it: its watchdog starts anew.

        TempKey survives that, a SHA computation and the Message Digest Buffer are not promised to.
        """
        self._wire.renew()

    def counter(self, number: int, *, increment: bool = False) -> int:
        """Return counter ``number`` (0 or 1), after counting up by one if ``increment``."""
        return int.from_bytes(self.execute(Op.COUNTER, int(increment), number, reply=4), "little")

    def lock(self, mode: int, crc: int = 0) -> None:
        """Lock for ever what ``mode`` says (Lock): see ``Atecc.lock_config`` and its like."""
        self.execute(Op.LOCK, mode, crc)
