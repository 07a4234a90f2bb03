# SPDX-License-Identifier: Apache-2.0
"""What to build: the description of a lab and of its nodes, and the configuration that follows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meshlab.lab.topology import Pair, Topology

if TYPE_CHECKING:
    from meshlab.lab.saved import SavedLab

Config = Mapping[str, Mapping[str, Any]]

PREFIX = "fd12:3456:789a:1::/64"
CONFIG_FILE = "thicket.toml"

QUICK_NODES = 8
"""Most nodes that keep the quick times of the node's own defaults.

Every two nodes of a cluster have a connection on which both tick: that traffic grows with the
square of their number. Beyond this, Erlang's own 60 s are used: 20 nodes otherwise send 350 ticks a
second, counted with their hops. The regular look at signals and paths is less frequent, too.
"""


@dataclass(frozen=True)
class NodeSpec:
    """How a node differs from the others."""

    config: Config = field(default_factory=dict)
    """Configuration of its own, by section and key, over the lab's."""
    config_text: str | None = None
    """The whole text of its ``thicket.toml`` instead, right or wrong."""
    chip_fault: str | None = None
    """What its chip suffers from at power-on: ``absent``, ``nak``, ``bad-crc``, ``stuck``."""
    mesh_point: bool = True
    """Whether its radio can do mesh point."""
    tx_power_dbm: float = 20.0
    """Its radio's own power, for links that follow from positions."""


@dataclass(frozen=True)
class LabSpec:
    """What to build."""

    topology: Topology
    name: str = "default"
    security: str = "sae"
    """``sae``, a mesh with a passphrase, or ``open``."""
    passphrase: str = ""
    """The mesh's; empty for a new one (with ``keep``, that of the previous run)."""
    keep: bool = False
    """Keep the chips and disks of the lab's previous run."""
    resume: SavedLab | None = None
    """Go on from this one, from which everything else here is."""
    config: Config = field(default_factory=dict)
    """Configuration of all nodes, by section and key."""
    nodes: Mapping[str, NodeSpec] = field(default_factory=dict)
    propagation: Mapping[str, Any] | None = None
    """How nodes without a link hear each other, from their distance, as ``medium.json`` has it.
    None: not at all."""
    fading: str = "none"
    """How the signals of all links change by themselves, as ``meshlab.medium.fading`` reads it."""
    fadings: Mapping[Pair, str] = field(default_factory=dict)
    """Of links that change otherwise. One that the topology does not have gets its signal from the
    places of its nodes."""
    decoding: str = "hard"
    """How receivers decode: ``hard`` or ``soft``."""
    ht: bool = False
    """HT rates, with aggregates that the medium makes; else legacy rates."""


def medium_description(spec: LabSpec, run: str, mesh: Mapping[str, bool]) -> dict[str, Any]:
    """Return what ``medium.json`` says of a lab.

    :param run: Tells one run of the lab from the next.
    :param mesh: Whether the radio of a node can do mesh point, by its name.
    """
    shape = spec.topology
    found: dict[str, Any] = {
        "seed": shape.seed,
        "run": run,
        "fading": spec.fading,
        "decoding": spec.decoding,
        "aggregation": spec.ht,
        "unlinked": "cut" if spec.propagation is None else "model",
        "nodes": [
            {
                "name": name,
                "directory": name,
                "position": list(shape.positions[name]),
                "radios": [_radio(spec, name, index, mesh=mesh[name])],
            }
            for index, name in enumerate(shape.names, start=1)
        ],
        "links": _links(spec),
    }
    if spec.propagation is not None:
        found["propagation"] = dict(spec.propagation)
    return found


def _radio(spec: LabSpec, name: str, index: int, *, mesh: bool) -> dict[str, Any]:
    power = spec.nodes.get(name, NodeSpec()).tx_power_dbm
    return {"mac": radio_mac(index), "mesh": mesh, "tx_power_dbm": power}


def _links(spec: LabSpec) -> list[dict[str, Any]]:
    found: dict[Pair, dict[str, Any]] = {}
    for (a, b), snr in spec.topology.links.items():
        found[a, b] = {"a": a, "b": b, "snr": snr}
    for (a, b), fading in spec.fadings.items():
        pair = (b, a) if (b, a) in found else (a, b)
        found.setdefault(pair, {"a": a, "b": b})["fading"] = fading
    return list(found.values())


def node_config(
    spec: LabSpec,
    node: NodeSpec,
    root: str | None = None,
    *,
    chip: bool = True,
    ssh_key: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the configuration of a node: the lab's defaults, the lab's own, the node's own.

    ``root`` is the root certificate of the lab's fleet; an open lab has none. A node without
    ``chip`` does not look for one. ``ssh_key`` is let in where there is a wired port.
    """
    # Rate control cannot learn from what a simulated radio reports of aggregated frames, so paths
    # follow the links' quality only without HT, or where the medium aggregates; see "HT" in
    # docs/simulator.md.
    mesh: dict[str, Any] = {"id": "thicket", "security": spec.security, "ht": spec.ht}
    if spec.security == "sae":
        mesh["passphrase"] = spec.passphrase
    found: dict[str, dict[str, Any]] = {
        "mesh": mesh,
        "address": {"prefix": PREFIX},
        "cluster": {"name": "thicket", "cookie": f"lab-{spec.name}"},
        "access": {"console": True},
    }
    if ssh_key is not None:
        found["access"]["ssh_keys"] = ssh_key
    if root is None:
        found["cluster"]["security"] = "cookie"
        found["discovery"] = {"beacon": "plain"}
    else:
        found["trust"] = {"root": root}
    if not chip:
        found["identity"] = {"i2c_bus": "none"}
    if len(spec.topology.positions) > QUICK_NODES:
        found["cluster"]["tick_time"] = 60
        found["status"] = {"interval": 15}
    for layer in (spec.config, node.config):
        for section, values in layer.items():
            found.setdefault(section, {}).update(values)
    return found


def to_toml(config: Config) -> str:
    """Return the configuration as the text of a ``thicket.toml``."""
    lines = ["# Written by the lab.\n"]
    for section, values in config.items():
        lines.append(f"[{section}]\n")
        for key, value in values.items():
            # A TOML basic string allows every escape that JSON writes but those of surrogates
            # (hence not ASCII only), and DEL only escaped.
            text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
            lines.append(f"{key} = {text}\n")
        lines.append("\n")
    return "".join(lines)


def mesh_key(config: Config) -> str:
    """Return a word that is the same for nodes that can become peers; it shows no secret."""
    mesh = config.get("mesh", {})
    what = [mesh.get(key) for key in ("id", "security", "channel")]
    if mesh.get("security") == "sae":
        what.append(mesh.get("passphrase"))
    return _digest(what)


def cluster_key(config: Config) -> str:
    """Return a word that is the same for nodes that can see each other in the cluster."""
    what = [
        config.get("cluster", {}).get("cookie"),
        config.get("cluster", {}).get("security"),
        config.get("trust", {}).get("root"),
    ]
    return _digest(what)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def radio_mac(index: int) -> str:
    """Return the address of the radio of node ``index``: locally administered, "th" in ASCII."""
    return f"02:74:68:00:{index >> 8:02x}:{index & 255:02x}"
