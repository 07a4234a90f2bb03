# SPDX-License-Identifier: Apache-2.0
"""What the engine moves about: nodes, radios, frames on the air, and who hears whom."""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from meshlab.medium.airtime import Timing
from meshlab.medium.config import NodeConfig, RadioConfig
from meshlab.medium.error import Curve
from meshlab.medium.rates import Series, Vector
from meshlab.medium.stats import Loss, Traffic
from meshlab.wire import hwsim
from meshlab.wire.ieee80211 import RTS_LENGTH, Rate

RECENT = 1024
"""Deliveries whose refusal by the kernel is still understood."""
SEQ_MASK = 0x7FFFFFFF
"""Sequence numbers of requests that may be answered one by one; those of reports have the bit above
(``Radio.report_seq``)."""
REPORT = 0x80000000
FRAMING = struct.Struct("<IB")
LARGE = 600
"""Bytes of a frame from which on it counts as a large one: what carries files. Beacons, ticks, news
of nodes and acknowledgements of TCP are smaller."""


Part = tuple[float, float, Callable[[float], float], float]
"""A part of a frame: its begin and end, the log of the chance of one unit at an SNR, its units."""


def parts(timing: Timing, curve: Curve, length: int, end: float) -> list[Part]:
    """Return header and payload of a frame of ``length`` bytes that is over at ``end``."""
    begin = end - timing.duration(length)
    return [
        (begin + timing.header_begin, begin + timing.header_end, curve.header, 1),
        (begin + timing.preamble, end - timing.extension, curve.byte, length),
    ]


Delivery = tuple["Radio", int]
"""Where a frame was delivered: the radio and its frequency in MHz."""


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


class Link:
    """How one radio hears another at one frequency."""

    __slots__ = (
        "_loss",
        "_random",
        "delivery",
        "luck",
        "power",
        "receiver",
        "signal",
        "snr",
        "traffic",
    )

    def __init__(  # noqa: PLR0917 - made in one place
        self,
        receiver: Radio,
        frequency: int,
        snr: float,
        signal: int,
        random: Callable[[], float],
        loss: float,
        traffic: Traffic,
    ) -> None:
        self.receiver = receiver
        self.delivery: Delivery = (receiver, frequency)
        """What a node remembers of a frame over it."""
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

    __slots__ = ("by_radio", "links", "promiscuous", "sensing", "until", "version")

    def __init__(self, version: int) -> None:
        self.version = version
        self.until = math.inf
        """The time at which a link of it fades further."""
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
        "air",
        "air_large",
        "attenuation_db",
        "backoff",
        "busy_until",
        "closed",
        "config",
        "contending",
        "current",
        "deaf",
        "frequency",
        "index",
        "interfaces",
        "key",
        "name",
        "node",
        "plugged",
        "queued",
        "queues",
        "reach",
        "received",
        "retries",
        "secondary",
        "sent",
        "shut",
        "txop_until",
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
        self.secondary = 0
        """Where its beacons say that the other half of 40 MHz is: 1 above, -1 below the channel."""
        self.busy_until = 0.0
        self.backoff = backoff
        self.txop_until = 0.0
        """The end of the opportunity to send that it won last."""
        self.contending: Transmission | None = None
        self.current: Transmission | None = None
        self.queues: tuple[deque[Transmission], ...] = (deque(), deque(), deque(), deque())
        self.queued = 0
        self.reach: dict[int, Reach] = {}
        self.addresses: dict[bytes, None] = {}
        self.deaf: dict[int, float] = {}
        """Until when it is taken to be off a frequency."""
        self.closed = 0
        """How often its kernel may have given up everything that it had sent: an interface went
        down (``mac80211_hwsim_stop``), or the radio was removed."""
        self.attenuation_db = 0.0
        """By how much its kernel lets it send with less than its own power."""
        self.interfaces: set[bytes] = set()
        """Addresses of interfaces that its kernel told of."""
        self.shut = False
        """Its last interface went down: what still comes of it is given up soon."""
        self.sent = 0
        self.air = self.air_large = 0.0
        """Seconds that its tries took, with what protects and acknowledges them; large frames'."""
        self.retries = 0
        self.received = 0

    def report_seq(self, sent: Transmission) -> int:
        """Return the sequence number of the report on a frame: what its refusal would mean."""
        return REPORT | (self.index & 0x7F) << 24 | sent.closed & 0xFFFFFF

    def gave_up(self, seq: int) -> bool:
        """Tell whether the kernel may refuse the report ``seq``, because its frame is gone."""
        return seq & 0xFFFFFF != self.closed & 0xFFFFFF


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
        self.recent: list[Delivery | None] = [None] * RECENT
        """The latest deliveries that nobody waits for, each at its sequence number modulo
        ``RECENT``. Whoever takes a sequence number sets the entry."""
        self.session: Session | None = None

    def next_seq(self) -> int:
        """Return an unused sequence number; never 0."""
        self.seq = self.seq + 1 & SEQ_MASK or 1
        self.recent[self.seq & (RECENT - 1)] = None
        return self.seq

    def delivery(self, seq: int) -> Delivery | None:
        """Return what was delivered with a sequence number, None when that is long ago."""
        if 0 < seq <= SEQ_MASK and self.seq - seq & SEQ_MASK < RECENT:
            return self.recent[seq & (RECENT - 1)]
        return None

    def put(self, message: bytes) -> None:
        """Queue one netlink message."""
        if not self.out:
            self.wake()
        self.out.append(FRAMING.pack(len(message) + 1, 0))
        self.out.append(message)


def _nothing() -> None:
    pass


Overlap = tuple[Reach, float, float, float]
"""Who heard something else, from when to when, and the part of its power that is in the channel."""


class OnAir:
    """Something that occupies the channel: interference for others."""

    __slots__ = ("channel", "end", "missed", "overlaps", "radio", "reach", "start")

    radio: Radio
    reach: Reach
    channel: list[OnAir]
    """Everything on the air at its frequency, itself included."""
    start: float
    end: float
    overlaps: list[Overlap] | None
    """Who heard what else was on the air, and from when to when that was."""
    missed: dict[Radio, Loss] | None
    """Radios that hear it and do not follow it."""

    def parts(self) -> list[Part]:
        """Return what of it has to survive at its receiver."""
        raise NotImplementedError

    def rate(self) -> Rate:
        """Return how it is sent."""
        raise NotImplementedError


class Aggregate:
    """Frames to one receiver that are sent together (``aggregation``)."""

    __slots__ = ("going", "gone", "got", "link", "members", "window")

    def __init__(self, members: list[Transmission]) -> None:
        self.members = list(members)
        """What is not acknowledged, in order."""
        self.window = list(members)
        """What the receiver has not handed on, in order."""
        self.going: list[Transmission] = []
        """What is on the air of it."""
        self.got: set[Transmission] = set()
        """What the receiver has."""
        self.gone: set[Transmission] = set()
        """What the sender has given up."""
        self.link: Link | None = None


class Transmission(OnAir):
    """A frame from its arrival to the report to its sender."""

    __slots__ = (
        "aggregate",
        "aifs",
        "aired",
        "answer",
        "arrived",
        "attempts",
        "cleared",
        "closed",
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
        "txop",
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
    series: Series
    stage: int
    tries: int
    attempts: int
    vector: Vector
    aifs: float
    slot: float
    cw: int
    cw_max: int
    txop: float
    """Limit of the opportunity that it is sent in; 0: it is sent alone."""
    slots: int
    start_at: float
    arrived: float
    closed: int
    """The radio's when it arrived."""
    dead: bool
    """Its radio is gone: nothing more happens to it."""
    tail: bytes | None
    signal: int
    aired: bool
    """Nothing more happens on the air; only the kernel's answer is missing."""
    answer: bool | None
    cleared: bool
    """The receiver has sent a CTS for it."""
    aggregate: Aggregate | None
    """What it is the first of."""
    waits_seq: int
    """Of the injection whose answer counts; 0: of none."""
    injected_at: float

    def parts(self) -> list[Part]:
        """Return what of a try has to survive at its receiver."""
        return parts(self.vector.timing, self.vector.curve, self.length, self.end)

    def rate(self) -> Rate:
        """Return how it is sent."""
        return self.vector.rate

    @property
    def group(self) -> bool:
        """Tell whether it is addressed to a group."""
        return bool(self.frame[4] & 1)


class Rts(OnAir):
    """An RTS, which asks the receiver of a frame for silence around it."""

    __slots__ = ("sent",)

    sent: Transmission

    def parts(self) -> list[Part]:
        """Return what of it has to survive at its receiver."""
        vector = self.sent.vector
        return parts(vector.control_timing, vector.control, RTS_LENGTH, self.end)

    def rate(self) -> Rate:
        """Return how it is sent."""
        return self.sent.vector.control_rate


class Acknowledgement(OnAir):
    """An acknowledgement on its way back."""

    __slots__ = ("length", "link", "sent")

    sent: Transmission
    link: Link | None
    length: int
    """Bytes with FCS."""

    def parts(self) -> list[Part]:
        """Return what of it has to survive on its way back."""
        vector = self.sent.vector
        return parts(vector.control_timing, vector.control, self.length, self.end)

    def rate(self) -> Rate:
        """Return how it is sent."""
        return self.sent.vector.control_rate
