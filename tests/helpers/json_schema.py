# SPDX-License-Identifier: Apache-2.0
"""Checks a document against a JSON Schema, as far as ours go (draft 2020-12)."""

from __future__ import annotations

from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = {
    "$schema", "$defs", "$ref", "title", "description", "type", "const", "enum", "required",
    "properties", "additionalProperties", "items", "minItems", "maxItems", "minimum", "maxLength",
}  # fmt: skip


def fits(found: Any, schema: dict[str, Any], where: str = "", root: Any = None) -> None:
    """Raise AssertionError that says where a document is not as the schema has it."""
    root = schema if root is None else root
    assert set(schema) <= _KNOWN, f"{where}: this check does not know all of {sorted(schema)}"
    if "$ref" in schema:
        part = root
        for name in schema["$ref"].removeprefix("#/").split("/"):
            part = part[name]
        fits(found, part, where, root)
        return
    assert found == schema.get("const", found), where
    assert found in schema.get("enum", [found]), f"{where}: {found!r}"
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        allowed = tuple(kind for name in kinds for kind in _TYPES[name])
        good = isinstance(found, allowed) and (bool in allowed or not isinstance(found, bool))
        assert good, f"{where}: {found!r} is none of {kinds}"
    if isinstance(found, int | float) and "minimum" in schema:
        assert found >= schema["minimum"], f"{where}: {found}"
    if isinstance(found, str):
        assert len(found) <= schema.get("maxLength", len(found)), f"{where}: {found}"
    if isinstance(found, list):
        assert schema.get("minItems", 0) <= len(found) <= schema.get("maxItems", len(found)), where
        for at, one in enumerate(found):
            fits(one, schema.get("items", {}), f"{where}[{at}]", root)
    if isinstance(found, dict):
        assert set(schema.get("required", ())) <= set(found), f"{where} lacks a member"
        others = schema.get("additionalProperties", {})
        for name, value in found.items():
            part = schema.get("properties", {}).get(name, others)
            assert part is not False, f"{where}.{name} is not in the schema"
            fits(value, part, f"{where}.{name}", root)
