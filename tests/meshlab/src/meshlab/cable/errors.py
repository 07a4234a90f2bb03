# SPDX-License-Identifier: Apache-2.0
"""Why there is no cable."""

from __future__ import annotations


class CableError(Exception):
    """This machine cannot have the other end of a cable; the text says what to do."""
