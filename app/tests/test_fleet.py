# SPDX-License-Identifier: Apache-2.0
"""A fleet after a power return: all hear each other at once, and connect without a storm."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from ipaddress import IPv6Address

import pytest
from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.cluster import membership
from thicket.cluster.membership import Membership
from thicket.distribution import Node
from thicket.distribution.events import ClusterEvent, NodeDown, NodeUp

COUNT = 16


@in_private_network
async def test_a_whole_fleet_connects_at_once_and_again_after_a_power_cycle(
    network: Network,
) -> None:
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    addresses = [network.address(number) for number in range(1, COUNT + 1)]
    most = [0]

    class Counted(Node):
        """Counts the attempts that run at the same time on one node."""

        async def connect(self, peer: str, timeout: float | None = None) -> None:
            try:
                await super().connect(peer, timeout)
            finally:
                most[0] = max(most[0], sum(one.state == "connecting" for one in self.nodes()))

    class Hearing:
        """Passes on what happens to the membership of a node, made after it."""

        def __init__(self, made: list[Membership]) -> None:
            self._made = made

        def on(self, event: ClusterEvent, /) -> None:
            if isinstance(event, NodeUp):
                self._made[0].node_up(event.name)
            elif isinstance(event, NodeDown):
                self._made[0].node_down(event.name)

    async def power_on(stack: AsyncExitStack, address: IPv6Address) -> tuple[Node, Membership]:
        made: list[Membership] = []

        hearing = Hearing(made)
        node = Counted("n", "secret", address, 9100, epmd_port=None, listener=hearing)
        made.append(Membership("n", node, lambda _: None))
        await node.start()
        stack.push_async_callback(node.stop)
        task = asyncio.create_task(made[0].run())
        stack.callback(task.cancel)
        return node, made[0]

    for cycle in ("first", "second"):
        async with AsyncExitStack() as stack:
            fleet = [await power_on(stack, address) for address in addresses]

            def complete(nodes: int, fleet: list[tuple[Node, Membership]] = fleet) -> bool:
                return all(n.listening and len(n.connections) == nodes for n, _ in fleet)

            await until(lambda: complete(0), "all listen")
            begin = time.monotonic()
            for _, member in fleet:
                for address in addresses:
                    if member.name_of(address) != member.link.name:
                        member.heard(address, True)
            await until(lambda: complete(COUNT - 1), "full membership")
            print(f"{cycle} start: {COUNT} nodes fully connected after "
                  f"{time.monotonic() - begin:.1f} s")  # fmt: skip
            for node, _ in fleet:
                assert node.statistics()["refused"] == {}
            assert most[0] <= membership.PARALLEL
            one, other = fleet[0][0], fleet[-1][0]
            assert await one.ping(other.name, PATIENCE) > 0
