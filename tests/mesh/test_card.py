# SPDX-License-Identifier: Apache-2.0
"""A node whose root, settings and data are partitions of one card, as on a board.

The lab image on a card that carries the firmware's partition table: the kernel mounts slot A's root
through the device mapper, everything after that is the overlay's scripts and the daemon. The node
has neither radio nor chip, which is not what this is about.

Every test has a card of its own: ``fresh``, as it comes from its image, or ``used``, a copy of one
that a node has started from and left in order, which the run makes once. Tests that only look at a
node, or put back what they change, share the module's ``running`` one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from host.cache import cache_root
from meshlab.image import lab as lab_image
from meshlab.image.config import make_config_disk
from meshlab.lab import shared
from meshlab.lab.real_parts import copy_card
from meshlab.machine import accel
from meshlab.machine.events import MachineEvent, Shutdown
from meshlab.machine.machine import Machine
from meshlab.machine.shell import ShellError
from meshlab.machine.spec import MachineSpec

on_the_running_node = pytest.mark.xdist_group("card-running")

PATIENCE = 300.0
"""Seconds within which a node does what it is asked, on a busy host that emulates it."""
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

TOOLS = {**os.environ, "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}

# Start and length of the partitions, in MiB: as on a card, but smaller.
CONFIG, BOOT_A, BOOT_B = (4, 40), (44, 4), (48, 4)
ROOT_MIB = 96
ROOT_A = (53, ROOT_MIB)
ROOT_B = (ROOT_A[0] + ROOT_MIB + 1, ROOT_MIB)
DATA = (ROOT_B[0] + ROOT_MIB + 1, 48)
IMAGE_END = DATA[0] + DATA[1]
CARD_MIB = IMAGE_END + 69


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
    # The record of a logical partition stands in the megabyte before it.
    before_b, before_data = ((start - 1, size + 1) for start, size in (ROOT_B, DATA))
    assert root.stat().st_size <= ROOT_MIB * MIB * SECTOR, "the lab's root has outgrown this card"
    fat = path.with_suffix(".fat")
    make_config_disk(fat, toml)
    with path.open("wb") as card:
        card.truncate(IMAGE_END * MIB * SECTOR)
        for place, data in (
            (0, bytes(mbr)),
            (52, record(of(ROOT_A, base=52), of(before_b, 0x05, 52))),
            (before_b[0], record(of(ROOT_B, base=before_b[0]), of(before_data, 0x05, 52))),
            (before_data[0], record(of(DATA, base=before_data[0]))),
            (CONFIG[0], fat.read_bytes()),
            (ROOT_A[0], root.read_bytes()),
        ):
            card.seek(place * MIB * SECTOR)
            card.write(data)
    fat.unlink()


class Node:
    """A card, the machine that it is put into, and short words for what the tests ask of it."""

    def __init__(self, directory: Path, card: Path | None = None) -> None:
        """Make a node whose card is a copy of ``card``, or as it comes from its image."""
        self.directory = directory
        self.card = directory / "card.img"
        image = lab_image.build(cache_root())
        self.root = image.rootfs
        if card is None:
            make_card(self.card, image.rootfs, TOML)
            self.resize(CARD_MIB)
        else:
            copy_card(card, self.card, 0)
        (directory / "config.img").write_bytes(bytes(1 << 20))
        self.options = " ".join(
            word
            for word in image.cmdline.split()
            if not word.startswith(("root", "thicket.", "ro"))
        )
        self.kernel = image.kernel
        self.accel = accel.choose(cache_root())
        self.events: list[MachineEvent] = []
        self._machine: Machine | None = None

    @property
    def machine(self) -> Machine:
        assert self._machine is not None, "the node is off"
        return self._machine

    async def start(self, data: str = "/dev/slots/data", root: Path | None = None) -> None:
        """Switch on, and wait until the daemon tells its status."""
        # slot A's root through the device mapper, as under dm-verity
        table = f"0 {ROOT_A[1] * MIB} linear PARTUUID=5448434b-05 0"
        cmdline = (
            f'{self.options} root=/dev/dm-0 rootfstype=erofs ro dm-mod.create="root,,,ro,{table}" '
            f"thicket.slot=A thicket.boot=/dev/slots/config thicket.data={data}"
        )
        self.events.clear()
        self._machine = Machine(
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
            ),
            self.events.append,
        )
        await self._machine.start()
        await self.succeeds("[ -s /run/thicket/status.json ]", "the daemon tells its status")

    async def off(self) -> None:
        """Switch off in order."""
        await self.machine.stop(PATIENCE)
        self._machine = None
        assert any(isinstance(event, Shutdown) and event.guest for event in self.events), (
            f"not switched off in order within {PATIENCE:g} s\n{self.console()}"
        )

    async def cut(self) -> None:
        """Cut the power."""
        if self._machine is not None:
            self._machine.kill()
            await self._machine.wait()
            self._machine = None

    async def run(self, command: str) -> str:
        """Run a command that must succeed; its output."""
        status, output = await self.machine.exec_shell.run(command, PATIENCE)
        assert status == 0, f"{command!r} ended with {status}: {output}\n{self.console()}"
        return output

    async def succeeds(self, command: str, what: str) -> None:
        """Wait until ``command`` succeeds; before that the node may still start, or restart."""

        async def done() -> bool:
            try:
                return (await self.machine.exec_shell.run(command, PATIENCE))[0] == 0
            except ShellError:
                assert self.machine.running, f"the machine ended\n{self.console()}"
                return False

        await self.until(done, what)

    async def until(self, check: Callable[[], Awaitable[bool]], what: str) -> None:
        try:
            async with self.machine.within(PATIENCE):
                while not await check():  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE:g} s: {what}\n{self.console()}") from None

    async def status(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(await self.run("cat /run/thicket/status.json"))
        return document

    async def last_restart(self) -> dict[str, Any]:
        """Return how the run before ended, as soon as the daemon has found out and kept it."""
        found: dict[str, Any] = {}

        async def known() -> bool:
            found.update((await self.status())["last_restart"] or {})
            return bool(found)

        await self.until(known, "the daemon knows how the run before ended")
        return found

    async def data_state(self) -> str:
        return str((await self.status())["data"]["state"])

    async def name(self) -> str:
        """Return the host name, as soon as the node knows who it is."""
        found = ""

        async def known() -> bool:
            nonlocal found
            found = (await self.status())["hostname"]
            return bool(found)

        await self.until(known, "the node knows its name")
        return found

    def console(self) -> str:
        log = self.directory / "console.log"
        return log.read_text(errors="replace")[-3000:] if log.exists() else ""

    async def problems(self, part: str) -> list[str]:
        return [str(p["message"]) for p in (await self.status())["problems"] if p["part"] == part]

    # -- the card in the hands of a person, while the node is off or does not write

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

    def ask_for_reset(self) -> None:
        """Put the file onto the first partition that asks for a factory reset."""
        place = f"{self.card}@@{CONFIG[0] * MIB * SECTOR}"
        command = ["mcopy", "-i", place, "-", "::factory-reset"]
        subprocess.run(command, input=b"", check=True, env={**TOOLS, "MTOOLS_SKIP_CHECK": "1"})

    def debugfs(self, *requests: str) -> str:
        """Read or change the file system of /data: requests as in debugfs(8), paths from its top;
        return what they print."""
        done = subprocess.run(
            ["debugfs", "-w", "-f", "-", f"{self.card}?offset={DATA[0] * MIB * SECTOR}"],
            input="\n".join(requests), capture_output=True, text=True, check=False, env=TOOLS,
        )  # fmt: skip
        # Its status is 0 whatever happens; what it says on stderr begins with its version.
        assert done.returncode == 0, done.stderr
        assert not done.stderr.splitlines()[1:], done.stderr
        return "\n".join(
            line for line in done.stdout.splitlines() if not line.startswith("debugfs: ")
        )


@pytest_asyncio.fixture(loop_scope="module")
async def fresh(tmp_path: Path) -> AsyncIterator[Node]:
    """A card as it comes from its image, on which no node has started."""
    made = Node(tmp_path)
    try:
        yield made
    finally:
        await made.cut()
        made.card.unlink()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def used_card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A card from which a node started for the first time; it kept a file and was switched off."""

    async def use(path: Path) -> None:
        node = Node(tmp_path_factory.mktemp("used"))
        try:
            await node.start()
            assert await node.data_state() == "created"
            assert (await node.last_restart())["reason"] == "first"
            await node.run("echo kept >/data/kept")
            await node.off()
            node.card.rename(path)
        finally:
            await node.cut()

    return await shared.once_async(shared.run_directory(tmp_path_factory), "used-card.img", use)


@pytest_asyncio.fixture(loop_scope="module")
async def used(tmp_path: Path, used_card: Path) -> AsyncIterator[Node]:
    """A node with a copy of the used card, switched off."""
    made = Node(tmp_path, used_card)
    try:
        yield made
    finally:
        await made.cut()
        made.card.unlink()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Node]:
    """A node that has started from a fresh card, for tests that leave it as it was."""
    made = Node(tmp_path_factory.mktemp("running"))
    try:
        await made.start()
        yield made
    finally:
        await made.cut()
        made.card.unlink()


async def kibibytes(node: Node) -> int:
    """Return the size of the file system on /data."""
    return int((await node.run("df -k /data")).splitlines()[-1].split()[1])


async def kept(node: Node) -> bool:
    """Tell whether the file that the used card had is there."""
    return (await node.run("cat /data/kept")).strip() == "kept"


async def reported(node: Node) -> str:
    """Return the report on the card, as soon as the node has written one."""
    await node.succeeds("grep -q '^Written: ' /boot/report.txt", "report.txt appears")
    return await node.run("cat /boot/report.txt")


# -- a frozen node first: its watchdog takes a minute, in which other workers have the processors


async def test_a_frozen_node_is_restarted_by_the_watchdog(fresh: Node) -> None:
    await fresh.start()
    assert (await fresh.last_restart())["reason"] == "first"
    feeder = "pidof watchdog | grep -x '[0-9]*'"
    await fresh.succeeds(f"ls -l /proc/$({feeder})/fd | grep -q /dev/watchdog", "it is armed")
    assert "/sbin/watchdog -F" in await fresh.run(f"tr '\\0' ' ' </proc/$({feeder})/cmdline")
    restarts = fresh.machine.resets
    await fresh.run(f"kill -STOP $({feeder})")

    async def restarted() -> bool:
        return fresh.machine.resets > restarts

    await fresh.until(restarted, "the watchdog restarts the machine")
    await fresh.succeeds("[ -s /run/thicket/status.json ]", "the node is back")
    assert (await fresh.last_restart())["reason"] == "watchdog"


# -- a node that has started from a fresh card


@on_the_running_node
async def test_the_first_boot_uses_the_whole_card(running: Node) -> None:
    links = await running.run("cd /dev/slots && for l in *; do echo $l $(readlink $l); done")
    assert links.split() == [
        "boot-a", "/dev/vdb2", "boot-b", "/dev/vdb3", "card", "/dev/vdb", "config", "/dev/vdb1",
        "data", "/dev/vdb7", "root-a", "/dev/vdb5", "root-b", "/dev/vdb6",
    ]  # fmt: skip
    # from MiB 183 to 300, less what ext4 keeps for itself
    assert int(await running.run("cat /sys/class/block/vdb7/size")) == 117 * MIB
    assert await kibibytes(running) > 100 * 1024
    status = await running.status()
    assert status["data"]["state"] == "created"
    assert status["slot"] == "A"
    assert status["configuration"]["source"] == "/etc/thicket/thicket.toml"
    assert (await running.last_restart())["reason"] == "first"


@on_the_running_node
async def test_ssh_is_open_for_the_key_of_the_configuration(running: Node) -> None:
    async def served() -> bool:
        # tcp6's local address ends with the port; 0A is LISTEN (net/ipv6/tcp_ipv6.c)
        return ":0016 00000000000000000000000000000000:0000 0A" in await running.run(
            "cat /proc/net/tcp6"
        )

    await running.until(served, "the SSH server listens")
    assert await running.problems("access") == []


@on_the_running_node
async def test_the_serial_console_is_closed(running: Node) -> None:
    assert "ttyS0" in await running.run("cat /run/thicket/serial")
    assert "ttyS0" not in await running.run("cat /etc/inittab")
    await running.run("thicket config set access.console=true")

    async def shells() -> bool:
        output = await running.run("for p in /proc/[0-9]*; do readlink $p/fd/0; done | cat")
        return "/dev/ttyS0" in output

    await running.until(shells, "a shell on the serial port")
    await running.run("thicket config set access.console=false")

    async def none() -> bool:
        return not await shells()

    await running.until(none, "no shell on the serial port")


@on_the_running_node
async def test_the_report_is_on_the_card(running: Node) -> None:
    name = await running.name()
    report = await reported(running)
    data = f"{'Data:':<15}new ("
    for words in (name, "slot A", data, "no security chip"):
        assert words in report, report
    assert int(await running.run("wc -c </boot/report.txt")) == 16384
    assert " ro," in await running.run("grep ' /boot ' /proc/mounts")


@on_the_running_node
async def test_a_report_in_place_changes_only_its_own_sectors(running: Node) -> None:
    old = await reported(running)
    before = running.config_part()
    write = (
        "import sys; from thicket.upkeep import report; from thicket.base.paths import Paths; "
        "text = sys.stdin.buffer.read(); "
        "assert report.write(Paths(), report.unpack(text) or text.decode())"
    )
    await running.run(f"printf 'another report' | python3 -c '{write}'")
    try:
        assert "another report" in await running.run("cat /boot/report.txt")
        after = running.config_part()
    finally:
        # The daemon writes again only when it has something new to say.
        await running.machine.exec_shell.push("/tmp/report", old.encode(), PATIENCE)
        await running.run(f"python3 -c '{write}' </tmp/report; rm /tmp/report")
    start = before.index(b"Written: ")
    changed = [
        n
        for n in range(len(before) // SECTOR)
        if before[n * SECTOR :][:SECTOR] != after[n * SECTOR :][:SECTOR]
    ]
    assert changed
    assert all(start <= n * SECTOR < start + 16384 for n in changed)


# Last, because files with the name are written up to a minute after the start: what waits here has
# been overtaken by the tests above.
@on_the_running_node
async def test_names_follow_the_identity(running: Node) -> None:
    name = await running.name()
    assert re.fullmatch("n-[0-9a-f]{12}", name)
    await running.succeeds(f"[ $(cat /etc/hostname) = {name} ]", "/etc/hostname has the name")
    assert (await running.run("hostname")).strip() == name
    assert re.fullmatch("[0-9a-f]{32}\n", await running.run("tr -d '\\r' </etc/machine-id"))


# -- a card without anything of ours


async def test_a_write_protected_card_is_read(fresh: Node) -> None:
    image = fresh.directory / "protected.img"
    subprocess.run(  # noqa: ASYNC221
        ["mke2fs", "-q", "-t", "ext4", str(image), "16M"],
        check=True,
        capture_output=True,
        env=TOOLS,
    )
    # the first disk of the machine cannot be written
    await fresh.start(data="/dev/vda", root=image)
    assert await fresh.data_state() == "readonly"


# -- a factory reset


async def reset_told(node: Node, by: str) -> dict[str, Any]:
    """Return what the node tells of its last reset, once it is one that was asked for like this."""
    found: dict[str, Any] = {}

    async def told() -> bool:
        found.update((await node.status())["factory_reset"] or {})
        return found.get("by") == by

    await node.until(told, f"a reset by {by} is told")
    return found


async def test_a_reset_by_a_file_on_the_card_and_by_the_command(used: Node) -> None:
    """The node is the same afterwards, and what it kept is gone and named."""
    key = used.directory / "device.key"
    key.write_text("a key that nobody has\n")
    used.debugfs(f"write {key} /thicket/device.key")
    stays = ("identity.json", "device.key")
    before = [used.debugfs(f"cat /thicket/{name}").split() for name in stays]
    assert '"random",' in before[0]
    assert before[1] == key.read_text().split()
    used.ask_for_reset()
    await used.start()
    reset = await reset_told(used, "file")
    assert "kept" in [one["name"] for one in reset["erased"]]
    assert reset["left"] == []
    after = [(await used.run(f"cat /data/thicket/{name}")).split() for name in stays]
    assert after == before
    await used.run("[ ! -e /data/kept ] && [ -d /data/lost+found ]")
    assert "factory-reset" not in await used.run("ls /boot")
    assert " ro," in await used.run("grep ' /boot ' /proc/mounts")
    assert "Last reset:" in await reported(used)
    name = await used.name()

    await used.run("mkdir -p /data/apps/lamp && echo more >/data/apps/lamp/more")
    restarts = used.machine.resets
    with contextlib.suppress(ShellError):  # it restarts
        await used.machine.exec_shell.run("thicket factory-reset --yes", PATIENCE)

    async def restarted() -> bool:
        return used.machine.resets > restarts

    await used.until(restarted, "the node restarts")
    await used.succeeds("[ -s /run/thicket/status.json ]", "the node is back")
    reset = await reset_told(used, "command")
    assert "apps/lamp" in [one["name"] for one in reset["erased"]]
    await used.run("[ ! -e /data/apps ]")
    assert await used.name() == name
    assert (await used.last_restart())["reason"] == "shutdown"
    status = await used.run("thicket status || true")
    assert "Last reset:" in status
    assert "by a command: " in status


# -- a card that a node was switched off with in order


async def test_an_orderly_end_is_told_from_a_power_cut(used: Node) -> None:
    await used.start()
    last = await used.last_restart()
    assert (last["reason"], last["run"]) == ("shutdown", 2)
    assert await used.data_state() == "clean"
    await used.cut()
    await used.start()
    last = await used.last_restart()
    assert (last["reason"], last["run"]) == ("power", 3)
    await used.succeeds("thicket status | grep -q 'power cut'", "`thicket status` tells it")
    assert await kept(used)


async def test_a_way_in_is_open_before_the_daemon_closes_it(used: Node) -> None:
    """What was open last time is open without the daemon, which then does what is configured."""
    empty = used.directory / "empty"
    empty.touch()
    used.debugfs(f"write {empty} /thicket/console")
    await used.start()
    # init.d/S60access.sh had written the line, the daemon switched it off
    closed = "grep -q '^#:respawn:sh -l </dev/ttyS0' /etc/inittab"
    await used.succeeds(closed, "the daemon closed what the scripts had opened")
    await used.succeeds("[ ! -e /data/thicket/console ]", "it stays closed at the next start")


# The machine's own clock is right; the file says that it is behind.


async def test_the_saved_time_is_the_least(used: Node) -> None:
    saved = datetime(2031, 5, 6, tzinfo=UTC)
    used.debugfs(f"set_inode_field /thicket/clock mtime @{saved.timestamp():.0f}")
    await used.start()
    now = datetime.fromtimestamp(int(await used.run("date +%s")), UTC)
    assert saved <= now < saved + timedelta(days=1)


async def test_a_saved_time_that_is_centuries_ahead_is_not_believed(used: Node) -> None:
    saved = datetime(2300, 1, 1, tzinfo=UTC)
    used.debugfs(f"set_inode_field /thicket/clock mtime @{saved.timestamp():.0f}")
    await used.start()
    assert (await used.run("date +%Y")).strip() < "2100"
    assert "not believed" in await used.run("dmesg")


async def test_a_card_copied_to_a_larger_one_grows(used: Node) -> None:
    used.resize(CARD_MIB + 120)
    await used.start()
    assert await kibibytes(used) > 210 * 1024
    assert "/data grown" in await used.run("dmesg")
    assert await used.data_state() == "clean"
    assert await kept(used)


async def test_a_damaged_record_is_made_again_and_the_data_found(used: Node) -> None:
    used.patch((DATA[0] - 1) * MIB, os.urandom(510) + b"\x55\xaa")
    await used.start()
    assert await kept(used)
    assert "made again" in await used.run("dmesg")


async def test_a_card_cut_off_behind_the_slots_gets_new_data(used: Node) -> None:
    used.resize(DATA[0] - 1)
    used.resize(DATA[0] + 77)
    used.patch((DATA[0] - 1) * MIB, os.urandom(4 * MIB * SECTOR))
    await used.start()
    assert await used.data_state() == "rebuilt"
    assert (await used.last_restart())["reason"] == "unknown"
    assert await kibibytes(used) > 60 * 1024
    assert (await used.run("readlink /dev/slots/data")).strip() == "/dev/vdb7"


async def test_without_room_the_data_is_in_ram(used: Node) -> None:
    used.resize(DATA[0] - 1)
    await used.start()
    data = (await used.status())["data"]
    assert data["state"] == "ram"
    assert "no room" in data["message"]

    async def told() -> bool:
        return any("RAM" in text for text in await used.problems("data"))

    await used.until(told, "that nothing is kept is a problem")
    await used.off()
    used.resize(CARD_MIB)
    await used.start()
    assert await used.data_state() in ("created", "rebuilt")


async def test_garbage_in_every_file_and_a_full_disk(used: Node) -> None:
    files = used.directory / "files"
    files.mkdir()
    used.debugfs(f"rdump / {files}")
    names = [path.relative_to(files) for path in files.rglob("*") if path.is_file()]
    assert Path("thicket/run") in names
    for name in names:
        (files / name).write_bytes(os.urandom(3 * 1024))
    used.debugfs(*(f"rm /{name}\nwrite {files / name} /{name}" for name in names))
    await used.start()
    assert (await used.last_restart())["reason"] == "unknown"
    await used.run(
        "dd if=/dev/zero of=/data/fill bs=1M; dd if=/dev/zero of=/data/fill2 bs=4k; sync; true"
    )
    await used.off()
    await used.start()
    # the mark of an orderly end needs no room
    assert (await used.last_restart())["reason"] == "shutdown"


async def test_a_card_cut_off_inside_the_data_partition_gets_new_data(used: Node) -> None:
    used.resize(DATA[0] + 77)
    await used.start()
    data = (await used.status())["data"]
    assert data["state"] == "rebuilt"
    assert "ends at 77 MiB, inside a file system of 117 MiB" in data["message"]
    assert await kibibytes(used) > 60 * 1024


async def test_a_start_that_is_over_is_watched_no_more(used: Node) -> None:
    await used.start()
    await used.succeeds("[ -s /run/thicket/booted ]", "the start is over")
    # the feeder has the watchdog; nobody has it beside it
    await used.succeeds("pidof watchdog", "the watchdog's feeder runs")
    assert "start-watch" not in await used.run("ps")
