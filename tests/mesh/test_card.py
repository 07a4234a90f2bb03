# SPDX-License-Identifier: Apache-2.0
"""A node whose root, settings and data are partitions of one card, as on a board.

The lab image on a card that carries the firmware's partition table: the kernel mounts slot A's root
through the device mapper, everything after that is the overlay's scripts and the daemon. The node
has neither radio nor chip, which is not what this is about. The tests run in their order: the card
grows old, is copied, cut off, damaged and filled up.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from meshlab import accel
from meshlab.image import lab as lab_image
from meshlab.image.config import make_config_disk
from meshlab.machine import Machine, MachineSpec
from meshlab.paths import cache_root

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(900, func_only=True),
]

SECTOR = 512
MIB = 2048  # in sectors
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGm3S2ZKwQ0q8k7xZ2xk9y3m0m6m8nq9cQb4m2Yx5G1c test"
TOML = f"""
[mesh]
id = "card"
[identity]
i2c_bus = "none"
[access]
ssh_keys = "{KEY}"
[application.sensors]
pins = [4, 17]
"""

# Start and length of the partitions, in MiB: as on a card, but smaller.
CONFIG, BOOT_A, BOOT_B = (4, 40), (44, 4), (48, 4)
ROOT_A, ROOT_B, DATA = (53, 64), (118, 64), (183, 48)
IMAGE_END = 231


def entry(kind: int, first: int, count: int) -> bytes:
    return struct.pack("<B3sB3sII", 0, b"\xfe\xff\xff", kind, b"\xfe\xff\xff", first, count)


def record(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def make_card(path: Path, root: Path, toml: str) -> None:
    """Write a card image: the table, the FAT partition with ``toml``, slot A's root."""

    def of(partition: tuple[int, int], kind: int = 0x83, base: int = 0) -> bytes:
        return entry(kind, (partition[0] - base) * MIB, partition[1] * MIB)

    mbr = bytearray(
        record(of(CONFIG, 0x0C), of(BOOT_A, 0x0C), of(BOOT_B, 0x0C), of((52, IMAGE_END - 52), 0x0F))
    )
    mbr[440:444] = (0x5448434B).to_bytes(4, "little")
    fat = path.with_suffix(".fat")
    make_config_disk(fat, toml)
    with path.open("wb") as card:
        card.truncate(IMAGE_END * MIB * SECTOR)
        for place, data in (
            (0, bytes(mbr)),
            (52, record(of(ROOT_A, base=52), of((117, 65), 0x05, 52))),
            (117, record(of(ROOT_B, base=117), of((182, 49), 0x05, 52))),
            (182, record(of(DATA, base=182))),
            (CONFIG[0], fat.read_bytes()),
            (ROOT_A[0], root.read_bytes()),
        ):
            card.seek(place * MIB * SECTOR)
            card.write(data)
    fat.unlink()


class Node:
    """The machine, and short words for what the tests ask of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.card = directory / "card.img"
        image = lab_image.build(cache_root())
        self.root = image.rootfs
        make_card(self.card, image.rootfs, TOML)
        (directory / "config.img").write_bytes(bytes(1 << 20))
        self.options = " ".join(
            word
            for word in image.cmdline.split()
            if not word.startswith(("root", "thicket.", "ro"))
        )
        self.kernel = image.kernel
        self.accel = accel.choose(cache_root())
        self.machine: Machine | None = None

    async def start(
        self, data: str = "/dev/slots/data", root: Path | None = None, wait: bool = True
    ) -> None:
        """Switch on, and wait until the daemon has come so far that it knows its past."""
        # slot A's root through the device mapper, as under dm-verity
        table = f"0 {ROOT_A[1] * MIB} linear PARTUUID=5448434b-05 0"
        cmdline = (
            f'{self.options} root=/dev/dm-0 rootfstype=erofs ro dm-mod.create="root,,,ro,{table}" '
            f"thicket.slot=A thicket.boot=/dev/slots/config thicket.data={data}"
        )
        self.machine = Machine(
            MachineSpec(
                name="card",
                directory=self.directory,
                kernel=self.kernel,
                rootfs=root or self.root,
                cmdline=cmdline,
                accel=self.accel,
                chip=False,
                relay=False,
                data=self.card.name,
            )
        )
        await self.machine.start()
        if wait:
            await self.until(self.knows_its_past, "the daemon knows its past")

    async def off(self) -> None:
        """Switch off in order."""
        assert self.machine is not None
        await self.machine.stop(180)
        self.machine = None

    async def cut(self) -> None:
        """Cut the power."""
        if self.machine is not None:
            self.machine.kill()
            await self.machine.wait()
            self.machine = None

    async def run(self, command: str, timeout: float = 180) -> str:
        """Run a command that must succeed; its output."""
        assert self.machine is not None
        status, output = await self.machine.exec_shell.run(command, timeout)
        assert status == 0, f"{command!r} ended with {status}: {output}\n{self.console()}"
        return output

    async def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(await self.run("cat /run/thicket/status.json"))
        return document

    async def knows_its_past(self) -> bool:
        assert self.machine is not None
        command = "[ -e /run/thicket/last-restart.json ] && [ -e /run/thicket/status.json ]"
        known = (await self.machine.exec_shell.run(command, 180))[0] == 0
        return known and (await self.status())["last_restart"] is not None

    async def until(
        self, check: Callable[[], Awaitable[bool]], what: str, seconds: float = 300
    ) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not await check():  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise AssertionError(f"not within {seconds:g} s: {what}\n{self.console()}") from None

    def console(self) -> str:
        log = self.directory / "console.log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    async def problems(self, part: str) -> list[str]:
        return [str(p["message"]) for p in (await self.status())["problems"] if p["part"] == part]

    def patch(self, sector: int, data: bytes) -> None:
        with self.card.open("r+b") as card:
            card.seek(sector * SECTOR)
            card.write(data)

    def resize(self, mib: int) -> None:
        os.truncate(self.card, mib * MIB * SECTOR)

    def config_part(self) -> bytes:
        with self.card.open("rb") as card:
            card.seek(CONFIG[0] * MIB * SECTOR)
            return card.read(1 << 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def node() -> AsyncIterator[Node]:
    directory = cache_root() / "labs" / "test-card"
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    made = Node(directory)
    try:
        yield made
    finally:
        await made.cut()


async def kibibytes(node: Node) -> int:
    """Return the size of the file system on /data."""
    return int((await node.run("df -k /data")).splitlines()[-1].split()[1])


async def test_the_first_boot_uses_the_whole_card(node: Node) -> None:
    node.resize(300)
    await node.start()
    links = await node.run("cd /dev/slots && for l in *; do echo $l $(readlink $l); done")
    assert links.split() == [
        "boot-a", "/dev/vdb2", "boot-b", "/dev/vdb3", "config", "/dev/vdb1", "data", "/dev/vdb7",
        "root-a", "/dev/vdb5", "root-b", "/dev/vdb6",
    ]  # fmt: skip
    # from MiB 183 to 300, less what ext4 keeps for itself
    assert int(await node.run("cat /sys/class/block/vdb7/size")) == 117 * MIB
    assert await kibibytes(node) > 100 * 1024
    status = await node.status()
    assert status["data"]["state"] == "created"
    assert status["slot"] == "A"
    assert status["last_restart"]["reason"] == "first"
    assert status["configuration"]["source"] == "/etc/thicket/thicket.toml"


async def test_names_follow_the_identity(node: Node) -> None:
    name = (await node.status())["hostname"]
    assert re.fullmatch("n-[0-9a-f]{12}", name)

    async def named() -> bool:
        text = await node.run("cat /etc/hostname")
        return text.strip() == str(name)

    await node.until(named, "/etc/hostname has the name")
    assert (await node.run("hostname")).strip() == name
    assert re.fullmatch("[0-9a-f]{32}\n", await node.run("tr -d '\\r' </etc/machine-id"))


async def test_an_image_without_ssh_says_so(node: Node) -> None:
    async def told() -> bool:
        return "no SSH server" in str(await node.problems("access"))

    await node.until(told, "the missing SSH server is a problem")


async def test_the_serial_console_is_closed(node: Node) -> None:
    assert "ttyS0" in await node.run("cat /run/thicket/serial")
    assert "ttyS0" not in await node.run("cat /etc/inittab")
    await node.run("thicket config set access.console=true")

    async def shells() -> bool:
        output = await node.run("for p in /proc/[0-9]*; do readlink $p/fd/0; done | cat")
        return "/dev/ttyS0" in output

    await node.until(shells, "a shell on the serial port")
    await node.run("thicket config set access.console=false")

    async def none() -> bool:
        return not await shells()

    await node.until(none, "no shell on the serial port")


async def test_the_report_is_on_the_card(node: Node) -> None:
    async def written() -> bool:
        assert node.machine is not None
        return (await node.machine.exec_shell.run("grep -q n- /boot/report.txt", 180))[0] == 0

    await node.until(written, "report.txt appears")
    report = await node.run("cat /boot/report.txt")
    name = (await node.status())["hostname"]
    for words in (name, "slot A", "created", "no SSH server", "no security chip"):
        assert words in report, report
    assert int(await node.run("wc -c </boot/report.txt")) == 16384
    assert " ro," in await node.run("grep ' /boot ' /proc/mounts")


async def test_a_report_in_place_changes_only_its_own_sectors(node: Node) -> None:
    before = node.config_part()
    write = 'assert report.write(Paths(), "another report")'
    await node.run(
        f"python3 -c 'from thicket import report; from thicket.config import Paths; {write}'"
    )
    assert "another report" in await node.run("cat /boot/report.txt")
    after = node.config_part()
    start = before.index(b"Written: ")
    changed = [
        n
        for n in range(len(before) // SECTOR)
        if before[n * SECTOR :][:SECTOR] != after[n * SECTOR :][:SECTOR]
    ]
    assert changed
    assert all(start <= n * SECTOR < start + 16384 for n in changed)


async def test_an_orderly_end_is_told_from_a_power_cut(node: Node) -> None:
    await node.run("echo kept >/data/kept; sync")
    await node.off()
    await node.start()
    status = await node.status()
    assert (status["last_restart"]["reason"], status["last_restart"]["run"]) == ("shutdown", 2)
    assert status["data"]["state"] == "clean"
    await node.cut()
    await node.start()
    status = await node.status()
    assert (status["last_restart"]["reason"], status["last_restart"]["run"]) == ("power", 3)
    assert "power cut" in await node.run("thicket status; true")
    assert (await node.run("cat /data/kept")).strip() == "kept"


async def test_a_way_in_is_open_before_the_daemon_closes_it(node: Node) -> None:
    """What was open last time is open without the daemon, which then does what is configured."""
    await node.run("touch /data/thicket/console; sync")
    await node.off()
    await node.start()

    async def closed() -> bool:
        # init.d/S60access.sh had written the line, the daemon switched it off
        return "\n#:respawn:sh -l </dev/ttyS0" in await node.run("cat /etc/inittab")

    await node.until(closed, "the daemon closed what the scripts had opened")
    await node.run("[ ! -e /data/thicket/console ]")


async def test_the_saved_time_is_the_least(node: Node) -> None:
    # the machine's own clock is right; the file says that it is behind
    await node.run("touch -d 2031-05-06 /data/thicket/clock; sync")
    await node.cut()
    await node.start()
    assert (await node.run("date +%Y-%m-%d")).strip() == "2031-05-06"
    await node.run("touch -d 2300-01-01 /data/thicket/clock; sync")
    await node.cut()
    await node.start()
    assert (await node.run("date +%Y")).strip() < "2100"
    assert "not believed" in await node.run("dmesg")


async def test_a_card_copied_to_a_larger_one_grows(node: Node) -> None:
    await node.off()
    node.resize(420)
    await node.start()
    assert await kibibytes(node) > 210 * 1024
    assert "/data grown" in await node.run("dmesg")
    assert (await node.status())["data"]["state"] == "clean"
    assert (await node.run("cat /data/kept")).strip() == "kept"


async def test_a_damaged_record_is_made_again_and_the_data_found(node: Node) -> None:
    await node.off()
    node.patch(182 * MIB, os.urandom(510) + b"\x55\xaa")
    await node.start()
    assert (await node.run("cat /data/kept")).strip() == "kept"
    assert "made again" in await node.run("dmesg")


async def test_a_card_cut_off_behind_the_slots_gets_new_data(node: Node) -> None:
    await node.off()
    node.resize(182)
    node.resize(260)
    node.patch(182 * MIB, os.urandom(4 * MIB * SECTOR))
    await node.start()
    status = await node.status()
    assert status["data"]["state"] == "rebuilt"
    assert status["last_restart"]["reason"] == "unknown"
    assert await kibibytes(node) > 60 * 1024
    assert (await node.run("readlink /dev/slots/data")).strip() == "/dev/vdb7"


async def test_without_room_the_data_is_in_ram(node: Node) -> None:
    await node.off()
    node.resize(182)
    await node.start()
    status = await node.status()
    assert status["data"]["state"] == "ram"
    assert "no room" in status["data"]["message"]
    assert any("RAM" in text for text in await node.problems("data"))
    await node.off()
    node.resize(300)
    await node.start()
    assert (await node.status())["data"]["state"] in ("created", "rebuilt")


async def test_garbage_in_every_file_and_a_full_disk(node: Node) -> None:
    await node.run(
        "for f in $(find /data -type f); do dd if=/dev/urandom of=$f bs=3k count=1; done; sync"
    )
    await node.cut()
    await node.start()
    assert (await node.status())["last_restart"]["reason"] == "unknown"
    await node.run(
        "dd if=/dev/zero of=/data/fill bs=1M; dd if=/dev/zero of=/data/fill2 bs=4k; sync; true"
    )
    await node.off()
    await node.start()
    # the mark of an orderly end needs no room
    assert (await node.status())["last_restart"]["reason"] == "shutdown"
    await node.run("rm /data/fill /data/fill2")


async def test_a_write_protected_card_is_read(node: Node) -> None:
    await node.off()
    image = node.directory / "protected.img"
    subprocess.run(  # noqa: ASYNC221
        ["mke2fs", "-q", "-t", "ext4", str(image), "16M"], check=True, capture_output=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )  # fmt: skip
    # the first disk of the machine cannot be written
    await node.start(data="/dev/vda", root=image)
    status = await node.status()
    assert status["data"]["state"] == "readonly"
    await node.off()


async def test_a_frozen_node_is_restarted_by_the_watchdog(node: Node) -> None:
    await node.start()
    assert "/sbin/watchdog -F" in await node.run("ps")
    assert node.machine is not None
    restarts = node.machine.resets
    await node.run("kill -STOP $(pidof watchdog)")

    async def restarted() -> bool:
        assert node.machine is not None
        return node.machine.resets > restarts

    await node.until(restarted, "the watchdog restarts the machine")
    await node.until(node.knows_its_past, "the daemon knows its past")
    assert (await node.status())["last_restart"]["reason"] == "watchdog"
