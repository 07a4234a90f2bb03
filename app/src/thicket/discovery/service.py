# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``discovery``: sends and receives beacons on the mesh interface."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Sequence
from ipaddress import IPv6Address, IPv6Network
from logging import getLogger
from time import monotonic
from typing import Any

from thicket.base.pace import Bucket, uniform
from thicket.discovery.beacon import (
    GROUP,
    LINK_LOCAL,
    MAX_PAYLOAD,
    PORT,
    REASONS,
    SIGNED_MARK,
    Codec,
    MalformedError,
    PlainBeacons,
)
from thicket.discovery.schedule import Schedule
from thicket.discovery.section import DiscoverySection
from thicket.discovery.table import Heard, SharedSources, Table

log = getLogger(__name__)


class Discovery:
    """Sends and receives beacons on one interface for as long as :meth:`run` runs.

    ``on_heard(address, new)`` is called for every good beacon; ``pinned(address)`` tells which
    nodes never expire. Everything happens in the event loop's thread.
    """

    #: Datagrams taken from the socket per wake-up of the loop, and seconds for them: then others
    #: have their turn.
    BATCH = 32
    SLICE = 0.01
    #: Datagrams looked at per second, on average and at once; what exceeds it stays in the
    #: kernel's receive buffer, which drops the rest at no cost to us. The more are looked at, the
    #: better the chance of good ones among bad ones.
    RATE = 1000.0
    BURST = 1000.0
    #: How long the socket is left alone when that is exceeded, in seconds.
    PAUSE = 0.25
    #: Answers per second to newly heard nodes, and seconds between two answers to the same one,
    #: and to the same one while it is connected.
    ANSWERS = 20.0
    ANSWER_AGAIN = 4.0
    ANSWER_CONNECTED = 15.0
    #: Who sends beacons in a closer sequence than this, in seconds, has just joined (or joined
    #: again before we missed it) and looks for others.
    LOOKING = 3.0

    def __init__(
        self,
        settings: DiscoverySection,
        address: IPv6Address,
        prefix: IPv6Network,
        interface: str,
        on_heard: Callable[[IPv6Address, bool], None],
        *,
        pinned: Callable[[IPv6Address], bool] | None = None,
        on_gone: Callable[[IPv6Address], None] | None = None,
        codecs: Sequence[Codec] | None = None,
    ) -> None:
        """``codecs`` are the forms in use, the plain one when nothing is said (see `in_use`)."""
        self.settings = settings
        self.address = address
        self.prefix = prefix
        self.interface = interface
        self.on_heard = on_heard
        self.on_gone = on_gone
        if codecs is None:
            codecs = (PlainBeacons(address, prefix),)
        self.codecs: tuple[Codec, ...] = tuple(codecs)
        self.table = Table(settings.max_nodes, settings.expire, pinned)
        self.schedule = Schedule(settings.interval, uniform)
        self.dropped: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.sent = 0
        self.answers = 0
        self.send_errors = 0
        self.received = 0
        self.opened = 0
        #: Why the socket is not open, in words; None while it is.
        self.trouble: str | None = "not started"
        self.shared = SharedSources()
        #: Time of the last beacon by somebody else that carried our own address, or None.
        self.duplicate_heard: float | None = None
        self._socket: socket.socket | None = None
        self._index = 0
        self._budget = Bucket(self.RATE, self.BURST)
        self._answer_budget = Bucket(self.ANSWERS, self.ANSWERS)
        self._resume: asyncio.TimerHandle | None = None
        self._wake: asyncio.Event | None = None
        self._answer_timers: set[asyncio.TimerHandle] = set()
        self._flooded = -1e9

    def announced_from(self, source: str) -> IPv6Address | None:
        """Return the address that beacons from ``source``, a link-local address, announce."""
        for entry in self.table.entries.values():
            if entry.source == source:
                return entry.address
        return None

    def spelling(self, address: IPv6Address) -> str:
        """Return the text of ``address`` that is in the name of the node there, as far as known."""
        entry = self.table.entries.get(address)
        return str(address) if entry is None else entry.spelling

    # -- what the daemon tells

    def interface_changed(self) -> None:
        """The interface came (back) up or was made anew: look at it now, and announce ourselves."""
        self.schedule.hurry(monotonic())
        self._poke()

    def peer_up(self) -> None:
        """The mesh got a new peer, so somebody may hear us for the first time."""
        self.schedule.hurry(monotonic(), 1)
        self._poke()

    def apply(self, settings: DiscoverySection) -> None:
        """Take over changed settings."""
        self.settings = settings
        self.table.resize(settings.max_nodes, settings.expire)
        self.schedule.interval = settings.interval
        self.schedule.hurry(monotonic(), 1)
        self._poke()

    def use(self, codecs: Sequence[Codec]) -> None:
        """Send and accept these forms from now on."""
        self.codecs = tuple(codecs)
        self.schedule.hurry(monotonic())
        self._poke()

    def snapshot(self) -> dict[str, Any]:
        """The ``discovery`` part of the status document."""
        now = monotonic()
        drops = {reason: n for reason, n in self.dropped.items() if n}
        return {
            "sent": self.sent,
            "answers": self.answers,
            "send_errors": self.send_errors,
            "received": self.received,
            "malformed": sum(drops.values()),
            "dropped": drops,
            "opened": self.opened,
            "forms": {codec.form: codec.snapshot() for codec in self.codecs},
            "heard": [
                {"address": str(e.address), "age": round(now - e.last, 1), "beacons": e.beacons}
                for e in self.table.entries.values()
            ],
        }

    # -- running

    def _poke(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def run(self) -> None:
        """Announce and listen until cancelled. Trouble with the interface is waited out."""
        self._wake = asyncio.Event()
        failures = 0
        try:
            while True:
                now = monotonic()
                if not self._usable():
                    try:
                        self._open()
                        failures = 0
                        self.schedule.hurry(now)
                    except OSError as e:
                        self._note_trouble(e)
                        failures += 1
                        # no beacon can be due before there is a socket
                        self.schedule.due = now + min(5.0, 0.25 * 2 ** min(failures, 6))
                if self._socket is not None and self.schedule.due <= monotonic():
                    self._announce()
                for address in self._expired(now):
                    log.info("%s has not been heard for %d s", address, self.settings.expire)
                    if self.on_gone is not None:
                        self.on_gone(address)
                self._wake.clear()
                try:
                    # 30 s bounds how long a silent change of the interface goes unnoticed
                    delay = max(0.01, min(30.0, self.schedule.due - monotonic()))
                    async with asyncio.timeout(delay):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._close()
            self.trouble = "not running"

    def _expired(self, now: float) -> list[IPv6Address]:
        """Forget the silent ones, unless a flood may have drowned them."""
        if now - self._flooded < self.settings.expire / 2:
            return []
        return self.table.expire(now)

    def _usable(self) -> bool:
        """Whether the socket still belongs to the interface of this name (it may be made anew)."""
        if self._socket is None:
            return False
        try:
            if socket.if_nametoindex(self.interface) == self._index:
                return True
        except OSError:
            pass
        self._close()
        return False

    def _open(self) -> None:
        """Open the socket on the interface; raises OSError, and leaves nothing open then."""
        index = socket.if_nametoindex(self.interface)
        s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, socket.IPPROTO_UDP)
        try:
            s.setblocking(False)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # lets a beacon socket of another program live beside ours
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.interface.encode() + b"\0")
            s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            s.bind(("::", PORT))
            # struct ipv6_mreq of RFC 3493 5.2: the group, then the interface as unsigned int
            group = socket.inet_pton(socket.AF_INET6, GROUP) + struct.pack("@I", index)
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group)
            asyncio.get_running_loop().add_reader(s.fileno(), self._readable)
        except BaseException:
            s.close()
            raise
        self._socket = s
        self._index = index
        self.opened += 1
        self.trouble = None
        log.info("listening for beacons on %s", self.interface)

    def _close(self) -> None:
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        for timer in self._answer_timers:
            timer.cancel()
        self._answer_timers.clear()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _note_trouble(self, e: OSError) -> None:
        # if_nametoindex() gives no number before Python 3.13
        if e.errno in {None, errno.ENODEV, errno.ENXIO}:
            text = f"there is no interface {self.interface} (yet)"
        else:
            text = f"cannot open the beacon socket on {self.interface}: {e.strerror}"
        if text != self.trouble:
            log.info("%s; trying again", text)
        self.trouble = text

    def _announce(self) -> None:
        if self._send((GROUP, PORT, 0, self._index)):
            self.sent += 1
        self.schedule.sent(monotonic())

    def _send(self, target: tuple[str, int, int, int]) -> bool:
        """Send a beacon of each form; whether any was sent."""
        sent = 0
        for codec in self.codecs:
            payload = codec.payload(monotonic())
            if payload:
                sent += self._send_one(payload, target)
        return sent > 0

    def _send_one(self, payload: bytes, target: tuple[str, int, int, int]) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.sendto(payload, target)
        except OSError as e:
            self.send_errors += 1
            log.debug("beacon to %s not sent: %s", target[0], e)
            # The interface is down, or has no address yet: it keeps its socket, try again later.
            # Anything that says that the interface is gone makes a new socket next time.
            if e.errno in {errno.ENODEV, errno.ENXIO, errno.EBADF, errno.EINVAL}:
                self._close()
                self._poke()
            return False
        return True

    def _readable(self) -> None:
        """Take a bounded number of datagrams; leave the socket alone for a while in a flood."""
        s = self._socket
        if s is None:
            return
        begin = now = monotonic()
        for _ in range(self.BATCH):
            if now - begin > self.SLICE:
                return
            try:
                payload, control, _flags, source = s.recvmsg(
                    MAX_PAYLOAD + 1, socket.CMSG_SPACE(struct.calcsize("@i"))
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:
                # an ICMP error for an earlier answer arrives here; it concerns nobody
                log.debug("receiving a beacon: %s", e)
                continue
            now = monotonic()
            if not self._budget.take(now):
                # This one is lost; how many more are is the kernel's secret.
                self.received += 1
                self.dropped["rate"] += 1
                self._flooded = now
                loop = asyncio.get_running_loop()
                loop.remove_reader(s.fileno())
                self._resume = loop.call_later(self.PAUSE, self._read_again)
                return
            hop_limit = None
            for level, kind, data in control:
                if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_HOPLIMIT:
                    (hop_limit,) = struct.unpack_from("@i", data)
            self.datagram(payload, source, hop_limit, now)

    def _read_again(self) -> None:
        self._resume = None
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def datagram(
        self, payload: bytes, source: tuple[Any, ...], hop_limit: int | None, now: float
    ) -> None:
        """Judge one received datagram. ``source`` is the sender's AF_INET6 socket address."""
        self.received += 1
        try:
            # A beacon is sent with the highest hop limit, so that one that passed a router shows
            # it (RFC 5082).
            if hop_limit is not None and hop_limit != 255:
                raise MalformedError("hop_limit")
            address, form = self._read(payload, str(source[0]), now)
            entry, new = self.table.hear(address, now)
        except MalformedError as e:
            self.dropped[e.reason] += 1
            if e.reason == "own":
                # Loops are off, so another station claims our address.
                self.duplicate_heard = now
            log.debug("dropped a beacon from %s: %s", source[0], e.reason)
            return
        entry.source = str(source[0]).partition("%")[0]
        if not payload.startswith(SIGNED_MARK):
            entry.spelling = payload.decode("ascii")
        # A plain beacon can be sent by anybody in anybody's name.
        if form == "signed" and IPv6Address(entry.source) in LINK_LOCAL:
            self.shared.hear(entry.source, address, now)
        if new:
            log.info("heard %s", address)
        if entry.gap < self.LOOKING:
            # A connected node that looks for others may have been power-cycled a moment ago.
            again = self.ANSWER_CONNECTED if self.table.pinned(address) else self.ANSWER_AGAIN
            if now - entry.answered >= again:
                self._answer(entry, source, now)
        self.on_heard(address, new)

    def _read(self, payload: bytes, source: str, now: float) -> tuple[IPv6Address, str]:
        """The address that a beacon announces, and its form; MalformedError when it is none."""
        if not payload:
            raise MalformedError("empty")
        for codec in self.codecs:
            if codec.claims(payload):
                sender = None
                if self.settings.check_source:
                    sender = IPv6Address(source.partition("%")[0])
                return codec.read(payload, sender, now), codec.form
        raise MalformedError("form")

    def _answer(self, entry: Heard, source: tuple[Any, ...], now: float) -> None:
        """Send our beacon to a node heard just now, to the sender and never to what it claims."""
        if self._socket is None or not self._answer_budget.take(now):
            return
        entry.answered = now
        # In a large mesh everybody hears the newcomer at once: spread the answers out.
        spread = 0.01 + 0.01 * min(50, len(self.table.entries))
        target = (str(source[0]), PORT, 0, self._index)

        def send() -> None:
            self._answer_timers.discard(timer)
            if self._send(target):
                self.answers += 1

        timer = asyncio.get_running_loop().call_later(uniform(0.0, spread), send)
        self._answer_timers.add(timer)
