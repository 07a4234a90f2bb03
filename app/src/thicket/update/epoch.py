# SPDX-License-Identifier: Apache-2.0
"""The security epoch in force: a node takes no bundle below it.

It is the highest epoch of an image that was well here. The boot record keeps it, and so does a
monotonic counter of the chip, which survives another card. It is raised when a slot is well, not
before: what is left again raises nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import Protocol

from thicket.update.manifest import MAX_EPOCH

log = getLogger(__name__)

#: The chip's counter that keeps the epoch. Counter 0 limits the use of keys, where a chip's
#: configuration says so (data sheet of the ATECC608A, "Monotonic Counters").
COUNTER = 1


class Counting(Protocol):
    """The chip as this module needs it, see :class:`thicket.identity.chip.atecc.Atecc`."""

    def counter(self, number: int) -> int:
        """Return the value of a counter."""

    def count_up(self, number: int) -> int:
        """Add one to a counter; return the new value."""


#: Lets work use the chip in its thread; raises ThicketError where there is none or it fails.
UseChip = Callable[[Callable[[Counting], int]], Awaitable[int]]


def read(chip: Counting) -> int:
    """Return the epoch that the chip keeps.

    A counter beyond every epoch was counted up by another product: it counts as 0, as the chip's
    last owner must not lock this one out of updates for ever.
    """
    value = chip.counter(COUNTER)
    if value > MAX_EPOCH:
        log.warning("counter %d of the chip says %d: it keeps no epoch", COUNTER, value)
        return 0
    return value


def raise_to(epoch: int) -> Callable[[Counting], int]:
    """Return the work that makes a chip keep ``epoch`` if it keeps a lower one."""

    def work(chip: Counting) -> int:
        value = chip.counter(COUNTER)
        while value < epoch:
            value = chip.count_up(COUNTER)
        return value

    return work
