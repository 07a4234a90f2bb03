# SPDX-License-Identifier: Apache-2.0
"""Work on files of any size, in a process of its own (:mod:`.worker`).

The event loop goes on, the memory is limited, and the work can be ended at any moment, also where a
card fails.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import thicket
from thicket.base import jsonlines
from thicket.base.errors import CodedError
from thicket.base.headway import Tell
from thicket.update.worker import CARD, FAILED, NO_MEMORY

MEMORY = 64 << 20
"""Bytes of memory that a process may take, without the page cache; it takes less than half."""

LONGEST = 3600.0
"""Seconds that it may take: a worn card writes 100 KB/s."""

_GRACE = 20.0
_LINE = 4096

Fault = Callable[[str, str], CodedError]
"""Makes an error of a code and a message."""


class Job(NamedTuple):
    """What is to be done.

    :ivar module: its ``main`` calls :func:`.worker.run`.
    :ivar what: the work in words, to say what has failed: ``checking the bundle``.
    :ivar words: arguments of ``main``.
    :ivar longest: seconds that it may take.
    """

    module: str
    what: str
    words: Sequence[str]
    longest: float = LONGEST


async def run(job: Job, fault: Fault, progress: Tell) -> None:
    """Do a job; whoever is cancelled ends it.

    :param fault: makes what is raised.
    :param progress: called about a hundred times.
    """
    # Without site and user packages, and without the caller's folder: as the daemon was started.
    home = os.path.dirname(os.path.dirname(thicket.__file__))
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-BPSs", "-m", job.module, *job.words,
            stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, limit=_LINE, cwd="/",
            env={"PYTHONPATH": home, "LC_ALL": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise fault(
            FAILED, f"{job.what}: no process can be started ({error.strerror}): restart the node"
        ) from None
    try:
        async with asyncio.timeout(job.longest):
            last = await _follow(child, progress)
            status = await child.wait()
    except TimeoutError:
        raise fault(FAILED, f"{job.what} has not ended within {job.longest:g} s") from None
    finally:
        await _end(child)
    if status:
        raise fault(*_why(status, last, job.what))


async def _follow(child: Process, progress: Tell) -> bytes:
    """Hand on the progress; return the last line that is none."""
    assert child.stdout is not None
    last = b""
    while True:
        try:
            line = await child.stdout.readuntil()
        except asyncio.IncompleteReadError as error:
            return error.partial or last
        except asyncio.LimitOverrunError as error:
            await child.stdout.readexactly(error.consumed)
            continue
        done, _, total = line.strip().partition(b" ")
        if done.isdigit() and total.isdigit():
            progress(int(done), int(total))
        else:
            last = line


async def _end(child: Process) -> None:
    """End the process, if it runs: after that it writes nothing more."""
    with suppress(ProcessLookupError):
        child.kill()
    with suppress(TimeoutError):
        async with asyncio.timeout(_GRACE):
            await child.wait()


def _why(status: int, last: bytes, what: str) -> tuple[str, str]:
    """Return what a process has failed of: code and message.

    :param last: its last line.
    """
    if status == -signal.SIGBUS:
        return CARD, "the card cannot be read or written, or something was cut off"
    if status == -signal.SIGKILL or last.startswith(b"MemoryError"):
        return NO_MEMORY, f"there was not enough memory for {what}: end what else runs"
    with suppress(ValueError, KeyError):
        said = jsonlines.unpack(last)
        return str(said["code"]), str(said["message"])
    how = f"signal {-status}" if status < 0 else f"status {status}"
    words = last.decode("utf-8", "replace").strip()[:200]
    return FAILED, f"{what} ended with {how}: {words or 'without a word'}"
