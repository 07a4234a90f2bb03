# SPDX-License-Identifier: Apache-2.0
"""Nodes with different tick times: who ticks when, who is asked, and who is given up.

Time is virtual and the wire is in memory; in the last tests the wire is real, and both ends have
virtual time. :class:`Stock` is a second implementation of what a node of Erlang does
(net_kernel.erl, "tick"): it sends a tick in each quarter of its tick time in which it sent nothing
else, never answers one, and gives up a peer that was not heard in four of them.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import pytest
from erlang import Erl, Release, a_real_epmd, in_each_release, mapped
from patience import PATIENCE
from private_network import Network, until
from told import Told
from virtual_time import Ahead

from thicket.base.fields import Integer
from thicket.cluster.section import ClusterSection
from thicket.distribution import Atom, Node, frames, handshake
from thicket.distribution.connection import ANSWER_AFTER, TICK_INTENSITY, Beat, Connection
from thicket.distribution.etf import Pid, Reference, encode_bare
from thicket.distribution.events import NodeDown
from thicket.distribution.frames import FrameReader, MessageReader
from thicket.distribution.handshake import ABILITIES, Acceptor, Initiator, LocalNode

HERE, THERE = IPv6Address("fd12::1"), IPv6Address("fd12::2")
HOUR = 3600.0
DELAY = 0.002


class Wire(asyncio.Transport):
    """One end of a connection in memory; ``deliver`` takes the bytes at the other end."""

    def __init__(self, address: IPv6Address, deliver: Callable[[bytes], None]) -> None:
        super().__init__()
        self.address = address
        self.deliver = deliver
        self.ended: Callable[[], None] = lambda: None
        self.sent: list[bytes] = []
        self.cut = self.closed = False
        self.reading = True
        self._on_the_way: deque[bytes] = deque()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return (str(self.address), 1, 0, 0) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False  # what comes waits in the connection's buffer

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))
        if not self.cut:
            self._on_the_way.append(bytes(data))
            # of timers for one moment any may be the first
            asyncio.get_running_loop().call_later(DELAY, self._arrives)

    def _arrives(self) -> None:
        self.deliver(self._on_the_way.popleft())

    def close(self) -> None:
        self.cut = self.closed = True
        asyncio.get_running_loop().call_soon(self.ended)

    abort = close


class Stock:
    """A node that is not ours, at the other end of a connection of ``node``.

    :param tick_time: its ``net_ticktime``; None: it never ticks and never gives up.
    :param answers: its runtime answers monitors of what does not exist.
    :param tocks: it answers every tick with one, as nodes of C and Java do.
    :param alive: the part of its name before ``@``.
    """

    def __init__(
        self,
        node: Node,
        tick_time: float | None,
        *,
        flags: int = ABILITIES & ~handshake.TEXT | handshake.PUBLISHED,
        answers: bool = True,
        tocks: bool = False,
        alive: str = "stock",
    ) -> None:
        self.given_up = False
        self.mute = False
        self.asked = 0
        self.heard = self.spoke = True
        self._silent = 0
        self._answers, self._tocks = answers, tocks
        self.name = f"{alive}@{THERE}"
        self._machine = Acceptor(LocalNode(self.name, "secret", 4, flags), lambda _: "ok")
        self._reader = FrameReader(1 << 20)
        self._messages = MessageReader(header=bool(flags & handshake.FRAGMENTS))
        self.connection = Connection(
            node, Initiator(node.local, self.name), tick_time=node.tick_time
        )
        self.wire = Wire(THERE, self._receive)  # of ours
        self.wire.ended = lambda: self.connection.connection_lost(None)
        self.connection.connection_made(self.wire)
        if tick_time is not None:
            self._tick_later(tick_time / 4)

    def say(self, data: bytes) -> None:
        if self.mute or self.given_up:
            return
        self.spoke = True
        asyncio.get_running_loop().call_later(DELAY, _put, self.connection, self.wire, data)

    def send(self, control: tuple[Any, ...], payload: bytes) -> None:
        self.say(b"".join(frames.build(encode_bare(control), payload, header=True)))

    def _tick_later(self, interval: float) -> None:
        asyncio.get_running_loop().call_later(interval, self._tick, interval)

    def _tick(self, interval: float) -> None:
        self._silent = 0 if self.heard else self._silent + 1
        self.heard = False
        if self._silent >= 4:
            self.given_up = True
            return
        if not self.spoke:
            self.say(frames.TICK)
        self.spoke = False
        self._tick_later(interval)

    def _receive(self, data: bytes) -> None:
        self.heard = True
        if not self._machine.done:
            self._machine.receive(data)
            self.say(self._machine.take())
            data, self._machine.rest = self._machine.rest, b""
        self._reader.push(data)
        while (frame := self._reader.take()) is not None:
            if not frame:
                if self._tocks:
                    self.say(frames.TICK)
                continue
            message = self._messages.feed(frame)
            assert message is not None
            control = message[0]
            if control[0] == frames.MONITOR_P:
                self.asked += 1
                _, watcher, item, reference = control
                assert type(watcher) is Pid
                assert type(reference) is Reference
                if self._answers:
                    down = (frames.PAYLOAD_MONITOR_P_EXIT, item, watcher, reference)
                    self.send(down, encode_bare(Atom("noproc")))


def _put(connection: Connection, wire: Wire, data: bytes) -> None:
    """Let ``connection`` read ``data`` from its ``wire``."""
    while data and not wire.closed:
        room = connection.get_buffer(-1)
        size = min(len(room), len(data))
        room[:size] = data[:size]
        connection.buffer_updated(size)
        data = data[size:]


class Ours:
    """Two nodes of ours with a connection in memory."""

    def __init__(self, tick_times: tuple[float, float]) -> None:
        self.a, self.b = (
            a_node(tick_time, address, name)
            for tick_time, address, name in zip(tick_times, (HERE, THERE), "ab", strict=True)
        )

        accepting = self.b.accept()
        assert isinstance(accepting, Connection)
        self.ends = (
            Connection(self.a, Initiator(self.a.local, self.b.name), tick_time=self.a.tick_time),
            accepting,
        )
        self.wires = (
            Wire(THERE, lambda data: _put(self.ends[1], self.wires[1], data)),
            Wire(HERE, lambda data: _put(self.ends[0], self.wires[0], data)),
        )
        for wire, end in zip(self.wires, self.ends, strict=True):
            wire.ended = lambda end=end: end.connection_lost(None)  # type: ignore[misc]
        for end, wire in zip(reversed(self.ends), reversed(self.wires), strict=True):
            end.connection_made(wire)


def a_node(tick_time: float, address: IPv6Address = HERE, name: str = "a") -> Node:
    told = Told()
    node = Node(name, "secret", address, tick_time=tick_time, epmd_port=None, listener=told)
    node.told = told  # type: ignore[attr-defined]
    return node


def losses(node: Node) -> list[str]:
    told: Told = node.told  # type: ignore[attr-defined]
    return [event.code for event in told.of(NodeDown)]


async def up(*nodes: Node) -> None:
    await asyncio.sleep(0.1 + 10 * DELAY)
    assert all(len(node.nodes()) == 1 for node in nodes)


@pytest.mark.virtual_time
@pytest.mark.parametrize("ours", [4.0, 15.0, 60.0, 600.0])
@pytest.mark.parametrize("theirs", [1.0, 4.0, 15.0, 60.0, 600.0])
async def test_every_two_tick_times_live_together(ours: float, theirs: float) -> None:
    node = a_node(ours)
    stock = Stock(node, theirs)
    await up(node)
    defaults = (ours, theirs) == (15.0, 60.0)
    await asyncio.sleep(5 * HOUR if defaults else 6 * max(ours, theirs))
    assert not stock.given_up
    assert losses(node) == []
    assert [info.name for info in node.nodes()] == [stock.name]


@pytest.mark.virtual_time
@pytest.mark.parametrize("pause", [0.1, 0.9, 2.5])
async def test_a_peer_that_only_sends_hears_of_us_in_time(pause: float) -> None:
    """It sends no ticks, of which we could learn how often it expects ours."""
    node = a_node(600.0)
    stock = Stock(node, 4.0)
    await up(node)
    sender = Pid(Atom(stock.name), 9, 0, 4)
    for _ in range(round(300 / pause)):
        stock.send((frames.REG_SEND, sender, Atom(""), Atom("nobody")), encode_bare(Atom("hi")))
        await asyncio.sleep(pause)
    assert not stock.given_up
    # What it is answered with is little.
    assert len(stock.wire.sent) < 300 * 4 + 10


@pytest.mark.virtual_time
async def test_who_answers_nothing_is_given_up_within_a_tick_time_and_a_quarter() -> None:
    for number in range(20):  # at any point of the interval
        node = a_node(15.0)
        stock = Stock(node, 60.0)
        await up(node)
        await asyncio.sleep(HOUR + number / 3)
        asked = stock.asked
        stock.mute = True
        loop = asyncio.get_running_loop()
        begin = loop.time()
        heard = stock.connection.heard
        while not losses(node):
            await asyncio.sleep(0.05)
            assert loop.time() < begin + 19
        assert losses(node) == ["silent"]
        assert 15 <= loop.time() - heard <= 15 * 1.25 + 0.1
        assert stock.asked <= asked + 1


@pytest.mark.virtual_time
async def test_a_node_of_ours_that_stands_still_is_found_as_soon() -> None:
    pair = Ours((15.0, 15.0))
    await up(pair.a, pair.b)
    await asyncio.sleep(HOUR)
    heard = pair.ends[0].heard
    pair.wires[1].cut = True  # nothing of b's arrives any more
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while not losses(pair.a):
        await asyncio.sleep(0.05)
        assert loop.time() < begin + 19
    assert 15 <= loop.time() - heard <= 15 * 1.25 + 0.1


@pytest.mark.virtual_time
@pytest.mark.parametrize("tick_times", [(15.0, 15.0), (15.0, 600.0), (4.0, 60.0)])
async def test_our_own_are_never_answered_with_ticks(
    tick_times: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a long way, answers would be answered without end. Who ticks more slowly is asked."""
    monkeypatch.setattr(sys.modules[__name__], "DELAY", 0.7)
    pair = Ours(tick_times)
    await up(pair.a, pair.b)
    before = [len(wire.sent) for wire in pair.wires]
    await asyncio.sleep(HOUR)
    assert losses(pair.a) == losses(pair.b) == []
    most = HOUR / (min(tick_times) / TICK_INTENSITY) + 2
    for wire, count in zip(pair.wires, before, strict=True):
        later = wire.sent[count:]
        assert set(later) == {frames.TICK} or tick_times[0] != tick_times[1]
        assert later.count(frames.TICK) <= most


@pytest.mark.virtual_time
async def test_one_wake_up_serves_all_connections_of_a_node() -> None:
    node = a_node(15.0)
    stocks = []
    for pause, alive in ((0.0, "a1"), (1.0, "a2"), (2.5, "a3")):
        await asyncio.sleep(pause)
        stock = Stock(node, 15.0, flags=ABILITIES, alive=alive)
        stock.connection._beat = node._maker._beat
        stocks.append(stock)
    await asyncio.sleep(15.0)
    loop = asyncio.get_running_loop()
    times: list[set[float]] = []
    for stock in stocks:
        seen: set[float] = set()
        times.append(seen)

        def note(data: bytes, seen: set[float] = seen, wire: Wire = stock.wire) -> None:
            seen.add(loop.time())
            Wire.write(wire, data)

        stock.wire.write = note  # type: ignore[method-assign,assignment]
    await asyncio.sleep(HOUR)
    assert HOUR / 15 * TICK_INTENSITY - 2 <= len(times[0]) <= HOUR / 15 * TICK_INTENSITY + 2
    assert times[0] == times[1] == times[2]
    accepted = [node.accept() for _ in range(2)]
    assert {one._beat for one in accepted if isinstance(one, Connection)} == {node._maker._beat}


@pytest.mark.virtual_time
async def test_beats_end_with_the_last_connection() -> None:
    beat = Beat(4.0)

    class Heard:
        def __init__(self) -> None:
            self.count = 0

        def beat(self) -> None:
            self.count += 1
            if self.count == 3:  # as when it is given up
                beat.discard(self)  # type: ignore[arg-type]

    one, other = Heard(), Heard()
    beat.add(one)  # type: ignore[arg-type]
    await asyncio.sleep(1.5)
    beat.add(other)  # type: ignore[arg-type]
    await asyncio.sleep(1.0)
    assert (one.count, other.count) == (2, 1)
    await asyncio.sleep(HOUR)
    assert (one.count, other.count) == (3, 3)
    assert beat._timer is None


@pytest.mark.virtual_time
async def test_a_node_of_c_answers_ticks_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ABILITIES & ~(handshake.TEXT | handshake.DIST_MONITOR | handshake.DIST_MONITOR_NAME)
    monkeypatch.setattr(sys.modules[__name__], "DELAY", 0.7)
    node = a_node(15.0)
    stock = Stock(node, None, flags=flags, answers=False, tocks=True)
    await up(node)
    await asyncio.sleep(HOUR)
    assert losses(node) == []
    assert stock.asked == 0
    # Its answer is answered by no other.
    assert len(stock.wire.sent) <= HOUR / (15 / TICK_INTENSITY) + 10


@pytest.mark.virtual_time
async def test_a_full_mailbox_stops_nobody_for_longer_than_the_shortest_tick_time() -> None:
    """The system of a sender that has it ends a connection that takes nothing for so long."""
    key = ClusterSection.keys()["tick_time"]
    assert isinstance(key, Integer)
    shortest = float(key.least)
    pair = Ours((shortest, 600.0))
    await up(pair.a, pair.b)
    box = pair.b.mailbox("box", limit=2)
    reading = pair.wires[1]
    for number in range(3):
        await pair.a.send(("box", pair.b.name), number)
    await asyncio.sleep(0.1)
    assert not reading.reading
    await asyncio.sleep(shortest - 0.5)
    assert reading.reading
    assert losses(pair.a) == losses(pair.b) == []
    box.close()


# --- with Erlang ------------------------------------------------------------------------------


@in_each_release
async def test_the_question_is_answered_at_once_and_leaves_nothing_there(
    network: Network, release: Release
) -> None:
    """The other node ticks every 15 minutes: what is heard within one is the answer."""
    async with (
        a_real_epmd(network),
        await Erl.start(network, "e", network.address(2), release=release, tick_time=3600) as erl,
    ):
        node = Node(
            "py", "secret", network.address(1), 0, epmd_port=network.epmd_port, tick_time=3600
        )
        await node.start()
        await mapped(node)
        await node.connect(erl.name, PATIENCE)
        await erl.until("nodes()", [node.name])
        connection = node.connections[erl.name]
        state = "[erlang:system_info(K) || K <- [process_count, port_count, atom_count]]"
        for _ in range(2):  # what it evaluates makes atoms the first time
            await erl.eval(state)
        before = await erl.eval(state)
        for _ in range(50):
            heard = connection.heard
            node.on_silence(connection)
            await until(lambda heard=heard: connection.heard > heard, "an answer")  # type: ignore[misc]
        after = await erl.eval(state)
        assert after[:2] == before[:2]
        assert after[2] <= before[2] + 1
        assert await erl.eval("erlang:whereis(undefined)") == "undefined"
        counters = node.statistics()
        assert (counters["unknown"], counters["undecodable"], counters["forged"]) == (0, 0, 0)
        assert not [line for line in erl.log if "ERROR" in line], erl.log
        await node.stop()


class Beside:
    """A node of ours with a connection to one of Erlang, and clocks that a test moves.

    Both have tick times of an hour or more, so that no clock judges how busy the machine is.
    """

    def __init__(self, node: Node, erl: Erl) -> None:
        self.node, self.erl = node, erl
        self._ahead = Ahead()
        self._asked = 0
        self._ask = node.on_silence
        node.on_silence = self._count  # type: ignore[method-assign]

    def _count(self, connection: Connection) -> None:
        self._asked += 1
        self._ask(connection)

    async def ours(self) -> None:
        """Let a quarter of our tick time pass; return when what we sent is answered."""
        connection = self.node.connections[self.erl.name]
        received, heard, asked = await self.received(), connection.heard, self._asked
        await self._ahead.pass_by(self.node.tick_time / TICK_INTENSITY)
        await self._arrives(received)
        if self._asked > asked:
            await until(lambda: connection.heard > heard, "the answer")

    async def theirs(self) -> None:
        """Let a quarter of their tick time pass; return when their tick is answered."""
        connection = self.node.connections[self.erl.name]
        received, heard = await self.received(), connection.heard
        await self._ahead.pass_by(ANSWER_AFTER)
        await self.erl.quarter()
        await until(lambda: connection.heard > heard, "their tick")
        await self._arrives(received)

    async def _arrives(self, received: int) -> None:
        """Wait until the other node has received more than that."""
        async with asyncio.timeout(PATIENCE):
            while await self.received() == received:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def received(self) -> int:
        return await self.erl.received(self.node.name)


@in_each_release
async def test_erlang_with_another_tick_time_stays(network: Network, release: Release) -> None:
    """A longer and a shorter one; ten times the shorter one passes.

    ``make soak`` watches a stock node by the clock on the wall: test_article_device.py.
    """
    short, long = 3600, 36000

    async def watch(name: str, number: int, ours: int, theirs: int) -> None:
        told = Told()
        node = Node(
            f"py{number}",
            "secret",
            network.address(number),
            0,
            epmd_port=network.epmd_port,
            tick_time=ours,
            listener=told,
        )
        await node.start()
        async with await Erl.start(
            network, name, network.address(number + 1), release=release, tick_time=theirs
        ) as erl:
            await mapped(node)
            await node.connect(erl.name, PATIENCE)
            await erl.until("nodes()", [node.name])
            await erl.eval(f"put(watch, erlang:monitor_node('{node.name}', true))")
            await erl.quarter()  # in which it wrote something else than ticks
            pair = Beside(node, erl)
            for _ in range(10 * TICK_INTENSITY):
                await (pair.ours() if ours == short else pair.theirs())
            assert not told.of(NodeDown)
            assert await erl.eval("receive {nodedown, _} -> lost after 0 -> none end") == "none"
            await erl.until("nodes()", [node.name])
        await node.stop()

    async with a_real_epmd(network):
        await watch("f", 1, short, long)
        await watch("g", 3, long, short)
