# SPDX-License-Identifier: Apache-2.0
"""What nodes boot that get kernel and root directly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageSet:
    """What a node boots."""

    name: str
    kernel: Path
    """For ``qemu-system-ARCH -kernel``; for x86-64 an ELF file with a PVH entry."""
    rootfs: Path
    """EROFS, to be the first disk, read-only."""
    cmdline: str
    description: str
    """One line for people: versions and sizes."""
