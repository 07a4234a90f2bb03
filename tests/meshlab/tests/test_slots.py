# SPDX-License-Identifier: Apache-2.0
"""Boot slots: how many nodes boot at a time, whichever lab they belong to."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE

from meshlab.lab import slots, topology
from meshlab.lab.fake import FakeParts
from meshlab.lab.journal import Pace
from meshlab.lab.lab import Lab
from meshlab.lab.slots import BootSlots, Places
from meshlab.lab.spec import LabSpec

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from meshlab.lab.slots import BootSlots
held = BootSlots(Path(sys.argv[1]), 1, "the other").try_take()
child = subprocess.Popen(["sleep", "600"])
print(child.pid if held else "none", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "pause", lambda self, nodes, settled: 0.01)
    monkeypatch.setattr(slots, "PAUSE", 0.01)


def test_a_slot_is_held_by_one_and_can_be_given_back_twice(tmp_path: Path) -> None:
    mine, yours = BootSlots(tmp_path, 2, "mine"), BootSlots(tmp_path, 2, "yours")
    first, second = mine.try_take(), yours.try_take()
    assert first is not None
    assert second is not None
    assert mine.try_take() is None
    assert yours.try_take() is None
    assert mine.others() == {"yours"}
    second.free()
    second.free()
    third = mine.try_take()
    assert third is not None
    assert yours.try_take() is None
    first.free()
    third.free()


def test_a_lab_with_fewer_slots_shares_the_first_ones(tmp_path: Path) -> None:
    many, few = BootSlots(tmp_path, 3, "many"), BootSlots(tmp_path, 1, "few")
    held = [many.try_take() for _ in range(2)]
    assert few.try_take() is None
    for slot in held:
        assert slot is not None
        slot.free()
    slot = few.try_take()
    assert slot is not None
    slot.free()


async def test_who_waits_is_told_for_whom_once(tmp_path: Path) -> None:
    mine, yours = BootSlots(tmp_path, 1, "mine"), BootSlots(tmp_path, 1, "yours")
    held = yours.try_take()
    assert held is not None
    told: list[set[str]] = []
    waits = asyncio.Event()

    def tell(others: set[str]) -> None:
        told.append(others)
        waits.set()

    waiting = asyncio.create_task(mine.take(tell))
    await asyncio.wait_for(waits.wait(), PATIENCE)
    assert not waiting.done()
    held.free()
    slot = await asyncio.wait_for(waiting, PATIENCE)
    assert slot is not None
    assert told == [{"yours"}]
    slot.free()


def test_a_lab_that_is_killed_frees_its_slots_though_its_children_live(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        mine = BootSlots(tmp_path, 1, "mine")
        assert mine.try_take() is None
        assert mine.others() == {"the other"}
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        slot = mine.try_take()
        assert slot is not None
        slot.free()
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        subprocess.run(["kill", str(child)], check=True)


async def test_a_lab_that_is_stopped_does_not_stop_the_others_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "PATIENCE", 0.05)
    held = BootSlots(tmp_path, 1, "stopped").try_take()
    assert held is not None
    assert await BootSlots(tmp_path, 1, "mine").take(lambda others: None) is None
    held.free()


async def test_two_labs_share_the_slots(parts: FakeParts, tmp_path: Path) -> None:
    others = FakeParts()
    parts.silent = {"n1", "n2", "n3"}
    one, two = (LabSpec(topology.make("full", 3), name=name) for name in ("one", "two"))
    async with Lab(one, parts, tmp_path) as first:
        await first.wait(lambda: len(parts.starts) == 2, 60, "the first lab has both slots")
        async with Lab(two, others, tmp_path) as second:

            def told() -> bool:
                return any(
                    "the boots of other labs: one (process" in e.text for e in second.state.events
                )

            await second.wait(told, 60, "the second says for whom it waits")
            assert others.starts == []
            # What a person asks for does not wait.
            await second.power_on("n2")
            assert others.starts == ["n2"]
            parts.silent.clear()
            await second.formed(60)
            await first.formed(60)
        assert others.starts == ["n2", "n1", "n3"]


async def test_a_node_that_is_switched_off_makes_room(parts: FakeParts, tmp_path: Path) -> None:
    parts.silent = {"n1", "n2", "n3"}
    async with Lab(LabSpec(topology.make("full", 3)), parts, tmp_path) as lab:
        await lab.wait(lambda: len(parts.starts) == 2, 60, "two are started")
        await lab.kill("n1")
        await lab.wait(lambda: len(parts.starts) == 3, 60, "there is room for the third")
        parts.on["n2"].end(1)
        await lab.wait(lambda: lab.state.nodes["n2"].power == "died", 60, "n2 has died")
        slot = BootSlots(tmp_path / "boot-slots", 2, "another").try_take()
        assert slot is not None, "and has no slot any more"
        slot.free()
    free = [BootSlots(tmp_path / "boot-slots", 2, "after").try_take() for _ in range(2)]
    assert None not in free, "the lab left nothing"
    for left in free:
        assert left is not None
        left.free()


async def test_a_large_lab_waits_for_enough_places_and_no_small_one_overtakes_it(
    tmp_path: Path,
) -> None:
    places = Places(tmp_path, 4, "tests")
    three = await places.take(3)
    large = asyncio.create_task(places.take(4))
    await _until_taken(tmp_path / "door")
    small = asyncio.create_task(places.take(1))
    await asyncio.sleep(0.1)
    assert not large.done()
    assert not small.done()
    for slot in three:
        slot.free()
    held = await asyncio.wait_for(large, PATIENCE)
    assert len(held) == 4
    assert not small.done()
    held[0].free()
    assert len(await asyncio.wait_for(small, PATIENCE)) == 1


async def test_a_lab_that_is_larger_than_all_places_takes_them_all(tmp_path: Path) -> None:
    assert len(await asyncio.wait_for(Places(tmp_path, 2, "tests").take(20), PATIENCE)) == 2


async def test_who_gives_up_waiting_gives_back_what_it_had(tmp_path: Path) -> None:
    places = Places(tmp_path, 3, "tests")
    held = await places.take(2)
    waiting = asyncio.create_task(places.take(2))
    await _until_taken(tmp_path / "2")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(await asyncio.wait_for(places.take(1), PATIENCE)) == 1
    assert len(held) == 2


async def _until_taken(path: Path) -> None:
    """Wait until somebody holds the lock of a file."""
    async with asyncio.timeout(PATIENCE):
        while (slot := slots.lock(path, "a look")) is not None:
            slot.free()
            await asyncio.sleep(0.01)
