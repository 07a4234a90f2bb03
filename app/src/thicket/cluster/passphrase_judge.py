# SPDX-License-Identifier: Apache-2.0
"""Decides what comes next in a change of the mesh's passphrase; ``passphrase.py`` does it.

Times are in seconds of one clock that never goes back.
"""

from collections.abc import Set
from enum import Enum
from typing import NamedTuple

from thicket.base.pace import Backoff

#: The other passphrase is tried for TRIAL seconds. Then the present one is kept for RESTS seconds,
#: longer after each trial in vain, before the other one is tried again.
TRIAL = 60.0
RESTS = (30.0, 60.0, 120.0, 240.0, 480.0, 600.0)
#: Seconds after a change until the first node makes its links anew, and from one node to the next.
GRACE = 30.0
TURN = 8.0
#: Seconds after which a change that was begun and not finished is a problem.
PENDING = 120.0
#: Seconds for which links of the new passphrase must stand before the old one is dropped.
STAND = 20.0
#: Seconds without any link after which a node that has changed tries the old passphrase.
ALONE = 60.0


class Facts(NamedTuple):
    """What is seen of the radio and of the settings.

    :ivar two: there are a radio in a secured mesh and a second passphrase, which can be tried.
    :ivar former: the other passphrase is the one from before the change.
    :ivar peers: the MAC addresses of the peers.
    :ivar refusing: those of the neighbours that refuse the passphrase.
    :ivar outdated: a former passphrase still opens links that others begin.
    :ivar turn: how many nodes make their links anew before this one; None where nothing is
        outdated, and outside a cluster.
    """

    two: bool = False
    former: bool = False
    peers: Set[str] = frozenset()
    refusing: Set[str] = frozenset()
    outdated: bool = False
    turn: int | None = None


class Deed(Enum):
    """What is to be done."""

    #: Make every link anew.
    RENEW = 1
    #: Use the other passphrase for a while.
    TRY = 2
    #: Use the present passphrase again.
    RETURN = 3
    #: Let the two passphrases trade places: a trial has brought a link.
    ADOPT = 4
    #: Drop the former passphrase: links of the new one stand.
    DROP = 5


class Judge:
    """Decides by what is seen at each look.

    :ivar trying: the radio uses the other passphrase.
    """

    __slots__ = (
        "_alone_since", "_asked", "_pending_since", "_renew_at", "_rest", "_since",
        "_stands_since", "trying",
    )  # fmt: skip

    def __init__(self) -> None:
        self.trying = False
        #: The neighbours that refused the present passphrase when the trial began; nobody where
        #: there was no peer.
        self._asked: Set[str] = frozenset()
        #: When the last trial began or ended.
        self._since = float("-inf")
        self._rest = Backoff(*RESTS)
        self._pending_since: float | None = None
        self._renew_at: float | None = None
        self._stands_since: float | None = None
        self._alone_since: float | None = None

    def judge(self, now: float, facts: Facts) -> list[Deed]:
        """What is to be done now, in this order."""
        deeds = [Deed.RENEW] if self._is_our_turn(now, facts.turn) else []
        if not facts.two:
            self.trying = False
            self._rest.reset()
        elif self.trying:
            if now - self._since > TRIAL:
                self.trying, self._since, self._alone_since = False, now, None
                self._rest.failed()
                deeds.append(Deed.RETURN)
        elif self._wants_to_try(now, facts):
            self.trying, self._since = True, now
            self._asked = facts.refusing if facts.peers else frozenset()
            deeds.append(Deed.TRY)
        # With peers from before, the proof is a link with a neighbour that refused the present
        # passphrase: all others may be links that stood. Alone, any link is proof.
        if self.trying and (self._asked & facts.peers if self._asked else facts.peers):
            self.trying = False
            deeds.append(Deed.ADOPT)
        elif self._stand(now, facts):
            deeds.append(Deed.DROP)
        return deeds

    def changed(self) -> None:
        """The passphrases have traded places, or only one is left."""
        self._stands_since = self._alone_since = None

    def once_more(self, now: float) -> bool:
        """Whether a change that this node took back may be made again now; this counts as one."""
        if now - self._since <= self._rest.pause:
            return False
        self._since = now
        self._rest.failed()
        return True

    def is_overdue(self, now: float, *, unfinished: bool) -> bool:
        """Whether an unfinished change has been that for too long."""
        if not unfinished:
            self._pending_since = None
            return False
        if self._pending_since is None:
            self._pending_since = now
        return now - self._pending_since > PENDING

    def _is_our_turn(self, now: float, turn: int | None) -> bool:
        """Whether this node makes its links anew now.

        All nodes were told at about the same time and know the same nodes, so each can count its
        turn for itself. Where two take theirs at once, nothing worse comes of it.
        """
        if turn is None or self.trying:
            self._renew_at = None
        elif self._renew_at is None:
            self._renew_at = now + GRACE + TURN * turn
        elif now >= self._renew_at:
            self._renew_at = None
            return True
        return False

    def _wants_to_try(self, now: float, facts: Facts) -> bool:
        """Whether it is time to try the other passphrase.

        A node with links never tries a former one.
        """
        if facts.former and not self._is_alone(now, facts):
            return False
        return bool(facts.refusing or facts.former) and now - self._since > self._rest.pause

    def _is_alone(self, now: float, facts: Facts) -> bool:
        """Whether the new passphrase has brought no link for a while."""
        if facts.peers:
            self._alone_since = None
            return False
        if self._alone_since is None:
            self._alone_since = now
        return bool(facts.refusing) or now - self._alone_since > ALONE

    def _stand(self, now: float, facts: Facts) -> bool:
        """Whether links of the new passphrase stand, so that the former one can go."""
        if self.trying or not facts.former or facts.outdated or not facts.peers:
            self._stands_since = None
            return False
        if self._stands_since is None:
            self._stands_since = now
        return now - self._stands_since >= STAND
