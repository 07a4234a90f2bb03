# SPDX-License-Identifier: Apache-2.0
"""Commands for scenarios: ``run``, and ``record`` for a lab that runs."""

from __future__ import annotations

import argparse
import signal
import sys
from dataclasses import replace
from pathlib import Path

from meshlab.cli.common import CommandError, Define, ask
from meshlab.cli.lab import define_hosts, hosts_of, run_supervised
from meshlab.lab.errors import LabError
from meshlab.lab.parts import Parts
from meshlab.scenario.errors import ScenarioError
from meshlab.scenario.model import Scenario
from meshlab.scenario.outcome import Outcome
from thicket.base.visible import visible


def define(command: Define) -> None:
    """Define the commands.

    :param command: Adds one.
    """
    run = command("run", "play scenarios, and say what came of them", cmd_run)
    run.add_argument("files", nargs="+", type=Path, metavar="FILE", help="scenarios, in TOML")
    run.add_argument("--check", action="store_true", help="only read the files")
    run.add_argument(
        "--rehearse", action="store_true", help="on an imagined lab, in no time: boots nothing"
    )
    run.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="each N times, with figures"
    )
    run.add_argument("--image", help="what the nodes boot, instead of what the file says")
    run.add_argument("--seed", type=int, metavar="S", help="instead of that of the file")
    run.add_argument(
        "--same-seed", action="store_true", help="with --repeat: S each time, not S, S+1, ..."
    )
    run.add_argument(
        "--slack", type=float, default=1.0, metavar="F", help="expectations have F times as long"
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="where results are put")
    define_hosts(run)
    run.add_argument("--junit", type=Path, metavar="FILE", help="a JUnit file of all runs")

    record = command("record", "write what was done to a running lab as a scenario", cmd_record)
    record.add_argument("-o", dest="file", type=Path, metavar="FILE", help="default: to stdout")
    record.add_argument("--name", help="what it is called (default: by the file or the lab)")


def cmd_record(options: argparse.Namespace) -> int:
    from meshlab.scenario.record import recorded

    path: Path | None = options.file
    name = options.name or (path.stem if path is not None else options.lab)
    text = recorded(ask(options, "deeds"), name)
    if path is None:
        sys.stdout.write(text)
        return 0
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from None
    return 0


def cmd_run(options: argparse.Namespace) -> int:
    from meshlab.scenario.file import load
    from meshlab.scenario.perform import NO_RESULT
    from meshlab.scenario.report import junit

    if not 1 <= options.repeat <= 1000:
        raise CommandError(f"--repeat {options.repeat}: it is 1 to 1000", 2)
    if not 0.1 <= options.slack <= 100:
        raise CommandError(f"--slack {options.slack:g}: it is 0.1 to 100", 2)
    scenarios, faults = [], []
    for path in options.files:
        try:
            scenarios.append(load(path))
        except ScenarioError as error:
            faults.append(str(error))
    if faults:
        raise CommandError("\n".join(faults), 2)
    if options.check:
        for scenario in scenarios:
            expectations = len(scenario.names) - len(scenario.steps)
            print(
                f"{scenario.path}: {len(scenario.spec.topology.names)} nodes, "
                f"{len(scenario.steps)} steps, {expectations} expectations"
            )
        return 0
    # A terminal that vanishes ends the run as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    played: list[Outcome] = []
    try:
        status = max([_play(scenario, options, played) for scenario in scenarios])
    except LabError as error:
        raise CommandError(str(error), NO_RESULT) from None
    finally:
        if options.junit is not None and played:
            options.junit.write_text(junit(played), encoding="utf-8")
    return status


def say(text: str) -> None:
    """Print a line of progress."""
    print(visible(text, keep=""), file=sys.stderr, flush=True)


def _play(scenario: Scenario, given: argparse.Namespace, played: list[Outcome]) -> int:
    """Play a scenario and print what came of it.

    :param played: Gets the outcomes.
    :returns: The exit status.
    """
    from meshlab.scenario import perform, report

    if given.image is not None:
        scenario = replace(scenario, images=replace(scenario.images, image=given.image))
    options = perform.Options(
        repeat=given.repeat, seed=given.seed, same_seed=given.same_seed, slack=given.slack,
        imagined=given.rehearse, out=given.out,
        lab=None if given.lab == "default" else given.lab,
        hosts=hosts_of(given, scenario.spec.topology.names),
    )  # fmt: skip

    def tell(at: float, text: str) -> None:
        say(f"{at:7.1f} s  {text}")

    nodes = len(scenario.spec.topology.names)
    say(f"{scenario.head.name}: {nodes} nodes, {len(scenario.steps)} steps")
    if given.rehearse:
        outcomes = [perform.imagine(scenario, options, tell)]
        status = perform.status_of(outcomes)
    else:

        def parts(wanted: Scenario, seed: int) -> tuple[Parts, dict[str, Parts]]:
            return perform.real_parts(wanted, seed, say)

        outcomes = []

        async def go() -> int:
            outcomes.extend(await perform.perform(scenario, options, parts, tell))
            return perform.status_of(outcomes)

        status = run_supervised(go())
    played += outcomes
    for outcome in outcomes:
        print(report.table(outcome))
    if len(outcomes) > 1:
        print(report.statistics_table(outcomes))
    if outcomes:
        print(f"results: {perform.results_folder(scenario, options)}")
    return status
