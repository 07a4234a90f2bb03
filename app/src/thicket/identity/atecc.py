# SPDX-License-Identifier: Apache-2.0
"""Driver of the security chip: ATECC508A, ATECC608A and ATECC608B over I2C.

The chip sleeps between conversations. A conversation is: wake it, give commands, send it to sleep.
It has a watchdog of its own that puts it to sleep 0.7 to 1.7 s after the wake-up whatever it is
doing, and with that it forgets everything volatile. ``Session`` holds the commands of one
conversation; ``Atecc`` repeats whole conversations until they succeed or a deadline passes, and is
what the rest of the program uses. Everything here blocks; call it from a thread.

Protocol: Microchip's ATECC508A and ATECC608A data sheets, sections 6 (I2C) and 9 (commands).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from thicket.base.errors import ThicketError
from thicket.identity.bus import Bus, BusError, BusLockedError, NotAcknowledgedError

T = TypeVar("T")

DEFAULT_ADDRESS = 0x60
"""7-bit I2C address of a chip from the catalogue (configuration byte 16 is 0xC0)."""

TRUST_AND_GO_ADDRESS = 0x35
"""7-bit I2C address of the pre-provisioned Trust&GO parts."""

ADDRESSES = (DEFAULT_ADDRESS, TRUST_AND_GO_ADDRESS, 0x36, 0x58, 0x59)
"""7-bit I2C addresses that chips are sold with: catalogue parts, Trust&GO, TrustFLEX, kits whose
configuration byte 16 is 0xB0, and Trust&GO for LoRaWAN. Devices of other kinds use them as well."""

# Word addresses: the first byte of every write says what the write is.
RESET_POINTER, SLEEP, IDLE, COMMAND = 0x00, 0x01, 0x02, 0x03

AFTER_WAKE = bytes.fromhex("04113343")
SELF_TEST_FAILED = bytes.fromhex("0407c440")

WAKE_DELAY = 0.0016
"""Seconds from the wake pulse until the chip answers (tWHI, 1500 us)."""

SELF_TEST_TIME = 0.025
"""Seconds a chip that tests itself at power-on may need before it answers."""

POLL_INTERVAL = 0.002
"""Seconds between two looks at a busy chip."""

MAX_COUNT = 155
"""Largest packet in bytes, count byte and CRC included."""

ZONE_CONFIG, ZONE_OTP, ZONE_DATA = 0, 1, 2

CONFIG_SIZE = 128
OTP_SIZE = 64

SLOTS = 16
SLOT_SIZES = (36,) * 8 + (416,) + (72,) * 7
"""Bytes of each slot of the data zone (data sheet, section 2.1)."""

LOCK_WORD, SLOT_LOCK_WORD = 21, 22
"""Words of the configuration that hold the locks: bytes 86 (data and OTP) and 87 (configuration)
are 0 when locked; a bit of bytes 88 and 89 is 0 when that slot is locked."""

COUNTER_MAX = 2_097_151

WATCHDOG = 0.7
"""Seconds after the wake pulse that even the fastest watchdog lets the chip work (tWATCHDOG)."""

USER_EXTRA, USER_EXTRA_ADD = 0, 1
"""Modes of UpdateExtra: bytes 84 and 85 of the configuration, which Write cannot reach."""

SELF_TESTS = {0x01: "random numbers", 0x02: "ECDSA", 0x08: "ECDH", 0x10: "AES", 0x20: "SHA"}
"""What an ATECC608 can test of itself, by the bit that asks for it and that reports its failure
(ATECC608A data sheet, SelfTest)."""

STATUS = {
    0x01: "the check failed",
    0x03: "parse error: the chip does not know this command or parameter",
    0x05: "a computation on the elliptic curve went wrong",
    0x07: "the chip's self-test failed",
    0x08: "the chip's random number generator failed its test",
    0x0F: "refused: not possible in the chip's present state (locks, slot policy)",
    0x11: "the chip has just been woken",
    0xEE: "the chip's watchdog is about to expire",
    0xFF: "the command reached the chip damaged",
}
"""What the chip's status bytes mean."""

# Opcode: (seconds until the first look, seconds until the chip is given up). The first is about the
# typical time, the second is above the worst case of the slowest clock of an ATECC608 (Sign 665 ms,
# GenKey 653 ms, ECDH 531 ms, Verify 1085 ms), so that it fits every model.
_TIMES = {
    0x02: (0.001, 0.1),
    0x12: (0.007, 0.2),
    0x16: (0.001, 0.1),
    0x17: (0.008, 0.2),
    0x20: (0.005, 0.1),
    0x1B: (0.001, 0.1),
    0x24: (0.005, 0.1),
    0x30: (0.001, 0.1),
    0x40: (0.030, 0.8),
    0x41: (0.030, 0.8),
    0x43: (0.030, 0.8),
    0x45: (0.030, 1.2),
    0x47: (0.005, 0.1),
    0x77: (0.050, 0.7),
}


class ChipError(ThicketError):
    """Talking to the chip did not give a result. The subclasses say what can be done about it."""

    repeats = 0
    """How many further conversations may help; -1: as many as the deadline allows."""


class ChipAbsentError(ChipError):
    """Nothing woke up at the address: no chip, no power, no bus, another address."""


class ChipBusError(ChipError):
    """The bus does not work (stuck, timed out, locked by another program)."""

    repeats = -1


class ChipBusLockedError(ChipBusError):
    """Another program kept the bus to itself all the time: find it, or give it more time."""

    repeats = 0


class ChipTimeoutError(ChipError):
    """The chip took a command and never became ready again."""

    repeats = -1


class ChipProtocolError(ChipError):
    """What came back is not an answer: bad CRC, bad length, not the chip we expect."""

    repeats = -1


class ChipParseError(ChipError):
    """The chip does not know a command or parameter: another model, or a fault of the caller."""

    repeats = 3


class ChipRefusedError(ChipError):
    """The chip refuses because of its locks or the policy of a slot (status 0F)."""


class ChipWatchdogError(ChipError):
    """A conversation takes longer than the chip stays awake: ``Session.renew`` in between."""

    repeats = -1


class ChipMismatchError(ChipError):
    """What the chip holds is not what was written or expected. The text names the bytes."""


class ChipFaultError(ChipError):
    """The chip reports that it is broken (self-test, random numbers, curve arithmetic)."""


class _CheckFailedError(ChipError):
    """Status 01: the signature or the MAC is wrong. Turned into a result by ``Session.verify``."""


def crc16(data: bytes) -> bytes:
    """Return the CRC of a packet as it goes over the wire: 2 bytes, little-endian.

    Polynomial 0x8005, start 0, bits of a byte from the lowest to the highest, register not
    reflected (data sheet, "CRC calculation").
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
    """Return a command as it is written to the chip, word address included."""
    count = 7 + len(data)
    if count > MAX_COUNT:
        raise ValueError(f"{len(data)} bytes do not fit in a command ({MAX_COUNT - 7} do)")
    body = bytes((count, opcode, param1)) + param2.to_bytes(2, "little") + data
    return bytes((COMMAND,)) + body + crc16(body)


def unpack_reply(raw: bytes) -> bytes:
    """Return the payload of a reply. Bytes after it (the chip sends FF for ever) are ignored.

    Raises ``ChipProtocolError`` when the length or the CRC is wrong.
    """
    count = raw[0] if raw else 0
    if not 4 <= count <= len(raw):
        raise ChipProtocolError(f"reply of impossible length: {raw[:8].hex()}")
    if crc16(raw[: count - 2]) != raw[count - 2 : count]:
        raise ChipProtocolError(f"reply with a bad CRC: {raw[:count].hex()}")
    return raw[1 : count - 2]


def _failure(status: int) -> ChipError:
    text = f"{STATUS.get(status, 'unknown status')} ({status:02x})"
    error: ChipError
    if status == 0x0F:
        error = ChipRefusedError(text)
    elif status == 0x01:
        error = _CheckFailedError(text)
    elif status == 0x03:
        error = ChipParseError(text)
    elif status == 0xEE:
        error = ChipWatchdogError(text)
    elif status in (0x05, 0x07, 0x08):
        error = ChipFaultError(text)
        error.repeats = 3 if status == 0x05 else 0
    else:
        error = ChipProtocolError(text)
    return error


CHIPS_OWN = frozenset((*range(16), 86, 87, 88, 89))
"""Bytes of the configuration that Write does not change: serial number, revision, what the factory
enabled, locks."""

_CONFIG_WRITES = (
    *((offset, 4) for offset in range(16, 32, 4)),
    (32, 32),
    *((offset, 4) for offset in range(64, 84, 4)),
    (88, 4),
    (92, 4),
    (96, 32),
)
"""Offset and size of the writes that make a configuration: whole blocks where the chip takes
them, single words around the bytes 84 to 87 that Write must not touch."""


def _config(wanted: bytes) -> bytes:
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


def crc_number(data: bytes) -> int:
    """Return the CRC of ``data`` as the number that Lock takes as its second parameter."""
    return int.from_bytes(crc16(data), "little")


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


class Session:
    """The commands of one conversation with a chip that is awake.

    Get one from ``Atecc.run``. Every method raises the ``ChipError`` that tells what happened; what
    the volatile registers hold is lost when the conversation is repeated.
    """

    def __init__(self, chip: Atecc) -> None:
        """Use ``chip``, which must be awake."""
        self._chip = chip
        self._given = 0

    def execute(
        self, opcode: int, param1: int = 0, param2: int = 0, data: bytes = b"", *, reply: int = 1
    ) -> bytes:
        """Give one command and return the payload of its reply, which must be ``reply`` bytes.

        With ``reply=1`` the reply is a status, which is checked to be "success".
        """
        self._given += 1
        try:
            return self._chip._execute(pack_command(opcode, param1, param2, data), reply)
        except ChipRefusedError as error:
            # What an earlier command left in TempKey may be gone because somebody else on the bus
            # sent the chip to sleep and woke it: once more, then it is the policy's word.
            error.repeats = int(self._given > 1)
            raise

    def revision(self) -> bytes:
        """Return the 4 revision bytes (Info)."""
        return self.execute(0x30, reply=4)

    def read(self, zone: int, address: int, length: int) -> bytes:
        """Read 4 or 32 bytes at an address word of a zone (Read)."""
        if length not in (4, 32):
            raise ValueError("the chip reads 4 or 32 bytes at a time")
        return self.execute(0x02, zone | (0x80 if length == 32 else 0), address, reply=length)

    def write(self, zone: int, address: int, data: bytes) -> None:
        """Write 4 or 32 bytes in the clear at an address word of a zone (Write)."""
        if len(data) not in (4, 32):
            raise ValueError("the chip writes 4 or 32 bytes at a time")
        self.execute(0x12, zone | (0x80 if len(data) == 32 else 0), address, data)

    def random(self) -> bytes:
        """Return 32 random bytes (Random). ``FFFF0000...`` until the configuration is locked."""
        return self.execute(0x1B, reply=32)

    def nonce(self, number: bytes) -> bytes:
        """Fill TempKey from the chip's random number and ``number`` (20 bytes): return the former.

        TempKey is then SHA-256 of the 32 bytes returned, ``number``, and the bytes 16 00 00.
        """
        if len(number) != 20:
            raise ValueError("a nonce takes 20 bytes from the host")
        return self.execute(0x16, 0x00, 0, number, reply=32)

    def load(self, digest: bytes) -> None:
        """Put ``digest`` (32 bytes) into TempKey as it is (Nonce in pass-through mode)."""
        if len(digest) != 32:
            raise ValueError("a SHA-256 digest has 32 bytes")
        self.execute(0x16, 0x03, 0, digest)

    def load_digest(self, digest: bytes) -> None:
        """Put ``digest`` (32 bytes) into the Message Digest Buffer (ATECC608 only)."""
        if len(digest) != 32:
            raise ValueError("a SHA-256 digest has 32 bytes")
        self.execute(0x16, 0x43, 0, digest)

    def key_valid(self, slot: int) -> bool:
        """Tell whether ``slot`` holds a private key that can be used (Info, mode KeyValid)."""
        return bool(self.execute(0x30, 0x01, slot, reply=4)[0])

    def generate_key(self, slot: int) -> bytes:
        """Make a new private key in ``slot`` and return its public key, X and Y, 64 bytes."""
        return self.execute(0x40, 0x04, slot, reply=64)

    def public_key(self, slot: int) -> bytes:
        """Return the public key of the private key in ``slot``, X and Y, 64 bytes (GenKey)."""
        return self.execute(0x40, 0x00, slot, reply=64)

    def sign(self, slot: int, *, buffer: bool = False) -> bytes:
        """Sign what ``load`` put into TempKey: R and S, 64 bytes.

        With ``buffer``, sign what ``load_digest`` put into the Message Digest Buffer.
        """
        return self.execute(0x41, 0xA0 if buffer else 0x80, slot, reply=64)

    def verify(self, signature: bytes, public_key: bytes) -> bool:
        """Tell whether ``signature`` of what ``load`` put into TempKey is by ``public_key``."""
        if len(signature) != 64 or len(public_key) != 64:
            raise ValueError("a signature and a public key have 64 bytes")
        try:
            self.execute(0x45, 0x02, 0x0004, signature + public_key)
        except _CheckFailedError:
            return False
        return True

    def verify_stored(self, signature: bytes, slot: int) -> bool:
        """Tell whether ``signature`` of TempKey is by the public key stored in ``slot``."""
        if len(signature) != 64:
            raise ValueError("a signature has 64 bytes")
        try:
            self.execute(0x45, 0x00, slot, signature)
        except _CheckFailedError:
            return False
        return True

    def ecdh(self, slot: int, point: bytes) -> bytes:
        """Return the secret (32 bytes) shared with the owner of ``point`` (X and Y, 64 bytes).

        It comes over the bus in the clear. Raises ``ChipRefusedError`` when the policy of the slot
        does not allow that, ``ChipFaultError`` when the point is not on the curve.
        """
        if len(point) != 64:
            raise ValueError("a public key has 64 bytes")
        return self.execute(0x43, 0x00, slot, point, reply=32)

    def sha256(self, message: bytes) -> bytes:
        """Return the SHA-256 digest of ``message`` as the chip computes it (SHA).

        All must happen in one time awake, and a block of 64 bytes may take an ATECC608 36 ms: a
        message is limited to 512 bytes. The host hashes faster.
        """
        if len(message) > 512:
            raise ValueError(f"{len(message)} bytes are too many for the chip, hash on the host")
        self.execute(0x47, 0x00)
        whole = len(message) // 64 * 64
        for at in range(0, whole, 64):
            self.execute(0x47, 0x01, 64, message[at : at + 64])
        rest = message[whole:]
        return self.execute(0x47, 0x02, len(rest), rest, reply=32)

    def self_test(self, tests: int = 0x3B) -> list[str]:
        """Let an ATECC608 test itself and return what failed, in words of ``SELF_TESTS``.

        ``tests`` is the sum of the bits in ``SELF_TESTS``. A 508A raises ``ChipParseError``.
        """
        if model_of(self.revision()) == "ATECC508A":
            raise ChipParseError("an ATECC508A has no command for a self-test")
        # The result looks like a status: 0 when all is well, else the bits of what failed.
        packet = pack_command(0x77, tests)
        failed = self._chip._exchange(packet, 1)[0]
        # Status codes that are no set of the tests asked for are failures of another kind.
        if failed & ~tests:
            raise _failure(failed)
        return [name for bit, name in SELF_TESTS.items() if failed & bit]

    def update_extra(self, mode: int, value: int) -> None:
        """Set byte 84 (mode 0) or 85 (mode 1) of the configuration (UpdateExtra).

        Once the configuration is locked, that works only while the byte is zero.
        """
        if mode not in (USER_EXTRA, USER_EXTRA_ADD) or not 0 <= value <= 0xFF:
            raise ValueError("UpdateExtra sets byte 84 (mode 0) or 85 (mode 1) to 0..255")
        self.execute(0x20, mode, value)

    def renew(self) -> None:
        """Let the chip idle for a moment and wake it: its watchdog starts anew.

        TempKey survives that, a SHA computation and the Message Digest Buffer are not promised to.
        """
        self._chip._renew()

    def counter(self, number: int, *, increment: bool = False) -> int:
        """Return counter ``number`` (0 or 1), after counting up by one if ``increment``."""
        return int.from_bytes(self.execute(0x24, int(increment), number, reply=4), "little")

    def lock(self, mode: int, crc: int = 0) -> None:
        """Lock for ever what ``mode`` says (Lock): see ``Atecc.lock_config`` and its like."""
        self.execute(0x17, mode, crc)


class ChipInfo:
    """What a chip says about itself."""

    __slots__ = ("address", "bus", "config_locked", "data_locked", "model", "revision", "serial")

    def __init__(self, bus: str, address: int, block: bytes, word: bytes) -> None:
        """Take it from bytes 0 to 31 (``block``) and 84 to 87 (``word``) of the configuration."""
        self.bus = bus
        self.address = address
        self.revision = block[4:8]
        self.model = model_of(self.revision)
        self.serial = serial_in(block)
        self.data_locked = word[2] == 0
        self.config_locked = word[3] == 0

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return {
            "model": self.model,
            "bus": self.bus,
            "address": self.address,
            "revision": self.revision.hex(),
            "serial": self.serial.hex(),
            "config_locked": self.config_locked,
            "data_locked": self.data_locked,
        }


class Atecc:
    """One chip at one address of one bus.

    ``patience`` bounds every method in seconds (a transfer that is under way then still ends, which
    on a stuck bus takes the kernel up to a second). Not safe for several threads at once; other
    programs are kept off the bus by its lock.
    """

    def __init__(
        self,
        bus: Bus,
        address: int = DEFAULT_ADDRESS,
        *,
        patience: float = 4.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Talk to the chip at ``address`` of ``bus``; nothing is sent yet."""
        self.bus = bus
        self.address = address
        self.patience = patience
        self._clock = clock
        self._sleep = sleep
        self._deadline = 0.0
        self._woken = 0.0
        self._answered = False

    # -- conversations

    def run(self, conversation: Callable[[Session], T]) -> T:
        """Wake the chip, let ``conversation`` give its commands, and send the chip to sleep.

        A conversation that fails for a passing reason is repeated from its beginning, so it must be
        one that may be done again. Raises ``ChipError`` with the last reason.
        """
        with self._locked():
            attempt, pause = 0, 0.01
            while True:
                try:
                    return self._converse(conversation)
                except BusError as error:
                    problem: ChipError = ChipBusError(str(error))
                    problem.__cause__ = error
                except ChipError as error:
                    problem = error
                attempt += 1
                if 0 <= problem.repeats < attempt or self._clock() + pause >= self._deadline:
                    raise problem
                self._sleep(pause)
                pause = min(pause * 2, 0.2)

    def answers(self) -> bool:
        """Return within some milliseconds whether anything answers at the address after a wake-up.

        For addresses that are looked at beside the usual ones: nothing is written to a device that
        may be another one. A chip that still tests itself after power-on is not seen. Raises
        ``ChipBusError``.
        """
        with self._locked():
            try:
                for _ in range(2):
                    self._quietly(0, 0)
                    self._sleep(WAKE_DELAY)
                    if self._read_quietly(4):
                        return True
            except BusError as error:
                raise ChipBusError(str(error)) from error
        return False

    def _converse(self, conversation: Callable[[Session], T]) -> T:
        try:
            self._wake()
            result = conversation(Session(self))
        except ChipError:
            self._quietly(self.address, SLEEP)
            raise
        # Too late to matter: the result is there, and the watchdog sends the chip to sleep as well.
        with suppress(BusError):
            self._quietly(self.address, SLEEP)
        return result

    def _renew(self) -> None:
        self._quietly(self.address, IDLE)
        self._wake(keep=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._deadline = self._clock() + self.patience
        self._answered = False
        try:
            self.bus.lock(self._deadline)
        except BusLockedError as error:
            raise ChipBusLockedError(
                f"{error}; end that program, or let it give the bus back between its transfers"
            ) from error
        except BusError as error:
            raise ChipBusError(str(error)) from error
        try:
            yield
        finally:
            self.bus.unlock()

    def _quietly(self, address: int, byte: int) -> None:
        """Write one byte that nobody may be awake to acknowledge."""
        with suppress(NotAcknowledgedError):
            self.bus.write(address, bytes((byte,)))

    def _wake(self, *, keep: bool = False) -> None:
        """Wake the chip up, from its sleep or, to ``keep`` what it remembers, from being idle.

        It is sent to sleep first: traffic for other devices may have woken it, and a chip that is
        awake does not answer a wake pulse (and its watchdog is already running).
        """
        reply = b""
        attempts = 0
        while True:
            if not keep:
                self._quietly(self.address, SLEEP)
            # The pulse is SDA low for at least 60 us: a write to address 0, where nobody answers,
            # at no more than 100 kHz.
            self._quietly(0, 0)
            self._woken = self._clock()
            self._sleep(WAKE_DELAY)
            try:
                reply = self.bus.read(self.address, 4)
            except NotAcknowledgedError:
                # The later attempts leave time for a power-on self-test.
                if attempts >= 3:
                    self._sleep(SELF_TEST_TIME)
                    reply = self._read_quietly(4)
            if reply == AFTER_WAKE:
                self._answered = True
                return
            if reply == SELF_TEST_FAILED:
                raise _failure(0x07)
            attempts += 1
            late = self._clock() >= self._deadline
            if reply and (attempts >= 5 or late):
                raise ChipProtocolError(
                    f"{reply.hex()} came back from address 0x{self.address:02x} after waking it "
                    f"instead of {AFTER_WAKE.hex()}"
                )
            # A chip that has answered before is there; it gets the whole patience.
            if late or (attempts >= 5 and not self._answered):
                raise ChipAbsentError(
                    f"no answer from address 0x{self.address:02x} on {self.bus.name} "
                    f"(woken {attempts} times)"
                )

    def _read_quietly(self, length: int) -> bytes:
        try:
            return self.bus.read(self.address, length)
        except NotAcknowledgedError:
            return b""

    def _execute(self, packet: bytes, reply: int) -> bytes:
        payload = self._exchange(packet, reply)
        if len(payload) == 1 and (reply != 1 or payload[0]):
            raise _failure(payload[0])
        if len(payload) != reply:
            raise ChipProtocolError(f"reply of {len(payload)} bytes instead of {reply}")
        return payload

    def _exchange(self, packet: bytes, reply: int) -> bytes:
        """Give a command and return the payload of its reply, whatever it says."""
        first, limit = _TIMES.get(packet[2], (0.005, 1.2))
        if self._clock() + first > self._woken + WATCHDOG:
            # Not worth starting: the answer, or what the command left behind, could be lost.
            raise ChipWatchdogError(
                f"the chip has been awake for {self._clock() - self._woken:.2f} s, its watchdog "
                f"may come after {WATCHDOG} s: too late for another command"
            )
        try:
            self.bus.write(self.address, packet)
        except NotAcknowledgedError as error:
            raise ChipTimeoutError("the chip did not take a command") from error
        self._sleep(first)
        raw = self._poll(reply + 3, min(self._clock() + limit, self._deadline))
        for last in (False, False, True):
            try:
                return unpack_reply(raw)
            except ChipProtocolError:
                # The answer is still in the chip: read it again rather than do the work again.
                if last:
                    raise
                self.bus.write(self.address, bytes((RESET_POINTER,)))
                raw = self._read_quietly(reply + 3)
        raise AssertionError("not reached")

    def _poll(self, length: int, deadline: float) -> bytes:
        while True:
            try:
                return self.bus.read(self.address, length)
            except NotAcknowledgedError:
                if self._clock() >= deadline:
                    raise ChipTimeoutError("the chip did not finish a command") from None
            self._sleep(POLL_INTERVAL)

    # -- what the rest of the program uses

    def info(self) -> ChipInfo:
        """Return what the chip is: model, serial number, locks."""

        def conversation(session: Session) -> ChipInfo:
            block = session.read(ZONE_CONFIG, 0, 32)
            word = session.read(ZONE_CONFIG, LOCK_WORD, 4)
            return ChipInfo(self.bus.name, self.address, block, word)

        return self.run(conversation)

    def serial_number(self) -> bytes:
        """Return the serial number, 9 bytes."""
        return serial_in(self.run(lambda session: session.read(ZONE_CONFIG, 0, 32)))

    def revision(self) -> bytes:
        """Return the 4 revision bytes."""
        return self.run(Session.revision)

    def read_config(self) -> bytes:
        """Return the configuration zone, 128 bytes."""
        return self.run(
            lambda session: b"".join(
                session.read(ZONE_CONFIG, offset >> 2, 32) for offset in range(0, CONFIG_SIZE, 32)
            )
        )

    def compare_config(self, wanted: bytes, skip: Iterable[int] = ()) -> str:
        """Say in words where the configuration is not ``wanted`` (128 bytes); empty when equal.

        What no Write can change is not compared (``CHIPS_OWN``), nor is what ``skip`` names.
        """
        return differences(self.read_config(), _config(wanted), {*CHIPS_OWN, *skip})

    def write_config(self, wanted: bytes, *, whole: bool = False) -> None:
        """Write the configuration zone so that it is ``wanted`` (128 bytes), and read it back.

        Only words that differ are written, or all that can be with ``whole``. Bytes 84 and 85 go
        by UpdateExtra; the chip's own bytes and the locks (``CHIPS_OWN``) are left alone. When the
        I2C address changes, ``address`` follows it.

        Raises ``ChipRefusedError`` when the zone is locked already, and ``ChipMismatchError`` when
        the chip did not take everything over.
        """
        wanted = _config(wanted)
        present = self.read_config()
        if present[87] == 0:
            raise ChipRefusedError(
                "the configuration zone is locked; nothing can be written to it any more"
            )
        for offset, size in _CONFIG_WRITES:
            piece = wanted[offset : offset + size]
            if offset == 88:  # the locks of the slots: as they are
                piece = present[88:90] + wanted[90:92]
            now = present[offset : offset + size]
            if offset == 16 and piece[0] >> 1 != self.address:
                self._move(piece)
            elif piece != now or (whole and offset != 88):
                self.write(ZONE_CONFIG, offset >> 2, piece)
        for mode in (USER_EXTRA, USER_EXTRA_ADD):
            value = wanted[84 + mode]
            if value != present[84 + mode]:
                self.update_extra(mode, value)
        wrong = self.compare_config(wanted)
        if wrong:
            raise ChipMismatchError(f"the configuration does not read back as written: {wrong}")

    def _move(self, word: bytes) -> None:
        """Write the word with the I2C address, which the chip has from its next wake-up on."""
        old, new = self.address, word[0] >> 1
        try:
            self.write(ZONE_CONFIG, 4, word)
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

        def conversation(session: Session) -> None:
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

    def read_slot(self, slot: int, length: int | None = None) -> bytes:
        """Return the first ``length`` bytes of a slot (a multiple of 4), or all of it.

        Raises ``ChipRefusedError`` when the slot is secret or the data zone is not locked yet.
        """
        size = SLOT_SIZES[slot] if length is None else length

        def conversation(session: Session) -> bytes:
            data, offset = b"", 0
            while offset < size:
                step = 32 if size - offset >= 32 else 4
                data += session.read(ZONE_DATA, data_address(slot, offset), step)
                offset += step
            return data

        return self.run(conversation)

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
        return self.run(Session.random)

    def nonce(self, number: bytes) -> bytes:
        """Return the 32 random bytes of a nonce with ``number`` (20 bytes) mixed in."""
        return self.run(lambda session: session.nonce(number))

    def generate_key(self, slot: int) -> bytes:
        """Replace the private key in ``slot`` by a new one: its public key, 64 bytes.

        When the chip's answer is lost, another key is made; only the one returned exists.
        """
        return self.run(lambda session: session.generate_key(slot))

    def public_key(self, slot: int) -> bytes:
        """Return the public key of ``slot``, X and Y, 64 bytes."""
        return self.run(lambda session: session.public_key(slot))

    def sign(self, slot: int, digest: bytes) -> bytes:
        """Sign a SHA-256 ``digest`` with the key in ``slot``: R and S, 64 bytes (ECDSA P-256).

        Both commands belong to one conversation: the digest is lost when the chip sleeps.
        """

        def conversation(session: Session) -> bytes:
            session.load(digest)
            return session.sign(slot)

        return self.run(conversation)

    def verify(self, digest: bytes, signature: bytes, public_key: bytes) -> bool:
        """Let the chip check a signature of a SHA-256 ``digest``."""

        def conversation(session: Session) -> bool:
            session.load(digest)
            return session.verify(signature, public_key)

        return self.run(conversation)

    def verify_stored(self, digest: bytes, signature: bytes, slot: int) -> bool:
        """Let the chip check a signature of a SHA-256 ``digest`` by the public key in ``slot``."""

        def conversation(session: Session) -> bool:
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

    def self_test(self, tests: int = 0x3B) -> list[str]:
        """Let an ATECC608 test itself; what failed, in words. See ``Session.self_test``."""
        return self.run(lambda session: session.self_test(tests))

    def idle(self) -> None:
        """Wake the chip and leave it idle: what it remembers stays until its supply goes."""

        def conversation(session: Session) -> None:
            session.renew()
            self._quietly(self.address, IDLE)

        self.run(conversation)

    def counter(self, number: int) -> int:
        """Return the value of counter 0 or 1."""
        return self.run(lambda session: session.counter(number))

    def count_up(self, number: int) -> int:
        """Add one to counter 0 or 1 and return its new value (at most 2,097,151).

        Exactly one is added even when the chip's answer is lost.
        """
        before: int | None = None

        def conversation(session: Session) -> int:
            nonlocal before
            now = session.counter(number)
            if before is not None and now == before + 1:
                return now
            before = now
            return session.counter(number, increment=True)

        return self.run(conversation)

    def lock_config(self, crc: int) -> None:
        """Lock the configuration zone for ever, if ``crc`` is the CRC of its 128 bytes."""
        self._lock(0x00, crc, lambda word: word[3] == 0)

    def lock_data(self, crc: int) -> None:
        """Lock the data and OTP zones for ever, if ``crc`` is that of all that is not a key."""
        self._lock(0x01, crc, lambda word: word[2] == 0)

    def lock_slot(self, slot: int) -> None:
        """Lock one slot of the data zone for ever."""
        self._lock(
            slot << 2 | 0x02,
            0,
            lambda word: not int.from_bytes(word, "little") >> slot & 1,
            word=SLOT_LOCK_WORD,
        )

    def _lock(
        self, mode: int, crc: int, locked: Callable[[bytes], bool], word: int = LOCK_WORD
    ) -> None:
        first = True

        def conversation(session: Session) -> None:
            nonlocal first
            # A repeated Lock is refused, so look whether the one whose answer was lost did it.
            if not first and locked(session.read(ZONE_CONFIG, word, 4)):
                return
            first = False
            session.lock(mode, crc)

        self.run(conversation)
