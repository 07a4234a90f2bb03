# SPDX-License-Identifier: Apache-2.0
"""What connections of nobody in particular cost a node, and whom they keep out."""

from __future__ import annotations

import asyncio
import gc
import ssl
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv6Address
from typing import Any

import pytest
from fleet_for_tests import CLOCK, one_fleet
from patience import PATIENCE
from private_network import PREFIX, Network, in_private_network, until

from thicket.distribution import Node, connection, epmd, frames, secure
from thicket.distribution.admission import MAX_PER_SOURCE, MAX_STRANGERS
from thicket.trust.credentials import make_credentials
from thicket.trust.tls import FleetTls
from thicket.trust.verify import Clock, Rules

FLEET = one_fleet()


def clock() -> Clock:
    return CLOCK


@asynccontextmanager
async def member(network: Network, number: int, port: int = 0) -> AsyncIterator[Node]:
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    mine = await make_credentials(FLEET.device(number)[0], FLEET.fleet, CLOCK)
    network.add(mine.peer.address)
    tls = FleetTls(FLEET.fleet, mine, lambda: Rules(clock()))
    node = Node(
        "thicket", "c", mine.peer.address, port, epmd_port=None, tls=tls, setup_time=PATIENCE
    )
    await node.start()
    try:
        await until(lambda: node.listening, "the node listens")
        yield node
    finally:
        await node.stop()


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def a_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
    return out.read()


class Born:
    """Keeps weak references to all objects of some classes that are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *classes: type) -> None:
        self.references: list[weakref.ref[Any]] = []
        for of in classes:
            monkeypatch.setattr(of, "__init__", self._noting(of.__init__))  # type: ignore[misc]

    def _noting(self, original: Any) -> Any:
        def noting(made: Any, *positional: Any, **named: Any) -> None:
            self.references.append(weakref.ref(made))
            original(made, *positional, **named)

        return noting

    def alive(self) -> int:
        return sum(reference() is not None for reference in self.references)


@in_private_network
async def test_a_connection_that_ends_is_free_at_once(network: Network) -> None:
    """Whatever it said, and without the collector of cycles, which may be long in coming."""
    foreign = b"GET / HTTP/1.1\r\n\r\n"
    hello = a_hello()
    with pytest.MonkeyPatch.context() as patch:
        born = Born(patch, connection.Connection, secure.TlsTransport, frames.FrameReader)
        async with member(network, 1) as node:
            with no_collector():
                for said in (b"", foreign, hello[:3], b"\x16\3\1\0\5nonce", hello):
                    born.references.clear()
                    for _ in range(5):
                        _, writer = await asyncio.open_connection(node.host, node.port)
                        writer.write(said)
                        await writer.drain()
                        writer.close()
                    await until(
                        lambda: len(born.references) >= 15 and not born.alive(),
                        f"all is free after {said[:8]!r}",
                    )
                    assert node.statistics()["handshakes"] == 0


@in_private_network
async def test_a_refused_node_is_free_at_once(network: Network) -> None:
    """Also one without TLS, that told a name which is refused."""
    with pytest.MonkeyPatch.context() as patch:
        born = Born(patch, connection.Connection)
        node = Node("a", "c", network.address(1), 0, epmd_port=None)
        await node.start()
        await until(lambda: node.listening, "the node listens")
        name = b"x@fd12::9"
        frame = b"N" + bytes(8) + bytes(4) + len(name).to_bytes(2, "big") + name
        with no_collector():
            for _ in range(5):
                reader, writer = await asyncio.open_connection(node.host, node.port)
                writer.write(len(frame).to_bytes(2, "big") + frame)
                await reader.read()
                writer.close()
            await until(lambda: len(born.references) == 5 and not born.alive(), "all is free")
        assert sum(node.statistics()["refused"].values()) == 5
        await node.stop()


@in_private_network
async def test_a_stranger_that_says_nothing_costs_next_to_nothing(network: Network) -> None:
    async with member(network, 1) as node:
        sources = [IPv6Address(f"{PREFIX}9:{i:x}") for i in range(MAX_STRANGERS // MAX_PER_SOURCE)]
        for source in sources:
            network.add(source)
        held = []
        tracemalloc.start()
        try:
            for source in sources:
                for _ in range(MAX_PER_SOURCE):
                    held.append(
                        await asyncio.open_connection(
                            node.host, node.port, local_addr=(str(source), 0)
                        )
                    )
            await until(lambda: node.statistics()["handshakes"] == len(held), "all are held")
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert not any(isinstance(one, ssl.SSLObject) for one in gc.get_objects())
        assert used < len(held) * 24_000  # both ends: the test's own streams count as well
        for _, writer in held:
            writer.close()


@in_private_network
async def test_strangers_that_say_nothing_keep_nobody_out(network: Network) -> None:
    """They come from more addresses than there are places, again and again."""
    async with member(network, 1) as node:
        node.expect(lambda _source: False)
        held = []
        for i in range(2 * MAX_STRANGERS):
            source = IPv6Address(f"{PREFIX}9:{i:x}")
            network.add(source)
            held.append(
                await asyncio.open_connection(node.host, node.port, local_addr=(str(source), 0))
            )
        await until(lambda: node.statistics()["handshakes"] == MAX_STRANGERS, "the places are full")
        async with member(network, 2, node.port) as two:
            await two.connect(node.name, PATIENCE)
        refused = node.statistics()["refused"]["too-many"]
        assert refused >= MAX_STRANGERS
        # the oldest went, the newest stay
        assert await asyncio.wait_for(held[0][0].read(), PATIENCE) == b""
        assert not held[-1][0].at_eof()
        for _, writer in held:
            writer.close()


@in_private_network
async def test_a_member_that_was_heard_has_a_place_of_its_own(network: Network) -> None:
    """Strangers that keep talking take it neither by number nor by coming later."""
    hello = a_hello()
    async with member(network, 1) as node:
        expected = f"{PREFIX}5"
        network.add(IPv6Address(expected))
        node.expect(lambda source: source == expected)
        mine = await asyncio.open_connection(node.host, node.port, local_addr=(expected, 0))
        await until(lambda: node.statistics()["handshakes"] == 1, "it has a place")
        held = []
        for i in range(MAX_STRANGERS + 10):
            source = IPv6Address(f"{PREFIX}9:{i:x}")
            network.add(source)
            stream = await asyncio.open_connection(
                node.host, node.port, local_addr=(str(source), 0)
            )
            stream[1].write(hello)
            held.append(stream)
        await until(
            lambda: node.statistics()["refused"].get("too-many") == 10, "ten strangers gave way"
        )
        assert node.statistics()["handshakes"] == MAX_STRANGERS + 1
        mine[1].write(hello)
        assert (await asyncio.wait_for(mine[0].read(1), PATIENCE)) == b"\x16"  # TLS answers it
        for _, writer in [mine, *held]:
            writer.close()


@in_private_network
async def test_the_port_mapper_answers_beside_silent_clients(network: Network) -> None:
    node = Node("a", "c", network.address(1), 0, epmd_port=network.epmd_port)
    await node.start()
    await until(lambda: node.statistics()["epmd"]["served"], "the mapper serves")
    held = [await asyncio.open_connection(node.host, network.epmd_port) for _ in range(80)]
    port = await epmd.lookup(node.host, "a", timeout=PATIENCE, port=network.epmd_port)
    assert port == node.port
    for _, writer in held:
        writer.close()
    await node.stop()
