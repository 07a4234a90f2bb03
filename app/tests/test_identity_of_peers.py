# SPDX-License-Identifier: Apache-2.0
"""Who a peer is comes from its connection alone: nothing is done in the name of a third node."""

from __future__ import annotations

import asyncio
from ipaddress import IPv6Address
from typing import Any

import pytest
from fake_peer import ReadsText
from private_network import until

from thicket.distribution import CALLER, frames
from thicket.distribution.atoms import EXECUTE_CALL, GEN_CALL, SYSTEM_LIMIT
from thicket.distribution.etf import Atom, Pid, Reference, decode_bare, encode_bare
from thicket.distribution.handshake import ABILITIES, RemoteNode
from thicket.distribution.mailbox import Down, Exit, Mailbox
from thicket.distribution.node import Node
from thicket.distribution.processes import MAX_WATCHERS_PER_NODE

PREFIX = "thicket@fd12:3456:789a:1::"
OWN, HONEST, HOSTILE = f"{PREFIX}1", f"{PREFIX}2", f"{PREFIX}3"


class Peer(ReadsText):
    """Stands in for a connection: keeps what it is sent."""

    busy = False
    discarded = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.peer = RemoteNode(name, ABILITIES, 9, True)
        self.sent: list[tuple[tuple[Any, ...], Any]] = []

    def has(self, flag: int) -> bool:
        return bool(ABILITIES & flag)

    def send(
        self, control: tuple[Any, ...], payload: bytes | None = None, *, more: bool = False
    ) -> None:
        self.sent.append((control, decode_bare(payload)[0] if payload is not None else None))

    async def send_in_turn(self, control: tuple[Any, ...], payload: bytes | None = None) -> None:
        self.send(control, payload)

    async def drain(self) -> None:
        pass

    def pid(self, number: int = 1) -> Pid:
        return Pid(Atom(self.name), number, 0, 9)

    def reference(self, number: int = 1) -> Reference:
        return Reference(Atom(self.name), 9, (number, 0, 0))

    def of(self, kind: int) -> list[tuple[tuple[Any, ...], Any]]:
        return [message for message in self.sent if message[0][0] == kind]


@pytest.fixture
def three() -> tuple[Node, Any, Any]:
    node = Node("thicket", "c", IPv6Address("fd12:3456:789a:1::1"))
    honest, hostile = Peer(HONEST), Peer(HOSTILE)
    node.connections.update({HONEST: honest, HOSTILE: hostile})  # type: ignore[dict-item]
    return node, honest, hostile


def forged(node: Node) -> int:
    return int(node.statistics()["forged"])


def call(node: Node, through: Any, caller: Pid, request: Reference, *what: Any) -> None:
    control = (
        frames.SPAWN_REQUEST,
        request,
        caller,
        caller,
        EXECUTE_CALL,
        [Atom("monitor")],
    )
    node.on_message(through, control, encode_bare([request, *what]))


def test_every_signal_in_the_name_of_another_node_is_dropped(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three
    box = node.mailbox("box")
    him, us = honest.pid(), box.pid
    reference = hostile.reference()
    text = encode_bare(Atom("x"))
    signals: list[tuple[Any, ...]] = [
        (frames.SEND_SENDER, him, us),
        (frames.REG_SEND, him, Atom(""), Atom("box")),
        (frames.ALIAS_SEND, him, box.alias()),
        (frames.MONITOR_P, him, us, reference),
        (frames.DEMONITOR_P, him, us, reference),
        (frames.MONITOR_P_EXIT, him, us, reference, Atom("x")),
        (frames.PAYLOAD_MONITOR_P_EXIT, him, us, reference),
        (frames.LINK, him, us),
        (frames.UNLINK, him, us),
        (frames.UNLINK_ID, 1, him, us),
        (frames.UNLINK_ID_ACK, 1, him, us),
        (frames.EXIT, him, us, Atom("x")),
        (frames.PAYLOAD_EXIT, him, us),
        (frames.EXIT2, him, us, Atom("kill")),
        (frames.PAYLOAD_EXIT2, him, us),
        (frames.SPAWN_REQUEST, reference, him, him, EXECUTE_CALL, []),
        (frames.SPAWN_REPLY, reference, us, 0, him),
    ]
    for count, control in enumerate(signals, 1):
        node.on_message(hostile, control, text)
        assert forged(node) == count, control
    assert not len(box)
    assert not box.closed
    assert not box.monitors
    assert not box.links
    assert not hostile.sent
    # The same of its own is heard.
    node.on_message(hostile, (frames.SEND_SENDER, hostile.pid(), us), text)
    assert len(box) == 1


async def test_a_caller_is_the_node_at_the_other_end(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three
    seen: list[str] = []

    @node.export("door.plain")
    def plain() -> None:
        caller = CALLER.get()
        assert caller is not None
        seen.append(caller.node)

    @node.export("door.task")
    async def task() -> None:
        plain()

    names = Atom("door"), Atom("plain")
    tasks = Atom("door"), Atom("task")
    call(node, hostile, honest.pid(), hostile.reference(1), *names, [])
    call(node, hostile, node.pid, hostile.reference(2), *names, [])
    call(node, hostile, hostile.pid(), honest.reference(3), *names, [])
    assert forged(node) == 3
    assert not seen
    call(node, hostile, hostile.pid(), hostile.reference(4), *names, [])
    assert seen == [HOSTILE]

    def tell(message: Any) -> None:
        control = (frames.REG_SEND, hostile.pid(), Atom(""), Atom("rex"))
        node.on_message(hostile, control, encode_bare(message))

    for caller in (honest.pid(), node.pid):
        request: Any = (Atom("call"), *tasks, [], caller)
        tell((GEN_CALL, (caller, hostile.reference(5)), request))
    assert forged(node) == 5
    for mine in (honest.pid(), node.pid):  # whose group leader it is proves nothing
        request = (Atom("call"), *tasks, [], mine)
        tell((GEN_CALL, (hostile.pid(), hostile.reference(6)), request))
        tell((Atom("$gen_cast"), (Atom("cast"), *tasks, [], mine)))
    await until(lambda: len(seen) == 5, "it happens")
    assert seen == [HOSTILE] * 5


async def test_old_calls_count_for_the_node_that_makes_them(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three

    @node.export("slow.wait")
    async def wait() -> None:
        await asyncio.Event().wait()

    for peer, number in ((hostile, 300), (honest, 1)):
        for i in range(number):
            request: Any = (Atom("call"), Atom("slow"), Atom("wait"), [], peer.pid())
            message = (GEN_CALL, (peer.pid(), peer.reference(i)), request)
            control = (frames.REG_SEND, peer.pid(), Atom(""), Atom("rex"))
            node.on_message(peer, control, encode_bare(message))
    assert len(hostile.of(frames.SEND_SENDER)) == 50
    assert not honest.sent
    assert node.calls.has_room(OWN)
    node.calls.stop()
    await until(lambda: not node.calls.jobs, "it happens")


async def test_nobody_else_answers_what_a_node_was_asked(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three
    asked = asyncio.ensure_future(node.call(HONEST, "a.b", timeout=None))
    await until(lambda: honest.sent, "it happens")
    (control, _), *_ = honest.sent
    reference, caller = control[1], control[2]
    lie = encode_bare((reference, Atom("return"), 666))
    end = frames.PAYLOAD_MONITOR_P_EXIT
    node.on_message(hostile, (end, hostile.pid(), caller, reference), lie)
    refused = (frames.SPAWN_REPLY, reference, caller, 0, Atom("system_limit"))
    node.on_message(hostile, refused, None)
    truth = encode_bare((reference, Atom("return"), 1))
    node.on_message(honest, (end, honest.pid(), caller, reference), truth)
    assert await asked == 1

    honest.sent.clear()
    asked = asyncio.ensure_future(node.request(("box", HONEST), Atom("q"), None))
    await until(lambda: len(honest.sent) == 2, "it happens")
    (control, _), *_ = honest.of(frames.MONITOR_P)
    caller, reference = control[1], control[3]
    end_of = (end, Atom("box"), caller, reference)
    node.on_message(hostile, end_of, encode_bare(Atom("noproc")))
    lie = encode_bare((reference, 666))
    node.on_message(hostile, (frames.SEND_SENDER, hostile.pid(), caller), lie)
    node.on_message(honest, (frames.SEND_SENDER, honest.pid(), caller), encode_bare((reference, 1)))
    assert await asked == 1
    assert forged(node) == 1


async def test_only_a_process_s_own_node_tells_of_its_end(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three
    box = node.mailbox()
    reference = box.watch(("it", HONEST))
    box.link(honest.pid(5))
    why = encode_bare(Atom("died"))
    node.on_message(hostile, (frames.PAYLOAD_MONITOR_P_EXIT, Atom("it"), box.pid, reference), why)
    node.on_message(hostile, (frames.PAYLOAD_EXIT, honest.pid(5), box.pid), why)
    assert not len(box)
    node.on_message(honest, (frames.PAYLOAD_MONITOR_P_EXIT, Atom("it"), box.pid, reference), why)
    node.on_message(honest, (frames.PAYLOAD_EXIT, honest.pid(5), box.pid), why)
    assert len(box) == 2
    assert isinstance(await box.get(), Down)
    assert await box.get() == Exit(honest.pid(5), Atom("died"), linked=True)


def test_a_watch_of_another_node_is_not_replaced(three: tuple[Node, Any, Any]) -> None:
    """References can be guessed: they are counted up."""
    node, honest, hostile = three
    box = node.mailbox()
    reference = honest.reference()
    node.on_message(honest, (frames.MONITOR_P, honest.pid(), box.pid, reference), None)
    node.on_message(hostile, (frames.MONITOR_P, hostile.pid(), box.pid, reference), None)
    node.on_message(hostile, (frames.DEMONITOR_P, hostile.pid(), box.pid, reference), None)
    assert forged(node) == 1
    box.close()
    assert len(honest.of(frames.PAYLOAD_MONITOR_P_EXIT)) == 1
    assert not hostile.sent


def test_a_node_cannot_use_up_the_watchers_of_a_process(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three
    box = node.mailbox("box")
    for i in range(MAX_WATCHERS_PER_NODE + 100):
        reference = Reference(Atom(HOSTILE), 9, (i & 0x3FFFF, i >> 18, 0))
        node.on_message(hostile, (frames.MONITOR_P, hostile.pid(), box.pid, reference), None)
        node.on_message(hostile, (frames.LINK, hostile.pid(i + 1), box.pid), None)
    ends = hostile.of(frames.PAYLOAD_MONITOR_P_EXIT)
    assert [reason for _, reason in ends] == [SYSTEM_LIMIT] * 100
    assert len(hostile.of(frames.PAYLOAD_EXIT)) == 100
    node.on_message(honest, (frames.MONITOR_P, honest.pid(), box.pid, honest.reference()), None)
    node.on_message(honest, (frames.LINK, honest.pid(), box.pid), None)
    assert not honest.sent


def test_a_node_tells_of_its_own_members_of_groups_only(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three
    scope = node.scope()

    def tell(through: Any, message: Any) -> None:
        control = (frames.REG_SEND, through.pid(), Atom(""), Atom("pg"))
        node.on_message(through, control, encode_bare(message))

    group = Atom("alarms")
    theirs, member = honest.pid(7), honest.pid(8)
    tell(honest, (Atom("discover"), theirs))
    tell(honest, (Atom("join"), theirs, group, member))
    assert scope.members("alarms") == [member]
    tell(hostile, (Atom("leave"), theirs, [member], [group]))
    tell(hostile, (Atom("update"), theirs, [(group, [], [member])]))
    tell(hostile, (Atom("join"), theirs, group, honest.pid(9)))
    assert scope.members("alarms") == [member]
    assert forged(node) == 3
    # nor of the end of the process that tells
    (control, _), *_ = honest.of(frames.MONITOR_P)
    end = (frames.PAYLOAD_MONITOR_P_EXIT, hostile.pid(), scope.pid, control[3])
    node.on_message(hostile, end, encode_bare(Atom("x")))
    assert scope.members("alarms") == [member]


async def test_requests_to_a_mailbox_are_of_who_sends_them(three: tuple[Node, Any, Any]) -> None:
    node, honest, hostile = three
    box = node.mailbox("box")
    assert isinstance(box, Mailbox)
    for sender in (honest.pid(), hostile.pid()):
        message = (GEN_CALL, (sender, hostile.reference()), Atom("q"))
        control = (frames.REG_SEND, hostile.pid(), Atom(""), Atom("box"))
        node.on_message(hostile, control, encode_bare(message))
    assert len(box) == 1
    assert (await box.get()).sender == hostile.pid()
    assert forged(node) == 1


async def test_a_call_by_way_of_rex_still_works_between_nodes_of_ours(
    three: tuple[Node, Any, Any],
) -> None:
    node, honest, _ = three

    @node.export("sum.up")
    async def up(a: int, b: int) -> int:
        return a + b

    request: Any = (Atom("call"), Atom("sum"), Atom("up"), [1, 2], honest.pid())
    tag = honest.reference()
    control: tuple[Any, ...] = (frames.REG_SEND, honest.pid(), Atom(""), Atom("rex"))
    node.on_message(honest, control, encode_bare((GEN_CALL, (honest.pid(), tag), request)))
    await until(lambda: honest.sent, "it happens")
    [(control, answer)] = honest.sent
    assert (control[0], control[2], answer) == (frames.SEND_SENDER, honest.pid(), (tag, 3))
    assert await node.call(OWN, "sum.up", 3, 4) == 7
