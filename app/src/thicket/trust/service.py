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
import contextlib
from collections.abc import Callable
from datetime import datetime
from ipaddress import IPv6Address
from logging import getLogger
from typing import TYPE_CHECKING, Any, Final

from thicket.base.errors import ThicketError
from thicket.base.files import write_atomically
from thicket.trust import clock
from thicket.trust import credentials as nodes
from thicket.trust.certificates import Certificate, CertificateError, from_pem
from thicket.trust.fleet import Fleet
from thicket.trust.revocations import (
    MAX_FILE,
    MAX_LISTS,
    SignedList,
    all_names,
    needed,
    pack,
    split,
)
from thicket.trust.verify import MALFORMED, RefusedError

if TYPE_CHECKING:
    from thicket.base.paths import Paths
    from thicket.base.problems import Problems
    from thicket.config.schema import Settings
    from thicket.distribution.node import Node
    from thicket.identity.aio import AsyncAtecc
    from thicket.identity.source import Identity
    from thicket.trust.credentials import Credentials, DeviceKey
    from thicket.trust.exchange import Exchange
    from thicket.trust.signed_beacon import SignedBeacons
    from thicket.trust.tls import FleetTls
    from thicket.trust.verify import Clock

log = getLogger(__name__)

AGAIN: Final = 30.0
"""Seconds before a node that could not prove itself tries again."""

TELL: Final = 60.0
"""Seconds between two rounds in which all nodes hear which lists we have."""

LIST_FILE: Final = "revocations.bin"
START_FILE: Final = "start"
"""What the node keeps: the lists of revocations, and how often its beacons have begun anew."""

NEEDLESS: Final = 256
"""Lists that others have made needless: so many are remembered, not to be asked for again."""


class ListError(ThicketError):
    """A list of revocations that is not taken; the text says why."""


class Trust:
    """One node's side of the fleet; :meth:`run` is the part's coroutine.

    ``settings`` gives the settings in force.
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
        self._open_chip = open_chip
        self.fleet: Fleet | None = None
        self.credentials: Credentials | None = None
        #: For the cluster's connections; None while there are no credentials.
        self.tls: FleetTls | None = None
        #: Set while the node can prove itself.
        self.ready = asyncio.Event()
        #: Makes and judges beacons; None without a fleet.
        self.beacons: SignedBeacons | None = None
        #: Called when there are other beacons to send.
        self.on_beacons: Callable[[], None] = lambda: None
        #: The lists that are in force, the one with the highest number first.
        self.lists: tuple[SignedList, ...] = ()
        #: Names of devices and signers that are out: those of all lists.
        self.revoked: frozenset[str] = frozenset()
        self._root = ""
        self._forget()
        self._again = asyncio.Event()
        self._exchange: Exchange | None = None
        self._recheck: Callable[[], object] | None = None
        self._kept = asyncio.Lock()
        self._writing: set[asyncio.Task[None]] = set()

    def _forget(self) -> None:
        """Begin anew, in no fleet."""
        self.fleet = self.credentials = self.tls = self.beacons = None
        self.lists, self.revoked = (), frozenset()
        self._needless: dict[bytes, None] = {}
        self._state = "starting"
        self._floor: datetime | None = None
        self._until: datetime | None = None
        self._signer = ""
        self.ready.clear()

    # -- what others ask

    @property
    def folder(self) -> str:
        """Where the node keeps what belongs to it alone."""
        return self.paths.data + "/thicket"

    @property
    def needed(self) -> bool:
        """Whether the configuration lets in only who has a certificate."""
        settings = self.settings()
        return settings.cluster.security == "tls" or settings.discovery.beacon == "signed"

    def clock(self) -> Clock:
        """What is known about the time."""
        now = clock.read_clock(self.paths.root)
        return now if self._floor is None else now.raised(self._floor)

    def status(self) -> dict[str, Any]:
        """The part ``trust`` of the status document; docs/node.md has its members."""
        fleet, credentials, lists, until = self.fleet, self.credentials, self.lists, self._until
        return {
            "state": "revoked" if self._is_revoked() else self._state,
            "fleet": None if fleet is None else fleet.name,
            "root": None if fleet is None else fleet.identifier.hex(),
            "device": None if credentials is None else credentials.peer.device,
            "software": None if credentials is None else credentials.peer.software,
            "until": None if until is None else f"{until:%Y-%m-%dT%H:%M:%SZ}",
            "revocations": None
            if not lists
            else {
                "number": lists[0].listed.number,
                "issued": f"{lists[0].listed.issued:%Y-%m-%dT%H:%M:%SZ}",
                "names": len(self.revoked),
                "lists": len(lists),
            },
        }

    def look_again(self) -> None:
        """Try again now: the configuration was read again, or somebody has enrolled the node."""
        self._again.set()

    # -- running

    async def run(self) -> None:
        """Prove the node's identity, and keep it proven, until cancelled.

        Started again in the same fleet it goes on with what is in use: the cluster's connections
        hold :attr:`tls`, and are to be judged by the list meanwhile.
        """
        self.problems.clear("trust")
        if not self._load_fleet():
            await asyncio.Event().wait()  # only another configuration helps
        self._load_lists()
        self._judge_ourselves()
        await self._open_ears()
        while True:
            self._again.clear()
            await self._prove()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN):
                    await self._again.wait()

    def _load_fleet(self) -> bool:
        text = self.settings().trust.root
        if text != self._root:
            self._root = text
            self._forget()
        if text:
            if self.fleet is None:
                self.fleet = Fleet(from_pem(text)[0])
                self._raise_floor(self.fleet.root.not_before)
            return True
        self._state = "no-fleet"
        if self.needed:
            self.problems.report(
                "trust",
                "no-fleet",
                "this node belongs to no fleet ([trust] root is empty), so it lets nobody in and "
                "joins no cluster. `thicket ca config`, on the machine with the fleet's authority, "
                'writes the file for it; cluster.security = "cookie" and discovery.beacon = '
                '"plain" do without',
            )
        self.on_change()
        return False

    async def _open_ears(self) -> None:
        """Judge beacons from now on; ours are sent when the node can prove itself."""
        from thicket.trust.signed_beacon import SignedBeacons, next_start

        assert self.fleet is not None
        if self.beacons is not None:
            self.beacons.chip_required = self.settings().trust.chip_required
            return
        path, now = f"{self.folder}/{START_FILE}", self.clock()
        # the disk may take its time
        start = await asyncio.get_running_loop().run_in_executor(None, next_start, path, now)
        self.beacons = SignedBeacons(
            self.fleet,
            start,
            clock=self.clock,
            revoked=lambda: self.revoked,
            list_number=self._list_number,
            on_list_number=self._heard_number,
            chip_required=self.settings().trust.chip_required,
        )
        self.on_beacons()

    def _heard_number(self, address: IPv6Address, number: int) -> None:
        """A node announces the number of its list."""
        if self._exchange is not None and number != self._list_number():
            self._exchange.tell(f"{self.settings().cluster.name}@{address}")

    async def _prove(self) -> None:
        """Use credentials and keep them renewed; returns when there are none."""
        assert self.fleet is not None
        chip: AsyncAtecc | None = None
        try:
            device: DeviceKey
            if self.identity.source == "chip":
                chip = self._open_chip(self.identity)
                device = await nodes.ChipKey.load(chip, self.fleet, self.folder)
            else:
                device = nodes.FileKey.load(self.folder)
            await nodes.keep_renewed(
                device, self.fleet, self.clock, self._use, wait=self._wait_for_renewal
            )
        except RefusedError as error:
            self._fail("refused", f"every other node would refuse this one: {error}")
        except CertificateError as error:
            self._fail("not-enrolled", str(error))
        except _AgainError:
            self._again.set()
        except Exception as error:  # the chip, its bus, the disk: all of them may get well
            from thicket.identity.chip.errors import ChipRefusedError

            if isinstance(error, ChipRefusedError):
                self._fail(
                    "not-enrolled",
                    f"the chip has no key and certificates of fleet {self.fleet.name!r}: it is "
                    f"blank, or provisioned for something else ({error}); `thicket ca enroll` on "
                    "the engineer's machine enrols it",
                )
            else:
                log.debug("no proof of the identity", exc_info=True)
                self._fail("chip", f"the node cannot prove its identity: {error}")
        finally:
            if chip is not None:
                await chip.close()

    async def _wait_for_renewal(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._again.wait()
                raise _AgainError

    def _fail(self, code: str, message: str) -> None:
        self._state = code
        for other in ("refused", "not-enrolled", "chip"):
            if other != code:
                self.problems.clear("trust", other)
        self.problems.report("trust", code, message)
        self.on_change()

    async def _use(self, credentials: Credentials) -> None:
        from thicket.trust.tls import FleetTls  # ssl, once it is needed

        assert self.fleet is not None
        own = self.identity.address_in(str(self.settings().address.prefix)).ip
        if credentials.peer.address != own:
            raise CertificateError(
                f"the certificates here are for {credentials.peer.address}, and this node is {own}"
            )
        self._raise_floor(*credentials.peer.signed)
        if self.beacons is not None:
            self.beacons.use(credentials)
        if self.tls is None:
            self.tls = FleetTls(
                self.fleet,
                credentials,
                clock=self.clock,
                revoked=lambda: self.revoked,
                chip_required=lambda: self.settings().trust.chip_required,
            )
        else:
            self.tls.use(credentials)
        first, self.credentials = self.credentials is None, credentials
        self._until = Certificate(credentials.chain[0]).not_after
        self._signer = Certificate(credentials.chain[2]).common_name
        for code in ("refused", "not-enrolled", "chip"):
            self.problems.clear("trust", code)
        self._judge_ourselves()
        if first:
            log.info("this node is %s of fleet %s", credentials.peer.device, self.fleet.name)
        self._state = "ready"
        self.ready.set()
        self.on_beacons()
        self.on_change()

    def _is_revoked(self) -> bool:
        mine = self.credentials
        return mine is not None and not self.revoked.isdisjoint((mine.peer.device, self._signer))

    def _judge_ourselves(self) -> None:
        """Tell when a list names this device: others will no longer talk with it."""
        if self._is_revoked():
            self.problems.report(
                "trust",
                "revoked",
                "this device, or who enrolled it, is revoked: other nodes refuse it",
            )
        else:
            self.problems.clear("trust", "revoked")

    def _raise_floor(self, *dates: datetime) -> None:
        self._floor = max(dates) if self._floor is None else max(self._floor, *dates)

    # -- revocations

    def _load_lists(self) -> None:
        path = f"{self.folder}/{LIST_FILE}"
        try:
            with open(path, "rb") as file:
                parts = split(file.read(MAX_FILE + 1))
        except FileNotFoundError:
            return
        except (OSError, RefusedError) as error:
            # damaged by the disk: the others have them
            log.warning("%s is not used: %s", path, error)
            return
        for packed in parts:
            try:
                self._adopt(packed)
            except RefusedError as error:
                # of another fleet, or damaged
                log.warning("%s is not used: %s", path, error)
        self._judge_lists()

    def _adopt(self, packed: bytes) -> bool:
        """Put a list in force beside the others; whether that makes a difference.

        Raises RefusedError when it is not of the fleet.
        """
        assert self.fleet is not None
        found = SignedList.read(packed, self.fleet)
        self._raise_floor(found.listed.issued)
        lists = needed((*self.lists, found))
        if len(lists) > MAX_LISTS:
            raise RefusedError(MALFORMED, f"{MAX_LISTS} lists that lack each other's names")
        for one in (*self.lists, found):
            if one not in lists:
                self._needless[one.digest] = None
        while len(self._needless) > NEEDLESS:
            del self._needless[next(iter(self._needless))]
        if lists == self.lists:
            return False
        self.lists, self.revoked = lists, all_names(lists)
        return True

    def _judge_lists(self) -> None:
        """Tell when the authority's lists contradict each other."""
        if len(self.lists) > 1:
            self.problems.report(
                "trust",
                "lists-differ",
                f"{len(self.lists)} lists of revocations lack each other's names, so there are "
                "several copies of the fleet's authority. What any of them revokes is revoked; "
                "`thicket ca publish` to this node makes one list of them",
                "warning",
            )
        else:
            self.problems.clear("trust", "lists-differ")

    def take_list(self, data: bytes, origin: str) -> bool:
        """Take lists (a file of them, mostly of one) from ``origin``; whether something is new.

        Raises ListError; what came before the fault is in force nevertheless.
        """
        if self.fleet is None:
            raise ListError("this node belongs to no fleet")
        before, changed = self.revoked, False
        try:
            for packed in split(data):
                changed |= self._adopt(packed)
        except RefusedError as error:
            raise ListError(str(error)) from error
        finally:
            if changed:
                self._changed(origin, self.revoked - before)
        return changed

    def _changed(self, origin: str, new: frozenset[str]) -> None:
        log.info(
            "list of revocations %d from %s is in force: %d names, %d of them new",
            self._list_number(),
            origin,
            len(self.revoked),
            len(new),
        )
        self._keep()
        self._judge_lists()
        self._judge_ourselves()
        if self._recheck is not None:
            self._recheck()
        self.on_change()

    def _keep(self) -> None:
        """Write the lists in force, one writing after the other: the last one has them all."""
        path = f"{self.folder}/{LIST_FILE}"

        async def write() -> None:
            async with self._kept:
                data = pack(self.lists)
                try:
                    await asyncio.get_running_loop().run_in_executor(
                        None, write_atomically, path, data
                    )
                except OSError as error:
                    message = f"the lists of revocations cannot be kept: {error}"
                    self.problems.report("trust", "list-not-kept", message, "warning")
                else:
                    self.problems.clear("trust", "list-not-kept")

        task = asyncio.get_running_loop().create_task(write())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _list_number(self) -> int:
        return self.lists[0].listed.number if self.lists else 0

    def current_lists(self) -> dict[bytes, bytes]:
        """The lists in force, by digest."""
        return {one.digest: one.packed for one in self.lists}

    def knows_list(self, digest: bytes) -> bool:
        """Whether a list with this digest is in force here, or was made needless by others."""
        return digest in self._needless or any(one.digest == digest for one in self.lists)

    def attach(self, node: Node) -> None:
        """Let the lists spread by the connections of ``node``; again for each new node object."""
        from thicket.trust.exchange import Exchange

        self._exchange = Exchange(node, self.current_lists, self.knows_list, self._offered)
        self._recheck = node.recheck

    def detach(self) -> None:
        """The node object has ended."""
        self._exchange = self._recheck = None

    def _offered(self, data: bytes, origin: str) -> bool:
        try:
            return self.take_list(data, origin)
        except ListError as error:
            log.warning("a list of revocations from %s is not taken: %s", origin, error)
            return False

    def node_up(self, name: str) -> None:
        """The node ``name`` is connected."""
        if self._exchange is not None and self.fleet is not None:
            self._exchange.tell(name)

    def tell_all(self) -> None:
        """Tell every connected node which lists are in force here."""
        if self._exchange is not None and self.fleet is not None:
            self._exchange.tell_all()

    async def keep_telling(self) -> None:
        """Tell the others again and again, until cancelled: what got lost comes all the same."""
        while True:
            await asyncio.sleep(TELL)
            self.tell_all()


class _AgainError(Exception):
    """Somebody has asked to look again."""


def open_chip(identity: Identity) -> AsyncAtecc:
    """Open the chip that the identity was read from. Raises BusError."""
    from thicket.identity.aio import AsyncAtecc
    from thicket.identity.bus import LinuxBus
    from thicket.identity.chip.atecc import Atecc
    from thicket.identity.chip.errors import ChipAbsentError

    if identity.chip is None:
        raise ChipAbsentError("this node's identity is from no chip")
    return AsyncAtecc(Atecc(LinuxBus(identity.chip["bus"]), identity.chip["address"]))
