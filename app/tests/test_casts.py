# SPDX-License-Identifier: Apache-2.0
"""Real nodes whose messages to groups go from neighbour to neighbour."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from erlang import Erl, Release, a_real_epmd, in_oldest_and_newest
from patience import PATIENCE
from private_network import Network, in_private_network, until
from test_roster_nodes import a_fleet, a_line, direct, up

from thicket.distribution import Atom, Node, casts
from thicket.distribution.etf import encode_bare
from thicket.distribution.mailbox import Mailbox
from thicket.distribution.relay import DROPS, MAX_BODY, WINDOW, Cast, mark_of, pack

PER_NODE = 20


def all_join(nodes: list[Node], group: str = "all") -> list[Mailbox]:
    boxes = [node.mailbox(limit=10_000) for node in nodes]
    for node, box in zip(nodes, boxes, strict=True):
        node.join(group, box)
    return boxes


async def all_know(nodes: list[Node], group: str = "all") -> None:
    await until(
        lambda: all(len(node.members(group)) == len(nodes) for node in nodes),
        "all know all members",
    )


async def take(box: Mailbox, count: int) -> list[Any]:
    return [await asyncio.wait_for(box.get(), PATIENCE) for _ in range(count)]


def dropped(nodes: list[Node]) -> Counter[str]:
    found: Counter[str] = Counter()
    for node in nodes:
        counters = node.casts.relay.counters
        found.update({name: counters[name] for name in (*DROPS, "lost")})
    return +found


GRAPHS = {
    "line": [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)],
    "ring": [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 0)],
    "anyhow": [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (5, 6), (3, 7), (4, 7), (2, 7), (6, 0)],
}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("full", [(), (1, 3)], ids=["sparse", "mixed"])
def test_a_message_to_all_makes_no_connections(graph: str, full: tuple[int, ...]) -> None:
    @in_private_network
    async def test(network: Network) -> None:
        async with a_fleet(network, GRAPHS[graph], full=full) as nodes:
            boxes = all_join(nodes)
            await all_know(nodes)
            before = [direct(node) for node in nodes]

            async def publish(node: Node) -> None:
                for number in range(PER_NODE):
                    sent = await node.publish("all", (Atom(node.name), number))
                    assert sent == len(nodes)

            await asyncio.gather(*map(publish, nodes))
            for box in boxes:
                got = await take(box, PER_NODE * len(nodes))
                for node in nodes:
                    numbers = [message[1] for message in got if message[0] == node.name]
                    assert numbers == list(range(PER_NODE))
                assert not len(box)
            assert [direct(node) for node in nodes] == before
            assert not dropped(nodes)
            # Each message crosses as many links as there are other nodes.
            passes = sum(n.casts.counters()["passed"] for n in nodes)
            sends = sum(len({w.hop for w in n.membership.roster.ways().values() if w.hops})
                        for n in nodes)  # fmt: skip
            assert passes + PER_NODE * sends == PER_NODE * len(nodes) * (len(nodes) - 1)

    test()


@in_private_network
async def test_links_that_end_and_come_back_lose_nothing(network: Network) -> None:
    luck = random.Random(1)
    async with a_fleet(network, GRAPHS["anyhow"]) as nodes:
        boxes = all_join(nodes)
        await all_know(nodes)
        sender, published = nodes[0], 0
        for _ in range(8):
            one, other = luck.choice([pair for pair in GRAPHS["anyhow"] if pair != (2, 5)])
            for turn in range(30):
                assert await sender.publish("all", published) == len(nodes)
                published += 1
                if turn == 10:  # with messages on their way over it
                    nodes[one].disconnect(nodes[other].name)
            await until(lambda: all(len(up(n)) == len(nodes) - 1 for n in nodes), "there is a way")
            await nodes[one].connect(nodes[other].name, PATIENCE)
            await until(
                lambda o=one, p=other: nodes[p].name in nodes[o].membership.roster.links,  # type: ignore[misc]
                "it is a link again",
            )
        for box in boxes:
            assert await take(box, published) == list(range(published))
        assert not dropped(nodes)


@in_private_network
async def test_long_messages_keep_their_place_among_short_ones(network: Network) -> None:
    async with a_line(network, 4) as nodes:
        boxes = all_join(nodes)
        await all_know(nodes)
        wanted = []
        for number in range(6):
            wanted.append(bytes([number]) * (10 if number % 2 else 3 * MAX_BODY))
            assert await nodes[0].publish("all", wanted[-1]) == 4
        for box in boxes:
            assert await take(box, 6) == wanted
        assert nodes[3].name in direct(nodes[0]), "a connection of its own"
        assert not dropped(nodes)


@in_private_network
async def test_a_sender_is_held_up_by_its_neighbour(network: Network) -> None:
    async with a_line(network, 4) as nodes:
        all_join(nodes)
        await all_know(nodes)
        nodes[1].casts.on_message = lambda connection, message: None  # type: ignore[method-assign]
        async with AsyncExitStack() as stack:
            for _ in range(WINDOW):
                async with asyncio.timeout(PATIENCE):
                    await nodes[0].publish("all", 1)
            waiting = asyncio.create_task(nodes[0].publish("all", 2))
            stack.callback(waiting.cancel)
            await until(lambda: nodes[0].casts._room, "it waits")
            assert not waiting.done()
            del nodes[1].casts.on_message
            nodes[0].disconnect(nodes[1].name)
            await asyncio.wait_for(waiting, PATIENCE)


@in_private_network
async def test_what_a_request_is_goes_to_each_member_itself(network: Network) -> None:
    async with a_line(network, 3) as nodes:
        box = nodes[2].mailbox()
        nodes[2].join("some", box)
        await until(lambda: nodes[0].members("some"), "it is known")
        asker = nodes[0].mailbox()
        reference = nodes[0].new_reference()
        request = Atom("$gen_call"), (asker.pid, reference), "how are you"
        assert await nodes[0].scope().publish("some", request, asker.pid) == 1
        got = await asyncio.wait_for(box.get(), PATIENCE)
        got.reply("well")
        assert await asyncio.wait_for(asker.get(), PATIENCE) == (reference, "well")
        # Another member cannot make one of a message that it hands on.
        middle = nodes[1]
        marks = {mark_of(nodes[2].name): 1}
        forged = Cast(nodes[0].name, 5, 9, "pg", encode_bare(Atom("some")), marks, b"")
        to = middle.connections[nodes[2].name]
        for number, body in enumerate((encode_bare(request), b"\x68", encode_bare(1))):
            cast = forged._replace(body=body, run=number)
            middle.send_to_name(to, middle.pid, casts.NAME, pack(cast))
        middle.send_to_name(to, middle.pid, casts.NAME, Atom("nonsense"))
        await until(lambda: nodes[2].casts.relay.counters["form"] == 2, "both are counted")
        assert await asyncio.wait_for(box.get(), PATIENCE) == 1
        assert not len(box)


@in_oldest_and_newest
async def test_a_stock_node_gets_it_from_the_node_that_is_connected_with_it(
    network: Network, release: Release
) -> None:
    async with (
        a_real_epmd(network),
        a_line(network, 4, epmd_port=network.epmd_port) as nodes,
        await Erl.start(network, "e", network.address(20), release=release) as erl,
    ):
        for node in nodes[1:3]:  # two that could send it there
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
        assert await erl.eval("pg:start(pg), pg:join(sensors, self()), ok") == "ok"
        for node in (nodes[0], nodes[1], nodes[3]):  # not the nearer one of the two
            node.scope()
        await until(lambda: len(nodes[3].members("sensors")) == 1, "its member is known")
        assert nodes[2].scopes == {}
        for number in range(50):
            assert await nodes[3].publish("sensors", {"number": number, "word": "text"}) == 1
        wanted = '[receive #{<<"number">> := N, <<"word">> := <<"text">>} -> N after 30000 -> x end'
        assert await erl.eval(f"{wanted} || _ <- lists:seq(1, 50)]") == list(range(50))
        assert await erl.eval("receive X -> X after 100 -> none end") == "none"
        assert set(await erl.eval("nodes()")) == {nodes[1].name, nodes[2].name}
        assert not dropped(nodes)
