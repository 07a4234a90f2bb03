# SPDX-License-Identifier: Apache-2.0
"""The air: queues, carrier sense, collisions, frame errors, retries and acknowledgements.

A discrete-event simulation whose clock is the host's. It knows no sockets: messages of a node's
kernel go in at ``receive``, messages for it come out in ``Node.out``, and somebody calls
``advance`` when ``next_event`` is due. Tests do that with a clock of their own.

What a transmission goes through (clauses of IEEE Std 802.11-2020):

1. A kernel's ``FRAME`` enters the queue of its access category; the radio contends for the channel
   with the first frame of the first category (10.23.2).
2. Contention: the arbitration gap after the radio last sensed the channel busy, then a random
   number of slots that only idle time counts down (10.3.4.3). Radios that choose the same slot
   collide; radios that do not hear each other never wait for each other.
3. On the air the channel is busy for everyone in carrier-sense range, to the end of the
   acknowledgement (the NAV, 10.3.2.4). Everyone else goes on: that is spatial reuse, and where the
   two overlap at a receiver, interference adds to the noise there.
4. At its end every receiver in range draws from its link's own generator against the frame error
   rate at its signal to noise and interference. A radio cannot receive while it sends.
5. A frame to one receiver is acknowledged when it was received, the receiver's kernel took it and
   the acknowledgement itself came through; otherwise it is tried again along its rate series with
   the contention window doubled.

The kernel's answer takes milliseconds, which the simulated channel does not wait for: the next
frame goes on the air meanwhile, and only the report to the sender waits. When a kernel refuses, the
tries that a real sender would have made are added to the busy time of the channel afterwards.
"""

# ruff: noqa: PLR1730 - max() costs three times as much as "if" does, and this runs for every frame

from __future__ import annotations

import heapq
import math
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from meshlab.medium.airtime import EDCA, AirtimeModel, Band, Standard, Timing, band
from meshlab.medium.config import NodeConfig, RadioConfig
from meshlab.medium.error import Curve, ErrorModel, Textbook
from meshlab.medium.links import Links
from meshlab.medium.propagation import draw
from meshlab.medium.stats import Loss, Stats, Traffic
from meshlab.wire import hwsim, ieee80211
from meshlab.wire.hwsim import Command, RateFlag, TxFlag

ANSWER_DEADLINE = 2.0
"""Seconds a receiving kernel has to answer; after that the frame counts as not acknowledged."""

DEAF_TIME = 0.1
"""Seconds for which a radio whose kernel refused a frame is taken to be off that channel. It ends
at once when the radio sends there."""

ARRIVAL_SPREAD = 0.001
"""Seconds over which frames that find the channel idle are spread. The medium reads what several
nodes have sent at once, so it knows arrivals only that well; taken at their word, they would choose
the same slot and collide much more often than frames do that really arrive one by one."""

MAX_TRIES = 31
"""Tries at one rate, whatever the kernel asks for (mac80211 asks for 11 at most)."""

MAX_ADDRESSES = 16
"""Addresses of one radio that are remembered."""

KERNEL_KEEPS = 100
"""Frames left of a radio's queue when its kernel has dropped the oldest (``WARN_QUEUE``)."""

_RECENT = 1024

# Enumerations are slow where every frame passes.
_NO_ACK = int(TxFlag.NO_ACK)
_STAT_ACK = int(TxFlag.STAT_ACK)
_ECHOED = int(TxFlag.REQ_TX_STATUS | TxFlag.NO_ACK)
_FRAME = int(Command.FRAME)
_SEQ_MASK = 0xFFFFFFFF
_FRAMING = struct.Struct("<IB")
_NLMSG = struct.Struct("<IH")
_ANSWER = struct.Struct("<i8xI")
_RATES = struct.Struct("<bBbBbBbB")


class Observer(Protocol):
    """Sees what is on the air (a capture). Called only when there is one."""

    def transmission(self, sent: Transmission, outcomes: list[tuple[Radio, int]]) -> None:
        """One try has ended: for each radio in range a ``Loss``, or -1 when it was received."""
        ...

    def acknowledgement(self, sent: Transmission, receiver: Radio, at: float, lost: bool) -> None:
        """An acknowledgement has ended."""
        ...


class Session(Protocol):
    """What the engine does not handle itself: the life of a node's radios."""

    def answer(self, answer: hwsim.KernelAnswer) -> bool:
        """Take the kernel's answer to a request of the session's own; False when it is not."""
        ...

    def message(self, message: hwsim.Message) -> None:
        """Take any other message of the family."""
        ...

    def done(self, seq: int) -> None:
        """Take the end of a dump."""
        ...


class Vector:
    """A rate with everything that its use needs."""

    __slots__ = ("control", "control_rate", "curve", "protect", "rate", "rx_index", "timing")

    def __init__(
        self,
        rate: ieee80211.Rate,
        frequency: int,
        flags: int,
        error: ErrorModel,
        airtime: AirtimeModel,
    ) -> None:
        two_ghz = ieee80211.is_2ghz(frequency)
        self.rate = rate
        self.timing: Timing = airtime.timing(rate, two_ghz)
        self.curve: Curve = error.curve(rate)
        self.control_rate = ieee80211.control_rate(rate, two_ghz)
        """Of the acknowledgement."""
        self.control: Curve = error.curve(self.control_rate)
        self.rx_index = ieee80211.receive_index(rate, frequency)
        self.protect = bool(flags & RateFlag.RTS_CTS)
        """RTS and CTS go before."""


class Link:
    """How one radio hears another at one frequency."""

    __slots__ = ("_loss", "_random", "luck", "power", "receiver", "signal", "snr", "traffic")

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        receiver: Radio,
        snr: float,
        signal: int,
        random: Callable[[], float],
        loss: float,
        traffic: Traffic,
    ) -> None:
        self.receiver = receiver
        self.snr = snr
        self._random = random
        self._loss = loss
        self.traffic = traffic
        self.signal = signal
        """dBm."""
        self.power = 10 ** (snr / 10)
        """In units of the noise."""
        self.luck: Callable[[], float] = random if not loss else self._luck
        """Draws a number from 0 to 1 for a frame: below the frame's error rate it is lost."""

    def _luck(self) -> float:
        """Draw one for a link that loses frames whatever their rate and length: -1 for those."""
        drawn = self._random()
        return -1.0 if drawn < self._loss else (drawn - self._loss) / (1 - self._loss)


class Reach:
    """Who hears a radio at one frequency."""

    __slots__ = ("by_radio", "links", "promiscuous", "sensing", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.by_radio: dict[Radio, Link] = {}
        """Everyone whom its signal at least disturbs."""
        self.links: list[Link] = []
        """Everyone who could receive it."""
        self.promiscuous: list[Link] = []
        self.sensing: list[Radio] = []
        """Everyone who waits for it."""


class Radio:
    """One radio of a node."""

    __slots__ = (
        "addresses",
        "backoff",
        "busy_until",
        "config",
        "contending",
        "current",
        "deaf",
        "frequency",
        "index",
        "key",
        "name",
        "node",
        "plugged",
        "queued",
        "queues",
        "reach",
        "received",
        "retries",
        "sent",
        "up",
    )

    def __init__(
        self, node: Node, index: int, config: RadioConfig, backoff: Callable[[], float]
    ) -> None:
        self.node = node
        self.index = index
        self.config = config
        self.key = config.mac
        self.name = f"{node.name}/{index}"
        self.up = False
        """Its kernel has it, and the node's relay is connected."""
        self.plugged = config.plugged
        """It is meant to be there."""
        self.frequency = 0
        """MHz, of its last transmission; 0 before the first."""
        self.busy_until = 0.0
        self.backoff = backoff
        self.contending: Transmission | None = None
        self.current: Transmission | None = None
        self.queues: tuple[deque[Transmission], ...] = (deque(), deque(), deque(), deque())
        self.queued = 0
        self.reach: dict[int, Reach] = {}
        self.addresses: dict[bytes, None] = {}
        self.deaf: dict[int, float] = {}
        """Until when it is taken to be off a frequency."""
        self.sent = 0
        self.retries = 0
        self.received = 0


class Node:
    """One node."""

    __slots__ = (
        "by_key",
        "config",
        "family",
        "name",
        "out",
        "paused",
        "pending",
        "radios",
        "recent",
        "seq",
        "session",
        "wake",
    )

    def __init__(self, config: NodeConfig) -> None:
        self.name = config.name
        self.config = config
        self.radios: list[Radio] = []
        self.by_key: dict[bytes, Radio] = {}
        self.family = 0
        """The family's number in this node's kernel; 0 while there is no session."""
        self.seq = 0
        self.out: list[bytes] = []
        """Framed messages for its kernel, in pieces; whoever sends them empties the list."""
        self.wake: Callable[[], None] = _nothing
        """Called when ``out`` is no longer empty."""
        self.paused = False
        """It does not read: frames for it are dropped."""
        self.pending: dict[int, tuple[Transmission, Radio]] = {}
        """Frames to one receiver that await this kernel's answer, oldest first."""
        self.recent: list[tuple[int, Radio, int] | None] = [None] * _RECENT
        self.session: Session | None = None

    def next_seq(self) -> int:
        """Return an unused sequence number; never 0."""
        self.seq = self.seq + 1 & _SEQ_MASK or 1
        return self.seq

    def put(self, message: bytes) -> None:
        """Queue one netlink message."""
        if not self.out:
            self.wake()
        self.out.append(_FRAMING.pack(len(message) + 1, 0))
        self.out.append(message)


def _nothing() -> None:
    pass


class OnAir:
    """Something that occupies the channel: interference for others."""

    __slots__ = ("end", "overlaps", "radio", "reach")

    radio: Radio
    reach: Reach
    end: float
    overlaps: list[OnAir] | None


class Transmission(OnAir):
    """A frame from its arrival to the report to its sender."""

    __slots__ = (
        "aifs",
        "aired",
        "answer",
        "arrived",
        "attempts",
        "cookie",
        "cw",
        "cw_max",
        "dead",
        "flags",
        "frame",
        "frequency",
        "injected_at",
        "length",
        "need_ack",
        "series",
        "signal",
        "slot",
        "slots",
        "stage",
        "start_at",
        "tail",
        "tries",
        "tx_info",
        "vector",
        "waits_seq",
    )

    frame: bytes
    flags: int
    frequency: int
    cookie: int
    tx_info: bytes
    length: int
    need_ack: bool
    series: tuple[tuple[Vector, int], ...]
    stage: int
    tries: int
    attempts: int
    vector: Vector
    aifs: float
    slot: float
    cw: int
    cw_max: int
    slots: int
    start_at: float
    arrived: float
    dead: bool
    """Its radio is gone: nothing more happens to it."""
    tail: bytes | None
    signal: int
    aired: bool
    """Nothing more happens on the air; only the kernel's answer is missing."""
    answer: bool | None
    waits_seq: int
    """Of the injection whose answer counts; 0: of none."""
    injected_at: float

    @property
    def group(self) -> bool:
        """Tell whether it is addressed to a group."""
        return bool(self.frame[4] & 1)


class Acknowledgement(OnAir):
    """An acknowledgement on its way back."""

    __slots__ = ("link", "sent")

    sent: Transmission
    link: Link | None


_Event = tuple[float, int, Callable[[Any, float], None], Any]


class Engine:
    """The medium between the radios of all nodes."""

    def __init__(
        self,
        links: Links,
        seed: str,
        *,
        error: ErrorModel | None = None,
        airtime: AirtimeModel | None = None,
    ) -> None:
        self.links = links
        self.seed = seed
        self.nodes: dict[str, Node] = {}
        self.stats = Stats()
        self.observer: Observer | None = None
        self.now = 0.0
        """Simulated time: that of the latest event or arrival."""
        self._error = error or Textbook()
        self._airtime = airtime or Standard()
        self._events: list[_Event] = []
        self._count = 0
        self._owners: dict[bytes, list[Radio]] = {}
        self._active: dict[int, list[OnAir]] = {}
        self._generators: dict[tuple[str, str], Callable[[], float]] = {}
        self.traffic: dict[tuple[str, str], Traffic] = {}
        """What happened to frames between nodes, by sender and receiver."""
        self._series: dict[tuple[bytes, bytes, int], tuple[tuple[Vector, int], ...]] = {}
        self._vectors: dict[tuple[int, int, int], Vector] = {}
        self._reports: dict[tuple[bytes, int, int], bytes] = {}

    # Nodes and radios.

    def add_node(self, config: NodeConfig) -> Node:
        """Add a node with its radios. Raises ``ValueError`` when the name is taken."""
        if config.name in self.nodes:
            raise ValueError(f"there already is a node {config.name}")
        node = Node(config)
        for index, radio_config in enumerate(config.radios):
            backoff = draw(self.seed, "backoff", node.name, str(index)).random
            radio = Radio(node, index, radio_config, backoff)
            node.radios.append(radio)
            node.by_key[radio.key] = radio
            self._own(radio, radio.key)
        self.nodes[node.name] = node
        self.links.add_node(config)
        return node

    def remove_node(self, name: str) -> None:
        """Remove a node and everything of it that is under way."""
        node = self.nodes.pop(name)
        self.node_down(node)
        for radio in node.radios:
            for address in list(radio.addresses):
                self._disown(radio, address)
        self.links.remove_node(name)

    def node_up(self, node: Node, family: int) -> None:
        """Start a session: ``family`` is the number of hwsim's family in the node's kernel."""
        self.node_down(node)
        node.family = family

    def node_down(self, node: Node) -> None:
        """End a session: the node neither sends nor receives."""
        node.family = 0
        node.out.clear()
        node.paused = False
        for radio in node.radios:
            self.radio_down(radio)
        pending, node.pending = node.pending, {}
        for seq, (sent, radio) in pending.items():
            self._answered(sent, radio, seq, Loss.DOWN)
        node.recent = [None] * _RECENT

    def radio_up(self, radio: Radio) -> None:
        """The node's kernel has the radio."""
        radio.up = True
        radio.deaf.clear()

    def radio_down(self, radio: Radio) -> None:
        """The node's kernel no longer has the radio: nothing of it goes on the air."""
        radio.up = False
        radio.deaf.clear()
        for queue in radio.queues:
            queue.clear()
        radio.queued = 0
        if radio.current is not None:
            radio.current.dead = True
            radio.current = None
        radio.contending = None

    def _own(self, radio: Radio, address: bytes) -> None:
        if address in radio.addresses:
            return
        if len(radio.addresses) >= MAX_ADDRESSES:
            for old in radio.addresses:
                if old != radio.key:
                    self._disown(radio, old)
                    break
        radio.addresses[address] = None
        self._owners.setdefault(address, []).append(radio)

    def _disown(self, radio: Radio, address: bytes) -> None:
        if radio.addresses.pop(address, 0) is None:
            owners = self._owners[address]
            owners.remove(radio)
            if not owners:
                del self._owners[address]

    # Messages from a node's kernel.

    def receive(self, node: Node, buffer: bytes, start: int, end: int, now: float) -> None:
        """Take the netlink message ``buffer[start:end]`` from a node's kernel.

        ``now`` is the time of its arrival. Raises ``hwsim.HwsimError`` when it makes no sense.
        """
        if end - start < 20:
            raise hwsim.HwsimError(f"{end - start} bytes are no netlink message of interest")
        length, kind = _NLMSG.unpack_from(buffer, start)
        if length > end - start:
            raise hwsim.HwsimError(f"a message claims {length} bytes, {end - start} are there")
        if now > self.now:
            self.now = now
        if kind == node.family and kind:
            command = buffer[start + 16]
            if command == _FRAME:
                self._frame(node, hwsim.decode_frame(buffer, start, start + length))
            elif command in (Command.ADD_MAC_ADDR, Command.DEL_MAC_ADDR):
                self._address(node, hwsim.parse(buffer, start, start + length))
            elif node.session is not None:
                node.session.message(hwsim.parse(buffer, start, start + length))
        elif kind == hwsim.NLMSG_ERROR:
            self._kernel_answer(node, buffer, start, start + length)
        elif kind == hwsim.NLMSG_DONE and node.session is not None:
            node.session.done(hwsim.header(buffer, start, start + length).seq)

    def _address(self, node: Node, message: hwsim.Message) -> None:
        key, address = hwsim.address_change(message)
        radio = node.by_key.get(key)
        if radio is None:
            self.stats.unknown_radio += 1
        elif message.command == Command.ADD_MAC_ADDR:
            self._own(radio, address)
        elif address != radio.key:
            # Several interfaces share the radio's own address; others return with their next frame.
            self._disown(radio, address)

    def _frame(self, node: Node, got: hwsim.TxFrame) -> None:
        stats = self.stats
        stats.frames += 1
        frame = got.frame
        radio = node.by_key.get(got.transmitter)
        if radio is not None and not radio.up and radio.plugged:
            self.radio_up(radio)  # it sends, so it is there
        if radio is None or not radio.up or len(frame) < 10:
            stats.unknown_radio += 1
            # It will never be on the air, but its kernel waits for the report.
            node.put(
                hwsim.encode_tx_info(
                    node.family, 0, got.transmitter, got.flags & 3, 0, got.tx_info, got.cookie
                )
            )
            return
        radio.sent += 1
        sender = frame[10:16]
        if sender not in radio.addresses:
            address = ieee80211.transmitter(frame)
            if address is not None and not address[0] & 1:
                self._own(radio, address)
        if radio.deaf:
            radio.deaf.pop(got.frequency, None)
        if radio.queued >= hwsim.MAX_PENDING:
            self._overflow(radio)
        two_ghz = got.frequency < 3000
        category = ieee80211.access_category(frame)
        contention = EDCA[category]
        times: Band = band(two_ghz)
        sent = Transmission()
        sent.radio = radio
        sent.frame = frame
        sent.length = len(frame) + ieee80211.FCS
        sent.flags = got.flags
        sent.frequency = got.frequency
        sent.cookie = got.cookie
        sent.tx_info = got.tx_info
        key = (got.tx_info, got.tx_info_flags, got.frequency)
        series = self._series.get(key)
        if series is None:
            series = self._make_series(key)
        sent.series = series
        sent.vector = series[0][0]
        sent.need_ack = not (frame[4] & 1 or got.flags & _NO_ACK or ieee80211.wants_no_ack(frame))
        sent.stage = sent.tries = sent.attempts = 0
        sent.slot = times.slot
        sent.aifs = times.sifs + contention.aifsn * times.slot
        sent.cw = contention.cw_min
        sent.cw_max = contention.cw_max
        sent.arrived = self.now
        sent.dead = sent.aired = False
        sent.tail = None
        sent.signal = 0
        sent.answer = None
        sent.waits_seq = 0
        sent.overlaps = None
        radio.queues[category].append(sent)
        radio.queued += 1
        if radio.current is None:
            self._next(radio, self.now)

    def _overflow(self, radio: Radio) -> None:
        """Give up what the kernel has given up (mac80211_hwsim_tx_frame_nl)."""
        for queue in reversed(radio.queues):
            while queue and radio.queued > KERNEL_KEEPS:
                queue.popleft()
                radio.queued -= 1
                self.stats.kernel_overflow += 1

    def _make_series(self, key: tuple[bytes, bytes, int]) -> tuple[tuple[Vector, int], ...]:
        tx_info, tx_info_flags, frequency = key
        entries = []
        for entry in hwsim.decode_series(tx_info, tx_info_flags):
            vector = self._vector(entry.idx, entry.flags, frequency)
            entries.append((vector, min(max(entry.tries, 1), MAX_TRIES)))
        if not entries:
            entries.append((self._vector(0, 0, frequency), 1))
        if len(self._series) >= 4096:  # a kernel uses some dozens
            self._series.clear()
        series = self._series[key] = tuple(entries)
        return series

    def _vector(self, index: int, flags: int, frequency: int) -> Vector:
        key = (index, flags, frequency)
        found = self._vectors.get(key)
        if found is None:
            try:
                rate = ieee80211.rate(index, flags, ieee80211.is_2ghz(frequency))
            except ValueError:
                self.stats.bad_rates += 1
                rate = ieee80211.legacy_rates(frequency)[0]
            if len(self._vectors) >= 4096:
                self._vectors.clear()
            found = Vector(rate, frequency, flags, self._error, self._airtime)
            self._vectors[key] = found
        return found

    def _kernel_answer(self, node: Node, buffer: bytes, start: int, end: int) -> None:
        if end - start < 36:
            raise hwsim.HwsimError(f"an answer of {end - start} bytes")
        # After nlmsghdr: the error, then the header of the request (length, type, flags, seq, pid).
        error, seq = _ANSWER.unpack_from(buffer, start + 16)
        waiting = node.pending.pop(seq, None)
        if waiting is not None:
            self._answered(*waiting, seq, None if error >= 0 else Loss.OFF_CHANNEL)
            return
        recent = node.recent[seq & (_RECENT - 1)]
        if recent is not None and recent[0] == seq:
            if error < 0:
                self._refused(recent[1], recent[2], Loss.OFF_CHANNEL)
            return
        if seq == 0:
            if error < 0:
                self.stats.tx_info_refused += 1
            return
        if node.session is not None:
            node.session.answer(hwsim.decode_answer(buffer, start, end))

    def _refused(self, radio: Radio, frequency: int, reason: Loss) -> None:
        """A delivery that had been counted did not happen."""
        self.stats.deliveries -= 1
        self.stats.losses[reason] += 1
        radio.received -= 1
        if reason is Loss.OFF_CHANNEL:
            radio.deaf[frequency] = self.now + DEAF_TIME

    # Contention.

    def _push(self, when: float, action: Callable[[Any, float], None], what: Any) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action, what))

    def next_event(self) -> float | None:
        """Return the time of the next event, None when nothing is under way."""
        return self._events[0][0] if self._events else None

    def advance(self, until: float) -> None:
        """Let everything happen that is due by ``until``."""
        events = self._events
        while events and events[0][0] <= until:
            when, _, action, what = heapq.heappop(events)
            if when > self.now:
                self.now = when
            action(what, when)

    def _next(self, radio: Radio, when: float) -> None:
        """Let a radio contend for its next frame, if it has one."""
        for queue in radio.queues:
            if queue:
                sent = queue.popleft()
                radio.queued -= 1
                radio.current = sent
                self._contend(sent, when)
                return
        radio.current = None

    def _contend(self, sent: Transmission, when: float) -> None:
        radio = sent.radio
        if sent.frequency != radio.frequency:
            self._tune(radio, sent.frequency, when)
        sent.slots = int(radio.backoff() * (sent.cw + 1))
        start = radio.busy_until + sent.aifs + sent.slots * sent.slot
        if start <= when:
            start = when + radio.backoff() * ARRIVAL_SPREAD
        sent.start_at = start
        radio.contending = sent
        self._push(sent.start_at, self._start, sent)

    def _tune(self, radio: Radio, frequency: int, when: float) -> None:
        """A radio sends on another channel than before: what does it sense there?"""
        radio.frequency = frequency
        radio.busy_until = when
        for other in self._active.get(frequency, ()):
            if other.end > radio.busy_until and radio in other.reach.sensing:
                radio.busy_until = other.end

    def _occupy(self, reach: Reach, frequency: int, when: float, until: float) -> None:
        """Make the channel busy for everyone who senses it, and freeze their countdowns."""
        for radio in reach.sensing:
            if radio.frequency != frequency:
                continue
            waiting = radio.contending
            # Whoever starts within the same slot cannot notice in time (10.3.7): a collision.
            if waiting is not None and waiting.start_at > when + 0.9 * waiting.slot:
                idle = when - (radio.busy_until + waiting.aifs)
                if idle > 0:
                    waiting.slots -= min(waiting.slots, int(idle / waiting.slot + 1e-6))
                if until > radio.busy_until:
                    radio.busy_until = until
                waiting.start_at = radio.busy_until + waiting.aifs + waiting.slots * waiting.slot
            elif until > radio.busy_until:
                radio.busy_until = until

    def _enter(self, what: OnAir, frequency: int) -> None:
        active = self._active.get(frequency)
        if active is None:
            active = self._active[frequency] = []
        what.overlaps = None
        if active:
            what.overlaps = list(active)
            for other in active:
                if other.overlaps is None:
                    other.overlaps = [what]
                else:
                    other.overlaps.append(what)
        active.append(what)

    def _start(self, sent: Transmission, when: float) -> None:
        if sent.dead:
            return
        if sent.start_at > when:
            # The channel became busy after this event was made.
            self._push(sent.start_at, self._start, sent)
            return
        radio = sent.radio
        radio.contending = None
        if not sent.attempts:
            self.stats.queue_delay.add(when - sent.arrived)
        sent.attempts += 1
        self.stats.attempts += 1
        vector, timing = sent.vector, sent.vector.timing
        frequency = sent.frequency
        reach = sent.reach = self._reach(radio, frequency)
        sent.end = when + timing.duration(sent.length)
        if vector.protect and sent.need_ack:
            sent.end += timing.rts_cts
        until = sent.end + timing.ack if sent.need_ack else sent.end
        if until > radio.busy_until:
            radio.busy_until = until
        self._occupy(reach, frequency, when, until)
        if vector.protect and sent.need_ack:
            # The CTS keeps those quiet who hear the receiver only (10.3.2.9).
            for owner in self._owners.get(sent.frame[4:10], ()):
                if owner.up and owner in reach.by_radio:
                    self._occupy(self._reach(owner, frequency), frequency, when, until)
            radio.busy_until = max(radio.busy_until, until)
        self._enter(sent, frequency)
        self._push(sent.end, self._end, sent)

    # Who hears whom.

    def _reach(self, radio: Radio, frequency: int) -> Reach:
        reach = radio.reach.get(frequency)
        if reach is None or reach.version != self.links.version:
            if len(radio.reach) >= 64:  # a guest that makes up frequencies
                radio.reach.clear()
            reach = radio.reach[frequency] = self._make_reach(radio, frequency)
        return reach

    def _make_reach(self, radio: Radio, frequency: int) -> Reach:
        links = self.links
        limits = links.receiver
        reach = Reach(links.version)
        power = radio.config.tx_power_dbm
        for node in self.nodes.values():
            if node is radio.node and len(node.radios) < 2:
                continue
            heard = links.hearing(radio.node.name, node.name, power, frequency)
            snr = heard.snr
            if snr is None or snr < limits.interference_snr_db:
                continue
            signal = round(limits.noise_dbm + snr)
            for other in node.radios:
                if other is radio:
                    continue
                link = Link(
                    other,
                    snr,
                    signal,
                    self._generator(radio, other),
                    heard.loss,
                    self._traffic_of(radio.node.name, node.name),
                )
                reach.by_radio[other] = link
                if snr >= limits.detection_snr_db:
                    reach.links.append(link)
                    if other.config.promiscuous:
                        reach.promiscuous.append(link)
                if snr >= limits.carrier_sense_snr_db:
                    reach.sensing.append(other)
        return reach

    def _generator(self, sender: Radio, receiver: Radio) -> Callable[[], float]:
        key = (sender.name, receiver.name)
        found = self._generators.get(key)
        if found is None:
            found = self._generators[key] = draw(self.seed, "link", *key).random
        return found

    def _traffic_of(self, sender: str, receiver: str) -> Traffic:
        found = self.traffic.get((sender, receiver))
        if found is None:
            found = self.traffic[sender, receiver] = Traffic()
        return found

    # Reception.

    def _disturbed(
        self, link: Link, overlaps: list[OnAir], curve: Curve, length: int, luck: float
    ) -> int:
        """Return why a frame that others overlapped is lost at a receiver, -1 when it is not."""
        receiver = link.receiver
        interference = 0.0
        for other in overlaps:
            if other.radio is receiver:
                return Loss.HALF_DUPLEX
            disturbing = other.reach.by_radio.get(receiver)
            if disturbing is not None:
                interference += disturbing.power
        if luck < curve.loss(link.snr, length):
            return Loss.ERROR
        if interference:
            snr = 10 * math.log10(link.power / (1 + interference))
            if luck < curve.loss(snr, length):
                return Loss.COLLISION
        return -1

    def _end(self, sent: Transmission, when: float) -> None:
        self._active[sent.frequency].remove(sent)
        if sent.dead:
            return
        if sent.frame[4] & 1:
            self._end_group(sent)
            self._finish(sent, False, when)
        else:
            self._end_unicast(sent, when)

    def _end_group(self, sent: Transmission) -> None:
        stats = self.stats
        losses = stats.losses
        length = sent.length
        curve = sent.vector.curve
        loss = curve.loss
        overlaps = sent.overlaps
        frequency = sent.frequency
        now = self.now
        outcomes: list[tuple[Radio, int]] | None = None if self.observer is None else []
        tail = hwsim.inject_tail(sent.vector.rx_index, frequency, sent.frame)
        size = len(tail)
        too_long = len(sent.frame) > hwsim.MAX_FRAME
        framing = _FRAMING.pack(1 + hwsim.INJECT_HEAD_SIZE + size, 0)
        too_short = len(sent.frame) < hwsim.MIN_FRAME
        for link in sent.reach.links:
            luck = link.luck()
            radio = link.receiver
            if not radio.up:
                continue
            if overlaps is None:
                reason = Loss.ERROR if luck < loss(link.snr, length) else -1
            else:
                reason = self._disturbed(link, overlaps, curve, length, luck)
            traffic = link.traffic
            traffic.group += 1
            if reason >= 0:
                traffic.group_lost += 1
            node = radio.node
            if reason < 0:
                deaf = radio.deaf
                if deaf and deaf.get(frequency, 0.0) > now:
                    reason = Loss.OFF_CHANNEL
                elif node.paused:
                    reason = Loss.BACK_PRESSURE
                elif too_long:
                    reason = Loss.TOO_LONG
                elif too_short:
                    stats.short_frames += 1
                else:
                    seq = node.seq = node.seq + 1 & _SEQ_MASK or 1
                    node.recent[seq & (_RECENT - 1)] = (seq, radio, frequency)
                    out = node.out
                    if not out:
                        node.wake()
                    out.append(framing)
                    out.append(hwsim.inject_head(node.family, seq, radio.key, link.signal, size))
                    out.append(tail)
                    stats.deliveries += 1
                    radio.received += 1
            if reason >= 0:
                losses[reason] += 1
            if outcomes is not None:
                outcomes.append((radio, reason))
        if outcomes is not None and self.observer is not None:
            self.observer.transmission(sent, outcomes)

    def _end_unicast(self, sent: Transmission, when: float) -> None:
        outcomes: list[tuple[Radio, int]] = []
        receiver: Link | None = None
        by_radio = sent.reach.by_radio
        detection = self.links.receiver.detection_snr_db
        reached = False
        owners = self._owners.get(sent.frame[4:10], ())
        for owner in owners:
            link = by_radio.get(owner)
            if link is None or link.snr < detection:
                continue
            luck = link.luck()
            if not owner.up:
                continue
            reached = True
            reason = self._receive_one(sent, link, luck, receiver is None)
            outcomes.append((owner, reason))
            if reason < 0 and receiver is None:
                receiver = link
        if not reached:
            self.stats.no_receiver += 1
        for link in sent.reach.promiscuous:
            if link.receiver not in owners:
                luck = link.luck()
                if link.receiver.up:
                    reason = self._receive_one(sent, link, luck, False)
                    outcomes.append((link.receiver, reason))
        if self.observer is not None:
            self.observer.transmission(sent, outcomes)
        if not sent.need_ack:
            self._finish(sent, False, when)
        elif receiver is None:
            self._failed(sent, when)
        else:
            self._acknowledge(sent, receiver, when)

    def _receive_one(self, sent: Transmission, link: Link, luck: float, answer: bool) -> int:
        """Deliver a frame that is not for a group; return why not, -1 when it was delivered.

        With ``answer`` the sender's report will wait for what the kernel says.
        """
        radio = link.receiver
        node = radio.node
        reason = -1
        if sent.overlaps is not None:
            reason = self._disturbed(link, sent.overlaps, sent.vector.curve, sent.length, luck)
        elif luck < sent.vector.curve.loss(link.snr, sent.length):
            reason = Loss.ERROR
        if answer:
            link.traffic.unicast += 1
            if reason >= 0:
                link.traffic.unicast_lost += 1
        if reason < 0:
            if radio.deaf and radio.deaf.get(sent.frequency, 0.0) > self.now:
                reason = Loss.OFF_CHANNEL
            elif node.paused:
                reason = Loss.BACK_PRESSURE
            elif len(sent.frame) > hwsim.MAX_FRAME:
                reason = Loss.TOO_LONG
        if reason >= 0:
            self.stats.losses[reason] += 1
            return reason
        if len(sent.frame) < hwsim.MIN_FRAME:
            # The kernel takes no short control frames; the air alone decides.
            self.stats.short_frames += 1
            if answer:
                sent.answer, sent.waits_seq = True, 0
            return -1
        tail = sent.tail
        if tail is None or sent.attempts > 1:
            frame = sent.frame
            if sent.attempts > 1:
                frame = frame[:1] + bytes((frame[1] | ieee80211.RETRY,)) + frame[2:]
            tail = hwsim.inject_tail(sent.vector.rx_index, sent.frequency, frame)
            sent.tail = tail
        seq = node.next_seq()
        flags = hwsim.NLM_F_REQUEST
        if answer and sent.need_ack:
            flags |= hwsim.NLM_F_ACK
            sent.answer = None
            sent.waits_seq = seq
            sent.injected_at = self.now
            node.pending[seq] = (sent, radio)
        else:
            node.recent[seq & (_RECENT - 1)] = (seq, radio, sent.frequency)
        out = node.out
        if not out:
            node.wake()
        out.append(_FRAMING.pack(1 + hwsim.INJECT_HEAD_SIZE + len(tail), 0))
        out.append(hwsim.inject_head(node.family, seq, radio.key, link.signal, len(tail), flags))
        out.append(tail)
        self.stats.deliveries += 1
        radio.received += 1
        return -1

    # Acknowledgements, retries and reports.

    def _acknowledge(self, sent: Transmission, link: Link, when: float) -> None:
        radio = link.receiver
        ack = Acknowledgement()
        ack.radio = radio
        ack.sent = sent
        ack.reach = self._reach(radio, sent.frequency)
        ack.link = ack.reach.by_radio.get(sent.radio)
        ack.end = when + sent.vector.timing.ack
        radio.busy_until = max(radio.busy_until, ack.end)
        self._occupy(ack.reach, sent.frequency, when, ack.end)
        self._enter(ack, sent.frequency)
        self._push(ack.end, self._acknowledged, ack)

    def _acknowledged(self, ack: Acknowledgement, when: float) -> None:
        sent = ack.sent
        self._active[sent.frequency].remove(ack)
        if sent.dead:
            return
        link = ack.link
        lost = True
        if link is not None and link.snr >= self.links.receiver.detection_snr_db:
            luck = link.luck()
            if ack.overlaps is not None:
                lost = (
                    self._disturbed(
                        link, ack.overlaps, sent.vector.control, ieee80211.ACK_LENGTH, luck
                    )
                    >= 0
                )
            else:
                lost = luck < sent.vector.control.loss(link.snr, ieee80211.ACK_LENGTH)
            link.traffic.acks += 1
            if lost:
                link.traffic.acks_lost += 1
        if self.observer is not None:
            self.observer.acknowledgement(sent, ack.radio, when, lost)
        if lost or link is None:
            self.stats.ack_lost += 1
            self._failed(sent, when)
        else:
            sent.signal = link.signal
            self._finish(sent, True, when)

    def _failed(self, sent: Transmission, when: float) -> None:
        """A try was in vain: the next one, or the end."""
        sent.tries += 1
        if sent.tries >= sent.series[sent.stage][1]:
            if sent.stage + 1 >= len(sent.series):
                self._finish(sent, False, when)
                return
            sent.stage += 1
            sent.tries = 0
            sent.vector = sent.series[sent.stage][0]
            sent.tail = None
        sent.radio.retries += 1
        sent.cw = min(2 * sent.cw + 1, sent.cw_max)
        self._contend(sent, when)

    def _finish(self, sent: Transmission, acked: bool, when: float) -> None:
        """The air is done with a frame; its report may have to wait for the receiving kernel."""
        radio = sent.radio
        if not acked:
            sent.waits_seq = 0
            if sent.need_ack:
                self.stats.not_acked += 1
            self._report(sent, False)
        elif sent.answer is not None:
            self._settle(sent)
        else:
            sent.aired = True  # _answered() goes on
        self._next(radio, when)

    def _answered(
        self, sent: Transmission, receiver: Radio, seq: int, problem: Loss | None
    ) -> None:
        """The receiving kernel has answered the injection ``seq``, or never will."""
        if problem is not None:
            self._refused(receiver, sent.frequency, problem)
        if sent.waits_seq != seq:
            return  # an earlier try, whose acknowledgement was lost
        sent.waits_seq = 0
        if problem is not Loss.HOST_TOO_SLOW:
            self.stats.answer_time.add(self.now - sent.injected_at)
        sent.answer = problem is None
        if sent.aired:
            self._settle(sent)

    def _settle(self, sent: Transmission) -> None:
        if sent.answer:
            self.stats.acked += 1
            self._report(sent, True)
            return
        self.stats.not_acked += 1
        # A sender without acknowledgement would have gone on trying.
        rest = 0.0
        for stage in range(sent.stage, len(sent.series)):
            vector, tries = sent.series[stage]
            left = tries - sent.tries - 1 if stage == sent.stage else tries
            each = sent.aifs + vector.timing.duration(sent.length) + vector.timing.ack
            rest += left * each
            sent.radio.retries += left
        last = len(sent.series) - 1
        sent.stage, sent.tries = last, sent.series[last][1]
        if rest:
            radio = sent.radio
            start = max(self.now, radio.busy_until)
            self._occupy(self._reach(radio, sent.frequency), sent.frequency, start, start + rest)
            radio.busy_until = max(radio.busy_until, start + rest)
        self._report(sent, False)

    def _report(self, sent: Transmission, acked: bool) -> None:
        radio = sent.radio
        node = radio.node
        if not radio.up:
            return
        stage = min(sent.stage, len(sent.series) - 1)
        tries = sent.tries + 1 if acked or not sent.need_ack else sent.tries
        key = (sent.tx_info, stage, tries)
        tx_info = self._reports.get(key)
        if tx_info is None:
            tx_info = self._make_report(sent, stage, tries)
        flags = sent.flags & _ECHOED
        if acked:
            flags |= _STAT_ACK
        out = node.out
        if not out:
            node.wake()
        out.append(_TX_INFO_FRAMING)
        out.append(
            hwsim.encode_tx_info(
                node.family, 0, radio.key, flags, sent.signal, tx_info, sent.cookie
            )
        )

    def _make_report(self, sent: Transmission, stage: int, tries: int) -> bytes:
        """Return the rate series with the tries made, ended where the frame's were over."""
        asked = _RATES.unpack(sent.tx_info)
        made = []
        for i in range(hwsim.MAX_RATES):
            if asked[0] < 0 or i > stage:
                # Nothing usable was asked for: echoed as it came, beginning with the end mark.
                made += [-1, 0]
            elif i == stage:
                made += [asked[2 * i], tries]
            else:
                made += [asked[2 * i], sent.series[i][1]]
        if len(self._reports) >= 4096:
            self._reports.clear()
        report = self._reports[sent.tx_info, stage, tries] = _RATES.pack(*made)
        return report

    def sweep(self, now: float) -> None:
        """Give up on kernels that have not answered in time; call it several times a second."""
        if now > self.now:
            self.now = now
        for node in self.nodes.values():
            while node.pending:
                seq, (sent, radio) = next(iter(node.pending.items()))
                if sent.injected_at + ANSWER_DEADLINE > now:
                    break
                del node.pending[seq]
                self._answered(sent, radio, seq, Loss.HOST_TOO_SLOW)


_TX_INFO_FRAMING = _FRAMING.pack(1 + hwsim.TX_INFO_SIZE, 0)
