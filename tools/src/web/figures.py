# SPDX-License-Identifier: Apache-2.0
"""The numbers of a node that people want to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from web.checked import number, table, tables, text

#: Of which there is a curve.
CURVES = ("load", "temperature", "memory", "data")


def of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a node of ``thicket fleet --json`` (docs/fleet.schema.json)."""
    clock = table(row.get("clock"))
    return {
        "version": text(row.get("version"), 32),
        "slot": text(row.get("slot"), 32),
        "uptime": number(row.get("uptime"), 0),
        "load": number(row.get("load"), 0),
        "temperature": number(row.get("temperature"), -274, 1000),
        "memory": _used(row.get("memory")),
        "data": _used(row.get("data")),
        "clock": number(clock.get("offset")),
        "applications": [
            {"name": text(one.get("name"), 64), "state": text(one.get("state"), 32)}
            for one in tables(row.get("applications"), 32)
        ],
    }


def _used(room: Any) -> float | None:
    """Return which share of a memory is used, from 0 to 1."""
    available, size = number(table(room).get("available"), 0), number(table(room).get("size"), 0)
    if available is None or not size:
        return None
    return round(max(0.0, 1 - available / size), 3)
