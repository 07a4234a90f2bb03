# SPDX-License-Identifier: Apache-2.0
"""What a receiver makes of frames that overlap: which one it takes, and whether that one survives.

A receiver follows one frame at a time, as the Wi-Fi models of ns-3 do (``PhyEntity``):

- It locks on a preamble that it can tell from noise and interference.
- While it is locked, another frame is only interference, unless that one is stronger than
  everything else by ``Receiver.preamble_capture_db`` during the first ``capture_window_us`` (ns-3's
  ``SimpleFrameCaptureModel``: 5 dB, 16 us), or by ``Receiver.capture_db`` later. The latter is
  "message in message": Lee et al., An Experimental Study on the Capture Effect in 802.11a Networks,
  WiNTECH 2007, saw it at any time within a frame; the ratio of 8 (9 dB) is that of Fuxjaeger and
  Ruehrup, Validation of the NS-3 Interference Model for IEEE802.11 Networks, WMNC 2015.
- While it sends it receives nothing, and what it missed the beginning of it does not receive later.

Interference is a function of time. A frame is cut where the set of its disturbers changes; each
piece survives with the chance that its bits have at the signal to noise and interference of the
piece, and the frame with the product (ns-3's ``InterferenceHelper``, there "chunk success rate").
The PHY header has pieces of its own at its own rate.

All powers are in units of the noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from meshlab.medium.config import Receiver
from meshlab.medium.objects import Link, OnAir, Overlap, Part, Radio
from meshlab.medium.stats import Loss

Disturbance = tuple[float, float, float]
"""Power, begin and end of something else at the receiver."""


def disturbances(overlaps: Iterable[Overlap], at: Radio) -> list[Disturbance]:
    """Return what a radio hears of all that overlapped a frame."""
    found = []
    for reach, begin, end, share in overlaps:
        heard = reach.by_radio.get(at)
        if heard is not None:
            found.append((heard.power * share, begin, end))
    return found


def loss(power: float, frame: Iterable[Part], disturbed: Sequence[Disturbance]) -> float:
    """Return the chance that a frame is lost.

    :param power: Of its signal.
    :param frame: Its parts.
    :param disturbed: What else was on the air.
    """
    survival = 0.0
    for begin, end, log_survival, units in frame:
        edges = {begin, end}
        for _, start, stop in disturbed:
            if begin < start < end:
                edges.add(start)
            if begin < stop < end:
                edges.add(stop)
        cuts = sorted(edges)
        for i in range(len(cuts) - 1):
            left, right = cuts[i], cuts[i + 1]
            noise = 1.0
            for strength, start, stop in disturbed:
                if start < right and stop > left:
                    noise += strength
            share = (right - left) / (end - begin)
            survival += share * units * log_survival(10 * math.log10(power / noise))
    return -math.expm1(survival)


# Enumerations are slow where every frame passes.
_HALF_DUPLEX = Loss.HALF_DUPLEX
_COLLISION = Loss.COLLISION
_LOCKED = Loss.LOCKED


class Locks:
    """Decides which frame on the air a receiver follows."""

    def __init__(self, receiver: Receiver) -> None:
        self._detection = 10 ** (receiver.detection_snr_db / 10)
        self._early = 10 ** (receiver.preamble_capture_db / 10)
        self._late = 10 ** (receiver.capture_db / 10)
        self._window = receiver.capture_window_us * 1e-6

    def decide(self, new: OnAir, others: Sequence[OnAir]) -> dict[Radio, Loss]:
        """Note for ``new`` and for ``others``, which it overlaps, who misses them and why.

        :param others: May have begun, or be an acknowledgement that is due within a SIFS.
        :returns: Who misses ``new``.
        """
        missed: dict[Radio, Loss] = {}
        new.missed = missed
        sending = set()
        for other in others:
            sending.add(other.radio)
            _miss(other, new.radio, _HALF_DUPLEX)
        detection = self._detection
        for radio, link in new.reach.by_radio.items():
            if radio in sending:
                missed[radio] = _HALF_DUPLEX
            elif link.power >= detection:
                reason = self._at(radio, link, new, others)
                if reason is not None:
                    missed[radio] = reason
        return missed

    def _at(self, radio: Radio, link: Link, new: OnAir, others: Sequence[OnAir]) -> Loss | None:
        """Return why a radio does not follow ``new``, None when it does."""
        noise = 1.0
        locked: OnAir | None = None
        due: OnAir | None = None
        due_power = 0.0
        for other in others:
            heard = other.reach.by_radio.get(radio)
            if heard is None:
                continue
            follows = heard.power >= self._detection and (
                other.missed is None or radio not in other.missed
            )
            if other.start > new.start:
                if follows:
                    due, due_power = other, heard.power
                continue
            noise += heard.power
            if follows:
                locked = other
        needed = self._detection if locked is None else self._capture(locked, new)
        if link.power < needed * noise:
            return _COLLISION if locked is None else _LOCKED
        if locked is not None:
            _miss(locked, radio, _LOCKED)
        if due is not None:
            if due_power >= self._capture(new, due) * (noise + link.power):
                return _LOCKED
            _miss(due, radio, _LOCKED)
        return None

    def _capture(self, first: OnAir, second: OnAir) -> float:
        """Return how much stronger than all else the second frame has to be."""
        return self._early if second.start <= first.start + self._window else self._late


def _miss(frame: OnAir, radio: Radio, reason: Loss) -> None:
    if frame.missed is None:
        frame.missed = {}
    frame.missed.setdefault(radio, reason)
