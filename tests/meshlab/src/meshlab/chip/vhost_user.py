# SPDX-License-Identifier: Apache-2.0
"""A vhost-user back end: a virtio device of QEMU's guests, in this process.

QEMU (the front end) connects to a unix socket, hands over the guest's memory and, for every
virtqueue, two eventfds, and from then on guest and device talk through shared memory. The protocol
is in QEMU's docs/interop/vhost-user.rst, the split virtqueue in the VIRTIO specification 1.2,
section 2.7.

Whatever is in the guest's memory is untrusted. A descriptor chain that breaks a rule is counted and
given back unused; a ring that breaks a rule is stopped until the driver sets it up anew. Neither
can reach memory that is not the guest's, raise out of this module, or keep the event loop busy.
The front end is trusted not to shrink the memory that it handed over.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import enum
import logging
import mmap
import os
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from meshlab.wire.sockets import listen

log = logging.getLogger(__name__)

VIRTIO_RING_F_INDIRECT_DESC = 28
VIRTIO_RING_F_EVENT_IDX = 29
VHOST_USER_F_PROTOCOL_FEATURES = 30
VIRTIO_F_VERSION_1 = 32
VIRTIO_F_RING_PACKED = 34

RING_FEATURES = (
    1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VHOST_USER_F_PROTOCOL_FEATURES
    | 1 << VIRTIO_F_VERSION_1
)
"""What this module does for every device; the device adds its own features (bits 0 to 23)."""

PROTOCOL_F_REPLY_ACK = 3
PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15
PROTOCOL_FEATURES = 1 << PROTOCOL_F_REPLY_ACK | 1 << PROTOCOL_F_CONFIGURE_MEM_SLOTS

VERSION = 0x1
FLAG_REPLY = 0x4
FLAG_NEED_REPLY = 0x8

MAX_REGIONS = 8
"""Most memory regions in SET_MEM_TABLE (as many file descriptors fit in one message)."""

MAX_MEM_SLOTS = 32
"""Most memory regions altogether."""

MAX_PAYLOAD = 4096
"""Largest message body in bytes that is read; every message of the protocol is smaller."""

MAX_QUEUE = 1024
"""Largest virtqueue that is accepted (QEMU's limit)."""

MAX_CHAIN_BYTES = 1 << 17
"""Largest descriptor chain in bytes; a longer one is counted as broken."""

BATCH = 32
"""Chains worked off before the event loop gets its turn."""

DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT = 1, 2, 4
AVAIL_F_NO_INTERRUPT = 1

_HEADER = struct.Struct("=III")
_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDR = struct.Struct("=IIQQQQ")
_REGION = struct.Struct("=QQQQ")
_DESCRIPTOR = struct.Struct("<QIHH")
_USED = struct.Struct("<II")


class Request(enum.IntEnum):
    """Messages from the front end (vhost-user.rst, "Front-end message types")."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38


class ProtocolError(Exception):
    """The front end sent something that makes no sense."""


class GuestError(Exception):
    """The guest put something into its memory that breaks the rules of virtio."""


class RingError(GuestError):
    """As ``GuestError``, and the ring cannot be used any more."""


class Reply(NamedTuple):
    """What a device says to one descriptor chain: bytes for the guest, and how long it takes."""

    data: bytes
    seconds: float = 0.0


class Device(Protocol):
    """What a virtio device does with its descriptor chains, one after the other."""

    features: int
    """Feature bits 0 to 23 of the device."""

    queues: int
    """How many virtqueues it has."""

    def process(self, queue: int, readable: bytes, writable: int) -> Reply | asyncio.Future[Reply]:
        """Answer a chain that holds ``readable`` and has room for ``writable`` bytes, now or later.

        :raises GuestError: when the request makes no sense and has no answer.
        """

    def reset(self) -> None:
        """Forget what belongs to a connection: the virtual machine has gone or is coming."""


class Region(NamedTuple):
    """One piece of the guest's memory."""

    guest: int
    """Guest physical address."""
    size: int
    user: int
    """Address in the front end's address space, which SET_VRING_ADDR uses."""
    offset: int
    """Where the piece starts in ``memory``."""
    memory: mmap.mmap


class GuestMemory:
    """The guest's memory, by guest physical address and by address in the front end."""

    def __init__(self) -> None:
        """Start without any memory."""
        self.regions: list[Region] = []

    def add(self, place: tuple[int, int, int, int], fd: int) -> None:
        """Map a piece: guest address, size, front end address, offset in ``fd``.

        ``fd`` is not closed.

        :raises ProtocolError: when it cannot be mapped, overlaps another, or is one too many.
        """
        guest, size, user, offset = place
        if len(self.regions) >= MAX_MEM_SLOTS:
            raise ProtocolError(f"more than {MAX_MEM_SLOTS} memory regions")
        if size == 0 or any(start + size > 1 << 64 for start in (guest, user, offset)):
            raise ProtocolError(f"memory region of {size} bytes at {guest:#x}")
        if any(guest < r.guest + r.size and r.guest < guest + size for r in self.regions):
            raise ProtocolError(f"memory region at {guest:#x} overlaps another one")
        try:
            # From the start of the file: the offset need not be that of a page.
            memory = mmap.mmap(fd, offset + size)
        except (OSError, ValueError, OverflowError) as error:
            raise ProtocolError(f"memory region at {guest:#x}: {error}") from error
        self.regions.append(Region(guest, size, user, offset, memory))

    def remove(self, guest: int, size: int, user: int) -> None:
        """Unmap a piece.

        :raises ProtocolError: when there is none like it.
        """
        for region in self.regions:
            if region[:3] == (guest, size, user):
                self.regions.remove(region)
                _unmap(region)
                return
        raise ProtocolError(f"no memory region of {size} bytes at {guest:#x}")

    def clear(self) -> None:
        """Unmap everything."""
        for region in self.regions:
            _unmap(region)
        self.regions.clear()

    def read(self, address: int, length: int) -> bytes:
        """Return bytes at a guest physical address.

        :raises GuestError: when there is no memory.
        """
        parts = []
        while length:
            region, at, size = self._find(address, length)
            parts.append(region.memory[at : at + size])
            address += size
            length -= size
        return b"".join(parts)

    def write(self, address: int, data: bytes) -> None:
        """Put bytes to a guest physical address.

        :raises GuestError: when there is no memory.
        """
        while data:
            region, at, size = self._find(address, len(data))
            region.memory[at : at + size] = data[:size]
            address += size
            data = data[size:]

    def _find(self, address: int, length: int) -> tuple[Region, int, int]:
        for region in self.regions:
            inside = address - region.guest
            if 0 <= inside < region.size:
                return region, region.offset + inside, min(length, region.size - inside)
        raise GuestError(f"no guest memory at {address:#x}")

    def view(self, user: int, length: int) -> memoryview:
        """Return memory by its address in the front end.

        :raises RingError: when there is no memory.
        """
        for region in self.regions:
            inside = user - region.user
            if inside >= 0 and inside + length <= region.size:
                at = region.offset + inside
                return memoryview(region.memory)[at : at + length]
        raise RingError(f"no guest memory of {length} bytes at front end address {user:#x}")


def _unmap(region: Region) -> None:
    # A ring may still look at it; then the last view unmaps it.
    with contextlib.suppress(BufferError):
        region.memory.close()


class Segment(NamedTuple):
    """One buffer of a descriptor chain."""

    address: int
    length: int
    writable: bool


def _fence() -> None:
    """Order our writes to shared memory before our later reads of it.

    Without it the processor may read the guest's index before the guest can see ours, and each side
    would then wait for the other (VIRTIO 2.7.13.4). Taking a lock is a full barrier everywhere.
    """
    with _FENCE:
        pass


_FENCE = threading.Lock()


class Vring:
    """One split virtqueue, seen from the device."""

    def __init__(self, index: int, connection: Connection) -> None:
        """Make a queue that is not set up yet."""
        self.index = index
        self._connection = connection
        self.size = 0
        self.addresses: tuple[int, int, int] | None = None
        self.last_avail = 0
        self.enabled = False
        self.kick: int | None = None
        self.call: int | None = None
        self.error: int | None = None
        self.broken: str | None = None
        self.unseen = False
        """Whether the latest answer is one of the device that was here before."""
        self.running = False
        self._views: list[memoryview] = []
        self._used_index = 0
        self._timer: asyncio.Handle | asyncio.Future[Reply] | None = None

    @property
    def idle(self) -> bool:
        """Whether it runs, and no work is planned."""
        return self.running and self._timer is None

    # -- set up and taken down by messages

    def start(self) -> None:
        """Take up work if all that is needed is there.

        :raises RingError: when an address is bad.
        """
        if self.running or self.kick is None or self.addresses is None or not self.size:
            return
        self._map()
        self.broken = None
        self.running = True
        self._connection.loop.add_reader(self.kick, self._kicked)
        # The driver may have put something there before we came.
        self._later(self.work)

    def stop(self) -> None:
        """Leave the ring as it is between two chains."""
        if self.kick is not None and self.running:
            self._connection.loop.remove_reader(self.kick)
        self.running = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for view in self._views:
            view.release()
        self._views.clear()

    def close(self) -> None:
        """Stop and give the file descriptors back."""
        self.stop()
        self.set_fd("kick", None)
        self.set_fd("call", None)
        self.set_fd("error", None)

    def set_fd(self, name: str, fd: int | None) -> None:
        """Replace one of ``kick``, ``call`` and ``error``."""
        old = getattr(self, name)
        if old is not None:
            if name == "kick" and self.running:
                self.stop()
            os.close(old)
        setattr(self, name, fd)

    def remap(self) -> None:
        """Find the ring again after the memory has changed.

        :raises RingError: when it is no longer in the memory.
        """
        if not self.running:
            return
        pending = self._timer is not None
        self.stop()
        self.start()
        if pending and not self.running:
            raise RingError("the ring is not in the guest's memory any more")

    def _map(self) -> None:
        assert self.addresses is not None
        desc, avail, used = self.addresses
        # VIRTIO 2.7: the tables' alignment is what makes the 16-bit accesses below indivisible
        if desc % 16 or avail % 2 or used % 4:
            raise RingError("a part of the ring is not aligned")
        memory = self._connection.memory
        self._desc = memory.view(desc, 16 * self.size)
        avail_bytes = memory.view(avail, 6 + 2 * self.size)
        self._used = memory.view(used, 6 + 8 * self.size)
        self._avail = avail_bytes.cast("H")
        self._used16 = self._used.cast("H")
        self._views = [self._avail, self._used16, self._desc, avail_bytes, self._used]
        self._used_index = self._used16[1]
        # Chains are answered in their order, so the driver's own ring says where to go on. A front
        # end cannot know it of a device that was plugged in anew behind the driver's back. The
        # driver may then not have seen the last answer, whose interrupt went with the old device.
        if self.last_avail != self._used_index:
            self.last_avail = self._used_index
            self.unseen = True
            self.interrupt()

    def _later(self, work: Callable[[], None], seconds: float = 0.0) -> None:
        loop = self._connection.loop
        self._timer = loop.call_later(seconds, work) if seconds > 0 else loop.call_soon(work)

    # -- work

    def _kicked(self) -> None:
        assert self.kick is not None
        try:
            os.read(self.kick, 8)
        except BlockingIOError:
            return
        except OSError as error:
            self._break(RingError(f"kick: {error}"))
            return
        if self._timer is None:
            self.work()

    def work(self) -> None:
        """Answer what the driver has put into the ring, a batch at a time."""
        self._timer = None
        try:
            for _ in range(BATCH):
                if not self.running or not self.enabled:
                    return
                if self.last_avail == self._avail[1] and not self._wait_for_kick():
                    return
                if not self._one():
                    return
        except RingError as error:
            self._break(error)
            return
        self._later(self.work)

    def _wait_for_kick(self) -> bool:
        """Ask for the next kick. True when the driver was faster and there is work after all."""
        if self._connection.has(VIRTIO_RING_F_EVENT_IDX):
            self._used16[2 + 4 * self.size] = self.last_avail  # avail_event
        _fence()
        return self.last_avail != self._avail[1]

    def _one(self) -> bool:
        """Work on one chain. False when its answer has to wait."""
        waiting = (self._avail[1] - self.last_avail) & 0xFFFF
        if waiting > self.size:
            raise RingError(f"{waiting} chains in a ring of {self.size}")
        head = self._avail[2 + self.last_avail % self.size]
        counters = self._connection.counters
        try:
            readable, writable = self._chain(head)
            memory = self._connection.memory
            out = b"".join(memory.read(s.address, s.length) for s in readable)
            reply = self._connection.device.process(
                self.index, out, sum(s.length for s in writable)
            )
        except RingError:
            raise
        except GuestError as error:
            self._connection.complain(error)
            reply, writable = Reply(b""), []
        except Exception:
            # A fault of the device must not leave the guest waiting for ever.
            counters["device errors"] += 1
            log.exception("%s: the virtual device failed", self._connection.name)
            reply, writable = Reply(b""), []
        counters["chains"] += 1
        if isinstance(reply, asyncio.Future):
            self._timer = reply
            reply.add_done_callback(lambda answer: self._answered(head, writable, answer))
            return False
        if reply.seconds > 0:
            data = reply.data
            self._later(lambda: self._finish(head, writable, data), reply.seconds)
            return False
        self._complete(head, writable, reply.data)
        return True

    def _answered(self, head: int, writable: list[Segment], answer: asyncio.Future[Reply]) -> None:
        """Take the answer of a device that needed time, unless the ring was stopped meanwhile."""
        if self._timer is not answer:
            return
        if answer.cancelled() or answer.exception() is not None:
            self._connection.counters["device errors"] += 1
            self._finish(head, [], b"")
            return
        data, seconds = answer.result()
        if seconds > 0:
            self._later(lambda: self._finish(head, writable, data), seconds)
        else:
            self._finish(head, writable, data)

    def _finish(self, head: int, writable: list[Segment], data: bytes) -> None:
        self._timer = None
        try:
            self._complete(head, writable, data)
        except RingError as error:
            self._break(error)
            return
        self.work()

    def _complete(self, head: int, writable: list[Segment], data: bytes) -> None:
        written = 0
        try:
            for segment in writable:
                part = data[written : written + segment.length]
                self._connection.memory.write(segment.address, part)
                written += len(part)
        except GuestError as error:
            self._connection.complain(error)
        old = self._used_index
        _USED.pack_into(self._used, 4 + 8 * (old % self.size), head, written)
        self._used_index = (old + 1) & 0xFFFF
        self._used16[1] = self._used_index
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        self.unseen = False
        _fence()
        if self._connection.has(VIRTIO_RING_F_EVENT_IDX):
            # The driver wants to hear of the entry whose number it left after the avail ring.
            wanted = self._avail[2 + self.size] == old
        else:
            wanted = not self._avail[0] & AVAIL_F_NO_INTERRUPT
        if wanted:
            self.interrupt()

    def interrupt(self) -> None:
        """Tell the driver to look for answers."""
        if self.call is not None:
            with contextlib.suppress(OSError):
                os.write(self.call, _U64.pack(1))

    def _chain(self, head: int) -> tuple[list[Segment], list[Segment]]:
        """Return the readable and the writable buffers of the chain that starts at ``head``."""
        if head >= self.size:
            raise RingError(f"descriptor {head} in a ring of {self.size}")
        table: bytes | memoryview = self._desc
        entries, index, steps, total, indirect = self.size, head, 0, 0, False
        readable: list[Segment] = []
        writable: list[Segment] = []
        while True:
            steps += 1
            if steps > entries:
                raise GuestError("a descriptor chain with a loop")
            address, length, flags, following = _DESCRIPTOR.unpack_from(table, 16 * index)
            if flags & DESC_F_INDIRECT:
                # VIRTIO 2.7.5.3.1: not inside a table, nothing after it, whole entries
                if indirect or flags & DESC_F_NEXT or length % 16 or not length:
                    raise GuestError("a misplaced indirect descriptor")
                if length > 16 * self.size:
                    raise GuestError(f"an indirect table of {length // 16} entries")
                table = self._connection.memory.read(address, length)
                entries, index, steps, indirect = length // 16, 0, 0, True
                continue
            total += length
            if total > MAX_CHAIN_BYTES:
                raise GuestError(f"a descriptor chain of more than {MAX_CHAIN_BYTES} bytes")
            if flags & DESC_F_WRITE:
                writable.append(Segment(address, length, True))
            elif writable:
                raise GuestError("a readable buffer after a writable one")
            else:
                readable.append(Segment(address, length, False))
            if not flags & DESC_F_NEXT:
                return readable, writable
            if following >= entries:
                raise GuestError(f"descriptor {following} in a table of {entries}")
            index = following

    def _break(self, error: GuestError) -> None:
        self._connection.complain(error)
        self.broken = str(error)
        self.stop()
        if self.error is not None:
            with contextlib.suppress(OSError):
                os.write(self.error, _U64.pack(1))


class Connection:
    """One front end."""

    def __init__(
        self,
        sock: socket.socket,
        device: Device,
        counters: Counter[str],
        name: str,
        closed: Callable[[Connection], None],
    ) -> None:
        """Serve the front end at the other end of ``sock`` until it goes."""
        self.loop = asyncio.get_running_loop()
        self.device = device
        self.counters = counters
        self.memory = GuestMemory()
        self.features = 0
        self.protocol_features = 0
        self.rings = [Vring(index, self) for index in range(device.queues)]
        self.name = name
        self._socket = sock
        self._closed = closed
        self._input = bytearray()
        self._wanted = _HEADER.size
        self._header: tuple[int, int, int] | None = None
        self._fds: list[int] = []
        self._last_complaint = ""
        sock.setblocking(False)
        self.loop.add_reader(sock, self._readable)

    def has(self, feature: int) -> bool:
        """Tell whether the driver has accepted a feature bit."""
        return bool(self.features >> feature & 1)

    def complain(self, error: Exception) -> None:
        """Count what the guest did wrong; log it when it is not the same as before."""
        self.counters["guest errors"] += 1
        text = str(error)
        if text != self._last_complaint:
            self._last_complaint = text
            log.warning("%s: the guest's driver: %s", self.name, text)

    @property
    def gone(self) -> bool:
        """Whether the front end has hung up, even if we have not been told yet."""
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """End the connection and give everything back."""
        if self._socket.fileno() < 0:
            return
        self.loop.remove_reader(self._socket)
        self._socket.close()
        for ring in self.rings:
            ring.close()
        self.memory.clear()
        self._drop_fds()
        self._closed(self)

    def _drop_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _take_fd(self) -> int:
        if len(self._fds) != 1:
            raise ProtocolError(f"{len(self._fds)} file descriptors instead of one")
        return self._fds.pop()

    # -- messages

    def _readable(self) -> None:
        try:
            data = self._receive(self._wanted - len(self._input))
        except BlockingIOError:
            return
        except (ProtocolError, OSError) as error:
            self._give_up(error)
            return
        if not data:
            self.close()
            return
        self._input += data
        try:
            if len(self._input) == self._wanted and self._complete_message():
                request, flags, _ = self._header or (0, 0, 0)
                payload = bytes(self._input)
                self._input.clear()
                self._header, self._wanted = None, _HEADER.size
                self._message(request, flags, payload)
        except (ProtocolError, OSError, struct.error) as error:
            self._give_up(error)

    def _complete_message(self) -> bool:
        """Tell whether ``_input`` is the whole body now; if it was a header, look at that."""
        if self._header is not None:
            return True
        self._header = _HEADER.unpack(self._input)
        self._input.clear()
        self._wanted = self._header[2]
        if self._wanted > MAX_PAYLOAD:
            raise ProtocolError(f"message of {self._wanted} bytes")
        if self._header[1] & 3 != VERSION:
            raise ProtocolError(f"protocol version {self._header[1] & 3}")
        return self._wanted == 0

    def _give_up(self, error: Exception) -> None:
        self.counters["protocol errors"] += 1
        log.warning("%s: the front end: %s", self.name, str(error))
        self.close()

    def _receive(self, size: int) -> bytes:
        # Never beyond the message: the descriptors that come along belong to its first byte.
        fds = array.array("i")
        data, ancillary, flags, _ = self._socket.recvmsg(
            size, socket.CMSG_SPACE(MAX_REGIONS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > MAX_REGIONS:
            raise ProtocolError("too many file descriptors")
        return data

    def _message(self, number: int, flags: int, payload: bytes) -> None:
        self.counters["messages"] += 1
        need_reply = flags & FLAG_NEED_REPLY and self.protocol_features >> PROTOCOL_F_REPLY_ACK & 1
        try:
            request = Request(number)
            reply = self._handle(request, payload)
            failed = False
        except ValueError:
            reply, failed = None, True
            self.counters["unknown messages"] += 1
            log.info("%s: vhost-user message %d is not known", self.name, number)
        except GuestError as error:
            # A ring that is not in the guest's memory: the driver's doing, not the front end's.
            reply, failed = None, True
            self.complain(error)
        except ProtocolError as error:
            if not need_reply:
                raise
            reply, failed = None, True
            self.counters["protocol errors"] += 1
            # As text: a log that keeps the error would keep its frames, and the guest's memory.
            log.warning("%s: vhost-user message %d refused: %s", self.name, number, str(error))
        finally:
            self._drop_fds()
        if reply is None and need_reply:
            reply = _U64.pack(int(failed))
        if reply is not None:
            self._socket.sendall(_HEADER.pack(number, VERSION | FLAG_REPLY, len(reply)) + reply)

    def _handle(self, request: Request, payload: bytes) -> bytes | None:
        R = Request  # noqa: N806 - a short name for a long list
        match request:
            case R.GET_FEATURES:
                return _U64.pack(self.device.features | RING_FEATURES)
            case R.SET_FEATURES:
                self._set_features(_U64.unpack(payload)[0])
            case R.GET_PROTOCOL_FEATURES:
                return _U64.pack(PROTOCOL_FEATURES)
            case R.SET_PROTOCOL_FEATURES:
                self.protocol_features = _U64.unpack(payload)[0] & PROTOCOL_FEATURES
            case R.GET_QUEUE_NUM:
                return _U64.pack(len(self.rings))
            case R.GET_MAX_MEM_SLOTS:
                return _U64.pack(MAX_MEM_SLOTS)
            case R.SET_OWNER | R.RESET_OWNER | R.SET_CONFIG:
                pass
            case R.GET_CONFIG:
                # An empty body is how an error is told; this device has no configuration.
                return b""
            case R.SET_MEM_TABLE:
                self._set_memory(payload)
            case R.ADD_MEM_REG:
                if len(self._fds) != 1:
                    raise ProtocolError("ADD_MEM_REG without its file descriptor")
                self.memory.add(_REGION.unpack_from(payload, 8), self._fds[0])
                self._remap()
            case R.REM_MEM_REG:
                self.memory.remove(*_REGION.unpack_from(payload, 8)[:3])
                self._remap()
            case R.SET_VRING_KICK | R.SET_VRING_CALL | R.SET_VRING_ERR:
                self._set_eventfd(request, _U64.unpack(payload)[0])
            case R.SET_VRING_ADDR:
                index, _, desc, used, avail, _ = _ADDR.unpack(payload)
                ring = self._ring(index)
                ring.stop()
                ring.addresses = (desc, avail, used)
                ring.start()
            case _:
                return self._ring_state(request, *_STATE.unpack(payload))
        return None

    def _set_features(self, features: int) -> None:
        if features >> VIRTIO_F_RING_PACKED & 1:
            raise ProtocolError("packed virtqueues were not offered")
        # QEMU hands on everything that the driver accepted, also what only concerns QEMU itself.
        self.features = features & (self.device.features | RING_FEATURES)
        if not self.has(VHOST_USER_F_PROTOCOL_FEATURES):
            for ring in self.rings:
                ring.enabled = True

    def _ring(self, index: int) -> Vring:
        if index >= len(self.rings):
            raise ProtocolError(f"there is no queue {index}")
        return self.rings[index]

    def _ring_state(self, request: Request, index: int, number: int) -> bytes | None:
        ring = self._ring(index)
        match request:
            case Request.SET_VRING_NUM:
                if number > MAX_QUEUE or number & (number - 1) or not number:
                    raise ProtocolError(f"a queue of {number} entries")
                ring.stop()
                ring.size = number
            case Request.SET_VRING_BASE:
                ring.stop()
                ring.last_avail = number & 0xFFFF
            case Request.SET_VRING_ENABLE:
                ring.enabled = bool(number)
                if ring.enabled:
                    ring.start()
                    if ring.idle:
                        ring.work()
                return None
            case Request.GET_VRING_BASE:
                ring.stop()
                ring.set_fd("kick", None)
                ring.set_fd("call", None)
                return _STATE.pack(index, ring.last_avail)
        ring.start()
        return None

    def _set_eventfd(self, request: Request, value: int) -> None:
        ring = self._ring(value & 0xFF)
        fd = None if value & 0x100 else self._take_fd()
        name = {Request.SET_VRING_KICK: "kick", Request.SET_VRING_CALL: "call"}.get(
            request, "error"
        )
        ring.set_fd(name, fd)
        if fd is not None:
            os.set_blocking(fd, False)
            if name == "call" and ring.unseen:
                ring.interrupt()
        if name == "kick":
            if fd is None:
                raise ProtocolError("polling a ring is not supported")
            try:
                ring.start()
            except PermissionError as error:  # a file that cannot be waited for
                raise ProtocolError(f"kick: {error}") from error

    def _set_memory(self, payload: bytes) -> None:
        count = _STATE.unpack_from(payload)[0]
        if count > MAX_REGIONS or count != len(self._fds):
            raise ProtocolError(f"{count} memory regions with {len(self._fds)} file descriptors")
        memory = GuestMemory()
        try:
            for number in range(count):
                region = _REGION.unpack_from(payload, 8 + number * _REGION.size)
                memory.add(region, self._fds[number])
        except BaseException:
            memory.clear()
            raise
        old, self.memory = self.memory, memory
        self._remap()
        old.clear()

    def _remap(self) -> None:
        for ring in self.rings:
            ring.remap()


class VhostUserServer:
    """Offers one device on a unix socket, to one front end at a time, again and again.

    ``counters`` count since the start: ``connections``, ``refused`` ones, ``messages``, ``chains``,
    ``guest errors``, ``protocol errors``, ``unknown messages`` and ``device errors``.
    """

    def __init__(self, path: Path, device: Device, *, name: str = "") -> None:
        """Prepare to listen at ``path``."""
        self.path = path
        self.device = device
        self.name = name or str(path)
        self.counters: Counter[str] = Counter()
        self.connection: Connection | None = None
        self._listener: socket.socket | None = None

    async def start(self) -> None:
        """Listen.

        :raises OSError: when it cannot, or somebody else does.
        """
        if sys.byteorder != "little":
            raise OSError("the virtual devices need a little-endian host")
        loop = asyncio.get_running_loop()
        self._listener = listen(self.path)
        loop.add_reader(self._listener, self._accept)

    async def stop(self) -> None:
        """Hang up, stop listening, and remove the socket."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)
        if self.connection is not None:
            self.connection.close()

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            log.warning("%s: accept: %s", self.name, error)
            return
        if self.connection is not None and self.connection.gone:
            self.connection.close()
        if self.connection is not None:
            self.counters["refused"] += 1
            log.warning("%s: a second front end was turned away", self.name)
            sock.close()
            return
        self.counters["connections"] += 1
        self.device.reset()
        self.connection = Connection(sock, self.device, self.counters, self.name, self._gone)

    def _gone(self, connection: Connection) -> None:
        if self.connection is connection:
            self.connection = None
            self.device.reset()
