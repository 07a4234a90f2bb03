# SPDX-License-Identifier: Apache-2.0
"""Real Erlang nodes for tests, and expressions evaluated on them."""

from __future__ import annotations

import asyncio
import base64
import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from patience import PATIENCE
from private_network import HANGS, Network, run_in_child, until

from host.cache import cache_root
from thicket.distribution import Node, epmd, etf

MISSING = (
    "a program of Erlang is missing, with which these tests compare: "
    "install them with: sudo apt-get install -y erlang-base elixir"
)

_MARK = b"=R="

# Evaluates each line of its input and prints the result as an encoded term.
_SERVER = """
F = fun F() -> case io:get_line("") of eof -> halt(0); Line ->
  Result = try
    {ok, Tokens, _} = erl_scan:string(Line), {ok, Exprs} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Exprs, []), {ok, Value}
  catch Class:Reason -> {Class, Reason} end,
  io:put_chars(["=R=", base64:encode(term_to_binary(Result)), 10]), F() end end, F().
"""


def program(name: str = "erl") -> str:
    """Return the path of one of Erlang's programs; fails with what to install."""
    path = shutil.which(name)
    if path is None:
        raise AssertionError(MISSING)
    return path


class Release(NamedTuple):
    """An Erlang on this machine: its number, and the path of its ``erl``."""

    number: int
    erl: str

    def program(self, name: str) -> str:
        """Return the path of another program of the same release.

        Where the system's release has none the test fails, where another one has none it is
        skipped.
        """
        path = Path(self.erl).with_name(name)
        if not path.exists():
            assert self.erl != shutil.which("erl"), f"there is no {path}: {MISSING}"
            pytest.skip(f"there is no {name} beside {self.erl}")
        return str(path)


WANTED = (27, 29)
"""The releases that bin/erlang-releases brings beside the system's."""


def _fetched() -> Path:
    """Return the folder that bin/erlang-releases fills."""
    return cache_root() / "erlang"


@functools.cache
def releases() -> list[Release]:
    """Return the releases of Erlang here: the system's, the programs ``erl`` that the variable
    THICKET_ERLANG names, separated by colons, and what bin/erlang-releases has brought. One of each
    number."""
    brought = [_fetched() / str(number) / "bin" / "erl" for number in WANTED]
    paths = [
        shutil.which("erl"),
        *os.environ.get("THICKET_ERLANG", "").split(":"),
        *(str(path) for path in brought if path.exists()),
    ]
    ask = "io:put_chars(erlang:system_info(otp_release)), halt()."
    found: dict[int, str] = {}
    for path in filter(None, paths):
        done = subprocess.run(
            [path, "-noshell", "-eval", ask],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        found.setdefault(int(done.stdout), path)
    return [Release(number, path) for number, path in sorted(found.items())]


def in_each_release(
    test: Callable[[Network, Release], Coroutine[Any, Any, None]],
    seconds: float = HANGS,
    *,
    between: bool = True,
) -> Any:
    """Make a test function out of ``test``, which runs in a private network with each release."""

    def run(release: Release) -> None:
        longer = float(os.environ.get("THICKET_SOAK", "0"))
        run_in_child(lambda network: test(network, release), seconds + longer)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    run.__module__ = test.__module__
    return each_release(run, between=between)


def in_oldest_and_newest(test: Callable[[Network, Release], Coroutine[Any, Any, None]]) -> Any:
    """As :func:`in_each_release`, for a test that takes long."""
    return in_each_release(test, between=False)


def each_release(test: Callable[..., None], *, between: bool = True) -> Any:
    """Run ``test`` with each release of Erlang, as its argument ``release``.

    :param between: also with those that are neither the oldest nor the newest.
    """
    found = releases() if between else [*releases()[:1], *releases()[1:][-1:]]
    parameters: list[Any] = [pytest.param(each, id=f"OTP-{each.number}") for each in found]
    if not parameters:
        parameters = [pytest.param(Release(0, program()), id="no-erlang")]
    wanted = WANTED if between else WANTED[-1:]
    for number in sorted({*wanted} - {each.number for each in releases()}):
        try:
            why = (_fetched() / f"{number}.why").read_text().strip()
        except OSError:
            why = "bin/erlang-releases brings it"
        reason = f"Erlang/OTP {number} is not here: {why}"
        skipped = pytest.mark.skip(reason=reason)
        parameters.append(pytest.param(None, id=f"OTP-{number}", marks=skipped))
    return pytest.mark.parametrize("release", parameters)(test)


def tuple_of(address: IPv6Address) -> str:
    """Return ``address`` as Erlang writes it."""
    words = address.exploded.split(":")
    return "{" + ",".join(f"16#{word}" for word in words) + "}"


class Erl:
    """A running ``erl``. Use :meth:`start`, and ``async with``."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, home: str) -> None:
        self.process = process
        self.name = name
        self.log: list[str] = []
        self._home = home
        self._answers: asyncio.Queue[Any] = asyncio.Queue()
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(
        cls,
        network: Network,
        name: str,
        address: IPv6Address,
        *,
        cookie: str = "secret",
        tick_time: int = 3600,
        fixed_port: int | None = None,
        options: Sequence[str] = (),
        release: Release | None = None,
        proto: str = "inet6_tcp",
        spelling: str | None = None,
    ) -> Erl:
        """Start a node ``name@address``, and wait until it runs.

        :param tick_time: in seconds; by default so long that it judges nobody by the clock.
        :param spelling: how its name writes the address; by default in canonical form.
        :param fixed_port: the port that it listens on and expects all others on, without epmd.
        :param release: which Erlang; the system's when it is not given.
        :param proto: how nodes talk, ``inet6_tcp`` or ``inet6_tls``.
        """
        home = tempfile.mkdtemp(prefix="erl-")
        node = f"{name}@{spelling or address}"
        arguments = [
            *("-noshell", "-proto_dist", proto, "-start_epmd", "false"),
            *("-name", node, "-setcookie", cookie),
            *("-kernel", "net_ticktime", str(tick_time)),
            # The longest there is: on a busy machine a handshake with TLS may take longer than 7 s.
            *("-kernel", "net_setuptime", "120"),
            *("-kernel", "inet_dist_use_interface", tuple_of(address)),
            # Several addresses on one interface: connect from the one in the name.
            *("-kernel", "inet_dist_connect_options", f"[{{ip,{tuple_of(address)}}}]"),
            *(("-erl_epmd_port", str(fixed_port)) if fixed_port else ()),
            *options,
            *("-eval", _SERVER.replace("\n", " ")),
        ]
        process = await asyncio.create_subprocess_exec(
            release.erl if release is not None else program(),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "HOME": home, "ERL_EPMD_PORT": str(network.epmd_port)},
            limit=64 * 1024 * 1024,
        )
        erl = cls(process, node, home)
        try:
            assert await erl.eval("node()", PATIENCE) == node, erl.log
        except BaseException:
            await erl.stop()
            raise
        return erl

    async def __aenter__(self) -> Erl:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.startswith(_MARK):
                self._answers.put_nowait(etf.decode(base64.b64decode(line[len(_MARK) :])))
            else:
                self.log.append(line.decode(errors="replace").rstrip())
        self._answers.put_nowait(None)

    async def eval(self, expressions: str, seconds: float = PATIENCE) -> Any:
        """Return the value of Erlang ``expressions``, which are without a full stop."""
        assert self.process.stdin is not None
        self.process.stdin.write(expressions.replace("\n", " ").encode() + b".\n")
        try:
            async with asyncio.timeout(seconds):
                answer = await self._answers.get()
        except TimeoutError:
            raise AssertionError(
                f"erl did not answer {expressions!r}; it said {self.log}"
            ) from None
        assert answer is not None, f"erl ended in {expressions!r}; it said {self.log}"
        kind, value = answer
        assert kind == "ok", f"{expressions!r} raised {answer!r}"
        return value

    async def until(self, expression: str, value: Any, seconds: float = PATIENCE) -> None:
        """Wait until ``expression`` has ``value``."""
        end = asyncio.get_running_loop().time() + seconds
        while (found := await self.eval(expression)) != value:
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"{expression} is {found!r}, not {value!r}; {self.log}")
            await asyncio.sleep(0.02)

    async def received(self, peer: str) -> int:
        """Return how many bytes have come over its connection with ``peer``."""
        port = f"element(2, lists:keyfind('{peer}', 1, erlang:system_info(dist_ctrl)))"
        count: int = await self.eval(f"{{ok, [{{_, N}}]}} = inet:getstat({port}, [recv_oct]), N")
        return count

    async def quarter(self) -> None:
        """Let a quarter of its tick time pass, after which it ticks, and counts who was silent.

        Its connections have done so when this returns (net_kernel.erl, "tick"; dist_util.erl,
        "con_loop"). With a tick time of an hour this is all that it sees of time.
        """
        idle = "[{message_queue_len, 0}, {status, waiting}]"
        done = (
            f"lists:all(fun(P) -> lists:member(erlang:process_info(P, [message_queue_len, status]),"
            f" [{idle}, undefined]) end, Connections)"
        )
        await self.eval(
            "F = fun() -> [P || Row <- ets:tab2list(sys_dist), P <- tuple_to_list(Row), is_pid(P)]"
            " end, put(connections, F()), net_kernel ! tick, sys:get_state(net_kernel), ok"
        )
        await self.until(f"Connections = get(connections), {done}", True)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the node's process."""
        self.process.send_signal(number)

    async def freeze(self) -> None:
        """Stop the node's process; it says nothing any more when this returns."""
        self.signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")

        def stopped() -> bool:
            # proc_pid_stat(5): the state is behind the name, which is in parentheses.
            stats = [(task / "stat").read_text() for task in tasks.iterdir()]
            return {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}

        await until(stopped, "all its threads stand still")

    async def stop(self) -> None:
        """End the node at once."""
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader
        shutil.rmtree(self._home, ignore_errors=True)


@asynccontextmanager
async def a_real_epmd(network: Network) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Erlang's own port mapper, which answers on every address."""
    daemon = await asyncio.create_subprocess_exec(
        program("epmd"), "-port", str(network.epmd_port), "-relaxed_command_check"
    )

    async def answers() -> None:
        while True:
            try:
                await epmd.ask("::1", b"\0\x01n", 4, timeout=2.0, port=network.epmd_port)
                return
            except OSError:
                await asyncio.sleep(0.01)

    try:
        async with asyncio.timeout(PATIENCE):
            await answers()
        yield daemon
    finally:
        if daemon.returncode is None:
            daemon.kill()
            await daemon.wait()


async def mapped(node: Node, seconds: float = PATIENCE) -> None:
    """Wait until stock nodes can find ``node``."""

    def known() -> bool:
        found = node.statistics()["epmd"]
        return node.host in found["served"] or found["registered_at"] is not None

    await until(known, f"{node.name} can be found: {node.statistics()}", seconds)
