# SPDX-License-Identifier: Apache-2.0
"""The chip on its bus: waking it, giving it one command, sending it to sleep.

The chip has its own watchdog, which puts it to sleep 0.7 to 1.7 s after the wake-up, whatever it is
doing; it then forgets everything volatile.
"""

from __future__ import annotations

from contextlib import suppress

from thicket.base.patience import Stopwatch
from thicket.identity.bus import Bus, NotAcknowledgedError
from thicket.identity.chip.errors import (
    ChipAbsentError,
    ChipProtocolError,
    ChipTimeoutError,
    ChipWatchdogError,
    Status,
    failure,
)
from thicket.identity.chip.packet import (
    AFTER_WAKE,
    SELF_TEST_FAILED,
    TIMES,
    UNKNOWN_TIMES,
    Word,
    unpack_reply,
)

WAKE_DELAY = 0.0016
"""Seconds from the wake pulse until the chip answers (tWHI, 1500 us)."""

SELF_TEST_TIME = 0.025
"""Seconds until a chip that tests itself at power-on answers."""

POLL_INTERVAL = 0.002
"""Seconds between two looks at a busy chip."""

WATCHDOG = 0.7
"""Seconds after the wake pulse for which even the fastest watchdog waits (tWATCHDOG)."""


class Wire:
    """One chip at one address of one bus.

    :param watch: our time, in which the chip has to answer. Its watchdog follows ``watch.clock``.
    :ivar deadline: when, by ``watch``, the present conversation must end.
    """

    def __init__(self, bus: Bus, address: int, watch: Stopwatch) -> None:
        self.bus = bus
        self.address = address
        self.deadline = 0.0
        self._watch = watch
        self._clock = watch.clock
        self._sleep = watch.sleep
        self._woken = 0.0
        self._answered = False

    def begin(self, deadline: float) -> None:
        """Forget the chip's state, as others may have used the bus meanwhile."""
        self.deadline = deadline
        self._answered = False

    def look(self) -> bool:
        """Return whether anything answers a wake pulse; nothing is written to the address."""
        for _ in range(2):
            self.send_quietly(0, 0)
            self._sleep(WAKE_DELAY)
            if self.read_quietly(4):
                return True
        return False

    def sleep(self) -> None:
        """Send the chip to sleep: it forgets everything volatile."""
        self.send_quietly(self.address, Word.SLEEP)

    def idle(self) -> None:
        """Let the chip idle: what it remembers stays until its supply goes."""
        self.send_quietly(self.address, Word.IDLE)

    def renew(self) -> None:
        """Let the chip idle for a moment and wake it: its watchdog starts anew."""
        self.idle()
        self.wake(keep=True)

    def send_quietly(self, address: int, byte: int) -> None:
        """Write one byte, whether or not a device acknowledges it."""
        with suppress(NotAcknowledgedError):
            self.bus.write(address, bytes((byte,)))

    def wake(self, *, keep: bool = False) -> None:
        """Wake the chip.

        It is sent to sleep first: traffic for other devices may have woken it, and a chip that is
        awake does not answer a wake pulse, and its watchdog is already running.

        :param keep: wake it from being idle, so that it keeps its memory.
        """
        reply = b""
        attempts = 0
        while True:
            if not keep:
                self.sleep()
            # The pulse is SDA low for at least 60 us: a write to address 0, where no device
            # answers, at no more than 100 kHz.
            self.send_quietly(0, 0)
            self._woken = self._clock()
            self._sleep(WAKE_DELAY)
            try:
                reply = self.bus.read(self.address, 4)
            except NotAcknowledgedError:
                # The later attempts leave time for a power-on self-test.
                if attempts >= 3:
                    self._sleep(SELF_TEST_TIME)
                    reply = self.read_quietly(4)
            if reply == AFTER_WAKE:
                self._answered = True
                return
            if reply == SELF_TEST_FAILED:
                raise failure(Status.SELF_TEST_FAILED)
            # A chip that was looked at too late may have gone back to sleep.
            attempts += self._clock() < self._woken + WATCHDOG
            late = self._watch() >= self.deadline
            if reply and (attempts >= 5 or late):
                raise ChipProtocolError(
                    f"{reply.hex()} came back from address 0x{self.address:02x} after waking it "
                    f"instead of {AFTER_WAKE.hex()}"
                )
            # A chip that has answered before exists; it gets the whole patience.
            if late or (attempts >= 5 and not self._answered):
                raise ChipAbsentError(
                    f"no answer from address 0x{self.address:02x} on {self.bus.name} "
                    f"(woken {attempts} times)"
                )

    def read_quietly(self, length: int) -> bytes:
        """Read; return an empty result when no device acknowledges."""
        try:
            return self.bus.read(self.address, length)
        except NotAcknowledgedError:
            return b""

    def execute(self, packet: bytes, reply: int) -> bytes:
        """Give a command, and return the payload of its reply, see ``Session.execute``."""
        payload = self.exchange(packet, reply)
        if len(payload) == 1 and (reply != 1 or payload[0]):
            raise failure(payload[0])
        if len(payload) != reply:
            raise ChipProtocolError(f"reply of {len(payload)} bytes instead of {reply}")
        return payload

    def exchange(self, packet: bytes, reply: int) -> bytes:
        """Give a command and return the payload of its reply, whatever it says."""
        first, limit = TIMES.get(packet[2], UNKNOWN_TIMES)
        if self._clock() + first > self._woken + WATCHDOG:
            # The answer, or the command's effect on volatile memory, could be lost.
            raise ChipWatchdogError(
                f"the chip has been awake for {self._clock() - self._woken:.2f} s, its watchdog "
                f"may come after {WATCHDOG} s: too late for another command"
            )
        try:
            self.bus.write(self.address, packet)
        except NotAcknowledgedError as error:
            raise ChipTimeoutError("the chip did not take a command") from error
        self._sleep(first)
        raw = self._poll(reply + 3, self._clock() + limit)
        for last in (False, False, True):
            try:
                return unpack_reply(raw)
            except ChipProtocolError:
                # The answer is still in the chip: read it again rather than do the work again.
                if last:
                    raise
                self.bus.write(self.address, bytes((Word.RESET_POINTER,)))
                raw = self.read_quietly(reply + 3)
        raise AssertionError("not reached")

    def _poll(self, length: int, end: float) -> bytes:
        while True:
            try:
                return self.bus.read(self.address, length)
            except NotAcknowledgedError:
                if self._clock() >= end or self._watch() >= self.deadline:
                    raise ChipTimeoutError("the chip did not finish a command") from None
            self._sleep(POLL_INTERVAL)
