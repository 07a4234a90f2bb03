# SPDX-License-Identifier: Apache-2.0
"""When a mesh has formed, what is missing until then, and the summary that programs read.

A lab has formed when every node that is switched on

- runs its daemon, which says that it joined the mesh,
- has the address that its chip's serial number gives (as computed by the host),
- has an established link with every node that the medium and its configuration let it reach
  directly, and
- sees every node that it can reach at all up in the cluster.

A lab that has formed may still be in trouble: a node reports a problem, or links were cut and the
mesh is in parts, each of which is whole by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from meshlab.lab.state import LabState, NodeState, get, phase
from meshlab.lab.topology import node_index

SCHEMA = 2
"""Version of the summary: raised when a member changes its meaning or goes away."""


def missing(lab: LabState, only: Iterable[str] | None = None) -> dict[str, list[str]]:
    """Return, in words, what each node lacks until the lab has formed; empty when it has.

    ``only`` restricts the answer to these nodes.
    """
    wanted = lab.nodes.keys() if only is None else only
    found = {name: list(_missing(lab, name)) for name in wanted}
    return {name: words for name, words in found.items() if words}


def _missing(lab: LabState, name: str) -> Iterable[str]:
    node = lab.nodes[name]
    if node.power == "off":
        return
    if node.power == "waiting":
        yield "has not been started yet"
        return
    if node.power == "died":
        yield f"died: {node.reason or 'its machine ended'}"
        return
    if node.status is None:
        since = lab.elapsed - (node.started or 0.0)
        card = f". The report on its card: {node.report}" if node.report else ""
        yield f"its daemon has not answered {since:.0f} s after power-on{card}"
        return
    if get(node.status, "radio", "state") != "joined" or node.state in ("starting", "joining"):
        yield f"has not joined: its daemon is {node.state or 'silent'}" + _because(node)
        return
    expected, software = node.expected_address, get(node.status, "identity", "software")
    if expected and node.chip_fault is None and (software or node.address != expected):
        how = "a software identity" if software else "the address"
        yield f"has {how} {node.address}, its chip gives {expected}"
    graph_peers, peers = lab.expected_peers(name), lab.peers(name)
    lacking = graph_peers - peers
    if lacking:
        yield f"no link with {_names(lacking)}"
    unseen = lab.expected_cluster(name) - lab.cluster(name)
    if unseen:
        yield f"does not see {_names(unseen)} in the cluster"


def _because(node: NodeState) -> str:
    return f" ({'; '.join(node.problems)})" if node.problems else ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(in_order(names))


def in_order(names: Iterable[str]) -> list[str]:
    """Return node names in the order of their numbers, other names behind them."""

    def key(name: str) -> tuple[int, int, str]:
        try:
            return 0, node_index(name), name
        except ValueError:
            return 1, 0, name

    return sorted(names, key=key)


def in_words(lab: LabState) -> list[str]:
    """Return a line for each node that lacks something."""
    lacking = missing(lab)
    return [f"{name}: {'; '.join(lacking[name])}" for name in in_order(lacking)]


def troubles(lab: LabState) -> list[str]:
    """Return a line for each thing that is wrong with a lab in which nobody lacks anything."""
    lines = [
        f"the mesh is in {len(parts)} parts: {' | '.join(_names(part) for part in parts)}"
        for parts in lab.split()
    ]
    for name in in_order(lab.nodes):
        node = lab.nodes[name]
        if node.power == "running" and (node.problems or node.state == "degraded"):
            lines.append(f"{name}: {node.state or 'running'}{_because(node)}")
    return lines


def well(lab: LabState) -> bool:
    """Tell whether the mesh is whole and no node has a problem."""
    return not missing(lab) and not troubles(lab)


def summarise(lab: LabState) -> dict[str, Any]:
    """Return the summary of a lab: plain values, times in seconds, memory in KiB."""
    lacking = missing(lab)
    return {
        "schema": SCHEMA,
        "formed": not lacking and not lab.split(),
        "well": well(lab),
        "troubles": troubles(lab),
        "formed_seconds": _rounded(lab.formed),
        "lab": lab.name,
        "image": lab.image,
        "accel": lab.accel,
        "accel_reason": lab.accel_reason,
        "topology": lab.topology,
        "seed": lab.seed,
        "security": lab.security,
        "medium": {**lab.medium, "restarts": lab.medium_restarts},
        "nodes": [_node(lab, name, lacking.get(name, [])) for name in in_order(lab.nodes)],
    }


def _node(lab: LabState, name: str, lacking: list[str]) -> dict[str, Any]:
    node = lab.nodes[name]
    return {
        "name": name,
        "host": node.host or None,
        "power": node.power,
        "state": node.state or None,
        "phase": phase(lab, name),
        "hostname": get(node.status, "hostname"),
        "boot_seconds": _rounded(node.time("daemon")),
        "joined_seconds": _rounded(node.time("radio")),
        "identity": get(node.status, "identity", "source"),
        "serial": get(node.status, "identity", "serial"),
        "address": node.address,
        "address_expected": node.expected_address,
        "address_as_expected": node.expected_address and node.address == node.expected_address,
        "first_peer_seconds": _rounded(node.time("first_peer")),
        "first_node_seconds": _rounded(node.time("first_node")),
        "peers": in_order(lab.peers(name)),
        "peers_expected": in_order(lab.expected_peers(name)),
        "cluster": in_order(lab.cluster(name)),
        "cluster_expected": in_order(lab.expected_cluster(name)),
        "cpu_seconds": _rounded(node.cpu_seconds),
        "cpu_seconds_to_joined": _rounded(node.cpu_seconds_to_joined),
        "host_memory_kib": node.own_kib or None,
        "guest_memory_kib": node.guest_used_kib,
        "daemon_memory_kib": get(node.status, "memory_kib"),
        "problems": node.problems,
        "missing": lacking,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
