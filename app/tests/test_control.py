# SPDX-License-Identifier: Apache-2.0
"""thicket.control: requests over the unix socket, and every way to misuse it."""

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from thicket.base.errors import RequestError
from thicket.control import server as control
from thicket.control.client import ClientError, request
from thicket.control.server import Server


async def echo(params: dict[str, Any]) -> Any:
    return params


async def refuse(params: dict[str, Any]) -> Any:
    raise RequestError("no", "not today")


async def crash(params: dict[str, Any]) -> Any:
    raise ZeroDivisionError("a fault of ours")


async def hang(params: dict[str, Any]) -> Any:
    await asyncio.sleep(3600)


METHODS = {"echo": echo, "refuse": refuse, "crash": crash, "hang": hang}


@asynccontextmanager
async def serving(path: Path, **limits: float) -> AsyncIterator[Server]:
    server = Server(str(path), METHODS)
    for name, value in limits.items():
        setattr(server, name, value)
    task = asyncio.create_task(server.run())
    try:
        for _ in range(1000):
            if path.exists():
                break
            await asyncio.sleep(0.005)
        assert path.exists()
        yield server
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(path: Path, method: str, params: dict[str, Any] | None = None) -> Any:
    return await asyncio.to_thread(request, str(path), method, params or {}, PATIENCE)


async def until_answered(path: Path) -> None:
    """Wait until the server has noticed that others have gone."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                assert await ask(path, "echo") == {}
                return
            except ClientError:
                await asyncio.sleep(0.01)


async def raw(path: Path, data: bytes) -> list[Any]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=2**20)
    writer.write(data)
    writer.write_eof()
    lines = (await asyncio.wait_for(reader.read(), PATIENCE)).splitlines()
    writer.close()
    return [json.loads(line) for line in lines]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "control.sock"


async def test_results_and_errors(path: Path) -> None:
    async with serving(path):
        assert await ask(path, "echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}
        for method, code, words in (
            ("refuse", "no", "not today"),
            ("crash", "internal", "a fault of ours"),
            ("nothing", "unknown-method", "echo, refuse"),
        ):
            with pytest.raises(ClientError, match=words) as caught:
                await ask(path, method)
            assert caught.value.code == code


async def test_several_requests_on_one_connection_keep_their_ids(path: Path) -> None:
    async with serving(path):
        lines = b"".join(
            json.dumps({"id": n, "method": "echo", "params": {"n": n}}).encode() + b"\n"
            for n in ("a", 2, None)
        )
        assert await raw(path, lines) == [
            {"id": n, "result": {"n": n}} for n in ("a", 2, None)
        ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b"1", b"\xff\xfe", b'{"id":1}', b'{"id":1,"method":["echo"]}',
     b'{"id":1,"method":"echo","params":[1]}', b"[" * 5000],
)  # fmt: skip
async def test_bad_requests_get_an_answer(path: Path, line: bytes) -> None:
    async with serving(path):
        (answer,) = await raw(path, line + b"\n")
        assert answer["error"]["code"] in {"bad-request", "unknown-method"}
        assert await ask(path, "echo") == {}


async def test_a_request_without_end_is_cut(path: Path) -> None:
    async with serving(path):
        (answer,) = await raw(path, b"x" * (control.MAX_REQUEST + 100_000))
        assert answer["error"]["code"] == "too-long"
        assert await ask(path, "echo") == {}


async def test_a_method_that_hangs_is_ended(path: Path) -> None:
    async with serving(path, work=0.05):
        with pytest.raises(ClientError) as caught:
            await ask(path, "hang")
        assert caught.value.code == "timeout"


async def test_silent_clients_are_dropped_and_their_number_is_bounded(path: Path) -> None:
    async with serving(path) as server:
        silent = [await asyncio.open_unix_connection(str(path)) for _ in range(control.MAX_CLIENTS)]
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b"", "one too many is turned away"
        writer.close()
        for _, w in silent:
            w.close()
        await until_answered(path)
        patience, server.idle = server.idle, 0.1
        r, w = await asyncio.open_unix_connection(str(path))
        assert await asyncio.wait_for(r.read(), PATIENCE) == b"", "a silent one is dropped"
        w.close()
        server.idle = patience
        assert await ask(path, "echo") == {}


async def test_only_root_may_ask_and_a_left_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    async with serving(path):
        for _ in range(1000):
            if stat.S_IMODE(path.stat().st_mode) == 0o600:
                break
            await asyncio.sleep(0.005)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask(path, "echo") == {}
    assert not path.exists()


def test_without_a_daemon_the_client_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="logread") as caught:
        request(str(tmp_path / "none"), "status", {})
    assert caught.value.code == "unreachable"


def test_a_daemon_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "s"))
        s.listen()
        with pytest.raises(ClientError, match=r"within 0\.1 s") as caught:
            request(str(tmp_path / "s"), "status", {}, timeout=0.1)
    assert caught.value.code == "unreachable"
