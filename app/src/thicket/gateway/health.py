# SPDX-License-Identifier: Apache-2.0
"""Whether an uplink leads somewhere: a decision of what was asked and what has answered.

:func:`works` judges one look, :class:`Health` many of them: three failures in a row end what is
good; and each end within :data:`CALM` seconds of the one before makes the way back longer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: Seconds between two looks, and those that an answer may take.
EVERY, PATIENCE = 2.0, 1.5
#: Failures in a row that end what is good.
FAILURES = 3
#: Seconds for which answers have to come before what has failed is good again, by how often it has
#: failed of late.
BACK = (0.0, 5.0, 15.0, 45.0, 120.0)
#: Seconds for which it has to be good for all failures to be forgotten.
CALM = 600.0


class Look(NamedTuple):
    """What one look at an uplink has found, of IPv4 or of IPv6.

    :ivar router: whether the router is there; None where it was not asked.
    :ivar names: of the name servers that the network names: whether each has answered.
    :ivar targets: of the places that the settings name: the same.
    """

    has_address: bool
    has_router: bool
    router: bool | None = None
    names: Mapping[str, bool] = {}
    targets: Mapping[str, bool] = {}


def works(look: Look) -> str:
    """Return why an uplink does not lead anywhere; nothing where it does."""
    if not look.has_address:
        return "it has given no address"
    if not look.has_router:
        return "it has no router"
    if look.targets:
        return "" if any(look.targets.values()) else f"no answer from {_named(look.targets)}"
    if look.names:
        return "" if any(look.names.values()) else f"no name server answers: {_named(look.names)}"
    return "" if look.router else "its router does not answer"


def _named(asked: Mapping[str, bool]) -> str:
    return ", ".join(asked)


class Health:
    """Whether an uplink is good, over time.

    :ivar good: whether it is offered.
    :ivar why: why it is not; empty where it is.
    """

    def __init__(self) -> None:
        self.good = False
        self.why = "it has not been checked yet"
        self._failures = 0
        self._ends = 0
        self._since: float | None = None

    def note(self, why: str, now: float) -> bool:
        """Take the result of a look; return whether the uplink is good.

        :param why: of :func:`works`.
        """
        if why:
            self._failures += 1
            if not self.good:
                self.why, self._since = why, None
            elif self._failures >= FAILURES:
                if self._since is not None and now - self._since >= CALM:
                    self._ends = 0
                self.good, self.why, self._since = False, why, None
                self._ends += 1
            return self.good
        self._failures = 0
        if self._since is None:
            self._since = now
        pause = BACK[min(self._ends, len(BACK) - 1)]
        if not self.good and now - self._since >= pause:
            self.good, self.why, self._since = True, "", now
        elif not self.good:
            left = pause - (now - self._since)
            self.why = f"it has failed {self._ends} times of late; again in {left:.0f} s"
        return self.good
