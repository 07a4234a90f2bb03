# SPDX-License-Identifier: Apache-2.0
"""How ``/data`` came up in this boot, as init found it."""

from __future__ import annotations

from typing import Final

from thicket.base.paths import Paths

#: What init's S20data.sh can say of /data.
DATA_STATES: Final = ("clean", "repaired", "created", "rebuilt", "readonly", "ram")


def data_state(paths: Paths) -> tuple[str, str]:
    """How /data came up in this boot: one of DATA_STATES, or "unknown"; and why, in words."""
    try:
        with open(paths.run + "/data", encoding="utf-8", errors="replace") as f:
            state, _, why = f.read(1024).strip().partition(" ")
    except OSError:
        return "unknown", ""
    return (state, why.strip()) if state in DATA_STATES else ("unknown", "")
