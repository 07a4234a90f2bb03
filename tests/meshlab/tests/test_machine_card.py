# SPDX-License-Identifier: Apache-2.0
"""A machine with a card: what the boot ROM finds is what QEMU starts, at every restart anew.

Real QEMU processes, cards made by hand, and a kernel of a few bytes.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from patience import PATIENCE

from meshlab.machine.accel import Accel
from meshlab.machine.bootrom import Boot
from meshlab.machine.events import Exited, MachineEvent, Panic, Reset, Shutdown, Started
from meshlab.machine.machine import Machine
from meshlab.machine.qemu import MachineError
from meshlab.machine.spec import (
    CARD,
    CONSOLE_SOCKET,
    KERNEL,
    TREE,
    MachineSpec,
    Start,
    command,
)
from meshlab.wire.sockets import socket_address

sys.path.insert(0, str(Path(__file__).parent))
from crafted_card import AUTOBOOT, make_card, slot
from tiny_guest import arm_guest, guest, until

E = TypeVar("E", bound=MachineEvent)

CPUS = {"x86_64": "max", "aarch64": "cortex-a72"}
GUESTS = {"x86_64": guest, "aarch64": arm_guest}
TRYBOOT = b"[    1.0] reboot: Restarting system with command '0 tryboot'"


def spec_in(directory: Path, **changes: Any) -> MachineSpec:
    directory.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "name": "n1",
        "directory": directory,
        "kernel": None,
        "rootfs": None,
        "cmdline": "",
        "accel": Accel("tcg", "test", "max"),
        "memory_mib": 64,
        "chip": False,
    }
    return MachineSpec(**(values | changes))


def option(arguments: list[str], name: str) -> list[str]:
    return [arguments[i + 1] for i, argument in enumerate(arguments) if argument == name]


# -- the command line


def found(cmdline: str, *, partition: int = 2, tryboot: bool = False) -> Start:
    return Start(Boot(partition, tryboot, "Image", cmdline, {}), 7)


def test_command_of_a_card(tmp_path: Path) -> None:
    line = 'console=serial0,115200 quiet dm-mod.create="root,,,ro,0 8 verity 1 a" x=serial0'
    arguments = command(spec_in(tmp_path, chip=True), found(line, partition=3, tryboot=True))
    assert option(arguments, "-append") == [
        'console=ttyS0,115200 quiet dm-mod.create="root,,,ro,0 8 verity 1 a" x=serial0 '
        "nolapic_timer norandmaps no_timer_check tsc=unstable"
    ]
    assert option(arguments, "-kernel") == [KERNEL]
    assert "-no-reboot" in arguments
    assert "-S" in arguments
    assert option(arguments, "-drive") == [f"if=none,id=card,format=raw,file={CARD},cache=unsafe"]
    assert option(arguments, "-object") == [
        "memory-backend-file,id=ram,mem-path=/proc/self/fd/7,size=64M,share=on"
    ]
    assert option(arguments, "-fw_cfg") == [
        "name=opt/org.thicket/bootloader/partition,string=3",
        "name=opt/org.thicket/bootloader/tryboot,string=1",
    ]


def test_console_is_added_where_the_card_has_none(tmp_path: Path) -> None:
    def line(cmdline: str, **changes: Any) -> str:
        return option(command(spec_in(tmp_path, **changes), found(cmdline)), "-append")[0]

    kvm = {"accel": Accel("kvm", "test", "host")}
    assert line("quiet console=tty1", **kvm) == "quiet console=tty1 console=ttyS0"
    assert line("console=ttyS0 quiet", **kvm) == "console=ttyS0 quiet"
    pi = {"arch": "aarch64", "accel": Accel("tcg", "test", "cortex-a72")}
    assert line("console=serial0 quiet", **pi) == "console=ttyAMA0 quiet norandmaps"
    clock = Accel("tcg", "test", "max", 2_596_120)
    assert line("console=serial0", accel=clock) == (
        "console=ttyS0 nolapic_timer norandmaps no_timer_check tsc_early_khz=2596120 tsc=reliable"
    )


@pytest.mark.parametrize(
    ("board", "memory", "parameters"),
    [
        ("raspi3b", "1024", "bcm2835_wdt_driver_init thicket.channels=usb"),
        ("raspi3ap", "512", "bcm2835_wdt_driver_init,bcm2835_power_driver_init"),
        ("raspi4b", "2048", "bcm2835_wdt_driver_init"),
    ],
)
def test_a_pi_has_its_own_device_tree_and_nothing_of_virtio(
    tmp_path: Path, board: str, memory: str, parameters: str
) -> None:
    relay = "channels" in parameters
    pi = {"arch": "aarch64", "board": board, "relay": relay}
    spec = spec_in(tmp_path, **pi)
    arguments = command(spec, found("console=serial0,115200 quiet"))
    assert option(arguments, "-dtb") == [TREE]
    assert option(arguments, "-drive") == [f"if=sd,format=raw,file={CARD},cache=unsafe"]
    assert option(arguments, "-append") == [
        f"console=ttyAMA0,115200 quiet initcall_blacklist={parameters} norandmaps"
    ]
    assert [option(arguments, name) for name in ("-m", "-smp")] == [[memory], ["4"]]
    for name in ("-cpu", "-fw_cfg"):
        assert option(arguments, name) == []
    with pytest.raises(ValueError, match="starts from an SD card"):
        spec_in(tmp_path, **pi, kernel=tmp_path / "kernel", rootfs=tmp_path / "rootfs")
    for name in ("relay", "chip") if not relay else ():
        with pytest.raises(ValueError, match="nothing that could carry a relay or chip"):
            spec_in(tmp_path, **pi | {name: True})


def test_a_pi_has_its_channels_by_usb(tmp_path: Path) -> None:
    def adapters(**changes: object) -> list[str]:
        spec = spec_in(tmp_path, arch="aarch64", board="raspi3b", **changes)
        return option(command(spec, found("")), "-device")

    own = "usb-serial,port=1.{},chardev={},serial={},always-plugged=on"
    shells = [
        "usb-hub,port=1",
        own.format(1, "shell", "thicket.shell.0"),
        own.format(2, "exec", "thicket.shell.1"),
    ]
    assert adapters() == [*shells, own.format(3, "relay", "thicket.hwsim.0")]
    assert adapters(relay=False) == shells
    assert adapters(shells=False) == ["usb-hub,port=1", own.format(1, "relay", "thicket.hwsim.0")]
    assert adapters(shells=False, relay=False) == []
    assert adapters(relay=False, chip=True) == [*shells, "usb-redir,chardev=chip"]
    assert adapters(shells=False, relay=False, chip=True) == ["usb-redir,port=1,chardev=chip"]


def test_half_a_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both from the card or both not"):
        spec_in(tmp_path, kernel=tmp_path / "kernel")


# -- its life


def files(arch: str, name: str, told: bytes = TRYBOOT) -> dict[str, bytes]:
    return {**slot(name), "Image": GUESTS[arch](f"slot {name} start ".encode(), told)}


class Lab:
    """A machine, what it reported, and its console."""

    def __init__(self, directory: Path, arch: str) -> None:
        self.events: list[MachineEvent] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.arch = arch
        self.spec = spec_in(directory, arch=arch, accel=Accel("tcg", "test", CPUS[arch]))
        self.card = make_card(directory / CARD, None, files(arch, "A"), files(arch, "B"))
        self.machine = Machine(self.spec, self.events.append)

    async def until(self, what: Callable[[], bool], words: str) -> None:
        await until(self.machine, self.events, what, words)

    async def says(self, text: str, times: int = 1) -> None:
        await self.until(
            lambda: self.machine.console_since_start().count(text) >= times, f"{text!r}"
        )

    def happened(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def tell(self, letter: str) -> None:
        # Left open until QEMU has ended or read it: see test_machine.
        path = socket_address(self.spec.directory / CONSOLE_SOCKET)
        _, writer = await asyncio.open_unix_connection(path)
        writer.write(letter.encode())
        await writer.drain()
        self.writers.append(writer)


@pytest.fixture(params=list(CPUS))
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    arch = str(request.param)
    if shutil.which(f"qemu-system-{arch}") is None:
        pytest.skip(f"qemu-system-{arch} is not installed")
    (tmp_path / "n1").mkdir()
    it = Lab(tmp_path / "n1", arch)
    yield it
    for writer in it.writers:
        writer.close()
    it.machine.kill()
    await it.machine.wait()


async def test_restarts_go_through_the_rom(lab: Lab) -> None:
    machine = lab.machine
    await machine.start()
    await lab.says("slot A start 1")
    assert machine.booted is not None
    assert machine.booted.partition == 2
    first = machine.pid
    # Asked for the other slot, once.
    await lab.tell("p")
    await lab.says("slot B start 2")
    assert machine.running
    assert machine.pid != first
    assert (machine.booted.partition, machine.booted.tryboot) == (3, True)
    assert lab.happened(Reset) == [Reset("guest-reset", True)]
    await lab.tell("r")
    await lab.says("slot A start 3")
    assert machine.resets == 2
    assert not machine.booted.tryboot
    # The reset button asks for nothing.
    await machine.reset()
    await lab.says("slot A start 4")
    assert lab.happened(Reset)[2] == Reset("host-qmp-system-reset", False)
    assert len(lab.happened(Started)) == 1
    assert not lab.happened(Exited) and not lab.happened(Shutdown)
    console = machine.console_since_start()
    assert console.count("boot ROM: partition 2, kernel Image") == 3
    assert console.count("boot ROM: partition 3 (tryboot), kernel Image") == 1


async def test_memory_is_lost_with_the_power_only(lab: Lab) -> None:
    machine = lab.machine
    await machine.start()
    await lab.says("start 1")
    await lab.tell("r")
    await lab.says("start 2")
    machine.kill()
    await machine.wait()
    assert lab.happened(Exited) == [Exited(-9, "killed")]
    await machine.start()
    await lab.says("start 1")
    assert machine.resets == 0


async def test_the_next_start_takes_what_is_on_the_card_then(lab: Lab) -> None:
    from meshlab.lab.real_parts import partition

    await lab.machine.start()
    await lab.says("slot A start 1")
    # As an update does while the system runs.
    partition(lab.card, 2).write("Image", GUESTS[lab.arch](b"updated start "))
    other = AUTOBOOT.replace(b"=2", b"=x").replace(b"=3", b"=2").replace(b"=x", b"=3")
    partition(lab.card, 1).write("autoboot.txt", other)
    await lab.tell("r")
    await lab.says("slot B start 2")
    await lab.tell("p")
    await lab.says("updated start 3")


async def test_a_card_that_no_longer_boots_ends_the_machine_in_words(lab: Lab) -> None:
    from meshlab.lab.real_parts import partition

    await lab.machine.start()
    await lab.says("slot A start 1")
    for number in (2, 3):
        partition(lab.card, number).delete("Image")
    await lab.tell("r")
    async with lab.machine.within(PATIENCE):
        assert await lab.machine.wait() == 1
    (end,) = lab.happened(Exited)
    assert "partition 2 of card.img has no kernel Image" in end.reason
    assert "partition 2 of card.img has no kernel" in lab.machine.errors_since_start()
    assert "boot ROM: partition 2 of card.img has no kernel" in lab.machine.console_since_start()
    with pytest.raises(MachineError, match=r"nothing to start: .*has no kernel Image"):
        await lab.machine.start()
    assert not lab.machine.running


async def test_switching_off_and_dying_are_no_restarts(lab: Lab) -> None:
    await lab.machine.start()
    await lab.says("start 1")
    await lab.tell("o")
    async with lab.machine.within(PATIENCE):
        assert await lab.machine.wait() == 0
    assert lab.happened(Exited) == [Exited(0, "the guest switched off")]
    assert [detail.reason for detail in lab.happened(Shutdown)] == ["guest-shutdown"]
    await lab.machine.start()
    await lab.says("start 1")
    await lab.machine.stop(0.3)
    assert lab.machine.returncode == 0
    assert lab.happened(Exited)[1] == Exited(0, "stopped")


async def test_power_cut_between_two_lives(lab: Lab) -> None:
    """Killed at any moment of a restart, it stays off and nothing is left running."""
    machine = lab.machine
    for pause in (0.0, 0.01, 0.03, 0.06, 0.1, 0.2):
        await machine.start()
        await lab.says("start 1")
        await lab.tell("r")
        await lab.until(lambda: machine.resets == 1, "the restart")
        await asyncio.sleep(pause)
        machine.kill()
        async with machine.within(PATIENCE):
            await machine.wait()
        assert not machine.running
        assert machine.pid is None
    assert [end.reason for end in lab.happened(Exited)] == ["killed"] * 6
    left = {path.name for path in machine.spec.directory.iterdir()}
    assert not [name for name in left if name.endswith(".sock")]


async def test_a_panic_is_reported_once(lab: Lab) -> None:
    panic = b"[    1.0] Kernel panic - not syncing: dm-verity device corrupted"
    make_card(lab.card, None, files(lab.arch, "A", panic), files(lab.arch, "B"))
    await lab.machine.start()
    await lab.says("start 1")
    await lab.tell("p")
    await lab.says("slot A start 2")
    assert lab.happened(Panic) == [Panic("dm-verity device corrupted")]
    await lab.tell("r")
    await lab.says("slot A start 3")
    assert len(lab.happened(Panic)) == 1


async def test_command_lines_that_no_kernel_takes(lab: Lab) -> None:
    long = {**files(lab.arch, "A"), "cmdline.txt": b"a" * 2040}
    make_card(lab.card, None, long, files(lab.arch, "B"))
    with pytest.raises(MachineError, match=r"cmdline\.txt on partition 2 leaves no room"):
        await lab.machine.start()
    lab.card.unlink()
    with pytest.raises(MachineError, match=r"there is no .*card\.img"):
        await lab.machine.start()
