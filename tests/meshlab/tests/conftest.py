# SPDX-License-Identifier: Apache-2.0
"""Labs that exist on paper only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from meshlab.lab import topology
from meshlab.lab.fake import FakeParts
from meshlab.lab.state import LabState, LinkState, NodeState, address_from_serial

PREFIX = "fd12:3456:789a:1::/64"

LabMaker = Callable[..., LabState]


def node_status(lab: LabState, name: str) -> dict[str, Any]:
    """Return the status of a node that is through with everything."""
    node = lab.nodes[name]
    peers = [
        {"mac": lab.nodes[other].mac, "state": "ESTAB", "signal_dbm": -61, "address": None}
        for other in sorted(lab.expected_peers(name))
    ]
    nodes = [
        {"name": f"thicket@{lab.nodes[other].expected_address}", "state": "up"}
        for other in sorted(lab.expected_cluster(name))
    ]
    return {
        "schema": 1,
        "hostname": f"n-{(node.serial or '')[4:16]}",
        "state": "joined",
        "problems": [],
        "times": {
            "daemon": 4.2,
            "identity": 4.5,
            "radio": 5.1,
            "first_peer": 7.75,
            "first_node": 9.125,
        },
        "identity": {"source": "chip", "software": False, "serial": node.serial},
        "address": node.expected_address,
        "radio": {"state": "joined", "mac": node.mac, "mesh_id": "thicket"},
        "peers": peers,
        "cluster": {"node": f"thicket@{node.expected_address}", "nodes": nodes},
        "memory_kib": 24000,
    }


@pytest.fixture
def make_lab() -> LabMaker:
    """Return a function that makes a lab on paper, by default one that has formed."""

    def make(kind: str = "line", count: int = 3, *, formed: bool = True, seed: int = 1) -> LabState:
        shape = topology.make(kind, count, seed)
        lab = LabState(
            image="lab",
            accel="tcg",
            accel_reason="/dev/kvm opens, but a guest does not run",
            topology=kind,
            seed=seed,
            prefix=PREFIX,
            elapsed=42.0,
        )
        for i, name in enumerate(shape.names, start=1):
            serial = bytes.fromhex("0123") + bytes([0, i, 0xA0, 0xB1, 0xC2, i]) + b"\xee"
            lab.nodes[name] = NodeState(
                name=name,
                mac=f"02:74:68:00:00:{i:02x}",
                position=shape.positions[name],
                serial=serial.hex(),
                expected_address=address_from_serial(PREFIX, serial),
            )
        lab.links = {(a, b): LinkState(a, b, snr, snr) for (a, b), snr in shape.links.items()}
        if formed:
            lab.formed = 31.5
            lab.medium = {"frames_per_second": 120.5, "recent_loss_percent": 0.1, "lag_ms": 2.5}
            lab.medium["valid"] = True
            for name, node in lab.nodes.items():
                node.power = "running"
                node.started, node.joined, node.answered = 1.0, 9.0, 41.5
                node.cpu_seconds, node.cpu_seconds_to_joined, node.cpu_percent = 8.25, 4.125, 3.0
                node.own_kib = 120 * 1024
                node.status = node_status(lab, name)
        return lab

    return make


@pytest.fixture
def parts() -> FakeParts:
    """Return parts of a lab that boot nothing."""
    return FakeParts()
