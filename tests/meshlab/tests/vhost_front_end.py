# SPDX-License-Identifier: Apache-2.0
"""The other side of vhost-user, for tests: a front end with guest memory and a guest's driver.

Written from QEMU's docs/interop/vhost-user.rst and the VIRTIO specification, not from the back end.
"""

from __future__ import annotations

import array
import asyncio
import mmap
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from patience import PATIENCE

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = 8, 9, 10, 11
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR = 12, 13, 14
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM, SET_VRING_ENABLE = 15, 16, 17, 18
GET_CONFIG, GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG = 24, 36, 37, 38

F_INDIRECT, F_EVENT_IDX, F_PROTOCOL, F_VERSION_1 = 28, 29, 30, 32
PF_REPLY_ACK, PF_MEM_SLOTS = 3, 15

NEXT, WRITE, INDIRECT = 1, 2, 4

QUEUE = 16
LOW_GUEST, HIGH_GUEST = 0x1000, 0x100000
LOW_SIZE, HIGH_SIZE = 0x8000, 0x10000
LOW_USER, HIGH_USER = 0x7F0000000000, 0x7F5500000000

DESC, AVAIL, USED = 0x1000, 0x2000, 0x3000
"""Guest addresses of the parts of the ring, in the low region."""


Descriptor = tuple[int, int, int, int]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds that nobody signals; fail at the deadline."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - it is about memory shared with a device
            await asyncio.sleep(0.001)


class FrontEnd:
    """Guest memory of two regions, one virtqueue, and the socket to the back end."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        self.path = path
        self.fds = [os.memfd_create("low"), os.memfd_create("high")]
        # the high region does not start where its file starts
        self.offsets = [0, 0x2000]
        os.ftruncate(self.fds[0], LOW_SIZE)
        os.ftruncate(self.fds[1], HIGH_SIZE + 0x2000)
        self.low = mmap.mmap(self.fds[0], LOW_SIZE)
        self.high = mmap.mmap(self.fds[1], HIGH_SIZE + 0x2000)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.event_idx = False
        self.features = 0
        self.avail_index = 0
        self.used_seen = 0
        self.kicks = 0

    # -- messages

    async def connect(self) -> None:
        await asyncio.get_running_loop().sock_connect(self.socket, str(self.path))

    async def send(
        self, request: int, payload: bytes = b"", fds: list[int] | None = None, flags: int = 1
    ) -> None:
        ancillary = []
        if fds:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
        message = struct.pack("=III", request, flags, len(payload)) + payload
        self.socket.sendmsg([message], ancillary)

    async def receive(self) -> tuple[int, bytes]:
        loop = asyncio.get_running_loop()

        async def exactly(size: int) -> bytes:
            data = b""
            while len(data) < size:
                part = await asyncio.wait_for(
                    loop.sock_recv(self.socket, size - len(data)), PATIENCE
                )
                if not part:
                    raise EOFError
                data += part
            return data

        request, flags, size = struct.unpack("=III", await exactly(12))
        assert flags == 0x5, "a reply of version 1"
        return request, await exactly(size)

    async def ask(self, request: int, payload: bytes = b"") -> bytes:
        await self.send(request, payload)
        number, reply = await self.receive()
        assert number == request
        return reply

    async def ask_u64(self, request: int) -> int:
        return int(struct.unpack("=Q", await self.ask(request))[0])

    async def acknowledged(
        self, request: int, payload: bytes = b"", fds: list[int] | None = None
    ) -> int:
        """Send with NEED_REPLY (REPLY_ACK must be negotiated); return 0 for success."""
        await self.send(request, payload, fds, flags=1 | 8)
        number, reply = await self.receive()
        assert number == request
        return int(struct.unpack("=Q", reply)[0])

    async def hung_up(self) -> bool:
        """Wait until the back end closes the connection."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await asyncio.wait_for(loop.sock_recv(self.socket, 4096), PATIENCE)
            except ConnectionResetError:
                return True
            if not data:
                return True

    # -- the usual way to set a device up

    def regions(self) -> list[bytes]:
        return [
            struct.pack("=QQQQ", LOW_GUEST, LOW_SIZE, LOW_USER, self.offsets[0]),
            struct.pack("=QQQQ", HIGH_GUEST, HIGH_SIZE, HIGH_USER, self.offsets[1]),
        ]

    async def set_memory(self) -> None:
        table = struct.pack("=II", 2, 0) + b"".join(self.regions())
        await self.send(SET_MEM_TABLE, table, self.fds)

    def vring_addr(self, desc: int = DESC, used: int = USED, avail: int = AVAIL) -> bytes:
        base = LOW_USER - LOW_GUEST
        return struct.pack("=IIQQQQ", 0, 0, desc + base, used + base, avail + base, 0)

    async def set_up(self, *, event_idx: bool = True, indirect: bool = True, base: int = 0) -> None:
        """Connect and do what QEMU does, up to an enabled ring."""
        self.event_idx = event_idx
        await self.connect()
        offered = await self.ask_u64(GET_FEATURES)
        await self.ask_u64(GET_PROTOCOL_FEATURES)
        await self.send(SET_PROTOCOL_FEATURES, struct.pack("=Q", 1 << PF_REPLY_ACK))
        await self.send(SET_OWNER)
        self.features = 1 << F_VERSION_1 | 1 << F_PROTOCOL | (offered & 1)
        self.features |= event_idx << F_EVENT_IDX | indirect << F_INDIRECT
        await self.send(SET_FEATURES, struct.pack("=Q", self.features))
        await self.set_memory()
        await self.set_ring(base)

    async def set_ring(self, base: int = 0, told: int | None = None) -> None:
        self.avail_index = self.used_seen = base
        struct.pack_into("<HH", self.low, USED - LOW_GUEST, 0, base)
        struct.pack_into("<HH", self.low, AVAIL - LOW_GUEST, 0, base)
        self.arm()
        await self.send(SET_VRING_NUM, struct.pack("=II", 0, QUEUE))
        await self.send(SET_VRING_BASE, struct.pack("=II", 0, base if told is None else told))
        await self.send(SET_VRING_ADDR, self.vring_addr())
        await self.send(SET_VRING_KICK, struct.pack("=Q", 0), [self.kick_fd])
        await self.send(SET_VRING_CALL, struct.pack("=Q", 0), [self.call_fd])
        await self.send(SET_VRING_ERR, struct.pack("=Q", 0), [self.error_fd])
        # the acknowledge tells that everything before has been taken
        assert await self.acknowledged(SET_VRING_ENABLE, struct.pack("=II", 0, 1)) == 0

    # -- guest memory

    def put(self, guest: int, data: bytes) -> None:
        memory, at = self._place(guest)
        memory[at : at + len(data)] = data

    def get(self, guest: int, size: int) -> bytes:
        memory, at = self._place(guest)
        return memory[at : at + size]

    def _place(self, guest: int) -> tuple[mmap.mmap, int]:
        if guest >= HIGH_GUEST:
            return self.high, guest - HIGH_GUEST + self.offsets[1]
        return self.low, guest - LOW_GUEST

    # -- the guest's driver

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        self.put(DESC + 16 * index, struct.pack("<QIHH", address, length, flags, following))

    def chain(self, descriptors: list[Descriptor], first: int = 0) -> int:
        """Put a chain into the table; the flags get NEXT where something follows."""
        for number, (address, length, flags, _) in enumerate(descriptors):
            last = number == len(descriptors) - 1
            self.descriptor(
                first + number, address, length, flags | (0 if last else NEXT), first + number + 1
            )
        return first

    def table(self, descriptors: list[Descriptor], at: int) -> bytes:
        """Return an indirect table for the same chain, and put it at a guest address."""
        data = b""
        for number, (address, length, flags, _) in enumerate(descriptors):
            last = number == len(descriptors) - 1
            data += struct.pack("<QIHH", address, length, flags | (0 if last else NEXT), number + 1)
        self.put(at, data)
        return data

    def offer(self, head: int) -> None:
        """Make the chain at ``head`` available."""
        at = AVAIL + 4 + 2 * (self.avail_index % QUEUE)
        self.put(at, struct.pack("<H", head))
        self.avail_index = (self.avail_index + 1) & 0xFFFF
        self.put(AVAIL + 2, struct.pack("<H", self.avail_index))

    def arm(self) -> None:
        """Ask for an interrupt at the next used entry (used_event)."""
        self.put(AVAIL + 4 + 2 * QUEUE, struct.pack("<H", self.used_seen))

    @property
    def avail_event(self) -> int:
        return int(struct.unpack("<H", self.get(USED + 4 + 8 * QUEUE, 2))[0])

    @property
    def used_index(self) -> int:
        return int(struct.unpack("<H", self.get(USED + 2, 2))[0])

    def kick(self) -> None:
        """Kick as a driver does: with EVENT_IDX only when the device asks for this entry."""
        if self.event_idx and self.avail_event != (self.avail_index - 1) & 0xFFFF:
            return
        self.force_kick()

    def force_kick(self) -> None:
        self.kicks += 1
        os.eventfd_write(self.kick_fd, 1)

    async def wait_fd(self, fd: int, seconds: float = PATIENCE) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        try:
            await asyncio.wait_for(ready.wait(), seconds)
        finally:
            loop.remove_reader(fd)
        os.eventfd_read(fd)

    def take_used(self) -> tuple[int, int]:
        """Return head and written bytes of the next used entry."""
        assert self.used_index != self.used_seen
        at = USED + 4 + 8 * (self.used_seen % QUEUE)
        head, written = struct.unpack("<II", self.get(at, 8))
        self.used_seen = (self.used_seen + 1) & 0xFFFF
        self.arm()
        return head, written

    async def complete(self) -> tuple[int, int]:
        """Wait for the interrupt and return the next used entry."""
        while self.used_index == self.used_seen:
            await self.wait_fd(self.call_fd)
        return self.take_used()

    async def run(self, descriptors: list[Descriptor], *, indirect_at: int = 0) -> tuple[int, int]:
        """Send one chain, direct or by a table, and wait for it."""
        if indirect_at:
            table = self.table(descriptors, indirect_at)
            self.descriptor(0, indirect_at, len(table), INDIRECT, 0)
        else:
            self.chain(descriptors)
        self.offer(0)
        self.kick()
        return await self.complete()

    def close(self) -> None:
        self.socket.close()
        for fd in (*self.fds, self.kick_fd, self.call_fd, self.error_fd):
            os.close(fd)
        self.low.close()
        self.high.close()
