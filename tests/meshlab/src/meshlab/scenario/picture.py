# SPDX-License-Identifier: Apache-2.0
"""The timeline of a run as an SVG picture: what was done, how the nodes fared, what was expected.

It is drawn from the outcome alone, needs no font or script from elsewhere, and shows details where
the mouse rests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from meshlab.scenario.outcome import Glance, Line, Outcome, Verdict
from thicket.base.visible import visible

WIDTH = 1200
LEFT = 300
RIGHT = 30
LANE = 26
ROW = 22
TOP = 92
GAP = 34
CHARACTER = 6.7
"""Pixels that a character takes, at the size of the rows."""

PHASES = {
    "up": "#7fbf8e",
    "cluster": "#b9d98c",
    "peering": "#e8d37a",
    "radio": "#eebf72",
    "identity": "#e6c9a0",
    "booting": "#d8d2c4",
    "waiting": "#eeeeee",
    "off": "#9aa0a6",
    "died": "#c0392b",
    "silent": "#c98bb9",
    "trouble": "#e07b67",
    "problem": "#e8a08f",
    "degraded": "#e8a08f",
}
VERDICTS = {
    Verdict.PASSED: "#2e7d4f",
    Verdict.FAILED: "#c0392b",
    Verdict.ERROR: "#8e1b0f",
    Verdict.SKIPPED: "#8a8f94",
    Verdict.NOT_RUN: "#b8bcc0",
}
STEP = "#3b6ea5"
STYLE = """\
text { font: 12px ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace; fill: #24292f; }
.title { font-size: 18px; font-weight: bold; }
.small { font-size: 11px; fill: #57606a; }
.inside { fill: #ffffff; }
.head { font-weight: bold; }
.grid { stroke: #d0d7de; stroke-width: 1; }
.change { stroke: #3b6ea5; stroke-width: 1; stroke-dasharray: 2 3; opacity: 0.7; }
"""


def picture(outcome: Outcome) -> str:
    """Return the picture of a run."""
    return _Picture(outcome).draw()


def _ticks(end: float) -> Sequence[float]:
    """Return round times for about ten marks."""
    rough = max(end, 1.0) / 10
    base = 10 ** math.floor(math.log10(rough))
    step = next(base * n for n in (1, 2, 5, 10) if base * n >= rough)
    return [step * i for i in range(int(end / step) + 1)]


class _Picture:
    """One picture."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        ends = [outcome.seconds, 1.0]
        ends += [line.ended for line in outcome.lines if line.ended is not None]
        self._end = max(ends)
        self._out: list[str] = []

    def _x(self, at: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * min(at, self._end) / self._end, 1)

    def draw(self) -> str:
        steps = [line for line in self._outcome.lines if line.kind == "step"]
        expectations = [line for line in self._outcome.lines if line.kind == "expect"]
        lanes = self._outcome.lanes
        nodes_at = TOP + 24
        steps_at = nodes_at + LANE * len(lanes) + GAP
        expect_at = steps_at + ROW * len(steps) + GAP
        height = expect_at + ROW * len(expectations) + 46
        self._head()
        self._axis(nodes_at - 6, height - 40)
        for step in steps:
            if step.begun is not None:
                self._line("change", self._x(step.begun), nodes_at - 4, expect_at - GAP)
        self._text(14, nodes_at - 10, "nodes", "head")
        for index, (name, lane) in enumerate(lanes.items()):
            self._lane(name, lane, nodes_at + LANE * index)
        self._rows("steps", steps, steps_at)
        self._rows("expectations", expectations, expect_at)
        self._legend(height - 14)
        body = "\n".join(self._out)
        return (
            '<?xml version="1.0" encoding="utf-8"?>\n'
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'viewBox="0 0 {WIDTH} {height}">\n<style>{STYLE}</style>\n'
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
        )

    def _head(self) -> None:
        one = self._outcome
        self._text(14, 28, one.scenario, "title")
        words = f"{one.verdict}, seed {one.seed}"
        if one.formed_seconds is not None:
            words += f", formed in {one.formed_seconds:.1f} s, "
            words += "imagined" if one.imagined else f"image {one.image}"
        self._rect(14, 38, 10, 10, colour=VERDICTS[one.verdict], title=words)
        self._text(30, 48, words)
        self._text(14, 66, _cut(one.description, (WIDTH - 28) / 6.2), "small")

    def _axis(self, top: float, bottom: float) -> None:
        for at in _ticks(self._end):
            x = self._x(at)
            self._line("grid", x, top, bottom)
            self._text(x, top - 6, f"{at:g}", "small", anchor="middle")
        self._text(LEFT - 14, top - 6, "seconds after forming", "small", anchor="end")

    def _lane(self, name: str, lane: Sequence[Glance], top: float) -> None:
        self._text(14, top + 16, name)
        for index, one in enumerate(lane):
            until = lane[index + 1].at if index + 1 < len(lane) else self._end
            left, right = self._x(one.at), self._x(until)
            what = (
                f"{name}, {one.at:g} to {until:g} s: {one.phase}, {one.peers} peers, "
                f"{one.cluster} in its cluster"
            )
            self._rect(
                left,
                top + 2,
                max(1.0, right - left),
                LANE - 6,
                colour=PHASES.get(one.phase, "#cccccc"),
                title=what,
            )
            label = f"{one.peers}p {one.cluster}c" if one.phase != "off" else "off"
            if right - left > CHARACTER * len(label) + 6:
                self._text(left + 4, top + 16, label, "small")

    def _rows(self, title: str, lines: Sequence[Line], top: float) -> None:
        if not lines:
            return
        self._text(14, top - 8, title, "head")
        for index, line in enumerate(lines):
            self._row(line, top + ROW * index)

    def _row(self, line: Line, top: float) -> None:
        self._text(14, top + 15, _cut(line.words, (LEFT - 28) / 7.3), title=line.words)
        if line.begun is None or line.ended is None:
            self._text(LEFT, top + 15, "not run", "small")
            return
        left, right = self._x(line.begun), self._x(line.ended)
        colour = VERDICTS[line.verdict]
        if line.kind == "step" and line.verdict is Verdict.PASSED:
            colour = STEP
        words = f"{line.words}: {line.verdict}, {line.begun:g} to {line.ended:g} s. {line.text}"
        self._rect(left, top + 4, max(4.0, right - left), ROW - 8, colour=colour, title=words)
        if line.kind == "expect" and line.verdict is Verdict.PASSED:
            # Until it became true it is pale.
            met = self._x(line.begun + line.figures.get("after_s", line.ended - line.begun))
            pale = min(met, right - 4) - left
            if pale > 0:
                self._rect(left, top + 4, pale, ROW - 8, colour="#ffffff", title=words, opacity=0.6)
        label = _label(line)
        wide = CHARACTER * len(label)
        if right + 8 + wide <= WIDTH - RIGHT:
            self._text(right + 8, top + 15, label, "small")
        elif left - 6 - wide >= LEFT:
            self._text(left - 6, top + 15, label, "small", anchor="end")
        else:
            fitting = _cut(label, max(right - left, 4.0) / CHARACTER)
            self._text(right - 6, top + 15, fitting, "small inside", anchor="end")

    def _legend(self, y: float) -> None:
        seen = {one.phase for lane in self._outcome.lanes.values() for one in lane}
        x = 14.0
        for phase, colour in PHASES.items():
            if phase in seen:
                self._rect(x, y - 10, 12, 12, colour=colour, title=phase)
                self._text(x + 17, y, phase, "small")
                x += 34 + CHARACTER * len(phase)
        self._text(x + 6, y, "2p 3c: two peers, three others in the cluster", "small")

    # -- elements

    def _text(
        self,
        x: float,
        y: float,
        words: str,
        style: str = "",
        *,
        anchor: str = "start",
        title: str = "",
    ) -> None:
        inner = _safe(words) + (f"<title>{_safe(title)}</title>" if title else "")
        look = (f' class="{style}"' if style else "") + (
            f' text-anchor="{anchor}"' if anchor != "start" else ""
        )
        self._out.append(f'<text x="{x:g}" y="{y:g}"{look}>{inner}</text>')

    def _rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        colour: str,
        title: str,
        opacity: float = 1.0,
    ) -> None:
        look = f' opacity="{opacity:g}"' if opacity < 1 else ""
        self._out.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:.1f}" height="{height:g}" rx="2" '
            f"fill={quoteattr(colour)}{look}><title>{_safe(title)}</title></rect>"
        )

    def _line(self, style: str, x: float, top: float, bottom: float) -> None:
        self._out.append(
            f'<line class="{style}" x1="{x:g}" y1="{top:g}" x2="{x:g}" y2="{bottom:g}"/>'
        )


def _label(line: Line) -> str:
    if line.kind == "step":
        seconds = line.seconds or 0.0
        return f"{seconds:.1f} s" if line.verdict is Verdict.PASSED else _cut(line.text, 60)
    met = line.figures.get("after_s")
    took = f"after {met:.1f} s" if met is not None else f"{line.seconds or 0:.1f} s"
    return took if line.verdict is Verdict.PASSED else f"{line.verdict}: {_cut(line.text, 60)}"


def _cut(words: str, most: float) -> str:
    one = " ".join(words.split())
    return one if len(one) <= most else one[: max(0, int(most) - 1)] + "…"


def _safe(words: str) -> str:
    return escape(visible(words))
