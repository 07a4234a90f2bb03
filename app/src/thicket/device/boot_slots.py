# SPDX-License-Identifier: Apache-2.0
"""The node's two slots: which one is started, tried, good or bad.

``boot-slots`` is RAUC's boot backend (docs: reference.html, "Custom Bootloader Interface") and what
init and the daemon use: see :func:`main`. What the record means is in
:mod:`thicket.device.boot_record`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from thicket.base.errors import ThicketError
from thicket.base.files import locked, read, remove, write_atomically
from thicket.base.paths import Paths, parameter
from thicket.device import autoboot, boot_record
from thicket.device.boot_record import PLACES, BootRecord, Slot, State, Why
from thicket.device.disk import Disk
from thicket.device.reset import last_words, watchdog_fired

#: Seconds to wait while another program changes the record.
PATIENCE = 20.0

#: Below ``/data``: what the slot that was tried last noted of what did not work, or the last words
#: of its kernel. Not in the state that has a format: both slots read it.
TRIAL = "/update/trial.json"
#: Below ``/run/thicket``: the last words of the kernel whose trial this start has ended.
PANIC = "/panic"
#: Characters of either.
MOST_WORDS = 1000

# linux/reboot.h
_MAGIC = (0xFEE1DEAD, 0x28121969)
_RESTART, _RESTART2 = 0x01234567, 0xA1B2C3D4
#: What the Raspberry Pi's driver hands to its firmware: start partition 0 (as autoboot.txt says),
#: and its section [tryboot] this once.
TRYBOOT = b"0 tryboot"
_SYS_REBOOT = {"aarch64": 142, "x86_64": 169}


class SlotError(ThicketError):
    """What was asked of the slots cannot be done; the text says why."""


class Slots:
    """The slots of the card that this node runs from.

    :raises SlotError: the constructor, when it runs from no slot of a card.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self.card = paths.root + "/dev/slots/card"
        name = parameter(paths, "slot")
        if name not in ("A", "B"):
            raise SlotError("this node was not started from a slot of a card")
        #: The slot that runs.
        self.running = Slot[name]
        if not os.path.exists(self.card):
            raise SlotError("the card that this node was started from is not there")

    def read(self) -> BootRecord:
        """Return the record.

        :raises CardError: the card cannot be read.
        """
        with self._disk() as disk:
            return _read(disk)[0]

    def change(self, change: Callable[[BootRecord], BootRecord]) -> BootRecord:
        """Write what ``change`` makes of the record, unless that is the same; return it.

        :raises CardError: the card cannot be read or written; the record is as before.
        :raises SlotError: another program has been changing it for too long.
        """
        with self._lock(), self._disk() as disk:
            before, place = _read(disk)
            after = change(before)
            if after != before:
                after = after._replace(sequence=(before.sequence + 1) & 0xFFFFFFFF)
                disk.write(PLACES[place], boot_record.pack(after))
        return after

    # -- what happens at a start

    def begin(self) -> boot_record.Start:
        """Judge this start and write what follows; the caller restarts the node if need be."""
        died, kernel = Why.NONE, last_words(self.paths)
        if kernel is not None:
            died = Why.PANIC
        elif watchdog_fired(self.paths):
            died = Why.WATCHDOG
        start = boot_record.Start(BootRecord())
        tried = Slot.NONE

        def judge(record: BootRecord) -> BootRecord:
            nonlocal start, tried
            tried = record.trial
            start = boot_record.begin(record, self.running, died)
            return start.record

        record = self.change(judge)
        if kernel and tried is self.running.other and record.why(tried) is Why.PANIC:
            # /data is not there yet.
            write_atomically(self.paths.run + PANIC, kernel.encode(), durable=False)
        return start

    def late(self) -> bool:
        """The time for getting well is over. Return whether the node has to be restarted."""
        record = self.change(lambda record: boot_record.late(record, self.running))
        return record.run is boot_record.Run.LATE

    def stopped(self) -> None:
        """The node is being switched off or restarted in order."""
        self.change(boot_record.stopped)

    def well(self, epoch: int = 0) -> bool:
        """The running slot is well. One on trial is committed: it is started from now on.

        :param epoch: the security epoch of its image; it is the one in force from now on.
        :returns: False where its trial was called off: then it is not kept.
        """
        record = self.read()
        if boot_record.called_off(record, self.running):
            return False
        if record.trial is self.running:
            self.commit(self.running, epoch)
        else:
            self.change(
                lambda record: boot_record.raised(
                    boot_record.well(record, self.running), epoch, self.running
                )
            )
        # init's last script looks for it.
        with open(self.paths.run + "/well", "wb"):
            pass
        return True

    def commit(self, slot: Slot, epoch: int = 0) -> None:
        """Make ``slot``, an image of ``epoch``, the one that is started, for good.

        ``autoboot.txt`` first: where the power is cut behind it, the next start completes the
        record (see :func:`thicket.device.boot_record.begin`).
        """
        self._name(slot)
        self.change(
            lambda record: boot_record.raised(boot_record.commit(record, slot), epoch, slot)
        )

    def _name(self, slot: Slot) -> None:
        from thicket.device import in_place
        from thicket.device.boot_partition import boot_lock, mount_boot

        device = "/dev/slots/config"
        with boot_lock(self.paths):
            mount_boot(self.paths, device)
            target = f"{self.paths.boot}/{autoboot.NAME}"
            in_place.write(self.paths, device, target, autoboot.make(slot))

    # -- RAUC

    def primary(self) -> Slot:
        """Return the slot that the next start is meant for."""
        record = self.read()
        if record.trial and record.phase is not boot_record.Phase.RUNS:
            return record.trial
        return record.named or self.running

    def set_primary(self, slot: Slot) -> None:
        """Have ``slot`` tried by the next start; what was noted of an earlier trial is over."""
        if slot is not self.running:
            remove(self.paths.run + PANIC)
            remove(self.paths.data + TRIAL)
        self.change(lambda record: boot_record.arm(record, slot, self.running))

    def good(self, slot: Slot) -> bool:
        """Tell whether ``slot`` may be started."""
        return self.read().state(slot) in (State.UNTRIED, State.GOOD)

    def set_good(self, slot: Slot) -> None:
        """``slot`` is good: a trial of it that runs is committed."""
        if slot is self.running:
            self.well()
        else:
            self.change(lambda record: record.marked(slot, State.GOOD))

    def set_bad(self, slot: Slot) -> None:
        """``slot`` is not to be started: RAUC is about to write it, or somebody says so.

        The slot that runs is not written to: the next start is one of the other slot.
        """
        if slot is self.running:
            self.change(lambda record: boot_record.leave(record, slot, Why.BY_HAND))
        else:
            self.change(lambda record: boot_record.write_over(record, slot))

    # -- helpers

    @contextlib.contextmanager
    def _disk(self) -> Iterator[Disk]:
        disk = Disk(self.card)
        try:
            yield disk
        finally:
            disk.close()

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        busy = SlotError(f"the boot record was in use for {PATIENCE:.0f} s; try again")
        return locked(self.paths.run + "/boot-record.lock", PATIENCE, busy)


def _read(disk: Disk) -> tuple[BootRecord, int]:
    """Return the record and the place of the next one; a sector that cannot be read holds none."""
    sectors = []
    for place in PLACES:
        try:
            sectors.append(disk.read(place))
        except ThicketError:
            sectors.append(bytes(boot_record.SECTOR))
    return boot_record.newest((sectors[0], sectors[1]))


def restart(tryboot: bool) -> None:
    """Restart the machine at once, past init; what is not on the disks is lost.

    :raises OSError: the kernel refuses.
    """
    import ctypes

    os.sync()
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_REBOOT[os.uname().machine]
    command, argument = (_RESTART2, TRYBOOT) if tryboot else (_RESTART, None)
    if libc.syscall(number, *_MAGIC, command, argument) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


USAGE = """\
usage: boot-slots get-current | get-primary | get-state SLOT     for RAUC
       boot-slots set-primary SLOT | set-state SLOT good|bad     for RAUC
       boot-slots begin | late | stopped                         for init
       boot-slots show                                           for people
SLOT is A or B."""


def main() -> int:
    """Run ``boot-slots``; the exit status is 0, 1 (the text on standard error says why) or 2."""
    words = sys.argv[1:]
    try:
        slots = Slots(Paths())
        said = _run(slots, words)
    except (ThicketError, OSError) as e:
        print(f"boot-slots: {e}", file=sys.stderr)
        return 1
    if said is None:
        print(USAGE, file=sys.stderr)
        return 2
    if said:
        print(said)
    return 0


def _run(slots: Slots, words: list[str]) -> str | None:
    """Do what was asked; return what to print, or None where it is not understood."""
    match words:
        case ["get-current"]:
            return slots.running.name
        case ["get-primary"]:
            return slots.primary().name
        case ["set-primary", "A" | "B" as name]:
            slots.set_primary(Slot[name])
        case ["get-state", "A" | "B" as name]:
            return "good" if slots.good(Slot[name]) else "bad"
        case ["set-state", "A" | "B" as name, "good"]:
            slots.set_good(Slot[name])
        case ["set-state", "A" | "B" as name, "bad"]:
            slots.set_bad(Slot[name])
        case ["begin"]:
            start = slots.begin()
            if start.tryboot:
                _tell(start.words)
                restart(tryboot=True)
            return start.words
        case ["late"]:
            if slots.late():
                _tell("this start was not well in time: restarting")
                _mark(slots.paths)
                restart(tryboot=False)
        case ["stopped"]:
            slots.stopped()
        case ["show"]:
            return _table(slots)
        case _:
            return None
    return ""


def _mark(paths: Paths) -> None:
    """Leave a mark of why this run ends (``init.d/S40state.sh``), in the place of "running"."""
    with contextlib.suppress(OSError), open(paths.data + "/thicket/run", "r+b") as f:
        f.write(b"overdue\n")
        f.flush()
        os.fsync(f.fileno())


def _tell(words: str) -> None:
    """Tell the kernel's log, and so the console, before a restart."""
    with contextlib.suppress(OSError), open("/dev/kmsg", "w", encoding="ascii") as f:
        f.write(f"<4>thicket: {words}\n")


def _table(slots: Slots) -> str:
    record = slots.read()
    words = (read(slots.paths.data + TRIAL) or read(slots.paths.run + PANIC) or "")[:MOST_WORDS]
    lines = []
    for slot in (Slot.A, Slot.B):
        facts = [record.state(slot).name.lower()]
        if slot is slots.running:
            facts.append("runs")
        if slot is record.trial:
            facts.append("on trial" if record.phase is boot_record.Phase.RUNS else "to be tried")
        if slot is slots.running and boot_record.called_off(record, slot):
            facts.append(boot_record.WORDS_CALLED_OFF)
        if why := boot_record.why_left(record, slot, words):
            facts.append(why)
        lines.append(f"{slot.name}: {', '.join(facts)}")
    return "\n".join(lines)
