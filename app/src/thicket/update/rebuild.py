# SPDX-License-Identifier: Apache-2.0
"""Makes a bundle from a patch, in a process of its own (:mod:`thicket.update.apply`)."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Callable
from contextlib import suppress

import thicket
from thicket.base import jsonlines
from thicket.base.files import remove
from thicket.base.paths import Paths, parameter
from thicket.update.apply import NEW, Running
from thicket.update.offer import Target
from thicket.update.patch import CARD, FAILED, NO_MEMORY, PatchError

MEMORY = 64 << 20
"""Bytes of memory that the process may take, without the page cache; it takes less than half."""

LONGEST = 3600.0
"""Seconds that it may take: a worn card writes 100 KB/s."""

_GRACE = 20.0
_LINE = 4096
_COMMAND_LINE = 8192
_VERITY = re.compile(r" verity 1 [^,\"]* sha256 ([0-9a-f]{64}) [0-9a-f]{64} ")


def running(paths: Paths) -> Running | None:
    """Return what this node runs from: what patches for it are changes of.

    :returns: None where it runs from no slot of a card.
    """
    slot = parameter(paths, "slot")
    try:
        with open(paths.cmdline, encoding="ascii", errors="replace") as file:
            found = _VERITY.search(file.read(_COMMAND_LINE))
    except OSError:
        return None
    if slot not in ("A", "B") or found is None:
        return None
    folder = f"{paths.root}/dev/slots"
    return Running(found[1], f"{folder}/root-{slot.lower()}", f"{folder}/boot-{slot.lower()}")


async def rebuild(
    patch: str,
    out: str,
    target: Target,
    base: Running | None,
    progress: Callable[[int, int], object] = lambda _done, _total: None,
    *,
    memory: int = MEMORY,
    longest: float = LONGEST,
) -> None:
    """Make the bundle of an offer from a patch.

    It appears under its name as a whole and durably, with the SHA-256 of the offer. Where that
    fails, or the caller is cancelled, nothing of it is left; so after the next attempt to make it
    where the power was cut.

    :param patch: file with the patch.
    :param out: where the bundle is put.
    :param base: see :func:`running`.
    :param progress: called with bytes of work done and those of all, about a hundred times.
    :param memory: see ``MEMORY``.
    :param longest: see ``LONGEST``.
    :raises PatchError: it cannot be made.
    """
    patch, out = os.path.abspath(patch), os.path.abspath(out)
    words = [str(memory), patch, out, str(target.size), target.sha256, *(base or ())]
    try:
        await _run(words, progress, longest)
    except BaseException:
        remove(out + NEW)
        raise


async def _run(words: list[str], progress: Callable[[int, int], object], longest: float) -> None:
    # Without site and user packages, and without the caller's folder: as the daemon was started.
    home = os.path.dirname(os.path.dirname(thicket.__file__))
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-BPSs", "-m", "thicket.update.apply", *words,
            stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, limit=_LINE, cwd="/",
            env={"PYTHONPATH": home, "LC_ALL": "C.UTF-8"}, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise PatchError(FAILED, f"no process can be started: {error.strerror}") from None
    try:
        async with asyncio.timeout(longest):
            last = await _follow(child, progress)
            status = await child.wait()
    except TimeoutError:
        raise PatchError(FAILED, f"no bundle was made within {longest:g} s") from None
    finally:
        await _end(child)
    if status:
        raise _fault(status, last)


async def _follow(child: Process, progress: Callable[[int, int], object]) -> bytes:
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


def _fault(status: int, last: bytes) -> PatchError:
    """Return what a process has failed of.

    :param last: its last line.
    """
    if status == -signal.SIGBUS:
        return PatchError(CARD, "the card cannot be read or written, or something was cut off")
    if status == -signal.SIGKILL or last.startswith(b"MemoryError"):
        return PatchError(NO_MEMORY, "there was not enough memory to make a bundle from a patch")
    with suppress(ValueError, KeyError):
        said = jsonlines.unpack(last)
        return PatchError(str(said["code"]), str(said["message"]))
    how = f"signal {-status}" if status < 0 else f"status {status}"
    words = last.decode("utf-8", "replace").strip()[:200]
    return PatchError(FAILED, f"making the bundle ended with {how}: {words or 'without a word'}")
