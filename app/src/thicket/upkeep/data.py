# SPDX-License-Identifier: Apache-2.0
"""The state of ``/data`` in this boot, as init found it."""

from __future__ import annotations

from typing import Final

from thicket.base.paths import Paths

#: The states that init's S20data.sh reports.
DATA_STATES: Final = ("clean", "repaired", "created", "rebuilt", "readonly", "ram")


def data_state(paths: Paths) -> tuple[str, str]:
    """Return the state of /data, one of DATA_STATES or "unknown", and the reason in words."""
    try:
        with open(paths.run + "/data", encoding="utf-8", errors="replace") as f:
            state, _, why = f.read(1024).strip().partition(" ")
    except OSError:
        return "unknown", ""
    return (state, why.strip()) if state in DATA_STATES else ("unknown", "")
