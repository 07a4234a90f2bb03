# SPDX-License-Identifier: Apache-2.0
"""``thicket status``, ``peers``, ``nodes`` and ``ping``: the answers of a node, for people."""

from __future__ import annotations

import json
import time
from typing import Any

from thicket.cli.common import BAD, OK, UsageError, control_socket
from thicket.control.client import ClientError, request

#: What stands in front of words below a row, and the characters that a line of them has at least.
_INDENT = "    "
_LEAST = 16


def show(what: str, rest: list[str]) -> int:
    if any(word != "--json" for word in rest):
        raise UsageError(f"{what} takes only --json")
    answer = request(control_socket(), what, {}, timeout=_SECONDS.get(what, 10.0))
    if rest:
        print(json.dumps(answer, indent=2))
    else:
        print(_TEXTS[what](answer))
    if what != "status":
        return OK
    errors = any(problem["severity"] == "error" for problem in answer["problems"])
    return OK if answer["state"] == "joined" and not errors else BAD


def table(heads: list[str], rows: list[list[str]], right: str = "") -> str:
    """Return a table with aligned columns, two blanks apart.

    :param right: an ``r`` for each column of numbers, a blank for the others.
    """
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [
            cell.rjust(width) if right[i : i + 1] == "r" else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def folded(heads: list[str], rows: list[list[str]], width: int | None) -> str:
    """Return a table with words in its last column, for a terminal: where a line would be longer
    than that is wide, words stand below their row.

    :param width: columns of the terminal; None where it is none.
    """
    whole = table(heads, rows)
    if width is None or max(map(len, whole.split("\n"))) <= width:
        return whole
    from textwrap import wrap

    first, *lines = table(heads[:-1], [row[:-1] for row in rows]).split("\n")
    found = [first]
    for line, row in zip(lines, rows, strict=True):
        words = wrap(row[-1], max(width - len(_INDENT), _LEAST), break_on_hyphens=False)
        found += [line, *(_INDENT + one for one in words)]
    return "\n".join(found)


def duration(seconds: float) -> str:
    """Return a length of time in its two largest units."""
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _number(value: float | None, form: str = "{:.0f}") -> str:
    return "-" if value is None else form.format(value)


def fleet_text(trust: dict[str, Any] | None) -> str:
    """Return the node's fleet, and its name there, in one line."""
    if trust is None or trust["state"] == "starting":
        return "not known yet"
    if trust["fleet"] is None:
        return "none"
    if trust["device"] is None:
        return f"{trust['fleet']}, but this node cannot prove that it belongs to it"
    kind = "without a chip" if trust["software"] else "by its chip"
    words = f"{trust['fleet']}, as {trust['device']} ({kind}), until {trust['until'][:10]}"
    if trust["revocations"] is not None and trust["revocations"]["names"]:
        words += f"; {trust['revocations']['names']} revoked"
    return words


def status_text(doc: dict[str, Any]) -> str:
    """Return the status, problems first."""
    lines: list[str] = []
    now = doc["uptime"]
    for problem in doc["problems"]:
        since = duration(max(0.0, now - problem["since"]))
        mark = "PROBLEM" if problem["severity"] == "error" else "Warning"
        lines.append(f"{mark}: {problem['part']}: {problem['message']} (for {since})")
    if lines:
        lines.append("")
    identity = doc["identity"]
    if identity is None:
        who = "not known yet"
    elif identity["source"] == "chip":
        chip = identity["chip"] or {}
        model = chip.get("model", "chip") if isinstance(chip, dict) else str(chip)
        who = f"{model}, serial number {identity['serial']}"
    else:
        who = f"software identity {identity['id']} from {identity['source']}, not from a chip"
    radio = doc["radio"]
    label = f", {doc['label']}" if doc.get("label") else ""
    facts = [
        ("Node", (doc["cluster"]["node"] or doc["hostname"] or "-") + label),
        ("State", f"{doc['state']}, up for {duration(now)}"),
        ("Host name", doc["hostname"] or "-"),
        ("Identity", who),
        ("Address", f"{doc['address']}/{doc['prefix_length']}" if doc["address"] else "-"),
        ("Radio", radio_text(radio)),
    ]
    if radio.get("others"):
        facts.append(("Other meshes", others_text(radio["others"])))
    established = [peer for peer in doc["peers"] if peer["state"] == "ESTAB"]
    signals = [p["signal_dbm"] for p in established if p.get("signal_dbm") is not None]
    best = f", signal {min(signals)} to {max(signals)} dBm" if signals else ""
    facts.append(("Peers", f"{len(established)}{best}"))
    up = [node for node in doc["cluster"]["nodes"] if node["state"] == "up"]
    waiting = sum(node["state"] == "connecting" for node in doc["cluster"]["nodes"])
    more = f", {waiting} being connected" if waiting else ""
    alone = ", PROTECTED BY ITS COOKIE ALONE" if doc["cluster"]["security"] == "cookie" else ""
    others = f"{len(up)} other node{'' if len(up) == 1 else 's'}{more}"
    refused = sum(doc["cluster"]["refused"].values())
    turned_away = f", {refused} attempt{'' if refused == 1 else 's'} refused" if refused else ""
    facts.append(("Cluster", others + turned_away + alone))
    facts.append(("Fleet", fleet_text(doc["trust"])))
    if (told := doc.get("time")) is not None:
        from thicket.cli.time import time_text

        facts.append(("Time", time_text(told)))
    if (ways := doc.get("gateway")) is not None:
        facts.append(("Gateway", gateway_text(ways)))
    facts.append(("Firewall", firewall_text(doc["firewall"])))
    data, last = doc["data"], doc["last_restart"]
    facts.append(("Data", data["state"] + (f": {data['message']}" if data["message"] else "")))
    if doc["slots"]:
        facts.append(("Slots", ", ".join(slot_text(slot) for slot in doc["slots"])))
    facts += [("Update", update_text(one)) for one in doc.get("updates", [])]
    if last is not None:
        facts.append(("Last restart", f"{last['words']} (this is start {last['run']})"))
    if (reset := doc.get("factory_reset")) is not None:
        facts.append(("Last reset", f"{reset['at']}, {reset['words']}"))
    times = doc["times"]
    reached = [
        f"{label} {times[name]:.1f} s"
        for name, label in (
            ("daemon", "daemon"),
            ("identity", "identity"),
            ("radio", "mesh"),
            ("first_peer", "first peer"),
            ("first_node", "first node"),
        )
        if times.get(name) is not None
    ]
    facts.append(("Since power-on", ", ".join(reached) or "-"))
    again = doc.get("restarts", 0)
    restarts = f", started again {again} time{'' if again == 1 else 's'}" if again else ""
    used = f"{doc['memory_kib'] / 1024:.1f} MiB, {doc['cpu_seconds']:.1f} s of CPU{restarts}"
    slot = f", slot {doc['slot']}" if doc["slot"] else ""
    facts.append(("Daemon", f"{doc['version']}{slot}, {used}"))
    width = max(len(name) for name, _ in facts)
    lines += [f"{name + ':':<{width + 1}} {value}" for name, value in facts]
    return "\n".join(lines)


def gateway_text(ways: dict[str, Any]) -> str:
    """Return the ways out of the mesh in one line: the own one, and those that are taken."""
    words, kinds = [], {"ipv6": "IPv6", "ipv4": "IPv4 (NAT64)"}
    if (uplink := ways["uplink"]) is not None:
        good = [name for way, name in (("ipv6", "IPv6"), ("ipv4", "IPv4")) if uplink[way]["good"]]
        prefix = f" {uplink['ipv6']['has']}" if uplink["ipv6"]["good"] else ""
        more = " with NAT64" if uplink["nat64"] else ""
        what = f"{' and '.join(good)}{more}{prefix}" if good else "leads nowhere"
        words.append(f"this node, by {uplink['interface']}: {what}")
    taken: dict[str, list[str]] = {}
    for way, node in ways["uses"].items():
        if node is not None:
            taken.setdefault(node, []).append(kinds[way])
    words += [f"{' and '.join(names)} by {node}" for node, names in taken.items()]
    if not taken and uplink is None:
        words.append("none")
    return "; ".join(words)


def slot_text(slot: dict[str, Any]) -> str:
    """Return what is known of a slot in a few words."""
    words = [slot["state"]]
    if slot["runs"]:
        words.append("runs")
    if slot["trial"]:
        words.append("on trial" if slot["runs"] else "to be tried")
    return f"{slot['name']} {' and '.join(words)}"


def update_text(update: dict[str, Any]) -> str:
    """Return what this node does about an offer in one line."""
    name = update["subject"].partition("/")[2]
    percent = f" {update['percent']} %" if update["percent"] is not None else ""
    why = f", {update['why']}" if update["why"] else ""
    more = "" if (update["state"], percent) == ("done", " 100 %") else "; `thicket update status`"
    return f"{name} {update['version']}: {update['state']}{percent}{why}{more}"


def firewall_text(firewall: dict[str, Any]) -> str:
    """Return the firewall in one line: state and dropped packets, most frequent first."""
    dropped = sorted(firewall["dropped"].items(), key=lambda item: -item[1])
    if not dropped:
        return str(firewall["state"])
    reasons = ", ".join(f"{reason} {number}" for reason, number in dropped)
    return f"{firewall['state']}, packets dropped: {reasons}"


def radio_text(radio: dict[str, Any]) -> str:
    """Return the radio in one line."""
    parts = [radio["state"]]
    if radio.get("mesh_id"):
        parts.append(f'mesh "{radio["mesh_id"]}"')
        parts.append(str(radio.get("protection") or radio.get("security", "?")))
    if radio.get("frequency"):
        wide = radio.get("width", 20)
        parts.append(f"{radio['frequency']} MHz" + (f" ({wide} MHz wide)" if wide > 20 else ""))
    if radio.get("mac"):
        parts.append(str(radio["mac"]))
    return ", ".join(parts)


def others_text(others: list[dict[str, Any]]) -> str:
    """Return the other meshes on the channel in one line."""
    meshes = sorted({(one["name"], one["security"]) for one in others})
    return "on this channel " + ", ".join(f'"{name}" ({security})' for name, security in meshes)


def link_text(peer: dict[str, Any], radio: dict[str, Any]) -> str:
    """Return the protection of a link to a peer, in a word."""
    if radio.get("security") != "sae":
        return "open"
    if not peer.get("authorized"):
        return "not let in"
    return "encrypted" if peer.get("mfp") else "half encrypted"


def peers_text(doc: dict[str, Any]) -> str:
    """Return the peers and paths."""
    if not doc["peers"]:
        return f"No peers. Radio: {radio_text(doc['radio'])}."
    rows = [
        [
            peer["mac"],
            peer.get("address") or "-",
            peer["state"],
            link_text(peer, doc["radio"]),
            _number(peer.get("signal_dbm")),
            _number(peer.get("metric")),
            _number(peer.get("tx_kbps"), "{:.0f}"),
            _number(peer.get("inactive_ms")),
            _number(peer.get("rx_bytes")),
            _number(peer.get("tx_bytes")),
        ]
        for peer in doc["peers"]
    ]
    heads = ["PEER", "ADDRESS", "STATE", "LINK", "DBM", "METRIC", "KBIT/S", "IDLE MS", "RX", "TX"]
    text = table(heads, rows, "    rrrrrr")
    if doc["paths"]:
        rows = [
            [path["destination"], "being looked for", "-", "-"]
            # an entry of a path that the kernel is looking for; its numbers mean nothing
            if path["next_hop"] == "00:00:00:00:00:00"
            else [
                path["destination"],
                path["next_hop"],
                _number(path.get("hops")),
                _number(path.get("metric")),
            ]
            for path in doc["paths"]
        ]
        text += "\n\n" + table(["DESTINATION", "NEXT HOP", "HOPS", "METRIC"], rows, "  rr")
    return text


def scan_text(doc: dict[str, Any]) -> str:
    """Return who was heard in a scan, the strongest first."""
    if not doc["heard"]:
        return "Nobody was heard."
    rows = [
        [
            _number(one["signal_dbm"]),
            channel_of(one["frequency"]),
            one["kind"] + (f", {one['peers']} peers" if one["peers"] is not None else ""),
            one["name"] or "(hidden)",
            one["security"],
            one["mac"],
            heard_text(one, doc["radio"]),
        ]
        for one in doc["heard"]
    ]
    heads = ["DBM", "CHANNEL", "KIND", "NAME", "SECURITY", "ADDRESS", ""]
    return table(heads, rows, "rr")


def channel_of(mhz: int) -> str:
    """Return the channel at a frequency."""
    from thicket.radio.channels import channel_number

    channel = channel_number(mhz)
    return f"{mhz} MHz" if channel is None else str(channel)


def heard_text(one: dict[str, Any], radio: dict[str, Any]) -> str:
    """Return what one who was heard is to this node, in a few words."""
    if one["peer"]:
        return "peer"
    if one["kind"] != "mesh" or one["name"] != radio.get("mesh_id"):
        return ""
    if one["security"] != radio.get("security"):
        return f"our mesh, but {one['security']} and not {radio.get('security')}"
    same = one["frequency"] == radio.get("frequency")
    return "our mesh, no peer" if same else "our mesh, on another channel"


def nodes_text(doc: dict[str, Any]) -> str:
    """Return the nodes of the cluster."""
    own, nodes = doc["cluster"]["node"], doc["cluster"]["nodes"]
    if own is None:
        return f"The node is not in a cluster yet ({doc['state']})."
    if not nodes:
        heard = len(doc["discovery"]["heard"]) if doc["discovery"] else 0
        return f"{own} is alone; nodes heard: {heard}."
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    rows = [[own, "this node", "-", ""]]
    for node in nodes:
        since = "-" if node.get("since") is None else duration(max(0.0, now - node["since"]))
        far = "by way of others" if node["state"] == "up" and not node.get("direct", True) else ""
        rows.append([node["name"], node["state"], since, node.get("message", far)])
    return table(["NODE", "STATE", "SINCE", ""], rows)


def ping(rest: list[str]) -> int:
    count = 1
    if "-c" in rest:
        at = rest.index("-c")
        try:
            count = int(rest[at + 1])
        except (IndexError, ValueError):
            raise UsageError("-c needs a number") from None
        if not 1 <= count <= 10000:
            raise UsageError("-c takes 1 to 10000")
        rest = rest[:at] + rest[at + 2 :]
    if len(rest) != 1 or rest[0].startswith("-"):
        raise UsageError("ping needs one NODE")
    failed = 0
    for number in range(count):
        if number:
            time.sleep(1.0)
        try:
            answer = request(control_socket(), "ping", {"node": rest[0]}, timeout=20.0)
        except ClientError as e:
            if e.code in {"unreachable", "unknown-node", "ambiguous", "not-joined"}:
                raise
            print(f"pang: {e}", flush=True)
            failed += 1
        else:
            print(f"pong from {answer['node']} in {answer['milliseconds']:.1f} ms", flush=True)
    return BAD if failed else OK


#: How an answer is shown, and how long it may take where that is more than 10 s.
_TEXTS = {"status": status_text, "peers": peers_text, "nodes": nodes_text, "scan": scan_text}
_SECONDS = {"scan": 120.0}
