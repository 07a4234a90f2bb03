# SPDX-License-Identifier: Apache-2.0
"""What is plugged into the USB port of an emulated Raspberry Pi 3 B: its chip, a Wi-Fi adapter.

Both are the simulator's, and reach QEMU by ``usb-redir``. Linux sees them through the Pi's own
controller (DWC2), loads their drivers because of what they say they are, and the node takes them.
docs/simulator.md, "USB devices of an emulated Raspberry Pi", says what that controller cannot.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio

from meshlab.chip.atecc608 import Atecc608
from meshlab.chip.server import ChipServer
from meshlab.chip.state import serial_for
from meshlab.lab.spec import PREFIX
from meshlab.lab.state import address_from_serial
from meshlab.lab.testing import HANGS
from meshlab.machine.qemu import MachineError
from meshlab.machine.shell import ShellError
from meshlab.machine.spec import CHIP_SOCKET
from meshlab.usb.ralink import RECEIVES_AT, Rt5370, received
from meshlab.usb.server import UsbServer

sys.path.insert(0, str(Path(__file__).parent))
from card_images import loaded
from emulated_pi import PATIENCE, Pi

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(HANGS, func_only=True),
]

IMAGE = "standin-rpi64"
"""It has the driver of the chip's USB adapter, which the firmware does not need."""
SERIAL = serial_for(1, 1)
CHIP = f"security chip, serial number {SERIAL.hex()}"
NO_CHIP = "no security chip, so nothing proves it"
BUS = 3
"""The Pi's own three come first, and QEMU 7.2 lets each access to them time out."""
WITH_CHIP = f'[mesh]\nid = "pi-test"\n[identity]\ni2c_bus = "{BUS}"\n'
WITH_RADIO = """
[mesh]
id = "pi-test"
security = "open"
[identity]
i2c_bus = "none"
[discovery]
beacon = "plain"
[cluster]
security = "cookie"
cookie = "a-cookie-for-a-test"
"""
MAC = bytes.fromhex("74da38112233")
NEIGHBOUR = bytes.fromhex("74da38445566")
MESH_ID = b"\x72\x07pi-test"
"""The element of a beacon that names the mesh (IEEE 802.11-2020, 9.4.2.97)."""
NO_RADIO = "no radio: the kernel reports none"
STARTS = 3
ABORTED = "!usb_packet_is_inflight(p)"
"""What QEMU says then."""
ADAPTER_SOCKET = "adapter.sock"
PORTS = {
    # Its only port: behind a hub, which the guest asks all the time, an abort is more probable.
    "raspi3b": ("-device", "usb-redir,port=1,chardev=adapter"),
    "virt": ("-device", "qemu-xhci", "-device", "usb-redir,chardev=adapter"),
}
"""Where the adapter is plugged in."""


class PiWithChip(Pi):
    """A Pi with a chip behind a USB adapter."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, loaded(IMAGE), toml=WITH_CHIP, chip=True)
        self.chip = Atecc608(SERIAL, directory / "chip.json")
        self.server = ChipServer(directory / CHIP_SOCKET, self.chip, usb=True)

    @property
    def adapter(self) -> UsbServer:
        assert isinstance(self.server.server, UsbServer)
        return self.server.server


P = TypeVar("P", "PiWithChip", "WithAdapter")


@asynccontextmanager
async def served(pi: P) -> AsyncIterator[P]:
    """Serve what is plugged in; at the end the power is cut and the card is gone."""
    await pi.server.start()
    try:
        yield pi
    finally:
        await pi.cut()
        await pi.server.stop()
        pi.card.unlink()


@pytest_asyncio.fixture(loop_scope="module")
async def with_chip(tmp_path: Path) -> AsyncIterator[PiWithChip]:
    async with served(PiWithChip(tmp_path)) as pi:
        yield pi


async def test_the_chip_is_the_identity_from_the_first_start_and_a_lie_is_told(
    with_chip: PiWithChip,
) -> None:
    await with_chip.on()
    report = await with_chip.reported(CHIP, "new (on a blank device)")
    assert f"{address_from_serial(PREFIX, SERIAL)}/64" in report
    assert "chip" not in report.partition("\nProblems\n")[2], "nothing is wrong with it"

    await with_chip.cut()
    with_chip.chip.fault = "bad-crc"
    with_chip.forget_report()
    await with_chip.on()
    report = await with_chip.reported(NO_CHIP, "something answers at 0x60, but")
    assert re.search(
        rf"/dev/i2c-{BUS}: .*something answers at 0x60, but [0-9a-f]{{8}} came back", report
    )


async def test_a_chip_that_is_missing_at_the_start_is_taken_when_it_is_plugged_in(
    with_chip: PiWithChip,
) -> None:
    with_chip.adapter.unplug()
    await with_chip.on()
    await with_chip.reported(NO_CHIP, f"No security chip. Tried /dev/i2c-{BUS}: No such file")
    with_chip.adapter.plug()
    report = await with_chip.reported(CHIP)
    assert f"{address_from_serial(PREFIX, SERIAL)}/64" in report


class WithAdapter(Pi):
    """A machine into which a Wi-Fi adapter can be plugged.

    :param board: What it is.
    """

    def __init__(self, directory: Path, board: str) -> None:
        chardev = f"socket,id=adapter,path={ADAPTER_SOCKET}"
        extra = ("-chardev", chardev, *PORTS[board])
        changes = {"board": board, "shells": board == "virt", "extra": extra}
        super().__init__(directory, loaded(IMAGE), toml=WITH_RADIO, **changes)
        self.adapter = Rt5370(MAC)
        self.server = UsbServer(directory / ADAPTER_SOCKET, self.adapter, plugged=False)

    async def radio(self, state: str) -> dict[str, Any]:
        """Return what the node says of its radio, as soon as it is in a state."""
        async with self.machine.within(PATIENCE):
            while True:
                said = await self.machine.shell.run("thicket status --json", PATIENCE)
                # A daemon that is busy says nothing in JSON.
                with suppress(ValueError):
                    radio: dict[str, Any] = json.loads(said.output)["radio"]
                    if radio["state"] == state:
                        return radio
                await asyncio.sleep(1)

    async def plug_in(self) -> None:
        """Plug the adapter in, and wait until the node uses it for the mesh."""
        self.server.plug()
        await self.until(lambda: MESH_ID in (self.adapter.beacon or b""), "a beacon of the mesh")


@pytest_asyncio.fixture(loop_scope="module")
async def with_adapter(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[WithAdapter]:
    async with served(WithAdapter(tmp_path, request.param)) as pi:
        yield pi


@pytest.mark.parametrize("with_adapter", ["raspi3b"], indirect=True)
async def test_a_wifi_adapter_that_is_plugged_in_after_the_start_becomes_the_radio(
    with_adapter: WithAdapter,
) -> None:
    """By its driver (rt2800usb), which the kernel's announcement of the adapter has loaded.

    The driver gives up a transfer after 50 ms. On a host that is too busy for that QEMU's
    controller may abort (``meshlab.wire.usbredir`` says why); then there is another start.
    """
    pi = with_adapter
    for start in range(STARTS):
        try:
            await becomes_the_radio(pi)
            return
        except (AssertionError, MachineError, ShellError):
            if start == STARTS - 1 or ABORTED not in pi.machine.errors_since_start():
                raise
            print(f"start {start + 1}: QEMU aborted", file=sys.stderr)
            await pi.cut()
            pi.server.unplug()
            pi.forget_report()


async def becomes_the_radio(pi: WithAdapter) -> None:
    await pi.on()
    await pi.reported(NO_RADIO)
    await pi.plug_in()
    await greet(pi)


@pytest.mark.parametrize("with_adapter", ["virt"], indirect=True)
async def test_a_wifi_adapter_may_be_pulled_and_plugged_in_again(
    with_adapter: WithAdapter,
) -> None:
    """On another controller (XHCI): that of QEMU 7.2's Pi aborts when an adapter is pulled."""
    pi = with_adapter
    await pi.on()
    await pi.radio("absent")
    for _ in range(2):
        await pi.plug_in()
        radio = await pi.radio("joined")
        assert radio["driver"] == "rt2800usb"
        assert radio["mac"] == ":".join(f"{byte:02x}" for byte in MAC)
        pi.server.unplug()
        await pi.radio("absent")
    assert pi.machine.running


async def greet(pi: WithAdapter) -> None:
    """Let the node hear a neighbour's beacon, which is its own but for the sender, until it asks it
    for a link."""
    beacon = pi.adapter.beacon
    assert beacon is not None
    hello = received(beacon[:10] + NEIGHBOUR * 2 + beacon[22:])

    def asked() -> bool:
        pi.server.send(RECEIVES_AT, hello)
        return any(asks_for_link(frame) for frame in pi.adapter.sent)

    pi.adapter.sent.clear()
    await pi.until(asked, "a request for a link")


def asks_for_link(frame: bytes) -> bool:
    """Tell whether a frame is a Mesh Peering Open to the neighbour (9.6.15.2)."""
    return frame[:1] == b"\xd0" and frame[4:10] == NEIGHBOUR and frame[24:26] == b"\x0f\x01"
