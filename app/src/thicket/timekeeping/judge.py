# SPDX-License-Identifier: Apache-2.0
"""Whether the clock may be set, and whether the time is known: decisions as functions of facts.

chronyd turns the clock slowly by itself, and never sets it. What is further away than that is set
when this module allows it:

- never before the *floor*: what the fleet's authority has signed, and the image, lie in the past;
- never behind the *end* of the device's certificate: from then on the node could be in no fleet,
  and nobody would be left to tell it that this was wrong;
- a node that does not know the time takes what it is told, within these bounds;
- a node that knows it takes a difference of more than JUMP where two servers agree on it, where it
  is the word of the origin that it has its time from, or where more nodes say so than agree with
  it. Where as many do it waits for PATIENCE, and against more it takes the time of a gateway after
  A_DAY: so a wrong time goes away by itself, and a member that lies alone is seen long before it is
  believed;
- guesses go forward only.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import NamedTuple

from thicket.timekeeping.claims import QUANTUM, SAME, Claim, Grade

#: Differences of more than this many seconds are set at once, where the time is not known yet, and
#: where it is; smaller ones chronyd makes up for by running faster or slower.
STEP = 0.1
STEP_KNOWN = 1.0
#: A larger difference than this many seconds makes certificates of others look expired: it is
#: ``SKEW`` of trust.verify, within which they do not mind.
JUMP = 600.0
#: Seconds for which a larger difference is refused, see above.
PATIENCE = 900.0
A_DAY = 86400.0
#: Seconds for which a node knows the time that nobody tells it any more: a clock that is wrong by
#: 200 parts in a million, which is more than any board's, is off by JUMP then.
HOLD = 30 * 86400.0


class Knowledge(NamedTuple):
    """What a node knows of the time without others.

    :ivar grade: HELD where it has been told since the machine started, GUESS otherwise.
    :ivar stamp: when it last knew the time, in seconds since 1970, less one for every node between
        it and the origin, so that of several nodes the nearest has the best claim.
    :ivar at: the same in seconds since power-on.
    :ivar by: ``network``, ``operator``, ``nodes``, or empty for a guess.
    :ivar origin: the node that it is from; None for this one, or where that is not known any more.
    """

    grade: Grade = Grade.GUESS
    stamp: int = 0
    at: float = 0.0
    by: str = ""
    origin: IPv6Address | None = None

    def now(self, boottime: float) -> Knowledge:
        """Return what is left of it at this time."""
        if self.grade != Grade.GUESS and boottime - self.at > HOLD:
            return Knowledge()
        return self


def confirmed(by: str, clock: float, boottime: float) -> Knowledge:
    """Return what a node knows that its source has told just now.

    :param by: ``network`` for the network's time from servers, ``operator`` for a person's word.
    """
    stamp = int(clock) if by == "operator" else int(clock) // QUANTUM * QUANTUM
    return Knowledge(Grade.HELD, stamp, boottime, by)


def learned(claim: Claim, clock: float, boottime: float) -> Knowledge:
    """Return what a node knows that follows a claim.

    :param clock: the time.
    """
    if claim.grade == Grade.GUESS:
        return Knowledge()
    stamp = claim.stamp
    if claim.grade == Grade.NETWORK:
        stamp = int(clock) // QUANTUM * QUANTUM
    stamp = max(0, stamp - 1 - claim.depth)
    return Knowledge(Grade.HELD, stamp, boottime, "nodes", claim.origin)


class Bounds(NamedTuple):
    """Between which times the clock may be, in seconds since 1970."""

    floor: float
    end: float


class Offered(NamedTuple):
    """A time that is offered.

    :ivar offset: seconds that the clock would be set forward.
    :ivar grade: what it is worth.
    :ivar servers: servers of the network that agree on it.
    :ivar theirs: nodes that know the time and say it is this.
    :ivar ours: nodes that know the time and say it is that of this node, and this one.
    :ivar same: whether it is from the origin that this node has its time from.
    :ivar since: seconds since it was refused first.
    """

    offset: float
    grade: Grade
    servers: int = 0
    theirs: int = 0
    ours: int = 1
    same: bool = False
    since: float = 0.0


KEEP = "keep"
SET = "set"
BEFORE_FLOOR = "before-floor"
BEHIND_END = "behind-end"
BACKWARDS = "backwards"
DISPUTED = "disputed"
OUTVOTED = "outvoted"


def judge(offered: Offered, clock: float, bounds: Bounds, *, known: bool) -> str:
    """Return what to do about a time that is offered: KEEP, SET, or why it is refused.

    :param clock: the clock of now.
    :param known: whether the node knows the time.
    """
    size, guess = abs(offered.offset), offered.grade == Grade.GUESS
    if size <= (STEP_KNOWN if known else STEP):
        return KEEP
    target = clock + offered.offset
    if target < bounds.floor:
        return BEFORE_FLOOR
    if target > bounds.end:
        return BEHIND_END
    if guess and (known or offered.offset < -SAME):
        return BACKWARDS
    if guess and offered.offset < 0:
        return KEEP  # chronyd makes up for it, and the time goes on
    if not known or size <= JUMP or offered.same or offered.servers >= 2:
        return SET
    if offered.theirs > offered.ours:
        return SET
    if offered.theirs == offered.ours:
        return SET if offered.since >= PATIENCE else DISPUTED
    late = offered.grade == Grade.NETWORK and offered.since >= A_DAY
    return SET if late else OUTVOTED
