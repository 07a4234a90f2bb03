# SPDX-License-Identifier: Apache-2.0
"""Peers that the radio no longer hears are asked at once whether they are still there."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv6Address

    from thicket.cluster.membership import Membership
    from thicket.radio.radio import Radio

#: A peer whose last frame is older than this many beacon intervals is asked whether it is there.
SILENT_BEACONS = 1.6
#: Each look asks for every peer of which no frame is known from this many beacon intervals: the
#: next beacon has come by then, if the peer is there. So one look serves many peers, and the next
#: is not due for half an interval.
LISTEN_BEACONS = 1.1
#: When the last frame of every peer is older than this many beacon intervals, this node may be
#: alone: all other nodes are asked, too.
ALONE_BEACONS = 2.6
#: Seconds to the next look while a peer is silent for too long already, or there is none.
IDLE = 1.0
#: Between two looks at the radio's peers there are at least LOOK_AT_LEAST seconds, and at least
#: LOOK_SHARE times as long as a look took: a node short of time must not spend it on looking.
LOOK_AT_LEAST = 0.2
LOOK_SHARE = 10.0


async def watch(
    membership: Membership,
    radio: Callable[[], Radio | None],
    beacon_interval: int,
    on_links: Callable[[set[IPv6Address]], None],
) -> None:
    """Look at the radio's peers while there are connections to lose or to make, until cancelled.

    :param radio: returns the radio of now.
    :param beacon_interval: the mesh's, in TU of 1024 µs.
    :param on_links: told of the nodes that the radio is linked with and hears, after each look.
    """
    beacon = beacon_interval * 1.024 / 1000  # seconds
    patience, alone = SILENT_BEACONS * beacon, ALONE_BEACONS * beacon
    silences: list[float] = []
    took = 0.0
    while True:
        # The next look is due when the next peer would have been silent for too long.
        due = [patience - silent for silent in silences if silent < patience]
        if len(due) < len(silences) or not due:
            due.append(IDLE)
        if silences and min(silences) <= alone:
            due.append(alone - min(silences))
        await asyncio.sleep(max(min(due), LOOK_AT_LEAST, LOOK_SHARE * took))
        silences, took = [], 0.0
        mesh = radio()
        candidates = membership.candidates
        up = any(candidate.up for candidate in candidates.values())
        if mesh is None or not candidates:
            continue
        began = time.monotonic()
        await mesh.listen(LISTEN_BEACONS * beacon)
        took = time.monotonic() - began
        links = mesh.links()
        silences = [silent for _, silent in links]
        for address, silent in links:
            if up and silent > patience:
                membership.suspect(address)
        if up and silences and min(silences) > alone:
            membership.suspect()
        on_links({address for address, silent in links if address is not None and silent <= alone})
