# SPDX-License-Identifier: Apache-2.0
"""The port mapper: against Erlang's own ``epmd``, as server and as client, and against nonsense."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import epmd_names
import pytest
from erlang import Erl, program
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.distribution import epmd
from thicket.distribution.epmd import EpmdError, PortMapper, Registry

CREATION = 0x12345678


@asynccontextmanager
async def a_mapper(
    network: Network, name: str = "py", *, only: list[str] | None = None
) -> AsyncIterator[PortMapper]:
    addresses = only or [str(network.address(1)), "::1", "127.0.0.1"]
    mapper = PortMapper(name, 9100, addresses, creation=CREATION, port=network.epmd_port)
    mapper.start()
    try:
        yield mapper
    finally:
        await mapper.stop()


async def run(*command: str) -> str:
    """Return what a program prints."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(PATIENCE):
        output, _ = await process.communicate()
    return output.decode()


async def ask(network: Network, request: bytes, host: str = "::1") -> bytes:
    reader, writer = await asyncio.open_connection(host, network.epmd_port)
    try:
        writer.write(request)
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    finally:
        writer.close()


# --- bytes ------------------------------------------------------------------------------------


def test_requests_as_the_protocol_describes_them() -> None:
    assert epmd.port_request("py") == b"\0\x03\x7apy"
    assert epmd.alive_request("py", 9100) == (b"\0\x0f\x78\x23\x8c\x4d\0\0\x06\0\x06\0\x02py\0\0")
    assert epmd.alive_request("py", 9100, hidden=True)[5] == 72


def test_answers() -> None:
    registry = Registry("py", 9100, CREATION)
    known = registry.answer(b"\x7apy", local=False)[0]
    assert known == b"\x77\0\x23\x8c\x4d\0\0\x06\0\x06\0\x02py\0\0"
    assert epmd.parse_port_answer(known) == 9100
    assert registry.answer(b"\x7anobody", local=False)[0] == b"\x77\x01"
    assert epmd.parse_port_answer(b"\x77\x01") is None
    assert registry.answer(b"\x6e", local=False)[0] == b"\0\0\x11\x11name py at port 9100\n"
    for request in (b"k", b"d", b"spy"):
        assert registry.answer(request, local=True) == (b"", None)
    assert registry.counters == {"answered": 3, "refused": 3, "malformed": 0}


def test_registering() -> None:
    registry = Registry("py", 9100, CREATION)
    request = epmd.alive_request("e", 4000)[2:]
    # From outside the device: result 1.
    assert registry.answer(request, local=False) == (
        b"\x76\x01" + CREATION.to_bytes(4, "big"),
        None,
    )
    answer, name = registry.answer(request, local=True)
    assert (epmd.parse_alive_answer(answer), name) == (CREATION, "e")
    with pytest.raises(EpmdError, match="already"):
        epmd.parse_alive_answer(registry.answer(request, local=True)[0])
    assert epmd.parse_port_answer(registry.answer(b"\x7ae", local=False)[0]) == 4000
    registry.forget("e")
    assert epmd.parse_port_answer(registry.answer(b"\x7ae", local=False)[0]) is None
    # A node that speaks version 5 gets the short answer.
    old = request[:5] + b"\0\x05\0\x05" + request[9:]
    assert registry.answer(old, local=True)[0] == b"\x79\0\x56\x78"
    assert epmd.parse_alive_answer(b"\x79\0\x56\x78") == 0x5678
    for i in range(100):
        registry.answer(epmd.alive_request(f"n{i}", 1)[2:], local=True)
    assert len(registry.answer(b"\x6e", local=True)[0].splitlines()) == 64


@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_requests(request: bytes, local: bool) -> None:
    registry = Registry("py", 9100, CREATION)
    for tag in (b"", b"\x78", b"\x7a"):
        registry.answer(tag + request, local=local)
    answer = registry.answer(b"\x6e", local=False)[0]
    assert epmd_names.parse_names_answer(answer)["py"] == 9100


@given(st.binary(max_size=200))
def test_arbitrary_answers(data: bytes) -> None:
    for head in (b"", b"\x77\0", b"\x76", bytes(4)):
        for parse in (
            epmd.parse_port_answer,
            epmd_names.parse_names_answer,
            epmd.parse_alive_answer,
        ):
            with suppress(EpmdError):
                parse(head + data)


@given(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=60), st.integers(1, 65535)
)
def test_whoever_registers_is_found(name: str, port: int) -> None:
    registry = Registry("~", 9100, CREATION)
    answer, registered = registry.answer(epmd.alive_request(name, port)[2:], local=True)
    assert registered == name
    assert epmd.parse_alive_answer(answer) == CREATION
    assert epmd.parse_port_answer(registry.answer(epmd.port_request(name)[2:], local=False)[0]) == (
        port
    )
    assert epmd_names.parse_names_answer(registry.answer(b"\x6e", local=False)[0])[name] == port


def test_a_node_of_another_version_is_not_tried() -> None:
    with pytest.raises(EpmdError, match="5 to 5"):
        epmd.parse_port_answer(b"\x77\0\x23\x8c\x4d\0\0\x05\0\x05\0\x02py\0\0")
    with pytest.raises(EpmdError, match="port 0"):
        epmd.parse_port_answer(b"\x77\0\0\0\x4d\0\0\x06\0\x06\0\x02py\0\0")


# --- with Erlang's ----------------------------------------------------------------------------


@in_private_network
async def test_erlangs_tools_ask_ours(network: Network) -> None:
    async with a_mapper(network) as mapper:
        await until(lambda: len(mapper.served) >= 2, "it answers")
        port = str(network.epmd_port)
        assert "name py at port 9100" in await run(program("epmd"), "-port", port, "-names")
        async with await Erl.start(network, "e", network.address(2)) as erl:
            # A stock node has registered with us; another one can ask where it is.
            found = await epmd_names.names("::1", timeout=PATIENCE, port=network.epmd_port)
            assert found.keys() == {"py", "e"}
            host = f"'{network.address(1)}'"
            assert await erl.eval('erl_epmd:port_please("py", {0,0,0,0,0,0,0,1})') == (
                "port",
                9100,
                6,
            )
            listed = await erl.eval(
                f"{{ok, L}} = erl_epmd:names({{0,0,0,0,0,0,0,1}}), lists:sort(L), {host}, L"
            )
            assert sorted((bytes(name).decode(), port) for name, port in listed) == [
                ("e", found["e"]),
                ("py", 9100),
            ]
        await until(lambda: len(mapper.clients) == 0, "erl has gone")
        assert (await epmd_names.names("::1", timeout=PATIENCE, port=network.epmd_port)).keys() == {
            "py"
        }
        # Stopping us with its tool does not work.
        await run(program("epmd"), "-port", port, "-kill")
        await run(program("epmd"), "-port", port, "-stop", "py")
        assert (await epmd_names.names("::1", timeout=PATIENCE, port=network.epmd_port)).keys() == {
            "py"
        }
        assert mapper.registry.counters["refused"] >= 2


@in_private_network
async def test_we_register_with_erlangs_and_follow_it(network: Network) -> None:
    port = network.epmd_port
    command = (program("epmd"), "-port", str(port), "-relaxed_command_check")

    def registering() -> set[asyncio.Task[object]]:
        return {t for t in asyncio.all_tasks() if t.get_name() == "registration with epmd"}

    async def the_daemon() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(*command)
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    await epmd_names.names("::1", port=port)
                    return process
                except OSError:
                    await asyncio.sleep(0.01)

    daemon = await the_daemon()
    async with a_mapper(network) as mapper:
        await until(lambda: mapper.registered_at, "it is registered")
        assert mapper.served == []
        assert await epmd.lookup("::1", "py", timeout=PATIENCE, port=port) == 9100
        assert await epmd.lookup("::1", "nobody", timeout=PATIENCE, port=port) is None
        # The name is taken for another one.
        before = registering()
        async with a_mapper(network, only=["::1"]) as second:
            await until(lambda: registering() - before, "it asks")
            await asyncio.wait(registering() - before)
            assert second.registered_at is None
        daemon.kill()
        await daemon.wait()
        await until(lambda: "::1" in mapper.served, "it takes over")
        assert mapper.registered_at is None
        assert await epmd.lookup("::1", "py", timeout=PATIENCE, port=port) == 9100


# --- our own ----------------------------------------------------------------------------------


@in_private_network
async def test_two_on_one_device(network: Network) -> None:
    """Each answers at its own address; the second one registers with the first for loopback."""
    async with (
        a_mapper(network, "a", only=[str(network.address(1)), "::1"]) as first,
        a_mapper(network, "b", only=[str(network.address(2)), "::1"]) as second,
    ):
        await until(lambda: "::1" in first.served, "the first one answers")
        await until(lambda: second.registered_at, "the second one is registered")
        port = network.epmd_port
        assert (await epmd_names.names("::1", timeout=PATIENCE, port=port)).keys() == {"a", "b"}
        if network.private:
            second_host = str(network.address(2))
            assert (await epmd_names.names(second_host, timeout=PATIENCE, port=port)).keys() == {
                "b"
            }
        await first.stop()
        await until(lambda: "::1" in second.served, "the second one takes over")
        assert (await epmd_names.names("::1", timeout=PATIENCE, port=port)).keys() == {"b"}


@in_private_network
async def test_an_address_that_comes_later(network: Network) -> None:
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    from ipaddress import IPv6Address

    address = IPv6Address("fd12:3456:789a:1::77")
    async with a_mapper(network, only=[str(address), "::1"]) as mapper:
        await until(lambda: mapper.served == ["::1"], "loopback is answered")
        network.add(address)
        await until(lambda: len(mapper.served) == 2, "the address is answered")
        assert await epmd.lookup(str(address), "py", timeout=PATIENCE, local=str(address)) == 9100
        # Nobody registers from outside.
        answer = await ask(network, epmd.alive_request("rogue", 1), str(address))
        assert answer[:2] == b"\x76\x01"


@in_private_network
async def test_rude_clients(network: Network) -> None:
    async with a_mapper(network) as mapper:
        await until(lambda: "::1" in mapper.served, "it answers")
        assert await ask(network, b"\0\0") == b""
        assert await ask(network, b"\xff\xff" + bytes(2000)) == b""
        assert await ask(network, b"\0\x01\x6e" + bytes(2000)) != b""  # the rest is ignored
        assert mapper.registry.counters["malformed"] == 2
        # Too many at once: those beyond the limit are sent away, and all are forgotten.
        clients = [await asyncio.open_connection("::1", network.epmd_port) for _ in range(70)]
        await until(lambda: mapper.registry.counters["refused"] == 6, "six are refused")
        for _, writer in clients:
            writer.close()
        await until(lambda: not mapper.clients, "all have gone")
        assert await epmd.lookup("::1", "py", timeout=PATIENCE, port=network.epmd_port) == 9100


@in_private_network
async def test_a_server_that_says_nothing(network: Network) -> None:
    with socket.socket(socket.AF_INET6) as silent:
        silent.bind(("::1", network.epmd_port))
        silent.listen()
        with pytest.raises(TimeoutError):
            await epmd.lookup("::1", "py", timeout=0.1, port=network.epmd_port)
    with pytest.raises(ConnectionRefusedError):
        await epmd.lookup("::1", "py", timeout=PATIENCE, port=network.epmd_port)


async def _endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()


@in_private_network
async def test_a_server_that_never_ends(network: Network) -> None:
    server = await asyncio.start_server(_endless, "::1", network.epmd_port)
    for question in (
        epmd.lookup("::1", "py", timeout=PATIENCE, port=network.epmd_port),
        epmd_names.names("::1", timeout=PATIENCE, port=network.epmd_port),
    ):
        with pytest.raises(EpmdError):
            await question
    server.close()


def test_listening_is_never_for_everyone() -> None:
    with epmd.listen("127.0.0.1", 0) as v4, epmd.listen("::1", 0) as v6:
        assert v4.getsockname()[0] == "127.0.0.1"
        assert v6.getsockname()[0] == "::1"
        assert v6.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
