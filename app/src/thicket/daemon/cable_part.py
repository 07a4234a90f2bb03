# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``cable``: first contact at wired interfaces, where a key may log in."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import thicket
from thicket.base.files import entries
from thicket.base.pace import wait

if TYPE_CHECKING:
    from collections.abc import Callable

    from thicket.cable.service import Cables
    from thicket.daemon.core import Core, OwnIdentity

#: It begins when the node has joined, or after this many seconds.
START = 5.0
#: Seconds between two looks for any interface beside loopback and mesh.
LOOK = 5.0
#: Brings up every cable that is there; seconds that it may take.
PROGRAM = "/usr/lib/thicket/cable"
_SECONDS = 60.0


class CablePart:
    """The node at its cables.

    :param use: told the names of the interfaces where people are let in.
    :ivar cables: None where nobody may come that way, or there was never a cable.
    """

    def __init__(self, core: Core, me: OwnIdentity, use: Callable[[frozenset[str]], None]) -> None:
        self.cables: Cables | None = None
        self._core = core
        self._me = me
        self._use = use

    def snapshot(self) -> list[dict[str, Any]]:
        """Return the part ``cables`` of the status document."""
        return self.cables.snapshot() if self.cables is not None else []

    async def run(self) -> None:
        """Serve cables until cancelled."""
        core, access = self._core, self._core.settings.access
        if not (access.cable and access.ssh_keys and core.make.own_cables(core.paths)):
            self._use(frozenset())
            await asyncio.Event().wait()
        await wait(core.joined, START)
        uplink = core.settings.gateway.uplink
        if uplink and os.path.exists(f"{core.paths.run}/cable.{uplink}"):
            await self._bring_up()  # it was a cable until now
        ordinary = {"lo", core.make.interface, uplink}
        while True:
            if set(entries(core.paths.sys + "/class/net")) - ordinary:
                break
            await asyncio.sleep(LOOK)
        from thicket.cable.service import Cables  # most nodes in the field have no cable

        identity = self._me.identity
        self.cables = Cables(
            self._me.hostname,
            {
                "device": (identity.serial or identity.id).hex(),
                "source": identity.source,
                "version": thicket.__version__,
            },
            core.problems,
            sysfs=core.paths.sys,
            reserved=frozenset({uplink}),
            use=self._use,
            bring_up=self._bring_up,
        )
        try:
            await self.cables.run()
        finally:
            self.cables = None

    async def _bring_up(self) -> None:
        """Give all cables link-local addresses."""
        from thicket.base.patience import run
        from thicket.base.threads import finish

        uplink = self._core.settings.gateway.uplink
        try:
            status, said = await finish(lambda: run([PROGRAM, "up", uplink], _SECONDS))
        except OSError as e:
            status, said = 1, e.strerror or str(e)
        if status == 0:
            self._core.problems.clear("cable", "not-up")
        else:
            message = f"a wired interface cannot be brought up: {said[:200]}"
            self._core.problems.report("cable", "not-up", message, "warning")
