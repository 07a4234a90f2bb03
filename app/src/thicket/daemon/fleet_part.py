# SPDX-License-Identifier: Apache-2.0
"""What one session of the cluster knows of all nodes of the fleet.

It is imported when somebody asks for the first time. :mod:`thicket.cluster.lost` remembers before
that who is missed.
"""

from __future__ import annotations

import time
from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from thicket.cluster.names import LOWER, device_of
from thicket.distribution.handshake import key_of
from thicket.fleet.rows import Known
from thicket.fleet.view import FleetView, Seen
from thicket.identity.address import identity_of_serial, interface_identifier
from thicket.metrics import machine
from thicket.metrics.gather import MOST_NODES
from thicket.metrics.summary import Summary, summary
from thicket.radio.paths import NOBODY
from thicket.trust.clock import synchronised

if TYPE_CHECKING:
    from thicket.daemon.cluster_part import ClusterSession
    from thicket.daemon.core import Core
    from thicket.daemon.live import Live
    from thicket.trust.labels import Entries


class FleetPart:
    """Composes a :class:`.FleetView` of the parts of one node.

    :ivar view: what is asked.
    """

    def __init__(self, core: Core, live: Live, session: ClusterSession) -> None:
        self._core = core
        self._live = live
        self._session = session
        self.view = FleetView(session.node, self._seen, self._own)
        #: Names that are revoked, and the devices that these are.
        self._revoked: tuple[frozenset[str], frozenset[int]] = frozenset(), frozenset()

    async def _own(self) -> Summary:
        return summary(await self._live.document(), machine.read(self._core.paths.root))

    def _seen(self) -> Seen:
        session, labels = self._session, self._session.labels
        entries = labels.entries() if labels is not None else {}
        mesh = self._live.radio.mesh
        found = mesh.snapshot() if mesh is not None else {}
        macs: dict[str, str] = {}
        paths: dict[str, int] = {}
        for peer in found.get("peers", []):
            if peer["state"] == "ESTAB":
                paths[_digits(peer["mac"])] = 1
                self._note(macs, peer.get("address"), peer["mac"])
        for path in found.get("paths", []):
            if path["next_hop"] != NOBODY and path.get("hops"):
                paths[_digits(path["destination"])] = path["hops"]
                self._note(macs, path.get("address"), path["destination"])
        own = session.node.name
        if (mac := found.get("radio", {}).get("mac")) is not None:
            macs[own] = _digits(mac)
        return Seen(
            own, self._nodes(entries), entries, macs, paths, synchronised(self._core.paths.root)
        )

    def _note(self, macs: dict[str, str], address: str | None, mac: str) -> None:
        if address is not None:
            macs[self._name(IPv6Address(address))] = _digits(mac)

    def _name(self, address: IPv6Address) -> str:
        return self._session.node.spelling(f"{self._core.settings.cluster.name}@{address}")

    def _nodes(self, entries: Entries) -> list[Known]:
        """Return all nodes: this one, those of the cluster, those heard, and those missed."""
        own, lost, ages = self._session.node.name, self._live.cluster.lost, self._ages()
        found = {key_of(own): Known(own, "self")}
        for one in self._session.nodes():
            name = str(one["name"])
            heard = [ages.get(key_of(name)), lost.age(name)]
            found[key_of(name)] = Known(
                name,
                one["state"],
                min((age for age in heard if age is not None), default=None),
                one.get("message", ""),
            )
        for name, age in lost.all().items():
            found.setdefault(key_of(name), Known(name, "away", age))
        known = {device_of(name) for name in found}
        network = int(self._live.me.network.network_address)
        for device, entry in entries.items():
            if device not in known and not entry.empty:
                name = self._name(IPv6Address(network & ~LOWER | device))
                found.setdefault(key_of(name), Known(name, "away", ages.get(key_of(name))))
        gone = self._gone()
        return [
            one
            for one in found.values()
            if one.state in {"self", "up"} or device_of(one.name) not in gone
        ][:MOST_NODES]

    def _gone(self) -> frozenset[int]:
        """Return the devices that are out of the fleet: nobody misses them."""
        names = self._live.trust.lists.names
        if names != self._revoked[0]:
            devices = (device_named(name) for name in names)
            self._revoked = names, frozenset(one for one in devices if one is not None)
        return self._revoked[1]

    def _ages(self) -> dict[str, float]:
        """Return the seconds since the last beacons, by keys of names."""
        discovery = self._live.discovery.discovery
        if discovery is None:
            return {}
        now = time.monotonic()
        return {
            key_of(self._name(address)): max(0.0, now - entry.seen)
            for address, entry in discovery.table.entries.items()
        }


def device_named(name: str) -> int | None:
    """Return the lower half of the address of the device with this name, as it can be revoked; None
    for what is none (:func:`thicket.trust.fleet.device_name`)."""
    kind, _, rest = name.partition("-")
    try:
        if kind == "software":
            source, _, identity = rest.rpartition("-")
            return interface_identifier(source, bytes.fromhex(identity))
        return interface_identifier("chip", identity_of_serial(bytes.fromhex(name)))
    except ValueError:
        return None


def _digits(mac: str) -> str:
    return mac.replace(":", "").lower()
