# SPDX-License-Identifier: Apache-2.0
"""A virtual ATECC608A (or 508A, or 608B), at the level of I2C transactions.

What a driver can see of the chip is here: the wake pulse, the word addresses, packets and their
CRC, the missing acknowledge while it sleeps or works, the output buffer with its read pointer, the
watchdog, and the locks and slot policies that decide what a command may do. Nothing here waits: the
time that a command takes is compared with a clock at the next transaction.

``COMMANDS`` lists what the chip can do. A command that it does not have is answered with a parse
error, as by a chip of another model; nothing is half there. Missing against the real chip are the
commands that work with secret keys on the host's side (MAC, CheckMac, GenDig, DeriveKey, PrivWrite,
KDF, AES, SecureBoot) and therefore every encrypted read and write.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

from meshlab.chip import ecc
from meshlab.chip.bus import Nak, Stuck
from meshlab.chip.state import MODEL, SLOT_SIZES, SLOTS, ChipState, ChipStateError

log = logging.getLogger(__name__)

# Word addresses (data sheet, section 6.1)
RESET_POINTER, SLEEP, IDLE, COMMAND = 0x00, 0x01, 0x02, 0x03

# Status codes (data sheet, section 9.3)
SUCCESS, CHECK_FAILED, PARSE_ERROR, ECC_FAULT = 0x00, 0x01, 0x03, 0x05
EXECUTION_ERROR, AFTER_WAKE, WATCHDOG_SOON, COMMUNICATION_ERROR = 0x0F, 0x11, 0xEE, 0xFF

ZONE_CONFIG, ZONE_OTP, ZONE_DATA = 0, 1, 2

MIN_COUNT, MAX_COUNT = 7, 155
"""Smallest and largest command packet in bytes, count and CRC included."""

WAKE_TIME = 0.0015
"""Seconds from the wake pulse to the first answer (tWHI)."""

WATCHDOG = 1.3
"""Seconds from the wake pulse until the chip sleeps again (tWATCHDOG, typical)."""

LONG_WATCHDOG = 10.0
"""How many times longer that is with bit 2 of ChipMode (configuration byte 19), so some 13 s."""

BUS_TIMEOUT = 1.0
"""Seconds after which the controller gives a stuck bus up (i2c-bcm2835 waits one second)."""

COUNTER_MAX = 2_097_151
COUNTER_OFFSETS = (52, 60)
LOCK_DATA, LOCK_CONFIG, SLOT_LOCKED = 86, 87, 88
UNLOCKED, LOCKED = 0x55, 0x00

FAULTS = {
    "absent": 1.0,
    "nak": 0.3,
    "bad-crc": 1.0,
    "stuck": 1.0,
    "watchdog": 0.3,
}
"""What can be wrong with a chip, and how probable it is per transaction or command by default.

``absent`` never answers; ``nak`` does not acknowledge a transaction; ``bad-crc`` damages an answer;
``stuck`` lets a transaction time out; ``watchdog`` puts the chip to sleep in the middle of a
command, before or after its work is done.
"""


def crc16(data: bytes) -> bytes:
    """Return the CRC-16 of the chip, little-endian: polynomial 0x8005, start 0, bits from bit 0."""
    crc = 0
    for byte in data:
        for bit in range(8):
            top = crc & 0x8000
            crc = (crc << 1) & 0xFFFF
            if bool(top) != bool(byte & (1 << bit)):
                crc ^= 0x8005
    return crc.to_bytes(2, "little")


def frame(payload: bytes) -> bytes:
    """Return a reply as it is read from the chip: count, payload, CRC."""
    packet = bytes((len(payload) + 3,)) + payload
    return packet + crc16(packet)


def parse_fault(text: str | None) -> tuple[str | None, float]:
    """Read ``name`` or ``name:probability``.

    :raises ValueError: when it is no fault; the text says what is allowed.
    """
    if text in (None, "", "none"):
        return None, 0.0
    assert text is not None
    name, _, rate = text.partition(":")
    try:
        probability = float(rate) if rate else FAULTS[name]
        if name in FAULTS and 0 < probability <= 1:
            return name, probability
    except (KeyError, ValueError):
        pass
    raise ValueError(
        f"{text!r} is not a fault of a chip: none, {', '.join(FAULTS)}, or one of them followed by "
        "a probability as in nak:0.3"
    )


class Status(Exception):  # noqa: N818 - it is not always an error
    """Ends a command with a status code."""

    def __init__(self, code: int) -> None:
        """End with ``code``."""
        super().__init__(f"status {code:02x}")
        self.code = code


class Slot(NamedTuple):
    """The policy of one slot, from SlotConfig and KeyConfig (data sheet, section 2.2)."""

    number: int
    slot_config: int
    key_config: int
    locked: bool

    @property
    def private(self) -> bool:
        """KeyConfig.Private: the slot holds a private key."""
        return bool(self.key_config & 1)

    @property
    def public_readable(self) -> bool:
        """KeyConfig.PubInfo: the public key may be computed."""
        return bool(self.key_config & 2)

    @property
    def p256(self) -> bool:
        """KeyConfig.KeyType is 4."""
        return self.key_config >> 2 & 7 == 4

    @property
    def lockable(self) -> bool:
        """KeyConfig.Lockable."""
        return bool(self.key_config >> 5 & 1)

    @property
    def needs_random(self) -> bool:
        """KeyConfig.ReqRandom: only a nonce with the chip's own random number counts."""
        return bool(self.key_config >> 6 & 1)

    @property
    def needs_authorization(self) -> bool:
        """KeyConfig.ReqAuth: a CheckMac must come first."""
        return bool(self.key_config >> 7 & 1)

    @property
    def read_key(self) -> int:
        """SlotConfig.ReadKey; of a private key: 1 external signatures, 4 ECDH, 8 ECDH to a slot."""
        return self.slot_config & 0xF

    @property
    def clear_read(self) -> bool:
        """Neither SlotConfig.EncryptRead nor IsSecret."""
        return not self.slot_config & 0xC0

    @property
    def write_config(self) -> int:
        """SlotConfig.WriteConfig: 0 always writable; bit 1 lets GenKey make keys."""
        return self.slot_config >> 12

    @property
    def size(self) -> int:
        """Bytes of the slot."""
        return SLOT_SIZES[self.number]


class Command(NamedTuple):
    """One command: its handler, how long it takes, and what data it may come with."""

    name: str
    run: Callable[[Atecc608, ChipState, int, int, bytes], bytes]
    seconds: float
    """Typical execution time; the maxima of the data sheet are up to five times as long."""
    sizes: tuple[int, ...] | range
    """Allowed sizes of the data in bytes."""


class Atecc608:
    """One chip on a bus (a ``bus.Target``). Not for several threads at once.

    :param state: The file of its memory (None: in memory only), made if there is none.
    :param model: That of a new chip: ``ATECC508A``, ``ATECC608A`` or ``ATECC608B``.
    :param scale: Multiplies all execution times.
    :param executor: Writes the file in the background: the command that caused it stays busy until
        it is on the disk.
    :param seed: Decides what the faults hit.
    :raises ChipStateError: when the file is damaged, of another chip, or cannot be made.
    """

    def __init__(
        self,
        serial: bytes,
        state: Path | None = None,
        *,
        model: str = MODEL,
        seed: int | str = 0,
        scale: float = 1.0,
        watchdog: float = WATCHDOG,
        clock: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = os.urandom,
        executor: Executor | None = None,
    ) -> None:
        """Connect the chip to power; it sleeps."""
        self.path = state
        self.scale = scale
        self._watchdog = watchdog
        self.counters: Counter[str] = Counter()
        self.problem: str | None = None
        self.broken = 0
        """What a self-test finds: bits as SelfTest reports them."""
        self.clock = clock
        self._entropy = entropy
        self.executor = executor
        self._random = random.Random(f"{seed}/{serial.hex()}")
        self._fault: str | None = None
        self._fault_rate = 0.0
        self._saving: Future[None] | None = None
        self._previous: ChipState | None = None
        self.keeps = True
        """Whether what commands write stays: a broken chip may not keep it."""
        if state is not None and state.exists():
            self.state = ChipState.load(state, serial)
        else:
            self.state = ChipState(serial, model)
            if state is not None:
                try:
                    self.state.save(state)
                except OSError as error:
                    raise ChipStateError(
                        f"{state}: the state of a virtual chip cannot be written: {error.strerror}"
                    ) from error
        self.power_cycle()

    # -- outside the bus

    @property
    def serial(self) -> bytes:
        """The serial number, 9 bytes."""
        return self.state.serial

    @property
    def model(self) -> str:
        """What kind of chip it is."""
        return self.state.model

    @property
    def watchdog(self) -> float:
        """Seconds from the wake pulse until the chip sleeps again, as its ChipMode says."""
        return self._watchdog * (LONG_WATCHDOG if self.state.config[19] & 4 else 1.0)

    @watchdog.setter
    def watchdog(self, seconds: float) -> None:
        self._watchdog = seconds

    @property
    def memory(self) -> ChipState:
        """A copy of the non-volatile memory."""
        return self.state.copy()

    @property
    def fault(self) -> str | None:
        """What is wrong with the chip: a name in ``FAULTS``, or ``name:probability``."""
        if self._fault is None or self._fault_rate == FAULTS[self._fault]:
            return self._fault
        return f"{self._fault}:{self._fault_rate:g}"

    @fault.setter
    def fault(self, text: str | None) -> None:
        self._fault, self._fault_rate = parse_fault(text)

    @property
    def saving(self) -> Future[None] | None:
        """The write of the file that is under way in the background, if any."""
        return self._saving

    @property
    def asleep(self) -> bool:
        """Whether it sleeps, with nothing to lose if its supply were taken away now."""
        if self._awake and self.clock() < self._woken + self.watchdog:
            return False
        written = self._saving is None or self._saving.done()
        # An idle chip still has what was computed before.
        volatile = (self.temp_key, self.digest_buffer, self.alternate_key, self._sha)
        return written and (self._awake or volatile == (None,) * len(volatile))

    def power_cycle(self) -> None:
        """Take the supply away and give it back: asleep, nothing volatile left."""
        self._awake = False
        self._busy_until = 0.0
        self._woken = 0.0
        self._output = b""
        self._pointer = 0
        self._address = self.state.config[16] >> 1
        self._forget()

    def _forget(self) -> None:
        """Lose what the chip keeps in its SRAM."""
        self.temp_key: bytes | None = None
        self.temp_key_is_random = False
        self.digest_buffer: bytes | None = None
        self.alternate_key: bytes | None = None
        self._sha: hashlib._Hash | None = None

    def _hit(self, fault: str) -> bool:
        if self._fault != fault:
            return False
        hit = self._random.random() < self._fault_rate
        if hit:
            self.counters[f"fault {fault}"] += 1
        return hit

    # -- the bus

    def write(self, address: int, data: bytes) -> None:
        """See ``bus.Target.write``."""
        self._disturb()
        now = self.clock()
        if address == 0:
            # SDA is low for long enough whatever is written; nobody acknowledges it.
            self._wake_pulse(now)
            raise Nak
        self._must_answer(address, now)
        if not data:
            return
        if data[0] == RESET_POINTER:
            self._pointer = 0
        elif data[0] == SLEEP:
            self._awake = False
            self._forget()
        elif data[0] == IDLE:
            self._awake = False
        elif data[0] == COMMAND:
            self._command(data[1:], now)

    def read(self, address: int, length: int) -> bytes:
        """See ``bus.Target.read``. Beyond the end of its answer the chip sends FF."""
        self._disturb()
        self._must_answer(address, self.clock())
        data = self._output[self._pointer : self._pointer + length]
        self._pointer += len(data)
        return data.ljust(length, b"\xff")

    def _disturb(self) -> None:
        if self._hit("absent"):
            raise Nak
        if self._hit("stuck"):
            raise Stuck(BUS_TIMEOUT)

    def _must_answer(self, address: int, now: float) -> None:
        if address != self._address:
            raise Nak
        if self._hit("nak"):
            raise Nak
        if self._awake and now >= self._woken + self.watchdog:
            self.counters["watchdog"] += 1
            self._awake = False
            self._forget()
        if not self._awake or now < self._busy_until or not self._saved():
            raise Nak

    def _wake_pulse(self, now: float) -> None:
        if self._awake and now < self._woken + self.watchdog:
            return
        if self._awake:
            self.counters["watchdog"] += 1
            self._forget()
        self._awake = True
        self._woken = now
        self._busy_until = now + WAKE_TIME * self.scale
        self._address = self.state.config[16] >> 1
        self._answer(bytes((AFTER_WAKE,)))

    def _answer(self, payload: bytes) -> None:
        self._output = frame(payload)
        self._pointer = 0
        if self._hit("bad-crc"):
            damaged = bytearray(self._output)
            bit = self._random.randrange(len(damaged) * 8)
            damaged[bit >> 3] ^= 1 << (bit & 7)
            self._output = bytes(damaged)

    def _command(self, packet: bytes, now: float) -> None:
        count = packet[0] if packet else 0
        if not MIN_COUNT <= count <= MAX_COUNT or count > len(packet):
            return self._refuse(COMMUNICATION_ERROR, now)
        packet = packet[:count]
        if crc16(packet[:-2]) != packet[-2:]:
            return self._refuse(COMMUNICATION_ERROR, now)
        param1, param2, data = packet[2], int.from_bytes(packet[3:5], "little"), packet[5:-2]
        command = COMMANDS.get(packet[1])
        if (
            command is None
            or len(data) not in command.sizes
            or (packet[1] in ONLY_608 and self._old)
        ):
            return self._refuse(PARSE_ERROR, now)
        seconds = command.seconds * self.scale
        if now + seconds >= self._woken + self.watchdog:
            return self._refuse(WATCHDOG_SOON, now)
        self.counters[command.name] += 1
        tripped = self._hit("watchdog")
        if tripped and self._random.random() < 0.5:
            self._awake = False
            return self._forget()
        state = self.state.copy()
        try:
            payload = command.run(self, state, param1, param2, data)
            self._commit(state)
        except Status as status:
            payload = bytes((status.code,))
        self._answer(payload)
        self._busy_until = now + seconds
        if tripped:
            self._awake = False
            self._forget()
        return None

    def _refuse(self, status: int, now: float) -> None:
        self.counters[f"status {status:02x}"] += 1
        self._answer(bytes((status,)))
        self._busy_until = now + 0.001 * self.scale

    # -- the memory

    def _commit(self, state: ChipState) -> None:
        if state == self.state or not self.keeps:
            return
        previous, self.state = self.state, state
        if self.path is None:
            return
        if self.executor is not None:
            self._previous = previous
            self._saving = self.executor.submit(state.save, self.path)
            return
        try:
            state.save(self.path)
        except OSError as error:
            self._not_saved(previous, error)
            raise Status(EXECUTION_ERROR) from error

    def _saved(self) -> bool:
        """Tell whether the memory is on the disk; see to the answer when it could not be put."""
        if self._saving is None:
            return True
        if not self._saving.done():
            return False
        error = self._saving.exception()
        if error is not None and self._previous is not None:
            self._not_saved(self._previous, error)
            self._answer(bytes((EXECUTION_ERROR,)))
        self._saving = self._previous = None
        return True

    def _not_saved(self, previous: ChipState, error: BaseException) -> None:
        # The chip must not report as done what a restart would undo.
        self.state = previous
        self.problem = f"{self.path}: the chip's memory could not be written: {error}"
        log.error("%s", self.problem)

    @property
    def _old(self) -> bool:
        return self.state.model == "ATECC508A"

    # -- what the commands need

    @staticmethod
    def _locked(state: ChipState, byte: int) -> bool:
        return state.config[byte] != UNLOCKED

    def _need_config_lock(self, state: ChipState) -> None:
        if not self._locked(state, LOCK_CONFIG):
            raise Status(EXECUTION_ERROR)

    @staticmethod
    def _slot(state: ChipState, number: int) -> Slot:
        if number >= SLOTS:
            raise Status(PARSE_ERROR)
        config = state.config
        mask = int.from_bytes(config[SLOT_LOCKED : SLOT_LOCKED + 2], "little")
        return Slot(
            number,
            int.from_bytes(config[20 + 2 * number : 22 + 2 * number], "little"),
            int.from_bytes(config[96 + 2 * number : 98 + 2 * number], "little"),
            not mask >> number & 1,
        )

    def _signing_key(self, state: ChipState, number: int) -> tuple[Slot, bytes]:
        """Return slot and private key for a command that uses it."""
        self._need_config_lock(state)
        slot = self._slot(state, number)
        key = state.keys.get(number)
        if not slot.private or not slot.p256 or key is None or slot.needs_authorization:
            raise Status(EXECUTION_ERROR)
        return slot, key

    def _random_bytes(self, state: ChipState) -> bytes:
        if not self._locked(state, LOCK_CONFIG):
            return b"\xff\xff\x00\x00" * 8
        return self._entropy(32)

    def _zone(self, state: ChipState, zone: int, address: int, size: int) -> tuple[int, int, int]:
        """Return slot, offset and end of the place of an access to ``zone`` at ``address``."""
        slot = 0
        if zone == ZONE_DATA:
            block, slot, word = address >> 8, address >> 3 & 0xF, address & 7
            end = SLOT_SIZES[slot]
        elif zone in (ZONE_CONFIG, ZONE_OTP):
            block, word = address >> 3, address & 7
            end = len(state.config) if zone == ZONE_CONFIG else len(state.otp)
        else:
            raise Status(PARSE_ERROR)
        offset = block * 32 + word * 4
        if offset >= end or (size == 32 and word):
            raise Status(PARSE_ERROR)
        return slot, offset, end

    def _message(self, use_buffer: bool) -> bytes:
        """Return the digest that a signature is about, and use it up."""
        digest = self.digest_buffer if use_buffer else self.temp_key
        self.digest_buffer = self.temp_key = None
        if digest is None:
            raise Status(EXECUTION_ERROR)
        return digest[:32]

    # -- the commands, in the order of the table

    def _info(self, state: ChipState, mode: int, param: int, _data: bytes) -> bytes:
        """Info: mode 0 revision, mode 1 whether the private key of a slot is there."""
        if mode == 0:
            return bytes(state.config[4:8])
        if mode == 1:
            slot = self._slot(state, param)
            return bytes((slot.private and param in state.keys, 0, 0, 0))
        raise Status(PARSE_ERROR)

    def _read(self, state: ChipState, mode: int, address: int, _data: bytes) -> bytes:
        """Read 4 or 32 bytes in the clear."""
        if mode & 0x7C:
            raise Status(PARSE_ERROR)
        zone, size = mode & 3, 32 if mode & 0x80 else 4
        number, offset, _ = self._zone(state, zone, address, size)
        if zone == ZONE_CONFIG:
            return bytes(state.config[offset : offset + size])
        if not self._locked(state, LOCK_DATA):
            raise Status(EXECUTION_ERROR)
        memory = state.otp
        if zone == ZONE_DATA:
            slot = self._slot(state, number)
            if slot.private or not slot.clear_read:
                raise Status(EXECUTION_ERROR)
            memory = state.slots[number]
        # the last block of a slot is filled up: Microchip's library reads public keys so
        return bytes(memory[offset : offset + size]).ljust(size, b"\0")

    def _write(self, state: ChipState, mode: int, address: int, data: bytes) -> bytes:
        """Write 4 or 32 bytes in the clear."""
        zone, size = mode & 3, 32 if mode & 0x80 else 4
        if mode & 0x3C:
            raise Status(PARSE_ERROR)
        if mode & 0x40:  # encrypted: needs a session key, which there is no way to make
            raise Status(EXECUTION_ERROR)
        if len(data) != size:
            raise Status(PARSE_ERROR)
        number, offset, end = self._zone(state, zone, address, size)
        if zone == ZONE_CONFIG:
            # 0 to 15 are the chip's own; 84 to 87 belong to UpdateExtra and Lock
            fixed = offset < 16 or (offset < 88 and offset + size > 84)
            if self._locked(state, LOCK_CONFIG) or fixed:
                raise Status(EXECUTION_ERROR)
            state.config[offset : offset + size] = data
            return bytes((SUCCESS,))
        self._need_config_lock(state)
        data_locked = self._locked(state, LOCK_DATA)
        memory = state.otp
        if zone == ZONE_DATA:
            slot = self._slot(state, number)
            if slot.private or slot.locked or (data_locked and slot.write_config):
                raise Status(EXECUTION_ERROR)
            memory = state.slots[number]
        elif data_locked:
            raise Status(EXECUTION_ERROR)
        if not data_locked and size != 32:
            raise Status(EXECUTION_ERROR)
        # the last block of a slot takes 32 bytes and keeps what it has room for
        memory[offset:end] = (data + bytes(memory[offset + size : end]))[: end - offset]
        return bytes((SUCCESS,))

    def _lock(self, state: ChipState, mode: int, crc: int, _data: bytes) -> bytes:
        """Lock the configuration (0), the data and OTP zones (1) or one slot (2)."""
        zone, unchecked = mode & 3, mode & 0x80
        if mode & 0x40 or zone == 3 or (zone != 2 and mode & 0x3C):
            raise Status(PARSE_ERROR)
        if zone == 2:
            self._need_config_lock(state)
            slot = self._slot(state, mode >> 2 & 0xF)
            if not slot.lockable or slot.locked:
                raise Status(EXECUTION_ERROR)
            byte, bit = divmod(slot.number, 8)
            state.config[SLOT_LOCKED + byte] &= ~(1 << bit)
            return bytes((SUCCESS,))
        if zone == 0:
            byte, contents = LOCK_CONFIG, bytes(state.config)
        else:
            self._need_config_lock(state)
            byte, contents = LOCK_DATA, self.data_zone_contents(state)
        if self._locked(state, byte):
            raise Status(EXECUTION_ERROR)
        if not unchecked and crc16(contents) != crc.to_bytes(2, "little"):
            raise Status(EXECUTION_ERROR)
        state.config[byte] = LOCKED
        return bytes((SUCCESS,))

    def data_zone_contents(self, state: ChipState) -> bytes:
        """Return what the CRC for locking the data zone is about: no private keys, OTP last."""
        parts = [
            bytes(slot)
            for number, slot in enumerate(state.slots)
            if not self._slot(state, number).private
        ]
        return b"".join(parts) + bytes(state.otp)

    def _random_number(self, state: ChipState, mode: int, param: int, _data: bytes) -> bytes:
        """Random: 32 bytes."""
        if mode > 1 or param:
            raise Status(PARSE_ERROR)
        return self._random_bytes(state)

    def _nonce(self, state: ChipState, mode: int, param: int, data: bytes) -> bytes:
        """Nonce: random (modes 0 and 1), or what the host gives as it is (mode 3)."""
        if mode in (0, 1):
            if len(data) != 20 or param not in (0, 0x8000):
                raise Status(PARSE_ERROR)
            number = self._random_bytes(state)
            self.temp_key = hashlib.sha256(number + data + bytes((0x16, mode, 0))).digest()
            self.temp_key_is_random = True
            return self.temp_key if param else number
        target, size = mode & 0xC0, 64 if mode & 0x20 else 32
        if self._old and mode != 3:
            raise Status(PARSE_ERROR)
        if mode & 0x1F != 3 or param or len(data) != size or target == 0xC0:
            raise Status(PARSE_ERROR)
        if target == 0x80:
            if size == 64:
                raise Status(PARSE_ERROR)
            self.alternate_key = data
        elif target == 0x40:
            self.digest_buffer = data
        else:
            self.temp_key = data
            self.temp_key_is_random = False
        return bytes((SUCCESS,))

    def _gen_key(self, state: ChipState, mode: int, number: int, _data: bytes) -> bytes:
        """GenKey: make a private key (mode 4), or compute the public key of one (mode 0)."""
        if mode not in (0x00, 0x04):
            raise Status(PARSE_ERROR)
        self._need_config_lock(state)
        slot = self._slot(state, number)
        if not slot.private or not slot.p256 or slot.needs_authorization:
            raise Status(EXECUTION_ERROR)
        if mode == 0x04:
            if not slot.write_config & 2 or slot.locked:
                raise Status(EXECUTION_ERROR)
            state.keys[number] = ecc.private_key(self._entropy(40))
        elif not slot.public_readable or number not in state.keys:
            raise Status(EXECUTION_ERROR)
        return ecc.public_key(state.keys[number])

    def _sign(self, state: ChipState, mode: int, number: int, _data: bytes) -> bytes:
        """Sign a digest from TempKey (80) or the Message Digest Buffer (A0)."""
        if mode & 0x1E or (self._old and mode & 0x20):
            raise Status(PARSE_ERROR)
        slot, key = self._signing_key(state, number)
        # internal messages need GenDig or a digest by GenKey in TempKey, which are not there
        if mode not in (0x80, 0xA0) or not slot.read_key & 1:
            raise Status(EXECUTION_ERROR)
        use_buffer = mode == 0xA0
        if slot.needs_random and (use_buffer or not self.temp_key_is_random):
            raise Status(EXECUTION_ERROR)
        return ecc.sign(key, self._message(use_buffer))

    def _verify(self, state: ChipState, mode: int, param: int, data: bytes) -> bytes:
        """Verify by a key that comes along (mode 2) or is stored in a slot (mode 0)."""
        use_buffer = bool(mode & 0x20)
        if use_buffer and self._old:
            raise Status(PARSE_ERROR)
        self._need_config_lock(state)
        if mode & ~0x20 == 0x02 and len(data) == 128 and param == 4:
            point = data[64:]
        elif mode & ~0x20 == 0x00 and len(data) == 64:
            slot = self._slot(state, param)
            if slot.private or not slot.p256 or slot.size < 72:
                raise Status(EXECUTION_ERROR)
            stored = state.slots[param]
            point = bytes(stored[4:36] + stored[40:72])
        else:
            raise Status(PARSE_ERROR)
        try:
            good = ecc.verify(point, data[:64], self._message(use_buffer))
        except ValueError:
            raise Status(ECC_FAULT) from None
        return bytes((SUCCESS if good else CHECK_FAILED,))

    def _ecdh(self, state: ChipState, mode: int, number: int, data: bytes) -> bytes:
        """ECDH: as the slot says (mode 0), into TempKey (8), or to the output (0C)."""
        if mode not in (0x00, 0x08, 0x0C):
            raise Status(PARSE_ERROR)
        slot, key = self._signing_key(state, number)
        protection = state.config[91] & 3  # ChipOptions.ECDHProt
        if not slot.read_key & 4 or (mode and protection):
            raise Status(EXECUTION_ERROR)
        try:
            secret = ecc.shared_secret(key, data)
        except ValueError:
            raise Status(ECC_FAULT) from None
        if mode == 0x08:
            self.temp_key, self.temp_key_is_random = secret, False
            return bytes((SUCCESS,))
        if mode == 0x00 and slot.read_key & 8:
            if number & 1:
                raise Status(EXECUTION_ERROR)
            state.slots[number | 1][:32] = secret
            return bytes((SUCCESS,))
        return secret

    def _sha256(self, _state: ChipState, mode: int, length: int, data: bytes) -> bytes:
        """SHA: start (0), 64 more bytes (1), the last 0 to 63 bytes and the digest (2)."""
        if mode == 0 and not data and not length:
            self._sha = hashlib.sha256()
            self.temp_key = None
            return bytes((SUCCESS,))
        if mode == 1 and len(data) == length == 64:
            if self._sha is None:
                raise Status(EXECUTION_ERROR)
            self._sha.update(data)
            return bytes((SUCCESS,))
        target = mode & 0xC0
        if mode & 0x3F != 2 or len(data) != length or length > 63 or target == 0x80:
            raise Status(PARSE_ERROR)
        if self._sha is None:
            raise Status(EXECUTION_ERROR)
        self._sha.update(data)
        digest, self._sha = self._sha.digest(), None
        if target == 0x00:
            self.temp_key, self.temp_key_is_random = digest, False
        elif target == 0x40:
            self.digest_buffer = digest
        return digest

    def _counter(self, state: ChipState, mode: int, number: int, _data: bytes) -> bytes:
        """Counter: read (0) or count up by one and read (1)."""
        if mode > 1 or number > 1:
            raise Status(PARSE_ERROR)
        value = read_counter(state, number)
        if mode == 1:
            if value >= COUNTER_MAX:
                raise Status(EXECUTION_ERROR)
            value += 1
            write_counter(state, number, value)
        return value.to_bytes(4, "little")

    def _self_test(self, _state: ChipState, mode: int, param: int, _data: bytes) -> bytes:
        """SelfTest: the bits of what failed, of the tests asked for; a virtual chip is well."""
        if mode & ~0x3B or param:
            raise Status(PARSE_ERROR)
        return bytes((self.broken & mode,))

    def _update_extra(self, state: ChipState, mode: int, value: int, _data: bytes) -> bytes:
        """UpdateExtra: set byte 84 or 85 of the configuration; once it is locked, only from 0."""
        if mode > 1 or value > 0xFF:
            raise Status(PARSE_ERROR)
        if self._locked(state, LOCK_CONFIG) and state.config[84 + mode]:
            raise Status(EXECUTION_ERROR)
        state.config[84 + mode] = value
        return bytes((SUCCESS,))


def read_counter(state: ChipState, number: int) -> int:
    """Return a monotonic counter from its place in the configuration zone.

    To spare the EEPROM, the chip counts the low bits in unary in two 16-bit fields that take turns,
    and the rest in binary: linear A, linear B, binary A, binary B, big-endian.
    """
    at = COUNTER_OFFSETS[number]
    linear_a, linear_b, binary_a = (
        int.from_bytes(state.config[at + 2 * field : at + 2 * field + 2], "big")
        for field in range(3)
    )
    low = 16 - linear_a.bit_count()
    if low == 16:
        low += 16 - linear_b.bit_count()
    return min(32 * binary_a + low, COUNTER_MAX)


def write_counter(state: ChipState, number: int, value: int) -> None:
    """Put a monotonic counter into the configuration zone; see ``read_counter``."""
    at = COUNTER_OFFSETS[number]
    late = max(0, value - 16)
    fields = (0xFFFF >> value % 32, 0xFFFF >> late % 32, value // 32, late // 32)
    state.config[at : at + 8] = b"".join(field.to_bytes(2, "big") for field in fields)


COMMANDS: dict[int, Command] = {
    0x30: Command("Info", Atecc608._info, 0.001, (0,)),
    0x02: Command("Read", Atecc608._read, 0.001, (0,)),
    0x12: Command("Write", Atecc608._write, 0.008, (4, 32, 36, 64)),
    0x17: Command("Lock", Atecc608._lock, 0.008, (0,)),
    0x1B: Command("Random", Atecc608._random_number, 0.015, (0,)),
    0x16: Command("Nonce", Atecc608._nonce, 0.007, (20, 32, 64)),
    0x40: Command("GenKey", Atecc608._gen_key, 0.060, (0, 3)),
    0x41: Command("Sign", Atecc608._sign, 0.060, (0,)),
    0x45: Command("Verify", Atecc608._verify, 0.060, (64, 128)),
    0x43: Command("ECDH", Atecc608._ecdh, 0.040, (64,)),
    0x47: Command("SHA", Atecc608._sha256, 0.007, range(65)),
    0x24: Command("Counter", Atecc608._counter, 0.008, (0,)),
    0x77: Command("SelfTest", Atecc608._self_test, 0.090, (0,)),
    0x20: Command("UpdateExtra", Atecc608._update_extra, 0.005, (0,)),
}
"""Every command of the chip by its opcode."""

ONLY_608 = frozenset((0x77,))
"""Commands that an ATECC508A does not have."""
