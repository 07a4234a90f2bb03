# SPDX-License-Identifier: Apache-2.0
"""The power cut while an update is installed, again and again: QEMU is killed.

Where each cut falls is counted in what the card was given, not in time: so they are spread over the
whole installation, however fast the machine is that runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio

from firmware import card as cards
from meshlab.lab.testing import HANGS
from meshlab.machine.qemu import MachineError
from meshlab.machine.shell import ShellError
from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Phase, Slot, State
from thicket.update import bundle as bundles
from thicket.update.manifest import Manifest

sys.path.insert(0, str(Path(__file__).parent))
from card_device import BOOT, Device
from card_images import loaded
from card_updates import BUNDLE, INSTALL, SLOTS, Publisher, Stick, version

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(HANGS, func_only=True),
    pytest.mark.skipif(
        not os.environ.get("THICKET_SOAK"), reason="50 power cuts, with THICKET_SOAK=1"
    ),
]

CUTS = int(os.environ.get("THICKET_CUTS", "50"))
SEED = 11
MIB = 1 << 20
UP = "while [ ! -e /run/thicket/status.json ]; do sleep 0.2; done; cat /proc/cmdline"


class Cut(NamedTuple):
    """When the power is cut: when the card has been given so much since the installation began.

    :ivar bytes: written, at least.
    :ivar flushes: and behind that, flushes.
    """

    bytes: int
    flushes: int = 0


def cuts(images: tuple[int, ...], chance: random.Random) -> list[Cut]:
    """Return the moments: most over what is written, every fifth one by flushes from a seam on.

    Seams are the beginning, the end of each image, and the end, where few bytes decide much.
    """
    total = sum(images)
    seams = [0, *(sum(images[:end]) for end in range(1, len(images) + 1))]
    seldom = CUTS // 5
    by_flushes = [Cut(seams[k % len(seams)], chance.randrange(1, 9)) for k in range(seldom)]
    usual = CUTS - seldom
    by_bytes = [Cut(int((k + chance.random()) / usual * total)) for k in range(usual)]
    found = by_bytes + by_flushes
    chance.shuffle(found)
    return found


class Content(NamedTuple):
    """What a slot holds, as hashes of its two partitions."""

    boot: str
    root: str

    @classmethod
    def of(cls, device: Device, slot: Slot) -> Content:
        table = device.layout()
        numbers = (cards.BOOT_A, cards.ROOT_A) if slot is Slot.A else (cards.BOOT_B, cards.ROOT_B)
        return cls(*(_hash(device.card, table[number]) for number in numbers))


def _hash(card: Path, partition: cards.Partition, size: int | None = None) -> str:
    found = hashlib.sha256()
    with card.open("rb") as file:
        file.seek(partition.offset)
        left = partition.size if size is None else size
        while left and (data := file.read(min(left, MIB))):
            found.update(data)
            left -= len(data)
    return found.hexdigest()


def complete_content(device: Device, manifest: Manifest) -> Content:
    """Return what slot B holds when the root is the bundle's; the start looks at its boot files."""
    (root,) = (image for image in manifest.images if image.slot == "rootfs")
    assert _hash(device.card, device.layout()[cards.ROOT_B], root.size) == root.sha256
    return Content.of(device, Slot.B)


def record(device: Device) -> BootRecord:
    with device.card.open("rb") as file:
        data = file.read(32 * cards.SECTOR)
    first, second = (data[at * 512 : at * 512 + 512] for at in boot_record.PLACES)
    return boot_record.newest((first, second))[0]


@pytest_asyncio.fixture(loop_scope="module")
async def device(tmp_path: Path) -> AsyncIterator[Device]:
    publisher = Publisher()
    bundle = publisher.sign(version("2.0.0"), tmp_path / "new.raucb")
    stick = Stick.of(tmp_path / "stick", bundle)
    # Nobody says that a slot is well: the test does.
    toml = publisher.configuration(health=600)
    made = Device(tmp_path, loaded("standin"), toml, stick.path)
    await made.chip.start()
    await made.on()
    await made.data_state()
    await made.run(stick.copy())
    try:
        yield made
    finally:
        await made.cut()
        await made.chip.stop()
        made.card.unlink()


class Given(NamedTuple):
    """What the card was given since QEMU began."""

    bytes: int
    flushes: int


async def given(device: Device) -> Given:
    answer = await device.machine.qmp("query-blockstats")
    (stats,) = (disk["stats"] for disk in answer if disk.get("device") == "card")
    return Given(stats["wr_bytes"], stats["flush_operations"])


async def install_and_cut(device: Device, when: Cut) -> tuple[Given, bool]:
    """Install until the moment; return what was given to the card, and whether it was complete."""
    before = await given(device)
    work = asyncio.create_task(device.machine.exec_shell.run(INSTALL, BOOT))
    seam: int | None = None
    now = before
    try:
        async with device.machine.within(BOOT):
            while not work.done():
                now = await given(device)
                if seam is None and now.bytes - before.bytes >= when.bytes:
                    seam = now.flushes
                if seam is not None and now.flushes >= seam + when.flushes:
                    break
                await asyncio.sleep(0.002)
    finally:
        complete = work.done()
        await device.cut()
        with contextlib.suppress(ShellError, MachineError):
            status, said = await work
            assert status == 0, said
    return Given(now.bytes - before.bytes, now.flushes - before.flushes), complete


async def start_again(device: Device, whole: dict[Content, str]) -> str:
    """Start after a cut; return what became of slot B once slot A runs."""
    found = record(device)
    content = Content.of(device, Slot.B)
    if found.state_b is not State.INCOMPLETE:
        assert content in whole, f"slot B is said to be {found.state_b.name} and is not whole"
    await device.on()
    booted = device.machine.booted
    assert booted is not None
    assert (booted.partition, booted.notes) == (cards.BOOT_A, ())
    said = await device.run(f"{UP}; {SLOTS} show")
    if found.trial:
        # Complete: the node went on to the trial by itself. That is cut as well.
        assert found.phase is Phase.READY
        assert "thicket.slot=B" in said
        assert "B: untried, runs, on trial" in said
        assert "2.0.0" in await device.run("cat /dev/dm-0 >/dev/null && cat /usr/lib/os-release")
        await device.cut()
        await device.on()
        said = await device.run(f"{UP}; {SLOTS} show")
        assert "B: bad, it was restarted or lost its power before it was well" in said
    assert "thicket.slot=A" in said
    assert (await device.data_state()) in ("clean", "repaired")
    if found.trial:
        return "complete: tried, cut on trial, left"
    if found.state_b is State.INCOMPLETE:
        assert "B: incomplete" in said
        return "incomplete"
    return f"not begun, {found.state_b.name.lower()}"


async def test_an_installation_that_is_cut_fifty_times_and_then_is_not(device: Device) -> None:
    begun = time.monotonic()
    with (device.directory / "new.raucb").open("rb") as file:
        manifest = bundles.read(file).manifest
    images = tuple(image.size for image in manifest.images)
    own = Content.of(device, Slot.A)
    flashed = Content.of(device, Slot.B)
    whole = {flashed: "as flashed"}
    ended: Counter[str] = Counter()
    await device.run(UP)
    for number, when in enumerate(cuts(images, random.Random(SEED)), start=1):
        done, complete = await install_and_cut(device, when)
        if record(device).trial and len(whole) == 1:
            whole[complete_content(device, manifest)] = "version 2"
        how = await start_again(device, whole)
        ended[how] += 1
        print(
            f"cut {number:2}: {done.bytes / MIB:6.1f} MiB and {done.flushes:3} flushes given, {how}"
            f"{'' if not complete else ' (it had ended)'}",
            flush=True,
        )
        assert Content.of(device, Slot.A) == own, "the slot that runs was written to"
    await device.run(f"{INSTALL} && rm {BUNDLE}")
    await device.restart("reboot", times=2)
    said = await device.run(f"{SLOTS} show; cat /usr/lib/os-release")
    assert "B: untried, runs, on trial" in said
    assert "2.0.0" in said
    await device.run(f"{SLOTS} set-state B good")
    await device.cut()
    await device.on()
    assert "B: good, runs" in await device.run(f"{SLOTS} show")
    print(f"{CUTS} power cuts while installing ({sum(images) / MIB:.0f} MiB), seed {SEED}:")
    for how, count in sorted(ended.items()):
        print(f"{count:4}  {how}")
    print(f"the installation behind them worked; {time.monotonic() - begun:.0f} s")
