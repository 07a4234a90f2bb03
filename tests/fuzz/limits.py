# SPDX-License-Identifier: Apache-2.0
"""What an input may cost: processor time and memory in proportion to its length."""

from __future__ import annotations

from collections.abc import Callable
from resource import RUSAGE_SELF, getrusage
from time import process_time

SECONDS = 0.5
SECONDS_PER_BYTE = 0.00025
"""With the fuzzer's bookkeeping in every line; without, the same takes a fifth of it or less."""

BYTES = 1024 * 1024
BYTES_PER_BYTE = 1000
"""An element of a term costs a byte on the wire and some hundred in memory, twice for a time."""

_RESIDENT = 16 * 1024 * 1024
"""By so much more the process may grow: memory is taken from the system in large pieces."""


def seconds(length: int) -> float:
    """Return the processor time that an input of so many bytes may take."""
    return SECONDS + SECONDS_PER_BYTE * length


def memory(length: int) -> int:
    """Return the bytes that an input of so many bytes may take, beyond what was there before."""
    return BYTES + BYTES_PER_BYTE * length


def watched(one: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return ``one`` with these limits; an input beyond them is an AssertionError."""

    def within_limits(data: bytes) -> None:
        before = getrusage(RUSAGE_SELF).ru_maxrss
        begin = process_time()
        one(data)
        took = process_time() - begin
        grown = (getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024
        if took > seconds(len(data)):
            raise AssertionError(
                f"{len(data)} bytes took {took:.1f} s (limit {seconds(len(data)):.1f})"
            )
        if grown > memory(len(data)) + _RESIDENT:
            raise AssertionError(f"{len(data)} bytes took {grown >> 20} MiB")

    return within_limits
