# SPDX-License-Identifier: Apache-2.0
"""What the kernel knows about this process and the machine's uptime."""

from __future__ import annotations

import os
import time


def boottime() -> float:
    """Return the seconds since power-on (CLOCK_BOOTTIME), to the millisecond.

    It is used in place of the time of day, which a node cannot trust.
    """
    return round(time.clock_gettime(time.CLOCK_BOOTTIME), 3)


def process_start() -> float | None:
    """Return when this process started, in seconds since power-on; None when /proc does not tell.

    That is before its imports, which take long on a slow processor.
    """
    try:
        with open("/proc/self/stat", "rb") as f:
            # proc(5): field 22 in clock ticks; the name in field 2 may hold blanks and parentheses
            ticks = int(f.read().rpartition(b")")[2].split()[19])
        return round(ticks / os.sysconf("SC_CLK_TCK"), 3)
    except (OSError, ValueError, IndexError):
        return None


def memory_kib() -> int:
    """Return the resident memory of this process in KiB; 0 when /proc does not tell."""
    try:
        # without a file object, which costs more than the rest: it is asked all the time
        fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        try:
            pages = os.read(fd, 256).split()[1]
        finally:
            os.close(fd)
        return int(pages) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    except (OSError, ValueError, IndexError):
        return 0
