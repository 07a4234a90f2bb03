# SPDX-License-Identifier: Apache-2.0
"""What a person does at the device: the button for a factory reset, and what became of one."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from thicket.base.files import read
from thicket.base.paths import Paths
from thicket.device import factory_reset, led, reset_button
from thicket.device.reset_button import Button
from thicket.device.section import LedSection, ResetSection
from thicket.upkeep.last_run import data_state

#: Problems that :func:`follow` finds.
BUTTON = "button"
FOLLOWED = (BUTTON, "not-kept")


class Found(NamedTuple):
    """What is known of resets.

    :ivar last: what the last one did, for the status document; None without one.
    :ivar now: it was done by this start.
    :ivar problems: as (code, message).
    """

    last: dict[str, Any] | None
    now: bool
    problems: list[tuple[str, str]]


def look(paths: Paths) -> Found:
    """Return what the start scripts have done; blocks on the disk."""
    problems = []
    if words := read(paths.run + factory_reset.FAILED):
        problems.append(("not-done", f"the factory reset was not done: {words}"))
    last = factory_reset.last(paths)
    if last is not None and last["left"]:
        left = "; ".join(last["left"])
        message = f"the factory reset is not complete, the next start goes on: {left}"
        problems.append(("incomplete", message))
    return Found(last, os.path.exists(paths.run + factory_reset.DONE), problems)


def follow(paths: Paths, reset: ResetSection, light: LedSection) -> list[tuple[str, str]]:
    """Keep for the start scripts what the settings say; blocks on the disk.

    :returns: the problems that remain, as (code, message).
    """
    problems: list[tuple[str, str]] = []
    if data_state(paths)[0] == "readonly":
        return problems  # which is a problem of its own
    try:
        factory_reset.keep_room(paths)
        led.remember(paths, light.name if light.gpio == -1 else led.OFF)
        wanted = Button(reset.gpio, reset.active == "low") if reset.gpio != -1 else None
        if wrong := reset_button.follow(paths, wanted):
            problems.append((BUTTON, wrong))
    except OSError as e:
        problems.append(("not-kept", f"{e.filename or paths.data}: {e.strerror}"))
    return problems
