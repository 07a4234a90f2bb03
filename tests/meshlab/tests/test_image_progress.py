# SPDX-License-Identifier: Apache-2.0
"""What a person sees while an image is built."""

from __future__ import annotations

import io

import pytest

from host.progress import (
    PLAIN_INTERVAL,
    Line,
    LiveReport,
    PlainReport,
    Progress,
    duration,
    reporter,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (249.2, "4 min 09 s"),
        (3600, "60 min 00 s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_any_function_of_a_string_will_do() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = Progress(lines.append, clock)
    stage = progress.stage("kernel")
    stage.start("compiling")
    clock.now += 3
    stage.doing("compiled 10 objects")
    assert lines == ["kernel: compiling"], "what passes is not told at every step"
    clock.now += PLAIN_INTERVAL
    stage.doing("compiled 20 objects")
    clock.now += 1
    stage.doing("compiled 21 objects")
    clock.now += 100
    stage.done("made")
    assert lines == [
        "kernel: compiling",
        "[18 s] kernel: compiled 20 objects",
        "kernel: made (1 min 59 s)",
    ]


def test_stages_side_by_side_share_a_line() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = Progress(lines.append, clock)
    a, b = progress.stage("a"), progress.stage("b")
    a.doing("one")
    clock.now += PLAIN_INTERVAL
    b.doing("two")
    assert lines == ["[15 s] a: one; b: two"]
    a.ended()
    clock.now += PLAIN_INTERVAL
    b.doing("three")
    assert lines[1:] == ["[30 s] b: three"]


def test_a_terminal_shows_a_live_line_and_keeps_the_others() -> None:
    stream = io.StringIO()
    report = LiveReport(stream)
    report(Line("working 1", passing=True))
    report(Line("working 2", passing=True))
    report(Line("done"))
    report("a plain string stays as well")
    assert stream.getvalue() == (
        "\r\x1b[Kworking 1\r\x1b[Kworking 2\r\x1b[Kdone\n\r\x1b[Ka plain string stays as well\n"
    )


def test_a_line_never_wraps_on_a_terminal() -> None:
    stream = io.StringIO()
    LiveReport(stream)(Line("x" * 500, passing=True))
    assert len(stream.getvalue().removeprefix("\r\x1b[K")) < 80


def test_a_file_gets_whole_lines() -> None:
    stream = io.StringIO()
    report = reporter(stream)
    assert isinstance(report, PlainReport)
    report(Line("working", passing=True))
    report(Line("done"))
    assert stream.getvalue() == "working\ndone\n"
