# SPDX-License-Identifier: Apache-2.0
"""What a node can do, by its status document, and what it cannot do any more."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

#: Most bytes of a file that is read, and most applications in it.
MOST_BYTES = 16 * 1024
MOST_APPLICATIONS = 64


class Abilities(NamedTuple):
    """What works.

    :ivar joined: the radio is in the mesh.
    :ivar peer: there is a peer with an established link.
    :ivar node: another node is in the cluster.
    :ivar applications: names of those that run.
    """

    joined: bool = False
    peer: bool = False
    node: bool = False
    applications: frozenset[str] = frozenset()

    def __or__(self, other: Abilities) -> Abilities:
        """Return what works here or there."""
        return Abilities(
            self.joined or other.joined,
            self.peer or other.peer,
            self.node or other.node,
            self.applications | other.applications,
        )


def of(document: dict[str, Any]) -> Abilities:
    """Return what works by the status document."""
    return Abilities(
        document["radio"]["state"] == "joined",
        any(peer["state"] == "ESTAB" for peer in document["peers"]),
        any(node["state"] == "up" for node in document["cluster"]["nodes"]),
        frozenset(
            application["name"]
            for application in document["applications"]
            if application["state"] == "running"
        ),
    )


def missing(before: Abilities, now: Abilities) -> list[str]:
    """Return, in words, what worked before and does not now."""
    lost = []
    if before.joined and not now.joined:
        lost.append("the radio is not in the mesh")
    if before.peer and not now.peer:
        lost.append("there is no peer")
    if before.node and not now.node:
        lost.append("no other node is in the cluster")
    lost += [
        f"the application {name} does not run"
        for name in sorted(before.applications - now.applications)
    ]
    return lost


def pack(abilities: Abilities) -> bytes:
    """Return a file."""
    members = abilities._asdict() | {"applications": sorted(abilities.applications)}
    return json.dumps(members).encode() + b"\n"


def unpack(data: bytes) -> Abilities:
    """Return what a file says; one that is damaged says that nothing worked."""
    if len(data) > MOST_BYTES:
        return Abilities()
    try:
        members = json.loads(data)
        names = members["applications"]
        flags = [members[name] for name in ("joined", "peer", "node")]
    except (ValueError, KeyError, TypeError, RecursionError):
        return Abilities()
    if (
        not all(isinstance(flag, bool) for flag in flags)
        or not isinstance(names, list)
        or len(names) > MOST_APPLICATIONS
        or not all(isinstance(name, str) for name in names)
    ):
        return Abilities()
    joined, peer, node = flags
    return Abilities(joined, peer, node, frozenset(names))
