# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``radio``: makes the radio by the settings, and reports its events."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from thicket.daemon.parts import mesh_settings

if TYPE_CHECKING:
    from ipaddress import IPv6Address

    from thicket.daemon.core import Core, OwnIdentity
    from thicket.radio.events import RadioEvent
    from thicket.radio.radio import Radio


class RadioListener(Protocol):
    """Receives the events of the radio."""

    def joined(self) -> None:
        """The node is in the mesh with its address."""

    def peer_up(self) -> None:
        """There is a new peer."""

    def peer_down(self) -> None:
        """A peer was lost."""

    def announced(self, link_local: str) -> str | None:
        """Return the mesh address that beacons from a link-local address announce."""


class RadioPart:
    """Keeps one radio running.

    :ivar mesh: None while no radio can have the settings.
    """

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
                # The radio refuses settings that the schema allows; wait for other ones.
                core.problems.report("radio", "settings", str(e))
                await self._settings_changed.wait()
                continue
            core.problems.clear("radio", "settings")
            return mesh

    def follow(self) -> None:
        """Follow the settings in force, and the node's present address."""
        self._settings_changed.set()
        if self.mesh is None:
            return
        core = self._core
        try:
            self.mesh.apply(mesh_settings(core.settings), self._me.address)
        except ValueError as e:
            core.problems.report("radio", "settings", str(e))
        else:
            core.problems.clear("radio", "settings")

    async def refresh(self, *, whole: bool = True) -> None:
        """Read the stations, and if ``whole`` everything else that changes without an event."""
        if self.mesh is not None:
            await self.mesh.refresh(whole=whole)

    async def silence(self, address: IPv6Address) -> float | None:
        """Return how long the station at ``address`` has been silent; None without such a one."""
        if self.mesh is None:
            return None
        await self.mesh.listen(0.0)
        return next((silent for of, silent in self.mesh.links() if of == address), None)

    def on(self, event: RadioEvent, /) -> None:
        """Follow an event of the radio, see :class:`thicket.base.events.Listener`."""
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
        """Return the radio's problems: errors while the node has not joined or has no peer.

        A node with peers does its work; a problem of the radio is then mostly caused by another
        node, such as a neighbour with another passphrase.
        """
        mesh = self.mesh
        if mesh is None:
            return []
        severity = "warning" if mesh.joined and mesh.peers() else "error"
        return [{"severity": severity, **problem} for problem in mesh.problems()]
