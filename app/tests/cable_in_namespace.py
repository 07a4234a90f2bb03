# SPDX-License-Identifier: Apache-2.0
"""A node's cables in a network namespace of their own, for test_cable.py.

Run as ``python cable_in_namespace.py FOLDER HOSTNAME``. It leaves the network first and says
"ready"; the test then gives it an interface named eth0 and answers with a line. From then on it
prints its status as a line of JSON whenever that changes. FOLDER stands for the node's root: sysfs
in it calls eth0 a cable, as the kernel does of hardware and not of the wires of tests. A control
socket is there for the agent that enrolls it.
"""

import asyncio
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import network_namespace

from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.cable import service
from thicket.control.server import Handler, Server


def look(folder: Path) -> None:
    """Copy what the kernel says of eth0 to the node's own sysfs."""
    name = folder / "sys/class/net/eth0"
    lines = network_namespace.ip("-o link").splitlines()
    found = [line for line in lines if " eth0@" in line or " eth0:" in line]
    if not found:
        if name.exists():
            for one in name.iterdir():
                one.unlink()
            name.rmdir()
        return
    name.mkdir(parents=True, exist_ok=True)
    (name / "type").write_text("1\n")
    (name / "device").touch()
    (name / "carrier").write_text("1\n" if "LOWER_UP" in found[0] else "0\n")


async def serve(folder: Path, hostname: str) -> None:
    number = int(hostname[-2:], 16)
    used: list[list[str]] = []

    async def bring_up() -> None:
        network_namespace.up("eth0")
        network_namespace.ip(f"address replace 169.254.7.{number}/16 dev eth0")

    look(folder)
    problems = Problems(lambda: None)
    cables = service.Cables(
        hostname,
        {"device": "0123", "source": "board", "version": "1.2.3"},
        problems,
        sysfs=str(folder / "sys"),
        reserved=frozenset(),
        use=lambda names: used.append(sorted(names)),
        bring_up=bring_up,
    )
    task = asyncio.create_task(cables.run())
    paths = Paths(str(folder))
    Path(paths.run).mkdir(parents=True, exist_ok=True)
    control = asyncio.create_task(
        Server(paths.control, {"status": status(folder, hostname), "reload": reload}).run()
    )
    said = ""
    while not task.done():
        with contextlib.suppress(OSError):
            look(folder)
        told = {
            "cables": cables.snapshot(),
            "used": used[-1:],
            "answering": [one["interface"] for one in cables.snapshot() if one["found"]],
            "dropped": cables.dropped,
            "problems": [one["message"] for one in problems.all()],
        }
        words = json.dumps(told)
        if words != said:
            print(words, flush=True)
        said = words
        await asyncio.sleep(0.05)
    task.result()
    control.cancel()


def status(folder: Path, hostname: str) -> Handler:
    """As of a daemon: who it is, and the fleet that it is in once it has certificates."""

    async def answer(_: dict[str, Any]) -> dict[str, Any]:
        root = folder / "root"
        enrolled = (folder / "data/thicket/device.pem").exists()
        return {
            "identity": {"source": "board", "id": hostname[2:], "serial": None, "chip": None},
            "trust": {
                "root": root.read_text() if root.exists() else None,
                "device": "software" if enrolled else None,
            },
        }

    return answer


async def reload(_: dict[str, Any]) -> dict[str, Any]:
    return {"faults": [], "changed": [], "later": [], "source": "x"}


network_namespace.unshare_network()
network_namespace.ip("link set lo up")
print("ready", flush=True)
sys.stdin.readline()
service.LOOK = 0.2
asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
