# SPDX-License-Identifier: Apache-2.0
"""What one message of a member costs is in proportion to its length, in time and memory."""

from __future__ import annotations

import asyncio
import threading
import time
import tracemalloc
from collections import Counter
from ipaddress import IPv6Address
from typing import Any

import pytest
from fake_peer import ReadsText
from patience import PATIENCE
from private_network import PREFIX, Network, in_private_network, until

from thicket.base.fields import ConfigError
from thicket.config.parse import parse
from thicket.distribution import HandshakeError, Node, frames
from thicket.distribution.admission import MAX_CONNECTIONS_PER_HOST
from thicket.distribution.etf import (
    Atom,
    BitString,
    DecodeError,
    EncodeError,
    FrozenList,
    FrozenMap,
    ImproperList,
    PairMap,
    Pid,
    decode_bare,
    encode_bare,
    shown,
)
from thicket.distribution.failures import RemoteError, describe
from thicket.distribution.groups import MAX_NAME, MAX_NAMES, Scope
from thicket.distribution.jobs import MAX_THREADS_PER_NODE

OTHER = f"thicket@{PREFIX}2"
MODULUS = (1 << 61) - 1  # of hashes of integers in Python


class Peer(ReadsText):
    name = OTHER
    discarded = 0
    busy = False

    def __init__(self) -> None:
        self.sent: list[tuple[tuple[Any, ...], bytes | None]] = []

    def has(self, flag: int) -> bool:
        return True

    def send(
        self, control: tuple[Any, ...], payload: bytes | None = None, *, more: bool = False
    ) -> None:
        self.sent.append((control, payload))


def pid(number: int) -> Pid:
    return Pid(Atom(OTHER), number, 0, 9)


def a_map(keys: list[int]) -> bytes:
    return b"t" + len(keys).to_bytes(4, "big") + b"".join(encode_bare(key) + b"j" for key in keys)


@pytest.mark.parametrize("share", [1, 2, 10, 100])
def test_some_keys_that_collide_are_enough_to_refuse_a_map(share: int) -> None:
    count = 20_000
    bad = count // share
    keys = [7 + k * MODULUS for k in range(1, bad + 1)] + list(range(1000, 1000 + count - bad))
    with pytest.raises(DecodeError, match="collide"):
        decode_bare(a_map(keys))


def test_few_keys_that_collide_are_a_map() -> None:
    keys = [7 + k * MODULUS for k in range(1, 31)] + list(range(1000, 2000))
    assert len(decode_bare(a_map(keys))[0]) == len(keys)
    ordinary: list[Any] = [*range(-3000, 3000), *(i / 8 for i in range(1, 3000, 2))]
    assert len(decode_bare(encode_bare(dict.fromkeys(ordinary, 1)))[0]) == len(ordinary)


def test_an_integer_without_end_is_text_all_the_same() -> None:
    huge = 1 << 100_000
    assert "huge" in shown(huge)
    assert "huge" in shown([(huge,)])
    assert len(shown(list(range(100_000)))) < 2000
    error = RemoteError("n", "a.b", "error", huge)
    assert "huge" in str(error)
    assert describe(error)


async def test_reasons_that_python_cannot_print_reach_the_caller() -> None:
    node, peer = Node("thicket", "c", IPv6Address(f"{PREFIX}1")), Peer()
    node.connections[OTHER] = peer  # type: ignore[assignment]
    stand_in: Any = peer
    huge = 1 << 100_000
    reasons: list[tuple[Any, ...]] = [
        (Atom("error"), huge, []),
        (Atom("error"), Atom("undef"), [(huge, huge)]),
    ]
    for reason in reasons:
        peer.sent.clear()
        task = asyncio.ensure_future(node.call(OTHER, "a.b", timeout=None))
        await until(lambda: peer.sent, "it is called")
        reference, caller = peer.sent[0][0][1:3]
        control: tuple[Any, ...] = (frames.PAYLOAD_MONITOR_P_EXIT, pid(1), caller, reference)
        node.on_message(stand_in, control, encode_bare((reference, *reason)))
        with pytest.raises(RemoteError):
            await asyncio.wait_for(task, PATIENCE)
    task = asyncio.ensure_future(node.call(OTHER, "a.b", timeout=None))
    peer.sent.clear()
    await until(lambda: peer.sent, "it is called")
    reference, caller = peer.sent[0][0][1:3]
    node.on_message(stand_in, (frames.SPAWN_REPLY, reference, caller, 0, huge), None)
    with pytest.raises(RemoteError, match="refused"):
        await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
def scope() -> tuple[Node, Any, Scope]:
    node, peer = Node("thicket", "c", IPv6Address(f"{PREFIX}1")), Peer()
    node.connections[OTHER] = peer  # type: ignore[assignment]
    made = node.scope()
    tell(node, peer, (Atom("discover"), pid(9)))
    return node, peer, made


def tell(node: Node, peer: Any, message: Any) -> None:
    control = (frames.REG_SEND, pid(1), Atom(""), Atom("pg"))
    node.on_message(peer, control, encode_bare(message))


def test_names_of_groups_are_bounded(scope: tuple[Node, Any, Scope]) -> None:
    node, peer, made = scope
    tell(node, peer, (Atom("join"), pid(9), b"x" * 2 * MAX_NAME, pid(2)))
    assert not made.groups()
    with pytest.raises(EncodeError, match="1024"):
        made.join(b"x" * MAX_NAME, node.mailbox())
    name_size = MAX_NAME - 5  # with the tag and length of a binary
    joins = [(i.to_bytes(4, "big").ljust(name_size, b"x"), [pid(2)]) for i in range(9000)]
    tell(node, peer, (Atom("$gen_cast"), (Atom("sync"), pid(9), joins)))
    assert len(made.groups()) == MAX_NAMES // MAX_NAME
    # What is left makes room again.
    tell(node, peer, (Atom("leave"), pid(9), [pid(2)], [name for name, _ in joins]))
    assert not made.groups()
    tell(node, peer, (Atom("join"), pid(9), joins[0][0], pid(2)))
    assert made.members(joins[0][0]) == [pid(2)]


def test_leaving_costs_the_sum_of_groups_and_members(scope: tuple[Node, Any, Scope]) -> None:
    """And not their product, which a message of a megabyte makes as long as minutes."""
    node, peer, made = scope
    groups = [Atom(f"g{i}") for i in range(300)]
    for group in groups:
        tell(node, peer, (Atom("join"), pid(9), group, [pid(2), pid(2), pid(3)]))
    assert made._remote_members == 900
    looked_up = 0

    class Watched(Pid):
        __slots__ = ()

        def __hash__(self) -> int:
            nonlocal looked_up
            looked_up += 1
            return super().__hash__()

    found: Any = [Watched(Atom(OTHER), number, 0, 9) for number in range(10_000, 13_000)]
    made._remove(made._peers[pid(9)], [*groups, *groups], Counter([*found, pid(2)]))
    assert looked_up < 10 * len(found)
    assert made._remote_members == 300  # each was in twice, and left twice
    assert made.members("g0") == [pid(3)]


@in_private_network
async def test_threads_of_one_node_leave_some_to_others(network: Network) -> None:
    """And none of the node's own are used."""
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    nodes = []
    for number in (1, 2, 3):
        node = Node("thicket", "c", network.address(number), 9100, epmd_port=None)
        await node.start()
        await until(lambda n=node: n.listening, "the node listens")  # type: ignore[misc]
        nodes.append(node)
    server, greedy, modest = nodes
    go = threading.Event()
    running: list[str] = []

    @server.export("work.slow", thread=True)
    def slow() -> str:
        running.append(threading.current_thread().name)
        go.wait(600)
        return "done"

    @server.export("work.quick", thread=True)
    def quick() -> str:
        return "done"

    try:
        tasks = [await greedy.spawn(server.name, "work.slow") for _ in range(100)]
        await until(lambda: len(running) == MAX_THREADS_PER_NODE, "it has its share")
        assert await modest.call(server.name, "work.quick", timeout=PATIENCE) == "done"
        pool = asyncio.get_running_loop().run_in_executor(None, threading.current_thread)
        assert (await asyncio.wait_for(pool, PATIENCE)).name not in running
        for task in tasks:
            task.cancel()
        await until(lambda: not server.calls.jobs, "those that waited are gone")
        assert len(running) == MAX_THREADS_PER_NODE
        # Their threads still run: a new call waits for one of them.
        late = await greedy.spawn(server.name, "work.quick")
        await modest.call(server.name, "work.quick", timeout=PATIENCE)
        assert not late.done()
        go.set()
        assert await asyncio.wait_for(late, PATIENCE) == "done"
    finally:
        go.set()
        for node in nodes:
            await node.stop()


@in_private_network
async def test_one_address_has_a_limited_number_of_nodes(network: Network) -> None:
    if not network.private:
        pytest.skip("needs a network of its own, which this machine does not permit")
    made = []

    async def a_node(name: str, number: int) -> Node:
        node = Node(name, "c", network.address(number), 0, epmd_port=None)
        await node.start()
        await until(lambda: node.listening, "the node listens")
        made.append(node)
        return node

    try:
        server = await a_node("thicket", 1)
        for i in range(MAX_CONNECTIONS_PER_HOST + 1):
            node = await a_node(f"a{i}", 2)
            node.port = server.port
            if i < MAX_CONNECTIONS_PER_HOST:
                await node.connect(server.name, PATIENCE)
        with pytest.raises(HandshakeError) as caught:
            await node.connect(server.name, PATIENCE)
        assert caught.value.code == "too-many"
        other = await a_node("thicket", 3)
        other.port = server.port
        await other.connect(server.name, PATIENCE)
    finally:
        for node in made:
            await node.stop()


@pytest.mark.parametrize("shape", ["dict", "pairs"])
def test_maps_that_are_keys_of_maps_cost_what_their_length_says(shape: str) -> None:
    """Three hundred levels; encoded twice at each, they would take longer than the world exists."""
    term: Any = FrozenMap(((1, 1), (b"x", 2)))
    for level in range(300):
        pairs = ((term, level), (b"other", 1))
        term = FrozenMap(pairs)
    pairs = ((term, 1), (b"x", 1))
    whole: Any = dict(pairs) if shape == "dict" else PairMap(pairs)
    begin = time.process_time()
    data = encode_bare(whole, max_depth=1000)
    assert time.process_time() - begin < 30
    assert len(data) < 20_000


@pytest.mark.parametrize(
    "make",
    [
        lambda: b"x" * 30_000_000,
        lambda: [b"x" * 1000] * 30_000,
        lambda: dict.fromkeys(range(300000), b"x"),
        lambda: [1 << 14_000] * 10_000,
        lambda: ImproperList((b"x" * 10_000_000, 2), b"x" * 10_000_000),
        lambda: FrozenList([b"x" * 10_000_000]),
        lambda: PairMap([(1, b"x" * 10_000_000)]),
        lambda: BitString(b"x" * 10_000_000, 3),
    ],
    ids=["binary", "list", "map", "integers", "improper", "frozen", "pairs", "bits"],
)
def test_the_text_of_a_term_costs_no_more_than_is_shown(make: Any) -> None:
    """It was made as a whole, four times as long as the term, and cut off then."""
    term = make()
    tracemalloc.start()
    try:
        text = shown(term)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(text) <= 1027
    assert peak < 500_000


def test_the_text_of_a_short_term_is_its_representation() -> None:
    node = Atom(OTHER)
    for term in (
        [1, -2.5, "text", b"bytes", None, True, Atom("a"), ()],
        {"a": (1, [2]), Atom("b"): {}},
        ImproperList((1, 2), [3]),
        FrozenList([1, "a"]),
        PairMap([(1, 2), (1.0, 3)]),
        Pid(node, 1, 0, 9),
        BitString(b"\xa0", 3),
    ):
        assert shown(term) == repr(term)


@pytest.mark.parametrize(
    "text",
    ["a" + ".a" * 32_000 + " = 1", "[a" + " . 'a'" * 10_000 + "]", '""' + '.""' * 20_000 + "=1"],
)
def test_a_key_of_thousands_of_parts_is_refused_unread(text: str) -> None:
    """64 KB of it took 18 s."""
    with pytest.raises(ConfigError, match=r"more than 100 parts \(at line 2\)"):
        parse(f"# a remark\n{text}\n".encode(), "thicket.toml")


def test_keys_and_values_of_many_dots_are_as_they_were() -> None:
    values = '"' + ". " * 500 + '"', "[" + "1.5, " * 500 + "]", "'" + "a.b " * 400 + "'"
    for value in values:
        settings = parse(f"[application.x]\na.b.c = {value}\n".encode(), "thicket.toml")
        assert settings.application
