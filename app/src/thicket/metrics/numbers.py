# SPDX-License-Identifier: Apache-2.0
"""The numbers of one node: the status document and the kernel's facts, as samples.

A function of facts: the daemon and the command ``thicket metrics`` make the same of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from thicket.metrics.families import BY_NAME
from thicket.metrics.machine import Machine
from thicket.metrics.text import Numbers, label_value

#: Most samples of a family. A node has at most 99 peers, and few of what else is told one by one;
#: paths are as many as the mesh has nodes.
MOST = 256

STATES = ("starting", "joining", "joined", "degraded")
#: States of other nodes that are counted.
_MEMBERS = ("up", "connecting", "heard")
_COUNTERS = (
    "attempts", "connected", "accepted", "simultaneous", "abandoned", "ended", "links",
    "roster_dropped",
)  # fmt: skip
_CASTS = ("sent", "passed", "delivered", "lost", "dropped")
#: Counters of an interface: how the kernel calls them, and what they are here.
_INTERFACE = {
    f"{way}_{what}": f"thicket_interface_{word}_{what}"
    for way, word in (("rx", "receive"), ("tx", "transmit"))
    for what in ("bytes", "packets", "errors", "dropped")
}


class _Numbers:
    """Collects samples; what is not known, or beyond MOST, is left out."""

    def __init__(self) -> None:
        self.found: Numbers = {}
        self.omitted = 0

    def add(self, name: str, value: object, *labels: object) -> None:
        """Add a sample, unless the value is None."""
        if not isinstance(value, int | float):
            return
        assert len(BY_NAME[name].labels) == len(labels), name
        samples = self.found.setdefault(name, {})
        if len(samples) < MOST:
            samples[tuple(map(_word, labels))] = +value
        else:
            self.omitted += 1

    def by_reason(self, name: str, counts: dict[str, int]) -> None:
        """Add a sample for each reason."""
        for reason, count in sorted(counts.items()):
            self.add(name, count, reason)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else label_value(str(value))


def numbers(document: dict[str, Any], machine: Machine) -> Numbers:
    """Return the samples of a node.

    :param document: the status document (docs/node.md).
    """
    found = _Numbers()
    _add_node(found, document, machine)
    _add_machine(found, document, machine)
    _add_radio(found, document["radio"], document["peers"], document["paths"])
    _add_discovery(found, document["discovery"], document["dns_sd"])
    _add_cluster(found, document["cluster"])
    _add_trust(found, document["trust"], document["passphrase"])
    _add_time(found, document.get("time"))
    _add_gateway(found, document.get("gateway"))
    found.add("thicket_firewall_on", document["firewall"]["state"] == "on")
    found.by_reason("thicket_firewall_dropped_packets", document["firewall"]["dropped"])
    _add_software(found, document)
    served = document.get("metrics")
    if served is not None:
        found.add("thicket_metrics_requests", served["requests"])
        found.by_reason("thicket_metrics_refused", served["refused"])
    forwarded = document.get("syslog")
    if forwarded is not None:
        for name in ("connected", "sent", "lost", "waiting"):
            found.add(f"thicket_syslog_{name}", forwarded[name])
    found.add("thicket_metrics_omitted", found.omitted)
    return found.found


def _add_node(found: _Numbers, document: dict[str, Any], machine: Machine) -> None:
    identity = document["identity"] or {}
    found.add(
        "thicket_node", 1, document["cluster"]["node"], document["hostname"], document["address"],
        identity.get("source"), document["version"], document["slot"],
    )  # fmt: skip
    for state in STATES:
        found.add("thicket_state", document["state"] == state, state)
    found.add("thicket_uptime_seconds", document["uptime"])
    found.add("thicket_time_seconds", round(machine.time, 3))
    # Where another program sets the clock (time.enabled), the kernel tells.
    found.add("thicket_time_known", machine.synchronised)
    for milestone, seconds in document["times"].items():
        found.add("thicket_milestone_seconds", seconds, milestone)
    problems = document["problems"]
    for severity in ("error", "warning"):
        count = sum(problem["severity"] == severity for problem in problems)
        found.add("thicket_problems", count, severity)
    kinds = ((p["part"], p["code"], p["severity"]) for p in problems)
    for (part, code, severity), count in sorted(_counted(kinds).items()):
        found.add("thicket_problem", count, part, code, severity)
    last = document["last_restart"]
    if last is not None:
        found.add("thicket_starts", last["run"])
        found.add("thicket_last_restart", 1, last["reason"])
    last_good = document["configuration"]["last_good_used"]
    found.add("thicket_configuration_last_good", bool(last_good))
    found.add("thicket_daemon_restarts", document["restarts"])
    found.add("thicket_daemon_cpu_seconds", document["cpu_seconds"])
    found.add("thicket_daemon_resident_memory_bytes", document["memory_kib"] * 1024)


def _add_time(found: _Numbers, told: dict[str, Any] | None) -> None:
    if told is None:
        return
    found.add("thicket_time", 1, told["state"], told.get("by"))
    for name, key in (("offset_seconds", "offset"), ("error_seconds", "error"),
                      ("stratum", "stratum")):  # fmt: skip
        found.add(f"thicket_time_{name}", told.get(key))
    states = _counted(source["state"] for source in told.get("sources", ()))
    for state, count in sorted(states.items()):
        found.add("thicket_time_sources", count, state)


def _counted(things: Iterable[Any]) -> dict[Any, int]:
    counts: dict[Any, int] = {}
    for thing in things:
        counts[thing] = counts.get(thing, 0) + 1
    return counts


def _add_machine(found: _Numbers, document: dict[str, Any], machine: Machine) -> None:
    for name, load in zip(("load1", "load5", "load15"), machine.load or (), strict=False):
        found.add(f"thicket_{name}", load)
    found.add("thicket_cpus", machine.cpus)
    for mode, seconds in machine.cpu.items():
        found.add("thicket_cpu_seconds", seconds, mode)
    for name, known in (("size", "MemTotal"), ("available", "MemAvailable"), ("free", "MemFree")):
        found.add(f"thicket_memory_{name}_bytes", machine.memory.get(known))
    found.add("thicket_data", 1, document["data"]["state"])
    if machine.data is not None:
        found.add("thicket_data_size_bytes", machine.data[0])
        found.add("thicket_data_available_bytes", machine.data[2])
    found.add("thicket_data_errors", machine.data_errors)
    for device, card in machine.cards.items():
        found.add("thicket_card_worn_ratio", card.worn, device)
        found.add("thicket_card_reserve", card.reserve, device)
    for zone, degrees in machine.temperatures.items():
        found.add("thicket_temperature_celsius", degrees, zone)
    found.add("thicket_undervoltage", machine.undervoltage)
    for interface in machine.interfaces:
        found.add("thicket_interface_up", interface.up, interface.name)
        for counter, value in interface.statistics.items():
            found.add(_INTERFACE[counter], value, interface.name)


def _add_radio(
    found: _Numbers,
    radio: dict[str, Any],
    peers: list[dict[str, Any]],
    paths: list[dict[str, Any]],
) -> None:
    told = (radio.get(key) for key in ("state", "driver", "mac", "mesh_id", "security"))
    found.add("thicket_radio", 1, *told)
    found.add("thicket_radio_joined", radio["state"] == "joined")
    found.add("thicket_radio_frequency_hertz", _times(radio.get("frequency"), 1_000_000))
    found.add("thicket_radio_width_hertz", _times(radio.get("width"), 1_000_000))
    found.add("thicket_radio_other_stations", len(radio.get("others") or ()))
    found.add("thicket_peers", sum(peer["state"] == "ESTAB" for peer in peers))
    for peer in sorted(peers, key=lambda one: (one["state"] != "ESTAB", one["mac"])):
        labels = (peer["mac"], peer.get("address"))
        found.add("thicket_peer_up", peer["state"] == "ESTAB", *labels)
        for name, value in (
            ("signal_dbm", peer.get("signal_dbm")),
            ("airtime_metric", peer.get("metric")),
            ("inactive_seconds", _times(peer.get("inactive_ms"), 0.001)),
            ("connected_seconds", peer.get("connected_s")),
            ("receive_bits_per_second", _times(peer.get("rx_kbps"), 1000)),
            ("transmit_bits_per_second", _times(peer.get("tx_kbps"), 1000)),
            ("receive_bytes", peer.get("rx_bytes")),
            ("transmit_bytes", peer.get("tx_bytes")),
            ("transmit_failed", peer.get("tx_failed")),
            ("authorized", peer.get("authorized")),
            ("management_protected", peer.get("mfp")),
        ):
            found.add(f"thicket_peer_{name}", value, *labels)
    found.add("thicket_paths", len(paths))
    for path in sorted(paths, key=lambda one: str(one["destination"])):
        if path["next_hop"] == "00:00:00:00:00:00":
            continue  # it is being looked for; its numbers mean nothing
        labels = (path["destination"], path.get("address"))
        found.add("thicket_path_hops", path.get("hops"), *labels)
        found.add("thicket_path_airtime_metric", path.get("metric"), *labels)


def _add_gateway(found: _Numbers, told: dict[str, Any] | None) -> None:
    if told is None:
        return
    for one in told["known"]:
        for way in one["ways"]:
            found.add("thicket_gateway_offered", 1, one["node"], way)
    for way, node in told["uses"].items():
        found.add("thicket_gateway_used", node is not None, way)
    if (uplink := told["uplink"]) is not None:
        found.add("thicket_uplink_good", uplink["state"] == "good", uplink["interface"])
        for asked, answers in uplink["checks"].items():
            found.add("thicket_uplink_check", answers, asked)


def _times(value: float | None, factor: float) -> float | None:
    """Return a value in another unit, to the thousandth."""
    if value is None:
        return None
    return value * factor if isinstance(factor, int) else round(value * factor, 3)


def _add_discovery(
    found: _Numbers, discovery: dict[str, Any] | None, dns_sd: dict[str, Any] | None
) -> None:
    if discovery is not None:
        for name in ("sent", "received", "repeated", "send_errors"):
            found.add(f"thicket_beacons_{name}", discovery[name])
        found.by_reason("thicket_beacons_dropped", discovery["dropped"])
        signed = discovery["forms"].get("signed")
        if signed is not None:
            found.add("thicket_beacon_signatures_checked", signed["signatures_checked"])
        found.add("thicket_nodes_heard", len(discovery["heard"]))
    if dns_sd is not None:
        found.add("thicket_dns_sd_services", dns_sd["services"])
        found.by_reason("thicket_dns_sd_dropped", dns_sd["dropped"])


def _add_cluster(found: _Numbers, cluster: dict[str, Any]) -> None:
    found.add("thicket_cluster", 1, cluster["security"])
    nodes = cluster["nodes"]
    for state in _MEMBERS:
        found.add("thicket_cluster_nodes", sum(one["state"] == state for one in nodes), state)
    direct = sum(one["state"] == "up" and one.get("direct", True) for one in nodes)
    found.add("thicket_cluster_direct", direct)
    errors = (one["error"] for one in nodes if one.get("error"))
    found.by_reason("thicket_cluster_unconnected", _counted(errors))
    found.by_reason("thicket_cluster_refused", cluster["refused"])
    counters = cluster["counters"]
    for name in _COUNTERS:
        found.add(f"thicket_cluster_{name}", counters.get(name))
    for name in _CASTS:
        found.add(f"thicket_casts_{name}", counters.get(f"casts_{name}"))


def _add_trust(
    found: _Numbers, trust: dict[str, Any] | None, passphrase: dict[str, Any] | None
) -> None:
    if trust is not None:
        found.add("thicket_trust", 1, trust["state"], trust["fleet"], trust["device"])
        found.add("thicket_trust_ready", trust["state"] == "ready")
        if trust["until"] is not None:
            until = datetime.fromisoformat(trust["until"]).timestamp()
            found.add("thicket_certificate_expiry_timestamp_seconds", until)
        if trust["revocations"] is not None:
            found.add("thicket_revocations_number", trust["revocations"]["number"])
            found.add("thicket_revoked_names", trust["revocations"]["names"])
    if passphrase is not None:
        found.add("thicket_passphrase_changes_refused", passphrase["refused"])


def _add_software(found: _Numbers, document: dict[str, Any]) -> None:
    for slot in document["slots"]:
        told = (slot.get(key) for key in ("name", "state", "version", "runs", "trial"))
        found.add("thicket_slot", 1, *told)
    for update in document["updates"]:
        subject = update["subject"]
        found.add("thicket_update", 1, subject, update["version"], update["state"])
        found.add("thicket_update_progress_ratio", _times(update["percent"], 0.01), subject)
    installation = document["installation"]
    if installation is not None:
        found.add("thicket_installation", 1, installation["state"], installation["version"])
        ratio = _times(installation["percent"], 0.01)
        found.add("thicket_installation_progress_ratio", ratio)
    for application in document["applications"]:
        name = application["name"]
        found.add("thicket_application_running", application["state"] == "running", name)
        found.add("thicket_application_starts", application["starts"], name)
    for one in document["installed"]:
        found.add("thicket_installed", 1, one["name"], one["version"], one["trial"])
