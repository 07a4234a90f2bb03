# SPDX-License-Identifier: Apache-2.0
"""A node without a node: the relay and hwsim kernel of a guest, as far as the medium can tell.

For tests and benchmarks. It listens where QEMU would, answers HELLO, REGISTER, GET_RADIO, NEW_RADIO
and DEL_RADIO, takes or refuses injected frames, and counts the reports on the frames it sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from pathlib import Path

from meshlab.wire import hwsim
from meshlab.wire.hwsim import Attribute, Command, Message, TxFrame
from meshlab.wire.relay import MAGIC, Deframer, Kind, RelayError, encode, encode_node_hello
from meshlab.wire.sockets import socket_address

FAMILY = 29


class FakeRadio:
    """One radio of the fake kernel."""

    def __init__(self, number: int, name: str, iftypes: int) -> None:
        self.number = number
        self.name = name
        self.iftypes = iftypes
        self.listens: int | None = None
        """The frequency it receives on: None for any, 0 for none (the interface is down)."""


class FakeKernel(asyncio.Protocol):
    """Listens at ``path`` for a medium."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.radios: dict[bytes, FakeRadio] = {}
        self.received: list[Message] = []
        """Frames injected and taken, when ``keep`` is set."""
        self.keep = False
        self.taken = 0
        self.refused = 0
        self.reports = 0
        self.report_flags: dict[int, int] = {}
        """``TxFlag`` of the report by cookie, when ``keep`` is set."""
        self.report_tx_info: dict[int, bytes] = {}
        self.unanswered = 0
        self.answers = True
        """It answers injections that ask for it; False: a guest that is stuck."""
        self.busy_registers = 0
        """So many REGISTERs fail with EBUSY."""
        self.registered = False
        self.registers = 0
        self.duplicates = 0
        """Radios made with the address of another, which a kernel does not refuse."""
        self.sessions = 0
        self.commands: list[int] = []
        """What it was asked, apart from frames and reports."""
        self.on_injected: Callable[[Message], None] | None = None
        self.transport: asyncio.Transport | None = None
        self._server: asyncio.Server | None = None
        self._deframer = Deframer()
        self._out: list[bytes] = []
        self._cookie = 0
        self._changed = asyncio.Event()
        self._numbers = 0
        self._head = b""
        self._in_session = False

    async def start(self) -> None:
        """Listen."""
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: self, socket_address(self.path))

    async def stop(self) -> None:
        """End, as a machine that is switched off."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self.transport is not None:
            self.transport.abort()
            self.transport = None
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        await asyncio.sleep(0)

    def reboot(self) -> None:
        """Forget everything, as a kernel that starts anew while QEMU and its sockets stay."""
        self.radios.clear()
        self.registered = False
        self._in_session = False
        self._head = b""
        self.greet()

    def greet(self) -> None:
        """Say that there is a relay without a session."""
        if self.transport is not None:
            self.transport.write(encode_node_hello(FAMILY, 0))

    def write(self, data: bytes) -> None:
        """Write anything to the medium."""
        assert self.transport is not None
        self.transport.write(data)

    def next_cookie(self) -> int:
        """Return a new cookie."""
        self._cookie += 1
        return self._cookie

    def transmit(self, frame: TxFrame) -> None:
        """Send a frame; ``flush`` writes it."""
        self.unanswered += 1
        self._out.append(encode(Kind.NETLINK, hwsim.encode_frame(FAMILY, frame)))

    def address(self, radio: bytes, address: bytes, add: bool = True) -> None:
        """Report that an interface has an address."""
        command = Command.ADD_MAC_ADDR if add else Command.DEL_MAC_ADDR
        attributes = [
            (int(Attribute.ADDR_TRANSMITTER), radio),
            (int(Attribute.ADDR_RECEIVER), address),
        ]
        self._out.append(encode(Kind.NETLINK, hwsim.encode(FAMILY, command, attributes, flags=0)))
        self.flush()

    def flush(self) -> None:
        """Write what has been queued."""
        out, self._out = self._out, []
        if out and self.transport is not None:
            self.transport.write(b"".join(out))

    async def wait_radios(self, count: int) -> None:
        """Wait until the medium has registered and made ``count`` radios."""
        await self.wait(lambda: self.registered and len(self.radios) == count)

    async def wait(self, condition: Callable[[], bool], timeout: float = 600.0) -> None:
        """Wait until ``condition`` holds; it is looked at whenever something arrives.

        :raises TimeoutError: when it does not become true in time.
        """
        async with asyncio.timeout(timeout):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A medium has connected."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._head = b""
        self._in_session = False

    def connection_lost(self, exc: Exception | None) -> None:
        """The medium has gone: hwsim returns to its own."""
        self.registered = False
        self._in_session = False
        self.transport = None
        self._changed.set()

    def data_received(self, data: bytes) -> None:
        """Take frames from the medium."""
        if not self._in_session:
            # Until its first HELLO there may be anything.
            self._head += data
            at = self._head.find(MAGIC)
            if at < 8 or len(self._head) < at + 16:
                return
            data, self._head = self._head[at - 8 :], b""
            self._in_session = True
            self._deframer = Deframer()
        try:
            buffer, frames = self._deframer.feed(data)
        except RelayError:
            self._in_session = False
            return
        for kind, start, end in frames:
            if kind == Kind.HELLO:
                nonce = struct.unpack_from("<Q", buffer, start + 11)[0]
                self.sessions += 1
                self.registered = False
                self._out.clear()
                self._out.append(encode_node_hello(FAMILY, nonce, (1, 2, 3)))
            elif kind == Kind.STATS:
                self._out.append(encode(Kind.STATS, struct.pack("<4Q", 1, 2, 3, 0)))
            elif kind == Kind.NETLINK:
                self._netlink(buffer[start:end])
        self.flush()
        self._changed.set()

    def _netlink(self, message: bytes) -> None:
        command = message[16]
        if command == Command.FRAME:
            self._injected(message)
        elif command == Command.TX_INFO_FRAME:
            self.reports += 1
            self.unanswered -= 1
            if self.keep:
                got = hwsim.parse(message).attributes
                cookie = int.from_bytes(got[Attribute.COOKIE], "little")
                self.report_flags[cookie] = int.from_bytes(got[Attribute.FLAGS], "little")
                self.report_tx_info[cookie] = got[Attribute.TX_INFO]
        else:
            self.commands.append(command)
            self._command(hwsim.parse(message), message)

    def _injected(self, message: bytes) -> None:
        got = hwsim.parse(message)
        radio = self.radios.get(got.attributes[Attribute.ADDR_RECEIVER])
        frequency = int.from_bytes(got.attributes[Attribute.FREQ], "little")
        took = radio is not None and radio.listens in (None, frequency)
        if took:
            self.taken += 1
            if self.keep:
                self.received.append(got)
            if self.on_injected is not None:
                self.on_injected(got)
        else:
            self.refused += 1
        if self.answers and (not took or got.flags & hwsim.NLM_F_ACK):
            self._answer(0 if took else -hwsim.EINVAL, message)

    def _answer(self, error: int, request: bytes, text: str | None = None) -> None:
        self._out.append(encode(Kind.NETLINK, hwsim.encode_answer(error, request, text)))

    def _command(self, got: Message, message: bytes) -> None:
        attributes = got.attributes
        error = 0
        if got.command == Command.REGISTER:
            self.registers += 1
            if self.busy_registers:
                self.busy_registers -= 1
                error = -hwsim.EBUSY
            else:
                self.registered = True
        elif got.command == Command.NEW_RADIO:
            key = attributes[Attribute.PERM_ADDR]
            name = attributes[Attribute.RADIO_NAME].decode()
            if key in self.radios:
                self.duplicates += 1
            error = self._numbers  # the kernel answers with the radio's number
            self._numbers += 1
            iftypes = int.from_bytes(attributes[Attribute.IFTYPE_SUPPORT], "little")
            self.radios[key] = FakeRadio(error, name, iftypes)
        elif got.command == Command.DEL_RADIO:
            name = attributes[Attribute.RADIO_NAME].decode()
            keys = [key for key, radio in self.radios.items() if radio.name == name]
            if not keys:
                error = -hwsim.ENODEV
            for key in keys:
                del self.radios[key]
        elif got.command == Command.GET_RADIO:
            self._dump(got)
            return
        if got.flags & hwsim.NLM_F_ACK or error < 0:
            self._answer(error, message)

    def _dump(self, got: Message) -> None:
        for radio in self.radios.values():
            attributes = [
                (int(Attribute.RADIO_ID), radio.number.to_bytes(4, "little")),
                (int(Attribute.CHANNELS), (1).to_bytes(4, "little")),
                (int(Attribute.RADIO_NAME), radio.name.encode()),
            ]
            entry = hwsim.encode(
                FAMILY, Command.GET_RADIO, attributes, flags=hwsim.NLM_F_MULTI, seq=got.seq
            )
            self._out.append(encode(Kind.NETLINK, entry))
        done = struct.pack("<IHHIIi", 20, hwsim.NLMSG_DONE, hwsim.NLM_F_MULTI, got.seq, 0, 0)
        self._out.append(encode(Kind.NETLINK, done))
