# SPDX-License-Identifier: Apache-2.0
"""What holds for the tests of every folder beside this file."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Generator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from authority import keys
from host.cache import cache_root

# What Hypothesis finds in our sources by parsing them all, and the examples that failed: for every
# checkout.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(cache_root() / "hypothesis"))
# A busy machine makes any example slow once, and to make them; that is no fault of what is tested.
settings.register_profile("thicket", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("thicket")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep what is compiled of the tests' files, in the cache.

    pytest gives their assertions words, which costs each worker more than all the rest of its
    start. What a test imports later is not kept: it may be a file that the test has just made.
    """
    before = sys.pycache_prefix, sys.dont_write_bytecode
    sys.pycache_prefix, sys.dont_write_bytecode = str(cache_root() / "bytecode"), False
    try:
        return (yield)
    finally:
        sys.pycache_prefix, sys.dont_write_bytecode = before


@pytest.fixture(scope="session", autouse=True)
def cost_of_keys() -> Iterator[int]:
    """Encrypt the keys of authorities that tests make at little cost; hand out the real one.

    It is there to make guesses at a passphrase expensive, a quarter of a second each.
    """
    with pytest.MonkeyPatch.context() as patched:
        real = keys._ITERATIONS
        patched.setattr(keys, "_ITERATIONS", 16)
        yield real


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
