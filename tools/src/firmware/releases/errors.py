# SPDX-License-Identifier: Apache-2.0
"""The error of releases."""

from __future__ import annotations

from firmware.errors import FlashError


class ReleaseError(FlashError):
    """A release cannot be made or used; the text says why and what to do."""
