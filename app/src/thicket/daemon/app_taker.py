# SPDX-License-Identifier: Apache-2.0
"""An update of an application that travels through the fleet: its file is installed as by hand.

Nothing restarts. The application is on trial at once, and :mod:`thicket.applications.installed`
judges it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from functools import partial
from hashlib import file_digest
from typing import TYPE_CHECKING

from thicket.applications.app_file import ENDING, AppError
from thicket.base import threads
from thicket.base.errors import ThicketError
from thicket.base.files import opened, remove
from thicket.update.journal import MOST_TRIES, Journal, Phase
from thicket.update.progress import Stage, Work
from thicket.update.rebuild import rebuild
from thicket.update.rollout import Node, Trial
from thicket.update.taker import MADE, Look, installing, judge_fault, making, sweep

if TYPE_CHECKING:
    from thicket.applications.installed import Current
    from thicket.daemon.installed_part import InstalledPart
    from thicket.update.offer import Offer, Patch

HANGS = 900.0


class AppTaker:
    """See :class:`thicket.update.taker.Taker`.

    :param name: of the application.
    :param me: this node's name in records.
    :param folder: where files are made.
    :param healthy: whether everything works that worked before.
    """

    def __init__(
        self,
        installed: InstalledPart,
        name: str,
        me: str,
        folder: str,
        healthy: Callable[[], bool],
    ) -> None:
        self.healthy = healthy
        self._installed = installed
        self._name = name
        self._me = me
        self._folder = folder
        self._threads = threads.InTurn("app-update")
        self._digest: tuple[str, str] = "", ""

    def base(self) -> str:
        return ""

    async def look(self, offer: Offer | None, journal: Journal) -> Look:
        current = await self._installed.current(self._name)

        def work() -> tuple[str, bool]:
            self._sweep(offer, journal)
            digest = self._digest_of(current.path) if current is not None else ""
            return digest, os.path.exists(self._file(offer))

        digest, here = await self._do(work)
        node = Node(self._me, "", "")
        if current is not None:
            trial = Trial.GOES_ON if current.trial else Trial.NONE
            node = Node(self._me, "", current.version, digest, made=current.number, trial=trial)
        if current is not None and current.path and not digest:
            return Look(node, "A", here)  # it cannot be read, or was replaced just now
        return Look(node, "A", here, went_on(journal, digest, current))

    async def take(
        self, path: str, offer: Offer, patch: Patch, follow: Callable[[Work], None]
    ) -> None:
        target = self._file(offer)
        made = target + MADE
        follow(Work(Stage.MAKING))
        await rebuild(path, made, offer.bundle, None, partial(making, follow))
        try:
            service = await self._installed.service()
            await service.judge(made, self._name, partial(installing, follow))
        except ThicketError:
            await self._do(lambda: remove(made))
            raise
        await self._do(lambda: os.replace(made, target))

    async def install(
        self, offer: Offer, journal: Journal, follow: Callable[[Work], None]
    ) -> Journal:
        try:
            await self._installed.take(self._file(offer), partial(installing, follow))
        except ThicketError as error:
            judged = partial(judge_fault, self._file(offer), offer.bundle.sha256, error)
            raise await self._do(judged) from None
        return journal.tried()

    async def go_back(self, journal: Journal) -> Journal | None:
        service = await self._installed.service()
        try:
            await service.back(self._name)
        except AppError as error:
            if error.code != "no-way-back":
                raise
            await service.remove(self._name)  # there was none before
        return journal.kept()

    async def call_off(self, journal: Journal) -> Journal:
        return journal.enter(Phase.NONE)  # nothing waits for a restart

    async def restart(self) -> None:
        await asyncio.sleep(0)  # nothing asks for it

    def _sweep(self, offer: Offer | None, journal: Journal) -> None:
        """Remove files that are not needed any more; patches stay, for the others."""
        over = journal.phase in (Phase.TRIAL, Phase.DONE)
        needed = offer is not None and not (over and journal.offer == offer.identifier)
        wanted = os.path.basename(self._file(offer)) if needed else ""
        sweep(self._folder, "", ENDING, wanted)

    def _file(self, offer: Offer | None) -> str:
        return f"{self._folder}/{offer.bundle.sha256 if offer is not None else ''}{ENDING}"

    def _digest_of(self, path: str) -> str:
        """Return the SHA-256 of a file, which no other gets the name of."""
        if path != self._digest[0]:
            try:
                with opened(path) as file:
                    self._digest = path, file_digest(file, "sha256").hexdigest()
            except OSError:
                return ""
        return self._digest[1]

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        return await self._threads.do(work, HANGS)


def went_on(journal: Journal, digest: str, current: Current | None) -> Journal | None:
    """Return the journal after what is seen; None where it stays as it is.

    :param digest: SHA-256 of the file that is installed, in hexadecimal digits; empty for none.
    """
    phase, here = journal.phase, digest == journal.bundle
    if phase in (Phase.BEGUN, Phase.ARMED):  # the daemon ended meanwhile
        if here:
            return journal.tried()
        if journal.tries + 1 >= MOST_TRIES:
            return journal.failed(f"it was cut off {MOST_TRIES} times while it was installed")
        return journal.enter(Phase.NONE)._replace(tries=journal.tries + 1)
    if phase is Phase.LEAVING and not here:
        return journal.kept()
    if phase in (Phase.TRIAL, Phase.DONE) and not here:
        return journal.failed((current.left if current is not None else "") or _by_hand(digest))
    if phase is Phase.TRIAL and (current is None or not current.trial):
        return journal.kept()
    return None


def _by_hand(digest: str) -> str:
    return f"{'another version was put in its place' if digest else 'it was removed'} by hand"
