# SPDX-License-Identifier: Apache-2.0
"""Plays a scenario on a lab: does its steps at their times and looks whether it is as expected.

``play`` needs a lab that has started, and waits until its mesh has formed. What tests do and what
scenarios do goes through the same verbs of ``Lab``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from meshlab.lab.errors import LabError
from meshlab.lab.state import Event
from meshlab.machine.shell import ShellError
from meshlab.scenario.errors import StepError, UnknowableError
from meshlab.scenario.expectations import Found
from meshlab.scenario.model import FORMED, Expectation, Scenario, Step, When
from meshlab.scenario.outcome import Line, Outcome, Verdict, glance, judge
from meshlab.scenario.stage import Stage
from meshlab.scenario.world import World
from meshlab.wire.rpc import RpcError

LOOK = 0.5
"""Seconds between two looks at what the nodes are, for the picture; more of many nodes."""
CROWD = 8
"""Nodes that are looked at in that time: a look at more costs the host more."""

Tell = Callable[[float, str], None]
"""Gets progress: the time in seconds after forming, and a line."""


async def play(
    scenario: Scenario,
    stage: Stage,
    tell: Tell,
    *,
    seed: int,
    folder: Path,
    slack: float = 1.0,
    imagined: bool = False,
    judge_medium: bool = True,
) -> Outcome:
    """Play a scenario on a lab that has started, and return what came of it.

    :param tell: Gets progress.
    :param seed: The lab's.
    :param folder: Where what the steps make is put.
    :param slack: How many times longer than they say expectations have time; so have, where it is
        more than once, the mesh to form and the whole.
    :param imagined: Whether the lab is none of real nodes.
    :param judge_medium: Whether a medium that was late leaves the run without a result.
    """
    outcome = Outcome(
        scenario.head.name, scenario.head.description, str(scenario.path), seed,
        image=stage.state.image, imagined=imagined,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    run = _Run(scenario, World(stage, seed, folder), outcome, tell, slack)
    begun, longer = run.world.now, max(1.0, slack)
    limit = longer * scenario.head.timeout
    try:
        async with asyncio.timeout(limit):
            await stage.formed(longer * scenario.head.forming)
            run.formed = run.world.now
            formed = stage.state.formed
            outcome.formed_seconds = run.formed - begun if formed is None else formed
            tell(0.0, f"the mesh has formed after {outcome.formed_seconds:.1f} s")
            await run.play()
    except TimeoutError:
        run.error(f"not over within {limit:g} s (timeout of [scenario])")
    except (LabError, RpcError, ShellError) as error:
        run.error(str(error))
    outcome.seconds = round(run.elapsed, 2)
    await run.end(judge_medium=judge_medium)
    return outcome


class _Run:
    """One run of a scenario."""

    def __init__(
        self, scenario: Scenario, world: World, outcome: Outcome, tell: Tell, slack: float
    ) -> None:
        self.world = world
        self.outcome = outcome
        self.formed: float | None = None
        self._scenario = scenario
        self._tell = tell
        self._slack = slack
        self._over = {name: asyncio.Event() for name in (FORMED, *scenario.names)}
        self._lines = {}
        for step in scenario.steps:
            self._lines[step.name] = Line("step", step.name, _named(step), step.line)
            for each in step.expectations:
                self._lines[each.name] = Line("expect", each.name, each.words, each.line)
        for each in scenario.finally_:
            self._lines[each.name] = Line("expect", each.name, each.words, each.line)
        outcome.lines = list(self._lines.values())
        self._left = len(scenario.steps)
        self._all_over = asyncio.Event()

    @property
    def elapsed(self) -> float:
        """Seconds since the mesh has formed."""
        return 0.0 if self.formed is None else self.world.now - self.formed

    def error(self, reason: str) -> None:
        """Say why the run has no result."""
        self.outcome.verdict = Verdict.ERROR
        self.outcome.reasons.append(reason)
        self._tell(self.elapsed, f"error: {reason.partition(chr(10))[0]}")

    def _heard(self, event: Event) -> None:
        self.outcome.events.append(
            {"at": round(self.elapsed, 1), "node": event.node, "kind": event.kind,
             "text": event.text}
        )  # fmt: skip

    async def play(self) -> None:
        """Do all steps and look at all expectations.

        :raises StepError: a step could not be done.
        """
        self._over[FORMED].set()
        if not self._left:
            self._all_over.set()
        self.world.stage.on_event(self._heard)
        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as group:
                before: Step | None = None
                for step in self._scenario.steps:
                    group.create_task(self._step(step, before))
                    before = step
                for each in self._scenario.finally_:
                    group.create_task(self._finally(each))
        except ExceptionGroup as errors:
            known, others = errors.split((LabError, RpcError, ShellError))
            if others is not None or known is None:
                raise
            failure = known.exceptions[0]
            raise StepError(str(failure)) from failure
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._glance()

    async def _step(self, step: Step, before: Step | None) -> None:
        if step.when.at is None and step.when.after is None and before is not None:
            await self._over[before.name].wait()
            if not before.background:
                for each in before.expectations:
                    await self._over[each.name].wait()
        else:
            await self._begin(step.when, FORMED)
        line = self._lines[step.name]
        line.begun = round(self.elapsed, 2)
        self._tell(self.elapsed, f"step {_named(step)}")
        expecting = [
            asyncio.create_task(self._expect(each, each.when.after or step.name))
            for each in step.expectations
        ]
        try:
            if step.background:
                self._over[step.name].set()
            await self._do(step, line)
            self._over[step.name].set()
            await asyncio.gather(*expecting)
            self._left -= 1
            if not self._left:
                self._all_over.set()
        finally:
            for task in expecting:
                task.cancel()
            await asyncio.gather(*expecting, return_exceptions=True)

    async def _do(self, step: Step, line: Line) -> None:
        try:
            await step.action.do(self.world, step.name)
            line.verdict = Verdict.PASSED
        except UnknowableError as error:
            line.verdict, line.text = Verdict.SKIPPED, str(error)
        except (LabError, RpcError, ShellError) as error:
            line.verdict, line.text = Verdict.ERROR, str(error)
            raise StepError(f"{_named(step)}: {error}") from error
        finally:
            line.ended = round(self.elapsed, 2)

    async def _begin(self, when: When, default: str) -> None:
        """Wait for the time of a step or an expectation."""
        after = when.after or default
        await self._over[after].wait()
        begin = 0.0 if after == FORMED else self.elapsed
        await asyncio.sleep(max(0.0, begin + (when.at or 0.0) - self.elapsed))

    async def _finally(self, each: Expectation) -> None:
        if each.when.at is None and each.when.after is None:
            await self._all_over.wait()
        await self._expect(each, FORMED)

    async def _expect(self, each: Expectation, default: str) -> None:
        await self._begin(each.when, default)
        line = self._lines[each.name]
        line.begun = round(self.elapsed, 2)
        try:
            line.verdict, line.text = await self._met(each, line)
        except UnknowableError as error:
            line.verdict, line.text = Verdict.SKIPPED, str(error)
        except LabError as error:
            line.verdict, line.text = Verdict.ERROR, str(error)
            raise
        finally:
            line.ended = round(self.elapsed, 2)
            self._over[each.name].set()
        sign = {"passed": "ok  ", "failed": "FAIL", "skipped": "?   "}[line.verdict]
        took = line.figures.get("after_s", line.seconds or 0.0)
        self._tell(self.elapsed, f"{sign} {each.words}: {line.text} ({took:.1f} s)")

    async def _met(self, each: Expectation, line: Line) -> tuple[Verdict, str]:
        """Look again and again until it is decided whether an expectation is met."""
        begun = asked = self.elapsed  # the first look is in time, whatever ``within`` is
        until = begun + each.within * self._slack
        since: float | None = None
        while True:
            found = await self._look(each)
            line.figures.update(found.figures)
            if found.met:
                if since is None and asked > until:
                    return Verdict.FAILED, f"too late: {found.words}"
                since = asked if since is None else since
                line.figures["after_s"] = round(since - begun, 3)
                if self.elapsed - since >= each.holds:
                    return Verdict.PASSED, found.words
            else:
                if found.last:
                    return Verdict.FAILED, found.words
                held = "" if since is None else f"it held for {asked - since:.1f} s only: "
                if asked >= until:
                    return Verdict.FAILED, held + found.words
                since = None
            self._check_lab()
            pause = each.condition.pause
            if since is not None:
                pause = min(pause, max(0.01, since + each.holds - self.elapsed))
            await asyncio.sleep(pause)
            asked = self.elapsed

    async def _look(self, each: Expectation) -> Found:
        self.world.stage.watch()
        try:
            return await each.condition.look(self.world)
        except (RpcError, ShellError) as error:  # a node that is off, or restarts
            return Found(False, str(error))

    def _check_lab(self) -> None:
        if (why := self.world.stage.failed) is not None:
            raise StepError(why)

    async def _watch(self) -> None:
        """Note what the nodes are, whenever it changes."""
        while True:
            self._glance()
            await asyncio.sleep(LOOK * max(1.0, len(self.outcome.lanes) / CROWD))

    def _glance(self) -> None:
        state = self.world.stage.snapshot()
        for name in state.nodes:
            seen = glance(state, name, self.elapsed)
            lane = self.outcome.lanes.setdefault(name, [])
            if not lane or lane[-1][1:] != seen[1:]:
                lane.append(seen)
        if state.medium.get("valid") is False:
            self.outcome.medium["invalid"] = state.medium.get("reasons") or ["it says so"]

    async def end(self, *, judge_medium: bool) -> None:
        """Ask the medium whether the run can be trusted, and judge."""
        outcome = self.outcome
        invalid = list(outcome.medium.pop("invalid", []))
        if self.formed is not None:
            with contextlib.suppress(RpcError, LabError):
                outcome.medium = dict(await self.world.stage.medium_call("status"))
            if outcome.medium.get("valid") is False:
                invalid = list(outcome.medium.get("reasons") or invalid)
            if not outcome.medium:
                invalid = invalid or ["it does not answer"]
        if invalid and judge_medium:
            self.error(f"the medium's figures are invalid: {'; '.join(map(str, invalid))}")
        for line in outcome.lines:
            if line.verdict is Verdict.FAILED:
                outcome.reasons.append(f"line {line.line}: {line.words}: {line.text}")
        outcome.verdict = judge(outcome)


def _named(step: Step) -> str:
    own = f"{step.name}: " if step.when.name else ""
    return f"{own}{step.action.words}"
