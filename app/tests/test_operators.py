# SPDX-License-Identifier: Apache-2.0
"""Operators: their certificates, the frames, the port where anybody may knock, programs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv6Address
from typing import Any, NamedTuple

import pytest
from fleet_for_tests import CLOCK, TestFleet, one_fleet
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.base.errors import RequestError
from thicket.base.sockets import bound
from thicket.control.server import converse
from thicket.operators import frames, program, service
from thicket.operators.door import Ends
from thicket.operators.frames import Frame, FrameError, Kind, Reader
from thicket.operators.methods import Methods, shown
from thicket.operators.program import Program, Terminal, Whose
from thicket.operators.service import Door, Service
from thicket.trust import openssl
from thicket.trust.certificates import Certificate
from thicket.trust.credentials import make_credentials
from thicket.trust.operator import check_operator, is_operator, operator_profile
from thicket.trust.tls import OPERATORS, FleetTls, client_context
from thicket.trust.update_signer import is_signer, signer_profile
from thicket.trust.verify import Clock, RefusedError, Rules, check_peer

FLEET, OTHER = one_fleet(), one_fleet("other")
VALID = (datetime(2026, 6, 1, tzinfo=UTC), datetime(2027, 6, 1, tzinfo=UTC))


class Person(NamedTuple):
    """Somebody with a key, and what it is shown with."""

    private_key: bytes
    chain: tuple[bytes, ...]


def person(
    name: str = "alice", fleet: TestFleet = FLEET, *, profile: Any = operator_profile
) -> Person:
    key = openssl.generate_key()
    made = profile(fleet.fleet, name, openssl.public_key(key), VALID)
    return Person(key, (made.signed(openssl.sign(fleet.root_key, made.digest())),))


# -- certificates


def check(who: Person, clock: Clock = CLOCK, revoked: tuple[str, ...] = ()) -> str:
    return check_operator(who.chain, FLEET.fleet, clock=clock, revoked=revoked).short


def refused(who: Person, **given: Any) -> str:
    with pytest.raises(RefusedError) as raised:
        check(who, **given)
    return raised.value.reason


def test_an_operator_is_told_from_everybody_else() -> None:
    assert check(person()) == "alice"
    assert refused(person(fleet=OTHER)) == "other-fleet"
    assert refused(person(profile=signer_profile)) == "not-an-operator"
    assert refused(person(), revoked=("Operator alice",)) == "revoked"
    late = Clock(VALID[1] + timedelta(days=1))
    assert refused(person(), clock=late) == "expired"
    # An operator of another fleet that calls its root by our name and key identifier
    forged = person()
    other = openssl.generate_key()
    profile = operator_profile(FLEET.fleet, "alice", openssl.public_key(forged.private_key), VALID)
    assert refused(forged._replace(chain=(profile.signed(openssl.sign(other, profile.digest())),)))
    assert refused(forged._replace(chain=())) == "not-an-operator"
    assert refused(forged._replace(chain=(b"x",))) == "malformed"


async def test_no_certificate_serves_for_what_another_is_for() -> None:
    operator, signer = person(), person(profile=signer_profile)
    node = await make_credentials(FLEET.device()[0], FLEET.fleet, CLOCK)
    for one in (*node.chain, *signer.chain, FLEET.fleet.root.der):
        assert not is_operator(Certificate(one))
    assert not is_signer(Certificate(operator.chain[0]))
    for chain in (operator.chain, (operator.chain[0], FLEET.fleet.root.der)):
        with pytest.raises(RefusedError):
            check_peer(chain, FLEET.fleet, clock=CLOCK)
    for with_more in ((operator.chain[0], *node.chain[1:]), (node.chain[0], operator.chain[0])):
        with pytest.raises(RefusedError):
            check_peer(with_more, FLEET.fleet, clock=CLOCK)
        with pytest.raises(RefusedError):
            check_operator(with_more, FLEET.fleet, clock=CLOCK)


# -- frames

ANY = st.sampled_from([Kind.IN, Kind.OUT, Kind.ERROR])
SOME = st.builds(Frame, ANY, st.binary(max_size=300)) | st.builds(
    frames.of_size, st.integers(-9, 99999), st.integers(-9, 99999)
)


@given(st.lists(SOME, max_size=8), st.lists(st.integers(1, 60), max_size=40))
def test_frames_arrive_however_their_bytes_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    data = b"".join(frame.packed() for frame in sent)
    reader, found, at = Reader(frozenset(Kind)), [], 0
    for size in [*cuts, len(data)]:
        found += reader.feed(data[at : at + size])
        at += size
    assert found == sent


@given(st.binary(max_size=400))
def test_what_is_no_frame_is_refused_and_nothing_is_kept(data: bytes) -> None:
    reader = Reader(frames.TO_NODE)
    try:
        found = reader.feed(data)
    except FrameError:
        return
    assert sum(len(frame.packed()) for frame in found) <= len(data)
    assert all(frame.kind in frames.TO_NODE for frame in found)


def test_the_frames_of_one_side_are_not_taken_from_the_other() -> None:
    for kinds in (frames.TO_NODE, frames.TO_OPERATOR):
        for kind in set(Kind) - kinds:
            with pytest.raises(FrameError, match="does not send"):
                Reader(kinds).feed(bytes((kind, 0, 0)))
    with pytest.raises(FrameError, match="limit"):
        Reader(frames.TO_NODE).feed(b"\0\xff\xff")
    for wrong in (b"\1\0\3abc", b"\2\0\0", b"\3\0\1x"):
        with pytest.raises(FrameError):
            Reader(frames.TO_NODE).feed(wrong)


@given(st.binary(max_size=50_000))
def test_long_data_is_cut_into_frames(data: bytes) -> None:
    made = list(frames.cut(Kind.OUT, data))
    assert b"".join(frame.data for frame in made) == data
    assert all(0 < len(frame.data) <= frames.LONGEST for frame in made)


# -- programs


@pytest.mark.parametrize(
    "params",
    [
        {"words": "ls"},
        {"words": [1]},
        {"words": ["a\0b"]},
        {"words": [""]},
        {"words": ["x"] * 257},
        {"words": ["x" * 70000]},
        {"terminal": 1},
        {"terminal": {"kind": "vt100", "rows": "1", "columns": 2}},
        {"terminal": {"kind": "vt\n100", "rows": 1, "columns": 2}},
        {"terminal": {"kind": "v" * 65, "rows": 1, "columns": 2}},
    ],
)
def test_a_request_for_no_program_is_refused(params: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        program.asked(params)


class Line:
    """A connection whose other end is here: what an operator has."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames = Reader(frames.TO_OPERATOR)
        self.out = self.error = b""
        self.status: int | None = None

    def send(self, kind: Kind, data: bytes = b"") -> None:
        self.writer.write(Frame(kind, data).packed())

    async def more(self) -> bool:
        async with asyncio.timeout(PATIENCE):
            data = await self.reader.read(65536)
        for frame in self.frames.feed(data):
            if frame.kind is Kind.OUT:
                self.out += frame.data
            elif frame.kind is Kind.ERROR:
                self.error += frame.data
            elif frame.kind is Kind.EXIT:
                self.status = frame.data[0]
        return bool(data)

    async def until(self, text: bytes) -> None:
        while text not in self.out:
            assert await self.more(), (self.out, self.error)

    async def end(self) -> int:
        while self.status is None:
            assert await self.more(), (self.out, self.error)
        return self.status


@asynccontextmanager
async def running(words: tuple[str, ...], terminal: Terminal | None = None) -> AsyncIterator[Line]:
    async with a_pair() as (ours, theirs):
        task = asyncio.create_task(
            program.run(Program(words, terminal), theirs[0], theirs[1], Whose("alice", ""))
        )
        try:
            yield Line(*ours)
            theirs[1].close()
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@asynccontextmanager
async def a_pair() -> AsyncIterator[tuple[Ends, Ends]]:
    one, other = socket.socketpair()
    ours = await asyncio.open_unix_connection(sock=one)
    theirs = await asyncio.open_unix_connection(sock=other)
    try:
        yield ours, theirs
    finally:
        ours[1].close()
        theirs[1].close()


async def test_a_program_gets_its_streams_and_gives_its_status() -> None:
    async with running(("sh", "-c", 'cat; echo "$THICKET_OPERATOR" >&2; exit 3')) as line:
        line.send(Kind.IN, b"some ")
        line.send(Kind.IN, b"text")
        line.send(Kind.IN)
        assert await line.end() == 3
        assert (line.out, line.error) == (b"some text", b"alice\n")
    async with running(("sh", "-c", "kill -TERM $$")) as line:
        assert await line.end() == 128 + signal.SIGTERM
    async with running(("sleep", "999")) as line:
        line.send(Kind.SIGNAL, bytes((signal.SIGINT,)))
        assert await line.end() == 128 + signal.SIGINT


async def test_what_a_program_leaves_behind_does_not_hold_its_end_up() -> None:
    async with running(("sh", "-c", "sleep 60 & echo done")) as line:
        assert await line.end() == 0
        assert line.out == b"done\n"


async def test_a_program_that_writes_without_end_waits_for_its_reader() -> None:
    async with running(("sh", "-c", "echo $$; exec yes")) as line:
        await line.until(b"\n")
        pid = int(line.out.split()[0])
        before = -1
        while (now := _written(pid)) != before:  # until it is stuck
            before = now
            await asyncio.sleep(0.3)
        assert before < 8 << 20
    await until(lambda: not _runs(pid), "it has ended with its connection")


def _written(pid: int) -> int:
    with open(f"/proc/{pid}/io", encoding="ascii") as file:  # noqa: PTH123
        return int(next(line for line in file if line.startswith("wchar")).split()[1])


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_a_terminal_is_the_programs_own() -> None:
    ask = 'test -t 0 && test -t 1 && stty size && echo "$TERM" && exit 4'
    async with running(("sh", "-c", ask), Terminal("vt100", 33, 77)) as line:
        assert await line.end() == 4
        assert line.out.split() == [b"33", b"77", b"vt100"]
    async with running((), Terminal("vt100", 24, 80)) as line:
        line.send(Kind.SIZE, frames.of_size(50, 132).data)
        line.send(Kind.IN, b"stty size; echo at-$((3*4)); trap 'exit 9' HUP; echo $((5*5))-$$-\n")
        await line.until(b"at-12")
        assert b"50 132" in line.out
        await line.until(b"25-")
        pid = int(line.out.partition(b"25-")[2].split(b"-")[0])
    await until(lambda: not _runs(pid), "the shell has been hung up on")


async def test_the_end_of_a_terminals_input_ends_a_shell() -> None:
    async with running(("sh",), Terminal("vt100", 24, 80)) as line:
        line.send(Kind.IN)
        assert await line.end() == 0


async def test_a_frame_that_is_none_ends_the_program() -> None:
    async with running(("sh", "-c", "echo $$; exec sleep 999")) as line:
        await line.until(b"\n")
        pid = int(line.out)
        line.writer.write(b"\xff\xff\xff")
        await until(lambda: not _runs(pid), "the program has ended")


async def test_silence_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "GONE_AFTER", 0.3)
    async with running(("sh", "-c", "echo $$; exec sleep 999")) as line:
        await line.until(b"\n")
        await until(lambda: not _runs(int(line.out)), "the program has ended")


async def test_both_sides_say_that_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "ALIVE_EVERY", 0.05)
    async with running(("sleep", "999")) as line:
        async with asyncio.timeout(PATIENCE):
            assert await line.reader.readexactly(6) == Frame(Kind.ALIVE, b"").packed() * 2


# -- the port


class TheNode:
    """What methods ask of a node."""

    root = ""

    def __init__(self, port: int = 9) -> None:
        self.port = port

    def resolve(self, text: str) -> str:
        return f"thicket@{text}"

    def operator_port(self) -> int:
        return self.port

    def node(self) -> Any:
        raise RequestError("not-joined", "there is no cluster here")


class Node:
    """A node's service for operators, at an address of its own."""

    def __init__(self, address: IPv6Address, mine: Any) -> None:
        self.revoked: set[str] = set()
        self.members: set[IPv6Address] = set()
        self.address = address
        tls = FleetTls(FLEET.fleet, mine, lambda: Rules(CLOCK, self.revoked))

        async def echo(params: dict[str, Any]) -> Any:
            return params

        methods = Methods(TheNode())
        self.service = Service(
            Door(
                tls.server,
                tls.check_operator,
                self.members.__contains__,
                lambda who: {"echo": echo, **methods.of(who)},
            )
        )


@asynccontextmanager
async def serving(network: Network) -> AsyncIterator[Node]:
    mine = await make_credentials(FLEET.device()[0], FLEET.fleet, CLOCK)
    node = Node(network.address(1), mine)
    listener = bound(str(node.address), 9102 if network.private else 0)
    listener.listen(8)
    node_port[0] = listener.getsockname()[1]
    task = asyncio.create_task(node.service.run(listener))
    try:
        await asyncio.sleep(0)
        yield node
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        listener.close()


node_port = [9102]


def context_of(who: Person | Any, fleet: TestFleet = FLEET, *, alpn: bool = True) -> ssl.SSLContext:
    context = client_context(who, fleet.fleet)
    if alpn:
        context.set_alpn_protocols([OPERATORS])
    return context


async def connected(node: Node, context: ssl.SSLContext | None, source: str | None = None) -> Any:
    return await asyncio.open_connection(
        str(node.address),
        node_port[0],
        ssl=context,
        local_addr=None if source is None else (source, 0),
    )


async def said(node: Node, context: ssl.SSLContext) -> bytes:
    """What a node answers; nothing where it hangs up."""
    try:
        reader, writer = await connected(node, context)
        writer.write(b'{"id":1,"method":"echo","params":{"a":1}}\n')
        async with asyncio.timeout(PATIENCE):
            line: bytes = await reader.readline()
        writer.close()
    except (OSError, ssl.SSLError):
        return b""
    return line


@in_private_network
async def test_operators_are_let_in_and_nobody_else(network: Network) -> None:
    async with serving(network) as node:
        assert await said(node, context_of(person())) == b'{"id":1,"result":{"a":1}}\n'
        node.revoked.add("Operator bob")
        assert b'"code":"revoked"' in await said(node, context_of(person("bob")))
        assert b"not-an-operator" in await said(node, context_of(person(), alpn=False))
        member = await make_credentials(FLEET.device(2)[0], FLEET.fleet, CLOCK)
        assert b"not-an-operator" in await said(node, context_of(member))
        assert await said(node, context_of(person(profile=signer_profile))) == b""
        stranger = person("mallory", OTHER)
        lenient = context_of(stranger, OTHER)
        lenient.verify_mode = ssl.CERT_NONE
        assert await said(node, lenient) == b""
        assert node.service.served == 1
        assert set(node.service.refused) >= {"revoked", "not-an-operator", "tls"}


@in_private_network
async def test_what_operators_have_open_ends_with_a_revocation(network: Network) -> None:
    async with serving(network) as node:
        alice, bob = await connected(node, context_of(person())), None
        bob = await connected(node, context_of(person("bob")))
        await until(lambda: len(node.service.operators) == 2, "both are in")
        node.revoked.add("Operator alice")
        node.service.recheck()
        async with asyncio.timeout(PATIENCE):
            assert await alice[0].read() == b""
        bob[1].write(b'{"id":1,"method":"echo"}\n')
        assert await bob[0].readline() == b'{"id":1,"result":{}}\n'
        assert [one["operator"] for one in node.service.operators] == ["bob"]


@in_private_network
async def test_strangers_cannot_keep_operators_out(network: Network) -> None:
    if not network.private:
        pytest.skip("needs addresses of its own")
    async with serving(network) as node:
        silent = [
            await connected(node, None, str(network.address(100 + number)))
            for number in range(3 * service.MAX_STRANGERS)
        ]
        # Members have places of their own, and newcomers take those of who waited longest.
        node.members.add(network.address(7))
        assert await said(node, context_of(person()))
        waiting = sum(one.operator is None for one in node.service._guests)
        assert waiting <= service.MAX_STRANGERS + service.MAX_EXPECTED
        assert node.service.refused["too-many"] >= 2 * service.MAX_STRANGERS
        same = [await connected(node, None, str(network.address(7))) for _ in range(9)]
        await until(
            lambda: (
                sum(one.source == network.address(7) for one in node.service._guests)
                <= service.MAX_OF_ONE
            ),
            "one address has its share",
        )
        for _, writer in (*silent, *same):
            writer.close()


@in_private_network
async def test_who_says_nothing_or_rubbish_is_dropped(network: Network) -> None:
    service.SILENT = 0.2
    async with serving(network) as node:
        reader, _ = await connected(node, None)
        async with asyncio.timeout(PATIENCE):
            assert await reader.read() == b""
        await until(lambda: node.service.refused["slow"] == 1, "it was counted")
        for rubbish in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(2000), b"\x16\3\1\0\5hello" * 100):
            reader, writer = await connected(node, None)
            writer.write(rubbish)
            with suppress(ConnectionError):
                async with asyncio.timeout(PATIENCE):
                    await reader.read()
            writer.close()
        await until(lambda: node.service.refused["tls"] >= 3, "each was counted")
        await until(lambda: not node.service._guests, "nobody is kept")
        assert await said(node, context_of(person()))


# -- a way through


async def test_a_door_carries_bytes_and_ends_with_either_side() -> None:
    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data.upper())
            if data == b"end":
                break
        writer.close()

    server = await asyncio.start_server(far, "::1", 0)
    port = server.sockets[0].getsockname()[1]
    methods = Methods(TheNode(port))
    async with a_pair() as (ours, theirs):
        task = asyncio.create_task(converse(theirs[0], theirs[1], methods.of(None)))
        ours[1].write(b'{"id":1,"method":"door","params":{"node":"::1"}}\n')
        assert await ours[0].readline() == b'{"id":1,"result":{"node":"thicket@::1"}}\n'
        ours[1].write(b"hello")
        assert await ours[0].readexactly(5) == b"HELLO"
        ours[1].write(b"end")
        assert await ours[0].readexactly(3) == b"END"
        async with asyncio.timeout(PATIENCE):
            await task
    server.close()
    async with a_pair() as (ours, theirs):
        task = asyncio.create_task(converse(theirs[0], theirs[1], methods.of(None)))
        ours[1].write(b'{"id":1,"method":"door","params":{"node":"::1"}}\n')
        answer = await ours[0].readline()
        assert b'"unreachable"' in answer
        assert b"Connection refused; is the node on" in answer
        ours[1].close()
        await task
    assert methods._doors == 0


def test_the_log_shows_no_arguments() -> None:
    assert shown(()) == "a shell"
    assert shown(("thicket", "config", "set", "mesh.passphrase=secret")) == "thicket config set ..."
    assert shown(("thicket", "status")) == "thicket status"
    assert shown(("sh", "-c", "echo secret")) == "sh ..."


async def test_root_of_a_node_is_no_member_by_itself() -> None:
    async with a_pair() as (ours, theirs):
        task = asyncio.create_task(converse(theirs[0], theirs[1], Methods(TheNode()).of(None)))
        ours[1].write(b'{"id":1,"method":"member","params":{"cookie":"x"}}\n')
        assert b'"no-operator"' in await ours[0].readline()
        ours[1].close()
        await task
