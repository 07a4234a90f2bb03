# SPDX-License-Identifier: Apache-2.0
"""Card images booted as a device boots them: through the boot ROM, with a root under dm-verity.

The images are the stand-ins (Debian's programs on a card that the firmware's scripts make) and,
where they are built, ``make x86_64`` and ``make rpi64``. Every test has a fresh copy of the card,
larger than the image, as cards are. The nodes have a chip and no radio.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from firmware import boards, parts
from firmware import card as cards
from meshlab.lab import real_parts, shared
from meshlab.lab.testing import HANGS
from meshlab.machine import bootrom
from meshlab.machine.events import Panic, Reset, Shutdown
from meshlab.machine.shell import ShellError
from meshlab.machine.spec import CARD

sys.path.insert(0, str(Path(__file__).parent))
from card_device import BOOT, PANIC_SOON, TOML, Device
from card_images import loaded

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(HANGS, func_only=True),
]

MIB = 1 << 20
SIZE = 768 * MIB
SOAK = bool(os.environ.get("THICKET_SOAK"))
CORRUPT = re.compile(r"verity.*corrupt", re.IGNORECASE)


@pytest.fixture(params=[*real_parts.STANDINS, *real_parts.CARDS])
def image(request: pytest.FixtureRequest) -> real_parts.RealParts:
    return loaded(str(request.param))


@pytest_asyncio.fixture(loop_scope="module")
async def device(image: real_parts.RealParts, tmp_path: Path) -> AsyncIterator[Device]:
    made = Device(tmp_path, image)
    await made.chip.start()
    try:
        yield made
    finally:
        await made.cut()
        await made.chip.stop()
        made.card.unlink()


@pytest.fixture
def once(image: real_parts.RealParts) -> None:
    """Skip a test on the stand-in for arm64 where nothing in it is different."""
    if image.image == "standin-rpi64" and not SOAK:
        pytest.skip("on one architecture; on both: `make soak`, or THICKET_SOAK=1")


# -- starting


async def test_slot_a_starts_as_autoboot_says(device: Device) -> None:
    await device.on()
    root = await device.run("cat /proc/cmdline; cat /proc/mounts; echo /sys/block/dm-0/slaves/*")
    booted = device.machine.booted
    assert booted is not None
    assert (booted.partition, booted.notes) == (cards.BOOT_A, ())
    words = root.split()
    assert "thicket.slot=A" in words
    assert "/sys/block/dm-0/slaves/vda5" in words
    mounts = [line.split() for line in root.splitlines() if " / " in line]
    assert [mount[2] for mount in mounts] == ["erofs"]
    assert "ro" in mounts[0][3].split(",")
    assert "Read-only file system" in await device.run("! touch /usr/x")
    # And what the person wrote on the first partition has arrived.
    assert 'id = "boot-test"' in await device.run("cat /etc/thicket/thicket.toml")
    # The end of start-watch is nobody's business. init starts the daemon behind the scripts.
    await device.run("while [ ! -e /run/thicket/status.json ]; do sleep 0.2; done")
    assert "Terminated" not in device.machine.console_since_start()


SLOTS = "/usr/lib/thicket/boot-slots"
CRASH = f"{PANIC_SOON}; echo c >/proc/sysrq-trigger"


@pytest.mark.soak
@pytest.mark.usefixtures("once")
async def test_the_other_slot_is_tried_left_tried_and_taken(device: Device) -> None:
    await device.on()
    await device.data_state()
    await device.run(f"{SLOTS} set-primary B")
    # A usual restart is of slot A, which sees that B is to be tried and has the firmware told.
    await device.restart("reboot -f", times=2)
    assert "thicket.slot=B" in await device.run("cat /proc/cmdline")
    assert (await device.run("cd /sys/block/dm-0/slaves && echo *")).strip() == "vda6"
    booted = device.machine.booted
    assert booted is not None
    assert (booted.partition, booted.tryboot) == (cards.BOOT_B, True)
    assert "B: untried, runs, on trial" in await device.run(f"{SLOTS} show")
    # Nobody said that it is well.
    await device.restart("reboot -f")
    assert "thicket.slot=A" in await device.run("cat /proc/cmdline")
    said = await device.run(f"{SLOTS} show")
    assert "B: bad, it was restarted or lost its power before it was well" in said
    # Once more, the firmware being told at once; and now somebody says it.
    await device.run(f"{SLOTS} set-primary B")
    await device.restart("reboot -f", times=2)
    assert "B: untried, runs, on trial" in await device.run(f"{SLOTS} show")
    before = device.sectors()
    await device.run(f"{SLOTS} set-state B good")
    assert "boot_partition=3\n[tryboot]" in await device.run("cat /boot/autoboot.txt")
    await device.cut()
    # One sector of autoboot.txt and one of the boot record.
    pairs = enumerate(zip(before, device.sectors(), strict=True))
    changed = [number for number, (old, new) in pairs if old != new]
    first = cards.STATE_OFFSET // cards.SECTOR
    config = device.layout()[cards.CONFIG]
    assert len(changed) == 2, changed
    assert changed[0] in (first, first + 8)
    assert changed[1] * cards.SECTOR > config.offset
    look_over(device.card, config)
    await device.on()
    assert "thicket.slot=B" in await device.run("cat /proc/cmdline")
    assert "B: good, runs" in await device.run(f"{SLOTS} show")


async def test_rauc_knows_the_slots_by_our_backend(
    device: Device, image: real_parts.RealParts
) -> None:
    if image.image in real_parts.STANDINS:
        pytest.skip("Debian's programs have no RAUC that works without D-Bus")
    await device.on()
    await device.data_state()
    status = await rauc_status(device)
    assert status["RAUC_SYSTEM_COMPATIBLE"] == f"thicket-{image.image}"
    assert status["RAUC_SYSTEM_BOOTED_BOOTNAME"] == "A"
    assert status["RAUC_BOOT_PRIMARY"] == "boot.0"
    slots = {
        status[f"RAUC_SLOT_DEVICE_{n}"]: status.get(f"RAUC_SLOT_BOOT_STATUS_{n}")
        for n in status["RAUC_SLOTS"].split()
    }
    assert slots == {
        "/dev/slots/boot-a": "good",
        "/dev/slots/boot-b": "good",
        "/dev/slots/root-a": None,
        "/dev/slots/root-b": None,
    }
    await device.run("rauc status mark-bad other")
    assert "B: incomplete" in await device.run(f"{SLOTS} show")
    await device.run("rauc status mark-active other")
    assert "B: untried, to be tried" in await device.run(f"{SLOTS} show")
    await device.restart("reboot -f", times=2)
    status = await rauc_status(device)
    assert status["RAUC_SYSTEM_BOOTED_BOOTNAME"] == "B"
    assert status["RAUC_BOOT_PRIMARY"] == "boot.0"
    await device.run("rauc status mark-good")
    assert "B: good, runs" in await device.run(f"{SLOTS} show")


async def rauc_status(device: Device) -> dict[str, str]:
    """Return what RAUC says of the slots; empty values are left out."""
    said = await device.run("rauc status --output-format=shell 2>/dev/null")
    pairs = (word.partition("=") for word in shlex.split(said))
    return {name: value for name, _, value in pairs if value}


def look_over(card: Path, partition: cards.Partition) -> None:
    """Have fsck judge a FAT partition."""
    part = card.with_suffix(".part")
    with card.open("rb") as file:
        file.seek(partition.offset)
        part.write_bytes(file.read(partition.size))
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        ["fsck.fat", "-n", part],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    part.unlink()
    assert done.returncode == 0, done.stdout


async def test_a_slot_whose_kernel_fails_again_and_again_is_left(
    device: Device, image: real_parts.RealParts
) -> None:
    if image.image == real_parts.STANDIN:
        pytest.skip("the lab kernel keeps no last words (no pstore)")
    await device.on()
    for number in (1, 2, 3):
        await device.data_state()
        assert "thicket.slot=A" in await device.run("cat /proc/cmdline")
        # The start after the third one that failed has the other slot tried.
        await device.restart(CRASH, times=2 if number == 3 else 1)
    assert "thicket.slot=B" in await device.run("cat /proc/cmdline")
    said = await device.run(f"{SLOTS} show")
    assert "A: bad, it started again and again and was never well" in said
    assert "B: untried, runs, on trial" in said


# Mainline's names of device trees, where an image was built from that (the firmware takes those
# with upstream_kernel=1). The others have one name in both, or are in the Raspberry Pi kernel only.
MAINLINE = {
    "bcm2710-rpi-3-b": "bcm2837-rpi-3-b",
    "bcm2710-rpi-3-b-plus": "bcm2837-rpi-3-b-plus",
    "bcm2710-rpi-zero-2-w": "bcm2837-rpi-zero-2-w",
    "bcm2711-rpi-cm4": "bcm2711-rpi-cm4-io",
}
DOWNSTREAM = ("cm3", "cm4s", "cm5", "cm5lite", "pi500")
PARTS = parts.load(boards.ROOT / "board/rpi64/parts.toml")


@pytest.mark.parametrize("name", ["standin-rpi64", "rpi64"])
async def test_every_pi_finds_its_files(name: str, tmp_path: Path) -> None:
    """What QEMU does not read: firmware, device tree, and lines that are not cut off."""
    loaded(name).disks(tmp_path, TOML)
    card = tmp_path / CARD
    mainline = real_parts.partition(card, 2).has("bcm2837-rpi-3-b.dtb")
    for key, model in PARTS.models.items():
        if not (mainline and key in DOWNSTREAM):
            look_for_the_files_of(model, card)
    first = real_parts.partition(card, cards.CONFIG)
    assert first.has("bootcode.bin"), "a Pi 3 and a Zero 2 W begin with it"
    card.unlink()


def look_for_the_files_of(model: parts.Model, card: Path) -> None:
    names = (model.tree, MAINLINE.get(model.tree, model.tree))
    for request, number in ((bootrom.Request(), 2), (bootrom.Request(tryboot=True), 3)):
        found = bootrom.boot(card, request, bootrom.MODELS[model.boots_as])
        assert (found.partition, found.notes) == (number, ()), model.name
        fat = real_parts.partition(card, number)
        assert any(fat.has(f"{tree}.dtb") for tree in names), f"{model.name}: none of {names}"


# -- a root that is not what was built


@dataclass(frozen=True)
class Tree:
    """Where a root and its hash tree are on the card, from the slot's own command line."""

    start: int
    blocks: int

    @classmethod
    def of(cls, device: Device) -> Tree:
        words = shlex.split(bootrom.boot(device.card).cmdline)
        (table,) = [word for word in words if word.startswith("dm-mod.create=")]
        found = re.search(r"verity 1 \S+ \S+ 4096 4096 (\d+) (\d+) ", table)
        assert found
        assert found.group(1) == found.group(2), "the tree follows the root"
        return cls(device.layout()[cards.ROOT_A].offset, int(found.group(1)))

    def place(self, what: str, chance: random.Random) -> int:
        """Return the offset of a byte of the card."""
        root = self.blocks * 4096
        # SHA-256: 128 hashes in a block. The block at the top comes first, the leaves last.
        leaves = -(-self.blocks // 128)
        upper = -(-leaves // 128)
        first_leaf = root + (upper + (1 if upper > 1 else 0)) * 4096
        return (
            self.start
            + {
                # erofs_fs.h: the superblock is at byte 1024 and has 128 bytes
                "superblock": lambda: 1024 + chance.randrange(128),
                "metadata": lambda: 4096 + chance.randrange(64 * 4096),
                "data": lambda: chance.randrange(root // 4, root),
                "top of the tree": lambda: root + chance.randrange(4096),
                "leaf of the tree": lambda: first_leaf + chance.randrange((leaves - 1) * 4096),
            }[what]()
        )


READ_ALL = PANIC_SOON + "; find / -xdev -type f -exec cat {} + 2>/dev/null | md5sum"
ARM64_PLACES = (0,)
"""Which of PLACES are looked at on the stand-in for arm64 as well: nothing in it is different."""
PLACES = ("superblock", "metadata", "data", "data", "top of the tree", "leaf of the tree")


@pytest_asyncio.fixture(loop_scope="module")
async def right(image: real_parts.RealParts, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What reading all files of the root gives; read once per run and image."""

    async def read(path: Path) -> None:
        made = Device(tmp_path_factory.mktemp("right"), image)
        await made.chip.start()
        try:
            await made.on()
            path.write_text(await made.run(READ_ALL))
            assert made.seen(Reset) == []
        finally:
            await made.cut()
            await made.chip.stop()
            made.card.unlink()

    directory = shared.run_directory(tmp_path_factory)
    return (await shared.once_async(directory, f"right-{image.image}", read)).read_text()


@pytest.fixture
def seed(request: pytest.FixtureRequest, image: real_parts.RealParts) -> int:
    number = int(request.param)
    if image.image == "standin-rpi64" and number not in ARM64_PLACES and not SOAK:
        pytest.skip("every place on one architecture; on both: `make soak`, or THICKET_SOAK=1")
    return number


@pytest.mark.soak
@pytest.mark.parametrize(
    "seed", range(len(PLACES)), ids=[f"{p}-{i}" for i, p in enumerate(PLACES)], indirect=True
)
async def test_a_flipped_bit_restarts_and_never_gives_wrong_data(
    seed: int, device: Device, right: str
) -> None:
    chance = random.Random(seed)
    offset = Tree.of(device).place(PLACES[seed], chance)
    device.flip(offset, chance.randrange(8))
    await device.on()
    files = raw = None
    # All files, then every block of the root, also what belongs to no file.
    while not device.seen(Panic) and raw is None:
        try:
            if files is None:
                files = (await device.machine.exec_shell.run(READ_ALL, BOOT))[1]
            raw = (await device.machine.exec_shell.run("cat /dev/dm-0 >/dev/null", BOOT))[0]
        except ShellError:
            assert device.machine.running, device.report()
            await asyncio.sleep(0.1)
    assert raw is None, f"byte {offset} of the card is wrong and nobody noticed"
    assert files in (None, right), "wrong data was read before the restart"
    await device.until(lambda: bool(device.seen(Reset)), "the restart")
    assert CORRUPT.search(device.seen(Panic)[0].message), device.report()
    assert device.seen(Reset)[0] == Reset("guest-reset", True)
    assert device.machine.running


async def test_the_other_slot_is_no_worse_for_it(device: Device) -> None:
    """Slot A destroyed from end to end, slot B chosen: everything works."""
    slot = device.layout()[cards.ROOT_A]
    with device.card.open("r+b") as file:
        file.seek(slot.offset)
        for _ in range(slot.size // MIB):
            file.write(os.urandom(MIB))
    real_parts.partition(device.card, cards.CONFIG).write(bootrom.AUTOBOOT, b"boot_partition=3\n")
    await device.on()
    assert "thicket.slot=B" in await device.run("cat /proc/cmdline")
    assert await device.data_state() == "created"
    assert device.seen(Reset) == []


# -- a card that is not what it was: on arm64 test_raspi.py has it as well


@pytest.mark.soak
@pytest.mark.usefixtures("once")
async def test_data_grows_to_the_card_s_end_and_survives_power_cuts(device: Device) -> None:
    await device.on()
    assert await device.data_state() == "created"
    kib = int((await device.run("df -k /data")).splitlines()[-1].split()[1])
    data = device.layout()[cards.DATA]
    assert SIZE - 8 * MIB < data.end <= SIZE
    assert kib * 1024 > 0.85 * data.size
    await device.run("echo kept >/data/kept && sync")
    for _ in range(2):
        await device.cut()
        await device.on()
        assert await device.data_state() in ("clean", "repaired")
        assert await device.run("cat /data/kept") == "kept\n"
    await device.off()
    await device.on()
    assert await device.data_state() == "clean"


@pytest.mark.soak
@pytest.mark.usefixtures("once")
@pytest.mark.parametrize("behind", ["nothing", "zeros", "garbage"])
async def test_a_card_cut_off_behind_the_roots(device: Device, behind: str) -> None:
    end = device.layout()[cards.ROOT_B].end
    os.truncate(device.card, end)
    if behind != "nothing":
        os.truncate(device.card, SIZE)
    if behind == "garbage":
        with device.card.open("r+b") as file:
            file.seek(end)
            chance = random.Random(1)
            for _ in range((SIZE - end) // MIB):
                file.write(chance.randbytes(MIB))
    await device.on()
    state = await device.data_state()
    await device.run("echo works >/data/x && sync")
    assert "thicket.slot=A" in await device.run("cat /proc/cmdline")
    if behind == "nothing":
        # There is no room for any: it runs, and says that nothing is kept.
        assert state == "ram"
        return
    assert state in ("created", "rebuilt")
    await device.cut()
    await device.on()
    assert await device.data_state() in ("clean", "repaired")
    assert await device.run("cat /data/x") == "works\n"


@pytest.mark.soak
@pytest.mark.usefixtures("once")
async def test_a_card_cut_off_inside_data(device: Device) -> None:
    await device.on()
    await device.data_state()
    await device.run("echo before >/data/x && sync")
    await device.off()
    os.truncate(device.card, device.layout()[cards.DATA].offset + 96 * MIB)
    await device.on()
    assert await device.data_state() in ("created", "rebuilt", "repaired")
    await device.run("echo after >/data/x && sync")
    await device.cut()
    await device.on()
    assert await device.data_state() in ("clean", "repaired")
    assert await device.run("cat /data/x") == "after\n"


# -- switched off


async def test_the_power_button_switches_off_in_order(
    device: Device, image: real_parts.RealParts
) -> None:
    if image.image != "x86_64":
        pytest.skip("the kernel has no driver for this machine's button; test_raspi has the Pi's")
    await device.on()
    await device.run("while [ ! -e /run/thicket/booted ]; do sleep 0.2; done; pidof acpid")
    await device.machine.powerdown()
    async with device.machine.within(BOOT):
        await device.machine.wait()
    assert any(detail.guest for detail in device.seen(Shutdown)), device.report()
    await device.on()
    # That it was in order, init's last script has noted.
    told = "until [ -s $f ]; do sleep 0.2; done; cat $f"
    restart = json.loads(await device.run(f"f=/run/thicket/last-restart.json; {told}"))
    assert restart["reason"] == "shutdown", restart


# -- what is left of a kernel that died


async def test_the_last_words_of_a_panic_survive_the_restart(
    device: Device, image: real_parts.RealParts
) -> None:
    """Memory keeps its content over a restart, as on a Pi, and loses it with the power."""
    if image.image == real_parts.STANDIN:
        pytest.skip("the lab kernel keeps no last words (no pstore)")
    await device.on()
    await device.data_state()
    await device.restart(CRASH)
    assert "sysrq" in device.seen(Panic)[0].message
    kept = await device.run("cat /sys/fs/pstore/* /data/thicket/* 2>/dev/null; true")
    assert "sysrq triggered crash" in kept, device.report()
    # And the daemon says so, in words.
    told = "until [ -s $f ]; do sleep 0.2; done; cat $f"
    restart = json.loads(await device.run(f"f=/run/thicket/last-restart.json; {told}"))
    assert restart["reason"] == "panic", restart
    assert "sysrq" in json.dumps(restart)
