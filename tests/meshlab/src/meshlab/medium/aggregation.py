# SPDX-License-Identifier: Apache-2.0
"""A-MPDU: frames that wait for the same receiver go on the air as one, acknowledged by one block.

Clauses of IEEE Std 802.11-2020: 9.7 (A-MPDU), 10.12 (its lengths), 10.25 (block acknowledgement).

- The frames have the same receiver, traffic identifier and rates; each costs a delimiter of four
  bytes and padding. There are at most 64, of 65,535 bytes (what hwsim's radios claim), of 5.484 ms
  (10.13.4) and of what is left of the opportunity to send (10.23.2.9).
- The preamble survives for all or none; each frame survives for itself. What was received is
  acknowledged by one compressed block, what was not is sent again, with what came meanwhile.
- The receiver hands frames to its kernel in order: what follows a lost frame waits until that one
  was received or given up (10.25.4). It acknowledges what it has already and hands it on once.

The kernels know nothing of it (``blockack``): to them each frame was sent and reported by itself.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from meshlab.medium import reception
from meshlab.medium.airtime import EDCA, band
from meshlab.medium.objects import Acknowledgement, Aggregate, Link, Radio, Transmission
from meshlab.medium.reception import disturbances
from meshlab.medium.stats import Loss
from meshlab.wire import ieee80211

if TYPE_CHECKING:
    from meshlab.medium.engine import Engine

MOST_FRAMES = 64
MOST_BYTES = 65535
MOST_TIME = 5.484e-3
DELIMITER = 4
BLOCK_ACK_LENGTH = 32
"""Bytes of a compressed BlockAck with FCS (9.3.1.8.3)."""

_QOS_DATA = 0x88
_SURE = 2.0
"""More than any loss rate: a draw that loses nothing."""


def subframe(length: int) -> int:
    """Return the bytes that a frame takes within an aggregate."""
    return DELIMITER + (length + 3 & ~3)


def _identifier(frame: bytes) -> int:
    return frame[30 if frame[1] & 3 == 3 else 24] & 15


def answer_time(sent: Transmission) -> float:
    """Return the time of SIFS and the block acknowledgement."""
    sifs = band(ieee80211.is_2ghz(sent.frequency)).sifs
    return sifs + sent.vector.control_timing.duration(BLOCK_ACK_LENGTH)


class Aggregation:
    """Sends and receives aggregates for an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @staticmethod
    def size(aggregate: Aggregate) -> int:
        """Return the bytes of what is sent next of an aggregate, before more is gathered."""
        stage = aggregate.members[0].stage
        return sum(subframe(m.length) for m in aggregate.members if m.stage == stage)

    def gather(self, sent: Transmission, when: float) -> tuple[int, float]:
        """Take what goes with a frame that is about to be sent.

        A frame alone is no aggregate, but for one that is left of one.

        :param when: When it is sent.
        :returns: The bytes of all, and the time of the answer.
        """
        frame = sent.frame
        if frame[0] & 0xFC != _QOS_DATA:
            return sent.length, sent.vector.timing.ack
        aggregate = sent.aggregate
        known = aggregate.members if aggregate is not None else [sent]
        going = [m for m in known if m.stage == sent.stage]
        size = sum(subframe(m.length) for m in going)
        queue = sent.radio.queues[ieee80211.access_category(frame)]
        taken = (
            [] if sent.stage or not queue else self._matching(sent, queue, len(known), size, when)
        )
        if aggregate is None and not taken:
            return sent.length, sent.vector.timing.ack
        if taken:
            chosen = set(taken)
            rest = [m for m in queue if m not in chosen]
            queue.clear()
            queue.extend(rest)
            sent.radio.queued -= len(taken)
        if aggregate is None:
            aggregate = sent.aggregate = Aggregate([sent])
        for member in taken:
            member.aggregate = aggregate
        aggregate.members += taken
        aggregate.window += taken
        aggregate.going = going + taken
        for member in aggregate.going[1:]:
            member.attempts += 1
        return sum(subframe(m.length) for m in aggregate.going), answer_time(sent)

    @staticmethod
    def _matching(
        sent: Transmission, queue: deque[Transmission], count: int, size: int, when: float
    ) -> list[Transmission]:
        """Return the frames of a queue that may follow ``sent`` at once."""
        receiver, identifier = sent.frame[4:10], _identifier(sent.frame)
        timing = sent.vector.timing
        most_time = MOST_TIME
        if sent.txop:
            most_time = min(most_time, sent.radio.txop_until - when - answer_time(sent))
        found: list[Transmission] = []
        for other in queue:
            frame = other.frame
            if frame[4:10] != receiver or frame[0] & 0xFC != _QOS_DATA:
                continue
            if _identifier(frame) != identifier:
                continue
            size += subframe(other.length)
            if (
                other.series is not sent.series  # an overtaking would change the order
                or not other.need_ack
                or count + len(found) >= MOST_FRAMES
                or size > MOST_BYTES
                or timing.duration(size) > most_time
            ):
                break
            found.append(other)
        return found

    # Reception.

    def end(self, sent: Transmission, when: float) -> None:
        """An aggregate has left the air."""
        engine = self._engine
        aggregate = sent.aggregate
        assert aggregate is not None
        link = self._link(sent)
        if link is None:
            engine.stats.no_receiver += 1
            self._show(aggregate, [])
            self._resolve(sent, [], when)
            return
        reasons = self._receive(sent, aggregate, link)
        got = aggregate.got
        for member, reason in zip(aggregate.going, reasons, strict=True):
            link.traffic.unicast += 1
            if reason >= 0:
                link.traffic.unicast_lost += 1
                engine.stats.losses[reason] += 1
            else:
                got.add(member)
        self._show(aggregate, [(link.receiver, reason) for reason in reasons])
        if min(reasons) >= 0:
            self._resolve(sent, [], when)
            return
        aggregate.link = link
        self._hand_over(aggregate)
        engine.acknowledge(sent, link, when)

    def _link(self, sent: Transmission) -> Link | None:
        engine = self._engine
        detection = engine.links.receiver.detection_snr_db
        for owner in engine.addresses.owners.get(sent.frame[4:10], ()):
            link = sent.reach.by_radio.get(owner)
            if link is not None and link.snr >= detection and owner.up:
                return link
        return None

    def _receive(self, sent: Transmission, aggregate: Aggregate, link: Link) -> list[int]:
        """Return what became of each frame at the receiver: a ``Loss``, or -1."""
        members = aggregate.going
        radio = link.receiver
        if sent.missed and radio in sent.missed:
            return [int(sent.missed[radio])] * len(members)
        if radio.deaf and radio.deaf.get(sent.frequency, 0.0) > self._engine.now:
            return [int(Loss.OFF_CHANNEL)] * len(members)
        if radio.node.paused:
            return [int(Loss.BACK_PRESSURE)] * len(members)
        curve, timing = sent.vector.curve, sent.vector.timing
        disturbed = disturbances(sent.overlaps or (), radio)
        begin = sent.end - timing.duration(sum(subframe(m.length) for m in members))
        header = (begin + timing.header_begin, begin + timing.header_end, curve.header, 1)
        luck = link.luck()
        if luck < -math.expm1(curve.header(link.snr)):
            return [int(Loss.ERROR)] * len(members)
        if disturbed and luck < reception.loss(link.power, [header], disturbed):
            return [int(Loss.COLLISION)] * len(members)
        reasons = []
        at = begin + timing.preamble
        each = (sent.end - timing.extension - at) / sum(subframe(m.length) for m in members)
        for member in members:
            until = at + each * subframe(member.length)
            luck = link.luck()
            if luck < -math.expm1(member.length * curve.byte(link.snr)):
                reasons.append(int(Loss.ERROR))
            elif disturbed and luck < reception.loss(
                link.power, [(at, until, curve.byte, member.length)], disturbed
            ):
                reasons.append(int(Loss.COLLISION))
            else:
                reasons.append(-1)
            at = until
        return reasons

    def _hand_over(self, aggregate: Aggregate) -> None:
        """Give the receiver's kernel what is in order, once."""
        link, window = aggregate.link, aggregate.window
        while window and (window[0] in aggregate.got or window[0] in aggregate.gone):
            member = window.pop(0)
            if link is None or member not in aggregate.got:
                continue
            member.overlaps = None
            link.traffic.unicast -= 1  # its try has been counted
            if self._engine.receive_one(member, link, _SURE, True) >= 0:
                member.answer = False
                if member.aired:
                    self._engine.settle(member)

    def _show(self, aggregate: Aggregate, outcomes: list[tuple[Radio, int]]) -> None:
        observer = self._engine.observer
        if observer is not None:
            first = aggregate.going[0]
            for index, member in enumerate(aggregate.going):
                member.reach, member.end = first.reach, first.end
                observer.transmission(member, outcomes[index : index + 1])

    # What the sender makes of it.

    def unanswered(self, sent: Transmission, when: float) -> None:
        """No CTS has come."""
        aggregate = sent.aggregate
        assert aggregate is not None
        aggregate.going = [m for m in aggregate.members if m.stage == sent.stage]
        self._resolve(sent, [], when)

    def acknowledged(self, ack: Acknowledgement, lost: bool, when: float) -> None:
        """The block acknowledgement has arrived, or has not."""
        sent = ack.sent
        aggregate = sent.aggregate
        assert aggregate is not None
        if lost or ack.link is None:
            self._engine.stats.ack_lost += 1
            self._resolve(sent, [], when)
            return
        known = [m for m in aggregate.going if m in aggregate.got]
        for member in known:
            member.signal = ack.link.signal
        self._resolve(sent, known, when)

    def _resolve(self, sent: Transmission, known: list[Transmission], when: float) -> None:
        """Report what was acknowledged, and try the rest again."""
        engine = self._engine
        aggregate = sent.aggregate
        assert aggregate is not None
        radio = sent.radio
        for member in aggregate.going:
            if member in known:
                aggregate.members.remove(member)
                if member.answer is not None:
                    engine.settle(member)
                else:
                    member.aired = True
            elif self._spent(member):
                aggregate.members.remove(member)
                aggregate.gone.add(member)
                member.waits_seq = 0
                engine.stats.not_acked += 1
                engine.report(member, False)
            else:
                radio.retries += 1
        self._hand_over(aggregate)
        if not aggregate.members:
            if known:
                engine.go_on(sent, when)
            else:
                engine.next_frame(radio, when)
            return
        head = aggregate.members[0]
        if known:
            head.cw = EDCA[ieee80211.access_category(head.frame)].cw_min
        else:
            head.cw = min(2 * sent.cw + 1, sent.cw_max)
        head.aggregate = aggregate
        head.attempts = max(head.attempts, 1)
        radio.current = head
        if not known or not engine.follow(head, sent, when):
            engine.contend(head, when)

    @staticmethod
    def _spent(member: Transmission) -> bool:
        """Count a try that failed; tell whether it was the last."""
        member.tries += 1
        if member.tries < member.series[member.stage][1]:
            return False
        if member.stage + 1 >= len(member.series):
            return True
        member.stage += 1
        member.tries = 0
        member.vector = member.series[member.stage][0]
        member.tail = None
        return False
