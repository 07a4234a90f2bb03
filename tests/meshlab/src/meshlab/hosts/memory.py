# SPDX-License-Identifier: Apache-2.0
"""How much memory a machine has left."""

from __future__ import annotations

from pathlib import Path


def available_mib() -> int:
    """Return what new programs can have without swapping, in MiB (proc_meminfo(5))."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0
