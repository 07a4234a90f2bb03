# SPDX-License-Identifier: Apache-2.0
"""Whether a process hangs that owes an answer, or only gets no processor.

By the clock the two look the same on a node whose processors are busy, and to end a process for
having none costs all that it held, and a start, which takes more of what is lacking.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from thicket.base.files import read
from thicket.base.patience import STEP

#: Patience with a process that is known.
HANG_SECONDS = 5.0
#: Seconds of the clock after which it is given up whatever the reason.
MOST_SECONDS = 120.0


class Doing(NamedTuple):
    """What a process does.

    :ivar state: a letter as in proc(5): R has a processor or waits for one, D is in the kernel.
    :ivar worked: the seconds for which it had a processor since it began.
    """

    state: str
    worked: float


def facts(pid: int) -> list[str]:
    """Return the facts of a process behind its name (proc(5), ``/proc/pid/stat``, from field 3 on).

    :returns: none when there is no such process.
    """
    fields = (read(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return fields if len(fields) >= 20 and fields[0] not in ("Z", "X") else []


def doing(pid: int) -> Doing | None:
    """Return what a process does; None when nothing is known of it."""
    fields = facts(pid)
    if not fields:
        return None
    ticks = int(fields[11]) + int(fields[12])  # utime and stime, fields 14 and 15
    return Doing(fields[0], ticks / os.sysconf("SC_CLK_TCK"))


class Judge:
    """Judges a process from its question on, as one looks at it every ``STEP`` seconds.

    :param present: what it does when it is asked; None when nothing is known of it.
    :param patience: seconds of our event loop, for one that does nothing or of which nothing is
        known; and seconds of a processor, for one that works.
    """

    def __init__(self, present: Doing | None, patience: float) -> None:
        self._patience = patience
        self._most = max(MOST_SECONDS, patience)
        self._begin = self._last = present
        self._passed = 0.0
        self._counted = 0.0
        self._idle = 0.0

    def look(self, present: Doing | None, took: float) -> str | None:
        """Return why the process hangs, in words that follow "no answer within 7 s"; None as long
        as it may be well.

        :param took: seconds since the last look.
        """
        step = min(took, STEP)
        late = took > 2 * STEP
        self._passed += took
        self._counted += step
        begin, last = self._begin, self._last
        self._last = present
        if self._passed >= self._most:
            return ""
        if present is None or begin is None or last is None:
            return "" if self._counted >= self._patience else None
        if present.worked > last.worked:
            self._idle = 0.0
            worked = present.worked - begin.worked
            return f" of {worked:.0f} s of work" if worked >= self._patience else None
        # In the kernel it may wait for somebody who gets no processor, as we do.
        if present.state != "R" and not (present.state == "D" and late):
            self._idle += step
        return " and does nothing" if self._idle >= self._patience else None
