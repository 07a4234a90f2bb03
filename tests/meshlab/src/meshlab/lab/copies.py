# SPDX-License-Identifier: Apache-2.0
"""Copies of disks and of other files with holes: they share blocks where the file system can."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from meshlab.lab.errors import LabError


def copy_sparse(sources: Iterable[Path], target: Path) -> None:
    """Copy files with their modes and times, without their holes.

    :param sources: The files.
    :param target: The file that one becomes, or the directory that gets them.
    :raises LabError: when one cannot be copied.
    """
    names = [str(path) for path in sources]
    if not names:
        return
    command = ["cp", "--reflink=auto", "--sparse=always", "--preserve=mode,timestamps"]
    done = subprocess.run(
        [*command, "--", *names, str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"{', '.join(names)} cannot be copied: {done.stderr.strip()}")


def occupied(path: Path) -> int:
    """Return how many bytes of a disk a file, or all files below a directory, take."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(512 * each.stat().st_blocks for each in files)
