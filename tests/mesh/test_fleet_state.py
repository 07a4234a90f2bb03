# SPDX-License-Identifier: Apache-2.0
"""Three nodes in a line: what they are called spreads, and each says how all of them are."""

from __future__ import annotations

import base64
import json
import shlex
from pathlib import Path

from json_schema import fits

from authority.labels import Said
from meshlab.lab.fleet import LabFleet
from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes

MESH = "line"
SCHEMA = json.loads(Path(__file__).parents[2].joinpath("docs/fleet.schema.json").read_text())


def host(lab: Lab, name: str) -> str:
    serial = lab.state.nodes[name].serial
    assert serial is not None
    return f"n-{serial[4:16]}"


async def test_labels_reach_all_and_one_end_sees_the_other(lab: Lab, nodes: Nodes) -> None:
    assert isinstance(lab.fleet, LabFleet)
    labels = lab.fleet.authority.labels
    labels.change(
        [
            (str(lab.state.nodes["n1"].serial), Said("north mast", "52.5,13.25")),
            (str(lab.state.nodes["n3"].serial), Said("gate", note="key with the porter")),
        ]
    )
    _, packed = labels.merge(())
    assert packed is not None
    code = "import sys, base64; sys.stdout.buffer.write(base64.b64decode(sys.argv[1]))"
    command = f"python3 -c {shlex.quote(code)} {base64.b64encode(packed).decode()}"
    said = await nodes.succeeds("n1", f"{command} | thicket labels import -")
    assert "for 2 devices" in said
    # From one end of the line to the other, by way of the middle.
    pong = await nodes.succeeds("n3", "thicket ping 'north mast'")
    assert nodes.address("n1") in pong
    await nodes.wait(lambda: lab.state.peers("n2") == {"n1", "n3"}, "the links are there")

    async def all_tell() -> bool:
        found = await nodes.json("n3", "thicket fleet --json")
        fits(found, SCHEMA)
        rows = {row["host"]: row for row in found["nodes"]}
        known = [rows.get(host(lab, name)) for name in ("n1", "n2", "n3")]
        if not all(row and row["state"] == "joined" for row in known):
            return False
        one, two, three = (row for row in known if row)
        if not (one["way"] and two["way"] and one["way"]["hops"] == 2):
            return False  # the radio has just found another way
        assert two["way"]["hops"] == 1
        assert one["way"]["weakest"]["signal_dbm"] < 0
        assert (one["label"], one["position"]) == ("north mast", [52.5, 13.25])
        assert (three["label"], three["this"]) == ("gate", True)
        assert one["memory"]["size"] > one["memory"]["available"] > 0
        assert one["clock"]["uncertainty"] < 5
        return True

    await nodes.until(all_tell, "n3 knows how all are")
    await nodes.says("n2", "thicket fleet", "north mast", "gate", "3 nodes: ")
