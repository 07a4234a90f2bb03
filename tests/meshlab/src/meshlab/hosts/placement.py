# SPDX-License-Identifier: Apache-2.0
"""Which node runs where."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshlab.hosts.errors import HostsError

HERE = "local"
"""The machine that the lab itself runs on."""

QEMU_MIB = 152
"""Memory of the host that QEMU takes without KVM besides the guest's: most is translated code. A
node of a mesh of three took 268 MiB, with the guest's 128."""
SPARE_MIB = 256
"""Memory that a host keeps for itself."""


@dataclass(frozen=True)
class HostSpec:
    """A machine as a person names it: ``HOST`` or ``HOST=WEIGHT``."""

    name: str
    """As ssh takes it; ``local``: this one."""
    weight: float | None = None
    """Its share of the nodes, relative to the others; ``None``: by its cores."""


@dataclass(frozen=True)
class Capacity:
    """What a machine can take."""

    name: str
    weight: float
    room: int
    """How many nodes at most."""


def parse_hosts(text: str) -> list[HostSpec]:
    """Return the machines of ``HOSTS="a b=2"``.

    :raises HostsError: when it makes no sense.
    """
    found: list[HostSpec] = []
    for word in text.split():
        name, equals, weight = word.partition("=")
        # A name that begins with "-" would be an option to ssh.
        if not re.fullmatch(r"[A-Za-z0-9_][^\s=]*", name):
            raise HostsError(f"HOSTS: {word!r} is no host: write user@host, or user@host=WEIGHT")
        if any(one.name == name for one in found):
            raise HostsError(f"HOSTS: {name} is there twice")
        number = re.fullmatch(r"\d{1,6}(\.\d{1,6})?", weight)
        if equals and (number is None or not float(weight)):
            raise HostsError(f"HOSTS: {word!r}: a weight is a number above 0")
        found.append(HostSpec(name, float(weight) if equals else None))
    if not found:
        raise HostsError("HOSTS is empty: name at least one machine")
    return found


def room_for(free_mib: int, guest_mib: int) -> int:
    """Return how many nodes with so much memory fit into what a machine has free."""
    return max(0, (free_mib - SPARE_MIB) // (guest_mib + QEMU_MIB))


def place(
    nodes: Sequence[str], hosts: Sequence[Capacity], fixed: Mapping[str, str]
) -> dict[str, str]:
    """Return the machine of each node: in blocks, as the weights say, no more than there is room.

    :param nodes: The nodes in their order.
    :param hosts: The machines in their order.
    :param fixed: Nodes whose machine was chosen by a person; they count, too.
    :raises HostsError: when there is not enough room, or a node or machine does not exist.
    """
    known = {host.name: host for host in hosts}
    for node, host in fixed.items():
        if node not in nodes:
            raise HostsError(f"ON: there is no node {node}: they are {nodes[0]} to {nodes[-1]}")
        if host not in known:
            raise HostsError(f"ON: {node} is to run on {host}, which HOSTS does not name")
    count = dict.fromkeys(known, 0)
    for host in fixed.values():
        count[host] += 1
    free = [node for node in nodes if node not in fixed]
    for _ in free:
        open_hosts = [host for host in hosts if count[host.name] < host.room]
        if not open_hosts:
            rooms = ", ".join(f"{host.name} {host.room}" for host in hosts)
            raise HostsError(f"there is no memory for {len(nodes)} nodes: room for {rooms}")
        best = min(open_hosts, key=lambda host: (count[host.name] + 1) / host.weight)
        count[best.name] += 1
    for one in hosts:
        if count[one.name] > one.room:
            raise HostsError(
                f"{one.name} has no memory for {count[one.name]} nodes, only for {one.room}"
            )
    placed = dict(fixed)
    for one in hosts:
        own = count[one.name] - sum(1 for chosen in fixed.values() if chosen == one.name)
        for node in free[:own]:
            placed[node] = one.name
        free = free[own:]
    return {node: placed[node] for node in nodes}
