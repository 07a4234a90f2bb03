# SPDX-License-Identifier: Apache-2.0
"""Judges whether the node is still in its mesh, and under the rules of its country."""

from typing import NamedTuple

from thicket.radio.nl80211 import MADE_DOMAINS
from thicket.radio.reports import Report, Solved

#: Seconds for which the interface must be outside the mesh to have left it, and for which it may be
#: outside after we began to enter the mesh anew.
LEFT_SECONDS = 3.0
ENTERING_SECONDS = 30.0
#: Looks at which the kernel is asked for the wanted country before a problem is told of.
COUNTRY_TIMES = 3


class AskForCountry(NamedTuple):
    """Ask the kernel, which follows the rules of ``instead_of``, for those of a country."""

    country: str
    instead_of: str | None


class Presence:
    """What was seen of one session's place in the mesh. Times in seconds, monotonic."""

    __slots__ = ("_asked", "_entering_until", "_outside_since")

    def __init__(self) -> None:
        #: Since when the interface is not in the mesh, and until when we cause that ourselves.
        self._outside_since: float | None = None
        self._entering_until = 0.0
        #: How often the kernel was asked for the country in vain.
        self._asked = 0

    @property
    def inside(self) -> bool:
        """Whether the interface was in the mesh at the last look."""
        return self._outside_since is None

    def entering(self, now: float) -> None:
        """We leave and enter the mesh ourselves."""
        self._entering_until = now + ENTERING_SECONDS

    def left(self, frequency: int | None, wanted: int, now: float) -> bool:
        """Whether the interface has left the mesh: not only for a moment, and not by our own doing.

        :param frequency: the interface's in MHz, None when it is in no mesh.
        :param wanted: the mesh's in MHz.
        """
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

        Somebody can ask the kernel for another one (`iw reg set`). It silently ignores a country
        that its database does not have.
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


def judge_width(present: int | None, wanted: int) -> Report | Solved:
    """What to tell of the width in MHz of the mesh's channel.

    A narrower one still meets the others of the mesh: wpa_supplicant takes it where the rules of
    the country or an access point nearby do not leave room.
    """
    if present is None or present >= wanted:
        return Solved("width")
    return Report(
        "width",
        "width",
        f"the mesh's channel is {present} MHz wide and not {wanted} (mesh.width): the rules of "
        "mesh.country do not allow more there, or another network is in the way",
    )
