# SPDX-License-Identifier: Apache-2.0
"""Who hears whom, and how: made of the links when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from meshlab.medium.links import Links
from meshlab.medium.objects import Link, Node, Radio, Reach
from meshlab.medium.propagation import draw
from meshlab.medium.stats import Traffic

STRONGEST_GAIN_DB = 30.0
"""More than fading ever adds to a signal."""


class Reaches:
    """How the radios of all nodes hear each other.

    :ivar of: Returns who hears a radio at a frequency.
    """

    def __init__(
        self, links: Links, seed: str, nodes: Mapping[str, Node], clock: Callable[[], float]
    ) -> None:
        self._links = links
        self._seed = seed
        self._nodes = nodes
        self._clock = clock
        self.of: Callable[[Radio, int], Reach] = self._steady
        self._generators: dict[tuple[str, str], Callable[[], float]] = {}
        self.traffic: dict[tuple[str, str], Traffic] = {}
        """What happened to frames between nodes, by sender and receiver."""

    def _steady(self, radio: Radio, frequency: int) -> Reach:
        """Return who hears a radio, as long as no link fades."""
        reach = radio.reach.get(frequency)
        if reach is None or reach.version != self._links.version:
            if self._links.fadings.active:
                self.of = self._fading
                return self._fading(radio, frequency)
            reach = self._make_reach(radio, frequency, 0.0)
        return reach

    def _fading(self, radio: Radio, frequency: int) -> Reach:
        """Return who hears a radio now, while some link fades."""
        if not self._links.fadings.active:
            self.of = self._steady
            return self._make_reach(radio, frequency, 0.0)
        now = self._clock()
        reach = radio.reach.get(frequency)
        if reach is None or now >= reach.until or reach.version != self._links.version:
            reach = self._make_reach(radio, frequency, now)
        return reach

    def _make_reach(self, radio: Radio, frequency: int, now: float) -> Reach:
        links = self._links
        limits = links.receiver
        fadings = links.fadings if links.fadings.active else None
        if len(radio.reach) >= 64:  # a guest that makes up frequencies
            radio.reach.clear()
        reach = radio.reach[frequency] = Reach(links.version)
        power = radio.config.tx_power_dbm
        for node in self._nodes.values():
            if node is radio.node and len(node.radios) < 2:
                continue
            heard = links.hearing(radio.node.name, node.name, power, frequency)
            snr = heard.snr
            if fadings is not None and snr is not None:
                if snr - radio.attenuation_db < limits.interference_snr_db - STRONGEST_GAIN_DB:
                    continue
                gain, until = fadings.gain(radio.node.name, node.name, frequency, now)
                snr += gain
                reach.until = min(reach.until, until)
            if snr is None:
                continue
            snr -= radio.attenuation_db
            if snr < limits.interference_snr_db:
                continue
            signal = round(limits.noise_dbm + snr)
            for other in node.radios:
                if other is radio:
                    continue
                link = Link(
                    other,
                    frequency,
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
            found = self._generators[key] = draw(self._seed, "link", *key).random
        return found

    def _traffic_of(self, sender: str, receiver: str) -> Traffic:
        found = self.traffic.get((sender, receiver))
        if found is None:
            found = self.traffic[sender, receiver] = Traffic()
        return found
