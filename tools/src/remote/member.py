# SPDX-License-Identifier: Apache-2.0
"""``thicket --via HOST erl`` and ``iex``: this machine as a member of the cluster.

A stock Erlang asks its *epmd module* where a node listens. Ours asks this program, which listens on
loopback once for each node, and carries what comes there to that node, as its operator. Erlang
itself speaks no TLS and needs no certificate; a cookie of this run keeps others on this machine
out.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from remote.errors import RemoteError
from remote.session import Operator, opened
from remote.ways import Way
from thicket.operators.door import splice
from thicket.trust.certificates import Certificate
from thicket.trust.operator import operator_address

PROGRAMS: Final = ("erl", "iex")
MODULE: Final = "thicket_way"
_PORT_SECONDS: Final = 60.0

_SOURCE: Final = """\
%% SPDX-License-Identifier: Apache-2.0
%% Where nodes are, for kernel's -epmd_module: a program on this machine leads to each of them.
-module(thicket_way).
-export([start_link/0, register_node/2, register_node/3, address_please/3, port_please/2,
         port_please/3, listen_port_please/2, names/0, names/1]).

-define(LOOPBACK, {0, 0, 0, 0, 0, 0, 0, 1}).

start_link() -> ignore.
register_node(_Name, _Port) -> register_node(_Name, _Port, inet6).
register_node(_Name, _Port, _Family) -> {ok, erlang:system_time(second) band 16#3ffffff bor 4}.
listen_port_please(_Name, _Host) -> {ok, 0}.
names() -> {error, address}.
names(_Host) -> {error, address}.

address_please(_Name, Host, _Family) ->
    case ask(Host) of
        {ok, Port} -> {ok, ?LOOPBACK, Port, 6};
        error -> {error, nxdomain}
    end.

port_please(Name, Host) -> port_please(Name, Host, 60000).
port_please(_Name, Host, _Timeout) when is_list(Host) ->
    case ask(Host) of {ok, Port} -> {port, Port, 6}; error -> noport end;
port_please(_Name, _Host, _Timeout) -> noport.

ask(Host) ->
    {ok, [[Port, Secret]]} = init:get_argument(thicket_way),
    Options = [inet6, binary, {active, false}, {packet, line}],
    case gen_tcp:connect(?LOOPBACK, list_to_integer(Port), Options, 5000) of
        {ok, Socket} ->
            ok = gen_tcp:send(Socket, [Secret, $ , Host, $\\n]),
            Answer = gen_tcp:recv(Socket, 0, 60000),
            gen_tcp:close(Socket),
            case Answer of
                {ok, Line} -> {ok, binary_to_integer(string:trim(Line))};
                _ -> error
            end;
        _ -> error
    end.
"""


async def run(
    way: Callable[[], Way], operator: Operator, program: str, words: Sequence[str]
) -> int:
    """Run ``erl`` or ``iex`` as a member of the cluster; return its exit status.

    :param way: returns a new way to the first node.
    :param words: more arguments for the program.
    :raises RemoteError: that cannot be done.
    """
    path = shutil.which(program)
    if path is None:
        package = "erlang-base" if program == "erl" else "elixir"
        raise RemoteError(
            "no-erlang",
            f"{program} is missing. Install it with:\n"
            f"    sudo apt-get install --no-install-recommends {package}",
        )
    first = await _first(way, operator)
    address = operator_address(operator.fleet, Certificate(operator.chain[0]).public_key)
    with tempfile.TemporaryDirectory(prefix="thicket-") as folder:
        _compile(Path(folder))
        secret, cookie = secrets.token_hex(16), secrets.token_hex(16)
        async with _Ways(way, operator, cookie).listening(secret) as port:
            arguments = Path(folder) / "vm.args"
            arguments.touch(0o600)
            arguments.write_text(
                _arguments(f"{program}-{os.getpid()}@{address}", cookie, folder, first)
                + f"-thicket_way {port} {secret}\n"
            )
            given = ["-args_file", str(arguments)]
            if program == "iex":
                given = ["--erl", f"-args_file {arguments}"]  # which it cuts at blanks
            child = await asyncio.create_subprocess_exec(path, *given, *words)
            try:
                return await child.wait()
            finally:
                if child.returncode is None:
                    with suppress(ProcessLookupError):
                        child.terminate()
                    await child.wait()


async def _first(way: Callable[[], Way], operator: Operator) -> str:
    """Return the name of the first node."""
    async with opened(way(), None, lambda: operator) as session:
        name = (await session.request("nodes", {}))["cluster"]["node"]
    if not isinstance(name, str):
        raise RemoteError("not-joined", f"{session.node} has not joined the cluster yet")
    return name


def _compile(folder: Path) -> None:
    (folder / f"{MODULE}.erl").write_text(_SOURCE)
    done = subprocess.run(
        ["erlc", f"{MODULE}.erl"], cwd=folder, capture_output=True, check=False, timeout=600
    )
    if done.returncode:
        raise RemoteError("no-erlang", f"erlc: {done.stdout.decode('utf-8', 'replace').strip()}")


def _arguments(name: str, cookie: str, folder: str, first: str) -> str:
    return (
        f"-name {name}\n"
        f"-setcookie {cookie}\n"
        "-proto_dist inet6_tcp\n"
        f"-epmd_module {MODULE}\n"
        "-start_epmd false\n"
        f'-pa "{folder}"\n'
        "-kernel net_ticktime 15\n"
        "-kernel prevent_overlapping_partitions false\n"
        "-kernel inet_dist_use_interface {0,0,0,0,0,0,0,1}\n"
        f"-eval \"net_kernel:connect_node('{first}').\"\n"
    )


class _Ways:
    """A port of loopback for each node that somebody asks for.

    :param cookie: what both sides of the cluster's connections have to know.
    """

    def __init__(self, way: Callable[[], Way], operator: Operator, cookie: str) -> None:
        self._way = way
        self._operator = operator
        self._cookie = cookie
        self._servers: dict[str, asyncio.Server] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, secret: str) -> AsyncIterator[int]:
        """Answer who knows the secret; gives the port for that."""

        async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, ValueError, TimeoutError):
                async with asyncio.timeout(_PORT_SECONDS):
                    line = (await reader.readline()).decode("ascii", "replace").split()
                if len(line) == 2 and secrets.compare_digest(line[0], secret):
                    writer.write(f"{await self._port(line[1])}\n".encode())
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(asked, "::1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for one in (server, *self._servers.values()):
                one.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _port(self, host: str) -> str:
        if host not in self._servers:
            self._servers[host] = await asyncio.start_server(
                lambda reader, writer: self._begin(host, reader, writer), "::1", 0
            )
        return str(self._servers[host].sockets[0].getsockname()[1])

    def _begin(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._carry(host, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(
        self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            async with opened(self._way(), host, lambda: self._operator) as session:
                await session.request("member", {"cookie": self._cookie})
                await splice((reader, writer), (session.reader, session.writer))
        except RemoteError as error:
            sys.stderr.write(f"thicket: {error}\r\n")
        except OSError:
            pass  # one of both has gone
        finally:
            writer.close()
