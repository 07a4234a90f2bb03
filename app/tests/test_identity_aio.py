# SPDX-License-Identifier: Apache-2.0
"""The chip for asyncio: the loop goes on, one conversation at a time, a hung bus is given up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest
from emulated_bus import EmulatedBus, emulated
from patience import PATIENCE

from authority.chip import DeskChip, crc_number
from meshlab.chip.atecc608 import Atecc608
from thicket.identity.aio import AsyncAtecc
from thicket.identity.chip.atecc import Atecc
from thicket.identity.chip.errors import ChipBusError, ChipRefusedError


@pytest.fixture
async def chip() -> AsyncIterator[tuple[AsyncAtecc, Atecc608, EmulatedBus]]:
    driver, virtual, bus, _ = emulated()
    driver.lock_config(crc_number(driver.read_config()))
    face = AsyncAtecc(driver, grace=60)
    yield face, virtual, bus
    await face.close()


Chip = tuple[AsyncAtecc, Atecc608, EmulatedBus]


async def test_commands(chip: Chip) -> None:
    face, virtual, bus = chip
    public = await face.call(lambda c: c.generate_key(0))
    digest = sha256(b"thicket").digest()
    signature = await face.sign(0, digest)
    driver = face.chip
    assert isinstance(driver, DeskChip)
    assert await face.call(lambda _: driver.verify(digest, signature, public))
    assert await face.call(lambda c: c.public_key(0)) == public
    assert (await face.call(Atecc.info)).serial == virtual.serial
    assert [await face.call(lambda c: c.count_up(1)), await face.call(lambda c: c.counter(1))] == [
        1,
        1,
    ]
    assert len(await face.call(lambda _: driver.random())) == 32
    assert await face.call(Atecc.read_config) == bytes(virtual.memory.config)
    with pytest.raises(ChipRefusedError):
        await face.call(lambda c: c.read_slot(8))
    with pytest.raises(ChipRefusedError):
        await face.call(lambda _: driver.write_slot(0, bytes(32)))
    await face.close()
    assert bus.closed
    with pytest.raises(ChipBusError, match="let go"):
        await face.call(Atecc.serial_number)


async def test_many_at_once_take_turns(chip: Chip) -> None:
    face, _, _ = chip
    # The emulated bus checks that only one conversation holds its lock.
    assert sorted(
        await asyncio.gather(*(face.call(lambda c: c.count_up(0)) for _ in range(20)))
    ) == [*range(1, 21)]


async def test_the_loop_goes_on(chip: Chip) -> None:
    face, _, _ = chip
    gate, entered = threading.Event(), threading.Event()

    def work(_: Atecc) -> int:
        entered.set()
        assert gate.wait(PATIENCE)
        return 7

    task = asyncio.create_task(face.call(work))
    assert await asyncio.to_thread(entered.wait, 60)
    # The loop runs here although the conversation does not come on.
    assert not task.done()
    gate.set()
    assert await task == 7


async def test_cancelled_conversations_end_before_the_next_begins(chip: Chip) -> None:
    face, _, _ = chip
    gate, entered = threading.Event(), threading.Event()
    order: list[str] = []

    def first(_: Atecc) -> None:
        entered.set()
        gate.wait(PATIENCE)
        order.append("first")

    task = asyncio.create_task(face.call(first))
    assert await asyncio.to_thread(entered.wait, 60)
    task.cancel()
    never = asyncio.create_task(face.call(lambda _: order.append("never")))
    await asyncio.sleep(0)
    never.cancel()
    second = asyncio.create_task(face.call(lambda _: order.append("second")))
    await asyncio.sleep(0.01)
    assert order == []
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await second
    assert order == ["first", "second"]


async def test_a_conversation_that_is_slow_and_gets_on_is_waited_for(
    chip: Chip, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = AsyncAtecc(chip[0].chip, grace=0.02)
    face.chip.patience = 0.02
    gate = threading.Event()

    class GetsOn:
        """Has had another reading at each look, and is over at the tenth."""

        looks = 0

        @property
        def readings(self) -> int:
            self.looks += 1
            if self.looks == 10:
                gate.set()
            return self.looks

    def work(chip: Atecc) -> str:
        return "done" if gate.wait(PATIENCE) else "given up"

    monkeypatch.setattr(face.chip, "watch", GetsOn())
    assert await face.call(work) == "done"


async def test_a_transfer_that_never_comes_back(chip: Chip) -> None:
    face = AsyncAtecc(chip[0].chip, grace=0.2)
    face.chip.patience = 0.05
    gate = threading.Event()
    with pytest.raises(ChipBusError, match="did not come back within"):
        await face.call(lambda _: gate.wait())
    threads = threading.active_count()
    with pytest.raises(ChipBusError, match="still hangs"):
        await face.call(Atecc.serial_number)
    assert threading.active_count() == threads
    await face.close()
    gate.set()
