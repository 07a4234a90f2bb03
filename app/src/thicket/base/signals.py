# SPDX-License-Identifier: Apache-2.0
"""Signals of the process, handled in its event loop."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping


@contextmanager
def called(
    loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], object]]
) -> Iterator[None]:
    """Call these functions in the event loop when their signals come, within this context.

    ``loop.add_signal_handler`` does the same. It needs ``inspect``, a twenty-fifth of what the
    daemon's imports cost. ``call_soon_threadsafe`` is documented to be safe in signal handlers, and
    it wakes the loop.
    """
    former = {
        number: signal.signal(number, lambda _number, _frame, do=do: loop.call_soon_threadsafe(do))  # type: ignore[misc]
        for number, do in handlers.items()
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            # None: it was not set by Python
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
