# SPDX-License-Identifier: Apache-2.0
"""The chip through everything that lies between: driver, kernel, virtio, QEMU, shared memory.

The daemon reads its chip at the start, the tests use the same driver beside it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes

MESH = "open"

PREAMBLE = """
import glob, json
from thicket.identity.chip.atecc import *
from thicket.identity.chip.errors import *
from thicket.identity.chip.packet import *
from thicket.identity.bus import *
bus = LinuxBus(glob.glob("/dev/i2c-*")[0])
chip = Atecc(bus, patience=60.0)  # of a node that the host gives little
def tell(value): print(json.dumps(value))
"""


@pytest.fixture
def python(nodes: Nodes) -> Callable[[str], Any]:
    """Return a function that runs Python on the node and returns what it tells."""

    async def run(code: str) -> Any:
        output = await nodes.run("n1", f"python3 -c {shlex.quote(PREAMBLE + code)}")
        return json.loads(output.strip().splitlines()[-1])

    return run


async def test_the_daemon_reads_the_chip(lab: Lab, nodes: Nodes) -> None:
    node = lab.state.nodes["n1"]
    assert nodes.status("n1", "identity", "source") == "chip"
    assert nodes.status("n1", "identity", "serial") == node.serial
    assert nodes.status("n1", "identity", "chip", "model") == "ATECC608A"
    assert node.address == node.expected_address
    assert not nodes.problems("n1", "identity")


async def test_sign_on_the_node_and_verify_here(python: Callable[[str], Any]) -> None:
    answer = await python(
        """
if not chip.info().config_locked:
    chip.lock_config(int.from_bytes(crc16(chip.read_config()), "little"))
key = chip.generate_key(0)
from hashlib import sha256
tell([key.hex(), chip.sign(0, sha256(b"thicket").digest()).hex(), chip.info().as_dict()])
"""
    )
    point, signature = bytes.fromhex(answer[0]), bytes.fromhex(answer[1])
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    digest = sha256(b"thicket").digest()
    key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(SHA256())))
    assert answer[2]["config_locked"] is True


async def test_missing_acknowledge_is_noticed(python: Callable[[str], Any]) -> None:
    # the kernel's i2c-virtio tells it by the number of messages only
    answer = await python(
        """
def refused(transfer):
    try: transfer()
    except NotAcknowledgedError: return True
    return False
tell([refused(lambda: bus.read(0x35, 4)), refused(lambda: bus.write(0x35, b"x"))])
"""
    )
    assert answer == [True, True]


@pytest.mark.parametrize("fault", ["nak:0.2", "watchdog:0.3"])
async def test_faults_never_give_a_wrong_result(
    lab: Lab, python: Callable[[str], Any], fault: str
) -> None:
    await lab.chip_fault("n1", fault)
    try:
        answer = await python(
            """
first = chip.counter(0)
serials, counts, failed = set(), [], 0
for _ in range(15):
    try:
        serials.add(chip.serial_number().hex())
        counts.append(chip.count_up(0))
    except ChipError as error:
        failed += 1
tell([sorted(serials), counts == sorted(set(counts)), counts[-1] - first, failed])
"""
        )
    finally:
        await lab.chip_fault("n1", None)
    serials, rising, counted, failed = answer
    assert serials == [lab.state.nodes["n1"].serial]
    assert rising
    assert 15 - failed <= counted <= 15
    assert failed < 8


@pytest.mark.parametrize(
    ("fault", "error"),
    [("absent", "ChipAbsentError"), ("stuck", "ChipBusError")],
)
async def test_lasting_faults_have_a_name(
    lab: Lab, python: Callable[[str], Any], fault: str, error: str
) -> None:
    await lab.chip_fault("n1", fault)
    try:
        answer = await python(
            """
chip = Atecc(bus)
try: tell(chip.info().as_dict())
except ChipError as error: tell(type(error).__name__)
"""
        )
    finally:
        await lab.chip_fault("n1", None)
    assert answer == error
    assert (await python("tell(chip.serial_number().hex())")) == lab.state.nodes["n1"].serial


async def test_power_cut(lab: Lab, nodes: Nodes, python: Callable[[str], Any]) -> None:
    count = await python("tell(chip.count_up(1))")
    address = nodes.address("n1")
    await lab.kill("n1")
    await lab.power_on("n1")
    await nodes.whole()
    assert nodes.address("n1") == address
    assert await python("tell(chip.counter(1))") == count
