# SPDX-License-Identifier: Apache-2.0
"""What a node does about itself beside its work: it keeps the reason of its last restart, saves the
time, opens and closes the ways in for a person, and writes its report onto the card.

All of it may wait, and all of it may hang on a card that does not answer. So it runs in a thread of
its own that nothing waits for: a card that hangs costs the reports, not the node.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from logging import getLogger
from typing import Any, Final, TypeVar

from thicket.base import threads
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.load import Loaded
from thicket.upkeep import last_run
from thicket.upkeep.data import data_state

log = getLogger(__name__)

T = TypeVar("T")

#: Seconds that the node has for its start before this begins, unless it has joined by then.
START: Final = 5.0
#: Seconds after that before the first report: what is wrong then is worth telling.
FIRST_REPORT: Final = 20.0
#: Least seconds between two reports that say something different.
REPORT_GAP: Final = 600.0
#: Seconds between two looks at whether there is something to report; the first report is not late.
LOOK: Final = 15.0
#: Seconds after which a card that does not answer is said to hang.
HANGS: Final = 60.0
#: Seconds between two savings of the time.
SAVE_CLOCK: Final = 3600.0


class Upkeep:
    """The part ``upkeep`` of the daemon.

    ``document`` gives the status, ``loaded`` the configuration in force, ``joined`` is set while
    the node is in the mesh; ``software`` is the version and the slot it runs from.
    """

    def __init__(
        self,
        paths: Paths,
        problems: Problems,
        loaded: Callable[[], Loaded],
        document: Callable[[], dict[str, Any]],
        joined: asyncio.Event,
        *,
        software: tuple[str, str | None],
    ) -> None:
        self.paths = paths
        self.problems = problems
        self.loaded = loaded
        self.document = document
        self.joined = joined
        self.software = software
        #: How the run before ended (:mod:`thicket.upkeep.last_run`), None until that is known.
        self.last_restart: dict[str, Any] | None = last_run.known(paths)
        state, message = data_state(paths)
        #: How /data came up.
        self.data: dict[str, str] = {"state": state, "message": message}
        self._settings_changed = asyncio.Event()
        self._settings_changed.set()
        self._working: asyncio.Future[Any] | None = None

    def settings_changed(self) -> None:
        """The configuration was read again: follow ``[access]``, and report soon."""
        self._settings_changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START):
                await self.joined.wait()
        self._tell_data()
        found = await self._in_thread(
            lambda: last_run.find_out(self.paths, *self.software), "the last restart"
        )
        if found is not None:
            self._tell_restart(*found)
        report_at = time.monotonic() + FIRST_REPORT
        clock_at = 0.0
        reported = ""
        while True:
            now = time.monotonic()
            if self._settings_changed.is_set():
                self._settings_changed.clear()
                await self._follow_access()
                # what was wrong with the configuration, or is no more, is news for the person
                report_at = min(report_at, time.monotonic() + 2 * LOOK)
            if now >= clock_at:
                clock_at = now + SAVE_CLOCK
                await self._in_thread(lambda: save_clock(self.paths), "the time")
            due = now >= report_at
            if due:
                text = self._report_text()
                if text != reported and await self._report(text):
                    reported = text
                    report_at = time.monotonic() + REPORT_GAP
            # What was done here may have taken until the report was due.
            left = LOOK if due else max(0.0, report_at - time.monotonic())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK)):
                    await self._settings_changed.wait()

    # -- what is done

    def _tell_data(self) -> None:
        state, message = self.data["state"], self.data["message"]
        if state in {"ram", "readonly"}:
            where = "/data is in RAM" if state == "ram" else "/data is read-only"
            self.problems.report("data", state, f"{where}: {message}", "warning")

    def _tell_restart(self, record: dict[str, Any], trouble: str | None) -> None:
        if record != self.last_restart:
            bad = record["reason"] in {"panic", "watchdog"}
            (log.warning if bad else log.info)("last restart: %s", last_run.text(record))
        self.last_restart = record
        if trouble is not None:
            message = f"the reason of the last restart cannot be kept: {trouble}"
            self.problems.report("data", "not-kept", message, "warning")

    async def _follow_access(self) -> None:
        loaded = self.loaded()
        if loaded.findings and loaded.source == "defaults":
            # the person's wishes are not known: nobody is locked out by a damaged file
            return
        from thicket.upkeep.access import Follower  # late: the start is over

        access = loaded.settings.access
        troubles = await self._in_thread(lambda: Follower(self.paths).follow(access), "the ways in")
        self.problems.clear("access")
        for code, message in troubles or []:
            self.problems.report("access", code, message, "warning")

    def _report_text(self) -> str:
        from thicket.upkeep import report

        return report.compose(self.document())

    async def _report(self, text: str) -> bool:
        from thicket.upkeep import report

        def write() -> str:
            try:
                if report.write(self.paths, text):
                    log.info("report written")
            except report.ReportError as e:
                return str(e)
            return ""

        try:
            trouble = await self._in_thread(write, "the report", busy="busy")
        except OSError as e:
            trouble = str(e)
        if trouble == "busy":
            return False
        if not trouble:
            self.problems.clear("report")
        else:
            self.problems.report("report", "not-written", trouble, "warning")
        return True

    async def _in_thread(self, work: Callable[[], T], what: str, busy: T | None = None) -> T | None:
        """Run blocking work in a thread that may hang for ever; one at a time.

        While one hangs, ``busy`` is returned for it after a while and for the others at once. The
        process can end all the same.
        """
        # Not whether the thread is alive: it still is for a moment when its result is here already.
        if self._working is not None and not self._working.done():
            return busy
        done, _ = threads.start(work, "upkeep")
        self._working = done
        try:
            async with asyncio.timeout(HANGS):
                result = await asyncio.shield(done)
        except TimeoutError:
            message = f"the card does not answer (while working on: {what})"
            self.problems.report("data", "hangs", message, "warning")
            return busy
        self.problems.clear("data", "hangs")
        return result


def save_clock(paths: Paths) -> None:
    """Note the time for the next start: as the time of change of an empty file."""
    path = paths.data + "/thicket/clock"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        os.utime(path)
    except OSError as e:
        log.warning("the time cannot be saved: %s", e)
