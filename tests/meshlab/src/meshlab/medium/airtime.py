# SPDX-License-Identifier: Apache-2.0
"""How long frames and the gaps between them take. Clauses of IEEE Std 802.11-2020.

All times are in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from meshlab.wire.ieee80211 import (
    ACK_LENGTH,
    CTS_LENGTH,
    RTS_LENGTH,
    AccessCategory,
    Phy,
    Rate,
    control_rate,
)

US = 1e-6


@dataclass(frozen=True, slots=True)
class Contention:
    """EDCA parameters of an access category (9.4.2.28, table 9-155)."""

    aifsn: int
    cw_min: int
    cw_max: int
    txop: float
    """Limit of a transmission opportunity in seconds; 0: one exchange of frames."""


# aCWmin = 15 and aCWmax = 1023 of the OFDM PHY (table 17-21). The limits are those that Linux sets
# in a mesh (ieee80211_set_wmm_default), the standard's until 2012; today's are longer.
EDCA: dict[AccessCategory, Contention] = {
    AccessCategory.VOICE: Contention(2, 3, 7, 1504 * US),
    AccessCategory.VIDEO: Contention(2, 7, 15, 3008 * US),
    AccessCategory.BEST_EFFORT: Contention(3, 15, 1023, 0.0),
    AccessCategory.BACKGROUND: Contention(7, 15, 1023, 0.0),
}


@dataclass(frozen=True, slots=True)
class Band:
    """Times that belong to a band."""

    sifs: float
    slot: float
    signal_extension: float
    """Silence after OFDM frames on 2.4 GHz (18.3.2.4 and 18.5.4: 6 us)."""

    def aifs(self, contention: Contention) -> float:
        """Return the idle time before a frame of a category (10.3.2.3.6)."""
        return self.sifs + contention.aifsn * self.slot


GHZ_2_4 = Band(sifs=10 * US, slot=9 * US, signal_extension=6 * US)
"""ERP with short slots (table 18-5)."""

GHZ_5 = Band(sifs=16 * US, slot=9 * US, signal_extension=0.0)
"""OFDM, 20 MHz channel spacing (table 17-21)."""


def band(two_ghz: bool) -> Band:
    """Return the times of the 2.4 GHz band or of the bands above it."""
    return GHZ_2_4 if two_ghz else GHZ_5


class Timing(Protocol):
    """How long frames at one rate take."""

    @property
    def ack(self) -> float:
        """SIFS and the acknowledgement that follow a frame (10.3.2.11)."""
        ...

    @property
    def rts_cts(self) -> float:
        """RTS, SIFS, CTS, SIFS that go before a protected frame (10.3.2.9)."""
        ...

    @property
    def header_begin(self) -> float:
        """Where the PHY header begins within a frame."""
        ...

    @property
    def header_end(self) -> float:
        """Where it ends."""
        ...

    @property
    def preamble(self) -> float:
        """Where the payload begins."""
        ...

    @property
    def extension(self) -> float:
        """Silence that belongs to the end of a frame."""
        ...

    def duration(self, length: int) -> float:
        """Return the time of a frame of ``length`` bytes with FCS."""
        ...


class AirtimeModel(Protocol):
    """Makes the timing of a rate."""

    def timing(self, rate: Rate, two_ghz: bool) -> Timing: ...


class _Timing:
    """Time of a preamble and of as many symbols as the bits need."""

    __slots__ = (
        "_bits",
        "_extra",
        "_fixed",
        "_symbol",
        "ack",
        "extension",
        "header_begin",
        "header_end",
        "preamble",
        "rts_cts",
    )

    def __init__(
        self,
        header: tuple[float, float],
        preamble: float,
        symbol: float,
        bits: float,
        *,
        extra: int = 0,
        extension: float = 0.0,
    ) -> None:
        self.header_begin, self.header_end = header
        self.preamble = preamble
        self.extension = extension
        self._fixed = preamble + extension
        self._symbol = symbol
        self._bits = bits
        self._extra = extra
        self.ack = 0.0
        self.rts_cts = 0.0

    def duration(self, length: int) -> float:
        return self._fixed + self._symbol * math.ceil((8 * length + self._extra) / self._bits)


def _bare(rate: Rate, two_ghz: bool) -> _Timing:
    extension = band(two_ghz).signal_extension
    if rate.phy in (Phy.DSSS, Phy.CCK):
        # Preamble and header: 144 + 48 us, with the short preamble 72 + 24 us (16.2.2); 16.3.4.
        header = (72 * US, 96 * US) if rate.short_preamble else (144 * US, 192 * US)
        return _Timing(header, header[1], 1 * US, rate.kbps / 1000)
    if rate.phy is Phy.OFDM:
        # 16 us preamble, 4 us SIGNAL; SERVICE (16), PSDU, tail (6) in symbols of 4 us (17.4.3).
        return _Timing(
            (16 * US, 20 * US), 20 * US, 4 * US, rate.data_bits, extra=22, extension=extension
        )
    symbol = 3.6 * US if rate.short_gi else 4 * US
    streams = rate.streams
    # N_HT-LTF and N_VHT-LTF (tables 19-13, 21-13).
    ltf = streams if streams < 3 else (streams + 1) // 2 * 2
    if rate.phy is Phy.HT:
        # L-STF 8, L-LTF 8, L-SIG 4, HT-SIG 8, HT-STF 4, HT-LTFs 4 each (19.4.3, HT-mixed).
        encoders = 1 if rate.kbps <= 300_000 else 2
        preamble = (32 + 4 * ltf) * US
    else:
        # L-STF 8, L-LTF 8, L-SIG 4, VHT-SIG-A 8, VHT-STF 4, VHT-LTFs, VHT-SIG-B 4 (21.4.3).
        encoders = max(1, math.ceil(rate.kbps / 600_000))
        preamble = (36 + 4 * ltf) * US
    return _Timing(
        (16 * US, 28 * US),
        preamble,
        symbol,
        rate.data_bits,
        extra=16 + 6 * encoders,
        extension=extension,
    )


class Standard:
    """Times as the standard defines them."""

    def timing(self, rate: Rate, two_ghz: bool) -> Timing:
        """Return the timing of ``rate``; control frames at their own rate (10.6.6)."""
        timing = _bare(rate, two_ghz)
        sifs = band(two_ghz).sifs
        control = _bare(control_rate(rate, two_ghz), two_ghz)
        timing.ack = sifs + control.duration(ACK_LENGTH)
        timing.rts_cts = control.duration(RTS_LENGTH) + control.duration(CTS_LENGTH) + 2 * sifs
        return timing
