# SPDX-License-Identifier: Apache-2.0
"""Whether the slot that runs is well, and what became of the other one.

A slot on trial has to do what the node could do before it, for ``[update] health_time`` without a
break; it is kept then. Any other start is well when the daemon has run for that time. What the node
can do is kept on ``/data`` while it is well, and so is what a slot on trial cannot do: the slot
before it tells that when the node has gone back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from logging import getLogger
from typing import Any

from thicket.base import threads
from thicket.base.errors import ThicketError
from thicket.base.files import remove, write_atomically
from thicket.base.paths import Paths
from thicket.base.problems import Problems
from thicket.config.schema import Settings
from thicket.device.boot_record import WORDS, BootRecord, Slot, State
from thicket.device.boot_slots import Slots
from thicket.update import health
from thicket.update.health import Abilities

log = getLogger(__name__)

#: Seconds between two looks at a slot that is not well yet.
LOOK = 5.0
#: Seconds between two times that what the node can do is kept.
KEEP = 3600.0
#: A card that has not answered for this many seconds is reported.
HANGS = 60.0
#: Seconds until what failed is tried again.
AGAIN = 60.0
#: Most bytes of the words about a trial.
MOST_WORDS = 1000

#: In RAUC's system.conf as well.
KEYRING = "/keyring.pem"
ABLE = "/thicket/able.json"
TRIAL = "/thicket/trial.json"


class Update:
    """The part ``update`` of the daemon, on a node that runs from a slot of a card.

    :param document: returns the status document.
    :param settings: returns those in force.
    :ivar status: the slots for the status document: ``name``, ``state`` (``untried``, ``good``,
        ``bad``, ``incomplete``), ``runs``, ``trial``, and ``why`` in words where it is bad.
    """

    def __init__(
        self,
        paths: Paths,
        problems: Problems,
        document: Callable[[], dict[str, Any]],
        settings: Callable[[], Settings],
    ) -> None:
        self.paths = paths
        self.problems = problems
        self.document = document
        self.settings = settings
        self.status: list[dict[str, Any]] = []
        self._threads = threads.OneAtATime("update")

    async def run(self) -> None:
        """Work until cancelled. Other settings of ``[update]`` or ``[trust]`` need a new start."""
        self._make_keyring()
        while True:
            try:
                await self._work()
            except (ThicketError, OSError, TimeoutError) as e:
                words = str(e) or "the card does not answer"
                message = f"that this slot is well cannot be kept, so a start may leave it: {words}"
                self.problems.report("update", "not-kept", message, "warning")
            await asyncio.sleep(AGAIN)

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
        words = await self._do(lambda: _read(self.paths.data + TRIAL))
        self._tell(record, slots.running, words)
        on_trial = record.trial is slots.running
        before = health.unpack(await self._do(lambda: _read(self.paths.data + ABLE)))
        able = await self._wait(before if on_trial else None)
        await self._do(slots.well)
        if on_trial:
            log.warning("slot %s is well and is kept", slots.running.name)
            await self._do(lambda: remove(self.paths.data + TRIAL))
        self._tell(await self._do(slots.read), slots.running, b"" if on_trial else words)
        self.problems.clear("update", "not-kept")
        while True:
            await self._keep(ABLE, health.pack(able))
            await asyncio.sleep(KEEP)
            able = health.of(self.document())

    async def _wait(self, before: Abilities | None) -> Abilities:
        """Wait until what worked ``before`` has worked for the time that is set.

        :param before: None where the slot is on no trial: only the time counts.
        :returns: what worked at any moment of that time.
        """
        since = time.monotonic()
        able = Abilities()
        told: list[str] | None = None
        while True:
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

    def _tell(self, record: BootRecord, running: Slot, words: bytes) -> None:
        """Tell in the status what is known of the slots, and of a slot that was left as a problem.

        :param words: what a slot on trial noted last of what did not work.
        """
        self.status = [
            {
                "name": slot.name,
                "state": record.state(slot).name.lower(),
                "runs": slot is running,
                "trial": slot is record.trial,
                "why": WORDS[record.why(slot)],
            }
            for slot in (Slot.A, Slot.B)
        ]
        other = running.other
        if record.state(other) is not State.BAD:
            self.problems.clear("update", "left")
            return
        more = f" ({words[:MOST_WORDS].decode('utf-8', 'replace')})" if words else ""
        message = f"slot {other.name} was left: {WORDS[record.why(other)]}{more}"
        self.problems.report("update", "left", message, "warning")

    async def _keep(self, name: str, data: bytes) -> None:
        await self._do(lambda: _write(self.paths.data + name, data))

    async def _do(self, work: Callable[[], threads.T]) -> threads.T:
        return await self._threads.do(work, HANGS)


def _read(path: str) -> bytes:
    """Return the beginning of a small file; empty where there is none."""
    try:
        with open(path, "rb") as f:
            return f.read(health.MOST_BYTES + 1)
    except OSError:
        return b""


def _write(path: str, data: bytes) -> None:
    """Keep a small file; a node whose /data cannot be written goes without."""
    try:
        if _read(path) != data:
            write_atomically(path, data, mode=0o600)
    except OSError as e:
        log.warning("%s cannot be written: %s", path, e.strerror)
