# SPDX-License-Identifier: Apache-2.0
"""What nodes of Erlang, C and Java ask of every node, in all the forms that they use."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv6Address
from typing import Any

import pytest
from erlang import Release, in_each_release, tuple_of
from patience import PATIENCE
from private_network import Network, in_private_network, until
from test_cluster import a_node, failure, with_erlang

from thicket.distribution import Atom, DistributionError, Down, Node, RemoteError, Request
from thicket.distribution.ioformat import characters, formatted, term_text


class Kept(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[tuple[str, str]] = []
        logger = logging.getLogger("thicket.distribution")
        logger.addHandler(self)
        logger.setLevel(logging.DEBUG)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))

    def having(self, word: str) -> list[tuple[str, str]]:
        return [line for line in self.lines if word in line[1]]


def add(node: Node) -> None:
    @node.export("ex.add")
    def added(a: int, b: int) -> int:
        return a + b

    @node.export("ex.later")
    async def later(a: int) -> int:
        await asyncio.sleep(0)
        return a


@in_each_release
async def test_rex_answers_every_form_of_rpc_ei_and_java(
    network: Network, release: Release
) -> None:
    async with with_erlang(network, release) as (node, erl):
        add(node)
        py = f"'{node.name}'"

        async def old(request: str) -> Any:
            return await erl.eval(
                f"begin {{rex, {py}}} ! {{self(), {request}}},"
                " receive M -> M after 60000 -> none end end"
            )

        async with node.mailbox("box") as box, asyncio.timeout(PATIENCE):
            assert await erl.eval(f"rpc:sbcast([{py}], box, hello)") == ([node.name], [])
            assert await box.get() == "hello"
            assert await erl.eval(f"rpc:sbcast([{py}], nobody, hello)") == ([], [node.name])
            await erl.eval(f"rpc:abcast([{py}], box, spread)")
            assert await box.get() == "spread"
            for function, arguments, value in (("add", "[1,2]", 3), ("later", "[7]", 7)):
                found = await old(f"{{call, ex, {function}, {arguments}, user}}")
                assert found == ("rex", value)
            name, (word, (reason, _)) = await old("{call, nosuch, add, [1,2], user}")
            assert (name, word, reason) == ("rex", "badrpc", "EXIT")
            name, (word, _) = await old("{call, ex, add, [a, 2], self()}")
            assert (name, word) == ("rex", "badrpc")
            await erl.eval(f"{{rex, {py}}} ! {{self(), {{send, box, hi}}}}")
            sender, message = await box.get()
            assert (sender.node, message) == (erl.name, "hi")
            assert await old("{send, nobody, hi}") == (
                "rex",
                node.name,
                ("nonexisting_name", "nobody"),
            )


@in_each_release
async def test_sys_and_stop_are_answered_by_every_process(
    network: Network, release: Release
) -> None:
    async with with_erlang(network, release) as (node, erl):
        add(node)
        py = f"'{node.name}'"
        node.scope()
        async with node.mailbox("srv") as box:
            for name in ("srv", "rex", "net_kernel", "pg", "thicket_membership", "logger"):
                of = f"{{{name}, {py}}}"
                for what in (
                    f"sys:get_state({of}, infinity)",
                    f"sys:get_status({of}, infinity)",
                    f"sys:suspend({of}, infinity)",
                    f"gen_server:stop({of})",
                    f"sys:terminate({of}, normal, infinity)",
                ):
                    kind, reason = await erl.eval(
                        f"try {what} of V -> {{returned, V}} catch C:R -> {{C, R}} end"
                    )
                    assert "notsup" in repr(reason), (what, kind, reason)
            for name in ("pg", "thicket_membership", "logger"):
                called = await erl.eval(f"gen_server:call({{{name}, {py}}}, which, infinity)")
                assert called == ("error", "notsup")
            assert len(box) == 0
            assert not box.closed
        assert await erl.eval(f"erpc:call({py}, ex, add, [1, 2])") == 3


@in_each_release
async def test_what_functions_of_erlang_log_for_us_is_in_our_log(
    network: Network, release: Release
) -> None:
    kept = Kept()
    async with with_erlang(network, release) as (node, erl):
        await node.call(erl.name, "logger.error", "by a string é")
        await node.call(erl.name, "logger.warning", list(b"~ts and ~p"), [b"text", (1, Atom("a"))])
        report = {Atom("what"): Atom("reported")}
        await node.call(erl.name, "logger.notice", report)
        await node.call(erl.name, "error_logger.error_msg", list(b"of old: ~w~n"), [[1, 2]])
        await node.call(erl.name, "io.format", list(b"printed ~ts~n"), [b"here"])
        await node.call(erl.name, "proc_lib.spawn", Atom("nosuchmodule"), Atom("f"), [])
        where = f"logged on {erl.name}: "
        for level, words in (
            ("ERROR", where + "by a string é"),
            ("WARNING", where + "text and {1,a}"),
            ("INFO", where + "#{what => reported}"),
            ("ERROR", where + "of old: [1,2]"),
            ("INFO", f"printed on {erl.name}: printed here"),
        ):
            await until(lambda: kept.having(words), f"{words} in {kept.lines}")  # noqa: B023
            assert {found for found, _ in kept.having(words)} == {level}
        await until(lambda: kept.having("nosuchmodule"), "the crash report")


async def screen(
    network: Network,
    release: Release,
    address: IPv6Address,
    *options: str,
    typed: Sequence[tuple[str, str]] = (),
) -> str:
    """Return what a shell of Erlang shows on a terminal until it says why there is no other.

    :param typed: what to wait for, and what to type then.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
    process = await asyncio.create_subprocess_exec(
        release.erl,
        *("-proto_dist", "inet6_tcp", "-start_epmd", "false", "-hidden"),
        *("-name", f"shell@{address}", "-setcookie", "secret"),
        *("-kernel", "inet_dist_use_interface", tuple_of(address)),
        *("-kernel", "inet_dist_connect_options", f"[{{ip,{tuple_of(address)}}}]"),
        *options,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "ERL_EPMD_PORT": str(network.epmd_port)},
        start_new_session=True,
    )
    os.close(slave)
    os.set_blocking(master, False)
    raw = b""

    def read() -> str:
        nonlocal raw
        with suppress(OSError):
            raw += os.read(master, 65536)
        return re.sub(
            r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>()][0-9A-B]?|\r", "", raw.decode(errors="replace")
        )

    async def shows(pattern: str, start: int) -> int:
        """Wait for ``pattern`` and return where it ends."""

        def found() -> re.Match[str] | None:
            return re.compile(pattern).search(read(), start)

        end = asyncio.get_running_loop().time() + PATIENCE
        while (match := found()) is None:
            assert asyncio.get_running_loop().time() < end, f"no {pattern!r} in {read()!r}"
            await asyncio.sleep(0.02)
        return match.end()

    try:
        at = 0
        for wanted, answer in typed:
            at = await shows(wanted, at)
            os.write(master, answer.encode())
        await shows("Could not load .*\n|Shell process terminated", at)
        await asyncio.sleep(0.5)  # for pages of reports that should not come
        return read()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        os.close(master)


@in_each_release
async def test_a_remote_shell_ends_in_one_clear_line(network: Network, release: Release) -> None:
    async with with_erlang(network, release) as (node, _):
        shown = await screen(network, release, network.address(3), "-remsh", node.name)
        assert "runs no Erlang shell" in shown
        assert "REPORT" not in shown
        typed = [("1> ", "\x07"), ("--> ", f"r '{node.name}'\r"), ("--> ", "c\r")]
        shown = await screen(network, release, network.address(4), typed=typed)
        assert "runs no Erlang shell" in shown
        assert "REPORT" not in shown


class OddError(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class WorseError(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class StrangeError(Exception):
    @property
    def __cause__(self) -> Any:  # type: ignore[override]
        raise ValueError("no cause either")


@in_private_network
async def test_a_failure_that_cannot_be_put_into_words_is_answered(network: Network) -> None:
    kept = Kept()
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:
        kinds: list[type[Exception]] = [OddError, WorseError, StrangeError]
        for kind in kinds:

            def plain(kind: Any = kind) -> None:
                raise kind

            async def later(kind: Any = kind) -> None:
                raise kind

            b.export(f"odd.plain_{kind.__name__}")(plain)
            b.export(f"odd.later_{kind.__name__}")(later)
            for way in ("plain", "later"):
                error = await failure(a.call(b.name, f"odd.{way}_{kind.__name__}", timeout=None))
                assert isinstance(error, RemoteError)
                assert error.type == kind.__name__
                assert "cannot be" in str(error)
    assert kept.having("odd.plain_OddError")


@in_private_network
async def test_the_log_has_the_whole_traceback_but_not_for_ever(network: Network) -> None:
    kept = Kept()
    async with a_node(network, "a", 1) as a, a_node(network, "b", 2) as b:

        @b.export("faulty.one")
        def one() -> None:
            try:
                dict[str, int]()["missing"]
            except KeyError as error:
                raise ValueError("first" + "x" * 100_000) from error

        @b.export("faulty.other")
        async def other() -> None:
            raise LookupError("second")

        @b.export("faulty.wrong")
        def wrong(value: int) -> None:
            raise AssertionError

        for _ in range(50):
            await failure(a.call(b.name, "faulty.one"))
        await failure(a.call(b.name, "faulty.wrong", "text"))
        await failure(a.call(b.name, "faulty.other"))
    [(level, text)] = kept.having("faulty.one, called from")
    assert level == "ERROR"
    assert "Traceback" in text
    assert len(text) < 10_000
    [(level, text)] = kept.having("faulty.other, called from")
    assert level == "ERROR"
    assert "49 failures of functions were not logged" in text
    assert "LookupError: second" in text
    assert "in other" in text
    assert not kept.having("faulty.wrong")


@in_private_network
async def test_a_traceback_begins_with_the_cause(network: Network) -> None:
    kept = Kept()
    async with a_node(network, "a", 1) as a:

        @a.export("faulty.one")
        def one() -> None:
            try:
                dict[str, int]()["missing"]
            except KeyError as error:
                raise ValueError("first") from error

        await failure(a.call(a.name, "faulty.one"))
    [(_, text)] = kept.having("faulty.one")
    order = [text.index(part) for part in ("KeyError: 'missing'", "led to", "ValueError: first")]
    assert order == sorted(order)


@in_private_network
async def test_a_node_reaches_itself_by_its_own_name(network: Network) -> None:
    async with a_node(network, "a", 1) as a:
        assert 0 < await a.ping(a.name) < 60
        async with a.mailbox("box") as box, a.mailbox() as other, asyncio.timeout(PATIENCE):
            for target in ("box", ("box", a.name), box.pid):
                await a.send(target, "text")
                assert await box.get() == "text"
                other.send(target, 5)
                assert await box.get() == 5

            async def serve() -> None:
                request = await box.get()
                assert isinstance(request, Request)
                request.reply(request.request + 1)

            serving = asyncio.create_task(serve())
            assert await a.request("box", 41) == 42
            await serving
            reference = other.watch("box")
            box.close()
            assert await other.get() == Down(reference, "box", "normal")
            for attempt in (a.send("box", 1), a.request("box", 1)):
                assert (await failure(attempt)).code == "noproc"
            with pytest.raises(DistributionError):
                other.send("box", 1)
            await a.send(("box", a.name), 1)  # vanishes, as in Erlang


def test_erlang_s_formats_become_text() -> None:
    form = "~p ~ts ~w ~.2f ~5..0b ~c ~~ ~i~a ~10p"
    values = [Atom("a b"), "é".encode(), [1, 2], 1.5, 7, 65, 0, Atom("x"), {1: b"y"}]
    assert formatted(form, values) == "'a b' é [1,2] 1.5 7 A ~ x #{1 => <<\"y\">>}"
    assert formatted(b"~p and ~p~n", [1]) == "1 and ~p\n"
    assert formatted(b"~p", [1, 2]) == "1 [2]"
    assert formatted(list(b"~s"), [[b"a", [98, "c"]]]) == "abc"
    assert formatted(b"~P", [[1, 2], 9]) == "[1,2]"
    assert formatted(Atom("no form"), 5) == "'no form'"
    assert formatted((1,), []) == "{1}"
    assert term_text([104, 105]) == '"hi"'
    assert term_text(([], {}, None, True, 1 << 5000))[:20] == "{[],#{},nil,true,0x1"
    assert len(term_text(list(range(100_000)))) < 4200
    assert len(characters(b"x" * 1_000_000)) < 4200
    assert len(formatted(b"~p" * 1000, [b"x" * 1000] * 1000)) < 4200
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    assert "..." in term_text(deep)


def test_a_format_of_many_directives_for_many_values_costs_little() -> None:
    begin = time.process_time()
    assert len(formatted(b"~p" * 2000, list(range(5_000_000)))) < 4200
    assert time.process_time() - begin < 2, "each directive moved all values"
