# SPDX-License-Identifier: Apache-2.0
"""What holds for the tests of the engineer's desk; helpers are in tests/helpers."""

from hypothesis import settings

# A busy machine makes any example slow once; that is no fault of what is tested.
settings.register_profile("thicket", deadline=None)
settings.load_profile("thicket")
