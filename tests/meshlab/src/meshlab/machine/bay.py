# SPDX-License-Identifier: Apache-2.0
"""The port that the chip's bus is plugged into, and how the bus is changed without the guest's
notice.

QEMU cannot save a ``vhost-user-i2c``, nor load a state that has one. So it is taken out of its port
while the machine is paused, and another one is put in, now or in the machine that wakes. The
guest's driver finds all registers as it left them: PCI configuration space (PCI Express Base
Specification, 7.5), interrupts (PCI 3.0, 6.8.2) and those of virtio (VIRTIO 1.2, 4.1.4.3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from meshlab.machine.given import Given
from meshlab.machine.qemu import QMP_PATIENCE, MachineError
from meshlab.machine.registers import Registers
from meshlab.machine.spec import BAY, CHIP_CHARDEV, CHIP_DEVICE, CHIP_SOCKET

if TYPE_CHECKING:
    from meshlab.machine.machine import Machine

CONFIG_SIZE = 256
COMMAND, CAPABILITIES = 0x04, 0x34
MEMORY_ENABLED = 1 << 1
PLAIN_REGISTERS = (0x0C, 0x10, 0x14, 0x18, 0x1C, 0x20, 0x24, 0x3C)
"""Those of the header that are numbers to be kept: base addresses, the interrupt line."""
CAP_VENDOR, CAP_EXPRESS, CAP_MSIX = 0x09, 0x10, 0x11
DEVICE_CONTROL, LINK_CONTROL, SLOT_CONTROL = 0x08, 0x10, 0x18
"""In the capability of PCI Express."""
SLOT_LAMP, SLOT_LAMP_ON, SLOT_LAMP_OFF, SLOT_OFF = 0x0300, 0x0100, 0x0300, 0x0400
"""Power indicator and power controller of a slot."""

VIRTIO_COMMON = 1
"""``cfg_type`` of the capability that says where the common registers are."""
FEATURE_SELECT, FEATURES = 0x08, 0x0C
CONFIG_VECTOR, QUEUES, STATUS, QUEUE = 0x10, 0x12, 0x14, 0x16
QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE = 0x18, 0x1A, 0x1C
QUEUE_ADDRESSES = range(0x20, 0x38, 4)
STATUS_STEPS = (0x00, 0x01, 0x03)
"""Reset, ACKNOWLEDGE, DRIVER: before features are written."""
STATUS_FEATURES = 0x0B
STATUS_RUNNING = 0x0F


@dataclass(frozen=True)
class Plugged:
    """The registers of a device that a driver has set up."""

    config: list[int]
    """Configuration space, in words of 32 bits."""
    vectors: list[int]
    """The table of MSI-X, in words of 32 bits."""
    features: list[int]
    """Those that the driver accepted, low half first."""
    config_vector: int
    queues: list[list[int]]
    """Size, vector, enabled, and the six halves of the addresses of each queue."""

    def to_json(self) -> dict[str, Any]:
        """Return it as plain values; ``from_json`` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return what ``to_json`` described.

        :raises TypeError: when it describes something else.
        """
        return cls(**value)

    def beside(self, other: Self) -> str:
        """Return which registers are not as those of another, in a line."""
        told = []
        for part, ours in asdict(self).items():
            theirs = asdict(other)[part]
            if not isinstance(ours, list) or len(ours) != len(theirs):
                told += [f"{part} {ours}, was {theirs}"] if ours != theirs else []
                continue
            pairs = enumerate(zip(ours, theirs, strict=True))
            told += [f"{part}[{at}] {is_}, was {was}" for at, (is_, was) in pairs if is_ != was]
        return "; ".join(told)

    def capability(self, kind: int) -> list[int]:
        """Return where the capabilities of a kind are."""
        found, at = [], self.config[CAPABILITIES // 4] & 0xFC
        # Each is in the list once; one with a loop is none of QEMU's.
        for _ in range(CONFIG_SIZE // 4):
            if not at:
                break
            word = self.config[at // 4]
            if word & 0xFF == kind:
                found.append(at)
            at = word >> 8 & 0xFC
        return found

    def base(self, number: int) -> int:
        """Return the address that a base address register has."""
        low = self.config[4 + number]
        high = self.config[5 + number] if low & 6 == 4 else 0
        return high << 32 | low & ~0xF

    @property
    def common(self) -> int:
        """Return the address of virtio's common registers."""
        for at in self.capability(CAP_VENDOR):
            if self.config[at // 4] >> 24 == VIRTIO_COMMON:
                return self.base(self.config[at // 4 + 1] & 0xFF) + self.config[at // 4 + 2]
        raise MachineError("the chip's bus is no virtio device")

    @property
    def table(self) -> tuple[int, int]:
        """Return address and length, in words of 32 bits, of the table of MSI-X."""
        for at in self.capability(CAP_MSIX):
            place = self.config[at // 4 + 1]
            return self.base(place & 7) + (place & ~7), 4 * (
                (self.config[at // 4] >> 16 & 0x7FF) + 1
            )
        return 0, 0


class Bay:
    """The port of a machine that is paused.

    :param machine: The machine.
    :param registers: Its registers.
    :param port: Where the port itself has its configuration.
    :param inside: Where what is plugged in has it.
    """

    def __init__(self, machine: Machine, registers: Registers, port: int, inside: int) -> None:
        self._machine = machine
        self._registers = registers
        self._port = port
        self._inside = inside

    @classmethod
    async def of(cls, machine: Machine, registers: Registers) -> Self:
        """Find the port.

        :raises MachineError: when the machine has none, or has not numbered its buses yet.
        """
        ecam = machine.spec.hardware.ecam
        for root in await machine.qmp("query-pci"):
            for device in root["devices"]:
                if device["qdev_id"] == BAY and ecam is not None:
                    bus = device["pci_bridge"]["bus"]["secondary"]
                    if not bus:
                        raise MachineError(f"{machine.spec.name} has just been switched on")
                    port = ecam + (root["bus"] << 20) + (device["slot"] << 15)
                    return cls(machine, registers, port, ecam + (bus << 20))
        raise MachineError(f"{machine.spec.name} has no port for the chip's bus")

    async def unplug(self) -> Plugged:
        """Take the chip's bus out.

        :returns: What its driver wrote to it.
        :raises MachineError: when it cannot be; nothing has changed then.
        """
        found = await self._look()
        await self._switch(on=False)
        # QEMU unplugs what is in a slot without power.
        await self._hang_up()
        return found

    async def plug(self, saved: Plugged) -> None:
        """Put a chip's bus in, as its driver knows it.

        :raises MachineError: when QEMU refuses it, or it is not what was there before.
        """
        qmp = self._machine.qmp
        where = {"type": "unix", "data": {"path": CHIP_SOCKET}}
        backend = {"type": "socket", "data": {"addr": where, "server": False}}
        await qmp("chardev-add", {"id": CHIP_CHARDEV, "backend": backend})
        device = {"driver": "vhost-user-i2c-pci", "chardev": CHIP_CHARDEV}
        await qmp("device_add", {**device, "bus": BAY, "id": CHIP_DEVICE})
        await self._switch(on=True)
        await self._restore_config(saved)
        await self._restore_virtio(saved)
        if (found := await self._look()) != saved:
            raise MachineError(
                f"{self._machine.spec.name}: the chip's bus is not as it was before: "
                f"{found.beside(saved)}"
            )

    async def _hang_up(self) -> None:
        """Close the connection of what was unplugged: the next one introduces itself anew.

        QEMU lets go of it when its threads have let go of the device.
        """
        had = Given(lambda: [self._machine.pid])
        while True:
            try:
                await self._machine.qmp("chardev-remove", {"id": CHIP_CHARDEV})
            except MachineError as error:
                if "is busy" not in str(error) or had.seconds() > QMP_PATIENCE:
                    raise
            else:
                return
            await asyncio.sleep(0.005)

    async def _switch(self, *, on: bool) -> None:
        words = [await self._registers.read(self._port + at, 4) for at in range(0, CONFIG_SIZE, 4)]
        (express,) = Plugged(words, [], [], 0, []).capability(CAP_EXPRESS)
        control = words[(express + SLOT_CONTROL) // 4] & 0xFFFF & ~(SLOT_LAMP | SLOT_OFF)
        control |= SLOT_LAMP_ON if on else SLOT_LAMP_OFF | SLOT_OFF
        await self._registers.write(self._port + express + SLOT_CONTROL, 2, control)

    async def _look(self) -> Plugged:
        read = self._registers.read
        config = [await read(self._inside + at, 4) for at in range(0, CONFIG_SIZE, 4)]
        found = Plugged(config, [], [], 0, [])
        if not config[COMMAND // 4] & MEMORY_ENABLED:
            raise MachineError(f"{self._machine.spec.name} has not started its chip's bus yet")
        common, (table, length) = found.common, found.table
        if await read(common + STATUS, 1) != STATUS_RUNNING:
            raise MachineError(f"{self._machine.spec.name} has no driver for its chip's bus yet")
        vectors = [await read(table + 4 * number, 4) for number in range(length)]
        features = []
        for half in (0, 1):
            await self._registers.write(common + FEATURE_SELECT, 4, half)
            features.append(await read(common + FEATURES, 4))
        queues = []
        for number in range(await read(common + QUEUES, 2)):
            await self._registers.write(common + QUEUE, 2, number)
            words = [await read(common + at, 2) for at in (QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE)]
            queues.append(words + [await read(common + at, 4) for at in QUEUE_ADDRESSES])
        config_vector = await read(common + CONFIG_VECTOR, 2)
        return Plugged(config, vectors, features, config_vector, queues)

    async def _restore_config(self, saved: Plugged) -> None:
        write = self._registers.write
        for at in PLAIN_REGISTERS:
            await write(self._inside + at, 4, saved.config[at // 4])
        controls = [
            at + more
            for at in saved.capability(CAP_EXPRESS)
            for more in (DEVICE_CONTROL, LINK_CONTROL)
        ]
        for at in (*controls, COMMAND):
            # The upper half is a status, in which writing clears.
            await write(self._inside + at, 2, saved.config[at // 4] & 0xFFFF)
        for at in saved.capability(CAP_MSIX):
            await write(self._inside + at + 2, 2, saved.config[at // 4] >> 16)
        for number, word in enumerate(saved.vectors):
            await write(saved.table[0] + 4 * number, 4, word)

    async def _restore_virtio(self, saved: Plugged) -> None:
        write, common = self._registers.write, saved.common
        for status in STATUS_STEPS:
            await write(common + STATUS, 1, status)
        for half, bits in enumerate(saved.features):
            await write(common + FEATURE_SELECT, 4, half)
            await write(common + FEATURES, 4, bits)
        await write(common + STATUS, 1, STATUS_FEATURES)
        await write(common + CONFIG_VECTOR, 2, saved.config_vector)
        for number, (size, vector, enabled, *halves) in enumerate(saved.queues):
            await write(common + QUEUE, 2, number)
            await write(common + QUEUE_SIZE, 2, size)
            await write(common + QUEUE_VECTOR, 2, vector)
            for at, half in zip(QUEUE_ADDRESSES, halves, strict=True):
                await write(common + at, 4, half)
            if enabled:
                await write(common + QUEUE_ENABLE, 2, enabled)
        await write(common + STATUS, 1, STATUS_RUNNING)
