# SPDX-License-Identifier: Apache-2.0
"""Who of a fleet knows the time best: decisions as functions of what nodes say of themselves.

Each node tells the nodes that it is connected with what its clock is worth, a *claim*. All nodes
order the claims that they hear in the same way, and take the time from those that are better than
what they have themselves. The order is strict, so nobody takes the time from a node that takes it
from him, over however many others.

A claim names its *origin*, the node that the time comes from, and how many nodes are between. As
with the root of a spanning tree (IEEE 802.1D), the age of a claim counts from its origin on and
grows with every node that passes it on. When the origin falls silent, what it said ends everywhere
after MOST_AGE, instead of going round in circles.

    network   the origin asks time servers and they answer: the nearest is the best
    held      the origin has known the time (from the network, or a person's word), and has counted
              on since: who knew it last is the best
    guess     nobody has told the origin since its start. Its clock is the time that was saved, at
              which it was certainly running: of two guesses the later one is nearer to the truth
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from ipaddress import IPv6Address
from typing import Any, NamedTuple

from thicket.distribution.etf import Atom

#: Nodes that the time is taken from, at most.
MOST_SOURCES = 4
#: Nodes between a node and the origin of its time, at most: NTP counts no further than 15.
MOST_DEPTH = 11
#: Seconds between two rounds in which all neighbours hear what the clock is worth.
TELL = 240.0
#: Seconds for which a claim holds whose origin says no more.
MOST_AGE = 3 * TELL
#: Two guesses that differ by less than this many seconds are the same time.
SAME = 2.0
#: Claims of the network's time are stamped to this many seconds, so that those of several nodes
#: that have lost it at the same time are equal.
QUANTUM = 900
#: Latest time that a claim or a statement may name: the end of the calendar of NTP's second era.
LATEST = 4_294_967_296


class Grade(IntEnum):
    """What a clock is worth, see above."""

    GUESS = 0
    HELD = 1
    NETWORK = 2


class Claim(NamedTuple):
    """What a node says of its clock.

    :ivar stamp: when the origin last knew the time, in seconds since 1970; 0 for a guess.
    :ivar depth: nodes from the origin to the one that says this; 0 at the origin.
    :ivar age: seconds since the origin said so.
    :ivar clock: its clock, in seconds since 1970.
    """

    grade: Grade
    stamp: int
    origin: IPv6Address
    depth: int
    age: float
    clock: float


class Heard(NamedTuple):
    """A claim of another node.

    :ivar at: when it came, on the monotonic clock.
    """

    claim: Claim
    at: float

    def age(self, now: float) -> float:
        """Return the seconds since its origin said so."""
        return self.claim.age + max(0.0, now - self.at)

    def ahead(self, clock: float, now: float) -> float:
        """Return by how many seconds the other's clock is ahead of this one's, ``clock``."""
        return self.claim.clock + max(0.0, now - self.at) - clock


class Choice(NamedTuple):
    """What a node does about its clock.

    :ivar sources: whom it takes the time from, the best first; empty at an origin.
    :ivar best: the claim that it follows: of the first source, or its own.
    """

    sources: tuple[IPv6Address, ...]
    best: Claim

    @property
    def leads(self) -> bool:
        """Whether the node takes the time from no other."""
        return not self.sources


def elect(own: Claim, heard: Mapping[IPv6Address, Heard], now: float) -> Choice:
    """Return whom a node takes the time from.

    :param own: what its clock is worth without the others, now; it is the origin.
    :param heard: the claims of others, by their addresses.
    :param now: the monotonic clock.
    """
    me = own.origin
    valid = {
        address: one
        for address, one in heard.items()
        if me not in {one.claim.origin, address}
        and one.claim.depth < MOST_DEPTH
        and one.age(now) <= MOST_AGE
    }
    grade = max([own.grade, *(one.claim.grade for one in valid.values())])
    if grade == Grade.NETWORK:
        equal = {a: one for a, one in valid.items() if one.claim.grade == grade}
        if own.grade == grade:
            return Choice((), own)
    elif grade == Grade.HELD:
        ranks = [_held(one.claim) for one in valid.values() if one.claim.grade == grade]
        best = min([*ranks, *([_held(own)] if own.grade == grade else [])])
        if own.grade == grade and _held(own) == best:
            return Choice((), own)
        equal = {
            a: one
            for a, one in valid.items()
            if one.claim.grade == grade and _held(one.claim) == best
        }
    else:
        equal = _guesses(own, valid, now)
    if not equal:
        return Choice((), own)
    order = sorted(equal, key=lambda address: (equal[address].claim.depth, address))
    if own.grade == Grade.GUESS < grade:
        # Nobody follows a guess where there is better: all that know may be asked.
        return Choice(tuple(order[:MOST_SOURCES]), equal[order[0]].claim)
    # Those of our own depth count where their addresses are lower: one of two is the source.
    depth = equal[order[0]].claim.depth + 1
    sources = [a for a in order if (equal[a].claim.depth, a) < (depth, me)][:MOST_SOURCES]
    return Choice(tuple(sources), equal[sources[0]].claim)


def _held(claim: Claim) -> tuple[int, IPv6Address]:
    return -claim.stamp, claim.origin


def _guesses(
    own: Claim, valid: Mapping[IPv6Address, Heard], now: float
) -> dict[IPv6Address, Heard]:
    """Return the guesses that are better than ours: the latest, and of the same the lowest origin.

    The differences are those of this node's clock, so what is the same for it may not be for
    others. Nodes step forward only, so they all come to the latest time.
    """
    ahead = {address: one.ahead(own.clock, now) for address, one in valid.items()}
    latest = max([0.0, *ahead.values()])
    same = {address: one for address, one in valid.items() if latest - ahead[address] <= SAME}
    origins = [one.claim.origin for one in same.values()]
    if latest <= SAME:
        origins.append(own.origin)
    origin = min(origins, default=own.origin)
    return {address: one for address, one in same.items() if one.claim.origin == origin}


def passed_on(choice: Choice, heard: Heard, clock: float, now: float) -> Claim:
    """Return what a node that follows a choice says of its clock.

    :param heard: the claim of the first source.
    """
    best = choice.best
    return Claim(best.grade, best.stamp, best.origin, best.depth + 1, heard.age(now), clock)


# -- as others get it

CLAIM = Atom("claim")


def pack(claim: Claim, statement: int) -> tuple[Any, ...]:
    """Return the message with a claim.

    :param statement: the number of the newest signed statement that the node has; 0 without one.
    """
    return (
        CLAIM, int(claim.grade), claim.stamp, claim.origin.packed, claim.depth, int(claim.age),
        int(claim.clock * 1000), statement,
    )  # fmt: skip


def unpack(message: Any) -> tuple[Claim, int] | None:
    """Return a claim and the number of a statement; None where the message has no sound ones."""
    match message:
        case (
            "claim", int() as grade, int() as stamp, bytes() as origin, int() as depth,
            int() as age, int() as clock, int() as statement,
        ):  # fmt: skip
            pass
        case _:
            return None
    numbers = (grade, stamp, depth, age, clock, statement)
    if any(isinstance(number, bool) for number in numbers) or len(origin) != 16:
        return None
    if not (
        0 <= grade <= Grade.NETWORK
        and 0 <= stamp < LATEST
        and 0 <= depth <= MOST_DEPTH
        and 0 <= age <= MOST_AGE
        and 0 <= clock < LATEST * 1000
        and 0 <= statement < LATEST
    ):
        return None
    claim = Claim(Grade(grade), stamp, IPv6Address(origin), depth, float(age), clock / 1000)
    return claim, statement
