# SPDX-License-Identifier: Apache-2.0
"""A gateway at the end of a line of four leads all to another network, which has IPv4 alone.

It is QEMU's user networking, in which 10.0.2.2 is this machine.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address

from meshlab.lab.lab import Lab
from meshlab.lab.real_parts import uplink_interface
from meshlab.lab.testing import PATIENCE, Nodes
from thicket.gateway.section import NAT64

MESH = "neighbours"

HOST = 0x0A000202
"""10.0.2.2"""

ASK = """python3 -c '
import socket
with socket.create_connection(("{address}", {port}), 60) as s:
    s.sendall(b"over the mesh")
    s.shutdown(1)
    print(s.makefile().read())
'"""


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """Serve on this machine what comes back in capitals; return the port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        yield server.sockets[0].getsockname()[1]


async def used(nodes: Nodes, name: str) -> str | None:
    """Return the address of the gateway that a node uses for IPv4."""
    status = json.loads(await nodes.run(name, "thicket status --json"))
    found: str | None = status["gateway"]["uses"]["ipv4"] if status.get("gateway") else None
    return found


async def test_all_reach_a_network_that_has_ipv4_only(lab: Lab, nodes: Nodes) -> None:
    gateway, own = nodes.address("n1"), uplink_interface(cables=False)
    async with echo() as port:
        # The network's name server is this machine's, which may have none.
        check = json.dumps([f"10.0.2.2:{port}"])
        await nodes.run("n1", f"thicket config set gateway.uplink={own} 'gateway.check={check}'")
        try:
            for name in ("n2", "n4"):

                async def takes(name: str = name) -> bool:
                    return await used(nodes, name) == gateway

                await nodes.until(takes, f"{name} takes the gateway")
            address = IPv6Address(int(NAT64.network_address) | HOST)
            for name in ("n4", "n1"):

                async def answered(name: str = name) -> bool:
                    command = ASK.format(address=address, port=port)
                    status, said = await lab.run(name, command, PATIENCE)
                    return status == 0 and said.strip() == "OVER THE MESH"

                await nodes.until(answered, f"this machine answers {name}")
            assert "fd64:ff9b" not in await nodes.run("n4", "ip -6 address show dev mesh0")
        finally:
            await nodes.run("n1", "thicket config unset gateway.uplink gateway.check")

    async def left() -> bool:
        return await used(nodes, "n4") is None

    await nodes.until(left, "n4 knows that there is no gateway any more")
    assert "default" not in await nodes.run("n4", "ip -6 route show")
