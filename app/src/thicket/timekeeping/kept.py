# SPDX-License-Identifier: Apache-2.0
"""What the part ``time`` keeps: over a restart of the daemon, and over one of the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thicket.base.files import read, read_kept, remove, write_atomically
from thicket.timekeeping import rtc
from thicket.timekeeping.claims import LATEST, Grade
from thicket.timekeeping.judge import Knowledge
from thicket.timekeeping.statement import MOST
from thicket.trust.clock import KNOWN, TOLD

if TYPE_CHECKING:
    from thicket.base.paths import Paths

#: In /data/thicket: the newest date that the authority has signed.
STATEMENT = "/thicket/time.signed"
_GUESS = "guess"


class Kept:
    """The files."""

    def __init__(self, paths: Paths) -> None:
        self._root = paths.root
        self._told = paths.root + TOLD
        self._statement = paths.data + STATEMENT
        self._said = ""

    def known(self, boottime: float) -> Knowledge:
        """Return what an earlier daemon of this boot knew."""
        words = (read(self._told) or "").split()
        if len(words) != 4 or words[0] != KNOWN:
            return Knowledge()
        try:
            stamp, at = int(words[1]), float(words[2])
        except ValueError:
            return Knowledge()
        if not (0 < stamp < LATEST and 0 <= at <= boottime):
            return Knowledge()
        return Knowledge(Grade.HELD, stamp, at, words[3])

    def tell(self, knowledge: Knowledge) -> bool:
        """Say what is known, for the dates of certificates; return whether that is new.

        :raises OSError: it cannot be said.
        """
        known = knowledge.grade != Grade.GUESS
        text = f"{KNOWN} {knowledge.stamp} {knowledge.at:.0f} {knowledge.by}" if known else _GUESS
        if text == self._said:
            return False
        new = text.partition(" ")[0] != self._said.partition(" ")[0]
        write_atomically(self._told, f"{text}\n".encode(), durable=False)
        self._said = text
        return new

    def forget(self) -> None:
        """Say nothing: another program may set the clock."""
        remove(self._told)
        self._said = ""

    # -- those on the disk; in a thread

    def statement(self) -> bytes:
        """Return the signed date; empty without one."""
        try:
            return read_kept(self._statement, MOST)
        except OSError:
            return b""

    def keep_statement(self, packed: bytes) -> None:
        """Keep a signed date.

        :raises OSError: it cannot be kept.
        """
        write_atomically(self._statement, packed)

    def has_rtc(self) -> bool:
        return rtc.exists(self._root)

    def write_rtc(self, clock: float) -> None:
        """Set the battery's clock.

        :raises OSError: it cannot be set.
        """
        rtc.write(self._root, clock)
