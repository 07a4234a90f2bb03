# SPDX-License-Identifier: Apache-2.0
"""Where the one folder outside the checkout is that Thicket writes to."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the one folder outside the checkout that the product writes to.

    ``$THICKET_CACHE``, else ``$XDG_CACHE_HOME/thicket``, else ``~/.cache/thicket``.
    """
    own = os.environ.get("THICKET_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    # The XDG base directory specification: a relative path is invalid and to be ignored.
    if base and Path(base).is_absolute():
        return Path(base) / "thicket"
    return Path.home() / ".cache" / "thicket"
