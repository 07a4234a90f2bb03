# SPDX-License-Identifier: Apache-2.0
"""What to write instead of a faulty line of a configuration file."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from thicket.base.fields import Boolean, Integer, Key, Text
from thicket.base.toml import toml_value
from thicket.config.schema import APPLICATION, SECTIONS
from thicket.config.statements import WIDTH, Statement, key_of, keys_named, line_end
from thicket.firewall.section import Ports
from thicket.radio.section import Country
from thicket.upkeep.section import PublicKeys

#: Quotes that editors and web pages use in place of straight ones, and their straight form.
_CURLY = dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\uff02", '"') | dict.fromkeys(
    "\u2018\u2019\u201a\u201b\u2032\u00b4`\uff07", "'"
)
_STRAIGHT = str.maketrans(_CURLY)

_YES = frozenset(("true", "yes", "on", "enabled", "enable", "1", "y", "ja", "oui"))
_NO = frozenset(("false", "no", "off", "disabled", "disable", "0", "n", "nein", "non"))
_NOTHING = frozenset(("null", "none", "nil", "undefined"))


# -- what to write


def instead(key: Key[Any], raw: object) -> str | None:
    """Return how to write the meaning of ``raw``, a value that the key refuses, or None."""
    guesses: list[object] = []
    if isinstance(raw, str):
        word = raw.strip().lower()
        if isinstance(key, Boolean):
            guesses += [True] if word in _YES else [False] if word in _NO else []
        elif isinstance(key, Integer):
            number = re.fullmatch(r"0*(\d{1,18})\s*[A-Za-z%]*", word)
            guesses += [int(number[1])] if number else []
        elif isinstance(key, Ports):
            guesses += [[raw], raw.replace(",", " ").split()]
        elif isinstance(key, Country):
            from thicket.radio import country_names

            named = country_names.find(raw)
            guesses += [raw.strip().upper(), *([named[0]] if named else [])]
        else:
            guesses += [raw.strip(), word]
    elif isinstance(raw, bool):
        guesses += [int(raw)] if isinstance(key, Integer) else [str(raw).lower()]
    elif isinstance(raw, int | float):
        if isinstance(key, Boolean):
            guesses += [bool(raw)] if raw in {0, 1} else []
        else:
            # infinity and "nan", which TOML has, are no whole numbers
            guesses += [int(raw)] if isinstance(raw, int) or raw.is_integer() else []
            guesses += [str(raw)]
    for guess in guesses:
        if type(guess) is type(raw) and guess == raw:
            continue
        try:
            key.check(guess)
        except ValueError:
            continue
        shown = '"..."' if key.hides("x") else toml_value(guess)
        return f"{key.name} = {shown}"
    return None


def _as_text(statement: Statement, word: str) -> str:
    """Return ``key = "word"``, with the value masked where it may be secret."""
    key = key_of(statement)
    name = statement.path[-1] if statement.path else "key"
    if key is None or key.hides("x") or len(word) > WIDTH // 2:
        return f'{name} = "..."'
    return f"{name} = {toml_value(word)}"


def advice(
    text: str, at: int, words: str, statement: Statement, before: list[Statement]
) -> tuple[int, str]:
    """Return the place of an error and what is wrong; tomllib may report a later place."""
    message = character_advice(text, at)
    if message is not None:
        return at, message
    if words.startswith("Cannot ") and statement.path:
        return statement.start, _twice(text, statement, before)
    if statement.is_table:
        return _table_advice(text, at, statement)
    has_key = "=" in text[statement.start : statement.value]
    if not has_key:
        return _key_advice(text, at, statement)
    if at < statement.value:
        return _key_advice(text, at, statement)
    return _value_advice(text, at, words, statement)


def character_advice(text: str, at: int) -> str | None:
    """Return what is wrong with a character that no configuration file may hold, or None."""
    here = text[at : at + 1]
    if here == "\0":
        return "holds zeros, not text, from here on: the file is damaged; write it again"
    if here and here not in "\n\t" and not here.isprintable() and not here.isspace():
        return f"holds a control character (U+{ord(here):04X}), which may be invisible; delete it"
    if here and here not in " \t\n" and here.isspace():
        return f"holds a blank of another kind (U+{ord(here):04X}); write a plain one"
    return None


def _twice(text: str, statement: Statement, before: list[Statement]) -> str:
    for other in before:
        if other.path and other.path == statement.path:
            line = text.count("\n", 0, other.start) + 1
            if statement.is_table and other.is_table:
                name = f"[{'.'.join(statement.path)}]"
                return f"{name} stands in line {line} already: put its keys below that one"
            return f"{statement.path[-1]} is set in line {line} already: keep one of the two"
    name = ".".join(statement.path) or "this"
    return f"{name} is there already in another form: write each key once, below its [section]"


def _table_advice(text: str, at: int, statement: Statement) -> tuple[int, str]:
    line = text[statement.start : statement.end]
    inner = line.partition("#")[0].translate(_STRAIGHT).strip().strip("[]").strip(" \"'")
    inner = inner.partition("]")[0].strip(" .\"'")
    known = inner.split(".")[0] in {*SECTIONS, APPLICATION}
    name = f"write [{inner}]" if known else "as in [mesh]"
    return at, f"a section's name stands between square brackets, alone on its line: {name}"


def _key_advice(text: str, at: int, statement: Statement) -> tuple[int, str]:
    """Return what is wrong with a line that is neither a remark, a section nor ``key = value``."""
    line = text[statement.start : line_end(text, statement.start)].rstrip()
    right = "write [section], key = value, or a remark that begins with #"
    if line.startswith(("//", ";", "/*", "--", "%", "REM ", "rem ", "!")):
        return statement.start, "a remark begins with #"
    if line[0] in _CURLY:
        return statement.start, f"the name of a key needs no quotes: {right}"
    word = line.partition("]")[0].strip()
    if "]" in line and word in {*SECTIONS, APPLICATION}:
        return statement.start, f"a section's name stands between square brackets: write [{word}]"
    pair = re.match(r"([A-Za-z0-9_.-]+)\s*(:?=|:|=>|\s)\s*(.*)", line)
    if line.strip("(){}<>:") in SECTIONS:
        name = line.strip("(){}<>:")
        return statement.start, f"a section's name stands in square brackets: write [{name}]"
    if keys_named(line):
        return at, f"a key is followed by = and its value: write {line} = ..."
    marked = pair is not None and pair[2] in {":", ":=", "=>"}
    if pair and pair[3] and (marked or (keys_named(pair[1]) and "=" not in pair[3])):
        place = statement.start + pair.start(2) if pair[2].strip() else at
        return place, f"between a key and its value stands =: write {_pair(text, pair)}"
    if pair is not None and not pair[3] and pair[2].strip():
        return at, f"a key is followed by = and its value: {right}"
    if line.startswith(("- ", "* ")):
        return statement.start, f"this is a list of another kind of file: {right}"
    if "=" in line:
        return at, f"the name of a key is one word of letters a to z, digits, - and _: {right}"
    return at, f"this is no setting: {right}"


def _pair(text: str, pair: re.Match[str]) -> str:
    """Return the setting meant by ``key: value``; values that may be secret are left out."""
    name, value = pair[1], pair[3].translate(_STRAIGHT).partition(" #")[0].strip().rstrip(",;")
    keys = keys_named(name.rpartition(".")[2])
    if not keys or any(key.hides("x") for key in keys):
        return f"{name} = ..."
    for key in keys:
        try:
            (raw,) = tomllib.loads(f"x = {value}").values()
            key.check(raw)
        except ValueError:
            right = instead(key, value.strip("\"'"))
            if right is not None:
                return right
        else:
            return f"{name} = {value}"
    quoted = value if value[:1] in {'"', "'"} else toml_value(value)
    return f"{name} = {quoted}"


def _value_advice(text: str, at: int, words: str, statement: Statement) -> tuple[int, str]:
    key = key_of(statement)
    name = statement.path[-1] if statement.path else "the key"
    begin = statement.value
    line = text[begin : line_end(text, begin)]
    first = line[:1]
    if not line.partition("#")[0].strip():
        kind = f"; it is {key.allowed}" if key is not None else ""
        return begin, f"the value is missing: write it behind {name} = or delete the line{kind}"
    curly = next((i for i, c in enumerate(text[begin : statement.end]) if c in _CURLY), -1)
    if curly >= 0 and (first in _CURLY or statement.opened >= 0 or text[at : at + 1] in _CURLY):
        place = at if text[at : at + 1] in _CURLY else begin + curly
        straight = line.partition(" #")[0].translate(_STRAIGHT).rstrip()
        right = f'{name} = "..."'
        if key is not None and not key.hides("x"):
            bare = isinstance(key, Boolean | Integer)
            right = (bare and instead(key, straight.strip("\"'"))) or f"{name} = {straight}"
        return place, f"the quotes are not straight ones (\" or '): write {right}"
    if "-----BEGIN" in line and not line.startswith(("'''", '"""')):
        return begin, (
            f"a text of several lines stands between three quotes: write {name} = ''' and another "
            "''' on a line of its own below the text"
        )
    if statement.opened >= 0:
        return _unclosed(text, statement, name, line)
    if "'\\\\'" in words or "escape" in words.lower() or "hex value" in words:
        place = text.rfind("\\", begin, at + 1)
        return max(place, begin), (
            "in double quotes a backslash has a meaning of its own: write it twice (\\\\), or put "
            f"the text into single quotes ({name} = '...')"
        )
    if text.startswith("[", begin) or text.startswith("{", begin):
        if text[at : at + 1] in {'"', "'"}:
            return at, f"a comma is missing between two values of {name}"
        if isinstance(key, Ports | PublicKeys):
            example = '["tcp/8080", "udp/5000"]' if isinstance(key, Ports) else '["...", "..."]'
            return at, (
                f"the list of {name} holds texts, each in quotes, with commas between them: "
                f"{name} = {example}"
            )
        return at, (
            "between brackets stand values with commas between them, texts in quotes; "
            "what { begins must end on the same line"
        )
    if first in {'"', "'"}:
        if text[at : at + 1] in "\"'" or line.count(first) > 2:
            return at, _inner_quote(first)
        return at, "behind the closing quote nothing may follow on the line but a remark (# ...)"
    return _without_quotes(text, at, statement, name, line)


def _inner_quote(quote: str) -> str:
    if quote == '"':
        return 'the text ended at the quote before this one: write \\" for a quote in the text'
    return "the text ended at the quote before this one: put the text into double quotes"


def _unclosed(text: str, statement: Statement, name: str, line: str) -> tuple[int, str]:
    """Return what is never closed: three quotes, a quote or a bracket."""
    place = statement.opened
    quote = text[place : place + 3]
    if quote in {'"""', "'''"}:
        return place, f"the three quotes here are never closed: write {quote} at the text's end"
    if quote[0] in "\"'":
        if place != statement.value and text[statement.value] == quote[0]:
            return place, _inner_quote(quote[0])
        key = key_of(statement)
        bare = line.partition(" #")[0].rstrip()
        whole = place == statement.value and key is not None and not key.hides("x")
        example = (
            f": write {name} = {bare}{quote[0]}" if whole else f": write {quote[0]} at its end"
        )
        return place, f"the quote that begins here is never closed{example}"
    closing = "]" if quote[0] == "[" else "}"
    return place, f"the bracket here is never closed: write {closing} behind the last value"


def _without_quotes(
    text: str, at: int, statement: Statement, name: str, line: str
) -> tuple[int, str]:
    """Return what is wrong with a value that does not begin with a quote or a bracket."""
    key = key_of(statement)
    word = line.partition("#")[0].strip().rstrip(",;")
    low = word.lower()
    begin = statement.value
    if word.startswith("="):
        return begin, f"one = is enough: write {name} = and the value"
    if key is not None:
        right = instead(key, word)
        if isinstance(key, Boolean):
            return begin, f"write {right or f'{name} = true or {name} = false'}, without quotes"
        if isinstance(key, Integer):
            wrong = "a number stands alone, without a unit and without zeros before it"
            return begin, f"{wrong}: write {right}" if right else f"must be {key.allowed}"
        if low in _NOTHING:
            return begin, f"there is no {word} in TOML: delete the line for the default of {name}"
        if right is not None and not isinstance(key, Text):
            return begin, f"a text stands in quotes: write {right}"
    elif low in _YES | _NO and not low.isdigit():
        meant = "true" if low in _YES else "false"
        return begin, f"yes and no are true and false: write {name} = {meant} or a text in quotes"
    elif low in _NOTHING:
        return begin, f"there is no {word} in TOML: delete the line for the default of {name}"
    elif re.match(r"-?\d+,\d+$", word):
        return begin, "a number has a point, not a comma"
    elif re.match(r"0\d+$", word):
        return begin, "a number has no zeros before it; a text stands in quotes"
    return begin, f"a text stands in quotes: write {_as_text(statement, word)}"
