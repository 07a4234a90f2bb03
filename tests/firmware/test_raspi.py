# SPDX-License-Identifier: Apache-2.0
"""A Raspberry Pi 3 B, a 3 A+ and a 4 B in QEMU, from power-on to the report on its card.

What ``virt`` does not show: the Pi's own device tree, its SD host controller, its serial port. What
is known of the machine is on its card and its console, as of a real one.
"""

from __future__ import annotations

import functools
import os
import re
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from patience import PATIENCE

from firmware import card as cards
from firmware import devicetree
from meshlab.lab import real_parts
from meshlab.lab.testing import HANGS
from meshlab.machine import bootrom
from meshlab.machine.spec import BOARDS

sys.path.insert(0, str(Path(__file__).parent))
from card_images import loaded
from emulated_pi import CONFIG, MIB, SIZE, Pi

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.lab,
    pytest.mark.timeout(HANGS, func_only=True),
]

NEW = f"{'Data:':<15}new"
SOAK = bool(os.environ.get("THICKET_SOAK"))
IMAGES = ("standin-rpi64", "rpi64")
PIS = ("raspi3b", "raspi4b")
MAINLINE = "bcm2837-rpi-3-b.dtb"
"""A device tree of mainline's kernel only."""
KEY_POWER = 116
"""linux/input-event-codes.h"""
ACTIVE_LOW = 1
"""dt-bindings/gpio/gpio.h"""
SLOT_B = b"[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=2\n"


@functools.cache
def machines(qemu: str) -> str:
    """Return the names of the machines that a QEMU has, in its own list."""
    answer = subprocess.run(
        [qemu, "-machine", "help"], capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return answer.stdout


@pytest_asyncio.fixture(
    loop_scope="module",
    params=[(image, board) for board in PIS for image in IMAGES],
    ids="-".join,
)
async def pi(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pi]:
    image, board = request.param
    parts = loaded(image)
    qemu = BOARDS[board].qemu
    if not re.search(rf"^{board}\b", machines(qemu), re.MULTILINE):
        pytest.skip(f"the installed {qemu} has no {board} (QEMU 9.0 and later do)")
    made = Pi(tmp_path, parts, board=board)
    try:
        if board == "raspi4b" and not made.has(MAINLINE):
            pytest.skip(
                "the card has the Raspberry Pi kernel's tree, which QEMU's card was not tried with"
            )
        yield made
    finally:
        await made.cut()
        made.card.unlink()


async def test_from_power_on_to_the_report_and_again_with_a_cut_card(pi: Pi) -> None:
    await pi.on()
    report = await pi.reported("slot A", NEW)
    assert f"{'Settings from:':<15}thicket.toml" in report
    assert "Nothing is wrong with them." in report
    # There is no clock with a battery: it starts at the time of the image.
    written = re.search(r"^Written: (\d{4})-", report)
    assert written, report
    assert int(written.group(1)) > 2024, report
    assert SIZE - 8 * MIB < pi.layout()[cards.DATA].end <= SIZE
    booted = pi.machine.booted
    assert booted is not None
    assert (booted.partition, booted.overlays) == (cards.BOOT_A, ("disable-bt", "disable-wifi"))
    console = pi.machine.console_since_start()
    assert "panic" not in console, console
    assert "Terminated" not in console, "the end of start-watch is nobody's business"

    await pi.cut()
    os.truncate(pi.card, SIZE // 2)
    assert pi.layout()[cards.DATA].end > SIZE // 2
    pi.forget_report()
    await pi.on()
    report = await pi.reported("slot A")
    assert re.search(r"^Data: +(new|was damaged)", report, re.MULTILINE), report


@pytest.mark.parametrize(
    "pi", [(image, "raspi3ap") for image in IMAGES], ids="-".join, indirect=True
)
async def test_half_the_memory_and_the_tree_of_a_3_b_plus(pi: Pi) -> None:
    await pi.on()
    report = await pi.reported("slot A", NEW)
    assert "Nothing is wrong with them." in report
    assert "panic" not in pi.machine.console_since_start()


async def test_a_fault_of_the_settings_is_named_on_the_card_by_slot_b(pi: Pi) -> None:
    pi.configure(CONFIG, b'[mesh]\nid = "pi-test"\nchanel = 6\n')
    pi.configure(bootrom.AUTOBOOT, SLOT_B)
    await pi.on()
    report = await pi.reported("slot B", "chanel")
    assert "thicket.toml" in report
    assert "Nothing is wrong with them." not in report


async def test_a_power_cut_during_the_first_start(pi: Pi) -> None:
    before = pi.layout()[cards.DATA].end
    await pi.on()
    await pi.until(lambda: pi.layout()[cards.DATA].end > before, "the data partition grows")
    await pi.cut()
    pi.forget_report()  # of a host that took long to cut
    await pi.on()
    report = await pi.reported("slot A", "Nothing is wrong with them.")
    assert re.search(r"^Data: +(new|sound|was damaged)", report, re.MULTILINE), report


def with_button(tree: bytes) -> bytes:
    """Return the device tree with a power button that is pressed.

    It is at a pin which reads 0 in QEMU, and which pulls to 0 when it is pressed.
    """
    header = list(struct.unpack_from(">10I", tree))
    structure, strings, names_size, size = header[2], header[3], header[8], header[9]
    names = tree[strings : strings + names_size]
    pins = b""
    for part in devicetree.walk(tree):
        if part.path == "/soc/gpio@7e200000/phandle":
            pins = part.value
        end = part.end  # at last that of the root
    assert pins, "the pins have no handle"

    def begin(name: str) -> bytes:
        text = name.encode() + b"\0"
        return struct.pack(">I", devicetree.BEGIN) + text + bytes(-len(text) % 4)

    def prop(name: str, value: bytes) -> bytes:
        nonlocal names
        at, names = len(names), names + name.encode() + b"\0"
        head = struct.pack(">III", devicetree.PROPERTY, len(value), at)
        return head + value + bytes(-len(value) % 4)

    node = begin("keys") + prop("compatible", b"gpio-keys\0") + begin("power")
    node += prop("gpios", pins + struct.pack(">II", 20, ACTIVE_LOW))
    node += prop("linux,code", struct.pack(">I", KEY_POWER))
    node += 2 * struct.pack(">I", devicetree.END)
    whole = tree[: end - 4] + node + tree[end - 4 : structure + size]
    header[3], header[8], header[9] = len(whole), len(names), size + len(node)
    header[1] = len(whole) + len(names)
    return struct.pack(">10I", *header) + whole[40:] + names


async def test_a_pressed_button_switches_off_in_order(pi: Pi) -> None:
    boot = real_parts.partition(pi.card, cards.BOOT_A)
    model = bootrom.MODELS[pi.machine.spec.hardware.model]
    name, tree = next((n, t) for n in model.trees if (t := boot.read(n, 1 << 20)))
    boot.write(name, with_button(tree))
    await pi.on()
    await pi.until(
        lambda: "reboot: Power" in pi.machine.console_since_start(), "it switches itself off"
    )
    await pi.cut()
    boot.write(name, tree)
    await pi.on()
    report = await pi.reported("slot A")
    assert f"{'Last restart:':<15}switched off or restarted in order" in report


# -- cards that take long


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="takes minutes: `make soak`, or THICKET_SOAK=1")
async def test_a_card_of_256_gb_has_its_report_soon(pi: Pi) -> None:
    """The file is sparse: what the start writes is what the host gives room for."""
    os.truncate(pi.card, 256 << 30)
    await pi.on()
    await pi.reported("slot A", NEW)
    assert pi.layout()[cards.DATA].end > 255 << 30
    await pi.cut()
    pi.forget_report()
    await pi.on()
    report = await pi.reported("slot A")
    assert re.search(r"^Data: +sound", report, re.MULTILINE), report


@pytest.mark.soak
@pytest.mark.skipif(not SOAK, reason="takes minutes: `make soak`, or THICKET_SOAK=1")
async def test_a_card_of_5_mb_a_second_has_its_report(pi: Pi) -> None:
    await pi.on()
    limits = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    await pi.machine.qmp("block_set_io_throttle", {"device": "sd0", "bps": 5 * MIB, **limits})
    await pi.reported("slot A", NEW)
