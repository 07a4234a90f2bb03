# SPDX-License-Identifier: Apache-2.0
"""The dates that the fleet's authority has signed: the newest is kept and passed on."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from logging import getLogger
from typing import TYPE_CHECKING

from thicket.base import threads
from thicket.base.errors import RequestError
from thicket.base.threads import finish
from thicket.timekeeping import statement
from thicket.timekeeping.statement import ANSWER, QUESTION, Statement
from thicket.trust.certificates import Certificate
from thicket.trust.verify import RefusedError

if TYPE_CHECKING:
    from thicket.timekeeping.kept import Kept
    from thicket.trust.standing import Standing

log = getLogger(__name__)


def end_of(chain: tuple[bytes, ...]) -> datetime:
    """Return when the first of a device's certificates ends that are not its own to renew.

    :param chain: node, device and signer.
    """
    return min(Certificate(one).not_after for one in chain[1:])


class SignedTime:
    """The newest signed date of one node, and the question that a signed time may answer.

    :param standing: returns what the node is in its fleet; None without one.
    :param kept: the files.
    """

    def __init__(self, standing: Callable[[], Standing | None], kept: Kept) -> None:
        self._standing = standing
        self._kept = kept
        self._newest: Statement | None = None
        self._question = ""
        self._asked = 0.0
        self._read_for: Standing | None = None

    @property
    def number(self) -> int:
        """The date in seconds since 1970; 0 without one."""
        return 0 if self._newest is None else self._newest.number

    @property
    def packed(self) -> bytes:
        """The signed date; empty without one."""
        return b"" if self._newest is None else self._newest.packed

    async def load(self) -> None:
        """Read what was kept, once the fleet is known; for each look at the clock."""
        standing = self._standing()
        if standing is None or standing is self._read_for:
            return
        self._read_for = standing
        packed = await finish(self._kept.statement)
        if not packed:
            return
        try:
            found = statement.read(packed, standing.fleet)
        except RefusedError as error:  # of another fleet, or damaged
            log.warning("the signed time that was kept is not used: %s", error)
            return
        standing.passed(found.issued)
        if found.number > self.number:
            self._newest = found

    def ask(self, boottime: float) -> str:
        """Return a new question; it holds for ANSWER seconds."""
        self._question, self._asked = os.urandom(QUESTION).hex(), boottime
        return self._question

    def take(self, packed: bytes, boottime: float) -> tuple[Statement, bool]:
        """Take a signed date; return it, and whether it answers the question.

        :raises RequestError: it is not the authority's, or older than one that is known.
        """
        standing = self._standing()
        if standing is None:
            raise RequestError("no-fleet", "this node belongs to no fleet")
        try:
            found = statement.read(packed, standing.fleet)
        except RefusedError as error:
            raise RequestError("not-taken", f"the signed time is not taken: {error}") from None
        credentials = standing.credentials
        if credentials is not None and found.issued > end_of(credentials.chain):
            raise RequestError(
                "behind-end",
                f"it is signed for {found.issued:%Y-%m-%d}, when this device's certificate has "
                "ended: look at the clock of the authority's machine",
            )
        answers = bool(self._question) and found.question == self._question
        if answers and boottime - self._asked > ANSWER:
            raise RequestError(
                "too-late", f"it answers a question older than {ANSWER:.0f} s: ask again"
            )
        if not answers and found.number <= self.number:
            raise RequestError("not-newer", "it is no later than the one that this node has")
        if answers:
            self._question = ""
        standing.passed(found.issued)
        if found.number > self.number:
            self._newest = found
            threads.start(self._keep, "signed-time")
        return found, answers

    def _keep(self) -> None:
        try:
            self._kept.keep_statement(self.packed)  # the newest, whichever thread is the last one
        except OSError as error:
            log.warning("the signed time cannot be kept: %s", error.strerror)
