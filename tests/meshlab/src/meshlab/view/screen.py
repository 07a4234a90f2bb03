# SPDX-License-Identifier: Apache-2.0
"""The lab as a person sees it: a table of nodes, the mesh as a picture, the medium and the events.

Everything here is a function of a ``LabState``; nothing reads a clock or talks to a node. The parts
give way to each other as the terminal shrinks: the picture first, then nodes that are well, then
columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from operator import itemgetter

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from meshlab.lab.state import Event, Kind, LabState, LinkState, NodeState, get, phase
from meshlab.lab.summary import in_order, missing
from meshlab.lab.topology import Pair, Position

PHASE_STYLE = {
    "waiting": "bright_black",
    "off": "bright_black",
    "booting": "yellow",
    "identity": "yellow",
    "radio": "cyan",
    "peering": "cyan",
    "cluster": "bright_blue",
    "up": "green",
    "problem": "yellow",
    "degraded": "red",
    "silent": "red",
    "trouble": "red",
    "died": "red",
}

EVENT_STYLE = {
    Kind.TROUBLE: "red",
    Kind.DIED: "red",
    Kind.LOST: "red",
    Kind.WELL: "green",
    Kind.FORMED: "bold green",
    Kind.PEER: "cyan",
    Kind.CLUSTER: "bright_blue",
    Kind.CHANGE: "magenta",
    Kind.MEDIUM: "magenta",
    Kind.BOOT: "yellow",
    Kind.IDENTITY: "yellow",
}

STRONG_DBM = -65
"""Signal from which a link is drawn as strong: 26 dB over the noise floor of -91 dBm."""
FAIR_DBM = -77
"""Signal from which a link is drawn as fair: below it the faster rates fail."""


def signal_style(dbm: float | None) -> str:
    """Return the colour of a link with this signal."""
    if dbm is None:
        return "white"
    if dbm >= STRONG_DBM:
        return "green"
    return "yellow" if dbm >= FAIR_DBM else "red"


# --- the picture ----------------------------------------------------------------------------------

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES = {
    _UP: "╵", _DOWN: "╷", _LEFT: "╴", _RIGHT: "╶",
    _UP | _DOWN: "│", _LEFT | _RIGHT: "─",
    _DOWN | _RIGHT: "┌", _DOWN | _LEFT: "┐", _UP | _RIGHT: "└", _UP | _LEFT: "┘",
    _UP | _DOWN | _RIGHT: "├", _UP | _DOWN | _LEFT: "┤",
    _LEFT | _RIGHT | _DOWN: "┬", _LEFT | _RIGHT | _UP: "┴",
    _UP | _DOWN | _LEFT | _RIGHT: "┼",
}  # fmt: skip

# Dots of a braille character by (column 0..1, row 0..3): Unicode block U+2800.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass
class Canvas:
    """Characters in rows, each with a style; lines in box drawing, slants in braille dots."""

    width: int
    height: int
    _cells: dict[tuple[int, int], tuple[str, str]] = field(default_factory=dict)
    _lines: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    _dots: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)

    def text(self, x: int, y: int, text: str, style: str) -> None:
        """Write over whatever is there."""
        for i, character in enumerate(text):
            if 0 <= x + i < self.width and 0 <= y < self.height:
                self._cells[x + i, y] = (character, style)

    def line(self, a: tuple[int, int], b: tuple[int, int], style: str, *, dashed: bool) -> None:
        """Draw from cell to cell."""
        (ax, ay), (bx, by) = a, b
        if dashed or (ax != bx and ay != by):
            self._dotted(a, b, style, 3 if dashed else 1)
        elif ay == by:
            for x in range(min(ax, bx), max(ax, bx)):
                self._join(x, ay, _RIGHT, style)
                self._join(x + 1, ay, _LEFT, style)
        else:
            for y in range(min(ay, by), max(ay, by)):
                self._join(ax, y, _DOWN, style)
                self._join(ax, y + 1, _UP, style)

    def _join(self, x: int, y: int, arm: int, style: str) -> None:
        self._lines[x, y] = (self._lines.get((x, y), (0, ""))[0] | arm, style)

    def _dotted(self, a: tuple[int, int], b: tuple[int, int], style: str, step: int) -> None:
        # From the middle of one cell to the middle of the other, in dots of 2 by 4 a cell.
        ax, ay, bx, by = a[0] * 2 + 1, a[1] * 4 + 1.5, b[0] * 2 + 1, b[1] * 4 + 1.5
        count = max(1, round(max(abs(bx - ax), abs(by - ay))))
        for i in range(0, count + 1, step):
            x = int(ax + (bx - ax) * i / count)
            y = int(ay + (by - ay) * i / count + 0.5)
            cell = (x // 2, y // 4)
            dots = self._dots.get(cell, (0, ""))[0] | _DOTS[x % 2][y % 4]
            self._dots[cell] = (dots, style)

    def render(self) -> Text:
        """Return the rows, joined by newlines."""
        text = Text(no_wrap=True, overflow="crop")
        for y in range(self.height):
            # Neighbours of one style are one piece: fewer escapes for the terminal.
            for style, run in groupby((self._at(x, y) for x in range(self.width)), itemgetter(1)):
                text.append("".join(character for character, _ in run), style)
            if y + 1 < self.height:
                text.append("\n")
        text.rstrip()
        return text

    def _at(self, x: int, y: int) -> tuple[str, str]:
        place = (x, y)
        if place in self._cells:
            return self._cells[place]
        if place in self._lines:
            arms, style = self._lines[place]
            return _LINES[arms], style
        if place in self._dots:
            dots, style = self._dots[place]
            return chr(0x2800 + dots), style
        return " ", ""


def picture_heights(positions: Iterable[Position]) -> list[int]:
    """Return the heights, in rows, that a picture of nodes at these positions may have."""
    places = list(positions)
    levels = sorted({round(y, 1) for _, y in places})
    count = len(levels)
    if count <= 1:
        return [1]
    gaps = [b - a for a, b in pairwise(levels)]
    if max(gaps) - min(gaps) < 1 and len(places) >= 2 * count - 1:
        # Rows of a grid: only heights that keep them equally far from each other.
        return [(count - 1) * step + 1 for step in (2, 3, 4)]
    return list(range(7, 17))


def picture(lab: LabState, width: int, height: int) -> Text:
    """Return the mesh drawn in ``width`` x ``height`` characters.

    A line is a link; its colour is the weaker of the two signals that its ends report. A dotted
    line is a link that should stand and does not.
    """
    canvas = Canvas(width, height)
    label = max((len(name) for name in lab.nodes), default=2) + 2
    places = _places({n: s.position for n, s in lab.nodes.items()}, width - label, height)
    middle = label // 2
    centre = {name: (x + middle, y) for name, (x, y) in places.items()}
    established = {name: lab.peers(name) for name in lab.nodes}
    drawn = [
        (pair, style, dashed)
        for pair in _pairs(lab, established)
        if (drawing := _link_style(lab, pair, established)) is not None
        for style, dashed in [drawing]
    ]
    # What is missing lies over what stands.
    for (a, b), style, dashed in sorted(drawn, key=lambda each: each[2]):
        canvas.line(centre[a], centre[b], style, dashed=dashed)
    for name, (x, y) in places.items():
        what = phase(lab, name)
        mark = {"up": "●", "off": "○", "waiting": "○", "died": "✕", "trouble": "!", "silent": "?"}
        mark |= {"degraded": "!", "problem": "!"}
        canvas.text(x, y, f" {mark.get(what, '◐')}{name} ", f"bold {PHASE_STYLE[what]}")
    return canvas.render()


def _pairs(lab: LabState, established: dict[str, set[str]]) -> list[Pair]:
    found = dict.fromkeys(lab.links)
    for name, peers in established.items():
        for other in peers:
            if other in lab.nodes and (other, name) not in found:
                found[name, other] = None
    return list(found)


def _link_style(
    lab: LabState, pair: Pair, established: dict[str, set[str]]
) -> tuple[str, bool] | None:
    """Return (style, dashed) of a link, None for one that nobody needs to see."""
    a, b = pair
    link = lab.links.get(pair)
    if "off" in (lab.nodes[a].power, lab.nodes[b].power):
        return None
    if link is not None and _was_cut(link):
        return "red", True  # also while the nodes do not know it yet
    if b in established[a] and a in established[b]:
        return signal_style(weaker_signal(lab, a, b)), False
    if b in established[a] or a in established[b]:
        return "bright_black", False
    if link is None or not link.usable or lab.nodes[a].mesh != lab.nodes[b].mesh:
        return None
    return "bright_black", True


def _was_cut(link: LinkState) -> bool:
    return link.snr is None or link.snr_back is None


def weaker_signal(lab: LabState, a: str, b: str) -> float | None:
    """Return the lower of the signals in dBm that two peers report of each other."""
    levels = []
    for name, other in ((a, b), (b, a)):
        peer = lab.nodes[name].established.get(lab.nodes[other].radio_mac, {})
        level = peer.get("signal_dbm")
        if isinstance(level, int | float):
            levels.append(float(level))
    return min(levels, default=None)


def _places(positions: dict[str, Position], width: int, height: int) -> dict[str, tuple[int, int]]:
    """Map positions in metres to cells 0..width, 0..height-1; no two nodes share a cell."""
    if not positions:
        return {}
    left, right = _span([x for x, _ in positions.values()])
    top, bottom = _span([y for _, y in positions.values()])
    if bottom > top:
        # A character is about twice as high as wide; stretched further than this it looks torn.
        wide = min(width - 1, round((right - left) * (height - 1) / (bottom - top) * 5))
    else:
        wide = min(width - 1, 16 * (len(positions) - 1))
    taken: set[tuple[int, int]] = set()
    places = {}
    for name, (x, y) in positions.items():
        column = round((x - left) / (right - left) * wide) if right > left else 0
        row = round((y - top) / (bottom - top) * (height - 1)) if bottom > top else 0
        while (column, row) in taken and row + 1 < height:
            row += 1
        taken.add((column, row))
        places[name] = (column, row)
    return places


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


# --- the table ------------------------------------------------------------------------------------


def network_of(prefix: str) -> str:
    """Return what all addresses of the prefix begin with, without the last colon."""
    return prefix.partition("/")[0].rstrip(":")


def short_address(node: NodeState) -> str:
    """Return the last three groups of a node's address: the 48 bits from its chip."""
    if node.address is None:
        return ""
    groups = node.address.split(":")
    return ":".join(groups[-3:]) if len(groups) > 3 else node.address


def _signals(lab: LabState, node: NodeState) -> Text:
    """Return the peers of a node as "3/4" with the range of their signals."""
    have, want = lab.peers(node.name), lab.expected_peers(node.name)
    text = Text(f"{len(have & want)}/{len(want)}", style="green" if want <= have else "yellow")
    if have - want:
        text.append(f"+{len(have - want)}", "yellow")
    levels = [p.get("signal_dbm") for p in node.established.values()]
    known = sorted((round(x) for x in levels if isinstance(x, int | float)), reverse=True)
    if known:
        text.append(" ")
        text.append(str(known[0]), signal_style(known[0]))
        if known[-1] != known[0]:
            text.append("…", "bright_black")
            text.append(str(known[-1]), signal_style(known[-1]))
    return text


def _cluster(lab: LabState, node: NodeState) -> Text:
    if node.status is None:
        return Text("")
    have, want = lab.cluster(node.name), lab.expected_cluster(node.name)
    style = "green" if want <= have else "yellow"
    return Text(f"{len(have) + 1}/{len(want | have) + 1}", style=style)


def node_table(lab: LabState, names: Sequence[str], width: int) -> Table:
    """Return the table of these nodes."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", width=width)
    table.add_column("node", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("address", no_wrap=True)
    if width >= 80:
        table.add_column("boot", justify="right", no_wrap=True)
    table.add_column("peers, dBm", no_wrap=True)
    table.add_column("cluster", justify="right", no_wrap=True)
    if width >= 70:
        table.add_column("cpu %", justify="right", no_wrap=True)
        table.add_column("MiB", justify="right", no_wrap=True)
    if width >= 92:
        table.add_column("note", no_wrap=True, ratio=1, overflow="ellipsis")
    else:
        table.add_column("", ratio=1)
    for name in names:
        node = lab.nodes[name]
        what = phase(lab, name)
        boot = node.time("daemon")
        running = node.power == "running"
        row: list[RenderableType] = [
            Text(name, "bold"),
            Text(what, PHASE_STYLE[what]),
            Text(short_address(node), "" if running else "bright_black"),
        ]
        if width >= 80:
            row.append("" if boot is None else f"{boot:.1f} s")
        row += [
            _signals(lab, node) if running and node.status else "",
            _cluster(lab, node) if running else "",
        ]
        if width >= 70:
            busy = node.cpu_percent
            row.append(f"{busy:.0f}" if running and busy is not None else "")
            row.append(f"{node.own_kib / 1024:.0f}" if running and node.own_kib else "")
        row.append(_note(node) if width >= 92 else "")
        table.add_row(*row)
    return table


def _note(node: NodeState) -> Text:
    if node.power == "died":
        return Text(node.reason or "", "red")
    if node.problems:
        return Text("; ".join(node.problems), "red")
    if node.updates:
        return Text("update to " + "; ".join(node.updates), "cyan")
    if get(node.status, "identity", "software"):
        return Text("software identity", "yellow")
    return Text(f"on {node.host}" if node.host else "", "bright_black")


# --- lines ----------------------------------------------------------------------------------------


def title(lab: LabState) -> Text:
    """Return the line over everything."""
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append("Thicket lab ", "bold")
    text.append(lab.name, "bold")
    text.append(f"  {len(lab.nodes)} nodes, {lab.topology}, {lab.security}, image {lab.image}")
    text.append(f", {lab.accel}, network {network_of(lab.prefix)}:", "")
    return text


def progress(lab: LabState) -> Text:
    """Return how far the mesh is, as a line."""
    text = Text(no_wrap=True, overflow="ellipsis")
    if lab.stopping:
        return text.append("Stopping: switching the nodes off ...", "bold yellow")
    counts: dict[str, int] = {}
    for name in lab.nodes:
        what = phase(lab, name)
        counts[what] = counts.get(what, 0) + 1
    split = lab.split()
    if lab.formed is not None and split:
        text.append(f"in {max(map(len, split))} parts", "bold red")
    elif lab.formed is not None and missing(lab):
        text.append(f"incomplete (formed in {lab.formed:.0f} s)", "bold yellow")
    elif lab.formed is not None:
        text.append(f"formed in {lab.formed:.0f} s", "bold green")
    else:
        text.append(f"forming, {lab.elapsed:.0f} s", "bold yellow")
    for what, style in PHASE_STYLE.items():
        if what in counts:
            text.append("  ")
            text.append(f"{counts[what]} {what}", style)
    return text


def medium_line(lab: LabState) -> Text:
    """Return what the medium says about itself, as a line."""
    text = Text("medium  ", no_wrap=True, overflow="ellipsis", style="")
    medium = lab.medium
    if not medium:
        return text.append("does not answer", "yellow" if lab.elapsed < 5 else "red")
    rate, losses = medium.get("frames_per_second"), medium.get("recent_loss_percent")
    if isinstance(rate, int | float):
        text.append(f"{rate:.0f} frames/s")
    if isinstance(losses, int | float):
        text.append(f", {losses:.1f} % lost")
    lag = medium.get("lag_ms")
    if isinstance(lag, int | float):
        text.append(f", lag {lag:.1f} ms", "" if lag < 20 else "yellow")
    if medium.get("valid") is False and lab.formed is not None:
        reason = medium.get("reason") or "the host cannot keep up"
        text.append(f", figures of this run are invalid: {reason}", "red")
    elif "valid" in medium:
        text.append(", valid", "green")
    if lab.medium_restarts:
        text.append(f", restarted {lab.medium_restarts} x", "yellow")
    return text


def event_text(event: Event) -> Text:
    """Return one event as a line."""
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"{event.at:7.1f}  ", "bright_black")
    if event.node:
        text.append(f"{event.node:<4}", "bold")
    text.append(event.text, EVENT_STYLE.get(event.kind, ""))
    return text


def hints(lab: LabState, command: str) -> list[str]:
    """Return lines that say what to try, from another terminal."""
    names = in_order(lab.nodes)
    option = "" if lab.name == "default" else f" --lab {lab.name}"
    command += option
    first, last = names[0], names[-1]
    lines = [
        f"{command} exec {first} -- thicket nodes",
        f"{command} console {last}",
    ]
    pair = next((pair for pair, link in lab.links.items() if link.usable), None)
    if pair:
        lines.append(f"{command} link {pair[0]} {pair[1]} --cut      (then --restore)")
    if len(names) > 1:
        victim = names[len(names) // 2]
        lines.append(f"{command} kill {victim}      (then: power {victim} on)")
    lines.append(f"{command} pcap -w mesh.pcapng")
    return lines


# --- the whole ------------------------------------------------------------------------------------


class View:
    """The whole lab as one rich renderable that fits the terminal it is shown in."""

    def __init__(self, lab: LabState, command: str = "meshlab") -> None:
        self.lab = lab
        self.command = command

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.render(options.max_width, options.height or console.height)

    def render(self, width: int, height: int) -> RenderableType:
        """Return the view in ``width`` x ``height`` characters."""
        lab = self.lab
        tips = hints(lab, self.command) if lab.formed is not None and not lab.stopping else []
        heights = picture_heights(node.position for node in lab.nodes.values())
        names = in_order(lab.nodes)
        rows = height - 3  # title, progress, medium
        events = 4 if rows >= len(names) + 7 else 2
        table = len(names) + 2  # header, a line between
        left = rows - table - events - 1
        drawn = 0
        if left > heights[0] and width >= 40:
            drawn = max(height for height in heights if height < left)
        elif left < 0 and len(names) > 1:
            # Too many nodes for this terminal: those that are well are only counted.
            events = 2
            names = self._worst(names, max(1, rows - events - 4))
            table = len(names) + 3
        spare = rows - table - events - 1 - (drawn + 1 if drawn else 0)
        shown_tips = tips if spare >= len(tips) + 2 else tips[:1] if spare >= 2 else []
        if shown_tips:
            spare -= len(shown_tips) + 1
        events += max(0, min(spare, 12))

        parts: list[RenderableType] = [title(lab), progress(lab), medium_line(lab), Text("")]
        parts.append(node_table(lab, names, width))
        if len(names) < len(lab.nodes):
            hidden = len(lab.nodes) - len(names)
            parts.append(Text(f"... {hidden} more (make the terminal higher)", "bright_black"))
        if drawn:
            parts += [Text(""), picture(lab, min(width, 120), drawn)]
        parts.append(Text(""))
        parts += [event_text(event) for event in list(lab.events)[-events:]]
        if shown_tips:
            parts.append(Text("try from another terminal:", "bold"))
            parts += [Text(f"  {tip}", no_wrap=True, overflow="ellipsis") for tip in shown_tips]
        return Group(*parts)

    def _worst(self, names: list[str], count: int) -> list[str]:
        """Return ``count`` of the names, those that are not up first, in their order."""
        ranked = sorted(names, key=lambda name: phase(self.lab, name) == "up")
        kept = set(ranked[:count])
        return [name for name in names if name in kept]
