# SPDX-License-Identifier: Apache-2.0
"""What is on the air at each frequency, and who waits until it is idle."""

# ruff: noqa: PLR1730 - max() costs three times as much as "if" does, and this runs for every frame

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from meshlab.medium import spectrum
from meshlab.medium.config import Receiver
from meshlab.medium.objects import OnAir, Radio
from meshlab.medium.reception import Locks
from meshlab.medium.spectrum import FARTHEST, Shape
from meshlab.medium.stats import Loss
from meshlab.wire.ieee80211 import Phy

SHAPES = {Phy.DSSS: Shape.DSSS, Phy.CCK: Shape.DSSS, Phy.OFDM: Shape.OFDM}
FAINTEST = 1e-7
"""Parts of a transmission's power that disturb nobody: the strongest link has 100 dB."""


class Channels:
    """The transmissions under way.

    What is sent on one channel is energy on those beside it (``spectrum``): interference there,
    and where it is loud a reason to wait, but nothing that a receiver could follow. This is looked
    after only while radios use channels that are near each other.
    """

    def __init__(self, receiver: Receiver) -> None:
        self._active: dict[int, list[OnAir]] = {}
        self._locks = Locks(receiver)
        self._energy = receiver.energy_detect_snr_db
        self._users: Counter[int] = Counter()
        """Radios by the frequency at which they sent last."""
        self._near: dict[int, tuple[int, ...]] = {}
        """By frequency: the others near it that radios use."""

    @property
    def idle(self) -> bool:
        """Tell whether nothing is on the air."""
        return not any(self._active.values())

    def enter(self, what: OnAir, frequency: int, when: float, until: float) -> None:
        """Put something on the air, and keep those who sense it from sending.

        It and what is there overlap. Whoever ends it takes it out of its ``channel``.

        :param until: When the exchange is over that it belongs to. Who receives its beginning
            knows that (the NAV, 10.3.2.4, or after an error the EIFS, 10.3.2.3.7); who misses that
            senses energy only, and only to the end of the frame.
        """
        active = self._active.get(frequency)
        if active is None:
            active = self._active[frequency] = []
        what.channel = active
        what.overlaps = None
        what.missed = None
        missed = self._overlap(what, active) if active else None
        active.append(what)
        near = self._near.get(frequency)
        if near:
            self._leak(what, frequency, near, when)
        reach = what.reach
        if not missed:
            hold(reach.sensing, frequency, when, until)
            return
        hold([radio for radio in reach.sensing if radio not in missed], frequency, when, until)
        loud = [r for r in missed if reach.by_radio[r].snr >= self._energy]
        hold(loud, frequency, when, what.end)

    def _overlap(self, what: OnAir, active: list[OnAir]) -> dict[Radio, Loss] | None:
        """Note what overlaps; return who misses ``what``."""
        others = [other for other in active if other.end > what.start]
        if not others:
            return None
        missed = self._locks.decide(what, others)
        what.overlaps = [(other.reach, other.start, other.end, 1.0) for other in others]
        own = (what.reach, what.start, what.end, 1.0)
        for other in others:
            if other.overlaps is None:
                other.overlaps = [own]
            else:
                other.overlaps.append(own)
        return missed

    def _leak(self, what: OnAir, frequency: int, near: tuple[int, ...], when: float) -> None:
        """Let something disturb the channels beside its own, and be disturbed by what is there."""
        for beside in near:
            for other in self._active.get(beside, ()):
                if other.end > what.start:
                    _disturb(what, frequency, other, beside)
                    _disturb(other, beside, what, frequency)
            share = _share(what, frequency, beside, 20)
            if share < FAINTEST:
                continue
            needed = self._energy - 10 * math.log10(share)
            links = what.reach.by_radio.items()
            loud = [r for r, link in links if link.snr >= needed and r.frequency == beside]
            hold(loud, beside, when, what.end)

    def _count(self, radio: Radio, frequency: int) -> None:
        self._users[radio.frequency] -= 1
        self._users[frequency] += 1
        used = sorted(f for f, count in self._users.items() if count > 0 and f)
        self._near = {
            f: tuple(other for other in used if other != f and abs(other - f) <= FARTHEST)
            for f in used
        }

    def tune(self, radio: Radio, frequency: int, when: float) -> None:
        """A radio sends on another channel than before: what energy does it sense there?"""
        self._count(radio, frequency)
        radio.frequency = frequency
        radio.busy_until = when
        for other in self._active.get(frequency, ()):
            if other.end > radio.busy_until:
                heard = other.reach.by_radio.get(radio)
                if heard is not None and heard.snr >= self._energy:
                    radio.busy_until = other.end


def _share(what: OnAir, frequency: int, into: int, width: int, secondary: int = 0) -> float:
    """Return the part of a transmission's power that falls into a channel."""
    rate = what.rate()
    middle = spectrum.centre(frequency, rate.width, what.radio.secondary)
    offset = spectrum.centre(into, width, secondary) - middle
    shape = SHAPES.get(rate.phy, Shape.HT)
    return spectrum.coupling(shape, rate.width, offset, width)


def _disturb(what: OnAir, frequency: int, other: OnAir, beside: int) -> None:
    """Note for something what of ``other`` falls into its channel."""
    width = what.rate().width
    share = _share(other, beside, frequency, width, what.radio.secondary)
    if share >= FAINTEST:
        entry = (other.reach, other.start, other.end, share)
        what.overlaps = [entry] if what.overlaps is None else [*what.overlaps, entry]


def hold(radios: Iterable[Radio], frequency: int, when: float, until: float) -> None:
    """Make the channel busy for radios that sense it, and freeze their countdowns."""
    for radio in radios:
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
