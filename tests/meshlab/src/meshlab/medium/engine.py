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
   acknowledgement (the NAV, 10.3.2.4); for those who missed its beginning only while the frame
   lasts, and only when it is loud (``channels``). Everyone else goes on: that is spatial reuse.
4. At its end every receiver in range that followed it draws from its link's own generator against
   the frame error rate at its signal to noise and interference, which may have changed within the
   frame (``reception``). A radio cannot receive while it sends.
5. A frame to one receiver is acknowledged when it was received, the receiver's kernel took it and
   the acknowledgement itself came through; otherwise it is tried again along its rate series with
   the contention window doubled.

The kernel's answer takes milliseconds, which the simulated channel does not wait for: the next
frame goes on the air meanwhile, and only the report to the sender waits. When a kernel refuses, the
tries that a real sender would have made are added to the busy time of the channel afterwards.
"""

# ruff: noqa: PLR1730 - max() costs three times as much as "if" does, and this runs for every frame

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from heapq import heappop, heappush
from math import nan
from typing import Any

from meshlab.medium import blockack, reception, spectrum
from meshlab.medium.addresses import Addresses
from meshlab.medium.aggregation import BLOCK_ACK_LENGTH, Aggregation, answer_time
from meshlab.medium.airtime import EDCA, AirtimeModel, Band, Standard, band
from meshlab.medium.channels import Channels, hold
from meshlab.medium.config import NodeConfig
from meshlab.medium.error import ErrorModel, Textbook
from meshlab.medium.keys import Keyring
from meshlab.medium.links import Links
from meshlab.medium.objects import (
    FRAMING,
    LARGE,
    RECENT,
    REPORT,
    SEQ_MASK,
    Acknowledgement,
    Link,
    Node,
    Observer,
    OnAir,
    Radio,
    Rts,
    Transmission,
)
from meshlab.medium.propagation import draw
from meshlab.medium.rates import Rates
from meshlab.medium.reach import Reaches
from meshlab.medium.reception import disturbances
from meshlab.medium.stats import Loss, Stats
from meshlab.wire import hwsim, ieee80211, nl80211
from meshlab.wire.hwsim import Command, TxFlag

ANSWER_DEADLINE = 2.0
"""Seconds a receiving kernel has to answer; after that the frame counts as not acknowledged."""

DEAF_TIME = 0.1
"""Seconds for which a radio whose kernel refused a frame is taken to be off that channel. It ends
at once when the radio sends there."""

ARRIVAL_SPREAD = 0.001
"""Seconds over which frames that find the channel idle are spread. The medium reads what several
nodes have sent at once, so it knows arrivals only that well; taken at their word, they would choose
the same slot and collide much more often than frames do that really arrive one by one."""

RX_PHY_START_DELAY = 20e-6
"""Seconds until a receiver tells that a frame has begun: aRxPHYStartDelay (table 17-21)."""

KERNEL_KEEPS = 100
"""Frames left of a radio's queue when its kernel has dropped the oldest (``WARN_QUEUE``)."""

# Enumerations are slow where every frame passes.
_NO_ACK = int(TxFlag.NO_ACK)
_STAT_ACK = int(TxFlag.STAT_ACK)
_ECHOED = int(TxFlag.REQ_TX_STATUS | TxFlag.NO_ACK)
_FRAME = int(Command.FRAME)
_TYPE = 0x0C
_ACTION = ieee80211.Management.ACTION << 4
_BEACON = ieee80211.Management.BEACON << 4
_NLMSG = struct.Struct("<IH")
_ANSWER = struct.Struct("<i8xI")
_ERROR = hwsim.NLMSG_ERROR
_REQUEST = hwsim.NLM_F_REQUEST
_REQUEST_ACK = hwsim.NLM_F_REQUEST | hwsim.NLM_F_ACK
_RETRY = ieee80211.RETRY
_MAX_LENGTH = hwsim.MAX_FRAME + ieee80211.FCS
_MIN_LENGTH = hwsim.MIN_FRAME + ieee80211.FCS
_INJECTED = 1 + hwsim.INJECT_HEAD_SIZE
_TX_INFO_FRAMING = FRAMING.pack(1 + hwsim.TX_INFO_SIZE, 0)


_Waits = tuple[float, float, int, int, float]
"""How a category contends in a band: arbitration gap, slot, smallest and largest window, limit of
the opportunity."""


def _waits(times: Band) -> tuple[_Waits, ...]:
    return tuple(
        (times.aifs(own), times.slot, own.cw_min, own.cw_max, own.txop)
        for own in (EDCA[category] for category in ieee80211.AccessCategory)
    )


_WAITS_2_4, _WAITS_5 = _waits(band(True)), _waits(band(False))


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
        aggregation: bool = False,
    ) -> None:
        self.links = links
        self.seed = seed
        self.nodes: dict[str, Node] = {}
        self.stats = Stats()
        self.observer: Observer | None = None
        self.keys = Keyring()
        """Learns from what passes how nodes agree on keys, for captures in clear."""
        self.now = 0.0
        """Simulated time: that of the latest event or arrival."""
        self.addresses = Addresses()
        self.channels = Channels(links.receiver)
        self.reaches = Reaches(links, seed, self.nodes, lambda: self.now)
        self._rates = Rates(error or Textbook(), airtime or Standard(), aggregation=aggregation)
        self._aggregated = Aggregation(self)
        self._events: list[_Event] = []
        self._order = itertools.count()
        self._detection = links.receiver.detection_snr_db

    def reset_stats(self) -> None:
        """Begin to count from 0."""
        self.stats = Stats()
        for traffic in self.reaches.traffic.values():
            traffic.reset()
        self._rates.forget()

    # Nodes and radios.

    def add_node(self, config: NodeConfig) -> Node:
        """Add a node with its radios.

        :raises ValueError: when the name is taken.
        """
        if config.name in self.nodes:
            raise ValueError(f"there already is a node {config.name}")
        node = Node(config)
        for index, radio_config in enumerate(config.radios):
            backoff = draw(self.seed, "backoff", node.name, str(index)).random
            radio = Radio(node, index, radio_config, backoff)
            node.radios.append(radio)
            node.by_key[radio.key] = radio
            self.addresses.add(radio, radio.key)
        self.nodes[node.name] = node
        self.links.add_node(config)
        return node

    def remove_node(self, name: str) -> None:
        """Remove a node and everything of it that is under way."""
        node = self.nodes.pop(name)
        self.node_down(node)
        for radio in node.radios:
            for address in list(radio.addresses):
                self.addresses.remove(radio, address)
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
        node.recent = [None] * RECENT

    def radio_up(self, radio: Radio) -> None:
        """The node's kernel has the radio."""
        radio.up = True
        radio.deaf.clear()

    def radio_down(self, radio: Radio) -> None:
        """The node's kernel no longer has the radio: nothing of it goes on the air."""
        radio.up = False
        self._attenuate(radio, 0.0)
        radio.interfaces.clear()
        radio.shut = False
        radio.closed += 1
        radio.deaf.clear()
        for queue in radio.queues:
            queue.clear()
        radio.queued = 0
        if radio.current is not None:
            radio.current.dead = True
            radio.current = None
        radio.contending = None

    # Messages from a node's kernel.

    def receive(self, node: Node, buffer: bytes, start: int, end: int, now: float) -> None:
        """Take the netlink message ``buffer[start:end]`` from a node's kernel.

        :param now: The time of its arrival.
        :raises hwsim.HwsimError: when it makes no sense.
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
        elif kind == _ERROR:
            self._kernel_answer(node, buffer, start, start + length)
        elif kind == hwsim.NLMSG_DONE and node.session is not None:
            node.session.done(hwsim.header(buffer, start, start + length).seq)
        elif kind > hwsim.GENL_ID_CTRL:
            # Relays ask one other family, nl80211 (PROTOCOL.md).
            self._interface(node, hwsim.parse(buffer, start, start + length))

    def _interface(self, node: Node, message: hwsim.Message) -> None:
        told = nl80211.power(message)
        for radio in node.radios:
            if told is not None and told.mac in radio.addresses:
                self._attenuate(radio, radio.config.attenuation_db(told.dbm))

    def _attenuate(self, radio: Radio, attenuation_db: float) -> None:
        if radio.attenuation_db != attenuation_db:
            radio.attenuation_db = attenuation_db
            self.links.version += 1

    def _address(self, node: Node, message: hwsim.Message) -> None:
        key, address = hwsim.address_change(message)
        radio = node.by_key.get(key)
        if radio is None:
            self.stats.unknown_radio += 1
        elif message.command == Command.ADD_MAC_ADDR:
            radio.interfaces.add(address)
            radio.shut = False
            self.addresses.add(radio, address)
        else:
            radio.interfaces.discard(address)
            radio.shut = not radio.interfaces
            radio.closed += 1
            if address != radio.key:
                # Several interfaces share the radio's own address; others return with their next
                # frame.
                self.addresses.remove(radio, address)

    def _frame(self, node: Node, got: hwsim.TxFrame) -> None:
        stats = self.stats
        stats.frames += 1
        frame = got.frame
        radio = node.by_key.get(got.transmitter)
        if radio is not None and not radio.up and radio.plugged:
            self.radio_up(radio)  # it sends, so it is there
        if radio is None or not radio.up or len(frame) < 10:
            if radio is None or radio.up:
                stats.unknown_radio += 1
            # It will never be on the air, but its kernel waits for the report.
            node.put(
                hwsim.encode_tx_info(
                    node.family, 0, got.transmitter, got.flags & 3, 0, got.tx_info, got.cookie
                )
            )
            return
        radio.sent += 1
        if not frame[0] & _TYPE and self._managed(radio, got):
            return
        sender = frame[10:16]
        if sender not in radio.addresses:
            address = ieee80211.transmitter(frame)
            if address is not None and not address[0] & 1:
                self.addresses.add(radio, address)
        if radio.deaf:
            radio.deaf.pop(got.frequency, None)
        if radio.queued >= hwsim.MAX_PENDING:
            self._overflow(radio)
        frequency = got.frequency
        category = ieee80211.access_category(frame)
        waits = _WAITS_2_4[category] if frequency < 3000 else _WAITS_5[category]
        sent = Transmission()
        sent.radio = radio
        sent.frame = frame
        sent.length = len(frame) + ieee80211.FCS
        sent.flags = flags = got.flags
        sent.frequency = frequency
        sent.cookie = got.cookie
        sent.tx_info = tx_info = got.tx_info
        key = (tx_info, got.tx_info_flags, frequency)
        series = self._rates.series.get(key)
        if series is None:
            series = self._rates.make_series(key, self.stats)
        sent.series = series
        sent.vector = series[0][0]
        sent.need_ack = not (frame[4] & 1 or flags & _NO_ACK or ieee80211.wants_no_ack(frame))
        sent.stage = sent.tries = sent.attempts = 0
        sent.aifs, sent.slot, sent.cw, sent.cw_max, sent.txop = waits
        if frame[0] == _BEACON:
            sent.txop = 0.0  # it has a queue of its own
        sent.arrived = self.now
        sent.closed = radio.closed - radio.shut
        sent.dead = sent.aired = False
        sent.tail = None
        sent.signal = 0
        sent.answer = None
        sent.waits_seq = 0
        sent.overlaps = None
        sent.aggregate = None
        sent.cleared = False
        if radio.current is None:
            radio.current = sent
            self.contend(sent, self.now)
        else:
            radio.queues[category].append(sent)
            radio.queued += 1

    def _managed(self, radio: Radio, got: hwsim.TxFrame) -> bool:
        """Learn from a management frame; tell whether it stays off the air."""
        frame = got.frame
        if frame[0] == _ACTION:
            self.keys.watch(frame)
            if self._rates.aggregation and blockack.is_request(frame):
                self._withhold(radio, got)
                return True
        elif frame[0] == _BEACON:
            secondary = spectrum.secondary_channel(frame)
            if secondary is not None:
                radio.secondary = secondary
        return False

    def _withhold(self, radio: Radio, got: hwsim.TxFrame) -> None:
        """Decline block acknowledgement; nobody hears that it was asked for."""
        key = (got.tx_info, got.tx_info_flags, got.frequency)
        series = self._rates.series.get(key) or self._rates.make_series(key, self.stats)
        radio.node.put(
            hwsim.encode_tx_info(
                radio.node.family,
                REPORT | (radio.index & 0x7F) << 24 | (radio.closed - radio.shut) & 0xFFFFFF,
                radio.key,
                got.flags & _ECHOED | _STAT_ACK,
                0,
                self._rates.make_report(got.tx_info, series, 0, 1),
                got.cookie,
            )
        )
        answer = blockack.decline(got.frame)
        if answer is not None:
            node = radio.node
            seq = node.next_seq()
            node.recent[seq & (RECENT - 1)] = (radio, got.frequency)
            tail = hwsim.inject_tail(0, got.frequency, answer)
            signal = round(self.links.receiver.noise_dbm + self.links.receiver.same_node_snr_db)
            head = hwsim.inject_head(node.family, seq, radio.key, signal, len(tail))
            node.put(head + tail)
            self.stats.deliveries += 1
            radio.received += 1

    def _overflow(self, radio: Radio) -> None:
        """Give up what the kernel has given up (mac80211_hwsim_tx_frame_nl)."""
        for queue in reversed(radio.queues):
            while queue and radio.queued > KERNEL_KEEPS:
                queue.popleft()
                radio.queued -= 1
                self.stats.kernel_overflow += 1

    def _kernel_answer(self, node: Node, buffer: bytes, start: int, end: int) -> None:
        if end - start < 36:
            raise hwsim.HwsimError(f"an answer of {end - start} bytes")
        # After nlmsghdr: the error, then the header of the request (length, type, flags, seq, pid).
        error, seq = _ANSWER.unpack_from(buffer, start + 16)
        waiting = node.pending.pop(seq, None)
        if waiting is not None:
            sent, receiver = waiting
            self._answered(sent, receiver, seq, None if error >= 0 else Loss.OFF_CHANNEL)
            return
        delivery = node.delivery(seq)
        if delivery is not None:
            if error < 0:
                self._refused(*delivery, Loss.OFF_CHANNEL)
            return
        if seq & REPORT:
            self._report_refused(node, seq)
        elif seq and not (
            node.session is not None
            and node.session.answer(hwsim.decode_answer(buffer, start, end))
        ):
            self.stats.late_answers += 1

    def _report_refused(self, node: Node, seq: int) -> None:
        index = seq >> 24 & 0x7F
        if index < len(node.radios) and node.radios[index].gave_up(seq):
            self.stats.tx_info_withdrawn += 1
        else:
            self.stats.tx_info_refused += 1

    def _refused(self, radio: Radio, frequency: int, reason: Loss) -> None:
        """A delivery that had been counted did not happen."""
        self.stats.deliveries -= 1
        self.stats.losses[reason] += 1
        radio.received -= 1
        if reason is Loss.OFF_CHANNEL:
            radio.deaf[frequency] = self.now + DEAF_TIME

    # Contention.

    def _push(self, when: float, action: Callable[[Any, float], None], what: Any) -> None:
        heappush(self._events, (when, next(self._order), action, what))

    def next_event(self) -> float | None:
        """Return the time of the next event, None when nothing is under way."""
        return self._events[0][0] if self._events else None

    def advance(self, until: float) -> None:
        """Let everything happen that is due by ``until``."""
        events = self._events
        while events and events[0][0] <= until:
            when, _, action, what = heappop(events)
            if when > self.now:
                self.now = when
            action(what, when)

    def go_on(self, sent: Transmission, when: float) -> None:
        """Send more after an exchange that succeeded, within the opportunity (10.23.2.8)."""
        radio = sent.radio
        if sent.txop and radio.queued:
            queue = radio.queues[ieee80211.access_category(sent.frame)]
            if queue and self.follow(queue[0], sent, when):
                queue.popleft()
                radio.queued -= 1
                return
        self.next_frame(radio, when)

    def follow(self, following: Transmission, sent: Transmission, when: float) -> bool:
        """Send a frame a SIFS after an exchange, if the opportunity to send has room for it."""
        radio = sent.radio
        if not following.txop or following.frequency != sent.frequency:
            return False
        start = when + band(ieee80211.is_2ghz(sent.frequency)).sifs
        if start + self._exchange(following) > radio.txop_until + 1e-9:
            return False
        radio.current = following
        following.start_at = start
        self._push(start, self._start, following)
        return True

    def _exchange(self, sent: Transmission) -> float:
        """Return the seconds that the next try of a frame takes, with what belongs to it."""
        timing = sent.vector.timing
        if sent.aggregate is not None:
            size, answer = self._aggregated.size(sent.aggregate), answer_time(sent)
        else:
            size, answer = sent.length, timing.ack if sent.need_ack else 0.0
        before = timing.rts_cts if sent.vector.protect and sent.need_ack else 0.0
        return before + timing.duration(size) + answer

    def next_frame(self, radio: Radio, when: float) -> None:
        """Let a radio contend for its next frame, if it has one."""
        if not radio.queued:
            radio.current = None
            return
        for queue in radio.queues:
            if queue:
                sent = queue.popleft()
                radio.queued -= 1
                radio.current = sent
                self.contend(sent, when)
                return

    def contend(self, sent: Transmission, when: float) -> None:
        radio = sent.radio
        if sent.frequency != radio.frequency:
            self.channels.tune(radio, sent.frequency, when)
        sent.slots = int(radio.backoff() * (sent.cw + 1))
        start = radio.busy_until + sent.aifs + sent.slots * sent.slot
        if start <= when:
            start = when + radio.backoff() * ARRIVAL_SPREAD
        sent.start_at = start
        radio.contending = sent
        heappush(self._events, (start, next(self._order), self._start, sent))

    def _start(self, sent: Transmission, when: float) -> None:
        if sent.dead:
            return
        if sent.start_at > when:
            # The channel became busy after this event was made.
            self._push(sent.start_at, self._start, sent)
            return
        radio = sent.radio
        if radio.contending is sent:
            radio.contending = None
            radio.txop_until = when + sent.txop
        vector = sent.vector
        if vector.protect and sent.need_ack:
            if not sent.cleared:
                self._ask(sent, when)
                return
            sent.cleared = False
        if not sent.attempts:
            self.stats.queue_delay.add(when - sent.arrived)
        sent.attempts += 1
        self.stats.attempts += 1
        timing = vector.timing
        frequency = sent.frequency
        length, answer = sent.length, timing.ack
        if vector.aggregates and sent.need_ack:
            length, answer = self._aggregated.gather(sent, when)
        sent.reach = self.reaches.of(radio, frequency)
        sent.start = when
        end = when + timing.duration(length)
        sent.end = end
        until = end + answer if sent.need_ack else end
        radio.air += until - when
        if length >= LARGE:
            radio.air_large += until - when
        if until > radio.busy_until:
            radio.busy_until = until
        self.channels.enter(sent, frequency, when, until)
        if vector.protect and sent.need_ack:
            for owner in self.addresses.owners.get(sent.frame[4:10], ()):
                if owner.up and owner in sent.reach.by_radio:
                    hold(self.reaches.of(owner, frequency).sensing, frequency, when, until)
        heappush(self._events, (end, next(self._order), self._end, sent))

    # RTS and CTS.

    def _ask(self, sent: Transmission, when: float) -> None:
        """Send an RTS. Who hears it is quiet until the frame should have begun (10.3.2.4)."""
        radio, vector = sent.radio, sent.vector
        rts = Rts()
        rts.radio, rts.sent = radio, sent
        rts.reach = self.reaches.of(radio, sent.frequency)
        rts.start = when
        rts.end = when + vector.control_timing.duration(ieee80211.RTS_LENGTH)
        answered = when + vector.timing.rts_cts
        until = answered + RX_PHY_START_DELAY + 2 * sent.slot
        radio.busy_until = max(radio.busy_until, answered)
        radio.air += answered - when
        self.channels.enter(rts, sent.frequency, when, until)
        self._push(rts.end, self._asked, rts)

    def _asked(self, rts: Rts, when: float) -> None:
        """An RTS has ended: the frame follows the CTS, or nothing does."""
        sent = rts.sent
        rts.channel.remove(rts)
        if sent.dead:
            return
        if self._clear(rts, when):
            sent.cleared = True
            sent.start_at = rts.start + sent.vector.timing.rts_cts
            self._push(sent.start_at, self._start, sent)
            return
        # The CTS that does not begin in time (10.3.2.9).
        sifs = band(ieee80211.is_2ghz(sent.frequency)).sifs
        sent.radio.busy_until = when + sifs + sent.slot + RX_PHY_START_DELAY
        if sent.aggregate is not None:
            self._aggregated.unanswered(sent, when)
        else:
            self._failed(sent, when)

    def _clear(self, rts: Rts, when: float) -> bool:
        """Tell whether the receiver of an RTS answers, and that is heard.

        The CTS keeps those quiet who hear the receiver only (10.3.2.9): here to the frame's begin,
        and from then on to the end of the exchange.
        """
        sent = rts.sent
        frequency, control = sent.frequency, sent.vector.control
        for owner in self.addresses.owners.get(sent.frame[4:10], ()):
            link = rts.reach.by_radio.get(owner)
            if link is None or not owner.up or link.snr < self.links.receiver.detection_snr_db:
                continue
            reason = self._disturbed(
                rts, link, link.luck(), control.loss(link.snr, ieee80211.RTS_LENGTH)
            )
            if reason < 0 and owner.deaf and owner.deaf.get(frequency, 0.0) > self.now:
                reason = Loss.OFF_CHANNEL
            if reason >= 0:
                link.traffic.unicast += 1
                link.traffic.unicast_lost += 1
                self.stats.losses[reason] += 1
                return False
            back = self.reaches.of(owner, frequency)
            until = rts.start + sent.vector.timing.rts_cts + sent.slot
            hold(back.sensing, frequency, when, until)
            heard = back.by_radio.get(sent.radio)
            return heard is not None and heard.luck() >= control.loss(
                heard.snr, ieee80211.CTS_LENGTH
            )
        return False

    # Reception.

    @staticmethod
    def _disturbed(what: OnAir, link: Link, luck: float, alone: float) -> int:
        """Return why a frame that others overlapped is lost at a receiver, -1 when it is not.

        :param alone: How likely it would be lost without the others.
        """
        receiver = link.receiver
        if what.missed:
            reason = what.missed.get(receiver)
            if reason is not None:
                return reason
        if luck < alone:
            return Loss.ERROR
        disturbed = disturbances(what.overlaps or (), receiver)
        if disturbed and luck < reception.loss(link.power, what.parts(), disturbed):
            return Loss.COLLISION
        return -1

    def _end(self, sent: Transmission, when: float) -> None:
        sent.channel.remove(sent)
        if sent.dead:
            return
        if sent.frame[4] & 1:
            self._end_group(sent)
            self._finish(sent, False, when)
        elif sent.aggregate is not None:
            self._aggregated.end(sent, when)
        else:
            self._end_unicast(sent, when)

    def _end_group(self, sent: Transmission) -> None:
        stats = self.stats
        losses = stats.losses
        length = sent.length
        loss = sent.vector.curve.loss
        inject_head = hwsim.inject_head
        overlaps = sent.overlaps
        frequency = sent.frequency
        now = self.now
        outcomes: list[tuple[Radio, int]] | None = None if self.observer is None else []
        tail = hwsim.inject_tail(sent.vector.rx_index, frequency, sent.frame)
        size = len(tail)
        too_long = len(sent.frame) > hwsim.MAX_FRAME
        framing = FRAMING.pack(_INJECTED + size, 0)
        too_short = len(sent.frame) < hwsim.MIN_FRAME
        snr, alone = nan, 1.0
        for link in sent.reach.links:
            luck = link.luck()
            radio = link.receiver
            if not radio.up:
                continue
            if link.snr != snr:
                snr = link.snr
                alone = loss(snr, length)
            if overlaps is None:
                reason = Loss.ERROR if luck < alone else -1
            else:
                reason = self._disturbed(sent, link, luck, alone)
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
                    seq = node.seq = node.seq + 1 & SEQ_MASK or 1
                    node.recent[seq & (RECENT - 1)] = link.delivery
                    out = node.out
                    if not out:
                        node.wake()
                    out.append(framing)
                    out.append(inject_head(node.family, seq, radio.key, link.signal, size))
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
        observer = self.observer
        outcomes: list[tuple[Radio, int]] = []
        receiver: Link | None = None
        by_radio = sent.reach.by_radio
        detection = self._detection
        reached = False
        owners = self.addresses.owners.get(sent.frame[4:10], ())
        for owner in owners:
            link = by_radio.get(owner)
            if link is None or link.snr < detection:
                continue
            luck = link.luck()
            if not owner.up:
                continue
            reached = True
            reason = self.receive_one(sent, link, luck, receiver is None)
            if observer is not None:
                outcomes.append((owner, reason))
            if reason < 0 and receiver is None:
                receiver = link
        if not reached:
            self.stats.no_receiver += 1
        for link in sent.reach.promiscuous:
            if link.receiver not in owners:
                luck = link.luck()
                if link.receiver.up:
                    reason = self.receive_one(sent, link, luck, False)
                    outcomes.append((link.receiver, reason))
        if observer is not None:
            observer.transmission(sent, outcomes)
        if not sent.need_ack:
            self._finish(sent, False, when)
        elif receiver is None:
            self._failed(sent, when)
        else:
            self.acknowledge(sent, receiver, when)

    def receive_one(self, sent: Transmission, link: Link, luck: float, answer: bool) -> int:
        """Deliver a frame that is not for a group; return why not, -1 when it was delivered.

        With ``answer`` the sender's report will wait for what the kernel says.
        """
        radio = link.receiver
        node = radio.node
        reason = -1
        alone = sent.vector.curve.loss(link.snr, sent.length)
        if sent.overlaps is not None:
            reason = self._disturbed(sent, link, luck, alone)
        elif luck < alone:
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
            elif sent.length > _MAX_LENGTH:
                reason = Loss.TOO_LONG
        if reason >= 0:
            self.stats.losses[reason] += 1
            return reason
        if sent.length < _MIN_LENGTH:
            # The kernel takes no short control frames; the air alone decides.
            self.stats.short_frames += 1
            if answer:
                sent.answer, sent.waits_seq = True, 0
            return -1
        tail = sent.tail
        if tail is None or sent.attempts > 1:
            frame = sent.frame
            if sent.attempts > 1:
                frame = frame[:1] + bytes((frame[1] | _RETRY,)) + frame[2:]
            tail = hwsim.inject_tail(sent.vector.rx_index, sent.frequency, frame)
            sent.tail = tail
        seq = node.seq = node.seq + 1 & SEQ_MASK or 1
        flags = _REQUEST
        if answer and sent.need_ack:
            flags = _REQUEST_ACK
            sent.answer = None
            sent.waits_seq = seq
            sent.injected_at = self.now
            node.pending[seq] = (sent, radio)
            node.recent[seq & (RECENT - 1)] = None
        else:
            node.recent[seq & (RECENT - 1)] = link.delivery
        out = node.out
        if not out:
            node.wake()
        size = len(tail)
        out.append(FRAMING.pack(_INJECTED + size, 0))
        out.append(hwsim.inject_head(node.family, seq, radio.key, link.signal, size, flags))
        out.append(tail)
        self.stats.deliveries += 1
        radio.received += 1
        return -1

    # Acknowledgements, retries and reports.

    def acknowledge(self, sent: Transmission, link: Link, when: float) -> None:
        """Let a receiver acknowledge a frame, or what it got of an aggregate."""
        radio = link.receiver
        ack = Acknowledgement()
        ack.radio = radio
        ack.sent = sent
        frequency = sent.frequency
        ack.reach = reach = self.reaches.of(radio, frequency)
        ack.link = reach.by_radio.get(sent.radio)
        vector = sent.vector
        if sent.aggregate is None:
            ack.length = ieee80211.ACK_LENGTH
            ack.end = end = when + vector.timing.ack
            ack.start = end - vector.ack_time
        else:
            ack.length = BLOCK_ACK_LENGTH
            ack.end = end = when + answer_time(sent)
            ack.start = end - vector.control_timing.duration(BLOCK_ACK_LENGTH)
        if end > radio.busy_until:
            radio.busy_until = end
        self.channels.enter(ack, frequency, when, end)
        heappush(self._events, (end, next(self._order), self._acknowledged, ack))

    def _acknowledged(self, ack: Acknowledgement, when: float) -> None:
        sent = ack.sent
        ack.channel.remove(ack)
        if sent.dead:
            return
        link = ack.link
        lost = True
        if link is not None and link.snr >= self._detection:
            luck = link.luck()
            alone = sent.vector.control.loss(link.snr, ack.length)
            if ack.overlaps is not None:
                lost = self._disturbed(ack, link, luck, alone) >= 0
            else:
                lost = luck < alone
            link.traffic.acks += 1
            if lost:
                link.traffic.acks_lost += 1
        if self.observer is not None:
            self.observer.acknowledgement(sent, ack.radio, when, lost)
        if sent.aggregate is not None:
            self._aggregated.acknowledged(ack, lost, when)
        elif lost or link is None:
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
        self.contend(sent, when)

    def _finish(self, sent: Transmission, acked: bool, when: float) -> None:
        """The air is done with a frame; its report may have to wait for the receiving kernel."""
        radio = sent.radio
        if not acked:
            sent.waits_seq = 0
            if sent.need_ack:
                self.stats.not_acked += 1
            self.report(sent, False)
        elif sent.answer is not None:
            self.settle(sent)
        else:
            sent.aired = True  # _answered() goes on
        if acked or not sent.need_ack:
            self.go_on(sent, when)
        else:
            self.next_frame(radio, when)

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
            self.settle(sent)

    def settle(self, sent: Transmission) -> None:
        if sent.answer:
            self.stats.acked += 1
            self.report(sent, True)
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
        if rest and sent.aggregate is None:
            radio = sent.radio
            start = max(self.now, radio.busy_until)
            reach = self.reaches.of(radio, sent.frequency)
            hold(reach.sensing, sent.frequency, start, start + rest)
            radio.busy_until = max(radio.busy_until, start + rest)
        self.report(sent, False)

    def report(self, sent: Transmission, acked: bool) -> None:
        radio = sent.radio
        node = radio.node
        if not radio.up:
            return
        stage = min(sent.stage, len(sent.series) - 1)
        tries = sent.tries + 1 if acked or not sent.need_ack else sent.tries
        key = (sent.tx_info, stage, tries)
        tx_info = self._rates.reports.get(key)
        if tx_info is None:
            tx_info = self._rates.make_report(sent.tx_info, sent.series, stage, tries)
        flags = sent.flags & _ECHOED
        if acked:
            flags |= _STAT_ACK
        out = node.out
        if not out:
            node.wake()
        out.append(_TX_INFO_FRAMING)
        out.append(
            hwsim.encode_tx_info(
                node.family,
                radio.report_seq(sent),
                radio.key,
                flags,
                sent.signal,
                tx_info,
                sent.cookie,
            )
        )

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
