# SPDX-License-Identifier: Apache-2.0
"""The status document: what the node tells about itself.

The document is one line of JSON in ``/run/thicket/status.json``, replaced as a whole, so that any
program may read it at any time. docs/node.md describes its members.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from logging import getLogger
from typing import TYPE_CHECKING, Any

import thicket
from thicket.base.files import was_read, write_atomically
from thicket.base.pace import wait
from thicket.base.process import boottime, memory_kib

if TYPE_CHECKING:
    from thicket.daemon.daemon import Daemon
    from thicket.radio.radio import Radio

log = getLogger(__name__)

SCHEMA = 1


#: Makes the text of a document.
_encode = json.JSONEncoder(separators=(",", ":")).encode


class Writer:
    """Writes the document after a change, and every ``interval`` seconds while it is read.

    While one change follows the other, a document that nobody has read yet is replaced less and
    less often: who reads seldom costs little.

    :param document: returns the document.
    :param refresh: awaited every ``interval`` seconds, to read figures that change without an event
        (signals, paths).
    """

    #: Shortest time between two writings, in seconds.
    GAP = 0.5
    #: Longest time between two writings of changes that nobody reads, in seconds. The time begins
    #: with GAP and doubles with each; when there was no change for twice as long, it is GAP again.
    UNREAD_GAP = 2.0
    #: Figures in a document that nobody reads are this old at most, in seconds.
    OLDEST = 60.0

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
        #: Hears of each document that is written.
        self.tell: Callable[[dict[str, Any]], None] = lambda _: None
        self.written = 0
        self._changed: asyncio.Event | None = None
        self._failing = False

    def changed(self) -> None:
        """Something in the document changed: write it soon."""
        if self._changed is not None:
            self._changed.set()

    async def run(self) -> None:
        """Write until cancelled."""
        changed = self._changed = asyncio.Event()
        changed.set()  # there is no document yet
        regular = time.monotonic()
        written, gap = regular - 2 * self.UNREAD_GAP, self.GAP
        while True:
            if time.monotonic() >= regular:
                await self.refresh()
                regular = time.monotonic() + self.interval
            age = time.monotonic() - written
            if changed.is_set():
                if age < gap and not was_read(self.path):
                    await asyncio.sleep(min(self.GAP, gap - age))
                    continue
                gap = self.GAP if age >= 2 * self.UNREAD_GAP else min(2 * gap, self.UNREAD_GAP)
            if changed.is_set() or self._wanted(age):
                changed.clear()
                self.write()
                written = time.monotonic()
            await wait(changed, max(self.GAP, regular - time.monotonic()))
            if (left := written + self.GAP - time.monotonic()) > 0:
                await asyncio.sleep(left)

    def _wanted(self, age: float) -> bool:
        """Return whether a document of this age, in seconds, is written again without a change."""
        return self._failing or age >= self.OLDEST or was_read(self.path)

    def write(self) -> None:
        """Write now. An error of the file system is logged once, and writing is tried again."""
        told = self.document()
        self.tell(told)
        data = _encode(told).encode() + b"\n"
        try:
            write_atomically(self.path, data, durable=False, unread=True)
        except OSError as e:
            if not self._failing:
                log.error("cannot write %s: %s", self.path, e)
            self._failing = True
        else:
            self._failing = False
            self.written += 1


def state(problems: list[dict[str, Any]], radio: str, mesh: Radio | None) -> str:
    """Return the node's state in one word; docs/node.md lists them.

    :param radio: the state of the radio.
    """
    if radio in {"absent", "unsuitable", "failed"}:
        return "degraded"
    if any(problem["severity"] == "error" for problem in problems):
        return "degraded"
    if mesh is None:
        return "starting"
    return "joined" if mesh.joined else "joining"


def document(daemon: Daemon) -> dict[str, Any]:
    """Return the status document; docs/node.md describes it."""
    core, live = daemon.core, daemon.live
    mesh = live.radio.mesh if live is not None else None
    seen = mesh.snapshot() if mesh is not None else {}
    radio = seen.get("radio") or {"state": "starting", "interface": core.make.interface}
    problems = core.problems.all()
    me = live.me if live is not None else None
    session = live.cluster.session if live is not None else None
    passphrase = session.passphrase if session is not None else None
    applications = session.applications if session is not None else None
    updates = session.updates if session is not None else None
    discovery = live.discovery.discovery if live is not None else None
    dns_sd = live.dns_sd.dns_sd if live is not None else None
    return {
        "schema": SCHEMA,
        "version": thicket.__version__,
        "slot": daemon.slot,
        "slots": daemon.update.status if daemon.update is not None else [],
        "installation": daemon.update.installation() if daemon.update is not None else None,
        "updates": updates.brief() if updates is not None else [],
        "hostname": me.hostname if me is not None else "",
        "label": live.cluster.label() if live is not None else None,
        "state": state(problems, radio["state"], mesh),
        "problems": problems,
        "times": dict(core.times.values),
        "restarts": core.times.restarts,
        "uptime": boottime(),
        "identity": me.identity.as_dict() if me is not None else None,
        "address": me.text if me is not None else None,
        "prefix_length": me.network.prefixlen if me is not None else None,
        "configuration": {
            "source": core.loaded.source,
            "last_good_used": core.loaded.last_good_used,
        },
        "data": daemon.upkeep.data,
        "last_restart": daemon.upkeep.last_restart,
        "factory_reset": daemon.upkeep.factory_reset,
        "radio": radio,
        "peers": seen.get("peers", []),
        "paths": seen.get("paths", []),
        "cluster": {
            "node": session.node.name if session is not None else None,
            "security": core.settings.cluster.security,
            "refused": session.node.statistics()["refused"] if session is not None else {},
            "nodes": session.nodes() if session is not None else [],
            "counters": session.counters() if session is not None else {},
        },
        "trust": live.trust.status() if live is not None else None,
        "time": live.time.status() if live is not None else None,
        "gateway": live.gateway.status() if live is not None else None,
        "passphrase": passphrase.status() if passphrase is not None else None,
        "applications": applications.status() if applications is not None else [],
        "installed": live.installed.status() if live is not None else [],
        "discovery": discovery.snapshot() if discovery is not None else None,
        "dns_sd": dns_sd.snapshot() if dns_sd is not None else None,
        "firewall": daemon.firewall.snapshot(),
        "cables": live.cable.snapshot() if live is not None else [],
        "operators": live.operators.snapshot() if live is not None else None,
        "metrics": daemon.metrics.snapshot() if daemon.metrics is not None else None,
        "syslog": daemon.syslog.snapshot() if daemon.syslog is not None else None,
        "memory_kib": memory_kib(),
        "cpu_seconds": round(time.process_time(), 3),
    }
