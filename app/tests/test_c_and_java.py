# SPDX-License-Identifier: Apache-2.0
"""Nodes of C (``ei``) and of Java (``jinterface``), which come with Erlang, and one of ours.

They are made of node_of_c.c and NodeOfJava.java with the system's release.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from erlang import a_real_epmd, mapped
from patience import PATIENCE
from private_network import Network, in_private_network, until
from told import Told

from thicket.distribution import Atom, Node, Pid
from thicket.distribution.events import NodeDown

HERE = Path(__file__).parent
LIBRARIES = Path("/usr/lib/erlang/lib")

SENT: list[Any] = [
    "text",
    "ünï",
    "",
    b"bytes",
    12345678901234567890,
    1.5,
    [1, 2, 300],
    {"a": 1},
    (Atom("ok"), None, True),
]


def tool(program: str, package: str) -> str:
    path = shutil.which(program)
    assert path is not None, f"{program} is missing: sudo apt-get install -y {package}"
    return path


def library(pattern: str, package: str) -> Path:
    found = sorted(LIBRARIES.glob(pattern))
    assert found, f"{LIBRARIES}/{pattern} is missing: sudo apt-get install -y {package}"
    return found[-1]


def c_program(folder: Path) -> str:
    """Build node_of_c.c; returns the program."""
    ei = library("erl_interface-*", "erlang-dev")
    program = folder / "node_of_c"
    words = ["-std=c11", "-D_GNU_SOURCE", "-D_REENTRANT", "-Wall", "-Wextra", "-Werror"]
    words += ["-o", str(program), str(HERE / "node_of_c.c"), f"-I{ei}/include", f"-L{ei}/lib"]
    subprocess.run([tool("gcc", "gcc"), *words, "-lei", "-lpthread"], check=True)
    return str(program)


def java_program(folder: Path) -> list[str]:
    """Build NodeOfJava.java; returns the command."""
    jar = library("jinterface-*/priv/OtpErlang.jar", "erlang-jinterface")
    compiler = tool("javac", "default-jdk-headless")
    subprocess.run(
        [compiler, "-cp", str(jar), "-d", str(folder), str(HERE / "NodeOfJava.java")], check=True
    )
    java = tool("java", "default-jdk-headless")
    return [java, "-Djava.net.preferIPv6Addresses=true", "-cp", f"{jar}:{folder}", "NodeOfJava"]


class Guest:
    """A running program, and what it said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.said.append(line.decode().rstrip())

    async def says(self, count: int) -> list[str]:
        """Wait for so many lines."""
        await until(
            lambda: len(self.said) >= count or self.reader.done(), f"{count} lines: {self.said}"
        )
        return self.said


@asynccontextmanager
async def running(network: Network, command: Sequence[str]) -> AsyncIterator[Guest]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "ERL_EPMD_PORT": str(network.epmd_port)},
    )
    guest = Guest(process)
    try:
        yield guest
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await guest.reader


@asynccontextmanager
async def a_node(network: Network) -> AsyncIterator[tuple[Node, Told]]:
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    told = Told()

    async with a_real_epmd(network):
        node = Node(
            "py",
            "secret",
            network.address(1),
            0,
            epmd_port=network.epmd_port,
            tick_time=3600,
            setup_time=PATIENCE,
            listener=told,
        )
        await node.start()
        try:
            await mapped(node)
            yield node, told
        finally:
            await node.stop()


async def greeted(node: Node, box: Any) -> Pid:
    """Take the guest's first message and send it everything; returns its pid."""
    async with asyncio.timeout(PATIENCE):
        sender, word = await box.get()
    assert type(sender) is Pid
    assert word == "hello"
    for value in SENT:
        await node.send(sender, value)
    return sender


async def answers_ticks(node: Node, name: str) -> None:
    """Nothing else is to be heard of it: our node would tick in a quarter of an hour."""
    connection = node.connections[name]
    for _ in range(5):
        heard = connection.heard
        node.on_silence(connection)
        await until(lambda heard=heard: connection.heard > heard, "it answers a tick")  # type: ignore[misc]


@in_private_network
async def test_a_node_of_c(network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = c_program(Path(folder))
        async with a_node(network) as (node, told):
            name = f"c@{network.address(2)}"
            box = node.mailbox("box")
            command = [program, str(network.address(2)), node.host, str(node.port), "secret"]
            async with running(network, command) as guest:
                sender = await greeted(node, box)
                assert sender.node == name
                # Types as ei has them: m is a binary; text is one, not a string of bits.
                assert await guest.says(len(SENT)) == [
                    "m #Bin<116,101,120,116>",
                    "m #Bin<195,188,110,195,175>",
                    "m #Bin<>",
                    "m #Bin<98,121,116,101,115>",
                    "n 12345678901234567890",
                    "c 1.500000",
                    "l [1, 2, 300]",
                    "t #{#Bin<97> => 1}",
                    "h {ok, nil, true}",
                ]
                await answers_ticks(node, name)
                await node.send(sender, Atom("last"))
                assert await guest.process.wait() == 0
                await until(lambda: told.of(NodeDown), "its end is noticed")
                assert told.of(NodeDown)[0].code == "closed"


@in_private_network
async def test_a_node_of_java(network: Network) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = java_program(Path(folder))
        async with a_node(network) as (node, told):
            name = f"j@{network.address(2)}"
            box = node.mailbox("box")
            command += [str(network.address(2)), node.name, "secret"]
            async with running(network, command) as guest:
                sender = await greeted(node, box)
                assert sender.node == name
                assert await guest.says(1 + len(SENT)) == [
                    "ping true",
                    "OtpErlangBinary #Bin<4>",
                    "OtpErlangBinary #Bin<5>",
                    "OtpErlangBinary #Bin<0>",
                    "OtpErlangBinary #Bin<5>",
                    "OtpErlangLong 12345678901234567890",
                    "OtpErlangDouble 1.5",
                    "OtpErlangList [1,2,300]",
                    "OtpErlangMap #{#Bin<1> => 1}",
                    "OtpErlangTuple {ok,nil,true}",
                ]
                await answers_ticks(node, name)
                # The other way, by name.
                await node.send(("jbox", name), Atom("last"))
                assert await guest.process.wait() == 0
                await until(lambda: told.of(NodeDown), "its end is noticed")
                assert told.of(NodeDown)[0].code == "closed"
