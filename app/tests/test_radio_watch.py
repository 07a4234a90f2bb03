# SPDX-License-Identifier: Apache-2.0
"""The watch for peers that the radio no longer hears: how soon it suspects, and what it costs."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address
from types import SimpleNamespace
from typing import Any

import pytest

from thicket.cluster import radio_watch

pytestmark = pytest.mark.virtual_time

BEACON = 1.024
"""Seconds between two beacons of a peer."""


class Air:
    """Peers that beacon each at its own time, of which is known what was asked for.

    :ivar gone: since when nothing comes of a peer any more.
    :ivar looks: how often somebody looked; ``asked``: how many peers that asked for.
    """

    def __init__(self, peers: int) -> None:
        self.phases = {IPv6Address(f"fd12::{n + 2:x}"): n / peers for n in range(peers)}
        self.gone: dict[IPv6Address, float] = {}
        self.known = dict.fromkeys(self.phases, asyncio.get_running_loop().time())
        self.looks = self.asked = 0

    async def listen(self, seconds: float) -> None:
        now = asyncio.get_running_loop().time()
        self.looks += 1
        for address, phase in self.phases.items():
            if now - self.known[address] < seconds:
                continue
            self.asked += 1
            until = min(now, self.gone.get(address, now))
            last = ((until / BEACON - phase) // 1 + phase) * BEACON
            self.known[address] = max(last, self.known[address])

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        now = asyncio.get_running_loop().time()
        return [(address, now - known) for address, known in self.known.items()]


class Cluster:
    """A membership with somebody in it; ``suspected`` is whom it was told to ask, and when."""

    neighbours = None

    def __init__(self) -> None:
        self.candidates = {1: SimpleNamespace(up=True)}
        self.suspected: list[tuple[IPv6Address | None, float]] = []

    def suspect(self, address: IPv6Address | None = None) -> None:
        self.suspected.append((address, asyncio.get_running_loop().time()))


@pytest.mark.parametrize(("peers", "most"), [(1, 1.0), (2, 1.0), (3, 2.0), (20, 2.0)])
async def test_one_look_serves_many_peers(peers: int, most: float) -> None:
    air, cluster = Air(peers), Cluster()
    of_any_type: Any = cluster
    radio: Any = air
    watch = asyncio.create_task(
        radio_watch.watch(of_any_type, lambda: radio, 1000, lambda _links: None)
    )
    await asyncio.sleep(100)
    assert air.looks <= 100 * most + 1
    assert air.asked <= 100 * peers, "none is asked for more than once in a beacon interval"
    assert cluster.suspected == []
    watch.cancel()


@pytest.mark.parametrize("peers", [1, 2, 3, 20])
@pytest.mark.parametrize("when", [0.0, 0.3, 0.6, 0.9])
async def test_a_peer_is_suspected_as_soon_as_its_silence_tells(peers: int, when: float) -> None:
    air, cluster = Air(peers), Cluster()
    of_any_type: Any = cluster
    radio: Any = air
    watch = asyncio.create_task(
        radio_watch.watch(of_any_type, lambda: radio, 1000, lambda _links: None)
    )
    await asyncio.sleep(20 + when)
    lost = IPv6Address("fd12::2")
    air.gone[lost] = asyncio.get_running_loop().time()
    await asyncio.sleep(4)
    watch.cancel()
    addresses = {address for address, _ in cluster.suspected}
    assert addresses == ({lost, None} if peers == 1 else {lost}), "alone, it asks everybody"
    silent = cluster.suspected[0][1] - air.known[lost]
    patience = radio_watch.SILENT_BEACONS * BEACON
    assert patience <= silent <= patience + radio_watch.LOOK_AT_LEAST


async def test_nothing_is_asked_while_there_is_no_cluster() -> None:
    air, cluster = Air(2), Cluster()
    cluster.candidates = {}
    of_any_type: Any = cluster
    radio: Any = air
    watch = asyncio.create_task(
        radio_watch.watch(of_any_type, lambda: radio, 1000, lambda _links: None)
    )
    await asyncio.sleep(20)
    watch.cancel()
    assert air.looks == 0
