# SPDX-License-Identifier: Apache-2.0
"""The tables of the benchmark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from meshlab.bench import distance, engine, features, mesh
from meshlab.bench.medium import Load
from meshlab.bench.mesh import Forming, RoundTrip
from meshlab.lab.errors import LabError
from meshlab.lab.spec import to_toml
from meshlab.lab.state import LabState
from thicket.config.parse import parse

PING = """\
PING fd12::2 (fd12::2) 56 data bytes
64 bytes from fd12::2: icmp_seq=1 ttl=64 time=5.25 ms
64 bytes from fd12::2: icmp_seq=2 ttl=64 time=12 ms

--- fd12::2 ping statistics ---
3 packets transmitted, 2 received, 33% packet loss, time 402ms
"""


def test_ping_is_understood() -> None:
    assert mesh.ping_times(PING) == [5.25, 12.0]
    assert mesh.ping_times("") == []


def test_a_table_is_markdown() -> None:
    text = mesh.table(("a", "long head"), [("value", "1"), ("x", "2")])
    assert text.splitlines() == [
        "| a     | long head |",
        "| ----- | --------- |",
        "| value | 1         |",
        "| x     | 2         |",
    ]


def test_median_and_worst() -> None:
    assert mesh.middle([1.0, 2.0, 9.04]) == "2.0 (9.0)"
    assert mesh.middle([]) == "-"


def test_the_report_tells_what_did_not_form(make_lab: Callable[..., LabState]) -> None:
    facts = mesh.machine_facts(make_lab(), "x86_64: card image")
    assert ("image", "x86_64: card image") in facts
    assert any("tcg" in value for _, value in facts)
    good = Forming(3, 9.4, boot=[1.5], cpu=[3.2], frames_per_second=8.4, verdict="valid")
    bad = Forming(8, None, lacking="n3: no link with n4")
    text = mesh.report(facts, [good, bad])
    rows = [line.split(" | ") for line in text.splitlines()]
    assert any(row[0].strip("| ") == "3" and row[1].strip() == "9.4" for row in rows)
    assert "| not formed |" in text
    assert "8 nodes not formed: n3: no link with n4" in text


def test_lost_pings_are_counted() -> None:
    text = mesh.report_round_trips([RoundTrip(1, 20, [4.0, 2.0, 3.0]), RoundTrip(2, 20, [])])
    assert "| 2.0          | 3.0        | 4.0     | 17 of 20 |" in text
    assert "20 of 20" in text


def test_the_table_of_joining() -> None:
    text = mesh.report_joining([mesh.Joining("sae", [4.0, 6.0, 5.0], [2.0], [30.2])])
    assert "5.0 (6.0)" in text
    assert "12.0" in text


@pytest.mark.parametrize("columns", [3, 0])
def test_the_engine_alone_does_the_same_each_time(columns: int) -> None:
    def load(group: bool, rate: float = 1000.0) -> Load:
        return Load("", 9, columns, rate, group, 100, 0.1)

    first = engine.run(load(False))
    assert first.reports == 100, "every frame has its report"
    assert first.deliveries >= 90
    assert first.us_per_frame > 0
    assert engine.run(load(False)).digest == first.digest
    assert engine.run(load(False, 999.0)).digest != first.digest
    group = engine.run(load(True))
    assert group.reports == 100
    assert group.attempts_per_frame == 1.0
    assert group.deliveries > 100
    assert group.digest != first.digest


async def test_a_report_waits_for_a_far_kernel(tmp_path: Path) -> None:
    row = await distance.measure(0.1, 1, 0.5, tmp_path)
    assert row.frames > 0
    assert row.report_ms >= 200, "there and back"


def test_what_programs_cost_is_read() -> None:
    assert features.read("31744 210 40\n1024 5 0\n100\n") == (32.0, 2.55)
    assert features.read("100\n") == (0.0, 0.0)


@pytest.mark.parametrize("said", ["", "sh: grep: not found", "1 2\n100", "1 2 3\n0\n"])
def test_a_node_that_tells_no_costs_is_an_error(said: str) -> None:
    with pytest.raises(LabError, match="tells"):
        features.read(said)


def test_what_is_switched_off_are_keys_of_the_configuration() -> None:
    parse(to_toml(features.OFF).encode(), "a node's")  # raises ConfigError


def test_the_difference_is_of_medians() -> None:
    text = features.report(
        {
            "on": features.Costs([3.0, 4.0, 9.0], [2.0], []),
            "off": features.Costs([3.5], [1.5], []),
        }
    )
    last = [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]
    assert last == ["difference", "+0.50", "+0.50", "-"]
