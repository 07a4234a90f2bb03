# SPDX-License-Identifier: Apache-2.0
"""Text, the empty one above all, on its way to nodes that are not ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from erlang import Release, in_each_release
from patience import PATIENCE
from private_network import Network, in_private_network, until
from test_cluster import a_node, with_erlang

from thicket.distribution import EncodeError, Node, RemoteError, handshake


def export_texts(node: Node) -> None:
    """Export functions whose results and errors hold empty texts."""

    @node.export("e.text")
    def text() -> Any:
        return "", b""

    @node.export("e.without_words")
    def without_words() -> None:
        raise AssertionError

    @node.export("e.late")
    async def late() -> None:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    @node.export("e.same_keys")
    def same_keys() -> Any:
        return {"a": 1, b"a": 2}


@in_each_release
async def test_an_empty_text_leaves_the_connection_to_erlang_whole(
    network: Network, release: Release
) -> None:
    async with with_erlang(network, release) as (node, erl):
        export_texts(node)
        connected = f"lists:member('{node.name}', nodes())"
        assert await erl.eval(f"erpc:call('{node.name}', e, text, [])") == (b"", b"")
        for function, kind in (("without_words", b"AssertionError"), ("late", b"TimeoutError")):
            found = await erl.eval(
                f"try erpc:call('{node.name}', e, {function}, [])"
                " catch error:{exception, {python_exception, #{type := T, message := M}}, _}"
                " -> {T, M} end"
            )
            assert found == (kind, b"")
        await erl.eval("register(t, self()), ok")
        await node.send(("t", erl.name), {"name": ""})
        got = await erl.eval('receive #{<<"name">> := <<>>} -> got after 60000 -> lost end')
        assert got == "got"
        assert await node.call(erl.name, "erlang.byte_size", "") == 0
        assert await erl.eval(connected) is True
        assert not [line for line in erl.log if "corrupt" in line]


async def check(node: Node, peer: Node, empty: str | bytes) -> None:
    """Check in which form ``node`` gets the texts of ``peer``."""
    assert await node.call(peer.name, "e.text") == (empty, b"")
    async with node.mailbox("box") as box:
        ways: list[Callable[[], Awaitable[Any]]] = [
            lambda: peer.send(("box", node.name), [""]),
            lambda: peer.send(box.pid, [""]),
            lambda: peer.publish("g", [""]),
        ]
        node.join("g", box)
        await until(lambda: peer.members("g"), "the group is known there")
        async with asyncio.timeout(PATIENCE):
            for way in ways:
                await way()
                assert await box.get() == [empty]

    @node.export("e.got")
    def got(value: Any) -> bool:
        return bool(value == empty)

    assert await peer.call(node.name, "e.got", "") is True


@in_private_network
async def test_only_nodes_of_ours_are_sent_text_in_a_form_of_its_own(network: Network) -> None:
    async with a_node(network, "other", 1) as other, a_node(network, "py", 2) as ours:
        for node in (other, ours):
            export_texts(node)
            node.scope()
        # What a stock node says of itself.
        other.local = other.local._replace(flags=other.local.flags & ~handshake.TEXT)
        await ours.connect(other.name)
        await check(other, ours, b"")
        with pytest.raises(EncodeError, match="two keys of a map"):
            await ours.call(other.name, "e.got", {"a": 1, b"a": 2})
        with pytest.raises(RemoteError, match="two keys of a map"):
            await other.call(ours.name, "e.same_keys")
        async with a_node(network, "third", 3) as third:
            export_texts(third)
            third.scope()
            await ours.connect(third.name)
            await check(third, ours, "")
