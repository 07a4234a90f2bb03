# SPDX-License-Identifier: Apache-2.0
"""What a connected peer can make a node keep is bounded, whatever it sends."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Any

import pytest
from fake_peer import ReadsText

from thicket.distribution import frames, jobs
from thicket.distribution.etf import Atom, DecodeError, Pid, Reference, encode_bare
from thicket.distribution.frames import FrameError, MessageReader
from thicket.distribution.groups import MAX_SERVERS, Scope
from thicket.distribution.handshake import ABILITIES
from thicket.distribution.node import Node
from thicket.distribution.processes import Process

OTHER = "thicket@fd12:3456:789a:1:0:e0f9:2f20:de47"
NAME = Atom(OTHER)


class Peer(ReadsText):
    """Stands in for a connection: keeps what it is sent."""

    name = OTHER

    def __init__(self) -> None:
        self.sent: list[tuple[tuple[Any, ...], bytes | None]] = []

    def has(self, flag: int) -> bool:
        return bool(ABILITIES & flag)

    def send(
        self, control: tuple[Any, ...], payload: bytes | None = None, *, more: bool = False
    ) -> None:
        self.sent.append((control, payload))


def pid(number: int) -> Pid:
    return Pid(NAME, number, 0, 9)


def connected() -> tuple[Node, Any]:
    node, peer = Node("thicket", "c", IPv6Address("fd12:3456:789a:1::1")), Peer()
    node.connections[OTHER] = peer  # type: ignore[assignment]
    return node, peer


def tell(node: Node, peer: Any, name: str, message: Any) -> None:
    control = (frames.REG_SEND, pid(1), Atom(""), Atom(name))
    node.on_message(peer, control, encode_bare(message))


def fragment(sequence: int, number: int, part: bytes, control: bytes | None = None) -> bytes:
    head = b"\x83" + (b"\x46" if control is None else b"\x45")
    head += sequence.to_bytes(8, "big") + number.to_bytes(8, "big")
    return head + (b"" if control is None else b"\0" + control) + part


CONTROL = encode_bare((frames.SEND_SENDER, pid(1), pid(2)))


@pytest.mark.parametrize("part", [b"", b"x"])
def test_many_small_fragments_count_for_what_they_cost(part: bytes) -> None:
    """Each is an object of its own: empty ones cost memory without end."""
    messages = MessageReader(header=True, max_message=1_000_000)
    count = 100_000
    tracemalloc.start()
    try:
        messages.feed(fragment(1, count, part, CONTROL))
        for number in range(count - 1, 1, -1):
            assert messages.feed(fragment(1, number, part)) is None
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 3_000_000
    assert messages.discarded == 1
    assert messages.feed(fragment(1, 1, part)) is None
    assert (messages.held, messages._partial) == (0, {})


def test_a_message_of_ordinary_fragments_may_be_as_long_as_the_limit() -> None:
    messages = MessageReader(header=True, max_message=1_000_000)
    payload = b"x" * (1_000_000 - 1000)
    built = frames.build(CONTROL, payload, header=True, sequence=1)
    found = [messages.feed(frame[4:]) for frame in built]
    assert found[-1] == ((frames.SEND_SENDER, pid(1), pid(2)), payload)
    assert messages.discarded == 0


def test_incomplete_messages_have_short_control_messages() -> None:
    """A million empty lists are a megabyte on the wire, and sixty in memory."""
    messages = MessageReader(header=True)
    long = encode_bare((frames.SEND_SENDER, [[]] * 1000))
    with pytest.raises(FrameError, match="elements"):
        messages.feed(fragment(1, 2, b"", long))
    # those of messages in one piece are gone when they are handled
    assert MessageReader(header=True).feed(b"\x83\x44\0" + long) is not None


def test_what_is_discarded_leaves_nothing() -> None:
    messages = MessageReader(header=True, max_message=1000)
    bulky = encode_bare((frames.SEND_SENDER, b"x" * 20_000))
    tracemalloc.start()
    try:
        for sequence in range(1000):
            messages.feed(fragment(sequence, 2, b"", bulky))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert messages.discarded == 1000
    assert used < 1_000_000


@pytest.fixture
def scope() -> Iterator[tuple[Node, Any, Scope]]:
    node, peer = connected()
    yield node, peer, Scope(node)


def test_groups_without_members_are_none(scope: tuple[Node, Any, Scope]) -> None:
    node, peer, pg = scope
    tell(node, peer, "pg", (Atom("discover"), pid(5)))
    for number in range(100):
        tell(node, peer, "pg", (Atom("join"), pid(5), number, [1]))
        tell(
            node,
            peer,
            "pg",
            (Atom("update"), pid(5), [(number, [Pid(Atom("x@::1"), 1, 0, 1)], [])]),
        )
    tell(node, peer, "pg", (Atom("$gen_cast"), (Atom("sync"), pid(5), [(1, []), (2, [7])])))
    assert pg._peers[pid(5)].groups == {}
    tell(node, peer, "pg", (Atom("join"), pid(5), b"real", pid(6)))
    assert len(pg._peers[pid(5)].groups) == 1


def test_a_node_has_few_processes_for_a_scope(scope: tuple[Node, Any, Scope]) -> None:
    node, peer, pg = scope
    for number in range(1000):
        tell(node, peer, "pg", (Atom("discover"), pid(number)))
        tell(node, peer, "pg", (Atom("$gen_cast"), (Atom("sync"), pid(number + 1000), [])))
    assert len(pg._peers) == MAX_SERVERS
    assert len(pg.watched) == MAX_SERVERS
    # the end of one makes room for another
    reference = next(iter(pg.watched))
    down = (frames.MONITOR_P_EXIT, pg.watched[reference][1], pg.pid, reference, Atom("noproc"))
    node.on_message(peer, down, None)
    tell(node, peer, "pg", (Atom("discover"), pid(5000)))
    assert pid(5000) in pg._peers


async def test_calls_by_way_of_rex_are_limited_as_others_are() -> None:
    node, peer = connected()

    @node.export("work.wait")
    async def wait() -> None:
        await asyncio.sleep(3600)

    for number in range(jobs.MAX_JOBS_PER_NODE + 50):
        what: Any = (Atom("cast"), Atom("work"), Atom("wait"), [], pid(1))
        request: Any = (Atom("$gen_cast"), what)
        if number % 2:
            tag = Reference(NAME, 9, (number, 0, 0))
            what = (Atom("call"), *what[1:])
            request = (Atom("$gen_call"), (pid(1), tag), what)
        tell(node, peer, "rex", request)
    assert len(node.calls.jobs) == jobs.MAX_JOBS_PER_NODE
    assert node.calls.refused == 50
    assert len(peer.sent) == 25, "who waits is told"
    assert b"system_limit" in peer.sent[0][1]
    node.connections.clear()
    await node.stop()


def test_a_refusal_that_cannot_be_done_is_tried_once() -> None:
    """Whatever the refusal of a message runs into, the message is not refused again for it."""
    node, peer = connected()

    class Refusing(Process):
        refused = 0

        def on_untaken(self, *_what: object) -> None:
            self.refused += 1
            raise DecodeError("the refusal cannot be decoded either")

    process = Refusing(node)
    node.register("it", process)
    control = (frames.REG_SEND, pid(1), Atom(""), Atom("it"))
    node.on_message(peer, control, b"\xff no term")
    assert (process.refused, node.counters["undecodable"]) == (1, 2)
    node.on_discarded(peer, control, b"")
    assert (process.refused, node.counters["undecodable"]) == (2, 3)
