# SPDX-License-Identifier: Apache-2.0
"""How a part tells another one what happened: by a value of a type, to one listener.

A part declares its events as NamedTuples and their union, such as ``RadioEvent = Joined | Left``.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

E_contra = TypeVar("E_contra", contravariant=True)


class Listener(Protocol[E_contra]):
    """Who is told what happens. Called in the event loop; it must not wait, and not raise."""

    def on(self, event: E_contra, /) -> None:
        """Something happened."""
