# SPDX-License-Identifier: Apache-2.0
"""What the radio tells: events to its listener, and the list of what is wrong with it."""

from __future__ import annotations

from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

from thicket.base.process import boottime
from thicket.radio.events import ProblemFound, ProblemSolved

if TYPE_CHECKING:
    from thicket.base.events import Listener
    from thicket.radio.events import RadioEvent

log = getLogger(__name__)


class Report(NamedTuple):
    """A problem of the radio.

    :ivar key: keeps several problems of one code apart.
    """

    key: str
    code: str
    message: str


class Solved(NamedTuple):
    """The problem with this key, if there is one, is over."""

    key: str


class Reports:
    """The list of the radio's problems. Each is told of when it comes and when it goes.

    :class:`thicket.base.problems.Problems` asks for this list and does not hold it, because these
    problems differ from those of other parts: how severe they are depends on the peers at the time
    of asking, a new message for a known one is not told of, and one that replaces another takes its
    place silently.
    """

    def __init__(self, listener: Listener[RadioEvent] | None) -> None:
        self._listener = listener
        self._problems: dict[str, dict[str, Any]] = {}

    def all(self) -> list[dict[str, Any]]:
        """What is wrong at present: part, code, message, since (seconds of CLOCK_BOOTTIME)."""
        return list(self._problems.values())

    def tell(self, event: RadioEvent) -> None:
        """Hand an event to the listener. Its failure is logged and does not end the session."""
        if self._listener is None:
            return
        try:
            self._listener.on(event)
        except Exception:
            log.exception("a listener of the radio failed at %r", event)

    def report(self, part: str, code: str, message: str, key: str | None = None) -> None:
        """Note a problem. A known one gets the new message and is not told of again.

        :param key: see :class:`Report`; the code by default.
        """
        key = key or code
        known = self._problems.get(key)
        if known is not None:
            known["message"] = message
            return
        self._problems[key] = {
            "part": part, "code": code, "message": message, "since": boottime(),
        }  # fmt: skip
        log.warning("%s: %s", part, message)
        self.tell(ProblemFound(part, code, message))

    def solved(self, key: str) -> None:
        """Take a problem off the list, if it is there."""
        problem = self._problems.pop(key, None)
        if problem is not None:
            log.info("recovered: %s", problem["message"])
            self.tell(ProblemSolved(problem["part"], problem["code"], problem["message"]))

    def joined(self) -> None:
        """The mesh is joined: what ended former sessions is over."""
        for key in self._of_sessions():
            self.solved(key)

    def ended(self, part: str, code: str, message: str) -> None:
        """A session has ended for this reason, which replaces the reason of a former one."""
        for key in self._of_sessions():
            if key != code:
                del self._problems[key]
        self.report(part, code, message)

    def _of_sessions(self) -> list[str]:
        """The keys of the problems that ended a session.

        These are all but the problems with single peers, with the country, with the width and with
        other meshes, which do not end one.
        """
        return [
            key
            for key in self._problems
            if not key.startswith("sae-") and key not in ("country", "width", "other-security")
        ]
