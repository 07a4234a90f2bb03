# SPDX-License-Identifier: Apache-2.0
"""One node's part in the updates of its fleet: an offer becomes an installation and a restart."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bundles_for_tests import update_key
from fleet_for_tests import CLOCK
from private_network import Network, in_private_network
from test_fleet_links import FLEET, Policy, a_node, credentials
from test_update_exchange import BASE, SMALL, described, folder_of

from thicket.base.errors import RequestError
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.schema import Settings
from thicket.device import boot_record
from thicket.device.boot_record import BootRecord, Slot
from thicket.device.boot_slots import Slots
from thicket.trust.revocations import InForce
from thicket.trust.standing import Standing
from thicket.trust.verify import Rules
from thicket.update import fleet, install, journal, rollout
from thicket.update.fleet import FleetUpdate
from thicket.update.journal import Phase
from thicket.update.judge import InstallError
from thicket.update.kept import Content
from thicket.update.offer import Offer, Order, Plan, Target
from thicket.update.patch import PatchError
from thicket.update.progress import node_name
from thicket.update.service import Update
from thicket.update.spread import Way

BUNDLE = b"a bundle"
RESTARTS: list[float] = []
"""When the node was restarted; each test is a process of its own."""


class Installer:
    """Stands in for RAUC and the card."""

    def __init__(self, slots: Slots) -> None:
        self.progress = SimpleNamespace(percent=50)
        self.installed: list[str] = []
        self.fault: InstallError | None = None
        self._slots = slots

    async def install(self, path: str, *, again: bool, digest: str) -> Content:
        assert again
        assert Path(path).read_bytes() == BUNDLE
        if self.fault is not None:
            raise self.fault
        self.installed.append(digest)
        self._slots.set_primary(Slot.B)
        return Content("0" * 64, "2.0", 1, digest)


class Host:
    """Stands in for a daemon whose node runs from slot A of a card."""

    def __init__(self, root: Path) -> None:
        for folder in ("proc", "dev/slots", "run/thicket", "data/update", "etc/rauc", "usr/lib"):
            (root / folder).mkdir(parents=True)
        (root / "dev/slots/card").write_bytes(bytes(512 * 64))
        (root / "etc/rauc/system.conf").write_text("[system]\ncompatible=thicket-rpi64\n")
        (root / "usr/lib/os-release").write_text("VERSION_ID=1.0\n")
        (root / "proc/cmdline").write_text(
            'thicket.slot=A dm-mod.create="root,,,ro,0 80 verity 1 a a 4096 4096 10 10 sha256 '
            f'{BASE} {"00" * 32} 1 panic_on_corruption"\n'
        )
        self.paths = Paths(str(root))
        self.settings = Settings()
        self.problems = Problems(lambda: None)
        self.installer = Installer(Slots(self.paths))
        self.backs = 0
        self.well = True
        self.standing: Standing | None = None

    @property
    def update(self) -> Update:
        async def terms() -> object:
            return object()

        async def back() -> str:
            self.backs += 1
            return "B"

        made = SimpleNamespace(
            installer=self.installer, followers=[], words_of_trial="", terms=terms, back=back
        )
        return cast(Update, made)

    def kernel(self) -> str:
        return ""

    def nodes(self) -> list[dict[str, Any]]:
        return []

    def ways(self) -> Mapping[str, Way]:
        return {}

    async def look_for_ways(self) -> None:
        pass

    def healthy(self) -> bool:
        return self.well


class Running:
    """A node's part that runs, and what is seen of it."""

    def __init__(self, host: Host, part: FleetUpdate) -> None:
        self.host = host
        self.part = part

    @property
    def journal(self) -> journal.Journal:
        return journal.load(self.host.paths.data)

    def state(self) -> str:
        rows = self.part.status()["nodes"]
        return str(rows[0]["state"]) if rows else ""

    async def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
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

    monkeypatch.setattr(fleet, "STEP", 0.01)
    monkeypatch.setattr(fleet, "IDLE", 0.05)
    monkeypatch.setattr(fleet, "GRACE", 0.01)
    monkeypatch.setattr(fleet, "reboot", reboot)
    monkeypatch.setattr(fleet, "rebuild", rebuild)
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
    target = Target("thicket-rpi64", "2.0", 1, len(BUNDLE), "ef" * 32)
    parts = {"canaries": 1, "well": 0, "waves": (100,), "failures": 0, "window": None, **plan}
    return Offer(FLEET.fleet.identifier, number, target, (described(SMALL, BASE),), Plan(**parts))


def order(offer: Offer, word: str, number: int = 5) -> bytes:
    made = Order(offer.fleet, number, offer.identifier, word)
    return update_key(FLEET).message(made.text())


@in_private_network
async def test_an_offer_is_installed_and_the_node_restarts(network: Network) -> None:
    with tempfile.TemporaryDirectory() as root:
        host = Host(Path(root) / "node")
        async with running(network, host) as one:
            assert one.part.table()["headline"] == "there is no offer"
            assert await one.part.offer(folder_of(Path(root) / "in", an_offer(), SMALL), 20.0)
            await one.until(lambda: RESTARTS, "it restarts")
            assert host.installer.installed == ["ef" * 32]
            assert one.journal.phase is Phase.ARMED
            assert one.state() == "restarting"
            assert len(RESTARTS) == 1
        # The slot is on trial, is kept, and the others hear of it.
        Path(host.paths.cmdline).write_text("thicket.slot=B\n")
        slots = Slots(host.paths)
        slots.begin()
        async with running(network, host) as one:
            await one.until(lambda: one.state() == "trial", "it is on trial")
            slots.change(lambda record: boot_record.commit(record, Slot.B))
            await one.until(lambda: one.journal.phase is Phase.DONE, "it is kept")
            left = [path.name for path in Path(host.paths.data, "update").glob("bundle-*")]
            assert left == [], "the bundle makes room"


@in_private_network
async def test_a_slot_that_was_left_is_told_and_not_tried_again(network: Network) -> None:
    with tempfile.TemporaryDirectory() as root:
        host = Host(Path(root) / "node")
        async with running(network, host) as one:
            await one.part.offer(folder_of(Path(root) / "in", an_offer(), SMALL), 20.0)
            await one.until(lambda: RESTARTS, "it restarts")
        slots = Slots(host.paths)

        def left(record: BootRecord) -> BootRecord:
            return boot_record.reject(record, Slot.B, boot_record.Why.PANIC)

        slots.change(left)
        async with running(network, host) as one:
            await one.until(lambda: one.state() == "failed", "it says that it failed")
            (row,) = one.part.status()["nodes"]
            assert row["why"].startswith("its kernel failed")
            assert len(host.installer.installed) == 1
            # Until somebody says so.
            one.part.order(order(an_offer(), "resume"))
            await one.until(lambda: len(host.installer.installed) == 2, "it is tried once more")


@in_private_network
async def test_what_cannot_be_installed_is_told(network: Network) -> None:
    with tempfile.TemporaryDirectory() as root:
        host = Host(Path(root) / "node")
        host.installer.fault = InstallError("rauc", "RAUC did not install it: no room")
        async with running(network, host) as one:
            await one.part.offer(folder_of(Path(root) / "in", an_offer(), SMALL), 20.0)
            await one.until(lambda: one.state() == "failed", "it says that it failed")
            (row,) = one.part.status()["nodes"]
            assert "it could not be installed: RAUC did not install it" in row["why"]
            assert not RESTARTS


@in_private_network
async def test_orders_of_a_signer_and_of_a_member(network: Network) -> None:
    with tempfile.TemporaryDirectory() as root:
        host = Host(Path(root) / "node")
        offer = an_offer(canaries=("n-000000000000",))
        async with running(network, host) as one:
            with pytest.raises(RequestError, match="there is no offer"):
                one.part.give("pause")
            await one.part.offer(folder_of(Path(root) / "in", offer, SMALL), 20.0)
            await one.until(lambda: one.state() == "waiting", "it waits for the canary")
            with pytest.raises(Exception, match="does not name"):
                one.part.give("pause")
            one.part.order(order(offer, "pause"))
            await one.until(lambda: one.state() == "paused", "it was told to wait")
            with pytest.raises(Exception, match="newer order"):
                one.part.order(order(offer, "resume", 4))
            one.part.order(order(offer, "abort", 6))
            await one.until(lambda: one.state() == "aborted", "it was told not to take it")
            assert not host.installer.installed


def test_names_of_nodes() -> None:
    assert fleet.name_of("thicket@fd12:3456:789a:1:0:5e8e:e8e3:1236") == "n-5e8ee8e31236"
    assert fleet.name_of("thicket@fd12:3456:789a:1:2:102:304:506") == "n-010203040506.mac"
    assert fleet.name_of("thicket@fd12::ffff:102:304:506") == ""
    assert fleet.name_of("erl@host") == ""
