# SPDX-License-Identifier: Apache-2.0
"""Lets the tests import what they share, which lies beside them."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from daemons import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> "Iterator[Fleet]":
    """Real daemons on a bridge, as many as the test adds."""
    from daemons import fleet_in

    with fleet_in(tmp_path) as made:
        yield made


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Give a test marked so an event loop whose clock jumps."""
    if item.get_closest_marker("virtual_time"):
        from virtual_time import VirtualTimeLoop

        return {"virtual": VirtualTimeLoop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture(autouse=True)
def _clock(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let everybody in such a test see that clock."""
    if request.node.get_closest_marker("virtual_time") is None:
        yield
        return
    from virtual_time import one_clock

    with one_clock():
        yield
