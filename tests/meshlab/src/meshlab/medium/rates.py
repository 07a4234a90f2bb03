# SPDX-License-Identifier: Apache-2.0
"""Rates that kernels ask for, with everything that their use needs, and reports on them."""

from __future__ import annotations

import struct

from meshlab.medium.airtime import AirtimeModel, Timing
from meshlab.medium.error import Curve, ErrorModel
from meshlab.medium.stats import Stats
from meshlab.wire import hwsim, ieee80211
from meshlab.wire.hwsim import RateFlag

MAX_TRIES = 31
"""Tries at one rate, whatever the kernel asks for (mac80211 asks for 11 at most)."""
RATES = struct.Struct("<bBbBbBbB")


class Vector:
    """A rate with everything that its use needs."""

    __slots__ = (
        "ack_time",
        "aggregates",
        "control",
        "control_rate",
        "control_timing",
        "curve",
        "protect",
        "rate",
        "rx_index",
        "timing",
    )

    def __init__(
        self,
        rate: ieee80211.Rate,
        frequency: int,
        flags: int,
        error: ErrorModel,
        airtime: AirtimeModel,
        *,
        aggregation: bool = False,
    ) -> None:
        two_ghz = ieee80211.is_2ghz(frequency)
        self.rate = rate
        self.aggregates = aggregation and rate.phy in (ieee80211.Phy.HT, ieee80211.Phy.VHT)
        """Frames at this rate may be sent together."""
        self.timing: Timing = airtime.timing(rate, two_ghz)
        self.curve: Curve = error.curve(rate)
        self.control_rate = ieee80211.control_rate(rate, two_ghz)
        """Of the acknowledgement."""
        self.control: Curve = error.curve(self.control_rate)
        self.control_timing: Timing = airtime.timing(self.control_rate, two_ghz)
        self.ack_time = self.control_timing.duration(ieee80211.ACK_LENGTH)
        """The acknowledgement without the SIFS before it."""
        self.rx_index = ieee80211.receive_index(rate, frequency)
        self.protect = bool(flags & RateFlag.RTS_CTS)
        """RTS and CTS go before."""


Series = tuple[tuple[Vector, int], ...]
"""Rates to be tried one after the other, each with how often."""


class Rates:
    """What the kernels of this medium have asked for, and the reports that they get."""

    def __init__(
        self, error: ErrorModel, airtime: AirtimeModel, *, aggregation: bool = False
    ) -> None:
        self.aggregation = aggregation
        """HT and VHT frames travel in aggregates."""
        self._error = error
        self._airtime = airtime
        self._vectors: dict[tuple[int, int, int], Vector] = {}
        self.series: dict[tuple[bytes, bytes, int], Series] = {}
        """By what a kernel asked for; ``make_series`` makes what is missing."""
        self.reports: dict[tuple[bytes, int, int], bytes] = {}
        """By what was asked for and what was tried; ``make_report`` makes what is missing."""

    def forget(self) -> None:
        """Forget all of it, so that rates which the standard does not have are counted again."""
        self._vectors.clear()
        self.series.clear()
        self.reports.clear()

    def make_series(self, key: tuple[bytes, bytes, int], stats: Stats) -> Series:
        """Return the series for a kernel's rates, their flags and a frequency."""
        tx_info, tx_info_flags, frequency = key
        entries = []
        for entry in hwsim.decode_series(tx_info, tx_info_flags):
            vector = self._vector(entry.idx, entry.flags, frequency, stats)
            entries.append((vector, min(max(entry.tries, 1), MAX_TRIES)))
        if not entries:
            entries.append((self._vector(0, 0, frequency, stats), 1))
        if len(self.series) >= 4096:  # a kernel uses some dozens
            self.series.clear()
        series = self.series[key] = tuple(entries)
        return series

    def _vector(self, index: int, flags: int, frequency: int, stats: Stats) -> Vector:
        key = (index, flags, frequency)
        found = self._vectors.get(key)
        if found is None:
            try:
                rate = ieee80211.rate(index, flags, ieee80211.is_2ghz(frequency))
            except ValueError:
                stats.bad_rates += 1
                rate = ieee80211.legacy_rates(frequency)[0]
            if len(self._vectors) >= 4096:
                self._vectors.clear()
            found = Vector(
                rate, frequency, flags, self._error, self._airtime, aggregation=self.aggregation
            )
            self._vectors[key] = found
        return found

    def make_report(self, tx_info: bytes, series: Series, stage: int, tries: int) -> bytes:
        """Return the rate series with the tries made, ended where the frame's were over."""
        asked = RATES.unpack(tx_info)
        made = []
        for i in range(hwsim.MAX_RATES):
            if asked[0] < 0 or i > stage:
                # Nothing usable was asked for: echoed as it came, beginning with the end mark.
                made += [-1, 0]
            elif i == stage:
                made += [asked[2 * i], tries]
            else:
                made += [asked[2 * i], series[i][1]]
        if len(self.reports) >= 4096:
            self.reports.clear()
        report = self.reports[tx_info, stage, tries] = RATES.pack(*made)
        return report
