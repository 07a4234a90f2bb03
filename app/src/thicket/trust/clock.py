# SPDX-License-Identifier: Apache-2.0

"""What a node knows about the time, for the dates of certificates.

The system's clock is believed once the kernel says that a time service has set it (adjtimex(2):
chrony, ntpd and systemd-timesyncd all tell the kernel). Until then there is only a floor: after a
power cut the clock shows the time of the image or of the last saving, and a battery's clock may
show anything.
"""

from __future__ import annotations

import ctypes
import os
from datetime import UTC, datetime
from functools import cache

from thicket.trust.verify import Clock

IMAGE = "/usr/lib/os-release"
"""A file with the time when the image was built."""

_UNSYNCHRONISED = 5  # TIME_ERROR of sys/timex.h
_EARLIEST = datetime(2024, 1, 1, tzinfo=UTC)  # before the first image there was none


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def synchronised() -> bool:
    """Return whether a time service has set the clock, as the kernel knows it."""
    buffer = ctypes.create_string_buffer(512)  # struct timex, all zero: only asks
    state: int = _library().adjtimex(buffer)
    return 0 <= state < _UNSYNCHRONISED


def read_clock(root: str = "") -> Clock:
    """Return what is known now.

    :param root: the folder of the image's files.
    """
    try:
        built = datetime.fromtimestamp(os.stat(root + IMAGE).st_mtime, UTC)
    except OSError:
        built = _EARLIEST
    now = datetime.now(UTC) if synchronised() else None
    return Clock(max(built, _EARLIEST), now)
