# SPDX-License-Identifier: Apache-2.0
"""What can be expected of a lab: ``that = "reach"`` and the others, judged at one moment."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from meshlab.lab import questions, summary
from meshlab.lab.questions import PATIENCE
from meshlab.lab.state import get
from meshlab.scenario import keys
from meshlab.scenario.actions import listed
from meshlab.scenario.errors import StepError
from meshlab.scenario.keys import key
from meshlab.scenario.world import World


class Found(NamedTuple):
    """What a look came to."""

    met: bool
    words: str
    """What was seen, also where it is as expected."""
    figures: dict[str, float] = {}  # noqa: RUF012 - nobody changes it
    last: bool = False
    """Whether another look would see the same."""


@dataclass(frozen=True)
class Condition:
    """Something that can be seen of a lab."""

    word: ClassVar[str]
    pause: ClassVar[float] = 0.3
    """Seconds between two looks."""

    @property
    def words(self) -> str:
        """Return what is expected, in a line for people."""
        raise NotImplementedError

    async def look(self, world: World) -> Found:
        """Look whether it is so. A node that cannot be asked is what the lab's errors say."""
        raise NotImplementedError


def _verdict(wrong: Iterable[str], right: str) -> Found:
    found = list(wrong)
    return Found(not found, "; ".join(found) if found else right)


@dataclass(frozen=True)
class Reach(Condition):
    """Pings are answered: from each of `from` to each of `to`."""

    word = "reach"
    pause = 1.0
    source: tuple[str, ...] = key(keys.nodes, "who asks", name="from")
    to: tuple[str, ...] = key(keys.nodes, "who answers")
    via: str | None = key(
        keys.node, "the next hop of the mesh path, from each to each", default=None
    )
    count: int = key(keys.whole(1, 100), "pings for each pair", default=3)
    loss: float | None = key(
        keys.number(0, 100, "percent"),
        "most that may be lost; without it one answer is enough",
        default=None,
    )
    latency: float | None = key(
        keys.number(0, 1e6, "milliseconds"), "most that the median may take", default=None
    )

    @property
    def words(self) -> str:
        bounds = [f"via {self.via}"] if self.via else []
        bounds += [f"at most {self.loss:g} % lost"] if self.loss is not None else []
        bounds += [f"within {self.latency:g} ms"] if self.latency is not None else []
        more = f" ({', '.join(bounds)})" if bounds else ""
        return f"{listed(self.source)} reaches {listed(self.to)}{more}"

    async def look(self, world: World) -> Found:
        wrong: list[str] = []
        times: list[float] = []
        sent = 0
        for a, b in _distinct(self.source, self.to):
            pinged = await questions.ping(world.stage, a, b, self.count)
            sent += pinged.sent
            times += pinged.times
            if not pinged.times:
                wrong.append(f"{a} does not reach {b}")
                continue
            if self.loss is not None and pinged.loss > self.loss:
                wrong.append(f"{a} to {b}: {pinged.loss:.0f} % lost")
            middle = sorted(pinged.times)[len(pinged.times) // 2]
            if self.latency is not None and middle > self.latency:
                wrong.append(f"{a} to {b}: {middle:.1f} ms")
            hop = questions.next_hop(world.stage.snapshot(), a, b)
            if self.via is not None and hop != self.via:
                wrong.append(f"{a} has its path to {b} over {hop or 'nobody'}")
        middle = sorted(times)[len(times) // 2] if times else 0.0
        right = f"{len(times)} of {sent} answered, median {middle:.1f} ms"
        figures = {"answered_percent": 100 * len(times) / sent if sent else 0.0}
        if times:
            figures["median_ms"] = middle
        return _verdict(wrong, right)._replace(figures=figures)


def _distinct(source: Iterable[str], to: Iterable[str]) -> Iterable[tuple[str, str]]:
    return ((a, b) for a, b in itertools.product(source, to) if a != b)


@dataclass(frozen=True)
class Unreachable(Condition):
    """No ping is answered: from none of `from` to any of `to`."""

    word = "unreachable"
    pause = 1.0
    source: tuple[str, ...] = key(keys.nodes, "who asks", name="from")
    to: tuple[str, ...] = key(keys.nodes, "who does not answer")

    @property
    def words(self) -> str:
        return f"{listed(self.source)} does not reach {listed(self.to)}"

    async def look(self, world: World) -> Found:
        wrong = []
        for a, b in _distinct(self.source, self.to):
            if (await questions.ping(world.stage, a, b)).times:
                wrong.append(f"{a} reaches {b}")
        return _verdict(wrong, "nobody answers")


@dataclass(frozen=True)
class Path(Condition):
    """The mesh path from one node to another leads over a neighbour."""

    word = "path"
    source: str = key(keys.node, "where it begins", name="from")
    to: str = key(keys.node, "where it ends")
    via: str = key(keys.node, "its next hop")

    @property
    def words(self) -> str:
        return f"the path from {self.source} to {self.to} is over {self.via}"

    async def look(self, world: World) -> Found:
        hop = questions.next_hop(world.stage.snapshot(), self.source, self.to)
        return Found(hop == self.via, f"it is over {hop}" if hop else "there is no path")


@dataclass(frozen=True)
class _View(Condition):
    nodes: tuple[str, ...] = key(keys.nodes, "whose")
    are: tuple[str, ...] | None = key(keys.some, "exactly these, each without itself", default=None)
    have: tuple[str, ...] = key(keys.some, "these at least", default=())
    lack: tuple[str, ...] = key(keys.some, "none of these", default=())

    def __post_init__(self) -> None:
        if self.are is None and not self.have and not self.lack:
            raise ValueError(f"{self.word} needs are, have or lack")

    def _seen(self, world: World, name: str) -> set[str]:
        raise NotImplementedError

    @property
    def words(self) -> str:
        what = [f"are {listed(self.are) or 'nobody'}"] if self.are is not None else []
        what += [f"have {listed(self.have)}"] if self.have else []
        what += [f"lack {listed(self.lack)}"] if self.lack else []
        return f"{self.word} of {listed(self.nodes)} {' and '.join(what)}"

    async def look(self, world: World) -> Found:
        wrong = []
        for name in self.nodes:
            seen = self._seen(world, name)
            exact = None if self.are is None else set(self.are) - {name}
            if (
                (exact is not None and seen != exact)
                or set(self.have) - {name} - seen
                or set(self.lack) & seen
            ):
                wrong.append(f"{name}: {listed(summary.in_order(seen)) or 'nobody'}")
        return _verdict(wrong, "as expected")


@dataclass(frozen=True)
class Peers(_View):
    """The nodes with which nodes have a mesh link."""

    word = "peers"

    def _seen(self, world: World, name: str) -> set[str]:
        return world.stage.snapshot().peers(name)


@dataclass(frozen=True)
class Cluster(_View):
    """The nodes that nodes see in the cluster."""

    word = "cluster"

    def _seen(self, world: World, name: str) -> set[str]:
        return world.stage.snapshot().cluster(name)


@dataclass(frozen=True)
class Whole(Condition):
    """Nodes lack nothing: they have joined, with all links and views that they can have."""

    word = "whole"
    nodes: tuple[str, ...] = key(keys.nodes, "which; without it, all", default=())

    @property
    def words(self) -> str:
        return f"{listed(self.nodes) or 'the mesh'} lacks nothing"

    async def look(self, world: World) -> Found:
        lacking = summary.missing(world.stage.snapshot(), self.nodes or None)
        return _verdict(
            (f"{name}: {', '.join(words)}" for name, words in lacking.items()), "nothing is missing"
        )


@dataclass(frozen=True)
class Problem(Condition):
    """Nodes report a problem."""

    word = "problem"
    nodes: tuple[str, ...] = key(keys.nodes, "which")
    part: str | None = key(
        keys.text, "the part that has it, such as `radio` or `identity`", default=None
    )
    says: re.Pattern[str] | None = key(keys.pattern, "is found in its words", default=None)

    @property
    def words(self) -> str:
        part = f" with its {self.part}" if self.part else ""
        says = f" that says {self.says.pattern!r}" if self.says else ""
        return f"{listed(self.nodes)} has a problem{part}{says}"

    def _of(self, world: World, name: str) -> list[str]:
        found = questions.problems(world.stage.snapshot(), name, self.part)
        return [one for one in found if self.says is None or self.says.search(one)]

    async def look(self, world: World) -> Found:
        told = {name: self._of(world, name) for name in self.nodes}
        wrong = (f"{name} reports none such" for name, one in told.items() if not one)
        return _verdict(wrong, "; ".join(f"{name}: {one[0]}" for name, one in told.items() if one))


@dataclass(frozen=True)
class NoProblem(Problem):
    """Nodes report no such problem."""

    word = "no-problem"

    @property
    def words(self) -> str:
        return super().words.replace(" has a problem", " has no problem")

    async def look(self, world: World) -> Found:
        told = {name: self._of(world, name) for name in self.nodes}
        return _verdict((f"{name}: {one[0]}" for name, one in told.items() if one), "none")


@dataclass(frozen=True)
class Power(Condition):
    """Machines are on, off, or died."""

    word = "power"
    nodes: tuple[str, ...] = key(keys.nodes, "which")
    state: str = key(keys.one_of("running", "off", "died"), "what they are", name="is")

    @property
    def words(self) -> str:
        return f"{listed(self.nodes)} is {self.state}"

    async def look(self, world: World) -> Found:
        known = world.stage.snapshot().nodes
        return _verdict(
            (f"{n} is {known[n].power}" for n in self.nodes if known[n].power != self.state),
            self.state,
        )


@dataclass(frozen=True)
class Status(Condition):
    """A member of the nodes' status (`thicket status --json`) has a value."""

    word = "status"
    nodes: tuple[str, ...] = key(keys.nodes, "whose")
    member: str = key(keys.text, "the member, such as `radio.state`", name="key")
    value: object = key(keys.anything, "its value", name="is")

    @property
    def words(self) -> str:
        return f"{self.member} of {listed(self.nodes)} is {self.value!r}"

    async def look(self, world: World) -> Found:
        known = world.stage.snapshot().nodes
        found = {name: get(known[name].status, *self.member.split(".")) for name in self.nodes}
        return _verdict(
            (f"{n}: {keys.shown(v)}" for n, v in found.items() if v != self.value), "as expected"
        )


@dataclass(frozen=True)
class Command(Condition):
    """A command on nodes ends as expected."""

    word = "command"
    pause = 1.0
    nodes: tuple[str, ...] = key(keys.nodes, "where")
    run: str = key(keys.text, "a line of shell")
    status: int | None = key(keys.whole(0, 255), "its exit status", default=None)
    says: str | None = key(keys.text, "is in its output", default=None)
    matches: re.Pattern[str] | None = key(keys.pattern, "is found in its output", default=None)
    timeout: float = key(keys.seconds, "how long it may take, in seconds", default=PATIENCE)

    def __post_init__(self) -> None:
        if self.status is None and self.says is None and self.matches is None:
            raise ValueError("command needs status, says or matches")

    @property
    def words(self) -> str:
        how = [f"ends with {self.status}"] if self.status is not None else []
        how += [f"says {self.says!r}"] if self.says is not None else []
        how += [f"matches {self.matches.pattern!r}"] if self.matches is not None else []
        return f"{self.run} on {listed(self.nodes)} {' and '.join(how)}"

    async def look(self, world: World) -> Found:
        wrong = []
        for name in self.nodes:
            status, output = await world.stage.run(name, self.run, self.timeout)
            if (
                (self.status is not None and status != self.status)
                or (self.says is not None and self.says not in output)
                or (self.matches is not None and not self.matches.search(output))
            ):
                wrong.append(f"{name}: status {status}, {keys.shown(output.strip()[:200])}")
        return _verdict(wrong, "as expected")


@dataclass(frozen=True)
class TrafficBounds(Condition):
    """What came of the traffic of a step, whose end is waited for."""

    word = "traffic"
    step: str = key(keys.text, "the name of the step")
    loss: float | None = key(
        keys.number(0, 100, "percent"), "most datagrams without an answer", default=None
    )
    latency: float | None = key(
        keys.number(0, 1e6, "milliseconds"),
        "most that 95 % of the round trips may take",
        default=None,
    )
    outage: float | None = key(keys.seconds, "longest time without an answer", default=None)

    def __post_init__(self) -> None:
        if self.loss is None and self.latency is None and self.outage is None:
            raise ValueError("traffic needs loss, latency or outage")

    @property
    def words(self) -> str:
        bounds = [f"loses at most {self.loss:g} %"] if self.loss is not None else []
        bounds += [f"takes at most {self.latency:g} ms"] if self.latency is not None else []
        bounds += [f"pauses at most {self.outage:g} s"] if self.outage is not None else []
        return f"{self.step} {', '.join(bounds)}"

    async def look(self, world: World) -> Found:
        future = world.flows.get(self.step)
        if future is None:
            raise StepError(f"there has been no traffic of a step {self.step!r} yet")
        one = await asyncio.shield(future)
        wrong = (
            (self.loss is not None and one.loss > self.loss)
            or (self.latency is not None and (not one.answered or one.p95 > self.latency))
            or (self.outage is not None and one.outage > self.outage)
        )
        figures = {"loss_percent": one.loss, "outage_s": one.outage}
        if one.answered:
            figures.update({"median_ms": one.median, "p95_ms": one.p95})
        return Found(not wrong, one.words, figures, last=True)


@dataclass(frozen=True)
class Version(Condition):
    """The version that nodes run."""

    word = "version"
    pause = 3.0
    nodes: tuple[str, ...] = key(keys.nodes, "which")
    version: str = key(keys.text, "the version", name="is")

    @property
    def words(self) -> str:
        return f"{listed(self.nodes)} runs {self.version}"

    async def look(self, world: World) -> Found:
        wrong = []
        for name in self.nodes:
            command = ". /usr/lib/os-release; echo $VERSION_ID"
            _, output = await world.stage.run(name, command, PATIENCE)
            if output.strip() != self.version:
                wrong.append(f"{name} runs {output.strip()[:40]}")
        return _verdict(wrong, self.version)


CONDITIONS: dict[str, type[Condition]] = {
    each.word: each
    for each in (
        Reach, Unreachable, Path, Peers, Cluster, Whole, Problem, NoProblem, Power, Status, Command,
        TrafficBounds, Version,
    )
}  # fmt: skip
