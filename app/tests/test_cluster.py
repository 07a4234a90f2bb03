# SPDX-License-Identifier: Apache-2.0
"""What applications do in a cluster, with every release of Erlang that is here, both ways."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv6Address
from typing import Any, Literal

import pytest
from erlang import Erl, Release, a_real_epmd, in_each_release, in_oldest_and_newest, mapped
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE
from private_network import Network, in_private_network, until

from thicket.distribution import (
    CALLER,
    Atom,
    CallTimeoutError,
    DistributionError,
    Down,
    EncodeError,
    Exit,
    Mailbox,
    Node,
    NodeEvent,
    Pid,
    RemoteError,
    Request,
    Throw,
    jobs,
    mailbox,
)
from thicket.distribution.calling import RemoteTask
from thicket.distribution.etf import FrozenList, Reference, encode
from thicket.distribution.mailbox import NodeEvents


@asynccontextmanager
async def a_node(network: Network, name: str, number: int, **options: Any) -> AsyncIterator[Node]:
    chosen: dict[str, Any] = {
        "cookie": "secret",
        "port": 0,
        "tick_time": 3600,
        "setup_time": PATIENCE,
        "epmd_port": network.epmd_port,
        **options,
    }
    node = Node(name, address=network.address(number), **chosen)
    await node.start()
    try:
        await until(lambda: node.listening, "the node listens")
        await mapped(node)
        yield node
    finally:
        await node.stop()


@asynccontextmanager
async def with_erlang(
    network: Network, release: Release, **options: Any
) -> AsyncIterator[tuple[Node, Erl]]:
    """A node of ours and one of Erlang that know each other; what erl complains of fails."""
    async with (
        a_real_epmd(network),
        a_node(network, "py", 1, **options) as node,
        await Erl.start(network, "e", network.address(2), release=release) as erl,
    ):
        assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
        yield node, erl
        counters = node.statistics()
        assert (counters["unknown"], counters["undecodable"]) == (0, 0)
        assert not [line for line in erl.log if "ERROR" in line], erl.log


async def failure(attempt: Any) -> Any:
    with pytest.raises(DistributionError) as caught:
        await attempt
    return caught.value


def a_fault(words: str) -> None:
    try:
        _ = dict[str, int]()["missing"]
    except KeyError as error:
        raise ValueError(words) from error


# --- functions --------------------------------------------------------------------------------


@in_each_release
async def test_erlang_calls_python(network: Network, release: Release) -> None:
    async with with_erlang(network, release) as (node, erl):
        called: list[Any] = []

        @node.export("lists.sort")
        def sort(values: list[int]) -> list[int]:
            return sorted(values)

        @node.export("sensors.greet")
        async def greet(name: str, times: int = 1) -> str:
            caller = CALLER.get()
            called.append(caller)
            await asyncio.sleep(0.001)
            return f"hello {name}! " * times

        node.export("sensors.fail")(a_fault)

        @node.export("sensors.throws")
        def throws() -> None:
            raise Throw((Atom("oops"), 1))

        @node.export("sensors.odd")
        def odd() -> Any:
            return object()

        @node.export("sensors.slow", thread=True)
        def slow() -> int:
            time.sleep(0.01)
            return 7

        py = node.name
        assert await erl.eval(f"rpc:call('{py}', lists, sort, [[3,1,2]])") == [1, 2, 3]
        assert await erl.eval(f"erpc:call('{py}', lists, sort, [[3,1,2]])") == [1, 2, 3]
        assert await erl.eval(
            f"erpc:call('{py}', sensors, greet, [<<\"w\\x{{f6}}rld\"/utf8>>])"
        ) == ("hello wörld! ".encode())
        assert await erl.eval(f"rpc:call('{py}', sensors, greet, [\"you\", 2])") == (
            b"hello you! hello you! "
        )
        assert called[0].node == erl.name
        assert type(called[0].pid) is Pid
        assert await erl.eval(f"rpc:call('{py}', sensors, slow, [])") == 7
        assert await erl.eval(
            f"[rpc:yield(K) || K <- [rpc:async_call('{py}', lists, sort, [[I,1]]) || I <- [5,6]]]"
        ) == [[1, 5], [1, 6]]
        assert await erl.eval(f"rpc:block_call('{py}', lists, sort, [[2,1]])") == [1, 2]
        assert await erl.eval(f"erpc:multicall(['{py}', node()], lists, sort, [[2,1]])") == [
            (Atom("ok"), [1, 2]),
            (Atom("ok"), [1, 2]),
        ]
        assert await erl.eval(f"rpc:multicall(['{py}'], lists, sort, [[2,1]])") == ([[1, 2]], [])

        # Exceptions, as Erlang sees its own.
        caught = await erl.eval(
            f"try erpc:call('{py}', sensors, fail, [<<\"bad\">>]) catch C:R -> {{C, R}} end"
        )
        kind, (_, (tag, described), trace) = caught
        assert (kind, tag) == ("error", "python_exception")
        assert (described["type"], described["message"]) == (b"ValueError", b"bad")
        assert described["cause"]["type"] == b"KeyError"
        assert b"raise ValueError(words)" in described["traceback"]
        assert [frame[1] for frame in trace] == ["a_fault", "fail"]
        ask = f"try erpc:call('{py}', %s) catch C:R -> {{C, R}} end"
        assert await erl.eval(ask % "sensors, throws, []") == ("throw", ("oops", 1))
        assert await erl.eval(f"rpc:call('{py}', sensors, throws, [])") == ("oops", 1)
        kind, (_, reason, _) = await erl.eval(ask % "lists, sort, [[x]]")
        assert (kind, reason[0]) == ("error", "badarg")
        assert reason[1] == b"argument 1 (values): an integer was expected, not an atom"
        for wrong in ("lists, sort, []", 'os, cmd, ["id"]', "lists, sort, [1, 2]"):
            _, (_, reason, _) = await erl.eval(ask % wrong)
            assert reason == "undef"
        _, (_, (_, described), _) = await erl.eval(ask % "sensors, odd, []")
        assert described["type"] == b"EncodeError"

        # A cast, and one that goes the way of the shell's nl/1.
        before = len(called)
        assert await erl.eval(f"erpc:cast('{py}', sensors, greet, [<<\"x\">>])") == "ok"
        assert await erl.eval(f"rpc:cast('{py}', sensors, greet, [<<\"x\">>])") is True
        assert await erl.eval(f"rpc:eval_everywhere(['{py}'], sensors, greet, [<<\"x\">>])") == (
            "abcast"
        )
        await until(lambda: len(called) == before + 3, "all three have run")
        await until(lambda: not node.calls.jobs, "all have ended")


@in_each_release
async def test_python_calls_erlang(network: Network, release: Release) -> None:
    async with with_erlang(network, release) as (node, erl):
        e = erl.name
        assert await node.call(e, "lists.sort", [3, 1, 2]) == [1, 2, 3]
        assert await node.call(e, "erlang.node") == e
        assert await node.call(e, "erlang.byte_size", "grün") == 5
        # Everything there is, there and back.
        values = [0, -(1 << 300), 1.5, b"x", True, None, [], (), {Atom("k"): [1, (2,)]}, Atom("é")]
        values += [await node.call(e, "erlang.self"), await node.call(e, "erlang.make_ref")]
        for value in values:
            answer = await node.call(e, "erlang.hd", [value])
            assert (type(answer), answer) == (type(value), value)
        # What a function prints neither blocks nor fails.
        assert await node.call(e, "io.format", b"~p~n", [[1, 2]]) == "ok"
        assert await node.call(e, "io.put_chars", b"text") == "ok"

        error = await failure(node.call(e, "erlang.error", Atom("boom")))
        assert (error.code, error.kind, error.reason) == ("error", "error", "boom")
        assert error.stack[0][:2] == ("erlang", "error")
        error = await failure(node.call(e, "erlang.throw", 7))
        assert (error.code, error.reason) == ("throw", 7)
        error = await failure(node.call(e, "erlang.exit", Atom("bye")))
        assert (error.code, error.reason) == ("exit", "bye")
        error = await failure(node.call(e, "lists.nothing", 1))
        assert error.code == "undefined"
        assert "lists.nothing" in str(error)
        error = await failure(node.call(e, "erlang.binary_to_atom", 1))
        assert error.code == "bad-argument"
        with pytest.raises(EncodeError, match="no form"):
            await node.call(e, "lists.sort", object())
        with pytest.raises(ValueError, match=r"module\.function"):
            await node.call(e, "lists")

        # A time limit ends the function there, and so does a cancellation.
        waits = "length([P || P <- processes(), {current_function, {timer, sleep, 1}} == "
        waits += "process_info(P, current_function)])"
        with pytest.raises(CallTimeoutError, match=r"timer\.sleep .* 0\.1 seconds"):
            await node.call(e, "timer.sleep", 3_600_000, timeout=0.1)
        await erl.until(waits, 0)
        task = asyncio.create_task(node.call(e, "timer.sleep", 60000, timeout=None))
        await erl.until(waits, 1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        await erl.until(waits, 0)
        # Cancelled before the other side has even answered.
        for _ in range(20):
            spawned = await node.spawn(e, "timer.sleep", 60000)
            assert spawned.cancel()
            assert not spawned.cancel()
        await erl.until(waits, 0)
        spawned = await node.spawn(e, "lists.seq", 1, 3)
        assert await spawned == [1, 2, 3]
        assert spawned.done()
        await node.cast(
            e, "erlang.register", Atom("me"), await node.call(e, "erlang.whereis", Atom("init"))
        )
        many = await asyncio.gather(*(node.call(e, "erlang.abs", -i) for i in range(500)))
        assert many == list(range(500))
        assert not [p for p in node.processes() if isinstance(p, RemoteTask)]


@in_private_network
async def test_functions_among_ourselves(network: Network) -> None:
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:
        for node in (a, b):

            @node.export("math.double")
            async def double(x: float | int) -> float:
                return x * 2

            node.export("sensors.fail")(a_fault)
            node.export("any.echo")(lambda *values: list(values))

        assert a.exports() == ["any.echo", "math.double", "sensors.fail"]
        text = ["grün", b"gr\xfc", {"k": (1, [None, True]), b"k": 1.0}, Atom("a"), a.pid, 1 << 99]
        for peer in (a.name, b.name):  # a node may call itself
            assert await a.call(peer, "math.double", 21) == 42
            assert await a.call(peer, "any.echo", *text) == text
            assert list(map(type, await a.call(peer, "any.echo", *text))) == list(map(type, text))
            error = await failure(a.call(peer, "sensors.fail", "why"))
            assert (error.code, error.type) == ("error", "ValueError")
            assert str(error) == f"ValueError: why (in sensors.fail on {peer})"
            assert "a_fault" in error.remote_traceback
            cause = error.__cause__
            assert isinstance(cause, RemoteError)
            assert (cause.type, cause.__cause__) == ("KeyError", None)
            error = await failure(a.call(peer, "sensors.fail", 1))
            assert error.code == "bad-argument"
            assert "argument 1 (words): text" in str(error)
            assert (await failure(a.call(peer, "os.system", "id"))).code == "undefined"

        # The error of a call inside a call is its cause.
        @b.export("chain.on")
        async def on(peer: str) -> Any:
            return await b.call(peer, "sensors.fail", "deep")

        error = await failure(a.call(b.name, "chain.on", a.name))
        assert error.type == "RemoteError"
        assert error.__cause__.type == "KeyError" or error.remote_traceback
        a.unexport("math.double")
        assert (await failure(b.call(a.name, "math.double", 1))).code == "undefined"


@in_private_network
async def test_cancellation_crosses_the_wire(network: Network) -> None:
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:
        events: list[str] = []

        @b.export("work.long")
        async def long() -> None:
            events.append("begun")
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                events.append("cancelled")
                raise

        for how in ("cancel", "timeout", "spawn", "disconnect"):
            events.clear()
            spawned = await a.spawn(b.name, "work.long")
            await until(lambda: events == ["begun"], "the function runs")
            if how == "timeout":
                limit = 0.05
                while len(events) < 2:  # until one has begun before its time was up
                    with pytest.raises(CallTimeoutError):
                        await a.call(b.name, "work.long", timeout=limit)
                    limit *= 2
                await until(lambda: "cancelled" in events, "the call that took too long")
                spawned.cancel()
            elif how == "cancel":
                waiting = asyncio.create_task(a.call(b.name, "work.long"))
                await until(lambda: len(events) == 2, "the second one runs")
                waiting.cancel()
                await until(lambda: "cancelled" in events, "the cancelled task")
                spawned.cancel()
            elif how == "spawn":
                spawned.cancel()
            else:
                a.disconnect(b.name)
                assert (await failure(asyncio.wait_for(spawned, PATIENCE))).code == "disconnected"
            await until(lambda: not b.calls.jobs, f"all is cancelled after {how}")
            assert events[-1] == "cancelled"
            await until(lambda: bool(a.nodes()) == bool(b.nodes()), "both agree")
        # Cancelled on the side where it runs, the caller learns of it.
        spawned = await a.spawn(b.name, "work.long")
        await until(lambda: b.calls.jobs, "it runs")
        b.calls.stop()
        error = await failure(asyncio.wait_for(spawned, PATIENCE))
        assert (error.code, error.reason) == ("exit", "killed")


@in_private_network
async def test_calls_are_bounded(network: Network) -> None:
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:

        @b.export("work.wait")
        async def wait() -> None:
            await asyncio.sleep(3600)

        tasks = [await a.spawn(b.name, "work.wait") for _ in range(jobs.MAX_JOBS_PER_NODE)]
        await until(lambda: len(b.calls.jobs) == jobs.MAX_JOBS_PER_NODE, "all run")
        assert (await failure(a.call(b.name, "work.wait"))).code == "system-limit"
        tasks[0].cancel()
        await until(lambda: len(b.calls.jobs) < jobs.MAX_JOBS_PER_NODE, "one has ended")
        tasks[0] = await a.spawn(b.name, "work.wait")
        await until(lambda: len(b.calls.jobs) == jobs.MAX_JOBS_PER_NODE, "there was room")
        assert b.calls.refused == 1


@in_private_network
async def test_arguments_are_checked_by_annotation(network: Network) -> None:
    async with a_node(network, "a", 1) as a:

        @a.export("check.all")
        def check(  # noqa: PLR0917
            i: int,
            f: float,
            s: str,
            b: bytes,
            t: bool,
            n: None,
            xs: list[float],
            pair: tuple[int, str],
            many: tuple[int, ...],
            d: dict[str, int],
            maybe: int | None,
            mode: Literal["on", "off"],
            atom: Atom,
        ) -> list[Any]:
            return [i, f, s, b, t, n, xs, pair, many, d, maybe, mode, atom]

        good: list[Any] = [1, 2, b"gr\xc3\xbcn", b"\xff", True, None, [1, 2.5], [1, "x"], [1, 2]]
        good += [{Atom("k"): 1, "l": 2}, None, Atom("on"), True]
        made = await a.call(a.name, "check.all", *good)
        assert made == [
            *(1, 2.0, "grün", b"\xff", True, None, [1.0, 2.5], (1, "x"), (1, 2)),
            *({"k": 1, "l": 2}, None, "on", True),
        ]
        assert type(made[1]) is float
        wrong: list[Any] = [True, "1", b"\xff", "text", 1, 0, [b"1"], (1,), (1, "x"), {1: 1}]
        wrong += [1.5, "maybe", "on"]
        for number, value in enumerate(wrong):
            error = await failure(
                a.call(a.name, "check.all", *good[:number], value, *good[number + 1 :])
            )
            assert error.code == "bad-argument", (number, error)
            assert f"argument {number + 1} (" in str(error)
            assert error.stack[0][:2] == ("check", "all")
        assert (await failure(a.call(a.name, "check.all", 1))).code == "undefined"
        with pytest.raises(TypeError, match="keyword"):

            @a.export("check.keyword")
            def keyword(*, x: int) -> None: ...

        for bad in (Node, "NotThere", set[int]):

            def function(x: Any) -> None: ...

            function.__annotations__["x"] = bad
            with pytest.raises(TypeError, match=r"no type|cannot be read"):
                a.export("check.bad")(function)
        with pytest.raises(ValueError, match="exported already"):
            a.export("check.all")(check)
        with pytest.raises(TypeError, match="thread"):
            a.export("check.thread", thread=True)(failure)


# --- processes --------------------------------------------------------------------------------


@in_each_release
async def test_messages_and_signals_with_erlang(network: Network, release: Release) -> None:
    async with with_erlang(network, release) as (node, erl):
        py, e = node.name, erl.name
        box = node.mailbox("inbox")
        # To registered names and pids, both ways, in order.
        await erl.eval(f"[{{inbox, '{py}'}} ! {{self(), I}} || I <- lists:seq(1, 300)], ok")
        got = [await box.get() for _ in range(300)]
        assert [number for _, number in got] == list(range(1, 301))
        shell = got[0][0]
        await erl.eval("register(shell, self())")
        for i in range(300):
            await node.send(shell if i % 2 else ("shell", e), (Atom("m"), i), sender=box)
        assert await erl.eval(
            "[receive {m, I} -> I after 5000 -> none end || I <- lists:seq(0, 299)]"
        ) == list(range(300))

        # gen_server:call to us, and by us, to one that is not there as well.
        asking = asyncio.create_task(
            erl.eval(f"gen_server:call({{inbox, '{py}'}}, {{add, 1, 2}}, 5000)")
        )
        request = await box.get()
        assert isinstance(request, Request)
        assert request.request == ("add", 1, 2)
        assert request.sender.node == e
        request.reply(3)
        assert await asking == 3
        assert await node.request(("net_kernel", e), (Atom("is_auth"), Atom(py))) == "yes"
        assert (await failure(node.request(("nobody", e), 1))).code == "noproc"
        assert (await failure(node.request(("shell", e), 1, timeout=0.1))).code == "timeout"
        await erl.eval("receive {'$gen_call', _, 1} -> ok after 5000 -> none end")

        # An alias, and none any more.
        alias = box.alias()
        await node.send(("shell", e), (Atom("alias"), alias))
        send = "receive {alias, A} -> put(a, A), A ! one, ok after 5000 -> none end"
        assert await erl.eval(send) == "ok"
        assert await box.get() == "one"
        box.drop_alias(alias)
        await erl.eval(f"get(a) ! two, {{inbox, '{py}'}} ! three")
        assert await box.get() == "three"

        # Watching each other.
        await erl.eval("P = spawn(fun() -> receive X -> exit(X) end end), register(victim, P), P")
        victim = await erl.eval("whereis(victim)")
        by_name, by_pid = box.watch(("victim", e)), box.watch(victim)
        gone = box.watch(("nobody", e))
        assert await box.get() == Down(gone, "nobody", "noproc")
        unwatched = box.watch(victim)
        box.unwatch(unwatched)
        await node.send(victim, Atom("tired"))
        downs = {await box.get(), await box.get()}
        assert downs == {Down(by_name, "victim", "tired"), Down(by_pid, victim, "tired")}
        other = node.mailbox("other")
        await erl.eval(
            f"M = monitor(process, {{other, '{py}'}}), put(m, M), {{other, '{py}'}} ! self()"
        )
        await other.get()
        other.close(Atom("finished"))
        assert (
            await erl.eval(
                f"M = get(m), receive {{'DOWN', M, process, {{other, '{py}'}}, R}} -> R "
                "after 5000 -> none end"
            )
            == "finished"
        )

        # Links: theirs ends, ours ends, one that was taken back, one to nobody.
        await erl.eval("process_flag(trap_exit, true)")
        linked = await erl.eval("spawn(fun() -> receive X -> exit(X) end end)")
        box.link(linked)
        await erl.until(f"length(element(2, process_info({pid_text(linked)}, links)))", 1)
        await node.send(linked, Atom("over"))
        assert await box.get() == Exit(linked, Atom("over"), True)
        box.link(linked)
        assert await box.get() == Exit(linked, Atom("noproc"), True)
        alive = await erl.eval("spawn(fun() -> receive X -> exit(X) end end)")
        box.link(alive)
        box.unlink(alive)
        box.link(alive)
        box.unlink(alive)
        await node.send(alive, Atom("unheard"))
        await erl.until(f"is_process_alive({pid_text(alive)})", False)
        await node.ping(e, PATIENCE)
        assert len(box) == 0
        assert not box.unlinking
        temporary = node.mailbox()
        temporary.link(shell)
        await erl.until("length(element(2, process_info(self(), links))) > 0", True)
        temporary.close(Atom("ours"))
        assert (
            await erl.eval(
                "receive {'EXIT', P, R} when node(P) =/= node() -> R after 5000 -> none end"
            )
            == "ours"
        )

        # exit/2, both ways.
        box.exit(shell, Atom("please"))
        assert await erl.eval("receive {'EXIT', _, please} -> ok after 5000 -> none end") == "ok"
        await node.send(shell, box.pid)
        await erl.eval("B = receive P -> P end, put(b, B), exit(B, why), exit(B, normal), ok")
        assert await box.get() == Exit(shell, Atom("why"), False)
        await erl.eval("exit(get(b), kill)")
        await until(lambda: box.closed, "killed")
        assert (await failure(box.get())).code == "closed"
        assert node.whereis("inbox") is None

        # The same signals with a trace token, which we drop.
        traced = node.mailbox("traced")
        node.export("any.echo")(lambda *values: list(values))
        answering = asyncio.create_task(answer(traced))
        assert await erl.eval(
            "seq_trace:set_token(label, 17), seq_trace:set_token(send, true),"
            f"To = {{traced, '{py}'}}, To ! self(), receive Box -> Box ! direct end,"
            f"E = erpc:call('{py}', any, echo, [1]), link(Box), unlink(Box), exit(Box, soft),"
            "seq_trace:set_token([]), E"
        ) == [1]
        await answering
        assert await traced.get() == "direct"
        assert (await traced.get()).reason == "soft"
        traced.close()

        # Processes of exported coroutines, started from Erlang.
        ended = asyncio.Event()

        @node.export("worker.run")
        async def run(word: Atom) -> None:
            if word == "fail":
                raise ValueError("no")
            try:
                await asyncio.sleep(0.01 if word == "short" else 3600)
            finally:
                ended.set()

        spawn = f"element(2, element(2, {{ok, spawn_monitor('{py}', worker, run, [%s])}}))"
        wait = "M = %s, receive {'DOWN', M, _, _, R} -> R after 5000 -> none end"
        assert await erl.eval(wait % spawn % "short") == "normal"
        reason = await erl.eval(wait % spawn % "fail")
        assert reason[0][0] == "python_exception"
        ended.clear()
        pid = await erl.eval(f"P = spawn_link('{py}', worker, run, [long]), put(w, P), P")
        assert pid.node == py
        await until(lambda: node.calls.jobs, "it runs")
        await erl.eval("exit(get(w), stop)")
        await asyncio.wait_for(ended.wait(), PATIENCE)
        assert await erl.eval("receive {'EXIT', _, R} -> R after 5000 -> none end") == "stop"
        assert await erl.eval(
            f"R = erlang:spawn_request('{py}', os, getpid, [], [monitor]),"
            "receive {spawn_reply, R, S, W} -> {S, W} after 5000 -> none end"
        ) == ("error", "notsup")


async def answer(box: Mailbox) -> None:
    """Send whoever writes its own pid the mailbox's."""
    box.send(await box.get(), box.pid)


def pid_text(pid: Pid) -> str:
    """Return an expression for a pid of the node that evaluates it."""
    return f"c:pid(0, {pid.id}, {pid.serial})"


@in_each_release
async def test_kill_on_either_side_and_node_events(network: Network, release: Release) -> None:
    async with with_erlang(network, release) as (node, erl):
        events = node.monitor()
        assert await events.get() == NodeEvent("up", erl.name)

        async def look_once() -> weakref.ref[NodeEvents]:
            left = node.monitor()
            async for event in left:
                assert event == NodeEvent("up", erl.name)
                break
            await until(lambda: left.closed, "leaving the loop closed it")
            return weakref.ref(left)

        kept = await look_once()
        gc.collect()
        assert kept() is None, "the node has let go of it"
        assert not events.closed
        box = node.mailbox()
        shell = await erl.eval("self()")
        reference = box.watch(shell)
        box.link(shell)
        waiting = asyncio.create_task(node.call(erl.name, "timer.sleep", 60000, timeout=None))
        await node.ping(erl.name, PATIENCE)
        erl.signal(signal.SIGKILL)
        event = await asyncio.wait_for(events.get(), PATIENCE)
        assert (event.kind, event.name, event.code) == ("down", erl.name, "closed")
        assert (await failure(waiting)).code == "closed"
        assert {await box.get(), await box.get()} == {
            Down(reference, shell, "noconnection"),
            Exit(shell, Atom("noconnection"), True),
        }
        assert (await failure(node.send(shell, 1))).code in ("unreachable", "closed")
        events.close()
        assert (await failure(events.get())).code == "closed"
        kept = weakref.ref(events)
        del events
        gc.collect()
        assert kept() is None


@in_each_release
async def test_groups_with_erlang(network: Network, release: Release) -> None:
    async with with_erlang(network, release) as (node, erl):
        py = node.name
        await erl.eval("pg:start(pg), ok")
        erl_members = "[node(P) || P <- pg:get_members(%s)]"
        # Ours is known there, theirs here; also what joined before the other side had pg.
        ours = node.mailbox()
        node.join("sensors", ours)
        node.join(("a", 1), ours)
        await erl.until(erl_members % "sensors", [py])
        await erl.until(erl_members % '{<<"a">>, 1}', [py])
        await erl.eval(
            "pg:join(sensors, self()), pg:join(sensors, self()), pg:join(theirs, self())"
        )
        await until(lambda: len(node.members("sensors")) == 3, "both joins of erl are known")
        await until(lambda: node.members("theirs"), "the other group, too")
        assert (
            sorted(map(str, node.scope().groups()))
            == sorted(["sensors", "theirs", "(Atom('a'), 1)"], key=str)
            or len(node.scope().groups()) == 3
        )
        # Messages to the group, both ways.
        assert await node.publish("sensors", (Atom("reading"), 21.5)) == 3
        assert await ours.get() == ("reading", 21.5)
        assert await erl.eval(
            "[receive {reading, T} -> T after 5000 -> none end || _ <- [1, 2]]"
        ) == [21.5, 21.5]
        await erl.eval("[P ! {hello, node()} || P <- pg:get_members(sensors)], flush")
        assert await ours.get() == ("hello", erl.name)
        await erl.eval("pg:leave(sensors, self())")
        await until(lambda: len(node.members("sensors")) == 2, "one leave")
        assert node.leave("sensors", ours)
        assert not node.leave("sensors", ours)
        await erl.until(f"lists:member('{py}', {erl_members % 'sensors'})", False)
        # A member that ends has left everything.
        ours.close()
        await erl.until('pg:get_members({<<"a">>, 1})', [])
        # The scope there ends and begins anew.
        async with node.subscribe("again") as subscription:
            await erl.until(erl_members % "again", [py])
            await erl.eval("gen_server:stop(pg), pg:start(pg), ok")
            await until(lambda: not node.members("theirs"), "their members are gone")
            await erl.until(erl_members % "again", [py])
            await erl.eval("[P ! 1 || P <- pg:get_members(again)], ok")
            async for message in subscription:
                assert message == 1
                break
        await erl.until("pg:get_members(again)", [])
        # Both again after the connection was lost.
        node.join("sensors", node.mailbox())
        await erl.eval("pg:join(theirs, self())")
        await until(lambda: node.members("theirs"), "known")
        node.disconnect(erl.name)
        assert node.members("theirs") == []
        await erl.until("pg:get_members(sensors)", [])
        await node.connect(erl.name)
        await until(lambda: node.members("theirs"), "known again")
        await erl.until(erl_members % "sensors", [py])


@in_each_release
async def test_global_neither_waits_nor_disconnects(network: Network, release: Release) -> None:
    """With the defaults of Erlang, prevent_overlapping_partitions among them."""
    async with (
        a_real_epmd(network),
        a_node(network, "py", 1) as node,
        await Erl.start(network, "e", network.address(2), release=release) as one,
        await Erl.start(network, "f", network.address(3), release=release) as two,
    ):
        for erl in (one, two):
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
        assert await one.eval(f"net_adm:ping('{two.name}')") == "pong"
        # Without our answers global waits for ever.
        for _ in range(3):
            assert await one.eval("global:sync()") == "ok"
        assert await one.eval("global:register_name(n, self())") == "yes"
        assert await two.eval("node(global:whereis_name(n))") == one.name
        assert await one.eval("global:set_lock({l, self()})") is True
        assert await one.eval("global:trans({k, self()}, fun() -> 1 end)") == 1
        assert await one.eval("global:sync()") == "ok"
        # One link of ours is lost: everybody else stays connected.
        node.disconnect(one.name)
        await one.until(f"lists:member('{node.name}', nodes())", False)
        for erl in (one, two):  # each has done by then what it would do about it
            assert await erl.eval("global:sync()") == "ok"
        assert node.name in await two.eval("nodes()")
        assert two.name in await one.eval("nodes()")
        await node.connect(one.name)
        assert await one.eval("global:sync()") == "ok"
        assert await two.eval("global:sync()") == "ok"
        assert sorted(await one.eval("nodes()")) == sorted([node.name, two.name])
        for erl in (one, two):
            assert not [line for line in erl.log if "ERROR" in line], erl.log


# --- size and speed of others -----------------------------------------------------------------


@in_oldest_and_newest
async def test_large_messages_delay_nobody(network: Network, release: Release) -> None:
    """10 MB and 100 MB both ways; meanwhile pings are answered and ticks are kept."""
    size = 100_000_000
    async with (
        a_real_epmd(network),
        a_node(network, "py", 1, tick_time=3600, max_message=size + 1000) as node,
        await Erl.start(network, "e", network.address(2), release=release, tick_time=3600) as erl,
    ):
        await node.connect(erl.name)
        events = node.monitor(current=False)
        box = node.mailbox("box")
        pings: list[float] = []

        async def ping() -> None:
            while True:
                pings.append(await node.ping(erl.name, PATIENCE))
                await asyncio.sleep(0.01)

        pinging = asyncio.create_task(ping())
        for length in (10_000_000, size):
            data = bytes(range(250)) * (length // 250)
            assert await node.call(erl.name, "erlang.byte_size", data, timeout=PATIENCE) == length
            digest = await node.call(erl.name, "erlang.md5", data, timeout=PATIENCE)
            await erl.eval(
                f"Big = binary:copy(list_to_binary(lists:seq(0, 249)), {length // 250}),"
                f"{{box, '{node.name}'}} ! Big, {{box, '{node.name}'}} ! erlang:md5(Big), ok"
            )
            assert await box.get() == data
            assert await box.get() == digest
        # A small message of the same sender stays behind the large one, of another one does not.
        await erl.eval("register(shell, self())")
        other = node.mailbox()
        connection = node.connections[erl.name]
        box.send(("shell", erl.name), (Atom("large"), data))
        box.send(("shell", erl.name), Atom("after"))
        other.send(("shell", erl.name), Atom("quick"))
        assert connection.busy
        order = "receive {large, _} -> large; X -> X after 60000 -> none end"
        found = [await erl.eval(order) for _ in range(3)]
        assert found.index("large") < found.index("after")
        assert found[0] == "quick"
        pinging.cancel()
        assert pings
        assert max(pings) < 60, max(pings)
        assert await nothing_in(events)
        assert [info.name for info in node.nodes()] == [erl.name]


async def nothing_in(events: NodeEvents) -> bool:
    """Tell whether no event was put into these that was not taken out."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0):
            await events.get()
            return False
    return True


@asynccontextmanager
async def holding(seconds: float) -> AsyncIterator[Callable[[float], None]]:
    """Let full mailboxes stop reading for so long; what is handed out sets another time."""
    before = mailbox.MAX_HOLD

    def hold(seconds: float) -> None:
        mailbox.MAX_HOLD = seconds

    hold(seconds)
    try:
        yield hold
    finally:
        hold(before)


@in_private_network
async def test_a_full_mailbox_makes_the_sender_wait(network: Network) -> None:
    async with (
        # For longer than this takes on any machine, and in the end for a moment.
        holding(600.0) as hold,
        a_node(network, "a", 1, tick_time=600) as a,
        a_node(network, "b", 2, tick_time=600) as b,
    ):
        box = b.mailbox("box", limit=10)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await a.send(("box", b.name), bytes(10_000))
                sent += 1

        flooding = asyncio.create_task(flood())
        await until(lambda: len(box) == 10, "it is full")
        before = -1
        while sent != before:  # until the sender stands still
            before = sent
            await asyncio.sleep(0.2)
        assert len(box) == 10
        assert box.dropped == 0
        for _ in range(100):
            assert len(await box.get()) == 10_000
        assert box.dropped == 0
        # Nobody takes anything out: after a while the oldest go, and the connection stays usable.
        hold(1.0)
        for _ in range(20):  # begins to fill again
            await box.get()
        await until(lambda: box.dropped > 100, "dropped")
        assert len(box) == 10
        assert await a.ping(b.name, PATIENCE) > 0
        flooding.cancel()
        assert [info.name for info in a.nodes()] == [b.name]
        # A mailbox of this node itself does the same to senders here.
        own = a.mailbox("own", limit=2)
        await a.send(("own", a.name), 1)
        await a.send(("own", a.name), 2)
        third = asyncio.create_task(a.send(("own", a.name), 3))
        await asyncio.sleep(0.01)
        assert not third.done()
        assert [await own.get(), await own.get(), await own.get()] == [1, 2, 3]
        assert third.done()


@in_private_network
async def test_processes_of_one_node(network: Network) -> None:
    async with a_node(network, "a", 1) as a:
        one, two = a.mailbox("one"), a.mailbox("two")
        await a.send(("two", a.name), {"text": b"bytes"})
        assert await two.get() == {"text": b"bytes"}
        await a.send(one.pid, [1])
        assert await one.get() == [1]
        reference = one.watch(("two", a.name))
        one.link(two.pid)
        asking = asyncio.create_task(a.request(("one", a.name), "question"))
        request = await one.get()
        request.reply("answer")
        assert await asking == "answer"
        alias = one.alias()
        await a.send(alias, 5)
        assert await one.get() == 5
        two.close(Atom("done"))
        assert {await one.get(), await one.get()} == {
            Down(reference, "two", Atom("done")),
            Exit(two.pid, Atom("done"), True),
        }
        assert one.watch(("two", a.name)) is not None
        assert (await one.get()).reason == "noproc"
        one.link(two.pid)
        assert await one.get() == Exit(two.pid, Atom("noproc"), True)
        away = "x@fd12::99" if network.private else "x@::1"
        assert one.watch(("n", away)) is not None
        assert (await one.get()).reason == "noconnection"
        with pytest.raises(ValueError, match="registered already"):
            a.mailbox("one")
        with pytest.raises(ValueError, match="at least one"):
            a.mailbox(limit=0)
        assert (await failure(a.request(("two", a.name), 1))).code == "noproc"
        subscription = a.subscribe("g")
        assert await a.publish("g", FrozenList([1])) == 1
        assert await subscription.get() == [1]
        one.close()
        assert [message async for message in one] == []


@in_private_network
async def test_the_end_of_a_node_ends_who_waits(network: Network) -> None:
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:
        await a.connect(b.name)
        events, box = a.monitor(), a.mailbox()
        seen = []

        async def collect() -> None:
            async for event in events:
                seen.append((event.kind, event.name, event.code))

        tasks = [asyncio.create_task(collect()), asyncio.create_task(box.get())]
        await until(lambda: seen, "the first event")
        await a.stop()
        done, _ = await asyncio.wait(tasks, timeout=PATIENCE)
        assert done == set(tasks)
        assert seen == [("up", b.name, ""), ("down", b.name, "stopped")]
        assert isinstance(tasks[1].exception(), DistributionError)


CONTROLS = st.lists(
    st.one_of(
        st.integers(-1, 40),
        st.sampled_from(["pid", "other", "reference", "name", "mfa", "options"]),
        st.binary(max_size=4),
    ),
    min_size=1,
    max_size=6,
)


@given(st.lists(st.tuples(st.integers(1, 37), CONTROLS, st.binary(max_size=12)), max_size=8))
@settings(max_examples=300, deadline=None)
def test_arbitrary_signals_do_no_harm(signals: list[tuple[int, list[Any], bytes]]) -> None:
    """Whatever a peer that knows the cookie sends: it is counted, and the node goes on."""

    class Peer:
        name = "x@::1"
        heard = used = 0.0

        def __init__(self) -> None:
            self.sent = 0

        def has(self, flag: int) -> bool:
            return True

        def send(self, control: Any, payload: Any = None, *, more: bool = False) -> None:
            encode(control)
            self.sent += 1

        def hold(self, holder: object) -> None: ...

        def release(self, holder: object) -> None: ...

    async def run() -> None:
        node = Node("a", "c", IPv6Address("::1"), 0, epmd_port=None)
        node.export("m.f")(lambda *values: list(values))
        box, scope, peer = node.mailbox("name", limit=5), node.scope(), Peer()
        meanings: dict[Any, Any] = {
            "pid": box.pid,
            "other": Pid(Atom("x@::1"), 1, 2, 3),
            "reference": Reference(Atom("x@::1"), 1, (1, 2, 3)),
            "name": Atom("name"),
            "mfa": (Atom("erpc"), Atom("execute_call"), 4),
            "options": [Atom("monitor"), Atom("link")],
        }
        for operation, rest, raw in signals:
            control = (operation, *(meanings.get(item, item) for item in rest))
            for payload in (None, raw, encode(tuple(control))[1:]):
                node.on_message(peer, control, payload)  # type: ignore[arg-type]
                scope.on_message(peer, control)  # type: ignore[arg-type]
        assert len(box) <= 5 + 3 * len(signals)
        for process in node.processes():
            process.on_disconnect(peer, DistributionError("closed", ""))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await node.stop()

    asyncio.run(run())


@in_oldest_and_newest
async def test_three_nodes_stay_whole_under_load(network: Network, release: Release) -> None:
    """Two of Erlang and one of Python call, send and publish to each other. The time is that of
    THICKET_SOAK in seconds (the ten minutes are for a person to ask for); ticks, which would tell
    how busy the machine is, have an hour."""
    import os

    seconds = float(os.environ.get("THICKET_SOAK", "5"))
    async with (
        a_real_epmd(network),
        a_node(network, "py", 1, tick_time=3600) as node,
        await Erl.start(network, "e", network.address(2), release=release, tick_time=3600) as one,
        await Erl.start(network, "f", network.address(3), release=release, tick_time=3600) as two,
    ):

        @node.export("load.sum")
        async def total(values: list[int]) -> int:
            return sum(values)

        peers = (one, two)
        for erl in peers:
            assert await erl.eval(f"net_adm:ping('{node.name}')") == "pong"
            await erl.eval("pg:start(pg), pg:join(load, self()), ok")
        assert await one.eval(f"net_adm:ping('{two.name}')") == "pong"
        events = node.monitor(current=False)
        box = node.subscribe("load", limit=100)
        load = (
            f"[put(p, spawn(fun F() -> 55 = erpc:call('{node.name}', load, sum, "
            "[lists:seq(1, 10)]), [P ! {load, self(), rand:bytes(3000)} || "
            f"P <- pg:get_members(load), node(P) == '{node.name}'], F() end)) || _ <- [1, 2]], ok"
        )
        for erl in peers:
            await erl.eval(load)
        end = time.monotonic() + seconds
        counts = {"received": 0, "calls": 0}

        async def receive() -> None:
            async for _ in box:
                counts["received"] += 1

        receiving = asyncio.create_task(receive())
        while time.monotonic() < end or min(counts.values()) <= 100:
            for erl in peers:
                numbers = list(range(300, 200, -1))
                assert await node.call(erl.name, "lists.sort", numbers) == numbers[::-1]
                counts["calls"] += 1
        receiving.cancel()
        assert box.dropped == 0
        assert await nothing_in(events)
        assert len(node.nodes()) == 2
        for erl, others in ((one, [node.name, two.name]), (two, [node.name, one.name])):
            assert sorted(await erl.eval("nodes()")) == sorted(others)
            assert await erl.eval("is_process_alive(get(p))") is True
            assert not [line for line in erl.log if "ERROR" in line], erl.log
