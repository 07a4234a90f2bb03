# SPDX-License-Identifier: Apache-2.0
"""Reloads the configuration of a running node: reads, reports and follows it, and keeps it."""

from __future__ import annotations

import asyncio
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base import log as system_log
from thicket.base.threads import finish
from thicket.config.load import load, remember

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.config.load import Loaded
    from thicket.daemon.core import Core
    from thicket.daemon.document import Writer
    from thicket.daemon.led_part import LedPart
    from thicket.daemon.live import Live
    from thicket.firewall.service import Firewall
    from thicket.upkeep.service import Upkeep

log = getLogger(__name__)


class Reload:
    """Makes all parts that exist follow other settings.

    :param live: returns the parts that need the identity, None before it is known.
    :param restart: restarts a part by its name.
    """

    def __init__(
        self,
        core: Core,
        status: Writer,
        firewall: Firewall,
        upkeep: Upkeep,
        led: LedPart,
        *,
        live: Callable[[], Live | None],
        restart: Callable[[str], None],
    ) -> None:
        self._core = core
        self._status = status
        self._firewall = firewall
        self._upkeep = upkeep
        self._led = led
        self._live = live
        self._restart = restart
        self._running: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Read the configuration again soon."""
        task = asyncio.create_task(self.run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self) -> None:
        """Cancel what :meth:`begin` started."""
        for task in self._running:
            task.cancel()

    async def run(self) -> dict[str, Any]:
        """Read the configuration again, follow it, and return what was done.

        A file with faults changes only the list of problems.
        """
        core = self._core
        loaded = load(core.paths)
        faults = [str(finding) for finding in loaded.findings]
        if faults and (loaded.last_good_used or loaded.source == "defaults"):
            self.report(loaded, "the configuration from before stays in force")
            self._upkeep.settings_changed()
            return {"source": core.loaded.source, "changed": [], "later": [], "faults": faults}
        changed = core.settings.changed(loaded.settings)
        core.loaded = loaded
        self.report(loaded)
        log.info("configuration %s: %s", loaded.source, ", ".join(changed) or "no change")
        later = self._follow(set(changed))
        self._upkeep.settings_changed()
        await self.remember()
        core.changed()
        return {"source": loaded.source, "changed": changed, "later": later, "faults": faults}

    def report(self, loaded: Loaded, in_force: str | None = None) -> None:
        """Report what is wrong with the files, and which settings are used instead."""
        problems = self._core.problems
        problems.clear("configuration", "invalid")
        problems.clear("configuration", "fallback")
        for number, finding in enumerate(loaded.findings):
            problems.report("configuration", "invalid", str(finding), "warning", str(number))
        if not loaded.findings:
            return
        if in_force is None:
            if loaded.last_good_used:
                in_force = "the last good configuration is in force"
            elif loaded.source == "defaults":
                in_force = "the image's defaults are in force"
            else:
                in_force = f"all of {loaded.source} is in force over the built-in defaults"
        message = f"{in_force}; correct the file, then run `thicket reload`"
        problems.report("configuration", "fallback", message, "warning")

    async def remember(self) -> None:
        """Keep the configuration in force as the last good one."""
        problems = self._core.problems
        try:
            # the disk may be slow
            await finish(lambda: remember(self._core.paths, self._core.loaded))
        except OSError as e:
            message = f"the last good configuration cannot be kept: {e}"
            problems.report("configuration", "not-kept", message, "warning")
        else:
            problems.clear("configuration", "not-kept")

    def _follow(self, changed: set[str]) -> list[str]:
        """Make all parts follow the settings, and return the keys that need a new start."""
        settings = self._core.settings
        sections = {path.partition(".")[0] for path in changed}
        if "log" in sections:
            system_log.set_level(settings.log.level)
        if "status" in sections:
            self._status.interval = settings.status.interval
        self._led.follow(settings.led)
        if changed:
            self._firewall.follow(settings)
        for part in sections & {"metrics", "syslog"}:
            self._restart(part)
        if sections & {"trust", "update"}:
            self._restart("update")
        live = self._live()
        if live is not None:
            self._follow_live(live, changed, sections)
        return sorted(path for path in changed if path.startswith("identity."))

    def _follow_live(self, live: Live, changed: set[str], sections: set[str]) -> None:
        """Make the parts that need the identity follow the settings."""
        moved = "address" in sections
        if moved:
            live.me.move(self._core.settings)
            # the other parts wait until the radio has the new address
            self._core.joined.clear()
        if moved or sections & {"mesh", "gateway"}:
            live.radio.follow()
        if moved or "trust" in sections:
            live.trust.ready.clear()  # at once: the cluster must not use the old credentials
            self._restart("trust")
        else:
            live.trust.look_again()
        if moved:
            self._restart("discovery")
        elif "discovery" in sections:
            live.discovery.follow()
        if moved or sections & {"access", "trust"}:
            self._restart("operators")
        if sections & {"access", "gateway"}:
            self._restart("cable")
        if moved or "time" in sections:
            self._restart("time")
        if moved or "gateway" in sections:
            self._restart("gateway")
        if moved or changed & {"discovery.dns_sd", "cluster.name", "cluster.port"}:
            self._restart("dns-sd")
        session = live.cluster.session
        if moved or "cluster" in sections or "trust" in sections:
            self._restart("cluster")
        elif "application" in sections and session is not None and session.applications is not None:
            session.applications.settings_changed(self._core.settings.application)
