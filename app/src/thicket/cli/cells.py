# SPDX-License-Identifier: Apache-2.0
"""Text in the columns of a terminal: wide characters take two, combining ones none."""

from __future__ import annotations

#: Stands where a text was cut.
CUT = "~"


def width(text: str) -> int:
    """Return the columns that a visible text takes (Unicode, Annex 11)."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(character: str) -> int:
    from unicodedata import category, east_asian_width  # few have such texts

    if category(character) in {"Mn", "Me"}:
        return 0
    return 2 if east_asian_width(character) in {"W", "F"} else 1


def fit(text: str, columns: int) -> str:
    """Return a text, cut and marked if it would take more columns."""
    if width(text) <= columns:
        return text
    kept, left = "", columns - len(CUT)
    for character in text:
        left -= width(character)
        if left < 0:
            break
        kept += character
    return kept + CUT if columns > 0 else ""


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Return a text with blanks behind it, or in front, so that it takes so many columns."""
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


def wrapped(text: str, columns: int) -> list[str]:
    """Return a text in lines of so many columns at most, broken at blanks where there are some."""
    lines, line = [], ""
    for word in text.split():
        while width(word) > columns:  # longer than a line
            head = _head(word, columns)
            lines += [line, head] if line else [head]
            line, word = "", word[len(head) :]  # noqa: PLW2901
        if line and width(line) + 1 + width(word) > columns:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return [*lines, line] if line else lines


def _head(word: str, columns: int) -> str:
    """Return as much of a word as a line takes: at least one character."""
    head = word[0]
    for character in word[1:]:
        if width(head + character) > columns:
            break
        head += character
    return head
