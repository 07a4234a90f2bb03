# SPDX-License-Identifier: Apache-2.0
"""Where labs keep their files, and how a person calls ``meshlab`` for one."""

from __future__ import annotations

import re
from pathlib import Path

from host.cache import cache_root

_LAB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


def labs_root(cache: Path | None = None) -> Path:
    """Return the folder that holds one directory per lab."""
    return (cache or cache_root()) / "labs"


def slots_directory(cache: Path | None = None) -> Path:
    """Return the folder of the boot slots, which all labs of this cache share."""
    return (cache or cache_root()) / "boot-slots"


def lab_directory(name: str, cache: Path | None = None) -> Path:
    """Return the directory of the lab ``name``.

    :raises ValueError: when the name could not be a directory of its own.
    """
    return labs_root(cache) / check_name(name)


def check_name(name: str, what: str = "of a lab") -> str:
    """Return ``name`` when a directory can have it.

    :param what: What it is the name of, for people.
    :raises ValueError: when none of its own can.
    """
    if not _LAB_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not the name {what}: use letters, digits, '-', '_' and '.', "
            "at most 64, starting with a letter or digit"
        )
    return name


def own_call(lab: str, words: str) -> str:
    """Return how a person calls ``meshlab`` for a lab, in messages."""
    return f"meshlab {words}" if lab == "default" else f"meshlab --lab {lab} {words}"
