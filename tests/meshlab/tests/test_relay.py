# SPDX-License-Identifier: Apache-2.0
"""The relay's stream: package/hwsim-relay/PROTOCOL.md."""

from __future__ import annotations

import asyncio
import itertools
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from meshlab.wire.relay import (
    COUNTERS,
    HELLO_RETRY_MIN,
    MAGIC,
    MAX_LENGTH,
    STALL,
    Deframer,
    Kind,
    RelayError,
    RelayPort,
    decode_counters,
    encode,
    encode_hello,
    encode_node_hello,
)


def bodies(deframer: Deframer, data: bytes) -> list[tuple[int, bytes]]:
    buffer, frames = deframer.feed(data)
    return [(kind, buffer[start:end]) for kind, start, end in frames]


def in_pieces(deframer: Deframer, data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    got = []
    edges = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    for start, end in itertools.pairwise(edges):
        got += bodies(deframer, data[start:end])
    return got


messages = st.lists(st.tuples(st.sampled_from([0, 2, 3]), st.binary(max_size=300)), max_size=8)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


def test_hello_is_what_the_protocol_says() -> None:
    assert encode_hello(7) == struct.pack("<IBBH8sQ", 20, 1, 1, 0, b"HWSIMRLY", 7)
    node = encode_node_hello(29, 7, (1, 2))
    assert node == struct.pack("<IBBH8sQ2Q", 36, 1, 1, 29, b"HWSIMRLY", 7, 1, 2)
    assert len(COUNTERS) == 13


@settings(deadline=None)
@given(messages, cuts)
def test_frames_survive_any_cutting(frames: list[tuple[int, bytes]], where: list[int]) -> None:
    stream = b"".join(encode(Kind(kind), body) for kind, body in frames)
    deframer = Deframer()
    assert in_pieces(deframer, stream, where) == frames
    assert not deframer.incomplete


@settings(deadline=None)
@given(st.binary(max_size=200), messages, cuts, st.integers(1, 2**64 - 1))
def test_the_answer_is_found_behind_anything(
    rubbish: bytes, frames: list[tuple[int, bytes]], where: list[int], nonce: int
) -> None:
    """Whatever an earlier session has left in the stream: rest of a frame, old HELLOs."""
    old = encode_node_hello(28, nonce ^ 1 or 5)
    hello = encode_node_hello(29, nonce, (1, 2, 3))
    stream = rubbish + old + rubbish + hello
    stream += b"".join(encode(Kind(kind), body) for kind, body in frames)
    deframer = Deframer()
    deframer.search(nonce)
    got = [g for g in in_pieces(deframer, stream, where) if g[1][11:19] != bytes(8) or g[0] != 1]
    assert got == [(Kind.HELLO, hello[5:]), *frames]
    assert deframer.nonce == 0
    # An old HELLO with nonce 0 is a greeting; it is reported, not skipped.
    assert deframer.skipped + (len(old) if nonce ^ 1 == 0 else 0) <= len(stream)


@settings(deadline=None)
@given(st.binary(max_size=400), cuts)
def test_a_search_holds_on_to_little(rubbish: bytes, where: list[int]) -> None:
    deframer = Deframer()
    deframer.search(12345)
    in_pieces(deframer, rubbish, where)
    assert len(deframer._rest) <= 4100
    hello = encode_node_hello(29, 12345)
    assert (Kind.HELLO, hello[5:]) in bodies(deframer, bytes(4200) + hello)


@pytest.mark.parametrize("head", [(0, 0), (MAX_LENGTH + 1, 0), (2**32 - 1, 0), (10, 4), (10, 255)])
def test_lengths_and_kinds_without_sense(head: tuple[int, int]) -> None:
    deframer = Deframer()
    with pytest.raises(RelayError):
        deframer.feed(struct.pack("<IB", *head))


@settings(deadline=None)
@given(st.binary(max_size=500), cuts)
def test_any_bytes_give_frames_or_an_error(data: bytes, where: list[int]) -> None:
    deframer = Deframer()
    try:
        got = in_pieces(deframer, data, where)
    except RelayError:
        return
    assert sum(len(body) + 5 for _, body in got) <= len(data)


def test_counters_of_older_and_newer_relays() -> None:
    body = struct.pack("<3Q", 1, 2, 3)
    assert decode_counters(body, 0, 24) == {"to_kernel": 1, "to_host": 2, "sessions": 3}
    longer = struct.pack("<15Q", *range(15))
    assert list(decode_counters(longer, 0, len(longer))) == list(COUNTERS)


class User:
    """Keeps what a port tells."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.changed = asyncio.Event()

    def _add(self, *event: object) -> None:
        self.events.append(event)
        self.changed.set()

    def session_started(self, family: int, counters: dict[str, int]) -> None:
        self._add("started", family)

    def session_ended(self, reason: str) -> None:
        self._add("ended", reason)

    def netlink(self, buffer: bytes, start: int, end: int) -> None:
        if buffer[start:end] == b"bad":
            raise ValueError("no netlink message")
        self._add("netlink", buffer[start:end])

    def relay_error(self, errno: int, text: str) -> None:
        self._add("error", errno, text)

    def relay_counters(self, counters: dict[str, int]) -> None:
        self._add("counters", counters)

    def paused(self, paused: bool) -> None:
        self._add("paused", paused)

    async def wait_for(self, *kinds: str, timeout: float = 60) -> None:
        """Wait until the kinds of all events so far are ``kinds``."""
        try:
            async with asyncio.timeout(timeout):
                while tuple(str(e[0]) for e in self.events) != kinds:
                    self.changed.clear()
                    await self.changed.wait()
        except TimeoutError:
            raise AssertionError(f"expected {kinds}, found {self.events}") from None


class Relay:
    """A relay's end of the stream, step by step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server: asyncio.Server | None = None
        self.peers: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
            asyncio.Queue()
        )

    async def start(self) -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self.peers.put((reader, writer))

        self.server = await asyncio.start_unix_server(accept, self.path)

    async def accept(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        async with asyncio.timeout(PATIENCE):
            return await self.peers.get()


async def nonce_of(reader: asyncio.StreamReader) -> int:
    async with asyncio.timeout(PATIENCE):
        hello = await reader.readexactly(24)
    length, kind, version, family, magic, nonce = struct.unpack("<IBBH8sQ", hello)
    assert (length, kind, version, family, magic) == (20, 1, 1, 0, MAGIC)
    assert nonce
    return int(nonce)


async def test_sessions_begin_end_and_begin_again(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    user = User()
    port = RelayPort(path, user)
    port.start()  # before there is a node
    relay = Relay(path)
    await relay.start()
    reader, writer = await relay.accept()
    nonce = await nonce_of(reader)
    writer.write(b"rest of something" + encode_node_hello(29, nonce) + encode(Kind.NETLINK, b"m"))
    await user.wait_for("started", "netlink")
    assert user.events == [("started", 29), ("netlink", b"m")]
    assert port.in_session
    port.send([encode(Kind.NETLINK, b"a"), encode(Kind.NETLINK, b"b")])
    async with asyncio.timeout(PATIENCE):
        assert await reader.readexactly(12) == b"\x02\0\0\0\0a\x02\0\0\0\0b"
    writer.write(encode(Kind.ERROR, struct.pack("<i", 5) + b"words"))
    await user.wait_for("started", "netlink", "error")
    assert user.events[-1] == ("error", 5, "words")
    writer.close()  # the node is switched off
    await user.wait_for("started", "netlink", "error", "ended")
    user.events.clear()
    reader, writer = await relay.accept()  # and on again
    second = await nonce_of(reader)
    assert second != nonce
    writer.write(encode_node_hello(29, nonce) + encode_node_hello(30, second))
    await user.wait_for("started")
    assert user.events == [("started", 30)]
    await port.stop()
    assert not port.in_session


@pytest.mark.parametrize("rubbish", [bytes(8), b"\xff" * 8, encode(Kind.NETLINK, b"bad")])
async def test_a_stream_without_sense_is_begun_anew(tmp_path: Path, rubbish: bytes) -> None:
    relay = Relay(tmp_path / "relay.sock")
    await relay.start()
    user = User()
    port = RelayPort(relay.path, user)
    port.start()
    reader, writer = await relay.accept()
    writer.write(encode_node_hello(29, await nonce_of(reader)))
    await user.wait_for("started")
    writer.write(rubbish)
    nonce = await nonce_of(reader)
    await user.wait_for("started", "ended")
    writer.write(rubbish + encode_node_hello(29, nonce))
    await user.wait_for("started", "ended", "started")
    assert port.sync_losses == 1
    await port.stop()


async def test_a_frame_that_stays_incomplete_ends_the_session(tmp_path: Path) -> None:
    relay = Relay(tmp_path / "relay.sock")
    await relay.start()
    user = User()
    port = RelayPort(relay.path, user)
    port.start()
    reader, writer = await relay.accept()
    writer.write(encode_node_hello(29, await nonce_of(reader)))
    await user.wait_for("started")
    writer.write(encode(Kind.NETLINK, b"x" * 20) + encode(Kind.NETLINK, b"abc")[:6])
    await user.wait_for("started", "netlink")
    assert port.connection is not None
    received_at = port.connection.received_at
    port.check(received_at + STALL - 0.1)
    assert port.in_session
    port.check(received_at + STALL)
    await user.wait_for("started", "netlink", "ended")
    assert await nonce_of(reader)
    await port.stop()


async def test_hello_is_repeated_until_a_node_has_booted(tmp_path: Path) -> None:
    relay = Relay(tmp_path / "relay.sock")
    await relay.start()
    user = User()
    port = RelayPort(relay.path, user)
    port.start()
    reader, writer = await relay.accept()
    nonces = [await nonce_of(reader)]
    assert port.connection is not None
    hello_at = port.connection.hello_at
    port.check(hello_at + HELLO_RETRY_MIN - 0.1)  # too early
    port.check(hello_at + HELLO_RETRY_MIN)
    nonces.append(await nonce_of(reader))
    assert len(set(nonces)) == 2
    writer.write(encode_node_hello(29, nonces[0]) + encode_node_hello(31, nonces[1]))
    await user.wait_for("started")
    assert user.events == [("started", 31)]
    await port.stop()


async def test_a_greeting_in_a_session_means_that_the_relay_has_restarted(tmp_path: Path) -> None:
    relay = Relay(tmp_path / "relay.sock")
    await relay.start()
    user = User()
    port = RelayPort(relay.path, user)
    port.start()
    reader, writer = await relay.accept()
    writer.write(encode_node_hello(29, await nonce_of(reader)))
    await user.wait_for("started")
    writer.write(encode_node_hello(29, 0))
    nonce = await nonce_of(reader)
    writer.write(encode_node_hello(29, nonce))
    await user.wait_for("started", "ended", "started")
    await port.stop()


async def test_a_node_that_does_not_read_is_noticed_and_given_up(tmp_path: Path) -> None:
    relay = Relay(tmp_path / "relay.sock")
    await relay.start()
    user = User()
    port = RelayPort(relay.path, user)
    port.start()
    reader, writer = await relay.accept()
    writer.write(encode_node_hello(29, await nonce_of(reader)))
    await user.wait_for("started")
    message = encode(Kind.NETLINK, bytes(60000))
    sent = 0
    while port.in_session and sent < 1000:
        port.send([message])
        sent += 1
    assert [e[0] for e in user.events] == ["started", "paused", "ended"]
    assert sent < 100
    await port.stop()
