# SPDX-License-Identifier: Apache-2.0
"""Driver of the security chip: ATECC508A, ATECC608A and ATECC608B over I2C.

The chip sleeps between conversations. A conversation wakes it, gives commands, and sends it back to
sleep. ``Session`` has the commands; ``Atecc`` repeats whole conversations until they succeed or a
deadline passes, and is what the rest of the program uses. Everything here blocks; call it from a
thread. The commands that only the engineer's desk gives are in ``authority.chip``.

Protocol: Microchip's ATECC508A and ATECC608A data sheets, sections 6 (I2C) and 9 (commands).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from thicket.base.patience import Stopwatch
from thicket.identity.bus import Bus, BusError, BusLockedError
from thicket.identity.chip.errors import (
    ChipBusError,
    ChipBusLockedError,
    ChipError,
)
from thicket.identity.chip.memory import (
    CONFIG_SIZE,
    LOCK_WORD,
    SLOT_SIZES,
    ZONE_CONFIG,
    ZONE_DATA,
    data_address,
    model_of,
    serial_in,
)
from thicket.identity.chip.session import LockMode, Session
from thicket.identity.chip.wire import Wire

T = TypeVar("T")

DEFAULT_ADDRESS = 0x60
"""7-bit I2C address of a catalogue part (configuration byte 16 is 0xC0)."""

TRUST_AND_GO_ADDRESS = 0x35
"""7-bit I2C address of the pre-provisioned Trust&GO parts."""

ADDRESSES = (DEFAULT_ADDRESS, TRUST_AND_GO_ADDRESS, 0x36, 0x58, 0x59)
"""7-bit I2C addresses that chips are sold with: catalogue parts, Trust&GO, TrustFLEX, kits whose
configuration byte 16 is 0xB0, and Trust&GO for LoRaWAN. Devices of other kinds use them as well."""


class ChipInfo:
    """What a chip says about itself.

    :param block: bytes 0 to 31 of its configuration.
    :param word: bytes 84 to 87.
    """

    __slots__ = ("address", "bus", "config_locked", "data_locked", "model", "revision", "serial")

    def __init__(self, bus: str, address: int, block: bytes, word: bytes) -> None:
        self.bus = bus
        self.address = address
        self.revision = block[4:8]
        self.model = model_of(self.revision)
        self.serial = serial_in(block)
        self.data_locked = word[2] == 0
        self.config_locked = word[3] == 0

    def as_dict(self) -> dict[str, object]:
        """Return it in the form of the status document."""
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
    """One chip at one address of one bus; for one thread at a time.

    The lock of the bus keeps other programs off it. The constructor sends nothing.

    :param patience: seconds by ``watch`` that a method may take. A transfer under way still ends
        then, which on a stuck bus takes the kernel up to a second.
    :ivar watch: our own time since the beginning of the present conversation.
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
        self.patience = patience
        self.watch = Stopwatch(clock, sleep)
        self._wire = Wire(bus, address, self.watch)

    @property
    def bus(self) -> Bus:
        """The bus that the chip is on."""
        return self._wire.bus

    @property
    def address(self) -> int:
        """The chip's 7-bit address."""
        return self._wire.address

    @address.setter
    def address(self, address: int) -> None:
        self._wire.address = address

    # -- conversations

    def run(self, conversation: Callable[[Session], T]) -> T:
        """Wake the chip, let ``conversation`` give its commands, and send the chip to sleep.

        A conversation that fails for a passing reason is repeated from its beginning, so it must be
        safe to repeat.

        :raises ChipError: the last reason.
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
                if 0 <= problem.repeats < attempt or self.watch() + pause >= self._wire.deadline:
                    raise problem
                self.watch.sleep(pause)
                pause = min(pause * 2, 0.2)

    def answers(self) -> bool:
        """Return within some milliseconds whether anything answers at the address after a wake-up.

        For unusual addresses, where another device may be: nothing is written to it. A chip that
        still tests itself after power-on is not found.

        :raises ChipBusError: the bus does not work.
        """
        with self._locked():
            try:
                return self._wire.look()
            except BusError as error:
                raise ChipBusError(str(error)) from error

    def _converse(self, conversation: Callable[[Session], T]) -> T:
        try:
            self._wire.wake()
            result = conversation(Session(self._wire))
        except ChipError:
            self._wire.sleep()
            raise
        # A failure no longer matters: the result is here, and the watchdog also ends the session.
        with suppress(BusError):
            self._wire.sleep()
        return result

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.watch.begin()
        self._wire.begin(self.watch() + self.patience)
        try:
            self.bus.lock(self._wire.deadline)
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

    def read_config(self) -> bytes:
        """Return the configuration zone, 128 bytes."""
        return self.run(
            lambda session: b"".join(
                session.read(ZONE_CONFIG, offset >> 2, 32) for offset in range(0, CONFIG_SIZE, 32)
            )
        )

    def read_slot(self, slot: int, length: int | None = None) -> bytes:
        """Return the first ``length`` bytes of a slot (a multiple of 4), or all of it.

        :raises ChipRefusedError: the slot is secret, or the data zone is not locked yet.
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

    def generate_key(self, slot: int) -> bytes:
        """Replace the private key in ``slot``, and return the new public key, 64 bytes.

        When the chip's answer is lost, another key is made; only the returned one exists.
        """
        return self.run(lambda session: session.generate_key(slot))

    def public_key(self, slot: int) -> bytes:
        """Return the public key of ``slot``, X and Y, 64 bytes."""
        return self.run(lambda session: session.public_key(slot))

    def sign(self, slot: int, digest: bytes) -> bytes:
        """Sign a SHA-256 ``digest`` with the key in ``slot``: R and S, 64 bytes (ECDSA P-256).

        Both commands are in one conversation, as the digest is lost when the chip sleeps.
        """

        def conversation(session: Session) -> bytes:
            session.load(digest)
            return session.sign(slot)

        return self.run(conversation)

    def counter(self, number: int) -> int:
        """Return the value of counter 0 or 1."""
        return self.run(lambda session: session.counter(number))

    def count_up(self, number: int) -> int:
        """Add exactly one to counter 0 or 1, even when the chip's answer is lost.

        :returns: the new value, at most 2,097,151.
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
        self._lock(LockMode.CONFIG, crc, lambda word: word[3] == 0)

    def _lock(
        self, mode: int, crc: int, locked: Callable[[bytes], bool], word: int = LOCK_WORD
    ) -> None:
        first = True

        def conversation(session: Session) -> None:
            nonlocal first
            # The chip refuses a second Lock, so look whether the one without an answer succeeded.
            if not first and locked(session.read(ZONE_CONFIG, word, 4)):
                return
            first = False
            session.lock(mode, crc)

        self.run(conversation)
