# SPDX-License-Identifier: Apache-2.0
"""The vhost-user back end against a front end of the tests: good ones, bad ones, and mad guests."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlab.chip.vhost_user import GuestError, Reply, VhostUserServer

sys.path.insert(0, str(Path(__file__).parent))  # what the tests of the chip share lies beside them

import vhost_front_end as fe
from vhost_front_end import FrontEnd, until

OUT, IN = 0, fe.WRITE
BUFFER, ROOM, TABLE = 0x100100, 0x102000, 0x104000


class Echo:
    """A device that sends back what it gets, in upper case, as far as there is room."""

    features = 1
    queues = 1

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, int]] = []
        self.resets = 0
        self.seconds = 0.0
        self.later: asyncio.Future[Reply] | None = None

    def process(self, queue: int, readable: bytes, writable: int) -> Reply | asyncio.Future[Reply]:
        if self.later is not None:
            self.seen.append((readable, writable))
            return self.later
        self.seen.append((readable, writable))
        if readable == b"refuse":
            raise GuestError("refused")
        if readable == b"explode":
            raise RuntimeError("a fault of the device")
        return Reply(readable.upper()[:writable], self.seconds)

    def reset(self) -> None:
        self.resets += 1


class Bench:
    """A server with an echo device, and front ends that are closed at the end."""

    def __init__(self, path: Path) -> None:
        self.device = Echo()
        self.server = VhostUserServer(path, self.device)
        self.ends: list[FrontEnd] = []

    def front_end(self) -> FrontEnd:
        end = FrontEnd(self.server.path)
        self.ends.append(end)
        return end

    async def no_connection(self) -> None:
        await until(lambda: self.server.connection is None)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path / "device.sock")
    await bench.server.start()
    yield bench
    for end in bench.ends:
        end.close()
    await bench.server.stop()
    assert not bench.server.path.exists()


def open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- requests


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
async def test_requests(bench: Bench, event_idx: bool, indirect: bool) -> None:
    end = bench.front_end()
    await end.set_up(event_idx=event_idx, indirect=indirect)
    for number in range(3 * fe.QUEUE):  # round the ring more than once
        text = b"hello %d" % number
        end.put(BUFFER, text)
        end.put(ROOM, bytes(64))
        used = await end.run(
            [(BUFFER, len(text), OUT, 0), (ROOM, 32, IN, 0)], indirect_at=indirect and TABLE
        )
        assert used == (0, len(text))
        assert end.get(ROOM, 33) == text.upper().ljust(33, b"\0")
    assert bench.server.counters["chains"] == 3 * fe.QUEUE
    assert bench.server.counters["guest errors"] == 0


async def test_event_idx_is_written_or_the_guest_would_never_kick_again(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up(event_idx=True)
    for number in range(5):
        assert end.avail_event == number
        await end.run([(BUFFER, 4, OUT, 0), (ROOM, 8, IN, 0)])
    assert end.kicks == 5


async def test_several_chains_for_one_kick(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    end.put(BUFFER, b"abcdef")
    for number in range(4):
        head = end.chain(
            [(BUFFER + number, 1, OUT, 0), (ROOM + number, 1, IN, 0)], first=2 * number
        )
        end.offer(head)
    end.force_kick()
    assert [await end.complete() for _ in range(4)] == [(0, 1), (2, 1), (4, 1), (6, 1)]
    assert end.get(ROOM, 4) == b"ABCD"


async def test_buffers_may_be_in_pieces(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    end.put(BUFFER, b"abc")
    end.put(0x5000, b"defg")  # the other region
    used = await end.run(
        [
            (BUFFER, 3, OUT, 0),
            (0x5000, 0, OUT, 0),
            (0x5000, 4, OUT, 0),
            (ROOM, 2, IN, 0),
            (0x6000, 3, IN, 0),
            (ROOM + 2, 10, IN, 0),
        ],
        indirect_at=TABLE,
    )
    assert used == (0, 7)
    assert end.get(ROOM, 4) + end.get(0x6000, 3) == b"ABFGCDE"


async def test_buffers_across_adjoining_regions(bench: Bench) -> None:
    end = bench.front_end()
    await end.connect()
    await end.ask_u64(fe.GET_FEATURES)
    await end.send(fe.SET_FEATURES, struct.pack("=Q", 1 << fe.F_VERSION_1 | 1 << fe.F_PROTOCOL))
    await end.send(fe.SET_PROTOCOL_FEATURES, struct.pack("=Q", 1 << fe.PF_REPLY_ACK))
    adjoining = fe.LOW_GUEST + fe.LOW_SIZE
    table = struct.pack("=II", 2, 0) + end.regions()[0]
    table += struct.pack("=QQQQ", adjoining, fe.HIGH_SIZE, fe.HIGH_USER, end.offsets[1])
    await end.send(fe.SET_MEM_TABLE, table, end.fds)
    await end.set_ring()
    end.low[fe.LOW_SIZE - 2 :] = b"he"
    end.high[end.offsets[1] : end.offsets[1] + 3] = b"llo"
    assert await end.run([(adjoining - 2, 5, OUT, 0), (adjoining - 4, 8, IN, 0)]) == (0, 5)
    assert end.low[fe.LOW_SIZE - 4 :] == b"HELL"
    assert end.high[end.offsets[1] : end.offsets[1] + 1] == b"O"


async def test_index_wraps(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up(base=65534)
    for _ in range(5):
        assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)
    assert end.used_index == 3


async def test_interrupts_can_be_turned_off(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up(event_idx=False)
    end.put(fe.AVAIL, struct.pack("<H", 1))  # VIRTQ_AVAIL_F_NO_INTERRUPT
    end.chain([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)])
    end.offer(0)
    end.kick()
    await until(lambda: end.used_index == 1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(end.call_fd)


async def test_answers_that_take_time_do_not_hold_up_the_loop(bench: Bench) -> None:
    bench.device.seconds = 0.05
    end = bench.front_end()
    await end.set_up()
    for number in range(3):
        end.offer(end.chain([(BUFFER, 2, OUT, 0), (ROOM, 2, IN, 0)], first=2 * number))
    end.force_kick()
    assert [await end.complete() for _ in range(3)] == [(0, 2), (2, 2), (4, 2)]
    # in order, one at a time: the second is not looked at before the first is answered
    assert len(bench.device.seen) == 3
    bench.device.seconds = 3600.0
    end.offer(end.chain([(BUFFER, 2, OUT, 0), (ROOM, 2, IN, 0)]))
    end.force_kick()
    await until(lambda: len(bench.device.seen) == 4)
    # the ring can be stopped meanwhile; the chain counts as not taken
    reply = await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
    assert struct.unpack("=II", reply) == (0, 3)


async def test_a_device_may_answer_when_it_knows_the_answer(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    end = bench.front_end()
    await end.set_up()

    async def ask(later: asyncio.Future[Reply]) -> None:
        bench.device.later = later
        seen = len(bench.device.seen)
        end.offer(end.chain([(BUFFER, 2, OUT, 0), (ROOM, 2, IN, 0)]))
        end.force_kick()
        await until(lambda: len(bench.device.seen) == seen + 1)

    await ask(answer := loop.create_future())
    assert end.used_index == 0
    answer.set_result(Reply(b"ok"))
    assert await end.complete() == (0, 2)
    assert end.get(ROOM, 2) == b"ok"
    await ask(failing := loop.create_future())
    failing.set_exception(OSError("the chip is out of reach"))
    assert await end.complete() == (0, 0), "the guest does not wait for ever"
    await ask(unanswered := loop.create_future())
    # the ring can be stopped meanwhile, as above
    reply = await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
    assert struct.unpack("=II", reply) == (0, 2)
    assert unanswered.cancelled()


# -- rules that a guest may break


def longest(end: FrontEnd) -> list[tuple[int, int, int, int]]:
    return [(BUFFER, 1, OUT, 0)] * (fe.QUEUE - 1) + [(ROOM, 1, IN, 0)]


async def test_longest_chain(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    assert await end.run(longest(end)) == (0, 1)
    assert await end.run(longest(end), indirect_at=TABLE) == (0, 1)


async def broken(bench: Bench, end: FrontEnd) -> None:
    """The chain comes back unused, is counted, and the next good one works."""
    before = bench.server.counters["guest errors"]
    seen = len(bench.device.seen)
    end.offer(0)
    end.kick()
    assert await end.complete() == (0, 0)
    assert bench.server.counters["guest errors"] == before + 1
    assert len(bench.device.seen) == seen
    end.put(BUFFER, b"fine")
    assert await end.run([(BUFFER, 4, OUT, 0), (ROOM, 4, IN, 0)]) == (0, 4)
    assert end.get(ROOM, 4) == b"FINE"


@pytest.mark.parametrize(
    "descriptors",
    [
        pytest.param([(BUFFER, 4, fe.NEXT, 0)], id="loop of one"),
        pytest.param([(BUFFER, 4, fe.NEXT, 1), (BUFFER, 4, fe.NEXT, 0)], id="loop of two"),
        pytest.param([(BUFFER, 4, fe.NEXT, fe.QUEUE)], id="next behind the table"),
        pytest.param([(BUFFER, 4, fe.NEXT, 0xFFFF)], id="next far behind the table"),
        pytest.param([(ROOM, 4, IN | fe.NEXT, 1), (BUFFER, 4, OUT, 0)], id="readable last"),
        pytest.param([(0, 4, OUT, 0)], id="no memory at 0"),
        pytest.param([(fe.LOW_GUEST + fe.LOW_SIZE - 2, 4, OUT, 0)], id="over the end"),
        pytest.param([(2**64 - 2, 4, OUT, 0)], id="around the end of the address space"),
        pytest.param([(fe.HIGH_GUEST - 1, 4, OUT, 0)], id="before the start"),
        pytest.param([(BUFFER, 0xFFFFFFFF, OUT, 0)], id="4 GiB"),
        pytest.param([(TABLE, 16, fe.INDIRECT | fe.NEXT, 1), (ROOM, 1, IN, 0)], id="table, next"),
        pytest.param([(TABLE, 0, fe.INDIRECT, 0)], id="empty table"),
        pytest.param([(TABLE, 24, fe.INDIRECT, 0)], id="table of one and a half"),
        pytest.param([(TABLE, 16 * (fe.QUEUE + 1), fe.INDIRECT, 0)], id="table too long"),
        pytest.param([(TABLE, 0xFFFFFFF0, fe.INDIRECT, 0)], id="table of 4 GiB"),
        pytest.param([(8, 16, fe.INDIRECT, 0)], id="table without memory"),
    ],
)
async def test_broken_chains(bench: Bench, descriptors: list[fe.Descriptor]) -> None:
    end = bench.front_end()
    await end.set_up()
    for index, descriptor in enumerate(descriptors):
        end.descriptor(index, *descriptor)
    await broken(bench, end)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param((TABLE, 16, fe.INDIRECT, 0), id="table in a table"),
        pytest.param((BUFFER, 4, fe.NEXT, 0), id="loop"),
        pytest.param((BUFFER, 4, fe.NEXT, 1), id="next behind the table"),
    ],
)
async def test_broken_tables(bench: Bench, entry: fe.Descriptor) -> None:
    end = bench.front_end()
    await end.set_up()
    end.put(TABLE, struct.pack("<QIHH", *entry))
    end.descriptor(0, TABLE, 16, fe.INDIRECT, 0)
    await broken(bench, end)


async def test_request_that_the_device_refuses(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    end.put(BUFFER, b"refuse")
    assert await end.run([(BUFFER, 6, OUT, 0), (ROOM, 6, IN, 0)]) == (0, 0)
    assert bench.server.counters["guest errors"] == 1


async def test_fault_of_the_device_still_gives_the_chain_back(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    end.put(BUFFER, b"explode")
    assert await end.run([(BUFFER, 7, OUT, 0), (ROOM, 7, IN, 0)]) == (0, 0)
    assert bench.server.counters["device errors"] == 1


@pytest.mark.parametrize("how", ["head", "index"])
async def test_broken_ring_stops_until_it_is_set_up_anew(bench: Bench, how: str) -> None:
    end = bench.front_end()
    await end.set_up()
    if how == "head":
        end.offer(fe.QUEUE)
    else:
        end.put(fe.AVAIL + 2, struct.pack("<H", fe.QUEUE + 1))
    end.force_kick()
    await end.wait_fd(end.error_fd)
    assert bench.server.counters["guest errors"] == 1
    assert bench.server.connection is not None
    assert bench.server.connection.rings[0].broken is not None
    # kicks are not even read any more
    end.force_kick()
    await end.ask_u64(fe.GET_FEATURES)
    assert not bench.device.seen
    await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
    await end.set_ring()
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


async def test_mad_guests(bench: Bench) -> None:
    """Random bytes in the descriptor table, the rings and the buffers, by a seed."""
    end = bench.front_end()
    await end.set_up(event_idx=False)
    rng = random.Random(2)
    interesting = (BUFFER, ROOM, TABLE, fe.DESC, 0, 1, 2**63, 2**64 - 1, 0xFFFF, 16, 32)
    for _ in range(400):
        for index in range(fe.QUEUE):
            address = rng.choice((*interesting, rng.getrandbits(64), fe.DESC + rng.randrange(4096)))
            length = rng.choice((0, 1, 8, 16, 64, 4096, rng.getrandbits(32)))
            end.descriptor(index, address, length, rng.randrange(8), rng.randrange(fe.QUEUE + 2))
        end.put(TABLE, rng.randbytes(512))
        rings = bench.server.connection.rings if bench.server.connection else []
        if rings[0].broken or not rings[0].running:
            await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
            await end.set_ring()
        end.used_seen = end.used_index
        for _ in range(rng.randrange(1, 5)):
            end.offer(rng.randrange(fe.QUEUE))
        end.force_kick()
        await end.ask_u64(fe.GET_FEATURES)  # the loop still turns
    assert bench.server.counters["guest errors"] > 100
    await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
    await end.set_ring()
    end.put(BUFFER, b"sane")
    assert await end.run([(BUFFER, 4, OUT, 0), (ROOM, 4, IN, 0)]) == (0, 4)


entries = st.tuples(
    st.one_of(
        st.sampled_from((BUFFER, ROOM, TABLE, TABLE + 8, fe.DESC, 0, 2**64 - 1)),
        st.integers(0, 2**64 - 1),
    ),
    st.one_of(st.integers(0, 128), st.integers(0, 2**32 - 1)),
    st.integers(0, 15),
    st.integers(0, fe.QUEUE + 1),
)


@settings(max_examples=60, deadline=None)
@given(
    direct=st.lists(entries, min_size=1, max_size=6),
    table=st.lists(entries, max_size=6),
    event_idx=st.booleans(),
)
def test_any_chain_comes_back(
    direct: list[fe.Descriptor], table: list[fe.Descriptor], event_idx: bool
) -> None:
    """Whatever is in a chain, it comes back, within its bounds, and the next one works."""

    async def run(directory: Path) -> None:
        bench = Bench(directory / "device.sock")
        await bench.server.start()
        end = bench.front_end()
        try:
            await end.set_up(event_idx=event_idx)
            for index, entry in enumerate(direct):
                end.descriptor(index, *entry)
            end.put(TABLE, b"".join(struct.pack("<QIHH", *entry) for entry in table))
            end.offer(0)
            end.force_kick()
            counters = bench.server.counters
            # Not asked of the used ring: the chain's buffers may lie on it.
            await until(lambda: counters["chains"] + counters["guest errors"] > 0)
            await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
            await end.set_ring()
            end.put(BUFFER, b"fine")
            assert await end.run([(BUFFER, 4, OUT, 0), (ROOM, 4, IN, 0)]) == (0, 4)
            assert end.get(ROOM, 4) == b"FINE"
        finally:
            end.close()
            await bench.server.stop()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(run(Path(directory)))


# -- messages


async def test_what_is_offered(bench: Bench) -> None:
    end = bench.front_end()
    await end.connect()
    features = await end.ask_u64(fe.GET_FEATURES)
    for bit in (0, fe.F_INDIRECT, fe.F_EVENT_IDX, fe.F_PROTOCOL, fe.F_VERSION_1):
        assert features >> bit & 1
    assert not features >> 34 & 1  # packed rings
    assert await end.ask_u64(fe.GET_PROTOCOL_FEATURES) == (
        1 << fe.PF_REPLY_ACK | 1 << fe.PF_MEM_SLOTS
    )
    assert await end.ask_u64(fe.GET_QUEUE_NUM) == 1
    assert await end.ask_u64(fe.GET_MAX_MEM_SLOTS) >= 8
    assert await end.ask(fe.GET_CONFIG, bytes(12)) == b""


async def test_features_of_the_transport_are_let_through(bench: Bench) -> None:
    # QEMU hands on everything the driver accepted, for instance RING_RESET (40)
    end = bench.front_end()
    await end.set_up()
    await end.send(fe.SET_FEATURES, struct.pack("=Q", end.features | 1 << 40 | 1 << 24))
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


async def test_memory_in_slots(bench: Bench) -> None:
    before = open_fds()
    end = bench.front_end()
    await end.connect()
    await end.send(fe.SET_FEATURES, struct.pack("=Q", 1 << fe.F_VERSION_1 | 1 << fe.F_PROTOCOL))
    flags = struct.pack("=Q", 1 << fe.PF_REPLY_ACK | 1 << fe.PF_MEM_SLOTS)
    await end.send(fe.SET_PROTOCOL_FEATURES, flags)
    for region, fd in zip(end.regions(), end.fds, strict=True):
        assert await end.acknowledged(fe.ADD_MEM_REG, bytes(8) + region, [fd]) == 0
    await end.set_ring()
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)
    overlapping = struct.pack("=QQQQ", fe.LOW_GUEST + 16, 32, 0x1234, 0)
    assert await end.acknowledged(fe.ADD_MEM_REG, bytes(8) + overlapping, [end.fds[0]]) == 1
    high = end.regions()[1]
    assert await end.acknowledged(fe.REM_MEM_REG, bytes(8) + high) == 0
    assert await end.acknowledged(fe.REM_MEM_REG, bytes(8) + high) == 1
    # the ring is in the other region and still works
    assert await end.run([(0x5000, 1, OUT, 0), (0x6000, 1, IN, 0)]) == (0, 1)
    low = end.regions()[0]
    assert await end.acknowledged(fe.REM_MEM_REG, bytes(8) + low) == 1
    assert bench.server.counters["guest errors"] == 1
    end.close()
    bench.ends.remove(end)
    await bench.no_connection()
    assert open_fds() <= before


async def test_memory_table_can_change_under_a_running_ring(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    for _ in range(3):
        assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)
        await end.set_memory()
    assert bench.server.counters["guest errors"] == 0


@pytest.mark.parametrize(
    ("request_number", "payload"),
    [
        pytest.param(fe.SET_VRING_NUM, struct.pack("=II", 0, 3), id="not a power of two"),
        pytest.param(fe.SET_VRING_NUM, struct.pack("=II", 0, 0), id="no entries"),
        pytest.param(fe.SET_VRING_NUM, struct.pack("=II", 0, 1 << 20), id="too many entries"),
        pytest.param(fe.SET_VRING_NUM, struct.pack("=II", 1, 16), id="no such queue"),
        pytest.param(fe.SET_VRING_KICK, struct.pack("=Q", 0), id="no eventfd"),
        pytest.param(fe.SET_VRING_KICK, struct.pack("=Q", 0x100), id="polling"),
        pytest.param(fe.SET_MEM_TABLE, struct.pack("=II", 1, 0) + bytes(32), id="no memory fd"),
        pytest.param(fe.SET_MEM_TABLE, struct.pack("=II", 9, 0) + bytes(288), id="9 regions"),
        pytest.param(fe.ADD_MEM_REG, bytes(40), id="region without fd"),
        pytest.param(fe.SET_FEATURES, struct.pack("=Q", 1 << 34), id="packed ring"),
        pytest.param(200, b"", id="unknown message"),
    ],
)
async def test_messages_that_are_refused(bench: Bench, request_number: int, payload: bytes) -> None:
    end = bench.front_end()
    await end.set_up()
    assert await end.acknowledged(request_number, payload) == 1
    counters = bench.server.counters
    assert counters["protocol errors"] + counters["unknown messages"] == 1
    assert await end.ask_u64(fe.GET_FEATURES)


async def test_file_as_kick(bench: Bench, tmp_path: Path) -> None:
    end = bench.front_end()
    await end.set_up()
    with (tmp_path / "file").open("wb") as file:
        assert await end.acknowledged(fe.SET_VRING_KICK, struct.pack("=Q", 0), [file.fileno()]) == 1


@pytest.mark.parametrize(
    "table",
    [
        pytest.param((fe.LOW_GUEST, fe.LOW_SIZE + 4096, fe.LOW_USER, 0), id="longer than its file"),
        pytest.param((fe.LOW_GUEST, fe.LOW_SIZE, fe.LOW_USER, 1 << 62), id="offset behind the end"),
        pytest.param((2**64 - 4096, fe.LOW_SIZE, fe.LOW_USER, 0), id="around the end"),
        pytest.param((fe.LOW_GUEST, 0, fe.LOW_USER, 0), id="empty"),
    ],
)
async def test_bad_memory_tables(bench: Bench, table: tuple[int, int, int, int]) -> None:
    end = bench.front_end()
    await end.set_up()
    payload = struct.pack("=II", 1, 0) + struct.pack("=QQQQ", *table)
    assert await end.acknowledged(fe.SET_MEM_TABLE, payload, [end.fds[0]]) == 1
    # the old memory still holds
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


@pytest.mark.parametrize(
    "addresses",
    [
        pytest.param((fe.DESC + 8, fe.USED, fe.AVAIL), id="descriptors not aligned"),
        pytest.param((fe.DESC, fe.USED + 2, fe.AVAIL), id="used ring not aligned"),
        pytest.param((fe.DESC, fe.USED, fe.AVAIL + 1), id="available ring not aligned"),
        pytest.param((0x9000, fe.USED, fe.AVAIL), id="no memory"),
        pytest.param((fe.DESC, 0x8FF0, fe.AVAIL), id="over the end of memory"),
    ],
)
async def test_bad_ring_addresses(bench: Bench, addresses: tuple[int, int, int]) -> None:
    end = bench.front_end()
    await end.set_up()
    assert await end.acknowledged(fe.SET_VRING_ADDR, end.vring_addr(*addresses)) == 1
    assert await end.acknowledged(fe.SET_VRING_ADDR, end.vring_addr()) == 0
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(struct.pack("=III", 1, 1, 1 << 20), id="too long"),
        pytest.param(struct.pack("=III", 1, 2, 0), id="other version"),
        pytest.param(struct.pack("=III", fe.SET_FEATURES, 1, 3) + b"abc", id="short body"),
        pytest.param(
            struct.pack("=III", fe.SET_VRING_NUM, 1, 8) + struct.pack("=II", 7, 1), id="q"
        ),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
    ],
)
async def test_front_ends_that_talk_nonsense_are_left(bench: Bench, message: bytes) -> None:
    end = bench.front_end()
    await end.connect()
    end.socket.send(message)
    assert await end.hung_up()
    assert bench.server.counters["protocol errors"] == 1
    other = bench.front_end()
    await other.set_up()
    assert await other.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


async def test_messages_may_come_in_pieces(bench: Bench) -> None:
    end = bench.front_end()
    await end.connect()
    for byte in struct.pack("=III", fe.GET_FEATURES, 1, 0):
        end.socket.send(bytes((byte,)))
        await asyncio.sleep(0)
    number, _ = await end.receive()
    assert number == fe.GET_FEATURES


async def test_without_protocol_features_the_ring_is_enabled(bench: Bench) -> None:
    end = bench.front_end()
    await end.connect()
    await end.send(fe.SET_FEATURES, struct.pack("=Q", 1 << fe.F_VERSION_1))
    await end.set_memory()
    await end.send(fe.SET_VRING_NUM, struct.pack("=II", 0, fe.QUEUE))
    await end.send(fe.SET_VRING_ADDR, end.vring_addr())
    await end.send(fe.SET_VRING_CALL, struct.pack("=Q", 0), [end.call_fd])
    await end.send(fe.SET_VRING_KICK, struct.pack("=Q", 0), [end.kick_fd])
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


async def test_disabled_ring_waits(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    assert await end.acknowledged(fe.SET_VRING_ENABLE, struct.pack("=II", 0, 0)) == 0
    end.offer(end.chain([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]))
    end.force_kick()
    await end.ask_u64(fe.GET_FEATURES)
    assert not bench.device.seen
    assert await end.acknowledged(fe.SET_VRING_ENABLE, struct.pack("=II", 0, 1)) == 0
    assert await end.complete() == (0, 1)


async def test_stop_and_go_on(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    for _ in range(3):
        await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)])
    reply = await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
    assert struct.unpack("=II", reply) == (0, 3)
    await end.set_ring(base=3)
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


async def test_a_ring_that_was_used_before_goes_on_where_its_driver_is(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    for _ in range(3):
        await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)])
    await end.ask(fe.GET_VRING_BASE, struct.pack("=II", 0, 0))
    # A device that was plugged in anew knows of no chain.
    os.eventfd_write(end.call_fd, 1)
    os.eventfd_read(end.call_fd)
    await end.set_ring(base=3, told=0)
    assert os.eventfd_read(end.call_fd) == 1, "the driver looks whether it has seen everything"
    assert len(bench.device.seen) == 3, "nothing is done twice"
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


# -- connections


async def test_front_end_comes_and_goes(bench: Bench) -> None:
    before = open_fds()
    for number in range(4):
        end = bench.front_end()
        await end.set_up()
        assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)
        if number % 2:
            end.offer(0)  # goes in the middle of something
            end.force_kick()
        end.close()
        bench.ends.remove(end)
    await bench.no_connection()
    assert bench.server.counters["connections"] == 4
    assert bench.device.resets == 8
    assert open_fds() == before


async def test_second_front_end_is_turned_away(bench: Bench) -> None:
    end, other = bench.front_end(), bench.front_end()
    await end.set_up()
    await other.connect()
    assert await other.hung_up()
    assert bench.server.counters["refused"] == 1
    assert await end.run([(BUFFER, 1, OUT, 0), (ROOM, 1, IN, 0)]) == (0, 1)


async def test_stop_hangs_up(bench: Bench) -> None:
    end = bench.front_end()
    await end.set_up()
    await bench.server.stop()
    assert await end.hung_up()
    await bench.server.start()
    again = bench.front_end()
    await again.set_up()


async def test_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "device.sock"
    stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stale.bind(str(path))
    stale.close()
    server = VhostUserServer(path, Echo())
    await server.start()
    second = VhostUserServer(path, Echo())
    with pytest.raises(OSError, match="in use"):
        await second.start()
    await server.stop()


async def test_long_paths(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    server = VhostUserServer(directory / "device.sock", Echo())
    await server.start()
    assert server.path.is_socket()
    await server.stop()
    assert not server.path.exists()
