# SPDX-License-Identifier: Apache-2.0
"""What a lab knows about itself: one plain description that the view, the summary and clients read.

The supervisor (``lab``) fills it; everything that judges or draws a lab is a function of it, so a
lab that is described in a file can be judged and drawn without one that runs.
"""

from __future__ import annotations

import ipaddress
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, Literal

import networkx as nx

from meshlab.lab.topology import Pair, Position
from thicket.base.visible import visible

SCHEMA = 1
"""Version of ``LabState.to_json``: raised when a member changes its meaning or goes away."""

MAX_EVENTS = 500
"""Events that a lab remembers; all of them are in its ``events.log``."""

MIN_LINK_SNR = 12.0
"""SNR in dB from which two nodes are expected to become peers.

Mesh peering and beacons travel at the lowest rates; 6 Mbit/s OFDM wants about 5 dB, and a link with
less than this loses enough frames that its coming and going is not an error.
"""


class Kind(StrEnum):
    """What an event is about."""

    BOOT = "boot"
    IDENTITY = "identity"
    RADIO = "radio"
    PEER = "peer"
    CLUSTER = "cluster"
    FORMED = "formed"
    LOST = "lost"
    """A link or a node of the cluster is gone."""
    TROUBLE = "trouble"
    WELL = "well"
    """A problem is solved."""
    DIED = "died"
    """A machine, or the lab itself."""
    CHANGE = "change"
    """Somebody changed the lab."""
    MEDIUM = "medium"


Power = Literal["waiting", "running", "off", "died"]
Status = Mapping[str, Any]


@dataclass
class Event:
    """Something worth a line. ``at`` is host seconds since the lab started."""

    at: float
    kind: Kind
    text: str
    node: str | None = None


@dataclass
class NodeState:
    """One node, as the host sees it and as it describes itself."""

    name: str
    mac: str
    """Address of its radio, as the host made it."""
    position: Position = (0.0, 0.0)
    serial: str | None = None
    """Serial number of its chip, 18 hex digits; None when it was built without one."""
    expected_address: str | None = None
    """Address that the host computes from the chip's serial number."""
    chip_fault: str | None = None
    mesh: str = ""
    """Which mesh its configuration names: nodes of different values cannot become peers."""
    cluster: str = ""
    """Which cluster its configuration names."""
    host: str = ""
    """The machine that it runs on; "": that of the lab itself."""
    power: Power = "waiting"
    reason: str | None = None
    """Why it died."""
    started: float | None = None
    """Host seconds since the lab's start at which its machine was (last) started."""
    joined: float | None = None
    """Host seconds since the lab's start at which it first was seen in the mesh."""
    cpu_seconds: float = 0.0
    """Processor time of its QEMU since power-on."""
    cpu_seconds_to_joined: float | None = None
    cpu_percent: float | None = None
    """Share of one processor over the last few seconds."""
    own_kib: int = 0
    """Resident memory that its QEMU shares with no other."""
    guest_used_kib: int | None = None
    """MemTotal - MemAvailable in the guest, measured once the mesh has formed."""
    answered: float | None = None
    """Host seconds since the lab's start of its daemon's last word."""
    status: dict[str, Any] | None = None
    """Its daemon's own status (``/run/thicket/status.json``), None before the first one."""
    cluster_name: str | None = None
    """What the cluster calls it, or called it last: others may still list a node that is off."""
    report: str | None = None
    """What the report on its card says, for as long as there is no status."""

    @property
    def state(self) -> str:
        """The daemon's word: ``starting``, ``joining``, ``joined``, ``degraded``; or empty."""
        return str(get(self.status, "state") or "")

    @property
    def address(self) -> str | None:
        return canonical(get(self.status, "address"))

    @property
    def radio_mac(self) -> str:
        """Return the address of its mesh interface: what its peers call it."""
        return str(get(self.status, "radio", "mac") or self.mac).lower()

    @property
    def established(self) -> dict[str, dict[str, Any]]:
        """Return the stations it has a mesh link with, by their address."""
        return {
            str(peer.get("mac", "")).lower(): peer
            for peer in get_list(self.status, "peers")
            if peer.get("state") == "ESTAB"
        }

    @property
    def problems(self) -> list[str]:
        return [str(p.get("message", p)) for p in get_list(self.status, "problems")]

    @property
    def updates(self) -> list[str]:
        """What it does about the updates that are offered and that it has not got yet."""
        return [
            f"{one.get('version')}: {one.get('state')}"
            + (f" {one['percent']} %" if one.get("percent") is not None else "")
            for one in get_list(self.status, "updates")
            if (one.get("state"), one.get("percent")) != ("done", 100)
        ]

    def time(self, what: str) -> float | None:
        """Return the guest's seconds since power-on at which it reached ``what``."""
        value = get(self.status, "times", what)
        return float(value) if isinstance(value, int | float) else None


@dataclass
class LinkState:
    """What the medium does between two nodes. SNR in dB; None: cut, or not heard at all."""

    a: str
    b: str
    snr: float | None
    """How b hears a."""
    snr_back: float | None
    """How a hears b."""

    @property
    def usable(self) -> bool:
        return all(s is not None and s >= MIN_LINK_SNR for s in (self.snr, self.snr_back))


@dataclass
class LabState:
    """A whole lab."""

    name: str = "default"
    image: str = ""
    accel: str = ""
    accel_reason: str = ""
    topology: str = ""
    seed: int = 1
    security: str = "sae"
    prefix: str = ""
    elapsed: float = 0.0
    """Host seconds since the lab started."""
    formed: float | None = None
    """Host seconds from the lab's start until the mesh first had formed."""
    stopping: bool = False
    nodes: dict[str, NodeState] = field(default_factory=dict)
    links: dict[Pair, LinkState] = field(default_factory=dict)
    medium: dict[str, Any] = field(default_factory=dict)
    """The medium's own ``status``, empty while it does not answer."""
    medium_forming: dict[str, Any] = field(default_factory=dict)
    """The medium's ``status`` at the end of the forming, when its counters begin anew."""
    medium_restarts: int = 0
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))

    def by_mac(self) -> dict[str, str]:
        """Return the names of the nodes by the addresses of their radios and mesh interfaces."""
        found = {node.mac.lower(): name for name, node in self.nodes.items()}
        found.update({node.radio_mac: name for name, node in self.nodes.items() if node.status})
        return found

    def peers(self, name: str) -> set[str]:
        """Return the nodes that ``name`` has an established mesh link with."""
        names = self.by_mac()
        return {names.get(mac, mac) for mac in self.nodes[name].established}

    def by_cluster_name(self) -> dict[str, str]:
        """Return the names of the nodes by what the cluster calls them."""
        found = {}
        for name, node in self.nodes.items():
            own = get(node.status, "cluster", "node") or node.cluster_name
            if own:
                found[str(own)] = name
        return found

    def cluster(self, name: str) -> set[str]:
        """Return the nodes that ``name`` sees up in the cluster, without itself."""
        names = self.by_cluster_name()
        listed = get_list(self.nodes[name].status, "cluster", "nodes")
        up = {str(node.get("name")) for node in listed if node.get("state") == "up"}
        return {names.get(each, each) for each in up} - {name}

    def expected_graph(self) -> nx.Graph[str]:
        """Return the nodes that take part and the links that should stand between them.

        A node that a person switched off does not take part; a link stands where both nodes belong
        to the same mesh and the medium carries both directions.
        """
        graph: nx.Graph[str] = nx.Graph()
        graph.add_nodes_from(name for name, node in self.nodes.items() if node.power != "off")
        graph.add_edges_from(
            (a, b)
            for (a, b), link in self.links.items()
            if a in graph
            and b in graph
            and link.usable
            and self.nodes[a].mesh == self.nodes[b].mesh
        )
        return graph

    def expected_peers(self, name: str) -> set[str]:
        """Return the nodes that ``name`` should have a mesh link with."""
        graph = self.expected_graph()
        return set(graph[name]) if name in graph else set()

    def expected_cluster(self, name: str) -> set[str]:
        """Return the nodes that ``name`` should see in the cluster, without itself."""
        graph = self.expected_graph()
        if name not in graph:
            return set()
        reached = nx.node_connected_component(graph, name) - {name}
        return {other for other in reached if self.nodes[other].cluster == self.nodes[name].cluster}

    def parts(self) -> list[set[str]]:
        """Return the nodes that take part, by the part of the mesh that the medium leaves them in.

        Each mesh that the nodes' configurations name is one part when it is whole; the largest
        part comes first.
        """
        return sorted(nx.connected_components(self.expected_graph()), key=len, reverse=True)

    def split(self) -> list[list[set[str]]]:
        """Return the parts of each mesh that is in more than one."""
        meshes: dict[str, list[set[str]]] = {}
        for part in self.parts():
            meshes.setdefault(self.nodes[min(part)].mesh, []).append(part)
        return [parts for parts in meshes.values() if len(parts) > 1]

    def to_json(self) -> dict[str, Any]:
        """Return the lab as plain values; ``from_json`` is the way back."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["nodes"] = {name: asdict(node) for name, node in self.nodes.items()}
        plain["links"] = [asdict(link) for link in self.links.values()]
        plain["events"] = [asdict(event) for event in self.events]
        return {"schema": SCHEMA, **plain}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LabState:
        """Return the lab that ``to_json`` described.

        :raises ValueError: when it has another schema.
        """
        if value.get("schema") != SCHEMA:
            raise ValueError(f"a lab of schema {value.get('schema')}, this program knows {SCHEMA}")
        plain = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        plain["nodes"] = {name: _node(node) for name, node in value["nodes"].items()}
        plain["links"] = {(link["a"], link["b"]): LinkState(**link) for link in value["links"]}
        plain["events"] = deque((_event(e) for e in value["events"]), maxlen=MAX_EVENTS)
        return cls(**plain)


def _event(value: Mapping[str, Any]) -> Event:
    return Event(**{**value, "kind": Kind(value["kind"])})


def _node(value: Mapping[str, Any]) -> NodeState:
    return NodeState(**{**value, "position": tuple(value["position"])})


def get(value: Any, *keys: str) -> Any:
    """Return ``value[key][key]...``, None where something on the way is missing."""
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def get_list(value: Any, *keys: str) -> list[dict[str, Any]]:
    """Return the objects of the list at ``keys``, an empty list where there is none."""
    found = get(value, *keys)
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def canonical(address: Any) -> str | None:
    """Return an IPv6 address (a prefix length is dropped) in its canonical text."""
    if not isinstance(address, str) or not address:
        return None
    try:
        return str(ipaddress.IPv6Interface(address).ip)
    except ValueError:
        return address


def address_from_serial(prefix: str, serial: bytes) -> str:
    """Return the address that a chip's 9 byte serial number gives in ``prefix``.

    Bytes 2..7 are the last 48 bits, the 16 bits before them are 0 (the source "chip"). Written down
    here a second time on purpose: the lab checks the node's own arithmetic with it.
    """
    network = ipaddress.IPv6Network(prefix)
    if len(serial) != 9:
        raise ValueError(f"a serial number has 9 bytes, not {len(serial)}")
    return str(network[int.from_bytes(serial[2:8], "big")])


PHASES = ("waiting", "booting", "identity", "radio", "peering", "cluster", "up")
"""What a healthy node goes through, in order."""


SETTLED = ("up", "problem", "degraded")
"""Phases in which a node stays until something happens."""


def phase(lab: LabState, name: str) -> str:
    """Return how far a node is, or what is wrong with it in one word.

    Wrong is ``off``, ``died``, ``silent``, ``trouble`` (no radio that works), ``degraded`` (by the
    node's own word) or ``problem`` (it reports one, an application that fails among them).

    The way is boot (kernel, init, the daemon starts), identity (the chip is read, the address is
    known), radio (the interface joins the mesh), peering (every link that should stand does),
    cluster (every node that should be seen is), up.
    """
    node = lab.nodes[name]
    if node.power != "running":
        return node.power
    if node.status is None:
        return "booting"
    if node.answered is not None and lab.elapsed - node.answered > 30:
        return "silent"
    if get(node.status, "radio", "state") in ("absent", "unsuitable", "failed"):
        return "trouble"
    if node.address is None:
        return "identity"
    if get(node.status, "radio", "state") != "joined":
        return "radio"
    if not lab.expected_peers(name) <= lab.peers(name):
        return "peering"
    if not lab.expected_cluster(name) <= lab.cluster(name):
        return "cluster"
    if node.state == "degraded":
        return "degraded"
    return "problem" if node.problems else "up"


def news(
    name: str,
    old: Status | None,
    new: Status,
    macs: Mapping[str, str],
    nodes: Mapping[str, str],
) -> Iterable[tuple[Kind, str]]:
    """Yield (kind, text) for what changed in a node's status since ``old``.

    ``macs`` and ``nodes`` translate radio addresses and cluster names into names of the lab.
    """

    def reached(what: str) -> str:
        seconds = get(new, "times", what)
        if seconds == get(old, "times", what):
            return ""  # that was the first time
        return f" {seconds:.1f} s after power-on" if isinstance(seconds, int | float) else ""

    if old is None:
        yield Kind.BOOT, f"daemon started{reached('daemon')}"
    identity, before = get(new, "identity", "source"), get(old, "identity", "source")
    if get(new, "address") and (identity, get(new, "address")) != (before, get(old, "address")):
        mark = ", a software identity" if get(new, "identity", "software") else ""
        yield Kind.IDENTITY, f"is {canonical(get(new, 'address'))} (from its {identity}{mark})"
    radio, before = get(new, "radio", "state"), get(old, "radio", "state")
    if radio != before:
        if radio == "joined":
            yield Kind.RADIO, f"joined mesh {get(new, 'radio', 'mesh_id')!r}{reached('radio')}"
        elif radio in ("absent", "unsuitable", "failed") or before == "joined":
            yield Kind.TROUBLE, f"radio {radio}"
    peers, before = _established(new), _established(old)
    for mac in sorted(peers.keys() - before.keys()):
        signal = peers[mac].get("signal_dbm")
        level = f", {signal} dBm" if isinstance(signal, int | float) else ""
        yield Kind.PEER, f"link with {macs.get(mac, mac)}{level}"
    for mac in sorted(before.keys() - peers.keys()):
        yield Kind.LOST, f"link with {macs.get(mac, mac)} is gone"
    up, before_up = _up(new), _up(old)
    for each in sorted(up - before_up):
        yield Kind.CLUSTER, f"sees {nodes.get(each, each)} in the cluster"
    for each in sorted(before_up - up):
        yield Kind.LOST, f"no longer sees {nodes.get(each, each)} in the cluster"
    problems, past = _problems(new), _problems(old)
    for code in sorted(problems.keys() - past.keys()):
        yield Kind.TROUBLE, problems[code]
    for code in sorted(past.keys() - problems.keys()):
        yield Kind.WELL, f"solved: {past[code]}"


def _established(status: Status | None) -> dict[str, dict[str, Any]]:
    return {
        str(peer.get("mac", "")).lower(): peer
        for peer in get_list(status, "peers")
        if peer.get("state") == "ESTAB"
    }


def _up(status: Status | None) -> set[str]:
    own = get(status, "cluster", "node")
    listed = get_list(status, "cluster", "nodes")
    return {str(n.get("name")) for n in listed if n.get("state") == "up"} - {str(own)}


def _problems(status: Status | None) -> dict[str, str]:
    return {
        f"{p.get('part')}/{p.get('code')}": str(p.get("message", p.get("code")))
        for p in get_list(status, "problems")
    }


def report_in_short(report: str) -> str:
    """Return state and problems of a node's ``report.txt`` in one line; "" when it has neither."""
    found = []
    for line in report.splitlines():
        word, _, rest = line.partition(":")
        if word == "State":
            found.append(visible(rest.strip()))
        elif line.startswith("  - "):
            found.append(visible(line.removeprefix("  - ").strip()))
    return "; ".join(found)


def visible_values(value: Any) -> Any:
    """Return a JSON value with all its texts made visible, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, list):
        return [visible_values(one) for one in value]
    if isinstance(value, dict):
        return {visible(key): visible_values(one) for key, one in value.items()}
    return value
