# SPDX-License-Identifier: Apache-2.0
"""Arithmetic on byte ranges: half-open pairs (start, end), sorted and disjoint where returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Range = tuple[int, int]


def union(ranges: Iterable[Range]) -> list[Range]:
    """Return what is in any of ``ranges``; neighbours that touch become one, empty ones vanish."""
    merged: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def subtract(ranges: Iterable[Range], less: Iterable[Range]) -> list[Range]:
    """Return what is in ``ranges`` but not in ``less``."""
    holes = union(less)
    left = []
    for start, end in union(ranges):
        position = start
        for hole_start, hole_end in holes:
            if hole_end <= position or hole_start >= end:
                continue
            if hole_start > position:
                left.append((position, hole_start))
            position = hole_end
        if position < end:
            left.append((position, end))
    return left


def intersect(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """Return what is in both."""
    mine = union(ranges)
    return subtract(mine, subtract(mine, others))


def clip(ranges: Iterable[Range], start: int, end: int) -> list[Range]:
    """Return the part of ``ranges`` that lies from ``start`` to ``end``."""
    return union((max(a, start), min(b, end)) for a, b in ranges)


def align(ranges: Iterable[Range], unit: int) -> list[Range]:
    """Return ``ranges`` grown outward to whole ``unit`` s."""
    return union((a // unit * unit, -(-b // unit) * unit) for a, b in ranges if a < b)


def length(ranges: Iterable[Range]) -> int:
    """Return how many bytes disjoint ``ranges`` hold."""
    return sum(end - start for start, end in ranges)


def pieces(ranges: Iterable[Range], most: int) -> Iterator[Range]:
    """Cut ``ranges`` at every multiple of ``most``, which so is the largest piece."""
    for start, end in ranges:
        position = start
        while position < end:
            stop = min(end, (position // most + 1) * most)
            yield position, stop
            position = stop
