# SPDX-License-Identifier: Apache-2.0
"""DNS-SD of a node in a network namespace of its own, for test_dnssd.py.

Run as ``python dnssd_in_namespace.py NUMBER MOST_RECORDS [ADDRESS...]``, the addresses being those
of nodes that beacons have told. It leaves the network first and says "ready"; the test then gives
it an interface named mesh0 and answers with a line. From then on it prints its status document as a
line of JSON whenever that changes.
"""

import asyncio
import contextlib
import json
import sys
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import network_namespace

from thicket.base.problems import Problems
from thicket.discovery import dnssd

PREFIX = IPv6Network("fd12:3456:789a:1::/64")


async def serve(number: int, beacons: list[str]) -> None:
    address = PREFIX[number]
    tried: list[str] = []
    text = {"node": f"thicket@{address}", "device": f"0123{number:02x}", "version": "1.2.3"}
    told = dnssd.Told(f"n-{number:012x}", address, 9100, text)
    problems = Problems(lambda: None)
    service = dnssd.DnsSd(
        told,
        PREFIX,
        "mesh0",
        problems,
        name_of=lambda other: f"thicket@{other}",
        known=lambda other: str(other) in tried or str(other) in beacons,
        others=lambda: len(beacons),
        growth=lambda: None,
        on_hint=lambda other: tried.append(str(other)),
    )
    task = asyncio.create_task(service.run())
    said = ""
    while not task.done():
        with contextlib.suppress(OSError, RuntimeError):
            arrange(address)
        words = json.dumps(
            {**service.snapshot(), "tried": tried, "codes": [p["code"] for p in problems.all()]}
        )
        if words != said:
            print(words, flush=True)
        said = words
        await asyncio.sleep(0.05)
    task.result()


def arrange(address: IPv6Address) -> None:
    """Bring mesh0 up with its address, also when it was made anew."""
    state = Path("/proc/net/if_inet6").read_text(encoding="ascii")
    if address.packed.hex() not in state:
        network_namespace.up("mesh0")
        network_namespace.ip(f"address replace {address}/64 dev mesh0 nodad")


network_namespace.unshare_network()
print("ready", flush=True)
sys.stdin.readline()
dnssd.START = (0.0, 0.0)
dnssd.QUIET = 0.0
dnssd.PAUSES = (0.5,)  # type: ignore[assignment]
dnssd.LOOK = 0.2
dnssd.MOST_RECORDS = int(sys.argv[2])
asyncio.run(serve(int(sys.argv[1]), sys.argv[3:]))
