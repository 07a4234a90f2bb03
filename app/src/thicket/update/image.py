# SPDX-License-Identifier: Apache-2.0
"""What the image that runs says of itself (``os-release``)."""

from __future__ import annotations

from thicket.base.paths import Paths
from thicket.update.manifest import MAX_EPOCH

#: Most bytes that are read.
_MOST = 4096


def epoch(paths: Paths) -> int:
    """Return the security epoch; 0 where the image names none."""
    value = _fields(paths).get("THICKET_EPOCH", "")
    return min(int(value[:6]), MAX_EPOCH) if value.isascii() and value.isdecimal() else 0


def made(paths: Paths) -> int:
    """Return when it was made, in Unix seconds: the time of its commit; 0 where it does not say."""
    value = _fields(paths).get("THICKET_DATE", "")
    return int(value[:12]) if value.isascii() and value.isdecimal() else 0


def version(paths: Paths) -> str:
    """Return the version; empty where the image names none."""
    return _fields(paths).get("VERSION_ID", "").strip('"')[:64]


def _fields(paths: Paths) -> dict[str, str]:
    try:
        with open(paths.root + "/usr/lib/os-release", encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST).splitlines()
    except OSError:
        return {}
    return {
        name: value for name, equals, value in (line.partition("=") for line in lines) if equals
    }
