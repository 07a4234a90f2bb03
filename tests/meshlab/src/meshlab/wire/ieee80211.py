# SPDX-License-Identifier: Apache-2.0
"""What the medium needs to know of IEEE 802.11 frames and rates.

Clause and table numbers are those of IEEE Std 802.11-2020.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from enum import Enum, IntEnum

from meshlab.wire.hwsim import RateFlag

FCS = 4
"""Bytes of the frame check sequence (9.2.4.8). On the air, but not in the kernel's frames."""

ACK_LENGTH = 14
RTS_LENGTH = 20
CTS_LENGTH = 14
"""Control frames in bytes with FCS (9.3.1)."""

BROADCAST = b"\xff" * 6


class Type(IntEnum):
    """Frame types (table 9-1)."""

    MANAGEMENT = 0
    CONTROL = 1
    DATA = 2
    EXTENSION = 3


class Management(IntEnum):
    """Management subtypes (table 9-1)."""

    ASSOCIATION_REQUEST = 0
    ASSOCIATION_RESPONSE = 1
    PROBE_REQUEST = 4
    PROBE_RESPONSE = 5
    BEACON = 8
    DISASSOCIATION = 10
    AUTHENTICATION = 11
    DEAUTHENTICATION = 12
    ACTION = 13
    ACTION_NO_ACK = 14


class AccessCategory(IntEnum):
    """EDCA access categories (10.2.3.2), the first goes first."""

    VOICE = 0
    VIDEO = 1
    BEST_EFFORT = 2
    BACKGROUND = 3


_TID_CATEGORY = (
    AccessCategory.BEST_EFFORT,
    AccessCategory.BACKGROUND,
    AccessCategory.BACKGROUND,
    AccessCategory.BEST_EFFORT,
    AccessCategory.VIDEO,
    AccessCategory.VIDEO,
    AccessCategory.VOICE,
    AccessCategory.VOICE,
)
"""User priority to access category (table 10-1)."""

# For every frame: an enumeration costs 0.2 us a look.
_DATA = Type.DATA << 2
_VOICE = AccessCategory.VOICE
_BEST_EFFORT = AccessCategory.BEST_EFFORT

RETRY = 0x08
"""The Retry subfield in the second byte of Frame Control (9.2.4.1.6)."""


class FrameError(ValueError):
    """Bytes that are no IEEE 802.11 frame."""


@dataclass(frozen=True, slots=True)
class MeshControl:
    """The Mesh Control field (9.2.4.7.3)."""

    ttl: int
    sequence: int
    addresses: tuple[bytes, ...]
    """Address 5 and 6, or Address 4, when the extension mode has them."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The MAC header of a frame (9.2.3)."""

    type: Type
    subtype: int
    to_ds: bool
    from_ds: bool
    retry: bool
    protected: bool
    duration: int
    addr1: bytes
    addr2: bytes | None
    addr3: bytes | None
    addr4: bytes | None
    sequence: int | None
    fragment: int | None
    tid: int | None
    no_ack: bool
    """The QoS Control field asks for no acknowledgement (9.2.4.5.4)."""
    mesh: MeshControl | None
    header_length: int
    """Bytes before the frame body (Mesh Control belongs to the body)."""

    @property
    def group(self) -> bool:
        """Tell whether it is addressed to a group."""
        return bool(self.addr1[0] & 1)


def parse(frame: bytes) -> Frame:
    """Return the MAC header of ``frame``.

    :raises FrameError: when it is cut short.
    """
    if len(frame) < 10:
        raise FrameError(f"a frame of {len(frame)} bytes")
    fc0, fc1, duration = struct.unpack_from("<BBH", frame)
    if fc0 & 3:
        raise FrameError(f"protocol version {fc0 & 3}")
    kind = Type(fc0 >> 2 & 3)
    subtype = fc0 >> 4
    to_ds, from_ds = bool(fc1 & 1), bool(fc1 & 2)
    addr2 = addr3 = addr4 = None
    sequence = fragment = tid = None
    no_ack = False
    mesh = None
    length = 10
    if kind == Type.CONTROL:
        if len(frame) >= 16 and subtype not in (12, 13):  # CTS and Ack have one address
            addr2, length = frame[10:16], 16
    elif kind in (Type.MANAGEMENT, Type.DATA):
        length = 24
        if len(frame) < length:
            raise FrameError(f"a {kind.name.lower()} frame of {len(frame)} bytes")
        addr2, addr3 = frame[10:16], frame[16:22]
        control = int.from_bytes(frame[22:24], "little")
        sequence, fragment = control >> 4, control & 15
        if kind == Type.DATA:
            if to_ds and from_ds:
                addr4, length = frame[24:30], 30
            if subtype & 8:
                if len(frame) < length + 2:
                    raise FrameError(f"a QoS data frame of {len(frame)} bytes")
                qos = int.from_bytes(frame[length : length + 2], "little")
                tid, no_ack = qos & 15, qos >> 5 & 3 == 1
                length += 2
                # Mesh Control Present is bit 8; an encrypted body does not show it (9.2.4.5.9).
                if qos & 0x100 and not fc1 & 0x40:
                    mesh = _mesh_control(frame, length)
    return Frame(
        kind,
        subtype,
        to_ds,
        from_ds,
        bool(fc1 & RETRY),
        bool(fc1 & 0x40),
        duration,
        frame[4:10],
        addr2,
        addr3,
        addr4,
        sequence,
        fragment,
        tid,
        no_ack,
        mesh,
        length,
    )


def _mesh_control(frame: bytes, start: int) -> MeshControl | None:
    if len(frame) < start + 6:
        return None
    flags, ttl, sequence = struct.unpack_from("<BBI", frame, start)
    count = (0, 1, 2, 0)[flags & 3]  # Address Extension Mode (table 9-23)
    end = start + 6 + 6 * count
    if len(frame) < end:
        return None
    addresses = tuple(frame[i : i + 6] for i in range(start + 6, end, 6))
    return MeshControl(ttl, sequence, addresses)


def access_category(frame: bytes) -> AccessCategory:
    """Return the queue a frame belongs to: management first, data by its user priority."""
    control = frame[0]
    if control & 0x0C != _DATA:
        return _VOICE
    if control & 0x80:
        start = 30 if frame[1] & 3 == 3 else 24
        if len(frame) > start:
            return _TID_CATEGORY[frame[start] & 7]
    return _BEST_EFFORT


def wants_no_ack(frame: bytes) -> bool:
    """Tell whether the frame's own QoS Control field says that nobody will acknowledge it."""
    if frame[0] & 0x8C != 0x88:
        return False
    start = 30 if frame[1] & 3 == 3 else 24
    return len(frame) > start and frame[start] & 0x60 == 0x20


def transmitter(frame: bytes) -> bytes | None:
    """Return the address of the station that sent the frame, when the frame says it."""
    if len(frame) < 16 or (frame[0] & 0x0C == Type.CONTROL << 2 and frame[0] >> 4 in (12, 13)):
        return None
    return frame[10:16]


class Phy(Enum):
    """How a rate is modulated, by clause."""

    DSSS = "dsss"  # 15
    CCK = "cck"  # 16 (HR/DSSS)
    OFDM = "ofdm"  # 17, and 18 (ERP) on 2.4 GHz
    HT = "ht"  # 19
    VHT = "vht"  # 21


@dataclass(frozen=True, slots=True)
class Rate:
    """One way to send bits."""

    phy: Phy
    index: int
    """Legacy: index in the radio's list of rates. HT and VHT: the modulation and coding scheme."""
    kbps: int
    """Data rate in kbit/s."""
    bits_per_symbol: int
    """Coded bits per subcarrier and symbol (OFDM): 1 BPSK, 2 QPSK, 4, 6, 8 QAM. 0 for DSSS, CCK."""
    coding: tuple[int, int]
    """Rate of the convolutional code."""
    data_bits: int
    """Data bits per OFDM symbol, all streams (N_DBPS)."""
    streams: int = 1
    width: int = 20
    """Bandwidth in MHz."""
    short_gi: bool = False
    short_preamble: bool = False

    @property
    def name(self) -> str:
        """The rate as people write it."""
        if self.phy in (Phy.HT, Phy.VHT):
            gi = " SGI" if self.short_gi else ""
            nss = f"/{self.streams}" if self.phy is Phy.VHT else ""
            return f"{self.phy.name}{self.width} MCS {self.index}{nss}{gi}"
        return f"{self.kbps / 1000:g} Mbit/s"


_LEGACY_OFDM = (
    # kbit/s, bits per subcarrier, coding rate (table 17-4)
    (6000, 1, (1, 2)),
    (9000, 1, (3, 4)),
    (12000, 2, (1, 2)),
    (18000, 2, (3, 4)),
    (24000, 4, (1, 2)),
    (36000, 4, (3, 4)),
    (48000, 6, (2, 3)),
    (54000, 6, (3, 4)),
)


def _ofdm(first: int) -> tuple[Rate, ...]:
    return tuple(
        Rate(Phy.OFDM, first + i, kbps, bits, coding, kbps * 4 // 1000)
        for i, (kbps, bits, coding) in enumerate(_LEGACY_OFDM)
    )


LEGACY_2GHZ: tuple[Rate, ...] = (
    Rate(Phy.DSSS, 0, 1000, 0, (1, 1), 0),
    Rate(Phy.DSSS, 1, 2000, 0, (1, 1), 0),
    Rate(Phy.CCK, 2, 5500, 0, (1, 1), 0),
    Rate(Phy.CCK, 3, 11000, 0, (1, 1), 0),
    *_ofdm(4),
)
"""The rates of a hwsim radio on 2.4 GHz in the order of their index (``hwsim_rates``)."""

LEGACY_5GHZ: tuple[Rate, ...] = _ofdm(0)
"""The rates of a hwsim radio on 5 and 6 GHz."""

_MCS = (
    # bits per subcarrier, coding rate (tables 19-27 and 21-30)
    (1, (1, 2)),
    (2, (1, 2)),
    (2, (3, 4)),
    (4, (1, 2)),
    (4, (3, 4)),
    (6, (2, 3)),
    (6, (3, 4)),
    (6, (5, 6)),
    (8, (3, 4)),
    (8, (5, 6)),
)

_HT_SUBCARRIERS = {20: 52, 40: 108}
"""Data subcarriers by bandwidth in MHz (table 19-6)."""

_VHT_SUBCARRIERS = {20: 52, 40: 108, 80: 234, 160: 468}
"""Data subcarriers by bandwidth in MHz (table 21-5)."""

_WIDTHS = RateFlag.WIDTH_40 | RateFlag.WIDTH_80 | RateFlag.WIDTH_160
_MODULATION = RateFlag.MCS | RateFlag.VHT_MCS


def is_2ghz(frequency: int) -> bool:
    """Tell whether a frequency in MHz is in the 2.4 GHz band."""
    return frequency < 3000


def legacy_rates(frequency: int) -> tuple[Rate, ...]:
    """Return the legacy rates that a hwsim radio has at ``frequency`` (MHz)."""
    return LEGACY_2GHZ if is_2ghz(frequency) else LEGACY_5GHZ


@functools.cache
def rate(index: int, flags: int, two_ghz: bool) -> Rate:
    """Return the rate that an entry of a rate series means.

    :raises ValueError: when the standard does not have the combination.
    """
    short = bool(flags & RateFlag.SHORT_PREAMBLE)
    if not flags & _MODULATION:
        rates = LEGACY_2GHZ if two_ghz else LEGACY_5GHZ
        if not 0 <= index < len(rates):
            raise ValueError(f"legacy rate index {index} of {len(rates)}")
        found = rates[index]
        if short and found.phy is not Phy.OFDM and index > 0:
            return Rate(found.phy, index, found.kbps, 0, found.coding, 0, short_preamble=True)
        return found
    width = 20
    for flag, mhz in (
        (RateFlag.WIDTH_40, 40),
        (RateFlag.WIDTH_80, 80),
        (RateFlag.WIDTH_160, 160),
    ):
        if flags & flag:
            width = mhz
    short_gi = bool(flags & RateFlag.SHORT_GI)
    if flags & RateFlag.VHT_MCS:
        # ieee80211_rate_set_vht(): the number of streams less one in the upper four bits.
        mcs, streams, subcarriers = index & 15, (index >> 4) + 1, _VHT_SUBCARRIERS.get(width)
        if not (0 <= index < 128 and mcs < 10 and streams <= 8):
            raise ValueError(f"VHT MCS {mcs} with {streams} streams")
        return _mcs(
            Phy.VHT,
            mcs,
            scheme=mcs,
            streams=streams,
            subcarriers=subcarriers,
            width=width,
            short_gi=short_gi,
        )
    mcs, streams, subcarriers = index & 7, (index >> 3) + 1, _HT_SUBCARRIERS.get(width)
    if not 0 <= index < 32:
        raise ValueError(f"HT MCS {index}")
    return _mcs(
        Phy.HT,
        index,
        scheme=mcs,
        streams=streams,
        subcarriers=subcarriers,
        width=width,
        short_gi=short_gi,
    )


def _mcs(
    phy: Phy,
    index: int,
    *,
    scheme: int,
    streams: int,
    subcarriers: int | None,
    width: int,
    short_gi: bool,
) -> Rate:
    if subcarriers is None:
        raise ValueError(f"{phy.name} at {width} MHz")
    bits, coding = _MCS[scheme]
    data_bits = subcarriers * bits * streams * coding[0] // coding[1]
    # 3.2 us for the symbol and a guard interval of 0.8 or 0.4 us.
    kbps = data_bits * 10000 // 36 if short_gi else data_bits * 250
    return Rate(phy, index, kbps, bits, coding, data_bits, streams, width, short_gi)


def receive_index(sent: Rate, frequency: int) -> int:
    """Return the legacy rate index to report to a receiver.

    hwsim's receive path knows legacy rates only (``hwsim_cloned_frame_received_nl``): for others it
    is the fastest legacy rate that is not faster.
    """
    rates = legacy_rates(frequency)
    if sent.phy not in (Phy.HT, Phy.VHT):
        return min(sent.index, len(rates) - 1)
    best = 0
    for i, legacy in enumerate(rates):
        if rates[best].kbps < legacy.kbps <= sent.kbps:
            best = i
    return best


@functools.cache
def control_rate(sent: Rate, two_ghz: bool) -> Rate:
    """Return the rate of the acknowledgement of a frame sent at ``sent``.

    The fastest mandatory rate of the same modulation class that is not faster (10.6.6.5.2): of 6,
    12 and 24 Mbit/s after OFDM, HT and VHT (17.1.1), of 1 and 2 Mbit/s after DSSS and CCK.
    """
    rates = LEGACY_2GHZ if two_ghz else LEGACY_5GHZ
    if sent.phy in (Phy.DSSS, Phy.CCK):
        return rates[1] if sent.kbps >= 2000 else rates[0]
    # HT and VHT answer at the non-HT reference rate of their modulation and coding (10.6.11).
    reference = sent.kbps
    if sent.phy in (Phy.HT, Phy.VHT):
        per_symbol = 48 * sent.bits_per_symbol * sent.coding[0] // sent.coding[1]
        reference = per_symbol * 250
    first = 4 if two_ghz else 0
    for i in (4, 2):
        if rates[first + i].kbps <= reference:
            return rates[first + i]
    return rates[first]
