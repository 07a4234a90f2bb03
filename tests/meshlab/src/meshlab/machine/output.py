# SPDX-License-Identifier: Apache-2.0
"""What a machine has written: its guest on the console, QEMU itself in a log of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

from meshlab.machine.spec import CONSOLE_LOG, QEMU_LOG

# Seconds between the steps of one restart: certainly, and when the console says nothing.
_ONE_RESET = 1.0
_ONE_SILENT_RESET = 30.0
_PANIC = re.compile(r"Kernel panic - not syncing:? ?(.*)")


class Output:
    """The console's log and QEMU's in a node's directory.

    :param directory: The directory.
    :ivar log: QEMU's log.
    """

    def __init__(self, directory: Path) -> None:
        self.log = directory / QEMU_LOG
        self._console = directory / CONSOLE_LOG
        self._log_start = 0
        self._console_start = 0
        self._boot = 0
        self._panics = 0
        self._last_reset = -_ONE_SILENT_RESET
        self._console_at_reset = 0

    def begin(self) -> None:
        """Begin at what is written from now on: the machine is switched on."""
        self._panics = 0
        self._log_start = _size(self.log)
        self._console_start = _size(self._console)

    def begin_boot(self) -> None:
        """Begin another boot, for ``console_since_boot``."""
        self._boot = _size(self._console)

    def say(self, text: str) -> None:
        """Write a line to the console's log.

        :param text: The line.
        """
        with self._console.open("ab") as log:
            log.write(f"{text}\r\n".encode())

    def console(self, limit: int = 1 << 20) -> str:
        """Return what came from the guest's console since ``begin``.

        :param limit: At most this many bytes, the last ones.
        """
        return _tail(self._console, self._console_start, limit)

    def console_since_boot(self) -> str:
        """Return the end of what came from the guest's console since ``begin_boot``."""
        return _tail(self._console, self._boot, 1 << 16)

    def errors(self) -> str:
        """Return what QEMU itself had to say since ``begin``."""
        return _tail(self.log, self._log_start, 8192).strip()

    def fresh_panic(self) -> str | None:
        """Return the reason of a kernel panic that the console did not have at the last call."""
        panics = _PANIC.findall(self.console())
        before, self._panics = self._panics, len(panics)
        return panics[-1].strip() if len(panics) > before else None

    def is_restart(self, now: float, guest: bool) -> bool:
        """Tell whether a reset that QEMU reports is a restart, not one more step of the last.

        A PC restarts in several steps: its kernel asks in more than one way, and the firmware,
        finding that it has run before, once more. QEMU reports each; no node is back so soon. On a
        busy host the steps are further apart, but the node says nothing between them.

        :param now: The time of the reset in seconds.
        :param guest: The guest asked for it.
        """
        console = _size(self._console)
        silent = console == self._console_at_reset
        if guest and now - self._last_reset < (_ONE_SILENT_RESET if silent else _ONE_RESET):
            return False
        self._last_reset = now
        self._console_at_reset = console
        return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _tail(path: Path, start: int, limit: int) -> str:
    """Return the text of ``path`` from byte ``start`` on, of it the last ``limit`` bytes."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - limit) if end >= start else max(0, end - limit))
            return file.read(limit).decode(errors="replace")
    except OSError:
        return ""
