# SPDX-License-Identifier: Apache-2.0
"""What came of a run: plain records, of which result, reports and picture are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from meshlab.lab.state import LabState, phase

SCHEMA = 1
"""Version of the JSON result: raised when a member changes its meaning or goes away."""


class Verdict(StrEnum):
    """What is said of a run, a step or an expectation."""

    PASSED = "passed"
    FAILED = "failed"
    """An expectation was not met."""
    ERROR = "error"
    """There is no result: the mesh did not form, a step could not be done, the medium was late."""
    SKIPPED = "skipped"
    """An imagined lab cannot know it."""
    NOT_RUN = "not run"


@dataclass
class Line:
    """A step or an expectation, and what came of it. Times are seconds after forming."""

    kind: str
    """``step`` or ``expect``."""
    name: str
    words: str
    line: int
    """Of the file."""
    begun: float | None = None
    ended: float | None = None
    verdict: Verdict = Verdict.NOT_RUN
    text: str = ""
    """What was seen last, or why it could not be done."""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float | None:
        """Return how long it took."""
        return None if self.begun is None or self.ended is None else self.ended - self.begun


class Glance(NamedTuple):
    """What a node is at a time."""

    at: float
    phase: str
    peers: int
    cluster: int


def glance(lab: LabState, name: str, at: float) -> Glance:
    """Return what a node is now."""
    return Glance(round(at, 2), phase(lab, name), len(lab.peers(name)), len(lab.cluster(name)))


@dataclass
class Outcome:
    """What came of a run."""

    scenario: str
    description: str
    file: str
    seed: int
    verdict: Verdict = Verdict.NOT_RUN
    reasons: list[str] = field(default_factory=list)
    """Why it has not passed, in a line each."""
    image: str = ""
    imagined: bool = False
    started: str = ""
    """Date and time, in UTC."""
    formed_seconds: float | None = None
    seconds: float = 0.0
    """After the mesh had formed."""
    lines: list[Line] = field(default_factory=list)
    lanes: dict[str, list[Glance]] = field(default_factory=dict)
    """What each node was, whenever it changed."""
    events: list[dict[str, Any]] = field(default_factory=list)
    medium: dict[str, Any] = field(default_factory=dict)
    """The medium's ``status`` at the end."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        plain = asdict(self)
        plain["lanes"] = {
            name: [one._asdict() for one in lane] for name, lane in self.lanes.items()
        }
        for line, one in zip(plain["lines"], self.lines, strict=True):
            line["seconds"] = None if one.seconds is None else round(one.seconds, 3)
        return {"schema": SCHEMA, **plain}


def judge(outcome: Outcome) -> Verdict:
    """Return the verdict of a run by its lines and reasons so far: an error outweighs a failure."""
    found = {line.verdict for line in outcome.lines}
    if Verdict.ERROR in found or outcome.verdict is Verdict.ERROR:
        return Verdict.ERROR
    if Verdict.FAILED in found:
        return Verdict.FAILED
    return Verdict.ERROR if Verdict.NOT_RUN in found else Verdict.PASSED
