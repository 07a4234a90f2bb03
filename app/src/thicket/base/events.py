# SPDX-License-Identifier: Apache-2.0
"""How one part tells another what happened: it hands typed events to one listener.

A part declares its events as NamedTuples and their union, such as ``RadioEvent = Joined | Left``.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

E_contra = TypeVar("E_contra", contravariant=True)


class Listener(Protocol[E_contra]):
    """Receives events in the event loop. It must neither wait nor raise."""

    def on(self, event: E_contra, /) -> None:
        """Something happened."""
