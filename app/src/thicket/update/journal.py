# SPDX-License-Identifier: Apache-2.0
"""What a node remembers of an update over the restart in the middle of it, and what became of it.

A file says how far this node has come with which offer about a subject. It is
written before what it says is done, so that a power cut at any point leaves something to go by:
after a start, :func:`after_restart` compares it with the slot that runs and with the boot record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from enum import StrEnum
from logging import getLogger
from typing import Final, NamedTuple

from thicket.base.files import read_kept, write_atomically
from thicket.device.boot_record import WORDS, BootRecord, Slot, State, Why
from thicket.update.progress import short

log = getLogger(__name__)

NAME = "/journal.json"
"""The file, in the folder of its subject."""

MOST_BYTES = 16 * 1024
MOST_REJECTED = 8
"""Bundles that are remembered as rejected, the newest ones."""
MOST_LINES, MOST_LINE = 20, 300
"""Lines of the account of a failure, and characters of each."""
MOST_TRIES = 3
"""Installations that may be cut off by a power cut, or by a card that damages the bundle."""


class Phase(StrEnum):
    """How far an update has come here."""

    NONE = "none"
    #: The other slot is being written.
    BEGUN = "begun"
    #: The other slot is whole and is to be tried at the next start.
    ARMED = "armed"
    #: It runs on trial.
    TRIAL = "trial"
    #: It was kept.
    DONE = "done"
    #: It was left; ``why`` says why.
    FAILED = "failed"
    #: The node goes back to the version before, as it was told to.
    LEAVING = "leaving"
    #: It went back, as it was told to.
    LEFT = "left"


_WAITS: Final = frozenset({Phase.NONE, Phase.FAILED})
"""Phases in which nothing is under way."""

CALLED_OFF: Final = "its trial was called off, by hand"


UNDER_WAY: Final = frozenset({Phase.BEGUN, Phase.ARMED, Phase.TRIAL, Phase.LEAVING})
"""Phases that go to their end, whatever is offered or ordered meanwhile."""


class Rejected(NamedTuple):
    """A bundle that this node does not try again by itself.

    :ivar bundle: SHA-256 in hexadecimal digits.
    :ivar order: number of the newest order that the node knew then: a later one to resume has it
        try again.
    """

    bundle: str
    why: str
    order: int


class Journal(NamedTuple):
    """What is remembered.

    :ivar offer: identifier of the offer; empty for none.
    :ivar bundle: SHA-256 of the bundle in hexadecimal digits; with DONE, that of what runs.
    :ivar slot: the slot that the phase is about: ``A``, ``B`` or empty.
    :ivar root: dm-verity root hash of its root in hexadecimal digits; empty where it is not known.
    :ivar since: when the phase began, in Unix seconds; 0 where the time was not known.
    :ivar tries: installations that were cut off, or whose bundle the card has damaged.
    :ivar well: whether it was well for as long as the plan asks.
    :ivar order: number of the last order that was followed.
    :ivar why: in words, for the fleet.
    :ivar account: the same at length: lines for the status and the report.
    """

    offer: bytes = b""
    bundle: str = ""
    version: str = ""
    phase: Phase = Phase.NONE
    slot: str = ""
    root: str = ""
    since: int = 0
    tries: int = 0
    well: bool = False
    order: int = 0
    why: str = ""
    account: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def enter(self, phase: Phase, why: str = "") -> Journal:
        """Return the journal with another phase."""
        return self._replace(phase=phase, why=short(why))

    def armed(self, root: str = "") -> Journal:
        """Return the journal when the other slot is whole and is to be tried at the next start.

        :param root: dm-verity root hash of its root.
        """
        return self.enter(Phase.ARMED)._replace(root=root)

    def tried(self) -> Journal:
        """Return the journal when what is offered runs on trial."""
        return self.enter(Phase.TRIAL)._replace(well=False, account=())

    def kept(self) -> Journal:
        """Return the journal when what was on trial was well and is kept: no rejected one then."""
        if self.phase is Phase.LEAVING:
            return self.enter(Phase.LEFT, self.why)
        rejected = tuple(one for one in self.rejected if one.bundle != self.bundle)
        return self.enter(Phase.DONE)._replace(rejected=rejected)

    def failed(self, why: str, account: tuple[str, ...] = (), order: int = 0) -> Journal:
        """Return the journal of an update that was left: its bundle is rejected.

        :param order: number of the newest order that is known.
        """
        order = max(order, self.order)
        lines = tuple(_line(line) for line in account[-MOST_LINES:])
        return (
            self.reject(why, order)
            .enter(Phase.FAILED, why)
            ._replace(account=lines, order=order, well=False)
        )

    def reject(self, why: str, order: int) -> Journal:
        """Return the journal of a node that does not try the bundle again by itself.

        :param order: number of the newest order that is known.
        """
        others = [one for one in self.rejected if one.bundle != self.bundle]
        new = Rejected(self.bundle, short(why), order)
        return self._replace(rejected=(*others, new)[-MOST_REJECTED:])

    def rejection(self, bundle: str, resumed: int) -> str:
        """Return why a bundle is not tried again; empty if it may be.

        :param resumed: number of the newest order, if it is one to resume; else 0.
        """
        for one in self.rejected:
            if one.bundle == bundle and one.order >= resumed:
                return one.why
        return ""


# -- the file


def pack(journal: Journal) -> bytes:
    """Return the file."""
    members = journal._asdict() | {
        "offer": journal.offer.hex(),
        "rejected": [one._asdict() for one in journal.rejected],
    }
    return json.dumps(members, indent=1).encode() + b"\n"


def unpack(data: bytes) -> Journal:
    """Return what a file says; one that is damaged says that there was no update."""
    try:
        members = json.loads(data) if len(data) <= MOST_BYTES else None
        if not isinstance(members, dict):
            return Journal()
        rejected = tuple(
            Rejected(_text(one, "bundle"), short(_text(one, "why")), _number(one, "order"))
            for one in _list(members, "rejected")[-MOST_REJECTED:]
            if isinstance(one, dict)
        )
        phase, slot = Phase(_text(members, "phase")), _text(members, "slot")
        if slot not in ("A", "B") and (slot or phase not in _WAITS):
            raise ValueError(slot)  # a node would restart for a slot that there is not
        return Journal(
            bytes.fromhex(_text(members, "offer")),
            _text(members, "bundle"),
            _text(members, "version"),
            phase,
            slot,
            _text(members, "root"),
            _number(members, "since"),
            _number(members, "tries"),
            members.get("well") is True,
            _number(members, "order"),
            short(_text(members, "why")),
            tuple(_line(str(one)) for one in _list(members, "account")[:MOST_LINES]),
            rejected,
        )
    except (ValueError, RecursionError):
        return Journal()


def _text(members: dict[str, object], name: str) -> str:
    value = members.get(name, "")
    if not isinstance(value, str):
        raise ValueError(name)
    return value


def _number(members: dict[str, object], name: str) -> int:
    value = members.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise ValueError(name)
    return value


def _list(members: dict[str, object], name: str) -> list[object]:
    value = members.get(name, [])
    if not isinstance(value, list):
        raise ValueError(name)
    return value


def _line(text: str) -> str:
    return short(text, MOST_LINE)


def load(folder: str) -> Journal:
    """Read the file in a folder; without one there was no update."""
    try:
        return unpack(read_kept(folder + NAME, MOST_BYTES + 1))
    except OSError:
        return Journal()


def keep(folder: str, journal: Journal) -> None:
    """Write the file in a folder; blocks on the disk.

    :raises OSError: it cannot be written; the old one stays, so nothing may be begun.
    """
    write_atomically(folder + NAME, pack(journal), mode=0o600, own=True)


# -- after a start


class Start(NamedTuple):
    """What is known after a start.

    :ivar running: the slot that runs.
    :ivar root: dm-verity root hash of its root, from the kernel's command line; empty if unknown.
    :ivar record: the boot record, as it is after init has judged this start.
    :ivar trial: what the slot on trial noted last of what did not work, or its kernel's last words
        (``/data/update/trial.json``).
    :ivar kernel: the last words of a kernel that failed in the run before; empty if none did.
    :ivar lines: the last lines of the log of the run before.
    """

    running: Slot
    record: BootRecord
    root: str = ""
    trial: str = ""
    kernel: str = ""
    lines: tuple[str, ...] = ()


def after_restart(journal: Journal, start: Start) -> Journal:
    """Return the journal as it goes on after a start of the node."""
    if journal.slot not in ("A", "B"):
        return journal
    slot = Slot[journal.slot]
    if start.running is slot and journal.root and start.root and start.root != journal.root:
        # The card was written anew, or somebody has installed something else by hand.
        return Journal(order=journal.order, rejected=journal.rejected)
    if journal.phase in _WAITS or journal.phase is Phase.LEFT:
        return journal  # what runs is looked at; somebody may have started the slot by hand
    if journal.phase is Phase.LEAVING:
        return _after_leaving(journal, start, slot)
    if start.running is slot:
        if start.record.trial is slot:
            return journal.tried()
        return journal if journal.phase is Phase.DONE else journal.kept()
    return _elsewhere(journal, start, slot)


def _elsewhere(journal: Journal, start: Start, slot: Slot) -> Journal:
    """The slot that the update is in does not run."""
    record = start.record
    if record.state(slot) is State.BAD:
        why, account = reasons(record.why(slot), start)
        return journal.failed(why, account)
    if record.trial is slot:
        return journal.enter(Phase.ARMED)
    if journal.phase is Phase.BEGUN:
        tries = journal.tries + 1
        if tries >= MOST_TRIES:
            return journal.failed(f"it was cut off {tries} times while it was being installed")
        return journal.enter(Phase.NONE)._replace(tries=tries)
    if journal.phase is Phase.DONE:
        return journal.failed(f"slot {start.running.name} was started instead, by hand")
    return journal.failed(CALLED_OFF)


def _after_leaving(journal: Journal, start: Start, slot: Slot) -> Journal:
    """``slot`` is the one that the node was told to go back to."""
    if start.record.trial is slot:
        return journal
    if start.running is slot:
        return journal.kept()
    if start.record.trial is Slot.NONE and start.record.state(slot) in (State.UNTRIED, State.GOOD):
        return journal  # the power was cut before it was to be tried
    words = WORDS[start.record.why(slot)] or "its trial was called off"
    why = f"slot {slot.name}, which it was to go back to, did not work: {words}"
    return journal.enter(Phase.DONE, why)._replace(slot=start.running.name, root=start.root)


def reasons(why: Why, start: Start) -> tuple[str, tuple[str, ...]]:
    """Return why a slot was left: in words for the fleet, and as lines for a person at the node."""
    words = WORDS[why] or "it was left"
    found = [words]
    if start.kernel:
        found.append(f"kernel: {start.kernel}")
    if start.trial and start.trial != start.kernel:
        found.append(f"on trial: {start.trial}")
    found += start.lines[-(MOST_LINES - len(found)) :]
    first = start.kernel if why is Why.PANIC and start.kernel else start.trial or start.kernel
    return (f"{words}: {first}" if first else words), tuple(found)


def last_lines(text: str, counts: Callable[[str], bool] = bool) -> tuple[str, ...]:
    """Return the last lines of a log that count, as an account has them."""
    lines = [line.strip() for line in text.splitlines()]
    return tuple(_line(line) for line in lines if line and counts(line))[-MOST_LINES:]
