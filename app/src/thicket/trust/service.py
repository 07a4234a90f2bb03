# SPDX-License-Identifier: Apache-2.0
"""The daemon's part ``trust``: what this node shows to others, and by what it judges them.

It reads the fleet's root from the configuration and the device's certificates from the chip (or,
without chip, from files), lets the device sign a key that is made at each start, and keeps that
certificate renewed. The cluster's connections and the beacons use it. It keeps the lists of
revocations on disk: whatever the root has ever signed holds (``thicket.trust.revocations``).

A node that cannot prove itself runs on, says why in its status, and tries again: it may be enrolled
at any time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from ipaddress import IPv6Address
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base.errors import ThicketError
from thicket.base.files import read_kept, write_atomically
from thicket.base.pace import wait
from thicket.base.threads import finish
from thicket.trust import credentials as nodes
from thicket.trust.certificates import CertificateError
from thicket.trust.revocations import (
    MAX_FILE,
    InForce,
    SignedList,
    all_names,
    pack_parts,
    split,
)
from thicket.trust.standing import Standing
from thicket.trust.verify import RefusedError

if TYPE_CHECKING:
    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.config.schema import Settings
    from thicket.distribution.node import Node
    from thicket.identity.aio import AsyncAtecc
    from thicket.identity.source import Identity
    from thicket.trust.credentials import Credentials, DeviceKey
    from thicket.trust.exchange import Exchange
    from thicket.trust.fleet import Fleet
    from thicket.trust.signed_beacon import SignedBeacons
    from thicket.trust.tls import FleetTls

log = getLogger(__name__)

AGAIN = 30.0
"""Seconds before a node that could not prove itself tries again."""

TELL = 60.0
"""Seconds between two rounds in which all nodes hear which lists we have."""

LIST_FILE = "revocations.bin"
START_FILE = "start"
"""What the node keeps: the lists of revocations, and how often its beacons have begun anew."""

FAILURES = ("refused", "not-enrolled", "chip")
"""Why a node cannot prove itself: states and codes of problems. One of them holds at a time."""


class ListError(ThicketError):
    """A list of revocations that is not taken; the text says why."""


def read_lists(path: str) -> list[bytes]:
    """Return the packed lists in a file, unchecked; none where it is missing or damaged."""
    try:
        return split(read_kept(path, MAX_FILE + 1))
    except FileNotFoundError:
        return []
    except (OSError, RefusedError) as error:
        log.warning("%s is not used: %s", path, error)
        return []


def revoked_on_disk(paths: Paths, fleet: Fleet | None) -> frozenset[str]:
    """Return who is out, by the lists on the disk; one of another fleet says nothing."""
    if fleet is None:
        return frozenset()
    found = []
    for packed in read_lists(f"{paths.data}/thicket/{LIST_FILE}"):
        try:
            found.append(SignedList.read(packed, fleet))
        except RefusedError:
            continue
    return all_names(found)


class ListFile:
    """The file with the lists of revocations: a node knows after a start what it knew before.

    :ivar writing: the last write, which ends after those before it; None before the first.
    """

    def __init__(self, folder: str, problems: Problems) -> None:
        self.path = f"{folder}/{LIST_FILE}"
        self.writing: asyncio.Task[None] | None = None
        self._problems = problems

    def read(self) -> list[bytes]:
        """Return the packed lists, unchecked; none of a damaged file, because others have them."""
        return read_lists(self.path)

    def keep(self, lists: InForce) -> None:
        """Write the lists in force, one write after the other: the last one has them all."""
        self.writing = asyncio.create_task(self._write(lists, self.writing))

    async def _write(self, lists: InForce, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        data = pack_parts([one.packed for one in lists.lists])
        try:
            await finish(lambda: write_atomically(self.path, data))
        except OSError as error:
            message = f"the lists of revocations cannot be kept: {error}"
            self._problems.report("trust", "list-not-kept", message, "warning")
        else:
            self._problems.clear("trust", "list-not-kept")


class Trust:
    """One node's side of the fleet; :meth:`run` is the part's coroutine.

    :param settings: returns the settings in force.
    :param on_change: called when the status has changed.
    :param open_chip: opens the chip that the identity was read from.
    :ivar standing: what the node is in its fleet; None without one.
    :ivar ready: set while the node can prove itself.
    :ivar on_beacons: called when there are other beacons to send.
    :ivar on_lists: called when other lists of revocations are in force.
    :ivar folder: where the node keeps what belongs to it alone.
    :ivar list_file: the lists of revocations on the disk.
    """

    def __init__(
        self,
        paths: Paths,
        settings: Callable[[], Settings],
        identity: Identity,
        problems: Problems,
        on_change: Callable[[], None],
        *,
        open_chip: Callable[[Identity], AsyncAtecc],
    ) -> None:
        self.paths = paths
        self.settings = settings
        self.identity = identity
        self.problems = problems
        self.on_change = on_change
        self.standing: Standing | None = None
        self.ready = asyncio.Event()
        self.on_beacons: Callable[[], None] = lambda: None
        self.on_lists: Callable[[], None] = lambda: None
        self.folder = f"{paths.data}/thicket"
        self.list_file = ListFile(self.folder, problems)
        self._open_chip = open_chip
        self._state = "starting"
        self._again = asyncio.Event()
        self._exchange: Exchange | None = None

    # -- what others ask

    @property
    def lists(self) -> InForce:
        """The lists of revocations in force."""
        return InForce() if self.standing is None else self.standing.lists

    @property
    def tls(self) -> FleetTls | None:
        """For the cluster's connections; None while there are no credentials."""
        return None if self.standing is None else self.standing.tls

    @property
    def beacons(self) -> SignedBeacons | None:
        """Makes and judges beacons; None without a fleet."""
        return None if self.standing is None else self.standing.beacons

    def status(self) -> dict[str, Any]:
        """Return the part ``trust`` of the status document; docs/node.md has its members."""
        found = dict.fromkeys(("fleet", "root", "device", "software", "until", "revocations"))
        standing = self.standing
        if standing is None:
            return {"state": self._state, **found}
        told: dict[str, Any] = {"state": "revoked" if standing.revoked else self._state, **found}
        told["fleet"], told["root"] = standing.fleet.name, standing.fleet.identifier.hex()
        if standing.credentials is not None:
            peer = standing.credentials.peer
            told["device"], told["software"] = peer.device, peer.software
            told["until"] = f"{peer.until:%Y-%m-%dT%H:%M:%SZ}"
        if lists := standing.lists.lists:
            told["revocations"] = {
                "number": lists[0].listed.number,
                "issued": f"{lists[0].listed.issued:%Y-%m-%dT%H:%M:%SZ}",
                "names": len(standing.lists.names),
                "lists": len(lists),
            }
        return told

    def look_again(self) -> None:
        """Try again now: the configuration was read again, or somebody has enrolled the node."""
        self._again.set()

    # -- running

    async def run(self) -> None:
        """Prove the node's identity, and keep it proven, until cancelled.

        Started again in the same fleet it goes on with what is in use: the cluster's connections
        hold :attr:`tls`, and are to be judged by the lists meanwhile.
        """
        self.problems.clear("trust")
        standing = self.begin()
        if standing is None:
            await asyncio.Event().wait()  # only another configuration helps
            return
        await self._listen(standing)
        while True:
            self._again.clear()
            await self._prove(standing)
            await wait(self._again, AGAIN)

    def begin(self) -> Standing | None:
        """Take the fleet of the configuration and the lists on the disk.

        :returns: what the node is in the fleet; None without one.
        """
        settings = self.settings()
        text = settings.trust.root
        if self.standing is None or self.standing.root != text:
            self.standing, self._state = None, "starting"
            self.ready.clear()
            if text:
                self.standing = Standing(
                    text, self.paths.root, lambda: self.settings().trust.chip_required
                )
        if self.standing is None:
            self._state = "no-fleet"
            if settings.cluster.security == "tls" or settings.discovery.beacon == "signed":
                self.problems.report(
                    "trust",
                    "no-fleet",
                    "this node belongs to no fleet ([trust] root is empty), so it accepts no "
                    "node and joins no cluster. `thicket ca config`, on the machine with the "
                    "fleet's authority, writes the file for it; "
                    'cluster.security = "cookie" and '
                    'discovery.beacon = "plain" need no fleet',
                )
            self.on_change()
            return None
        for packed in self.list_file.read():
            try:
                self.standing.adopt(packed)
            except RefusedError as error:
                # of another fleet, or damaged
                log.warning("%s is not used: %s", self.list_file.path, error)
        self._judge(self.standing)
        return self.standing

    async def _listen(self, standing: Standing) -> None:
        """Judge beacons from now on; ours are sent when the node can prove itself."""
        if standing.beacons is not None:
            return
        from thicket.trust.signed_beacon import SignedBeacons, next_start

        # the disk may take its time
        start = await finish(lambda: next_start(f"{self.folder}/{START_FILE}", standing.clock()))

        def heard(address: IPv6Address, number: int) -> None:
            if self._exchange is not None and number != standing.lists.number:
                self._exchange.tell(f"{self.settings().cluster.name}@{address}")

        standing.beacons = SignedBeacons(
            standing.fleet, start, standing.rules, on_list_number=heard, proven=standing.proven
        )
        self.on_beacons()

    async def _prove(self, standing: Standing) -> None:
        """Use credentials and keep them renewed; returns when there are none."""
        chip: AsyncAtecc | None = None

        def use(credentials: Credentials) -> None:
            self._use(standing, credentials)

        try:
            device: DeviceKey
            if self.identity.source == "chip":
                chip = self._open_chip(self.identity)
                device = await nodes.ChipKey.load(chip, standing.fleet, self.folder)
            else:
                device = nodes.FileKey.load(self.folder)
            await nodes.keep_renewed(
                device, standing.fleet, standing.clock, use, wait=self._wait_for_renewal
            )
        except _AgainError:
            self._again.set()
        except Exception as error:  # the chip, its bus, the disk: all of them may get well
            self._state, message = failure(error, standing.fleet.name)
            if self._state == "chip":
                log.debug("no proof of the identity", exc_info=True)
            for code in FAILURES:
                if code != self._state:
                    self.problems.clear("trust", code)
            self.problems.report("trust", self._state, message)
            self.on_change()
        finally:
            if chip is not None:
                await chip.close()

    async def _wait_for_renewal(self, seconds: float) -> None:
        if await wait(self._again, seconds):
            raise _AgainError

    def _use(self, standing: Standing, credentials: Credentials) -> None:
        peer = credentials.peer
        own = self.identity.address_in(str(self.settings().address.prefix)).ip
        if peer.address != own:
            raise CertificateError(
                f"the certificates here are for {peer.address}, and this node is {own}"
            )
        first = standing.credentials is None
        standing.use(credentials)
        for code in FAILURES:
            self.problems.clear("trust", code)
        self._judge(standing)
        if first:
            log.info("this node is %s of fleet %s", peer.device, standing.fleet.name)
        self._state = "ready"
        self.ready.set()
        self.on_beacons()
        self.on_change()

    def _judge(self, standing: Standing) -> None:
        """Report what the lists in force mean for this node and for the fleet."""
        if standing.revoked:
            self.problems.report(
                "trust",
                "revoked",
                "this device, or the signer that enrolled it, is revoked: other nodes refuse it",
            )
        else:
            self.problems.clear("trust", "revoked")
        count = len(standing.lists.lists)
        if count > 1:
            self.problems.report(
                "trust",
                "lists-differ",
                f"{count} lists of revocations lack each other's names, so there are several "
                "copies of the fleet's authority. What any of them revokes is revoked; "
                "`thicket ca publish` to this node makes one list of them",
                "warning",
            )
        else:
            self.problems.clear("trust", "lists-differ")

    # -- revocations

    def take_list(self, data: bytes, origin: str) -> bool:
        """Take lists (a file of them, mostly of one); return whether something is new.

        :param origin: who has brought them, in words.
        :raises ListError: a list is refused; what came before it is in force nevertheless.
        """
        standing = self.standing
        if standing is None:
            raise ListError("this node belongs to no fleet")
        before, changed = standing.lists.names, False
        try:
            for packed in split(data):
                changed |= standing.adopt(packed)
        except RefusedError as error:
            raise ListError(str(error)) from error
        finally:
            if changed:
                self._changed(standing, origin, len(standing.lists.names - before))
        return changed

    def _changed(self, standing: Standing, origin: str, new: int) -> None:
        log.info(
            "list of revocations %d from %s is in force: %d names, %d of them new",
            standing.lists.number,
            origin,
            len(standing.lists.names),
            new,
        )
        self.list_file.keep(standing.lists)
        self._judge(standing)
        if self._exchange is not None:
            self._exchange.cluster.recheck()
        self.on_lists()
        self.on_change()

    def attach(self, node: Node) -> None:
        """Let the lists spread by the connections of ``node``; again for each new node object."""
        from thicket.trust.exchange import Exchange

        self._exchange = Exchange(node, lambda: self.lists, self._offered)

    def detach(self) -> None:
        """The node object has ended."""
        self._exchange = None

    def _offered(self, data: bytes, origin: str) -> bool:
        try:
            return self.take_list(data, origin)
        except ListError as error:
            log.warning("a list of revocations from %s is not taken: %s", origin, error)
            return False

    def node_up(self, name: str) -> None:
        """The node ``name`` is connected."""
        if self._exchange is not None and self.standing is not None:
            self._exchange.tell(name)

    def tell_all(self) -> None:
        """Tell every connected node which lists are in force here."""
        if self._exchange is not None and self.standing is not None:
            self._exchange.tell_all()

    async def keep_telling(self) -> None:
        """Tell the others again and again, until cancelled: what got lost comes all the same."""
        while True:
            await asyncio.sleep(TELL)
            self.tell_all()


class _AgainError(Exception):
    """Somebody has asked to look again."""


def failure(error: Exception, fleet: str) -> tuple[str, str]:
    """Return which of ``FAILURES`` an error in proving the identity is, and its message.

    :param fleet: the fleet's name.
    """
    from thicket.identity.chip.errors import ChipRefusedError

    if isinstance(error, RefusedError):
        return "refused", f"every other node would refuse this one: {error}"
    if isinstance(error, CertificateError):
        return "not-enrolled", str(error)
    if isinstance(error, ChipRefusedError):
        return (
            "not-enrolled",
            f"the chip has no key and certificates of fleet {fleet!r}: it is blank, or provisioned "
            f"for something else ({error}); `thicket ca enroll` on the engineer's machine enrols "
            "it",
        )
    return "chip", f"the node cannot prove its identity: {error}"


def open_chip(identity: Identity) -> AsyncAtecc:
    """Open the chip that the identity was read from.

    :raises BusError: its bus cannot be used.
    """
    from thicket.identity.aio import AsyncAtecc
    from thicket.identity.bus import LinuxBus
    from thicket.identity.chip.atecc import Atecc
    from thicket.identity.chip.errors import ChipAbsentError

    if identity.chip is None:
        raise ChipAbsentError("this node's identity is from no chip")
    return AsyncAtecc(Atecc(LinuxBus(identity.chip["bus"]), identity.chip["address"]))
