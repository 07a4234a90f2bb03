# SPDX-License-Identifier: Apache-2.0
"""What goes wrong at a cable."""

from __future__ import annotations

from thicket.base.errors import CodedError


class CableError(CodedError):
    """A device is not found, or not the one that is meant."""
