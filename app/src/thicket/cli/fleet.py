# SPDX-License-Identifier: Apache-2.0
"""``thicket fleet``: how all nodes are, the worst first."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from thicket.base.visible import VisibleStream, visible
from thicket.cli.cells import fit, pad, width, wrapped
from thicket.cli.common import BAD, OK, UsageError, control_socket
from thicket.control.client import ClientError, request

#: Seconds until a live view is drawn again; the mesh is asked less often.
REDRAW = 2.0
#: Seconds that a node may take: it asks all others.
ANSWER = 30.0

Row = dict[str, Any]

_INDENT = "    "
_BAD_NEWS = ("problem", "silent", "away")
#: Lines below a row at most, unless all is to be shown.
_MOST_LINES = 3


def fleet(rest: list[str]) -> int:
    words = set(rest)
    if len(words) != len(rest) or words - {"--json", "--watch", "--wide"}:
        raise UsageError("fleet takes --json, --watch and --wide")
    if "--watch" in words:
        return _watch(as_json="--json" in words, wide="--wide" in words)
    document = request(control_socket(), "fleet", {}, timeout=ANSWER)
    if "--json" in words:
        print(json.dumps(document, indent=2))
    else:
        columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("\n".join(lines(document, columns, wide="--wide" in words)))
    return status(document)


def status(document: Row) -> int:
    """Return the exit status; bad news are nodes with a problem, silent ones, and those away."""
    return BAD if any(document["counts"][health] for health in _BAD_NEWS) else OK


# -- as a table


class Column(NamedTuple):
    """One column.

    :ivar rank: what has the highest one goes first where there is no room.
    :ivar most: columns of the terminal that it takes at most.
    """

    head: str
    rank: int
    text: Callable[[Row], str]
    right: bool = True
    most: int = 24


def _percent(room: dict[str, int] | None) -> str:
    """Return how much of a memory is used."""
    if room is None or not room["size"]:
        return "-"
    return f"{100 - 100 * room['available'] // room['size']}%"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def short(seconds: float) -> str:
    """Return a time in four characters: ``7s``, ``99m``, ``47h``, ``365d``."""
    for unit, size, most in (("s", 1, 100), ("m", 60, 100), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds // 86400:.0f}d"


def _heard(row: Row) -> str:
    if row["this"]:
        return "here"
    return "never" if row["heard"] is None else short(row["heard"])


def _state(row: Row) -> str:
    return str(row["state"] or row["health"])


def _link(row: Row) -> str:
    weakest = (row["way"] or {}).get("weakest")
    return _number(weakest and weakest["signal_dbm"], "{:d}")


def _card(row: Row) -> str:
    card = row["card"]
    if card is None:
        return "-"
    if card["errors"]:
        return f"{card['errors']} err"
    worn = _number(card["worn"] and 100 * card["worn"], "{:.0f}%")
    return "old" if (card["reserve"] or 0) > 1 else worn if card["worn"] else "ok"


def _clock(row: Row) -> str:
    clock = row["clock"]
    if clock is None:
        return "-"
    off = clock["offset"]
    if row["this"] or abs(off) <= max(1.0, clock["uncertainty"]):
        return "ok" if clock["synchronised"] else "unset"
    return ("+" if off > 0 else "-") + short(abs(off))


def _applications(row: Row) -> str:
    found = row["applications"]
    if found is None:
        return "-"
    at_work = sum(one["state"] == "running" for one in found)
    return "-" if not found else f"{at_work}/{len(found)}"


def _place(row: Row) -> str:
    if row["position"] is not None:
        return "{:.5f}, {:.5f}".format(*row["position"])
    return str(row["place"] or "")


def _version(row: Row) -> str:
    if row["version"] is None:
        return "-"
    return f"{row['version']} {row['slot'] or ''}".rstrip()


_COLUMNS = (
    Column("NODE", 0, lambda row: row["label"] or row["host"], right=False),
    Column("STATE", 1, _state, right=False),
    Column("HEARD", 2, _heard),
    Column("UP", 5, lambda row: "-" if row["uptime"] is None else short(row["uptime"])),
    Column("HOPS", 3, lambda row: _number(row["way"] and row["way"]["hops"], "{:d}")),
    Column("LINK", 4, _link),
    Column("LOAD", 8, lambda row: _number(row["load"], "{:.2f}")),
    Column("TEMP", 6, lambda row: _number(row["temperature"], "{:.0f}")),
    Column("MEM", 9, lambda row: _percent(row["memory"])),
    Column("DATA", 7, lambda row: _percent(row["data"])),
    Column("CARD", 11, _card),
    Column("CLOCK", 12, _clock),
    Column("APPS", 10, _applications),
    Column("VERSION", 13, _version, right=False, most=20),
    Column("PLACE", 14, _place, right=False, most=28),
    Column("HOST", 15, lambda row: row["host"] if row["label"] else "", right=False),
    Column("NOTE", 16, lambda row: row["note"] or "", right=False, most=60),
)
#: Columns that are shown though none of the nodes has anything in them.
_ALWAYS = 9


def lines(document: Row, columns: int | None, *, wide: bool = False) -> list[str]:
    """Return the table and its summary.

    :param columns: of the terminal; None where it is none, which takes lines of any length.
    :param wide: show all columns, whatever the terminal takes.
    """
    nodes = document["nodes"]
    limit = None if wide else columns
    shown = _chosen(nodes, limit)
    cells = [
        [one.text(row) if wide else fit(one.text(row), one.most) for one in shown] for row in nodes
    ]
    heads = [one.head for one in shown]
    widths = [max(width(row[at]) for row in [heads, *cells]) for at in range(len(shown))]
    if limit is not None and (over := _length(widths) - limit) > 0:
        widths[0] = max(8, widths[0] - over)
    summary = _summary(document)
    found = [summary] if columns is None else wrapped(summary, columns)
    found += ["", _line(heads, widths, shown)]
    for row, texts in zip(nodes, cells, strict=True):
        found.append(_line([fit(texts[0], widths[0]), *texts[1:]], widths, shown))
        found += _below(row, columns, wide=wide)
    return found


def _chosen(nodes: Sequence[Row], limit: int | None) -> list[Column]:
    """Return the columns for which there is room, and which say something."""
    shown = [
        one
        for at, one in enumerate(_COLUMNS)
        if at < _ALWAYS or any(one.text(row) not in {"", "-"} for row in nodes)
    ]
    if limit is None:
        return shown

    def length() -> int:
        return _length(
            [
                max(len(one.head), *(min(one.most, width(one.text(row))) for row in nodes), 0)
                for one in shown
            ]
        )

    while len(shown) > 2 and length() > limit:
        shown.remove(max(shown, key=lambda one: one.rank))
    return shown


def _length(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _line(texts: Sequence[str], widths: Sequence[int], shown: Sequence[Column]) -> str:
    cells = (
        pad(text, columns, right=one.right)
        for text, columns, one in zip(texts, widths, shown, strict=True)
    )
    return "  ".join(cells).rstrip()


def _below(row: Row, columns: int | None, *, wide: bool) -> list[str]:
    """Return what stands below a row: what is wrong, in words."""
    words = []
    problem, problems = row["problem"], row["problems"] or {"error": 0, "warning": 0}
    if problem is not None:
        more = problems["error"] + problems["warning"] - 1
        kind = "PROBLEM" if problem["severity"] == "error" else "Warning"
        also = f" ({more} more)" if more > 0 else ""
        words.append(f"{kind}{also}: {problem['part']}: {problem['message']}")
    elif row["why"] and row["health"] in (*_BAD_NEWS, "untold"):
        words.append(row["why"])
    if row["concerns"]:
        words.append("Warning: " + ", ".join(one["words"] for one in row["concerns"]))
    if columns is None:
        return [_INDENT + one for one in words]
    found = []
    for one in words:
        parts = wrapped(one, max(columns - len(_INDENT), 16))
        if len(parts) > _MOST_LINES and not wide:
            room = columns - len(_INDENT)
            parts = [*parts[: _MOST_LINES - 1], fit(" ".join(parts[_MOST_LINES - 1 :]), room)]
        found += [_INDENT + part for part in parts]
    return found


_WORDS = {
    "well": "well",
    "warning": "with a warning",
    "problem": "with a problem",
    "silent": "silent",
    "away": "away",
    "untold": "not telling",
}


def _summary(document: Row) -> str:
    """Return the fleet in one line: ``8 nodes: 6 well, 1 with a problem, 1 away; 0.3.0``."""
    counts = document["counts"]
    total = counts["nodes"]
    kinds = [f"{counts[kind]} {words}" for kind, words in _WORDS.items() if counts[kind]]
    text = f"{total} node{'' if total == 1 else 's'}: {', '.join(kinds) or 'none'}"
    versions: dict[str, int] = {}
    for row in document["nodes"]:
        if row["version"] is not None:
            versions[row["version"]] = versions.get(row["version"], 0) + 1
    if len(versions) > 1:
        told = sorted(versions.items(), key=lambda item: (-item[1], item[0]))
        text += "; version " + ", ".join(f"{version} on {count}" for version, count in told)
    if document["dropped"]:
        text += f"; {document['dropped']} answers made no sense"
    return text


# -- live


def _watch(*, as_json: bool, wide: bool) -> int:
    """Show the fleet again and again, until Ctrl-C."""
    screen = Screen() if sys.stdout.isatty() and not as_json else None
    before: list[str] = []
    if screen is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        while True:
            document = _asked()
            if as_json:
                if document is not None:
                    print(json.dumps(document), flush=True)
            elif screen is not None:
                screen.draw(document, wide=wide)
            else:
                made = lines(document, None, wide=wide) if document is not None else [_GONE]
                if made != before:
                    print("\n".join([*([""] if before else []), *made]), flush=True)
                before = made
            time.sleep(REDRAW)
    finally:
        if screen is not None:
            screen.close()


_GONE = "The daemon does not answer; it is asked again."


def _asked() -> Row | None:
    """Return what the node knows now; None while it has nothing to tell."""
    try:
        return dict(request(control_socket(), "fleet", {"wait": False}, timeout=ANSWER))
    except ClientError as error:
        if error.code not in {"unreachable", "not-joined", "starting", "timeout"}:
            raise
        return None


class Screen:
    """Draws over what it has drawn before, from the top of the terminal, in its other screen."""

    def __init__(self) -> None:
        out = sys.stdout
        self._out = out.terminal if isinstance(out, VisibleStream) else out
        self._write("\x1b[?1049h\x1b[?25l")  # the other screen; no cursor

    def draw(self, document: Row | None, *, wide: bool) -> None:
        """Show the fleet; what has no room is counted."""
        size = shutil.get_terminal_size()
        text = lines(document, size.columns, wide=wide) if document is not None else [_GONE]
        if "" in text:
            text[text.index("")] = time.strftime("%H:%M:%S").rjust(size.columns)
        room = max(size.lines - 1, 2)
        if len(text) > room:
            hidden = len(text) - room + 1
            text = [*text[: room - 1], f"... {hidden} more lines: make the terminal higher"]
        shown = (fit(visible(line, ""), size.columns) for line in text)
        self._write("\x1b[H" + "".join(f"{line}\x1b[K\n" for line in shown) + "\x1b[J")

    def close(self) -> None:
        """Give the terminal back as it was."""
        self._write("\x1b[?25h\x1b[?1049l")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
        except UnicodeEncodeError:  # the terminal is of another kind than UTF-8
            self._out.write(text.encode("ascii", "replace").decode())
        self._out.flush()
