# SPDX-License-Identifier: Apache-2.0
"""One node's part in the updates of its fleet: an offer becomes an installation and a restart."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest
from bundles_for_tests import update_key
from fleet_for_tests import CLOCK
from patience import PATIENCE
from private_network import Network, in_private_network
from test_fleet_links import FLEET, Policy, a_node, credentials
from test_update_exchange import BASE, SMALL, described, folder_of

from thicket.applications.app_file import AppError
from thicket.applications.installed import Current, Follow
from thicket.base.errors import CodedError, RequestError
from thicket.base.headway import Headway
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.schema import Settings
from thicket.daemon import app_taker
from thicket.daemon.app_taker import AppTaker
from thicket.daemon.installed_part import InstalledPart
from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Slot
from thicket.device.boot_slots import Slots
from thicket.trust.revocations import InForce
from thicket.trust.standing import Standing
from thicket.trust.update_signer import signer_name
from thicket.trust.verify import Rules
from thicket.update import fleet, image_taker, install, journal, kept, lane, rollout
from thicket.update.fleet import FleetUpdate
from thicket.update.journal import Phase
from thicket.update.judge import InstallError
from thicket.update.kept import Content, Kept
from thicket.update.lane import Lane
from thicket.update.offer import Offer, OfferError, Order, Plan, Target
from thicket.update.patch import PatchError
from thicket.update.progress import node_name
from thicket.update.reports import Reports
from thicket.update.service import Update
from thicket.update.spread import Way
from thicket.update.taker import TakerError

BUNDLE = b"a bundle"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()
NEW = "5a" * 32
"""Root hash of what is offered."""
RESTARTS: list[float] = []
"""When the node was restarted; each test is a process of its own."""


class Installer:
    """Stands in for RAUC and the card."""

    def __init__(self, slots: Slots) -> None:
        self.progress = Headway("writing", 50)
        self.installed: list[str] = []
        self.fault: CodedError | None = None
        self._slots = slots

    async def install(self, path: str, *, again: bool, digest: str) -> Content:
        assert again
        if self.fault is not None:
            raise self.fault
        assert Path(path).read_bytes() == BUNDLE
        self.installed.append(digest)
        self._slots.set_primary(Slot.B)
        return Content("0" * 64, "2.0", 1, digest, NEW)


class Host:
    """Stands in for a daemon whose node runs from slot A of a card."""

    def __init__(self, root: Path) -> None:
        for folder in ("proc", "dev/slots", "run/thicket", "data/update", "etc/rauc", "usr/lib"):
            (root / folder).mkdir(parents=True)
        (root / "dev/slots/card").write_bytes(bytes(512 * 64))
        (root / "etc/rauc/system.conf").write_text("[system]\ncompatible=thicket-rpi64\n")
        (root / "usr/lib/os-release").write_text("VERSION_ID=1.0\n")
        self.paths = Paths(str(root))
        self.started("A", BASE)
        self.settings = Settings()
        self.problems = Problems(lambda: None)
        self.installer = Installer(Slots(self.paths))
        self.backs = 0
        self.busy = False
        self.well = True
        self.standing: Standing | None = None
        self.apps = Apps()
        self.apps.folder = str(root)
        self.followers: list[Callable[[], None]] = []
        self.others: list[str] = []

    def application(self, name: str, me: str, folder: str) -> AppTaker:
        return AppTaker(cast(InstalledPart, self.apps), name, me, folder, self.healthy)

    def started(self, slot: str, root: str) -> None:
        """The firmware has started a slot with this root."""
        Path(self.paths.cmdline).write_text(
            f'thicket.slot={slot} dm-mod.create="root,,,ro,0 80 verity 1 a a 4096 4096 10 10 '
            f'sha256 {root} {"00" * 32} 1 panic_on_corruption"\n'
        )

    @property
    def update(self) -> Update:
        async def terms() -> object:
            return object()

        async def back() -> str:
            self.backs += 1
            if self.busy:
                raise RequestError("busy", "slot B is being written: wait for the end")
            return "B"

        made = SimpleNamespace(
            installer=self.installer,
            followers=self.followers,
            words_of_trial="",
            terms=terms,
            back=back,
        )
        return cast(Update, made)

    def kernel(self) -> str:
        return ""

    def nodes(self) -> list[dict[str, Any]]:
        return [{"name": name, "state": "up"} for name in self.others]

    def ways(self) -> Mapping[str, Way]:
        return {}

    async def look_for_ways(self) -> None:
        pass

    def healthy(self) -> bool:
        return self.well


class Apps:
    """Stands in for the applications of a node: what was installed is judged by the test."""

    def __init__(self) -> None:
        self.file: Current | None = None
        self.before = False
        self.fault: AppError | None = None
        self.folder = ""
        self.installs = 0
        self.judges = asyncio.Event()
        self.judged = asyncio.Event()
        self.judged.set()
        self.writes = asyncio.Event()
        self.written = asyncio.Event()
        self.written.set()
        self.looked = 0
        self.slow: asyncio.Event | None = None

    async def current(self, _name: str) -> Current | None:
        seen = self.file
        if self.slow is not None:
            self.looked += 1
            await self.slow.wait()
        return seen

    async def service(self) -> Apps:
        return self

    async def judge(self, path: str, name: str, follow: Follow) -> None:
        assert Path(path).read_bytes() == BUNDLE
        assert name == "readings"
        follow(Headway("checking", 40, "", "", 4 << 20, 10 << 20))
        self.judges.set()
        await asyncio.sleep(0.1)  # some steps meanwhile
        await self.judged.wait()
        if self.fault is not None:
            raise self.fault

    async def take(self, path: str, follow: Follow) -> None:
        self.installs += 1
        follow(Headway("writing", 30, "", "", 3 << 20, 10 << 20))
        self.writes.set()
        await self.written.wait()
        kept = Path(self.folder) / f"kept-{self.installs}"
        kept.write_bytes(Path(path).read_bytes())
        self.file = Current(str(kept), "1.2", True, "")

    async def back(self, _name: str) -> None:
        if not self.before:
            raise AppError("no-way-back", "there is no version before")
        self.file = Current("", "", False, "")

    async def remove(self, _name: str) -> None:
        self.file = None


class Running:
    """A node's part that runs, and what is seen of it."""

    def __init__(self, host: Host, part: FleetUpdate) -> None:
        self.host = host
        self.part = part

    @property
    def journal(self) -> journal.Journal:
        return journal.load(self.host.paths.data + fleet.FOLDER)

    def state(self, subject: str = "image/thicket-rpi64") -> str:
        rows = self.row(subject)
        return str(rows[0]["state"]) if rows else ""

    def row(self, subject: str = "image/thicket-rpi64") -> list[dict[str, Any]]:
        lane = self.part.lanes.get(subject)
        rows: list[dict[str, Any]] = lane.status()["nodes"] if lane is not None else []
        return rows

    async def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what}: {self.part.status()} {self.journal}"
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reboot() -> None:
        RESTARTS.append(time.monotonic())
        await asyncio.Event().wait()

    async def rebuild(patch: str, out: str, *_: object) -> None:
        if Path(patch).read_bytes() != SMALL:
            raise PatchError("bad-patch", "a damaged patch")
        Path(out).write_bytes(BUNDLE)

    monkeypatch.setattr(lane, "STEP", 0.01)
    monkeypatch.setattr(lane, "IDLE", 0.05)
    monkeypatch.setattr(lane, "GRACE", 0.01)
    monkeypatch.setattr(image_taker, "reboot", reboot)
    monkeypatch.setattr(image_taker, "rebuild", rebuild)
    monkeypatch.setattr(app_taker, "rebuild", rebuild)
    monkeypatch.setattr(install, "check", lambda *_a, **_k: "release")
    monkeypatch.setattr(rollout, "SETTLE", 0.0)


@asynccontextmanager
async def running(network: Network, host: Host) -> AsyncIterator[Running]:
    own = await credentials(FLEET.device(1)[0])
    standing = SimpleNamespace(
        fleet=FLEET.fleet,
        rules=lambda: Rules(CLOCK),
        lists=InForce(),
        credentials=own,
        clock=lambda: CLOCK,
    )
    host.standing = cast(Standing, standing)
    me = node_name(own.peer.source, own.peer.address.packed[-6:])
    async with a_node(network, Policy(own)) as (node, _):
        part = await fleet.make(host, node, me)
        task = asyncio.create_task(part.run())
        try:
            yield Running(host, part)
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.wait({task})


def an_offer(number: int = 1, **plan: Any) -> Offer:
    target = Target("thicket-rpi64", "2.0", 1, len(BUNDLE), DIGEST)
    parts = {"canaries": 1, "well": 0, "waves": (100,), "failures": 0, "window": None, **plan}
    return Offer(FLEET.fleet.identifier, number, target, (described(SMALL, BASE),), Plan(**parts))


def order(offer: Offer, word: str, number: int = 5) -> bytes:
    made = Order(offer.fleet, number, offer.identifier, word)
    return update_key(FLEET).message(made.text())


@in_private_network
async def test_an_offer_is_installed_and_the_node_restarts(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    async with running(network, host) as one:
        assert one.part.tables()[0]["headline"] == "there is no offer"
        assert await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: RESTARTS, "it restarts")
        assert host.installer.installed == [DIGEST]
        # As the guide and web servers have it.
        kept = {path.name for path in Path(host.paths.data, "update/offered").iterdir()}
        digest = described(SMALL, BASE).sha256
        assert kept == {"offer", f"{digest}.patch", f"{digest}.list"}
        assert one.journal.phase is Phase.ARMED
        assert one.state() == "restarting"
        assert len(RESTARTS) == 1
    # The slot is on trial, is kept, and the others hear of it.
    host.started("B", NEW)
    slots = Slots(host.paths)
    slots.begin()
    async with running(network, host) as one:
        await one.until(lambda: one.state() == "trial", "it is on trial")
        slots.change(lambda record: boot_record.commit(record, Slot.B))
        await one.until(lambda: one.journal.phase is Phase.DONE, "it is kept")
        assert one.journal.root == NEW
        folder = Path(host.paths.data, "update")
        await one.until(lambda: not list(folder.glob("bundle-*")), "the bundle makes room")


@in_private_network
async def test_a_slot_that_was_written_by_somebody_else_is_not_taken_for_the_update(
    network: Network,
) -> None:
    root = network.folder()
    host = Host(root / "node")
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: RESTARTS, "it restarts")
        assert one.journal.root == NEW
    host.started("B", "0c" * 32)
    slots = Slots(host.paths)
    slots.begin()
    async with running(network, host) as one:
        assert one.part.own.rollout.journal.phase is Phase.NONE
        await one.until(lambda: one.state() == "waiting", "its trial has to end")
        assert one.row()[0]["why"] == "1.0 is on trial here"
        slots.change(lambda record: boot_record.commit(record, Slot.B))
        await one.until(lambda: len(RESTARTS) == 2, "what is offered is installed once more")
        assert one.journal.slot == "A"


def by_hand(host: Host, slot: str = "B") -> Slots:
    """Somebody has installed what is offered into a slot, and started it."""
    slots = Slots(host.paths)
    if not slots.read().sequence:
        slots.begin()
    slots.set_primary(Slot[slot])
    content = Content("0" * 64, "2.0", 1, "", NEW)
    kept.save(host.paths, Kept({Slot[slot]: content}, {}))
    host.started(slot, NEW)
    slots = Slots(host.paths)
    slots.begin()
    return slots


@in_private_network
async def test_an_image_that_was_installed_by_hand_is_on_trial_until_it_is_kept(
    network: Network,
) -> None:
    root = network.folder()
    host = Host(root / "node")
    slots = by_hand(host)
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: one.state() == "trial", "it is on trial")
        assert (one.journal.phase, one.journal.slot, one.journal.root) == (Phase.TRIAL, "B", NEW)
    async with running(network, host) as one:  # the daemon starts anew
        await one.until(lambda: one.state() == "trial", "it still is")
        slots.change(lambda record: boot_record.commit(record, Slot.B))
        await one.until(lambda: one.state() == "done", "it is kept")
        assert host.installer.installed == []
    # An order to go back is followed when nothing is in its way any more.
    host.busy = True
    async with running(network, host) as one:
        await one.until(lambda: one.state() == "done", "it still is")
        one.part.order(order(an_offer(), "back"))
        await one.until(lambda: host.backs > 1, "it is tried again and again")
        assert one.state() == "aborted"
        assert RESTARTS == []
        host.busy = False
        await one.until(lambda: RESTARTS, "it goes back")


@in_private_network
async def test_an_image_on_trial_by_hand_that_goes_back_tells_why(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    by_hand(host)
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: one.state() == "trial", "it is on trial")
    host.started("A", BASE)
    Slots(host.paths).begin()
    async with running(network, host) as one:
        await one.until(lambda: one.state() == "failed", "it says so")
        assert one.row()[0]["why"] == "it was restarted or lost its power before it was well"
        assert host.installer.installed == []


@in_private_network
async def test_a_trial_that_is_called_off_by_hand_has_failed_at_once(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    slots = by_hand(host)
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: one.state() == "trial", "it is on trial")
        slots.set_primary(Slot.A)
        await one.until(lambda: one.state() == "failed", "it is not kept")
        assert one.row()[0]["why"] == "its trial was called off, by hand"
        one.part.order(order(an_offer(), "resume"))
        await one.until(lambda: one.state() == "waiting", "there is no slot to write to")
        assert "the node has to restart first" in one.row()[0]["why"]
        assert host.installer.installed == []


@in_private_network
async def test_what_is_to_be_tried_is_called_off_with_its_signer(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    slots = Slots(host.paths)
    slots.begin()

    async def rest() -> None:
        await asyncio.Event().wait()

    with mock.patch.object(Lane, "_restart", lambda _: rest()):
        async with running(network, host) as one:
            await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
            await one.until(lambda: one.journal.phase is Phase.ARMED, "it is to be tried")
        assert slots.read().trial is Slot.B
        async with running(network, host) as one:
            assert host.standing is not None
            host.standing.lists.names = frozenset({signer_name("release")})
            await one.until(lambda: one.journal.phase is Phase.NONE, "it is called off")
            assert slots.read().trial is Slot.NONE


@in_private_network
async def test_what_cannot_be_written_to_during_a_trial_is_no_failure(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    host.installer.fault = InstallError("trial", "slot A is on trial")
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: one.state() == "refused", "it says what is in the way")
        assert one.row()[0]["why"] == "slot A is on trial"
        assert one.journal.rejected == ()


@in_private_network
async def test_a_slot_that_was_left_is_told_and_not_tried_again(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: RESTARTS, "it restarts")
    slots = Slots(host.paths)

    def left(record: BootRecord) -> BootRecord:
        return boot_record.reject(record, Slot.B, boot_record.Why.PANIC)

    slots.change(left)
    async with running(network, host) as one:
        await one.until(lambda: one.state() == "failed", "it says that it failed")
        (row,) = one.row()
        assert row["why"].startswith("its kernel failed")
        assert len(host.installer.installed) == 1
        # Until somebody says so.
        one.part.order(order(an_offer(), "resume"))
        await one.until(lambda: len(host.installer.installed) == 2, "it is tried once more")


@in_private_network
async def test_what_cannot_be_installed_is_told(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    host.installer.fault = InstallError("rauc", "RAUC did not install it: no room")
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: one.state() == "failed", "it says that it failed")
        (row,) = one.row()
        assert "it could not be installed: RAUC did not install it" in row["why"]
        assert not RESTARTS


@in_private_network
async def test_a_bundle_that_the_card_damages_is_made_anew(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    offer = an_offer(canaries=("n-000000000000",))
    folder = Path(host.paths.data, "update")
    bundle = folder / f"bundle-{offer.bundle.sha256}.raucb"
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", offer, SMALL), 20.0)
        await one.until(lambda: one.state() == "waiting", "it waits for the canary")
        host.installer.fault = InstallError("rauc", "RAUC did not install it: damaged")
        bundle.write_bytes(b"damaged")
        taker = one.part.own._taker
        with pytest.raises(TakerError, match="made anew"):
            await taker.install(offer, one.journal, lambda _done: None)
        await one.until(
            lambda: bundle.exists() and bundle.read_bytes() == BUNDLE, "it is here again"
        )
        with pytest.raises(InstallError, match="RAUC did not"):
            await taker.install(offer, one.journal, lambda _done: None)
        # What a power cut has left of another one makes room; of this one it may be at work.
        other = folder / f"bundle-{'ab' * 32}.raucb.made.new"
        own = folder / f"{bundle.name}.made.new"
        other.write_bytes(b"half")
        own.write_bytes(b"half")
        await one.until(lambda: not other.exists(), "it is removed")
        assert own.exists()


@in_private_network
async def test_what_is_damaged_each_time_fails_in_the_end(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    host.installer.fault = TakerError("spoilt", "the card has damaged it")
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: one.state() == "failed", "it says that it failed")
        assert one.journal.tries == journal.MOST_TRIES - 1
        assert "the card has damaged it" in one.row()[0]["why"]


@in_private_network
async def test_what_has_no_room_or_memory_now_is_installed_later(network: Network) -> None:
    root = network.folder()
    with mock.patch.object(lane, "AGAIN", 0.2):
        host = Host(root / "node")
        host.installer.fault = InstallError("no-room", "/data is full: remove something from it")
        async with running(network, host) as one:
            await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
            await one.until(lambda: one.state() == "refused", "it says what is in the way")
            assert one.row()[0]["why"] == "/data is full: remove something from it"
            host.installer.fault = InstallError("no-memory", "there was not enough memory")
            await one.until(lambda: "memory" in one.row()[0]["why"], "and what is so by then")
            host.installer.fault = None
            await one.until(lambda: RESTARTS, "it is installed when there is room")
            assert one.journal.phase is Phase.ARMED
            assert one.journal.rejected == ()


@in_private_network
async def test_a_bundle_that_was_made_outlives_a_restart_of_the_daemon(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    offer = an_offer(canaries=("n-000000000000",))
    bundle = Path(host.paths.data, "update", f"bundle-{offer.bundle.sha256}.raucb")
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", offer, SMALL), 20.0)
        await one.until(lambda: one.state() == "waiting", "it waits for the canary")
        made = bundle.stat().st_mtime_ns
    async with running(network, host) as one:
        await one.until(lambda: one.state() == "waiting", "it waits again")
        assert bundle.stat().st_mtime_ns == made


@in_private_network
async def test_orders_of_a_signer_and_of_a_member(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    offer = an_offer(canaries=("n-000000000000",))
    async with running(network, host) as one:
        with pytest.raises(RequestError, match="nothing is offered that an order to pause could"):
            one.part.give("pause")
        with pytest.raises(RequestError, match="application 'lamp': no application is offered"):
            one.part.give("pause", "lamp")
        await one.part.offer(folder_of(root / "in", offer, SMALL), 20.0)
        await one.until(lambda: one.state() == "waiting", "it waits for the canary")
        with pytest.raises(Exception, match=r"config set update\.control=n-[0-9a-f]{12}` on the"):
            one.part.give("pause")
        # The table behind an order shows what came of it.
        lanes = one.part.order(order(offer, "pause"))
        assert lanes == [one.part.own]
        assert one.part.own.pending() == [one.row()[0]["node"]]
        await one.part.followed(lanes, 60.0)
        assert (one.state(), one.part.own.pending()) == ("paused", [])
        told = one.part.status()["rollout"]["mine"]
        assert (told["state"], told["percent"], told["words"]) == ("paused", 40, "told to wait")
        assert told["remedy"] == "`thicket update order resume` goes on"
        with pytest.raises(Exception, match="newer order"):
            one.part.order(order(offer, "resume", 4))
        one.part.order(order(offer, "abort", 6))
        await one.until(lambda: one.state() == "aborted", "it was told not to take it")
        assert not host.installer.installed


@in_private_network
async def test_who_does_not_follow_an_order_is_told(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    offer = an_offer(canaries=("n-000000000000",))
    silent = "n-5e8ee8e31236"
    host.others = ["thicket@fd12:3456:789a:1:0:5e8e:e8e3:1236"]
    async with running(network, host) as one:

        def mine() -> str:
            told = one.part.status()["rollout"]["mine"]
            return str(told["state"]) if told is not None else ""

        await one.part.offer(folder_of(root / "in", offer, SMALL), 20.0)
        await one.until(lambda: mine() == "waiting", "it waits for the canary")
        lanes = one.part.order(order(offer, "pause"))
        await one.part.followed(lanes, 0.5)
        await one.until(lambda: mine() == "paused", "this node follows")
        assert one.part.own.pending() == [silent]


@in_private_network
async def test_it_is_told_that_the_bundle_is_made(network: Network) -> None:
    going = asyncio.Event()

    async def rebuild(
        _patch: str, out: str, _target: Target, _base: object, progress: Callable[[int, int], None]
    ) -> None:
        progress(40, 100)
        await going.wait()
        Path(out).write_bytes(BUNDLE)

    mock.patch.object(image_taker, "rebuild", rebuild).start()  # a process of its own
    root = network.folder()
    host = Host(root / "node")
    offer = an_offer(canaries=("n-000000000000",))
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", offer, SMALL), 20.0)
        await one.until(lambda: one.state() == "making", "the others hear of it")
        told = one.part.status()["rollout"]["mine"]
        assert (told["state"], told["percent"]) == ("making", 34)
        (brief,) = one.part.brief()
        assert brief == {
            "subject": "image/thicket-rpi64",
            "version": "2.0",
            "state": "making",
            "percent": 34,
            "why": "",
        }
        # Who is told to wait meanwhile has what it has.
        one.part.order(order(offer, "pause"))
        await one.until(lambda: one.state() == "paused", "it was told to wait")
        assert one.row()[0]["percent"] == 30
        going.set()
        await one.until(lambda: one.row()[0]["percent"] == 40, "it has the bundle")
        assert one.part.own.rollout.making is None


@in_private_network
async def test_it_is_told_that_the_bundle_is_checked_and_written(network: Network) -> None:
    going = asyncio.Event()
    root = network.folder()
    host = Host(root / "node")
    install_at_once = host.installer.install

    async def install(path: str, *, again: bool, digest: str) -> Content:
        host.installer.progress = Headway("checking", 20)
        for follow in host.followers:
            follow()
        await going.wait()
        going.clear()
        host.installer.progress = Headway("writing", 60)
        for follow in host.followers:
            follow()
        await going.wait()
        return await install_at_once(path, again=again, digest=digest)

    mock.patch.object(host.installer, "install", install).start()
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "in", an_offer(), SMALL), 20.0)
        await one.until(lambda: one.state() == "checking", "it compares the bundle")
        assert (one.row()[0]["percent"], one.row()[0]["part"]) == (41, 20)
        assert one.row()[0]["node"] == one.part.own.rollout.own.node
        going.set()
        await one.until(lambda: one.state() == "installing", "it writes the slot")
        told = one.part.status()["rollout"]["mine"]
        assert told["words"] == "it writes slot B; what runs is not touched"
        assert told["percent"] == 60
        going.set()
        await one.until(lambda: RESTARTS, "it restarts")


@in_private_network
async def test_an_offer_whose_signer_is_revoked_later_does_not_count(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    offer = an_offer(canaries=("n-000000000000",))
    folder = folder_of(root / "in", offer, SMALL)
    async with running(network, host) as one:
        await one.part.offer(folder, 20.0)
        await one.until(lambda: one.state() == "waiting", "it waits for the canary")
        assert host.standing is not None
        host.standing.lists.names = frozenset({signer_name("release")})
        await one.until(
            lambda: one.part.own.status()["offer"] is None and one.part.own.carrier.newest is None,
            "there is no offer",
        )
        with pytest.raises(Exception, match="its signer is revoked"):
            await one.part.offer(folder, 20.0)


APP = "app/readings"


def of_app(number: int = 1, **plan: Any) -> Offer:
    digest = hashlib.sha256(BUNDLE).hexdigest()
    target = Target("", "1.2", 0, len(BUNDLE), digest, "readings")
    offer = an_offer(number, **plan)
    return offer._replace(bundle=target, patches=(described(SMALL, ""),))


@in_private_network
async def test_an_application_that_is_offered_is_tried_and_kept(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    async with running(network, host) as one:
        lane = await one.part.offer(folder_of(root / "in", of_app(), SMALL), 20.0)
        assert lane is not None
        assert lane.subject == APP
        await one.until(lambda: one.state(APP) == "trial", "it is tried")
        assert not RESTARTS
        assert one.state() == "", "the image is not offered"
        (other,) = one.part.status()["others"]
        assert other["rollout"]["offer"]["application"] == "readings"
        assert one.part.tables()[1]["headline"].startswith("readings 1.2: 0 of 1 nodes")
        assert host.apps.file is not None
        host.apps.file = host.apps.file._replace(trial=False)
        await one.until(lambda: one.state(APP) == "done", "it was well, and is kept")
        folder = Path(host.paths.data) / "update/others/app-readings"
        assert (folder / "offered/offer").exists()
        assert not list(folder.glob("*.app")), "the file makes room"
    # It is known after a restart, and not installed again.
    async with running(network, host) as one:
        await one.until(lambda: one.state(APP) == "done", "it still is")
        # Somebody removes it: that is told, and nobody installs it again.
        host.apps.file = None
        one.part.lanes[APP].wake()
        await one.until(lambda: one.state(APP) == "failed", "it says so")
        assert one.row(APP)[0]["why"] == "it was removed by hand"
        assert host.apps.installs == 1
        # Until somebody says so.
        one.part.order(order(of_app(), "resume"))
        await one.until(lambda: host.apps.installs == 2, "it is tried once more")
        with pytest.raises(Exception, match="does not name"):
            one.part.give("back", "readings")
        with pytest.raises(RequestError, match="application 'x': offered are readings"):
            one.part.give("back", "x")


@in_private_network
async def test_an_application_tells_bytes_and_percent_as_an_image_does(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    apps = host.apps
    async with running(network, host) as one:

        def told() -> tuple[str, str, str]:
            rollout = one.part.status()["others"][0]["rollout"]
            (row,) = one.part.tables()[1]["rows"]
            return rollout["mine"]["words"], row[2], row[3]

        apps.judged.clear()
        apps.written.clear()
        await one.part.offer(folder_of(root / "in", of_app(), SMALL), 20.0)
        await asyncio.wait_for(apps.judges.wait(), PATIENCE)
        await one.until(lambda: told()[1] == "checking 40 %", "the others are told")
        words, _, bar = told()
        assert words.startswith(
            "it compares the whole file with what was signed: 4.0 MiB of 10.0 MiB"
        )
        assert bar == "[####      ]  40 %"
        apps.judged.set()
        await asyncio.wait_for(apps.writes.wait(), PATIENCE)
        await one.until(lambda: told()[1] == "installing 30 %", "the others are told")
        words, _, bar = told()
        assert words.startswith("it puts the application into place: 3.0 MiB of 10.0 MiB")
        assert bar == "[#####     ]  52 %"
        apps.written.set()
        await one.until(lambda: one.part.lanes[APP].rollout.journal.phase is Phase.TRIAL, "trial")


@in_private_network
async def test_what_was_seen_before_an_installation_ended_does_not_count(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    apps = host.apps
    async with running(network, host) as one:
        apps.written.clear()
        await one.part.offer(folder_of(root / "in", of_app(), SMALL), 20.0)
        await asyncio.wait_for(apps.writes.wait(), PATIENCE)
        apps.slow = asyncio.Event()
        await one.until(lambda: apps.looked, "it looks while the file is written")
        apps.written.set()
        mine = one.part.lanes[APP]
        await one.until(lambda: mine.rollout.journal.phase is Phase.TRIAL, "it is on trial")
        apps.slow.set()
        looked = apps.looked
        await one.until(lambda: apps.looked > looked + 1, "it has looked again")
        assert mine.rollout.journal.phase is Phase.TRIAL
        assert apps.installs == 1


@in_private_network
async def test_an_application_that_fails_or_is_refused_or_taken_back(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    async with running(network, host) as one:
        host.apps.fault = AppError("python", "it is for Python 3.9")
        await one.part.offer(folder_of(root / "in", of_app(), SMALL), 20.0)
        await one.until(lambda: one.state(APP) == "refused", "it is not for this node")
        assert host.apps.installs == 0, "nobody begins with what is not judged"
        assert "it is for Python 3.9" in one.row(APP)[0]["why"]
        host.apps.fault = None
        await one.part.offer(folder_of(root / "two", of_app(2), SMALL), 20.0)
        await one.until(lambda: one.state(APP) == "trial", "it is tried")
        host.apps.file = Current("", "", False, "1.2: KeyError: 'port'")
        await one.until(lambda: one.state(APP) == "failed", "it was left")
        assert one.row(APP)[0]["why"] == "1.2: KeyError: 'port'"
        # What was made of the patch is gone, and made anew when the same offer is resumed.
        one.part.order(order(of_app(2), "resume", 4))
        await one.until(lambda: one.state(APP) == "trial", "it is tried again")
        host.apps.file = Current("", "", False, "1.2: KeyError: 'port'")
        await one.until(lambda: one.state(APP) == "failed", "it was left again")
        # The same file is not tried again before somebody says so.
        await one.part.offer(folder_of(root / "three", of_app(3), SMALL), 20.0)
        await one.until(
            lambda: (
                one.part.lanes[APP].status()["offer"]["number"] == 3 and one.state(APP) == "failed"
            ),
            "it was left before",
        )
        one.part.order(order(of_app(3), "resume"))
        await one.until(lambda: one.state(APP) == "trial", "it is tried again")
        host.apps.file = host.apps.file._replace(trial=False)
        await one.until(lambda: one.state(APP) == "done", "it is kept")
        # Back, where there is no version before: it is removed.
        one.part.order(order(of_app(3), "back", 6))
        await one.until(lambda: one.state(APP) == "aborted", "it went back")
        assert host.apps.file is None
        assert not RESTARTS


@in_private_network
async def test_an_offer_that_is_older_than_what_runs_is_refused(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    release = Path(host.paths.root, "usr/lib/os-release")
    release.write_text("VERSION_ID=1.0\nTHICKET_DATE=2000\n")
    lamp = root / "lamp.app"
    lamp.write_bytes(b"another version")
    host.apps.file = Current(str(lamp), "1.3", False, "", 2000)
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "a", an_offer(1999), SMALL), 20.0)
        await one.part.offer(folder_of(root / "b", of_app(1999), SMALL), 20.0)
        for subject, version in (("image/thicket-rpi64", "1.0"), (APP, "1.3")):
            await one.until(lambda s=subject: one.state(s) == "refused", "it is older")  # type: ignore[misc]
            assert f"before the version that runs here ({version})" in one.row(subject)[0]["why"]
        assert (host.apps.installs, RESTARTS) == (0, [])
        await one.part.offer(folder_of(root / "c", of_app(2001), SMALL), 20.0)
        await one.until(lambda: one.state(APP) == "trial", "it was offered anew")
        await one.part.offer(folder_of(root / "d", an_offer(2001), SMALL), 20.0)
        await one.until(lambda: RESTARTS, "and so was the image")


@in_private_network
async def test_an_order_about_whichever_is_in_force_holds_for_all(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    waiting: dict[str, Any] = {"canaries": ("n-000000000000",)}
    async with running(network, host) as one:
        await one.part.offer(folder_of(root / "a", of_app(**waiting), SMALL), 20.0)
        await one.part.offer(folder_of(root / "b", an_offer(**waiting), SMALL), 20.0)
        await one.until(lambda: one.state() == one.state(APP) == "waiting", "both wait")
        one.part.order(order(of_app(**waiting), "pause"))
        await one.until(lambda: one.state(APP) == "paused", "one of them")
        assert one.state() == "waiting"
        every = Order(FLEET.fleet.identifier, 9, b"", "abort")
        one.part.order(update_key(FLEET).message(every.text()))
        await one.until(lambda: one.state() == one.state(APP) == "aborted", "all of them")
        with pytest.raises(OfferError, match="newer order"):
            one.part.order(update_key(FLEET).message(every.text()))


@in_private_network
async def test_how_many_subjects_there_may_be(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    other = an_offer()
    other = other._replace(bundle=other.bundle._replace(compatible="thicket-x86_64"))
    async with running(network, host) as one:
        packed = update_key(FLEET).message(other.text())
        assert await one.part.take(packed, "a node")
        assert not await one.part.take(packed, "a node"), "it is known"
        subject = "image/thicket-x86_64"
        await one.until(lambda: one.state(subject) == "refused", "it is for others")
        assert (
            "it is for thicket-x86_64, and this node is thicket-rpi64"
            in (one.row(subject)[0]["why"])
        )
        with pytest.raises(OfferError, match="where none belongs"):
            await one.part._take_offer(APP, packed, "a liar")
        with pytest.raises(OfferError, match="where none belongs"):
            await one.part._take_offer("image/thicket-rpi64", packed, "a liar")
        for number in range(fleet.MOST - 2):
            await one.part.take(named(f"a{number}", 10 + number), "a node")
        folder = Path(host.paths.data) / "update/others"
        assert len(list(folder.iterdir())) == fleet.MOST - 1
        # The newest ones stay, on every node.
        with pytest.raises(OfferError, match="newer offers about 32 images and applications"):
            await one.part.take(named("old", 1), "a person")
        assert not await one.part._take_offer("app/old", named("old", 1), "a node")
        assert await one.part._take_offer("app/new", named("new", 99), "a node")
        assert subject not in one.part.lanes
        assert subject not in one.part.exchange.followers
        assert not (folder / "image-thicket-x86_64").exists()
        assert await one.part._take_offer("app/newer", named("newer", 98), "a node")
        assert "app/a0" not in one.part.lanes
        assert len(one.part.lanes) == fleet.MOST
        assert len(list(folder.iterdir())) == fleet.MOST - 1
    # What is on the card goes on after a restart, and what does not belong there does not.
    (folder / "app-UPPER").mkdir()
    async with running(network, host) as one:
        assert len(one.part.lanes) == fleet.MOST
        assert "app/UPPER" not in one.part.lanes


@in_private_network
async def test_a_lane_that_fails_disturbs_no_other_and_goes_on(network: Network) -> None:
    root = network.folder()
    with mock.patch.object(fleet, "AGAIN", 0.1):
        host = Host(root / "node")
        broken = True
        current = host.apps.current

        async def look(name: str) -> Current | None:
            if broken:
                raise AppError("hangs", "the card has not answered")
            return await current(name)

        with mock.patch.object(host.apps, "current", look):
            async with running(network, host) as one:
                await one.part.offer(folder_of(root / "a", of_app(), SMALL), 20.0)
                await one.part.offer(folder_of(root / "b", an_offer(), SMALL), 20.0)
                await one.until(lambda: RESTARTS, "the image is updated all the same")
                assert one.state(APP) == ""
                broken = False
                await one.until(lambda: one.state(APP) == "trial", "it goes on")


@in_private_network
async def test_what_was_known_is_taken_in_while_others_go_on(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    kept = Path(host.paths.data + fleet.FOLDER + lane.REPORTS)
    kept.write_bytes(b"what was known")
    steps, enough = 0, False

    def recall(_reports: Reports, data: bytes, _now: float) -> Iterator[None]:
        nonlocal steps
        assert data == b"what was known"
        while not enough:
            steps += 1
            yield

    with mock.patch.object(Reports, "recall", recall):
        async with running(network, host) as one:
            await one.until(lambda: steps > 100, "it goes on, and so does this")
        assert kept.read_bytes() == b"what was known", "it has not ended, and is not lost"
        async with running(network, host) as one:
            await one.part.offer(folder_of(root / "a", an_offer(), SMALL), 20.0)
            await one.until(lambda: steps > 300, "it goes on")
            followers = one.part.exchange.followers["image/thicket-rpi64"]
            assert (followers.recorder, one.state(), RESTARTS) == (None, "", [])
            enough = True
            await one.until(lambda: RESTARTS, "then the lane begins")
            followers = one.part.exchange.followers["image/thicket-rpi64"]
            assert followers.recorder is one.part.own


@in_private_network
async def test_a_card_that_takes_no_new_subject(network: Network) -> None:
    root = network.folder()
    host = Host(root / "node")
    others = Path(host.paths.data, "update/others")
    async with running(network, host) as one:
        others.rmdir()
        others.write_text("no folder")
        with pytest.raises(RequestError, match="/data does not take it: Not a directory"):
            await one.part.take(named("lamp", 1), "a person")
        one.part.exchange._on_offer("a", "app/lamp", named("lamp", 1))
        await one.until(host.problems.all, "it is told")
        (problem,) = host.problems.all()
        assert problem["code"] == "offer-refused"
        others.unlink()
        assert await one.part.take(named("lamp", 1), "a person")


@pytest.mark.parametrize(
    ("journal_of", "digest", "trial", "phase", "words"),
    [
        (Phase.BEGUN, "ab", True, Phase.TRIAL, ""),
        (Phase.BEGUN, "", False, Phase.NONE, ""),
        (Phase.TRIAL, "ab", True, None, ""),
        (Phase.TRIAL, "ab", False, Phase.DONE, ""),
        (Phase.TRIAL, "cd", False, Phase.FAILED, "another version was put in its place by hand"),
        (Phase.DONE, "ab", False, None, ""),
        (Phase.DONE, "ab", True, None, ""),
        (Phase.FAILED, "ab", True, None, ""),
        (Phase.DONE, "", False, Phase.FAILED, "it was removed by hand"),
        (Phase.LEAVING, "ab", False, None, ""),
        (Phase.LEAVING, "", False, Phase.LEFT, "told so"),
        (Phase.FAILED, "", False, None, ""),
        (Phase.NONE, "ab", False, None, ""),
    ],
)
def test_how_the_journal_of_an_application_goes_on(
    journal_of: Phase, digest: str, trial: bool, phase: Phase | None, words: str
) -> None:
    why = "told so" if journal_of is Phase.LEAVING else ""
    before = journal.Journal(bundle="ab", phase=journal_of, why=why)
    current = Current("/x" if digest else "", "1", trial, "")
    after = app_taker.went_on(before, digest, current)
    assert (after and after.phase, after.why if after else "") == (phase, words)


async def test_a_file_that_cannot_be_read_is_no_news(tmp_path: Path) -> None:
    apps = Apps()
    installed = cast(InstalledPart, apps)
    taker = AppTaker(installed, "readings", "me", str(tmp_path), lambda: True)
    done = journal.Journal(bundle=DIGEST, phase=Phase.DONE, slot="A")
    apps.file = Current(str(tmp_path / "gone"), "1.2", False, "")
    look = await taker.look(None, done)
    assert (look.node.bundle, look.journal) == ("", None)
    apps.file = None
    after = (await taker.look(None, done)).journal
    assert after is not None
    assert after.why == "it was removed by hand"


def test_an_application_whose_installation_is_cut_off_again_and_again() -> None:
    going = journal.Journal(bundle="ab", phase=Phase.BEGUN)
    for tries in range(1, journal.MOST_TRIES):
        after = app_taker.went_on(going, "", None)
        assert after is not None
        assert (after.phase, after.tries) == (Phase.NONE, tries)
        going = after.enter(Phase.BEGUN)
    after = app_taker.went_on(going, "", None)
    assert after is not None
    assert after.phase is Phase.FAILED
    assert after.rejection("ab", 0) == "it was cut off 3 times while it was installed"


def named(application: str, number: int) -> bytes:
    offer = of_app(number)
    offer = offer._replace(bundle=offer.bundle._replace(application=application))
    return update_key(FLEET).message(offer.text())


def test_names_of_nodes() -> None:
    assert fleet.name_in("thicket@fd12:3456:789a:1:0:5e8e:e8e3:1236") == "n-5e8ee8e31236"
    assert fleet.name_in("thicket@fd12:3456:789a:1:2:102:304:506") == "n-010203040506.mac"
    assert fleet.name_in("thicket@fd12::ffff:102:304:506") == ""
    assert fleet.name_in("erl@host") == ""
