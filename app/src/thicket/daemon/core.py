# SPDX-License-Identifier: Apache-2.0
"""What all parts of one daemon share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv6Address, IPv6Network

    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.config.load import Loaded
    from thicket.config.schema import Settings
    from thicket.daemon.milestones import Times
    from thicket.daemon.parts import Parts
    from thicket.identity.source import Identity


class Core:
    """What every part needs from the start on.

    :ivar loaded: the configuration in force, and where it is from.
    :ivar joined: set while the node is in the mesh with its address.
    :ivar changed: call it when something in the status document has changed.
    """

    __slots__ = ("changed", "joined", "loaded", "make", "paths", "problems", "times")

    def __init__(
        self,
        paths: Paths,
        loaded: Loaded,
        make: Parts,
        problems: Problems,
        *,
        times: Times,
        changed: Callable[[], None],
    ) -> None:
        self.paths = paths
        self.loaded = loaded
        self.make = make
        self.problems = problems
        self.times = times
        self.changed = changed
        self.joined = asyncio.Event()

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self.loaded.settings


class OwnIdentity:
    """Who this node is, once that is known.

    :ivar address: the node's address with its prefix length, made of the identity and the settings.
    :ivar ip: the address alone, and ``text``: how it is written.
    :ivar network: the prefix.
    """

    __slots__ = ("address", "identity", "ip", "network", "text")

    def __init__(self, identity: Identity, settings: Settings) -> None:
        self.identity = identity
        self.move(settings)

    def move(self, settings: Settings) -> None:
        """Use the prefix of other settings."""
        self.address = self.identity.address_in(str(settings.address.prefix))
        self.ip: IPv6Address = self.address.ip
        self.network: IPv6Network = self.address.network
        self.text = str(self.ip)

    @property
    def hostname(self) -> str:
        """``n-`` and the 12 digits of the identity."""
        return self.identity.hostname
