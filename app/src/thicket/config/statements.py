# SPDX-License-Identifier: Apache-2.0
"""Reads the text of a faulty configuration file leniently, statement by statement.

It is imported only when a file has a fault; :mod:`tomllib` decides whether it has one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from thicket.base.fields import Key
from thicket.config.schema import SECTIONS

#: Most characters of a line that are shown.
WIDTH = 76
BARE = re.compile(r"[A-Za-z0-9_-]+")
#: What can change where a value ends.
_MARK = re.compile(r"\"\"\"|'''|[\"'#\n\[\]{}]")


class Statement:
    """A statement: probably ``[section]`` or ``key = value``.

    :ivar start: its offset in the text, as are ``end`` and ``value``.
    :ivar value: where the value begins; ``end`` when there is none.
    :ivar path: the names from the section down; empty when they cannot be read.
    :ivar opened: the offset of a quote or bracket that is never closed, or -1.
    """

    __slots__ = ("end", "is_table", "opened", "path", "start", "value")

    def __init__(self, start: int) -> None:
        self.start = self.end = self.value = start
        self.path: tuple[str, ...] = ()
        self.is_table = False
        self.opened = -1


def statements(text: str) -> Iterator[Statement]:
    """Yield the statements of a text, which need not be valid TOML."""
    table: tuple[str, ...] = ()
    at = 0
    while at < len(text):
        if text[at] in " \t\n":
            at += 1
            continue
        if text[at] == "#":
            at = line_end(text, at)
            continue
        found = Statement(at)
        if text[at] == "[":
            found.is_table = True
            found.end = found.value = line_end(text, at)
            names, end = _names(text, at + (2 if text.startswith("[[", at) else 1))
            found.path = table = names if text.startswith("]", end) else ()
        else:
            names, end = _names(text, at)
            if text.startswith("=", end):
                found.path = (*table, *names) if names else ()
                found.value = end + 1
                while text.startswith((" ", "\t"), found.value):
                    found.value += 1
                found.end, found.opened = _value_end(text, found.value)
            else:
                found.end = found.value = line_end(text, at)
        yield found
        at = found.end


def line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _blank(text: str, at: int) -> int:
    while text.startswith((" ", "\t"), at):
        at += 1
    return at


def _names(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """Return the dotted names that begin at ``at``, () for none, and where they end."""
    names: list[str] = []
    while True:
        at = _blank(text, at)
        quote = text[at : at + 1]
        if quote and quote in "\"'":
            end = text.find(quote, at + 1, line_end(text, at))
            if end < 0:
                return (), at
            names.append(text[at + 1 : end])
            at = end + 1
        else:
            bare = BARE.match(text, at)
            if bare is None:
                return (), at
            names.append(bare.group())
            at = bare.end()
        at = _blank(text, at)
        if not text.startswith(".", at):
            return tuple(names), at
        at += 1


def _value_end(text: str, at: int) -> tuple[int, int]:
    """Return the end of a value with its line, and the place of what is never closed, or -1."""
    open_brackets: list[int] = []
    while (mark := _MARK.search(text, at)) is not None:
        what, at = mark.group(), mark.end()
        if what in {'"""', "'''"}:
            end = _closing(text, what, at)
            if end < 0:
                return len(text), mark.start()
            at = end
        elif what in {'"', "'"}:
            end = _closing(text, what, at)
            if end < 0 or end > line_end(text, at):
                return line_end(text, at), mark.start()
            at = end
        elif what == "#":
            at = line_end(text, at)
        elif what in {"[", "{"}:
            open_brackets.append(mark.start())
        elif what in {"]", "}"}:
            if open_brackets:
                open_brackets.pop()
        elif not open_brackets:
            return mark.start(), -1
    return len(text), open_brackets[0] if open_brackets else -1


def _closing(text: str, quote: str, at: int) -> int:
    """Return the end of the text that a quote before ``at`` begins, or -1."""
    while True:
        end = text.find(quote, at)
        if end < 0:
            return -1
        if quote[0] == '"':
            behind = end
            while behind > at and text[behind - 1] == "\\":
                behind -= 1
            if (end - behind) % 2:
                at = end + 1
                continue
        return end + len(quote)


def key_of(statement: Statement) -> Key[Any] | None:
    """Return the declared key that a statement sets, or None."""
    if statement.is_table or len(statement.path) != 2:
        return None
    section = SECTIONS.get(statement.path[0])
    return None if section is None else section.keys().get(statement.path[1])


def keys_named(name: str) -> list[Key[Any]]:
    found = (section.keys().get(name) for section in SECTIONS.values())
    return [key for key in found if key is not None]
