# SPDX-License-Identifier: Apache-2.0
"""What is on the air at each frequency, and who waits until it is idle."""

# ruff: noqa: PLR1730 - max() costs three times as much as "if" does, and this runs for every frame

from __future__ import annotations

from collections.abc import Iterable

from meshlab.medium.config import Receiver
from meshlab.medium.objects import OnAir, Radio
from meshlab.medium.reception import Locks
from meshlab.medium.stats import Loss


class Channels:
    """The transmissions under way."""

    def __init__(self, receiver: Receiver) -> None:
        self._active: dict[int, list[OnAir]] = {}
        self._locks = Locks(receiver)
        self._energy = receiver.energy_detect_snr_db

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
        what.overlaps = [(other.reach, other.start, other.end) for other in others]
        own = (what.reach, what.start, what.end)
        for other in others:
            if other.overlaps is None:
                other.overlaps = [own]
            else:
                other.overlaps.append(own)
        return missed

    def tune(self, radio: Radio, frequency: int, when: float) -> None:
        """A radio sends on another channel than before: what energy does it sense there?"""
        radio.frequency = frequency
        radio.busy_until = when
        for other in self._active.get(frequency, ()):
            if other.end > radio.busy_until:
                heard = other.reach.by_radio.get(radio)
                if heard is not None and heard.snr >= self._energy:
                    radio.busy_until = other.end


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
