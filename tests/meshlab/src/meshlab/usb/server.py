# SPDX-License-Identifier: Apache-2.0
"""Plugs a USB device into a machine: ``-chardev socket,... -device usb-redir,chardev=...``.

QEMU connects to a unix socket and stays connected; the device may be plugged in and out while it
does. One front end at a time, again and again: each connection is a machine that was switched on,
or started again.

A transfer that is not answered yet when the device is unplugged is answered with an error first:
QEMU's controller of a Raspberry Pi 3 (DWC2) looks up the device of every transfer that ends, and
does not survive one whose device is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from pathlib import Path

from meshlab.usb.device import CONFIGURATION, STALL, Answer, UsbDevice, standard
from meshlab.wire import usbredir
from meshlab.wire.sockets import listen
from meshlab.wire.usbredir import Bulk, Control, Decoder, Message, Status, UsbRedirError

log = logging.getLogger(__name__)

VERSION = "thicket meshlab"
HELLO_PATIENCE = 60.0
"""Seconds in which a front end must have said its hello."""
MAX_OPEN = 256
"""Transfers that may be without an answer; QEMU has 16 channels to ask by."""
MAX_TRANSFER = 1 << 16
"""Bytes of the longest bulk transfer to a device."""
MAX_UNREAD = 1 << 20
"""Bytes of answers that may wait for the front end to read them."""


class UsbServer:
    """Offers one device on a unix socket.

    ``counters`` count since the start: ``connections``, ``refused`` ones, ``protocol errors``,
    ``transfers``, ``stalls``, ``cancelled`` transfers and ``device errors``.

    :param path: The socket.
    :param device: What is plugged in.
    :param plugged: Whether it is from the start on.
    :param name: What log messages call it.
    """

    def __init__(
        self, path: Path, device: UsbDevice, *, plugged: bool = True, name: str = ""
    ) -> None:
        self.path = path
        self.device = device
        self.plugged = plugged
        self.name = name or str(path)
        self.counters: Counter[str] = Counter()
        self.connection: Connection | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        :raises OSError: when it cannot, or somebody else does.
        """
        loop = asyncio.get_running_loop()
        listener = listen(self.path)
        try:
            self._server = await loop.create_unix_server(lambda: Connection(self), sock=listener)
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Hang up, stop listening, and remove the socket."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        if self.connection is not None:
            self.connection.close()

    def plug(self) -> None:
        """Plug the device in; nothing happens if it is."""
        if not self.plugged:
            self.plugged = True
            if self.connection is not None:
                self.connection.announce()

    def unplug(self) -> None:
        """Pull the device out; nothing happens if it is not in."""
        if self.plugged:
            self.plugged = False
            if self.connection is not None:
                self.connection.withdraw()

    def send(self, endpoint: int, data: bytes) -> bool:
        """Let the device say something at an endpoint; tell whether the guest listens to it.

        :param endpoint: With bit 7 set.
        :param data: What the guest gets in one transfer.
        """
        connection = self.connection
        return connection is not None and connection.send(endpoint, data)


class Connection(asyncio.Protocol):
    """One front end.

    :ivar announced: Whether it knows of the device.
    """

    def __init__(self, server: UsbServer) -> None:
        self.announced = False
        self._server = server
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._configuration = 0
        self._open: dict[int, tuple[Control | Bulk, asyncio.TimerHandle | None]] = {}
        self._sizes = {one.address: one.size for one in server.device.description.endpoints}
        self._heard: set[int] = set()
        self._parts: dict[int, bytearray] = {}
        self._hurry: asyncio.TimerHandle | None = None

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        assert isinstance(transport, asyncio.Transport)
        server = self._server
        if server.connection is not None:
            server.counters["refused"] += 1
            log.warning("%s: a second front end was turned away", server.name)
            transport.abort()
            return
        server.counters["connections"] += 1
        server.connection = self
        self._transport = transport
        self._hurry = asyncio.get_running_loop().call_later(HELLO_PATIENCE, self._too_slow)
        self._say(usbredir.hello(VERSION))

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        try:
            for message in self._decoder.feed(data):
                if self._transport is None:
                    return
                self._handle(message)
        except UsbRedirError as error:
            self._give_up(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = None
        self._forget()
        if self._hurry is not None:
            self._hurry.cancel()
        if self._server.connection is self:
            self._server.connection = None
            self._server.device.power_cycle()

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def _give_up(self, reason: str) -> None:
        self._server.counters["protocol errors"] += 1
        log.warning("%s: the front end: %s", self._server.name, reason)
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _too_slow(self) -> None:
        self._give_up(f"no hello within {HELLO_PATIENCE:g} s")

    def _say(self, message: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(message)
        if self._transport.get_write_buffer_size() > MAX_UNREAD:
            self._give_up("it does not read its answers")

    def _forget(self) -> None:
        for _, timer in self._open.values():
            if timer is not None:
                timer.cancel()
        self._open.clear()

    # -- the device comes and goes

    def announce(self) -> None:
        """Tell the front end of the device, once both have said hello."""
        if not self._decoder.greeted or self.announced:
            return
        self._server.device.power_cycle()
        self.announced = True
        self._configuration = 0
        self._describe()
        description = self._server.device.description
        self._say(usbredir.device_connect(description.speed, description.device()))

    def withdraw(self) -> None:
        """Tell the front end that the device is gone."""
        if not self.announced:
            return
        for asked, _ in list(self._open.values()):
            self._answer(asked, Answer(Status.IO_ERROR))
        self._forget()
        self._heard.clear()
        self._parts.clear()
        self.announced = False
        self._say(usbredir.device_disconnect())

    def send(self, endpoint: int, data: bytes) -> bool:
        """Do what ``UsbServer.send`` says."""
        if not self.announced or endpoint not in self._heard:
            return False
        # Packet by packet, as QEMU's DWC2 may ask for one at a time; a short one ends the transfer.
        for at in range(0, len(data) + 1, self._sizes[endpoint]):
            packet = data[at : at + self._sizes[endpoint]]
            self._say(usbredir.from_device(endpoint, packet))
        return True

    def _describe(self) -> None:
        description = self._server.device.description
        self._say(usbredir.interface_info(description.interfaces))
        self._say(usbredir.ep_info(description.endpoints, description.control_size))

    # -- what the guest asks

    def _handle(self, message: Message) -> None:
        match message:
            case usbredir.Hello():
                if self._hurry is not None:
                    self._hurry.cancel()
                if self._server.plugged:
                    self.announce()
            case usbredir.SetConfiguration(identifier, wanted):
                good = wanted in (0, CONFIGURATION)
                if good:
                    self._configuration = wanted
                    self._describe()
                status = Status.SUCCESS if good else Status.STALL
                self._say(usbredir.configuration_status(identifier, status, self._configuration))
            case usbredir.GetConfiguration(identifier):
                self._say(
                    usbredir.configuration_status(identifier, Status.SUCCESS, self._configuration)
                )
            case usbredir.SetAltSetting(identifier, interface, wanted):
                # Table 9-12: an interface without alternate settings has the one of number 0.
                status = Status.STALL if wanted else Status.SUCCESS
                self._say(usbredir.alt_setting_status(identifier, status, interface, 0))
            case usbredir.GetAltSetting(identifier, interface):
                self._say(usbredir.alt_setting_status(identifier, Status.SUCCESS, interface, 0))
            case usbredir.StartReceiving() | usbredir.StopReceiving():
                self._listen(message)
            case usbredir.Cancel(identifier):
                self._cancel(identifier)
            case Control() | Bulk():
                self._transfer(message)
            case _:
                pass  # a reset changes nothing that the device keeps, an acknowledgement less

    def _listen(self, asked: usbredir.StartReceiving | usbredir.StopReceiving) -> None:
        if asked.endpoint not in self._sizes:
            self._say(usbredir.receiving_status(asked, Status.INVALID))
            return
        if isinstance(asked, usbredir.StartReceiving):
            self._heard.add(asked.endpoint)
        else:
            self._heard.discard(asked.endpoint)
        self._say(usbredir.receiving_status(asked, Status.SUCCESS))

    def _cancel(self, identifier: int) -> None:
        if identifier in self._open:  # else the answer is under way
            asked, timer = self._open[identifier]
            if timer is not None:
                timer.cancel()
            self._server.counters["cancelled"] += 1
            self._answer(asked, Answer(Status.CANCELLED))

    def _transfer(self, asked: Control | Bulk) -> None:
        if asked.id in self._open:
            raise UsbRedirError(f"transfer {asked.id} is asked for again before its end")
        if len(self._open) >= MAX_OPEN:
            raise UsbRedirError(f"more than {MAX_OPEN} transfers without an answer")
        self._server.counters["transfers"] += 1
        self._open[asked.id] = (asked, None)
        if not self.announced:
            self._answer(asked, Answer(Status.IO_ERROR))
            return
        answer = self._ask(asked)
        if answer.seconds > 0:
            loop = asyncio.get_running_loop()
            self._open[asked.id] = (
                asked,
                loop.call_later(answer.seconds, self._answer, asked, answer),
            )
        else:
            self._answer(asked, answer)

    def _ask(self, asked: Control | Bulk) -> Answer:
        device = self._server.device
        try:
            if isinstance(asked, Bulk):
                return self._take(device, asked)
            answer = standard(device.description, asked)
            return device.control(asked) if answer is None else answer
        except Exception:
            self._server.counters["device errors"] += 1
            log.exception("%s: the device failed", self._server.name)
            return Answer(Status.IO_ERROR)

    def _take(self, device: UsbDevice, asked: Bulk) -> Answer:
        """Give the device a transfer when it is complete: a short packet ends it (5.8.3).

        QEMU's DWC2 gives transfers of up to 1536 bytes packet by packet.
        """
        size = self._sizes.get(asked.endpoint)
        if size is None:
            return STALL
        whole = self._parts.setdefault(asked.endpoint, bytearray())
        whole += asked.data
        if asked.data and len(asked.data) % size == 0 and len(whole) <= MAX_TRANSFER:
            return Answer()
        del self._parts[asked.endpoint]
        return device.take(asked.endpoint, bytes(whole)) if len(whole) <= MAX_TRANSFER else STALL

    def _answer(self, asked: Control | Bulk, answer: Answer) -> None:
        self._open.pop(asked.id, None)
        if answer.status is Status.STALL:
            self._server.counters["stalls"] += 1
        if isinstance(asked, Bulk):
            self._say(usbredir.bulk_answer(asked, answer.status))
        else:
            data = answer.data[: asked.length] if asked.reads else b""
            self._say(usbredir.control_answer(asked, answer.status, data))
