# SPDX-License-Identifier: Apache-2.0
"""NetJSON (https://netjson.org/rfc.html): the mesh as a graph, and one node for OpenWISP.

The graph is made of the nodes' numbers (:mod:`.numbers`), so that of one node and that of many are
made alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thicket.metrics.families import BY_NAME
from thicket.metrics.machine import Interface, Machine
from thicket.metrics.text import Numbers

PROTOCOL = "802.11s"
METRIC = "airtime"
#: Rates in kbit/s that are older than 802.11n (IEEE 802.11-2020, 15.2, 16.2, 17.3).
_OLD_RATES = {
    1000, 2000, 5500, 11000, 6000, 9000, 12000, 18000, 24000, 36000, 48000, 54000,
}  # fmt: skip


def graph(views: Mapping[str, Numbers], version: str) -> dict[str, Any]:
    """Return a ``NetworkGraph``: who is a peer of whom, at which airtime metric.

    A link has a direction: it is told by its source.

    :param views: the numbers of nodes by the nodes' names.
    :param version: of Thicket, on the node that makes the graph.
    """
    nodes: dict[str, dict[str, Any]] = {}
    ids: dict[str, str] = {}  # of the nodes whose numbers are known, by MAC address
    own: dict[str, str] = {}
    for name, numbers in views.items():
        told = _labels(numbers, "thicket_node")
        mac = _labels(numbers, "thicket_radio").get("mac", "")
        address = told.get("address") or name.partition("@")[2] or name
        own[name] = address
        if mac:
            ids[mac] = address
        nodes[address] = _node(address, told.get("hostname") or name, mac, {
            "name": name, "version": told.get("version", ""),
        })  # fmt: skip
    links: dict[tuple[str, str], dict[str, Any]] = {}
    for name, numbers in views.items():
        for (mac, address), metric in numbers.get("thicket_peer_airtime_metric", {}).items():
            if not numbers.get("thicket_peer_up", {}).get((mac, address)):
                continue
            target = ids.get(mac) or address or mac
            if target not in nodes:
                nodes[target] = _node(target, target, mac, {})
            if target != own[name]:
                links[own[name], target] = _link(own[name], target, metric, {
                    "signal_dbm": numbers.get("thicket_peer_signal_dbm", {}).get((mac, address)),
                })  # fmt: skip
    return {
        "type": "NetworkGraph",
        "protocol": PROTOCOL,
        "version": version,
        "revision": version,
        "metric": METRIC,
        "nodes": list(nodes.values()),
        "links": list(links.values()),
    }


def _labels(numbers: Numbers, family: str) -> dict[str, str]:
    """Return the labels of a family's only sample."""
    values = next(iter(numbers.get(family, {})), ())
    return dict(zip(BY_NAME[family].labels, values, strict=False))


def _node(ident: str, label: str, mac: str, properties: dict[str, Any]) -> dict[str, Any]:
    others = [mac] if mac and mac != ident else []
    return {"id": ident, "label": label, "local_addresses": others, "properties": properties}


def _link(source: str, target: str, cost: float, properties: dict[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in properties.items() if value is not None}
    text = f"{cost * 10.24 / 1000:.3f} ms"
    return {"source": source, "target": target, "cost": cost, "cost_text": text,
            "properties": known}  # fmt: skip


def monitoring(document: dict[str, Any], machine: Machine) -> dict[str, Any]:
    """Return a ``DeviceMonitoring``, as OpenWISP takes it.

    :param document: the status document (docs/node.md).
    """
    return {
        "type": "DeviceMonitoring",
        "general": {
            "hostname": document["hostname"],
            "local_time": int(machine.time),
            "uptime": int(document["uptime"]),
        },
        "resources": _resources(machine),
        "interfaces": [_interface(one, document) for one in machine.interfaces],
    }


def _resources(machine: Machine) -> dict[str, Any]:
    found: dict[str, Any] = {"cpus": machine.cpus}
    if machine.load is not None:
        found["load"] = list(machine.load)
    memory = {
        name: machine.memory[known]
        for name, known in (
            ("total", "MemTotal"), ("free", "MemFree"), ("available", "MemAvailable"),
            ("buffered", "Buffers"), ("cached", "Cached"), ("shared", "Shmem"),
        )
        if known in machine.memory
    }  # fmt: skip
    if {"total", "free", "buffered", "shared"} <= memory.keys():
        found["memory"] = memory
    if machine.data is not None:
        size, free, available = machine.data
        used = size - free
        found["disk"] = [
            {
                "mount_point": "/data", "filesystem": "data", "size_bytes": size,
                "used_bytes": used, "available_bytes": available,
                "used_percent": round(100 * used / size) if size else 0,
            }
        ]  # fmt: skip
    return found


def _interface(one: Interface, document: dict[str, Any]) -> dict[str, Any]:
    radio = document["radio"]
    ours = one.name == radio.get("interface")
    found: dict[str, Any] = {
        "name": one.name,
        "type": "wireless" if ours else "ethernet",
        "up": one.up,
        "mac": one.mac,
        "statistics": one.statistics,
    }
    if one.mtu is not None:
        found["mtu"] = one.mtu
    if ours and radio.get("frequency"):
        found["wireless"] = _wireless(radio, document["peers"])
    return found


def _wireless(radio: dict[str, Any], peers: list[dict[str, Any]]) -> dict[str, Any]:
    from thicket.radio.channels import channel_number

    return {
        "mode": "802.11s",
        "ssid": radio["mesh_id"],
        "frequency": radio["frequency"],
        "channel": channel_number(radio["frequency"]) or 0,
        "country": radio.get("country") or "00",
        # They are not known; OpenWISP wants a number, and its own agent tells this one then.
        "noise": 0,
        "tx_power": 0,
        "clients": [_client(peer, radio) for peer in peers if peer["state"] == "ESTAB"],
    }


def _client(peer: dict[str, Any], radio: dict[str, Any]) -> dict[str, Any]:
    rates = {rate for rate in (peer["tx_kbps"], peer["rx_kbps"]) if rate}
    found = {
        "mac": peer["mac"],
        "assoc": True,
        "auth": True,
        "authorized": bool(peer["authorized"]),
        "mfp": bool(peer["mfp"]),
        # told by the rates in use, as the kernel's table of stations says no more
        "ht": not rates <= _OLD_RATES,
        "vht": not rates <= _OLD_RATES and radio["width"] == 80,
        "wmm": True,  # as every station of a mesh (IEEE 802.11-2020, 4.3.21)
    }
    if peer["signal_dbm"] is not None:
        found["signal"] = peer["signal_dbm"]
    if peer["tx_kbps"] is not None:
        found["bitrate"] = peer["tx_kbps"]
    return found
