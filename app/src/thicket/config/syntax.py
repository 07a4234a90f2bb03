# SPDX-License-Identifier: Apache-2.0
"""Locates the faults in the text of a configuration file, and says what to write instead.

It is imported only when a file has a fault. :mod:`tomllib` finds the faults; this module shows a
person the line with a mark below the place, and the correct form.

Values of known keys that are not secret are shown; all other values are masked.
"""

from __future__ import annotations

import re
import tomllib

from thicket.base.fields import Finding
from thicket.base.visible import visible
from thicket.config.advice import advice, character_advice
from thicket.config.schema import SECTIONS
from thicket.config.statements import (
    BARE,
    WIDTH,
    Statement,
    key_of,
    keys_named,
    line_end,
    statements,
)

#: Most syntax errors of one file that are reported.
MOST_ERRORS = 8
#: Longest file, in characters, that is searched for more than the first error: each search reads
#: the whole file.
LONGEST = 16 * 1024

_MASK = "********"

_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def locate(text: str, findings: list[Finding]) -> None:
    """Set the line of findings about a key."""
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
    """Return the fault of a file that is not UTF-8 from the byte ``at`` on."""
    # the encoding of old editors in western Europe; other bytes are shown as U+FFFD
    text = data.replace(b"\r\n", b"\n").decode("cp1252", "replace")
    place = at - data.count(b"\r\n", 0, at)
    letter = f", {text[place]} in old editors" if text[place].isalpha() else ""
    message = f"holds a byte that is not UTF-8 (0x{data[at]:02x}{letter}): save the file as UTF-8"
    statement = next((s for s in statements(text) if s.start <= place < s.end), None)
    return _finding(text, file, place, message, statement)


def syntax_faults(text: str, file: str, error: Exception) -> list[Finding]:
    """Return the syntax errors of a text for which :func:`tomllib.loads` raised ``error``.

    After each error the search goes on as if its statement were not there.
    """
    found: list[Finding] = []
    while True:
        fault, statement = _fault(text, file, error)
        found.append(fault)
        if statement is None or statement.opened >= 0 or len(found) == MOST_ERRORS:
            break
        if len(text) > LONGEST:
            break
        # Without an unreadable section its keys would belong to another one; without a value that
        # is missing or spans lines, the lines below it would pass for settings.
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
        return _finding(text, file, at, character_advice(text, at) or words, None), None
    at, message = advice(text, at, words, statement, before)
    rest = text[statement.start : statement.end].lstrip("\"'[{( ")
    if any(_secret_word(word) for word in BARE.findall(rest)[1:]):
        message = message.partition(": write ")[0]  # it may repeat what is in the line
    return _finding(text, file, at, message, statement), statement


def _without_place(text: str, file: str, error: Exception) -> Finding:
    """Return a fault for which tomllib gives no place: too many digits, or nested too deeply."""
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
    content = text[start : line_end(text, at)]
    shown = _excerpt(content, at - start, start, statement)
    return Finding(file, "", "", message, line=line, column=at - start + 1, shown=shown)


def _excerpt(line: str, column: int, start: int, statement: Statement | None) -> str:
    """Return the line with possible secrets masked, and below it a mark at the column (from 0)."""
    if not any(c.isprintable() and not c.isspace() for c in line):
        return ""
    # characters from the line's start that are not secret
    open_to_all = len(line) if statement is None and line.lstrip().startswith("#") else 0
    if statement is not None:
        key = key_of(statement)
        if statement.is_table or (key is not None and not key.hides("x")):
            open_to_all = len(line)
        elif statement.value > start and statement.path:
            open_to_all = statement.value - start
        else:
            open_to_all = _open_part(line, statement)
    own = statement is not None and statement.path and not statement.is_table
    for word in BARE.finditer(line, max(0, statement.value - start) if statement and own else 0):
        if _secret_word(word.group()):
            open_to_all = min(open_to_all, word.end())
            break
    if open_to_all < len(line):
        head = line[:open_to_all]
        if head and not head.endswith((" ", "=", ":")):
            head += " "
        line, column = head + _MASK, min(column, len(head))
    first = max(0, min(column - WIDTH // 2, len(line) - WIDTH))
    before = visible(line[first:column].replace("\t", " "), keep="")
    after = visible(line[column : first + WIDTH].replace("\t", " "), keep="")
    return f"{before}{after}\n{' ' * len(before)}^"


def _open_part(line: str, statement: Statement) -> int:
    """Return how many characters of a line that is no setting and no section may be shown."""
    found = re.match(r"[\W_]*([A-Za-z0-9_-]*)", line)
    word = found[1] if found else ""
    if found is None or not _known_word(word):
        return 0 if found is None else found.start(1)
    alone = not line[found.end() :].strip(" \t\"'[](){}<>.,:;")
    if alone or (statement.value == statement.end and not _secret_word(word)):
        return len(line)
    return found.end()


def _known_word(word: str) -> bool:
    return word in SECTIONS or bool(keys_named(word))


def _secret_word(word: str) -> bool:
    return any(key.hides("x") for key in keys_named(word))
