# SPDX-License-Identifier: Apache-2.0
"""Our node among real Erlang nodes (Debian's ``erl``) and among its own kind."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from ipaddress import IPv6Address
from typing import Any

import epmd_names
import pytest
from erlang import Erl, a_real_epmd, mapped
from patience import PATIENCE
from private_network import Network, in_private_network, until
from told import Told
from virtual_time import Ahead

from thicket.distribution import (
    DistributionError,
    HandshakeError,
    Node,
    connection,
    connector,
    epmd,
    handshake,
    processes,
)
from thicket.distribution.connection import TICK_INTENSITY, Connection
from thicket.distribution.etf import Atom
from thicket.distribution.events import (
    Connecting,
    MemberDown,
    MemberUp,
    NodeDown,
    NodeUp,
    ProblemBegan,
    ProblemEnded,
    Refused,
    Suspected,
)

SERVICES = ("net_kernel", "rex", "logger_proxy", "logger", "thicket_membership", "thicket_casts")


def registered(node: processes.ProcessTable, name: str) -> processes.Process:
    """Return the process that has ``name`` on ``node``."""
    process = node.whereis(name)
    assert process is not None
    return process


class Sink(processes.Process):
    """Keeps what it is sent."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.messages: list[Any] = []

    def on_message(self, connection: Connection | None, message: Any) -> None:
        self.messages.append(message)


@asynccontextmanager
async def a_node(
    network: Network, name: str, address: IPv6Address, **options: Any
) -> AsyncIterator[tuple[Node, Told]]:
    """Run a node."""
    events = Told()
    settings: dict[str, Any] = {
        "cookie": "secret",
        "port": 0,
        "tick_time": 3600,
        "setup_time": PATIENCE,
        "epmd_port": network.epmd_port,
        **options,
    }
    node = Node(name, address=address, listener=events, **settings)
    await node.start()
    try:
        yield node, events
    finally:
        await node.stop()


def names(node: Node) -> list[str]:
    return [info.name for info in node.nodes() if info.state == "up"]


async def refusal(attempt: Any) -> DistributionError:
    """Return the error that ``attempt`` raises."""
    with pytest.raises(DistributionError) as caught:
        await attempt
    return caught.value


# --- with Erlang ------------------------------------------------------------------------------


@in_private_network
async def test_erlang_finds_us_by_our_port_mapper(network: Network) -> None:
    async with a_node(network, "py", network.address(1)) as (node, events):
        await mapped(node)
        async with await Erl.start(network, "e", network.address(2)) as erl:
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
            await erl.until("nodes()", [node.name])
            await until(lambda: names(node) == [erl.name], "the node lists erl")
            assert events.of(NodeUp) == [NodeUp(erl.name)]
            assert await node.ping(erl.name, PATIENCE) > 0
            assert node.statistics()["accepted"] == 1

            # Whatever a stock node may ask is answered, long before the asker would give up.
            ask = (
                "{Time, Value} = timer:tc(fun() -> catch %s end),"
                "{Time < 50000000, case Value of {'EXIT', {Why, _}} -> Why; _ -> Value end}"
            )
            quick, answer = await erl.eval(
                ask % f"rpc:call('{node.name}', lists, sort, [[2,1]], 200000)"
            )
            assert quick
            assert answer[0] == "badrpc"
            # rpc shows its caller's view: an exit with the reason and the stack of the callee.
            assert answer[1][0] == "EXIT"
            assert answer[1][1][0] == "undef"
            quick, answer = await erl.eval(
                ask % f"erpc:call('{node.name}', lists, sort, [[2,1]], 200000)"
            )
            assert quick
            assert answer == (
                "exception",
                "undef",
                [("lists", "sort", [[2, 1]], [])],
            )
            for call in (
                f"gen_server:call({{nobody,'{node.name}'}}, hello, 200000)",
                f"gen_server:call({{global_name_server,'{node.name}'}}, hello, 200000)",
            ):
                quick, answer = await erl.eval(ask % call)
                assert quick
                assert answer == "noproc"
            quick, answer = await erl.eval(
                ask % f"gen_server:call({{net_kernel,'{node.name}'}}, nonsense, 200000)"
            )
            assert (quick, answer) == (True, ("error", "notsup"))
            quick, answer = await erl.eval(
                ask
                % f"gen_server:call({{rex,'{node.name}'}}, {{call,lists,sort,[[]],self()}}, 200000)"
            )
            assert quick
            assert answer[0] == "badrpc"
            assert await erl.eval(
                f"{{rex,'{node.name}'}} ! {{self(), features_request}},"
                f"receive {{features_reply, N, F}} -> {{N, F}} after 5000 -> none end"
            ) == (node.name, ["erpc"])
            # spawn/4 is refused and tells its caller by the way of its kind.
            assert await erl.eval(
                f"R = erlang:spawn_request('{node.name}', lists, sort, [[]], [monitor]),"
                "receive {spawn_reply, R, Status, Why} -> {Status, Why} after 5000 -> none end"
            ) == ("error", "notsup")

            # Links: one to a process that never was ends at once, one to a service stays until
            # it is taken back, which the runtime waits for.
            rex = await erl.eval(
                "process_flag(trap_exit, true),"
                f"M = erlang:monitor(process, {{rex,'{node.name}'}}), erlang:demonitor(M, [flush]),"
                f"{{rex,'{node.name}'}} ! {{self(), features_request}},"
                "receive {features_reply, _, _} -> ok end"
            )
            assert rex == "ok"
            pid = registered(node, "rex").pid
            node.register("pid_sender", PidSender(node))
            assert (
                await erl.eval(
                    f"{{pid_sender,'{node.name}'}} ! self(),"
                    "receive {pids, Dead, Alive} -> link(Dead), put(alive, Alive), link(Alive) end,"
                    "receive {'EXIT', Dead, noproc} -> Alive after 5000 -> none end"
                )
                == pid
            )
            await until(lambda: registered(node, "rex").links, "the link is known")
            assert (
                await erl.eval(
                    "unlink(get(alive)), receive {'EXIT', _, _} -> exit after 0 -> none end"
                )
                == "none"
            )
            await until(lambda: not registered(node, "rex").links, "the link is gone")

            # Erlang's global neither waits for us nor disconnects us.
            assert await erl.eval("global:trans({lock, self()}, fun() -> done end)") == "done"
            await erl.until("nodes()", [node.name])
            assert await erl.eval(f"erlang:monitor_node('{node.name}', true)") is True
            assert node.statistics()["unknown"] == 0
            assert node.statistics()["undecodable"] == 0
            await node.stop()
            assert (
                await erl.eval(
                    f"receive {{nodedown, '{node.name}'}} -> down after 5000 -> none end"
                )
                == "down"
            )
            assert events.of(NodeDown)[0].code == "stopped"
            # Nothing that erl took for a fault of ours; its log would say so.
            assert not [line for line in erl.log if "ERROR" in line], erl.log


class PidSender(processes.Process):
    """Answers a pid with one of a process that does not exist and that of rex."""

    def on_message(self, connection: Connection | None, message: Any) -> None:
        dead, alive = self.node.new_pid(), registered(self.node, "rex").pid
        self.node.send_to(connection, self.pid, message, (Atom("pids"), dead, alive))


@in_private_network
async def test_we_find_erlang_by_a_real_epmd(network: Network) -> None:
    """We register with an epmd that has the port, and take its place when it goes away."""
    async with (
        a_real_epmd(network) as daemon,
        a_node(network, "py", network.address(1)) as (node, _),
    ):
        await mapped(node)
        assert node.statistics()["epmd"]["registered_at"] is not None
        async with await Erl.start(network, "e", network.address(2)) as erl:
            assert await epmd_names.names("::1", port=network.epmd_port) == {
                "py": node.port,
                "e": await epmd.lookup("::1", "e", port=network.epmd_port),
            }
            await node.connect(erl.name)
            await erl.until("nodes()", [node.name])
            assert await node.ping(erl.name, PATIENCE) > 0
            # The other direction, from scratch.
            assert node.disconnect(erl.name)
            await erl.until("nodes()", [])
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
            daemon.kill()
            await daemon.wait()
            await until(lambda: node.statistics()["epmd"]["served"], "the node answers as epmd")
            assert names(node) == [erl.name]  # connections do not depend on it


@in_private_network
async def test_a_fixed_port_without_any_port_mapper(network: Network) -> None:
    port = network.port()
    address = network.address(1)
    ours = port if network.private else 0
    async with (
        await Erl.start(network, "e", network.address(2), fixed_port=port) as erl,
        a_node(network, "py", address, port=ours, epmd_port=None, published=False) as (node, _),
    ):
        if not network.private:  # both have one address, and only one can have the port
            node.port = port
        await node.connect(erl.name)
        await erl.until("{nodes(), nodes(hidden)}", ([], [node.name]))
        if network.private:
            node.disconnect(erl.name)
            await erl.until("nodes(hidden)", [])
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
            assert names(node) == [erl.name]


@in_private_network
async def test_a_wrong_cookie_is_refused_both_ways_with_a_reason(network: Network) -> None:
    async with (
        a_real_epmd(network),
        a_node(network, "py", network.address(1)) as (node, events),
    ):
        await mapped(node)
        async with await Erl.start(network, "e", network.address(2), cookie="other") as erl:
            error = await refusal(node.connect(erl.name))
            assert error.code == "wrong-cookie"
            assert "cookie" in str(error)
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pang"
            await until(lambda: events.of(Refused), "the refusal is told")
            refused = events.of(Refused)[0]
            assert (refused.code, refused.name) == ("wrong-cookie", erl.name)
            assert refused.source == str(network.address(2))
            assert node.statistics()["refused"] == {"wrong-cookie": 1}
            assert node.nodes() == []
            assert await erl.eval("nodes()") == []
            # And with the right one all is well.
            await erl.eval("erlang:set_cookie(secret)")
            await node.connect(erl.name)
            await erl.until("nodes()", [node.name])


@in_private_network
async def test_a_silent_node_of_erlang_is_given_up(network: Network) -> None:
    """That ticks keep an idle connection: test_ticks.py."""
    tick = 3600
    async with (
        a_real_epmd(network),
        a_node(network, "py", network.address(1), tick_time=tick) as (node, events),
        await Erl.start(network, "e", network.address(2), tick_time=tick) as erl,
    ):
        await mapped(node)
        await node.connect(erl.name)
        await erl.until("nodes()", [node.name])
        await erl.freeze()
        ahead = Ahead()
        for _ in range(TICK_INTENSITY):
            assert not events.of(NodeDown)
            await ahead.pass_by(tick / TICK_INTENSITY)
        # What it had sent last may have been read in the first of them.
        if not events.of(NodeDown):
            await ahead.pass_by(tick / TICK_INTENSITY)
        assert events.of(NodeDown)[0].code == "silent"
        assert node.nodes() == []
        erl.signal(signal.SIGCONT)
        await erl.until("nodes()", [])  # we closed it


@in_private_network
async def test_a_killed_node_is_noticed_at_once(network: Network) -> None:
    async with (
        a_real_epmd(network),
        a_node(network, "py", network.address(1)) as (node, events),
    ):
        await mapped(node)
        async with await Erl.start(network, "e", network.address(2)) as erl:
            await node.connect(erl.name)
            waiting = asyncio.create_task(node.request(("init", erl.name), "nothing", PATIENCE))
            await asyncio.sleep(0)
            erl.signal(signal.SIGKILL)
            # The tick time is an hour; the closed connection tells it.
            await until(lambda: events.of(NodeDown), "the end of erl is noticed")
            assert events.of(NodeDown)[0].code == "closed"
            assert (await refusal(waiting)).code == "closed"
        async with await Erl.start(network, "e", network.address(2)) as erl:
            await node.ping(erl.name, PATIENCE)


@in_private_network
async def test_simultaneous_connects_end_in_one_connection(network: Network) -> None:
    """With a name below and one above ours: the rule of who yields works both ways."""
    chance = random.Random(1)
    async with (
        a_real_epmd(network),
        a_node(network, "m", network.address(1)) as (node, events),
    ):
        await mapped(node)
        for name in ("a", "z"):
            before = node.statistics()["simultaneous"]
            rounds = 0
            delay = 0.001

            async def later(peer: str, delay: float) -> None:
                await asyncio.sleep(delay)
                await node.connect(peer)

            async with await Erl.start(network, name, network.address(2)) as erl:
                # Whether two connects really meet is chance, which the delay is steered to: later
                # when ours was there first, earlier when erl's was. Go on until some have.
                while rounds < 20 or node.statistics()["simultaneous"] < before + 3:
                    rounds += 1
                    assert rounds < 400, "the two never connected at the same time"
                    events.clear()
                    results = await asyncio.gather(
                        later(erl.name, delay * chance.uniform(0.7, 1.3)),
                        erl.eval(f"net_kernel:connect_node('{node.name}')"),
                    )
                    assert results[1] is True
                    assert names(node) == [erl.name]
                    assert len(node.connections) == 1
                    ours = isinstance(node.connections[erl.name].handshake, handshake.Initiator)
                    delay = min(max(delay * (1.25 if ours else 0.8), 0.00005), 0.05)
                    # The one that is left works in both directions.
                    assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
                    assert await node.ping(erl.name, PATIENCE) > 0
                    await erl.until("nodes()", [node.name])
                    assert len(events.of(NodeUp)) == 1
                    assert not events.of(NodeDown)
                    node.disconnect(erl.name)
                    await erl.until("nodes()", [])
        assert node.statistics()["refused"] == {}


@in_private_network
async def test_large_messages_mix_with_small_ones_and_too_large_ones_are_dropped(
    network: Network,
) -> None:
    async with (
        a_real_epmd(network),
        a_node(network, "py", network.address(1), tick_time=3600, max_message=12_000_000) as (
            node,
            events,
        ),
        await Erl.start(network, "e", network.address(2), tick_time=3600) as erl,
    ):
        await mapped(node)
        sink = Sink(node)
        node.register("sink", sink)
        await node.connect(erl.name)
        size = 10 * 1024 * 1024
        await erl.eval(
            f"To = {{sink, '{node.name}'}}, Big = binary:copy(<<42>>, {size}),"
            # Two senders, whose fragments mix, and small messages between.
            "[spawn(fun() -> To ! {I, Big} end) || I <- [1, 2]],"
            "[To ! {small, I} || I <- lists:seq(1, 100)], ok"
        )
        await until(lambda: len(sink.messages) == 102, "all messages arrive")
        big = [message for message in sink.messages if message[0] != "small"]
        assert sorted(number for number, _ in big) == [1, 2]
        assert all(data == b"*" * size for _, data in big)
        # Beyond the limit a message is dropped and counted; the connection stays.
        await erl.eval(
            f"{{sink, '{node.name}'}} ! binary:copy(<<1>>, 13000000),"
            f"{{sink, '{node.name}'}} ! last, ok"
        )
        await until(lambda: sink.messages[-1] == "last", "what follows arrives")
        assert len(sink.messages) == 103
        assert node.statistics()["discarded"] == 1
        assert names(node) == [erl.name]
        assert not events.of(NodeDown)


@in_private_network
async def test_a_restart_that_erlang_has_not_noticed(network: Network) -> None:
    """erl answers that it is connected already, and takes the new connection."""
    address = network.address(1)
    async with (
        a_real_epmd(network),
        await Erl.start(network, "e", network.address(2)) as erl,
        a_node(network, "py", address) as (node, events),
        a_node(network, "py", address) as (again, _),
    ):
        await node.connect(erl.name)
        await again.connect(erl.name)
        await until(lambda: events.of(NodeDown), "erl drops the old connection")
        assert await again.ping(erl.name, PATIENCE) > 0
        await erl.until("nodes()", [node.name])


# --- among ourselves --------------------------------------------------------------------------


@in_private_network
async def test_two_nodes_and_their_events(network: Network) -> None:
    port = network.port()
    async with (
        a_node(network, "a", network.address(1), port=port) as (a, a_events),
        a_node(network, "b", network.address(2), port=0 if not network.private else port) as (
            b,
            b_events,
        ),
    ):
        await until(lambda: a.listening and b.listening, "both listen")
        await mapped(a)
        await mapped(b)
        begin = time.clock_gettime(time.CLOCK_BOOTTIME)
        results = await asyncio.gather(*(a.ping(b.name, PATIENCE) for _ in range(5)))
        assert all(seconds > 0 for seconds in results)
        assert [(info.name, info.state) for info in a.nodes()] == [(b.name, "up")]
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert begin <= a.nodes()[0].since <= now
        assert a_events == [Connecting(b.name), NodeUp(b.name), MemberUp(b.name)]
        assert [type(event) for event in a_events] == [Connecting, NodeUp, MemberUp]
        assert [type(event) for event in b_events] == [NodeUp, MemberUp]
        assert a.disconnect(b.name, "tired of it")
        assert not a.disconnect(b.name)
        assert a_events[-2] == NodeDown(b.name, "disconnected", "tired of it")
        assert a_events[-1] == MemberDown(b.name, "disconnected", "tired of it")
        await until(lambda: b_events.of(NodeDown), "the other side notices")
        assert a.nodes() == b.nodes() == []
        assert set(a.processes()) == {registered(a, name) for name in SERVICES}  # no call is left


@in_private_network
async def test_many_simultaneous_connects_among_ourselves(network: Network) -> None:
    async with (
        a_node(network, "a", network.address(1)) as (a, a_events),
        a_node(network, "b", network.address(2)) as (b, b_events),
    ):
        await mapped(a)
        await mapped(b)
        for _ in range(100):
            await asyncio.gather(a.connect(b.name), b.connect(a.name))
            await until(lambda: names(a) and names(b), "both are up")
            assert await a.ping(b.name, PATIENCE) > 0
            assert await b.ping(a.name, PATIENCE) > 0
            a.disconnect(b.name)
            await until(lambda: not names(b), "both are down")
        # Each round made one connection, and no event told of more.
        assert len(a_events.of(NodeUp)) == len(b_events.of(NodeUp)) == 100
        assert {event.code for event in b_events.of(NodeDown)} == {"closed"}


@contextmanager
def lookups() -> Iterator[list[str]]:
    """Note the addresses whose port mapper is asked."""
    asked: list[str] = []

    async def lookup(host: str, name: str, **how: Any) -> int | None:
        asked.append(host)
        return await epmd.lookup(host, name, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connector, "lookup", lookup)
        yield asked


@in_private_network
async def test_the_port_mapper_is_asked_only_where_no_port_leads_to_the_node(
    network: Network,
) -> None:
    if not network.private:
        pytest.skip("needs several addresses, which this machine does not permit")
    common, other = network.port(), network.port() + 1
    stranger = await asyncio.start_server(
        lambda _reader, writer: writer.close(), str(network.address(4)), common
    )
    with lookups() as asked:
        async with (
            stranger,
            a_node(network, "a", network.address(1), port=common) as (a, _),
            a_node(network, "b", network.address(2), port=common) as (b, _),
            a_node(network, "d", network.address(4), port=other) as (d, _),
        ):
            async with a_node(network, "c", network.address(3), port=other) as (c, _):
                for node in (a, b, c, d):
                    await until(lambda: node.host in node.statistics()["epmd"]["served"], "served")  # noqa: B023
                await a.connect(b.name)
                assert asked == [], "both have the same port"
                # Nobody has our number at c; at d another program does.
                for node in (c, d):
                    for _ in range(3):
                        await a.connect(node.name)
                        a.disconnect(node.name)
                        await until(lambda: not names(node), "down")  # noqa: B023
                assert asked == [c.host, d.host], "then it is known"
            async with a_node(network, "c", network.address(3), port=common + 2) as (c, _):
                await until(lambda: c.host in c.statistics()["epmd"]["served"], "served")
                await a.connect(c.name)
                assert asked == [c.host, d.host, c.host], "it has another port than before"


@in_private_network
async def test_no_port_is_guessed_where_another_node_may_have_it(network: Network) -> None:
    port = network.port()
    async with (
        a_node(network, "a", network.address(1), port=port) as (a, _),
        a_node(network, "b", network.address(1)) as (b, _),
    ):
        await mapped(a)
        await mapped(b)
        await a.connect(b.name)
        assert a.statistics()["refused"] == {}, "it has not tried itself"
    if not network.private:
        return
    async with a_node(network, "c", network.address(2), port=port) as (c, _):
        served = {c.host, "::1"}
        await until(lambda: served <= set(c.statistics()["epmd"]["served"]), "d can register")
        async with (
            a_node(network, "d", network.address(2)) as (d, _),
            a_node(network, "a", network.address(1), port=port) as (a, events),
        ):
            await mapped(d)  # at c
            await a.connect(c.name)
            await a.connect(d.name)
            assert names(a) == [c.name, d.name]
            assert not events.of(NodeDown)
            assert c.statistics()["accepted"] == 1
            assert c.statistics()["abandoned"] == 0


@in_private_network
async def test_who_is_connecting_to_us_is_not_connected_as_well(network: Network) -> None:
    if not network.private:
        pytest.skip("needs two addresses, which this machine does not permit")
    port = network.port()
    async with (
        a_node(network, "a", network.address(1), port=port) as (a, _),
        a_node(network, "z", network.address(2), port=port) as (z, _),
    ):
        await until(lambda: a.listening and z.listening, "both listen")
        for one, other in ((a, z), (z, a)):
            _, writer = await asyncio.open_connection(one.host, port, local_addr=(other.host, 0))
            await until(lambda: one.statistics()["handshakes"] == 1, "it is there")  # noqa: B023
            attempt = asyncio.create_task(one.connect(other.name, PATIENCE))
            await asyncio.sleep(0.3)
            assert not attempt.done()
            assert other.statistics()["handshakes"] == 0
            writer.close()  # it was somebody else, or has changed its mind
            await attempt
            one.disconnect(other.name)
            await until(lambda: not names(a) and not names(z), "down")


@in_private_network
async def test_a_connection_that_only_we_believe_in_is_replaced(network: Network) -> None:
    async with (
        a_node(network, "a", network.address(1)) as (a, events),
        a_node(network, "b", network.address(2)) as (old, _),
        a_node(network, "b", network.address(2), epmd_port=None) as (new, _),
        a_node(network, "b", network.address(2), epmd_port=None, cookie="other") as (rogue, _),
    ):
        await mapped(old)
        await a.connect(old.name)
        new.port = rogue.port = a.port  # where to find it, as neither asks a port mapper
        # Without the cookie nothing happens to the connection there is.
        assert (await refusal(rogue.connect(a.name))).code == "wrong-cookie"
        assert await a.ping(old.name, PATIENCE) > 0
        assert not events.of(NodeDown)
        await new.connect(a.name)
        await until(lambda: len(events.of(NodeUp)) == 2, "the new connection is up")
        assert [event.code for event in events.of(NodeDown)] == ["replaced"]
        assert await a.ping(new.name, PATIENCE) > 0
        assert await new.ping(a.name, PATIENCE) > 0
        await until(lambda: not old.nodes(), "the old one is closed")


@in_private_network
async def test_the_address_may_come_late_and_go_for_a_while(network: Network) -> None:
    if not network.private:
        pytest.skip("needs a network namespace of its own, which this machine does not permit")
    address = IPv6Address("fd12:3456:789a:1::77")
    async with a_node(network, "late", address, port=9100) as (late, _):
        assert not late.listening
        async with a_node(network, "b", network.address(2), port=9100) as (b, _):
            assert (await refusal(b.connect(late.name))).code == "unreachable"
            network.add(address)
            await until(lambda: late.listening, "the node listens")
            await mapped(late)
            assert late.problems() == []
            await b.connect(late.name)
            b.disconnect(late.name)
            await until(lambda: not late.nodes(), "both are apart")
            network.remove(address)
            assert (await refusal(b.connect(late.name))).code == "unreachable"
            network.add(address)
            await b.connect(late.name)
            assert await late.ping(b.name, PATIENCE) > 0


@in_private_network
async def test_a_taken_port_is_a_problem_that_passes(network: Network) -> None:
    address = network.address(1)
    with socket.socket(socket.AF_INET6) as other:
        other.bind((str(address), 0))
        other.listen()
        port = other.getsockname()[1]
        async with a_node(network, "a", address, port=port) as (a, events):
            await until(a.problems, "the problem is told")
            assert a.problems()[0]["code"] == "port-taken"
            assert str(port) in a.problems()[0]["message"]
            other.close()
            await until(lambda: a.listening, "the node listens")
            assert a.problems() == []
            assert [type(event) for event in events] == [ProblemBegan, ProblemEnded]


@in_private_network
async def test_who_is_refused_and_why(network: Network) -> None:
    address = network.address(1)
    async with a_node(network, "a", address) as (a, events):
        await until(lambda: a.listening, "the node listens")

        async def attempt(data: bytes) -> bytes:
            reader, writer = await asyncio.open_connection(a.host, a.port)
            try:
                writer.write(data)
                async with asyncio.timeout(PATIENCE):
                    return await reader.read()
            finally:
                writer.close()

        def name_frame(name: bytes, flags: int) -> bytes:
            frame = b"N" + flags.to_bytes(8, "big") + bytes(4) + len(name).to_bytes(2, "big") + name
            return len(frame).to_bytes(2, "big") + frame

        full = a.local.flags
        for name, flags, code in (
            (b"x@fd12::9", full, b"wrong-source"),
            (b"x@FD12::0:9", full, b"wrong-source"),
            (b"x@fd12::9%lo", full, b"bad-name"),
            (b"x@" + a.host.encode(), 4, b"missing-flags"),
            (a.name.encode(), full, b"bad-name"),
        ):
            answer = await attempt(name_frame(name, flags))
            assert answer.startswith(b"\0\x0csnot_allowed")
            assert answer[16:].startswith(b"x" + code + b" ")
        assert await attempt(b"GET / HTTP/1.1\r\n\r\n") == b""
        assert a.statistics()["refused"] == {
            "wrong-source": 2,
            "bad-name": 2,
            "missing-flags": 1,
            "protocol": 1,
        }
        told = {event.code: event for event in events.of(Refused)}
        assert told["wrong-source"].name == "x@fd12::9"
        assert a.host in told["wrong-source"].message
        assert a.statistics()["handshakes"] == 0
    async with a_node(network, "a", address, setup_time=0.2) as (a, events):
        await until(lambda: a.listening, "the node listens")
        assert await attempt(b"\0\x01") == b""  # says nothing more
        assert a.statistics()["refused"] == {"timeout": 1}
        assert [event.source for event in events.of(Refused)] == [a.host]
        assert a.statistics()["handshakes"] == 0


@in_private_network
async def test_half_open_handshakes_are_limited(network: Network) -> None:
    async with a_node(network, "a", network.address(1)) as (a, _):
        await until(lambda: a.listening, "the node listens")
        streams = [await asyncio.open_connection(a.host, a.port) for _ in range(9)]
        async with asyncio.timeout(PATIENCE):
            assert await streams[0][0].read() == b""  # the oldest silent one
        assert a.statistics()["handshakes"] == 8
        assert a.statistics()["refused"] == {"too-many": 1}
        for _, writer in streams:
            writer.close()
        await until(lambda: a.statistics()["handshakes"] == 0, "all are forgotten")


@in_private_network
async def test_a_peer_that_does_not_read_is_given_up(network: Network) -> None:
    async with (
        a_node(network, "a", network.address(1)) as (a, events),
        a_node(network, "b", network.address(2)) as (b, _),
    ):
        await mapped(b)
        await a.connect(b.name)
        await until(lambda: names(b), "both are up")
        deaf = b.connections[a.name]
        deaf.hold(network)
        sender = a.connections[b.name]
        pid = registered(b, "rex").pid
        data = bytes(1024 * 1024)
        # One that waits does not fill memory...
        for _ in range(64):
            a.send_to(sender, a.new_pid(), pid, data)
            if sender._paused:
                break
        waiting = asyncio.create_task(sender.drain())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        deaf.release(network)
        await asyncio.wait_for(waiting, PATIENCE)
        # ...and one that does not wait is stopped.
        deaf.hold(network)
        for _ in range(64):
            a.send_to(sender, a.new_pid(), pid, data)
        assert events.of(NodeDown)[0].code == "stuck"
        await asyncio.wait_for(sender.drain(), PATIENCE)


@in_private_network
async def test_a_probe_finds_a_silent_node_sooner_than_ticks(network: Network) -> None:
    async with (
        a_node(network, "a", network.address(1), tick_time=3600) as (a, events),
        a_node(network, "b", network.address(2), tick_time=3600) as (b, _),
        a_node(network, "c", network.address(3), tick_time=3600) as (c, told),
    ):
        await mapped(b)
        await mapped(c)
        for one, other in ((a, b), (a, c), (c, b)):
            if not network.private and one is other:
                continue
            await one.connect(other.name)
        assert await a.probe(b.name, PATIENCE)
        a.share_suspicion(b.name)
        await until(lambda: told.of(Suspected), "the other node hears of it")
        assert told.of(Suspected) == [Suspected(b.name, a.name)]
        # A node that is slow is there: its kernel answers.
        b.connections[a.name].hold(network)
        assert await a.probe(b.name, PATIENCE)
        assert names(a) == sorted([b.name, c.name])
        if not network.private:
            pytest.skip("needs a network namespace of its own to cut a node off")
        network.remove(network.address(2))
        async with asyncio.timeout(PATIENCE):
            while await a.probe(b.name, 0.3):
                pass  # it has heard what was under way
        assert not events.of(NodeDown)
        a.give_up(b.name)
        assert events.of(NodeDown)[0].code == "lost"
        assert not await a.probe(b.name, 0.3)
        assert names(a) == [c.name]


@in_private_network
async def test_bytes_that_are_no_messages_end_the_connection(network: Network) -> None:
    async with (
        a_node(network, "a", network.address(1)) as (a, events),
        a_node(network, "b", network.address(2)) as (b, _),
    ):
        await mapped(b)
        for wire in (b"\xff\xff\xff\xff", b"\0\0\0\x02\x83\x44", b"\0\0\0\x04\x83\x44\0\x61"):
            await a.connect(b.name)
            await until(lambda: names(b), "both are up")
            transport = b.connections[a.name]._transport
            assert transport is not None
            events.clear()
            transport.write(wire)
            await until(lambda: events.of(NodeDown), f"{wire!r} is noticed")
            assert events.of(NodeDown)[0].code == "protocol"
            await until(lambda: not names(b), "both are down")
        # A message that can be framed but not understood is counted and does no harm.
        await a.connect(b.name)
        await until(lambda: names(b), "both are up")
        link = b.connections[a.name]
        link.send((99, 1, 2))
        link.send((19, 1, 2))
        link.send((19, 1, 2, 3))
        link.send((2, Atom(""), registered(a, "rex").pid), b"\x50garbage")
        assert await b.ping(a.name, PATIENCE) > 0
        assert a.statistics()["unknown"] == 3
        assert a.statistics()["undecodable"] == 1


@in_private_network
async def test_wrong_uses_are_told(network: Network) -> None:
    address = network.address(1)
    make: Callable[..., Node] = lambda name, cookie="c", **more: Node(  # noqa: E731
        name, cookie, address, **more
    )
    for arguments in (
        {"name": "has space"},
        {"name": "a", "cookie": ""},
        {"name": "a", "cookie": "€"},
        {"name": "a@fd12::ffff"},
        {"name": "a", "tick_time": 0},
    ):
        with pytest.raises(ValueError, match=r"."):
            make(**arguments)
    async with a_node(network, "a", address) as (a, _):
        with pytest.raises(RuntimeError):
            await a.start()
        itself = a.name.upper().replace("A@", "a@")  # in another spelling
        for name in ("b", "b@host", "b@fd12::1::", "b@fe80::1%lo", a.name, itself):
            error = await refusal(a.connect(name))
            assert isinstance(error, HandshakeError)
            assert error.code == "bad-name"
        error = await refusal(a.connect(f"nobody@{address}", timeout=PATIENCE))
        assert error.code in ("bad-name", "wrong-peer", "unreachable")
        assert a.nodes() == []


def test_the_defaults_are_those_of_erlang() -> None:
    """kernel(6): net_tickintensity 4, net_setuptime 7."""
    assert connection.TICK_INTENSITY == 4
    assert handshake.SETUP_TIME == 7
