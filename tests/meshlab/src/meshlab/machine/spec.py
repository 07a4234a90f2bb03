# SPDX-License-Identifier: Apache-2.0
"""What a node's machine consists of, and QEMU's command line for it.

``command`` turns a ``MachineSpec`` into a command line and touches nothing, so it can be read and
tested. Every file of a node lies in the node's own directory, QEMU runs there, and socket paths are
relative to it. docs/simulator.md, "Machine", has the measurements behind the choices of ``BOARDS``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from meshlab.machine import bootrom
from meshlab.machine.accel import Accel

RELAY_PORT = "thicket.hwsim.0"
"""Name of the virtio-serial port at which the node's hwsim-relay starts, or the serial number of
the USB adapter."""
SHELL_PORTS = ("thicket.shell.0", "thicket.shell.1")
"""Serial numbers of the USB adapters at which the node has shells, where it has no virtio."""
USB_CHANNELS = "thicket.channels=usb"
"""The kernel parameter that tells a node that these adapters are the simulator's."""

CONSOLE_SOCKET = "console.sock"
CONSOLE_LOG = "console.log"
SHELL_SOCKET = "shell.sock"
EXEC_SOCKET = "exec.sock"
RELAY_SOCKET = "relay.sock"
QMP_SOCKET = "qmp.sock"
CHIP_SOCKET = "chip.sock"
REGISTERS_SOCKET = "registers.sock"
CABLE_SOCKET = "cable.sock"
"""Ethernet frames of the wired port, each behind its length in four bytes, big-endian: QEMU's
``-netdev stream``."""
QEMU_LOG = "qemu.log"
CARD = "card.img"
KERNEL = "kernel"
"""The kernel that the boot ROM took from the card at the latest start."""
TREE = "devicetree.dtb"
"""The device tree that it took, on a board that is a Pi."""

BAY = "bay"
"""The PCI Express port that the chip's bus is plugged into."""
CHIP_DEVICE = "chip-bus"
"""What is plugged in there."""
CHIP_CHARDEV = "chip"
"""Its connection to the chip."""

CABLE = "cable"
"""The wired port, as QEMU knows it."""
UPLINK = "user,id=uplink,ipv6=off"
"""A network behind which is that of this machine, by QEMU itself, which needs no rights. It gives
addresses by DHCP. Its IPv6 is off: it would promise a way that most machines do not have."""

SERIAL_BUS = "serial.0"
"""Where virtio ports are plugged in."""
MOST_PORTS = 8
"""Virtio ports of a machine: two shells, the relay, and others that come and go (``ports.Ports``).
A port that is there costs a guest half a MiB; one that may come, some 20 KiB."""

MEMORY_MIB = 128
"""Memory of a node, where its board leaves the choice."""

SOCKETS = (
    CONSOLE_SOCKET,
    SHELL_SOCKET,
    EXEC_SOCKET,
    RELAY_SOCKET,
    QMP_SOCKET,
    REGISTERS_SOCKET,
    CABLE_SOCKET,
)
"""Those that QEMU makes."""


@dataclass(frozen=True)
class Board:
    """A kind of QEMU machine: what differs between them, and nothing else."""

    qemu: str
    """The program."""
    machine: str
    """``-machine`` and its options."""
    transport: str
    """How virtio devices are attached: ``pci``, or ``device`` for virtio-mmio. ``usb``: they cannot
    be. Then shells and relay are USB serial adapters, the chip is behind a USB adapter, and the
    card is an SD card. Empty: there is nothing for shells, relay and chip either."""
    cmdline: str
    """Kernel parameters for this machine, before those of the image."""
    watchdog: str | None
    """The watchdog device."""
    tcg_machine: str = ""
    """More options of ``-machine`` under TCG."""
    tcg_cmdline: str = ""
    """More kernel parameters under TCG."""
    tcg_card_cmdline: str = "norandmaps"
    """More of them for a system from a card; the lab image asks for these itself. ``norandmaps``:
    programs at the same addresses at each start, so that QEMU translates them once."""
    model: str = "simulated"
    """What its boot ROM does, a key of ``bootrom.MODELS``."""
    memory_mib: int | None = None
    """The memory, where it cannot be chosen."""
    processors: int = 1
    own_processor: bool = False
    """Whether the kind of processor belongs to the board, and cannot be chosen."""
    ecam: int | None = None
    """Where the processor sees the configuration of PCI Express devices. ``None``: there is nothing
    that the chip's bus could be unplugged from, as a machine that is saved needs."""
    properties: tuple[str, ...] = ()
    """``-global``: properties of built-in devices."""
    absent: frozenset[str] = frozenset()
    """Nodes and properties of the Pi's device tree that are not so in QEMU, by their paths."""

    @property
    def virtio(self) -> bool:
        """Tell whether it can have virtio devices."""
        return self.transport not in ("", "usb")


# The HPET says how fast it runs. The local APIC's timer has to be compared with another timer for a
# tenth of a second, in which a busy host does not run the guest: its timers were wrong ever after.
_TCG_MACHINE = "hpet=on"
_TCG_CMDLINE = "nolapic_timer"
# meshlab.image.lab, CMDLINE, says why. A clock of known frequency replaces the distrust.
_TCG_CARD_CMDLINE = "norandmaps no_timer_check tsc=unstable"

# A Raspberry Pi 3 B by its own device tree. QEMU's power block takes a watchdog that is started for
# one that has run out. Its driver stays off, and with it restarting and switching off.
_PI_CMDLINE = "console=ttyAMA0 initcall_blacklist=bcm2835_wdt_driver_init"
_RASPI3B = Board(
    qemu="qemu-system-aarch64",
    machine="raspi3b",
    transport="usb",
    cmdline=f"{_PI_CMDLINE} {USB_CHANNELS}",
    watchdog=None,
    model="pi3",
    memory_mib=1024,
    processors=4,
    own_processor=True,
)

BOARDS: Mapping[str, Board] = {
    "q35": Board(
        qemu="qemu-system-x86_64",
        machine="q35,smm=off,sata=off,usb=off,smbus=off,vmport=off",
        transport="pci",
        cmdline="console=ttyS0",
        watchdog="i6300esb",
        tcg_machine=_TCG_MACHINE,
        tcg_cmdline=_TCG_CMDLINE,
        tcg_card_cmdline=_TCG_CARD_CMDLINE,
        ecam=0xB000_0000,  # SeaBIOS puts it there
        # Slots have a switch of their own then, instead of one of ACPI that only a guest can turn.
        properties=("ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",),
    ),
    "pc": Board(
        qemu="qemu-system-x86_64",
        machine="pc,smm=off,usb=off,vmport=off",
        transport="pci",
        cmdline="console=ttyS0",
        watchdog="i6300esb",
        tcg_machine=_TCG_MACHINE,
        tcg_cmdline=_TCG_CMDLINE,
        tcg_card_cmdline=_TCG_CARD_CMDLINE,
    ),
    "microvm": Board(
        qemu="qemu-system-x86_64",
        machine="microvm,acpi=off,rtc=on",
        transport="device",
        cmdline="console=ttyS0 reboot=t",
        watchdog=None,
    ),
    "virt": Board(
        qemu="qemu-system-aarch64",
        machine="virt,gic-version=3",
        transport="pci",
        cmdline="console=ttyAMA0",
        watchdog="i6300esb",
    ),
    "raspi3b": _RASPI3B,
    # A 3 A+: the device tree of a 3 B+, half the memory. The driver of power domains reads where
    # QEMU has nothing (in a 3 B it has memory there): the kernel would die of it.
    "raspi3ap": replace(
        _RASPI3B,
        machine="raspi3ap",
        transport="",
        cmdline=f"{_PI_CMDLINE},bcm2835_power_driver_init",
        model="pi3+",
        memory_mib=512,
    ),
    # A 4 B, of QEMU 9.0 and later. The card is at the controller that a Pi has its Wi-Fi at. HDMI's
    # interrupts have no controller: a kernel that touches its registers dies of it.
    "raspi4b": replace(
        _RASPI3B,
        machine="raspi4b",
        transport="",
        cmdline=_PI_CMDLINE,
        model="pi4",
        memory_mib=2048,
        absent=frozenset(
            {
                "/emmc2bus/mmc@7e340000",
                "/soc/interrupt-controller@7ef00100",
                "/soc/mmc@7e300000/mmc-pwrseq",
                "/soc/mmc@7e300000/non-removable",
                "/soc/mmc@7e300000/wifi@1",
            }
        ),
    ),
}

DEFAULT_BOARDS = {"x86_64": "q35", "aarch64": "virt"}


@dataclass(frozen=True)
class MachineSpec:
    """Everything that decides a node's machine."""

    name: str
    """The node's name: letters, digits, ``-`` and ``_``."""
    directory: Path
    """The node's directory; it holds the disks ``config`` and ``data``, or ``card.img``, and gets
    the sockets."""
    kernel: Path | None
    """``None``: the machine has a card, ``card.img``, and starts from it as a Pi does."""
    rootfs: Path | None
    """The read-only root file system, shared by any number of nodes; ``None`` with a card."""
    cmdline: str
    """The image's kernel parameters, with a card those that are added to the card's."""
    accel: Accel
    memory_mib: int = MEMORY_MIB
    chip: bool = True
    """Attach the chip's I2C bus: its back end must listen on ``chip.sock`` before the start. It is
    ``chip.server.ChipServer``, with ``usb`` where the board has no virtio."""
    relay: bool = True
    """Attach the port of hwsim-relay."""
    shells: bool = True
    """Attach the two shells."""
    cable: bool = False
    """Attach a wired port, with nothing plugged in (``Machine.plug``); virtio boards only."""
    uplink: bool = False
    """Attach a port behind the wired one to ``UPLINK``; virtio boards only."""
    config: str = "config.img"
    data: str = "data.img"
    arch: str = "x86_64"
    board: str | Board | None = None
    """A key of ``BOARDS``, or a board of one's own; ``None``: the default of ``arch``."""
    code_buffer_mib: int = 192
    """TCG's buffer of translated code. A node that has joined has filled some 105 MiB of it; a full
    buffer is thrown away, and all of it translated again. Memory is taken only as it fills. QEMU's
    own default can grow to a gigabyte."""
    write_log: str | None = None
    """A file that gets every write and flush of the card, in order, in the form of dm-log-writes
    (``machine.write_log``, whose ``create`` makes it); virtio boards only. Every start goes on with
    it."""
    extra: tuple[str, ...] = field(default=())
    """More arguments for QEMU, last."""

    def __post_init__(self) -> None:
        """Check everything.

        :raises ValueError: when this cannot become a command line.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", self.name):
            raise ValueError(f"{self.name!r} is not a node name: letters, digits, '-' and '_'")
        if self.board is None and self.arch not in DEFAULT_BOARDS:
            raise ValueError(f"no machine for {self.arch}; known: {', '.join(DEFAULT_BOARDS)}")
        if isinstance(self.board, str) and self.board not in BOARDS:
            raise ValueError(f"no board {self.board}; known: {', '.join(BOARDS)}")
        if (self.kernel is None) != (self.rootfs is None):
            raise ValueError(f"{self.name}: kernel and root come both from the card or both not")
        if not self.hardware.virtio and self.kernel:
            raise ValueError(f"{self.name}: its board starts from an SD card")
        if not self.hardware.transport and (self.relay or self.chip):
            raise ValueError(f"{self.name}: its board has nothing that could carry a relay or chip")
        if (self.cable or self.uplink) and not self.hardware.virtio:
            raise ValueError(f"{self.name}: its board has no wired port")
        if self.memory_mib < 64:
            raise ValueError(f"memory of {self.name}: {self.memory_mib} MiB, at least 64 needed")

    @property
    def hardware(self) -> Board:
        """Return the board."""
        if isinstance(self.board, Board):
            return self.board
        return BOARDS[self.board or DEFAULT_BOARDS[self.arch]]

    @property
    def memory(self) -> int:
        """Return the machine's memory in MiB."""
        return self.hardware.memory_mib or self.memory_mib


@dataclass(frozen=True)
class Start:
    """What the boot ROM gives a machine with a card for one start."""

    boot: bootrom.Boot
    memory: int
    """Descriptor, open in QEMU as well, of the file that is the guest's memory."""


def command(spec: MachineSpec, start: Start | None = None, *, asleep: bool = False) -> list[str]:
    """Return the command line of QEMU, to be run in ``spec.directory``.

    :param spec: The machine.
    :param start: What the boot ROM found, for a machine with a card.
    :param asleep: It does not boot but waits for the state of a machine that was saved, in which
        the chip's bus is unplugged.
    """
    board = spec.hardware
    accel = spec.accel.name
    machine = board.machine
    if accel == "tcg":
        # One virtual processor: a thread of its own for each would only cost switches.
        accel += f",thread=single,tb-size={spec.code_buffer_mib}"
        machine += f",{board.tcg_machine}" if board.tcg_machine else ""
    arguments = [board.qemu, "-name", f"thicket-{spec.name}", "-nodefaults", "-no-user-config"]
    arguments += ["-display", "none", "-smp", str(board.processors), "-m", str(spec.memory)]
    # The chip's back end reads requests in the guest's memory, so that must be shareable.
    ram = ""
    if start is not None:
        ram = f"memory-backend-file,id=ram,mem-path=/proc/self/fd/{start.memory}"
    elif spec.chip and board.virtio:
        ram = "memory-backend-memfd,id=ram"
    if ram:
        machine += ",memory-backend=ram"
        arguments += ["-object", f"{ram},size={spec.memory}M,share=on"]
    arguments += ["-machine", machine, "-accel", accel]
    if not board.own_processor:
        arguments += ["-cpu", spec.accel.cpu]
    arguments += ["-rtc", "base=utc,clock=host"]
    if start is None:
        arguments += ["-kernel", _value(spec.kernel or "")]
        arguments += ["-append", " ".join(_kernel_parameters(spec))]
    else:
        # A guest that restarts ends QEMU: the next kernel may be another one. It waits (-S) until
        # somebody listens to how it ends.
        arguments += ["-no-reboot", "-kernel", KERNEL]
        arguments += ["-append", " ".join(card_parameters(spec, start.boot.cmdline))]
        if bootrom.MODELS[board.model].trees:
            arguments += ["-dtb", TREE]
        if board.virtio:
            # What a Pi's firmware tells in the device tree, /chosen/bootloader.
            for name, value in (
                ("partition", start.boot.partition),
                ("tryboot", int(start.boot.tryboot)),
            ):
                arguments += ["-fw_cfg", f"name=opt/org.thicket/bootloader/{name},string={value}"]
    if start is not None or asleep:
        arguments += ["-S"]
    if asleep:
        arguments += ["-incoming", "defer"]
    arguments += [*_listener("qmp", QMP_SOCKET), "-mon", "chardev=qmp,mode=control"]
    arguments += _listener("console", CONSOLE_SOCKET, f",logfile={CONSOLE_LOG},logappend=on")
    arguments += ["-serial", "chardev:console"]
    arguments += _disks(spec)
    if board.virtio:
        arguments += _ports(spec)
        arguments += ["-device", f"virtio-rng-{board.transport}"]
    elif board.transport:
        arguments += _adapters(spec)
    if spec.chip:
        # No reconnect=: the device wants its back end at once, and a QEMU that may connect later
        # gives up ("vhost_backend_init failed"). The chip listens before QEMU starts.
        line = ["-chardev", f"socket,id={CHIP_CHARDEV},path={CHIP_SOCKET}"]
        device = f"vhost-user-i2c-{board.transport}"
        if not board.virtio:
            # Not at the hub that QEMU would add: with nothing else there, a device that is plugged
            # in may hang the guest (docs/simulator.md).
            device = "usb-redir" if spec.shells or spec.relay else "usb-redir,port=1"
        device += f",chardev={CHIP_CHARDEV}"
        if board.ecam is not None:
            arguments += ["-device", f"pcie-root-port,id={BAY},chassis=1,slot=1"]
            device += f",bus={BAY},id={CHIP_DEVICE}"
        if not asleep:
            arguments += [*line, "-device", device]
    if spec.cable:
        wire = f"stream,id=wire,server=on,addr.type=unix,addr.path={CABLE_SOCKET}"
        arguments += _nic(spec, wire, f"id={CABLE},netdev=wire,mac={wired_mac(spec.name)}")
    if spec.uplink:
        mac = wired_mac(f"{spec.name} uplink")
        arguments += _nic(spec, UPLINK, f"netdev=uplink,mac={mac}")
    for each in board.properties:
        arguments += ["-global", each]
    if board.watchdog:
        arguments += ["-device", board.watchdog, "-action", "watchdog=reset"]
    return arguments + list(spec.extra)


def _nic(spec: MachineSpec, network: str, properties: str) -> list[str]:
    transport = spec.hardware.transport
    # No romfile: it could start from the network otherwise, and looks for its program.
    end = ",romfile=" if transport == "pci" else ""
    return ["-netdev", network, "-device", f"virtio-net-{transport},{properties}{end}"]


def wired_mac(name: str) -> str:
    """Return the address of a node's wired port, one of those that anybody may make up."""
    return "02:" + hashlib.sha256(name.encode()).digest()[:5].hex(":")


def saved_hardware(spec: MachineSpec) -> list[str]:
    """Return what a machine must have in common with one that wakes from its saved state."""
    plain = replace(
        spec,
        name="node",
        kernel=None if spec.kernel is None else Path(KERNEL),
        rootfs=None if spec.rootfs is None else Path("rootfs"),
        cmdline="",
        accel=replace(spec.accel, reason="", tsc_khz=None),
    )
    return command(plain)


def _kernel_parameters(spec: MachineSpec) -> list[str]:
    words = spec.hardware.cmdline.split()
    if spec.accel.name == "tcg":
        words += spec.hardware.tcg_cmdline.split()
    return _with_clock(spec, words + spec.cmdline.split())


def card_parameters(spec: MachineSpec, cmdline: str) -> list[str]:
    """Return the card's own kernel parameters and, behind them, what the machine needs.

    :param spec: The machine.
    :param cmdline: The card's own.
    """
    board = spec.hardware
    (own,) = re.findall(r"console=(\S+)", board.cmdline)
    # config, "enable_uart": the firmware puts the name of its serial port in place of serial0.
    words = [
        re.sub(r"^console=serial0(?=,|$)", f"console={own}", word) for word in cmdline.split(" ")
    ]
    if not any(word.split(",")[0] == f"console={own}" for word in words):
        words.append(f"console={own}")
    words += [word for word in board.cmdline.split() if not word.startswith("console=")]
    if spec.accel.name == "tcg":
        words += f"{board.tcg_cmdline} {board.tcg_card_cmdline}".split()
    return _with_clock(spec, words + spec.cmdline.split())


def _with_clock(spec: MachineSpec, words: list[str]) -> list[str]:
    if spec.accel.tsc_khz is not None:
        # A time stamp counter of known frequency is the cheapest clock there is, in user space as
        # well; an image that distrusts it does so because a guest cannot measure it.
        words = [word for word in words if not word.startswith("tsc")]
        words += [f"tsc_early_khz={spec.accel.tsc_khz}", "tsc=reliable"]
    return words


def _value(text: Path | str) -> str:
    """Return ``text`` for use in a comma-separated option, where a comma is doubled."""
    return str(text).replace(",", ",,")


def _listener(name: str, path: str, more: str = "") -> list[str]:
    return ["-chardev", f"socket,id={name},path={path},server=on,wait=off{more}"]


def _disks(spec: MachineSpec) -> list[str]:
    """Root (vda), data (vdb), configuration (vdc): the order is the names in the guest. Or the card
    alone."""
    arguments = []
    # The host's page cache survives the end of QEMU, which is all the power cuts there are: waiting
    # for the host's disk at every flush of the guest would only cost time.
    disks = [("card", CARD, ",cache=unsafe")]
    if spec.rootfs is not None:
        disks = [
            ("root", _value(spec.rootfs), ",read-only=on"),
            ("data", _value(spec.data), ",cache=unsafe"),
            ("config", _value(spec.config), ",cache=unsafe"),
        ]
    if not spec.hardware.virtio:
        return ["-drive", f"if=sd,format=raw,file={CARD},cache=unsafe"]
    if spec.write_log is not None:
        return _logged_card(spec.write_log, spec.hardware.transport)
    for name, path, more in disks:
        arguments += ["-drive", f"if=none,id={name},format=raw,file={path}{more}"]
        arguments += ["-device", f"virtio-blk-{spec.hardware.transport},drive={name}"]
    return arguments


def _logged_card(log: str, transport: str) -> list[str]:
    # The log has to be right when the power is cut: its superblock is written with every entry.
    files = {"file": CARD, "log": _value(log)}
    parts = ["driver=blklogwrites,node-name=card,log-append=on,log-super-update-interval=1"]
    for name, path in files.items():
        parts.append(f"{name}.driver=raw,{name}.file.driver=file,{name}.file.filename={path}")
        parts.append(f"{name}.cache.no-flush=on,{name}.file.cache.no-flush=on")
    return ["-blockdev", ",".join(parts), "-device", f"virtio-blk-{transport},drive=card"]


def _ports(spec: MachineSpec) -> list[str]:
    """hvc0 and hvc1 (shells for programs and for people), and the relay's port."""
    serial = f"virtio-serial-{spec.hardware.transport},id=serial,max_ports={MOST_PORTS}"
    arguments = ["-device", serial]
    for name, path in (("shell", SHELL_SOCKET), ("exec", EXEC_SOCKET)) if spec.shells else ():
        arguments += _listener(name, path)
        arguments += ["-device", f"virtconsole,bus={SERIAL_BUS},chardev={name}"]
    if spec.relay:
        arguments += _listener("relay", RELAY_SOCKET)
        port = f"virtserialport,bus={SERIAL_BUS},chardev=relay,id=relay,name={RELAY_PORT}"
        arguments += ["-device", port]
    return arguments


def _adapters(spec: MachineSpec) -> list[str]:
    """The same by USB: serial adapters behind a hub, as the board has one port."""
    shells = zip(("shell", "exec"), (SHELL_SOCKET, EXEC_SOCKET), SHELL_PORTS, strict=True)
    channels = [
        *(shells if spec.shells else ()),
        *([("relay", RELAY_SOCKET, RELAY_PORT)] if spec.relay else ()),
    ]
    arguments = ["-device", "usb-hub,port=1"] if channels else []
    for place, (name, path, number) in enumerate(channels, start=1):
        arguments += _listener(name, path)
        # Otherwise it would come and go with who is connected to the socket.
        device = f"usb-serial,port=1.{place},chardev={name},serial={number},always-plugged=on"
        arguments += ["-device", device]
    return arguments
