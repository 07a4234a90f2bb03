# SPDX-License-Identifier: Apache-2.0
"""One node of the medium: its relay's connection, and the session that makes its radios."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from meshlab.medium.drive import Drive
from meshlab.medium.objects import Node
from meshlab.medium.session import RadioSession
from meshlab.wire.relay import DROP_COUNTERS, RelayPort

log = logging.getLogger(__name__)


class NodePort:
    """One node: its relay's connection and its session."""

    def __init__(self, drive: Drive, node: Node, path: Path) -> None:
        self.node = node
        self.path = path
        self.counters: dict[str, int] = {}
        self.dropped = 0
        """Frames that the relay dropped since the medium's start or last reset."""
        self.relay_errors = 0
        self.last_relay_error: str | None = None
        self.sessions = 0
        self._drive = drive
        # Nonces of a medium must not be those of the one before it.
        self.port = RelayPort(path, self, first_nonce=time.time_ns() & 0x7FFFFFFFFFFFFFFF)
        self.session = RadioSession(
            drive.engine,
            node,
            later=drive.loop.call_later,
            clock=drive.clock,
            restart=self.port.resynchronise,
        )
        node.session = self.session
        node.wake = self._wake

    def _wake(self) -> None:
        self._drive.dirty.append(self)
        self._drive.kick()

    def flush(self) -> None:
        """Send what the engine has for the node."""
        out, self.node.out = self.node.out, []
        if out:
            self.port.send(out)

    # RelayUser.

    def session_started(self, family: int, counters: dict[str, int]) -> None:
        """Make the radios."""
        self.sessions += 1
        self.counters = counters
        if family == 0:
            self.relay_error(0, "the relay knows no number of the hwsim family")
            return
        log.info("%s: relay connected, hwsim is family %d", self.node.name, family)
        self.session.begin(family)
        self._drive.kick()

    def session_ended(self, reason: str) -> None:
        """Take the node off the air."""
        log.info("%s: off the air: %s", self.node.name, reason)
        self._drive.engine.stats.sync_losses += 1
        self.session.end()
        self._drive.kick()

    def netlink(self, buffer: bytes, start: int, end: int) -> None:
        """Hand a message to the engine."""
        drive = self._drive
        if self.node.family:
            try:
                drive.engine.receive(self.node, buffer, start, end, drive.clock())
            except ValueError:
                drive.engine.stats.malformed += 1
                raise
            if not drive.kicked:
                drive.kick()

    def relay_error(self, errno: int, text: str) -> None:
        """Remember what the relay complains of."""
        self.relay_errors += 1
        self.last_relay_error = f"{text} (error {errno})" if errno else text
        log.warning("%s: relay: %s", self.node.name, self.last_relay_error)

    def relay_counters(self, counters: dict[str, int]) -> None:
        """Count what the relay has dropped since it was last asked."""
        for name in DROP_COUNTERS:
            now, before = counters.get(name, 0), self.counters.get(name, 0)
            self.dropped += now - before if now >= before else now
        self.counters = counters

    def paused(self, paused: bool) -> None:
        """The node does not read, or reads again."""
        self.node.paused = paused

    def status(self) -> dict[str, Any]:
        """Return what a person would ask of this node."""
        return {
            "connected": self.port.in_session,
            "reachable": self.port.connected,
            "ready": self.port.in_session and self.session.ready,
            "problem": self.session.problem or self.last_relay_error,
            "paused": self.node.paused,
            "sessions": self.sessions,
            "unanswered": len(self.node.pending),
            "foreign_radios": self.session.foreign_radios,
            "relay": self.counters,
            "relay_dropped": self.dropped,
            "relay_errors": self.relay_errors,
            "radios": [
                {
                    "mac": radio.key.hex(":"),
                    "up": radio.up,
                    "plugged": radio.plugged,
                    "frequency": radio.frequency or None,
                    "tx_power_dbm": radio.config.tx_power_dbm - radio.attenuation_db,
                    "sent": radio.sent,
                    "air_seconds": round(radio.air, 6),
                    "air_large_seconds": round(radio.air_large, 6),
                    "retries": radio.retries,
                    "received": radio.received,
                    "queued": radio.queued,
                }
                for radio in self.node.radios
            ],
        }
