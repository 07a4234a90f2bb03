# SPDX-License-Identifier: Apache-2.0
"""What holds for the tests of every folder beside this file."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let programs that tests start be interrupted, however the tests were started.

    A shell without job control ignores SIGINT in what it starts in the background; a program
    inherits that, and Python then installs no handler.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, before)
