# SPDX-License-Identifier: Apache-2.0
"""The light that shows a person how the node is: its patterns, and who plays them.

The kernel plays them on a light that it knows (``/sys/class/leds``, trigger ``pattern``): that
costs a node one write when the pattern changes, and nothing between. A light at a GPIO that only
this program knows is switched by it, a few times in a period.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from thicket.base.files import read, read_kept, remove, write_atomically
from thicket.base.paths import Paths

#: The light of every Raspberry Pi.
DEFAULT = "ACT"
#: In ``[led] name``: the node uses no light.
OFF = "off"
#: Below ``/data``: the light's name for ``overlay/etc/init.d/S25led.sh``, where it is another one.
FILE = "/led"


class Step(NamedTuple):
    """Lit or dark for a time in milliseconds."""

    lit: bool
    ms: int


Pattern = tuple[Step, ...]


def _even(ms: int) -> Pattern:
    return Step(True, ms), Step(False, ms)


def _flashes(count: int) -> Pattern:
    """Return short flashes and a pause in which they can be counted."""
    flash = Step(True, 100), Step(False, 250)
    return (*flash * (count - 1), Step(True, 100), Step(False, 1800))


#: By what they show, see docs/models.md.
PATTERNS: Final[dict[str, Pattern]] = {
    "starting": _even(120),
    "joining": _even(500),
    "joined": (Step(True, 2900), Step(False, 100)),
    "alone": _flashes(1),
    "updating": _flashes(2),
    "problem": _flashes(3),
    "identify": _even(50),
    # while the button for a reset is held, and when it may be let go
    "held": _even(50),
    "taken": (Step(True, 1000), Step(True, 1000)),
}


def kernel_text(pattern: Pattern, most: int) -> str:
    """Return a pattern as ``/sys/class/leds/NAME/pattern`` takes it.

    Documentation/ABI/testing/sysfs-class-led-trigger-pattern: pairs of brightness and time; a pair
    of the same brightness and no time has the light change at once and not by and by.

    :param most: the light's largest brightness.
    """
    pairs = (f"{most * lit} {ms} {most * lit} 0" for lit, ms in pattern)
    return " ".join(pairs)


class Light(Protocol):
    """Shows patterns."""

    def show(self, name: str) -> None:
        """Show a pattern of :data:`PATTERNS` from now on.

        :raises OSError: it cannot be shown.
        :raises GpioError: likewise, of a light at a GPIO.
        """

    def close(self, *, dark: bool = False) -> None:
        """Give the light back.

        :param dark: it is not used any more, by the next daemon either.
        """


class KernelLight:
    """A light that the kernel knows."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def show(self, name: str) -> None:
        """See :class:`Light`."""
        if "[pattern]" not in (read(f"{self._folder}/trigger") or ""):
            self._write("trigger", "pattern")
        brightness = read(f"{self._folder}/max_brightness") or ""
        most = int(brightness) if brightness.isdecimal() else 1
        self._write("pattern", kernel_text(PATTERNS[name], most))

    def close(self, *, dark: bool = False) -> None:
        """See :class:`Light`. Else the last pattern stays: the next daemon goes on from there.

        :raises OSError: it cannot be made dark.
        """
        if dark:
            self._write("trigger", "none")

    def _write(self, name: str, text: str) -> None:
        with open(f"{self._folder}/{name}", "wb", buffering=0) as file:
            file.write(f"{text}\n".encode())


def kernel_light(paths: Paths, name: str) -> KernelLight | None:
    """Return a light by its name; None where the kernel knows none of this name."""
    folder = f"{paths.sys}/class/leds/{name}"
    if name == OFF or read(f"{folder}/trigger") is None:
        return None
    return KernelLight(folder)


def remembered(paths: Paths) -> str:
    """Return the name of the light that the start scripts use."""
    try:
        return read_kept(paths.data + FILE, 64).decode("ascii").strip() or DEFAULT
    except (OSError, ValueError):
        return DEFAULT


def remember(paths: Paths, name: str) -> None:
    """Have the start scripts use a light; nothing is written where that is known.

    :raises OSError: it cannot be kept.
    """
    if name == remembered(paths):
        return
    if name == DEFAULT:
        remove(paths.data + FILE)
    else:
        write_atomically(paths.data + FILE, f"{name}\n".encode())
