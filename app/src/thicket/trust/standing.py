# SPDX-License-Identifier: Apache-2.0
"""What this node is in one fleet, from the reading of its root until another one is configured."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from thicket.trust.certificates import from_pem
from thicket.trust.clock import SystemClock
from thicket.trust.fleet import Fleet
from thicket.trust.revocations import InForce, SignedList
from thicket.trust.verify import Clock, Proven, Rules

if TYPE_CHECKING:
    from thicket.trust.credentials import Credentials
    from thicket.trust.signed_beacon import SignedBeacons
    from thicket.trust.tls import FleetTls


class Standing:
    """What this node is in one fleet, and by what it judges the fleet's other nodes.

    :param root: the root certificate in PEM.
    :param image: the folder of the image's files, for the clock.
    :param chip_required: returns whether nodes without chip are refused now.
    :ivar floor: the latest date that the fleet's authority has signed: it is later for certain.
    :ivar lists: the lists of revocations in force.
    :ivar credentials: None until the node can prove itself.
    :ivar tls: for the cluster's connections; made with the first credentials, then renewed.
    :ivar beacons: makes and judges beacons; None until the number of this start is known.
    :ivar proven: chains of certificates in beacons and connections whose signatures were checked.
    """

    def __init__(self, root: str, image: str, chip_required: Callable[[], bool]) -> None:
        self.root = root
        self.fleet = Fleet(from_pem(root)[0])
        self.floor = self.fleet.root.not_before
        self.lists = InForce()
        self.credentials: Credentials | None = None
        self.tls: FleetTls | None = None
        self.beacons: SignedBeacons | None = None
        self.proven = Proven()
        self._clock = SystemClock(image)
        self._chip_required = chip_required

    def clock(self) -> Clock:
        """Return what is known about the time."""
        return self._clock.read().raised(self.floor)

    def rules(self) -> Rules:
        """Return the rules by which others are judged now."""
        lists = self.lists
        return Rules(self.clock(), lists.names, lists.number, self._chip_required())

    def passed(self, date: datetime) -> None:
        """It is later than this date: the fleet's authority has signed it."""
        self.floor = max(self.floor, date)

    @property
    def revoked(self) -> bool:
        """Whether a list names this device or who enrolled it: others refuse it."""
        mine = self.credentials
        return mine is not None and not self.lists.names.isdisjoint(
            (mine.peer.device, mine.peer.signer)
        )

    def adopt(self, packed: bytes) -> bool:
        """Put a list in force beside the others; return whether that makes a difference.

        :raises RefusedError: it is not of the fleet, or one too many.
        """
        found = SignedList.read(packed, self.fleet)
        self.floor = max(self.floor, found.listed.issued)
        return self.lists.add(found)

    def use(self, credentials: Credentials) -> None:
        """Show these (renewed) credentials to others from now on.

        :raises CertificateError: they do not fit into a beacon.
        """
        self.floor = max(self.floor, *credentials.peer.signed)
        if self.beacons is not None:
            self.beacons.use(credentials)
        if self.tls is None:
            from thicket.trust.tls import FleetTls  # ssl, once it is needed

            self.tls = FleetTls(self.fleet, credentials, self.rules, self.proven)
        else:
            self.tls.use(credentials)
        self.credentials = credentials
