# SPDX-License-Identifier: Apache-2.0
"""Makes a bundle from a patch, in a process of its own (:mod:`thicket.update.apply`)."""

from __future__ import annotations

import os
import re

from thicket.base.files import remove
from thicket.base.headway import Tell
from thicket.base.paths import Paths, parameter
from thicket.update import workers
from thicket.update.apply import NEW, Running
from thicket.update.offer import Target
from thicket.update.patch import PatchError
from thicket.update.workers import LONGEST, MEMORY, Job

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
    progress: Tell = lambda _done, _total: None,
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
    job = Job("thicket.update.apply", "making a bundle from a patch", words, longest)
    try:
        await workers.run(job, PatchError, progress)
    except BaseException:
        remove(out + NEW)
        raise
