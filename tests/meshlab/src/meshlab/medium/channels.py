# SPDX-License-Identifier: Apache-2.0
"""What is on the air at each frequency, and who waits until it is idle."""

# ruff: noqa: PLR1730 - max() costs three times as much as "if" does, and this runs for every frame

from __future__ import annotations

from meshlab.medium.objects import OnAir, Radio, Reach


class Channels:
    """The transmissions under way."""

    def __init__(self) -> None:
        self._active: dict[int, list[OnAir]] = {}

    @property
    def idle(self) -> bool:
        """Tell whether nothing is on the air."""
        return not any(self._active.values())

    def enter(self, what: OnAir, frequency: int) -> None:
        """Put something on the air: it and what is there overlap.

        Whoever ends it takes it out of its ``channel``.
        """
        active = self._active.get(frequency)
        if active is None:
            active = self._active[frequency] = []
        what.channel = active
        what.overlaps = None
        if active:
            what.overlaps = list(active)
            for other in active:
                if other.overlaps is None:
                    other.overlaps = [what]
                else:
                    other.overlaps.append(what)
        active.append(what)

    def tune(self, radio: Radio, frequency: int, when: float) -> None:
        """A radio sends on another channel than before: what does it sense there?"""
        radio.frequency = frequency
        radio.busy_until = when
        for other in self._active.get(frequency, ()):
            if other.end > radio.busy_until and radio in other.reach.sensing:
                radio.busy_until = other.end


def occupy(reach: Reach, frequency: int, when: float, until: float) -> None:
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
