# SPDX-License-Identifier: Apache-2.0
"""What goes wrong between the engineer's machine and a node."""

from __future__ import annotations

from thicket.base.errors import CodedError


class RemoteError(CodedError):
    """A node cannot be reached, is not the right one, or does not do what it is asked."""
