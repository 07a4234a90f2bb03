# SPDX-License-Identifier: Apache-2.0
"""Messages that are longer than a node takes: whoever waits for one, or for an answer, is told."""

from __future__ import annotations

import asyncio
import json
import os
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest
from erlang import Erl, Release, in_each_release, in_oldest_and_newest
from patience import PATIENCE
from private_network import Network, in_private_network, until
from test_cluster import a_node, failure, with_erlang
from test_hostile_peer import CONTROL, fragment
from test_hostile_peer import pid as a_pid
from told import Told

from thicket.base.errors import RequestError
from thicket.cluster.requests import Requests
from thicket.config.schema import Settings
from thicket.control.client import ClientError, request
from thicket.control.server import MAX_ANSWER, Server
from thicket.daemon.parts import Parts
from thicket.distribution import Atom, Down, Exit, Node, RemoteError, Request, frames
from thicket.distribution.etf import DecodeError, LimitError, decode_bare, encode_bare
from thicket.distribution.frames import FrameReader, LongFrameError, MessageReader, Room
from thicket.distribution.jsonform import TooLongError, from_word, to_json

MIB = 1 << 20
LIMIT = MIB


def export(node: Node) -> None:
    """Export functions with long arguments and long results."""

    @node.export("long.size")
    def size(value: bytes) -> int:
        return len(value)

    @node.export("long.later")
    async def later(value: bytes) -> int:
        return len(value)

    @node.export("long.made")
    def made(count: int) -> bytes:
        return bytes(count)


async def tried(erl: Erl, expression: str) -> Any:
    """Return the value of an expression, or what it raises."""
    return await erl.eval(f"try {expression} catch C:R -> {{C, R}} end", PATIENCE)


@in_each_release
async def test_erlang_is_told_at_once_what_is_too_long(network: Network, release: Release) -> None:
    async with with_erlang(network, release, max_message=LIMIT) as (node, erl):
        export(node)
        py = f"'{node.name}'"
        long = f"[binary:copy(<<7>>, {3 * MIB})]"
        limit = ("error", ("erpc", "system_limit"))
        assert await tried(erl, f"erpc:call({py}, long, size, {long})") == limit
        assert await tried(erl, f"erpc:call({py}, long, later, {long})") == limit
        found = await tried(erl, f"rpc:call({py}, long, size, {long})")
        assert found[0] == "badrpc", found
        old = ("badrpc", ("EXIT", "system_limit"))
        assert await tried(erl, f"rpc:block_call({py}, long, size, {long})") == old
        assert (
            await tried(
                erl,
                f"begin {{rex, {py}}} ! {{self(), {{call, long, size, {long}, user}}}},"
                " receive {rex, V} -> V after 60000 -> none end end",
            )
            == old
        )
        _, bad = await tried(erl, f"rpc:multicall([{py}], long, size, {long})")
        assert bad in ([], [node.name])
        async with node.mailbox("box") as box:
            found = await tried(erl, f"gen_server:call({{box, {py}}}, {long}, infinity)")
            assert found[0] == "exit"
            assert found[1][0] == "system_limit"
            assert len(box) == 0
        # What can be read and is too large in another way.
        deep = "[lists:foldl(fun(_, A) -> [A] end, [], lists:seq(1, 1000))]"
        assert await tried(erl, f"erpc:call({py}, long, size, {deep})") == limit
        assert await erl.eval(f"erpc:call({py}, long, size, [<<1,2,3>>])") == 3
        assert node.statistics()["discarded"] == 7
        node.counters["undecodable"] -= 1  # the deep one


@in_each_release
async def test_a_caller_of_erlang_is_told_that_the_answer_is_too_long(
    network: Network, release: Release
) -> None:
    async with with_erlang(network, release, max_message=LIMIT) as (node, erl):
        error = await failure(node.call(erl.name, "binary.copy", b"x", 3 * MIB, timeout=600))
        assert isinstance(error, RemoteError)
        assert error.code == "system-limit"
        assert "max_message" in str(error)
        await erl.eval(
            f"register(answers, spawn(fun F() -> receive {{'$gen_call', {{P, T}}, _}} ->"
            f" gen:reply({{P, T}}, binary:copy(<<1>>, {3 * MIB})), F() end end)), ok"
        )
        error = await failure(node.request(("answers", erl.name), Atom("q"), 600))
        assert error.code == "system-limit"
        # What Erlang takes is its own affair.
        assert await node.call(erl.name, "erlang.byte_size", bytes(3 * MIB)) == 3 * MIB
        async with node.mailbox() as box:
            reference = box.watch(("answers", erl.name))
            await erl.eval(f"exit(whereis(answers), binary:copy(<<1>>, {3 * MIB}))")
            async with asyncio.timeout(PATIENCE):
                assert await box.get() == Down(reference, "answers", "system_limit")


@in_oldest_and_newest
async def test_a_hundred_megabytes_pass_both_ways_where_they_are_allowed(
    network: Network, release: Release
) -> None:
    size = 100 * 1000 * 1000
    async with with_erlang(network, release, max_message=128 * MIB) as (node, erl):
        export(node)
        py = f"'{node.name}'"
        call = f"erpc:call({py}, long, size, [binary:copy(<<7>>, {size})])"
        assert await erl.eval(call, PATIENCE) == size
        call = f"byte_size(erpc:call({py}, long, made, [{size}]))"
        assert await erl.eval(call, PATIENCE) == size
        assert await node.call(erl.name, "erlang.byte_size", bytes(size), timeout=PATIENCE) == size
        assert len(await node.call(erl.name, "binary.copy", b"x", size, timeout=PATIENCE)) == size


@in_private_network
async def test_nodes_of_ours_tell_each_other_what_is_too_long(network: Network) -> None:
    async with (
        a_node(network, "a", 1, max_message=LIMIT) as a,
        a_node(network, "b", 2, max_message=LIMIT) as b,
    ):
        export(b)
        long = bytes(3 * MIB)
        for function in ("long.size", "long.later"):
            error = await failure(a.call(b.name, function, long, timeout=None))
            assert (error.code, error.reason) == ("system-limit", "system_limit")
            assert "3145" in str(error)
        error = await failure(a.call(b.name, "long.made", 3 * MIB, timeout=None))
        assert error.code == "system-limit"
        assert "its result is lost" in str(error)
        async with b.mailbox("box") as box:

            async def serve() -> None:
                async for message in box:
                    assert isinstance(message, Request)
                    message.reply(long)

            serving = asyncio.create_task(serve())
            for asked in (long, "q"):
                error = await failure(a.request(("box", b.name), asked, None))
                assert error.code == "system-limit"
            serving.cancel()
        async with a.mailbox("watcher") as watcher, b.mailbox("ends") as ends:
            reference = watcher.watch(("ends", b.name))
            watcher.link(ends.pid)
            await until(lambda: ends.monitors and ends.links, "both are known there")
            ends.close(long)
            async with asyncio.timeout(PATIENCE):
                found = [await watcher.get(), await watcher.get()]
            assert Down(reference, "ends", "system_limit") in found
            assert Exit(ends.pid, "system_limit", True) in found
        assert a.connected(b.name)


@in_private_network
async def test_a_hundred_megabytes_between_nodes_of_ours(network: Network) -> None:
    size = 100 * 1000 * 1000
    async with (
        a_node(network, "a", 1, max_message=128 * MIB) as a,
        a_node(network, "b", 2, max_message=128 * MIB) as b,
    ):
        export(b)
        assert await a.call(b.name, "long.size", bytes(size), timeout=PATIENCE) == size
        assert len(await a.call(b.name, "long.made", size, timeout=PATIENCE)) == size


@in_private_network
async def test_many_long_results_at_once_leave_one_after_the_other(network: Network) -> None:
    """They were all made at once, and the connection was given up for what waited to be sent."""
    size = 12 * MIB
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:
        export(b)
        calls = [a.call(b.name, "long.made", size, timeout=PATIENCE) for _ in range(8)]
        assert [len(found) for found in await asyncio.gather(*calls)] == [size] * 8


def long_frame(header: bool, size: int) -> bytes:
    body = b"\x83\x44\0" + CONTROL if header else b"\x70\x83" + CONTROL + b"\x83"
    body += encode_bare(bytes(size))
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("step", [1000, 65536, 1 << 18])
def test_a_frame_that_is_too_long_is_skipped_and_told_of(header: bool, step: int) -> None:
    """Nodes in C and Java send in one piece."""
    told: list[tuple[Any, bytes]] = []
    messages = MessageReader(
        header=header, max_message=LIMIT, on_discarded=lambda *found: told.append(found)
    )
    reader = FrameReader(messages.max_frame)
    small = b"".join(frames.build(CONTROL, encode_bare(b"small"), header=header))
    wire = small + long_frame(header, 3 * MIB) + small
    got = []
    for at in range(0, len(wire), step):
        reader.push(wire[at : at + step])
        while True:
            try:
                frame = reader.take()
            except LongFrameError as long:
                messages.refuse(long)
                continue
            if frame is None:
                break
            message = messages.feed(frame)
            assert message is not None
            got.append(message[1])
    assert got == [encode_bare(b"small")] * 2
    assert messages.discarded == 1
    [(control, head)] = told
    assert control == (frames.SEND_SENDER, a_pid(1), a_pid(2))
    assert head.startswith(b"m\0\x30\0\0")
    assert len(reader._buffer) < messages.max_frame


def test_a_long_frame_that_is_no_message_is_a_fault() -> None:
    messages = MessageReader(header=True, max_message=LIMIT)
    for head in (b"", b"\x70\x83" + CONTROL, b"\x83\x44\0\x83", b"\x83\x44\0m\xff\xff\xff\xff"):
        with pytest.raises(frames.FrameError, match="limit"):
            messages.refuse(LongFrameError(3 * MIB, LIMIT, head))


def test_whoever_holds_most_loses_where_memory_is_short() -> None:
    room = Room(1_000_000)
    told: list[str] = []

    def reader(name: str) -> MessageReader:
        return MessageReader(
            header=True,
            max_message=1_000_000,
            room=room,
            on_discarded=lambda *_: told.append(name),
        )

    greedy, modest = reader("greedy"), reader("modest")
    part = bytes(60_000)
    modest.feed(fragment(1, 20, part, CONTROL))
    for sequence in range(16):
        greedy.feed(fragment(sequence, 20, part, CONTROL))
    assert set(told) == {"greedy"}
    assert room.held <= room.limit
    assert modest.held > 60_000
    for number in range(19, 0, -1):
        found = modest.feed(fragment(1, number, part[:1000]))
    assert found is not None
    greedy.close()
    assert (room.held, room.readers) == (0, set())


def test_a_term_beyond_a_limit_is_told_apart_from_one_that_is_none() -> None:
    deep: Any = []
    for _ in range(600):
        deep = [deep]
    data = encode_bare(deep, max_depth=1000)
    with pytest.raises(LimitError):
        decode_bare(data)
    with pytest.raises(LimitError):
        decode_bare(encode_bare([[]] * 1000), max_terms=999)
    with pytest.raises(DecodeError) as caught:
        decode_bare(data[:-1], max_depth=1000)
    assert not isinstance(caught.value, LimitError)


# --- the command line -------------------------------------------------------------------------


def test_json_of_a_term_is_bounded() -> None:
    assert to_json(["x" * 100] * 10, 2000) == ["x" * 100] * 10
    terms: list[Any] = [["x" * 100] * 30, [None] * 300, {"x" * 3000: 1}, b"x" * 3000, [[[]] * 300]]
    for term in terms:
        with pytest.raises(TooLongError):
            to_json(term, 2000)


def test_huge_integers_are_shown_and_refused_in_time() -> None:
    assert to_json(1 << 4000) == 1 << 4000
    shown = to_json(1 << 100_000_000)
    assert shown["term"].startswith("0x1000")
    assert len(json.dumps(shown)) < 1100
    assert from_word("9" * 1200) == 10**1200 - 1
    with pytest.raises(ValueError, match="integer of 100000 digits"):
        from_word("9" * 100_000)


@in_private_network
async def test_a_person_who_calls_is_told_what_is_too_long(network: Network) -> None:
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2, max_message=LIMIT) as b:
        export(b)
        remote = Requests(a)
        params: dict[str, Any] = {"function": "long.made", "arguments": [8 * MIB], "timeout": 25.0}
        with pytest.raises(RequestError, match="has a result, but it is too long") as caught:
            await remote.call(b.name, params)
        assert caught.value.code == "too-long"
        params = {"function": "long.size", "arguments": ["x" * 2 * MIB], "timeout": 25.0}
        with pytest.raises(RequestError, match="max_message there") as caught:
            await remote.call(b.name, params)
        assert caught.value.code == "system-limit"
        feed = (await remote.events({"group": "g", "wait": 0}))["feed"]
        await a.publish("g", "x" * MIB)
        answer = await remote.events({"feed": feed})
        assert "too long to be shown" in answer["events"][0]["message"]["term"]
        remote.close()


async def test_the_control_socket_says_what_is_too_long(tmp_path: Path) -> None:
    async def long(_: dict[str, Any]) -> Any:
        return "x" * MAX_ANSWER

    path = str(tmp_path / "control")
    serving = asyncio.create_task(Server(path, {"long": long}).run())
    await until(lambda: Path(path).exists(), "the socket is there")
    try:
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(request, path, "long", {}, PATIENCE)
        assert caught.value.code == "too-long"
        with pytest.raises(ClientError) as caught:
            await asyncio.to_thread(request, path, "long", {"x": "x" * MIB}, PATIENCE)
        assert caught.value.code == "too-long"
    finally:
        serving.cancel()


# --- the limit --------------------------------------------------------------------------------


@pytest.mark.parametrize(("memory", "limit"), [(4096, 100), (512, 64), (113, 14)])
async def test_the_limit_follows_the_configuration_and_the_memory(
    memory: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory * MIB // 4096}
    monkeypatch.setattr(os, "sysconf", known.__getitem__)
    settings = Settings({"cluster": {"max_message": 100}})
    node = Parts().node(settings, IPv6Address("fd12:3456:789a:1::1"), Told(), None)
    assert node.max_message == limit * MIB + (MIB // 8 if memory == 113 else 0)
