# SPDX-License-Identifier: Apache-2.0
"""Lets the tests import what they share, which lies beside them."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))

# A busy machine makes any example slow once; that is no fault of what is tested.
settings.register_profile("thicket", deadline=None)
settings.load_profile("thicket")
