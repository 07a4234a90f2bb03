# SPDX-License-Identifier: Apache-2.0
"""What a node of the cluster tells, kept for a test to look at."""

from typing import TypeVar

from thicket.base.events import Listener
from thicket.distribution.events import ClusterEvent

E = TypeVar("E", bound=ClusterEvent)


class Told(list[ClusterEvent], Listener[ClusterEvent]):
    """The events of a node, the oldest first."""

    def on(self, event: ClusterEvent, /) -> None:
        self.append(event)

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind."""
        return [event for event in self if isinstance(event, kind)]
