# SPDX-License-Identifier: Apache-2.0
"""Nodes whose names write their address in another way than the canonical one.

A Nerves device of the published mesh calls itself ``myapp@fd12:3456:789a:1::e0f9:2f20:de47``. Its
name is what Erlang compares byte for byte, so it has that name everywhere, and is one node in every
spelling.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv6Address
from typing import Any

import pytest
from erlang import Erl, Release, a_real_epmd, in_each_release, mapped
from fleet_for_tests import CLOCK, one_fleet
from patience import PATIENCE
from private_network import Network, in_private_network, until
from told import Told

from thicket.distribution import DistributionError, Node, Pid, handshake
from thicket.distribution.etf import Atom
from thicket.distribution.events import NodeDown, NodeUp
from thicket.trust.credentials import Credentials, make_credentials
from thicket.trust.tls import FleetTls
from thicket.trust.verify import Rules

DEVICE = IPv6Address("fd12:3456:789a:1:0:e0f9:2f20:de47")
SPELLING = "fd12:3456:789a:1::e0f9:2f20:de47"
CANONICAL = f"myapp@{DEVICE}"
NAME = f"myapp@{SPELLING}"
LOUD = f"myapp@{SPELLING.upper()}"
PADDED = "myapp@fd12:3456:789a:0001:0:e0f9:2f20:de47"


@asynccontextmanager
async def a_node(network: Network, name: str, number: int, **options: Any) -> AsyncIterator[Node]:
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    chosen: dict[str, Any] = {
        "cookie": "secret",
        "port": 0,
        "tick_time": 3600,
        "setup_time": PATIENCE,
        "address": network.address(number),
        "epmd_port": network.epmd_port,
        **options,
    }
    node = Node(name, **chosen)
    await node.start()
    try:
        await mapped(node)
        yield node
    finally:
        await node.stop()


def up(node: Node) -> list[str]:
    return [info.name for info in node.nodes() if info.state == "up"]


@in_each_release
async def test_a_node_of_erlang_keeps_its_spelling_and_is_one_node(
    network: Network, release: Release
) -> None:
    heard = Told()
    async with (
        a_real_epmd(network),
        a_node(network, "py", 1, listener=heard) as node,
    ):
        network.add(DEVICE)
        async with await Erl.start(
            network, "myapp", DEVICE, release=release, spelling=SPELLING
        ) as erl:
            # It comes to us.
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
            await until(lambda: up(node) == [NAME], "it is listed as it calls itself")
            await erl.until("nodes()", [node.name])
            # Its processes have its name, and are reached by it; so is the node by every spelling.
            box = node.mailbox("box")
            assert (await erl.eval(f"{{box, '{node.name}'}} ! self()")) is not None
            pid = await box.get()
            assert type(pid) is Pid
            assert pid.node == NAME
            for name in (NAME, CANONICAL, LOUD, PADDED):
                assert await node.ping(name, PATIENCE) > 0
                assert await node.call(name, "erlang.abs", -7, timeout=PATIENCE) == 7
                assert node.connected(name)
                assert node.spelling(name) == NAME
                assert await node.probe(name, PATIENCE)
            await node.send(pid, Atom("hello"))
            assert await erl.eval("receive hello -> got after 60000 -> none end") == "got"
            box.watch(pid)
            box.watch(("net_kernel", CANONICAL))
            assert up(node) == [NAME]
            assert node.statistics()["connected"] == 0
            assert node.disconnect(LOUD)
            await erl.until("nodes()", [])
            assert [(await box.get()).reason for _ in range(2)] == ["noconnection"] * 2
            # We go to it, by whatever name.
            for name in (NAME, CANONICAL, PADDED):
                await node.connect(name, PATIENCE)
                await node.connect(CANONICAL, PATIENCE)
                assert up(node) == [NAME]
                await erl.until("nodes()", [node.name])
                assert node.disconnect(NAME)
                await erl.until("nodes()", [])
            # Both at once, by two names, end in one connection.
            await asyncio.gather(
                erl.eval(f"net_kernel:connect_node('{node.name}')"),
                node.connect(CANONICAL, PATIENCE),
                node.connect(LOUD, PATIENCE),
            )
            await until(lambda: up(node) == [NAME], "one connection")
            await erl.until("nodes()", [node.name])
            assert {event.name for event in heard.of(NodeUp)} == {NAME}
            assert {event.name for event in heard.of(NodeDown)} == {NAME}
            assert not [line for line in erl.log if "ERROR" in line], erl.log


@in_private_network
async def test_a_second_spelling_of_a_peer_takes_the_place_of_the_first(network: Network) -> None:
    """Who proves to be at the address is that node, which has lost its end or begun anew."""
    events = Told()
    async with a_node(network, "a", 1, listener=events) as node:
        network.add(DEVICE)
        for number, name in enumerate((NAME, LOUD, PADDED), 1):
            local = handshake.LocalNode(name, "secret", number, handshake.ABILITIES | 1)
            await _shake(node, local, DEVICE)
            await until(lambda name=name: up(node) == [name], f"{name} is up, alone")  # type: ignore[misc]
        assert [
            (type(event), event.name, event.code if isinstance(event, NodeDown) else "")
            for event in events
            if isinstance(event, NodeUp | NodeDown)
        ] == [
            (NodeUp, NAME, ""),
            (NodeDown, NAME, "replaced"),
            (NodeUp, LOUD, ""),
            (NodeDown, LOUD, "replaced"),
            (NodeUp, PADDED, ""),
        ]


@in_private_network
async def test_no_spelling_takes_the_place_of_somebody_else(network: Network) -> None:
    async with a_node(network, "myapp", 1) as node:
        network.add(DEVICE)
        honest = handshake.LocalNode(NAME, "secret", 1, handshake.ABILITIES | 1)
        await _shake(node, honest, DEVICE)
        await until(lambda: up(node) == [NAME], "the device is up")
        # From another address, in every spelling; and in the name of the node itself.
        own = f"myapp@{network.address(1).exploded}"
        for name in (NAME, CANONICAL, LOUD, PADDED, own):
            liar = handshake.LocalNode(name, "secret", 2, handshake.ABILITIES | 1)
            with pytest.raises(handshake.HandshakeError):
                await _shake(node, liar, network.address(9))
        # Without the cookie nothing is replaced.
        liar = handshake.LocalNode(CANONICAL, "guessed", 2, handshake.ABILITIES | 1)
        with pytest.raises((DistributionError, ConnectionError, EOFError)):
            await _shake(node, liar, DEVICE)
        assert up(node) == [NAME]
        assert node.statistics()["refused"]["wrong-source"] == 5
        assert node.statistics()["accepted"] == 1


async def _shake(node: Node, local: handshake.LocalNode, source: IPv6Address) -> None:
    """Connect to ``node`` as ``local`` from ``source``, and leave the connection open."""
    reader, writer = await asyncio.open_connection(
        node.host, node.port, local_addr=(str(source), 0)
    )
    machine = handshake.Initiator(local, node.name)
    while not machine.done:
        writer.write(machine.take())
        data = await reader.read(4096)
        if not data:
            raise machine.refusal or EOFError
        machine.receive(data)
    _open.append(writer)


_open: list[asyncio.StreamWriter] = []
"""Connections that stay until the process of the test ends."""


FLEET = one_fleet()


@in_private_network
async def test_a_certificate_speaks_for_its_address_in_every_spelling(network: Network) -> None:
    devices: list[Credentials] = [
        await make_credentials(FLEET.device(number)[0], FLEET.fleet, CLOCK) for number in (1, 2, 3)
    ]

    def tls(number: int) -> FleetTls:
        return FleetTls(FLEET.fleet, devices[number], lambda: Rules(CLOCK))

    here = [_present(network, device) for device in devices]
    for check_source, code in ((True, "wrong-source"), (False, "not-its-address")):
        async with (
            a_node(network, "a", 1, address=here[0], tls=tls(0), check_source=check_source) as a,
            a_node(network, "b", 2, address=here[1], tls=tls(1)) as b,
            a_node(network, "c", 3, address=here[2], tls=tls(2)) as c,
        ):
            spelled = f"b@{IPv6Address(b.host).exploded.upper()}"
            await a.connect(spelled, PATIENCE)
            assert up(a) == [b.name]
            assert a.recheck() == []
            # A third node that says so is not b, however it writes that.
            for name in (spelled, b.name):
                c.local = c.local._replace(name=name)
                with pytest.raises(DistributionError) as caught:
                    await c.connect(a.name, PATIENCE)
                assert caught.value.code == code
            assert up(a) == [b.name]


def _present(network: Network, credentials: Credentials) -> IPv6Address:
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    network.add(credentials.peer.address)
    return credentials.peer.address
