# SPDX-License-Identifier: Apache-2.0
"""What can go wrong while an image is built."""

from __future__ import annotations

from host.errors import HostError


class ImageError(HostError):
    """An image could not be built; the text says what was tried, found, and what to do."""
