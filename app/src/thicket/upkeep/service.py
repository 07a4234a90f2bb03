# SPDX-License-Identifier: Apache-2.0
"""The node's care for itself: it keeps the reason of its last restart, saves the time, opens and
closes the ways in for a person, and writes its report onto the card.

This work is not urgent, and it hangs when the card does not answer. It therefore runs in a thread
that nothing waits for: a card that hangs stops the reports, not the node.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from logging import getLogger
from typing import TYPE_CHECKING, Any, TypeVar

from thicket.base import threads
from thicket.base.pace import wait
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.load import Loaded
from thicket.upkeep import last_run

if TYPE_CHECKING:
    from thicket.config.schema import Settings

log = getLogger(__name__)

T = TypeVar("T")

#: This work begins when the node has joined, or after this many seconds.
START = 5.0
#: Seconds after that until the first report, by when a problem is worth reporting.
FIRST_REPORT = 20.0
#: Least seconds between two different reports.
REPORT_GAP = 600.0
#: Seconds between two checks whether there is something new to report, once that may be reported.
LOOK = 15.0
#: A card that has not answered for this many seconds is reported.
HANGS = 60.0
#: Time and log are saved every so many seconds.
SAVE = 3600.0


class Upkeep:
    """The part ``upkeep`` of the daemon.

    :param loaded: returns the configuration in force.
    :param document: returns the status document.
    :param joined: set while the node is in the mesh.
    :param software: the version, and the slot that it runs from.
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
        #: How the previous run ended (:mod:`thicket.upkeep.last_run`), None until that is known.
        self.last_restart: dict[str, Any] | None = last_run.known(paths)
        state, message = last_run.data_state(paths)
        #: The state of /data.
        self.data: dict[str, str] = {"state": state, "message": message}
        #: What the last factory reset erased, for the status document; None without one.
        self.factory_reset: dict[str, Any] | None = None
        #: Something is wrong with the button for it: it is looked at again.
        self._button_wrong = False
        self._settings_changed = asyncio.Event()
        self._settings_changed.set()
        self._threads = threads.OneAtATime("upkeep")

    def settings_changed(self) -> None:
        """The configuration was read again: follow ``[access]``, and report soon."""
        self._settings_changed.set()

    async def run(self) -> None:
        """Work until cancelled."""
        await wait(self.joined, START)
        self._tell_data()
        found = await self._in_thread(
            lambda: last_run.find_out(self.paths, *self.software), "the last restart"
        )
        if found is not None:
            self._tell_restart(*found)
        await self._look_for_reset()
        report_at = time.monotonic() + FIRST_REPORT
        save_at = 0.0
        reported = ""
        while True:
            now = time.monotonic()
            if self._settings_changed.is_set():
                self._settings_changed.clear()
                await self._follow_access()
                # the person wants to know soon whether the new configuration is right
                report_at = min(report_at, time.monotonic() + 2 * LOOK)
            elif self._button_wrong:
                await self._follow_by_hand(self.loaded().settings)
            if now >= save_at:
                save_at = now + SAVE
                await self._in_thread(lambda: save_clock(self.paths), "the time")
                await self._keep_log()
            due = now >= report_at
            if due:
                text = self._report_text()
                if text != reported and await self._report(text):
                    reported = text
                    report_at = time.monotonic() + REPORT_GAP
            # What is due next may have become due meanwhile.
            left = LOOK if due else max(0.0, min(report_at, save_at) - time.monotonic())
            await wait(self._settings_changed, left)

    # -- the tasks

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
            # a damaged file must not lock anybody out
            return
        from thicket.upkeep.access import Follower  # late: the start is over

        access, uplink = loaded.settings.access, loaded.settings.gateway.uplink
        troubles = await self._in_thread(
            lambda: Follower(self.paths).follow(access, uplink), "the ways in"
        )
        self.problems.clear("access")
        for code, message in troubles or []:
            self.problems.report("access", code, message, "warning")
        await self._follow_by_hand(loaded.settings)

    async def _look_for_reset(self) -> None:
        from thicket.upkeep import by_hand  # late: the start is over

        found = await self._in_thread(lambda: by_hand.look(self.paths), "the factory reset")
        if found is None:
            return
        if found.last is not None and found.now:
            log.info("factory reset at %s %s", found.last["at"], found.last["words"])
        self.factory_reset = found.last
        for code, message in found.problems:
            self.problems.report("reset", code, message, "warning")

    async def _follow_by_hand(self, settings: Settings) -> None:
        from thicket.upkeep import by_hand

        troubles = await self._in_thread(
            lambda: by_hand.follow(self.paths, settings.reset, settings.led), "button and light"
        )
        now = dict(troubles or [])
        self._button_wrong = by_hand.BUTTON in now
        for code in by_hand.FOLLOWED:
            if code in now:
                self.problems.report("reset", code, now[code], "warning")
            else:
                self.problems.clear("reset", code)

    async def _keep_log(self) -> None:
        """Keep the log for the time after the next start."""
        if self.paths.root:
            return  # the log of a developer's machine is not ours
        from thicket.upkeep import kept_log  # late: the start is over

        try:
            await self._in_thread(lambda: kept_log.keep(self.paths), "the log")
        except OSError as e:
            log.debug("the log is not kept: %s", e)

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
        """Run blocking work in a thread, one at a time; the thread may hang for ever.

        Work that hangs returns ``busy`` after HANGS seconds, other work at once as long as it does.
        """
        try:
            result = await self._threads.do(work, HANGS)
        except threads.BusyError:
            return busy
        except TimeoutError:
            message = f"the card does not answer (while working on: {what})"
            self.problems.report("data", "hangs", message, "warning")
            return busy
        self.problems.clear("data", "hangs")
        return result


def save_clock(paths: Paths) -> None:
    """Save the time for the next start, as the modification time of an empty file."""
    path = paths.data + "/thicket/clock"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
        os.utime(path)
    except OSError as e:
        log.warning("the time cannot be saved: %s", e)
