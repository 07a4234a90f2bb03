# SPDX-License-Identifier: Apache-2.0
"""A radio in the mesh, as the rest of the node knows it."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Interface
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from thicket.radio.section import MeshSection


class Peering(Protocol):
    """What the change of a passphrase needs: the peers, and the passphrase that makes them."""

    @property
    def settings(self) -> MeshSection:
        """What the mesh is told to be."""

    @property
    def outdated(self) -> bool:
        """Whether a former passphrase still opens links that others begin, until :meth:`renew`."""

    def apply(self, settings: MeshSection, address: IPv6Interface | None = None) -> None:
        """Take other settings, and another address.

        :raises ValueError: the settings cannot be used.
        """

    def renew(self) -> None:
        """Leave and enter the mesh: every link is made anew."""

    def peers(self) -> set[str]:
        """The MAC addresses of the peers."""

    def refused(self) -> dict[str, int]:
        """The neighbours with which authentication fails, and how often in a row it did."""


class Radio(Peering, Protocol):
    """What the daemon needs of :class:`thicket.radio.mesh.Mesh`.

    :ivar announced: returns a node's address in the mesh for its link-local one, None when it is
        not known.
    """

    announced: Callable[[str], str | None]

    @property
    def joined(self) -> bool:
        """Whether the node is in the mesh, with its address."""

    async def run(self) -> None:
        """Be in the mesh until cancelled."""

    async def leave(self) -> None:
        """Leave the mesh for good."""

    async def refresh(self, *, whole: bool = True) -> None:
        """Ask the kernel for the stations.

        :param whole: ask for all paths and neighbours as well.
        """

    async def listen(self, seconds: float) -> None:
        """Ask the kernel for the peers of which no frame is known from the last ``seconds``."""

    async def scan(self) -> list[dict[str, Any]]:
        """Listen on all channels.

        :raises ScanError: that cannot be done, or not now.
        """

    def links(self) -> list[tuple[IPv6Address | None, float]]:
        """The peers: address where it is known, seconds since the last frame that is known of."""

    def set_doubled(self, macs: set[str]) -> None:
        """Tell which MAC addresses two radios have."""

    def problems(self) -> list[dict[str, Any]]:
        """What is wrong with the radio."""

    def snapshot(self) -> dict[str, Any]:
        """The parts ``radio``, ``peers`` and ``paths`` of the status document."""
