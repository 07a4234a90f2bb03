# SPDX-License-Identifier: Apache-2.0
"""JSON lines over a unix socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from meshlab.wire import rpc
from meshlab.wire.rpc import Call, Client, Params, RpcError, Server
from meshlab.wire.sockets import socket_address

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class Methods:
    """What the test server can do."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.started = asyncio.Event()
        self.go = asyncio.Event()

    async def echo(self, params: Params, call: Call) -> Any:
        return params

    async def refuse(self, params: Params, call: Call) -> Any:
        raise RpcError("no-such-node", "there is no node n9")

    async def break_(self, params: Params, call: Call) -> Any:
        raise ZeroDivisionError("oops")

    async def count(self, params: Params, call: Call) -> Any:
        for i in range(params["to"]):
            await call.event(i)
        return "done"

    async def wait(self, params: Params, call: Call) -> Any:
        self.started.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "waited"

    async def big(self, params: Params, call: Call) -> Any:
        return "x" * rpc.MAX_LINE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest_asyncio.fixture
async def methods(path: Path) -> AsyncIterator[Methods]:
    found = Methods()
    handlers = {
        "echo": found.echo,
        "refuse": found.refuse,
        "break": found.break_,
        "count": found.count,
        "wait": found.wait,
        "big": found.big,
    }
    async with Server(path, handlers):
        yield found
    assert not path.exists()


async def raw(path: Path, *lines: bytes) -> list[dict[str, Any]]:
    """Send lines as they are and return every answer until the server or the count ends it."""
    reader, writer = await asyncio.open_unix_connection(socket_address(path))
    writer.write(b"".join(lines))
    answers = []
    async with asyncio.timeout(PATIENCE):
        for _ in lines:
            line = await reader.readline()
            if not line:
                break
            answers.append(json.loads(line))
    writer.close()
    return answers


@given(st.dictionaries(st.text(), values))
def test_what_is_encoded_is_decoded(message: dict[str, Any]) -> None:
    line = rpc.encode(message)
    assert line.count(b"\n") == 1
    assert rpc.decode(line) == message


@given(st.binary())
def test_bad_lines_are_refused_not_crashed_on(line: bytes) -> None:
    try:
        assert isinstance(rpc.decode(line), dict)
    except RpcError as error:
        assert error.code == "bad-request"


async def test_a_call_is_answered(path: Path, methods: Methods) -> None:
    async with await Client.connect(path) as client:
        assert await client.call("echo", {"a": [1, "ü\n"]}) == {"a": [1, "ü\n"]}
        assert await client.call("echo") == {}


async def test_errors_keep_their_code_and_message(path: Path, methods: Methods) -> None:
    async with await Client.connect(path) as client:
        with pytest.raises(RpcError, match="no node n9") as caught:
            await client.call("refuse")
        assert caught.value.code == "no-such-node"
        with pytest.raises(RpcError, match="ZeroDivisionError: oops") as caught:
            await client.call("break")
        assert caught.value.code == "internal"
        with pytest.raises(RpcError, match=r"only big, break, count") as caught:
            await client.call("nothing")
        assert caught.value.code == "no-such-method"
        assert await client.call("echo", {"still": "works"}) == {"still": "works"}


async def test_events_arrive_in_order_before_the_result(path: Path, methods: Methods) -> None:
    seen: list[int] = []
    async with await Client.connect(path) as client:
        assert await client.call("count", {"to": 500}, on_event=seen.append) == "done"
    assert seen == list(range(500))


async def test_requests_of_one_connection_overlap(path: Path, methods: Methods) -> None:
    async with await Client.connect(path) as client:
        waiting = asyncio.create_task(client.call("wait"))
        await asyncio.wait_for(methods.started.wait(), PATIENCE)
        assert await client.call("echo", {"x": 1}) == {"x": 1}
        methods.go.set()
        assert await waiting == "waited"


async def test_a_request_ends_with_its_connection(path: Path, methods: Methods) -> None:
    client = await Client.connect(path)
    waiting = asyncio.create_task(client.call("wait"))
    await asyncio.wait_for(methods.started.wait(), PATIENCE)
    await client.close()
    with pytest.raises(RpcError) as caught:
        await waiting
    assert caught.value.code == "closed"
    await asyncio.wait_for(methods.cancelled.wait(), PATIENCE)


async def test_a_silent_server_is_a_timeout(path: Path, methods: Methods) -> None:
    async with await Client.connect(path) as client:
        with pytest.raises(RpcError, match="no answer within") as caught:
            await client.call("wait", timeout=0.05)
        assert caught.value.code == "timeout"


async def test_nobody_there(path: Path) -> None:
    with pytest.raises(RpcError, match="nothing answers at") as caught:
        await Client.connect(path)
    assert caught.value.code == "not-running"


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    first = Server(path, {})
    await first.start()
    second = Server(path, {"echo": Methods().echo})
    await second.start()
    await first.stop()
    async with await Client.connect(path) as client:
        assert await client.call("echo") == {}
    await second.stop()


async def test_only_the_owner_may_connect(path: Path, methods: Methods) -> None:
    assert path.stat().st_mode & 0o777 == 0o600


async def test_stopping_the_server_ends_the_clients(path: Path) -> None:
    found = Methods()
    server = Server(path, {"wait": found.wait})
    await server.start()
    client = await Client.connect(path)
    waiting = asyncio.create_task(client.call("wait"))
    await asyncio.wait_for(found.started.wait(), PATIENCE)
    await asyncio.wait_for(server.stop(), PATIENCE)
    with pytest.raises(RpcError) as caught:
        await waiting
    assert caught.value.code == "closed"
    with pytest.raises(RpcError) as caught:
        await client.call("wait")
    assert caught.value.code == "closed"
    await client.close()


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b"[]\n", b"{}\n", b'{"method":"echo","params":[]}\n', b"\xff\n", b"\n"]
)
async def test_a_bad_request_is_answered_and_survived(
    path: Path, methods: Methods, line: bytes
) -> None:
    bad, good = await raw(path, line, b'{"id":7,"method":"echo"}\n')
    assert bad["error"]["code"] == "bad-request"
    assert good == {"id": 7, "result": {}}


async def test_an_endless_line_is_refused(path: Path, methods: Methods) -> None:
    reader, writer = await asyncio.open_unix_connection(socket_address(path))
    writer.write(b"x" * (rpc.MAX_LINE * 2 + 1))
    async with asyncio.timeout(PATIENCE):
        assert json.loads(await reader.readline())["error"]["code"] == "too-large"
        writer.close()
    async with await Client.connect(path) as client:
        assert await client.call("echo") == {}


async def test_an_answer_beyond_the_limit_is_an_error(path: Path, methods: Methods) -> None:
    async with await Client.connect(path) as client:
        with pytest.raises(RpcError) as caught:
            await client.call("big")
        assert caught.value.code == "too-large"


async def test_too_many_requests_at_once_are_refused(path: Path, methods: Methods) -> None:
    async with await Client.connect(path) as client:
        waiting = [asyncio.create_task(client.call("wait")) for _ in range(rpc.MAX_PENDING)]
        await asyncio.wait_for(methods.started.wait(), PATIENCE)
        with pytest.raises(RpcError) as caught:
            await client.call("wait")
        assert caught.value.code == "busy"
        methods.go.set()
        assert set(await asyncio.gather(*waiting)) == {"waited"}


async def test_a_client_that_does_not_read_is_cut_off(path: Path) -> None:
    found = Methods()
    ended = asyncio.Event()

    async def flood(params: Params, call: Call) -> Any:
        try:
            while True:
                await call.event("x" * 100_000)
        finally:
            ended.set()

    async with Server(path, {"flood": flood, "echo": found.echo}, write_timeout=0.2):
        _, writer = await asyncio.open_unix_connection(socket_address(path), limit=1024)
        writer.write(b'{"id":1,"method":"flood"}\n')
        await asyncio.wait_for(ended.wait(), PATIENCE)
        writer.close()
        async with await Client.connect(path) as client:
            assert await client.call("echo") == {}
