# SPDX-License-Identifier: Apache-2.0
"""The milestones of a boot, kept across restarts of the daemon."""

from __future__ import annotations

import json
from logging import getLogger

from thicket.base.files import write_atomically
from thicket.base.process import boottime

log = getLogger(__name__)

#: Milestones of a boot, in the order in which they are reached.
MILESTONES = ("daemon", "identity", "radio", "first_peer", "first_node")


class Times:
    """When each milestone of this boot was reached, in seconds since power-on.

    The RAM file system keeps the values across restarts of the daemon.

    :ivar restarts: how often the daemon was restarted in this boot.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.values: dict[str, float | None] = dict.fromkeys(MILESTONES)
        self.restarts = 0

    def load(self) -> None:
        """Read the values of an earlier daemon of this boot, if they are sound."""
        try:
            with open(self.path, "rb") as f:
                kept = json.loads(f.read(4096))
            # a time of another boot would be in the future
            values = {name: kept[name] for name in MILESTONES}
            limit = boottime()
            if not all(v is None or 0 <= v <= limit for v in values.values()):
                raise ValueError("a time of the future")
            self.restarts = int(kept["restarts"]) + 1
            self.values = values
            self.save()  # the next daemon goes on counting, whatever this one reaches
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            log.warning("ignoring %s: %s", self.path, e)

    def reached(self, name: str, at: float | None = None) -> bool:
        """Note a milestone (now, or ``at``); False when it was reached before."""
        if self.values[name] is not None:
            return False
        self.values[name] = boottime() if at is None else at
        self.save()
        return True

    def save(self) -> None:
        """Keep the times for the next daemon, if possible."""
        data = json.dumps({**self.values, "restarts": self.restarts})
        try:
            write_atomically(self.path, data.encode() + b"\n", durable=False)
        except OSError as e:
            log.warning("cannot write %s: %s", self.path, e)
