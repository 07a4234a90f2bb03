# SPDX-License-Identifier: Apache-2.0
"""Watches a start that takes long: its programs must make progress, and the watchdog is fed.

``rcS`` waits for one program at a time: checks, repairs, making and mounting file systems, drivers.
A sound one takes milliseconds to many minutes, depending on the card, so no time limit fits. What
counts is progress: a disk has answered a request, or another program runs. While there is progress,
the hardware watchdog is fed. A program is killed after ``STALLED`` seconds without progress, or
when it has moved ``PASSES`` times what all disks hold; the script that waits for it then tries
something else. A program that waits for a request which the kernel never ends cannot be killed:
then the watchdog is no longer fed, and restarts the node.

rcS starts this when the start has taken some seconds, and ends it when the start is done.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from thicket.base.files import read

#: Seconds that a program may run without an answer from any disk.
STALLED = 90.0
#: How many times the contents of all disks a program may read and write.
PASSES = 8
#: Seconds between two looks.
PERIOD = 2.0
#: Seconds without feeding after which the watchdog restarts the node, as its later feeder sets it.
WATCHDOG_TIMEOUT = 60

# linux/watchdog.h: _IOWR('W', 6, int)
_WDIOC_SETTIMEOUT = 0xC0045706


class Program(NamedTuple):
    """A running child of rcS."""

    pid: int
    #: Ticks after the start of the kernel; distinguishes it from a later one with the same pid.
    started: int
    name: str


class Disks(NamedTuple):
    """What all disks have done."""

    #: Requests ended, well or badly.
    requests: int
    #: Sectors read and written.
    moved: int
    #: Sectors there are.
    size: int


def processes(proc: str) -> dict[int, list[Program]]:
    """Return every process, by the pid of its parent."""
    found: dict[int, list[Program]] = {}
    for entry in os.listdir(proc):
        if entry.isdecimal():
            # proc_pid_stat(5): the name is in parentheses and may contain any character
            head, _, tail = (read(f"{proc}/{entry}/stat") or "").rpartition(")")
            fields = tail.split()
            if len(fields) > 19:
                program = Program(int(entry), int(fields[19]), head.partition("(")[2])
                found.setdefault(int(fields[1]), []).append(program)
    return found


def disks(block: str) -> Disks:
    """Return what the disks have done, without partitions; see the kernel's block/stat.rst."""
    requests = moved = size = 0
    for entry in os.listdir(block):
        fields = [int(word) for word in (read(f"{block}/{entry}/stat") or "").split()]
        if len(fields) >= 11:
            # reads, merged, sectors, ms; writes, merged, sectors, ms; ...; discards; flushes
            requests += fields[0] + fields[4]
            requests += sum(fields[at] for at in (11, 15) if at < len(fields))
            moved += fields[2] + fields[6]
            size += int(read(f"{block}/{entry}/size") or 0)
    return Disks(requests, moved, size)


class Watchdog:
    """The hardware watchdog, where there is one; closing it does not stop it (NOWAYOUT)."""

    def __init__(self, path: str) -> None:
        self._fd: int | None = None
        with contextlib.suppress(OSError):
            self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            fcntl.ioctl(self._fd, _WDIOC_SETTIMEOUT, struct.pack("i", WATCHDOG_TIMEOUT))

    def feed(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, b"\n")


class StartWatch:
    """Looks at the start now and then; see the module.

    :param shell: the pid of rcS, whose child programs are watched.
    """

    def __init__(
        self,
        shell: int,
        *,
        feed: Callable[[], None],
        say: Callable[[str], None],
        proc: str = "/proc",
        block: str = "/sys/block",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shell = shell
        self._feed = feed
        self._say = say
        self._proc = proc
        self._block = block
        self._clock = clock
        self._program: Program | None = None
        self._requests = -1
        self._moved_before = 0
        self._progress = clock()
        self._killed: Program | None = None

    def look(self) -> None:
        """Feed the watchdog if there was progress, otherwise kill the program that stands still."""
        now = self._clock()
        table = processes(self._proc)
        did = disks(self._block)
        # the shell waits for its youngest child; its background processes are older
        own = os.getpid()
        children = [p for p in table.get(self._shell, ()) if p.pid != own]
        program = max(children, key=lambda p: (p.started, p.pid), default=None)
        if program != self._program:
            self._program, self._moved_before, self._progress = program, did.moved, now
        if did.requests != self._requests:
            self._requests, self._progress = did.requests, now
        reason = ""
        if now - self._progress >= STALLED:
            reason = f"no progress for {STALLED:.0f} s"
        elif did.size and did.moved - self._moved_before > PASSES * did.size:
            reason = f"it has read and written everything {PASSES} times"
        if not reason:
            self._feed()
        elif program is not None and program != self._killed:
            self._killed = program
            self._kill(program, table)
            self._say(f"{program.name} was stopped: {reason}")

    def _kill(self, program: Program, table: dict[int, list[Program]]) -> None:
        # the parent first, as it would go on once its child has ended
        with contextlib.suppress(ProcessLookupError):
            os.kill(program.pid, signal.SIGKILL)
        for child in table.get(program.pid, ()):
            self._kill(child, table)


def _say(text: str) -> None:
    with contextlib.suppress(OSError), open("/dev/kmsg", "w", encoding="utf-8") as f:
        f.write(f"<3>thicket: start: {text}\n")


def main() -> int:
    """Run ``start-watch PID``, with the pid of rcS, until rcS ends."""
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        print("usage: start-watch PID")
        return 2
    shell = int(sys.argv[1])
    watch = StartWatch(shell, feed=Watchdog("/dev/watchdog").feed, say=_say)
    while os.path.exists(f"/proc/{shell}"):
        watch.look()
        time.sleep(PERIOD)
    return 0
