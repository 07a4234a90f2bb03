# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a lab."""

from __future__ import annotations

import io
import re
from collections.abc import Callable

import pytest
from rich.console import Console

from meshlab.lab import topology
from meshlab.lab.state import Event, Kind, LabState
from meshlab.view import screen

LabMaker = Callable[..., LabState]


def shown(lab: LabState, width: int = 100, height: int = 40, command: str = "bin/meshlab") -> str:
    """Return the view as a terminal of this size would show it, without colours."""
    file = io.StringIO()
    console = Console(file=file, width=width, height=height, record=True, legacy_windows=False)
    console.print(screen.View(lab, command), height=height)
    return console.export_text()


@pytest.mark.parametrize("kind", topology.KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("size", [(100, 40), (80, 24), (60, 15), (160, 50), (40, 10)])
def test_it_fits_the_terminal(
    make_lab: LabMaker, kind: str, count: int, size: tuple[int, int]
) -> None:
    width, height = size
    lab = make_lab(kind, count)
    for i in range(50):
        lab.events.append(Event(i, Kind.PEER, "link with n2 " * 20, "n1"))
    lines = shown(lab, width, height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_a_grid_of_twenty_shows_every_node_twice_and_its_links(make_lab: LabMaker) -> None:
    text = shown(make_lab("grid", 20))
    for i in range(1, 21):
        assert re.search(rf"●n{i}\b", text)
    rows = [line for line in text.splitlines() if "●n1 " in line]
    assert rows
    assert "─" in rows[0]
    assert "│" in text
    assert "⠁" not in text, "a formed grid has straight lines only"


def test_the_table_says_what_a_node_is_and_sees(make_lab: LabMaker) -> None:
    lab = make_lab("line", 3)
    row = next(line for line in shown(lab).splitlines() if line.startswith("n2"))
    assert row.split() == ["n2", "up", "2:a0b1:c202", "4.2", "s", "2/2", "-61", "3/3", "3", "120"]
    assert "network fd12:3456:789a:1:" in shown(lab)


def test_the_way_of_a_node(make_lab: LabMaker) -> None:
    lab = make_lab("line", 2, formed=False)
    seen = []

    def note() -> None:
        row = next(line for line in shown(lab).splitlines() if line.startswith("n1"))
        seen.append(row.split()[1])

    note()
    node = lab.nodes["n1"]
    node.power, node.started = "running", 0.0
    note()
    node.status = {"state": "starting", "identity": None, "address": None, "radio": None}
    note()
    node.status = {"state": "joining", "address": node.expected_address}
    note()
    node.status["radio"] = {"state": "joined"}
    note()
    lab.nodes["n2"].status = {"cluster": {"node": "thicket@b"}}
    node.status["peers"] = [{"mac": lab.nodes["n2"].mac, "state": "ESTAB", "signal_dbm": -61}]
    note()
    node.status["cluster"] = {"nodes": [{"name": "thicket@b", "state": "up"}]}
    note()
    node.answered, lab.elapsed = 2.0, 60.0
    note()
    node.power = "died"
    note()
    assert seen == [
        "waiting",
        "booting",
        "identity",
        "radio",
        "peering",
        "cluster",
        "up",
        "silent",
        "died",
    ]


def test_problems_are_told_beside_the_node(make_lab: LabMaker) -> None:
    lab = make_lab("line", 2)
    assert lab.nodes["n1"].status is not None
    lab.nodes["n1"].status["problems"] = [{"part": "radio", "code": "x", "message": "no radio"}]
    assert "no radio" in shown(lab)
    lab.nodes["n2"].power, lab.nodes["n2"].reason = "died", "QEMU ended with status 1"
    assert "QEMU ended with status 1" in shown(lab)


def test_a_link_that_should_stand_is_dotted(make_lab: LabMaker) -> None:
    lab = make_lab("line", 2)
    whole = screen.picture(lab, 40, 1).plain
    assert "──" in whole
    for node in lab.nodes.values():
        assert node.status is not None
        node.status["peers"] = []
    dotted = screen.picture(lab, 40, 1).plain
    assert "─" not in dotted
    assert any(0x2800 < ord(c) < 0x2900 for c in dotted)
    lab.links["n1", "n2"].snr = None
    assert any("red" in str(span.style) for span in screen.picture(lab, 40, 1).spans)


def test_links_are_coloured_by_the_weaker_signal(make_lab: LabMaker) -> None:
    lab = make_lab("line", 2)
    assert screen.weaker_signal(lab, "n1", "n2") == -61
    assert lab.nodes["n2"].status is not None
    lab.nodes["n2"].status["peers"][0]["signal_dbm"] = -80
    assert screen.weaker_signal(lab, "n1", "n2") == -80
    assert [screen.signal_style(x) for x in (-50, -70, -85, None)] == [
        "green",
        "yellow",
        "red",
        "white",
    ]


def test_slanted_links_are_drawn_and_no_label_is_lost(make_lab: LabMaker) -> None:
    for seed in range(10):
        lab = make_lab("random", 20, seed=seed)
        text = screen.picture(lab, 100, 15).plain
        for name in lab.nodes:
            assert f"●{name}" in text
        assert any(0x2800 < ord(c) < 0x2900 for c in text)


def test_hints_come_with_the_formed_mesh_and_name_the_lab(make_lab: LabMaker) -> None:
    assert "try from another terminal" not in shown(make_lab(formed=False))
    lab = make_lab()
    assert "bin/meshlab exec n1 -- thicket nodes" in shown(lab)
    assert "bin/meshlab link n1 n2 --cut" in shown(lab)
    lab.name = "other"
    assert "bin/meshlab --lab other exec n1" in shown(lab)


def test_the_medium_tells_on_itself(make_lab: LabMaker) -> None:
    lab = make_lab()
    assert "120 frames/s, 0.1 % lost, lag 2.5 ms, valid" in screen.medium_line(lab).plain
    lab.medium.update(valid=False, reason="lag of 300 ms")
    assert "invalid: lag of 300 ms" in screen.medium_line(lab).plain
    lab.medium, lab.medium_restarts = {}, 2
    assert "does not answer" in screen.medium_line(lab).plain


def test_the_newest_events_are_shown(make_lab: LabMaker) -> None:
    lab = make_lab()
    for i in range(30):
        lab.events.append(Event(float(i), Kind.PEER, f"event {i}.", "n1"))
    text = shown(lab)
    assert "event 29." in text
    assert "event 1." not in text


def test_a_small_terminal_keeps_the_nodes_that_need_attention(make_lab: LabMaker) -> None:
    lab = make_lab("grid", 20)
    lab.nodes["n20"].power = "died"
    text = shown(lab, 80, 14)
    assert "died" in text
    assert "more (make the terminal higher)" in text


def test_an_update_is_told_beside_the_nodes(make_lab: LabMaker) -> None:
    lab = make_lab("line", 3)
    told = [
        {"version": "2.0.0", "state": "making", "percent": 34},
        {"version": "2.0.0", "state": "refused", "percent": None},
        {"version": "2.0.0", "state": "done", "percent": 100},
    ]
    for node, one in zip(lab.nodes.values(), told, strict=True):
        assert node.status is not None
        node.status["updates"] = [one]
    assert [node.updates for node in lab.nodes.values()] == [
        ["2.0.0: making 34 %"],
        ["2.0.0: refused"],
        [],
    ]
    assert "update to 2.0.0: making 34 %" in shown(lab)


def test_leaving_is_shown(make_lab: LabMaker) -> None:
    lab = make_lab()
    lab.stopping = True
    assert "Stopping" in shown(lab)


def test_a_link_that_was_cut_is_red_and_dotted_before_the_nodes_know_it(
    make_lab: LabMaker,
) -> None:
    lab = make_lab("line", 2)
    lab.links["n1", "n2"].snr_back = None
    picture = screen.picture(lab, 40, 1)
    assert "─" not in picture.plain
    assert any("red" in str(span.style) for span in picture.spans)
    assert "green" not in {
        str(span.style) for span in picture.spans if ord(picture.plain[span.start]) >= 0x2800
    }


def test_a_mesh_in_parts_or_with_something_missing_is_not_called_formed(
    make_lab: LabMaker,
) -> None:
    lab = make_lab("line", 4)
    assert "formed in" in screen.progress(lab).plain
    status = lab.nodes["n1"].status
    assert status is not None
    peers, status["peers"] = status["peers"], []
    assert screen.progress(lab).plain.startswith("incomplete")
    status["peers"] = peers
    lab.links["n2", "n3"].snr = None
    assert screen.progress(lab).plain.startswith("in 2 parts")


@pytest.mark.parametrize("state", ["degraded", "joined"])
def test_a_node_with_a_problem_is_not_green(make_lab: LabMaker, state: str) -> None:
    lab = make_lab("line", 2)
    status = lab.nodes["n1"].status
    assert status is not None
    status["state"] = state
    status["problems"] = [{"part": "application", "code": "failed", "message": "it fails"}]
    row = next(line for line in shown(lab).splitlines() if line.startswith("n1"))
    assert row.split()[1] == ("degraded" if state == "degraded" else "problem")
    assert "!n1" in screen.picture(lab, 40, 1).plain
    assert screen.PHASE_STYLE[row.split()[1]] != "green"
