# SPDX-License-Identifier: Apache-2.0
"""A date, signed by the fleet's authority: it has passed (``thicket ca time``).

Any node may pass a statement on, and it says the same for ever: it is later than this. It raises
the *floor* of all nodes, by which certificates expire and below which no clock is set.

A statement that answers a node's question (a random number, no older than ``ANSWER``) says more on
that node: it was made since the node asked, so that is what the time is.

The fleet's root signs. A certificate of an operator, which the root gives for this purpose, may
sign likewise one day: then :func:`read` is where its chain is checked.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.trust.signed import Kind
from thicket.trust.verify import Verify, verify_signature

if TYPE_CHECKING:
    from thicket.trust.fleet import Fleet

#: Bytes of the longest statement.
MOST = 1024
#: Seconds within which a question is answered; the time that is set is late by so much at most.
ANSWER = 120.0
#: Bytes of a question.
QUESTION = 16

KIND = Kind(b"thicket time 1\n", MOST, "a signed time", "a signed time")


class Statement(NamedTuple):
    """What the authority has said.

    :ivar number: ``issued`` in seconds since 1970: the highest is the newest.
    :ivar question: the node's question that it answers, in hexadecimal; empty without one.
    """

    number: int
    issued: datetime
    question: str
    packed: bytes


def read(packed: bytes, fleet: Fleet, *, verify: Verify = verify_signature) -> Statement:
    """Check and read a statement.

    :raises RefusedError: it is not the authority's, or is damaged.
    """

    def build(members: dict[str, Any], issued: datetime) -> Statement:
        number, question = members["number"], members.get("question", "")
        if number != int(issued.timestamp()) or not isinstance(question, str):
            raise ValueError("a member is not of its kind")
        return Statement(number, issued, question, bytes(packed))

    return KIND.read(packed, fleet, build, verify)
