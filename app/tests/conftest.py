# SPDX-License-Identifier: Apache-2.0
"""Lets the tests import what they share, which lies beside them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from daemons import Fleet

# A busy machine makes any example slow once; that is no fault of what is tested.
settings.register_profile("thicket", deadline=None)
settings.load_profile("thicket")


@pytest.fixture
def fleet(tmp_path: Path) -> "Iterator[Fleet]":
    """Real daemons on a bridge, as many as the test adds."""
    from daemons import fleet_in

    with fleet_in(tmp_path) as made:
        yield made
