# SPDX-License-Identifier: Apache-2.0
"""The checklist for boards in docs/hardware.md says what a node prints, in the node's own words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from firmware.flash import State
from thicket.cli.show import status_text
from thicket.radio.mesh import protection
from thicket.radio.section import MeshSection
from thicket.upkeep import last_run
from thicket.upkeep.report import compose

TOP = Path(__file__).resolve().parents[1]
ADDRESS = "fd12:3456:789a:1:0:6f44:e3c6:b802"
ROWS = [
    line.split(" | ")
    for line in (TOP / "docs/hardware.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| \d+ ", line)
]
#: What the kernel, the shell and ``iw`` print, and values alone.
OTHERS = {
    "n-6f44e3c6b802:~#", "Raspberry Pi 4 Model B Rev 1.5", "thicket.slot=A", "thicket.slot=B",
    "Wed Feb 12 10:38:26 UTC 2025", "* mesh point", "1", "80000", "pang",
    "Kernel panic - not syncing: sysrq triggered crash", "reboot: Power down",
    "reboot: Restarting system with command '0 tryboot'",
    "logread \\| grep -i 'usb.*reset'", "A: good, runs", "B: good, runs", "A: good",
    "The light flickers for 30 s.",
}  # fmt: skip


def document(restart: str, message: str, data: tuple[str, str]) -> dict[str, Any]:
    """Return a status document of a node that works."""
    record = {"run": 3, "reason": restart, "message": message}
    return {
        "hostname": "n-6f44e3c6b802",
        "address": ADDRESS,
        "prefix_length": 64,
        "identity": {
            "source": "chip",
            "serial": "01236f44e3c6b802ee",
            "id": "6f44e3c6b802",
            "chip": {"model": "ATECC608B"},
        },
        "state": "joined",
        "uptime": 3.0,
        "version": "0.1.0",
        "slot": "A",
        "slots": [
            {"name": "A", "state": "good", "runs": True, "trial": False, "why": ""},
            {"name": "B", "state": "untried", "runs": False, "trial": False, "why": ""},
        ],
        "data": {"state": data[0], "message": data[1]},
        "last_restart": {**record, "words": last_run.text(record)},
        "factory_reset": {"at": "2026-11-30T16:39:37Z", "words": "by the button: 3 files, 9 KiB"},
        "configuration": {"source": "/etc/thicket/thicket.toml", "last_good_used": False},
        "problems": [],
        "radio": {
            "state": "joined",
            "mesh_id": "m",
            "protection": protection(MeshSection()),
            "frequency": 2412,
            "mac": "02:00:00:00:00:01",
        },
        "peers": [{"state": "ESTAB", "signal_dbm": -50}],
        "cluster": {
            "node": f"thicket@{ADDRESS}",
            "security": "tls",
            "refused": {},
            "nodes": [{"state": "up"}],
        },
        "trust": None,
        "firewall": {"state": "on", "dropped": {}},
        "times": {},
        "memory_kib": 1024,
        "cpu_seconds": 1.0,
    }


def printed() -> list[str]:
    """Return lines that a node, and the program that flashes, do print; one blank for several."""
    states = [
        document("first", "", ("created", "on a blank device")),
        document("power", "", ("clean", "")),
        document("panic", "sysrq triggered crash", ("repaired", "e2fsck status 1")),
        document("watchdog", "", ("clean", "")),
        document("shutdown", "", ("clean", "")),
    ]
    texts = [State.COMPLETE.told("card"), f"pong from thicket@{ADDRESS} in 8.4 ms"]
    for doc in states:
        first = doc["last_restart"]["reason"] == "first"
        doc["last_restart"]["run"] = 1 if first else 3
        texts += [status_text(doc), compose(doc)]
    return [" ".join(line.split()) for text in texts for line in text.splitlines()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_a_step_prints_what_it_says(row: list[str]) -> None:
    quoted = [word.strip() for word in re.findall(r"`([^`]+)`", " | ".join(row[2:]))]
    lines = printed()
    for words in quoted:
        if words in OTHERS:
            continue
        shape = ".*".join(re.escape(part) for part in words.split("..."))
        assert any(re.fullmatch(shape, line) for line in lines), words


def test_the_steps_are_in_order_and_go_through_what_only_hardware_shows() -> None:
    heads = [row[0].strip("| ").split() for row in ROWS]
    assert [int(head[0]) for head in heads] == list(range(1, len(heads) + 1))
    models = (TOP / "docs/models.md").read_text(encoding="utf-8")
    letters = set(re.findall(r"^\| ([a-z]) \|", models, re.MULTILINE))
    assert {word for head in heads for word in head[1:]} == letters
