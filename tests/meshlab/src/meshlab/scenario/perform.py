# SPDX-License-Identifier: Apache-2.0
"""Performs scenarios: builds the lab of a file, plays it, and writes what came of it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from host.cache import cache_root
from meshlab.hosts.spread import Spread, Wanted, spread
from meshlab.lab.lab import Lab
from meshlab.lab.parts import Doubts, Parts
from meshlab.lab.paths import lab_directory
from meshlab.lab.topology import make
from meshlab.scenario import report
from meshlab.scenario.engine import Tell, play
from meshlab.scenario.model import Scenario
from meshlab.scenario.outcome import Outcome, Verdict
from meshlab.scenario.picture import picture
from meshlab.scenario.rehearsal import ImaginedLab, rehearse
from meshlab.scenario.report import junit, statistics_of

STATUS = {Verdict.PASSED: 0, Verdict.FAILED: 1}
NO_RESULT = 3
"""The exit status of runs without a result."""

PartsOf = Callable[[Scenario, int], tuple[Parts, dict[str, Parts]]]
"""Makes the parts of a scenario's lab for a seed: those of all nodes, and those of the others."""


@dataclass(frozen=True)
class Options:
    """How scenarios are performed."""

    repeat: int = 1
    seed: int | None = None
    """Instead of that of the file."""
    same_seed: bool = False
    """Whether all repetitions have one seed; otherwise each has the next."""
    slack: float = 1.0
    imagined: bool = False
    judge_medium: bool = True
    out: Path | None = None
    """Where results are put; None: in the cache."""
    lab: str | None = None
    """The lab's name, None for one by the scenario's."""
    hosts: Wanted | None = None
    """The machines that nodes run on, None: this one."""


def slug(name: str) -> str:
    """Return a name as one of folders and labs."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "scenario"


def seeded(scenario: Scenario, seed: int, name: str) -> Scenario:
    """Return the scenario with another seed, and a name for its lab."""
    shape = scenario.spec.topology
    shape = (
        make("random", len(shape.names), seed)
        if shape.kind == "random" and seed != shape.seed
        else replace(shape, seed=seed)
    )
    return replace(scenario, spec=replace(scenario.spec, topology=shape, name=name))


def real_parts(
    scenario: Scenario, seed: int, say: Callable[[str], None]
) -> tuple[Parts, dict[str, Parts]]:
    """Return parts that boot nodes in QEMU.

    :raises LabError: an image is not there and cannot be built.
    """
    from meshlab.image.lab import Extras
    from meshlab.lab import real_parts as parts

    images = scenario.images
    cache = cache_root()
    extras = Extras(images.applications) if images.applications else None
    made = parts.load(images.image, cache, seed, say, extras, board=images.machine)
    others: dict[str, Parts] = {
        name: parts.load(image, cache, seed, say, board=machine)
        for name, (image, machine) in images.others.items()
    }
    return made, others


@contextlib.asynccontextmanager
async def _placed(
    hosts: Wanted | None, wanted: Scenario, made: Parts, others: dict[str, Parts], tell: Tell
) -> AsyncIterator[Spread]:
    """Give the parts of all nodes that are not ``made``, on the machines that are wanted."""
    if hosts is None:
        yield Spread(others, Doubts())
        return
    spec = wanted.spec
    parts = {name: others.get(name, made) for name in spec.topology.names}
    own = spec.name, lab_directory(spec.name)
    async with spread(hosts, own, parts, keep=False, tell=lambda text: tell(0.0, text)) as found:
        yield found


async def perform(
    scenario: Scenario, options: Options, parts: PartsOf, tell: Tell
) -> list[Outcome]:
    """Play a scenario as often as wanted, each time in a new lab, and write what came of it."""
    first = scenario.head.seed if options.seed is None else options.seed
    folder = results_folder(scenario, options)
    outcomes: list[Outcome] = []
    for number in range(options.repeat):
        seed = first if options.same_seed else first + number
        name = options.lab or f"scenario-{slug(scenario.head.name)}"
        own = folder if options.repeat == 1 else folder / f"run-{number + 1}"
        own.mkdir(parents=True, exist_ok=True)
        if options.repeat > 1:
            tell(0.0, f"run {number + 1} of {options.repeat}, seed {seed}")
        wanted = seeded(scenario, seed, name)
        made, others = parts(wanted, seed)
        async with (
            _placed(options.hosts, wanted, made, others, tell) as found,
            Lab(wanted.spec, made, others=found.others, doubts=found.doubts) as lab,
        ):
            outcome = await play(
                wanted,
                lab,
                tell,
                seed=seed,
                folder=own,
                slack=options.slack,
                judge_medium=options.judge_medium,
            )
            if outcome.verdict is not Verdict.PASSED:
                (own / "report.txt").write_text(lab.report() + "\n")
        write(outcome, own)
        outcomes.append(outcome)
    _write_all(outcomes, folder)
    return outcomes


def imagine(scenario: Scenario, options: Options, tell: Tell) -> Outcome:
    """Play a scenario on an imagined lab, in no time; what only real nodes know is skipped."""
    seed = scenario.head.seed if options.seed is None else options.seed
    folder = results_folder(scenario, options)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = seeded(scenario, seed, "imagined")

    async def go() -> Outcome:
        lab = ImaginedLab(wanted.spec, folder)
        return await play(
            wanted, lab, tell, seed=seed, folder=folder, slack=options.slack, imagined=True
        )

    outcome = rehearse(go())
    write(outcome, folder)
    return outcome


def results_folder(scenario: Scenario, options: Options) -> Path:
    """Return where the results of a scenario are put."""
    name = slug(scenario.head.name)
    return (options.out or cache_root() / "scenarios") / (
        f"{name}-imagined" if options.imagined else name
    )


def write(outcome: Outcome, folder: Path) -> None:
    """Write what came of a run: ``result.json``, ``junit.xml``, ``timeline.svg``."""
    (folder / "result.json").write_text(
        json.dumps(outcome.to_json(), indent=1) + "\n", encoding="utf-8"
    )
    (folder / "junit.xml").write_text(junit([outcome]), encoding="utf-8")
    (folder / "timeline.svg").write_text(picture(outcome), encoding="utf-8")


def _write_all(outcomes: list[Outcome], folder: Path) -> None:
    if len(outcomes) == 1:
        return
    (folder / "junit.xml").write_text(junit(outcomes), encoding="utf-8")
    found = {
        "runs": [{"seed": one.seed, "verdict": one.verdict} for one in outcomes],
        "figures": [asdict(row) for row in statistics_of(outcomes)],
    }
    (folder / "statistics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (folder / "statistics.txt").write_text(report.statistics_table(outcomes) + "\n")


def status_of(outcomes: list[Outcome]) -> int:
    """Return the exit status: the worst of all runs."""
    return max((STATUS.get(one.verdict, NO_RESULT) for one in outcomes), default=NO_RESULT)
