# SPDX-License-Identifier: Apache-2.0
"""A lab spread over several machines: connections, placement, parts."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from meshlab.hosts.errors import HostsError
from meshlab.hosts.hosts import Host, Hosts
from meshlab.hosts.memory import available_mib
from meshlab.hosts.placement import HERE, Capacity, HostSpec, place, room_for
from meshlab.hosts.remote_parts import RemoteParts
from meshlab.lab.parts import Doubts, Parts
from meshlab.lab.real_parts import RealParts


@dataclass(frozen=True)
class Wanted:
    """What a person wants."""

    hosts: Sequence[HostSpec]
    """The machines; ``local`` is the lab's own, which has no nodes when it is not named."""
    on: Mapping[str, str] = field(default_factory=dict)
    """Nodes whose machine was chosen."""


class Spread(NamedTuple):
    """Parts by node for ``Lab``, and its further doubts."""

    others: dict[str, Parts]
    doubts: Doubts


@contextlib.asynccontextmanager
async def spread(
    wanted: Wanted,
    lab: tuple[str, Path],
    parts: Mapping[str, Parts],
    *,
    keep: bool,
    tell: Callable[[str], None],
) -> AsyncIterator[Spread]:
    """Connect to the machines, place the nodes, and make the parts of those that run elsewhere.

    :param lab: Name and directory of the lab.
    :param parts: The parts of every node as they are on this machine.
    :param keep: Nodes keep their disks.
    :param tell: Gets lines of progress.
    :raises HostsError: when a machine cannot be used, or there is not enough room.
    """
    away = [spec for spec in wanted.hosts if spec.name != HERE]
    async with Hosts(away, *lab, keep=keep) as hosts:
        guest = max(
            (one.memory_mib for one in parts.values() if isinstance(one, RealParts)), default=0
        )
        known = {one.name: one for one in hosts.capacities(guest)}
        own = [spec for spec in wanted.hosts if spec.name == HERE]
        if own:
            cores = len(os.sched_getaffinity(0))
            known[HERE] = Capacity(HERE, own[0].weight or cores, room_for(available_mib(), guest))
        order = [known[spec.name] for spec in wanted.hosts]
        placed = place(list(parts), order, wanted.on)
        for spec in wanted.hosts:
            names = [node for node, where in placed.items() if where == spec.name]
            tell(f"{spec.name}: {len(names)} nodes" + (f" ({', '.join(names)})" if names else ""))
        made = await _make(hosts.all, placed, parts, keep=keep, tell=tell)
        others: dict[str, Parts] = {
            node: made.get((placed[node], id(own_parts)), own_parts)
            for node, own_parts in parts.items()
        }
        yield Spread(others, hosts)


async def _make(
    hosts: Sequence[Host],
    placed: Mapping[str, str],
    parts: Mapping[str, Parts],
    *,
    keep: bool,
    tell: Callable[[str], None],
) -> dict[tuple[str, int], RemoteParts]:
    """Return the parts of each machine for each image that nodes boot there."""

    async def of(host: Host) -> dict[tuple[str, int], RemoteParts]:
        made: dict[tuple[str, int], RemoteParts] = {}
        for node, where in placed.items():
            one = parts[node]
            if where == host.name and (where, id(one)) not in made:
                if not isinstance(one, RealParts):
                    raise HostsError(f"{node} boots nothing, so it cannot run on {where}")
                made[where, id(one)] = await RemoteParts.make(
                    host, one, str(len(made)), keep=keep, tell=tell
                )
        return made

    every = await asyncio.gather(*(of(host) for host in hosts))
    return {key: value for made in every for key, value in made.items()}
