# SPDX-License-Identifier: Apache-2.0
"""What the authority answers when it cannot do something."""

from __future__ import annotations

from thicket.base.errors import ThicketError


class AuthorityError(ThicketError):
    """The authority cannot do this. The text says what was found and what to do."""
