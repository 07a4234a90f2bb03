# SPDX-License-Identifier: Apache-2.0
"""Terms, and the output of ``io_lib:format/2``, as text for our log.

Erlang functions that we call print and log to us. The text is for people: field widths, precisions
and line breaks of ``~p`` are left out, and everything is cut off at a limit.
"""

from __future__ import annotations

import re
from typing import Any

from thicket.distribution.etf import (
    Atom,
    BitString,
    FrozenList,
    ImproperList,
    PairMap,
    Pid,
    Reference,
    shown,
)

MAX_TEXT = 4096
"""Default limit of a text in characters."""

_MAX_DEPTH = 32
_MAX_BITS = 4096  # of an integer
# ~F.P.PadModC, see the manual of io:fwrite/3
_DIRECTIVE = re.compile(r"~(?:-?\d+|\*)?(?:\.(?:-?\d+|\*)?)?(?:\..)?[tlkK]*(.)", re.DOTALL)
_PLAIN_ATOM = re.compile(r"[a-z][A-Za-z0-9_@]*")


class _FullError(Exception):
    """The text has reached its limit."""


def term_text(term: Any, limit: int = MAX_TEXT) -> str:
    """Return ``term`` as Erlang writes it, cut off at ``limit`` characters."""
    parts = _Parts(limit)
    try:
        _write(term, parts, 0)
    except _FullError:
        return parts.text() + "..."
    return parts.text()


def characters(data: Any, limit: int = MAX_TEXT) -> str:
    """Return the text of nested binaries and lists of characters, or else the text of the term."""
    parts = _Parts(limit)
    try:
        _characters(data, parts, 0)
    except _FullError:
        return parts.text() + "..."
    except ValueError:
        return term_text(data, limit)
    return parts.text()


def formatted(form: Any, values: Any, limit: int = MAX_TEXT) -> str:
    """Return the output of ``io_lib:format(form, values)``, without padding."""
    text = characters(form, limit)
    given = values if type(values) in (list, FrozenList) else []
    used = 0  # an index, as there may be very many
    room = limit

    def put(match: re.Match[str]) -> str:
        nonlocal room
        put_in = directive(match) if room >= 0 else ""
        room -= len(put_in)
        return put_in

    def directive(match: re.Match[str]) -> str:
        nonlocal used
        kind = match[1]
        if kind in "~n":
            return "~" if kind == "~" else "\n"
        wanted = match[0].count("*") + (2 if kind in "WPxX" else 1)
        if len(given) - used < wanted:
            return match[0]
        *_, value = taken = given[used : used + wanted]
        used += wanted
        if kind in "WPxX":
            value = taken[-2]
        if kind == "i":
            return ""
        if kind == "s":
            return str(value) if type(value) is Atom else characters(value, room)
        if kind == "c" and type(value) is int and 0 <= value < 0x110000:
            return chr(value)
        return term_text(value, room)

    made = _DIRECTIVE.sub(put, text)
    if used < len(given):
        made += " " + term_text(list(given[used : used + limit]), limit)
    return made if len(made) <= limit else made[:limit] + "..."


class _Parts:
    """Text that grows up to a limit."""

    def __init__(self, limit: int) -> None:
        self._room = limit
        self._parts: list[str] = []

    def add(self, text: str) -> None:
        self._parts.append(text[: self._room])
        self._room -= len(text)
        if self._room < 0:
            raise _FullError

    def text(self) -> str:
        return "".join(self._parts)


def _characters(data: Any, parts: _Parts, depth: int) -> None:
    kind = type(data)
    if kind is bytes:
        parts.add(data[: MAX_TEXT * 4].decode(errors="replace"))
    elif kind is str:
        parts.add(data)
    elif kind is int and 0 <= data < 0x110000:
        parts.add(chr(data))
    elif kind in (list, FrozenList) and depth < _MAX_DEPTH:
        for item in data:
            _characters(item, parts, depth + 1)
    elif kind is ImproperList and depth < _MAX_DEPTH:
        for item in (*data.items, data.tail):
            _characters(item, parts, depth + 1)
    else:
        raise ValueError("no text")


def _is_text(items: Any) -> bool:
    return bool(items) and all(
        type(item) is int and (32 <= item < 0x7F or 0xA0 <= item < 0xD800 or item in (9, 10, 13))
        for item in items
    )


def _write(term: Any, parts: _Parts, depth: int) -> None:
    kind = type(term)
    if depth > _MAX_DEPTH:
        parts.add("...")
    elif kind is Atom:
        quoted = term.replace("\\", "\\\\").replace("'", "\\'")
        parts.add(str(term) if _PLAIN_ATOM.fullmatch(term) else f"'{quoted}'")
    elif term is None or kind is bool:
        parts.add("nil" if term is None else str(term).lower())
    elif kind is int:
        parts.add(str(term) if term.bit_length() <= _MAX_BITS else hex(term))
    elif kind is str or kind is bytes:
        text = term if kind is str else term[: MAX_TEXT * 4].decode(errors="replace")
        parts.add(f'<<"{text}">>')
    elif kind is Pid:
        parts.add(f"<{term.node}.{term.id}.{term.serial}>")
    elif kind is Reference:
        parts.add(f"#Ref<{term.node}.{'.'.join(map(str, term.words))}>")
    elif kind is BitString:
        parts.add(f"<<{len(term)} bits>>")
    elif kind is tuple:
        _items("{", term, "}", parts, depth)
    elif kind in (list, FrozenList):
        if _is_text(term[:MAX_TEXT]):
            parts.add('"' + "".join(map(chr, term[:MAX_TEXT])) + '"')
        else:
            _items("[", term, "]", parts, depth)
    elif kind is ImproperList:
        _items("[", term.items, "|", parts, depth)
        _write(term.tail, parts, depth + 1)
        parts.add("]")
    elif kind is dict or isinstance(term, PairMap):
        parts.add("#{")
        for number, (key, value) in enumerate(term.items() if kind is dict else term.pairs):
            if number:
                parts.add(",")
            _write(key, parts, depth + 1)
            parts.add(" => ")
            _write(value, parts, depth + 1)
        parts.add("}")
    else:
        parts.add(shown(term))


def _items(begin: str, items: Any, end: str, parts: _Parts, depth: int) -> None:
    parts.add(begin)
    for number, item in enumerate(items):
        if number:
            parts.add(",")
        _write(item, parts, depth + 1)
    parts.add(end)
