# SPDX-License-Identifier: Apache-2.0
"""The driver's bus straight to a virtual chip: no kernel, no QEMU, and no real time."""

from __future__ import annotations

import random

from authority.chip import DeskChip
from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.bus import Nak, Stuck
from meshlab.chip.state import serial_for
from thicket.identity.bus import Bus, BusFaultError, BusLockedError, NotAcknowledgedError


class Time:
    """A clock that only moves when somebody sleeps or the bus is used."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


class PulledError(Exception):
    """The chip was pulled out."""


class EmulatedBus(Bus):
    """A bus with one virtual chip; each transaction takes half a millisecond.

    :ivar pulled_at: the number of transactions after which the chip is pulled out.
    """

    name = "emulated"

    def __init__(self, chip: Atecc608, clock: Time) -> None:
        self.chip = chip
        self.clock = clock
        self.transactions = 0
        self.locked_by_others = False
        self.locks = 0
        self.closed = False
        self.pulled_at: int | None = None

    def write(self, address: int, data: bytes) -> None:
        self.begin()
        try:
            self.chip.write(address, data)
        except Nak:
            raise NotAcknowledgedError(self.name) from None
        except Stuck as stuck:
            self.clock.now += stuck.seconds
            raise BusFaultError("timed out") from None

    def read(self, address: int, length: int) -> bytes:
        self.begin()
        try:
            return self.chip.read(address, length)
        except Nak:
            raise NotAcknowledgedError(self.name) from None
        except Stuck as stuck:
            self.clock.now += stuck.seconds
            raise BusFaultError("timed out") from None

    def begin(self) -> None:
        """Begin a transaction."""
        assert self.locks == 1, "a transaction without the lock of the bus"
        self.transactions += 1
        self.clock.now += 0.0005
        if self.pulled_at is not None and self.transactions > self.pulled_at:
            raise PulledError

    def lock(self, deadline: float) -> None:
        if self.locked_by_others:
            self.clock.now = max(self.clock.now, deadline)
            raise BusLockedError("locked by another program")
        self.locks += 1

    def unlock(self) -> None:
        self.locks -= 1

    def close(self) -> None:
        self.closed = True


class NoisyBus(EmulatedBus):
    """A bus where everything goes wrong now and then, by a seed.

    What is written is damaged behind the word address only: the CRC does not cover that byte, so no
    driver could notice.
    """

    def __init__(self, chip: Atecc608, clock: Time, seed: int, rate: float) -> None:
        super().__init__(chip, clock)
        self.random = random.Random(seed)
        self.rate = rate
        self.trouble = 0

    def _hit(self) -> bool:
        hit = self.random.random() < self.rate
        self.trouble += hit
        return hit

    def _damage(self, data: bytes, first: int) -> bytes:
        if len(data) <= first:
            return data
        damaged = bytearray(data)
        damaged[self.random.randrange(first, len(data))] ^= 1 << self.random.randrange(8)
        return bytes(damaged)

    def write(self, address: int, data: bytes) -> None:
        if self._hit():
            kind = self.random.choice(("nak", "late nak", "damage", "reset", "fault", "late fault"))
            if kind == "reset":
                self.chip.power_cycle()
            elif kind == "nak":
                raise NotAcknowledgedError("noise")
            elif kind == "fault":
                raise BusFaultError("noise")
            elif kind == "damage":
                data = self._damage(data, 1)
            else:
                super().write(address, data)
                error = NotAcknowledgedError if kind == "late nak" else BusFaultError
                raise error("noise")
        super().write(address, data)

    def read(self, address: int, length: int) -> bytes:
        if self._hit():
            kind = self.random.choice(("nak", "damage", "short", "cut", "reset", "fault", "sleep"))
            if kind == "reset":
                self.chip.power_cycle()
            elif kind == "nak":
                raise NotAcknowledgedError("noise")
            elif kind == "fault":
                raise BusFaultError("noise")
            elif kind == "sleep":
                self.clock.now += 2.0
            else:
                data = super().read(address, length)
                if kind == "damage":
                    return self._damage(data, 0)
                data = data[: self.random.randrange(length)]
                return data if kind == "short" else data.ljust(length, b"\xff")
        return super().read(address, length)


def emulated(index: int = 1) -> tuple[DeskChip, Atecc608, EmulatedBus, Time]:
    """Return a driver, its chip, the bus between them and their clock."""
    clock = Time()
    chip = Atecc608(serial_for(1, index), clock=clock)
    bus = EmulatedBus(chip, clock)
    return DeskChip(bus, clock=clock, sleep=clock.sleep), chip, bus, clock
