# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with the page."""

from __future__ import annotations

from thicket.base.errors import CodedError


class WebError(CodedError):
    """It cannot be served, or its source refuses. Its text is for people."""
