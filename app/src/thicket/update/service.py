# SPDX-License-Identifier: Apache-2.0
"""Whether the slot that runs is well, and what became of the other one.

A slot on trial has to do what the node could do before it, for ``[update] health_time`` without a
break; it is kept then. Any other start is well when the daemon has run for that time. What the node
can do is kept on ``/data`` while it is well, and so is what a slot on trial cannot do: the slot
before it tells that when the node has gone back.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import TYPE_CHECKING, Any

from thicket.base import threads
from thicket.base.errors import RequestError, ThicketError
from thicket.base.files import make_folder, read_kept, remove, write_atomically
from thicket.base.pace import wait
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.schema import Settings
from thicket.device import data_format
from thicket.device.boot_record import (
    TRIED,
    WORDS,
    WORDS_CALLED_OFF,
    BootRecord,
    Slot,
    State,
    Why,
    called_off,
    why_left,
)
from thicket.device.boot_slots import MOST_WORDS, PANIC, TRIAL, Slots
from thicket.update import epoch as epochs
from thicket.update import health, image, kept
from thicket.update.health import Abilities
from thicket.update.kept import Kept

if TYPE_CHECKING:
    from thicket.update.install import Installer
    from thicket.update.judge import Terms

log = getLogger(__name__)

#: Seconds between two looks at a slot that is not well yet.
LOOK = 5.0
#: Seconds between two times that what the node can do is kept.
KEEP = 3600.0
#: A card that has not answered for this many seconds is reported.
HANGS = 60.0
#: Seconds until what failed is tried again.
AGAIN = 60.0

#: In RAUC's system.conf as well.
KEYRING = "/keyring.pem"
#: Not in the state that has a format: both slots read them.
ABLE = "/update/able.json"


class Update:
    """The part ``update`` of the daemon, on a node that runs from a slot of a card.

    :param document: returns the status document.
    :param settings: returns those in force.
    :param chip: lets work use the node's chip; None where its identity is from no chip.
    :param changed: called when the status has changed.
    :ivar status: the slots for the status document: ``name``, ``state`` (``untried``, ``good``,
        ``bad``, ``incomplete``), ``runs``, ``trial``, ``why`` in words where it is bad, and the
        ``version`` of the bundle that it was written with; None where that is not known.
    """

    def __init__(
        self,
        paths: Paths,
        problems: Problems,
        document: Callable[[], dict[str, Any]],
        settings: Callable[[], Settings],
        *,
        chip: Callable[[], epochs.UseChip | None],
        changed: Callable[[], None],
    ) -> None:
        self.paths = paths
        self.problems = problems
        self.document = document
        self.settings = settings
        self.status: list[dict[str, Any]] = []
        self._chip = chip
        self._changed = changed
        #: Called when an installation has got on.
        self.followers: list[Callable[[], None]] = []
        #: What a slot on trial, which was left, noted last of what did not work; or the last words
        #: of its kernel.
        self.words_of_trial = ""
        self._able = Abilities()
        self._installer: Installer | None = None
        self._threads = threads.InTurn("update")
        #: Something was done to the slots that the status does not tell yet.
        self._news = asyncio.Event()
        #: What an installation does: RAUC marks the slot in one of its steps.
        self._step = "none", ""

    # -- requests

    @property
    def installer(self) -> Installer:
        """What installs bundles; loaded when the first one comes."""
        if self._installer is None:
            from thicket.update.install import Installer

            self._installer = Installer(self.paths, self.terms, self._installing)
        return self._installer

    def _installing(self) -> None:
        assert self._installer is not None
        progress = self._installer.progress
        before, self._step = self._step, (progress.state, progress.words)
        if self._step != before:
            self._news.set()
        for follow in self.followers:
            follow()
        self._changed()

    def installation(self) -> dict[str, Any] | None:
        """Return how the last installation goes or went, None when there was none."""
        return self._installer.progress._asdict() if self._installer is not None else None

    async def epoch_in_force(self) -> int:
        """Return the epoch below which no bundle is taken.

        :raises ThicketError: the card cannot be read.
        """
        record = await self._do(Slots(self.paths).read)
        return max(record.epoch, await self._epoch_of_chip())

    def healthy(self) -> bool:
        """Whether everything works that worked while the slot was found to be well."""
        return not health.missing(self._able, health.of(self.document()))

    async def back(self) -> str:
        """Have the other slot started from the next start on; return its name.

        :raises ThicketError: the slot must not be started, or the card does not answer.
        """
        slots = Slots(self.paths)
        other = slots.running.other
        if self._installer is not None and self._installer.busy:
            raise RequestError("busy", f"slot {other.name} is being written: wait for the end")
        record = await self._do(slots.read)
        if record.state(other) is State.INCOMPLETE:
            raise RequestError(
                "incomplete",
                f"slot {other.name} holds no whole system: install one (`thicket update install`)",
            )
        if record.why(other) is Why.EPOCH:
            raise RequestError("epoch", f"slot {other.name} must stay: {WORDS[Why.EPOCH]}")
        await self._do(lambda: slots.set_primary(other))
        self._news.set()
        return other.name

    async def terms(self) -> Terms:
        """Return what this node takes.

        :raises ThicketError: the image is for no updates, or the card cannot be read.
        """
        from thicket.update import terms

        epoch = await self._epoch_of_chip()
        slots = Slots(self.paths)
        return await self._do(lambda: terms.gather(self.paths, self.settings(), slots, epoch))

    async def _epoch_of_chip(self) -> int:
        use = self._chip()
        if use is None:
            return 0
        try:
            return await use(epochs.read)
        except ThicketError as error:
            # The boot record has it as well; an update may be what a node with such a chip needs.
            log.warning("the chip does not tell the epoch that it keeps: %s", error)
            return 0

    async def _raise_epoch(self) -> None:
        """Have the chip keep the epoch of the image that runs and is well."""
        use = self._chip()
        epoch = image.epoch(self.paths)
        if use is None or not epoch:
            return
        try:
            await use(epochs.raise_to(epoch))
        except ThicketError as error:
            message = (
                f"the chip cannot keep the epoch {epoch}: on another card it would let older "
                f"versions in ({error})"
            )
            self.problems.report("update", "epoch-not-kept", message, "warning")
        else:
            self.problems.clear("update", "epoch-not-kept")

    async def run(self) -> None:
        """Work until cancelled. Other settings of ``[update]`` or ``[trust]`` need a new start."""
        self._make_keyring()
        try:
            while True:
                try:
                    await self._work()
                except (ThicketError, OSError, TimeoutError) as e:
                    words = str(e) or "the card does not answer"
                    message = (
                        f"that this slot is well cannot be kept, so a start may leave it: {words}"
                    )
                    self.problems.report("update", "not-kept", message, "warning")
                await asyncio.sleep(AGAIN)
        finally:
            if self._installer is not None:
                await self._installer.close()

    def _make_keyring(self) -> None:
        """Tell RAUC whose bundles it may take. Without certificates there is no file: nobody's."""
        settings = self.settings()
        certificates = settings.trust.root or settings.update.keyring
        path = self.paths.run + KEYRING
        try:
            if certificates:
                write_atomically(path, certificates.encode(), durable=False)
            else:
                remove(path)
        except OSError as e:
            log.error("%s cannot be written: %s", path, e.strerror)

    async def _work(self) -> None:
        slots = Slots(self.paths)
        record = await self._do(slots.read)
        words = await self._do(self._read_trial)
        self.words_of_trial = words[:MOST_WORDS].decode("utf-8", "replace")
        memory = await self._do(lambda: self._note_rejected(record, slots.running, words))
        self._tell(record, slots.running, words, memory)
        on_trial = record.trial is slots.running
        before = health.unpack(await self._do(lambda: _read(self.paths.data + ABLE)))
        self._able = before
        able = await self._wait(before if on_trial else None, lambda: self._tell_anew(slots, words))
        epoch = image.epoch(self.paths)
        if not await self._do(lambda: slots.well(epoch)):
            log.warning("the trial of slot %s was called off: it is not kept", slots.running.name)
            return
        if on_trial:
            log.warning("slot %s is well and is kept", slots.running.name)
            await self._do(lambda: remove(self.paths.data + TRIAL))
        words = b"" if on_trial else words
        await self._tell_anew(slots, words)
        self.problems.clear("update", "not-kept")
        await self._do(lambda: data_format.forget_newer(self.paths))
        await self._raise_epoch()
        while True:
            await self._keep(ABLE, health.pack(able))
            await self._tell_news(slots, words)
            able = health.of(self.document())
            self._able = able

    async def _tell_news(self, slots: Slots, words: bytes) -> None:
        """Tell, for KEEP seconds, what is done to the slots."""
        end = time.monotonic() + KEEP
        while (left := end - time.monotonic()) > 0:
            if not await wait(self._news, left):
                return
            await self._tell_anew(slots, words)

    async def _tell_anew(self, slots: Slots, words: bytes) -> None:
        self._news.clear()
        memory = await self._do(lambda: kept.load(self.paths))
        record = await self._do(slots.read)
        self._tell(record, slots.running, words, memory)

    async def _wait(
        self, before: Abilities | None, tell: Callable[[], Awaitable[None]]
    ) -> Abilities:
        """Wait until what worked ``before`` has worked for the time that is set.

        :param before: None where the slot is on no trial: only the time counts.
        :param tell: tells what was done to the slots meanwhile.
        :returns: what worked at any moment of that time.
        """
        since = time.monotonic()
        able = Abilities()
        told: list[str] | None = None
        while True:
            if self._news.is_set():
                await tell()
            now = health.of(self.document())
            lost = health.missing(before, now) if before is not None else []
            if before is not None and lost != told:
                told = lost
                log.warning("this slot is on trial: %s", "; ".join(lost) or "all is well")
                await self._keep(TRIAL, "; ".join(lost).encode())
            if lost:
                since, able = time.monotonic(), Abilities()
            able |= now
            left = since + self.settings().update.health_time - time.monotonic()
            if left <= 0:
                return able
            await asyncio.sleep(min(left, LOOK))

    def _read_trial(self) -> bytes:
        """Return what is known of the last trial. The last words of its kernel are kept."""
        if kernel := _read(self.paths.run + PANIC):
            _write(self.paths.data + TRIAL, kernel)
        return kernel or _read(self.paths.data + TRIAL)

    def _note_rejected(self, record: BootRecord, running: Slot, words: bytes) -> Kept:
        """Remember the bundle of a slot that was left after a trial; return what is remembered."""
        memory = kept.load(self.paths)
        other = running.other
        content = memory.slots.get(other)
        left = record.state(other) is State.BAD and record.why(other) in TRIED
        if content is not None and left and content.bundle not in memory.rejected:
            memory = memory.with_rejected(content.bundle, _why_left(record, other, words))
            kept.save(self.paths, memory)
        return memory

    def _tell(self, record: BootRecord, running: Slot, words: bytes, memory: Kept) -> None:
        """Tell in the status what is known of the slots, and of a slot that was left as a problem.

        :param words: what is known of the last trial.
        """
        self.status = [
            {
                "name": slot.name,
                "state": record.state(slot).name.lower(),
                "runs": slot is running,
                "trial": slot is record.trial,
                "why": WORDS_CALLED_OFF
                if slot is running and called_off(record, slot)
                else WORDS[record.why(slot)],
                "version": content.version if (content := memory.slots.get(slot)) else None,
            }
            for slot in (Slot.A, Slot.B)
        ]
        self._changed()
        other = running.other
        if record.state(other) is not State.BAD:
            self.problems.clear("update", "left")
            return
        message = f"slot {other.name} was left: {_why_left(record, other, words)}"
        self.problems.report("update", "left", message, "warning")

    async def _keep(self, name: str, data: bytes) -> None:
        await self._do(lambda: _write(self.paths.data + name, data))

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        return await self._threads.do(work, HANGS)


def _why_left(record: BootRecord, slot: Slot, words: bytes) -> str:
    """Return why a slot was left, with what is known of its trial."""
    return why_left(record, slot, words[:MOST_WORDS].decode("utf-8", "replace"))


def _read(path: str) -> bytes:
    """Return the beginning of a small file; empty where there is none."""
    try:
        return read_kept(path, health.MOST_BYTES + 1)
    except OSError:
        return b""


def _write(path: str, data: bytes) -> None:
    """Keep a small file; a node whose /data cannot be written goes without."""
    try:
        if _read(path) != data:
            make_folder(os.path.dirname(path), 0o700)
            write_atomically(path, data, mode=0o600, own=True)
    except OSError as e:
        log.warning("%s cannot be written: %s", path, e.strerror)
