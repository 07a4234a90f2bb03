# SPDX-License-Identifier: Apache-2.0
"""The chip's errors, and the meaning of its status bytes."""

from __future__ import annotations

from thicket.base.errors import ThicketError


class Status:
    """Status bytes (data sheet, "Status/Error Codes"); 0 is success."""

    CHECK_FAILED = 0x01
    PARSE_ERROR = 0x03
    CURVE_FAULT = 0x05
    SELF_TEST_FAILED = 0x07
    RANDOM_FAULT = 0x08
    REFUSED = 0x0F
    JUST_WOKEN = 0x11
    WATCHDOG = 0xEE
    DAMAGED = 0xFF


STATUS_TEXTS = {
    Status.CHECK_FAILED: "the check failed",
    Status.PARSE_ERROR: "parse error: the chip does not know this command or parameter",
    Status.CURVE_FAULT: "a computation on the elliptic curve went wrong",
    Status.SELF_TEST_FAILED: "the chip's self-test failed",
    Status.RANDOM_FAULT: "the chip's random number generator failed its test",
    Status.REFUSED: "refused: not possible in the chip's present state (locks, slot policy)",
    Status.JUST_WOKEN: "the chip has just been woken",
    Status.WATCHDOG: "the chip's watchdog is about to expire",
    Status.DAMAGED: "the command reached the chip damaged",
}


class ChipError(ThicketError):
    """A conversation with the chip failed. The subclasses say what can be done about it."""

    repeats = 0
    """How many further conversations may help; -1: as many as the deadline allows."""


class ChipAbsentError(ChipError):
    """Nothing woke up at the address: no chip, no power, no bus, or another address."""


class ChipBusError(ChipError):
    """The bus does not work (stuck, timed out, locked by another program)."""

    repeats = -1


class ChipBusLockedError(ChipBusError):
    """Another program kept the bus locked all the time: find it, or give it more time."""

    repeats = 0


class ChipTimeoutError(ChipError):
    """The chip took a command and did not become ready again."""

    repeats = -1


class ChipProtocolError(ChipError):
    """The bytes that came back are no answer: bad CRC, bad length, not the chip we expect."""

    repeats = -1


class ChipParseError(ChipError):
    """The chip does not know a command or parameter: another model, or a fault of the caller."""

    repeats = 3


class ChipRefusedError(ChipError):
    """The chip refuses because of its locks or the policy of a slot (status 0F)."""


class ChipWatchdogError(ChipError):
    """A conversation takes longer than the chip stays awake; ``DeskSession.renew`` extends it."""

    repeats = -1


class ChipMismatchError(ChipError):
    """What the chip holds is not what was written or expected. The text names the bytes."""


class ChipFaultError(ChipError):
    """The chip reports that it is broken (self-test, random numbers, curve arithmetic)."""


class CheckFailedError(ChipError):
    """Status 01: the signature or the MAC is wrong. ``DeskSession.verify`` returns False then."""


def failure(status: int) -> ChipError:
    """Return the error for a status byte other than 0."""
    text = f"{STATUS_TEXTS.get(status, 'unknown status')} ({status:02x})"
    error: ChipError
    if status == Status.REFUSED:
        error = ChipRefusedError(text)
    elif status == Status.CHECK_FAILED:
        error = CheckFailedError(text)
    elif status == Status.PARSE_ERROR:
        error = ChipParseError(text)
    elif status == Status.WATCHDOG:
        error = ChipWatchdogError(text)
    elif status in (Status.CURVE_FAULT, Status.SELF_TEST_FAILED, Status.RANDOM_FAULT):
        error = ChipFaultError(text)
        error.repeats = 3 if status == Status.CURVE_FAULT else 0
    else:
        error = ChipProtocolError(text)
    return error
