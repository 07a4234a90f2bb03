# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``radio``: makes the radio of the settings, and tells what happens there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ipaddress import IPv6Address

    from thicket.daemon.core import Core, OwnIdentity
    from thicket.radio.events import RadioEvent
    from thicket.radio.radio import Radio


class RadioListener(Protocol):
    """Who is told what happens on the radio."""

    def joined(self) -> None:
        """The node is in the mesh with its address."""

    def peer_up(self) -> None:
        """There is one more peer."""

    def peer_down(self) -> None:
        """There is one peer less."""

    def announced(self, link_local: str) -> str | None:
        """Return the address in the mesh of the node with a link-local address, by its beacons."""


class RadioPart:
    """Keeps one radio running; ``mesh`` is None where the settings are of no use to any."""

    def __init__(
        self, core: Core, me: OwnIdentity, may_join: asyncio.Event, listener: RadioListener
    ) -> None:
        self.mesh: Radio | None = None
        self._core = core
        self._me = me
        self._may_join = may_join
        self._listener = listener
        self._settings_changed = asyncio.Event()

    async def run(self) -> None:
        """Run the radio until it fails, or this is cancelled."""
        await self._may_join.wait()
        mesh = self.mesh = await self._made()
        mesh.announced = self._listener.announced
        self._core.problems.sources["radio"] = (self._problems, "error")
        try:
            await mesh.run()
        finally:
            self.mesh = None
            del self._core.problems.sources["radio"]
            self._core.joined.clear()

    async def _made(self) -> Radio:
        core = self._core
        while True:
            self._settings_changed.clear()
            try:
                mesh = core.make.radio(core.settings, self._me.address, self)
            except ValueError as e:
                # Settings that the schema lets through and the radio does not: only others help.
                core.problems.report("radio", "settings", str(e))
                await self._settings_changed.wait()
                continue
            core.problems.clear("radio", "settings")
            return mesh

    def follow(self) -> None:
        """Take the settings in force, and the node's address of now."""
        self._settings_changed.set()
        if self.mesh is None:
            return
        core = self._core
        try:
            self.mesh.apply(core.settings.mesh, self._me.address)
        except ValueError as e:
            core.problems.report("radio", "settings", str(e))
        else:
            core.problems.clear("radio", "settings")

    async def refresh(self, *, whole: bool = True) -> None:
        """Look at the stations, and if ``whole`` at everything else that nobody announces."""
        if self.mesh is not None:
            await self.mesh.refresh(whole=whole)

    async def silence(self, address: IPv6Address) -> float | None:
        """Return for how many seconds the station at ``address`` has been silent; None: no such."""
        if self.mesh is None:
            return None
        await self.mesh.refresh(whole=False)
        return next((silent for of, silent in self.mesh.links() if of == address), None)

    def on(self, event: RadioEvent, /) -> None:
        """Something happened on the radio, see :class:`thicket.base.events.Listener`."""
        from thicket.radio.events import Joined, Left, PeerDown, PeerUp  # loaded with the radio

        if isinstance(event, Joined):
            self._core.times.reached("radio")
            self._core.joined.set()
            self._listener.joined()
        elif isinstance(event, Left):
            self._core.joined.clear()
        elif isinstance(event, PeerUp):
            self._core.times.reached("first_peer")
            self._listener.peer_up()
        elif isinstance(event, PeerDown):
            self._listener.peer_down()
        self._core.changed()

    def _problems(self) -> list[dict[str, Any]]:
        """Return the radio's problems: errors while the mesh is not joined, or has no peer here.

        A node with peers does what it is for; what the radio complains of then is mostly somebody
        else, such as a neighbour with another passphrase.
        """
        mesh = self.mesh
        if mesh is None:
            return []
        well = mesh.joined and any(p["state"] == "ESTAB" for p in mesh.snapshot()["peers"])
        severity = "warning" if well else "error"
        return [{"severity": severity, **problem} for problem in mesh.problems()]
