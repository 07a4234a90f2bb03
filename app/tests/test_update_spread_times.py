# SPDX-License-Identifier: Apache-2.0
"""How long an offer and its patch take to all nodes of a grid of 2x4, and what they send, beside
one node alone. In virtual time, so the figures are the same everywhere.

A small patch cannot reach eight nodes in twice the time of one: those in reach of each other have
one air. Each chunk takes it at least four times, one behind the other. It crosses the middle of the
grid once, and then nobody else can send; and three nodes beside the first one have to get it, of
which only one can at a time. ``FLOOR`` is that.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import NamedTuple

import mesh_of_exchanges
import pytest
from mesh_of_exchanges import CHUNK_AIR, SUBJECT, Member, Mesh, deterministic, folder_of

from thicket.update import exchange
from thicket.update.messages import CHUNKS, Get, Piece

pytestmark = pytest.mark.virtual_time

#: Chunks of 20 KiB, 0.22 MB, 2 MB, 10 MB; with THICKET_SOAK 30 MB, which take three times the work.
SIZES = (1, 7, 60, 928 if os.environ.get("THICKET_SOAK") else 300)
COLUMNS, ROWS = 4, 2
OTHERS = COLUMNS * ROWS - 1
FLOOR = 4 * CHUNK_AIR
"""Seconds of a chunk in this grid, if who may send was arranged perfectly."""
HEADS = "chunks  alone   last  ratio  floor  unused alone/last  air mean  worst"


class Figures(NamedTuple):
    """How a patch spread.

    :ivar took: seconds until the last node had it.
    :ivar air: seconds that each node sent.
    :ivar unused: seconds in which nobody sent.
    :ivar chunks: how many were sent, those of chunk lists included.
    """

    took: float
    air: list[float]
    unused: float
    chunks: int


async def measure(columns: int, rows: int, folder: str, path: Path) -> Figures:
    mesh = Mesh(columns, rows, path)
    await mesh.start()
    try:
        took = await mesh.spread(folder)
        air = [mesh.air.spent.get(member.name, 0.0) for member in mesh.members]
        return Figures(took, air, mesh.air.unused, mesh.messages["data"])
    finally:
        await mesh.stop()


@pytest.mark.soak
async def test_a_grid_beside_one_node_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deterministic(monkeypatch)
    print(f"\n{HEADS}")
    for count in SIZES:
        folder = folder_of(tmp_path / f"{count}", count)
        one = await measure(2, 1, folder, tmp_path / f"{count}-alone")
        grid = await measure(COLUMNS, ROWS, folder, tmp_path / f"{count}-grid")
        air = [spent / one.air[0] for spent in grid.air]
        mean = sum(air) / len(air)
        times = f"{one.took:6.2f} {grid.took:6.2f} {grid.took / one.took:6.2f}"
        unused = f"{one.unused:12.2f}/{grid.unused:.2f}"
        print(f"{count:6} {times} {count * FLOOR:6.2f}  {unused} {mean:9.2f} {max(air):6.2f}")
        # the chunk list as well, unless it follows from the offer
        assert grid.chunks == OTHERS * (count + (count > 1)), "nothing is sent twice"
        assert mean <= 1.0
        assert grid.unused <= one.unused + 0.02, "nothing waits while the air is free"
        assert grid.took <= max(2 * one.took, one.took + OTHERS * count * CHUNK_AIR)
        if count in (min(SIZES), max(SIZES)):
            assert grid.took <= 2 * one.took
            assert count == 1 or max(air) <= 1.35, "no node's share is much above the others'"


async def test_what_a_peer_may_say_does_not_hold_up_a_fast_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deterministic(monkeypatch)
    monkeypatch.setattr(mesh_of_exchanges, "RATE", 6 * mesh_of_exchanges.RATE)
    monkeypatch.setattr(mesh_of_exchanges, "METRIC", mesh_of_exchanges.METRIC // 6)
    most_at_once = int(exchange.RATES["chunk"][1])
    one = await measure(2, 1, folder_of(tmp_path / "o", 2 * most_at_once), tmp_path / "n")
    assert one.took < 2 * most_at_once / exchange.RATES["chunk"][0]


async def ask_without_end(one: Member, server: Member) -> None:
    """Ask for chunk after chunk, whatever the answers are."""
    number = 0
    while True:
        newest = server.carrier.newest
        if newest is not None:
            number = (number + 1) % newest.offer.patches[0].chunk_count
            get = Get(newest.identifier, Piece(0, CHUNKS, number))
            one.exchange.send(server.name, SUBJECT, get)
        await asyncio.sleep(0.02)


async def test_three_that_never_stop_asking_keep_nobody_from_a_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deterministic(monkeypatch)
    folder = folder_of(tmp_path / "folder", 400)
    alone = await measure(2, 1, folder, tmp_path / "alone")
    mesh = Mesh(5, 1, tmp_path / "five", full=True)
    server, *greedy, honest = mesh.members
    for one in greedy:
        monkeypatch.setattr(one, "wants", lambda _offer: False)
    await mesh.start()
    asking = [asyncio.create_task(ask_without_end(one, server)) for one in greedy]
    try:
        await asyncio.sleep(1.0)
        began = time.monotonic()
        await server.carrier.offer_folder(folder)
        while honest.done is None:
            await asyncio.sleep(0.01)
            assert time.monotonic() < began + 8 * alone.took, honest.carrier.fetched
        print(f"\n400 chunks: {alone.took:.1f} s alone, {honest.done - began:.1f} s beside three")
    finally:
        for task in asking:
            task.cancel()
        await asyncio.wait(asking)
        await mesh.stop()


async def test_offers_one_behind_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each node looks at so many messages about offers; what is too many is late, not lost."""
    deterministic(monkeypatch)
    mesh = Mesh(COLUMNS, ROWS, tmp_path / "grid")
    await mesh.start()
    try:
        took = []
        for number in range(1, 12):
            took.append(await mesh.spread(folder_of(tmp_path / f"{number}", 1, number)))
            await asyncio.sleep(1.0)
        assert any(member.exchange.ignored for member in mesh.members)
        assert max(took[:6]) < 0.5
        assert max(took) < 10.0
    finally:
        await mesh.stop()
