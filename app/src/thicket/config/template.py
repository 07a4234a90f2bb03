# SPDX-License-Identifier: Apache-2.0
"""The default ``thicket.toml``, made from the schema."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from thicket.base.fields import Key
from thicket.base.toml import toml_value
from thicket.config.schema import SECTIONS

_TEMPLATE_HEAD = """\
# The configuration of a Thicket node.
#
# Every line that starts with "#" is only a comment: the values shown are what the
# node uses when the line stays as it is. To change one, remove the "#" before it.
# `thicket config check FILE` tells whether a file is right.
"""

_TEMPLATE_TAIL = """\
# Settings of an application go below a line with its name; the application defines them:
#[application.NAME]
"""


def default_of(key: Key[Any]) -> str:
    """Return the default of a key, as TOML."""
    return toml_value(key.plain(key.default))


def template() -> str:
    """Return the file with every key at its default, commented out."""
    lines = [_TEMPLATE_HEAD]
    for section, cls in SECTIONS.items():
        lines += [f"[{section}]"]
        for key in cls.keys().values():
            text = key.help.replace("`", "")
            lines += [f"# {line}" for line in wrap(text, 86)]
            lines += [f"#   {line}" for line in wrap(f"Allowed: {key.allowed}.", 84)]
            lines += [f"#{key.name} = {default_of(key)}", ""]
    lines += [_TEMPLATE_TAIL]
    return "\n".join(lines).rstrip() + "\n"
