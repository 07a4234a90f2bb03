# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``discovery``: sends and receives beacons on the mesh interface."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from logging import getLogger
from time import monotonic
from typing import Any

from thicket.base.pace import Bucket, uniform, wait
from thicket.discovery.beacon import (
    GROUP,
    LINK_LOCAL,
    REASONS,
    SIGNED_MARK,
    Codec,
    MalformedError,
    PlainBeacons,
)
from thicket.discovery.schedule import Schedule, stretch
from thicket.discovery.section import DiscoverySection
from thicket.discovery.table import Heard, SharedSources, Table
from thicket.discovery.wire import BeaconSocket

log = getLogger(__name__)


@lru_cache(maxsize=256)
def _written(address: IPv6Address) -> str:
    """An address as text. The same few are needed for each status document."""
    return str(address)


@lru_cache(maxsize=256)
def _parsed(text: str) -> IPv6Address:
    """An address in text, without zone. The same few come with each beacon."""
    return IPv6Address(text)


class Counters:
    """What was sent and received since the start.

    :ivar repeated: beacons that told nothing new and were not judged.
    :ivar dropped: datagrams that were not beacons for us, by reason (``beacon.REASONS``).
    :ivar opened: how often the socket was opened.
    """

    __slots__ = ("dropped", "opened", "received", "repeated", "send_errors", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.send_errors = 0
        self.received = 0
        self.repeated = 0
        self.dropped: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.opened = 0


class Discovery:
    """Sends and receives beacons on one interface while :meth:`run` runs, all in the event loop.

    :param on_heard: called with the address of every good beacon, and whether it is new.
    :param pinned: whether the node at an address never expires.
    :param on_gone: called with the address of a node that has expired.
    :param codecs: the forms in use, by default the plain one (see ``in_use``).
    """

    #: Seconds between two answers to the same node.
    ANSWER_AGAIN = 8.0
    #: The same while the node is connected.
    ANSWER_CONNECTED = 15.0
    #: Seconds after a node's last proof from which a beacon that tells nothing new is judged.
    PROOF_AGAIN = 8.0
    #: The same while the node is connected, as a part of the time after which silent nodes are
    #: forgotten.
    PROOF_CONNECTED = 1 / 3
    #: A node whose beacons follow each other within this many seconds has just joined (or joined
    #: again before it was missed) and looks for others.
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
        self.settings = settings
        self.address = address
        self.interface = interface
        self.on_heard = on_heard
        self.on_gone = on_gone
        if codecs is None:
            codecs = (PlainBeacons(address, prefix),)
        self.codecs: tuple[Codec, ...] = tuple(codecs)
        self.table = Table(settings.max_nodes, settings.expire, pinned)
        self.schedule = Schedule(settings.interval, uniform)
        self.counters = Counters()
        #: Why the socket is not open; None while it is.
        self.trouble: str | None = "not started"
        self.shared = SharedSources()
        #: Time of the last beacon by somebody else that carried our own address, or None.
        self.duplicate_heard: float | None = None
        self._socket: BeaconSocket | None = None
        self._answers = Answers(self._send)
        self._wake: asyncio.Event | None = None

    def announced_from(self, source: str) -> IPv6Address | None:
        """Return the address that beacons from a link-local address announce."""
        for entry in self.table.entries.values():
            if entry.source == source:
                return entry.address
        return None

    def spelling(self, address: IPv6Address) -> str:
        """Return ``address`` as the name of the node there spells it, as far as that is known."""
        entry = self.table.entries.get(address)
        return str(address) if entry is None else entry.spelling

    # -- what the daemon tells

    def interface_changed(self) -> None:
        """The interface came up, or is a new one: look at it now, and announce this node."""
        self.schedule.hurry(monotonic())
        self._poke()

    def peer_up(self) -> None:
        """The mesh got a new peer, so somebody may hear this node for the first time."""
        self.schedule.hurry(monotonic(), 1)
        self._poke()

    def apply(self, settings: DiscoverySection) -> None:
        """Follow changed settings."""
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
        """Return the ``discovery`` part of the status document."""
        now, counters = monotonic(), self.counters
        drops = {reason: n for reason, n in counters.dropped.items() if n}
        return {
            "sent": counters.sent,
            "answers": self._answers.given,
            "send_errors": counters.send_errors,
            "received": counters.received,
            "repeated": counters.repeated,
            "malformed": sum(drops.values()),
            "dropped": drops,
            "opened": counters.opened,
            "forms": {codec.form: codec.snapshot() for codec in self.codecs},
            "heard": [
                {
                    "address": _written(e.address),
                    "age": round(now - e.last, 1),
                    "beacons": e.beacons,
                }
                for e in self.table.entries.values()
            ],
        }

    # -- running

    def _poke(self) -> None:
        if self._wake is not None:
            self._wake.set()

    async def run(self) -> None:
        """Announce and listen until cancelled. Failures of the interface are retried."""
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
                self._stretch()
                for address in self.table.forget_silent(now):
                    log.info("%s has not been heard for %d s", address, self.table.lifetime)
                    if self.on_gone is not None:
                        self.on_gone(address)
                self._wake.clear()
                # at most 30 s, as nothing tells of a silent change of the interface
                await wait(self._wake, max(0.01, min(30.0, self.schedule.due - monotonic())))
        finally:
            self._close()
            self.trouble = "not running"

    def _stretch(self) -> None:
        """Follow the size of the mesh."""
        longer = stretch(len(self.table.entries) + 1)
        self.schedule.interval = self.settings.interval * longer
        self.table.lifetime = self.settings.expire * longer

    def _usable(self) -> bool:
        """Whether the socket still belongs to the interface of this name."""
        if self._socket is None:
            return False
        if self._socket.usable:
            return True
        self._close()
        return False

    def _open(self) -> None:
        """Open the socket on the interface.

        :raises OSError: it cannot be opened.
        """
        self._socket = BeaconSocket(self.interface, self.datagram, self._flood)
        self.counters.opened += 1
        self.trouble = None
        log.info("listening for beacons on %s", self.interface)

    def _close(self) -> None:
        self._answers.cancel()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _flood(self, now: float) -> None:
        self.counters.received += 1
        self.counters.dropped["rate"] += 1
        self.table.flooded = now

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
        if self._send(GROUP):
            self.counters.sent += 1
        self.schedule.sent(monotonic())

    def _send(self, to: str) -> bool:
        """Send a beacon of each form, and return whether any was sent."""
        sent = 0
        for codec in self.codecs:
            payload = codec.payload(monotonic())
            if payload:
                sent += self._send_one(payload, to)
        return sent > 0

    def _send_one(self, payload: bytes, to: str) -> bool:
        if self._socket is None:
            return False
        try:
            self._socket.send(payload, to)
        except OSError as e:
            self.counters.send_errors += 1
            log.debug("beacon to %s not sent: %s", to, e)
            # When the interface is down or has no address yet, the socket stays for the next try.
            # When it is gone, the next try opens a new socket.
            if e.errno in {errno.ENODEV, errno.ENXIO, errno.EBADF, errno.EINVAL}:
                self._close()
                self._poke()
            return False
        return True

    def datagram(
        self,
        payload: bytes,
        source: tuple[Any, ...],
        hop_limit: int | None,
        now: float,
        to_all: bool = True,
    ) -> None:
        """Judge one received datagram.

        :param source: the sender's AF_INET6 socket address.
        :param to_all: it was sent to all. What comes to this node alone is an answer, whose sender
            knows this node.
        """
        self.counters.received += 1
        try:
            # Beacons are sent with the highest hop limit, which a router lowers (RFC 5082).
            if hop_limit is not None and hop_limit != 255:
                raise MalformedError("hop_limit")
            if self._repeats(payload, str(source[0]).partition("%")[0], now, to_all):
                self.counters.repeated += 1
                return
            address, form = self._read(payload, str(source[0]), now)
            entry, new = self.table.hear(address, now)
        except MalformedError as e:
            self.counters.dropped[e.reason] += 1
            if e.reason == "own":
                # Loops are off, so another station claims our address.
                self.duplicate_heard = now
            log.debug("dropped a beacon from %s: %s", source[0], e.reason)
            return
        entry.source = str(source[0]).partition("%")[0]
        if not payload.startswith(SIGNED_MARK):
            entry.spelling = payload.decode("ascii")
        # A plain beacon can be sent by anybody in anybody's name.
        if form == "signed" and _parsed(entry.source) in LINK_LOCAL:
            self.shared.hear(entry.source, address, now)
        if new:
            log.info("heard %s", address)
        if to_all and self._looks(entry, entry.gap, now):
            self._answer(entry, str(source[0]), now)
        self.on_heard(address, new)

    def _repeats(self, payload: bytes, source: str, now: float, to_all: bool) -> bool:
        """Whether a beacon has nothing in it that we would do something about.

        A signature costs more than all else here, and a node that joins is heard by all others
        several times within seconds. Of what is not judged, only the time is noted.
        """
        found = next(filter(None, (codec.repeats(payload, now) for codec in self.codecs)), None)
        if found is None:
            return False
        address, age = found
        entry = self.table.entries.get(address)
        # one radio address of two nodes is found by their turns
        if entry is None or entry.source != source or self.shared.last(source) != address:
            return False
        if self.table.pinned(address):
            patience = self.table.lifetime * self.PROOF_CONNECTED
        else:
            patience = self.PROOF_AGAIN
        if age >= patience:
            return False
        if to_all and self._looks(entry, self.table.gap(entry, now), now):
            return False
        self.table.see(entry, now)
        return True

    def _looks(self, entry: Heard, gap: float, now: float) -> bool:
        """Whether a node looks for others, and was not answered a moment ago.

        :param gap: seconds between its last two beacons.
        """
        if gap >= self.LOOKING:
            return False
        # A connected node that looks for others may have been power-cycled a moment ago.
        connected = self.table.pinned(entry.address)
        return now - entry.answered >= (self.ANSWER_CONNECTED if connected else self.ANSWER_AGAIN)

    def _read(self, payload: bytes, source: str, now: float) -> tuple[IPv6Address, str]:
        """Return the address that a beacon announces, and its form.

        :raises MalformedError: it is not a good beacon.
        """
        if not payload:
            raise MalformedError("empty")
        for codec in self.codecs:
            if codec.claims(payload):
                sender = None
                if self.settings.check_source:
                    sender = _parsed(source.partition("%")[0])
                return codec.read(payload, sender, now), codec.form
        raise MalformedError("form")

    def _answer(self, entry: Heard, sender: str, now: float) -> None:
        """Answer a node heard just now, some of many nodes only. The answer goes to the sender, not
        to what it claims."""
        if self.schedule.uniform(0.0, stretch(len(self.table.entries) + 1)) > 1.0:
            return
        if self._socket is not None and self._answers.give(sender, len(self.table.entries), now):
            entry.answered = now


class Answers:
    """Answers newly heard nodes with beacons: a limited number, spread over time.

    :param send: sends a beacon to an address, and returns whether it was sent.
    :ivar given: how many were sent.
    """

    #: Answers per second.
    RATE = 20.0

    def __init__(self, send: Callable[[str], bool]) -> None:
        self.given = 0
        self._send = send
        self._budget = Bucket(self.RATE, self.RATE)
        self._timers: set[asyncio.TimerHandle] = set()

    def give(self, to: str, nodes: int, now: float) -> bool:
        """Send an answer soon; False when there are too many.

        :param nodes: how many nodes the mesh has.
        """
        if not self._budget.take(now):
            return False
        # In a large mesh all nodes hear the newcomer at once: spread their answers.
        spread = 0.01 + 0.01 * min(50, nodes)

        def send() -> None:
            self._timers.discard(timer)
            if self._send(to):
                self.given += 1

        timer = asyncio.get_running_loop().call_later(uniform(0.0, spread), send)
        self._timers.add(timer)
        return True

    def cancel(self) -> None:
        """Drop the answers that have not been sent yet."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
