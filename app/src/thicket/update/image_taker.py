# SPDX-License-Identifier: Apache-2.0
"""An update of the image: a bundle goes into the other slot, which the node starts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from thicket.base import threads
from thicket.base.errors import RequestError, ThicketError
from thicket.base.files import remove
from thicket.base.paths import Paths
from thicket.device.boot_record import BootRecord, Run, Slot, called_off
from thicket.device.boot_slots import Slots
from thicket.update import image, install, kept, terms
from thicket.update.journal import CALLED_OFF, Journal, Phase
from thicket.update.offer import Offer, Patch
from thicket.update.progress import Stage, Work
from thicket.update.rebuild import rebuild, running
from thicket.update.rollout import Node, Trial
from thicket.update.taker import MADE, Look, installing, judge_fault, making, sweep

if TYPE_CHECKING:
    from thicket.update.service import Update

BUNDLE = "/bundle-{}.raucb"
HANGS = 60.0
#: Seconds within which a bundle of any size is read.
LONG = 900.0

_RUNS = frozenset((Phase.TRIAL, Phase.DONE))


class Host(Protocol):
    """What the image's updates need of their daemon."""

    @property
    def paths(self) -> Paths:
        """Where the node keeps its files."""

    @property
    def update(self) -> Update | None:
        """The part that knows the slots; None until it has begun."""

    def healthy(self) -> bool:
        """Whether everything works that worked before."""


class ImageTaker:
    """See :class:`.taker.Taker`.

    :param me: this node's name in records.
    :param folder: where bundles are made.
    """

    def __init__(self, host: Host, me: str, folder: str, disk: threads.InTurn) -> None:
        self._host = host
        self._me = me
        self._folder = folder
        self._slots = Slots(host.paths)
        self._disk = disk
        self._image = terms.compatible(host.paths), image.version(host.paths)
        self._made = image.made(host.paths)

    def base(self) -> str:
        """The root hash of the running slot; empty if it is not known."""
        found = running(self._host.paths)
        return "" if found is None else found.hash

    async def look(self, offer: Offer | None, journal: Journal) -> Look:
        def work() -> Look:
            memory, record = kept.load(self._host.paths), self._slots.read()
            self._sweep(offer, journal)
            content = memory.slots.get(self._slots.running)
            compatible, version = self._image
            file = ""
            if content is not None:
                version, file = content.version, content.file
            elif journal.slot == self._slots.running.name and journal.phase in _RUNS:
                version, file = journal.version, journal.bundle  # the journal remembers as well
            slot = self._slots.running
            trial = trial_of(record, slot)
            node = Node(self._me, compatible, version, file, record.epoch, self._made, trial)
            here = offer is not None and os.path.exists(self._bundle(offer))
            return Look(node, slot.name, here, went_on(journal, record, slot), self.base())

        return await self._do(work)

    async def take(
        self, path: str, offer: Offer, patch: Patch, follow: Callable[[Work], None]
    ) -> None:
        target = self._bundle(offer)
        made = target + MADE
        base = running(self._host.paths) if patch.base else None
        follow(Work(Stage.MAKING))
        await rebuild(path, made, offer.bundle, base, partial(making, follow))
        try:
            found = await self._update().terms()
            await self._do(lambda: install.check(made, found, again=True))
        except ThicketError:
            await self._do(lambda: remove(made))
            raise
        await self._do(lambda: os.replace(made, target))

    async def install(
        self, offer: Offer, journal: Journal, follow: Callable[[Work], None]
    ) -> Journal:
        update = self._update()
        installer = update.installer

        def tell() -> None:
            installing(follow, installer.progress)

        update.followers.append(tell)
        try:
            digest = offer.bundle.sha256
            content = await installer.install(self._bundle(offer), again=True, digest=digest)
        except ThicketError as error:
            judged = partial(judge_fault, self._bundle(offer), digest, error)
            raise await self._disk.do(judged, LONG) from None
        finally:
            update.followers.remove(tell)
        return journal.armed(content.root)

    async def go_back(self, journal: Journal) -> Journal | None:
        await self._update().back()
        return None

    async def call_off(self, journal: Journal) -> Journal:
        await self._do(lambda: self._slots.set_primary(self._slots.running))
        return journal.enter(Phase.NONE)

    async def restart(self) -> None:
        await reboot()

    def healthy(self) -> bool:
        return self._host.healthy()

    def _update(self) -> Update:
        update = self._host.update
        if update is None:
            raise RequestError("starting", "the node is still starting")
        return update

    def _sweep(self, offer: Offer | None, journal: Journal) -> None:
        """Remove bundles that are not needed any more; patches stay, for the others."""
        wanted = ""
        if offer is not None and (journal.phase, journal.offer) != (Phase.DONE, offer.identifier):
            wanted = os.path.basename(self._bundle(offer))
        begin, _, end = os.path.basename(BUNDLE).partition("{}")
        sweep(self._folder, begin, end, wanted)

    def _bundle(self, offer: Offer) -> str:
        return self._folder + BUNDLE.format(offer.bundle.sha256)

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        return await self._disk.do(work, HANGS)


def trial_of(record: BootRecord, running: Slot) -> Trial:
    """Return whether the slot that runs is on trial."""
    if record.trial is running:
        return Trial.GOES_ON
    if not called_off(record, running):
        return Trial.NONE
    # One that was not well in time is being restarted; why is told by the slot before.
    return Trial.GOES_ON if record.run is Run.LATE else Trial.CALLED_OFF


def went_on(journal: Journal, record: BootRecord, running: Slot) -> Journal | None:
    """Return the journal after what is seen; None where it stays as it is."""
    trial = trial_of(record, running)
    if journal.phase not in (Phase.TRIAL, Phase.LEAVING) or journal.slot != running.name:
        return None
    if trial is Trial.NONE:
        return journal.kept()
    if trial is Trial.CALLED_OFF and journal.phase is Phase.TRIAL:
        return journal.failed(CALLED_OFF)
    return None


async def reboot() -> None:
    """Restart the node in order.

    :raises OSError: init cannot be told.
    """
    child = await asyncio.create_subprocess_exec("/sbin/reboot")
    await child.wait()
