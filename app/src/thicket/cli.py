# SPDX-License-Identifier: Apache-2.0
"""The ``thicket`` command: what a person asks of a node.

It starts fast (the nodes of a simulated fleet are slow): a handful of imports, the command line
parsed by hand, everything else imported where it is needed.

Exit status: 0 all is well; 1 the answer is bad news (not joined, a problem of severity "error", no
pong, a configuration with faults, a change that was not made); 2 the command line is wrong; 3 the
daemon cannot be reached.
"""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

import thicket
from thicket.client import ClientError, request
from thicket.visible import visible_output

if TYPE_CHECKING:
    from thicket.config import Paths

HELP: Final = """\
usage: thicket COMMAND

What the node does:
  status [--json]          state, problems, address, radio and cluster in short
  peers [--json]           stations with a mesh link to this node, and mesh paths
  nodes [--json]           nodes of the cluster, connected or being connected
  ping NODE [-c COUNT]     ask another node for an answer; NODE is a name, an
                           address, a host name or its last digits

What other nodes do and say (docs/cluster.md; VALUE is JSON, :name for an atom, or text):
  call NODE MODULE.FUNCTION [VALUE...] [--timeout SECONDS] [--json]
                           call a function that a node exports
  publish GROUP VALUE      send a message to the members of a group, on all nodes
  monitor [GROUP] [--json] show nodes that come and go, or messages to a group,
                           until Ctrl-C

Configuration (docs/configuration.md lists the keys):
  config show              what is in force, secrets masked
  config check FILE        check a file ("-" is standard input); nothing is changed
  config apply FILE        check a file, make it the device's, and follow it at once
  config set KEY=VALUE...  change keys (section.key) in the device's file likewise;
                           KEY alone reads the value from standard input
  config unset KEY...      go back to the default of keys
  config default           print the file with all keys and their defaults
  reload                   read the configuration file again
  revocations import FILE  take a list of who is out of the fleet ("-" is standard
                           input); it spreads to all nodes from here
  revocations export       write the lists in force to standard output

The mesh's passphrase, on all nodes at once (docs/radio.md):
  passphrase roll          hand a new one, typed or from standard input, to every
                           node; change to it when all have it (--generate makes one,
                           --accept-missing does without nodes that are away)
  passphrase finish        change to the one that was handed out
  passphrase cancel        drop it
  passphrase import FILE   take a change that the fleet's authority has signed; in a
                           fleet there are no others (ca passphrase)

On the engineer's machine:
  ca help                  the fleet's certificate authority (docs/provisioning.md)

  version                  print the version
  help                     print this text

exit status: 0 well, 1 bad news, 2 wrong usage, 3 daemon not reachable
"""

OK, BAD, USAGE, UNREACHABLE = 0, 1, 2, 3


class UsageError(Exception):
    """The command line is wrong."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    with visible_output():
        return _main(words)


def _main(words: list[str]) -> int:
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except UsageError as e:
        sys.stderr.write(f"thicket: {e}\nTry `thicket help`.\n")
        return USAGE
    except ClientError as e:
        sys.stderr.write(f"thicket: {e}\n")
        return UNREACHABLE if e.code == "unreachable" else BAD
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # the reader (head, a closed pager) has seen enough; keep the interpreter from complaining
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _run(words: list[str]) -> int:
    if not words:
        raise UsageError("no command")
    command, rest = words[0], words[1:]
    if command in {"help", "-h", "--help"}:
        sys.stdout.write(HELP)
        return OK
    if command in {"version", "--version", "-V"}:
        print(f"thicket {thicket.__version__}")
        return OK
    if command in {"status", "peers", "nodes"}:
        return _show(command, rest)
    if command == "ping":
        return _ping(rest)
    if command in {"call", "publish", "monitor"}:
        from thicket.cli_cluster import run  # noqa: PLC0415

        return run(command, rest, _control())
    if command == "reload":
        if rest:
            raise UsageError("reload takes no arguments")
        return _tell_reload(request(_control(), "reload", {}, timeout=30.0))
    if command == "config":
        return _config(rest)
    if command == "revocations":
        return _revocations(rest)
    if command == "passphrase":
        from thicket.cli_passphrase import run as passphrase  # noqa: PLC0415

        return passphrase(rest, _control())
    if command == "ca":
        from thicket.trust.command import main as authority  # noqa: PLC0415

        return authority(rest)
    raise UsageError(f"unknown command {command!r}")


def _control() -> str:
    # as thicket.config.Paths has it, without importing that module for the common commands
    return os.environ.get("THICKET_ROOT", "").rstrip("/") + "/run/thicket/control.sock"


# -- status, peers, nodes


def _show(what: str, rest: list[str]) -> int:
    if any(word != "--json" for word in rest):
        raise UsageError(f"{what} takes only --json")
    answer = request(_control(), what, {})
    if rest:
        print(json.dumps(answer, indent=2))
    else:
        print({"status": status_text, "peers": peers_text, "nodes": nodes_text}[what](answer))
    if what != "status":
        return OK
    errors = any(problem["severity"] == "error" for problem in answer["problems"])
    return OK if answer["state"] == "joined" and not errors else BAD


def table(heads: list[str], rows: list[list[str]], right: str = "") -> str:
    """Aligned columns, two blanks apart. ``right`` has an ``r`` for each column of numbers."""
    widths = [max(len(row[i]) for row in [heads, *rows]) for i in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [
            cell.rjust(width) if right[i : i + 1] == "r" else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """A length of time in the largest two units that matter."""
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
    """The node's place in its fleet, in a line."""
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
    """The status for people: problems first."""
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
    facts = [
        ("Node", doc["cluster"]["node"] or doc["hostname"] or "-"),
        ("State", f"{doc['state']}, up for {duration(now)}"),
        ("Host name", doc["hostname"] or "-"),
        ("Identity", who),
        ("Address", f"{doc['address']}/{doc['prefix_length']}" if doc["address"] else "-"),
        ("Radio", radio_text(radio)),
    ]
    established = [peer for peer in doc["peers"] if peer["state"] == "ESTAB"]
    signals = [p["signal_dbm"] for p in established if p.get("signal_dbm") is not None]
    best = f", signal {min(signals)} to {max(signals)} dBm" if signals else ""
    facts.append(("Peers", f"{len(established)}{best}"))
    up = [node for node in doc["cluster"]["nodes"] if node["state"] == "up"]
    waiting = len(doc["cluster"]["nodes"]) - len(up)
    more = f", {waiting} being connected" if waiting else ""
    alone = ", PROTECTED BY ITS COOKIE ALONE" if doc["cluster"]["security"] == "cookie" else ""
    others = f"{len(up)} other node{'' if len(up) == 1 else 's'}{more}"
    refused = sum(doc["cluster"]["refused"].values())
    turned_away = f", {refused} attempt{'' if refused == 1 else 's'} refused" if refused else ""
    facts.append(("Cluster", others + turned_away + alone))
    facts.append(("Fleet", fleet_text(doc["trust"])))
    facts.append(("Firewall", firewall_text(doc["firewall"])))
    data, last = doc["data"], doc["last_restart"]
    facts.append(("Data", data["state"] + (f": {data['message']}" if data["message"] else "")))
    if last is not None:
        facts.append(("Last restart", f"{last['words']} (this is start {last['run']})"))
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


def firewall_text(firewall: dict[str, Any]) -> str:
    """The firewall in one line, with what it dropped, the most first."""
    dropped = sorted(firewall["dropped"].items(), key=lambda item: -item[1])
    if not dropped:
        return str(firewall["state"])
    reasons = ", ".join(f"{reason} {number}" for reason, number in dropped)
    return f"{firewall['state']}, packets dropped: {reasons}"


def radio_text(radio: dict[str, Any]) -> str:
    """The radio in one line."""
    parts = [radio["state"]]
    if radio.get("mesh_id"):
        parts.append(f'mesh "{radio["mesh_id"]}"')
        parts.append(str(radio.get("protection") or radio.get("security", "?")))
    if radio.get("frequency"):
        parts.append(f"{radio['frequency']} MHz")
    if radio.get("mac"):
        parts.append(str(radio["mac"]))
    return ", ".join(parts)


def link_text(peer: dict[str, Any], radio: dict[str, Any]) -> str:
    """What protects the frames to and from a peer, in a word."""
    if radio.get("security") != "sae":
        return "open"
    if not peer.get("authorized"):
        return "not let in"
    return "encrypted" if peer.get("mfp") else "half encrypted"


def peers_text(doc: dict[str, Any]) -> str:
    """The peers and paths for people."""
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
            # the kernel's entry while it asks for a path; its numbers mean nothing
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


def nodes_text(doc: dict[str, Any]) -> str:
    """The nodes of the cluster for people."""
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
        rows.append([node["name"], node["state"], since, node.get("message", "")])
    return table(["NODE", "STATE", "SINCE", ""], rows)


def _ping(rest: list[str]) -> int:
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
            answer = request(_control(), "ping", {"node": rest[0]}, timeout=20.0)
        except ClientError as e:
            if e.code in {"unreachable", "unknown-node", "ambiguous", "not-joined"}:
                raise
            print(f"pang: {e}", flush=True)
            failed += 1
        else:
            print(f"pong from {answer['node']} in {answer['milliseconds']:.1f} ms", flush=True)
    return BAD if failed else OK


# -- configuration


def _config(rest: list[str]) -> int:
    verbs = "show, check, apply, set, unset or default"
    if not rest:
        raise UsageError(f"config needs {verbs}")
    verb, words = rest[0], rest[1:]
    if verb in {"check", "apply"}:
        if len(words) != 1:
            raise UsageError(f"config {verb} needs one FILE")
        return _config_file(verb, words[0])
    if verb in {"set", "unset"}:
        if not words:
            raise UsageError(f"config {verb} needs a KEY")
        return _config_edit(words, unset=verb == "unset")
    if verb in {"show", "default"}:
        if words:
            raise UsageError(f"config {verb} takes no arguments")
        if verb == "default":
            from thicket.configdoc import template  # noqa: PLC0415

            sys.stdout.write(template())
            return OK
        return _config_show()
    raise UsageError(f"config knows {verbs}, not {verb!r}")


def _paths() -> "Paths":
    from thicket.config import Paths  # noqa: PLC0415

    return Paths()


def _config_show() -> int:
    from thicket import config  # noqa: PLC0415

    faults: list[str] = []
    try:
        answer = request(_control(), "config", {})
        origin = f"in force, from {answer['source']}"
        values = answer["values"]
    except ClientError as e:
        if e.code != "unreachable":
            raise
        loaded = config.load(_paths())
        faults = [str(finding) for finding in loaded.findings]
        origin = f"the daemon is not running; it would use {loaded.source}"
        values = {
            name: {key.name: config.show_value(key, value) for key, value in section.items()}
            for name, section in loaded.settings.sections()
        }
    print(f"# {origin}")
    for name, section in values.items():
        print(f"\n[{name}]")
        for key, shown in section.items():
            print(f"{key} = {shown}")
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    return BAD if faults else OK


def _read(file: str, most: int) -> bytes | None:
    """The bytes of a file, cut off behind one more than ``most``; None after saying what failed."""
    try:
        if file == "-":
            return sys.stdin.buffer.read(most + 1)
        with open(file, "rb") as stream:  # noqa: PTH123
            return stream.read(most + 1)
    except OSError as e:
        sys.stderr.write(f"thicket: cannot read {file}: {e.strerror}\n")
        return None


def _config_file(verb: str, file: str) -> int:
    from thicket import config  # noqa: PLC0415

    data = _read(file, config.MAX_FILE_BYTES)
    if data is None:
        return BAD
    shown = "standard input" if file == "-" else file
    paths = _paths()
    try:
        settings = config.parse(data, shown, config.image_defaults(paths.image)[0])
        if settings.application:
            _judge_applications(data, shown, settings.application)
    except config.ConfigError as e:
        return _faulty(e)
    if verb == "check":
        print(f"{shown} is right.")
        return OK
    return _write(data)


def _judge_applications(data: bytes, shown: str, tables: dict[str, dict[str, Any]]) -> None:
    """Let the applications that are installed here judge their settings; raises ConfigError."""
    from thicket import applications, config, configtext, entrypoints  # noqa: PLC0415

    found, notes = applications.judge(tables, entrypoints.find(applications.GROUP))
    for note in notes:
        sys.stderr.write(f"{shown}: {note}\n")
    if found:
        findings = [config.Finding(shown, key, "", words) for key, words in found]
        configtext.locate(config.decode(data, shown), findings)
        raise config.ConfigError(findings)


def _revocations(rest: list[str]) -> int:
    import base64  # noqa: PLC0415

    if rest == ["export"]:
        return _export_revocations()
    if len(rest) != 2 or rest[0] != "import":
        raise UsageError("revocations needs: import FILE, or export")
    from thicket.trust.revocations import split  # noqa: PLC0415
    from thicket.trust.verify import MAX_LIST, RefusedError  # noqa: PLC0415

    data = _read(rest[1], 64 * MAX_LIST)  # lists of several authorities, at most
    if data is None:
        return BAD
    try:
        parts = split(data)
    except RefusedError as e:
        return _faulty(e)
    if not parts or any(len(part) > MAX_LIST for part in parts):
        sys.stderr.write(f"thicket: {rest[1]} is no list of revocations\n")
        return BAD
    answer: dict[str, Any] = {}
    for part in parts:
        params = {"list": base64.b64encode(part).decode()}
        answer = request(_control(), "revocations-import", params, timeout=30.0)
    names = answer["names"]
    print(f"List {answer['number']} is in force, with {names} name{'' if names == 1 else 's'}.")
    return OK


def _export_revocations() -> int:
    import base64  # noqa: PLC0415

    from thicket.trust.revocations import pack_parts  # noqa: PLC0415

    held = request(_control(), "revocations-export", {}, timeout=30.0)["lists"]
    parts = [
        base64.b64decode(
            request(_control(), "revocations-export", {"digest": digest}, timeout=30.0)["list"]
        )
        for digest in held
    ]
    sys.stdout.buffer.write(pack_parts(parts))
    sys.stdout.flush()
    return OK


def _faulty(e: Exception) -> int:
    sys.stderr.write(f"{e}\n")
    return BAD


def _config_edit(words: list[str], *, unset: bool) -> int:
    from thicket import config, store  # noqa: PLC0415

    changes: dict[str, object] = {}
    findings = []
    for word in words:
        path, mark, text = word.partition("=")
        key = None
        try:
            key = config.find_key(path)
            if unset:
                if mark:
                    raise ValueError("unset takes the key alone")
                changes[path] = None
                continue
            if not mark:
                # secrets stay out of the process list and the shell's history
                text = sys.stdin.readline().rstrip("\r\n")
            changes[path] = key.plain(key.check(key.from_text(text)))
        except ValueError as e:
            # It may be a secret under a mistyped name, or a private key in a public one's place.
            shown = "" if key is None else config.MASK if key.hides(text) else text
            findings.append(config.Finding("command line", path, shown, str(e)))
    if findings:
        return _faulty(config.ConfigError(findings))
    try:
        text, _ = store.source(_paths())
        return _write(store.set_values(text, changes).encode("utf-8"))
    except config.ConfigError as e:
        sys.stderr.write(
            "thicket: the file in use has faults; `thicket config apply` replaces it\n"
        )
        return _faulty(e)
    except store.StoreError as e:
        return _faulty(e)


def _write(data: bytes) -> int:
    from thicket import config, store  # noqa: PLC0415

    paths = _paths()
    before = config.locked_out(config.load(paths).settings)
    try:
        target = store.apply(paths, data)
    except (config.ConfigError, store.StoreError) as e:
        return _faulty(e)
    after = config.locked_out(config.load(paths).settings)
    if after is not None and before is None:
        sys.stderr.write(f"NOBODY CAN GET INTO THIS NODE from now on: {after}\n")
    print(f"Written to {target}.")
    try:
        return _tell_reload(request(_control(), "reload", {}, timeout=30.0))
    except ClientError as e:
        if e.code != "unreachable":
            raise
        print("The daemon is not running; it will use the file when it starts.")
        return OK


def _tell_reload(answer: dict[str, Any]) -> int:
    if answer["faults"]:
        for fault in answer["faults"]:
            sys.stderr.write(f"{fault}\n")
        return BAD
    changed = ", ".join(answer["changed"]) or "nothing"
    print(f"Configuration from {answer['source']} in force; changed: {changed}.")
    if answer["later"]:
        print(f"Followed from the next start on: {', '.join(answer['later'])}.")
    return OK
