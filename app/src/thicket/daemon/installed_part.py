# SPDX-License-Identifier: Apache-2.0
"""Applications that were installed beside the image, for the daemon.

Most nodes have none: nothing of it is imported before there is one.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING, Any

import thicket
from thicket.base.errors import RequestError
from thicket.base.headway import Headway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from thicket.applications.fit import Place
    from thicket.applications.installed import Current, Follow, Installed
    from thicket.applications.service import Applications
    from thicket.daemon.core import Core

#: Seconds that a request waits for what was asked for, before it tells how far that is.
PATIENCE = 1.0


class InstalledPart:
    """Keeps what was installed, over all sessions of the cluster."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._installed: Installed | None = None
        self._runner: Applications | None = None
        self._loading: asyncio.Task[None] | None = None
        self._work: asyncio.Task[dict[str, Any]] | None = None
        self._headway = Headway()
        self._arrived = asyncio.Event()

    async def runner(
        self, make: Callable[[dict[str, Callable[[], Any]]], Applications]
    ) -> Applications:
        """Return what runs all applications, the image's and those that were installed.

        Where there is none it waits until one is installed.

        :param make: makes it of the applications.
        """
        own = self._core.make.applications()
        if not own and not self._some():
            await self._arrived.wait()
        if self._some():
            service = await self.service()
            await service.count()
            # Nothing may come in between: what is installed from here on goes to the runner.
            self._runner = service.runner = make(service.found())
        else:
            self._runner = make(own)
        return self._runner

    def _some(self) -> bool:
        """Whether anything was ever installed here."""
        return self._installed is not None or os.path.isdir(self._core.paths.data + "/apps")

    async def watch(self, runner: Applications) -> None:
        """Judge what is on trial, and exchange what is installed, until cancelled."""
        try:
            if not self._some():
                await self._arrived.wait()
            await (await self.service()).watch(runner)
        finally:
            self._runner = None

    async def service(self) -> Installed:
        """Return what keeps the applications that were installed, once it knows them."""
        if self._installed is None:
            from thicket.applications.installed import Installed

            core = self._core
            self._installed = Installed(
                core.paths,
                core.problems,
                self._place,
                core.make.applications(),
                mounter=core.make.mounter(),
                health_time=lambda: core.settings.update.health_time,
                changed=core.changed,
            )
            self._installed.runner = self._runner
            self._loading = asyncio.create_task(self._installed.load())
        assert self._loading is not None
        await asyncio.shield(self._loading)
        return self._installed

    async def current(self, name: str) -> Current | None:
        """Return what is installed of an application; None for nothing."""
        return (await self.service()).current(name) if self._some() else None

    async def take(self, path: str, follow: Follow) -> None:
        """Install a file that came through the fleet, also one that was left before.

        :param follow: called with how far that is.
        :raises ThicketError: it is not for this node, cannot be kept, or does not start.
        """
        await (await self.service()).install(path, follow, again=True)
        self._arrived.set()

    async def install(self, path: str, *, again: bool) -> dict[str, Any]:
        """Install a file that a person has brought, see :meth:`ask`."""
        return await self.ask(lambda apps: apps.install(path, self._follow, again=again))

    def _follow(self, headway: Headway) -> None:
        self._headway = headway

    async def ask(self, work: Callable[[Installed], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        """Begin what a person asks for, and return its result.

        It goes on when the result is not waited for: a slow card takes longer than a request may.

        :returns: when it has not ended in time ``pending``, with how far an installation is (the
            members of :class:`.headway.Headway`); :meth:`result` tells more.
        """
        if self._work is not None and not self._work.done():
            raise RequestError("busy", "the request before has not ended yet: wait for its end")

        self._headway = Headway()

        async def run() -> dict[str, Any]:
            done = await work(await self.service())
            self._arrived.set()
            return done

        self._work = asyncio.create_task(run())
        self._work.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await self.result()

    async def result(self) -> dict[str, Any]:
        """Return the result of what was asked for last, see :meth:`ask`."""
        if self._work is None:
            raise RequestError("idle", "nothing was asked for since the daemon's start")
        await asyncio.wait({self._work}, timeout=PATIENCE)
        return self._work.result() if self._work.done() else {"pending": self._headway._asdict()}

    def status(self) -> list[dict[str, Any]]:
        """Return what is installed, for the status document."""
        return self._installed.status() if self._installed is not None else []

    def _place(self) -> Place:
        from thicket.applications.fit import Place
        from thicket.trust.certificates import from_pem
        from thicket.trust.fleet import Fleet
        from thicket.trust.service import revoked_on_disk

        root = self._core.settings.trust.root
        fleet = Fleet(from_pem(root)[0]) if root else None
        return Place(
            fleet,
            revoked_on_disk(self._core.paths, fleet),
            thicket.__version__,
            "{}.{}".format(*sys.version_info),
            os.uname().machine,
        )
