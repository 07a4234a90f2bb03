# SPDX-License-Identifier: Apache-2.0
"""What a machine tells that nobody asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Started(NamedTuple):
    """QEMU runs."""

    pid: int


class Exited(NamedTuple):
    """QEMU has ended; how, in words."""

    status: int | None
    reason: str


class Reset(NamedTuple):
    """The node restarted."""

    reason: str
    guest: bool
    """The guest asked for it, and not the host."""


class Panic(NamedTuple):
    """The guest's kernel died."""

    message: str


class Shutdown(NamedTuple):
    """The node switches off."""

    reason: str
    guest: bool
    """The guest asked for it, and not the host."""


class WatchdogBite(NamedTuple):
    """The watchdog was not fed in time."""

    action: str


class Trouble(NamedTuple):
    """The node could not be started anew."""

    message: str


class RelayPort(NamedTuple):
    """hwsim-relay has opened or closed its port."""

    open: bool


MachineEvent = Started | Exited | Reset | Panic | Shutdown | WatchdogBite | RelayPort | Trouble
OnMachineEvent = Callable[[MachineEvent], None]
