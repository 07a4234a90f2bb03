# SPDX-License-Identifier: Apache-2.0
"""Changing the configuration on the device: finding the file, editing it, and writing it safely.

The configuration is ``thicket.toml`` on the boot partition, where the card's owner finds it on any
computer. A device whose kernel command line names no boot partition (``thicket.boot=``) keeps it in
``/data/thicket/thicket.toml``. The daemon reads a copy in ``/etc`` (RAM).
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from thicket.base.fields import ConfigError
from thicket.base.files import MAX_FILE_BYTES, read_kept, read_limited, write_atomically
from thicket.base.paths import Paths, boot_device
from thicket.base.toml import toml_value
from thicket.config.load import image_defaults, load
from thicket.config.parse import decode, parse, parse_toml
from thicket.config.schema import APPLICATION
from thicket.device.boot_partition import StoreError, boot_lock, mount_boot, write_to_boot

_NAME = "thicket.toml"


def source(paths: Paths) -> tuple[str, str]:
    """Return the text and the path of the device's configuration file.

    When the file is gone or empty, the text is that of the last good one, because a person changes
    the settings in force. Without either the text is empty, and the path is where the file will be.

    :raises StoreError: it cannot be read.
    :raises ConfigError: it is not UTF-8.
    """
    device = boot_device(paths)
    if device is None:
        return _first_of(paths, [paths.device, paths.local])
    with boot_lock(paths):
        mount_boot(paths, device)
        return _first_of(paths, [f"{paths.boot}/{_NAME}"])


def _first_of(paths: Paths, places: list[str]) -> tuple[str, str]:
    for path in places:
        try:
            text = decode(read_limited(path), path)
        except FileNotFoundError:
            continue
        except OSError as e:
            raise StoreError(f"cannot read {path}: {e.strerror}") from e
        if text.strip("\0 \t\n"):
            return text, path
    kept = load(paths)
    if kept.last_good_used:
        with contextlib.suppress(OSError):
            return decode(read_kept(paths.last_good, MAX_FILE_BYTES + 1), paths.last_good), places[
                -1
            ]
    return "", places[-1]


def apply(paths: Paths, data: bytes) -> str:
    """Check ``data`` as a whole file, and make it the device's configuration.

    :returns: where it was written.
    :raises ConfigError: every fault of it; nothing was written.
    :raises StoreError: writing failed.
    """
    base, _ = image_defaults(paths.image)
    parse(data, _NAME, base)
    device = boot_device(paths)
    try:
        if device is None:
            write_atomically(paths.local, data, mode=0o600)
            # an existing copy, made at boot or by hand, has precedence
            if os.path.exists(paths.device):
                write_atomically(paths.device, data, mode=0o600, durable=False)
            return paths.local
        target = f"{paths.boot}/{_NAME}"
        with boot_lock(paths):
            write_to_boot(paths, device, target, data)
        write_atomically(paths.device, data, mode=0o600, durable=False)
    except OSError as e:
        where = f"{e.filename}: " if e.filename else ""
        raise StoreError(f"cannot write the configuration: {where}{e.strerror}") from e
    return target


def set_values(text: str, changes: dict[str, object], name: str = _NAME) -> str:
    """Return ``text`` with the keys ``section.key`` set to plain TOML values; None removes a key.

    Comments and order are kept in a file of the usual layout, one key per line below its
    ``[section]``; any other file is written anew from its values. The result is not checked against
    the schema.

    :raises ConfigError: ``text`` is not TOML.
    """
    wanted: dict[str, Any] = {}
    for section, table in parse_toml(text, name).items():
        wanted[section] = dict(table) if isinstance(table, dict) else table
    for path, value in changes.items():
        section, _, key = path.partition(".")
        table = wanted.setdefault(section, {})
        if not isinstance(table, dict):
            table = wanted[section] = {}
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value
    edited = text
    for path, value in changes.items():
        section, _, key = path.partition(".")
        edited = _edit(edited, section, key, value)
    try:
        result = parse_toml(edited, name)
    except ConfigError:
        result = {}
    if _without_empty(result) == _without_empty(wanted):
        return edited
    return _written_anew(wanted)


def _without_empty(tables: dict[str, Any]) -> dict[str, Any]:
    return {name: table for name, table in tables.items() if table != {}}


def _edit(text: str, section: str, key: str, value: object) -> str:
    """Edit one key line by line; the caller verifies the result."""
    lines = text.split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    line = None if value is None else f"{key} = {toml_value(value)}"
    inside = False
    insert_at: int | None = None
    for number, old in enumerate(lines):
        words = old.strip()
        if words.startswith("["):
            inside = words.split("#")[0].replace(" ", "").rstrip() == f"[{section}]"
            if inside:
                insert_at = number + 1
        elif inside and words.split("=")[0].strip() == key and "=" in words:
            if line is None:
                del lines[number]
            else:
                comment = _comment(old)
                lines[number] = line + (f"  {comment}" if comment else "")
            return "\n".join([*lines, ""])
        elif inside and words and not words.startswith("#"):
            insert_at = number + 1
    if line is None:
        return text
    if insert_at is not None:
        lines.insert(insert_at, line)
    else:
        lines += ["", f"[{section}]", line] if lines else [f"[{section}]", line]
    return "\n".join([*lines, ""])


def _comment(line: str) -> str:
    """Return the comment of a line ``key = value  # comment``; empty in case of doubt."""
    _, mark, rest = line.rpartition("#")
    return f"#{rest}" if mark and '"' not in rest and "'" not in rest else ""


def _written_anew(tables: dict[str, Any]) -> str:
    lines: list[str] = []
    if "format" in tables:
        lines.append(f"format = {_any_value(tables['format'])}")
    for section, table in tables.items():
        if not isinstance(table, dict) or not table:
            continue
        if section == APPLICATION:
            for name, settings in table.items():
                # a table per application; of its name only a dot needs quotes
                shown = name if "." not in name else toml_value(name)
                lines += ["", f"[{section}.{shown}]"]
                if isinstance(settings, dict):
                    lines += [f"{_key(k)} = {_any_value(v)}" for k, v in settings.items()]
            continue
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_any_value(value)}" for key, value in table.items()]
    # an empty file would count as lost
    return "\n".join(lines).lstrip("\n") + "\n" if lines else "# defaults\n"


def _key(name: str) -> str:
    bare = name.isascii() and name.replace("-", "_").replace("_", "a").isalnum()
    return name if bare else toml_value(name)


def _any_value(value: object) -> str:
    # the check that follows refuses values of other types
    known = isinstance(value, str | int | float | list | dict)
    return toml_value(value if known else str(value))
