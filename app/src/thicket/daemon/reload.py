# SPDX-License-Identifier: Apache-2.0
"""The configuration while the node runs: read again, reported, followed, kept as the last good."""

from __future__ import annotations

import asyncio
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base import log as system_log
from thicket.config.load import load, remember

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.config.load import Loaded
    from thicket.daemon.core import Core
    from thicket.daemon.document import Writer
    from thicket.daemon.live import Live
    from thicket.firewall.service import Firewall
    from thicket.upkeep.service import Upkeep

log = getLogger(__name__)


class Reload:
    """Follows other settings, whatever parts there are at the time.

    :param live: returns the parts of a node that knows who it is, None before.
    :param restart: starts a part again, by its name.
    """

    def __init__(
        self,
        core: Core,
        status: Writer,
        firewall: Firewall,
        upkeep: Upkeep,
        *,
        live: Callable[[], Live | None],
        restart: Callable[[str], None],
    ) -> None:
        self._core = core
        self._status = status
        self._firewall = firewall
        self._upkeep = upkeep
        self._live = live
        self._restart = restart
        self._running: set[asyncio.Task[Any]] = set()

    def begin(self) -> None:
        """Read the configuration again soon."""
        task = asyncio.get_running_loop().create_task(self.run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def close(self) -> None:
        """Give up what :meth:`begin` began."""
        for task in self._running:
            task.cancel()

    async def run(self) -> dict[str, Any]:
        """Read the configuration again and follow it; what was done, for the caller.

        A file with faults changes nothing but the list of problems.
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
        """Make the list of problems tell what is wrong with the files, and what is used instead."""
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
            # the disk may take its time
            await asyncio.get_running_loop().run_in_executor(
                None, remember, self._core.paths, self._core.loaded
            )
        except OSError as e:
            message = f"the last good configuration cannot be kept: {e}"
            problems.report("configuration", "not-kept", message, "warning")
        else:
            problems.clear("configuration", "not-kept")

    def _follow(self, changed: set[str]) -> list[str]:
        """Make all parts follow the settings; the keys that only the next start follows."""
        settings = self._core.settings
        sections = {path.partition(".")[0] for path in changed}
        if "log" in sections:
            system_log.set_level(settings.log.level)
        if "status" in sections:
            self._status.interval = settings.status.interval
        if changed:
            self._firewall.follow(settings)
        live = self._live()
        if live is not None:
            self._follow_live(live, changed, sections)
        return sorted(path for path in changed if path.startswith("identity."))

    def _follow_live(self, live: Live, changed: set[str], sections: set[str]) -> None:
        """Make the parts of a node that knows who it is follow."""
        moved = "address" in sections
        if moved:
            live.me.move(self._core.settings)
            # the radio tells when it has the new address; the other parts wait for that
            self._core.joined.clear()
        if moved or "mesh" in sections:
            live.radio.follow()
        if moved or "trust" in sections:
            live.trust.ready.clear()  # at once: the cluster must not take what was valid before
            self._restart("trust")
        else:
            live.trust.look_again()
        if moved:
            self._restart("discovery")
        elif "discovery" in sections:
            live.discovery.follow()
        if moved or changed & {"discovery.dns_sd", "cluster.name", "cluster.port"}:
            self._restart("dns-sd")
        session = live.cluster.session
        if moved or "cluster" in sections or "trust" in sections:
            self._restart("cluster")
        elif "application" in sections and session is not None and session.applications is not None:
            session.applications.settings_changed(self._core.settings.application)
