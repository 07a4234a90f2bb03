# SPDX-License-Identifier: Apache-2.0
"""Real nodes that are connected with their neighbours only: what each knows of all others."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Container, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from erlang import Erl, Release, a_real_epmd, in_oldest_and_newest
from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.distribution import Atom, DistributionError, Down, Node, NodeEvent, members
from thicket.distribution.ledger import Record
from thicket.distribution.mailbox import NodeEvents
from thicket.distribution.roster import Records

COUNT = 6


@asynccontextmanager
async def a_line(
    network: Network, count: int = COUNT, epmd_port: int | None = None
) -> AsyncIterator[list[Node]]:
    """Nodes in a line, each connected with the one before and the one behind it."""
    async with a_fleet(network, itertools.pairwise(range(count)), epmd_port) as nodes:
        yield nodes


@asynccontextmanager
async def a_fleet(
    network: Network,
    pairs: Iterable[tuple[int, int]],
    epmd_port: int | None = None,
    full: Container[int] = (),
) -> AsyncIterator[list[Node]]:
    """Nodes of which some pairs are neighbours.

    :param full: those that keep their other connections as well.
    """
    pairs = list(pairs)
    count = 1 + max(at for pair in pairs for at in pair)
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(1, count + 1):
            address = network.address(number)
            # one that ticks in vain would tell of a loss late
            node = Node("n", "secret", address, 9100, epmd_port=epmd_port, tick_time=3600)
            await node.start()
            stack.push_async_callback(node.stop)
            nodes.append(node)
        await until(lambda: all(node.listening for node in nodes), "all listen")
        for one, other in pairs:
            await nodes[one].connect(nodes[other].name)
        for at, node in enumerate(nodes):
            near = [nodes[i].name for pair in pairs if at in pair for i in pair if i != at]
            node.choose(near, keeps_all=at in full)
        await until(
            lambda: all(len(up(node)) == count - 1 for node in nodes), "all know of all others"
        )
        yield nodes


async def for_all(nodes: list[Node], condition: Callable[[Node], object], what: str) -> None:
    await until(lambda: all(condition(node) for node in nodes), what)


def up(node: Node) -> set[str]:
    return {info.name for info in node.nodes() if info.state == "up"}


def direct(node: Node) -> set[str]:
    return {info.name for info in node.nodes() if info.direct}


async def next_down(events: NodeEvents, name: str) -> NodeEvent:
    while True:
        event = await asyncio.wait_for(events.get(), PATIENCE)
        if (event.kind, event.name) == ("down", name):
            return event


@in_private_network
async def test_all_know_of_all_and_of_who_goes_and_comes_back(network: Network) -> None:
    async with a_line(network) as nodes:
        names = {node.name for node in nodes}
        for at, node in enumerate(nodes):
            assert up(node) == names - {node.name}
            near = {nodes[i].name for i in (at - 1, at + 1) if 0 <= i < COUNT}
            assert direct(node) == near
        first, last = nodes[0], nodes[-1]
        events = first.monitor()
        assert {(await events.get()).name for _ in range(COUNT - 1)} == names - {first.name}
        # The far end goes: everybody learns of that, and of nobody else's end.
        began = time.monotonic()
        await last.stop()
        event = await next_down(events, last.name)
        print(f"the end of a node was known over {COUNT - 1} hops after "
              f"{time.monotonic() - began:.2f} s")  # fmt: skip
        assert event.code == "lost"
        await until(
            lambda: all(last.name not in up(node) for node in nodes[:-1]), "all know that it went"
        )
        assert all(len(up(node)) == COUNT - 2 for node in nodes[:-1])
        # It begins anew, with statements that start from the first.
        again = Node("n", "secret", network.address(COUNT), 9100, epmd_port=None)
        await again.start()
        try:
            await again.connect(nodes[-2].name, PATIENCE)
            again.choose([nodes[-2].name], keeps_all=False)
            event = await asyncio.wait_for(events.get(), PATIENCE)
            assert (event.kind, event.name) == ("up", again.name)
            await until(lambda: len(up(again)) == COUNT - 1, "it knows of all others")
        finally:
            await again.stop()


@in_private_network
async def test_a_gap_takes_all_behind_it_and_healing_brings_them_back(network: Network) -> None:
    async with a_line(network) as nodes:
        left, right = nodes[:3], nodes[3:]
        assert nodes[2].disconnect(nodes[3].name)
        await for_all(left, lambda node: len(up(node)) == 2, "each half knows of itself")
        await for_all(right, lambda node: len(up(node)) == 2, "each half knows of itself")
        assert up(nodes[0]) == {nodes[1].name, nodes[2].name}
        await nodes[2].connect(nodes[3].name)
        await until(lambda: all(len(up(node)) == COUNT - 1 for node in nodes), "whole again")


@in_private_network
async def test_a_connection_for_a_call_ends_and_one_that_is_needed_stays(
    network: Network,
) -> None:
    members.IDLE, members.LOOK = 0.5, 0.1
    async with a_line(network) as nodes:
        first, last = nodes[0], nodes[-1]
        events = first.monitor(current=False)
        last.export("test.double")(lambda number: 2 * number)
        assert await first.call(last.name, "test.double", 21, timeout=PATIENCE) == 42
        assert last.name in direct(first)
        await until(lambda: last.name not in direct(first), "the connection has ended")
        assert last.name in up(first), "the node has not"
        assert first.membership.ended + last.membership.ended >= 1
        # Calls while connections end meet no end.
        for turn in range(40):
            assert await first.call(last.name, "test.double", turn, timeout=PATIENCE) == 2 * turn
            await asyncio.sleep(0.05 + 0.5 * (turn % 2))

        # What is watched or linked with is connected first, and stays so.
        theirs, ours = last.mailbox("theirs"), first.mailbox()
        await until(lambda: last.name not in direct(first), "it has ended again")
        reference = ours.watch(theirs.pid)
        ours.link(theirs.pid)
        await until(lambda: theirs.monitors and theirs.links, "both have arrived")
        await asyncio.sleep(1.5)  # three times as long as one that nobody needs stays
        assert last.name in direct(first)
        theirs.close()
        got = [await asyncio.wait_for(ours.get(), PATIENCE) for _ in range(2)]
        assert Down(reference, theirs.pid, "normal") in got, got
        await until(lambda: last.name not in direct(first), "nothing needs it any more")
        # A watch on what is not there, also where the node goes meanwhile.
        missing = ours.watch(("missing", last.name))
        assert await asyncio.wait_for(ours.get(), PATIENCE) == Down(missing, "missing", "noproc")
        undone = ours.watch(("missing", last.name))
        ours.unwatch(undone)
        kept = last.mailbox("kept")
        watching = ours.watch(kept.pid)
        await until(lambda: kept.monitors, "it is watched")
        await last.stop()
        ended = await asyncio.wait_for(ours.get(), PATIENCE)
        assert (ended.reference, ended.target) == (watching, kept.pid)
        await next_down(events, last.name)
        # Of a node that is no member the answer comes at once.
        gone = ours.watch(("missing", last.name))
        assert await asyncio.wait_for(ours.get(), PATIENCE) == Down(gone, "missing", "noconnection")
        with pytest.raises(DistributionError):
            await first.call(last.name, "test.double", 1, timeout=PATIENCE)
        events.close()
        assert [event async for event in events] == [], "nobody else went"


@in_private_network
async def test_groups_have_their_members_on_all_nodes(network: Network) -> None:
    members.IDLE, members.LOOK = 0.5, 0.1
    async with a_line(network) as nodes:
        first, last = nodes[0], nodes[-1]
        box = last.mailbox()
        last.join("alarms", box)  # before anybody else has the scope
        subscription = nodes[2].subscribe("alarms")
        await for_all(nodes, lambda node: len(node.members("alarms")) == 2, "both are known")
        assert direct(first) == {nodes[1].name}
        assert await first.publish("alarms", {"kind": "smoke"}) == 2
        assert await asyncio.wait_for(box.get(), PATIENCE) == {"kind": "smoke"}
        assert await asyncio.wait_for(subscription.get(), PATIENCE) == {"kind": "smoke"}
        assert direct(first) == {nodes[1].name}, "it has gone by the neighbours"
        # With a connection a member is known twice, and counts once.
        await first.connect(last.name, PATIENCE)
        await until(lambda: len(first.scope().members("alarms")) == 2, "it is known")
        assert await first.publish("alarms", {"kind": "fire"}) == 2
        assert await asyncio.wait_for(box.get(), PATIENCE) == {"kind": "fire"}
        assert await asyncio.wait_for(subscription.get(), PATIENCE) == {"kind": "fire"}
        await until(lambda: direct(first) == {nodes[1].name}, "the connections have ended")
        assert len(first.members("alarms")) == 2
        last.join("alarms", box)
        await until(lambda: len(first.members("alarms")) == 3, "joined twice")
        assert last.leave("alarms", box)
        await until(lambda: len(first.members("alarms")) == 2, "one leave")
        subscription.close()
        await until(lambda: first.members("alarms") == [box.pid], "a member has ended")
        assert first.scope().groups() == ["alarms"]
        await last.stop()
        await until(lambda: first.members("alarms") == [], "the node of the last one is lost")


@in_oldest_and_newest
async def test_a_stock_node_gets_erlang_alone_and_everybody_knows_it(
    network: Network, release: Release
) -> None:
    async with (
        a_real_epmd(network),
        a_line(network, epmd_port=network.epmd_port) as nodes,
        await Erl.start(network, "e", network.address(20), release=release) as erl,
    ):
        middle = nodes[2]
        box = nodes[5].mailbox("far")
        nodes[5].join("sensors", box)
        near = middle.mailbox()
        middle.join("sensors", near)
        assert await erl.eval(f"net_adm:ping('{middle.name}')") == "pong"
        assert await erl.eval("pg:start(pg), pg:join(sensors, self()), ok") == "ok"
        await for_all(nodes, lambda node: erl.name in up(node), "all know the stock node")
        await for_all(nodes, lambda node: len(node.members("sensors")) == 3, "and its member")
        assert await erl.eval("nodes()") == [middle.name]
        assert await erl.eval("[node(P) || P <- pg:get_members(sensors), node(P) =/= node()]") == [
            middle.name
        ]
        assert await nodes[0].publish("sensors", Atom("hello")) == 3
        assert await erl.eval("receive hello -> got after 30000 -> none end") == "got"
        assert await erl.eval("nodes()") == [middle.name], "its neighbour has sent it"
        reference = near.watch(("pg", erl.name))
        await erl.eval("pg:leave(sensors, self())")
        await for_all(nodes, lambda node: len(node.members("sensors")) == 2, "it has left")
        counters = middle.statistics()
        assert (counters["unknown"], counters["undecodable"], counters["forged"]) == (0, 0, 0)
        assert not [line for line in erl.log if "ERROR" in line], erl.log
        near.unwatch(reference)
        await erl.stop()
        await for_all(nodes, lambda node: erl.name not in up(node), "all know that it went")


@in_private_network
async def test_what_one_that_lies_can_make_others_keep_is_bounded(network: Network) -> None:
    async with a_line(network, 3) as nodes:
        liar, honest = nodes[0], nodes[1]
        roster = honest.membership.roster
        invented = [f"n@fd12:3456:789a:1::{number:x}" for number in range(0x1000, 0x4000)]
        to = next(iter(liar.connections.values()))
        for at in range(0, len(invented), 100):
            body = "\n".join(invented[at : at + 3]).encode()
            records = [Record(name, "", 1, body) for name in invented[at : at + 100]]
            message = members.pack(Records(records))
            liar.send_to_name(to, liar.pid, members.NAME, message)
        await until(lambda: roster.dropped["full"] > 0, "what is too much is counted")
        assert len(roster.ledger.topics) <= roster.ledger.limit + 1
        # Nobody links back to nodes that do not exist.
        assert up(honest) == {nodes[0].name, nodes[2].name}
        for term in (Atom("sums"), (Atom("records"), [1]), (Atom("versions"), [1], [(1, 2, 3)])):
            liar.send_to_name(to, liar.pid, members.NAME, term)
        await until(lambda: roster.dropped["form"] == 3, "what has no form is counted, too")


@in_private_network
async def test_nodes_that_keep_all_connections_say_nothing(network: Network) -> None:
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    async with AsyncExitStack() as stack:
        nodes = []
        for number in (1, 2):
            address = network.address(number)
            node = Node("n", "secret", address, 9100, epmd_port=None)
            await node.start()
            stack.push_async_callback(node.stop)
            node.choose([], keeps_all=True)
            nodes.append(node)
        one, other = nodes
        await one.connect(other.name, PATIENCE)
        assert await one.ping(other.name, PATIENCE) > 0
        assert await other.ping(one.name, PATIENCE) > 0
        assert not one.membership.roster.active
        assert not other.membership.roster.active
        # One of them finds the fleet too large: both begin to speak.
        one.choose([other.name], keeps_all=False)
        await until(lambda: other.membership.roster.links == [one.name], "it is a link")
        assert up(one) == {other.name}


@in_private_network
async def test_calls_to_all_leave_few_connections(network: Network) -> None:
    members.MOST = 4
    async with a_line(network, 16) as nodes:
        first, others = nodes[0], nodes[1:]
        at_once = most = 0
        for node in others:
            node.export("test.double")(lambda number: 2 * number)
        connect = first._connector._reach

        async def reach(peer: str) -> None:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                await connect(peer)
            finally:
                at_once -= 1

        first._connector._reach = reach  # type: ignore[method-assign]
        ended = asyncio.Event()

        @others[-1].export("test.wait")
        async def wait() -> str:
            await ended.wait()
            return "done"

        call = asyncio.create_task(first.call(others[-1].name, "test.wait", timeout=None))
        await until(lambda: others[-1].name in direct(first), "it runs")
        for turn in range(3):
            calls = (
                first.call(node.name, "test.double", turn, timeout=PATIENCE) for node in others
            )
            assert await asyncio.gather(*calls) == [2 * turn] * len(others)
        for node in others[1:-1]:
            assert await first.call(node.name, "test.double", 4, timeout=PATIENCE) == 8
        assert 1 < most <= members.AT_ONCE
        await until(lambda: len(direct(first)) <= 1 + 4, "only few are left")
        left = direct(first)
        assert left >= {nodes[1].name, others[-1].name}, "the neighbour, and who is at work"
        assert left - {nodes[1].name, others[-1].name} <= {n.name for n in others[-6:]}
        assert len(up(first)) == len(others)
        ended.set()
        assert await asyncio.wait_for(call, PATIENCE) == "done"
        await asyncio.sleep(3 * members.RESTS)
        assert len(direct(first)) == 5, "few may stay"
        # Who calls while the end of a connection is agreed on meets no end.
        for turn in range(60):
            node = others[turn % len(others)]
            assert await first.call(node.name, "test.double", turn, timeout=PATIENCE) == 2 * turn
            await asyncio.sleep(0.02 * (turn % 4))


@in_private_network
async def test_nodes_that_do_not_answer_keep_no_call_waiting(network: Network) -> None:
    members.TURN = 0.2
    async with a_line(network, 3) as nodes:
        first, last = nodes[0], nodes[2]
        last.export("test.double")(lambda number: 2 * number)
        silent = [network.address(0x100 + number) for number in range(members.AT_ONCE + 1)]

        async def reach(peer: str, connect: Any = first._connector._reach) -> None:
            if peer.rpartition("@")[2] in map(str, silent):
                await asyncio.Event().wait()
            await connect(peer)

        first._connector._reach = reach  # type: ignore[method-assign]
        *some, another = silent
        calls = [asyncio.create_task(first.cast(f"n@{address}", "a.b")) for address in some]
        await until(lambda: len(first._connector.attempts) == len(some), "they are tried")
        assert await first.call(last.name, "test.double", 2, timeout=PATIENCE) == 4
        with pytest.raises(DistributionError, match=r"within 0\.1 seconds"):
            await first.call(f"n@{another}", "a.b", timeout=0.1)
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
