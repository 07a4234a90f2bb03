# SPDX-License-Identifier: Apache-2.0
"""Cables: frames on a stream, the switch, and networks of the kernel with a wire between them."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from patience import PATIENCE

from meshlab.cable.errors import CableError
from meshlab.cable.frames import LONGEST, MOST_ADDRESSES, FrameError, Frames, Switch, packed
from meshlab.cable.network import Network, check
from meshlab.cable.plugs import Plugs

HERE, ONE, OTHER, ALL = (bytes.fromhex(each * 6) for each in ("02", "04", "06", "ff"))


def frame(to: bytes, sender: bytes, words: bytes = b"") -> bytes:
    return to + sender + b"\x86\xdd" + words


# --- frames ---------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=3000), max_size=5), st.integers(1, 4000))
def test_frames_come_as_they_were_sent_however_the_stream_is_cut(
    frames: list[bytes], size: int
) -> None:
    stream = b"".join(map(packed, frames))
    reader = Frames()
    found = [
        each for at in range(0, len(stream), size) for each in reader.feed(stream[at : at + size])
    ]
    assert found == frames


@given(st.integers(LONGEST + 1, 2**32 - 1))
def test_a_length_that_no_frame_has_ends_the_stream(length: int) -> None:
    with pytest.raises(FrameError):
        list(Frames().feed(length.to_bytes(4, "big")))


# --- the switch -----------------------------------------------------------------------------------


def test_a_frame_goes_to_all_until_its_goal_is_known() -> None:
    switch, ports = Switch(), ["", "n1", "n2"]
    assert switch.goes_to(frame(ONE, HERE), "", ports) == ["n1", "n2"]
    assert switch.goes_to(frame(HERE, ONE), "n1", ports) == [""]
    assert switch.goes_to(frame(ONE, HERE), "", ports) == ["n1"]
    assert switch.goes_to(frame(ALL, ONE), "n1", ports) == ["", "n2"]
    assert switch.goes_to(frame(ONE, OTHER), "n1", ports) == []
    # A node that is no longer there, and one that is plugged in elsewhere.
    assert switch.goes_to(frame(ONE, HERE), "", ["", "n2"]) == ["n2"]
    switch.goes_to(frame(ALL, ONE), "n2", ports)
    assert switch.goes_to(frame(ONE, HERE), "", ports) == ["n2"]


@given(st.binary(max_size=40), st.sampled_from(["", "n1"]))
def test_a_frame_never_goes_back_where_it_came_from(data: bytes, port: str) -> None:
    switch = Switch()
    assert port not in switch.goes_to(data, port, ["", "n1", "n2"])
    assert port not in switch.goes_to(data, port, ["", "n1", "n2"])


def test_who_sends_from_many_addresses_is_not_kept_for_ever() -> None:
    switch = Switch()
    for number in range(3 * MOST_ADDRESSES):
        switch.goes_to(frame(ALL, b"\x02" + number.to_bytes(5, "big")), "n1", ["", "n1"])
    assert len(switch._places) == MOST_ADDRESSES


# --- plugs ----------------------------------------------------------------------------------------


@asynccontextmanager
async def node(path: Path) -> AsyncIterator[asyncio.Queue[tuple[bytes, asyncio.StreamWriter]]]:
    """Be a machine's end of a cable; gives what comes, and where an answer goes."""
    came: asyncio.Queue[tuple[bytes, asyncio.StreamWriter]] = asyncio.Queue()

    async def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = Frames()
        came.put_nowait((b"", writer))
        while data := await reader.read(1 << 16):
            for each in frames.feed(data):
                came.put_nowait((each, writer))
        writer.close()

    server = await asyncio.start_unix_server(visited, path)
    try:
        yield came
    finally:
        server.close()


async def test_plugs_lead_from_here_to_nodes_and_between_them(tmp_path: Path) -> None:
    here, tap = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here.setblocking(False)
    tap.setblocking(False)
    loop = asyncio.get_running_loop()
    paths = {name: tmp_path / name for name in ("n1", "n2")}
    async with asyncio.timeout(20), node(paths["n1"]) as one, node(paths["n2"]) as two:
        carrying = asyncio.create_task(Plugs(tap.fileno(), paths).carry())
        writers = [(await each.get())[1] for each in (one, two)]
        await loop.sock_sendall(here, frame(ALL, HERE, b"who"))
        assert [(await each.get())[0] for each in (one, two)] == 2 * [frame(ALL, HERE, b"who")]
        writers[0].write(packed(frame(HERE, ONE, b"I am")))
        assert await loop.sock_recv(here, 2000) == frame(HERE, ONE, b"I am")
        writers[1].write(packed(frame(ONE, OTHER, b"and I")))
        assert (await one.get())[0] == frame(ONE, OTHER, b"and I")
        # A machine that is started anew.
        writers[0].close()
        again = (await one.get())[1]
        again.write(packed(frame(HERE, ONE, b"again")))
        assert await loop.sock_recv(here, 2000) == frame(HERE, ONE, b"again")
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
    here.close()
    tap.close()


# --- a network of its own -------------------------------------------------------------------------

ASKS = """
import pathlib, socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(0.3)
index = socket.if_nametoindex("cable")
while True:
    s.sendto(b"who", ("ff02::1", 5000, 0, index))
    try:
        words, who = s.recvfrom(100)
    except TimeoutError:
        continue
    assert words == b"I am" and who[0].startswith("fe80:"), (words, who)
    pathlib.Path(sys.argv[1]).touch()
    raise SystemExit(7)
"""
ANSWERS = """
import os, socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.bind(("::", 5000))
s.settimeout(0.3)
# An answer may be lost, as long as addresses are new.
while not os.path.exists(sys.argv[1]):
    try:
        words, who = s.recvfrom(100)
    except TimeoutError:
        continue
    s.sendto(b"I am", who)
"""


def allowed() -> bool:
    try:
        check()
    except CableError as error:
        print(error)
        return False
    return True


@pytest.fixture
def _allowed() -> None:
    if not allowed():
        pytest.skip("this machine allows no network for cables")


@asynccontextmanager
async def wire(one: Path, other: Path) -> AsyncIterator[None]:
    """Join two sockets, each of which a program connects to."""
    ends: list[asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] = []
    tasks: list[asyncio.Task[None]] = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)

    def visits(
        number: int,
    ) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def visited(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends[number].set_result((reader, writer))

        return visited

    loop = asyncio.get_running_loop()
    ends += [loop.create_future(), loop.create_future()]
    servers = [
        await asyncio.start_unix_server(visits(number), path)
        for number, path in enumerate((one, other))
    ]

    async def join() -> None:
        first, second = await ends[0], await ends[1]
        await asyncio.gather(carry(first[0], second[1]), carry(second[0], first[1]))

    tasks.append(asyncio.create_task(join()))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            server.close()


@pytest.mark.usefixtures("_allowed")
async def test_programs_in_two_networks_find_each_other_by_link_local_addresses(
    tmp_path: Path,
) -> None:
    heard = str(tmp_path / "heard")
    async with asyncio.timeout(PATIENCE), wire(tmp_path / "a", tmp_path / "b"):
        statuses = await asyncio.gather(
            Network({"n1": tmp_path / "a"}).run([sys.executable, "-c", ASKS, heard]),
            Network({"n2": tmp_path / "b"}).run([sys.executable, "-c", ANSWERS, heard]),
        )
    assert list(statuses) == [7, 0]


@pytest.mark.usefixtures("_allowed")
async def test_a_command_that_is_not_there_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with asyncio.timeout(PATIENCE):
        assert await Network({"n1": tmp_path / "a"}).run(["no-such-program"]) == 1
    assert "no-such-program" in capfd.readouterr().err


def test_what_forbids_a_network_is_named_with_what_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from meshlab.cable import network

    monkeypatch.setattr(network, "entering", lambda: ["sh", "-c", "echo denied >&2; exit 1", "-"])
    monkeypatch.setattr(network, "CLONE", tmp_path / "none")
    monkeypatch.setattr(network, "RESTRICTED", tmp_path / "none")
    with pytest.raises(CableError, match=r"denied.*`sudo -E`.*`meshlab ssh`"):
        check()
    restricted = tmp_path / "proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    restricted.parent.mkdir(parents=True)
    restricted.write_text("1\n")
    monkeypatch.setattr(network, "RESTRICTED", restricted)
    with pytest.raises(CableError, match=r"sysctl -w .*apparmor_restrict_unprivileged_userns=0"):
        check()
