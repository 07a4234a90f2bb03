# SPDX-License-Identifier: Apache-2.0
"""Wi-Fi channels: their frequencies, what must listen for radar first, and wider ones."""

from __future__ import annotations

from thicket.base.fields import Integer

#: Frequency in MHz of channel 0 of a band, and the band's channels (IEEE 802.11-2020, Annex E).
_BANDS = ((2407, range(1, 14)), (5000, range(32, 178)))
_CHANNEL_14_MHZ = 2484

#: Channels that radars use: a node listens for them before it sends first (ETSI EN 301 893, 4.2.6;
#: FCC 15.407 (h)).
RADAR = (*range(52, 65, 4), *range(100, 145, 4))
#: Those that overlap 5600 to 5650 MHz. Where weather radars are protected, a node must listen for
#: ten minutes there (EN 301 893, table D.1). The kernel and wpa_supplicant do so for one.
WEATHER = (120, 124, 128)
#: The first channel of each 80 MHz block. A 40 MHz channel is either half of one.
_BLOCKS = (36, 52, 100, 116, 132, 149)

#: Channels of 20 MHz that a mesh can use.
CHANNELS = (
    *range(1, 14), 36, 40, 44, 48, *(one for one in RADAR if one not in WEATHER),
    149, 153, 157, 161, 165,
)  # fmt: skip


def channel_frequency(channel: int) -> int:
    """Centre frequency in MHz of a 20 MHz channel in the 2.4 or 5 GHz band.

    :raises ValueError: for a number that is no channel there.
    """
    if channel == 14:
        return _CHANNEL_14_MHZ
    for base, numbers in _BANDS:
        if channel in numbers:
            return base + 5 * channel
    raise ValueError(f"channel {channel} is neither in 1 to 14 (2.4 GHz) nor in 32 to 177 (5 GHz)")


def channel_number(mhz: int) -> int | None:
    """The channel at a centre frequency in MHz; None where there is none."""
    if mhz == _CHANNEL_14_MHZ:
        return 14
    for base, numbers in _BANDS:
        if (mhz - base) % 5 == 0 and (mhz - base) // 5 in numbers:
            return (mhz - base) // 5
    return None


def parts(channel: int, width: int) -> tuple[int, ...]:
    """The 20 MHz channels of the channel of ``width`` MHz that has ``channel`` in it.

    :returns: none when there is no such channel.
    """
    if width == 20:
        return (channel,)
    step = width // 5
    for block in _BLOCKS:
        if channel in range(block, block + 16, 4):
            first = block + (channel - block) // step * step
            return tuple(range(first, first + step, 4))
    return ()


def width_obstacle(channel: int, width: int) -> str | None:
    """Why a mesh cannot use a channel with this width, in words that follow the value.

    :returns: None when it can.
    """
    if width == 20:
        return None
    if channel <= 14:
        return (
            f"is for 5 GHz: on channel {channel} (2.4 GHz) wpa_supplicant makes meshes of 20 MHz "
            "only"
        )
    used = parts(channel, width)
    if not used:
        return f"does not exist around channel {channel}"
    weather = [one for one in used if one in WEATHER]
    if weather:
        return (
            f"around channel {channel} has channel {weather[0]} in it, where weather radars need "
            "ten minutes of listening first, and the kernel listens for one"
        )
    return None


class Channel(Integer):
    """A 20 MHz Wi-Fi channel on which a mesh may be."""

    CHANNELS = CHANNELS

    @property
    def allowed(self) -> str:
        return (
            "a Wi-Fi channel: 1 to 13, 36, 40, 44, 48, 52, 56, 60, 64, 100, 104, 108, 112, 116, "
            "132, 136, 140, 144, 149, 153, 157, 161 or 165"
        )

    def check(self, raw: object) -> int:
        value = super().check(raw)
        if value in WEATHER:
            raise ValueError(
                "is used by weather radars, which need ten minutes of listening before the first "
                "frame in many countries, and the kernel listens for one; use another, such as "
                "100 to 116"
            )
        if value not in self.CHANNELS:
            raise self.refuse()
        return value


class Width(Integer):
    """How wide the channel is, in MHz."""

    WIDTHS = (20, 40, 80)

    @property
    def allowed(self) -> str:
        return "20, 40 or 80 (MHz)"

    def check(self, raw: object) -> int:
        value = super().check(raw)
        if value not in self.WIDTHS:
            raise self.refuse()
        return value
