# SPDX-License-Identifier: Apache-2.0
"""What the node tells about itself: problems, milestones, and the status document.

The document is one line of JSON in ``/run/thicket/status.json``, replaced as a whole, so that any
program may read it at any time. docs/node.md describes its members.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import Any, Final

from thicket.base.files import write_atomically

log = getLogger(__name__)

SCHEMA: Final = 1


class Writer:
    """Writes the document when told that something changed, and every ``interval`` seconds.

    ``document`` makes it; ``refresh`` is awaited before the regular writings, to get figures that
    nobody announces (signals, paths).
    """

    #: Shortest time between two writings, in seconds.
    GAP = 0.5

    def __init__(
        self,
        path: str,
        document: Callable[[], dict[str, Any]],
        refresh: Callable[[], Awaitable[None]],
        interval: float,
    ) -> None:
        self.path = path
        self.document = document
        self.refresh = refresh
        self.interval = interval
        self.written = 0
        self._changed: asyncio.Event | None = None
        self._failing = False

    def changed(self) -> None:
        """Something in the document changed: write it soon."""
        if self._changed is not None:
            self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        self._changed = asyncio.Event()
        regular = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= regular:
                await self.refresh()
                regular = time.monotonic() + self.interval
            self._changed.clear()
            self.write()
            await asyncio.sleep(self.GAP)
            try:
                delay = max(0.0, regular - time.monotonic())
                async with asyncio.timeout(delay):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def write(self) -> None:
        """Write now. A full or missing file system is logged once and tried again."""
        data = json.dumps(self.document(), separators=(",", ":"))
        try:
            write_atomically(self.path, data.encode() + b"\n", durable=False)
        except OSError as e:
            if not self._failing:
                log.error("cannot write %s: %s", self.path, e)
            self._failing = True
        else:
            self._failing = False
            self.written += 1
