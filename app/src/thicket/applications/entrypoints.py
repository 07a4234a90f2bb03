# SPDX-License-Identifier: Apache-2.0
"""The entry points of installed packages.

The standard library's own search is not used: it costs megabytes of memory, and most nodes have
nothing to find.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from logging import getLogger
from typing import Any

from thicket.base.files import opened

log = getLogger(__name__)

#: Bytes of the largest file with entry points that is read.
_MOST = 64 * 1024


def find(group: str, path: list[str] | None = None) -> dict[str, Callable[[], Any]]:
    """Return the entry points of ``group`` by name, each as a function that imports it.

    :param path: folders to search, by default ``sys.path``.
    """
    found: dict[str, Callable[[], Any]] = {}
    for point, target in targets(group, path).items():
        found[point] = lambda target=target: load(target)  # type: ignore[misc]
    return found


def targets(group: str, path: list[str] | None = None) -> dict[str, str]:
    """Return what the entry points of ``group`` name, ``module:attribute``, by their names.

    Of two with the same name the first one counts, as for ``import``.
    """
    found: dict[str, str] = {}
    for folder in sys.path if path is None else path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                for point, target in _read(f"{folder or '.'}/{name}/entry_points.txt", group):
                    found.setdefault(point, target)
    return found


def module_of(target: str) -> str:
    """Return the module at the top that ``module:attribute`` is in."""
    return target.partition(":")[0].partition(".")[0].strip()


def _read(file: str, group: str) -> list[tuple[str, str]]:
    """Return the entry points of ``group`` in a file; none without it, or if it is too large."""
    try:
        with opened(file) as stream:
            data = stream.read(_MOST + 1)
        lines = data.decode("utf-8").splitlines() if len(data) <= _MOST else []
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    section = ""
    for line in lines:
        text = line.strip()
        if text.startswith("[") and text.endswith("]"):
            section = text[1:-1].strip()
        elif section == group and "=" in text and not text.startswith(("#", ";")):
            name, _, target = text.partition("=")
            found.append((name.strip(), target.strip()))
    return found


def load(target: str) -> Any:
    """Import what ``module:attribute`` names."""
    module, _, attribute = target.partition(":")
    made: Any = import_module(module.strip())
    for part in attribute.split("[")[0].strip().split("."):
        made = getattr(made, part)
    return made
