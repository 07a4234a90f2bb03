# SPDX-License-Identifier: Apache-2.0
"""``[reset]`` and ``[led]``: what a person at the device presses and sees."""

from __future__ import annotations

from typing import Final

from thicket.base.fields import Choice, Finding, Key, Section, Text

#: GPIOs of the header with another purpose on every node.
TAKEN: Final = {
    2: "the security chip's SDA",
    3: "the security chip's SCL",
    14: "the serial port's TX",
    15: "the serial port's RX",
}


class Gpio(Key[int]):
    """A GPIO of the header as Raspberry Pi numbers them, or -1 for none."""

    allowed = "the number (BCM) of a GPIO of the header, 4 to 27 without 14 and 15, or -1 for none"

    def check(self, raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, int):
            raise self.refuse()
        if raw in TAKEN:
            raise ValueError(f"is {TAKEN[raw]}; must be {self.allowed}")
        if raw != -1 and not 4 <= raw <= 27:
            raise self.refuse()
        return raw

    def from_text(self, text: str) -> object:
        plain = text.strip().removeprefix("-")
        return int(text) if plain.isascii() and plain.isdecimal() else text


class ResetSection(Section, name="reset"):
    """A button for a factory reset."""

    __slots__ = ()
    gpio = Gpio(
        -1,
        "The button's GPIO. Held while the node is switched on, and until the light stays on, it "
        "has the node erase what applications and the node itself have kept, but not who it is. "
        "Without a number there is no button.",
    )
    active = Choice(
        "low",
        "The level of the pressed button. `low`: it connects the GPIO to ground, `high`: to 3.3 V. "
        "The node turns on the resistor that a released button needs.",
        "low",
        "high",
    )


class LedSection(Section, name="led"):
    """The light that shows how the node is."""

    __slots__ = ()
    name = Text(
        "ACT",
        "The light's name in `/sys/class/leds`, where there is one. `off`: the node uses none, and "
        "from the next start on the board's own shows what its kernel has it show, as a rule the "
        "card's activity.",
        least=1,
        most=63,
        letters="-_.:+",
    )
    gpio = Gpio(
        -1,
        "The GPIO of a light of your own, in place of `name`. It is dark before the daemon runs.",
    )
    active = Choice(
        "high",
        "The level at which the light at `gpio` is lit.",
        "high",
        "low",
    )


def check_gpios(led: LedSection, reset: ResetSection, file: str) -> Finding | None:
    """Return what is wrong where light and button have one GPIO."""
    if led.gpio == -1 or led.gpio != reset.gpio:
        return None
    return Finding(file, "led.gpio", str(led.gpio), "is the button's as well (reset.gpio)")
