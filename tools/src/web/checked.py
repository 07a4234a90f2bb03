# SPDX-License-Identifier: Apache-2.0
"""Reads what nodes say, any of which may lie: a wrong value is as good as none."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from thicket.base.visible import visible


def text(value: Any, most: int = 240) -> str:
    """Return a text with visible characters alone, of at most ``most``; empty for none."""
    return visible(value[: 4 * most], keep="")[:most] if isinstance(value, str) else ""


def number(value: Any, least: float = -1e15, most: float = 1e15) -> float | None:
    """Return a number within bounds; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isfinite(value) and least <= value <= most else None


def whole(value: Any, least: int = -(2**31), most: int = 2**32) -> int | None:
    """Return a whole number within bounds; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if least <= value <= most else None


def table(value: Any) -> Mapping[str, Any]:
    """Return an object; an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def tables(value: Any, most: int) -> list[Mapping[str, Any]]:
    """Return the objects among the first ``most`` items of a list."""
    found = value[:most] if isinstance(value, list) else []
    return [one for one in found if isinstance(one, dict)]


def texts(value: Any, most: int, longest: int = 240) -> list[str]:
    """Return the first ``most`` items of a list as texts."""
    return [text(one, longest) for one in (value[:most] if isinstance(value, list) else [])]
