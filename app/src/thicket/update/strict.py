# SPDX-License-Identifier: Apache-2.0
"""Members of JSON objects that strangers may have written: of one type, and within bounds.

Each function returns what it was given, or raises ValueError with words that name it.
"""

from __future__ import annotations

from collections.abc import Collection

_DIGITS = frozenset("0123456789abcdef")


def members(raw: object, what: str, names: Collection[str]) -> dict[str, object]:
    """Return an object that has these members and no others."""
    if not isinstance(raw, dict) or set(raw) != set(names):
        raise ValueError(f"{what} does not have these members alone: {', '.join(sorted(names))}")
    return raw


def items(raw: object, what: str, least: int, most: int) -> list[object]:
    """Return a list of so many items."""
    if not isinstance(raw, list) or not least <= len(raw) <= most:
        raise ValueError(f"{what} is no list of {least} to {most}")
    return raw


def number(raw: object, what: str, least: int, most: int) -> int:
    """Return a whole number."""
    if not isinstance(raw, int) or isinstance(raw, bool) or not least <= raw <= most:
        raise ValueError(f"{what} is no number from {least} to {most}")
    return raw


def digits(raw: object, what: str, size: int) -> str:
    """Return the hexadecimal digits of so many bytes."""
    if not isinstance(raw, str) or len(raw) != 2 * size or set(raw) - _DIGITS:
        raise ValueError(f"{what} is not {2 * size} hexadecimal digits")
    return raw
