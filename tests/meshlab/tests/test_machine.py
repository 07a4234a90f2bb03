# SPDX-License-Identifier: Apache-2.0
"""The machine of a node: its command line, and real QEMU processes with a guest of a few bytes."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from patience import PATIENCE

from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.server import ChipServer
from meshlab.chip.state import serial_for
from meshlab.machine.accel import Accel
from meshlab.machine.events import Exited, MachineEvent, Panic, Reset
from meshlab.machine.machine import Machine
from meshlab.machine.ports import MOST_ADDED, Ports
from meshlab.machine.qemu import MachineError
from meshlab.machine.spec import (
    BOARDS,
    CONSOLE_LOG,
    CONSOLE_SOCKET,
    Board,
    MachineSpec,
    command,
    saved_hardware,
    wired_mac,
)
from meshlab.wire.sockets import socket_address

sys.path.insert(0, str(Path(__file__).parent))
from tiny_guest import guest, until

E = TypeVar("E", bound=MachineEvent)

QEMU = "qemu-system-x86_64"
needs_qemu = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed")
TCG = Accel("tcg", "test", "max")


def make_spec(directory: Path, **changes: Any) -> MachineSpec:
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("config.img", "data.img", "root.img"):
        (directory / name).write_bytes(bytes(1 << 20))
    (directory / "kernel").write_bytes(guest())
    spec = MachineSpec(
        name="n1",
        directory=directory,
        kernel=directory / "kernel",
        rootfs=directory / "root.img",
        cmdline="root=/dev/vda",
        accel=TCG,
        memory_mib=64,
        chip=False,
    )
    return dataclasses.replace(spec, **changes)


def option(arguments: list[str], name: str) -> list[str]:
    return [arguments[i + 1] for i, argument in enumerate(arguments) if argument == name]


# -- the command line


def test_a_wired_port(tmp_path: Path) -> None:
    arguments = command(make_spec(tmp_path, cable=True))
    assert option(arguments, "-netdev") == [
        "stream,id=wire,server=on,addr.type=unix,addr.path=cable.sock"
    ]
    nic = f"id=cable,netdev=wire,mac={wired_mac('n1')}"
    assert f"virtio-net-pci,{nic},romfile=" in option(arguments, "-device")
    assert wired_mac("n1") != wired_mac("n2")
    small = command(make_spec(tmp_path, cable=True, board="microvm"))
    assert f"virtio-net-device,{nic}" in option(small, "-device")
    assert not option(command(make_spec(tmp_path)), "-netdev")
    both = command(make_spec(tmp_path, cable=True, uplink=True))
    assert option(both, "-netdev")[1] == "user,id=uplink,ipv6=off"
    assert both.index("user,id=uplink,ipv6=off") > both.index(
        arguments[arguments.index("-netdev") + 1]
    )
    with pytest.raises(ValueError, match="no wired port"):
        MachineSpec(
            "n1", tmp_path, None, None, "", TCG, arch="aarch64", board="raspi3b", cable=True
        )


async def test_channels_come_and_go(tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []
    fails: set[str] = set()

    async def qmp(command: str, arguments: Mapping[str, object] | None = None) -> None:
        said.append((command, dict(arguments or {})))
        if command in fails:
            raise MachineError(f"{command}: no")

    ports = Ports(make_spec(tmp_path), qmp)
    name = await ports.add(Path("/x.sock"))
    assert [each for each, _ in said] == ["chardev-add", "device_add"]
    assert said[1][1]["name"] == name
    ports.changed(name, is_open=True)
    waiting = asyncio.create_task(ports.closed(name))
    await asyncio.sleep(0)
    assert not waiting.done()
    ports.changed(name, is_open=False)
    await waiting
    assert len(ports) == 1
    await ports.remove(name)
    await ports.remove(name)
    assert [each for each, _ in said[2:]] == ["device_del", "chardev-remove"]
    # One that cannot be made leaves nothing.
    fails |= {"device_add", "device_del"}
    with pytest.raises(MachineError, match="device_add"):
        await ports.add(Path("/x.sock"))
    assert said[-1][0] == "chardev-remove"
    assert len(ports) == 0
    fails.clear()
    names = [await ports.add(Path("/x.sock")) for _ in range(MOST_ADDED)]
    with pytest.raises(MachineError, match="no more at a time"):
        await ports.add(Path("/x.sock"))
    ports.end()
    await asyncio.gather(*map(ports.closed, names))
    with pytest.raises(MachineError, match="no wired port"):
        await ports.plug(on=True)
    wired = Ports(make_spec(tmp_path, cable=True), qmp)
    await wired.begin()
    assert said[-1] == ("set_link", {"name": "cable", "up": False})
    await wired.plug(on=True)
    await wired.begin()
    assert said[-1] == ("set_link", {"name": "cable", "up": True})


def test_command_is_what_the_docs_say(tmp_path: Path) -> None:
    spec = MachineSpec("n7", tmp_path, Path("/k"), Path("/r"), "root=/dev/vda ro", TCG)
    arguments = command(spec)
    assert arguments[0] == QEMU
    assert option(arguments, "-kernel") == ["/k"]
    assert option(arguments, "-append") == ["console=ttyS0 nolapic_timer root=/dev/vda ro"]
    assert option(arguments, "-m") == ["128"]
    assert option(arguments, "-smp") == ["1"]
    assert "-nodefaults" in arguments
    assert "-no-reboot" not in arguments, "a guest that restarts starts again"
    drives = option(arguments, "-drive")
    assert [drive.split("file=")[1].split(",")[0] for drive in drives] == [
        "/r",
        "data.img",
        "config.img",
    ]
    assert "read-only=on" in drives[0]
    devices = option(arguments, "-device")
    assert [d for d in devices if d.startswith("virtio-blk")] == [
        "virtio-blk-pci,drive=root",
        "virtio-blk-pci,drive=data",
        "virtio-blk-pci,drive=config",
    ]
    assert [d for d in devices if d.startswith("virtconsole")] == [
        "virtconsole,bus=serial.0,chardev=shell",
        "virtconsole,bus=serial.0,chardev=exec",
    ]
    assert "virtserialport,bus=serial.0,chardev=relay,id=relay,name=thicket.hwsim.0" in devices
    assert "vhost-user-i2c-pci,chardev=chip,bus=bay,id=chip-bus" in devices
    assert "pcie-root-port,id=bay,chassis=1,slot=1" in devices
    sockets = [c for c in option(arguments, "-chardev") if c.startswith("socket,")]
    assert all("path=/" not in c for c in sockets), "relative: a path may be longer than 107 bytes"


def test_a_machine_that_wakes_is_the_same_without_its_chip(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, chip=True)
    booted, woken = command(spec), command(spec, asleep=True)
    assert [each for each in booted if each not in woken] == [
        "socket,id=chip,path=chip.sock",
        "vhost-user-i2c-pci,chardev=chip,bus=bay,id=chip-bus",
    ]
    assert [each for each in woken if each not in booted] == ["-S", "-incoming", "defer"]


def test_saved_hardware_is_what_matters(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, chip=True)
    same: dict[str, Any] = {
        "name": "n9",
        "kernel": tmp_path / "other",
        "rootfs": tmp_path / "root",
        "cmdline": "other",
        "accel": Accel("tcg", "other words", "max", 1),
    }
    assert saved_hardware(dataclasses.replace(spec, **same)) == saved_hardware(spec)
    kvm = Accel("kvm", "", "host")
    changes: list[dict[str, Any]] = [{"memory_mib": 96}, {"chip": False}, {"accel": kvm}]
    for change in changes:
        assert saved_hardware(dataclasses.replace(spec, **change)) != saved_hardware(spec)


def test_memory_is_shared_only_for_the_chip(tmp_path: Path) -> None:
    with_chip = command(make_spec(tmp_path, chip=True))
    assert option(with_chip, "-object") == ["memory-backend-memfd,id=ram,size=64M,share=on"]
    assert option(with_chip, "-machine")[0].endswith(",memory-backend=ram")
    without = command(make_spec(tmp_path, chip=False))
    assert option(without, "-object") == []
    assert not [a for a in without if "chip" in a]


def test_relay_port_is_optional(tmp_path: Path) -> None:
    assert not [a for a in command(make_spec(tmp_path, relay=False)) if "hwsim" in a]


def test_accelerators(tmp_path: Path) -> None:
    tcg = command(make_spec(tmp_path))
    assert option(tcg, "-accel") == ["tcg,thread=single,tb-size=192"]
    kvm = command(make_spec(tmp_path, accel=Accel("kvm", "test", "qemu64")))
    assert option(kvm, "-accel") == ["kvm"]
    assert option(kvm, "-cpu") == ["qemu64"]
    assert "hpet" not in option(kvm, "-machine")[0]
    assert "nolapic_timer" not in option(kvm, "-append")[0]
    assert "hpet=on" in option(tcg, "-machine")[0]


def test_known_clock_replaces_the_image_s_distrust(tmp_path: Path) -> None:
    image = "quiet tsc=unstable root=/dev/vda"
    unknown = command(make_spec(tmp_path, cmdline=image))
    assert option(unknown, "-append") == [f"console=ttyS0 nolapic_timer {image}"]
    accel = dataclasses.replace(TCG, tsc_khz=2_596_120)
    known = command(make_spec(tmp_path, cmdline=image, accel=accel))
    assert option(known, "-append") == [
        "console=ttyS0 nolapic_timer quiet root=/dev/vda tsc_early_khz=2596120 tsc=reliable"
    ]


def test_commas_in_paths_are_doubled(tmp_path: Path) -> None:
    arguments = command(make_spec(tmp_path, rootfs=Path("/a,b/root.img")))
    assert "file=/a,,b/root.img," in option(arguments, "-drive")[0]


def test_other_boards(tmp_path: Path) -> None:
    micro = command(make_spec(tmp_path, board="microvm"))
    assert not [a for a in micro if "-pci" in a]
    assert "virtio-blk-device,drive=root" in micro
    pi = command(make_spec(tmp_path, arch="aarch64", accel=Accel("tcg", "test", "cortex-a72")))
    assert pi[0] == "qemu-system-aarch64"
    assert option(pi, "-append") == ["console=ttyAMA0 root=/dev/vda"]
    own = Board("qemu-x", "none", "ccw", "quiet", None)
    assert "virtio-blk-ccw,drive=root" in command(make_spec(tmp_path, board=own))
    assert "-action" not in command(make_spec(tmp_path, board=own))


def test_extra_arguments_come_last(tmp_path: Path) -> None:
    assert command(make_spec(tmp_path, extra=("-S", "-d", "int")))[-3:] == ["-S", "-d", "int"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a,b"}, "not a node name"),
        ({"name": ""}, "not a node name"),
        ({"arch": "riscv64"}, "no machine for riscv64"),
        ({"board": "raspi5b"}, "no board raspi5b"),
        ({"memory_mib": 8}, "at least 64"),
    ],
)
def test_nonsense_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_spec(tmp_path, **changes)


@needs_qemu
@pytest.mark.parametrize("board", [name for name in BOARDS if BOARDS[name].qemu == QEMU])
async def test_qemu_accepts_every_board(tmp_path: Path, board: str) -> None:
    machine = Machine(make_spec(tmp_path, board=board))
    await machine.start()
    assert await machine.status() == "running"
    machine.kill()
    assert await machine.wait() == -signal.SIGKILL


# -- its life


class Lab:
    """A machine, what it reported, and its console."""

    def __init__(self, spec: MachineSpec) -> None:
        self.events: list[MachineEvent] = []
        self.machine = Machine(spec, self.events.append)

    async def until(self, what: Callable[[], bool], words: str) -> None:
        await until(self.machine, self.events, what, words)

    async def ready(self, times: int = 1) -> None:
        await self.until(
            lambda: self.machine.console_since_start().count("ready") >= times, "the guest"
        )

    def happened(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]

    async def tell(self, letter: str) -> None:
        path = socket_address(self.machine.spec.directory / CONSOLE_SOCKET)
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(path)
            console.sendall(letter.encode())
            # QEMU throws away what it has not read when the console is closed.
            await self.until(lambda: not _unread(console), "QEMU to read")


def _unread(console: socket.socket) -> bool:
    """Tell whether bytes that were sent have not been received (SIOCOUTQ, unix(7))."""
    import fcntl

    return bool(struct.unpack("i", fcntl.ioctl(console, 0x5411, bytes(4)))[0])


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    it = Lab(make_spec(tmp_path / "n1"))
    yield it
    it.machine.kill()
    await it.machine.wait()


@needs_qemu
async def test_start_kill_and_start_again(lab: Lab) -> None:
    machine = lab.machine
    assert not machine.running
    assert await machine.status() == "off"
    await machine.start()
    await lab.ready()
    assert machine.running
    assert machine.pid is not None
    # Field 19 of proc_pid_stat(5): the medium goes before the guests.
    fields = Path("/proc", str(machine.pid), "stat").read_text().rsplit(")", 1)[1].split()
    assert int(fields[16]) >= 10
    with pytest.raises(MachineError, match="running already"):
        await machine.start()
    resident = Path("/proc", str(machine.pid), "status").read_text()
    size, files = (int(resident.split(f"{name}:")[1].split()[0]) for name in ("VmRSS", "RssFile"))
    assert 10_000 < machine.own_kib() < size - files // 2, "programs are there once for all nodes"
    await lab.until(lambda: machine.cpu_seconds() > 0, "some CPU time")
    machine.kill()
    assert await machine.wait() == -signal.SIGKILL
    assert lab.happened(Exited) == [Exited(-9, "killed")]
    assert machine.cpu_seconds() > 0, "kept after the end"
    assert machine.own_kib() == 0
    left = {path.name for path in machine.spec.directory.iterdir()}
    assert not [name for name in left if name.endswith(".sock")]
    await machine.start()
    await lab.ready()
    machine.kill()
    await machine.wait()


@needs_qemu
async def test_a_machine_is_saved_and_woken(lab: Lab, tmp_path: Path) -> None:
    machine = lab.machine
    await machine.start()
    await lab.ready()
    await machine.pause()
    memory = tmp_path / "it's memory"
    found = await machine.save(memory)
    assert memory.stat().st_mode & 0o777 == 0o600
    assert await machine.status() == "postmigrate", "QEMU's word for a machine that stands still"
    await machine.go_on()
    await machine.pause()
    with pytest.raises(FileExistsError):
        await machine.save(memory)
    await machine.save(tmp_path / "once more")
    await machine.go_on()
    await lab.tell("r")
    await lab.ready(2)
    machine.kill()
    await machine.wait()

    woken = Lab(machine.spec)
    try:
        await woken.machine.wake(memory, found)
        assert await woken.machine.status() == "paused"
        await woken.machine.go_on()
        # It waits for a letter, as it did when it was saved; its next start is its second.
        await woken.tell("r")
        await woken.until(
            lambda: "ready2" in woken.machine.console_since_start(), "its second start"
        )
        assert "ready1" not in woken.machine.console_since_start()
    finally:
        woken.machine.kill()
        await woken.machine.wait()

    # What does not fit is told, and nothing runs then.
    other = Lab(dataclasses.replace(machine.spec, memory_mib=96))
    with pytest.raises(MachineError, match="saved by a simulator that builds other machines"):
        await other.machine.wake(memory, found)
    old = dataclasses.replace(found, qemu="1.0.0")
    with pytest.raises(MachineError, match=r"saved by QEMU 1\.0\.0; this is QEMU"):
        await woken.machine.wake(memory, old)
    memory.write_bytes(memory.read_bytes()[:4096])
    with pytest.raises(MachineError):
        await woken.machine.wake(memory, found)
    assert not other.machine.running
    assert not woken.machine.running


@needs_qemu
async def test_a_chip_without_driver_is_not_unplugged(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "n1", chip=True)
    chip = ChipServer(spec.directory / "chip.sock", Atecc608(serial_for(1, 1)))
    await chip.start()
    it = Lab(spec)
    try:
        await it.machine.start()
        await it.ready()
        await it.machine.pause()
        with pytest.raises(MachineError, match=r"its chip's bus yet"):
            await it.machine.save(tmp_path / "memory")
        assert chip.connected
        assert not (tmp_path / "memory").exists()
    finally:
        it.machine.kill()
        await it.machine.wait()
        await chip.stop()


@needs_qemu
async def test_guest_restarts_and_machine_goes_on(lab: Lab) -> None:
    await lab.machine.start()
    await lab.ready()
    pid = lab.machine.pid
    await lab.tell("r")
    await lab.until(lambda: lab.machine.resets == 1, "the restart")
    await lab.ready(2)
    assert lab.machine.pid == pid
    assert [detail.guest for detail in lab.happened(Reset)] == [True]
    assert lab.happened(Panic) == []
    await lab.machine.reset()
    await lab.until(lambda: lab.machine.resets == 2, "the reset")
    assert lab.happened(Reset)[1].guest is False
    await lab.ready(3)


@needs_qemu
async def test_panic_is_reported_with_its_reason(lab: Lab) -> None:
    await lab.machine.start()
    await lab.ready()
    await lab.tell("p")
    await lab.until(lambda: bool(lab.happened(Reset)), "the restart")
    assert lab.happened(Panic) == [Panic("told to")]
    await lab.ready(2)
    await asyncio.sleep(1.5)  # no node restarts twice in a second, this guest could
    await lab.tell("r")
    await lab.until(lambda: lab.machine.resets == 2, "the second restart")
    assert len(lab.happened(Panic)) == 1, "an old panic is not reported again"


@needs_qemu
async def test_guest_switches_off(lab: Lab) -> None:
    await lab.machine.start()
    await lab.ready()
    await lab.tell("o")
    async with lab.machine.within(PATIENCE):
        assert await lab.machine.wait() == 0
    assert lab.happened(Exited) == [Exited(0, "the guest switched off")]
    assert not lab.machine.running


@needs_qemu
async def test_stop_of_a_guest_that_does_not_listen(lab: Lab) -> None:
    await lab.machine.start()
    await lab.ready()
    await lab.machine.stop(0.3)
    assert lab.machine.returncode == 0, "ended by QMP quit"
    assert lab.happened(Exited) == [Exited(0, "stopped")]
    await lab.machine.stop(0.3)  # nothing happens


@needs_qemu
async def test_death_of_qemu_is_reported(lab: Lab) -> None:
    await lab.machine.start()
    assert lab.machine.pid is not None
    os.kill(lab.machine.pid, signal.SIGSEGV)
    async with lab.machine.within(PATIENCE):
        await lab.machine.wait()
    (end,) = lab.happened(Exited)
    assert end.status == -signal.SIGSEGV
    assert end.reason.startswith("QEMU ended with signal 11 (SIGSEGV)")
    with pytest.raises(MachineError, match="query-status: the machine is off"):
        await lab.machine.qmp("query-status")


@needs_qemu
async def test_qmp_errors_and_a_lost_connection(lab: Lab) -> None:
    machine = lab.machine
    await machine.start()
    with pytest.raises(MachineError, match="no-such-command"):
        await machine.qmp("no-such-command")
    qemu = machine.qemu
    assert qemu is not None
    first = qemu.client
    assert first is not None
    await first.disconnect()
    await lab.until(lambda: qemu.client is not first, "another connection")
    assert await machine.status() == "running"
    await machine.qmp("stop")
    assert await machine.status() == "paused"


@needs_qemu
async def test_why_it_does_not_start(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    for change, words in (
        ({"kernel": tmp_path / "absent"}, "there is no .*absent"),
        ({"data": "absent.img"}, "there is no .*absent.img"),
        ({"config": "absent.img"}, "there is no .*absent.img"),
        ({"extra": ("-device", "no-such-device")}, "QEMU ended with status 1: .*no-such-device"),
        ({"board": dataclasses.replace(BOARDS["q35"], qemu="qemu-absent")}, "127|qemu-absent"),
        ({"chip": True}, r"QEMU ended with status 1: (.|\n)*chip.sock"),
    ):
        machine = Machine(dataclasses.replace(spec, **change))
        with pytest.raises(MachineError, match=words):
            await machine.start()
        assert not machine.running


@needs_qemu
async def test_long_directory_names(tmp_path: Path) -> None:
    deep = tmp_path / ("long" * 20) / ("name" * 20)
    machine = Machine(make_spec(deep))
    await machine.start()
    assert await machine.status() == "running"
    machine.kill()
    await machine.wait()


@needs_qemu
def test_qemu_does_not_outlive_a_lab_that_is_killed(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    assert spec.kernel == tmp_path / "kernel"
    script = textwrap.dedent(
        """
        import asyncio, sys
        from pathlib import Path
        from meshlab.machine.accel import Accel
        from meshlab.machine.machine import Machine
        from meshlab.machine.spec import MachineSpec

        async def main():
            d = Path(sys.argv[1])
            accel = Accel("tcg", "test", "max")
            spec = MachineSpec("n1", d, d / "kernel", d / "root.img", "", accel, chip=False)
            machine = Machine(spec)
            await machine.start()
            print(machine.pid, flush=True)
            await asyncio.sleep(600)

        asyncio.run(main())
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as lab:
        assert lab.stdout is not None
        pid = int(lab.stdout.readline())
        assert Path("/proc", str(pid), "cmdline").read_bytes().startswith(b"qemu-system")
        lab.kill()
    deadline = time.monotonic() + PATIENCE
    while _alive(pid):
        assert time.monotonic() < deadline, "QEMU outlives its lab"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("apart", "said", "resets"),
    [
        (0.2, b"", 1),  # the firmware, which finds that it has run before
        (20.0, b"", 1),  # the same, on a host that was busy in between
        (0.2, b"ready", 1),  # told late, when the node was back
        (2.0, b"ready", 2),
        (40.0, b"", 2),  # stuck without a word, and ended by the watchdog
    ],
)
async def test_steps_of_one_restart_are_one_reset(
    tmp_path: Path, apart: float, said: bytes, resets: int
) -> None:
    lab = Lab(make_spec(tmp_path))
    log = tmp_path / CONSOLE_LOG
    log.write_bytes(b"ready")
    for now, words in ((1000.0, b""), (1000.0 + apart, said)):
        log.write_bytes(log.read_bytes() + words)
        stamp = {"seconds": int(now), "microseconds": round(now % 1 * 1e6)}
        data = {"guest": True, "reason": "guest-reset"}
        lab.machine.qmp_event({"event": "RESET", "data": data, "timestamp": stamp})
    assert lab.machine.resets == resets
    assert len(lab.happened(Reset)) == resets
