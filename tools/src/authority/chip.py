# SPDX-License-Identifier: Apache-2.0
"""What the engineer's desk does with a chip beyond what a node does: configuration, locks, slots.

The driver itself, with what a node needs, is ``thicket.identity.chip``. Nothing of this module is
in an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from thicket.identity.chip.atecc import Atecc
from thicket.identity.chip.errors import (
    CheckFailedError,
    ChipError,
    ChipMismatchError,
    ChipParseError,
    ChipRefusedError,
    failure,
)
from thicket.identity.chip.memory import (
    CONFIG_LOCK,
    CONFIG_SIZE,
    DATA_LOCK,
    LOCK_WORD,
    SLOT_LOCKS,
    SLOT_SIZES,
    ZONE_CONFIG,
    ZONE_DATA,
    data_address,
    model_of,
)
from thicket.identity.chip.packet import Op, crc16, pack_command
from thicket.identity.chip.session import BLOCK, LockMode, NonceMode, Session

T = TypeVar("T")

ZONE_OTP = 1
OTP_SIZE = 64

SLOT_LOCK_WORD = 22
"""Word of the configuration with the locks of the slots: a bit of bytes 88 and 89 is 0 when that
slot is locked."""

P256 = 0x0004
"""Key type of the curve P-256."""

ADDRESS_BYTE = 16
"""Byte of the configuration with the I2C address, which is above its lowest bit."""

EXTRA = 84
"""First of the two bytes of the configuration that UpdateExtra sets, and Write does not reach."""

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

SELF_TESTS = {0x01: "random numbers", 0x02: "ECDSA", 0x08: "ECDH", 0x10: "AES", 0x20: "SHA"}
"""What an ATECC608 can test of itself, by the bit that asks for it and that reports its failure
(ATECC608A data sheet, SelfTest)."""

ALL_TESTS = sum(SELF_TESTS)


class InfoMode:
    """What Info tells."""

    REVISION = 0x00
    KEY_VALID = 0x01


class VerifyMode:
    """Where Verify has the public key from."""

    STORED = 0x00
    EXTERNAL = 0x02


class ShaMode:
    """The steps of SHA."""

    START = 0x00
    UPDATE = 0x01
    END = 0x02


class ExtraMode:
    """Which byte of the configuration UpdateExtra sets."""

    BYTE_84 = 0
    BYTE_85 = 1


class DeskSession(Session):
    """All commands of one conversation with a chip that is awake."""

    def revision(self) -> bytes:
        """Return the 4 revision bytes (Info)."""
        return self.execute(Op.INFO, InfoMode.REVISION, reply=4)

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

    def load_digest(self, digest: bytes) -> None:
        """Put ``digest`` (32 bytes) into the Message Digest Buffer (ATECC608 only)."""
        if len(digest) != 32:
            raise ValueError("a SHA-256 digest has 32 bytes")
        self.execute(Op.NONCE, NonceMode.DIGEST_BUFFER, 0, digest)

    def key_valid(self, slot: int) -> bool:
        """Tell whether ``slot`` holds a private key that can be used (Info, mode KeyValid)."""
        return bool(self.execute(Op.INFO, InfoMode.KEY_VALID, slot, reply=4)[0])

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
        failed = self.wire.exchange(packet, 1)[0]
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
        self.wire.renew()


class DeskChip(Atecc):
    """The chip with all its commands, for provisioning and for tests."""

    def run(self, conversation: Callable[[DeskSession], T]) -> T:
        """See ``Atecc.run``; the conversation may give all commands."""
        return super().run(lambda session: conversation(DeskSession(session.wire)))

    def revision(self) -> bytes:
        """Return the 4 revision bytes."""
        return self.run(DeskSession.revision)

    def compare_config(self, wanted: bytes, skip: Iterable[int] = ()) -> str:
        """Say in words where the configuration is not ``wanted`` (128 bytes); empty when equal.

        What no Write can change is not compared (``CHIPS_OWN``), nor is what ``skip`` names.
        """
        return differences(self.read_config(), whole_config(wanted), {*CHIPS_OWN, *skip})

    def write_config(self, wanted: bytes, *, whole: bool = False) -> None:
        """Write the configuration zone so that it is ``wanted`` (128 bytes), and read it back.

        Only words that differ are written, or all that can be with ``whole``. Bytes 84 and 85 go
        by UpdateExtra; the chip's own bytes and the locks (``CHIPS_OWN``) are left alone. When the
        I2C address changes, ``address`` follows it.

        Raises ``ChipRefusedError`` when the zone is locked already, and ``ChipMismatchError`` when
        the chip did not take everything over.
        """
        wanted = whole_config(wanted)
        present = self.read_config()
        if present[CONFIG_LOCK] == 0:
            raise ChipRefusedError(
                "the configuration zone is locked; nothing can be written to it any more"
            )
        for offset, size in CONFIG_WRITES:
            piece = wanted[offset : offset + size]
            if offset == SLOT_LOCKS:  # as they are
                piece = (
                    present[SLOT_LOCKS : SLOT_LOCKS + 2] + wanted[SLOT_LOCKS + 2 : SLOT_LOCKS + 4]
                )
            now = present[offset : offset + size]
            if offset == ADDRESS_BYTE and piece[0] >> 1 != self.address:
                self._move(piece)
            elif piece != now or (whole and offset != SLOT_LOCKS):
                self.write(ZONE_CONFIG, offset >> 2, piece)
        for mode in (ExtraMode.BYTE_84, ExtraMode.BYTE_85):
            value = wanted[EXTRA + mode]
            if value != present[EXTRA + mode]:
                self.update_extra(mode, value)
        wrong = self.compare_config(wanted)
        if wrong:
            raise ChipMismatchError(f"the configuration does not read back as written: {wrong}")

    def _move(self, word: bytes) -> None:
        """Write the word with the I2C address, which the chip has from its next wake-up on."""
        old, new = self.address, word[0] >> 1
        try:
            self.write(ZONE_CONFIG, ADDRESS_BYTE >> 2, word)
        except ChipError:
            # When only the answer was lost, the chip is at its new address already.
            self.address = new
            try:
                self.serial_number()
            except ChipError:
                self.address = old
                raise
        self.address = new

    def update_extra(self, mode: int, value: int) -> None:
        """Set byte 84 (mode 0) or 85 (mode 1) of the configuration; see ``Session``."""
        first = True

        def conversation(session: DeskSession) -> None:
            nonlocal first
            # Repeated after the locks it is refused, so look whether the lost one did it.
            if not first and session.read(ZONE_CONFIG, LOCK_WORD, 4)[mode] == value:
                return
            first = False
            session.update_extra(mode, value)

        self.run(conversation)

    def read_otp(self) -> bytes:
        """Return the OTP zone, 64 bytes. Raises ``ChipRefusedError`` until the data is locked."""
        return self.run(
            lambda session: session.read(ZONE_OTP, 0, 32) + session.read(ZONE_OTP, 8, 32)
        )

    def write_otp(self, data: bytes) -> None:
        """Write the OTP zone (64 bytes): possible between the two locks of the chip only."""
        if len(data) != OTP_SIZE:
            raise ValueError(f"the OTP zone has {OTP_SIZE} bytes, not {len(data)}")
        self.write(ZONE_OTP, 0, data[:32])
        self.write(ZONE_OTP, 8, data[32:])

    def write_slot(self, slot: int, data: bytes, *, locked: bool = True) -> None:
        """Write ``data`` to the beginning of a slot in the clear.

        Its size is a multiple of 4; while the data zone is not ``locked`` the chip takes whole
        blocks of 32 bytes only, so the last one is filled up with zeros. A slot is not written at
        once: when this raises, the blocks before may be new and those behind old.

        Raises ``ChipRefusedError`` when the policy of the slot or its lock forbids it.
        """
        if len(data) > SLOT_SIZES[slot] or len(data) % 4:
            raise ValueError(
                f"{len(data)} bytes for slot {slot}: at most {SLOT_SIZES[slot]}, a multiple of 4"
            )
        offset = 0
        while offset < len(data):
            piece = data[offset : offset + 32]
            if len(piece) < 32:
                piece = piece[:4] if locked else piece.ljust(32, b"\0")
            self.write(ZONE_DATA, data_address(slot, offset), piece)
            offset += len(piece)

    def write(self, zone: int, address: int, data: bytes) -> None:
        """Write 4 or 32 bytes in the clear at an address word of a zone."""
        self.run(lambda session: session.write(zone, address, data))

    def random(self) -> bytes:
        """Return 32 random bytes."""
        return self.run(DeskSession.random)

    def nonce(self, number: bytes) -> bytes:
        """Return the 32 random bytes of a nonce with ``number`` (20 bytes) mixed in."""
        return self.run(lambda session: session.nonce(number))

    def verify(self, digest: bytes, signature: bytes, public_key: bytes) -> bool:
        """Let the chip check a signature of a SHA-256 ``digest``."""

        def conversation(session: DeskSession) -> bool:
            session.load(digest)
            return session.verify(signature, public_key)

        return self.run(conversation)

    def verify_stored(self, digest: bytes, signature: bytes, slot: int) -> bool:
        """Let the chip check a signature of a SHA-256 ``digest`` by the public key in ``slot``."""

        def conversation(session: DeskSession) -> bool:
            session.load(digest)
            return session.verify_stored(signature, slot)

        return self.run(conversation)

    def key_valid(self, slot: int) -> bool:
        """Tell whether ``slot`` holds a private key that can be used."""
        return self.run(lambda session: session.key_valid(slot))

    def ecdh(self, slot: int, point: bytes) -> bytes:
        """Return the secret shared with the owner of ``point``; see ``Session.ecdh``."""
        return self.run(lambda session: session.ecdh(slot, point))

    def sha256(self, message: bytes) -> bytes:
        """Return the SHA-256 digest (32 bytes) of at most 512 bytes; see ``Session.sha256``."""
        return self.run(lambda session: session.sha256(message))

    def self_test(self, tests: int = ALL_TESTS) -> list[str]:
        """Let an ATECC608 test itself; what failed, in words. See ``Session.self_test``."""
        return self.run(lambda session: session.self_test(tests))

    def idle(self) -> None:
        """Wake the chip and leave it idle: what it remembers stays until its supply goes."""

        def conversation(session: DeskSession) -> None:
            session.renew()
            self._wire.idle()

        self.run(conversation)

    def lock_data(self, crc: int) -> None:
        """Lock the data and OTP zones for ever, if ``crc`` is that of all that is not a key."""
        self._lock(LockMode.DATA, crc, lambda word: word[2] == 0)

    def lock_slot(self, slot: int) -> None:
        """Lock one slot of the data zone for ever."""
        self._lock(
            slot << 2 | LockMode.SLOT,
            0,
            lambda word: not int.from_bytes(word, "little") >> slot & 1,
            word=SLOT_LOCK_WORD,
        )


def crc_number(data: bytes) -> int:
    """Return the CRC of ``data`` as the number that Lock takes as its second parameter."""
    return int.from_bytes(crc16(data), "little")


def whole_config(wanted: bytes) -> bytes:
    """Return ``wanted`` if it is a whole configuration zone; raises ``ValueError`` otherwise."""
    if len(wanted) != CONFIG_SIZE:
        raise ValueError(f"the configuration zone has {CONFIG_SIZE} bytes, not {len(wanted)}")
    return bytes(wanted)


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
