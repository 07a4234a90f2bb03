# SPDX-License-Identifier: Apache-2.0
"""The list of problems: what is wrong with the node, in words, until it is cleared."""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from typing import Any

from thicket.base.process import boottime

log = getLogger(__name__)


class Problems:
    """The present problems, by part, code and subject. Each is logged when it comes and goes."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._known: dict[tuple[str, str, str], dict[str, Any]] = {}
        #: Parts that keep their own list: a function that returns it, and the severity of problems
        #: without one.
        self.sources: dict[str, tuple[Callable[[], list[dict[str, Any]]], str]] = {}

    def report(
        self, part: str, code: str, message: str, severity: str = "error", subject: str = ""
    ) -> None:
        """Note a problem. A known one keeps its time and gets the new message.

        :param severity: "error" (the node does not do what it is for) or "warning" (it does, but
            somebody should know).
        :param subject: keeps several problems with one code apart.
        """
        known = self._known.get((part, code, subject))
        if known is not None and known["message"] == message and known["severity"] == severity:
            return
        (log.error if severity == "error" else log.warning)("%s: %s", part, message)
        self._known[part, code, subject] = {
            "part": part,
            "code": code,
            "message": message,
            "severity": severity,
            "since": known["since"] if known is not None else boottime(),
        }
        self._on_change()

    def clear(self, part: str, code: str | None = None) -> None:
        """The problems with this code, or all of the part, are over."""
        for key in [k for k in self._known if k[0] == part and code in {None, k[1]}]:
            log.info("%s: solved: %s", part, self._known.pop(key)["message"])
            self._on_change()

    def clear_one(self, part: str, code: str, subject: str) -> None:
        """The problem with this code and subject is over."""
        known = self._known.pop((part, code, subject), None)
        if known is not None:
            log.info("%s: solved: %s", part, known["message"])
            self._on_change()

    def all(self) -> list[dict[str, Any]]:
        """Return every problem, errors first, then by age."""
        found = list(self._known.values())
        for source, severity in self.sources.values():
            found += ({"severity": severity, **problem} for problem in source())
        return sorted(found, key=lambda p: (p["severity"] != "error", p["since"]))
