# SPDX-License-Identifier: Apache-2.0
"""Where in the text of a configuration file a fault is, and what to write instead.

Imported only when a file has a fault. :mod:`tomllib` judges; what is here reads the text leniently,
statement by statement (a section's name or a key with its value), to tell a person the line, to
show it with a mark below the place, and to say what would be right.

A line is shown as it is where nothing in it can be secret: values of keys that are known and not
secret. Other values are masked.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

from thicket import config
from thicket.config import Finding, Key
from thicket.visible import visible

#: Most syntax errors of one file that are told of, and the longest file in which more than the
#: first one is looked for, in characters: each look reads the whole file.
MOST_ERRORS: Final = 8
LONGEST: Final = 16 * 1024

#: Most characters of a line that are shown.
_WIDTH: Final = 76
_MASK: Final = "********"

#: Quotes that editors and web pages put in the place of straight ones, and what they stand for.
_CURLY: Final = dict.fromkeys(
    "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\uff02", '"'
) | dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`\uff07", "'")
_STRAIGHT: Final = str.maketrans(_CURLY)

_YES: Final = frozenset(("true", "yes", "on", "enabled", "enable", "1", "y", "ja", "oui"))
_NO: Final = frozenset(("false", "no", "off", "disabled", "disable", "0", "n", "nein", "non"))
_NOTHING: Final = frozenset(("null", "none", "nil", "undefined"))

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")
_POSITION: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
#: The next thing in a value that matters to where it ends.
_MARK: Final = re.compile(r"\"\"\"|'''|[\"'#\n\[\]{}]")


class Statement:
    """A statement: ``[section]`` or ``key = value``, as far as it can be told.

    ``start`` and ``end`` are its offsets in the text, ``value`` that of the value (``end`` when
    there is none). ``path`` holds the names from the section down, () when they cannot be read.
    ``opened`` is the offset of a quote or bracket that is never closed, or -1.
    """

    __slots__ = ("end", "is_table", "opened", "path", "start", "value")

    def __init__(self, start: int) -> None:
        self.start = self.end = self.value = start
        self.path: tuple[str, ...] = ()
        self.is_table = False
        self.opened = -1


def statements(text: str) -> Iterator[Statement]:
    """The statements of a text, which may be no valid TOML."""
    table: tuple[str, ...] = ()
    at = 0
    while at < len(text):
        if text[at] in " \t\n":
            at += 1
            continue
        if text[at] == "#":
            at = _line_end(text, at)
            continue
        found = Statement(at)
        if text[at] == "[":
            found.is_table = True
            found.end = found.value = _line_end(text, at)
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
                found.end = found.value = _line_end(text, at)
        yield found
        at = found.end


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _blank(text: str, at: int) -> int:
    while text.startswith((" ", "\t"), at):
        at += 1
    return at


def _names(text: str, at: int) -> tuple[tuple[str, ...], int]:
    """The dotted names that begin there, () for none, and where what follows them begins."""
    names: list[str] = []
    while True:
        at = _blank(text, at)
        quote = text[at : at + 1]
        if quote and quote in "\"'":
            end = text.find(quote, at + 1, _line_end(text, at))
            if end < 0:
                return (), at
            names.append(text[at + 1 : end])
            at = end + 1
        else:
            bare = _BARE.match(text, at)
            if bare is None:
                return (), at
            names.append(bare.group())
            at = bare.end()
        at = _blank(text, at)
        if not text.startswith(".", at):
            return tuple(names), at
        at += 1


def _value_end(text: str, at: int) -> tuple[int, int]:
    """Where a value ends, its line included, and the place of what is never closed, or -1."""
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
            if end < 0 or end > _line_end(text, at):
                return _line_end(text, at), mark.start()
            at = end
        elif what == "#":
            at = _line_end(text, at)
        elif what in {"[", "{"}:
            open_brackets.append(mark.start())
        elif what in {"]", "}"}:
            if open_brackets:
                open_brackets.pop()
        elif not open_brackets:
            return mark.start(), -1
    return len(text), open_brackets[0] if open_brackets else -1


def _closing(text: str, quote: str, at: int) -> int:
    """The end of the text that a quote before ``at`` began, or -1."""
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


def locate(text: str, findings: list[Finding]) -> None:
    """Give findings about a key its line in the text."""
    lines: dict[str, int] = {}
    line, counted = 1, 0
    for statement in statements(text):
        path = ".".join(statement.path)
        name = f"[{path}]" if statement.is_table and path in statement.path else path
        line += text.count("\n", counted, statement.start)
        counted = statement.start
        for known in {name, path}:
            lines.setdefault(known, line)
    for finding in findings:
        if not finding.line and finding.key:
            finding.line = lines.get(finding.key, 0)


def encoding_fault(data: bytes, file: str, at: int) -> Finding:
    """The fault of a file that is not UTF-8 from the byte ``at`` on."""
    # the encoding of old editors in the west of Europe; what is not in it is shown as U+FFFD
    text = data.replace(b"\r\n", b"\n").decode("cp1252", "replace")
    place = at - data.count(b"\r\n", 0, at)
    letter = f", {text[place]} in old editors" if text[place].isalpha() else ""
    message = f"holds a byte that is not UTF-8 (0x{data[at]:02x}{letter}): save the file as UTF-8"
    statement = next((s for s in statements(text) if s.start <= place < s.end), None)
    return _finding(text, file, place, message, statement)


def syntax_faults(text: str, file: str, error: Exception) -> list[Finding]:
    """The syntax errors of a text for which :func:`tomllib.loads` raised ``error``.

    Further ones are looked for as if the statement with the error were not there.
    """
    found: list[Finding] = []
    while True:
        fault, statement = _fault(text, file, error)
        found.append(fault)
        if statement is None or statement.opened >= 0 or len(found) == MOST_ERRORS:
            break
        if len(text) > LONGEST:
            break
        # The keys below a section that cannot be read would be taken for others, and the lines
        # below a value that is missing or begins there for settings.
        if statement.is_table or statement.end == statement.start:
            break
        lost = text[statement.start : statement.end]
        if "-----BEGIN" in lost or lost.rstrip().endswith("="):
            break
        blank = "\n" * lost.count("\n")
        text = text[: statement.start] + blank + text[statement.end :]
        try:
            tomllib.loads(text)
        except (ValueError, RecursionError) as e:
            error = e
        else:
            break
    return found


def _fault(text: str, file: str, error: Exception) -> tuple[Finding, Statement | None]:
    said = str(error)
    position = _POSITION.search(said)
    if position is None:
        return _without_place(text, file, error), None
    words = said[: position.start()]
    at = len(text) if position[1] is None else _offset(text, int(position[1]), int(position[2]))
    statement = None
    before: list[Statement] = []
    for candidate in statements(text):
        if candidate.start > at:
            break
        if statement is not None:
            before.append(statement)
        statement = candidate
    if statement is None:  # a remark or nothing but blanks so far
        return _finding(text, file, at, _character(text, at) or words, None), None
    at, message = _advice(text, at, words, statement, before)
    rest = text[statement.start : statement.end].lstrip("\"'[{( ")
    if any(_secret_word(word) for word in _BARE.findall(rest)[1:]):
        message = message.partition(": write ")[0]  # it may repeat what is in the line
    return _finding(text, file, at, message, statement), statement


def _without_place(text: str, file: str, error: Exception) -> Finding:
    """tomllib leaves the place to be found: too many digits, and brackets too deep."""
    if isinstance(error, RecursionError):
        run = re.search(r"(?:[\[{]\s*){50}", text)
        message = "is nested too deeply: there are too many brackets"
    else:
        run = re.search(r"\d[\d_]{1000,}", text)
        message = "holds a number that is too large: TOML's whole numbers have 64 bits"
    if run is None:
        return Finding(file, "", "", f"is not valid TOML: {error}")
    return Finding(file, "", "", message, line=text.count("\n", 0, run.start()) + 1)


def _offset(text: str, line: int, column: int) -> int:
    at = 0
    for _ in range(line - 1):
        at = text.find("\n", at) + 1
    return min(at + column - 1, len(text))


def _finding(text: str, file: str, at: int, message: str, statement: Statement | None) -> Finding:
    line = text.count("\n", 0, at) + 1
    start = text.rfind("\n", 0, at) + 1
    content = text[start : _line_end(text, at)]
    shown = _excerpt(content, at - start, start, statement)
    return Finding(file, "", "", message, line=line, column=at - start + 1, shown=shown)


def _excerpt(line: str, column: int, start: int, statement: Statement | None) -> str:
    """The line, what may be secret in it masked, and below it a mark at the column (from 0)."""
    if not any(c.isprintable() and not c.isspace() for c in line):
        return ""
    # characters from the line's start that are not secret
    open_to_all = len(line) if statement is None and line.lstrip().startswith("#") else 0
    if statement is not None:
        key = _key(statement)
        if statement.is_table or (key is not None and not key.hides("x")):
            open_to_all = len(line)
        elif statement.value > start and statement.path:
            open_to_all = statement.value - start
        else:
            open_to_all = _open_part(line, statement)
    own = statement is not None and statement.path and not statement.is_table
    for word in _BARE.finditer(line, max(0, statement.value - start) if statement and own else 0):
        if _secret_word(word.group()):
            open_to_all = min(open_to_all, word.end())
            break
    if open_to_all < len(line):
        head = line[:open_to_all]
        if head and not head.endswith((" ", "=", ":")):
            head += " "
        line, column = head + _MASK, min(column, len(head))
    first = max(0, min(column - _WIDTH // 2, len(line) - _WIDTH))
    before = visible(line[first:column].replace("\t", " "), keep="")
    after = visible(line[column : first + _WIDTH].replace("\t", " "), keep="")
    return f"{before}{after}\n{' ' * len(before)}^"


def _open_part(line: str, statement: Statement) -> int:
    """How much of a line that is no setting and no section is not secret."""
    found = re.match(r"[\W_]*([A-Za-z0-9_-]*)", line)
    word = found[1] if found else ""
    if found is None or not _known_word(word):
        return 0 if found is None else found.start(1)
    alone = not line[found.end() :].strip(" \t\"'[](){}<>.,:;")
    if alone or (statement.value == statement.end and not _secret_word(word)):
        return len(line)
    return found.end()


def _key(statement: Statement) -> Key[Any] | None:
    """The declared key that a statement sets, or None."""
    if statement.is_table or len(statement.path) != 2:
        return None
    section = config.SECTIONS.get(statement.path[0])
    return None if section is None else section.keys().get(statement.path[1])


def _keys_named(name: str) -> list[Key[Any]]:
    found = (section.keys().get(name) for section in config.SECTIONS.values())
    return [key for key in found if key is not None]


def _known_word(word: str) -> bool:
    return word in config.SECTIONS or bool(_keys_named(word))


def _secret_word(word: str) -> bool:
    return any(key.hides("x") for key in _keys_named(word))


# -- what to write


def instead(key: Key[Any], raw: object) -> str | None:
    """How to write what is meant by ``raw``, which the key refuses, or None."""
    guesses: list[object] = []
    if isinstance(raw, str):
        word = raw.strip().lower()
        if isinstance(key, config.Boolean):
            guesses += [True] if word in _YES else [False] if word in _NO else []
        elif isinstance(key, config.Integer):
            number = re.fullmatch(r"0*(\d{1,18})\s*[A-Za-z%]*", word)
            guesses += [int(number[1])] if number else []
        elif isinstance(key, config.Ports):
            guesses += [[raw], raw.replace(",", " ").split()]
        elif isinstance(key, config.Country):
            from thicket import countrynames  # noqa: PLC0415

            named = countrynames.find(raw)
            guesses += [raw.strip().upper(), *([named[0]] if named else [])]
        else:
            guesses += [raw.strip(), word]
    elif isinstance(raw, bool):
        guesses += [int(raw)] if isinstance(key, config.Integer) else [str(raw).lower()]
    elif isinstance(raw, int | float):
        if isinstance(key, config.Boolean):
            guesses += [bool(raw)] if raw in {0, 1} else []
        else:
            guesses += [int(raw)] if raw == int(raw) else []
            guesses += [str(raw)]
    for guess in guesses:
        if type(guess) is type(raw) and guess == raw:
            continue
        try:
            key.check(guess)
        except ValueError:
            continue
        shown = '"..."' if key.hides("x") else config.toml_value(guess)
        return f"{key.name} = {shown}"
    return None


def _as_text(statement: Statement, word: str) -> str:
    """``key = "word"`` with a value in quotes, the value masked where it may be secret."""
    key = _key(statement)
    name = statement.path[-1] if statement.path else "key"
    if key is None or key.hides("x") or len(word) > _WIDTH // 2:
        return f'{name} = "..."'
    return f"{name} = {config.toml_value(word)}"


def _advice(
    text: str, at: int, words: str, statement: Statement, before: list[Statement]
) -> tuple[int, str]:
    """The place of an error, better than tomllib's where that is late, and what is wrong."""
    message = _character(text, at)
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


def _character(text: str, at: int) -> str | None:
    """What is wrong with a character that stands in no configuration file, or None."""
    here = text[at : at + 1]
    if here == "\0":
        return "holds zeros, not text, from here on: the file is damaged; write it again"
    if here and here not in "\n\t" and not here.isprintable() and not here.isspace():
        return f"holds a control character (U+{ord(here):04X}), which may not be seen; delete it"
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
    known = inner.split(".")[0] in {*config.SECTIONS, config.APPLICATION}
    name = f"write [{inner}]" if known else "as in [mesh]"
    return at, f"a section's name stands between square brackets, alone on its line: {name}"


def _key_advice(text: str, at: int, statement: Statement) -> tuple[int, str]:
    """What is wrong with a line that is no remark, no section and has no key before a ``=``."""
    line = text[statement.start : _line_end(text, statement.start)].rstrip()
    right = "write [section], key = value, or a remark that begins with #"
    if line.startswith(("//", ";", "/*", "--", "%", "REM ", "rem ", "!")):
        return statement.start, "a remark begins with #"
    if line[0] in _CURLY:
        return statement.start, f"the name of a key needs no quotes: {right}"
    word = line.partition("]")[0].strip()
    if "]" in line and word in {*config.SECTIONS, config.APPLICATION}:
        return statement.start, f"a section's name stands between square brackets: write [{word}]"
    pair = re.match(r"([A-Za-z0-9_.-]+)\s*(:?=|:|=>|\s)\s*(.*)", line)
    if line.strip("(){}<>:") in config.SECTIONS:
        name = line.strip("(){}<>:")
        return statement.start, f"a section's name stands in square brackets: write [{name}]"
    if _keys_named(line):
        return at, f"a key is followed by = and its value: write {line} = ..."
    marked = pair is not None and pair[2] in {":", ":=", "=>"}
    if pair and pair[3] and (marked or (_keys_named(pair[1]) and "=" not in pair[3])):
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
    """The setting that is meant by ``key: value``; values that may be secret are left out."""
    name, value = pair[1], pair[3].translate(_STRAIGHT).partition(" #")[0].strip().rstrip(",;")
    keys = _keys_named(name.rpartition(".")[2])
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
    quoted = value if value[:1] in {'"', "'"} else config.toml_value(value)
    return f"{name} = {quoted}"


def _value_advice(text: str, at: int, words: str, statement: Statement) -> tuple[int, str]:
    key = _key(statement)
    name = statement.path[-1] if statement.path else "the key"
    begin = statement.value
    line = text[begin : _line_end(text, begin)]
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
            bare = isinstance(key, config.Boolean | config.Integer)
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
        if isinstance(key, config.Ports | config.PublicKeys):
            example = (
                '["tcp/8080", "udp/5000"]' if isinstance(key, config.Ports) else '["...", "..."]'
            )
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
    """What is never closed: three quotes, a quote or a bracket."""
    place = statement.opened
    quote = text[place : place + 3]
    if quote in {'"""', "'''"}:
        return place, f"the three quotes here are never closed: write {quote} at the text's end"
    if quote[0] in "\"'":
        if place != statement.value and text[statement.value] == quote[0]:
            return place, _inner_quote(quote[0])
        key = _key(statement)
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
    """What is wrong with a value that does not begin with a quote or a bracket."""
    key = _key(statement)
    word = line.partition("#")[0].strip().rstrip(",;")
    low = word.lower()
    begin = statement.value
    if word.startswith("="):
        return begin, f"one = is enough: write {name} = and the value"
    if key is not None:
        right = instead(key, word)
        if isinstance(key, config.Boolean):
            return begin, f"write {right or f'{name} = true or {name} = false'}, without quotes"
        if isinstance(key, config.Integer):
            wrong = "a number stands alone, without a unit and without zeros before it"
            return begin, f"{wrong}: write {right}" if right else f"must be {key.allowed}"
        if low in _NOTHING:
            return begin, f"there is no {word} in TOML: delete the line for the default of {name}"
        if right is not None and not isinstance(key, config.Text):
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
