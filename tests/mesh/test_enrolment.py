# SPDX-License-Identifier: Apache-2.0
"""Nodes are enrolled while they run: over the serial console, and over a cable."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from ipaddress import IPv6Network
from pathlib import Path

import pytest

from authority.authority import Authority
from authority.cli import main
from meshlab.cable.errors import CableError
from meshlab.cable.network import check
from meshlab.lab.lab import Lab
from meshlab.lab.testing import PATIENCE, Nodes
from meshlab.machine.spec import CONSOLE_SOCKET

MESH = "open"
TREE = Path(__file__).resolve().parents[2]

TALK = (
    "n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo '<4>usb 1-1: noise' >/dev/kmsg; sleep 0.2; done"
)


async def test_a_chip_is_enrolled_over_the_console(lab: Lab, nodes: Nodes, tmp_path: Path) -> None:
    """The kernel talks there meanwhile."""
    node = lab.state.nodes["n2"]
    buses = (await nodes.run("n2", "ls /dev/i2c-*")).split()
    number = buses[0].removeprefix("/dev/i2c-")
    ca = Authority(tmp_path / "fleet", lambda _: "")
    ca.init("there", IPv6Network("fd12:3456:789a:1::/64"), lab=True)
    await nodes.run("n2", f"({TALK}) >/dev/null 2>&1 &")
    words = ["--folder", str(ca.folder), "enroll", "--bus", number, "--write"]
    words += ["--console", str(lab.nodes["n2"].directory / CONSOLE_SOCKET)]
    assert await asyncio.to_thread(main, words) == 0
    assert list(ca.list()["devices"]) == [node.serial]
    code = (
        "from thicket.identity.chip.atecc import Atecc; from thicket.identity.bus import LinuxBus;"
        "from thicket.trust.fleet import Fleet;"
        "from thicket.trust.credentials import enrolled_chain;"
        f"print(len(enrolled_chain(Atecc(LinuxBus({buses[0]!r})),"
        f" Fleet(bytes.fromhex('{ca.fleet.root.der.hex()}')))))"
    )
    assert (await nodes.run("n2", f'python3 -c "{code}"')).split()[-1] == "2"


@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
async def test_a_device_is_enrolled_over_a_cable(lab: Lab, nodes: Nodes, tmp_path: Path) -> None:
    """n2, as other tests lock the chip of n1 in ways of their own."""
    try:
        check()
    except CableError as error:
        pytest.skip(str(error))
    ca = Authority(tmp_path / "fleet", lambda _: "")
    ca.init("there", IPv6Network("fd12:3456:789a:1::/64"), lab=True)
    paths = [TREE / each for each in ("tests/meshlab/src", "app/src", "tools/src")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    enroll = ("-m", "meshlab.cli.ca", "--folder", str(ca.folder), "enroll", "--cable", "--yes")
    said: list[str] = []

    async def enrolled() -> bool:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "meshlab", "--lab", lab.spec.name, "cable", "n2",
            "--", sys.executable, *enroll,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
        )  # fmt: skip
        async with lab.within(PATIENCE):
            out, _ = await process.communicate()
        said.append(out.decode())
        print(said[-1], flush=True)
        return "1 of 1 devices are enrolled" in said[-1]

    # A device answers some time after its cable was plugged in; so it is looked for again.
    await nodes.until(enrolled, "the device at the cable is enrolled")
    assert list(ca.list()["devices"]) == [lab.state.nodes["n2"].serial]
