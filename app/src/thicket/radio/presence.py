# SPDX-License-Identifier: Apache-2.0
"""Judges whether the node is still in its mesh, and under the rules of its country."""

from __future__ import annotations

from typing import Final, NamedTuple

from thicket.radio.nl80211 import MADE_DOMAINS
from thicket.radio.reports import Report, Solved

#: Seconds for which the interface must be outside the mesh to have left it, and the same while we
#: enter it by ourselves.
LEFT_SECONDS: Final = 3.0
ENTERING_SECONDS: Final = 30.0
#: Looks at which the kernel is asked for the wanted country before a problem is told of.
COUNTRY_TIMES: Final = 3


class AskForCountry(NamedTuple):
    """Ask the kernel, which follows the rules of ``instead_of``, for those of a country."""

    country: str
    instead_of: str | None


class Presence:
    """What was seen of one session's place in the mesh. Times in seconds, monotonic."""

    __slots__ = ("_asked", "_entering_until", "_outside_since")

    def __init__(self) -> None:
        #: Since when the interface is not in the mesh, and until when that is our own doing.
        self._outside_since: float | None = None
        self._entering_until = 0.0
        #: How often the kernel was asked for the country in vain.
        self._asked = 0

    @property
    def inside(self) -> bool:
        """Whether the interface was in the mesh at the last look."""
        return self._outside_since is None

    def entering(self, now: float) -> None:
        """The mesh is left and entered by our own doing."""
        self._entering_until = now + ENTERING_SECONDS

    def left(self, frequency: int | None, wanted: int, now: float) -> bool:
        """Whether an interface on ``frequency`` (MHz, None: in no mesh) has left the mesh that is
        on ``wanted``: not only for a moment, and not because we enter it."""
        if frequency == wanted:
            self._outside_since = None
            self._entering_until = 0.0
            return False
        if self._outside_since is None:
            self._outside_since = now
        if now - self._outside_since < LEFT_SECONDS or now < self._entering_until:
            return False
        self._outside_since = None
        return True

    def judge_country(self, present: str | None, wanted: str) -> AskForCountry | Report | Solved:
        """What to do about the country whose rules the kernel follows.

        Somebody can ask it for another one (`iw reg set`), and it ignores without a word what its
        database does not have.
        """
        if present in (None, wanted, *MADE_DOMAINS):
            self._asked = 0
            return Solved("country")
        self._asked += 1
        if self._asked <= COUNTRY_TIMES:
            return AskForCountry(wanted, present)
        return Report(
            "country",
            "country",
            f"the kernel follows the rules of {present!r} and not of mesh.country, {wanted!r}: its "
            "regulatory database does not have that country or is missing",
        )
