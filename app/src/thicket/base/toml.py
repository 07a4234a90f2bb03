# SPDX-License-Identifier: Apache-2.0
"""Values in TOML's notation."""

from __future__ import annotations


def toml_value(value: object) -> str:
    """Return a text, number, boolean, or a list or table of these as TOML 1.0."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if isinstance(value, dict):
        pairs = (f"{toml_value(str(k))} = {toml_value(v)}" for k, v in value.items())
        return "{ " + ", ".join(pairs) + " }" if value else "{}"
    text = []
    for c in str(value):
        if c in '"\\':
            text.append("\\" + c)
        elif c == "\n":
            text.append("\\n")
        elif c < " " or c == "\x7f":
            text.append(f"\\u{ord(c):04X}")
        else:
            text.append(c)
    return '"' + "".join(text) + '"'
