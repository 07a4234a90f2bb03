# SPDX-License-Identifier: Apache-2.0

"""What a node knows about the time, for the dates of certificates.

The system's clock is believed once the node's part ``time`` says in a file that it is known; where
that part does not run, once the kernel says that another time service has set it (adjtimex(2):
ntpd and systemd-timesyncd tell the kernel). Until then there is only a floor: after a power cut the
clock shows the time of the image or of the last saving, a battery's clock may show anything, and
what nodes agree on that nobody has told is a guess.
"""

from __future__ import annotations

import ctypes
import os
from datetime import UTC, datetime
from functools import cache
from time import monotonic

from thicket.base.files import read
from thicket.trust.verify import Clock

IMAGE = "/usr/lib/os-release"
"""A file with the time when the image was built."""

TOLD = "/run/thicket/clock"
"""Where the part ``time`` says whether the clock is right: a line that begins with KNOWN or not."""

KNOWN = "known"

LOOK = 1.0
"""Seconds between two looks at what the kernel and the image's files say of the time."""

_UNSYNCHRONISED = 5  # TIME_ERROR of sys/timex.h
_EARLIEST = datetime(2024, 1, 1, tzinfo=UTC)  # before the first image there was none


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def synchronised(root: str = "") -> bool:
    """Return whether the clock is known to be right: by the part ``time``, or else by the kernel.

    :param root: the folder of the image's files.
    """
    if (told := read(root + TOLD)) is not None:
        return told.startswith(KNOWN)
    buffer = ctypes.create_string_buffer(512)  # struct timex, all zero: only asks
    state: int = _library().adjtimex(buffer)
    return 0 <= state < _UNSYNCHRONISED


class SystemClock:
    """What is known about the time on this machine. It is asked for each beacon.

    :param root: the folder of the image's files.
    """

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._looked = float("-inf")
        self._floor = _EARLIEST
        self._synchronised = False

    def read(self) -> Clock:
        """Return what is known now."""
        if monotonic() - self._looked >= LOOK:
            self._looked = monotonic()
            self._floor, self._synchronised = _built(self._root), synchronised(self._root)
        return Clock(self._floor, datetime.now(UTC) if self._synchronised else None)


def _built(root: str) -> datetime:
    """Return when the image was built."""
    try:
        built = datetime.fromtimestamp(os.stat(root + IMAGE).st_mtime, UTC)
    except (OSError, ValueError, OverflowError):  # a damaged card has any time
        return _EARLIEST
    return max(built, _EARLIEST)
