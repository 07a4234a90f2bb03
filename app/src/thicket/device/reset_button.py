# SPDX-License-Identifier: Apache-2.0
"""The button that, held while the node is switched on, has it do a factory reset.

``/data/reset/button`` says for the start scripts which GPIO it is, as the daemon read it in
``[reset]``, and whether it is ``armed``. One press is one reset: a button that was held for it is
``spent`` until it is seen released, by a start or by the daemon. So one that is stuck, or wired
the wrong way, never erases anything twice, and nothing at all before it was seen released.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from thicket.base.files import make_folder, read_kept, remove, sync_folder, write_atomically
from thicket.base.paths import Paths
from thicket.device.gpio import GpioError, Line

FILE = "/reset/button"
#: Seconds that it is to be held after the start scripts have come to it, and between two looks.
HOLD = 5.0
LOOK = 0.05


class Button(NamedTuple):
    """A button.

    :ivar gpio: as Raspberry Pi numbers them (BCM).
    :ivar low: pressed, it connects the GPIO to ground; else to 3.3 V.
    :ivar armed: it was seen released since it last caused a reset.
    """

    gpio: int
    low: bool
    armed: bool = False

    def text(self) -> str:
        """Return the line that is kept."""
        words = "low" if self.low else "high", "armed" if self.armed else "spent"
        return f"{self.gpio} {' '.join(words)}\n"


def load(paths: Paths) -> Button | None:
    """Return the button that is kept; None without one, or where the file is damaged."""
    try:
        words = read_kept(paths.data + FILE, 64).decode("ascii").split()
    except (OSError, ValueError):
        return None
    match words:
        case [gpio, "low" | "high" as active, "armed" | "spent" as state] if gpio.isdecimal():
            return Button(int(gpio), active == "low", state == "armed")
    return None


def keep(paths: Paths, button: Button | None) -> None:
    """Keep a button, or that there is none; nothing is written where that is known.

    :raises OSError: it cannot be written.
    """
    path = paths.data + FILE
    if button == load(paths) and (button is not None or not os.path.exists(path)):
        return
    if button is None:
        os.unlink(path)
        sync_folder(os.path.dirname(path))
        return
    make_folder(os.path.dirname(path), 0o700)
    write_atomically(path, button.text().encode(), mode=0o600)


def spend(paths: Paths) -> None:
    """The button has caused a reset. Where that cannot be kept there is no button any more.

    :raises OSError: that cannot be kept either.
    """
    if (button := load(paths)) is not None and button.armed:
        try:
            keep(paths, button._replace(armed=False))
        except OSError:
            remove(paths.data + FILE)
            sync_folder(os.path.dirname(paths.data + FILE))


def pressed(paths: Paths, button: Button) -> bool:
    """Return whether a button is pressed now.

    :raises GpioError: its GPIO cannot be read.
    """
    with Line(paths, button.gpio, low=button.low) as line:
        return line.get()


def held(
    read: Callable[[], bool],
    show: Callable[[str], None] = lambda _: None,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Return whether a button is pressed, and stays so for HOLD seconds.

    :param read: returns whether it is pressed now.
    :param show: shows a person what is seen: ``held``, ``taken`` when it may be let go,
        ``starting`` where it was let go too early.
    """
    if not read():
        return False
    show("held")
    end = clock() + HOLD
    while clock() < end:
        sleep(LOOK)
        if not read():
            show("starting")
            return False
    show("taken")
    return True


def at_start(paths: Paths, show: Callable[[str], None] = lambda _: None) -> bool:
    """Return whether the button asks for a reset; a start waits for as long as it is held."""
    button = load(paths)
    if button is None:
        return False
    try:
        with Line(paths, button.gpio, low=button.low) as line:
            if button.armed:
                return held(line.get, show)
            if not line.get():
                keep(paths, button._replace(armed=True))
    except (GpioError, OSError):
        pass  # the daemon will find it out and tell it
    return False


def follow(paths: Paths, wanted: Button | None) -> str | None:
    """Make ``wanted`` the button of the next start; return in words what is wrong with it.

    :raises OSError: it cannot be kept.
    """
    if wanted is None:
        keep(paths, None)
        return None
    before = load(paths)
    armed = before is not None and before[:2] == wanted[:2] and before.armed
    try:
        now = pressed(paths, wanted)
    except GpioError as error:
        keep(paths, wanted._replace(armed=armed))
        return f"the reset button cannot be used: {error}"
    keep(paths, wanted._replace(armed=armed or not now))
    if now and not armed:
        return (
            f"the reset button (GPIO {wanted.gpio}) was not seen released yet: it is stuck, or "
            'wired the other way (reset.active = "high" or "low"), and resets nothing'
        )
    return None
