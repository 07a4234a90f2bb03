# SPDX-License-Identifier: Apache-2.0
"""Carries out what :mod:`thicket.cluster.overlay` decides, on one node."""

from __future__ import annotations

import time
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from thicket.base.pace import uniform
from thicket.cluster.overlay import AT_ONCE, Facts, Overlay

if TYPE_CHECKING:
    from thicket.cluster.membership import Membership
    from thicket.distribution.node import Node

#: Seconds between two choices while the radio's links stay the same.
AGAIN = 1.0
#: Failed attempts after which a neighbour does not count as one.
FAILED = 2


class Topology:
    """Whom a node stays connected with.

    :param setting: ``[cluster] topology``.
    """

    def __init__(self, setting: str, node: Node, membership: Membership) -> None:
        roster = node.membership.roster
        self._node = node
        self._membership = membership
        self._overlay = Overlay(setting, roster.reaches, roster.reaches_without, uniform)
        self._links: set[IPv6Address] | None = None
        self._chose = float("-inf")
        if setting == "neighbours":
            membership.set_neighbours(set())
        elif setting == "auto":
            membership.at_once = AT_ONCE

    def follow(self, links: set[IPv6Address]) -> None:
        """Choose, as the radio is linked with these nodes now."""
        now = time.monotonic()
        if links == self._links and now - self._chose < AGAIN:
            return
        self._links, self._chose = links, now
        membership, node = self._membership, self._node
        names = {one.canonical: one.address for one in membership.candidates.values()}
        members = node.membership.roster.members
        facts = Facts(
            nodes=1 + len(names.keys() | members),
            neighbours=frozenset(name for name, address in names.items() if address in links),
            failing=frozenset(
                name
                for name, address in names.items()
                if membership.candidates[address].backoff.failures >= FAILED
            ),
        )
        choice = self._overlay.choose(facts, now)
        partial = choice.sparse or choice.growing
        node.choose(choice.chosen, keeps_all=not choice.sparse, partial=partial)
        wanted = {names[name] for name in choice.chosen if name in names}
        membership.set_neighbours(wanted if partial else None, first=wanted)

    def chosen(self) -> frozenset[str]:
        """Return the neighbours that messages to all go through; none where all are connected."""
        sparse = self._membership.neighbours is not None
        return frozenset(self._node.membership.roster.links) if sparse else frozenset()
