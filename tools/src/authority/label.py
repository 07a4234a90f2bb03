# SPDX-License-Identifier: Apache-2.0
"""``thicket ca label``: what people call the fleet's devices."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from typing import Any, Final

from authority import files
from authority.authority import Authority
from authority.errors import AuthorityError
from authority.labels import Said, place_text, read_table
from authority.remote_node import RemoteNode
from authority.words import Parser, a_path
from thicket.cli.common import BAD, OK, UsageError
from thicket.identity.bus import BusError
from thicket.trust.labels import device_of

_NEEDS: Final = (
    "label needs a NODE and --label, --place or --note; or --import FILE, or --export FILE"
)


def run(authority: Authority, rest: list[str]) -> int:
    """Run it; return the exit status.

    :raises UsageError: ``rest`` is not understood.
    """
    parser = Parser(_NEEDS)
    parser.add_argument("node", nargs="?")
    for option in ("--label", "--place", "--note"):
        parser.add_argument(option)
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--import", dest="taken", type=a_path)
    table.add_argument("--export", dest="given", type=a_path)
    args = parser.parse_args(rest)
    said = Said(args.label, args.place, args.note)
    of_tables = args.taken is not None or args.given is not None
    if of_tables == (args.node is not None) or (args.node is None) != (said == Said()):
        raise UsageError(_NEEDS)
    if args.given is not None:
        with files.replacing(args.given) as file:
            file.write(authority.labels.table().encode())
        print(f"{args.given} has all devices; change it, and `thicket ca label --import` takes it.")
        return OK
    lines = read_table(args.taken) if args.taken is not None else [(args.node, said)]
    changed = authority.labels.change(lines)
    if not changed:
        print("Nothing is new.")
        return OK
    print(f"Changed: {', '.join(changed)}. `thicket ca publish` brings it to the nodes.")
    return OK


def shown(authority: Authority) -> dict[int, str]:
    """Return what is said about devices, each in a line: label, place and note."""
    found = {}
    for device, entry in authority.labels.entries().items():
        first = ", ".join(filter(None, (entry.label, place_text(entry.place))))
        found[device] = ": ".join(filter(None, (first, entry.note)))
    return found


def name_devices(document: dict[str, Any], authority: Authority) -> None:
    """Put label, place and note into the devices of a ``fleet.json``."""
    entries = authority.labels.entries()
    document.pop("labels", None)
    for device in document["devices"].values():
        entry = entries.get(device_of(IPv6Address(device["address"])))
        if entry is not None and not entry.empty:
            device |= {"label": entry.label, "place": entry.place, "note": entry.note}


def publish(
    authority: Authority,
    node: RemoteNode | None,
    hosts: Iterable[str],
    over_ssh: Callable[..., bytes],
) -> int:
    """Bring the labels to nodes, and take up what another copy of the authority says.

    A fleet whose devices have no labels here asks no node for any.

    :param node: one that a console reaches.
    :param hosts: those that ssh reaches.
    :param over_ssh: runs ``thicket labels`` there; raises AuthorityError.
    :returns: the exit status.
    """
    if not authority.labels.entries():
        return OK
    status, theirs, reached = OK, [], []
    for host in hosts:
        try:
            theirs.append(over_ssh(host, "does not tell its labels; it gets none", "export"))
            reached.append(host)
        except AuthorityError as error:
            status = _say(error)
    try:
        if node is not None:
            theirs.append(node.export_labels())
    except (AuthorityError, BusError) as error:
        node, status = None, _say(error)
    taken, packed = authority.labels.merge(filter(None, theirs))
    if taken:
        print(f"Another copy of this authority has named {taken} of the devices: taken up.")
    if packed is None:
        return status
    try:
        if node is not None:
            number, count = node.import_labels(packed)
            print(f"The node has labels {number} now, for {count} devices.")
    except (AuthorityError, BusError) as error:
        status = _say(error)
    for host in reached:
        try:
            over_ssh(host, "has not taken the labels", "import", "-", data=packed)
        except AuthorityError as error:
            status = _say(error)
    return status


def _say(error: Exception) -> int:
    sys.stderr.write(f"thicket ca: {error}\n")
    return BAD
