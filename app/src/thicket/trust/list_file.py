# SPDX-License-Identifier: Apache-2.0
"""The lists of revocations on the node's disk: a node that starts knows what it knew before."""

from __future__ import annotations

import asyncio
from logging import getLogger
from typing import TYPE_CHECKING, Final

from thicket.base.files import write_atomically
from thicket.trust.revocations import MAX_FILE, InForce, pack_parts, split
from thicket.trust.verify import RefusedError

if TYPE_CHECKING:
    from thicket.base.problems import Problems

log = getLogger(__name__)

LIST_FILE: Final = "revocations.bin"


class ListFile:
    """The file with the lists.

    :ivar writing: the writes that have not ended.
    """

    def __init__(self, folder: str, problems: Problems) -> None:
        self.path = f"{folder}/{LIST_FILE}"
        self.writing: set[asyncio.Task[None]] = set()
        self._problems = problems
        self._turn = asyncio.Lock()

    def read(self) -> list[bytes]:
        """Return the packed lists, unchecked; none of a damaged file, because others have them."""
        try:
            with open(self.path, "rb") as file:
                return split(file.read(MAX_FILE + 1))
        except FileNotFoundError:
            return []
        except (OSError, RefusedError) as error:
            log.warning("%s is not used: %s", self.path, error)
            return []

    def keep(self, lists: InForce) -> None:
        """Write the lists in force, one write after the other: the last one has them all."""
        task = asyncio.get_running_loop().create_task(self._write(lists))
        self.writing.add(task)
        task.add_done_callback(self.writing.discard)

    async def _write(self, lists: InForce) -> None:
        async with self._turn:
            data = pack_parts([one.packed for one in lists.lists])
            try:
                await asyncio.get_running_loop().run_in_executor(
                    None, write_atomically, self.path, data
                )
            except OSError as error:
                message = f"the lists of revocations cannot be kept: {error}"
                self._problems.report("trust", "list-not-kept", message, "warning")
            else:
                self._problems.clear("trust", "list-not-kept")
