# SPDX-License-Identifier: Apache-2.0
"""Whether what was just installed is well: a function of what is seen of it, and of the time."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

#: What is not well this many times ``[update] health_time`` after its first start is left.
PATIENCE = 5


class Seen(NamedTuple):
    """How one application does.

    :ivar state: see :class:`.running.RunningApplication`.
    :ivar starts: how often it was started.
    :ivar unwell: what its ``health()`` says is wrong; empty for nothing.
    :ivar why: why it failed the last time.
    """

    state: str
    starts: int
    unwell: str
    why: str


class Verdict(Enum):
    """What becomes of a version on trial."""

    WAIT = "wait"
    WELL = "well"
    FAILED = "failed"


class Trial(NamedTuple):
    """A trial that goes on.

    :ivar began: when its applications were started, in seconds of the monotonic clock.
    :ivar since: from when on all were well; None while one is not.
    """

    began: float
    since: float | None = None


def judge(
    trial: Trial, seen: Sequence[Seen], now: float, health_time: float
) -> tuple[Trial, Verdict, str]:
    """Return the trial after one more look, the verdict, and why it failed.

    A failure is one that the supervisor would answer with a restart; once is enough, as the version
    before did not fail. Whatever is not well gets some time for that: sensors have to warm up.

    :param seen: its applications, but those that the configuration keeps from running.
    """
    for one in seen:
        if one.state in ("waiting", "unusable") or one.starts > 1:
            return trial, Verdict.FAILED, one.why or "it failed"
    wrong = [one.unwell or "its start does not end" for one in seen if _wrong(one)]
    since = None if wrong else now if trial.since is None else trial.since
    after = trial._replace(since=since)
    if since is not None and now - since >= health_time:
        return after, Verdict.WELL, ""
    if wrong and now - trial.began >= PATIENCE * health_time:
        return after, Verdict.FAILED, f"not well for {PATIENCE * health_time:g} s: {wrong[0]}"
    return after, Verdict.WAIT, ""


def _wrong(one: Seen) -> bool:
    return one.state != "running" or bool(one.unwell)
