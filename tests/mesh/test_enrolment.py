# SPDX-License-Identifier: Apache-2.0
"""A node is enrolled over its serial console while it runs, and while its kernel talks there."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Network
from pathlib import Path

from authority.authority import Authority
from authority.cli import main
from meshlab.lab.lab import Lab
from meshlab.lab.testing import Nodes
from meshlab.machine.spec import CONSOLE_SOCKET

MESH = "open"

TALK = (
    "n=0; while [ $n -lt 300 ]; do n=$((n+1)); echo '<4>usb 1-1: noise' >/dev/kmsg; sleep 0.2; done"
)


async def test_a_chip_is_enrolled_over_the_console(lab: Lab, nodes: Nodes, tmp_path: Path) -> None:
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
