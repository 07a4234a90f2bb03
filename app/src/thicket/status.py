# SPDX-License-Identifier: Apache-2.0
"""What the node tells about itself: problems, milestones, and the status document.

The document is one line of JSON in ``/run/thicket/status.json``, replaced as a whole, so that any
program may read it at any time. docs/node.md describes its members.
"""

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import Any, Final

from thicket.config import Paths, write_atomically

log = getLogger("thicket.status")

SCHEMA: Final = 1

#: Milestones of a boot, in the order in which they are reached.
MILESTONES: Final = ("daemon", "identity", "radio", "first_peer", "first_node")


def boottime() -> float:
    """Seconds since power-on (CLOCK_BOOTTIME), to the millisecond. Nodes have no clock to trust."""
    return round(time.clock_gettime(time.CLOCK_BOOTTIME), 3)


#: What init's S20data.sh can say of /data.
DATA_STATES: Final = ("clean", "repaired", "created", "rebuilt", "readonly", "ram")


def data_state(paths: Paths) -> tuple[str, str]:
    """How /data came up in this boot: one of DATA_STATES, or "unknown"; and why, in words."""
    try:
        with open(paths.run + "/data", encoding="utf-8", errors="replace") as f:  # noqa: PTH123
            state, _, why = f.read(1024).strip().partition(" ")
    except OSError:
        return "unknown", ""
    return (state, why.strip()) if state in DATA_STATES else ("unknown", "")


class Problems:
    """What is wrong at present, by part, code and subject; logged when it comes and when it goes.

    ``severity`` is "error" (the node does not do what it is for) or "warning" (it does, but
    somebody should know). ``subject`` keeps several problems of one code apart.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._known: dict[tuple[str, str, str], dict[str, Any]] = {}
        #: Parts that keep a list of their own, asked whenever the whole list is wanted, with the
        #: severity of what they do not grade.
        self.sources: dict[str, tuple[Callable[[], list[dict[str, Any]]], str]] = {}

    def report(
        self, part: str, code: str, message: str, severity: str = "error", subject: str = ""
    ) -> None:
        """Note a problem; a known one keeps its time and gets the new words."""
        known = self._known.get((part, code, subject))
        if known is not None and known["message"] == message and known["severity"] == severity:
            return
        (log.error if severity == "error" else log.warning)("%s: %s", part, message)
        self._known[part, code, subject] = {
            "part": part,
            "code": code,
            "message": message,
            "severity": severity,
            "since": known["since"] if known is not None else boottime(),
        }
        self._on_change()

    def clear(self, part: str, code: str | None = None) -> None:
        """The problems with this code (or all of the part) are over."""
        for key in [k for k in self._known if k[0] == part and code in {None, k[1]}]:
            log.info("%s: solved: %s", part, self._known.pop(key)["message"])
            self._on_change()

    def all(self) -> list[dict[str, Any]]:
        """Every problem, errors first, then by age."""
        found = list(self._known.values())
        for source, severity in self.sources.values():
            found += ({"severity": severity, **problem} for problem in source())
        return sorted(found, key=lambda p: (p["severity"] != "error", p["since"]))


class Times:
    """When each milestone of this boot was reached, in seconds since power-on.

    The values outlive the daemon (they are kept on the RAM file system), so that they tell about
    the boot; ``restarts`` counts how often the daemon was started again since.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.values: dict[str, float | None] = dict.fromkeys(MILESTONES)
        self.restarts = 0

    def load(self) -> None:
        """Take over what an earlier daemon of this boot left, if it is sound."""
        try:
            with open(self.path, "rb") as f:  # noqa: PTH123
                kept = json.loads(f.read(4096))
            # the clock of another boot can only be ahead of ours
            values = {name: kept[name] for name in MILESTONES}
            limit = boottime()
            if not all(v is None or 0 <= v <= limit for v in values.values()):
                raise ValueError("a time of the future")
            self.restarts = int(kept["restarts"]) + 1
            self.values = values
            self.save()  # the next daemon counts on, whatever this one reaches
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            log.warning("ignoring %s: %s", self.path, e)

    def reached(self, name: str, at: float | None = None) -> bool:
        """Note a milestone (now, or ``at``); False when it had been reached before."""
        if self.values[name] is not None:
            return False
        self.values[name] = boottime() if at is None else at
        self.save()
        return True

    def save(self) -> None:
        """Keep the times for the next daemon; a failure costs only them."""
        data = json.dumps({**self.values, "restarts": self.restarts})
        try:
            write_atomically(self.path, data.encode() + b"\n", durable=False)
        except OSError as e:
            log.warning("cannot write %s: %s", self.path, e)


def process_start() -> float | None:
    """When this process was started, in seconds since power-on; None when /proc does not tell.

    That is before any of its imports, which take their time on a slow processor.
    """
    try:
        with open("/proc/self/stat", "rb") as f:  # noqa: PTH123
            # proc(5): field 22 in clock ticks; the name in field 2 may hold blanks and parentheses
            ticks = int(f.read().rpartition(b")")[2].split()[19])
        return round(ticks / os.sysconf("SC_CLK_TCK"), 3)
    except (OSError, ValueError, IndexError):
        return None


def memory_kib() -> int:
    """Resident memory of this process in KiB; 0 when /proc does not tell."""
    try:
        with open("/proc/self/statm", "rb") as f:  # noqa: PTH123
            return int(f.read().split()[1]) * (os.sysconf("SC_PAGE_SIZE") // 1024)
    except (OSError, ValueError, IndexError):
        return 0


class Writer:
    """Writes the document when told that something changed, and every ``interval`` seconds.

    ``document`` makes it; ``refresh`` is awaited before the regular writings, to get figures that
    nobody announces (signals, paths).
    """

    #: Shortest time between two writings, in seconds.
    GAP = 0.5

    def __init__(
        self,
        path: str,
        document: Callable[[], dict[str, Any]],
        refresh: Callable[[], Awaitable[None]],
        interval: float,
    ) -> None:
        self.path = path
        self.document = document
        self.refresh = refresh
        self.interval = interval
        self.written = 0
        self._changed: asyncio.Event | None = None
        self._failing = False

    def changed(self) -> None:
        """Something in the document changed: write it soon."""
        if self._changed is not None:
            self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        self._changed = asyncio.Event()
        regular = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= regular:
                await self.refresh()
                regular = time.monotonic() + self.interval
            self._changed.clear()
            self.write()
            await asyncio.sleep(self.GAP)
            try:
                delay = max(0.0, regular - time.monotonic())
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def write(self) -> None:
        """Write now. A full or missing file system is logged once and tried again."""
        data = json.dumps(self.document(), separators=(",", ":"))
        try:
            write_atomically(self.path, data.encode() + b"\n", durable=False)
        except OSError as e:
            if not self._failing:
                log.error("cannot write %s: %s", self.path, e)
            self._failing = True
        else:
            self._failing = False
            self.written += 1
