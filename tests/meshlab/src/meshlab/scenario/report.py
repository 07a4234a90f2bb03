# SPDX-License-Identifier: Apache-2.0
"""What came of runs, for people and for CI: tables, a JUnit file, statistics of repeated runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from meshlab.scenario.outcome import Line, Outcome, Verdict
from thicket.base.visible import visible

SIGNS = {
    Verdict.PASSED: "ok",
    Verdict.FAILED: "FAIL",
    Verdict.ERROR: "ERROR",
    Verdict.SKIPPED: "?",
    Verdict.NOT_RUN: "-",
}
LONGEST = 100
"""Characters of what was seen that a table shows."""


def _short(text: str) -> str:
    line = visible(" ".join(text.split()), keep="")
    return line if len(line) <= LONGEST else line[: LONGEST - 3] + "..."


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns line up; the last one ends where it ends."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)] if rows else []
    return [
        "  ".join([*(cell.ljust(w) for cell, w in zip(row[:-1], widths, strict=True)), row[-1]])
        for row in rows
    ]


def table(outcome: Outcome) -> str:
    """Return what came of a run as a table."""
    rows = [("", "s", "took", "what", "seen")]
    for line in outcome.lines:
        what = line.words if line.kind == "step" else f"  expect {line.words}"
        begun = "" if line.begun is None else f"{line.begun:.1f}"
        took = line.figures.get("after_s", line.seconds)
        rows.append(
            (SIGNS[line.verdict], begun, "" if took is None else f"{took:.1f}", what,
             _short(line.text))
        )  # fmt: skip
    lines = [each.rstrip() for each in columns(rows)]
    lines.append("")
    formed = outcome.formed_seconds
    lines.append(
        f"{outcome.scenario}: {outcome.verdict}, seed {outcome.seed}"
        + ("" if formed is None else f", formed in {formed:.1f} s, {outcome.seconds:.1f} s played")
        + (", imagined: nothing was booted" if outcome.imagined else "")
    )
    lines += [f"  {_short(reason)}" for reason in outcome.reasons]
    return "\n".join(lines)


def junit(outcomes: Sequence[Outcome]) -> str:
    """Return a JUnit file: a suite for each run, a case for each step and expectation."""
    top = ElementTree.Element("testsuites")
    for number, outcome in enumerate(outcomes, start=1):
        lines = list(outcome.lines)
        if outcome.verdict is Verdict.ERROR:
            why = "\n".join(outcome.reasons)
            lines.append(Line("run", "the run", "has a result", 0, 0.0, 0.0, Verdict.ERROR, why))
        name = outcome.scenario if len(outcomes) == 1 else f"{outcome.scenario} {number}"
        suite = ElementTree.SubElement(
            top, "testsuite", name=_xml(name), tests=str(len(lines)),
            failures=str(_count(lines, Verdict.FAILED)), errors=str(_count(lines, Verdict.ERROR)),
            skipped=str(_count(lines, Verdict.SKIPPED) + _count(lines, Verdict.NOT_RUN)),
            time=f"{(outcome.formed_seconds or 0) + outcome.seconds:.1f}",
            timestamp=outcome.started.partition("+")[0],
        )  # fmt: skip
        for line in lines:
            named = line.words if line.words.startswith(line.name) else f"{line.name}: {line.words}"
            case = ElementTree.SubElement(
                suite, "testcase", classname=_xml(outcome.scenario), name=_xml(named),
                time=f"{line.seconds or 0:.2f}", file=_xml(outcome.file), line=str(line.line),
            )  # fmt: skip
            if line.verdict in (Verdict.FAILED, Verdict.ERROR):
                tag = "failure" if line.verdict is Verdict.FAILED else "error"
                message = _xml(_short(line.text))
                ElementTree.SubElement(case, tag, message=message).text = _xml(line.text)
            elif line.verdict in (Verdict.SKIPPED, Verdict.NOT_RUN):
                ElementTree.SubElement(case, "skipped", message=_xml(_short(line.text)))
    ElementTree.indent(top)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(top, "unicode") + "\n"


def _xml(text: str) -> str:
    """Return a text that XML 1.0 can hold."""
    return visible(text)


def _count(lines: Iterable[Line], verdict: Verdict) -> int:
    return sum(line.verdict is verdict for line in lines)


# -- repeated runs


@dataclass(frozen=True)
class Row:
    """A figure of one expectation over several runs."""

    name: str
    words: str
    figure: str
    runs: int
    """Of those that came so far."""
    passed: int
    median: float | None
    worst: float | None


def statistics_of(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return the figures of repeated runs; of a figure in percent or time, the largest is worst."""
    rows = [_row("the mesh forms", "", "formed_s", [
        (one.formed_seconds is not None, one.formed_seconds) for one in outcomes
    ])]  # fmt: skip
    for index, line in enumerate(outcomes[0].lines if outcomes else ()):
        if line.kind != "expect":
            continue
        mine = [one.lines[index] for one in outcomes]
        mine = [one for one in mine if one.verdict in (Verdict.PASSED, Verdict.FAILED)]
        names = sorted({name for one in mine for name in one.figures}) or ["after_s"]
        rows += [
            _row(line.name, line.words, name, [
                (one.verdict is Verdict.PASSED, one.figures.get(name)) for one in mine
            ])
            for name in names
        ]  # fmt: skip
    return rows


def _row(name: str, words: str, figure: str, found: Sequence[tuple[bool, float | None]]) -> Row:
    values = [value for _, value in found if value is not None]
    best_is_large = figure == "answered_percent"
    worst = (min if best_is_large else max)(values) if values else None
    median = statistics.median(values) if values else None
    return Row(name, words, figure, len(found), sum(met for met, _ in found), median, worst)


def statistics_table(outcomes: Sequence[Outcome]) -> str:
    """Return the statistics of repeated runs as a table."""
    rows = [("passed", "median", "worst", "figure", "what")]
    for row in statistics_of(outcomes):
        rows.append(
            (f"{row.passed}/{row.runs}", _number(row.median), _number(row.worst), row.figure,
             f"{row.name}: {row.words}" if row.words else row.name)
        )  # fmt: skip
    passed = sum(one.verdict is Verdict.PASSED for one in outcomes)
    errors = sum(one.verdict is Verdict.ERROR for one in outcomes)
    seeds = ", ".join(str(one.seed) for one in outcomes)
    share = 100 * passed / len(outcomes) if outcomes else 0.0
    last = f"{passed} of {len(outcomes)} runs passed ({share:.0f} %)"
    last += f", {errors} without a result" if errors else ""
    return "\n".join([*columns(rows), "", f"{last}; seeds {seeds}"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
