# SPDX-License-Identifier: Apache-2.0
"""Terms as JSON, for the control socket and the command line.

========================  =========================================
JSON                      term
========================  =========================================
number, true, null ...    as in Python (``null`` is ``nil``)
string                    text, a binary in UTF-8
array, object             list, map with keys of text
``{"atom": "ok"}``        an atom
``{"tuple": [...]}``      a tuple
``{"bytes": "AP8="}``     a binary that is no text, in Base64
``{"map": [[k, v]...]}``  a map with other keys
``{"term": "..."}``       anything else, as text; only in output
========================  =========================================
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from thicket.base.errors import ThicketError
from thicket.distribution.etf import Atom, FrozenList, PairMap, shown

_MAX_DEPTH = 64
MAX_SIZE = 4 * 1024 * 1024
"""Default limit of a term in characters of JSON, roughly."""

_MAX_DIGITS = 1233  # of an integer, as many as 4096 bits have
_MAX_BITS = 4096  # of an integer; beyond, Python takes more than linear time, or refuses
_SPECIAL = frozenset(("atom", "tuple", "bytes", "map", "term"))


class TooLongError(ThicketError, ValueError):
    """The JSON form of a term would be longer than it may be."""


def to_json(term: Any, limit: int = MAX_SIZE) -> Any:
    """Return ``term`` in its JSON form; parts that are nested too deeply become text.

    :raises TooLongError: it is longer than about ``limit`` characters.
    """
    return _to_json(term, 0, [limit])


def _to_json(term: Any, depth: int, room: list[int]) -> Any:
    kind = type(term)
    if kind in (str, bytes):
        room[0] -= len(term)
    room[0] -= 8
    if room[0] < 0:
        raise TooLongError("it is too long to be shown as JSON")
    if kind is int and term.bit_length() > _MAX_BITS:
        text = hex(term)
        return {"term": text[:1000] + ("..." if len(text) > 1000 else "")}
    if term is None or kind in (bool, int, float, str):
        return term
    if kind is Atom:
        return {"atom": str(term)}
    if kind is bytes:
        try:
            return term.decode()
        except UnicodeDecodeError:
            return {"bytes": base64.b64encode(term).decode()}
    depth += 1
    if depth > _MAX_DEPTH:
        return {"term": "..."}
    if kind in (list, FrozenList):
        return [_to_json(item, depth, room) for item in term]
    if kind is tuple:
        return {"tuple": [_to_json(item, depth, room) for item in term]}
    if kind is dict or isinstance(term, PairMap):
        pairs = list(term.items() if kind is dict else term.pairs)
        names = [_key(key) for key, _ in pairs]
        plain = all(name is not None for name in names) and len(set(names)) == len(names)
        if plain and not (len(names) == 1 and names[0] in _SPECIAL):
            room[0] -= sum(len(name or "") for name in names)
            return {
                name: _to_json(value, depth, room)
                for name, (_, value) in zip(names, pairs, strict=True)
            }
        return {
            "map": [
                [_to_json(key, depth, room), _to_json(value, depth, room)] for key, value in pairs
            ]
        }
    room[0] -= 1000
    return {"term": shown(term)[:1000]}


def _key(key: Any) -> str | None:
    """Return a key that is text as ``str``, or None."""
    if type(key) in (str, Atom):
        return str(key)
    if type(key) is bytes:
        try:
            return key.decode()
        except UnicodeDecodeError:
            return None
    return None


def from_json(value: Any, depth: int = 0) -> Any:
    """Return the term of a JSON form.

    :raises ValueError: the form is invalid.
    """
    depth += 1
    if depth > _MAX_DEPTH:
        raise ValueError(f"a value is nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, list):
        return [from_json(item, depth) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or next(iter(value)) not in _SPECIAL:
        return {key: from_json(item, depth) for key, item in value.items()}
    (form, inner), *_ = value.items()
    match form, inner:
        case "atom", str():
            return Atom(inner)
        case "tuple", list():
            return tuple(from_json(item, depth) for item in inner)
        case "bytes", str():
            try:
                return base64.b64decode(inner, validate=True)
            except binascii.Error as error:
                raise ValueError(f"bytes must be in Base64: {error}") from None
        case "map", list():
            pairs = []
            for pair in inner:
                if not isinstance(pair, list) or len(pair) != 2:
                    raise ValueError("a map is a list of pairs")
                pairs.append((from_json(pair[0], depth), from_json(pair[1], depth)))
            return PairMap(pairs)
    raise ValueError(f"a {form} cannot be {shown(inner)}")


def from_word(word: str) -> Any:
    """Return the term of a word on the command line: JSON, ``:name`` for an atom, or else text.

    :raises ValueError: the form is invalid.
    """
    import json

    if word.startswith(":") and len(word) > 1:
        return Atom(word[1:])
    try:
        value = json.loads(word, parse_int=_integer)
    except json.JSONDecodeError:
        return word
    return from_json(value)


def _integer(digits: str) -> int:
    """Return an integer of JSON.

    :raises ValueError: it has too many digits, for which Python takes more than linear time.
    """
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits (limit {_MAX_DIGITS})")
    return int(digits)


def to_words(term: Any) -> str:
    """Return a JSON form for people: JSON with ``:name`` for atoms and ``{...}`` for tuples."""
    import json

    if isinstance(term, list):
        return "[" + ", ".join(map(to_words, term)) + "]"
    if isinstance(term, dict):
        if len(term) == 1:
            (form, inner), *_ = term.items()
            if form == "atom":
                return f":{inner}"
            if form == "tuple":
                return "{" + ", ".join(map(to_words, inner)) + "}"
            if form == "bytes":
                return f"<{len(inner) * 3 // 4 - inner.count('=')} bytes {inner[:60]}>"
            if form == "map":
                pairs = (f"{to_words(key)}: {to_words(value)}" for key, value in inner)
                return "#{" + ", ".join(pairs) + "}"
            if form == "term":
                return str(inner)
        return "{" + ", ".join(f"{json.dumps(k)}: {to_words(v)}" for k, v in term.items()) + "}"
    return json.dumps(term, ensure_ascii=False)
