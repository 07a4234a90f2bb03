# SPDX-License-Identifier: Apache-2.0
"""The battery's clock of a machine, where it has one (rtc(4)).

``S08clock.sh`` sets the system's clock by it at the start. It is set only from a time that is
known: otherwise it would give a guess for something better.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time

DEVICE = "/dev/rtc0"
_SET_TIME = 0x4024700A  # RTC_SET_TIME of linux/rtc.h: _IOW('p', 0x0a, struct rtc_time)
_RTC_TIME = struct.Struct("9i")


def exists(root: str) -> bool:
    """Return whether the machine has such a clock."""
    return os.path.exists(root + DEVICE)


def write(root: str, clock: float) -> None:
    """Set it; in a thread, as a chip on a bus may take its time.

    :param clock: seconds since 1970.
    :raises OSError: it cannot be set.
    """
    t = time.gmtime(clock)
    data = _RTC_TIME.pack(
        t.tm_sec, t.tm_min, t.tm_hour, t.tm_mday, t.tm_mon - 1, t.tm_year - 1900, 0, 0, 0
    )
    fd = os.open(root + DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _SET_TIME, data)
    finally:
        os.close(fd)
